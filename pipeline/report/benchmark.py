"""One table of speed: this project beside its peers, on the same pictures, backbone, batch and machine.

python -m pipeline.report.benchmark                                                   # ours alone, a small backbone
python -m pipeline.report.benchmark --size beit-base-224 --peer tests.benchmarks.peers:trainer_documented
make bench SIZE=beit-large-384                                                        # with every peer

A peer is a function `(work: Work) -> (run, ...)` called before each round, untimed; `run()` is timed and returns what must equal ours: the
mean training loss, or the logits (N, C). Its attributes `kind` and `title` say what it does. Contenders take turns, so that a machine that
slows down slows all; the first round warms up and does not count; medians of the others are shown.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError, run_command
from pipeline.files import human_time
from pipeline.report.contenders import (
    LR,
    SIZES,
    Contender,
    NoStore,
    Work,
    make_pictures,
    our_compiled_training,
    our_inference,
    our_training,
    prepare,
)
from pipeline.report.steps import footprints, memory_table, overlap

if TYPE_CHECKING:  # --help answers at once
    import torch


KINDS = ("input", "training", "inference", "memory", "overlap")
PICTURE_SIDES = (500, 1000, 2000)
TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2, "fp16": 1e-2}  # of equal answers: a loss, or logits relative to the largest
LOOP_STEPS = 500


@dataclass(frozen=True)
class Line:
    """A row of the table. `ratio` is ours over this peer's rate; `agrees` is None where there is nothing to compare."""

    work: str
    who: str
    images_per_second: float
    ratio: float | None = None
    share: float | None = None
    agrees: bool | None = None
    peak_bytes: int = 0


def measure(work: Work, contenders: Sequence[Contender], rounds: int, flops: int) -> list[Line]:
    """Lines for contenders of one kind, the first of which is ours: rounds in turn, medians, answers compared with ours.

    `flops` is what one image costs; its share of the matrix rate is that of the same round, as good or bad as the machine then was.
    """
    matrix_rates: list[float] = []
    seconds: list[list[float]] = [[] for _ in contenders]
    answers: list[Any] = [None] * len(contenders)
    peaks = [0] * len(contenders)
    for number in range(rounds + 1):
        for index, contender in enumerate(contenders):
            run = contender(work)
            _synchronize(work.device, reset_peak=True)
            started = time.perf_counter()
            answers[index] = run()
            _synchronize(work.device)
            if number:
                seconds[index].append(time.perf_counter() - started)
            peaks[index] = _peak(work.device)
            del run
            gc.collect()
        matrix_rates += [matrix_rate(work.device, work.precision)] if number else []
    kind = contenders[0].kind  # type: ignore[attr-defined]
    images = len(work.labels) if kind == "training" else len(work.paths)
    lines = []
    for index, contender in enumerate(contenders):
        pairs = zip(seconds[index], seconds[0], strict=True)
        ratio = statistics.median(theirs / ours for theirs, ours in pairs) if index else None
        agrees = _agree(answers[index], answers[0], TOLERANCE[work.precision]) if index else None
        rate = images / statistics.median(seconds[index])
        share = statistics.median(images * flops / spent / most for spent, most in zip(seconds[index], matrix_rates, strict=True))
        lines.append(Line(kind, contender.title, rate, ratio, share, agrees, peaks[index]))  # type: ignore[attr-defined]
    return lines


def measure_input(work: Work, peers: Sequence[Contender], rounds: int, images: int) -> list[Line]:
    """Images a second and core, file to float32 batch, one process and one thread: geometric means over `PICTURE_SIDES`."""
    import torch

    rates: dict[str, list[list[float]]] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for side in PICTURE_SIDES:
            with tempfile.TemporaryDirectory() as folder:
                paths = make_pictures(Path(folder) / "train", images, side)
                for number in range(rounds + 1):
                    for name, rate in _input_round(work, peers, Path(folder), paths, number).items():
                        rates.setdefault(name, [[] for _ in PICTURE_SIDES])[PICTURE_SIDES.index(side)] += [rate] if number else []
    finally:
        torch.set_num_threads(threads)
    medians = {name: [statistics.median(values) for values in by_side] for name, by_side in rates.items()}
    means = {name: math.exp(statistics.fmean(map(math.log, values))) for name, values in medians.items()}
    first, filling, later = (means.pop(name) for name in ("ours, first epoch", "ours, check and first epoch", "ours, kept pictures"))
    lines = [
        Line("input", "ours, first epoch", first),
        Line("input", "ours, check and first epoch (data.cache_gb)", filling),
        Line("input", "ours, later epochs (data.cache_gb)", later),
    ]
    for name, rate in means.items():
        lines += [Line("input", f"{name} (against our first epoch)", rate, first / rate)]
        lines += [Line("input", f"{name} (against our later epochs)", rate, later / rate)]
    return lines


