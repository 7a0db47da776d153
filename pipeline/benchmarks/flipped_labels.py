"""Measure `make suspects`: flip labels at random, search for them, and train with and without the
suspects.

python -m pipeline.benchmarks.flipped_labels --data data/digits --output runs/flipped -- --recipe digits

For each seed 5 % of the training labels become another class, and five folds are trained on them. The
suspects are compared with the flipped labels. Then a model is trained on the labels as they are, without the
suspects, with the suggested labels, and with the true labels. Without a solution three tenths of the labelled
rows are held back as the test part. Finished work is kept, so the same command continues.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from pipeline.competition.layout import read_layout
from pipeline.competition.splits import train_val_split
from pipeline.errors import UserError, run_command
from pipeline.files import read_json, write_json
from pipeline.tables import load_table, write_table

FLIPPED, HELD_BACK = 0.05, 0.3
WAYS = ("as they are", "without the suspects", "with the suggested labels", "with the true labels")
COUNTS = ("rows", "flipped", "suspects", "right of the first", "right of all", "found")


def main(argv: list[str] | None = None) -> int:
    """Run every seed that was not run yet, and print the table of all seeds. Return the exit code.

    Raises:
        UserError: a number is below 1, the competition does not have one class per image, or a command
            failed.
    """
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.benchmarks.flipped_labels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="a competition with one class per image"
    )
    parser.add_argument(
        "--solution", type=Path, metavar="FILE", help="the labels of its test images (id, label)"
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="the folder for all results"
    )
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="default: %(default)s")
    parser.add_argument("--folds", type=int, default=5, metavar="K", help="default: %(default)s")
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="seeds at the same time (default: %(default)s)"
    )
    parser.add_argument("flags", nargs="*", metavar="-- FLAGS", help="flags of train.py")
    args = parser.parse_args(argv)
    for flag, number in (("--seeds", args.seeds), ("--workers", args.workers)):
        if number < 1:
            raise UserError(f"{flag} {number}: at least 1")
    competition = read_layout(args.data)
    if competition.target is None or not competition.target.is_choice:
        raise UserError(f"{args.data}: one class per image is needed to flip labels")
    with ThreadPoolExecutor(args.workers) as pool:  # threads: each waits for its own processes
        results = list(pool.map(partial(one_seed, args), range(args.seeds)))
    print("\n".join(table_of(results)))
    return 0


def one_seed(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Return counts and test accuracies of one seed; a finished seed is read from its result.json.

    Raises:
        UserError: a command failed.
    """
    folder = args.output / f"seed-{seed}"
    if (folder / "result.json").exists():
        return read_json(folder / "result.json")
    truth, test = lay_out(args.data, args.solution, folder / "data", seed)
    given = flip(truth, seed)
    write_labels(folder / "data" / "train.csv", given)
    write_labels(folder / "true.csv", truth)
    own = ["--data", str(folder / "data"), "--seed", str(seed), *args.flags]
    _run("train.py", *own, "--folds", str(args.folds), "--output", str(folder / "folds"), "--resume")
    _run("-m", "pipeline.cleaning.suspects", "--model", str(folder / "folds"), "--neighbours", "0")
    suspects = folder / "folds" / "suspects" / "suspects.csv"
    result = found_in(suspects, truth, given)
    table = load_table(suspects)
    suggested = dict(zip(table.column("id"), table.column("suggested"), strict=True))
    write_labels(folder / "relabel.csv", suggested)
    keys_of_ways = (
        [],
        [f"data.exclude={suspects}"],
        [f"data.relabel={folder / 'relabel.csv'}"],
        [f"data.relabel={folder / 'true.csv'}"],
    )
    for number, (way, keys) in enumerate(zip(WAYS, keys_of_ways, strict=True)):
        run = folder / f"run-{number}"
        _run(
            "train.py",
            *own,
            *("--set", "data.val_fraction=0"),
            *(word for key in keys for word in ("--set", key)),
            *("--output", str(run), "--resume"),
        )
        _run(
            "inference.py",
            *("--model", str(run), "--data", str(folder / "data")),
            *("--output", str(run / "predictions.csv")),
        )
        table = load_table(run / "predictions.csv")
        predicted = dict(zip(table.column(table.columns[0]), table.column(table.columns[1]), strict=True))
        result[way] = sum(predicted[row_id] == label for row_id, label in test.items()) / len(test)
    write_json(folder / "result.json", result)
    return result


