"""Which form a sample submission asks for."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.forms.form import FormKind, SubmissionForm
from pipeline.tables import Table
from pipeline.targets.target import Target


def recognise(
    sample: Table, id_column: str, target: Target, metric: str, subjects: Sequence[str] = (), row_labels: Sequence[str] = ()
) -> SubmissionForm:
    """The form that a sample submission asks for."""
    values = [name for name in sample.columns if name != id_column]
    kind: FormKind = "rows" if row_labels else "probabilities" if len(values) > 1 else "label"
    ids = tuple(sample.column(id_column))
    return SubmissionForm(kind, sample.columns, id_column, ids, sample.path, tuple(subjects), tuple(row_labels))


def made_up(target: Target, metric: str, ids: Sequence[str]) -> SubmissionForm:
    """The form without a sample submission."""
    return SubmissionForm("label", ("id", "label"), "id", tuple(ids), None)
