"""Parameter groups and learning rates, counted in optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pipeline.recipe import Recipe

if TYPE_CHECKING:  # lr_at is plain arithmetic, used where torch is not loaded
    import torch
    from torch import nn


def plan_schedule(recipe: Recipe, num_train: int) -> dict[str, Any]:
    """The learning-rate plan of a run over `num_train` rows, as stored in run.json: everything `lr_at` needs.

    `warmup_steps = ceil(warmup_ratio * total_steps)`, as transformers' Trainer rounds it.
    """
    steps_per_epoch = math.ceil(num_train / recipe.effective_batch_size)
    total_steps = steps_per_epoch * recipe.epochs
    return {
        "name": recipe.schedule.name,
        "lr": recipe.optimizer.lr,
        "end_lr": recipe.schedule.end_lr,
        "warmup_steps": math.ceil(recipe.schedule.warmup_ratio * total_steps),
        "total_steps": total_steps,
        "steps_per_epoch": steps_per_epoch,
        "effective_batch_size": recipe.effective_batch_size,
    }


def lr_at(step: int, schedule: dict[str, Any]) -> float:
    """The learning rate of optimizer step `step` (the first is 0).

    `linear` and `cosine` rise from 0 over `warmup_steps` and fall to `end_lr`, as transformers' get_linear_schedule_with_warmup and
    get_cosine_schedule_with_warmup do (to 0 there). `stepped_cosine` has one value per epoch, from `lr` in the first to `end_lr` in the last,
    as torch's CosineAnnealingLR stepped once an epoch.
    """
    lr, end_lr, warmup, total = schedule["lr"], schedule["end_lr"], schedule["warmup_steps"], schedule["total_steps"]
    if step < warmup:
        return lr * step / warmup
    if schedule["name"] == "constant":
        return lr
    if schedule["name"] == "stepped_cosine":
        epochs = total // schedule["steps_per_epoch"]
        done = (step // schedule["steps_per_epoch"]) / max(epochs - 1, 1)
    else:
        done = (step - warmup) / max(total - warmup, 1)
    done = min(done, 1.0)
    left = 1 - done if schedule["name"] == "linear" else (1 + math.cos(math.pi * done)) / 2
    return end_lr + (lr - end_lr) * left


def build_optimizer(named_parameters: Iterable[tuple[str, nn.Parameter]], recipe: Recipe, head: str) -> torch.optim.Optimizer:
    """The recipe's optimizer over what is trainable; each group's `lr_scale` is its rate as a multiple of the schedule's.

    Weight decay is for matrices only: biases, norms and layer scales are vectors. `head` is the head's dotted name; it may have its own rate.
    """
    import torch

    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, weight in named_parameters:
        if weight.requires_grad:
            groups.setdefault((f".{head}." in f".{name}", weight.ndim > 1), []).append(weight)
    head_scale = (recipe.optimizer.head_lr or recipe.optimizer.lr) / recipe.optimizer.lr
    options = [
        {"params": weights, "weight_decay": recipe.optimizer.weight_decay if is_matrix else 0.0, "lr_scale": head_scale if is_head else 1.0}
        for (is_head, is_matrix), weights in groups.items()
    ]
    lr = recipe.optimizer.lr
    if recipe.optimizer.name == "sgd":
        return torch.optim.SGD(options, lr=lr, momentum=0.9)
    kind = torch.optim.AdamW if recipe.optimizer.name == "adamw" else torch.optim.Adam
    return kind(options, lr=lr, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group the schedule's rate times its own `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
