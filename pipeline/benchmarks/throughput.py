"""Measure images per second of contenders that take turns at the same work, and check that their results
agree.
"""

from __future__ import annotations

import gc
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.benchmarks.baselines import Contender, Work, make_images

if TYPE_CHECKING:  # --help answers at once
    import torch

IMAGE_SIDES = (500, 1000, 2000)
# For equal results: a loss, or logits relative to the largest
TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2, "fp16": 1e-2}


@dataclass(frozen=True)
class Line:
    """A row of the table.

    `ratio`: our speed divided by this peer's. `share`: part of the matrix rate. `agrees`: None if there is
    nothing to compare.
    """

    work: str
    who: str
    images_per_second: float
    ratio: float | None = None
    share: float | None = None
    agrees: bool | None = None
    peak_bytes: int = 0


def measure(work: Work, contenders: Sequence[Contender], rounds: int, flops: int) -> list[Line]:
    """Return the lines for contenders of one kind, the first of which is ours.

    Rounds in turn, medians, results compared with ours. Each contender is built once, because compiling takes
    minutes; so all their models are in memory together, but the peak of each counts only its own. `flops`:
    operations per image. Its share of the matrix rate uses the rate measured in the same round, because the
    machine's speed may vary.
    """
    matrix_rates: list[float] = []
    seconds: list[list[float]] = [[] for _ in contenders]
    answers: list[Any] = [None] * len(contenders)
    built, runs = _build(work, contenders)
    peaks = [0] * len(contenders)
    for number in range(rounds + 1):
        for index, run in enumerate(runs):
            before = _allocated(work.device)
            _synchronize(work.device, reset_peak=True)
            started = time.perf_counter()
            answer = run()
            _synchronize(work.device)
            if number:
                seconds[index].append(time.perf_counter() - started)
            else:
                answers[index] = answer  # from the initial weights: later rounds continue the training
            peaks[index] = max(peaks[index], _peak(work.device) - before + built[index])
        matrix_rates += [matrix_rate(work.device, work.precision)] if number else []
    kind = contenders[0].kind  # type: ignore[attr-defined]
    images = len(work.labels) if kind == "training" else len(work.paths)
    lines = []
    for index, contender in enumerate(contenders):
        pairs = zip(seconds[index], seconds[0], strict=True)
        ratio = statistics.median(theirs / ours for theirs, ours in pairs) if index else None
        agrees = _agree(answers[index], answers[0], TOLERANCE[work.precision]) if index else None
        rate = images / statistics.median(seconds[index])
        share = statistics.median(
            images * flops / spent / most for spent, most in zip(seconds[index], matrix_rates, strict=True)
        )
        lines.append(Line(kind, contender.title, rate, ratio, share, agrees, peaks[index]))  # type: ignore[attr-defined]
    return lines


def _build(work: Work, contenders: Sequence[Contender]) -> tuple[list[int], list[Callable[[], Any]]]:
    """Return the bytes that each contender keeps in device memory, and its `run`."""
    built, runs = [], []
    for contender in contenders:
        before = _allocated(work.device)
        print(f"  building: {contender.title}", file=sys.stderr, flush=True)  # type: ignore[attr-defined]
        runs.append(contender(work))
        gc.collect()
        built.append(_allocated(work.device) - before)
    return built, runs


def measure_input(work: Work, peers: Sequence[Contender], rounds: int, images: int) -> list[Line]:
    """Return images per second and core, from file to float32 batch, with one process and one thread.

    They are geometric means over `IMAGE_SIDES`.
    """
    import torch

    rates: dict[str, list[list[float]]] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for side in IMAGE_SIDES:
            with tempfile.TemporaryDirectory() as folder:
                paths = make_images(Path(folder) / "train", images, side)
                for number in range(rounds + 1):
                    for name, rate in _input_round(work, peers, Path(folder), paths, number).items():
                        rates.setdefault(name, [[] for _ in IMAGE_SIDES])[IMAGE_SIDES.index(side)] += (
                            [rate] if number else []
                        )
    finally:
        torch.set_num_threads(threads)
    medians = {name: [statistics.median(values) for values in by_side] for name, by_side in rates.items()}
    means = {name: math.exp(statistics.fmean(map(math.log, values))) for name, values in medians.items()}
    first, filling, later = (
        means.pop(name) for name in ("ours, first epoch", "ours, check and first epoch", "ours, kept images")
    )
    lines = [
        Line("input", "ours, first epoch", first),
        Line("input", "ours, check and first epoch (data.cache_gb)", filling),
        Line("input", "ours, later epochs (data.cache_gb)", later),
    ]
    for name, rate in means.items():
        lines += [Line("input", f"{name} (against our first epoch)", rate, first / rate)]
        lines += [Line("input", f"{name} (against our later epochs)", rate, later / rate)]
    return lines


