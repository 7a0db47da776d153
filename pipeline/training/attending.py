"""Choose how training computes attention: torch's fused kernel, or two batched matrix products.

Tried on this machine. On a CPU in half precision the backward pass of the fused kernel can take a fifth of a
step for a twentieth of its arithmetic. This depends on tokens, heads and batch size, so it is measured with a
micro-batch of the run. On a GPU, and in float32, the fused kernel is always used.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Literal, Protocol

from pipeline.errors import UserError
from pipeline.training.compilation import TOLERANCE, difference, run_step
from pipeline.training.compute import Compute
from pipeline.training.image_sizes import LARGEST
from pipeline.training.predict import Task

Attention = Literal["fused", "products"]
# Shortest training worth a trial: it costs twelve micro-batches, which a gain of 1.2 x earns back in 72
MIN_SECONDS, MIN_MICRO_BATCHES = 20, 80
TURNS = 3
MIN_GAIN = 1.03  # a smaller gain may be noise


class AttendingTask(Task, Protocol):
    """A task whose model can compute attention by matrix products."""

    def attend_by_products(self, on: bool) -> int: ...  # returns 0 if the model cannot


def choose_attention(
    task: AttendingTask,
    compute: Compute,
    choice: Literal["auto", "fused", "products"],
    micro_batch_size: int,
    micro_batches: int,
    train_seconds: float,
    before: Attention | None,
    check_memory: Callable[[], None],
) -> tuple[Attention, str | None]:
    """Choose how `task` computes attention in training and set it.

    Return the choice and a message (or None). `choice` is the recipe's. `micro_batches` and `train_seconds`:
    expected length of the run. `before`: the choice of the resumed run, which is kept under "auto", because
    another form rounds differently. `check_memory` raises UserError if a step no longer fits, because
    products store the probabilities for the backward pass.

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
    try:
        check_memory()
    except UserError:
        if wanted == "products":
            raise
        task.attend_by_products(False)
        return "fused", None
    if wanted == "products":
        return "products", None
    gain, problem = _try(task, compute, micro_batch_size)
    by_products = problem is None and gain >= MIN_GAIN
    task.attend_by_products(by_products)
    if by_products:
        return (
            "products",
            f"attention by matrix products: training steps are {gain:.2f} x as fast as with torch's fused "
            "kernel",
        )
    return "fused", problem and f"attention by matrix products is not used: {problem}"


def _try(task: AttendingTask, compute: Compute, micro_batch_size: int) -> tuple[float, str | None]:
    """Return how much faster a step with products is, and why its result differs (None: equal up to
    rounding).
    """
    rows = min(micro_batch_size, task.num_train)
    batch = compute.move(next(iter(task.train_batches(LARGEST, 0, rows, rows))))
    steps: dict[bool, list] = {False: [], True: []}
    for _ in range(TURNS):
        for by_products, done in steps.items():
            task.attend_by_products(by_products)
            done.append(run_step(task, compute, batch))
    fused, products = (statistics.median(step.seconds for step in steps[kind]) for kind in (False, True))
    return fused / products, difference(steps[False][0], steps[True][0], TOLERANCE[compute.precision])
