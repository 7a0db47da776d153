"""Run folders as training leaves them, written here without any model, and what a browser would read in a
page.
"""

from __future__ import annotations

import csv
import json
import os
from html.parser import HTMLParser
from pathlib import Path

from pipeline.training.optim import lr_at

NAMES = ["Avocado", "Banana", "Cabbage"]
PER_EPOCH = 9


def make_run(
    run_dir: Path,
    names: list[str] = NAMES,
    epochs: int = 4,
    per_class: int = 4,
    validation: bool = True,
    best: int | None = None,
    paths: list[str] = (),
) -> Path:
    """A finished run of `epochs` epochs. Of each class the first validation image is mistaken for the next
    class, with rising confidence.
    """
    run_dir.mkdir(parents=True)
    best = best or epochs
    schedule = {
        "name": "linear",
        "lr": 5e-5,
        "end_lr": 0.0,
        "warmup_steps": 2,
        "total_steps": PER_EPOCH * epochs,
    }
    schedule |= {"steps_per_epoch": PER_EPOCH, "effective_batch_size": 64}
    rows = []
    for epoch in range(1, epochs + 1):
        step = PER_EPOCH * epoch
        rows.append(
            {
                "epoch": epoch,
                "step": step,
                "lr": lr_at(step - 1, schedule),
                "train_loss": 2 / epoch,
                "train_accuracy": 0.5,
            }
        )
        if validation:
            rows[-1] |= {
                "val_loss": 1.5,
                "val_accuracy": 0.75 if epoch == best else 0.25,
                "val_macro_f1": 0.7,
            }
    write_lines(run_dir / "metrics.jsonl", rows)
    timing = [
        {"epoch": row["epoch"], "seconds": 61.0, "images_per_second": 45.2, "peak_memory_bytes": 812_000_000}
        for row in rows
    ]
    write_lines(run_dir / "timing.jsonl", timing)
    if validation:
        with open(run_dir / "val_predictions.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "path", "label", "predicted", "confidence"])
            for number, name in enumerate(names):
                for image in range(per_class):
                    predicted = names[(number + 1) % len(names)] if image == 0 else name
                    path = paths[number] if number < len(paths) else f"data/train/{number}_{image}.jpg"
                    writer.writerow(
                        [f"{number}_{image}", path, name, predicted, 0.5 + 0.4 * number / len(names)]
                    )
    record = {
        "format": 1,
        "task": "classification",
        "name": "beit-large-384-lora",
        "recipe": {
            "backbone": "microsoft/beit-large-patch16-384",
            "epochs": epochs,
            "lora": {"rank": 16, "alpha": 16.0, "targets": ["query", "key"]},
            "optimizer": {"name": "adamw", "lr": 5e-5, "head_lr": None},
        },
        "class_names": names,
        "counts": {
            "train": 20 * len(names),
            "val": per_class * len(names) if validation else 0,
            "train_per_class": {name: 20 + number for number, name in enumerate(names)},
            "parameters": {"model": 304178888, "trainable": 1777864, "adapter": 1572864, "head": 205000},
        },
        "schedule": schedule,
        "best": {"epoch": best, "metric": "val_accuracy", "value": 0.75}
        if validation
        else {"epoch": epochs, "metric": "epoch", "value": 4.0},
        "precision": "bf16",
        "device": "cpu",
        "seed": 42,
        "versions": {"python": "3.11.7", "torch": "2.9.0"},
        "commit": None,
        "command": "python train.py --data 'my birds' && true",
        "data": os.path.commonpath([str(Path(path).parent) for path in paths]) if paths else "data",
        "started": "2026-01-31T09:15:00+00:00",
        "finished": "2026-01-31T10:15:00+00:00",
    }
    (run_dir / "run.json").write_text(json.dumps(record), encoding="utf-8")
    return run_dir


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def score(run_dir: Path) -> None:
    scores = {
        "predictions": "predictions.csv",
        "sha256": "ab" * 32,
        "solution": "solution.csv",
        "time": "2026-01-31T11:00:00+00:00",
        "rows": 240,
    }
    (run_dir / "scores.json").write_text(
        json.dumps(scores | {"metrics": {"macro_f1": 0.8612, "accuracy": 0.915}})
    )


class Page(HTMLParser):
    """What a browser would see: text, tags with attributes, and text inside script elements."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.html = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.pieces: list[str] = []
        self.feed(self.html)
        self.text = " ".join("".join(self.pieces).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.pieces.append(data + " ")

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]
