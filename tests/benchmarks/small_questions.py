"""Questions about images with few training questions: rows of settings beside the question alone and simple
heads on frozen features.

    # measures what is missing
    python -m tests.benchmarks.small_questions --competitions DIR --backbone BACKBONE --text-backbone TEXT
    python -m tests.benchmarks.small_questions --table  # the table alone

DIR holds easy_vqa/. Of its labelled images 160 are held back with all their questions, the same for
every seed, so that settings can be searched on the others. Seed s draws the images whose questions train
(1,000, 4,000 or all questions of the others), the run's own validation rows among them (a fifth, by image),
and is the seed of training. `--workers 8` trains eight runs at a time.

The question alone: the most frequent training answer to the same words, or logistic regression on a bag of
words. Simple heads: logistic regression on features of the frozen backbones as a run computes them, side by
side, multiplied, or both; of an image the class token, or that and the mean of the patches. Penalties are
chosen on the run's validation rows; all see the training rows that a run sees.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import inference
from pipeline.competition.layout import read_layout
from pipeline.competition.rows import Row
from pipeline.config import parse_assignments
from pipeline.errors import UserError
from pipeline.experiments.grids import load_grid
from pipeline.files import read_json, read_json_lines, write_text
from pipeline.run_names import FLOORS
from tests.benchmarks.frozen_heads import BY_COUNT, HEADS, QUESTION_ALONE, simple_heads
from tests.benchmarks.held_back import (
    Table,
    laying_out,
    link,
    logged,
    parser_of,
    run_train,
    side_by_side,
    with_error,
    write_rows,
)

GRIDS = Path(__file__).with_name("grids")
SIZES = ("1000", "4000", "all")
HELD_BACK = 160  # images
HELD_BACK_SEED = 0
EXCHANGED = "-exchanged"
COLUMNS = tuple(
    "data size seed row val_accuracy val_question_alone val_exchanged accuracy seconds trainable".split()
)


@dataclass(frozen=True)
class Job:
    """One row of the grid, or the simple heads (`heads`), on one size with one seed."""

    data: str
    size: str
    seed: int
    row: str
    heads: bool
    recipe: Path
    folder: Path
    laid_out: Path

    @property
    def key(self) -> tuple[str, str, int]:
        """The first cells of its rows in the table."""
        return self.data, self.size, self.seed


Cells = tuple[Any, ...]


def main() -> int:
    """Measure what is missing, and print the table; the exit code."""
    parser = parser_of(__doc__, "small-questions", ["easy_vqa"], [0, 1, 2])
    parser.add_argument(
        "--sizes",
        nargs="+",
        default=list(SIZES),
        help="training questions, the validation rows among them; all: every one",
    )
    parser.add_argument("--grid", default="questions", help="name of a file in tests/benchmarks/grids/")
    parser.add_argument("--backbone", help="of the images: hub id or folder")
    parser.add_argument("--text-backbone", help="of the questions: hub id or folder")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="of every row, over its own changes"
    )
    parser.add_argument("--rows", type=int, nargs="+", help="these rows of the grid alone, by number from 0")
    parser.add_argument(
        "--no-heads", action="store_true", help="without the simple heads and the question alone"
    )
    parser.add_argument(
        "--exchanged",
        action="store_true",
        help="images that say nothing: each question has another one's image",
    )
    parser.add_argument("--no-grid", action="store_true", help="these alone")
    args = parser.parse_args()
    table = Table(args.results, COLUMNS)
    if not args.table:
        measure(args, table)
    show(table, args)
    return 0


# ---- the data ----


def lay_out_questions(
    name: str, competitions: Path, work: Path, size: str, seed: int, exchanged: bool = False
) -> Path:
    """The competition `name` cut to `size` training questions drawn by `seed`, with the held-back images as
    its test part.

    Nothing is done where the folder is there. `exchanged`: each question of either part gets the image of
    another, drawn by `seed`.
    """
    folder = work / f"data-{name}{EXCHANGED if exchanged else ''}-{size}-{seed}"
    if folder.exists():
        return folder
    rows = read_layout(competitions / name, need="train").train
    held, rest = _parts(rows)
    pictures = sorted({row.path for row in rest})
    place = {
        pictures[own]: number
        for number, own in enumerate(np.random.default_rng(seed).permutation(len(pictures)).tolist())
    }
    rest.sort(key=lambda row: (place[row.path], row.id))
    if size != "all" and int(size) > len(rest):
        raise UserError(
            f"--sizes {size}: {name} has {len(rest):,} questions beside the {len(held):,} held back; use a "
            "smaller number, or all"
        )
    chosen = rest if size == "all" else rest[: int(size)]
    if exchanged:
        chosen, held = (_exchanged(part, seed) for part in (chosen, held))
    with laying_out(folder) as root:
        for path in {row.path for row in (*chosen, *held)}:
            link(path, root / "images" / path.name)
        asked = ("question_id", "image", "question")
        write_rows(root / "train.csv", [(*asked, "answer"), *((*_asked(row), row.label) for row in chosen)])
        write_rows(root / "test.csv", [asked, *map(_asked, held)])
        write_rows(
            root / "sample_submission.csv",
            [("question_id", "answer"), *((row.id, chosen[0].label) for row in held)],
        )
        write_rows(root / "solution.csv", [("question_id", "answer"), *((row.id, row.label) for row in held)])
    return folder


def _parts(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """The rows about the held-back images, and the others."""
    pictures = sorted({row.path for row in rows})
    held = {
        pictures[own]
        for own in np.random.default_rng(HELD_BACK_SEED).permutation(len(pictures))[:HELD_BACK].tolist()
    }
    return [row for row in rows if row.path in held], [row for row in rows if row.path not in held]


def _exchanged(rows: Sequence[Row], seed: int) -> list[Row]:
    order = np.random.default_rng(seed).permutation(len(rows)).tolist()
    return [replace(row, path=rows[other].path) for row, other in zip(rows, order, strict=True)]


def _asked(row: Row) -> tuple[str, str, str]:
    return row.id, row.path.name, row.question or ""


def solution_of(laid_out: Path) -> dict[str, str]:
    """question id -> the answer held back."""
    return _answers(laid_out / "solution.csv")


def _answers(path: Path) -> dict[str, str]:
    with open(path, newline="", encoding="utf-8") as file:
        return {row["question_id"]: row["answer"] for row in csv.DictReader(file)}


# ---- measuring ----


def jobs(args: argparse.Namespace, table: Table) -> Iterator[Job]:
    """What is not measured yet, each with its recipe written beside its folder; the longest first."""
    given = parse_assignments([f"text_backbone={args.text_backbone}", *args.set])
    for size, seed, name in itertools.product(reversed(args.sizes), args.seeds, args.data):
        laid_out = lay_out_questions(name, args.competitions, args.work, size, seed, args.exchanged)
        name += EXCHANGED if args.exchanged else ""
        trials = load_grid(str(GRIDS / f"{args.grid}.yaml"), args.backbone, given, [seed]).trials
        wanted = [] if args.no_grid else list(enumerate(trials))
        for number, trial in wanted:
            if table.has(name, size, seed, trial.row) or (args.rows is not None and number not in args.rows):
                continue
            folder = args.work / f"{args.grid}-{name}-{size}-{seed}-{number}"
            yield Job(name, size, seed, trial.row, False, _written(trial.recipe, folder), folder, laid_out)
        if not args.no_heads and not table.has(name, size, seed, HEADS[-1]):
            folder = args.work / f"heads-{name}-{size}-{seed}"
            yield Job(
                name, size, seed, "simple heads", True, _written(trials[0].recipe, folder), folder, laid_out
            )


def _written(recipe: Any, folder: Path) -> Path:
    path = folder.with_suffix(".yaml")
    write_text(path, yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
    return path


def measure(args: argparse.Namespace, table: Table) -> None:
    """Train, predict and score every job, `--workers` at a time; a row is written as soon as it is known."""
    if not (args.competitions and args.backbone and args.text_backbone):
        raise UserError(
            "--competitions, --backbone and --text-backbone are needed; --table alone needs none of them"
        )
    side_by_side(run, list(jobs(args, table)), args.workers, partial(_add, table))


def _add(table: Table, rows: Sequence[Cells]) -> None:
    for cells in rows:
        if not table.has(*cells[:4]):
            table.add(*cells)


def run(job: Job) -> list[Cells]:
    """The cells of one row of the table, or of each simple head. Seconds are those of all epochs, without
    start and page.
    """
    try:
        if job.heads:
            found = simple_heads(job.recipe, job.laid_out, solution_of(job.laid_out))
            return [
                (*job.key, name, val, "", "", held, seconds, trained)
                for name, val, held, seconds, trained in found
            ]
        log = job.folder.with_suffix(".log")
        run_train(log, "--recipe", job.recipe, "--data", job.laid_out, "--output", job.folder)
        accuracy = held_back_accuracy(log, job.folder, job.laid_out)
    except UserError as error:
        raise UserError(f"{job.row}, {job.size} questions of {job.data}, seed {job.seed}: {error}") from None
    record, floors = read_json(job.folder / "run.json"), list(read_json(job.folder / FLOORS).values())
    seconds = sum(line["seconds"] for line in read_json_lines(job.folder / "timing.jsonl"))
    trained = record["counts"]["parameters"]["trainable"]
    for model in job.folder.glob("**/*.safetensors"):  # tens of runs
        model.unlink()
    return [
        (
            *job.key,
            job.row,
            float(record["best"]["value"]),
            float(floors[1]),
            float(floors[2]),
            accuracy,
            float(seconds),
            trained,
        )
    ]


def held_back_accuracy(log: Path, model: Path, laid_out: Path) -> float:
    """The share of the held-back questions that `python inference.py --model ...` answers right."""
    with tempfile.TemporaryDirectory() as temporary, logged(log):
        output = Path(temporary) / "predictions.csv"
        words = ["--model", str(model), "--data", str(laid_out), "--output", str(output)]
        print("$ python inference.py", *words)
        inference.main(words)
        said, truth = _answers(output), solution_of(laid_out)
    return sum(said[number] == answer for number, answer in truth.items()) / len(truth)


# ---- the table ----


def show(table: Table, args: argparse.Namespace) -> None:
    """For each size: accuracy on held-back questions, its paired difference from the question alone, and on
    the run's validation rows the differences from its own two floors.
    """
    wanted = [row for row in table.rows() if int(row["seed"]) in args.seeds]
    names = [name + (EXCHANGED if args.exchanged else "") for name in args.data]
    for name, size in itertools.product(names, args.sizes):
        found = [row for row in wanted if row["data"] == name and row["size"] == size]
        alone = _best(found, QUESTION_ALONE)
        floor = {row["seed"]: float(row["accuracy"]) for row in found if row["row"] == alone}
        best_head = _best(found, HEADS)
        print(
            f"\n{name}, {size} questions; the best without the image: {alone}; the best simple head: "
            f"{best_head}\n"
        )
        print(
            "| | trained | held back | less the question alone | validation | less the same words | less "
            "images exchanged | seconds |"
        )
        print("|---|---|---|---|---|---|---|---|")
        for row in sorted({row["row"] for row in found}, key=_order):
            own = [one for one in found if one["row"] == row]
            less = [float(one["accuracy"]) - floor[one["seed"]] for one in own if one["seed"] in floor]
            cells = [row, f"{int(own[0]['trainable']):,}", f"{_mean(own, 'accuracy'):.4f} ({len(own)})"]
            cells += [with_error(less) if less else "", f"{_mean(own, 'val_accuracy'):.4f}"]
            for column in ("val_question_alone", "val_exchanged"):
                cells.append(
                    ""
                    if not own[0][column]
                    else with_error([float(one["val_accuracy"]) - float(one[column]) for one in own])
                )
            print("| " + " | ".join([*cells, f"{_mean(own, 'seconds'):.0f}"]) + " |")


def _order(row: str) -> tuple[int, str]:
    """What knows less comes first, then the simple heads, then rows of the grid."""
    known = [BY_COUNT, *(name for name in QUESTION_ALONE if name != BY_COUNT), *HEADS]
    return (known.index(row) if row in known else len(known), row)


def _best(rows: Sequence[dict[str, str]], names: Sequence[str]) -> str | None:
    """Of these rows the one with the highest mean accuracy on the held-back questions, which is in its
    favour.
    """
    there = [name for name in names if any(row["row"] == name for row in rows)]
    return max(
        there, key=lambda name: _mean([row for row in rows if row["row"] == name], "accuracy"), default=None
    )


def _mean(rows: Sequence[dict[str, str]], column: str) -> float:
    return float(np.mean([float(row[column]) for row in rows]))


if __name__ == "__main__":
    sys.exit(main())
