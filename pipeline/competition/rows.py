"""The result of reading a competition folder: labelled rows, test rows, the target, and the form of
predictions.csv.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pipeline.files import sha256
from pipeline.forms.form import SubmissionForm
from pipeline.targets.target import Target

# The noun for what is split into training and validation: an id may have several images
IMAGE, ID = "labelled image", "labelled id"
STATED = "as the table of labels says"  # which rows validate


@dataclass(frozen=True)
class Row:
    """One image of the competition, or one question about an image (task vqa).

    Several rows may share an `id` (channels, slices, views). The prediction of that id is the mean over its
    rows.
    """

    id: str  # id of the prediction: an image, a study, a question
    path: Path
    # label text as `Target.encode` takes it; for a question the answer as written; None for test rows
    label: str | None
    question: str | None = None
    answers: tuple[str, ...] = ()  # one per annotator, where the data has them (ten in VQA v2)
    answer_type: str | None = None  # "yes/no", "number", "other"
    image_id: str | None = None


@dataclass(frozen=True)
class Corrections:
    """Corrections by id: rows excluded from training, and rows with another label. Empty: none."""

    excluded: frozenset[str] = frozenset()
    relabelled: Mapping[str, str] = field(default_factory=dict)
    # exclude, relabel -> `file` and `sha256`
    files: Mapping[str, dict[str, str]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.files)

    def applied(self, rows: Sequence[Row]) -> list[Row]:
        """Return `rows` without the excluded ones and with the corrected labels."""
        kept = [row for row in rows if row.id not in self.excluded]
        return [
            replace(row, label=self.relabelled[row.id]) if row.id in self.relabelled else row for row in kept
        ]

    def touched(self, rows: Sequence[Row]) -> dict[str, int]:
        """Count how many of `rows` are excluded and how many are relabelled."""
        return {
            "excluded": sum(row.id in self.excluded for row in rows),
            "relabelled": sum(row.id in self.relabelled for row in rows),
        }

    def record(self, train: Sequence[Row], val: Sequence[Row]) -> dict[str, Any]:
        """Return the entry of run.json: the files, and the counts for the uncorrected `train` and `val`
        rows.
        """
        return {"files": dict(self.files), "train": self.touched(train), "val": self.touched(val)}


@dataclass(frozen=True)
class Competition:
    """A competition folder that has been read. Test rows are in the order of `form.ids`."""

    root: Path
    train: tuple[Row, ...]
    test: tuple[Row, ...]
    target: Target | None  # None for questions, and where the data do not determine it
    metric: str | None
    form: SubmissionForm | None
    notes: tuple[str, ...]  # at most six lines for the user on how the folder was read
    task: Literal["classification", "vqa"] = "classification"
    split: dict[str, Literal["train", "val"]] | None = None  # row id -> part, where the data define it
    groups: dict[str, str] | None = None  # row id -> group; a group is never split
    folds: dict[str, str] | None = None  # row id -> fold, where the data define it; used by --folds only
    folds_from: str = ""  # file and column of `folds`, for messages
    split_from: str = STATED
    of_fold: bool = False  # `split` is that of one fold, not stated by the data
    corrections: Corrections = Corrections()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the target: classes, grades, labels or number columns. Empty without a target."""
        return self.target.names if self.target else ()


def images_digest(rows: Sequence[Row]) -> str:
    """Return a digest of the ids of `rows` and the bytes of their images.

    A file that cannot be read counts as absent.
    """
    files: dict[Path, str] = {}
    for row in rows:
        if row.path not in files:
            try:
                files[row.path] = sha256(row.path)
            except OSError:
                files[row.path] = ""
    return hashlib.sha256(repr([(row.id, files[row.path]) for row in rows]).encode()).hexdigest()
