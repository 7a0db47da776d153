"""The sample submission: which table it is."""

from __future__ import annotations

from pipeline.competition.folders import DataFolder, hide_command
from pipeline.errors import UserError, raise_all
from pipeline.tables import Table, load_table

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
