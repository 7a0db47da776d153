"""One run, five folds averaged, five folds with a mirrored view, a blend of two backbones: accuracy on
held-back images, over seeds.

    # measures what is missing, then the table
    python -m tests.benchmarks.folds_and_blends --competitions COMPETITIONS --backbones BACKBONES
    python -m tests.benchmarks.folds_and_blends --table  # the table alone

COMPETITIONS holds produce/, BACKBONES beit-tiny-64/ and dinov2-small/. Seed s draws ROWS of the labelled rows
for training and for a held-back part, both stratified, and is the seed of the folds and of training. The
recipe is folds.yaml beside this file; digits are neither mirrored nor cut small.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.held_back import (
    DIGITS,
    Table,
    lay_out,
    logged,
    parser_of,
    run_train,
    score_of,
    with_error,
)

RECIPE = Path(__file__).with_name("folds.yaml")
ROWS = {"produce": (290, 290), DIGITS: (290, 360)}  # for training, held back
BACKBONES = ("beit-tiny-64", "dinov2-small")
SIZES = {("dinov2-small", "produce"): 84, ("dinov2-small", DIGITS): 56}  # pixels; digits are images of 32
FOLDS = 5
COLUMNS = ("data", "backbone", "seed", "what", "accuracy")
BLEND, BOTH = "blend", "both"
ARMS = ("one run", "mean of the members", "five folds", "five folds, flip", "five folds, out-of-fold rows")
BLENDED = ("plain mean of both", "blend", "blend, out-of-fold rows, nested")


def main() -> int:
    """Measure what is missing, and print the table; the exit code."""
    parser = parser_of(__doc__, "folds-and-blends", list(ROWS), [0, 1, 2])
    parser.add_argument(
        "--backbones", type=Path, help="the folder that holds beit-tiny-64/ and dinov2-small/"
    )
    parser.add_argument("--only", nargs="+", default=list(BACKBONES), help="these backbones alone")
    args = parser.parse_args()
    table = Table(args.results, COLUMNS)
    if not args.table:
        for name in args.data:
            for backbone in args.only:
                for seed in args.seeds:
                    measure(args, table, name, backbone, seed)
            for seed in args.seeds:
                if len(args.only) == len(BACKBONES):
                    measure_blend(args, table, name, seed)
    show(table)
    return 0


def folds_of(args: argparse.Namespace, name: str, backbone: str, seed: int) -> Path:
    """The run folder of five folds."""
    return args.work / f"folds-{name}-{backbone}-{seed}"


def measure(args: argparse.Namespace, table: Table, name: str, backbone: str, seed: int) -> None:
    """One run and five folds of one backbone, with one seed."""
    if table.has(name, backbone, seed, ARMS[-1]):
        return
    data = lay_out(name, args.competitions, args.work, ROWS[name], seed)
    folds = folds_of(args, name, backbone, seed)
    log = folds.with_suffix(".log")
    words: list[Any] = [
        *("--recipe", RECIPE, "--data", data, "--backbone", args.backbones / backbone, "--seed", seed)
    ]
    if size := SIZES.get((backbone, name)):
        words += ["--image-size", size]
    if name == DIGITS:
        words += ["--set", "augmentation.horizontal_flip=false", "--set", "augmentation.crop_scale=[0.8,1.0]"]
    run_train(log, *words, "--folds", FOLDS, "--output", folds)
    members = [score_of(log, [folds / f"fold-{number}"], data) for number in range(1, FOLDS + 1)]
    for number, value in enumerate(members, start=1):
        table.add(name, backbone, seed, f"fold {number}", value)
    table.add(name, backbone, seed, ARMS[1], float(np.mean(members)))
    table.add(name, backbone, seed, ARMS[2], score_of(log, [folds], data))
    if name != DIGITS:
        table.add(name, backbone, seed, ARMS[3], score_of(log, [folds], data, "--tta", "flip"))
    one = folds.with_name(folds.name.replace("folds-", "one-"))
    run_train(log, *words, "--output", one)
    table.add(name, backbone, seed, ARMS[0], score_of(log, [one], data))
    table.add(name, backbone, seed, ARMS[4], out_of_fold(folds))


def measure_blend(args: argparse.Namespace, table: Table, name: str, seed: int) -> None:
    """Both backbones' folds: their plain mean, and weights from out-of-fold rows."""
    from pipeline.folds import blend

    if table.has(name, BOTH, seed, BLENDED[-1]):
        return
    data = lay_out(name, args.competitions, args.work, ROWS[name], seed)
    output = args.work / f"blend-{name}-{seed}"
    members = [folds_of(args, name, backbone, seed) for backbone in BACKBONES]
    log = output.with_suffix(".log")
    table.add(name, BOTH, seed, BLENDED[0], score_of(log, members, data))
    with logged(log):
        blend.main(["--runs", *map(str, members), "--output", str(output)])
    said = re.findall(r"^chosen: .*|^no blend is better.*", log.read_text(encoding="utf-8"), re.MULTILINE)[-1]
    print(f"  {name}, seed {seed}: {said}", file=sys.stderr)
    if (output / "run.json").exists():
        table.add(name, BOTH, seed, BLENDED[1], score_of(log, [output], data))
        table.add(name, BOTH, seed, BLENDED[2], out_of_fold(output))
        return
    alone = next(member for member in members if f"{member} alone" in said)
    table.add(name, BOTH, seed, BLENDED[1], score_of(log, [alone], data))  # what the command says to use
    table.add(name, BOTH, seed, BLENDED[2], out_of_fold(alone))


