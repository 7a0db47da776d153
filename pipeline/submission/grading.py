"""Score a predictions file against a solution, with every metric that fits, over all rows and per part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UserError, raise_all
from pipeline.forms.check import ReadBack, id_differences, read_back
from pipeline.forms.form import SubmissionForm
from pipeline.submission.solution import Scores, Solution, read_solution
from pipeline.tables import Table, load_table
from pipeline.targets.readings import (
    are_flags,
    are_numbers,
    are_shares,
    has_fraction,
    is_false,
    is_true,
    mark_between,
    number,
    several_guesses,
    split_parts,
)
from pipeline.targets.target import Target, multiclass
from pipeline.wording import counted, natural_key, nearest, quoted

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class _Arrays:
    """The arrays to score, one row per id of the solution: `truth` as `target.encode` gives it, and one of
    the others.
    """

    target: Target
    truth: np.ndarray
    values: np.ndarray | None = None  # (N, O) probabilities or numbers
    ranks: np.ndarray | None = None  # (N, k) class indices, best first, -1: none
    chosen: np.ndarray | None = None  # (N,) class indices, or (N, O) bool for several labels


def score_predictions(
    predictions_path: Path,
    solution_path: Path,
    *,
    form: SubmissionForm | None = None,
    target: Target | None = None,
    metric: str | None = None,
    id_column: str | None = None,
) -> Scores:
    """Return the scores of a predictions file, over all rows and by the solution's Usage column.

    Rows are joined by id, in any order. `form` and `target` describe the file. Without a form, columns, cells
    and target tell whether it holds labels, probabilities or numbers. Known labels are those of the target.

    Raises:
        UserError: the ids of both files differ or repeat, or a cell cannot be read; all problems of both
            files are listed.
    """
    predictions, solution_table = load_table(predictions_path), load_table(solution_path)
    form = _form_of(predictions, form, id_column, target, solution_table)
    solution = read_solution(
        solution_table, predictions.column(form.id_column), form.id_column, form.value_columns
    )
    read, problems = read_back(predictions, form, None)
    problems = id_differences(predictions, predictions.column(form.id_column), solution.ids) + problems
    known, target = target, target or _guessed_target(form, read, solution)
    problems += _solution_problems(form, target, solution) if known is None else []
    raise_all(problems, f"{predictions.path} cannot be scored against {solution.table.path}:")
    row_of = {row_id: row for row, row_id in enumerate(read.ids)}
    order = [row_of[row_id] for row_id in solution.ids]
    arrays, unseen, foreign = _arrays(form, target, read, solution, order)
    whole = solution.counted_rows()
    return {
        "rows": len(whole),
        "class_names": list(arrays.target.names),
        "of": _outputs_in_words(form, arrays.target),
        "pooled": form.kind == "rows" and len(set(form.row_labels)) > 1,
        "metrics": _metrics(form, arrays, solution, whole, metric),
        "parts": {
            part: _metrics(form, arrays, solution, rows, metric) for part, rows in solution.parts().items()
        },
        "unseen": unseen,
        "foreign": sorted(set(foreign) - set(known.names if known else foreign), key=natural_key),
    }


def _outputs_in_words(form: SubmissionForm, target: Target) -> str:
    """Return what the rows hold: 3 classes, 2 numbers, a row for each of 4 labels."""
    if form.kind == "rows":
        return f"a row for each of {counted(len(set(form.row_labels)), 'label')}"
    nouns = {"multilabel": ("label",), "ordinal": ("grade",), "continuous": ("number",)}
    return counted(len(target.names), *nouns.get(target.kind, ("class", "classes")))


def _form_of(
    predictions: Table,
    form: SubmissionForm | None,
    id_column: str | None,
    target: Target | None,
    solution: Table,
) -> SubmissionForm:
    """Return `form` if its columns are in the file; without a form, guess one from columns and cells."""
    if form is not None and set(form.columns) <= set(predictions.columns):
        return form
    if len(predictions.columns) < 2 or not predictions.cells:
        has = f"{counted(len(predictions.cells), 'row')}, columns {quoted(predictions.columns)}"
        raise UserError(f"{predictions.path}: ids and predictions are needed; it has {has}")
    if form is not None:
        expected = f"expected {quoted(form.columns)}"
        raise UserError(f"{predictions.path}: its columns are {quoted(predictions.columns)}, {expected}")
    columns = predictions.columns
    id_column = id_column if id_column in columns else columns[0]
    guessed = SubmissionForm("label", columns, id_column, tuple(predictions.column(id_column)), None)
    if target and target.kind == "continuous":
        return replace(guessed, kind="number")
    if len(columns) > 2:
        return replace(guessed, kind="probabilities", sums_to_one=target is None or target.is_choice)
    return _of_one_column(guessed, predictions, target, solution)


def _of_one_column(
    form: SubmissionForm, predictions: Table, target: Target | None, solution: Table
) -> SubmissionForm:
    """Return what the only value column of a file without a sample submission holds.

    Raises:
        UserError: numbers whose meaning is not known; as labels they would all be wrong.
    """
    (column,) = form.value_columns
    cells = [cell.strip() for cell in predictions.column(column)]
    names = (*target.names, *target.positive) if target else [text for row in solution.cells for text in row]
    if set(cells) <= {name.strip() for name in names}:
        return form
    if target and target.kind == "multilabel" and not has_fraction(cells):
        return replace(form, kind="labels", separator=mark_between(cells, names) or target.separator)
    if target and target.kind == "binary" and are_shares(cells):
        hard = set(cells) <= {"0", "1"}
        return replace(form, written=("0", "1")) if hard else replace(form, kind="probability")
    top_k, separator = several_guesses(cells, target.names) if target else (1, " ")
    if top_k > 1:
        return replace(form, kind="ranked", top_k=top_k, separator=separator)
    if are_numbers(cells) and has_fraction(cells):
        raise UserError(
            f"{predictions.path}: column {column!r} holds numbers such as {cells[0]!r}, and without the "
            "sample submission it is not known what they are: name the competition's folder with DATA= "
            "(--data), and the run with MODEL= (--model)"
        )
    return form


def _guessed_target(form: SubmissionForm, read: ReadBack, solution: Solution) -> Target:
    if form.kind == "probabilities":
        return multiclass(form.value_columns)
    labels = {guess for row in read.guesses or () for guess in row} | set(solution.texts())
    return multiclass(sorted(labels, key=natural_key))


def _solution_problems(form: SubmissionForm, target: Target, solution: Solution) -> list[str]:
    if form.kind != "probabilities" or len(solution.columns) > 1:
        return []
    unknown = sorted(set(solution.texts()) - set(target.names), key=natural_key)
    return [
        f"the solution's label {label!r} has no column{nearest(label, target.names)}" for label in unknown
    ]


def _arrays(
    form: SubmissionForm, target: Target, read: ReadBack, solution: Solution, order: Sequence[int]
) -> tuple[_Arrays, list[str], list[str]]:
    """Return truth and predictions in the solution's order, and unknown labels of the solution and of the
    predictions.
    """
    import numpy as np

    if form.kind in ("number", "probability", "probabilities", "rows"):
        values = read.values[list(order)].astype(np.float64)
        if form.kind == "rows":  # each row is a separate value: yes or no, or a number
            texts = solution.texts()
            if target.kind == "continuous":
                row_target = Target("continuous", (form.value_columns[0],))
            else:
                row_target = Target("binary", ("0", "1"), positive=_true_ones(texts, solution))
            return _as_written(form, row_target.fitted(texts), row_target.encode(texts), values), [], []
        if target.kind == "binary" and values.shape[1] == 2:
            values = values[:, [form.value_columns.index(target.names[1])]]
        names = target.names
        if target.kind != "binary" and form.kind in ("probabilities", "number"):
            target = _in_order(target, form.value_columns)
        texts, unseen = _known(target, _truth_texts(target, solution))
        wide = replace(target, names=(*target.names, *unseen)) if unseen else target
        padded = np.pad(values, ((0, 0), (0, len(unseen)))) if unseen else values
        if wide.kind == "ordinal":  # a decision is made between one grade and the next
            order = sorted(wide.names, key=lambda name: (number(name) or 0, (*names, *unseen).index(name)))
            padded = padded[:, [wide.names.index(name) for name in order]]
            wide = replace(wide, names=tuple(order))
        return _as_written(form, wide, wide.encode(texts), padded), unseen, []
    texts, unseen = _known(target, _truth_texts(target, solution, form.written))
    guesses = [read.guesses[row] for row in order]  # type: ignore[index]
    if form.written:
        guesses = [tuple(_as_named(target, form.written, guess) for guess in row) for row in guesses]
    foreign = sorted(
        {guess for row in guesses for guess in row if guess} - set(target.names), key=natural_key
    )
    if target.kind == "binary":
        chosen = np.array(
            [[guess[0] in target.positive or guess[0] == target.names[1]] for guess in guesses],
            dtype=np.int64,
        )[:, 0]
        return _Arrays(target, target.encode(texts), chosen=chosen), unseen, foreign
    wide = replace(target, names=(*target.names, *unseen, *(name for name in foreign if name not in unseen)))
    if form.kind == "labels":
        joined = [wide.separator.join(row) for row in guesses]
        return _Arrays(wide, wide.encode(texts), chosen=wide.encode(joined).astype(bool)), unseen, foreign
    place = {name: number for number, name in enumerate(wide.names)}
    width = max(len(row) for row in guesses)
    ranks = np.array(
        [[place[guess] for guess in row] + [-1] * (width - len(row)) for row in guesses], dtype=np.int64
    )
    if form.kind == "ranked":
        return _Arrays(wide, wide.encode(texts), ranks=ranks), unseen, foreign
    return _Arrays(wide, wide.encode(texts), chosen=ranks[:, 0]), unseen, foreign


def _as_written(form: SubmissionForm, target: Target, truth: np.ndarray, values: np.ndarray) -> _Arrays:
    """Return the arrays of a file of numbers. 0 and 1 that stand for labels are no probabilities."""
    if not form.decided:
        return _Arrays(target, truth, values)
    chosen = values > 0.5
    if target.is_choice:
        return _Arrays(target, truth, chosen=chosen.argmax(axis=1))
    return _Arrays(target, truth, chosen=chosen[:, 0] if target.kind == "binary" else chosen)


def _true_ones(texts: Sequence[str], solution: Solution) -> tuple[str, ...]:
    """Return the spellings of yes among `texts`, which are all yes or no.

    Raises:
        UserError: they are not.
    """
    if not are_flags(texts):
        strange = next(text for text in texts if not (is_true(text) or is_false(text)))
        raise UserError(f"{solution.table.path}: {strange!r} in a row for one label: expected 0 or 1")
    return tuple(dict.fromkeys(text for text in texts if is_true(text))) or ("1",)


def _in_order(target: Target, columns: Sequence[str]) -> Target:
    """Return the target with its outputs in the order of the file's columns."""
    if target.kind != "continuous":
        return replace(target, names=tuple(columns))
    if len(columns) == 1:  # the name of the only number does not matter
        return target
    places = [target.names.index(name) for name in columns]
    per_output = ("names", "center", "scale", "low", "high")
    return replace(
        target, **{name: tuple(getattr(target, name)[place] for place in places) for name in per_output}
    )


