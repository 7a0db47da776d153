"""`make report`: one self-contained HTML page and its figures, from the files of a run folder alone; no model, no network."""

from __future__ import annotations

import argparse
import base64
import io
import math
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from pipeline.data.images import BadImage, decode
from pipeline.errors import run_command
from pipeline.files import human_size, human_time, write_text
from pipeline.metrics import confusion_matrix, per_class
from pipeline.report import figures
from pipeline.report.figures import RunFiles, has_run, percent, read_run_files, short_number

MAX_MATRIX_CLASSES = 2000  # a (C, C) table of counts beyond this says nothing on a page and costs hundreds of megabytes
MIN_CALIBRATION_ROWS = 100  # ten bins of fewer than ten predictions each are noise
SHOWN_PAIRS, SHOWN_MISTAKES, SHOWN_WEAKEST, THUMBNAIL_PX = 15, 18, 10, 224
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
    validation = _validation(files, drawn)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=_number, percent=percent, setting=_setting, time=_time)
    html = environment.get_template("page.html.j2").render(
        name=files.record.get("name") or files.path.resolve().name,
        record=files.record,
        headlines=_headlines(files),
        facts=_facts(files),
        figures={name: _embedded(path, alt) for name, (path, alt) in drawn.items()},
        best=files.best,
        best_metrics=_metrics({key: value for key, value in files.kept_epoch.items() if key.startswith("val_")}),
        epochs=_epoch_table(files),
        validation=validation,
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


def _validation(files: RunFiles, drawn: dict[str, tuple[Path, str]]) -> dict[str, Any] | None:
    """What the page says of the validation predictions; adds their figures to `drawn`. None when there are no predictions."""
    rows = files.predictions
    if not rows:
        return None
    known = list(files.record.get("class_names", []))
    # A question may be answered outside the answers a model knows: such a label is no class of its own, yet counts as a mistake.
    names = known + sorted({row[key] for row in rows for key in ("label", "predicted")} - set(known))
    mistakes = [row for row in rows if row["label"] != row["predicted"]]
    support = Counter(row["label"] for row in rows)
    pairs = Counter((row["label"], row["predicted"]) for row in mistakes).most_common(SHOWN_PAIRS)
    surest = sorted(mistakes, key=lambda row: float(row["confidence"]), reverse=True)[:SHOWN_MISTAKES]
    classes = None
    if len(names) <= MAX_MATRIX_CLASSES:
        number = {name: index for index, name in enumerate(names)}
        counts = confusion_matrix([number[row["label"]] for row in rows], [number[row["predicted"]] for row in rows], len(names))
        path = files.path / "figures" / "confusion.png"
        figures.confusion_figure(path, counts, names)
        most = f"; most often {pairs[0][0][0]} was taken for {pairs[0][0][1]}" if pairs else ""
        drawn["confusion"] = (
            path,
            f"Confusion matrix of {len(names)} classes: {len(mistakes):,} of {len(rows):,} validation images are mistaken{most}.",
        )
        classes = _per_class(names, counts, files)
    return {
        "total": len(rows),
        "right": len(rows) - len(mistakes),
        "num_classes": len(names),
        "labelled": len(names) <= figures.MAX_LABELLED_CLASSES,
        "cell_classes": figures.cell_classes(len(names)),
        "per_class": classes,
        "weakest": sorted((row for row in classes or [] if row["support"]), key=lambda row: row["f1"])[:SHOWN_WEAKEST],
        "pairs": [
            {"label": label, "predicted": predicted, "count": count, "share": count / support[label]} for (label, predicted), count in pairs
        ],
        "mistakes": [
            {**row, "confidence": float(row["confidence"]), "file": Path(row["path"]).name, "image": _thumbnail(files, row["path"])}
            for row in surest
        ],
        "calibration": _calibration(files, drawn),
    }


def _per_class(names: Sequence[str], counts: np.ndarray, files: RunFiles) -> list[dict[str, Any]]:
    """One row a class, in class order; a value that is undefined (no image of it, or never predicted) is None."""
    scores, predicted = per_class(counts), counts.sum(axis=0)
    train = files.record.get("counts", {}).get("train_per_class", {})
    rows = []
    for number, name in enumerate(names):
        support = int(scores["support"][number])
        defined = {"precision": predicted[number], "recall": support, "f1": support + predicted[number]}
        values = {key: float(scores[key][number]) if count else None for key, count in defined.items()}
        rows.append({"number": number, "name": name, "train": train.get(name), "support": support, **values})
    return rows


def _calibration(files: RunFiles, drawn: dict[str, tuple[Path, str]]) -> dict[str, float] | None:
    """Mean confidence, share right and expected calibration error over ten equal bins (Guo et al. 2017); None for few predictions."""
    if len(files.predictions) < MIN_CALIBRATION_ROWS:
        return None
    confidence = np.array([float(row["confidence"]) for row in files.predictions])
    right = np.array([row["label"] == row["predicted"] for row in files.predictions])
    place = np.minimum((confidence * 10).astype(int), 9)
    inside = [place == number for number in range(10) if (place == number).any()]
    bins = [(float(confidence[chosen].mean()), float(right[chosen].mean()), int(chosen.sum())) for chosen in inside]
    error = sum(abs(sure - share) * count for sure, share, count in bins) / len(right)
    path = files.path / "figures" / "calibration.png"
    figures.calibration_figure(path, bins)
    drawn["calibration"] = (
        path,
        f"Share that is right against confidence: {percent(confidence.mean())} sure on average, {percent(right.mean())} right.",
    )
    return {"confidence": float(confidence.mean()), "right": float(right.mean()), "error": float(error)}


def _thumbnail(files: RunFiles, written_path: str) -> str | None:
    """A small JPEG of an image as a data URI; None when the file is gone or cannot be decoded."""
    candidates = [Path(written_path), Path(files.record.get("data") or ".") / written_path, files.path.resolve().parent / written_path]
    path = next((candidate for candidate in candidates if candidate.is_file()), None)
    if path is None:
        return None
    try:
        image = decode(path, smallest=THUMBNAIL_PX)
    except BadImage:
        return None
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=75, optimize=True)
    return _data_uri(buffer.getvalue(), "image/jpeg")


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
        shown.append(
            {"value": _score(best["metric"], best["value"]), "what": f"validation {_title(best['metric'])}", "when": epoch, "note": note}
        )
    elif files.kept_epoch.get("train_accuracy") is not None:
        note = "on its own training images: none was kept back for validation"
        epoch = f"epoch {files.kept_epoch['epoch']}"
        shown.append({"value": percent(files.kept_epoch["train_accuracy"]), "what": "training accuracy", "when": epoch, "note": note})
    metrics = files.scores.get("metrics") or {}
    if metrics:
        key = "accuracy" if "accuracy" in metrics else next(iter(metrics))
        rows = f"{files.scores['rows']:,} rows" if files.scores.get("rows") else ""
        shown.append({"value": _score(key, metrics[key]), "what": f"test {_title(key)}", "when": rows, "note": ""})
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
    return [(_title(key), value) for key, value in sorted(values.items(), key=lambda item: item[0].endswith("loss"))]


