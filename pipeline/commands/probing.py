"""What frozen features are used for in a run: the head alone trained on them, the floor beside its score, the head it starts from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.commands.session import Session
from pipeline.wording import counted

if TYPE_CHECKING:
    from pipeline.tasks.build import Build
    from pipeline.training.compute import Compute
    from pipeline.training.features import Features

MOST_BYTES = 4_000_000_000  # of features kept in memory, and never more than half of what is free


def features_once(session: Session, build: Build, compute: Compute) -> tuple[Features | None, str]:
    """The features on which the head alone is trained, still to be computed (None: the whole model is run), and a line that says so, or
    why not; empty where more than the head is trained. A run that goes on keeps what it did before.
    """
    from pipeline.training.features import Features

    recipe, former = session.recipe, session.former
    if not recipe.head_only or recipe.task != "classification":
        return None, ""
    before = None if former is None else bool(former.start.get("features"))
    if before is False and not former.changes:
        return None, ""
    reason = _forbidden(session)
    features = None
    if reason is None:
        features = Features(build.task, compute)
        reason = _no_room(features, compute) or features.problem()
    if compute.processes.least(int(reason is None)) == 0:
        return None, f"each step runs the whole model, not the head on features computed once: {reason or 'another process cannot'}"
    rows = counted(build.task.num_train + build.task.num_val, "image")
    return features, f"the features of {rows} are computed once ({features.width} numbers each), and the head is trained on them"


def _forbidden(session: Session) -> str | None:
    """What in the recipe makes the features of an image others in another epoch or step, or asks for the whole model."""
    recipe = session.recipe
    if recipe.lora.also_train:
        return f"lora.also_train: {', '.join(recipe.lora.also_train)} changes them in every step"
    if names := recipe.augmentation.in_use:
        return f"augmentation changes the images in every epoch ({', '.join(names)})"
    if recipe.compile is True:
        return "compile: true asks for compiled steps"
    return None


def _no_room(features: Features, compute: Compute) -> str | None:
    import torch

    from pipeline.files import human_size
    from pipeline.training.estimate import device_memory

    free = device_memory(torch.device("cpu"))
    room = min(MOST_BYTES, free // 2) if free else MOST_BYTES
    return (
        f"they take {human_size(features.num_bytes)}, and {human_size(room)} is what they may take" if features.num_bytes > room else None
    )
