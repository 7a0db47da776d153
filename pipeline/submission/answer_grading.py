"""Score answers to questions against a solution: a table question_id,answer, a results file, or VQA
annotations.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.competition.folders import plain_name
from pipeline.competition.questions import clean_answer
from pipeline.competition.vqa_files import Answered, load_annotations, load_results
from pipeline.errors import UserError, raise_all
from pipeline.forms.check import id_differences, label_problems
from pipeline.submission.solution import Scores, read_solution
from pipeline.tables import Table, load_table
from pipeline.wording import counted, natural_key, quoted


def are_answers(predictions_path: Path, solution_path: Path) -> bool:
    """Return True for answers to questions: a file is JSON, or the predictions have a column of answers.

    Raises:
        UserError: the predictions cannot be read as a table.
    """
    if _is_json(predictions_path) or _is_json(solution_path):
        return True
    return any(plain_name(name) == "answer" for name in load_table(predictions_path).columns)


def score_answers(
    predictions_path: Path,
    solution_path: Path,
    *,
    class_names: Sequence[str] | None = None,
    id_column: str | None = None,
) -> Scores:
    """Return the scores of answers.

    Both files are tables question_id,answer, or official JSON (results and annotations). Answers are compared
    after the cleaning that training uses. `metrics`: accuracy, weighted precision, recall and F1; if the
    solution has the answers of several annotators, also the official VQA accuracy, in total and by answer
    type.

    Raises:
        UserError: as `score_predictions`.
    """
    annotations = load_annotations(solution_path) if _is_json(solution_path) else {}
    truths = [(question_id, answered.answer) for question_id, answered in annotations.items()]
    solution = _answer_table(solution_path, truths) if annotations else load_table(solution_path)
    if _is_json(predictions_path):
        predictions = _answer_table(
            predictions_path, [(key, answer) for key, (_, answer) in load_results(predictions_path).items()]
        )
    else:
        predictions = load_table(predictions_path)
    id_column = id_column if id_column in predictions.columns else predictions.columns[0]
    columns = [name for name in predictions.columns if name != id_column]
    if len(columns) != 1 or not predictions.cells:
        has = f"{counted(len(predictions.cells), 'row')}, columns {quoted(predictions.columns)}"
        raise UserError(f"{predictions.path}: expected question ids and one column of answers; it has {has}")
    found = read_solution(solution, predictions.column(id_column), id_column, columns)
    ids, truth = found.ids, found.texts()
    problems = id_differences(predictions, predictions.column(id_column), ids) + label_problems(
        predictions, columns[0], None
    )
    raise_all(problems, f"{predictions.path} cannot be scored against {solution.path}:")
    answers = dict(
        zip(
            predictions.column(id_column),
            (cell.strip() for cell in predictions.column(columns[0])),
            strict=True,
        )
    )
    whole = found.counted_rows()
    predicted = [answers[question_id] for question_id in ids]

    def metrics(rows: Sequence[int]) -> dict[str, float]:
        given = [annotations[ids[row]] for row in rows] if annotations else []
        return _answer_metrics([predicted[row] for row in rows], [truth[row] for row in rows], given)

    known = {clean_answer(name) for name in class_names or truth}
    classes = sorted({*map(clean_answer, truth)}, key=natural_key)
    return {
        "rows": len(whole),
        "class_names": classes,
        "of": counted(len(classes), "answer"),
        "pooled": False,
        "metrics": metrics(whole),
        "parts": {part: metrics(rows) for part, rows in found.parts().items()},
        "unseen": sorted({answer for answer in truth if clean_answer(answer) not in known}, key=natural_key),
        "foreign": sorted(set(predicted) - set(class_names or predicted), key=natural_key),
    }


def _answer_metrics(
    predicted: Sequence[str], truth: Sequence[str], given: Sequence[Answered]
) -> dict[str, float]:
    from pipeline.targets.metrics import classification_metrics, vqa_scores

    names = {
        answer: index for index, answer in enumerate(sorted({clean_answer(answer) for answer in predicted}))
    }
    # Answers that are never predicted share one class: accuracy and weighted averages are the same as with
    # separate classes.
    labels = [names.get(clean_answer(answer), len(names)) for answer in truth]
    scores = classification_metrics(
        labels, [names[clean_answer(answer)] for answer in predicted], len(names) + 1
    )
    kept = {name: value for name, value in scores.items() if not name.startswith("macro_")}
    return kept | vqa_scores(
        predicted, [answered.answers for answered in given], [answered.answer_type for answered in given]
    )


def _answer_table(path: Path, answers: Sequence[tuple[str, str]]) -> Table:
    """Return the answers of a JSON file as a table; `lines` are the entry numbers."""
    return Table(
        path, ("question_id", "answer"), tuple(answers), tuple(range(1, len(answers) + 1)), ",", False
    )


def _is_json(path: Path) -> bool:
    return path.suffix.lower() == ".json"
