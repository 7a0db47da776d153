"""Convert predictions into the cells of a submission file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.errors import UserError
from pipeline.forms.form import SubmissionForm
from pipeline.predictions import Predictions
from pipeline.wording import counted, quoted

if TYPE_CHECKING:
    import numpy as np


def fill(form: SubmissionForm, predictions: Predictions) -> list[list[str]]:
    """Return the rows of the file in the order of `form.row_ids`, each with one cell per entry of
    `form.columns`.

    Raises:
        UserError: an id has no prediction, a value is not finite, or the target cannot fill the form.
    """
    subjects = form.subjects or form.row_ids
    chosen = predictions.aligned(form.ids)
    _refuse_bad_values(chosen)
    row_of = {subject: row for row, subject in enumerate(form.ids)}
    rows = [row_of[subject] for subject in subjects]
    values = _value_cells(form, chosen, rows)
    id_place = form.columns.index(form.id_column)
    return [
        [*cells[:id_place], row_id, *cells[id_place:]]
        for row_id, cells in zip(form.row_ids, values, strict=True)
    ]


def _refuse_bad_values(predictions: Predictions) -> None:
    import numpy as np

    bad = np.flatnonzero(~np.isfinite(predictions.values).all(axis=1))
    if len(bad):
        images = quoted(predictions.ids[row] for row in bad)
        raise UserError(
            f"the model's output is not a number for {counted(len(bad), 'image')}: {images}; --precision "
            "fp32 avoids overflow"
        )


def _value_cells(form: SubmissionForm, predictions: Predictions, rows: list[int]) -> list[list[str]]:
    """Return the cells beside the id, one list per row."""
    import numpy as np

    if form.decided:
        chosen = predictions.target.chosen(predictions.values)
        if predictions.target.is_choice:
            chosen = np.eye(predictions.target.num_outputs)[chosen]
        values = chosen.reshape(predictions.values.shape).astype(np.float32)
        predictions = replace(predictions, values=values)
    target, values = predictions.target, predictions.values
    if form.kind in ("label", "labels"):
        texts = label_texts(form, predictions)
        return [[texts[row]] for row in rows]
    if form.kind == "ranked":
        order = np.argsort(-values, axis=1, kind="stable")[:, : form.top_k]
        return [[form.separator.join(target.names[index] for index in order[row])] for row in rows]
    if form.kind == "rows":
        names, exact = _outputs(predictions, both=target.kind == "binary")
        place = {name: number for number, name in enumerate(names)}
        write = _number if form.of_numbers else _writer(form)
        return [[write(exact[row, place[label]])] for row, label in zip(rows, form.row_labels, strict=True)]
    table = columns_of(form, predictions)
    write = _number if form.kind == "number" else _writer(form)
    return [[write(value) for value in table[row]] for row in rows]


def label_texts(form: SubmissionForm, predictions: Predictions) -> list[str]:
    """Return one text per id: the label, or all labels of an image, as the file writes them."""
    target = predictions.target
    if form.kind == "labels":
        return [
            form.separator.join(name for name, is_chosen in zip(target.names, row, strict=True) if is_chosen)
            for row in target.chosen(predictions.values)
        ]
    if form.written:
        return [form.written[index] for index in target.chosen(predictions.values)]
    return target.decode(predictions.values)


def columns_of(form: SubmissionForm, predictions: Predictions) -> np.ndarray:
    """Return (N, columns) float64: the values of the value columns, in order.

    Raises:
        UserError: the target has no output for a column.
    """
    target = predictions.target
    both = target.kind == "binary" and len(form.value_columns) == 2
    names, exact = _outputs(predictions, both)
    if len(form.value_columns) == 1 and len(names) == 1:
        return exact
    if unknown := [name for name in form.value_columns if name not in names]:
        raise UserError(f"the model has no output for the columns {quoted(unknown)}; it has {quoted(names)}")
    if target.is_choice:
        # float32 sums differ from 1 within the nine digits written
        exact = exact / exact.sum(axis=1, keepdims=True)
    return exact[:, [names.index(name) for name in form.value_columns]]


def _outputs(predictions: Predictions, both: bool) -> tuple[list[str], np.ndarray]:
    """Return the names of the outputs and (N, outputs) float64; `both`: both classes of a binary target."""
    import numpy as np

    target, exact = predictions.target, predictions.values.astype(np.float64)
    if both:
        return list(target.names), np.hstack([1 - exact, exact])
    return list(target.output_names), exact


def _writer(form: SubmissionForm) -> Callable[[float], str]:
    """Return the function that writes a probability, or the word for a decided 0 or 1."""
    if form.decided and form.written:
        return lambda value: form.written[int(value)]
    return _probability


def _probability(value: float) -> str:
    return f"{value:.9g}"


def _number(value: float) -> str:
    return f"{value:.7g}"  # float32 has about 7 significant digits
