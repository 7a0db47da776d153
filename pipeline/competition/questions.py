"""Prepare question answering: clean texts, sample images, choose the answers that become classes, and split
the rows.
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pipeline.competition.rows import Row
from pipeline.errors import UserError
from pipeline.wording import counted

# ---- text ----


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_NEGATIONS = {"can't": "cannot", "won't": "will not", "shan't": "shall not", "ain't": "is not"}
_ENDINGS = {"re": "are", "ve": "have", "ll": "will", "d": "would", "m": "am"}
_IS = _words(
    "what it he she that this there here where who how when why which one everyone everybody everything "
    "someone somebody something anyone anybody anything nobody nothing"
)
_DID = _words("what where how why who when")
# Before these words "the man's" means "the man is"; before others ("the man's shirt") it is a possessive.
_AFTER_IS = _words(
    "a an the in on at by with under over near behind beside above below inside outside from of for to up "
    "down out off not going being about ready able likely also still just wearing"
)
_NOUNS_IN_ING = _words(
    "clothing ring earring ceiling building wing string thing wedding painting king evening morning railing "
    "awning swing spring icing topping lighting bedding parking drawing writing stocking lettering serving "
    "feeling meeting landing"
)
_BARE = {
    **{word: f"{word[:-1]} is" for word in ("whats", "wheres", "thats", "theres", "whos", "hows")},
    **{
        f"{word}nt": f"{word} not"
        for word in "is are does do did has have was were could should would".split()
    },
    "theyre": "they are",
    "youre": "you are",
}


@lru_cache(maxsize=200_000)
def clean_question(text: str) -> str:
    """Return the question in lower case, with expanded contractions ("what is"), no punctuation and single
    spaces.

    Possessives keep the apostrophe ("the man's shirt"); letters and marks of other scripts are kept. The
    result is never empty: a text of punctuation only is kept.
    """
    plain = unicodedata.normalize("NFC", text).replace("\u2019", "'").replace("\u02bc", "'").lower()
    words = _without_punctuation(_expanded(plain)).split()
    return " ".join(_BARE.get(word, word) for word in words) or " ".join(plain.split())


def clean_answer(text: str) -> str:
    """Return the answer cleaned like a question; answers are compared and counted in this form."""
    return clean_question(text)


def _expanded(text: str) -> str:
    text = re.sub(r"\blet's\b", "let us", text)
    text = re.sub(r"\by'all\b", "you all", text)
    text = re.sub(
        r"\b[a-z]+n't\b", lambda found: _NEGATIONS.get(found.group(), f"{found.group()[:-3]} not"), text
    )
    text = re.sub(r"'d've\b", " would have", text)
    text = re.sub(r"\b([a-z]+)'(re|ve|ll|d|m)\b", _verb, text)
    return re.sub(r"\b([^\W\d_]+)'s\b(?=(?:\s+([^\W\d_]+))?)", _is_or_whose, text)


def _verb(found: re.Match[str]) -> str:
    word, ending = found.groups()
    return f"{word} did" if ending == "d" and word in _DID else f"{word} {_ENDINGS[ending]}"


def _is_or_whose(found: re.Match[str]) -> str:
    word, following = found.groups()
    acts = following is not None and (
        following in _AFTER_IS or (following.endswith("ing") and following not in _NOUNS_IN_ING)
    )
    return f"{word} is" if word in _IS or acts else found.group()


def _without_punctuation(text: str) -> str:
    """Replace punctuation by spaces, except inside words and numbers: o'clock, 3.5, 1,000 (as 1000), 2:30,
    1/2, -5, 50%, $, &.
    """
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    return re.sub(r"[^\w\s]|_", _kept_mark, text)


def _kept_mark(found: re.Match[str]) -> str:
    mark = found.group()
    before = found.string[found.start() - 1 : found.start()]
    after = found.string[found.end() : found.end() + 1]
    if mark == "'":
        keep = before.isalpha() and after.isalpha()
    elif mark in ".:/":
        keep = before.isdigit() and after.isdigit()
    elif mark == "-":
        keep = after.isdigit() and not before.strip()
    else:  # symbols; accents, vowel signs and joiners of other scripts
        kind = unicodedata.category(mark)
        keep = mark in "%&#" or (kind[0] in "MS" and mark not in "`=<>+|~^") or kind == "Cf"
    return mark if keep else " "


# ---- rows ----


@dataclass(frozen=True)
class Prepared:
    """Rows for training and validation, and the answer classes of the model."""

    train: tuple[Row, ...]  # only rows whose answer is a class
    val: tuple[Row, ...]
    class_names: tuple[str, ...]  # by frequency, in the most frequent spelling; this is the predicted text
    indices: dict[str, int]  # cleaned answer -> class
    notes: tuple[str, ...]

    def label_of(self, answer: str) -> int:
        """Return the class index of a cleaned answer; -1 if it is not a class."""
        return self.indices.get(answer, -1)


def prepare(
    rows: Sequence[Row],
    *,
    seed: int,
    val_fraction: float,
    top_answers: int,
    split_seed: int | None = None,
    image_fraction: float = 1.0,
    other_answers: Literal["wrong", "drop"] = "wrong",
    split_by: Literal["image", "question"] = "image",
    resumed_rows: Sequence[tuple[str, str, str]] | None = None,
    answers: Sequence[str] = (),
) -> Prepared:
    """Sample the images, choose the answer classes, and split the rows.

    Draws depend on `seed` (the split on `split_seed`, if it is set), not on the order of `rows`.

    `other_answers="wrong"`: answers are counted on the training rows; validation rows with another answer
    stay and count as wrong. "drop": answers are counted before the split, and rows with other answers are
    removed from both parts. A resumed run passes its `resumed_rows` (id, label, train or val), which keep
    their part, and its `answers`; new rows are left out.

    Raises:
        UserError: no rows are left for training, or there are fewer than two answers.
    """
    if resumed_rows is not None:
        return _prepare_again(rows, resumed_rows, answers)
    rows, notes = _sampled(rows, image_fraction, seed)
    total = len(rows)
    classes = _Classes(rows, top_answers) if other_answers == "drop" else None
    if classes:
        rows = [row for row in rows if classes.knows(row)]
    train, val, how = _split(rows, val_fraction, split_by, seed if split_seed is None else split_seed)
    if classes is None:
        classes, total = _Classes(train, top_answers), len(train)
    kept = [row for row in train if classes.knows(row)]
    covered = (len(kept) if other_answers == "wrong" else len(rows)) / max(total, 1)
    if len(classes.names) < 2:
        raise UserError(
            f"{counted(len(train), 'training question')}, all with the answer {classes.names[0]!r}: two "
            "answers are needed"
        )
    of = (
        "training questions"
        if other_answers == "wrong"
        else "questions; the others are dropped before the split"
    )
    notes.append(f"answers: {classes.says}, {covered:.2%} of {total:,} {of}")
    notes.append(how)
    outside = sum(not classes.knows(row) for row in val)
    if outside:
        notes.append(
            f"{outside:,} of {counted(len(val), 'validation answer')} are none of these and count as wrong "
            "(data.other_answers=wrong)"
        )
    return Prepared(tuple(kept), tuple(val), classes.names, classes.indices, tuple(notes))


class _Classes:
    """The most frequent cleaned answers of `rows`."""

    def __init__(self, rows: Sequence[Row], top_answers: int) -> None:
        if not rows:
            raise UserError(
                "no questions are left to train on: raise data.image_fraction, or lower data.val_fraction"
            )
        written: dict[str, Counter[str]] = {}
        for row in rows:
            written.setdefault(clean_answer(row.label or ""), Counter())[row.label or ""] += 1
        ranked = sorted(written, key=lambda answer: (-written[answer].total(), answer))[:top_answers]
        self.indices = {answer: index for index, answer in enumerate(ranked)}
        self.names = tuple(
            min(written[answer], key=lambda form, forms=written[answer]: (-forms[form], form))
            for answer in ranked
        )
        every = counted(len(written), "different answer")
        self.says = (
            f"all {every}" if len(ranked) == len(written) else f"the {len(ranked):,} most frequent of {every}"
        )

    def knows(self, row: Row) -> bool:
        return clean_answer(row.label or "") in self.indices


def _sampled(rows: Sequence[Row], fraction: float, seed: int) -> tuple[list[Row], list[str]]:
    images = sorted({row.path for row in rows})
    if fraction >= 1:
        return list(rows), []
    count = min(len(images), max(2, round(fraction * len(images))))
    chosen = set(random.Random(f"images {seed}").sample(images, count))
    kept = [row for row in rows if row.path in chosen]
    return kept, [
        f"sampled {count:,} of {counted(len(images), 'image')} (seed {seed}): {len(kept):,} of "
        f"{counted(len(rows), 'question')}"
    ]


def _split(rows: Sequence[Row], val_fraction: float, by: str, seed: int) -> tuple[list[Row], list[Row], str]:
    """Return training rows, validation rows and a description.

    At least one image (or question) stays in training.
    """
    units = sorted({_unit(row, by) for row in rows})
    num_val = min(round(val_fraction * len(units)), len(units) - 1)
    if val_fraction and not num_val and len(units) > 1:
        num_val = 1
    held_out = set(random.Random(f"split {seed}").sample(units, num_val)) if num_val > 0 else set()
    train = [row for row in rows if _unit(row, by) not in held_out]
    val = [row for row in rows if _unit(row, by) in held_out]
    if not val:
        return train, val, f"validation: none of {counted(len(rows), 'question')}, all train"
    how = f"validation: {len(val):,} of {counted(len(rows), 'question')}, "
    if by == "image":
        return (
            train,
            val,
            how + f"all those about {counted(num_val, 'image')} (seed {seed}): no image is in both parts",
        )
    seen = {row.path for row in train}
    shared = sum(row.path in seen for row in val)
    return (
        train,
        val,
        how
        + (
            f"drawn one by one (seed {seed}); this leaks: {shared:,} of them are about an image that also "
            "trains, so the score is not that of new images (data.split_by=image)"
        ),
    )


def _unit(row: Row, by: str) -> tuple[Path | str, str]:
    return (str(row.path), "") if by == "image" else (row.id, str(row.path))


def _prepare_again(
    rows: Sequence[Row], resumed_rows: Sequence[tuple[str, str, str]], answers: Sequence[str]
) -> Prepared:
    indices = {clean_answer(answer): index for index, answer in enumerate(answers)}
    row_of = {row.id: row for row in rows}
    train, val = (
        [row_of[row_id] for row_id, _, split in resumed_rows if split == part and row_id in row_of]
        for part in ("train", "val")
    )
    kept = [row for row in train if clean_answer(row.label or "") in indices]
    notes = (
        f"questions, answers and validation ({len(val):,}) are those the run was started with; others are "
        "not used",
    )
    return Prepared(tuple(kept), tuple(val), tuple(answers), indices, notes)
