"""The form of a submission file: its rows, its columns, and the content of a cell."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

FormKind = Literal["label", "number", "probability", "probabilities", "ranked", "labels", "rows"]


@dataclass(frozen=True)
class SubmissionForm:
    """The format of a predictions file. The id column comes first unless `columns` has it elsewhere.

    label          one class or grade in a cell
    number         one number in each of `value_columns`
    probability    one column: the probability of the positive class
    probabilities  one column per class (each row sums to 1) or per label (each value 0..1)
    ranked         up to `top_k` labels in one cell, best first, `separator` between them
    labels         all labels of an image in one cell, `separator` between them
    rows           several rows per image, one for each of some labels: `<image>_<label>`
    """

    kind: FormKind
    columns: tuple[str, ...]  # the header, in order
    id_column: str
    row_ids: tuple[str, ...]  # the cells of the id column, in order
    path: Path | None  # the sample submission; None if the form was made from the test files
    # id of `Row` and of the predictions for each row of the file; empty: the same as `row_ids`
    subjects: tuple[str, ...] = ()
    row_labels: tuple[str, ...] = ()  # kind rows: the label of each row
    separator: str = " "
    top_k: int = 0  # kind ranked: the maximum number of labels in a cell
    of_numbers: bool = False  # kind rows: the values are numbers, not probabilities
    # kinds probabilities and rows: 1 for the labels of an image, 0 for the others, because labels are graded
    # (one class: where the sample shows 0 and 1; a sample of 0.3 asks for probabilities)
    decided: bool = False
    # kind label: the text for each of the target's names, if the file writes them otherwise (1 for dog);
    # decided: the words for 0 and 1 (False, True)
    written: tuple[str, ...] = ()
    sums_to_one: bool = False  # kind probabilities: the metric requires that each row sums to 1

    @property
    def value_columns(self) -> tuple[str, ...]:
        """The columns that predictions fill."""
        return tuple(name for name in self.columns if name != self.id_column)

    def describe(self) -> str:
        """Describe the content of a cell, for messages."""
        columns = self.value_columns
        where = repr(columns[0]) if len(columns) == 1 else f"each of {len(columns):,} columns"
        if self.decided:
            return f"0 or 1 for each of {len(set(self.row_labels) or columns):,} labels"
        return {
            "label": f"one label in {columns[0]!r}",
            "number": f"a number in {where}",
            "probability": f"a probability in {columns[0]!r}",
            "probabilities": f"{len(columns):,} probability columns",
            "ranked": f"up to {self.top_k} labels in {columns[0]!r}, best first",
            "labels": f"all labels of an image in {columns[0]!r}",
            "rows": f"a row for each of {len(set(self.row_labels)):,} labels, its value in {columns[0]!r}",
        }[self.kind]

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids to predict, each once, in the order of the file."""
        return tuple(dict.fromkeys(self.subjects or self.row_ids))
