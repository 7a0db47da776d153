"""Parameter groups and learning rates, counted in optimizer steps."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError
from pipeline.recipe import Recipe

if TYPE_CHECKING:  # lr_at is also used where torch is not loaded
    import torch
    from torch import nn

BLOCK = re.compile(r"(?:(?<=\.)|^)(?:blocks?|layers?|stages?|network|resblocks)\d*(?:\.\d+)+(?=\.)")
INSIDE = re.compile(r"\.layers\.\d+\.layer\.\d+$")  # a convolution inside a block: ResNet, RegNet


def plan_schedule(recipe: Recipe, num_train: int) -> dict[str, Any]:
    """Return the learning-rate schedule of a run over `num_train` rows, as stored in run.json, for
    `lr_at`.

    `warmup_steps = ceil(warmup_ratio * total_steps)`, as in transformers' Trainer; but a run of one step has
    no warm-up, because its learning rate would be 0.
    """
    steps_per_epoch = math.ceil(num_train / recipe.effective_batch_size)
    total_steps = steps_per_epoch * max(recipe.epochs, math.ceil(recipe.schedule.min_steps / steps_per_epoch))
    return {
        "name": recipe.schedule.name,
        "lr": recipe.optimizer.lr,
        "end_lr": recipe.schedule.end_lr,
        "warmup_steps": math.ceil(recipe.schedule.warmup_ratio * total_steps) if total_steps > 1 else 0,
        "total_steps": total_steps,
        "steps_per_epoch": steps_per_epoch,
        "effective_batch_size": recipe.effective_batch_size,
    }


def epochs_of(schedule: dict[str, Any]) -> int:
    """Return the number of epochs of a schedule: the recipe's, or more because of `schedule.min_steps`."""
    return schedule["total_steps"] // schedule["steps_per_epoch"]


def lr_at(step: int, schedule: dict[str, Any]) -> float:
    """Return the learning rate of optimizer step `step` (the first is 0).

    `linear` and `cosine` rise from 0 over `warmup_steps` and fall to `end_lr`, as transformers'
    get_linear_schedule_with_warmup and get_cosine_schedule_with_warmup do (to 0 there). `stepped_cosine` has
    one value per epoch, from `lr` in the first to `end_lr` in the last, as torch's CosineAnnealingLR when
    stepped once per epoch.
    """
    lr = schedule["lr"]
    end_lr = schedule["end_lr"]
    warmup = schedule["warmup_steps"]
    total = schedule["total_steps"]
    if step < warmup:
        return lr * step / warmup
    if schedule["name"] == "constant":
        return lr
    if schedule["name"] == "stepped_cosine":
        epochs = epochs_of(schedule)
        done = (step // schedule["steps_per_epoch"]) / max(epochs - 1, 1)
    else:
        done = (step - warmup) / max(total - warmup, 1)
    done = min(done, 1.0)
    left = 1 - done if schedule["name"] == "linear" else (1 + math.cos(math.pi * done)) / 2
    return end_lr + (lr - end_lr) * left


def build_optimizer(
    named_parameters: Iterable[tuple[str, nn.Parameter]], recipe: Recipe, head: str
) -> torch.optim.Optimizer:
    """Return the recipe's optimizer for the trainable parameters.

    `lr_scale` of a group is its learning rate divided by the schedule's. Weight decay is only for matrices,
    see `is_vector`. `head`: the head's dotted name; it may have its own learning rate.
    """
    import torch

    named = [(name, weight) for name, weight in named_parameters if weight.requires_grad]
    scales = lr_scales([name for name, _ in named], recipe, head)
    groups: dict[tuple[bool, float, bool], list[nn.Parameter]] = {}
    for name, weight in named:
        # The head has its own group, as in states of earlier versions: saved moments are matched to weights
        # by order.
        groups.setdefault((f".{head}." in f".{name}", scales[name], not is_vector(weight)), []).append(weight)
    options = [
        {
            "params": weights,
            "weight_decay": recipe.optimizer.weight_decay if is_matrix else 0.0,
            "lr_scale": scale,
        }
        for (_, scale, is_matrix), weights in groups.items()
    ]
    lr = recipe.optimizer.lr
    if recipe.optimizer.name == "sgd":
        return torch.optim.SGD(options, lr=lr, momentum=0.9)
    kind = torch.optim.AdamW if recipe.optimizer.name == "adamw" else torch.optim.Adam
    return kind(options, lr=lr, fused=True)


def is_vector(weight: torch.Tensor) -> bool:
    """Return True for biases, norms, layer scales and class tokens.

    Some are stored with more sides of 1: ConvNeXt-V2's norm (1, 1, 1, D), SwinV2's scale of each head (heads,
    1, 1). With two sides it is a matrix: a head of one output, or an adapter of rank 1.
    """
    return weight.ndim < 2 or (weight.ndim > 2 and weight.numel() == max(weight.shape))


def lr_scales(names: Sequence[str], recipe: Recipe, head: str) -> dict[str, float]:
    """Return the learning rate of each parameter divided by the schedule's.

    `names`: in the order of the model; `head`: the head's dotted name. The head has `optimizer.head_lr`, B
    matrices `lora.b_lr_scale`. With `optimizer.layer_decay` d, a block with n blocks above it gets d ** (n +
    1), parameters before the blocks one factor more, parameters after them 1 (BEiT's fine-tuning, Bao et al.
    2021, appendix; unilm/beit/optim_factory.py).

    Raises:
        UserError: `optimizer.layer_decay` is set, and there are no blocks.
    """
    decay = recipe.optimizer.layer_decay
    head_scale = (recipe.optimizer.head_lr or recipe.optimizer.lr) / recipe.optimizer.lr
    in_head = {name for name in names if f".{head}." in f".{name}"}
    # Encoder (question answering has two) -> its blocks, in the order of the model
    blocks: dict[str, list[str]] = {}
    for name in names:
        order = blocks.setdefault(name.split(".", 1)[0], [])
        if name not in in_head and (block := block_of(name)) and block not in order:
            order.append(block)
    if decay != 1 and not any(blocks.values()):
        raise UserError("optimizer.layer_decay: this backbone has no numbered blocks; expected 1")
    scales, begun = {}, set()
    for name in names:
        tower, block = name.split(".", 1)[0], block_of(name)
        order = blocks[tower]
        if name in in_head:
            scales[name] = head_scale
            continue
        begun |= {tower} if block else set()
        above = (
            len(order) - order.index(block) if block else 0 if tower in begun or not order else len(order) + 1
        )
        scales[name] = decay**above * (recipe.lora.b_lr_scale if ".lora_B." in name else 1.0)
    return scales


def block_of(name: str) -> str | None:
    """Return the numbered block of a parameter: its name up to the last `layers.3`, `blocks.1.0`, `stages.2`.

    None outside of blocks. Other numbers are of parts inside a block (`cpb_mlp.0`, ResNet's `layer.2`) or
    before the blocks (`stem.1`).
    """
    ends = [name[: found.end()] for found in BLOCK.finditer(name)]
    return next((end for end in reversed(ends) if not INSIDE.search(end)), None)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group to `lr` times its `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
