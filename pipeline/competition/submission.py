"""predictions.csv: written in the form the competition asks for, checked before anyone sends it, scored against a solution."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.competition.checks import SUM_TOLERANCE, check_predictions, class_problems
from pipeline.competition.layout import read_submission_format
from pipeline.competition.rows import Competition, SubmissionFormat
from pipeline.competition.scores import are_answers, score_answers, score_predictions
from pipeline.competition.tables import counted, nearest, quoted, write_table
from pipeline.competition.vqa_files import write_results
from pipeline.errors import UserError, raise_all, run_command
from pipeline.files import read_json, replacing, sha256, write_json

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


# ---- make score ----


def _table_text(scores: dict[str, Any]) -> str:
    """The scores as lines of equal columns: one row per metric, one column per part of the solution."""
    parts = {"all": scores["metrics"], **scores["parts"]}
    width = max(len(name) for name in scores["metrics"])
    lines = [" " * width + "".join(f"{part:>10}" for part in parts)] if scores["parts"] else []
    for name in scores["metrics"]:
        lines.append(f"{name:<{width}}" + "".join(f"{metrics[name]:>10.4f}" for metrics in parts.values()))
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Score a predictions file, print the scores, and keep them beside the run that made it."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.competition.submission", description=main.__doc__)
    parser.add_argument(
        "--solution",
        type=Path,
        required=True,
        metavar="FILE",
        help="CSV with ids and true labels (and Usage), or VQA annotations in JSON",
    )
    parser.add_argument("--predictions", type=Path, default=Path("predictions.csv"), metavar="FILE", help="default: %(default)s")
    parser.add_argument(
        "--model", type=Path, default=Path("finetuned_model"), metavar="DIR", help="the run that made the predictions; default: %(default)s"
    )
    parser.add_argument("--data", type=Path, default=Path("data"), metavar="DIR", help="the competition's folder; default: %(default)s")
    options = parser.parse_args(argv)
    record = read_json(options.model / "run.json") if (options.model / "run.json").exists() else None
    known = record["class_names"] if record else None
    submission_format = read_submission_format(options.data) if options.data.is_dir() else None
    id_column = submission_format.id_column if submission_format else None
    score = score_answers if are_answers(options.predictions, options.solution) else score_predictions
    scores = score(options.predictions, options.solution, class_names=known, id_column=id_column)
    num_classes = counted(len(scores["class_names"]), "class", "classes")
    print(f"{options.predictions} against {options.solution}: {counted(scores['rows'], 'row')}, {num_classes}")
    print(_table_text(scores))
    if scores["unseen"]:
        near = nearest(scores["unseen"][0], known or ())
        print(f"note: labels of {options.solution} that the model does not know: {quoted(scores['unseen'])}{near}")
    if record is None or scores["foreign"]:
        why = f"did not make these predictions (labels {quoted(scores['foreign'])})" if record else "holds no finished run"
        print(f"the scores are not kept: {options.model} {why}; --model names the run")
        return 0
    kept = {
        "predictions": str(options.predictions),
        "sha256": sha256(options.predictions),
        "solution": str(options.solution),
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "rows": scores["rows"],
        "metrics": scores["metrics"],
    }
    write_json(options.model / "scores.json", kept | ({"parts": scores["parts"]} if scores["parts"] else {}))
    print(f"kept in {options.model / 'scores.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
