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
from torch.utils._pytree import tree_map_only

from pipeline.errors import UserError
from pipeline.models.half_weights import blocks_of
from pipeline.training.compilation import TOLERANCE
from pipeline.training.compute import Compute
from pipeline.training.image_sizes import LARGEST
from pipeline.training.predict import Task

Attention = Literal["fused", "products"]
# Shortest training that uses what was tried: a shorter one gains nothing that a user sees, and repeats itself
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

    forward_seconds: float
    seconds: float  # of both passes
    update: torch.Tensor
    gradient: torch.Tensor
    stored: int


@dataclass(frozen=True)
class BlockTimes:
    """Seconds of all blocks of a model with one micro-batch of `rows` images, which arrived at `arrived`
    (`time.perf_counter`).

    `fused` and `products`: forward and backward pass in training, with each way of attention. `forward`: with
    the fused kernel. `more`: bytes that products store in addition. `problem`: why their result is not used;
    None if it equals that of the fused kernel up to rounding.
    """

    rows: int
    arrived: float
    forward: float
    fused: float
    products: float
    more: int
    problem: str | None

    @property
    def gain(self) -> float:
        """How many times as fast the blocks train with products."""
        return self.fused / self.products


@dataclass
class Call:
    """A block of the model with its input; `count` blocks have an input of this shape. `trains`: it has a
    backward pass; blocks below the lowest trained weight have none.
    """

    block: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    trains: bool
    count: int = 0


def choose_attention(
    task: AttendingTask,
    compute: Compute,
    choice: Literal["auto", "fused", "products"],
    timed: BlockTimes | None,
    micro_batches: int,
    train_seconds: float,
    before: Attention | None,
    check_memory: Callable[[int | None], None],
) -> tuple[Attention, str | None]:
    """Choose how `task` computes attention in training and set it.

    Return the choice and a message (or None). `choice` is the recipe's. `timed`: see `time_blocks`.
    `micro_batches` and `train_seconds`: expected length of the run. `before`: the choice of the resumed run,
    which is kept under "auto", because another form rounds differently. `check_memory` raises UserError if a
    step no longer fits, because products store the probabilities for the backward pass: it takes the bytes
    that they store more than the fused kernel, None if they were not measured.

    Raises:
        UserError: `choice` is products, and the model does not support them or they do not fit.
    """
    wanted = before if choice == "auto" and before is not None else choice
    message = None
    if wanted == "auto":
        is_long = micro_batches >= MIN_MICRO_BATCHES and train_seconds >= MIN_SECONDS
        if timed is None or not is_long:
            return "fused", None
        if timed.problem is not None:
            return "fused", f"attention by matrix products is not used: {timed.problem}"
        if timed.gain < MIN_GAIN:
            return "fused", None
        message = (
            f"attention by matrix products: the model's blocks train {timed.gain:.2f} x as fast as with "
            "torch's fused kernel"
        )
    if wanted == "fused":
        return "fused", None
    if not _has_two_ways(compute):
        raise UserError(
            f"attention: products is for half precision on a CPU, but this is {compute.describe()}: --set "
            "attention=auto"
        )
    if not task.attend_by_products(True):
        raise UserError("attention: products is not supported by this backbone: --set attention=auto")
    try:
        check_memory(None if timed is None else timed.more)
    except UserError:
        if wanted == "products":
            raise
        task.attend_by_products(False)
        return "fused", None
    return "products", message


def time_blocks(task: AttendingTask, compute: Compute, micro_batch_size: int) -> BlockTimes | None:
    """Time the blocks of the model with one micro-batch of the run, in training, with both ways of attention.

    None if there is only one way here. The blocks are nearly all of the work of a step, so their time is also
    an estimate of a step's. Model and random generators are unchanged.
    """
    if not _has_two_ways(compute) or not task.attend_by_products(True):
        return None
    rows = min(micro_batch_size, task.num_train)
    batch = compute.move(next(iter(task.train_batches(LARGEST, 0, rows, rows))))
    arrived = time.perf_counter()
    forward, seconds, stored = 0.0, {False: 0.0, True: 0.0}, {False: 0, True: 0}
    problem = None
    try:
        with torch.random.fork_rng(devices=[]):
            for call in _calls(task, compute, batch):
                trials: dict[bool, list[Trial]] = {False: [], True: []}
                for _ in range(TURNS):
                    for by_products, done in trials.items():
                        task.attend_by_products(by_products)
                        done.append(_run(call, compute))
                fused, products = trials[False][0], trials[True][0]
                problem = problem or _difference(fused, products, TOLERANCE[compute.precision])
                forward += call.count * statistics.median(trial.forward_seconds for trial in trials[False])
                for by_products, done in trials.items():
                    seconds[by_products] += call.count * statistics.median(trial.seconds for trial in done)
                    stored[by_products] += call.count * done[0].stored
    finally:
        task.attend_by_products(False)
        task.model.zero_grad(set_to_none=True)
    if not forward:  # no block whose input is known
        return None
    more = stored[True] - stored[False]
    return BlockTimes(rows, arrived, forward, seconds[False], seconds[True], more, problem)


def _has_two_ways(compute: Compute) -> bool:
    return compute.device.type == "cpu" and compute.half is not None


def _calls(task: AttendingTask, compute: Compute, batch: dict[str, torch.Tensor]) -> list[Call]:
    """Return the calls of blocks that `batch` makes: one for each shape of input, with and without a backward
    pass.
    """
    calls: dict[tuple[Any, ...], Call] = {}

    def remember(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not args:  # its input is not known
            return
        shapes = tuple(value.shape for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))
        trains = args[0].requires_grad or any(weight.requires_grad for weight in block.parameters())
        args, kwargs = tree_map_only(torch.Tensor, torch.Tensor.detach, (args, kwargs))
        calls.setdefault((shapes, trains), Call(block, args, kwargs, trains)).count += 1

    hooks = [block.register_forward_pre_hook(remember, with_kwargs=True) for block in blocks_of(task.model)]
    task.model.train()
    try:
        with compute.autocast():
            task.loss(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return list(calls.values())


def _run(call: Call, compute: Compute) -> Trial:
    """Run a block forward, and backward if it trains, with the same dropout masks in every run."""
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
    hidden = call.args[0].detach().requires_grad_(call.trains)
    saving = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    started = time.perf_counter()
    with compute.autocast(), torch.set_grad_enabled(call.trains), saving:
        output = call.block(hidden, *call.args[1:], **call.kwargs)
    output = output[0] if isinstance(output, tuple) else output
    forward_seconds = time.perf_counter() - started
    if call.trains:
        output.backward(output.detach())
    seconds = time.perf_counter() - started
    for hook in hooks:
        hook.remove()
    stored = sum(size for address, size in kept.items() if address not in cached)
    update = (output - hidden).detach()
    gradient = hidden.grad - output.detach() if call.trains else torch.zeros_like(update)
    return Trial(forward_seconds, seconds, update, gradient, stored)


def _difference(fused: Trial, products: Trial, tolerance: float) -> str | None:
    """Return how the results of a block differ; None if they are equal up to rounding."""
    for name in ("update", "gradient"):
        expected, found = getattr(fused, name).float(), getattr(products, name).float()
        relative = ((found - expected).norm() / expected.norm().clamp(min=1e-6)).item()
        if not relative <= tolerance:  # also NaN
            return f"the {name} of a block differs by {relative:.2g} of its norm"
    return None
