"""Predictions against a solution that somebody holds: labels and probabilities of images, answers to questions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.competition.folders import plain_name
from pipeline.competition.labels import LABEL_NAMES, one_hot
from pipeline.competition.questions import clean_answer
from pipeline.competition.vqa_files import Answered, load_annotations, load_results
from pipeline.errors import UserError, raise_all
from pipeline.submission.checks import id_differences, label_problems, read_probs
from pipeline.tables import Table, load_table, repeated_ids, rows_of
from pipeline.wording import counted, natural_key, nearest, numbered, quoted

if TYPE_CHECKING:
    import numpy as np

IGNORED_USAGE = "ignored"  # Kaggle's name for rows of a solution that do not count


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
    from pipeline.targets.metrics import classification_metrics

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


# ---- answers to questions ----


def are_answers(predictions_path: Path, solution_path: Path) -> bool:
    """True for answers to questions: one of the files is JSON, or the predictions have a column of answers.

    Raises:
        UserError: the predictions cannot be read as a table.
    """
    if _is_json(predictions_path) or _is_json(solution_path):
        return True
    return any(plain_name(name) == "answer" for name in load_table(predictions_path).columns)


def score_answers(
    predictions_path: Path, solution_path: Path, *, class_names: Sequence[str] | None = None, id_column: str | None = None
) -> dict[str, Any]:
    """As `score_predictions`, for a table question_id,answer or the official results file, against such a table or VQA annotations.

    Answers are compared as they were cleaned for training. `metrics` are accuracy, weighted precision, recall and F1, and where the solution
    has the answers of several annotators the official VQA accuracy, also by answer type.

    Raises:
        UserError: as `score_predictions`.
    """
    annotations = load_annotations(solution_path) if _is_json(solution_path) else {}
    truths = [(question_id, answered.answer) for question_id, answered in annotations.items()]
    solution = _answer_table(solution_path, truths) if annotations else load_table(solution_path)
    if _is_json(predictions_path):
        predictions = _answer_table(predictions_path, [(key, answer) for key, (_, answer) in load_results(predictions_path).items()])
    else:
        predictions = load_table(predictions_path)
    id_column = id_column if id_column in predictions.columns else predictions.columns[0]
    columns = [name for name in predictions.columns if name != id_column]
    if len(columns) != 1 or not predictions.cells:
        has = f"{counted(len(predictions.cells), 'row')}, columns {quoted(predictions.columns)}"
        raise UserError(f"{predictions.path}: question ids and one column of answers are needed; it has {has}")
    ids, truth, usage = _read_solution(solution, predictions, id_column, columns)
    problems = id_differences(predictions, predictions.column(id_column), ids) + label_problems(predictions, columns[0], None)
    raise_all(problems, f"{predictions.path} cannot be scored against {solution.path}:")
    answers = dict(zip(predictions.column(id_column), (cell.strip() for cell in predictions.column(columns[0])), strict=True))
    whole = [row for row, part in enumerate(usage) if part.casefold() != IGNORED_USAGE]
    if not whole:
        raise UserError(f"{solution.path}: every row is marked as ignored")
    parts = {part: [row for row in whole if usage[row] == part] for part in sorted(set(usage), reverse=True)}
    predicted = [answers[question_id] for question_id in ids]

    def metrics(rows: Sequence[int]) -> dict[str, float]:
        given = [annotations[ids[row]] for row in rows] if annotations else []
        return _answer_metrics([predicted[row] for row in rows], [truth[row] for row in rows], given)

    known = {clean_answer(name) for name in class_names or truth}
    return {
        "rows": len(whole),
        "class_names": sorted({*map(clean_answer, truth)}, key=natural_key),
        "metrics": metrics(whole),
        "parts": {part: metrics(rows) for part, rows in parts.items() if part and rows},
        "unseen": sorted({answer for answer in truth if clean_answer(answer) not in known}, key=natural_key),
        "foreign": sorted(set(predicted) - set(class_names or predicted), key=natural_key),
    }


def _answer_metrics(predicted: Sequence[str], truth: Sequence[str], given: Sequence[Answered]) -> dict[str, float]:
    from pipeline.targets.metrics import classification_metrics, vqa_scores

    names = {answer: index for index, answer in enumerate(sorted({clean_answer(answer) for answer in predicted}))}
    # What is never predicted counts alike in accuracy and in weighted averages: one class for all of it.
    labels = [names.get(clean_answer(answer), len(names)) for answer in truth]
    scores = classification_metrics(labels, [names[clean_answer(answer)] for answer in predicted], len(names) + 1)
    kept = {name: value for name, value in scores.items() if not name.startswith("macro_")}
    return kept | vqa_scores(predicted, [answered.answers for answered in given], [answered.answer_type for answered in given])


def _answer_table(path: Path, answers: Sequence[tuple[str, str]]) -> Table:
    """A JSON file of answers as the table it would be; `lines` are its entries."""
    return Table(path, ("question_id", "answer"), tuple(answers), tuple(range(1, len(answers) + 1)), ",", False)


def _is_json(path: Path) -> bool:
    return path.suffix.lower() == ".json"
