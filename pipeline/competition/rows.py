"""What a competition folder is read into: labelled rows, rows to predict, what labels mean, and the form of predictions.csv."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pipeline.forms.form import SubmissionForm
from pipeline.targets.target import Target


@dataclass(frozen=True)
class Row:
    """One image of the competition, or (task vqa) one question about an image.

    Several rows may share an `id` (channels, slices, views): what is predicted for it is the mean over them.
    """

    id: str  # what is predicted: an image, a study, a prediction
    path: Path
    label: str | None  # the label text that `Target.encode` takes; None for test rows; for a question the answer as the data write it
    question: str | None = None
    answers: tuple[str, ...] = ()  # of every annotator, where the data has them (ten in VQA v2)
    answer_type: str | None = None  # "yes/no", "number", "other"
    image_id: str | None = None


@dataclass(frozen=True)
class Corrections:
    """Labels that a person found wrong, by id: rows not to train on, and other labels to train on. Empty: none."""

    excluded: frozenset[str] = frozenset()
    relabelled: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, dict[str, str]] = field(default_factory=dict)  # exclude, relabel -> `file` and `sha256`

    def __bool__(self) -> bool:
        return bool(self.files)

    def applied(self, rows: Sequence[Row]) -> list[Row]:
        """`rows` without the excluded ones, the others with their corrected labels."""
        kept = [row for row in rows if row.id not in self.excluded]
        return [replace(row, label=self.relabelled[row.id]) if row.id in self.relabelled else row for row in kept]

    def touched(self, rows: Sequence[Row]) -> dict[str, int]:
        """How many of `rows` are `excluded`, and how many `relabelled`."""
        return {
            "excluded": sum(row.id in self.excluded for row in rows),
            "relabelled": sum(row.id in self.relabelled for row in rows),
        }

    def record(self, train: Sequence[Row], val: Sequence[Row]) -> dict[str, Any]:
        """What run.json keeps: the files, and how many rows of each part they are about; `train` and `val` as they were given."""
        return {"files": dict(self.files), "train": self.touched(train), "val": self.touched(val)}


@dataclass(frozen=True)
class Competition:
    """A competition folder, understood. Test rows lie in the order of `form.ids`."""

    root: Path
    train: tuple[Row, ...]
    test: tuple[Row, ...]
    target: Target | None  # None for questions, and where nothing on disk tells
    metric: str | None
    form: SubmissionForm | None
    notes: tuple[str, ...]  # at most six lines that say what was understood
    task: Literal["classification", "vqa"] = "classification"
    split: dict[str, Literal["train", "val"]] | None = None  # row id -> part, where the data say which rows validate
    groups: dict[str, str] | None = None  # row id -> what must not be split
    folds: dict[str, str] | None = None  # row id -> its fold, where the data say it; read, and taken by --folds alone
    folds_from: str = ""  # where that stands
    split_from: str = "as the table of labels says"
    corrections: Corrections = Corrections()

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the target: classes, grades, labels, columns of numbers; empty where there is none."""
        return self.target.names if self.target else ()
