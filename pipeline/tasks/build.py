"""The interface of a task for train.py, and helpers for building one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from pipeline.competition.rows import Row
from pipeline.data.cache import ImageCache
from pipeline.data.dataset import ALL
from pipeline.data.images import bad_images_error, check, find_bad
from pipeline.data.intensity import find_intensity
from pipeline.data.transforms import Preprocessing
from pipeline.errors import UserError
from pipeline.models.half_weights import checkpoint_layers
from pipeline.models.lora import Counts
from pipeline.models.roles import architecture_name
from pipeline.recipe import Recipe
from pipeline.targets.baseline import Baseline
from pipeline.training.compute import Batch, Compute
from pipeline.training.memory import Loss, Memory, account
from pipeline.training.predict import Task
from pipeline.training.processes import first_does
from pipeline.training.resume import ResumedRun, SplitRow


class TrainingTask(Task, Protocol):
    """A task as train.py uses it: the engine's `Task`, and methods for memory, saving, validation files
    and run.json.
    """

    preprocessing: Preprocessing  # of an image
    class_names: tuple[str, ...]
    rows_are: str  # word for rows in messages: "images", "questions"
    names_are: str  # word for class_names in messages: "classes", "labels"
    # All full micro-batches have one shape: then the task has `compile`, see `pipeline.training.compilation`
    one_shape: bool

    def counts(self) -> dict[str, Any]: ...  # for run.json: `train` and `val` rows, `train_per_class`
    def facts(self) -> dict[str, Any]: ...  # for run.json: `target`, `metric`, `prior`
    def baseline(self) -> Baseline | None: ...  # score of a constant prediction, by `best_metric`
    def floor(self) -> Baseline | None: ...  # score of a better prediction without the image, if there is one
    def to_device(self, compute: Compute, fresh: bool) -> None: ...  # move the model to its device
    def account(self, compute: Compute, optimizer_name: str, checkpointed: bool | None = None) -> Memory: ...
    def save(self, output: Path, initial: bool = False) -> None: ...
    def write_validation(self, output: Path, logits: np.ndarray) -> None: ...
    # Lines to print for the finished run; may write files
    def analyze(self, output: Path, compute: Compute) -> list[str]: ...


class Predictor(Protocol):
    """A finished model with its preprocessing, as inference.py uses it."""

    model: nn.Module
    preprocessing: Preprocessing

    def describe(self) -> str: ...  # its input, as text
    def logits(self, batch: Batch) -> object: ...
    def batches(
        self, rows: Sequence[Row], batch_size: int, share: tuple[int, int] = ALL
    ) -> Iterable[Batch]: ...


@dataclass(frozen=True)
class Build:
    """A task ready to train, and a summary for the user."""

    task: TrainingTask
    counts: Counts
    head: str  # dotted module name
    summary: str  # one line: the input, and whether the head is new
    notes: tuple[str, ...]
    new_head: bool = True  # random weights, not the checkpoint's
    stated_split: bool = False  # the data say which rows validate, not the recipe
    num_pseudo: int = 0  # training rows that are pseudo-labelled test images


def count_classes(labels: Iterable[str], class_names: Sequence[str]) -> dict[str, int]:
    """Return the number of rows per class, in the order of `class_names`."""
    counted = Counter(labels)
    return {name: counted[name] for name in class_names}


def decodable(
    rows: Sequence[Row], skip: bool, cache: ImageCache | None = None
) -> tuple[list[Row], list[str]]:
    """Return the rows whose images can be decoded, and a note on the others.

    An image of several rows is decoded once. With a `cache` the decoded images are stored in it.

    Raises:
        UserError: some images cannot be decoded and `skip` is False; the message lists them.
    """
    paths = list(dict.fromkeys(row.path for row in rows))
    how = (check, "checking images") if cache is None else (cache.check, "filling the image cache")
    bad = {
        paths[position]: reason
        for position, reason in first_does(lambda: list(find_bad(paths, *how).items()))
    }
    if not bad:
        return list(rows), []
    if not skip:
        raise bad_images_error(bad)
    first = next(iter(bad))
    return [row for row in rows if row.path not in bad], [
        f"skipped {len(bad)} images that cannot be decoded, such as {first}: {bad[first]}"
    ]


def with_intensity(
    preprocessing: Preprocessing, train: Sequence[Row], resumed_run: ResumedRun | None
) -> tuple[Preprocessing, list[str]]:
    """Return `preprocessing` with black and white points for images of more than 8 bits, and notes on them.

    They are found from training images; a resumed run keeps its own.
    """
    if resumed_run is not None:
        return preprocessing, []
    intensity, notes = find_intensity([row.path for row in train])
    return replace(preprocessing, intensity=intensity), notes


def checkpoint_blocks(model: nn.Module, recipe: Recipe) -> None:
    """Turn on activation checkpointing if the recipe asks for it.

    Raises:
        UserError: the architecture has no blocks for it.
    """
    if recipe.activation_checkpointing and not checkpoint_layers(model):
        raise UserError(
            f"activation_checkpointing: {architecture_name(model)} has no blocks that can be computed again; "
            "leave it out"
        )


def labelled_split(train: Sequence[Row], val: Sequence[Row]) -> list[SplitRow]:
    """Return the rows of both parts in order, as (id, label, "train" or "val")."""
    return [(row.id, row.label, split) for split, rows in (("train", train), ("val", val)) for row in rows]


def with_noise(pixel_values: torch.Tensor, deviation: float) -> torch.Tensor:
    """Return `pixel_values` (B, 3, H, W) plus Gaussian noise with standard deviation `deviation`.

    The noise comes from torch's own generator; with 0 none is drawn.
    """
    return pixel_values + deviation * torch.randn_like(pixel_values) if deviation else pixel_values


def account_step(
    model: nn.Module,
    loss: Loss,
    pixels: torch.Tensor,
    optimizer_name: str,
    recipe: Recipe,
    checkpointed: bool | None,
) -> Memory:
    """Return the memory of a training step, computed from shapes only.

    `checkpointed`: activation checkpointing on or off; None: as in the recipe.
    """
    model.train()
    checkpoint_layers(model, recipe.activation_checkpointing if checkpointed is None else checkpointed)
    try:
        memory = account(model, loss, pixels, optimizer_name)
        return (
            replace(memory, optimizer=memory.optimizer + memory.gradients) if recipe.optimizer.ema else memory
        )  # one more copy of the trained weights
    finally:
        checkpoint_layers(model, recipe.activation_checkpointing)
