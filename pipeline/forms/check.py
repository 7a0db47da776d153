"""Check a predictions file before it is sent, and read one back for scoring. Problems name the rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UserError
from pipeline.forms.form import SubmissionForm
from pipeline.tables import DELIMITER_NAMES, EMPTY_COLUMNS, Table, load_table, repeated_ids, rows_of
from pipeline.targets.readings import split_parts
from pipeline.targets.target import Target
from pipeline.wording import MAX_NAMED, capped, counted, nearest, numbered, quoted

if TYPE_CHECKING:
    import numpy as np

SUM_TOLERANCE = 1e-3  # allows probabilities that were rounded to a few digits
HARD_ROWS = 5  # from so many rows on, probabilities of only 0 and 1 are treated as labels


@dataclass(frozen=True)
class ReadBack:
    """The content of a predictions file.

    `values`: probabilities or numbers, one column per entry of `columns`.

    `guesses`: label texts, best first.
    """

    ids: tuple[str, ...]
    columns: tuple[str, ...]
    values: np.ndarray | None  # (N, columns) float64
    guesses: tuple[tuple[str, ...], ...] | None


def check_predictions(path: Path, form: SubmissionForm, target: Target | None) -> list[str]:
    """Return the problems that prevent sending the file, with row numbers; empty if it is ready.

    Without a `target` every label that is not empty is accepted.
    """
    try:
        table = load_table(path)
    except UserError as error:
        return [str(error)]
    problems = []
    if table.delimiter != ",":
        problems.append(f"cells are separated by {DELIMITER_NAMES[table.delimiter]}: expected commas")
    if table.has_byte_order_mark:
        problems.append("it begins with a byte order mark (Excel writes it): save it as plain UTF-8")
    if table.numbering:
        problems.append(
            "its first column has no name and numbers the rows (a pandas index): write the file with "
            "index=False"
        )
    if EMPTY_COLUMNS in table.notes:
        problems.append("it has columns without a name and without cells: take out the commas at line ends")
    wrong_columns = _column_problems(table, form)
    problems += wrong_columns
    if form.id_column in table.columns:
        problems += _id_problems(table, form)
    if not set(form.value_columns) <= set(table.columns):
        return problems
    return problems + read_back(table, form, target)[1]


def read_back(table: Table, form: SubmissionForm, target: Target | None) -> tuple[ReadBack, list[str]]:
    """Read the predictions in a table of this form; returns them and the problems of its cells."""
    ids = tuple(table.column(form.id_column)) if form.id_column in table.columns else ()
    if form.kind in ("label", "labels", "ranked"):
        column = form.value_columns[0]
        known = form.written or (target.names if target else None)
        guesses, problems = _label_cells(table, column, form, known)
        return ReadBack(ids, (column,), None, guesses), problems
    values, problems = read_numbers(_with_flags(table, form), form.value_columns)
    if form.decided:
        other = [line for line, row in zip(table.lines, values, strict=True) if not set(row) <= {0.0, 1.0}]
        problems += [f"{numbered(other)}: neither 0 nor 1, but labels are graded"] if other else []
        if form.kind == "probabilities" and target is not None and target.kind != "multilabel":
            several = [line for line, row in zip(table.lines, values, strict=True) if sum(row) != 1]
            problems += [f"{numbered(several)}: not exactly one 1"] if several and not other else []
    elif form.kind != "number" and not form.of_numbers:
        problems += _probability_problems(values, table.lines, form)
    return ReadBack(ids, form.value_columns, values, None), problems


def _with_flags(table: Table, form: SubmissionForm) -> Table:
    """Return the table with 0 and 1 for the words that a decided form writes."""
    if not (form.decided and form.written):
        return table
    flags = dict(zip(form.written, "01", strict=True))
    places = {table.columns.index(name) for name in form.value_columns}
    cells = (
        tuple(flags.get(cell, repr(cell)) if place in places else cell for place, cell in enumerate(row))
        for row in table.cells
    )
    return replace(table, cells=tuple(cells))


# ---- columns and ids ----


def _column_problems(table: Table, form: SubmissionForm) -> list[str]:
    expected = form.columns
    missing = [name for name in expected if name not in table.columns]
    extra = [name for name in table.columns if name not in expected]
    problems = capped(
        [f"the column {name!r} is missing{nearest(name, extra)}" for name in missing], "columns are missing"
    )
    if extra:
        problems.append(f"unexpected columns: {quoted(extra)}")
    if not problems and table.columns != expected:
        problems.append(f"columns in another order: {quoted(table.columns)}, expected {quoted(expected)}")
    return problems


def _id_problems(table: Table, form: SubmissionForm) -> list[str]:
    ids, expected = table.column(form.id_column), form.row_ids
    problems = id_differences(table, ids, expected)
    if problems and len(ids) != len(expected):
        problems.insert(0, f"{counted(len(ids), 'row')} for {counted(len(expected), 'id')}")
    if not problems and tuple(ids) != expected:
        row = next(
            row for row, (found, wanted) in enumerate(zip(ids, expected, strict=True)) if found != wanted
        )
        problems.append(
            f"ids in another order than expected, first in row {table.lines[row]}: {ids[row]!r} instead of "
            f"{expected[row]!r}"
        )
    return problems


def id_differences(table: Table, ids: Sequence[str], expected: Sequence[str]) -> list[str]:
    """List ids of a table that are missing, unexpected or repeated; the order does not matter."""
    rows = rows_of(ids, table.lines)
    known = set(expected)
    missing = [image_id for image_id in expected if image_id not in rows]
    extra = [image_id for image_id in rows if image_id not in known]
    problems = []
    if missing:
        problems.append(
            f"{counted(len(missing), 'id')} missing: {quoted(missing)}{nearest(missing[0], extra)}"
        )
    if extra:
        where = numbered(line for image_id in extra for line in rows[image_id])
        problems.append(f"{counted(len(extra), 'unexpected id')}, {where}: {quoted(extra)}")
    return problems + repeated_ids(rows)


# ---- cells ----


def _label_cells(
    table: Table, column: str, form: SubmissionForm, known: Sequence[str] | None
) -> tuple[tuple[tuple[str, ...], ...], list[str]]:
    """Return the label texts of each row, and the rows with problems.

    Problems are empty cells, too many labels, the same label twice, and labels that are not `known` (if it is
    given).
    """
    cells = table.column(column)
    exact = set(known or ())
    guesses = tuple(
        tuple(split_parts(cell, form.separator))
        if form.kind != "label"
        else (cell if cell in exact else cell.strip(),)
        for cell in cells
    )
    problems = label_problems(table, column, None) if form.kind != "labels" else []
    if form.kind == "ranked":
        many = [line for line, found in zip(table.lines, guesses, strict=True) if len(found) > form.top_k]
        problems += [f"{numbered(many)}: more than {form.top_k} labels in column {column!r}"] if many else []
    if form.kind != "label":
        twice = [
            line for line, found in zip(table.lines, guesses, strict=True) if len(set(found)) < len(found)
        ]
        problems += [f"{numbered(twice)}: the same label twice in column {column!r}"] if twice else []
    if known is None:
        return guesses, problems
    allowed = set(known)
    rows: dict[str, list[int]] = {}
    for line, found in zip(table.lines, guesses, strict=True):
        for label in found:
            if label and label not in allowed:
                rows.setdefault(label, []).append(line)
    unknown = [
        f"{numbered(lines)}: {label!r} is no class{nearest(label, known)}" for label, lines in rows.items()
    ]
    return guesses, problems + capped(unknown, "labels are no classes")


def label_problems(table: Table, column: str, class_names: Sequence[str] | None) -> list[str]:
    """List the rows of a label column that are empty, or not in `class_names` (if it is given)."""
    rows = rows_of(table.column(column), table.lines)
    empty = [line for label, lines in rows.items() if not label.strip() for line in lines]
    problems = [f"{numbered(empty)}: no label in column {column!r}"] if empty else []
    known = set(class_names or rows)
    unknown = [label for label in rows if label.strip() and label not in known]
    return problems + capped(
        [
            f"{numbered(rows[label])}: {label!r} is no class{nearest(label, class_names or ())}"
            for label in unknown
        ],
        "labels are no classes",
    )


def read_numbers(table: Table, columns: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Return (N, C) float64 in the order of `columns`, NaN for cells that are not numbers, and the
    problems.
    """
    import numpy as np

    positions = [table.columns.index(name) for name in columns]
    texts = [[row[position] for position in positions] for row in table.cells]
    try:
        values = np.array(texts, dtype=np.float64).reshape(len(texts), len(columns))
    except ValueError:
        values = np.array([[_number(text) for text in row] for row in texts], dtype=np.float64)
    lines, problems = np.array(table.lines), []
    finite = np.isfinite(values)
    for position in np.flatnonzero(~finite.all(axis=0))[:MAX_NAMED]:
        bad = np.flatnonzero(~finite[:, position])
        problems.append(
            f"{numbered(lines[bad].tolist())}: no number in column {columns[position]!r}: "
            f"{texts[bad[0]][position]!r}"
        )
    return values, problems


def _probability_problems(values: np.ndarray, all_lines: Sequence[int], form: SubmissionForm) -> list[str]:
    """List values outside 0..1, columns of labels (only 0 and 1), and rows that must sum to 1 but do not."""
    import numpy as np

    lines, problems = np.array(all_lines), []
    whole = np.isfinite(values).all(axis=1)
    outside = np.flatnonzero(whole & ((values < 0) | (values > 1)).any(axis=1))
    if len(outside):
        first = values[outside[0]]
        problems.append(
            f"{numbered(lines[outside].tolist())}: probabilities outside 0..1 "
            f"({first[(first < 0) | (first > 1)][0]:.6g})"
        )
    elif whole.sum() >= HARD_ROWS and np.isin(values[whole], (0, 1)).all():
        problems.append(
            f"every value in {quoted(form.value_columns)} is exactly 0 or 1: these are labels, but "
            "probabilities are graded"
        )
    off = np.flatnonzero(whole & (np.abs(values.sum(axis=1) - 1) > SUM_TOLERANCE)) if form.sums_to_one else []
    if len(off):
        problems.append(
            f"{numbered(lines[off].tolist())}: probabilities sum to {values[off[0]].sum():.6g}, expected 1"
        )
    return problems


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
