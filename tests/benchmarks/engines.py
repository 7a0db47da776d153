"""What the engines of inference.py lose and gain: held-back accuracy over seeds, then images per second.

    # measures what is missing, then the tables; openvino and nncf must be installed
    python -m tests.benchmarks.engines --competitions COMPETITIONS --backbone BACKBONE
    python -m tests.benchmarks.engines --table  # the table of accuracies alone

Seed s draws ROWS of the labelled rows for training and for a held-back part, both stratified. Recipe
`lora-ours` trains the backbone at SIDE pixels; all engines predict the same held-back images by the same
weights. Speed is that of the run of the first seed, from decoded images to logits, medians of rounds in turn.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.engines import INT8, OPENVINO, TORCH
from tests.benchmarks.held_back import Table, lay_out, logged, parser_of, read_column, run_train, with_error

ROWS = 348, 232  # for training, held back
SIDE, BATCH, ROUNDS = 112, 8, 7
ARMS = [(engine, precision) for engine in (TORCH, OPENVINO, INT8) for precision in ("fp32", "bf16")]
COLUMNS = ("data", "seed", "engine", "precision", "accuracy", "log_loss", "equal", "logits_off")


def main() -> int:
    """Measure what is missing, and print the tables; the exit code."""
    parser = parser_of(__doc__, "engines", ["produce"], [0, 1, 2])
    parser.add_argument("--backbone", type=Path)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    args = parser.parse_args()
    table = Table(args.results, COLUMNS)
    if not args.table:
        for name in args.data:
            for seed in args.seeds:
                if not table.has(name, seed, *ARMS[-1]):
                    measure(args, table, name, seed)
    show(table)
    if not args.table and args.rounds:
        show_speed(*run_of(args, args.data[0], args.seeds[0]), args.rounds)
    return 0


def run_of(args: argparse.Namespace, name: str, seed: int) -> tuple[Path, Path]:
    """The trained run and its data folder; trained if it is not there."""
    data = lay_out(name, args.competitions, args.work, ROWS, seed)
    folder = args.work / f"run-{name}-{seed}"
    words = ["--recipe", "lora-ours", "--backbone", args.backbone, "--image-size", SIDE, "--seed", seed]
    run_train(folder.with_suffix(".log"), *words, "--data", data, "--output", folder)
    return folder, data


def measure(args: argparse.Namespace, table: Table, name: str, seed: int) -> None:
    """Add a row of every engine: its accuracy, and how far it is from torch in float32."""
    import inference
    from pipeline.competition.layout import read_layout
    from pipeline.run import load_run

    folder, data = run_of(args, name, seed)
    flags = ["--model", folder, "--data", data, "--output", folder / "predictions.csv", "--engine", INT8]
    with logged(folder.with_suffix(".log")):
        inference.main([str(word) for word in flags])  # makes the model in 8 bits
    run, rows, truth = load_run(folder), list(read_layout(data).test), read_column(data / "solution.csv")
    labels = np.array([run.target.names.index(truth[row.id]) for row in rows])
    first: np.ndarray | None = None
    for engine, precision in ARMS:
        logits = predictor(folder, rows, engine, precision)()
        first = logits if first is None else first
        losses = np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(labels)), labels]
        right, equal = (np.mean(logits.argmax(1) == other) for other in (labels, first.argmax(1)))
        off = np.abs(logits - first).max() / np.abs(first).max()
        cells = [float(value) for value in (right, losses.mean(), equal, off)]
        table.add(name, seed, engine, precision, *cells)


def predictor(folder: Path, rows: list[Any], engine: str, precision: str) -> Callable[[], np.ndarray]:
    """A function that computes the logits (N, C) of `rows`, whose images are decoded before it is called."""
    import torch

    from pipeline.run import load_run
    from pipeline.tasks.apply import ready
    from pipeline.training.compute import Compute
    from pipeline.training.predict import predict_logits

    run, compute = load_run(folder), Compute(torch.device("cpu"), precision, engine=engine)
    outputs = run.target.num_outputs
    classifier = ready(run, outputs, compute)
    batches = list(classifier.batches(rows, BATCH))
    return lambda: np.asarray(
        predict_logits(
            classifier.model,
            classifier.logits,
            batches,
            len(rows),
            outputs,
            compute,
            "held back",
            leave=False,
        )
    )


def show(table: Table) -> None:
    """Means over seeds, and paired differences from torch in float32 with their standard errors."""
    found = {(row["data"], row["seed"], row["engine"], row["precision"]): row for row in table.rows()}
    print(
        "| data | engine | accuracy | less torch, fp32 | log loss | same label as torch, fp32 | logits off |"
    )
    print("|---|---|---|---|---|---|---|")
    for name in dict.fromkeys(key[0] for key in found):
        for arm in ARMS:
            rows = [row for key, row in found.items() if (key[0], *key[2:]) == (name, *arm)]
            firsts = [found[name, row["seed"], *ARMS[0]] for row in rows]
            less = [float(a["accuracy"]) - float(b["accuracy"]) for a, b in zip(rows, firsts, strict=True)]
            mean = {column: np.mean([float(row[column]) for row in rows]) for column in COLUMNS[4:]}
            print(
                f"| {name} | {', '.join(arm)} | {mean['accuracy']:.4f} ({len(rows)}) | {with_error(less)} | "
                f"{mean['log_loss']:.4f} | {mean['equal']:.2%} | {mean['logits_off']:.2%} |"
            )


def show_speed(folder: Path, data: Path, rounds: int) -> None:
    """Images per second of every engine, and how much faster it is than torch, medians of `rounds`."""
    from pipeline.competition.layout import read_layout

    rows = list(read_layout(data).test)[: 8 * BATCH]
    runs = {arm: predictor(folder, rows, *arm) for arm in ARMS}
    took: dict[tuple[str, str], list[float]] = {arm: [] for arm in ARMS}
    for number in range(rounds + 1):
        for arm, run in runs.items():
            start = time.perf_counter()
            run()
            if number:  # the first one is slower
                took[arm].append(time.perf_counter() - start)
    print("\n| engine | images/s | of torch, bf16 | of torch, fp32 |\n|---|---|---|---|")
    for arm in ARMS:
        faster = [
            statistics.median(a / b for a, b in zip(took[TORCH, precision], took[arm], strict=True))
            for precision in ("bf16", "fp32")
        ]
        speed = len(rows) / statistics.median(took[arm])
        print(f"| {', '.join(arm)} | {speed:.1f} | {faster[0]:.2f} x | {faster[1]:.2f} x |")


if __name__ == "__main__":
    sys.exit(main())
