"""Format the sections as text for the terminal and look.txt: the same facts as on the page, with long tables
cut.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from pipeline.look.section import Grid, Section

WIDTH, ROWS, CELL = 110, 10, 48


def as_text(name: str, sections: Sequence[Section]) -> str:
    """Return all sections as text under the name of the data; the text ends with a newline."""
    lines = [name, "=" * len(name)]
    for section in sections:
        lines += ["", section.title, "-" * len(section.title)]
        for says in section.says:
            lines += textwrap.wrap(
                says,
                WIDTH,
                initial_indent="- ",
                subsequent_indent="  ",
                break_long_words=False,
                break_on_hyphens=False,
            )
        for grid in section.grids:
            lines += ["", *_table(grid)]
    return "\n".join(lines) + "\n"


def _table(grid: Grid) -> list[str]:
    rows = [[_cell(value) for value in row] for row in grid.rows]
    whole = grid.texts == len(grid.heads) or len(rows) <= 2 * ROWS  # a table of facts, not a long list
    shown = rows if len(rows) <= 2 * ROWS and whole else rows[:ROWS]
    heads = [*grid.heads]
    widths = [max(len(line[column]) for line in (heads, *shown)) for column in range(len(heads))]
    lines = [f"{grid.title}:"]
    if any(heads[:1]) or len(heads) > 2:
        lines.append("  " + _line(heads, widths, grid.texts))
    lines += ["  " + _line(row, widths, grid.texts) for row in shown]
    if len(rows) > len(shown):
        lines.append(f"  ... and {len(rows) - len(shown):,} more")
    return lines


def _line(cells: Sequence[str], widths: Sequence[int], texts: int) -> str:
    padded = [
        cell.ljust(width) if at < texts else cell.rjust(width)
        for at, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(padded).rstrip()


def _cell(value: Any) -> str:
    if isinstance(value, int):
        text = f"{value:,}"
    elif isinstance(value, float):
        text = f"{value:.4g}"
    else:
        text = " ".join(str(value).split())
    return text if len(text) <= CELL else f"{text[: CELL - 1]}…"
