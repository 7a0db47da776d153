"""Frozen features in a run: train only the head on them, score a linear probe (--floor), start from its
head.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from pipeline.commands.session import Session
from pipeline.errors import UserError
from pipeline.wording import counted

if TYPE_CHECKING:
    from pipeline.tasks.build import Build
    from pipeline.training.compute import Compute
    from pipeline.training.features import Features
    from pipeline.training.probe import Probe

MOST_BYTES = 4_000_000_000  # limit for features in memory; never more than half of the free memory


def features_once(session: Session, build: Build, compute: Compute) -> tuple[Features | None, str]:
    """Return (features, message): the features to train the head on, or None if each step runs the whole
    model.

    The features are not computed yet. The message gives the reason; it is empty if more than the head is
    trained. A resumed run keeps its earlier choice.
    """
    from pipeline.training.features import Features

    recipe, resumed_run = session.recipe, session.resumed_run
    if not recipe.head_only or recipe.task != "classification":
        return None, ""
    before = None if resumed_run is None else bool(resumed_run.start.get("features"))
    if before is False and not resumed_run.changes:
        return None, ""
    reason = _forbidden(session)
    features = None
    if reason is None:
        features = Features(build.task, compute)
        reason = _no_room(features, compute) or features.problem()
    if compute.processes.least(int(reason is None)) == 0:
        return (
            None,
            "each step runs the whole model; features cannot be computed once: "
            f"{reason or 'another process cannot'}",
        )
    rows = counted(build.task.num_train + build.task.num_val, "image")
    return (
        features,
        f"the features of {rows} are computed once ({features.width} numbers each), and the head is trained "
        "on them",
    )


def _forbidden(session: Session) -> str | None:
    """Return the recipe setting that changes features between steps or needs the whole model.

    None if there is none.
    """
    recipe = session.recipe
    if recipe.lora.also_train:
        return f"lora.also_train: {', '.join(recipe.lora.also_train)} changes them in every step"
    if names := recipe.augmentation.in_use:
        return f"augmentation changes the images in every epoch ({', '.join(names)})"
    if recipe.schedule.image_sizes:
        return "schedule.image_sizes changes the size of the images"
    if recipe.compile is True:
        return "compile: true compiles the steps of the whole model"
    return None


def _no_room(features: Features, compute: Compute) -> str | None:
    import torch

    from pipeline.files import human_size
    from pipeline.training.estimate import device_memory

    free = device_memory(torch.device("cpu"))
    room = min(MOST_BYTES, free // 2) if free else MOST_BYTES
    if features.num_bytes > room:
        return f"they need {human_size(features.num_bytes)}, and the limit is {human_size(room)}"
    return None


def check_floor(session: Session, build: Build) -> None:
    """Refuse --floor where no linear probe can be computed, before training starts.

    Raises:
        UserError: with the reason.
    """
    recipe, resumed_run, task = session.recipe, session.resumed_run, build.task
    if not session.args.floor:
        return
    if recipe.task != "classification":
        raise UserError(
            f"--floor: only for task classification, but the recipe {recipe.name} is for {recipe.task}; "
            "leave out --floor"
        )
    if not task.num_val:
        raise UserError(
            "--floor: there are no validation rows for its score; leave out --floor, or set "
            "data.val_fraction above 0"
        )
    trains_backbone = not recipe.lora.rank and not recipe.head_only
    if resumed_run is not None and trains_backbone and resumed_run.start.get("floor") is None:
        raise UserError(
            f"--floor: the run in {session.output} was started without it, and its backbone was trained "
            "since; leave out --floor"
        )


def find_floor(
    session: Session, build: Build, compute: Compute, features: Features, batch_size: int
) -> dict[str, Any] | None:
    """Return the floor entry of run.json, and print it; None without --floor.

    A resumed run keeps its earlier floor.

    Raises:
        UserError: the features of this backbone cannot be used for a probe.
    """
    from pipeline.files import human_time
    from pipeline.training.probe import Floor

    resumed_run, task = session.resumed_run, build.task
    if resumed_run is not None and (kept := resumed_run.start.get("floor")):
        return kept
    if not session.args.floor:
        return None
    started = time.perf_counter()
    probe = _probe(build, compute, features, batch_size, "--floor")
    scores = task.scores(probe.logits(features.val.numpy()))
    floor = Floor(
        float(scores[task.best_metric.removeprefix("val_")]), round(time.perf_counter() - started, 1)
    )
    print(f"  floor: {task.best_metric} {floor.value:.4f}, a {floor.words} ({human_time(floor.seconds)})")
    return floor.record()


def start_from_probe(build: Build, compute: Compute, features: Features, batch_size: int) -> None:
    """Set the head to the linear probe (`head.init: probe`): LP-FT, Kumar et al. 2022, arXiv:2202.10054.

    The weights are bit-identical in all processes.

    Raises:
        UserError: the features of this backbone cannot be used for a probe.
    """
    import torch

    started = time.perf_counter()
    probe = _probe(build, compute, features, batch_size, "head.init: probe")
    head = build.task.head
    with torch.no_grad():
        for weight, values in ((head.weight, probe.weight), (head.bias, probe.bias)):
            weight.copy_(compute.processes.gather(torch.from_numpy(values))[0])
    print(
        "  the head starts as a linear probe on frozen features, fitted in "
        f"{time.perf_counter() - started:.1f} s"
    )


def _probe(build: Build, compute: Compute, features: Features, batch_size: int, asked: str) -> Probe:
    """Return the probe of the training rows. Only the first process fits it; the others return zeros."""
    import numpy as np

    from pipeline.training.probe import Probe, fit_probe

    task = build.task
    if reason := _no_room(features, compute) or features.probe_problem():
        raise UserError(
            f"{asked}: a linear probe cannot use the features of this backbone: {reason}; leave out {asked}"
        )
    while not _made_ready(features, batch_size, compute):
        batch_size //= 2
    if compute.processes.rank:
        return Probe(
            np.zeros((task.num_outputs, features.width), np.float32), np.zeros(task.num_outputs, np.float32)
        )
    return fit_probe(task.target, features.train.numpy(), [row.label for row in task.train_rows])


def _made_ready(features: Features, batch_size: int, compute: Compute) -> bool:
    """Compute the features, `batch_size` images at a time. Return False if memory for so many ran out.

    Raises:
        UserError: memory ran out with one image at a time.
    """
    import torch

    from pipeline.training.compute import free_unused
    from pipeline.training.failures import one_image_too_large

    try:
        return features.ready(batch_size)
    except torch.OutOfMemoryError as error:
        if batch_size == 1:
            raise UserError(one_image_too_large(str(compute.device), error)) from None
        print(f"  out of memory: computing the features of {batch_size // 2} images at a time")
    free_unused()
    return False
