"""Decide whether training steps use torch.compile: tried on this machine, used if results are equal and
steps are faster.

Only full micro-batches use it (see `pipeline.models.compiled_blocks`). Smaller micro-batches, validation and
prediction run without it.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from pipeline.errors import UserError, first_line
from pipeline.files import human_time
from pipeline.training.compute import Batch, Compute
from pipeline.training.predict import Task

# Shortest training worth a trial, by device and number format. On an H100 the trial takes ten seconds and
# saves a quarter (BEiT-large-384); with fewer cores compiling takes longer. On a CPU in fp32 it saves 2 to
# 12 %. In bf16 on a CPU compiled steps are slower than the layers of `pipeline.models.half_weights`, so that
# is not tried.
MIN_SECONDS = {("cuda", "fp32"): 300, ("cuda", "bf16"): 300, ("cuda", "fp16"): 300, ("cpu", "fp32"): 3600}
MIN_GAIN = 1.03  # a smaller gain may be noise
# relative, of loss and gradient norm: another order of rounding
TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2, "fp16": 2e-2}


class CompilableTask(Task, Protocol):
    """A task whose training step can be compiled."""

    # Use torch.compile for micro-batches of `rows`; None: turn it off
    def compile(self, rows: int | None) -> None: ...


@dataclass(frozen=True)
class Step:
    """Result of one micro-batch. `first_seconds`: time of the first pass, `seconds` of the second."""

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
    """Decide whether to compile and apply it. Return (compiled, message); the message may be None.

    `choice` is the recipe's: auto tries it if training is expected to take long enough (`train_seconds`, see
    `MIN_SECONDS`). `before`: the choice of the resumed run, which is kept under auto, because another
    graph rounds differently.

    Raises:
        UserError: `choice` is true, and torch.compile fails or gives other results here.
    """
    wanted = before if choice == "auto" and before is not None else choice
    if wanted == "auto":
        wanted = train_seconds >= MIN_SECONDS.get((compute.device.type, compute.precision), math.inf)
    if not wanted:
        return False, None
    if task.num_train < micro_batch_size:
        return (
            False,
            f"torch.compile is not used: {task.num_train} rows do not fill a micro-batch of "
            f"{micro_batch_size}",
        )
    batch = compute.move(next(iter(task.train_batches(0, 0, micro_batch_size, micro_batch_size))))
    print("  trying torch.compile, which can take a minute")
    advice = "leave it out, or --set compile=auto"
    try:
        plain = run_step(task, compute, batch)
        task.compile(micro_batch_size)
        compiled = run_step(task, compute, batch)
        problem = difference(plain, compiled, TOLERANCE[compute.precision])
    # A missing compiler, an unsupported operation, no memory: training works without it
    except Exception as error:
        if isinstance(error, torch.OutOfMemoryError):
            advice = f"--batch-size below {micro_batch_size}, with more --accumulation-steps"
        problem = f"{type(error).__name__}: {first_line(error)}"
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
        raise UserError(f"compile: true does not work here ({problem}); {advice}")
    return False, f"torch.compile is not used: {problem}"


def run_step(task: Task, compute: Compute, batch: Batch) -> Step:
    """Run forward and backward pass of `batch` twice with the same dropout masks.

    Random generators are restored; gradients are removed.
    """
    seconds = []
    for _ in range(2):
        task.model.train()
        with torch.random.fork_rng(devices=[compute.device] if compute.device.type == "cuda" else []):
            torch.manual_seed(0)
            started = time.perf_counter()
            with compute.autocast():
                loss, _ = task.loss(batch)
            loss.backward()
            value = loss.item()  # waits for the device
            seconds.append(time.perf_counter() - started)
            grads = [
                weight.grad.float().norm() for weight in task.model.parameters() if weight.grad is not None
            ]
            norm = torch.stack(grads).norm().item()
        task.model.zero_grad(set_to_none=True)
    return Step(value, norm, *seconds)


def difference(plain: Step, compiled: Step, tolerance: float) -> str | None:
    """Return how two steps differ; None if they are equal up to rounding."""
    for name in ("loss", "grad_norm"):
        expected, found = getattr(plain, name), getattr(compiled, name)
        if not abs(found - expected) <= tolerance * max(abs(expected), 1e-6):  # also NaN
            return f"its {name.replace('_', ' ')} is {found:.6g} and should be {expected:.6g}"
    return None
