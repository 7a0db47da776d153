"""The sample submission: which table it is, and the form of predictions.csv that it asks for."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.competition.folders import DataFolder, hide_command, plain_name
from pipeline.competition.labels import LABEL_NAMES
from pipeline.competition.rows import SubmissionFormat
from pipeline.errors import UserError, raise_all
from pipeline.tables import Table, load_table, repeated_ids, rows_of
from pipeline.wording import counted, nearest, numbered, quoted

SAMPLE_TABLES = ("samplesubmission", "samplesubmissions", "samplesub", "submissionsample", "submissionformat")


def sample_table(folder: DataFolder) -> Table | None:
    """The sample submission in `folder`; None when there is none.

    Raises:
        UserError: there are several, or it is broken.
    """
    paths = folder.tables_called(SAMPLE_TABLES)
    if len(paths) > 1:
        names = [path.name for path in paths]
        raise UserError(f"{folder.root}: {' and '.join(names)} may all be the sample submission; {hide_command(folder.root, names)}")
    if not paths:
        return None
    table = load_table(paths[0])
    problems = []
    if len(table.columns) < 2:
        problems.append(f"it has the one column {table.columns[0]!r}: an id column and a label column (or one column per class) are needed")
    if not table.cells:
        problems.append("it has no rows: the ids to predict are needed")
    raise_all(problems, f"{table.path}:")
    return table


def format_of(sample: Table, id_column: str, class_names: Sequence[str]) -> SubmissionFormat:
    """The form that a sample submission asks for; `class_names` (empty: unknown) are checked against its probability columns.

    Raises:
        UserError: ids that are empty or occur several times, columns that are not the classes; every problem at once.
    """
    ids = sample.column(id_column)
    rows = rows_of(ids, sample.lines)
    empty = [line for image_id, lines in rows.items() for line in lines if not image_id.strip()]
    problems = repeated_ids({image_id: lines for image_id, lines in rows.items() if image_id.strip()})
    if empty:
        problems.append(f"{numbered(empty)}: no id in column {id_column!r}")
    columns = tuple(name for name in sample.columns if name != id_column)
    is_label = len(columns) == 1
    if is_label and columns[0] in class_names and plain_name(columns[0]) not in LABEL_NAMES:
        problems.append(f"its only column beside the ids is named like the class {columns[0]!r}: one column for each class is needed")
    if not is_label and class_names:
        problems += _column_problems(columns, class_names)
    raise_all(problems, f"{sample.path}:")
    return SubmissionFormat(id_column, columns, "label" if is_label else "probability", tuple(ids), sample.path)


def _column_problems(columns: Sequence[str], class_names: Sequence[str]) -> list[str]:
    extra = [name for name in columns if name not in class_names]
    missing = [name for name in class_names if name not in columns]
    problems = [f"the column {name!r} is no class of the training data{nearest(name, missing or class_names)}" for name in extra]
    if missing:
        problems.append(f"{counted(len(missing), 'class', 'classes')} of the training data without a column: {quoted(missing)}")
    return problems
