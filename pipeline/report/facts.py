"""What a run's files say, in words and rows: headlines, metrics, settings, parameters, speed."""

from __future__ import annotations

import math
from statistics import median
from typing import Any

from pipeline.files import human_size, human_time
from pipeline.report.run_files import RunFiles
from pipeline.report.words import metric_name, metric_value, percent

MAIN_SETTINGS = {
    "backbone": "Backbone",
    "text_backbone": "Text backbone",
    "image_size": "Image size (px)",
    "epochs": "Epochs",
    "batch_size": "Batch size",
    "accumulation_steps": "Accumulation steps",
    "optimizer.name": "Optimizer",
    "optimizer.lr": "Learning rate",
    "optimizer.weight_decay": "Weight decay",
    "schedule.name": "Schedule",
    "schedule.warmup_ratio": "Warm-up ratio",
    "lora.rank": "LoRA rank",
    "lora.alpha": "LoRA alpha",
    "lora.dropout": "LoRA dropout",
    "lora.targets": "LoRA targets",
    "data.val_fraction": "Validation share",
}
PARAMETERS = {"model": "In the model, without adapter", "trainable": "Trainable", "adapter": "Adapter (LoRA)", "head": "Head"}
ORIGIN = {
    "started": "Started",
    "finished": "Finished",
    "device": "Device",
    "precision": "Precision",
    "seed": "Seed",
    "data": "Data",
    "commit": "Commit",
}


def headlines(files: RunFiles) -> list[dict[str, str]]:
    """What the page opens with: the best validation metric and, after scoring, the test score."""
    shown, best = [], files.best
    if best:
        planned = files.told.get("recipe", {}).get("epochs") or (files.metrics and files.metrics[-1]["epoch"])
        epoch = f"epoch {best['epoch']}" + (f" of {planned}" if planned else "")
        total, note = len(files.predictions) or files.record.get("counts", {}).get("val"), ""
        if total and best["metric"] == "val_accuracy":
            low, high = interval(best["value"], total)
            note = f"{total:,} {files.rows_are}; 95% interval {100 * low:.0f} to {100 * high:.0f}%"
        value, what = metric_value(best["metric"], best["value"]), f"validation {metric_name(best['metric'])}"
        shown.append({"value": value, "what": what, "when": epoch, "note": note})
    elif files.kept_epoch.get("train_accuracy") is not None:
        note = "on its own training images: none was kept back for validation"
        epoch = f"epoch {files.kept_epoch['epoch']}"
        shown.append({"value": percent(files.kept_epoch["train_accuracy"]), "what": "training accuracy", "when": epoch, "note": note})
    metrics = files.scores.get("metrics") or {}
    if metrics:
        key = "accuracy" if "accuracy" in metrics else next(iter(metrics))
        rows = f"{files.scores['rows']:,} rows" if files.scores.get("rows") else ""
        shown.append({"value": metric_value(key, metrics[key]), "what": f"test {metric_name(key)}", "when": rows, "note": ""})
    return shown


def interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share observed on `count` images."""
    z = 1.96
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return max(0.0, centre - half), min(1.0, centre + half)


def summary(files: RunFiles) -> str:
    """One line: on how much was trained, for how long, where."""
    record, counts = files.told, files.record.get("counts", {})
    parts = [f"{len(record['class_names']):,} classes"] if record.get("class_names") else []
    parts += [
        f"{counts[key]:,} {words} {files.rows_are}" for key, words in (("train", "training"), ("val", "validation")) if counts.get(key)
    ]
    parts += [f"{len(files.metrics)} epoch{'s' if len(files.metrics) > 1 else ''}"] if files.metrics else []
    parts += [human_time(sum(row["seconds"] for row in files.timing))] if files.timing else []
    parts += [f"{record['device']}, {record['precision']}"] if record.get("device") and record.get("precision") else []
    return " · ".join(parts)


def metrics(values: dict[str, float]) -> list[tuple[str, float]]:
    """Metrics with their names in words, losses last."""
    return [(metric_name(key), value) for key, value in sorted(values.items(), key=lambda item: item[0].endswith("loss"))]


def epoch_table(files: RunFiles) -> dict[str, Any]:
    """metrics.jsonl as a table: `heads` in words, `rows` of values, one for each epoch (None: the epoch has no such metric)."""
    keys = list(dict.fromkeys(key for row in files.metrics for key in row))
    prefix = {"train": "training ", "val": "validation "}
    return {
        "heads": [prefix.get(key.split("_")[0], "") + metric_name(key) for key in keys],
        "rows": [[row.get(key) for key in keys] for row in files.metrics],
    }


def class_counts(files: RunFiles) -> dict[str, Any] | None:
    """Training images of each class, most first, their sum and median; None when run.json has no counts."""
    counts = files.record.get("counts", {}).get("train_per_class")
    if not counts:
        return None
    rows = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return {"rows": rows, "by_class": counts, "total": sum(counts.values()), "median": median(counts.values())}


def parameters(files: RunFiles) -> list[dict[str, Any]]:
    """Rows of the parameter table; shares are of the model with its adapter, as PEFT prints them."""
    counts = files.record.get("counts", {}).get("parameters") or {}
    total = counts.get("model", 0) + counts.get("adapter", 0)
    return [{"label": label, "count": counts[key], "share": counts[key] / total} for key, label in PARAMETERS.items() if counts.get(key)]


def settings(files: RunFiles) -> list[tuple[str, Any]]:
    """The recipe's main settings in words; those of the adapter only where there is one."""
    values = dict(flat(files.told.get("recipe", {})))
    if values.get("lora.rank") == 0:
        values = {key: value for key, value in values.items() if not key.startswith("lora.")}
    rows = [(label, values[key]) for key, label in MAIN_SETTINGS.items() if values.get(key) is not None]
    effective = (files.schedule or {}).get("effective_batch_size")
    return rows + ([("Images per optimizer step", effective)] if effective else [])


def flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested recipe keys as (dotted key, value), in their order."""
    rows = []
    for key, value in values.items():
        rows += flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else [(prefix + key, value)]
    return rows


def origin(files: RunFiles) -> list[tuple[str, Any]]:
    """When, where and on what the run was made."""
    return [(label, files.told[key]) for key, label in ORIGIN.items() if files.told.get(key) is not None]


def speed(files: RunFiles) -> list[tuple[str, str]]:
    """Training time of all epochs, median images a second and peak memory, each in words, as far as timing.jsonl has them."""
    rows = [("Training time", human_time(sum(row["seconds"] for row in files.timing)))] if files.timing else []
    rates = [row["images_per_second"] for row in files.timing if row.get("images_per_second")]
    rows += [("Training images per second", f"{median(rates):,.1f}")] if rates else []
    peaks = [row["peak_memory_bytes"] for row in files.timing if row.get("peak_memory_bytes")]
    return rows + ([("Peak memory", human_size(max(peaks)))] if peaks else [])
