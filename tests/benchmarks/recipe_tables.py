"""Rows of settings beside each other on several sets and seeds: accuracy on held-back images, the difference
from the first row, seconds.

    # measures what is missing
    python -m tests.benchmarks.recipe_tables --grid peft tricks --competitions DIR --backbone BACKBONE
    python -m tests.benchmarks.recipe_tables --grid peft --table  # the table alone

A grid is a file of `tests/benchmarks/grids/`, in the form of those of `make ablation`. DIR holds
produce/ and clothing/; digits are made, "produce, long tail" is cut from produce, and an image of "clothing,
four in one" shows four of clothing, so it has several labels, and its score is the mean average precision.
Seed s draws ROWS of the labelled rows for training and for a held-back part, both stratified, and is the seed
of training. `--judge val` shows the accuracy of the run's own validation rows (of the last epoch) instead: by
it settings are searched, so that held-back images stay unseen. `--workers 8` trains eight runs at a time,
each in a process of its own.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pipeline.config import parse_assignments
from pipeline.errors import UserError
from pipeline.experiments.grids import load_grid
from pipeline.files import read_json, read_json_lines, write_text
from pipeline.recipe import Recipe
from tests.benchmarks.held_back import (
    DIGITS,
    Table,
    lay_out,
    lay_out_several,
    parser_of,
    run_train,
    score_of,
    side_by_side,
    with_error,
)

GRIDS = Path(__file__).with_name("grids")
# The end of a set's name: the first class keeps its training rows, the last one in ten
TAILED = ", long tail"
SEVERAL = ", four in one"  # several labels an image, see held_back.lay_out_several
# For training, held back
ROWS = {"produce": (348, 232), "clothing": (348, 400), DIGITS: (348, 400), f"produce{TAILED}": (348, 232)}
ROWS[f"clothing{SEVERAL}"] = (348, 400)
SMALLER = {DIGITS: 2}  # by how much the side is divided: digits are images of 32 pixels
OWN = {DIGITS: {"augmentation.horizontal_flip": False}}  # a mirrored digit is another symbol
# data.pseudo_labels: the run of the grid's first row, same set and seed, and so the same split
FIRST_ROW = "FIRST ROW"
COLUMNS = ("grid", "data", "seed", "row", "val_accuracy", "accuracy", "seconds", "trainable")


@dataclass(frozen=True)
class Job:
    """One row of a grid on one set with one seed: the flags of train.py, and where everything goes."""

    grid: str
    data: str
    seed: int
    row: str
    words: tuple[str, ...]
    folder: Path
    laid_out: Path


def main() -> int:
    """Measure what is missing, and print the table; the exit code."""
    parser = parser_of(__doc__, "recipe-tables", ["produce", "clothing", DIGITS], [0, 1, 2])
    parser.add_argument("--grid", nargs="+", required=True, help="names of files in tests/benchmarks/grids/")
    parser.add_argument("--backbone", type=Path)
    parser.add_argument("--workers", type=int, default=1, help="runs at a time")
    parser.add_argument("--judge", choices=["held-back", "val"], default="held-back")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="of every row, over its own changes"
    )
    parser.add_argument("--rows", type=int, nargs="+", help="these rows alone, by number from 0")
    args = parser.parse_args()
    table = Table(args.results, COLUMNS)
    if not args.table:
        measure(args, table)
    for grid in args.grid:
        show(table, grid, args)
    return 0


def grid_file(grid: str) -> str:
    """The path of a grid of this folder."""
    return str(GRIDS / f"{grid}.yaml")


def laid_out(name: str, seed: int, args: argparse.Namespace) -> Path:
    """The folder of the set `name` with this seed, made where it is not there."""
    if name.endswith(SEVERAL):
        return lay_out_several(name.removesuffix(SEVERAL), args.competitions, args.work, ROWS[name], seed)
    return lay_out(
        name.removesuffix(TAILED),
        args.competitions,
        args.work,
        ROWS[name],
        seed,
        tail=10 if name.endswith(TAILED) else 1,
    )


def jobs(args: argparse.Namespace, table: Table) -> Iterator[Job]:
    """What is not measured yet, each with its recipe written beside its folder."""
    given = parse_assignments(args.set)
    for seed, grid, name in itertools.product(args.seeds, args.grid, args.data):
        data = laid_out(name, seed, args)
        trials = load_grid(grid_file(grid), str(args.backbone), OWN.get(name, {}) | given, [seed]).trials
        for number, trial in enumerate(trials):
            if table.has(grid, name, seed, trial.row) or (args.rows is not None and number not in args.rows):
                continue
            folder = args.work / f"{grid}-{name}-{seed}-{number}"
            recipe = smaller(trial.recipe, SMALLER.get(name, 1))
            if recipe.data.pseudo_labels == FIRST_ROW:
                own = recipe.data.model_copy(
                    update={"pseudo_labels": str(args.work / f"{grid}-{name}-{seed}-0")}
                )
                recipe = recipe.model_copy(update={"data": own})
            write_text(
                folder.with_suffix(".yaml"), yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
            )
            words = ("--recipe", str(folder.with_suffix(".yaml")), "--data", str(data))
            yield Job(grid, name, seed, trial.row, words, folder, data)


def smaller(recipe: Recipe, divisor: int) -> Recipe:
    """`recipe` with every image size divided."""
    sizes = tuple(size // divisor for size in recipe.schedule.image_sizes)
    schedule = recipe.schedule.model_copy(update={"image_sizes": sizes})
    return recipe.model_copy(update={"image_size": recipe.image_size // divisor, "schedule": schedule})


def measure(args: argparse.Namespace, table: Table) -> None:
    """Train, predict and score every job, `--workers` at a time; a row is written as soon as it is known."""
    side_by_side(run, list(jobs(args, table)), args.workers, lambda cells: table.add(*cells))


def run(job: Job) -> tuple[Any, ...]:
    """The cells of one row of the table. Seconds are those of all epochs, without start and page."""
    log = job.folder.with_suffix(".log")
    try:
        run_train(log, *job.words, "--output", job.folder)
        accuracy = score_of(log, [job.folder], job.laid_out)
    except UserError as error:
        raise UserError(f"{job.row} on {job.data}, seed {job.seed}: {error}") from None
    record, lines = read_json(job.folder / "run.json"), read_json_lines(job.folder / "metrics.jsonl")
    seconds = sum(line["seconds"] for line in read_json_lines(job.folder / "timing.jsonl"))
    trained = record["counts"]["parameters"]["trainable"]
    for model in job.folder.glob("**/*.safetensors"):  # hundreds of runs
        model.unlink()
    return (
        job.grid,
        job.data,
        job.seed,
        job.row,
        float(lines[-1].get("val_accuracy", lines[-1].get("val_label_accuracy", 0))),
        accuracy,
        float(seconds),
        trained,
    )


def show(table: Table, grid: str, args: argparse.Namespace) -> None:
    """Means over seeds; paired differences from the first row with their standard errors; seconds as a
    multiple of the first row's.
    """
    column = "accuracy" if args.judge == "held-back" else "val_accuracy"
    found = [
        row
        for row in table.rows()
        if row["grid"] == grid and row["data"] in args.data and int(row["seed"]) in args.seeds
    ]
    score = {(row["row"], row["data"], row["seed"]): float(row[column]) for row in found}
    seconds = {(row["row"], row["data"], row["seed"]): float(row["seconds"]) for row in found}
    data = [name for name in args.data if any(row["data"] == name for row in found)]
    # Peers are in no grid
    names = [row.name for row in load_grid(grid_file(grid)).rows] + [one["row"] for one in found]
    names = [name for name in dict.fromkeys(names) if any(one["row"] == name for one in found)]
    print(
        "| settings | trained | "
        + " | ".join(f"{name} | less the first" for name in data)
        + " | all sets, less the first | time |"
    )
    print("|---" * (4 + 2 * len(data)) + "|")
    for name in names:
        cells: list[str] = []
        every, times = [], []
        for where in data:
            keys = [key for key in score if key[0] == name and key[1] == where]
            pairs = [(key, (names[0], *key[1:])) for key in keys if (names[0], *key[1:]) in score]
            differences = [score[own] - score[first] for own, first in pairs]
            times += [seconds[own] / seconds[first] for own, first in pairs]
            every += differences
            cells += [f"{np.mean([score[key] for key in keys]):.4f} ({len(keys)})" if keys else ""]
            cells += [with_error(differences) if differences and name != names[0] else ""]
        trained = max(int(row["trainable"]) for row in found if row["row"] == name)
        total = with_error(every) if every and name != names[0] else ""
        print(f"| {name} | {trained:,} | " + " | ".join(cells) + f" | {total} | {np.median(times):.2f} |")


if __name__ == "__main__":
    sys.exit(main())
