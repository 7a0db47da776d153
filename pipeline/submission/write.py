"""Write predictions.csv in the form of the competition, and check it before it replaces an older file."""

from __future__ import annotations

from pathlib import Path

from pipeline.competition.rows import Competition
from pipeline.competition.vqa_files import write_results
from pipeline.errors import UserError, raise_all
from pipeline.files import replacing
from pipeline.forms.cells import fill, label_texts
from pipeline.forms.check import check_predictions
from pipeline.forms.form import SubmissionForm
from pipeline.predictions import Predictions
from pipeline.tables import write_table


def write_predictions(path: Path, form: SubmissionForm, predictions: Predictions) -> None:
    """Write predictions.csv atomically, with the ids, order and columns of the sample submission, after a
    check.

    Raises:
        UserError: the predictions do not fit the form or are not finite, or the new file fails
            `check_predictions`.
    """
    path = Path(path)
    rows = fill(form, predictions)
    with replacing(path) as temporary:
        write_table(temporary, form.columns, rows)
        problems = check_predictions(temporary, form, predictions.target)
        raise_all(problems, f"{path} was not written because its content is not valid:")


def is_results_json(path: Path, competition: Competition) -> bool:
    """Return True if `path` names a VQA results file (.json), False for a table.

    Raises:
        UserError: it does, and the competition has no questions.
    """
    if path.suffix != ".json":
        return False
    if competition.task != "vqa" or competition.form is None:
        raise UserError(
            f"{path}: JSON results are for questions, but {competition.root} has none; name a .csv file: "
            "--output predictions.csv"
        )
    return True


def write_results_json(path: Path, competition: Competition, predictions: Predictions) -> None:
    """Write the official VQA results file atomically: `[{"question_id": 1, "answer": "yes"}, ...]`.

    Raises:
        UserError: an id has no prediction.
    """
    ids = competition.form.ids
    write_results(path, ids, label_texts(competition.form, predictions.aligned(ids)))