def _input_round(work: Work, peers: Sequence[Contender], folder: Path, paths: Sequence[Path], number: int) -> dict[str, float]:
    from pipeline.config import Augmentation
    from pipeline.data.cache import PictureCache
    from pipeline.data.dataset import ImageDataset, cut, epoch_order, make_loader
    from pipeline.data.images import find_bad
    from pipeline.data.transforms import Preprocessing

    rule = Preprocessing(work.image_size, work.image_size, resample=2)
    cache = PictureCache(folder / f"cache {number}", 10**10, paths, Augmentation(), rule)
    plain, kept = (ImageDataset(paths, None, rule, Augmentation(), cache=where) for where in (None, cache))

    def ours(dataset: ImageDataset, epoch: int) -> None:
        for batch in make_loader(dataset, cut(epoch_order(len(paths), 0, epoch), work.batch_size, work.batch_size), epoch):
            rule.normalize(batch["pixels"])

    def check_and_first_epoch() -> None:
        find_bad(paths, cache.check)
        ours(kept, 0)

    runs: dict[str, Callable[[], Any]] = {
        "ours, first epoch": lambda: ours(plain, number),
        "ours, check and first epoch": check_and_first_epoch,
        "ours, kept pictures": lambda: ours(kept, number + 1),
    }
    here = Work(**{**vars(work), "data_dir": folder, "paths": paths})
    runs |= {peer.title: peer(here) for peer in peers}  # type: ignore[attr-defined]
    rates = {}
    for name, run in runs.items():
        started = time.process_time()
        run()
        rates[name] = len(paths) / (time.process_time() - started)
    return rates


def matrix_rate(device: torch.device, precision: str) -> float:
    """FLOP a second of a large `linear` in `precision`: the machine's own rate, the best of several."""
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
    """Floating-point operations of one image's forward pass, counted by torch."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoModelForImageClassification

    # Not on meta tensors: BEiT keeps its position index for every model of the process, and would keep one without values.
    model = AutoModelForImageClassification.from_pretrained(work.model_dir, attn_implementation="eager").eval().to(work.device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, work.image_size, work.image_size, device=work.device))
    return counter.get_total_flops()


def loop_milliseconds() -> float:
    """Milliseconds a step that the engine's loop adds to forward, backward and optimizer: the difference on a model of two weights."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    from pipeline.training.compute import Compute
    from pipeline.training.engine import fit

    class Tiny:
        def __init__(self) -> None:
            self.model, self.num_train, self.num_val, self.num_classes, self.best_metric = nn.Linear(2, 2), 8 * LOOP_STEPS, 0, 2, "epoch"

        def train_batches(self, *_: Any) -> list[dict[str, torch.Tensor]]:
            return [batch] * LOOP_STEPS

        def split_rows(self) -> list[Any]:
            return []

        def loss(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
            logits = self.model(batch["pixels"])
            return F.cross_entropy(logits, batch["label"]), logits

    batch = {"pixels": torch.randn(8, 2), "label": torch.zeros(8, dtype=torch.long), "row": torch.arange(8)}
    schedule = {"name": "constant", "lr": LR, "end_lr": 0.0, "warmup_steps": 0, "total_steps": LOOP_STEPS, "effective_batch_size": 8}
    differences = []
    for _ in range(4):
        task = Tiny()
        optimizer = torch.optim.AdamW([{"params": list(task.model.parameters()), "lr_scale": 1.0}])
        started = time.perf_counter()
        for _ in range(LOOP_STEPS):
            task.loss(batch)[0].backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        bare = time.perf_counter() - started
        started = time.perf_counter()
        fit(task, optimizer, schedule, Compute(torch.device("cpu"), "fp32"), NoStore(), lambda _: None, epochs=1, micro_batch_size=8)
        differences.append(time.perf_counter() - started - bare)
    return 1000 * statistics.median(differences[1:]) / LOOP_STEPS


def startup(work: Work) -> tuple[float, float]:
    """Seconds of `train.py --help` (the best of five), and seconds from the start of train.py until its first batch is there."""
    root = Path(__file__).resolve().parents[2]
    helps = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run([sys.executable, "train.py", "--help"], cwd=root, check=True, capture_output=True)
        helps.append(time.perf_counter() - started)
    command = [sys.executable, "train.py", "--dry-run", "--data", str(work.data_dir), "--backbone", str(work.model_dir)]
    printed = subprocess.run([*command, "--batch-size", str(work.batch_size)], cwd=root, check=True, capture_output=True, text=True).stdout
    found = re.search(r"first batch was there after ([\d.]+) s", printed)
    assert found is not None
    return min(helps), float(found[1])


def table(lines: Sequence[Line], precision: str) -> str:
    """The lines as a Markdown table."""
    rows = [("work", "contender", "images/s", "ours is faster by", "of the matrix rate", "same answers", "peak memory", "precision")]
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
    text = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows]
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


