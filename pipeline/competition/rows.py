"""What a competition folder is read into: labelled rows, rows to predict, and the form of predictions.csv."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Row:
    """One image of the competition, or (task vqa) one question about an image."""

    id: str
    path: Path
    label: str | None  # None for test rows; for a question the answer as it is written in the data
    question: str | None = None
    answers: tuple[str, ...] = ()  # of every annotator, where the data has them (ten in VQA v2)
    answer_type: str | None = None  # "yes/no", "number", "other"
    image_id: str | None = None


@dataclass(frozen=True)
class SubmissionFormat:
    """What predictions.csv must look like."""

    id_column: str
    label_columns: tuple[str, ...]  # the one label column, or one probability column per class
    kind: Literal["label", "probability"]
    ids: tuple[str, ...]  # in the order of the file
    path: Path | None  # the sample submission; None when the form was made up from the test files


@dataclass(frozen=True)
class Competition:
    """A competition folder, understood. `test[i]` belongs to `submission.ids[i]`."""

    root: Path
    train: tuple[Row, ...]
    test: tuple[Row, ...]
    class_names: tuple[str, ...]  # in natural order; empty when nothing on disk tells them, and for questions
    submission: SubmissionFormat | None
    notes: tuple[str, ...]  # at most five lines that say what was understood
    task: Literal["classification", "vqa"] = "classification"
