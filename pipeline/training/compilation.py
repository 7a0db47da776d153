"""Whether the training step runs through torch.compile: tried on the machine at hand, kept where it computes the same and is faster.

Only whole micro-batches do, which all have one shape: one graph is compiled. Smaller ones, validation and prediction run as ever.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from pipeline.errors import UserError
from pipeline.files import human_time
from pipeline.training.compute import Batch, Compute
from pipeline.training.predict import Task

TRIED_ON = ("cuda",)  # by auto; on a CPU the gain is a few percent
MIN_SECONDS = 600  # of training: compiling a large model takes a minute or two, and saves perhaps a fifth
MIN_GAIN = 1.03  # less is noise
TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2, "fp16": 2e-2}  # of the loss and of the gradients' norm, relative: rounding in another order


class CompilableTask(Task, Protocol):
    """A task whose training step can be compiled."""

    def compile(self, rows: int | None) -> None: ...  # micro-batches of `rows` through torch.compile; None: no longer


@dataclass(frozen=True)
class Step:
    """What one micro-batch gave, and the seconds it took; `seconds` is of the second pass, `first_seconds` of the one before it."""

    loss: float
    grad_norm: float
    first_seconds: float
    seconds: float


def try_compile(
    task: CompilableTask,
    compute: Compute,
    choice: bool | Literal["auto"],
    micro_batch_size: int,
    train_seconds: float,
    before: bool | None = None,
) -> tuple[bool, str | None]:
    """Decide whether to compile and apply it. Returns (compiled, message); the message is None where there is nothing to say.

    `choice` is the recipe's: auto tries on a GPU where training is expected to take `train_seconds` of ten minutes or more. `before` is what
    the run that goes on was doing, which decides over auto, because another graph rounds differently.

    Raises:
        UserError: `choice` is true, and torch.compile fails or gives other results here.
    """
    wanted = before if choice == "auto" and before is not None else choice
    if wanted == "auto":
        wanted = compute.device.type in TRIED_ON and train_seconds >= MIN_SECONDS
    if not wanted:
        return False, None
    if task.num_train < micro_batch_size:
        return False, f"torch.compile is not used: {task.num_train} rows are no whole micro-batch of {micro_batch_size}"
    batch = compute.move(next(iter(task.train_batches(0, 0, micro_batch_size, micro_batch_size))))
    print("  trying torch.compile, which takes a minute or two")
    try:
        plain = run_step(task, compute, batch)
        task.compile(micro_batch_size)
        compiled = run_step(task, compute, batch)
        problem = difference(plain, compiled, TOLERANCE[compute.precision])
    except Exception as error:  # a missing compiler, an unsupported operation, no memory: it is not needed for anything
        problem = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
    if problem is None:
        gain = plain.seconds / compiled.seconds
        cost = f"{gain:.2f} x as fast once compiled, which took {human_time(compiled.first_seconds)}"
        if choice is True or before or gain >= MIN_GAIN:
            return True, f"torch.compile: training steps are {cost}"
        problem = f"training steps would be {cost}"
    task.compile(None)
    task.model.zero_grad(set_to_none=True)
    if compute.device.type == "cuda":
        torch.cuda.empty_cache()
    if choice is True:
        raise UserError(f"compile: true cannot be had here ({problem}); leave it out, or --set compile=auto")
    return False, f"torch.compile is not used: {problem}"


def run_step(task: Task, compute: Compute, batch: Batch) -> Step:
    """Forward and backward of `batch`, twice with the same draws of dropout. The generators and gradients stay as they were: none."""
    seconds = []
    for _ in range(2):
        task.model.train()
        with torch.random.fork_rng(devices=[compute.device] if compute.device.type == "cuda" else []):
            torch.manual_seed(0)
            started = time.perf_counter()
            with compute.autocast():
                loss, _ = task.loss(batch)
            loss.backward()
            value = loss.item()  # which waits for the device
            grads = [weight.grad.float().norm() for weight in task.model.parameters() if weight.grad is not None]
            norm = math.hypot(*(grad.item() for grad in grads))
            seconds.append(time.perf_counter() - started)
        task.model.zero_grad(set_to_none=True)
    return Step(value, norm, *seconds)


def difference(plain: Step, compiled: Step, tolerance: float) -> str | None:
    """Why two steps are not the same computation; None when they are, up to rounding."""
    for name in ("loss", "grad_norm"):
        expected, found = getattr(plain, name), getattr(compiled, name)
        if not abs(found - expected) <= tolerance * max(abs(expected), 1e-6):  # also NaN
            return f"its {name.replace('_', ' ')} is {found:.6g} and should be {expected:.6g}"
    return None
