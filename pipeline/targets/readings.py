"""What label cells look like: numbers, zeros and ones, several labels in a cell. Facts alone; `pipeline.targets.decide` draws the conclusion."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

SEPARATORS = (" ", ",", ";", "|")
TRUE_TEXTS, FALSE_TEXTS = ("1", "1.0", "true"), ("0", "0.0", "false")
CLEAR_SHARE, DOUBTFUL_SHARE = 0.8, 0.5  # of the parts that also occur in another cell: from here on they are labels; below they are words
NAMING_WORDS = ("is_", "has_", "is", "has")  # before a class in the name of a column: has_cactus, is_iceberg


def number(text: str) -> float | None:
    """The finite number that a cell holds; None for anything else."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and "_" not in text else None


def are_numbers(texts: Iterable[str]) -> bool:
    """True when there is a cell and every cell is a number."""
    values = [number(text) for text in texts]
    return bool(values) and None not in values


def has_fraction(texts: Iterable[str]) -> bool:
    """True when some cell is a number that is not whole: 0.5, 12.37."""
    values = (number(text) for text in texts)
    return any(value is not None and value != int(value) for value in values)


def is_true(text: str) -> bool:
    """True for 1, 1.0, True."""
    return text.strip().lower() in TRUE_TEXTS


def is_false(text: str) -> bool:
    """True for 0, 0.0, False."""
    return text.strip().lower() in FALSE_TEXTS


def are_flags(texts: Iterable[str]) -> bool:
    """True when every cell is 0 or 1 (also 0.0, True, ...)."""
    return all(is_true(text) or is_false(text) for text in texts)


def split_parts(text: str, separator: str) -> list[str]:
    """The parts of a cell, without empty ones."""
    return [part.strip() for part in text.split(separator) if part.strip()]


def several_labels(texts: Iterable[str], separators: Sequence[str] = SEPARATORS) -> tuple[Literal["yes", "maybe", "no"], str]:
    """Whether cells hold several labels each, and what stands between them.

    yes: there are fewer parts than different cells, nearly every part occurs in several cells, and cells differ in how many they hold
    (`rust`, `scab`, `rust scab`). no: no cell has a separator, or the parts are words of names (`Granny Smith`). maybe: between the two.
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
        if len(cells_with) < len(cells) and recurring >= CLEAR_SHARE and varied:
            return "yes", separator
        if len(cells_with) <= len(cells) and recurring >= DOUBTFUL_SHARE and doubt[0] == "no":
            doubt = "maybe", separator
    return doubt


def _as_written(cells: Sequence[str], separators: Sequence[str]) -> list[str]:
    """The separators as these cells write them: `, ` where a space stands behind every comma. The space alone is none there."""
    spaced = {}
    for mark in separators:
        found = {match for cell in cells for match in re.findall(rf" *{re.escape(mark)} *", cell)} if mark.strip() else set()
        if found - {mark}:
            spaced[mark] = next(iter(found)) if len(found) == 1 else mark
    return [spaced.get(mark, mark) for mark in separators if mark.strip() or not spaced]


def several_guesses(sample_cells: Sequence[str], class_names: Sequence[str]) -> tuple[int, str]:
    """How many labels a cell of the sample submission holds, and what stands between them; 1 where each holds one.

    Guesses are told from names with spaces: no class is written with that separator, and a part is a known class.
    """
    known = set(class_names)
    for separator in _as_written(sample_cells, SEPARATORS):
        if any(separator in name for name in known):
            continue
        counts = [len(split_parts(cell, separator)) for cell in sample_cells]
        if max(counts, default=1) > 1 and any(part in known for cell in sample_cells for part in split_parts(cell, separator)):
            return max(counts), separator
    return 1, " "


def named_after(column: str, class_names: Sequence[str]) -> str | None:
    """The class that a column is named after: `dog`, `is_dog`, `has_cactus`; None where it is named otherwise."""
    plain = _plain(column)
    wanted = {plain, *(plain.removeprefix(_plain(word)) for word in NAMING_WORDS if column.lower().startswith(word))}
    found = [name for name in class_names if _plain(name) in wanted]
    return found[0] if len(found) == 1 else None


def _plain(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())
