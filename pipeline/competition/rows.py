"""What a competition folder is read into: labelled rows, rows to predict, what labels mean, and the form of predictions.csv."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.forms.form import SubmissionForm
from pipeline.targets.target import Target


@dataclass(frozen=True)
class Row:
    """One image of the competition, or (task vqa) one question about an image. Several images of one id are several rows."""

    id: str
    path: Path
    label: str | None  # the label text as `Target.encode` takes it; None for test rows; for a question the answer as it is written
    question: str | None = None
    answers: tuple[str, ...] = ()  # of every annotator, where the data has them (ten in VQA v2)
    answer_type: str | None = None  # "yes/no", "number", "other"
    image_id: str | None = None


@dataclass(frozen=True)
class Competition:
    """A competition folder, understood. The ids of `test` are those of `form.ids`, in their order."""

    root: Path
    train: tuple[Row, ...]
    test: tuple[Row, ...]
    target: Target | None  # None for questions, and where nothing on disk tells
    metric: str | None
    form: SubmissionForm | None
    notes: tuple[str, ...]  # a few lines that say what was understood
    task: Literal["classification", "vqa"] = "classification"
    split: dict[str, str] | None = None  # row id -> "train" or "val", where the table of labels says it

    @property
    def class_names(self) -> tuple[str, ...]:
        """Classes, grades or labels in their order; empty where they are not known."""
        return self.target.names if self.target is not None else ()
