"""Parts of messages: lists that end in "and 7 more", row numbers, counts with their noun, the nearest
name, natural order.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

MAX_NAMED = 5  # how many names or rows a message lists before it says "and N more"


def capped(problems: Sequence[str], more: str, count: int | None = None) -> list[str]:
    """Return the first problems of one kind, and a last line that counts the others: `7 more ids occur
    several times`. `count`: of all problems, where only the first are given.
    """
    rest = (len(problems) if count is None else count) - MAX_NAMED
    return [*problems[:MAX_NAMED], *([f"{rest} more {more}"] if rest > 0 else [])]


def numbered(rows: Iterable[int]) -> str:
    """Return row numbers as a short text: `row 3`, `rows 3, 7`, `rows 3, 7, 9, 11, 15 and 8 more`."""
    rows = sorted(set(rows))
    return ("row " if len(rows) == 1 else "rows ") + listed([str(row) for row in rows])


def listed(names: Iterable[str]) -> str:
    """Return the first names joined by commas, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more


def quoted(names: Iterable[str]) -> str:
    """Return the same as `listed`, with each name in quotes."""
    return listed([repr(name) for name in names])


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """Return a count with its noun: `1 image`, `24 images`, `2 classes`."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def nearest(value: str, allowed: Iterable[str]) -> str:
    """Return ` (nearest: 'x')` for the name in `allowed` that is most similar to `value`.

    "" when none is similar.
    """
    allowed = list(allowed)
    same = [name for name in allowed if name.strip().casefold() == value.strip().casefold()]
    close = same or difflib.get_close_matches(value, allowed[:2000], n=1)
    return f" (nearest: {close[0]!r})" if close else ""


def natural_key(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Return a sort key that puts `img2` before `img10`. Case matters only if nothing else differs."""
    parts = re.split("([0-9]+)", name.casefold())
    return [_by_value(part) if index % 2 else (1, 0, part) for index, part in enumerate(parts)], name


def _by_value(digits: str) -> tuple[int, int, str]:
    """Return a sort key of a whole number, without int(): a cell may hold more digits than that takes."""
    digits = digits.lstrip("0")
    return 0, len(digits), digits