def _input_round(
    work: Work, peers: Sequence[Contender], folder: Path, paths: Sequence[Path], number: int
) -> dict[str, float]:
    from pipeline.data.cache import ImageCache
    from pipeline.data.dataset import ImageDataset, cut, epoch_order, make_loader
    from pipeline.data.images import find_bad
    from pipeline.data.transforms import Preprocessing
    from pipeline.recipe_sections import Augmentation

    preprocessing = Preprocessing(work.image_size, work.image_size, resample=2)
    cache = ImageCache(folder / f"cache {number}", 10**10, paths, Augmentation(), preprocessing)
    plain, kept = (
        ImageDataset(paths, None, preprocessing, Augmentation(), cache=where) for where in (None, cache)
    )

    def ours(dataset: ImageDataset, epoch: int) -> None:
        for batch in make_loader(
            dataset, cut(epoch_order(len(paths), 0, epoch), work.batch_size, work.batch_size), epoch
        ):
            preprocessing.normalize(batch["pixels"])

    def check_and_first_epoch() -> None:
        find_bad(paths, cache.check)
        ours(kept, 0)

    runs: dict[str, Callable[[], Any]] = {
        "ours, first epoch": lambda: ours(plain, number),
        "ours, check and first epoch": check_and_first_epoch,
        "ours, kept images": lambda: ours(kept, number + 1),
    }
    here = replace(work, data_dir=folder, paths=paths)
    runs |= {peer.title: peer(here) for peer in peers}  # type: ignore[attr-defined]
    rates = {}
    for name, run in runs.items():
        started = time.process_time()
        run()
        rates[name] = len(paths) / (time.process_time() - started)
    return rates


def matrix_rate(device: torch.device, precision: str) -> float:
    """Return FLOP per second of a large `linear` in `precision`: the best of several runs, as the
    machine's own rate.
    """
    import torch
    from torch.nn import functional as F

    side = 8192 if device.type == "cuda" else 2048
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    rows, weight = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = math.inf
    with torch.no_grad():
        for _ in range(8):
            _synchronize(device)
            started = time.perf_counter()
            F.linear(rows, weight)
            _synchronize(device)
            best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best


def forward_flops(work: Work) -> int:
    """Return the floating-point operations of one image's forward pass, counted by torch."""
    from transformers import AutoModelForImageClassification

    # Not on meta tensors: BEiT shares its position index between all models of the process, and would keep an
    # empty one.
    model = (
        AutoModelForImageClassification.from_pretrained(work.model_dir, attn_implementation="eager")
        .eval()
        .to(work.device)
    )
    return count_flops(model, work.image_size)


def count_flops(model: torch.nn.Module, image_size: int) -> int:
    """Return the floating-point operations of `model` for one image of `image_size` x `image_size` pixels."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    device = next(model.parameters()).device
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, image_size, image_size, device=device))
    return counter.get_total_flops()


def table(lines: Sequence[Line], precision: str) -> str:
    """Return the lines as a Markdown table."""
    heading = ("work", "contender", "images/s", "ours is faster by", "of the matrix rate", "same answers")
    rows = [(*heading, "peak memory", "precision")]
    for line in lines:
        rows.append(
            (
                line.work,
                line.who,
                f"{line.images_per_second:.1f}",
                "" if line.ratio is None else f"{line.ratio:.2f} x",
                "" if line.share is None else f"{line.share:.0%}",
                {None: "", True: "yes", False: "NO"}[line.agrees],
                f"{line.peak_bytes / 1e9:.2f} GB" if line.peak_bytes else "",
                "uint8 to fp32" if line.work == "input" else precision,
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    text = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    return "\n".join([text[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *text[1:]])


def _agree(found: Any, expected: Any, tolerance: float) -> bool | None:
    import numpy as np

    if found is None:
        return None
    found, expected = np.asarray(found, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    return bool(np.abs(found - expected).max() <= tolerance * max(1.0, np.abs(expected).max()))


def _synchronize(device: torch.device, reset_peak: bool = False) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
        if reset_peak:
            torch.cuda.reset_peak_memory_stats(device)


def _allocated(device: torch.device) -> int:
    import torch

    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def _peak(device: torch.device) -> int:
    from pipeline.training.compute import peak_memory

    # On a CPU the peak of a single contender cannot be measured
    return peak_memory(device) if device.type == "cuda" else 0