def _truth_texts(target: Target, solution: Solution, written: Sequence[str] = ()) -> list[str]:
    """Return the solution's labels as the target writes them."""
    if len(solution.columns) > 1:
        if target.kind == "continuous":
            return [target.separator.join(row) for row in solution.cells]
        chosen = [
            [name for name, cell in zip(solution.columns, row, strict=True) if is_true(cell)]
            for row in solution.cells
        ]
        if target.is_choice and (
            bad := [line for line, row in zip(solution.table.lines, chosen, strict=True) if len(row) != 1]
        ):
            raise UserError(
                f"{solution.table.path}, row {bad[0]}: exactly one class column must hold 1, the others 0"
            )
        return [target.separator.join(row) for row in chosen]
    if target.kind == "multilabel":
        texts = [row[0].strip() for row in solution.cells] if target.may_be_empty else solution.texts()
        mark = mark_between(texts, target.names) or target.separator
        return [target.separator.join(split_parts(text, mark)) for text in texts]
    texts = solution.texts()
    if target.kind == "binary" and are_flags(texts) and not set(texts) <= set(target.names):
        return [target.positive[0] if is_true(text) else "" for text in texts]
    if target.is_choice and are_numbers(target.names):  # 2.0 means 2
        by_value, known = {number(name): name for name in target.names}, set(target.names)
        return [text if text in known else by_value.get(number(text), text) for text in texts]
    return [_as_named(target, written, text) for text in texts] if written else texts


