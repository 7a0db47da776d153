"""One label, written in several ways: `1.0` and `1`, an accent as one character or two, a space at the end.

Kaggle compares texts, so the file is written as the sample submission is.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace

from pipeline.competition.folders import plain_name
from pipeline.competition.id_styles import composed
from pipeline.targets.evidence import LabelEvidence
from pipeline.targets.readings import (
    are_flags,
    are_numbers,
    as_words,
    has_fraction,
    is_true,
    may_have_decimal_commas,
    number,
)

BETWEEN = r"[\s,;|]+"  # the parts of a cell with several labels
WHOLE = r"(?<![\w.+-])([+-]?)0*(\d+)(?:\.0*)?(?![\w.])"  # 7, 7.0, 07


def class_name(folder: str) -> str:
    """Return the class of a folder: its name without spaces around it, an accent as one character."""
    return composed(folder.strip())


def parts_of(texts: Iterable[str]) -> set[str]:
    """Return `texts`, and the parts of those that hold several labels."""
    texts = {text.strip() for text in texts}
    return texts | {part for text in texts for part in re.split(BETWEEN, text) if part}


def spelled_as(evidence: LabelEvidence, asked: Iterable[str]) -> tuple[LabelEvidence, str]:
    """Write the labels as `asked` writes them (the sample submission, or a model's names), with a note.

    Whole numbers may be `7`, `7.0` or `07`; an accent may be one character or two. The labels are unchanged
    (note "") if that does not make a text of `asked` a label, or makes one label of two.
    """
    names, wanted = set(evidence.texts), parts_of(asked)
    parts = parts_of(names)
    lost = wanted - parts
    if not names or not lost:
        return evidence, ""
    numbers = all(number(part) is not None for part in parts if not re.search(BETWEEN, part))
    ways: list[Callable[[str], str]] = [composed, _decomposed]
    if are_flags(names) and are_flags(wanted) and not are_numbers(wanted):
        words = as_words(min(wanted))
        ways += [lambda text: words[is_true(text)]]
    decimal_commas = any("," in name for name in names) and may_have_decimal_commas(names)
    if numbers and not has_fraction(parts) and not decimal_commas:
        ways += [as_whole, _with_zero]
    for way in ways:
        called = {name: way(name) for name in names}
        if all(name == text for name, text in called.items()):
            continue
        new = parts_of(called.values())
        kept = wanted & parts <= new  # labels that were right stay right
        # 0 stands for a whole number in the sample, also where 0 is no label
        style = way is as_whole and all(re.fullmatch(r"-?\d+\.0+", name) for name in names)
        style = style and all(re.fullmatch(r"-?\d+", text) for text in wanted)
        if (lost & new or style) and kept and len(set(called.values())) == len(names):
            was = min(name for name in names if called[name] != name)
            note = f"labels are written as in the sample submission: {was!r} is {called[was]!r}"
            return replace(evidence, texts=tuple(called[text] for text in evidence.texts)), note
    return evidence, ""


def called_as_asked(evidence: LabelEvidence, columns: Sequence[str]) -> tuple[LabelEvidence, str]:
    """Rename labels to the column names of the sample submission (`0` if it has a column `class_0`), with a
    note.

    The labels are unchanged (note "") if they equal the columns already, or if not every label gets its
    column.
    """
    names = sorted(set(evidence.texts))
    if len(columns) != len(names) or len(names) < 2 or set(columns) & set(names):
        return evidence, ""
    plain = {plain_name(column): column for column in columns}
    affixes = {column.partition(names[0])[::2] for column in columns if names[0] in column} | {("", "")}
    for before, behind in sorted(affixes):
        called = {name: plain.get(plain_name(before + name + behind), "") for name in names}
        if set(called.values()) == set(columns):
            note = f"labels are called as in the sample submission: {names[0]!r} is {called[names[0]]!r}"
            return replace(evidence, texts=tuple(called[text] for text in evidence.texts)), note
    return evidence, ""


def without_affixes(evidence: LabelEvidence, asked: Collection[str]) -> tuple[LabelEvidence, str]:
    """Take from all labels what the sample submission does not write: a number before each (`01_cat`), or one
    text before or behind all (`cat-samples`), with a note.

    The labels are unchanged (note "") if one of them is asked, or if that does not make every text of `asked`
    a label. A single number may be a placeholder.
    """
    names, wanted = set(evidence.texts), {text.strip() for text in asked if text.strip()}
    if len(names) < 2 or not wanted or wanted & names or (len(wanted) < 2 and are_numbers(wanted)):
        return evidence, ""
    first, text = min(names), min(wanted)
    ways = [{name: re.sub(r"^\d+[\W_]+", "", name) for name in names}]
    for before, found, behind in (name.partition(text) for name in sorted(names)):
        begins, ends = re.fullmatch(r"(.*[\W_])?", before), re.fullmatch(r"([\W_].*)?", behind)
        of_list = re.search(r"""['"\[\]{}]""", before + behind)  # ['cat'] may hold several labels
        if (
            found
            and not of_list
            and begins
            and ends
            and all(name.startswith(before) and name.endswith(behind) for name in names)
        ):
            ways.append({name: name[len(before) : len(name) - len(behind)] for name in names})
    for called in ways:
        if (
            wanted <= set(called.values())
            and len(set(called.values())) == len(names)
            and all(called.values())
        ):
            note = f"labels are called as in the sample submission: {first!r} is {called[first]!r}"
            return replace(evidence, texts=tuple(called[text] for text in evidence.texts)), note
    return evidence, ""


def other_spellings(values: Iterable[str], names: Collection[str]) -> dict[str, str]:
    """Return value -> the only one of `names` that is this value written in another way.

    Two spellings of one label are equal numbers, or equal but for case, spaces and marks. Values that are
    names, or no name's spelling, are left out.
    """
    by_number: dict[float | None, list[str]] = {}
    by_plain: dict[str, list[str]] = {}
    for name in names:
        by_number.setdefault(number(name), []).append(name)
        by_plain.setdefault(plain_name(composed(name)), []).append(name)
    by_plain.pop("", None)
    found = {}
    for value in set(values) - set(names):
        same = by_plain.get(plain_name(composed(value)), [])
        if (amount := number(value)) is not None:  # numbers are compared as numbers
            same = [*by_number.get(amount, []), *(name for name in same if number(name) is None)]
        if len(same) == 1:
            found[value] = same[0]
    return found


def _decomposed(text: str) -> str:
    return unicodedata.normalize("NFD", text)


def as_whole(text: str) -> str:
    """Return `7` for `7.0` and `07`, also as parts of a text; a text without such numbers is unchanged."""
    return re.sub(WHOLE, r"\1\2", text)


def _with_zero(text: str) -> str:
    return re.sub(WHOLE, r"\1\2.0", text)