def _epoch_table(files: RunFiles) -> dict[str, Any]:
    keys = list(dict.fromkeys(key for row in files.metrics for key in row))
    prefix = {"train": "training ", "val": "validation "}
    return {
        "heads": [prefix.get(key.split("_")[0], "") + _title(key) for key in keys],
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


def _title(key: str) -> str:
    """A metric's key in words: val_top5_accuracy -> top-5 accuracy."""
    words = key.removeprefix("val_").removeprefix("train_").replace("_", " ").replace("top5", "top-5").replace("f1", "F1")
    return "learning rate" if words == "lr" else words


def _score(key: str, value: float) -> str:
    return percent(value) if key.endswith(("accuracy", "f1", "precision", "recall")) else f"{value:.4f}"


def _number(value: float | None, decimals: int = 4) -> str:
    """A measured value: 304,178,888 / 0.9412 / 4.8e-5; a dash for none."""
    if value is None or isinstance(value, int):
        return "–" if value is None else f"{value:,}"
    return short_number(value) if 0 < abs(value) < 1e-3 else f"{value:.{decimals}f}"


def _setting(value: Any) -> str:
    """A chosen value: 64 / 5e-5 / yes / query, key; a dash for none."""
    if value is None or isinstance(value, bool):
        return {None: "–", True: "yes", False: "no"}[value]
    if isinstance(value, (list, tuple)):
        return ", ".join(_setting(item) for item in value)
    return short_number(value) if isinstance(value, float) else str(value)


def _time(text: str) -> str:
    """An ISO time as 2026-01-31 09:15."""
    return datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M")


if __name__ == "__main__":
    sys.exit(run_command(main))
