"""Measure our training step on this machine: memory at each batch size, and how long it waits for input."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.benchmarks.baselines import MAX_GRAD_NORM, Work, our_task, plain_optimizer, train

if TYPE_CHECKING:  # --help answers at once
    import torch

BATCH_SIZES = (1, 2, 8, 16)
TRAINS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "full fine-tuning": {"lora": {"rank": 0}},
    "the head alone": {"lora": {"rank": 0}, "head_only": True},
}


@dataclass(frozen=True)
class Footprint:
    """Bytes of a training step of `batch_size` images: counted as train.py does, and the measured peak.

    `measured` is None on devices where the peak cannot be measured.
    """

    trains: str
    batch_size: int
    counted: int
    measured: int | None


@dataclass(frozen=True)
class Overlap:
    """An epoch of training that reads image files.

    `waiting`: share of the time spent waiting for batches, without the first batch. `busy`: share in which
    the device was computing (None if the profiler cannot measure it).
    """

    images_per_second: float
    workers: int
    first_batch_seconds: float
    waiting: float
    busy: float | None

    def describe(self) -> str:
        """Return one line for the user."""
        busy = "" if self.busy is None else f"; the device was computing {self.busy:.0%} of the time"
        return (
            f"training from files: {self.images_per_second:.1f} images/s with {self.workers} workers, "
            f"waiting for batches {self.waiting:.1%} of the time, {self.first_batch_seconds:.2f} s for the "
            f"first batch of an epoch{busy}"
        )


def footprints(work: Work) -> list[Footprint]:
    """Return a footprint for every entry of `TRAINS` and `BATCH_SIZES`."""
    import torch

    from pipeline.training.compute import Compute

    compute = Compute(work.device, work.precision)
    found = []
    for trains, values in TRAINS.items():
        task = our_task(work, **values)
        counted = task.account(compute, "adamw")
        for batch_size in BATCH_SIZES:
            measured = _peak_of_steps(task, compute, work, batch_size) if work.device.type == "cuda" else None
            found.append(Footprint(trains, batch_size, counted.total(batch_size), measured))
        del task
        if work.device.type == "cuda":
            torch.cuda.empty_cache()
    return found


def _peak_of_steps(task: Any, compute: Any, work: Work, batch_size: int) -> int:
    """Return the peak of allocated bytes in two whole steps; the first creates the optimizer's state."""
    import torch

    optimizer = plain_optimizer(task.model)
    pixels = work.pixels[:1].expand(batch_size, -1, -1, -1)
    batch = compute.move({"pixels": pixels, "label": work.labels[:1].expand(batch_size)})
    torch.cuda.reset_peak_memory_stats(work.device)
    task.model.train()
    for _ in range(2):
        with compute.autocast():
            loss, _ = task.loss(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    torch.cuda.synchronize(work.device)
    return torch.cuda.max_memory_allocated(work.device)


def overlap(work: Work, trace: Path | None = None) -> Overlap:
    """Train two epochs on the image files of `work` as train.py does, and return the measurement of the
    second.

    `trace`: file for both epochs, for chrome://tracing or Perfetto; waiting for a batch is a span of its own.
    """
    import torch
    from torch.profiler import ProfilerActivity, profile

    from pipeline.training.compute import Compute

    task = our_task(work, data={"val_fraction": 0, "workers": "auto"})
    compute, optimizer = Compute(work.device, work.precision), plain_optimizer(task.model)
    waits: list[list[float]] = []
    read = task.train_batches
    task.train_batches = lambda *position: _timed(read(*position), waits)
    on_gpu = work.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) if on_gpu or trace else nullcontext() as profiler:
        started = time.perf_counter()
        reports = train(task, optimizer, compute, work.batch_size, MAX_GRAD_NORM, epochs=2)
        if on_gpu:
            torch.cuda.synchronize(work.device)
        seconds = time.perf_counter() - started
    if trace is not None:
        profiler.export_chrome_trace(str(trace))
    busy = _kernel_seconds(profiler) / seconds if on_gpu else None
    first, *later = waits[1]
    spent = reports[1].timing["seconds"]
    return Overlap(task.num_train / spent, task.workers, first, sum(later) / spent, busy)


def _timed(
    batches: Iterable[dict[str, torch.Tensor]], waits: list[list[float]]
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield `batches`; append a new list to `waits` with the seconds spent waiting for each batch."""
    from torch.profiler import record_function

    waits.append([])
    iterator, batch = iter(batches), None
    while True:
        started = time.perf_counter()
        with record_function("waiting for a batch"):
            batch = next(iterator, None)
        if batch is None:
            return
        waits[-1].append(time.perf_counter() - started)
        yield batch


def _kernel_seconds(profiler: Any) -> float:
    from torch.autograd import DeviceType

    kernels = [event for event in profiler.key_averages() if event.device_type == DeviceType.CUDA]
    return (
        sum(
            event.self_device_time_total
            for event in kernels
            if not getattr(event, "is_user_annotation", False)
        )
        / 1e6
    )


def memory_table(found: list[Footprint], precision: str) -> str:
    """Return the footprints in GB as a Markdown table, counted / measured."""
    lines = [
        f"| training step in {precision}, GB counted / measured | "
        + " | ".join(f"batch {size}" for size in BATCH_SIZES)
        + " |"
    ]
    lines.append("|---" * (len(BATCH_SIZES) + 1) + "|")
    for trains in TRAINS:
        row = [line for line in found if line.trains == trains]
        cells = [
            f"{line.counted / 1e9:.2f} / " + ("-" if line.measured is None else f"{line.measured / 1e9:.2f}")
            for line in row
        ]
        lines.append(f"| {trains} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
