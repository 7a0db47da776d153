"""What the engines of inference.py lose and gain: held-back accuracy over runs, then images per second.

    # measures what is missing, then the tables; openvino and nncf must be installed
    python -m tests.benchmarks.engines RUN [RUN ...]
    python -m tests.benchmarks.engines --table  # the table of accuracies alone

A run was trained on a folder that `tests.benchmarks.held_back` laid out, by any of the benchmarks beside this
file; means are over the runs of one backbone and size. All engines predict the same held-back images by the
same weights. Speed is that of the first run, from decoded images to logits, medians of rounds in turn.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.engines import INT8, OPENVINO, TORCH
from tests.benchmarks.held_back import Table, logged, read_column, with_error

if TYPE_CHECKING:
    from pipeline.competition.rows import Row

BATCH, ROUNDS, TIMED = 8, 7, 64  # images in a batch, rounds, images of a round
ARMS = [(engine, precision) for engine in (TORCH, OPENVINO, INT8) for precision in ("fp32", "bf16")]
COLUMNS = ("run", "model", "engine", "precision", "accuracy", "log_loss", "equal", "logits_off")


def main() -> int:
    """Measure what is missing, and print the tables; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="*", metavar="RUN")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of the speed (default: %(default)s)")
    parser.add_argument(
        "--precision", action="append", metavar="NAME", help="of the speed; repeatable (default: all)"
    )
    parser.add_argument("--results", type=Path, default=Path("runs") / "engines.csv")
    parser.add_argument("--table", action="store_true", help="print the table, and measure nothing")
    args = parser.parse_args()
    table = Table(args.results, COLUMNS)
    for folder in () if args.table else args.runs:
        if not table.has(folder, model_of(folder), *ARMS[-1]):
            measure(table, folder)
    show(table)
    if args.runs and args.rounds and not args.table:
        show_speed(args.runs[0], args.rounds, args.precision or [precision for _, precision in ARMS])
    return 0


def model_of(folder: Path) -> str:
    """Backbone and size of a run, as the tables name it."""
    from pipeline.run import load_run

    recipe = load_run(folder).record.values["recipe"]
    size = f", {recipe['image_size']} px" if recipe["image_size"] else ""  # else the backbone's
    return f"{Path(recipe['backbone']).name}{size}"


def data_of(folder: Path) -> Path:
    """The folder a run was trained on, which has the held-back images."""
    from pipeline.run import load_run

    return Path(load_run(folder).record.values["data"])


def held_rows(folder: Path) -> list[Row]:
    """The held-back images of a run."""
    from pipeline.competition.layout import read_layout

    return list(read_layout(data_of(folder)).test)


def measure(table: Table, folder: Path) -> None:
    """Add a row of every engine: its accuracy, and how far it is from torch in float32."""
    import inference
    from pipeline.run import load_run

    words = ["--model", folder, "--data", data_of(folder), "--output", folder / "predictions.csv"]
    with logged(folder.with_suffix(".log")):
        inference.main([*map(str, words), "--engine", INT8])  # makes the model in 8 bits
    rows, truth = held_rows(folder), read_column(data_of(folder) / "solution.csv")
    names = load_run(folder).target.names
    labels = np.array([names.index(truth[row.id]) for row in rows])
    found = {arm: predictor(folder, rows, *arm)() for arm in ARMS}
    first = found[ARMS[0]]
    for arm, logits in found.items():
        losses = np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(labels)), labels]
        right, equal = (np.mean(logits.argmax(1) == other) for other in (labels, first.argmax(1)))
        off = np.abs(logits - first).max() / np.abs(first).max()
        table.add(folder, model_of(folder), *arm, *map(float, (right, losses.mean(), equal, off)))


def predictor(folder: Path, rows: Sequence[Row], engine: str, precision: str) -> Callable[[], np.ndarray]:
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
    model, logits = classifier.model, classifier.logits
    return lambda: np.asarray(
        predict_logits(model, logits, batches, len(rows), outputs, compute, "held back", leave=False)
    )


def show(table: Table) -> None:
    """Means over runs, and paired differences from torch in float32 with their standard errors."""
    found = {(row["model"], row["run"], row["engine"], row["precision"]): row for row in table.rows()}
    print(
        "| model | engine | accuracy | less torch, fp32 | log loss | same label as torch, fp32 | logits off |"
    )
    print("|---|---|---|---|---|---|---|")
    for model in dict.fromkeys(key[0] for key in found):
        for arm in ARMS:
            rows = [row for key, row in found.items() if (key[0], *key[2:]) == (model, *arm)]
            firsts = [found[model, row["run"], *ARMS[0]] for row in rows]
            less = [float(a["accuracy"]) - float(b["accuracy"]) for a, b in zip(rows, firsts, strict=True)]
            mean = {column: np.mean([float(row[column]) for row in rows]) for column in COLUMNS[4:]}
            print(
                f"| {model} | {', '.join(arm)} | {mean['accuracy']:.4f} ({len(rows)}) | {with_error(less)} | "
                f"{mean['log_loss']:.4f} | {mean['equal']:.2%} | {mean['logits_off']:.2%} |"
            )


def show_speed(folder: Path, rounds: int, precisions: Sequence[str]) -> None:
    """Images per second of every engine, and how much faster it is than torch, medians of `rounds`."""
    rows, arms = held_rows(folder)[:TIMED], [arm for arm in ARMS if arm[1] in precisions]
    runs = {arm: predictor(folder, rows, *arm) for arm in arms}
    took: dict[tuple[str, str], list[float]] = {arm: [] for arm in arms}
    for number in range(rounds + 1):
        for arm, run in runs.items():
            start = time.perf_counter()
            run()
            if number:  # the first one is slower
                took[arm].append(time.perf_counter() - start)
    bases = [arm for arm in arms if arm[0] == TORCH]
    heads = "".join(f" of torch, {precision} |" for _, precision in bases)
    print(f"\n| {model_of(folder)} | images/s |{heads}\n|---|---|{'---|' * len(bases)}")
    for arm in arms:
        faster = [
            statistics.median(a / b for a, b in zip(took[base], took[arm], strict=True)) for base in bases
        ]
        cells = "".join(f" {ratio:.2f} x |" for ratio in faster)
        print(f"| {', '.join(arm)} | {len(rows) / statistics.median(took[arm]):.1f} |{cells}")


if __name__ == "__main__":
    sys.exit(main())
