"""How messages name things: lists that end in "and 7 more", row numbers, counts with their noun, the nearest name; names in natural order."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

MAX_NAMED = 5  # how many names or rows a message lists before it says "and N more"


def capped(problems: Sequence[str], more: str) -> list[str]:
    """The first problems of one kind, and a last line that counts the others: `7 more ids occur several times`."""
    rest = len(problems) - MAX_NAMED
    return [*problems[:MAX_NAMED], *([f"{rest} more {more}"] if rest > 0 else [])]


def numbered(rows: Iterable[int]) -> str:
    """Row numbers as a short text: `row 3`, `rows 3, 7`, `rows 3, 7, 9, 11, 15 and 8 more`."""
    rows = sorted(set(rows))
    return ("row " if len(rows) == 1 else "rows ") + listed([str(row) for row in rows])


def listed(names: Iterable[str]) -> str:
    """The first names joined by commas, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more


def quoted(names: Iterable[str]) -> str:
    """As `listed`, each name in quotes."""
    return listed([repr(name) for name in names])


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """`1 image`, `24 images`, `2 classes`."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def nearest(value: str, allowed: Iterable[str]) -> str:
    """` (nearest: 'x')` for the name in `allowed` that `value` is most likely meant to be; empty when none is near."""
    allowed = list(allowed)
    same = [name for name in allowed if name.strip().casefold() == value.strip().casefold()]
    close = same or difflib.get_close_matches(value, allowed[:2000], n=1)
    return f" (nearest: {close[0]!r})" if close else ""


def natural_key(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sort key under which `img2` comes before `img10`; upper and lower case count as equal unless nothing else differs."""
    parts = re.split("([0-9]+)", name.casefold())
    return [(0, int(part), "") if index % 2 else (1, 0, part) for index, part in enumerate(parts)], name
