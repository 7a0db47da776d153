"""What keeps a predictions file from being sent: columns, ids, labels and probabilities, in words with row numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.competition.rows import SubmissionFormat
from pipeline.errors import UserError
from pipeline.tables import DELIMITER_NAMES, Table, load_table, repeated_ids, rows_of
from pipeline.wording import MAX_NAMED, capped, counted, nearest, numbered, quoted

if TYPE_CHECKING:
    import numpy as np

SUM_TOLERANCE = 1e-3  # a file with probabilities rounded to a few digits is still one


def check_predictions(path: Path, submission_format: SubmissionFormat, class_names: Sequence[str] | None) -> list[str]:
    """What keeps the file from being sent, in words with row numbers; an empty list when it is ready.

    Without `class_names` any label that is not empty will do.
    """
    try:
        table = load_table(path)
    except UserError as error:
        return [str(error)]
    problems = []
    if table.delimiter != ",":
        problems.append(f"cells are separated by {DELIMITER_NAMES[table.delimiter]}: commas are needed")
    if table.has_byte_order_mark:
        problems.append("it begins with a byte order mark (as Excel writes it): save it as plain UTF-8")
    wrong_columns = _column_problems(table, submission_format)
    problems += wrong_columns
    if submission_format.id_column in table.columns:
        problems += _id_problems(table, submission_format)
    if submission_format.kind == "label":
        if submission_format.label_columns[0] in table.columns:
            problems += label_problems(table, submission_format.label_columns[0], class_names)
    elif not wrong_columns:
        if class_names:
            problems += class_problems(submission_format, class_names)
        problems += read_probs(table, submission_format.label_columns)[1]
    return problems


def _column_problems(table: Table, submission_format: SubmissionFormat) -> list[str]:
    expected = (submission_format.id_column, *submission_format.label_columns)
    missing = [name for name in expected if name not in table.columns]
    extra = [name for name in table.columns if name not in expected]
    problems = capped([f"the column {name!r} is missing{nearest(name, extra)}" for name in missing], "columns are missing")
    if extra:
        problems.append(f"columns that do not belong there: {quoted(extra)}")
    if not problems and table.columns != expected:
        problems.append(f"columns in another order: {quoted(table.columns)}, expected {quoted(expected)}")
    return problems


def _id_problems(table: Table, submission_format: SubmissionFormat) -> list[str]:
    ids, expected = table.column(submission_format.id_column), submission_format.ids
    problems = id_differences(table, ids, expected)
    if problems and len(ids) != len(expected):
        problems.insert(0, f"{counted(len(ids), 'row')} for {counted(len(expected), 'id')}")
    if not problems and tuple(ids) != expected:
        row = next(row for row, (found, wanted) in enumerate(zip(ids, expected, strict=True)) if found != wanted)
        problems.append(f"ids in another order than expected, first in row {table.lines[row]}: {ids[row]!r} instead of {expected[row]!r}")
    return problems


def id_differences(table: Table, ids: Sequence[str], expected: Sequence[str]) -> list[str]:
    """Which ids of a table are missing, not expected, or there several times, whatever their order."""
    rows = rows_of(ids, table.lines)
    known = set(expected)
    missing = [image_id for image_id in expected if image_id not in rows]
    extra = [image_id for image_id in rows if image_id not in known]
    problems = []
    if missing:
        problems.append(f"{counted(len(missing), 'id')} missing: {quoted(missing)}{nearest(missing[0], extra)}")
    if extra:
        where = numbered(line for image_id in extra for line in rows[image_id])
        problems.append(f"{counted(len(extra), 'id')} that should not be there, {where}: {quoted(extra)}")
    return problems + repeated_ids(rows)


def label_problems(table: Table, column: str, class_names: Sequence[str] | None) -> list[str]:
    """Which rows of a label column are empty or, where `class_names` is known, hold no class."""
    rows = rows_of(table.column(column), table.lines)
    empty = [line for label, lines in rows.items() if not label.strip() for line in lines]
    problems = [f"{numbered(empty)}: no label in column {column!r}"] if empty else []
    known = set(class_names or rows)
    unknown = [label for label in rows if label.strip() and label not in known]
    return problems + capped(
        [f"{numbered(rows[label])}: {label!r} is no class{nearest(label, class_names or ())}" for label in unknown], "labels are no classes"
    )


def read_probs(table: Table, columns: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """(N, C) float64 probabilities in the order of `columns` (NaN where a cell is no number), and what is wrong with them."""
    import numpy as np

    positions = [table.columns.index(name) for name in columns]
    texts = [[row[position] for position in positions] for row in table.cells]
    try:
        probs = np.array(texts, dtype=np.float64).reshape(len(texts), len(columns))
    except ValueError:
        probs = np.array([[_number(text) for text in row] for row in texts], dtype=np.float64)
    lines = np.array(table.lines)
    problems = []
    finite = np.isfinite(probs)
    for position in np.flatnonzero(~finite.all(axis=0))[:MAX_NAMED]:
        bad = np.flatnonzero(~finite[:, position])
        problems.append(f"{numbered(lines[bad].tolist())}: no number in column {columns[position]!r}: {texts[bad[0]][position]!r}")
    whole = finite.all(axis=1)
    outside = np.flatnonzero(whole & ((probs < 0) | (probs > 1)).any(axis=1))
    if len(outside):
        first = probs[outside[0]]
        problems.append(f"{numbered(lines[outside].tolist())}: probabilities outside 0..1 ({first[(first < 0) | (first > 1)][0]:.6g})")
    off = np.flatnonzero(whole & (np.abs(probs.sum(axis=1) - 1) > SUM_TOLERANCE))
    if len(off):
        problems.append(f"{numbered(lines[off].tolist())}: probabilities sum to {probs[off[0]].sum():.6g}, not to 1")
    return probs, problems


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def class_problems(submission_format: SubmissionFormat, class_names: Sequence[str]) -> list[str]:
    """Where the probability columns and the classes of the model differ."""
    columns = submission_format.label_columns
    missing = [name for name in class_names if name not in columns]
    extra = [name for name in columns if name not in class_names]
    problems = [f"the column {name!r} is no class of the model{nearest(name, missing or class_names)}" for name in extra]
    return problems + ([f"the model's classes {quoted(missing)} have no column"] if missing else [])
