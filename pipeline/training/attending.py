"""Choose how training computes attention: torch's fused kernel, or two batched matrix products.

Tried on this machine. On a CPU in half precision the backward pass of the fused kernel can take a fifth of a
step for a twentieth of its arithmetic. This depends on tokens, heads and batch size, so it is measured with
the blocks of the run's model and a micro-batch of the run. On a GPU, and in float32, the fused kernel is
always used.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import nn

from pipeline.errors import UserError
from pipeline.models.half_weights import blocks_of
from pipeline.training.compilation import TOLERANCE
from pipeline.training.compute import Compute
from pipeline.training.image_sizes import LARGEST
from pipeline.training.predict import Task

Attention = Literal["fused", "products"]
# Shortest training worth a trial: it costs about two micro-batches, which a gain of 1.2 x earns back in 12
MIN_SECONDS, MIN_MICRO_BATCHES = 10, 12
TURNS = 3
MIN_GAIN = 1.03  # a smaller gain may be noise


class AttendingTask(Task, Protocol):
    """A task whose model can compute attention by matrix products."""

    def attend_by_products(self, on: bool) -> int: ...  # returns 0 if the model cannot


@dataclass(frozen=True)
class Trial:
    """Forward and backward pass of one block. `update` is what it adds to its input, `gradient` what its
    backward pass adds to the gradient, `stored` the bytes that it keeps for the backward pass.
    """

    seconds: float
    update: torch.Tensor
    gradient: torch.Tensor
    stored: int


@dataclass
class Call:
    """A block of the model with its input; `count` blocks have an input of this shape."""

    block: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    count: int = 0


def choose_attention(
    task: AttendingTask,
    compute: Compute,
    choice: Literal["auto", "fused", "products"],
    micro_batch_size: int,
    micro_batches: int,
    train_seconds: float,
    before: Attention | None,
    check_memory: Callable[[int | None], None],
) -> tuple[Attention, str | None]:
    """Choose how `task` computes attention in training and set it.

    Return the choice and a message (or None). `choice` is the recipe's. `micro_batches` and `train_seconds`:
    expected length of the run. `before`: the choice of the resumed run, which is kept under "auto", because
    another form rounds differently. `check_memory` raises UserError if a step no longer fits, because
    products store the probabilities for the backward pass: it takes the bytes that they store more than the
    fused kernel, None if they were not tried.

    Raises:
        UserError: `choice` is products, and the model does not support them or they do not fit.
    """
    wanted = before if choice == "auto" and before is not None else choice
    is_tried = wanted == "auto" and micro_batches >= MIN_MICRO_BATCHES and train_seconds >= MIN_SECONDS
    can = compute.device.type == "cpu" and compute.half is not None
    if wanted == "products" and not can:
        raise UserError(
            f"attention: products is for half precision on a CPU, but this is {compute.describe()}: --set "
            "attention=auto"
        )
    if wanted == "fused" or not can or not (is_tried or wanted == "products"):
        return "fused", None
    if not task.attend_by_products(True):
        if wanted == "products":
            raise UserError("attention: products is not supported by this backbone: --set attention=auto")
        return "fused", None
    message = more = None
    if is_tried:
        gain, more, problem = _try(task, compute, micro_batch_size)
        by_products = problem is None and gain >= MIN_GAIN
        task.attend_by_products(by_products)
        if not by_products:
            return "fused", problem and f"attention by matrix products is not used: {problem}"
        message = (
            f"attention by matrix products: the model's blocks train {gain:.2f} x as fast as with torch's "
            "fused kernel"
        )
    try:
        check_memory(more)
    except UserError:
        if wanted == "products":
            raise
        task.attend_by_products(False)
        return "fused", None
    return "products", message


def _try(task: AttendingTask, compute: Compute, micro_batch_size: int) -> tuple[float, int, str | None]:
    """Return how much faster the blocks are with products, how many bytes more they store, and why their
    result differs (None: equal up to rounding).
    """
    rows = min(micro_batch_size, task.num_train)
    batch = compute.move(next(iter(task.train_batches(LARGEST, 0, rows, rows))))
    seconds, stored = {False: 0.0, True: 0.0}, {False: 0, True: 0}
    try:
        with torch.random.fork_rng(devices=[]):
            for call in _calls(task, compute, batch):
                trials: dict[bool, list[Trial]] = {False: [], True: []}
                for _ in range(TURNS):
                    for by_products, done in trials.items():
                        task.attend_by_products(by_products)
                        done.append(_run(call, compute))
                if problem := _difference(trials[False][0], trials[True][0], TOLERANCE[compute.precision]):
                    return 1.0, 0, problem
                for by_products, done in trials.items():
                    seconds[by_products] += call.count * statistics.median(trial.seconds for trial in done)
                    stored[by_products] += call.count * done[0].stored
    finally:
        task.model.zero_grad(set_to_none=True)
    gain = seconds[False] / seconds[True] if seconds[True] else 1.0
    return gain, stored[True] - stored[False], None


def _calls(task: AttendingTask, compute: Compute, batch: dict[str, torch.Tensor]) -> list[Call]:
    """Return one call for each shape of input that a block of the model gets from `batch`."""
    calls: dict[tuple[Any, ...], Call] = {}

    def remember(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not args:  # its input is not known
            return
        shapes = tuple(value.shape for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))
        calls.setdefault(shapes, Call(block, args, kwargs)).count += 1

    hooks = [block.register_forward_pre_hook(remember, with_kwargs=True) for block in blocks_of(task.model)]
    task.model.train()
    try:
        with torch.no_grad(), compute.autocast():
            task.loss(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return list(calls.values())


def _run(call: Call, compute: Compute) -> Trial:
    """Run a block forward and backward, with the same dropout masks in every run."""
    kept: dict[int, int] = {}  # address and bytes of each storage
    cached: set[int] = set()  # they stay in memory, whether a backward pass needs them or not

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def leave_out(_module: nn.Module, _args: object, bias: torch.Tensor) -> None:
        cached.add(bias.untyped_storage().data_ptr())

    modules = [module for module in call.block.modules() if getattr(module, "is_cached", False)]
    hooks = [module.register_forward_hook(leave_out) for module in modules]
    torch.manual_seed(0)
    hidden = call.args[0].detach().requires_grad_()
    started = time.perf_counter()
    with compute.autocast(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = call.block(hidden, *call.args[1:], **call.kwargs)
    output = output[0] if isinstance(output, tuple) else output
    output.backward(output.detach())
    seconds = time.perf_counter() - started
    for hook in hooks:
        hook.remove()
    stored = sum(size for address, size in kept.items() if address not in cached)
    return Trial(seconds, (output - hidden).detach(), hidden.grad - output.detach(), stored)


def _difference(fused: Trial, products: Trial, tolerance: float) -> str | None:
    """Return how the results of a block differ; None if they are equal up to rounding."""
    for name in ("update", "gradient"):
        expected, found = getattr(fused, name).float(), getattr(products, name).float()
        relative = ((found - expected).norm() / expected.norm().clamp(min=1e-6)).item()
        if not relative <= tolerance:  # also NaN
            return f"the {name} of a block differs by {relative:.2g} of its norm"
    return None
