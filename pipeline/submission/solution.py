"""Read a solution file: the true labels of the test rows, in any of several forms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from pipeline.competition.folders import plain_name
from pipeline.errors import UserError, raise_all
from pipeline.tables import Table, name_the_ids, repeated_ids, rows_of
from pipeline.wording import counted, numbered, quoted

LABEL_COLUMNS = ("label", "labels", "class", "classes", "target", "category", "y", "answer", "predicted")
IGNORED_USAGE = "ignored"  # Kaggle's word for solution rows that are not scored


class Scores(TypedDict):
    """The scores of a predictions file, of labels as of answers.

    `rows`: number of scored rows. `of`: the outputs in words (3 classes). `pooled`: a row is one label of an
    image, so the metrics are of the rows of all labels together. `metrics`: name -> score over all rows,
    `parts`: the same for each part of the solution. `unseen`: labels of the solution that are not known;
    `foreign`: those of the predictions.
    """

    rows: int
    class_names: list[str]
    of: str
    pooled: bool
    metrics: dict[str, float]
    parts: dict[str, dict[str, float]]
    unseen: list[str]
    foreign: list[str]


@dataclass(frozen=True)
class Solution:
    """Ids and the cells of their label columns. `usage` holds empty texts if there is no Usage column."""

    table: Table
    ids: list[str]
    columns: tuple[str, ...]
    cells: list[tuple[str, ...]]
    usage: list[str]

    def texts(self) -> list[str]:
        """Return the cells of the only label column.

        Raises:
            UserError: a cell is empty.
        """
        labels = [row[0].strip() for row in self.cells]
        empty = [line for line, label in zip(self.table.lines, labels, strict=True) if not label]
        if empty:
            raise UserError(f"{self.table.path}, {numbered(empty)}: no label in column {self.columns[0]!r}")
        return labels

    def counted_rows(self) -> list[int]:
        """Return the indices of the scored rows: all rows that are not ignored.

        Raises:
            UserError: all rows are ignored.
        """
        rows = [row for row, part in enumerate(self.usage) if part.casefold() != IGNORED_USAGE]
        if not rows:
            raise UserError(f"{self.table.path}: every row is marked as ignored")
        return rows

    def parts(self) -> dict[str, list[int]]:
        """Return part name (Public, Private) -> row indices, from the Usage column."""
        names = [
            part
            for part in sorted(set(self.usage), reverse=True)
            if part and part.casefold() != IGNORED_USAGE
        ]
        return {part: [row for row, value in enumerate(self.usage) if value == part] for part in names}


def read_solution(
    solution: Table, wanted_ids: Sequence[str], id_column: str, columns: Sequence[str]
) -> Solution:
    """Read the solution for predictions with these ids and value columns.

    Raises:
        UserError: it has no rows, a repeated id, or no clear label column.
    """
    if not solution.cells:
        raise UserError(f"{solution.path} has no rows: ids and labels are needed")
    wanted = set(wanted_ids)
    known = {name: len(wanted & set(solution.column(name))) for name in solution.columns}
    own_id = id_column if id_column in solution.columns else max(known, key=lambda name: known[name])
    usage_column = next(
        (name for name in solution.columns if plain_name(name) == "usage" and name != own_id), None
    )
    others = [name for name in solution.columns if name not in (own_id, usage_column)]
    ids = solution.column(own_id)
    raise_all(repeated_ids(rows_of(ids, solution.lines)), f"{solution.path}:")
    usage = [value.strip() for value in solution.column(usage_column)] if usage_column else [""] * len(ids)
    if len(columns) > 1 and set(columns) <= set(others):
        named = list(columns)
    else:
        named = (
            [name for name in others if name in columns]
            or [name for name in others if plain_name(name) in LABEL_COLUMNS]
            or others
        )
        if len(named) != 1:
            what = f"the label may be in {quoted(named)}" if named else "there is no label column"
            shown = f"{counted(len(solution.columns), 'column')}: {quoted(solution.columns)}"
            hint = f"; {name_the_ids(solution)}" if solution.numbering else ""
            raise UserError(
                f"{solution.path}: {what}; it has {shown}; leave the id, the label and Usage{hint}"
            )
    cells = list(zip(*(solution.column(name) for name in named), strict=True))
    return Solution(solution, ids, tuple(named), cells, usage)
