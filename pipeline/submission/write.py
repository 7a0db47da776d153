"""predictions.csv: written in the form the competition asks for, checked before anyone sends it, scored against a solution."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.competition.rows import Competition, SubmissionFormat
from pipeline.competition.vqa_files import write_results
from pipeline.errors import UserError, raise_all
from pipeline.files import replacing
from pipeline.submission.checks import SUM_TOLERANCE, check_predictions, class_problems
from pipeline.tables import write_table
from pipeline.wording import counted, quoted

if TYPE_CHECKING:
    import numpy as np


def write_predictions(
    path: Path,
    submission_format: SubmissionFormat,
    class_names: Sequence[str],
    probs: np.ndarray | None,
    *,
    text: Sequence[str] | None = None,
) -> None:
    """Write predictions.csv, whole or not at all: ids, order and columns of the sample submission, checked before it takes its place.

    probs: (N, C) probabilities, row i for `submission_format.ids[i]`, column j for `class_names[j]`. A label file gets the class with the
    highest one; `text`, N labels, is written instead where given (then `probs` may be None).

    Raises:
        UserError: the predictions do not fit the form, are not finite, or the written file did not pass `check_predictions`.
    """
    path, ids = Path(path), submission_format.ids
    if text is not None:
        if submission_format.kind != "label":
            raise UserError(f"{submission_format.path}: labels cannot fill its probability columns")
        cells: Sequence[Sequence[str]] = [[label] for label in text]
    elif probs is None:
        raise ValueError("write_predictions needs probs or text")
    elif submission_format.kind == "label":
        _check_probs(probs, len(ids), len(class_names), ids)
        cells = [[class_names[index]] for index in probs.argmax(axis=1)]
    else:
        _check_probs(probs, len(ids), len(class_names), ids)
        cells = _probability_cells(submission_format, class_names, probs)
    if len(cells) != len(ids):
        raise UserError(f"{len(cells)} predictions for {counted(len(ids), 'id')}")
    with replacing(path) as temporary:
        columns = (submission_format.id_column, *submission_format.label_columns)
        write_table(temporary, columns, ([image_id, *row] for image_id, row in zip(ids, cells, strict=True)))
        raise_all(
            check_predictions(temporary, submission_format, class_names), f"{path} was not written, its content is not ready to send:"
        )


def write_results_json(path: Path, competition: Competition, class_names: Sequence[str], probs: np.ndarray) -> None:
    """Write the official VQA results file, `[{"question_id": 1, "answer": "yes"}, ...]`, whole or not at all; arguments as `write_predictions`.

    Raises:
        UserError: the competition asks no questions, or the predictions do not fit it.
    """
    if competition.task != "vqa" or competition.submission is None:
        raise UserError(
            f"{path}: results in JSON are for questions, and {competition.root} asks none; name a .csv file: --output predictions.csv"
        )
    ids = competition.submission.ids
    _check_probs(probs, len(ids), len(class_names), ids)
    write_results(path, ids, [class_names[index] for index in probs.argmax(axis=1)])


def _check_probs(probs: np.ndarray, num_ids: int, num_classes: int, ids: Sequence[str]) -> None:
    import numpy as np

    if probs.shape != (num_ids, num_classes):
        raise UserError(
            f"predictions of shape {tuple(probs.shape)} for {counted(num_ids, 'id')} and {counted(num_classes, 'class', 'classes')}"
        )
    bad = np.flatnonzero(~np.isfinite(probs).all(axis=1))
    if len(bad):
        images = quoted(ids[row] for row in bad)
        raise UserError(f"the model's output is not a number for {counted(len(bad), 'image')}: {images}; --precision fp32 avoids overflow")


def _probability_cells(submission_format: SubmissionFormat, class_names: Sequence[str], probs: np.ndarray) -> list[list[str]]:
    import numpy as np

    raise_all(class_problems(submission_format, class_names), f"{submission_format.path}:")
    exact = probs.astype(np.float64)
    sums = exact.sum(axis=1, keepdims=True)
    bad = np.flatnonzero((exact < 0).any(axis=1) | (np.abs(sums[:, 0] - 1) > SUM_TOLERANCE))
    if len(bad):
        row = bad[0]
        example = f"{submission_format.ids[row]!r}: smallest {exact[row].min():.3g}, sum {sums[row, 0]:.6g}"
        raise UserError(f"the model's output is no probability for {counted(len(bad), 'image')}, first for {example}")
    order = [list(class_names).index(name) for name in submission_format.label_columns]
    # float32 sums differ from 1 by more than nine digits show.
    return [[f"{value:.9g}" for value in row] for row in (exact / sums)[:, order].tolist()]
