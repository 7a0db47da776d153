"""Prior shift and mirrored views, on runs that other benchmarks left, on one set with several seeds: nothing
is trained.

    # single runs of kept_epoch.py; also mirrored views
    python -m tests.benchmarks.shift_and_views --work runs/kept-epoch
    # five folds of folds_and_blends.py
    python -m tests.benchmarks.shift_and_views --work runs/folds-and-blends --folds dinov2-small

The held-back images of each seed are cut CUTS times. `skewed` keeps every image of 4 classes drawn at random
and one of each other class, `even` a random half. `--prior FILE` gets the true shares of the cut. Predictions
of an image do not depend on the others, so each cut is arithmetic on test.npy. Folds know from their
out-of-fold rows how sure the models are (a temperature), single runs do not.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from pathlib import Path

import numpy as np

from tests.benchmarks.held_back import read_column, with_error

CUTS, FULL_CLASSES = 40, 4


def main() -> int:
    """Print both tables; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("runs/kept-epoch"))
    parser.add_argument("--data", default="produce")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--arm", type=int, default=1, help="of kept_epoch.py (default: clip 1, decay 0)")
    parser.add_argument(
        "--folds",
        metavar="BACKBONE",
        help="the folds of this backbone that folds_and_blends.py trained, in place of single runs",
    )
    args = parser.parse_args()
    data = [args.work / f"data-{args.data}-{seed}" for seed in args.seeds]
    if args.folds:
        shifts(
            [
                (args.work / f"folds-{args.data}-{args.folds}-{seed}", one)
                for seed, one in zip(args.seeds, data, strict=True)
            ]
        )
        return 0
    pairs = [
        (args.work / f"run-{args.data}-{seed}-{args.arm}", one)
        for seed, one in zip(args.seeds, data, strict=True)
    ]
    shifts(pairs)
    views(pairs)
    return 0


def shifts(pairs: list[tuple[Path, Path]]) -> None:
    """What `--prior FILE` and `--prior estimate` add to the accuracy of skewed and of even cuts: a mean over
    cuts for each seed.
    """
    from pipeline.folds.prior import shift
    from pipeline.folds.team import gather, predict_together
    from pipeline.predictions import Predictions

    gains: dict[tuple[str, str], list[float]] = {}
    before: dict[str, list[float]] = {}
    for seed, (folder, data) in enumerate(pairs):
        team = gather([folder])
        target = team.first.target
        whole = predict_together(team, target, lambda run: Predictions.load(run.path / "test", run.target))
        truth = read_column(data / "solution.csv")
        draw = np.random.default_rng(seed)
        for kind in ("skewed", "even"):
            found: dict[str, list[float]] = {"plain": [], "file": [], "estimate": []}
            for _ in range(CUTS):
                cut = whole.aligned(
                    skewed(whole.ids, truth, draw) if kind == "skewed" else even(whole.ids, draw)
                )
                with tempfile.TemporaryDirectory() as temporary:
                    path = Path(temporary) / "prior.csv"
                    write_shares(path, target.names, [truth[name] for name in cut.ids])
                    found["plain"].append(share_right(cut, truth))
                    for way, asked in (("file", str(path)), ("estimate", "estimate")):
                        found[way].append(
                            share_right(
                                shift(cut, team.prior, asked, team.temperature, team.mean_probabilities)[0],
                                truth,
                            )
                        )
            before.setdefault(kind, []).append(float(np.mean(found["plain"])))
            for way in ("file", "estimate"):
                gains.setdefault((kind, way), []).append(float(np.mean(found[way]) - np.mean(found["plain"])))
    print("| held-back part | accuracy as it is | `--prior FILE` | `--prior estimate` |\n|---|---|---|---|")
    for kind, values in before.items():
        print(
            f"| {kind} | {np.mean(values):.4f} | {with_error(gains[kind, 'file'])} | "
            f"{with_error(gains[kind, 'estimate'])} |"
        )


def skewed(ids: tuple[str, ...], truth: dict[str, str], draw: np.random.Generator) -> list[str]:
    """Every image of a few classes, one of each other."""
    full = set(draw.choice(sorted(set(truth.values())), FULL_CLASSES, replace=False).tolist())
    seen: set[str] = set()
    kept = []
    for name in draw.permutation(ids).tolist():
        if truth[name] in full or truth[name] not in seen:
            kept.append(name)
            seen.add(truth[name])
    return kept


def even(ids: tuple[str, ...], draw: np.random.Generator) -> list[str]:
    """A random half."""
    return draw.permutation(ids)[: len(ids) // 2].tolist()


def write_shares(path: Path, names: tuple[str, ...], labels: list[str]) -> None:
    """What --prior reads."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("class", "count"), *((name, labels.count(name)) for name in names)])


def share_right(predictions: object, truth: dict[str, str]) -> float:
    """The accuracy."""
    said = predictions.target.decode(predictions.values)
    return float(np.mean([text == truth[name] for name, text in zip(predictions.ids, said, strict=True)]))


def views(pairs: list[tuple[Path, Path]]) -> None:
    """Accuracy and log loss of a mirrored view averaged in probabilities and in logits, less those of the
    plain images.
    """
    from pipeline.competition.layout import read_layout
    from pipeline.folds.views import make_views
    from pipeline.run import load_run
    from pipeline.tasks.apply import predict

    lines: dict[str, list[tuple[float, float]]] = {}
    for folder, data in pairs:
        run = load_run(folder)
        competition = read_layout(data, need="test", known=(run.target, run.metric))
        truth = read_column(data / "solution.csv")
        each = []
        for place in (0, 1):

            def wrap(logits, target, place=place):
                return lambda batch: logits(batch | {"pixels": make_views(batch["pixels"], ("flip",))[place]})

            found = predict(run, competition, 32, "fp32", wrap)[0]
            each.append(found.logits.astype(np.float64))
        rows = np.array([run.target.names.index(truth[name]) for name in found.ids])
        soft = [np.exp(one - one.max(1, keepdims=True)) for one in each]
        soft = [one / one.sum(1, keepdims=True) for one in soft]
        mean = each[0] + each[1]
        of_logits = np.exp(mean / 2 - (mean / 2).max(1, keepdims=True))
        ways = {
            "plain": soft[0],
            "probabilities": (soft[0] + soft[1]) / 2,
            "logits": of_logits / of_logits.sum(1, keepdims=True),
        }
        for way, values in ways.items():
            right = float((values.argmax(1) == rows).mean())
            lines.setdefault(way, []).append(
                (right, float(-np.log(values[np.arange(len(rows)), rows]).mean()))
            )
    print("\n| flip averaged in | accuracy | less plain | log loss | less plain |\n|---|---|---|---|---|")
    plain = np.array(lines["plain"])
    for way, values in lines.items():
        found, less = np.array(values), np.array(values) - plain
        print(
            f"| {way} | {found[:, 0].mean():.4f} | {with_error(less[:, 0])} | {found[:, 1].mean():.4f} | "
            f"{with_error(less[:, 1])} |"
        )


if __name__ == "__main__":
    sys.exit(main())
