"""One table of speed: this project beside its peers, with the same images, backbone, batch size and
machine.

python -m pipeline.benchmarks.benchmark  # only ours, a small backbone
python -m pipeline.benchmarks.benchmark --size beit-base-224 --peer tests.benchmarks.peers:trainer_documented
make bench SIZE=beit-large-384                                                        # with every peer

A peer is a function `(work: Work) -> run`. It is called once and not timed; `run()` is timed in each round.
The result of its first call must equal ours: the mean training loss, or the logits (N, C). Its attributes
`kind` and `title` name its work. Contenders take turns, so a machine that becomes slower affects all of them.
The first round is a warm-up and does not count; the table shows medians of the others.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.benchmarks.baselines import (
    SIZES,
    Contender,
    Work,
    our_compiled_training,
    our_inference,
    our_training,
    plain_optimizer,
    prepare,
    train,
)
from pipeline.benchmarks.step_memory import footprints, memory_table, overlap
from pipeline.benchmarks.throughput import Line, forward_flops, matrix_rate, measure, measure_input, table
from pipeline.errors import UserError, run_command
from pipeline.files import human_time

if TYPE_CHECKING:  # --help answers at once
    import torch


KINDS = ("input", "training", "inference", "memory", "overlap")
LOOP_STEPS = 500


def loop_milliseconds(clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the milliseconds per step that the engine's loop adds to forward, backward and optimizer.

    It is the difference of two timings on a tiny model.
    """
    import torch
    from torch import nn
    from torch.nn import functional as F

    from pipeline.training.compute import Compute

    class Tiny:
        def __init__(self) -> None:
            self.model = nn.Linear(2, 2)
            self.num_train = 8 * LOOP_STEPS
            self.num_val = 0
            self.num_outputs = 2
            self.best_metric = "epoch"
            self.higher_is_better, self.train_score = True, "accuracy"

        def train_batches(self, *_: Any) -> list[dict[str, torch.Tensor]]:
            return [batch] * LOOP_STEPS

        def split_rows(self) -> list[Any]:
            return []

        def loss(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
            logits = self.model(batch["pixels"])
            return F.cross_entropy(logits, batch["label"]), logits

        def score(self, logits: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            return (logits.argmax(dim=1) == batch["label"]).sum()

    batch = {"pixels": torch.randn(8, 2), "label": torch.zeros(8, dtype=torch.long), "row": torch.arange(8)}
    compute = Compute(torch.device("cpu"), "fp32")
    differences = []
    for _ in range(4):
        task = Tiny()
        optimizer = plain_optimizer(task.model)
        started = clock()
        for _ in range(LOOP_STEPS):
            task.loss(batch)[0].backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        bare = clock() - started
        started = clock()
        train(task, optimizer, compute, batch_size=8, max_grad_norm=0)
        differences.append(clock() - started - bare)
    return 1000 * statistics.median(differences[1:]) / LOOP_STEPS


def startup(work: Work) -> tuple[float, float]:
    """Return the seconds of `train.py --help` (best of five), and from the start of train.py to its first
    batch.
    """
    root = Path(__file__).resolve().parents[2]
    helps = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run([sys.executable, "train.py", "--help"], cwd=root, check=True, capture_output=True)
        helps.append(time.perf_counter() - started)
    command = [
        sys.executable,
        "train.py",
        *("--dry-run", "--data", str(work.data_dir), "--backbone", str(work.model_dir)),
    ]
    printed = subprocess.run(
        [*command, "--batch-size", str(work.batch_size)], cwd=root, check=True, capture_output=True, text=True
    ).stdout
    found = re.search(r"first batch after ([\d.]+) s", printed)
    assert found is not None
    return min(helps), float(found[1])


def load_peer(name: str) -> Contender:
    """Return the function `module:function`.

    Raises:
        UserError: it does not exist, or a package that it needs is not installed.
    """
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"--peer {name}: {error}; expected MODULE:FUNCTION") from None


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the command line.

    `peer`: names to be imported later; `only`: None when every kind of work is measured.
    """
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.benchmarks.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--size", choices=SIZES, default="small-224", help="the backbone (default: small-224)"
    )
    parser.add_argument(
        "--peer", metavar="MODULE:FUNCTION", action="append", default=[], help="another contender; repeatable"
    )
    parser.add_argument("--batch-size", metavar="N", type=int, default=8)
    parser.add_argument("--images", metavar="N", type=int, default=16, help="images per round (default: 16)")
    parser.add_argument(
        "--rounds",
        metavar="N",
        type=int,
        default=3,
        help="rounds that count, after a warm-up round (default: 3)",
    )
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16", "fp16"], default="auto")
    parser.add_argument(
        "--compiled", action="store_true", help="also measure ours with compile: true (on a GPU always)"
    )
    parser.add_argument(
        "--trace",
        metavar="FILE",
        type=Path,
        help="write the steps of `overlap` to FILE, for chrome://tracing",
    )
    parser.add_argument(
        "--only", choices=KINDS, action="append", help="measure only this kind of work; repeatable"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Measure and print the table. Return the exit code.

    Raises:
        UserError: a peer cannot be imported, a number is below 1, or there are fewer images than one batch.
    """
    args = parse(argv)
    for flag, number in (("--batch-size", args.batch_size), ("--rounds", args.rounds)):
        if number < 1:
            raise UserError(f"{flag} {number}: at least 1")
    if args.images < args.batch_size:
        raise UserError(f"--images {args.images}: fewer than one batch of {args.batch_size}")
    os.environ["TQDM_DISABLE"] = "1"  # before tqdm is imported, so that no progress bars are timed
    import torch
    from transformers.utils import logging

    from pipeline.training.compute import choose_compute

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    compute, kinds = choose_compute(args.precision), args.only or KINDS
    peers = [load_peer(name) for name in args.peer]
    print(
        f"{args.size}, batch {args.batch_size}, {compute.describe()}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads"
    )
    with tempfile.TemporaryDirectory() as folder:
        work = prepare(
            Path(folder),
            args.size,
            args.images // args.batch_size * args.batch_size,
            args.batch_size,
            compute,
        )
        for kind in KINDS:
            for text in show(kind, work, peers, args) if kind in kinds else ():
                # Each as soon as it is known, so a stopped benchmark has its first tables
                print(text, flush=True)
        loop, (help_seconds, first_batch) = loop_milliseconds(), startup(work)
    rate = matrix_rate(compute.device, compute.precision)
    print(
        f"\nmatrix rate {rate / 1e9:.0f} GFLOP/s in {compute.precision}; the loop itself takes {loop:.3f} ms "
        f"per step; train.py --help {help_seconds:.2f} s; first batch after {first_batch:.1f} s"
    )
    return 0


def show(kind: str, work: Work, peers: Sequence[Contender], args: argparse.Namespace) -> Iterator[str]:
    """Yield what is about to be measured, then the results."""
    if kind == "memory":
        yield f"\n{memory_table(footprints(work), work.precision)}"
    elif kind == "overlap":
        yield f"\n{overlap(work, args.trace).describe()}"
    else:
        rivals = [peer for peer in peers if peer.kind == kind]  # type: ignore[attr-defined]
        yield f"measuring {kind}: {args.rounds + 1} rounds of ours and {len(rivals)} peers"
        lines = rates_of(kind, work, rivals, args)
        yield f"\n{table(lines, work.precision)}\n"
        for line in lines:
            if line.work == "training" and line.who.startswith("ours"):
                yield (
                    f"25 epochs over 10,000 images at the speed of {line.who}: "
                    f"{human_time(250_000 / line.images_per_second)}"
                )


def rates_of(kind: str, work: Work, rivals: Sequence[Contender], args: argparse.Namespace) -> list[Line]:
    """Return the table's lines for input, training or inference: ours, then the rivals of that kind."""
    if kind == "input":
        return measure_input(work, rivals, args.rounds, args.images)
    if kind == "inference":
        return measure(work, [our_inference, *rivals], args.rounds, forward_flops(work))
    compiled = [our_compiled_training] if args.compiled or work.device.type == "cuda" else []
    passes = 2  # LoRA computes the forward pass and the gradients of inputs, not of weights
    return measure(work, [our_training, *compiled, *rivals], args.rounds, passes * forward_flops(work))


if __name__ == "__main__":
    sys.exit(run_command(main))
