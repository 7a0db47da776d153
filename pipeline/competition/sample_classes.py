"""Check the classes of the sample submission against those of the training data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pipeline.competition.spelling import other_spellings
from pipeline.competition.test_rows import TestImages, sample_evidence
from pipeline.errors import UserError, raise_all
from pipeline.forms.form import SubmissionForm
from pipeline.forms.recognise import column_differences
from pipeline.tables import Table
from pipeline.targets.evidence import Asked, SampleEvidence
from pipeline.targets.readings import are_numbers, split_parts
from pipeline.targets.target import Target
from pipeline.wording import nearest, quoted


def check_classes(
    test: TestImages, target: Target | None, form: SubmissionForm | None, asked: Asked
) -> list[str]:
    """Check the classes of the sample submission; returns notes on values that are no classes of the training
    data.

    Raises:
        UserError: a class occurs only in the sample submission, as a column of probabilities or among known
            labels.
    """
    sample = sample_evidence(test)
    if sample is None or target is None or not target.names or sample.labels or test.sample is None:
        return []
    path = test.sample.table.path
    if form is not None and form.kind in ("label", "labels", "ranked") and asked.kind != target.kind:
        _refuse_other_spelling(test.sample.table, sample.columns[0], form, target)
    if not target.is_choice:
        return []
    if len(sample.columns) > 1:
        raise_all(column_differences(sample.columns, target.names, all_needed=True), f"{path}:")
        return []
    if form is not None and asked.kind != target.kind and _are_lists_of_numbers(sample, target.names):
        raise _number_of_class(sample, target.names, path)
    if form is None or form.kind != "label":
        return []
    known = set(target.names)
    values = Counter(cells[0].strip() for cells in sample.cells)
    unknown = [value for value in values if value and value not in known]
    right = sum(count for value, count in values.items() if value in known)
    if not unknown:
        return []
    if are_numbers(unknown) and not right and not are_numbers(target.names) and asked.kind != target.kind:
        raise _number_of_class(sample, target.names, path)
    if lists := [value for value in unknown if len(value.split()) > 1 and are_numbers(value.split())]:
        if are_numbers(target.names) and not right and asked.kind != target.kind:
            several = len(lists[0].split())
            raise UserError(
                f"{path}: column {sample.columns[0]!r} holds {several} numbers in a cell, such as "
                f"{lists[0]!r}, of which none is a class of the training data ({quoted(target.names[:3])}); "
                f"if an image has several guesses: --metric map_at_{several}; if it has one label: "
                f"--target {target.kind}"
            )
    elif are_numbers(target.names) and not are_numbers(unknown) and asked.kind != target.kind:
        raise UserError(
            f"{path}: column {sample.columns[0]!r} holds {quoted(unknown)}, but the classes of the training "
            f"data are numbers ({quoted(target.names[:3])}), and no table says which is which: add one with "
            "a row for each class, such as classes.csv with the columns number,name; if the file shall hold "
            f"the numbers: --target {target.kind}"
        )
    what = f"labels {quoted(unknown)} are no classes of the training data{nearest(unknown[0], target.names)}"
    if len(unknown) > 1 and not right and not are_numbers(unknown) and asked.kind != target.kind:
        raise UserError(
            f"{path}: column {sample.columns[0]!r} holds {len(unknown):,} different texts such as "
            f"{quoted(unknown)}, of which none is a class of the training data ({quoted(target.names[:3])}): "
            "if these are the classes, the training labels are read from the wrong place, or a table with "
            "both names for each class is needed (classes.csv); if they are placeholders: --target "
            f"{target.kind}"
        )
    if right * 2 > sum(count for value, count in values.items() if value) and asked.kind != target.kind:
        raise UserError(
            f"{path}: most values of column {sample.columns[0]!r} are classes of the training data, but its "
            f"{what}: an image of a class that is not trained cannot be predicted; complete the training "
            f"data, or accept it with --target {target.kind}"
        )
    return [f"its {what} and taken as placeholders"]


def _number_of_class(sample: SampleEvidence, names: Sequence[str], path: Path) -> UserError:
    return UserError(
        f"{path}: column {sample.columns[0]!r} holds numbers such as {sample.cells[0][0]!r}, but the "
        f"classes are called {quoted(names[:3])}: which number is which class is not known; add a table "
        "with a row for each class, such as classes.csv with the columns number,name; or use the numbers as "
        "class names (folders 0, 1, ... or the label column of a table); or accept the class names with "
        "--target multiclass; if it is the probability of one or some of them: --positive-class "
        f"{names[-1]} --metric roc_auc"
    )


def _refuse_other_spelling(sample: Table, column: str, form: SubmissionForm, target: Target) -> None:
    """Raise if the sample writes a class otherwise than the labels: Kaggle compares texts."""
    names = form.written or target.names
    mark = form.separator if form.kind != "label" else None
    rows = [split_parts(cell, mark) if mark else [cell.strip()] for cell in sample.column(column)]
    known = other_spellings((value for row in rows for value in row), names)
    for line, row in zip(sample.lines, rows, strict=True):
        for value in (value for value in row if value in known):
            raise UserError(
                f"{sample.path}: row {line}, column {column!r}: {value!r}, but the training labels write "
                f"{known[value]!r}: write all labels as the competition does, in the training data or here; "
                f"to predict them as they are in the training data: --target {target.kind}"
            )


def _are_lists_of_numbers(sample: SampleEvidence, class_names: Sequence[str]) -> bool:
    """Return True where cells hold several numbers each, but classes have names."""
    cells = [row[0].split() for row in sample.cells]
    several = any(len(parts) > 1 for parts in cells)
    return several and not are_numbers(class_names) and are_numbers(part for parts in cells for part in parts)
