"""Training by two processes of one thread each, with exact and with reduced sums of gradients, beside one
process of two threads.

    python -m tests.benchmarks.several_processes --data DATA --backbone BACKBONE

The ways take turns. What counts is images a second of training in the last epoch (timing.jsonl), so start-up
is left out; the table shows medians over rounds, and the median of each round's ratio to the first way. The
adapter is LoRA of rank 16 on query and key.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from pipeline.files import read_json_lines

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
LORA, FULL = ["--lora-rank", "16", "--set", "lora.targets=[query,key]"], ["--lora-rank", "0"]
WAYS = {  # what is trained, how python is started, threads of a process, gradient_sum
    "LoRA, one process of two threads": (LORA, [], 2, "auto"),
    "LoRA, two processes of one thread, exact": (LORA, TORCHRUN, 1, "exact"),
    "LoRA, two processes of one thread, reduced": (LORA, TORCHRUN, 1, "reduced"),
    "full fine-tuning, one process of two threads": (FULL, [], 2, "auto"),
    "full fine-tuning, two processes of one thread, exact": (FULL, TORCHRUN, 1, "exact"),
    "full fine-tuning, two processes of one thread, reduced": (FULL, TORCHRUN, 1, "reduced"),
}


def main() -> int:
    """Measure and print the table; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--backbone", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    args = parser.parse_args()
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(args.rounds):
        for way in WAYS:
            found[way].append(images_per_second(args, way))
            print(f"{way}: {found[way][-1]:.1f} images/s", file=sys.stderr, flush=True)
    print("| training | images/s | of one process |\n|---|---|---|")
    for way, rates in found.items():
        alone = found[next(name for name in WAYS if name.split(",")[0] == way.split(",")[0])]
        ratio = statistics.median(rate / base for rate, base in zip(rates, alone, strict=True))
        print(f"| {way} | {statistics.median(rates):.1f} | {ratio:.2f} x |")
    return 0


def images_per_second(args: argparse.Namespace, way: str) -> float:
    """Of training in the last epoch."""
    trains, start, threads, sums = WAYS[way]
    with tempfile.TemporaryDirectory() as temporary:
        words = [
            "train.py",
            *("--data", args.data.resolve(), "--backbone", args.backbone.resolve()),
            *("--output", Path(temporary) / "run"),
        ]
        words += [
            *("--epochs", args.epochs, "--batch-size", 16, "--accumulation-steps", 2),
            *("--precision", "fp32"),
            *trains,
        ]
        words += ["--set", f"gradient_sum={sums}", "--set", "data.workers=0", "--set", "attention=fused"]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TQDM_DISABLE": "1"}
        done = subprocess.run(
            [sys.executable, *start, *map(str, words)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"{way}: {done.stderr[-2000:]}")
        return float(read_json_lines(Path(temporary) / "run/timing.jsonl")[-1]["images_per_second"])


if __name__ == "__main__":
    sys.exit(main())
