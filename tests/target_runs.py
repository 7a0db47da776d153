"""Run folders of every kind of target as training leaves them, written here without any model; their images
too.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from runs import make_run, write_lines

from pipeline.targets.measures import histograms
from pipeline.targets.metrics import all_metrics, find_metric
from pipeline.targets.target import Target
from pipeline.training.losses import training_score

BINARY = Target("binary", ("0", "1"), positive=("1",))
GRADES = Target("ordinal", ("0", "1", "2", "3", "4"))
LABELS = Target(
    "multilabel",
    ("clear", "cloudy", "primary forest", "river", "road", "rare"),
    separator=" + ",
    may_be_empty=True,
)
NUMBER = Target("continuous", ("Pawpularity",), center=(38.0,), scale=(20.0,), low=(1.0,), high=(100.0,))
NUMBERS = Target(
    "continuous",
    ("x", "y"),
    separator=" ",
    center=(0.0, 500.0),
    scale=(2.0, 90.0),
    low=(-9.0, 100.0),
    high=(9.0, 900.0),
)
KINDS = {
    "binary": (BINARY, "roc_auc"),
    "ordinal": (GRADES, "qwk"),
    "multilabel": (LABELS, "samples_f2"),
    "number": (NUMBER, "rmse"),
}
KINDS["numbers"] = (NUMBERS, "mae")


@dataclass(frozen=True)
class Made:
    """A run, and what its page is to say."""

    path: Path
    target: Target
    labels: list[str]
    truth: np.ndarray
    values: np.ndarray
    epochs: list[dict]
    best: dict


def make_target_run(
    run_dir: Path,
    target: Target,
    metric: str,
    rows: int = 160,
    epochs: int = 6,
    images: bool = False,
    finished: bool = True,
) -> Made:
    """A run of `epochs` epochs whose predictions get better until the last but one."""
    make_run(run_dir, names=["a", "b"], epochs=epochs, per_class=1)
    rng = np.random.default_rng(len(target.names))
    labels = _labels(target, rows, rng)
    truth = target.encode(labels)
    noise = rng.normal(0, 1, (rows, target.num_outputs))
    known = find_metric(metric)
    lines, best, kept = [], {}, None
    for epoch in range(1, epochs + 1):
        values = target.activate(_logits(target, truth, noise, 0.5 * min(epoch, 2 * epochs - 2 - epoch)))
        scores = all_metrics(target, truth, values, metric)
        lines.append(
            {
                "epoch": epoch,
                "step": 9 * epoch,
                "lr": 1e-5,
                "train_loss": 1 / epoch,
                f"train_{training_score(target)[0]}": 0.5,
            }
        )
        lines[-1] |= {f"val_{name}": value for name, value in scores.items()}
        key = f"val_{known.name}" if known.name in scores else "val_loss"
        sign = 1 if known.higher_is_better and key != "val_loss" else -1
        if not best or sign * lines[-1][key] > sign * best["value"]:
            best, kept = {"epoch": epoch, "metric": key, "value": lines[-1][key]}, values
    write_lines(run_dir / "metrics.jsonl", lines)
    np.save(run_dir / "val_probs.npy", kept)
    _write_predictions(run_dir, target, labels, kept, images)
    record = json.loads((run_dir / "run.json").read_text())
    train = _labels(target, 5 * rows, rng)
    record |= {
        "target": target.record(),
        "metric": {"name": known.name, "higher_is_better": known.higher_is_better},
        "best": best,
    }
    record["class_names"] = list(target.output_names)
    record["data"] = str(run_dir.parent / "images")
    record["counts"] |= {"train": len(train), "val": rows, "train_per_class": target.counts(train)}
    if target.kind == "continuous":
        record["counts"]["train_histograms"] = histograms(target.names, target.encode(train))
    if finished:
        (run_dir / "run.json").write_text(json.dumps(record))
    else:
        (run_dir / "run.json").unlink()
        (run_dir / "state").mkdir()
        start = {key: record[key] for key in ("recipe", "class_names", "schedule", "target", "metric")}
        (run_dir / "state" / "start.json").write_text(json.dumps(start))
    return Made(run_dir, target, labels, truth, kept, lines, best)


def _labels(target: Target, rows: int, rng: np.random.Generator) -> list[str]:
    if target.kind == "ordinal":
        weights = np.arange(len(target.names), 0, -1)
        return [
            target.names[grade] for grade in rng.choice(len(target.names), rows, p=weights / weights.sum())
        ]
    if target.kind == "binary":
        return ["1" if positive else "0" for positive in rng.random(rows) < 0.25]
    if target.kind == "multilabel":
        frequency = np.linspace(0.6, 0.03, len(target.names))
        return target.decode(rng.random((rows, len(target.names))) < frequency)
    numbers = rng.normal(target.center, target.scale, (rows, len(target.names))).clip(target.low, target.high)
    return target.decode(numbers.round(1))


def _logits(target: Target, truth: np.ndarray, noise: np.ndarray, skill: float) -> np.ndarray:
    if target.kind == "ordinal":
        return noise - skill * np.abs(np.arange(target.num_outputs) - truth[:, None])
    if target.kind == "continuous":
        return target.scaled(truth) * skill / (skill + 1) + noise / (skill + 1.5)
    return noise + skill * (2 * truth - 1) - 0.5


def _write_predictions(
    run_dir: Path, target: Target, labels: list[str], values: np.ndarray, images: bool
) -> None:
    """val_predictions.csv: predicted as a label text; confidence as the contract of each target has it."""
    predicted, chosen = target.decode(values), target.chosen(values)
    with open(run_dir / "val_predictions.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "path", "label", "predicted", "confidence"])
        for row, label in enumerate(labels):
            path = run_dir.parent / "images" / f"{row:04d}.png"
            if images:
                _draw(path, label)
            sure = {
                "binary": lambda row=row: max(values[row, 0], 1 - values[row, 0]),
                "multilabel": lambda row=row: np.maximum(values[row], 1 - values[row]).mean(),
                "continuous": lambda: None,
            }.get(target.kind, lambda row=row: values[row, chosen[row]])()
            writer.writerow(
                [f"{row:04d}", path, label, predicted[row], "" if sure is None else f"{sure:.6f}"]
            )


def _draw(path: Path, label: str) -> None:
    path.parent.mkdir(exist_ok=True)
    tone = (37 * sum(map(ord, label))) % 200
    image = Image.new("RGB", (120, 90), (tone, 120, 200 - tone))
    ImageDraw.Draw(image).text((6, 36), label[:18], fill="white")
    image.save(path)
