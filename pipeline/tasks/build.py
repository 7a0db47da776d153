"""What every task hands to train.py, and what building any of them needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import nn

from pipeline.competition.layout import Row
from pipeline.data.images import bad_images_error, find_bad
from pipeline.files import replacing
from pipeline.models.lora import Counts
from pipeline.training.compute import Batch, Compute
from pipeline.training.memory import Memory
from pipeline.training.predict import Task


class TrainingTask(Task, Protocol):
    """A task as train.py uses it: besides what the engine asks, it can say what it needs, save itself and be judged."""

    class_names: tuple[str, ...]
    rows_are: str  # "images", "questions": in messages

    def train_per_class(self) -> dict[str, int]: ...  # training rows of each class, in the order of class_names
    def account(self, compute: Compute, optimizer_name: str) -> Memory: ...
    def save(self, output: Path, initial: bool = False) -> None: ...
    def write_validation(self, output: Path, logits: np.ndarray) -> None: ...
    def examine(self, output: Path, compute: Compute) -> list[str]: ...  # of the finished run: lines for people; may write files


class Predictor(Protocol):
    """What inference.py uses: a finished model with its preprocessing."""

    model: nn.Module

    def describe(self) -> str: ...  # its input, in words
    def logits(self, batch: Batch) -> object: ...
    def batches(self, rows: Sequence[Row], batch_size: int) -> Iterable[Batch]: ...


@dataclass(frozen=True)
class Build:
    """A task ready to train, and what a person wants to know before it does."""

    task: TrainingTask
    counts: Counts
    head: str  # dotted name
    summary: str  # one line: the input, where the head comes from
    notes: tuple[str, ...]


def count_classes(labels: Iterable[str], class_names: Sequence[str]) -> dict[str, int]:
    """Rows per class, in the order of `class_names`."""
    counted = Counter(labels)
    return {name: counted[name] for name in class_names}


def decodable(rows: Sequence[Row], skip: bool) -> tuple[list[Row], list[str]]:
    """The rows whose pictures can be decoded, and a note on the others. A picture of several rows is decoded once.

    Raises:
        UserError: some cannot be, and `skip` is not set; the message lists them.
    """
    paths = list(dict.fromkeys(row.path for row in rows))
    bad = {paths[position]: reason for position, reason in find_bad(paths).items()}
    if not bad:
        return list(rows), []
    if not skip:
        raise bad_images_error(bad)
    first = next(iter(bad))
    return [row for row in rows if row.path not in bad], [
        f"skipped {len(bad)} images that cannot be decoded, such as {first}: {bad[first]}"
    ]


def write_probs(path: Path, probs: np.ndarray) -> None:
    """Write (N, C) probabilities as float32, whole or not at all."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.save(file, probs.astype(np.float32))
