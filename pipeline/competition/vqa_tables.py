"""Read questions from tables: image, question, answer in train.csv; image, question in test.csv; optionally
an id.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.competition.folders import DataFolder, plain_name
from pipeline.competition.id_columns import ID_NAMES, column_called, find_ids
from pipeline.competition.ids import ImageIndex
from pipeline.competition.label_columns import LABEL_FLAG, LABEL_NAMES
from pipeline.competition.sources import TRAIN_TABLES
from pipeline.competition.vqa_files import Answered, Question
from pipeline.errors import UserError, raise_all
from pipeline.tables import Table, load_table, repeated_ids, rows_of
from pipeline.wording import counted, numbered, quoted

TEST_TABLES = ("test", "testquestions", "testset", "testdata")
QUESTION_NAMES = ("question", "questions", "questiontext")
ANSWER_NAMES = ("answer", "answers", "multiplechoiceanswer")
QUESTION_ID_NAMES = ("questionid", "questionids", "qid")


def question_tables(folder: DataFolder, names: Sequence[str]) -> list[Path]:
    """Return the tables with one of these names and a question column; only their first line is read."""
    return [path for path in folder.tables_called(names) if _asks(path)]


def train_tables(folder: DataFolder) -> list[Path]:
    """Return the tables of questions with answers."""
    return question_tables(folder, TRAIN_TABLES)


def test_tables(folder: DataFolder) -> list[Path]:
    """Return the tables of questions to predict."""
    return question_tables(folder, TEST_TABLES)


def load_question_table(
    path: Path,
    index: ImageIndex,
    *,
    id_column: str | None = None,
    label_column: str | None = None,
    with_answers: bool,
    sample: Table | None = None,
) -> tuple[dict[str, Question], dict[str, Answered], list[str]]:
    """Load a question table: id -> question, id -> answer (empty unless `with_answers`), and notes.

    `id_column`: the column of images. `label_column`: the column of answers. Without an id column, ids are
    row numbers; a table to predict takes the ids of the sample submission if both have equally many rows.

    Raises:
        UserError: a column is missing or ambiguous; cells are empty or ids repeated. All problems of the rows
            are listed.
    """
    table = load_table(path)
    if not table.cells:
        raise UserError(f"{path} has a header and no rows: questions are needed")
    asked = _only(table, QUESTION_NAMES, "question")
    answer = _answer_column(table, label_column) if with_answers else None
    others = [name for name in table.columns if name not in (asked, answer)]
    id_name = _question_id_column(others, id_column)
    images = _image_column(table, [name for name in others if name != id_name], index, id_column)
    if id_name is None and sample is not None:
        id_name = _column_with_ids_of(sample, table, [name for name in others if name != images])
    ids, notes = _ids(table, id_name, sample)
    problems = repeated_ids(rows_of(ids, table.lines))
    needed = [
        (images, "image"),
        *([(asked, "question"), (answer, "answer")] if answer else []),
        *([(id_name, "id")] if id_name else []),
    ]
    for name, what in needed:
        empty = [line for line, cell in zip(table.lines, table.column(name), strict=True) if not cell.strip()]
        problems += [f"{numbered(empty)}: no {what} in column {name!r}"] if empty else []
    raise_all(problems, f"{path}:")
    cells = zip(ids, table.column(images), table.column(asked), table.lines, strict=True)
    questions = {
        question_id: Question(question_id, image.strip(), text, line)
        for question_id, image, text, line in cells
    }
    answers = {}
    if answer:
        answers = {
            question_id: Answered(cell) for question_id, cell in zip(ids, table.column(answer), strict=True)
        }
    return questions, answers, notes


def _asks(path: Path) -> bool:
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            header = file.readline()
    except OSError:  # reported when the table is read
        return False
    return any(plain_name(name.strip().strip('"')) in QUESTION_NAMES for name in re.split("[,;\t]", header))


def _only(table: Table, names: Sequence[str], what: str) -> str:
    found = [name for name in table.columns if plain_name(name) in names]
    if len(found) == 1:
        return found[0]
    problem = f"the {what} may be in {quoted(found)}" if found else f"there is no {what} column"
    raise UserError(f"{table.path}: {problem}; its columns: {quoted(table.columns)}")


def _answer_column(table: Table, given: str | None) -> str:
    if given:
        return column_called(table, given, LABEL_FLAG)
    for names in (ANSWER_NAMES, tuple(LABEL_NAMES)):
        found = [name for name in table.columns if plain_name(name) in names]
        if len(found) == 1:
            return found[0]
        if found:
            break
    problem = f"the answer may be in {quoted(found)}" if found else "there is no answer column"
    raise UserError(f"{table.path}: {problem}; its columns: {quoted(table.columns)}; {LABEL_FLAG} says which")


def _question_id_column(names: Sequence[str], image_column: str | None) -> str | None:
    """Return `question_id`, or `id` if another column names the image."""
    others = [name for name in names if name.strip() != image_column]
    found = [name for name in others if plain_name(name) in QUESTION_ID_NAMES]
    if not found and (
        image_column
        or any(plain_name(name) in ID_NAMES and plain_name(name) not in ("id", "ids") for name in names)
    ):
        found = [name for name in others if plain_name(name) in ("id", "ids")]
    return found[0] if found else None


def _column_with_ids_of(sample: Table, table: Table, names: Sequence[str]) -> str | None:
    """Return the column of `names` that holds the ids of the sample submission, whatever it is called."""
    wanted = {cell.strip() for cell in sample.column(sample.columns[0])}
    for name in names:
        cells = [cell.strip() for cell in table.column(name)]
        if wanted <= set(cells) and len(set(cells)) == len(cells):
            return name
    return None


def _image_column(table: Table, names: Sequence[str], index: ImageIndex, given: str | None) -> str:
    if given:
        return column_called(table, given, "--set data.id_column=NAME")
    if not names:
        raise UserError(f"{table.path}: no column names the image; its columns: {quoted(table.columns)}")
    named = [name for name in names if plain_name(name) in ID_NAMES] or list(names)
    if len(named) == 1:
        return named[0]
    positions = [table.columns.index(name) for name in named]
    cells = tuple(tuple(row[position] for position in positions) for row in table.cells)
    return find_ids(replace(table, columns=tuple(named), cells=cells), index)[0]


def _ids(table: Table, id_name: str | None, sample: Table | None) -> tuple[list[str], list[str]]:
    if id_name:
        return [cell.strip() for cell in table.column(id_name)], []
    if sample is None:
        return [str(number) for number in range(1, len(table.cells) + 1)], [
            "question ids are row numbers, from 1"
        ]
    if len(sample.cells) != len(table.cells):
        counts = f"{counted(len(table.cells), 'question')} and {counted(len(sample.cells), 'id')}"
        raise UserError(
            f"{table.path} has no column question_id, and {sample.path.name} cannot give the ids by its "
            f"order: {counts}"
        )
    note = f"{table.path.name} has no ids: it takes those of {sample.path.name} row by row"
    return [cell.strip() for cell in sample.column(sample.columns[0])], [note]
