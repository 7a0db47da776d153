"""predictions.csv: written in the form the competition asks for, checked before anyone sends it, scored against a solution."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.competition.checks import SUM_TOLERANCE, check_predictions, class_problems, id_differences, label_problems, read_probs
from pipeline.competition.folders import natural_key, plain_name
from pipeline.competition.labels import LABEL_NAMES, one_hot
from pipeline.competition.layout import read_submission_format
from pipeline.competition.rows import Competition, SubmissionFormat
from pipeline.competition.tables import Table, counted, load_table, nearest, numbered, quoted, repeated_ids, rows_of, write_table
from pipeline.competition.vqa_files import write_results
from pipeline.errors import UserError, raise_all, run_command
from pipeline.files import read_json, replacing, sha256, write_json

if TYPE_CHECKING:
    import numpy as np

IGNORED_USAGE = "ignored"  # Kaggle's name for rows of a solution that do not count


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


# ---- score ----


def score_predictions(
    predictions_path: Path, solution_path: Path, *, class_names: Sequence[str] | None = None, id_column: str | None = None
) -> dict[str, Any]:
    """Scores of a predictions file: `rows`, `class_names`, `metrics` over all rows, `parts` by the solution's Usage column.

    Rows are joined by id, in any order. The classes are `class_names` and every label that occurs besides: `unseen` lists those of the
    solution that are not in `class_names`, `foreign` those of the predictions.

    Raises:
        UserError: the files do not hold the same ids once each, or a cell cannot be read; all problems of both files at once.
    """
    import numpy as np

    predictions, solution = load_table(predictions_path), load_table(solution_path)
    id_column = id_column if id_column in predictions.columns else predictions.columns[0]
    columns = [name for name in predictions.columns if name != id_column]
    if not columns or not predictions.cells:
        has = f"{counted(len(predictions.cells), 'row')}, columns {quoted(predictions.columns)}"
        raise UserError(f"{predictions.path}: ids and predictions are needed; it has {has}")
    ids, truth, usage = _read_solution(solution, predictions, id_column, columns)
    problems = id_differences(predictions, predictions.column(id_column), ids)
    if len(columns) == 1:
        probs, answers = None, [label.strip() for label in predictions.column(columns[0])]
        problems += label_problems(predictions, columns[0], None)
        names = sorted({*(class_names or ()), *truth, *answers}, key=natural_key)
    else:
        probs, prob_problems = read_probs(predictions, columns)
        problems += prob_problems
        names = columns
        unknown = sorted(set(truth) - set(columns), key=natural_key)
        problems += [f"the solution's label {label!r} has no column{nearest(label, columns)}" for label in unknown]
        answers = [] if problems else [columns[index] for index in probs.argmax(axis=1)]
    raise_all(problems, f"{predictions.path} cannot be scored against {solution.path}:")
    row_of = {image_id: row for row, image_id in enumerate(predictions.column(id_column))}
    rows = np.array([row_of[image_id] for image_id in ids])
    index_of = {name: index for index, name in enumerate(names)}
    labels = np.array([index_of[label] for label in truth])
    predicted = np.array([index_of[answers[row]] for row in rows])
    probs = probs[rows] if probs is not None else None
    counts = np.array([part.casefold() != IGNORED_USAGE for part in usage])
    if not counts.any():
        raise UserError(f"{solution.path}: every row is marked as ignored")
    parts = {
        part: np.array([value == part for value in usage])
        for part in sorted(set(usage), reverse=True)
        if part and part.casefold() != IGNORED_USAGE
    }
    unseen = sorted(set(truth) - set(class_names or truth), key=natural_key)
    foreign = sorted(set(answers) - set(class_names or answers), key=natural_key)
    return {
        "rows": int(counts.sum()),
        "class_names": names,
        "metrics": _metrics(labels, predicted, len(names), probs, counts),
        "parts": {part: _metrics(labels, predicted, len(names), probs, mask) for part, mask in parts.items()},
        "unseen": unseen,
        "foreign": foreign,
    }


def _metrics(labels: np.ndarray, predicted: np.ndarray, num_classes: int, probs: np.ndarray | None, mask: np.ndarray) -> dict[str, float]:
    from pipeline.metrics import classification_metrics

    return classification_metrics(labels[mask], predicted[mask], num_classes, probs[mask] if probs is not None else None)


def _read_solution(solution: Table, predictions: Table, id_column: str, columns: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Ids, labels and usages (empty texts without such a column) of a solution."""
    if not solution.cells:
        raise UserError(f"{solution.path} has no rows: ids and labels are needed")
    wanted = set(predictions.column(id_column))
    known = {name: len(wanted & set(solution.column(name))) for name in solution.columns}
    own_id = id_column if id_column in solution.columns else max(known, key=lambda name: known[name])
    usage_column = next((name for name in solution.columns if plain_name(name) == "usage" and name != own_id), None)
    others = [name for name in solution.columns if name not in (own_id, usage_column)]
    ids = solution.column(own_id)
    raise_all(repeated_ids(rows_of(ids, solution.lines)), f"{solution.path}:")
    usage = [value.strip() for value in solution.column(usage_column)] if usage_column else [""] * len(ids)
    if len(columns) > 1 and set(columns) <= set(others):
        return ids, one_hot(solution, columns), usage
    named = [name for name in others if name in columns] or [name for name in others if plain_name(name) in LABEL_NAMES] or others
    if len(named) != 1:
        what = f"the label may be in {quoted(named)}" if named else "there is no label column"
        raise UserError(f"{solution.path}: {what}; its columns: {quoted(solution.columns)}; leave the id, the label and Usage")
    labels = [label.strip() for label in solution.column(named[0])]
    empty = [line for line, label in zip(solution.lines, labels, strict=True) if not label]
    if empty:
        raise UserError(f"{solution.path}, {numbered(empty)}: no label in column {named[0]!r}")
    return ids, labels, usage


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
        "--solution", type=Path, required=True, metavar="FILE", help="CSV with ids and true labels; a Usage column is understood"
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
    scores = score_predictions(options.predictions, options.solution, class_names=known, id_column=id_column)
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
