"""The form of a submission file: which rows and columns it has and what a cell holds. The only place that knows the file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

FormKind = Literal["label", "number", "probability", "probabilities", "ranked", "labels", "rows"]


@dataclass(frozen=True)
class SubmissionForm:
    """What the file must look like. The id column comes first unless `columns` holds it elsewhere.

    label          one class or grade in a cell
    number         one number in each of `value_columns`
    probability    one column: the probability of the positive class
    probabilities  one column a class (rows sum to 1) or a label (each 0..1)
    ranked         up to `top_k` labels in one cell, best first, `separator` between them
    labels         every label of an image in one cell, `separator` between them
    rows           several rows an image, one for each of some labels: `<image>_<label>`
    """

    kind: FormKind
    columns: tuple[str, ...]  # the header, in its order
    id_column: str
    row_ids: tuple[str, ...]  # the cells of the id column, in order
    path: Path | None  # the sample submission; None when the form was made up from the test files
    subjects: tuple[str, ...] = ()  # what each row is about, the id of `Row` and of predictions; empty: `row_ids` themselves
    row_labels: tuple[str, ...] = ()  # rows: the label of each row
    separator: str = " "
    top_k: int = 0  # ranked: how many labels fit in a cell
    of_numbers: bool = False  # rows: a number in each, no probability
    written: tuple[str, ...] = ()  # label: what stands for each of the target's names, where the file writes them otherwise (1 for dog)
    sums_to_one: bool = False  # probabilities: of exactly one right class, scored so that they must sum to 1 in every row

    @property
    def value_columns(self) -> tuple[str, ...]:
        """The columns that predictions fill."""
        return tuple(name for name in self.columns if name != self.id_column)

    def describe(self) -> str:
        """What a cell holds, in a competitor's words."""
        columns = self.value_columns
        return {
            "label": f"one label in {columns[0]!r}",
            "number": f"a number in {columns[0]!r}" if len(columns) == 1 else f"a number in each of {len(columns):,} columns",
            "probability": f"a probability in {columns[0]!r}",
            "probabilities": f"{len(columns):,} probability columns",
            "ranked": f"up to {self.top_k} labels in {columns[0]!r}, best first",
            "labels": f"all labels of an image in {columns[0]!r}",
            "rows": f"a row for each of {len(set(self.row_labels)):,} labels, its value in {columns[0]!r}",
        }[self.kind]

    @property
    def ids(self) -> tuple[str, ...]:
        """What is predicted, each once, in the order of the file."""
        return tuple(dict.fromkeys(self.subjects or self.row_ids))
