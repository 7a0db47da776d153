"""Measure a training step of a recipe on this machine: build the model on a few rows and time a
micro-batch.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

from pipeline.competition.rows import Competition, Row
from pipeline.recipe import Recipe

if TYPE_CHECKING:
    from pipeline.tasks.build import Build
    from pipeline.training.compute import Compute
    from pipeline.training.memory import Memory

FEW = 48  # number of rows for the measurement
PATIENCE_S = 6.0  # a whole micro-batch is timed if it is expected to take less


@dataclass(frozen=True)
class StepCost:
    """The cost of a training step.

    `train`, `predict`: seconds per image, without reading. `read`: seconds per image to read, decode and
    preprocess it in one process. `build_seconds`: to build the model, including imports. `room`: free bytes
    on the device, 0 if unknown. `needed`: bytes of a step of `batch_size`.
    """

    compute: Compute
    memory: Memory
    batch_size: int
    train: float
    predict: float
    read: float
    build_seconds: float
    room: int

    @property
    def needed(self) -> int:
        """Bytes of a step, as counted by `Memory`."""
        return self.memory.total(self.batch_size)


def measure_step(
    recipe: Recipe,
    competition: Competition,
    rows: Sequence[Row],
    batch_size: int | None = None,
    must_fit: bool = False,
) -> tuple[StepCost, Build]:
    """Return the cost of a step of `recipe`, measured on `few_of(rows)`, and the model that was built.

    The images of the rows must be decodable. Before, models that nothing uses any more are freed, so that the
    device has room.

    `batch_size`: rows at a time. None: the recipe's if it fits into memory, else the largest part of it that
    fits.

    Raises:
        UserError: the backbone cannot be loaded with these settings; `must_fit` is set and the step does not
            fit.
    """
    started = time.perf_counter()
    from pipeline.tasks.registry import task_module
    from pipeline.training.compute import choose_compute, free_unused
    from pipeline.training.estimate import (
        OVERHEAD_BYTES,
        check_fits,
        device_memory,
        largest_micro_batch,
        seconds_per_image,
    )
    from pipeline.training.image_sizes import LARGEST

    free_unused()
    compute = choose_compute(recipe.precision)
    data = recipe.data.model_copy(
        update={"cache_gb": 0, "workers": 0, "val_fraction": 0.25, "pseudo_labels": None}
    )
    ids = {row.id for row in few_of(rows)}
    part = replace(
        competition, train=tuple(row for row in rows if row.id in ids), split=None, groups=None, folds=None
    )
    build = task_module(recipe.task).build(recipe.model_copy(update={"data": data}), part, None)
    task = build.task
    task.to_device(compute, fresh=True)
    build_seconds = time.perf_counter() - started
    memory = task.account(compute, recipe.optimizer.name)
    size = batch_size or largest_micro_batch(memory, compute.device, recipe.batch_size)
    room = device_memory(compute.device)
    if must_fit:
        check_fits(memory, size, compute.device)
    train, predict, _ = seconds_per_image(task, compute, 1)
    fits = room == 0 or memory.total(size) + OVERHEAD_BYTES[compute.device.type] <= room
    if size > 1 and train * size < PATIENCE_S and fits:
        train, predict, _ = seconds_per_image(task, compute, size)
    started = time.perf_counter()
    passed = sum(len(batch["row"]) for batch in islice(task.train_batches(LARGEST, 0, 8, task.num_train), 4))
    read = (time.perf_counter() - started) / passed
    return StepCost(compute, memory, size, train, predict, read, build_seconds, room), build


def few_of(rows: Sequence[Row]) -> list[Row]:
    """Return at most `FEW` of the rows, from as many labels as possible."""
    by_label: dict[str, list[Row]] = {}
    for row in rows:
        by_label.setdefault(row.label or "", []).append(row)
    return [row for turn in range(FEW) for found in by_label.values() for row in found[turn : turn + 1]][:FEW]
