"""Describe label cells: are they numbers, zeros and ones, or several labels in a cell?

Only facts are found here; `pipeline.targets.decide` draws the conclusion.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Literal

from pipeline.targets.target import finite_number

SEPARATORS = (" ", ",", ";", "|")
OTHER_MARKS = ("\n", "\t", *"/+&~:-_")  # separators only where the parts are labels of other cells
BETWEEN_SPACES = r"(?<=\S) (?:[^\w\s,;|]+|and) (?=\S)"  # cat + dog, cat and dog
FEW_NUMBERS = 20  # up to this many different whole numbers are read as classes if there is no other evidence
TRUE_TEXTS, FALSE_TEXTS = ("1", "1.0", "true"), ("0", "0.0", "false")
# Share of the parts that also occur in another cell. From the first value on, parts are labels; below the
# second value they are words of a name.
CLEAR_SHARE, DOUBTFUL_SHARE = 0.8, 0.5
NAMING_WORDS = ("is_", "has_", "is", "has")  # before a class in a column name: has_cactus, is_iceberg


def number(text: str) -> int | float | None:
    """Return the finite number in a cell, a whole one as an exact int; None for anything else."""
    return None if "_" in text else finite_number(text)


def are_numbers(texts: Iterable[str]) -> bool:
    """Return True when there is at least one cell and every cell is a number."""
    values = [number(text) for text in texts]
    return bool(values) and None not in values


def are_shares(texts: Iterable[str]) -> bool:
    """Return True when every cell is a number from 0 to 1."""
    values = [number(text) for text in texts]
    return all(value is not None and 0 <= value <= 1 for value in values)


def are_fractions_of_one(texts: Sequence[str]) -> bool:
    """Return True when every cell is a number from 0 to 1, and some cell is between: 0.5."""
    return are_shares(texts) and has_fraction(texts)


def may_have_decimal_commas(texts: Iterable[str]) -> bool:
    """Return True when every cell is a whole number, or two with a comma between them: 3, 1,5."""
    return all(re.fullmatch(r"[+-]?\d+(,\d+)?", text.strip()) for text in texts)


def look_like_lists(texts: Iterable[str]) -> bool:
    """Return True when there is at least one cell and every cell has brackets around it: ['cat' 'dog']."""
    cells = list(texts)
    return bool(cells) and all(re.fullmatch(r"[\[({].*[\])}]", cell.strip(), re.DOTALL) for cell in cells)


def comma_advice(texts: Iterable[str]) -> str:
    """Return how to write a number that has a comma among `texts` (1,5): the end of a message; else "".

    Whether 1,500 means 1.5 or 1500 is not known: then both are shown.
    """
    found = next((text.strip() for text in texts if "," in text and may_have_decimal_commas([text])), None)
    if found is None:
        return ""
    advice = f"; a comma in a number is not read: write {found!r} as {found.replace(',', '.')}"
    if re.fullmatch(r"[+-]?[1-9]\d{0,2},\d{3}", found):
        advice += f" or {found.replace(',', '')}, as it is meant"
    return advice


def unit_advice(text: str) -> str:
    """Return how to write a number with a unit (12 kg, 50%): the end of a message; "" for other texts."""
    found = re.fullmatch(r"\s*([+-]?\d+(?:\.\d+)?)\s*([^\W\d_][^\d]*|[%°€$£])\s*", text)
    return f"; a unit is not read: write {text!r} as {found[1]}, in each row" if found else ""


def has_fraction(texts: Iterable[str]) -> bool:
    """Return True when some cell is a number with a fraction: 0.5, 12.37."""
    values = (number(text) for text in texts)
    return any(value is not None and value != int(value) for value in values)


def is_true(text: str) -> bool:
    """Return True for 1, 1.0, True."""
    return text.strip().lower() in TRUE_TEXTS


def is_false(text: str) -> bool:
    """Return True for 0, 0.0, False."""
    return text.strip().lower() in FALSE_TEXTS


def are_flags(texts: Iterable[str]) -> bool:
    """Return True when every cell is 0 or 1 (also 0.0, True, ...)."""
    return all(is_true(text) or is_false(text) for text in texts)


def as_words(example: str) -> tuple[str, str]:
    """Return false and true, written as in `example`: `false`, `True`, `FALSE`."""
    for change in (str.lower, str.upper):
        if change(example) == example:
            return change("false"), change("true")
    return "False", "True"


def split_parts(text: str, separator: str) -> list[str]:
    """Return the parts of a cell, without empty ones."""
    return [part.strip() for part in text.split(separator) if part.strip()]


def several_labels(
    texts: Iterable[str], separators: Sequence[str] = SEPARATORS
) -> tuple[Literal["yes", "maybe", "no"], str]:
    """Return whether cells hold several labels each, and the separator between them.

    "yes": there are fewer different parts than different cells, nearly every part occurs in several cells,
    and the number of parts varies (`rust`, `scab`, `rust scab`). Words with spaces between them may be names:
    there a part must also be the only one of a cell. "no": no cell has a separator, or the parts are words of
    names (`Granny Smith`). "maybe": in between.
    """
    cells = list(dict.fromkeys(text.strip() for text in texts))
    doubt: tuple[Literal["yes", "maybe", "no"], str] = ("no", separators[0])
    for separator in _as_written(cells, separators):
        parts = [split_parts(cell, separator) for cell in cells]
        if not any(len(found) > 1 for found in parts):
            continue
        cells_with = Counter(part for found in parts for part in set(found))
        inside = {part for found in parts if len(found) > 1 for part in found}
        recurring = sum(cells_with[part] > 1 for part in inside) / len(inside)
        varied = len({len(found) for found in parts}) > 1
        alone = {found[0] for found in parts if len(found) == 1}
        no_words = separator.strip() in (",", ";", "|") or are_numbers(inside)
        if (
            len(cells_with) < len(cells)
            and recurring >= CLEAR_SHARE
            and varied
            and (no_words or inside & alone)
        ):
            return "yes", separator
        if len(cells_with) <= len(cells) and recurring >= DOUBTFUL_SHARE and doubt[0] == "no":
            doubt = "maybe", separator
    if doubt[0] == "no" and separators == SEPARATORS and (mark := _other_mark(cells)):
        return "maybe", mark
    return doubt


def _other_mark(cells: Sequence[str]) -> str | None:
    """Return the mark that joins other cells to several of these (`cat`, `dog`, `fox`, `cat/dog`, `dog/fox`);
    None without one.
    """
    known = set(cells)
    for mark in OTHER_MARKS:
        parts = [split_parts(cell, mark) for cell in cells if mark in cell]
        joined = [found for found in parts if len(found) > 1]
        if len(joined) > 1 and all(part in known for found in joined for part in found):
            return mark
    return None


def _as_written(cells: Sequence[str], separators: Sequence[str]) -> list[str]:
    """Return the separators as these cells write them: `, ` where every comma is followed by a space, `||`.

    Where another separator is written with spaces, the space alone is left out. Before it come marks that
    stand between spaces (`cat + dog`).
    """
    spaced = {}
    for mark in separators:
        found = set()
        if mark.strip():
            found = {match for cell in cells for match in re.findall(rf" *(?:{re.escape(mark)})+ *", cell)}
        if found - {mark}:
            spaced[mark] = next(iter(found)) if len(found) == 1 else mark
    words = [spaced.get(mark, mark) for mark in separators if mark.strip() or not spaced]
    between = {match for cell in cells for match in re.findall(BETWEEN_SPACES, cell)}
    return [*(sorted(between) if " " in words else ()), *words]


def several_guesses(sample_cells: Sequence[str], class_names: Sequence[str]) -> tuple[int, str]:
    """Return how many labels a cell of the sample submission holds, and the separator.

    1 where each holds one. Guesses differ from names with spaces: no class name contains the separator, and a
    part is a known class. In different cells known and unknown parts have no places of their own, as they do
    in `Quercus alba` and `Acer rubrum`, where Quercus and Acer are classes.
    """
    known = set(class_names)
    for separator in _as_written(sample_cells, SEPARATORS):
        if any(separator in name for name in known):
            continue
        rows = [split_parts(cell, separator) for cell in sample_cells]
        most = max(map(len, rows), default=1)
        places = [{part in known for part in found if part} for found in zip_longest(*rows)]
        names = len(set(sample_cells)) > 1 and {True} in places and {False} in places
        if most > 1 and any(True in found for found in places) and not names:
            return most, separator
    return 1, " "


def mark_between(cells: Sequence[str], names: Sequence[str]) -> str | None:
    """Return the separator of a sample whose cells hold several of `names`; None where no cell does."""
    known = set(names)
    for separator in _as_written(cells, SEPARATORS):
        parts = [split_parts(cell, separator) for cell in cells]
        if any(len(found) > 1 and set(found) <= known for found in parts):
            return separator
    return None


def named_after(column: str, class_names: Sequence[str]) -> str | None:
    """Return the class that a column is named after (`dog`, `is_dog`, `has_cactus`).

    None if there is none.
    """
    plain = _plain(column)
    wanted = {
        plain,
        *(plain.removeprefix(_plain(word)) for word in NAMING_WORDS if column.lower().startswith(word)),
    }
    found = [name for name in class_names if _plain(name) in wanted]
    return found[0] if len(found) == 1 else None


def _plain(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())
