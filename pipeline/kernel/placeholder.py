"""Make a copy of a competition as Kaggle shows it when a kernel is committed: the same files, but only three
test rows.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.competition.facts import own_files
from pipeline.competition.folders import is_table
from pipeline.competition.rows import Competition, Row
from pipeline.fetch.originals import files_below
from pipeline.files import read_json
from pipeline.tables import load_table, write_table

ROWS = 3


def make_placeholder(competition: Competition, folder: Path, rows: int = ROWS) -> None:
    """Lay out `competition` in `folder` with links to its files, without the images of test ids after the
    first `rows`.

    The sample submission, and tables or JSON files of the test part, are rewritten with the remaining rows.
    """
    root = competition.root
    kept = list(dict.fromkeys(row.id for row in competition.test))[:rows]
    tests = [row for row in competition.test if row.id in set(kept)]
    left_out = {row.path for row in competition.test} - {row.path for row in tests}
    sample = competition.form.path if competition.form else None
    for path in files_below(root):
        target = folder / path.relative_to(root)
        if path in left_out or (path.parent == root and path.name in own_files(root)):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if path == sample or (competition.task == "vqa" and "test" in path.name and is_table(path.name)):
            _cut_table(path, target, competition, set(kept))
        elif competition.task == "vqa" and path.suffix == ".json" and _is_test_part(path, competition):
            _cut_questions(path, target, tests)
        else:
            target.symlink_to(path.resolve())


def _cut_table(path: Path, target: Path, competition: Competition, kept: set[str]) -> None:
    """Write the rows of a table with an id in `kept`."""
    form = competition.form
    table = load_table(path)
    rows = table.cells
    if form and form.id_column in table.columns:
        subject_of = dict(zip(form.row_ids, form.subjects or form.row_ids, strict=True))
        ids = table.column(form.id_column)
        rows = [row for row, name in zip(table.cells, ids, strict=True) if subject_of.get(name) in kept]
    packed = target.suffix.lower() in (".gz", ".zip")
    write_table(target.with_suffix("") if packed else target, table.columns, rows)


def _is_test_part(path: Path, competition: Competition) -> bool:
    """Return True if a JSON file holds the questions to predict: its name contains the folder of their
    images.
    """
    return "question" in path.name.lower() and any(
        row.path.parent.name.lower() in path.name.lower() for row in competition.test[:1]
    )


def _cut_questions(path: Path, target: Path, tests: list[Row]) -> None:
    value: Any = read_json(path)
    kept = {row.id for row in tests}
    value["questions"] = [question for question in value["questions"] if str(question["question_id"]) in kept]
    target.write_text(json.dumps(value), encoding="utf-8")