def _peak(device: torch.device) -> int:
    from pipeline.training.compute import peak_memory

    return peak_memory(device) if device.type == "cuda" else 0  # a CPU process has no peak of its own for each contender


def load_peer(name: str) -> Contender:
    """The function `module:function`.

    Raises:
        UserError: there is none, or a package that it needs is not installed.
    """
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"--peer {name}: {error}; expected MODULE:FUNCTION") from None


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line; `peer` lists names still to be imported, `only` is None when every kind of work is measured."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.report.benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="small-224", help="the backbone (default: small-224)")
    parser.add_argument("--peer", metavar="MODULE:FUNCTION", action="append", default=[], help="a contender; repeatable")
    parser.add_argument("--batch-size", metavar="N", type=int, default=8)
    parser.add_argument("--images", metavar="N", type=int, default=16, help="of each round (default: 16)")
    parser.add_argument("--rounds", metavar="N", type=int, default=3, help="that count, after one to warm up (default: 3)")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16", "fp16"], default="auto")
    parser.add_argument("--compiled", action="store_true", help="also ours with compile: true (on a GPU: always)")
    parser.add_argument("--trace", metavar="FILE", type=Path, help="write the steps of `overlap` there, for chrome://tracing")
    parser.add_argument("--only", choices=KINDS, action="append", help="leave the other kinds of work out; repeatable")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Measure and print the table."""
    args = parse(argv)
    if args.images < args.batch_size:
        raise UserError(f"--images {args.images}: fewer than one batch of {args.batch_size}")
    os.environ["TQDM_DISABLE"] = "1"  # before tqdm is imported: nobody's bars are timed
    import torch
    from transformers.utils import logging

    from pipeline.training.compute import choose_compute

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    compute, kinds = choose_compute(args.precision), args.only or KINDS
    peers = [load_peer(name) for name in args.peer]
    with tempfile.TemporaryDirectory() as folder:
        work = prepare(Path(folder), args.size, args.images // args.batch_size * args.batch_size, args.batch_size, compute)
        lines = []
        if "input" in kinds:
            lines += measure_input(work, [peer for peer in peers if peer.kind == "input"], args.rounds, args.images)
        compiled = [our_compiled_training] if args.compiled or compute.device.type == "cuda" else []
        for ours, passes in (([our_training, *compiled], 2), ([our_inference], 1)):  # LoRA: forward and input gradients alone
            if ours[0].kind in kinds:
                contenders = [*ours, *(peer for peer in peers if peer.kind == ours[0].kind)]
                lines += measure(work, contenders, args.rounds, passes * forward_flops(work))
        memory = footprints(work) if "memory" in kinds else []
        fed = overlap(work, args.trace) if "overlap" in kinds else None
        loop, (help_seconds, first_batch) = loop_milliseconds(), startup(work)
        rate = matrix_rate(work.device, work.precision)
    print(f"\n{args.size}, batch {args.batch_size}, {compute.describe()}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    if lines:
        print(table(lines, compute.precision))
    if memory:
        print(f"\n{memory_table(memory, compute.precision)}")
    if fed is not None:
        busy = "" if fed.busy is None else f"; the device was computing {fed.busy:.0%} of the time"
        print(
            f"\ntraining from files: {fed.images_per_second:.1f} images/s with {fed.workers} workers, waiting for batches {fed.waiting:.1%} of the "
            f"time, for an epoch's first {fed.first_batch_seconds:.2f} s{busy}"
        )
    for line in lines:
        if line.work == "training" and line.who.startswith("ours"):
            print(f"25 epochs over 10,000 images at the rate of {line.who}: {human_time(250_000 / line.images_per_second)}")
    print(
        f"\nmatrix rate {rate / 1e9:.0f} GFLOP/s in {compute.precision}; the loop's own cost {loop:.3f} ms a step; "
        f"train.py --help {help_seconds:.2f} s; first batch after {first_batch:.1f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