def out_of_fold(folder: Path) -> float:
    """The accuracy that run.json holds of rows that no model saw."""
    from pipeline.files import read_json

    return float(read_json(folder / "run.json")["best"]["value"])


def show(table: Table) -> None:
    """Means over seeds, and paired differences with their standard errors."""
    found = {
        (row["data"], row["backbone"], row["what"], int(row["seed"])): float(row["accuracy"])
        for row in table.rows()
    }

    def values(name: str, backbone: str, what: str) -> list[float]:
        return [found[key] for key in sorted(found) if key[:3] == (name, backbone, what)]

    def less(name: str, backbone: str, what: str, other: str, than: str) -> str:
        seeds = [
            key[3]
            for key in sorted(found)
            if key[:3] == (name, backbone, what) and (name, other, than, key[3]) in found
        ]
        return (
            with_error([found[name, backbone, what, seed] - found[name, other, than, seed] for seed in seeds])
            if seeds
            else ""
        )

    for name in dict.fromkeys(key[0] for key in found):
        print(f"\n{name}:\n\n| | {' | '.join(BACKBONES)} |\n|---|{'---|' * len(BACKBONES)}")
        for what in ARMS:
            each = [values(name, backbone, what) for backbone in BACKBONES]
            if any(each):
                print(
                    f"| {what} | "
                    f"{' | '.join(f'{np.mean(one):.4f} ({len(one)} seeds)' if one else '' for one in each)} |"
                )
        for what, than in ((ARMS[2], ARMS[1]), (ARMS[2], ARMS[0]), (ARMS[3], ARMS[2])):
            if any(values(name, backbone, what) for backbone in BACKBONES):
                print(
                    f"| {what}, less {than} | "
                    f"{' | '.join(less(name, backbone, what, backbone, than) for backbone in BACKBONES)} |"
                )
        print(
            f"\n| both backbones | | {' | '.join(f'less {backbone}' for backbone in BACKBONES)} "
            f"|\n|---|---|{'---|' * len(BACKBONES)}"
        )
        for what in BLENDED:
            if one := values(name, BOTH, what):
                than = ARMS[4] if what == BLENDED[2] else ARMS[2]
                cells = " | ".join(less(name, BOTH, what, backbone, than) for backbone in BACKBONES)
                print(f"| {what} | {np.mean(one):.4f} ({len(one)} seeds) | {cells} |")


if __name__ == "__main__":
    sys.exit(main())
