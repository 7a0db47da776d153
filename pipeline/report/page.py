"""`make report`: one self-contained HTML page and its figures, from the files of a run folder alone; no model, no network."""

from __future__ import annotations

import argparse
import base64
import math
import sys
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import jinja2
from PIL import Image

from pipeline.errors import run_command
from pipeline.files import human_size, human_time, write_text
from pipeline.report import figures
from pipeline.report.questions import read_questions
from pipeline.report.run_files import RunFiles, has_run, read_run_files
from pipeline.report.validation import read_validation, thumbnail
from pipeline.report.words import measured, metric_name, metric_value, percent, setting, to_the_minute

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


def main(argv: list[str] | None = None) -> int:
    """`python -m pipeline.report.page`: write report.html and figures/*.png in the run folder."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.report.page", description=(__doc__ or "").split(": ", 1)[1])
    parser.add_argument("--run", type=Path, default=Path("finetuned_model"), metavar="DIR", help="run folder (default: finetuned_model)")
    parser.add_argument("--if-present", action="store_true", help="do nothing where that folder holds no run")
    args = parser.parse_args(argv)
    if args.if_present and not has_run(args.run):
        print(f"{args.run} holds no run: no page to write")
        return 0
    page = build_report(args.run)
    print(f"{page}: {human_size(page.stat().st_size)}, one file that can be sent as it is")
    return 0


def build_report(run_dir: Path) -> Path:
    """Write `figures/*.png` and `report.html` in `run_dir`; the page's path. What a run did not record is left out of the page.

    Raises:
        UserError: the folder is missing, holds no run, or a file in it is damaged.
    """
    files = read_run_files(run_dir)
    drawn = figures.draw_curves(files)
    validation = read_validation(files, drawn)
    questions = read_questions(files, drawn, thumbnail)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(data_uri=_data_uri, number=measured, percent=percent, setting=setting, time=to_the_minute)
    html = environment.get_template("page.html.j2").render(
        name=files.record.get("name") or files.path.resolve().name,
        record=files.record,
        schedule=files.schedule,
        headlines=_headlines(files),
        facts=_facts(files),
        figures={name: _embedded(path, alt) for name, (path, alt) in drawn.items()},
        best=files.best,
        best_metrics=_metrics({key: value for key, value in files.kept_epoch.items() if key.startswith("val_")}),
        epochs=_epoch_table(files),
        validation=validation,
        questions=questions,
        classes=_classes(files),
        test_metrics=_metrics(files.scores.get("metrics", {})),
        test_parts={part: dict(_metrics(metrics)) for part, metrics in files.scores.get("parts", {}).items()},
        scores=files.scores,
        parameters=_parameters(files),
        settings=_settings(files),
        every_setting=_flat(files.record.get("recipe", {})),
        speed=_speed(files),
        origin=[(label, files.record[key]) for key, label in ORIGIN.items() if files.record.get(key) is not None],
        written=datetime.now().astimezone().isoformat(),
    )
    page = files.path / "report.html"
    write_text(page, html)
    return page


def _embedded(path: Path, alt: str) -> dict[str, Any]:
    """A figure for the page, at the size it was drawn for (96 CSS pixels an inch)."""
    with Image.open(path) as image:
        width, height = (round(side * 96 / figures.DPI) for side in image.size)
    return {"src": _data_uri(path.read_bytes(), "image/png"), "alt": alt, "width": width, "height": height}


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _headlines(files: RunFiles) -> list[dict[str, str]]:
    """What the page opens with: the best validation metric and, after scoring, the test score."""
    shown, best = [], files.best
    if best:
        epoch = f"epoch {best['epoch']} of {files.metrics[-1]['epoch']}" if files.metrics else f"epoch {best['epoch']}"
        total, note = len(files.predictions) or files.record.get("counts", {}).get("val"), ""
        if total and best["metric"] == "val_accuracy":
            low, high = _interval(best["value"], total)
            note = f"{total:,} images; 95% interval {100 * low:.0f} to {100 * high:.0f}%"
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


def _interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share observed on `count` images."""
    z = 1.96
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return max(0.0, centre - half), min(1.0, centre + half)


def _facts(files: RunFiles) -> str:
    """One line: on how much was trained, for how long, where."""
    record, counts = files.record, files.record.get("counts", {})
    parts = [f"{len(record['class_names']):,} classes"] if record.get("class_names") else []
    parts += [f"{counts[key]:,} {words} images" for key, words in (("train", "training"), ("val", "validation")) if counts.get(key)]
    parts += [f"{len(files.metrics)} epoch{'s' if len(files.metrics) > 1 else ''}"] if files.metrics else []
    parts += [human_time(sum(row["seconds"] for row in files.timing))] if files.timing else []
    parts += [f"{record['device']}, {record['precision']}"] if record.get("device") and record.get("precision") else []
    return " · ".join(parts)


def _metrics(values: dict[str, float]) -> list[tuple[str, float]]:
    """Metrics with their names in words, losses last."""
    return [(metric_name(key), value) for key, value in sorted(values.items(), key=lambda item: item[0].endswith("loss"))]


def _epoch_table(files: RunFiles) -> dict[str, Any]:
    keys = list(dict.fromkeys(key for row in files.metrics for key in row))
    prefix = {"train": "training ", "val": "validation "}
    return {
        "heads": [prefix.get(key.split("_")[0], "") + metric_name(key) for key in keys],
        "rows": [[row.get(key) for key in keys] for row in files.metrics],
    }


def _classes(files: RunFiles) -> dict[str, Any] | None:
    """Training images a class, most first, with their median; None when run.json has no counts."""
    counts = files.record.get("counts", {}).get("train_per_class")
    if not counts:
        return None
    rows = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return {"rows": rows, "median": median(counts.values())}


def _parameters(files: RunFiles) -> list[dict[str, Any]]:
    """Rows of the parameter table; shares are of the model with its adapter, as PEFT prints them."""
    counts = files.record.get("counts", {}).get("parameters") or {}
    total = counts.get("model", 0) + counts.get("adapter", 0)
    return [{"label": label, "count": counts[key], "share": counts[key] / total} for key, label in PARAMETERS.items() if counts.get(key)]


def _settings(files: RunFiles) -> list[tuple[str, Any]]:
    """The recipe's main settings in words; those of the adapter only where there is one."""
    flat = dict(_flat(files.record.get("recipe", {})))
    if flat.get("lora.rank") == 0:
        flat = {key: value for key, value in flat.items() if not key.startswith("lora.")}
    rows = [(label, flat[key]) for key, label in MAIN_SETTINGS.items() if flat.get(key) is not None]
    effective = (files.record.get("schedule") or {}).get("effective_batch_size")
    return rows + ([("Images per optimizer step", effective)] if effective else [])


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested recipe keys as (dotted key, value), in their order."""
    rows = []
    for key, value in values.items():
        rows += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else [(prefix + key, value)]
    return rows


def _speed(files: RunFiles) -> list[tuple[str, str]]:
    rows = [("Training time", human_time(sum(row["seconds"] for row in files.timing)))] if files.timing else []
    rates = [row["images_per_second"] for row in files.timing if row.get("images_per_second")]
    rows += [("Training images per second", f"{median(rates):,.1f}")] if rates else []
    peaks = [row["peak_memory_bytes"] for row in files.timing if row.get("peak_memory_bytes")]
    return rows + ([("Peak memory", human_size(max(peaks)))] if peaks else [])


if __name__ == "__main__":
    sys.exit(run_command(main))
