"""predictions.csv: written in the form the competition asks for, and checked before it takes its place."""

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
    """Write predictions.csv, whole or not at all: ids, order and columns of the sample submission, checked before it takes its place.

    Raises:
        UserError: the predictions do not fit the form, are not finite, or the written file did not pass `check_predictions`.
    """
    path = Path(path)
    rows = fill(form, predictions)
    with replacing(path) as temporary:
        write_table(temporary, form.columns, rows)
        problems = check_predictions(temporary, form, predictions.target)
        raise_all(problems, f"{path} was not written, its content is not ready to send:")


def write_results_json(path: Path, competition: Competition, predictions: Predictions) -> None:
    """Write the official VQA results file, `[{"question_id": 1, "answer": "yes"}, ...]`, whole or not at all.

    Raises:
        UserError: the competition asks no questions, or the predictions do not fit it.
    """
    if competition.task != "vqa" or competition.form is None:
        raise UserError(
            f"{path}: results in JSON are for questions, and {competition.root} asks none; name a .csv file: --output predictions.csv"
        )
    ids = competition.form.ids
    write_results(path, ids, label_texts(competition.form, predictions.aligned(ids)))