def lay_out(
    data: Path, solution: Path | None, folder: Path, seed: int
) -> tuple[dict[str, str], dict[str, str]]:
    """Make `folder` a competition without labels.

    Return the true labels of its training and of its test images. The training images get new names, because
    those of class folders reveal the class.
    """
    competition = read_layout(data)
    rows = [(row.path, row.label) for row in competition.train]
    if solution is None:
        train, held, _ = train_val_split([label for _, label in rows], HELD_BACK, seed)
        parts = {"train": [rows[number] for number in train], "test": [rows[number] for number in held]}
    else:
        table = load_table(solution)
        label_of = dict(zip(table.column(table.columns[0]), table.column(table.columns[1]), strict=True))
        parts = {"train": rows, "test": [(row.path, label_of[row.id]) for row in competition.test]}
    truth: dict[str, dict[str, str]] = {}
    for part, found in parts.items():
        (folder / f"{part}_images").mkdir(parents=True, exist_ok=True)
        truth[part] = {}
        for number, (path, label) in enumerate(found):
            name = f"{part}_{number:05d}"
            shutil.copyfile(path, folder / f"{part}_images" / f"{name}{path.suffix}")
            truth[part][name] = label
    write_labels(folder / "sample_submission.csv", dict.fromkeys(truth["test"], rows[0][1]))
    return truth["train"], truth["test"]


def flip(truth: dict[str, str], seed: int) -> dict[str, str]:
    """Return the labels with a share of `FLIPPED` changed to another class, drawn by `seed`.

    The last row of a class keeps its label.
    """
    chosen, given = random.Random(seed), dict(truth)
    names = sorted(set(truth.values()))
    wanted = round(FLIPPED * len(truth))
    for row_id in chosen.sample(sorted(truth), len(truth)):
        if wanted and list(given.values()).count(truth[row_id]) > 1:
            given[row_id] = chosen.choice([name for name in names if name != truth[row_id]])
            wanted -= 1
    return given


def found_in(suspects: Path, truth: dict[str, str], given: dict[str, str]) -> dict[str, Any]:
    """Return how many suspects are flipped rows, and the share of flipped rows that were found.

    The share of suspects is given for the first ones (as many as were flipped) and for all.
    """
    flipped = {row_id for row_id, label in truth.items() if given[row_id] != label}
    ids = load_table(suspects).column("id")
    first = ids[: len(flipped)]

    def share(found: Sequence[str]) -> float | None:
        return sum(row_id in flipped for row_id in found) / len(found) if found else None

    found = len(flipped & set(ids)) / len(flipped)
    return dict(
        zip(COUNTS, (len(truth), len(flipped), len(ids), share(first), share(ids), found), strict=True)
    )


def write_labels(path: Path, labels: dict[str, str]) -> None:
    """Write a table with the columns id and label."""
    write_table(path, ("id", "label"), labels.items())


def table_of(results: Sequence[dict[str, Any]]) -> list[str]:
    """Return a line for each value: of every seed, mean and deviation.

    Then what each way gains over the labels as they are.
    """
    lines = [
        f"{'':32}"
        + "".join(f"{f'seed {seed}':>9}" for seed in range(len(results)))
        + f"{'mean':>9}{'dev.':>8}"
    ]
    for key in (*COUNTS, *WAYS):
        lines.append(_line(f"test, {key}" if key in WAYS else key, [row[key] for row in results]))
    lines += [_line(f"gain {way}"[:32], [row[way] - row[WAYS[0]] for row in results]) for way in WAYS[1:]]
    return lines


def _line(name: str, values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]

    def word(value: float | None) -> str:
        return "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"

    cells = "".join(f"{word(value):>9}" for value in values)
    middle = word(float(mean(known))) if known else "-"
    spread = word(stdev(known)) if len(known) > 1 else "-"
    return f"{name:32}{cells}{middle:>9}{spread:>8}"


def _run(*words: str) -> None:
    print(f"$ python {' '.join(words)}", flush=True)
    result = subprocess.run(
        [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if result.returncode:
        raise UserError(
            f"`python {' '.join(words)}` ended with {result.returncode}:\n{result.stdout[-2000:]}"
        )


if __name__ == "__main__":
    sys.exit(run_command(main))
