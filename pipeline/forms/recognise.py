"""Recognise the form of a sample submission for a given target, or make a form without a sample
submission.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pipeline.errors import raise_all
from pipeline.forms.form import FormKind, SubmissionForm
from pipeline.tables import Table, repeated_ids, rows_of
from pipeline.targets.metrics import find_metric
from pipeline.targets.readings import (
    are_flags,
    are_numbers,
    as_words,
    has_fraction,
    is_false,
    is_true,
    mark_between,
    named_after,
    several_guesses,
)
from pipeline.targets.target import Target
from pipeline.wording import counted, nearest, numbered, quoted

RANKED_DEFAULT = 5
LABEL_WORDS = ("label", "labels", "class", "target", "category", "prediction", "predicted")


def recognise(
    sample: Table,
    id_column: str,
    target: Target,
    metric: str,
    subjects: Sequence[str] = (),
    row_labels: Sequence[str] = (),
) -> SubmissionForm:
    """Return the form that `sample` asks for.

    `subjects`: the subject of each row, if it is not the id itself. `row_labels`: the label of each row, for
    a sample with several rows per image.

    Raises:
        UserError: ids are empty or repeated, or the target cannot fill the columns; all problems are listed.
    """
    ids = sample.column(id_column)
    problems = _id_problems(ids, sample)
    columns = tuple(name for name in sample.columns if name == id_column or not is_index_column(name))
    values = [name for name in columns if name != id_column]
    if not values:
        problems.append(
            f"its only column is {id_column!r}: an id column and a column for predictions are needed"
        )
        raise_all(problems, f"{sample.path}:")
    cells = [cell.strip() for cell in sample.column(values[0])]
    if row_labels:
        kind: FormKind = "rows"
        problems += _row_problems(row_labels, values, target)
    elif len(values) == 1:
        kind, found = _one_column(values[0], cells, target, metric)
        problems += found
    else:
        kind = "number" if target.kind == "continuous" else "probabilities"
        problems += _column_problems(values, target)
    decided = (
        kind in ("probabilities", "rows")
        and target.kind != "continuous"
        and find_metric(metric).needs == "labels"
        and (target.kind == "multilabel" or not any(has_fraction(sample.column(name)) for name in values))
    )
    if decided:
        problems += _flag_problems(sample, values, metric)
    separator, top_k = target.separator, 0
    if kind == "labels":
        separator = mark_between(cells, target.names) or separator
    if kind == "ranked":
        guesses, found_separator = several_guesses(cells, target.names)
        separator = found_separator if guesses > 1 else _mark_of_guesses(target)
        top_k = _k_of(metric) or (guesses if guesses > 1 else RANKED_DEFAULT)
    if kind in ("labels", "ranked"):
        problems += _mark_problems(f"its {values[0]!r}", separator, target)
    raise_all(problems, f"{sample.path}:")
    return SubmissionForm(
        kind,
        columns,
        id_column,
        tuple(ids),
        sample.path,
        subjects=tuple(subjects),
        row_labels=tuple(row_labels),
        separator=separator,
        top_k=top_k,
        of_numbers=kind == "rows" and target.kind == "continuous",
        decided=decided,
        written=_written(target, cells) if kind == "label" else _words(sample, values) if decided else (),
        sums_to_one=kind == "probabilities" and target.is_choice and sums_matter(metric),
    )


def made_up(
    target: Target, metric: str, ids: Sequence[str], columns: tuple[str, str] = ("id", "label")
) -> SubmissionForm:
    """Return the form without a sample submission: two `columns`, or one per probability or number after the
    first. The first is `id_` where a class or number is called `id`.

    Raises:
        UserError: several guesses do not fit into one cell, because a name contains the mark between them.
    """
    kind: FormKind = {
        "multiclass": "label",
        "ordinal": "label",
        "binary": "probability",
        "multilabel": "labels",
        "continuous": "number",
    }[target.kind]
    needs = find_metric(metric).needs
    if needs == "ranks":
        kind = "ranked"
        raise_all(
            _mark_problems("a cell of guesses", _mark_of_guesses(target), target), "no sample submission:"
        )
    elif (target.is_choice or target.kind == "multilabel") and needs == "probabilities":
        kind = "probabilities"
    elif target.kind == "binary" and needs == "labels":
        kind = "label"
    values = (
        target.output_names
        if kind == "probabilities" or (kind == "number" and target.num_outputs > 1)
        else columns[1:]
    )
    id_column = columns[0]
    while id_column in values:  # a class may be called id
        id_column += "_"
    k = _k_of(metric) or RANKED_DEFAULT
    sums = kind == "probabilities" and target.is_choice and sums_matter(metric)
    return SubmissionForm(
        kind,
        (id_column, *values),
        id_column,
        tuple(ids),
        None,
        separator=_mark_of_guesses(target) if kind == "ranked" else target.separator,
        top_k=k if kind == "ranked" else 0,
        sums_to_one=sums,
    )


def is_index_column(name: str) -> bool:
    """Return True for a pandas index column: it has no name, or `Unnamed: 0`."""
    return not name.strip() or re.fullmatch(r"Unnamed: \d+", name.strip()) is not None


def sums_matter(metric: str) -> bool:
    """Return False if the metric uses only the order within a column (AUC, average precision): rows need not
    sum to 1.
    """
    return metric not in ("roc_auc", "average_precision", "partial_auc_80tpr")


def _k_of(metric: str) -> int:
    """Return the number of guesses that a metric uses: 5 for map_at_5 and top5_accuracy; 0 for other
    metrics.
    """
    found = re.fullmatch(r"map_at_(\d+)|top(\d+)_accuracy", metric)
    return int(found[1] or found[2]) if found else 0


def _id_problems(ids: Sequence[str], sample: Table) -> list[str]:
    rows = rows_of(ids, sample.lines)
    empty = [line for image_id, lines in rows.items() for line in lines if not image_id.strip()]
    problems = repeated_ids({image_id: lines for image_id, lines in rows.items() if image_id.strip()})
    return problems + ([f"{numbered(empty)}: an id is empty"] if empty else [])


def _row_problems(row_labels: Sequence[str], values: Sequence[str], target: Target) -> list[str]:
    if len(values) > 1:
        return [
            f"each row is about one label, but there are {len(values)} columns beside the ids: "
            f"{quoted(values)}"
        ]
    unknown = sorted(set(row_labels) - set(target.names))
    if not unknown:
        return []
    return [
        f"rows ask for {quoted(unknown)}, unknown in the training labels{nearest(unknown[0], target.names)}"
    ]


def _one_column(column: str, cells: Sequence[str], target: Target, metric: str) -> tuple[FormKind, list[str]]:
    """Return the kind of a form with one value column, and why the target cannot fill it."""
    needs = find_metric(metric).needs
    if target.kind == "binary":
        if needs == "labels":
            problems = _fraction_problems(column, cells, target, metric)
            problems = problems or _number_problems(column, cells, target, metric)
            if len(target.positive) != 1 or ", " in target.names[0]:
                problems += _joined_problems(column, cells, target, metric)
            return "label", problems
        return "probability", []
    if target.kind == "multilabel":
        if needs == "ranks":
            return "ranked", []
        if needs == "probabilities":
            return "labels", [
                f"{metric} needs a probability of each label, but {column!r} is one column for all labels: "
                "name the metric of the competition's page, such as --metric micro_f1, samples_f1 or "
                "samples_f2"
            ]
        return "labels", []
    if target.kind == "continuous":
        if target.num_outputs > 1:
            return "number", [f"{target.num_outputs} numbers do not fit into the one column {column!r}"]
        return "number", []
    if needs == "ranks" or several_guesses(cells, target.names)[0] > 1:
        return "ranked", []
    named = named_after(column, target.names) if column.casefold() not in LABEL_WORDS else None
    if named is not None and len(target.names) > 2:
        return "label", [
            f"its only column beside the ids is named like the class {named!r}: one column for each class is "
            "needed"
        ]
    if needs == "probabilities":
        flag = "set the graded class with --positive-class, or another --metric"
        return "label", [
            f"{metric} needs probabilities of {len(target.names):,} classes, but {column!r} is one column; "
            f"{flag}"
        ]
    return "label", _fraction_problems(column, cells, target, metric)


def _fraction_problems(column: str, cells: Sequence[str], target: Target, metric: str) -> list[str]:
    """Report a sample with fractions: it asks for probabilities or numbers; labels would be accepted and
    score badly.
    """
    fraction = next((cell for cell in cells if cell not in target.names and has_fraction([cell])), None)
    if fraction is None:
        return []
    return [
        f"its {column!r} holds {fraction}, so probabilities or numbers are graded, but this run predicts "
        f"labels ({metric}): train with --metric roc_auc, log_loss or rmse (as the competition's page says); "
        "if labels are graded, write a label into the sample"
    ]


def _number_problems(column: str, cells: Sequence[str], target: Target, metric: str) -> list[str]:
    """Report a sample with other numbers than 0 and 1 for two classes: which number is which is unknown."""
    other = next((cell for cell in cells if not are_flags([cell])), None)
    if other is None or not _written(target, cells):
        return []
    return [
        f"its {column!r} holds {other}, but the classes are {quoted(target.names)}: which number is which "
        f"class is not known, and {metric} scores labels: use the numbers as labels in the training data, or "
        "write 0 and 1 there (1 for the positive class)"
    ]


def _joined_problems(column: str, cells: Sequence[str], target: Target, metric: str) -> list[str]:
    """Report that one side of a binary target is several classes, so the file cannot name one of them."""
    if _written(target, cells):
        return []
    return [
        f"{metric} scores a label in {column!r}, but --positive-class joins classes "
        f"({quoted(target.names)}): leave --positive-class out, or use a metric of probabilities (--metric "
        "roc_auc or log_loss)"
    ]


def _mark_of_guesses(target: Target) -> str:
    """Return the mark between guesses where the sample shows none: that of the data, else a space."""
    return target.separator if target.kind == "multilabel" else " "


def _mark_problems(where: str, mark: str, target: Target) -> list[str]:
    """Report a class whose name contains the mark between the labels of a cell: no reader can part them."""
    inside = next((name for name in target.names if mark in name), None)
    if inside is None:
        return []
    return [
        f"{where} holds several labels with {mark!r} between them, but the class {inside!r} contains that "
        "mark: write two classes with the competition's own mark into a cell of the sample submission (such "
        f"as {target.names[0]},{target.names[-1]}), or name the classes as the competition does; if one "
        "label is scored: --metric accuracy"
    ]


def _flag_problems(sample: Table, values: Sequence[str], metric: str) -> list[str]:
    """Report a sample with other values than 0 and 1 where a metric of labels is asked."""
    for name in values:
        for line, cell in zip(sample.lines, sample.column(name), strict=True):
            if cell.strip() and not (is_true(cell) or is_false(cell)):
                return [
                    f"row {line}, column {name!r}: {cell!r}, but {metric} scores labels, so 0 or 1 is "
                    "expected: use a metric of probabilities (--metric log_loss or roc_auc), or write 0 or 1 "
                    "there"
                ]
    return []


def _column_problems(columns: Sequence[str], target: Target) -> list[str]:
    """List differences between the columns and the model's outputs.

    Of several labels or numbers a sample may ask for some only.
    """
    names = target.names
    if not set(columns) & set(names) and target.kind != "continuous":
        one = ""
        if len(columns) < 4:
            one = f"; if {columns[0]!r} is the label, remove the other columns from the sample"
        return [
            f"its columns {quoted(columns)} are none of the classes {quoted(names)}: expected one column, or "
            f"one for each class{one}"
        ]
    return column_differences(columns, names, all_needed=target.kind not in ("multilabel", "continuous"))


def column_differences(columns: Sequence[str], names: Sequence[str], all_needed: bool) -> list[str]:
    """List the columns of a sample submission that are none of `names`, and with `all_needed` the names
    without a column.
    """
    extra = [name for name in columns if name not in names]
    missing = [name for name in names if name not in columns] if all_needed else []
    problems = [
        f"the column {name!r} is no class of the training data{nearest(name, missing or names)}"
        for name in extra
    ]
    if missing:
        problems.append(
            f"{counted(len(missing), 'class', 'classes')} of the training data without a column: "
            f"{quoted(missing)}"
        )
    return problems


def _written(target: Target, cells: Sequence[str]) -> tuple[str, ...]:
    """Return ("0", "1") if the sample holds these numbers but the binary classes are texts; else ().

    It is ("0.0", "1.0") where the sample writes them so.
    """
    if target.kind != "binary" or not are_numbers(cells) or set(cells) <= set(target.names):
        return ()
    return ("0.0", "1.0") if all("." in cell for cell in cells) else ("0", "1")


def _words(sample: Table, values: Sequence[str]) -> tuple[str, ...]:
    """Return ("False", "True") as the sample writes them, if it holds these words; else ()."""
    cells = {cell.strip() for name in values for cell in sample.column(name)} - {""}
    if not cells or are_numbers(cells) or not are_flags(cells):
        return ()
    return as_words(min(cells))
