"""Estimate memory, disk space and time of a run before it starts, and the largest micro-batch that fits."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import torch
from torch import nn

from pipeline.errors import UserError
from pipeline.files import human_size
from pipeline.ranks import local_world_size
from pipeline.recipe import Recipe
from pipeline.training.compute import Compute
from pipeline.training.image_sizes import LARGEST
from pipeline.training.means import Means
from pipeline.training.memory import OPTIMIZER_STATES, Memory
from pipeline.training.predict import Task

# Memory of the allocator, the libraries and one layer's scratch space, in addition to the counted memory.
OVERHEAD_BYTES = {"cuda": 700_000_000, "mps": 700_000_000, "cpu": 600_000_000}
LONG_SECONDS = 0.5  # of training with a micro-batch, of which the first pass is measured well enough


def device_memory(device: torch.device) -> int:
    """Return the bytes on `device` for the model and its step: GPU memory, or the machine's available RAM (0
    if unknown).

    On a GPU this is free memory and what torch has reserved there: the model itself, whose weights are a part
    of the counted memory, and memory that an earlier step left. Several processes of this machine share its
    RAM.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024 // local_world_size()
    except (OSError, KeyError, ValueError):
        return 0


def largest_micro_batch(memory: Memory, device: torch.device, effective_batch_size: int) -> int:
    """Return the largest divisor of `effective_batch_size` whose step fits into the device's memory.

    1 if none does; `effective_batch_size` where that memory is not known.
    """
    known = device_memory(device)
    room = known - OVERHEAD_BYTES[device.type] if known else math.inf
    divisors = [size for size in range(1, effective_batch_size + 1) if effective_batch_size % size == 0]
    fitting = [size for size in divisors if memory.total(size) <= room]
    return max(fitting, default=1)


def idle_share(effective_batch_size: int, micro_batch_size: int, processes: int) -> float:
    """Return the share of a step in which a process waits for others.

    It is 0 if the number of micro-batches is a multiple of `processes`.
    """
    parts = math.ceil(effective_batch_size / micro_batch_size)
    return 1 - parts / (math.ceil(parts / processes) * processes)


def check_fits(
    memory: Memory,
    micro_batch_size: int,
    device: torch.device,
    checkpointed: Callable[[], Memory] | None = None,
) -> None:
    """Check that a step fits into the device's memory.

    `checkpointed()` returns the memory with activation checkpointing.

    Raises:
        UserError: it does not fit; the message names settings that would, also with activation checkpointing.
    """
    room, needed = device_memory(device), memory.total(micro_batch_size) + OVERHEAD_BYTES[device.type]
    if room == 0 or needed <= room:
        return
    smaller = largest_micro_batch(memory, device, micro_batch_size)
    fits = memory.total(smaller) + OVERHEAD_BYTES[device.type] <= room
    if fits:
        advice = (
            f"--batch-size {smaller} fits (raise --accumulation-steps to keep the effective batch), or "
            "--batch-size auto"
        )
    else:
        advice = (
            "not even one image fits: use LoRA (--lora-rank 16), a smaller --image-size, or a smaller "
            "--backbone"
        )
    if checkpointed is not None:
        memory = checkpointed()
        largest = largest_micro_batch(memory, device, micro_batch_size)
        if memory.total(largest) + OVERHEAD_BYTES[device.type] <= room and (largest > smaller or not fits):
            advice += f". With --set activation_checkpointing=true batch {largest} fits"
    raise UserError(
        f"a step of batch {micro_batch_size} needs about {human_size(needed)} on {device.type}, but only "
        f"{human_size(room)} is free. {advice}"
    )


def check_disk(output: Path, model: nn.Module, recipe: Recipe, epochs: int) -> int:
    """Return the most bytes that a run of `epochs` writes: the model, its best copy, those of
    `checkpoint.keep_every`, and two resume states (three while one is written).

    Raises:
        UserError: the disk has less free space.
    """
    # Files are float32, even if memory is not
    everything = 4 * sum(weight.numel() for weight in model.parameters())
    trainable = 4 * sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    copy = trainable if recipe.lora.rank else everything
    kept = epochs // recipe.checkpoint.keep_every if recipe.checkpoint.keep_every else 0
    # Weights, gradients of an open group, and the rest: each as large as the trained weights
    state = trainable * (2 + OPTIMIZER_STATES[recipe.optimizer.name] + Means.of(recipe).copies)
    needed = everything + copy * (1 + kept) + 3 * state + 50_000_000
    folder = next(parent for parent in (output, *output.resolve().parents) if parent.exists())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{output}: the run will write up to {human_size(needed)}, but the disk has only "
            f"{human_size(free)}; free some, or use another --output"
        )
    return needed


def seconds_per_image(task: Task, compute: Compute, micro_batch_size: int) -> tuple[float, float, float]:
    """Return seconds per image of training and of prediction, and the time (`time.perf_counter`) of the
    first batch.

    They are measured with one micro-batch of the largest size. Model and random generators are unchanged. A
    micro-batch that does not fit is halved, as training will do.
    """
    batch = compute.move(
        next(iter(task.train_batches(LARGEST, 0, min(micro_batch_size, task.num_train), task.num_train)))
    )
    arrived = time.perf_counter()
    devices = [compute.device] if compute.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            task.model.train()
            train = _time(lambda: _train_once(task, compute, batch), compute, LONG_SECONDS)
            task.model.eval()
            with torch.no_grad():  # a third of the work of training
                predict = _time(lambda: _predict_once(task, compute, batch), compute, LONG_SECONDS / 3)
        return train / len(batch["row"]), predict / len(batch["row"]), arrived
    except torch.OutOfMemoryError:
        if micro_batch_size == 1:
            raise
    finally:
        task.model.zero_grad(set_to_none=True)
    return seconds_per_image(task, compute, micro_batch_size // 2)


def dry_run(task: Task, compute: Compute, micro_batch_size: int) -> list[str]:
    """Run two batches of training (without an optimizer step) and two of validation.

    Return the results as lines.
    """
    lines = []
    task.model.train()
    for batch in islice(task.train_batches(0, 0, micro_batch_size, micro_batch_size), 2):
        with compute.autocast():
            loss, _ = task.loss(compute.move(batch))
        loss.backward()
        lines.append(f"dry run: training batch of {len(batch['row'])}, loss {loss.item():.4f}")
    task.model.eval()
    for batch in islice(task.val_batches(micro_batch_size), 2):
        with torch.no_grad(), compute.autocast():
            logits = task.logits(compute.move(batch)).float().cpu()
        finite = "finite" if torch.isfinite(logits).all() else "NOT finite"
        score = task.score(logits, batch).item() / len(batch["row"])
        lines.append(
            f"dry run: validation batch of {len(batch['row'])}, {task.train_score} {score:.3f}, logits "
            f"{tuple(logits.shape)} {finite}"
        )
    return [*lines, "dry run: nothing was written"]


def _train_once(task: Task, compute: Compute, batch: dict[str, torch.Tensor]) -> None:
    with compute.autocast():
        loss, _ = task.loss(batch)
    loss.backward()


def _predict_once(task: Task, compute: Compute, batch: dict[str, torch.Tensor]) -> None:
    with compute.autocast():
        task.logits(batch)


def _time(run: Callable[[], None], compute: Compute, long: float) -> float:
    """Return the seconds of the second call, because the first includes the warm-up; on a CPU of the first if
    that took more than `long` seconds, because the warm-up is then a small part.
    """
    for _ in range(2):
        started = time.perf_counter()
        run()
        if compute.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        if compute.device.type == "cpu" and seconds > long:
            break
    return seconds