def _as_named(target: Target, written: Sequence[str], text: str) -> str:
    return dict(zip(written, target.names, strict=True)).get(text, text)


def _known(target: Target, texts: list[str]) -> tuple[list[str], list[str]]:
    """Return the texts, and the labels in them that the target does not know."""
    if target.kind in ("binary", "continuous"):
        return texts, []
    labels = {
        label for text in texts for label in (target.parts(text) if target.kind == "multilabel" else [text])
    }
    return texts, sorted(labels - set(target.names), key=natural_key)


def _metrics(
    form: SubmissionForm, arrays: _Arrays, solution: Solution, rows: Sequence[int], metric: str | None
) -> dict[str, float]:
    """Return every metric of some rows, the competition's metric first."""
    from pipeline.targets.metrics import (
        METRICS,
        all_metrics,
        classification_metrics,
        evaluate_labels,
        evaluate_ranks,
        find_metric,
        metric_for,
        names_for,
    )

    target, truth, rows = arrays.target, arrays.truth[list(rows)], list(rows)
    if arrays.values is not None:
        fits = metric is not None and target.kind in find_metric(metric).kinds
        found = all_metrics(target, truth, arrays.values[rows], metric if fits else None)
    else:
        chosen = arrays.chosen[rows] if arrays.chosen is not None else arrays.ranks[rows, 0]  # type: ignore[index]
        found = classification_metrics(truth, chosen, target.num_outputs) if target.is_choice else {}
        names = [name for name in names_for(target.kind) if METRICS[name].needs == "labels"]
        if form.kind == "ranked" and not target.is_choice:  # the first guess is not all labels of an image
            names = []
        scores = {name: evaluate_labels(name, target, truth, chosen) for name in names}
        if arrays.ranks is not None:
            ranked = [
                name
                for name in {metric or "map_at_5", "top5_accuracy", f"map_at_{form.top_k}"}
                if find_metric(name).needs == "ranks" and target.kind in find_metric(name).kinds
            ]
            scores |= {
                name: evaluate_ranks(name, target, truth, arrays.ranks[rows]) for name in sorted(ranked)
            }
        found |= {name: value for name, value in scores.items() if value is not None and name not in found}
    own = metric_for(metric, target.kind).name if metric else None
    first = {own: found[own]} if own in found else {}
    return first | found
