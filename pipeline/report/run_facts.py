"""Format the facts of a run for the page: headlines, metrics, settings, parameters, speed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Any

from pipeline.files import human_size, human_time
from pipeline.naming import backbone_name
from pipeline.report.run_files import RunFiles
from pipeline.report.words import direction, higher_is_better, metric_name, metric_value, sentence
from pipeline.run_record import NEWEST
from pipeline.targets.metrics import why_undefined
from pipeline.unfinished import planned_epochs

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
PARAMETERS = {
    "model": "In the model, without adapter",
    "trainable": "Trainable",
    "adapter": "Adapter (LoRA)",
    "head": "Head",
}
LOSSES = {
    "binary": "mean binary cross-entropy in nats",
    "multilabel": "mean binary cross-entropy of a label in nats",
    "continuous": "mean squared error of numbers scaled to deviation 1",
}
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
    """Return the headlines of the page: the best validation metric and, after scoring, the test score."""
    shown, best = [], files.best
    if best:
        what = f"{files.checked} {metric_name(best['metric'])}"
        value = metric_value(best["metric"], best["value"])
        shown.append(
            {"value": value, "what": what, "when": _when(files, best), "note": _best_note(files, best)}
        )
    elif files.kept_epoch.get(key := f"train_{files.training_score}") is not None:
        note = "on its own training images: none was held out for validation"
        value, what = metric_value(key, files.kept_epoch[key]), f"training {metric_name(key)}"
        shown.append(
            {"value": value, "what": what, "when": f"epoch {files.kept_epoch['epoch']}", "note": note}
        )
    metrics = files.scores.get("metrics") or {}
    if metrics:
        key = next((name for name in (files.metric.name, "accuracy") if name in metrics), next(iter(metrics)))
        rows = f"{files.scores['rows']:,} rows" if files.scores.get("rows") else ""
        note = "" if higher_is_better(key) else direction(key)
        shown.append(
            {
                "value": metric_value(key, metrics[key]),
                "what": f"test {metric_name(key)}",
                "when": rows,
                "note": note,
            }
        )
    return shown


def _when(files: RunFiles, best: dict[str, Any]) -> str:
    """Return the epoch of the best metric; for folds, their mean and deviation."""
    if files.record.get("kind") == "blend":
        return f"a blend of {len(files.record['members'])}"
    if folds := files.record.get("folds"):
        mean, deviation = (
            None if folds.get(key) is None else metric_value(best["metric"], folds[key])
            for key in ("mean", "deviation")
        )
        return (
            f"{folds['count']} folds"
            + (f": {mean}" if mean else "")
            + (f" ± {deviation}" if deviation else "")
        )
    planned = planned_epochs(files.told) or (files.metrics and files.metrics[-1]["epoch"])
    return f"epoch {best['epoch']}" + (f" of {planned}" if planned else "")


def kind(files: RunFiles) -> str:
    """Return the line above the page's title: task, target and backbone."""
    told, target = files.told, files.target
    task = "regression" if target.kind == "continuous" else str(told.get("task", "training run"))
    asked = [target.describe()] if told.get("target") and target.kind != "multiclass" else []
    backbone = [backbone_name(told["recipe"]["backbone"])] if told.get("recipe", {}).get("backbone") else []
    return " · ".join([sentence(task), *asked, *backbone])


def curve_captions(files: RunFiles, names: Sequence[str]) -> list[tuple[str, str]]:
    """Return the figure name and caption of each curve."""
    best = files.best
    rule = "last" if best and best.get("rule") in NEWEST else "best"
    why = f" ({best['why']})" if best and best.get("why") else ""
    marked = f" The dashed line marks the {rule} epoch, whose weights are kept{why}." if best else ""
    averaged = " Training values are means over an epoch of augmented images." if files.best else ""
    captions = []
    for name in names:
        if name == "loss":
            what = f"Loss over the epochs: {LOSSES.get(files.target.kind, 'mean cross-entropy in nats')}."
        else:
            what = f"{sentence(metric_name(name))} over the epochs."
            if name != "accuracy" and name == files.metric.name:
                what = (
                    f"{sentence(metric_name(name))} over the epochs, the competition's metric: "
                    f"{direction(name)}."
                )
            what += marked + (averaged if name == files.training_score else "")
        captions.append((name, what + _trained_on(files, name)))
    return captions


def _trained_on(files: RunFiles, name: str) -> str:
    """Explain training values that the recipe makes different from validation values (another loss, mixed
    images).
    """
    recipe = files.told.get("recipe") or {}
    optimizer, augmentation = (recipe.get(section) or {} for section in ("optimizer", "augmentation"))
    mixed = augmentation.get("mixup") or augmentation.get("cutmix")
    if name == "loss":
        loss = optimizer.get("loss", "auto")
        other = [f"the {loss} loss"] if loss != "auto" else []
        other += (
            ["with logits adjusted by the shares of the classes"] if optimizer.get("logit_adjustment") else []
        )
        other += ["over mixed images"] if mixed else []
        return f" The training loss is different: {', '.join(other)}." if other else ""
    if name != files.training_score or not mixed:
        return ""
    return " Training mixes pairs of images: a pair counts by the share of the correctly predicted label."


def _best_note(files: RunFiles, best: dict[str, Any]) -> str:
    """Return the note below the best metric: number of rows, interval, direction if not obvious, and
    baselines.
    """
    rows, key = files.predictions, best["metric"]
    ids = files.ids_of_several  # the score counts each once
    total = ids or len(rows) or files.record.get("counts", {}).get("val")
    parts = [f"{total:,} {files.rows_are}"] if total else []
    if ids:
        parts = [f"{ids:,} ids with {len(rows):,} {files.rows_are}"]
    # shares of independent images
    if total and key in ("val_accuracy", "val_top5_accuracy") and files.target.kind != "multilabel":
        low, high = interval(best["value"], total)
        parts.append(f"95% interval {100 * low:.0f} to {100 * high:.0f}%")
    if not higher_is_better(key):
        parts.append(direction(key))
    if baseline := _baseline(files):
        parts.append(f"{baseline[1]}: {metric_value(key, baseline[0])}")
    if floor := _baseline(files, "floor", "linear probe"):
        parts.append(f"{floor[1]}: {metric_value(key, floor[0])}")
    known = files.truth is not None and files.target.kind in files.metric.kinds
    if (
        key != f"val_{files.metric.name}"
        and known
        and (reason := why_undefined(files.metric.name, files.target, files.truth))
    ):
        parts.append(f"by the loss: {reason}")
    return "; ".join(parts)


def _baseline(
    files: RunFiles, key: str = "baseline", words: str = "a constant guess"
) -> tuple[float, str] | None:
    """Return the score and name of a constant guess (`floor`: a linear probe); None if not recorded."""
    found = files.told.get(key)
    if not isinstance(found, dict) or not isinstance(found.get("value"), int | float):
        return None
    return float(found["value"]), str(found.get("words") or words)


def interval(share: float, count: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share observed on `count` images."""
    z = 1.96
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return max(0.0, centre - half), min(1.0, centre + half)


def summary(files: RunFiles) -> str:
    """Return one line: the amount of training data, the training time, and the device."""
    record, counts = files.told, files.record.get("counts", {})
    parts = [_what_is_asked(files)] if record.get("class_names") or record.get("target") else []
    parts += [
        f"{counts[key]:,} {words} {files.rows_are}"
        for key, words in (("train", "training"), ("val", files.checked))
        if counts.get(key)
    ]
    parts += [f"{len(files.metrics)} epoch{'s' if len(files.metrics) > 1 else ''}"] if files.metrics else []
    parts += [human_time(sum(row.get("seconds") or 0 for row in files.timing))] if files.timing else []
    if record.get("device") and record.get("precision"):
        parts += [f"{record['device']}, {record['precision']}"]
    return " · ".join(parts)


def _what_is_asked(files: RunFiles) -> str:
    """Describe the target, `10 classes` or `5 grades, 0 to 4`, and the metric if it was set."""
    target = files.target
    asked = f"{len(target.names):,} classes" if target.kind == "multiclass" else target.describe()
    return f"{asked}, scored by {files.metric.words}" if files.told.get("metric") else asked


def metrics(values: dict[str, float], files: RunFiles) -> list[tuple[str, float]]:
    """Return metrics with their names, in the order of `ordered`."""
    return [(metric_name(key), value) for key, value in ordered(values, files)]


def ordered(values: dict[str, float], files: RunFiles) -> list[tuple[str, float]]:
    """Return metrics by key: the competition's first if it was set, losses last, without duplicates such as
    log_loss.
    """
    own, target = files.metric.name if files.told.get("metric") else None, files.target
    bare = {key: key.removeprefix("val_").removeprefix("test_") for key in values}
    twins = {"log_loss": "loss"} | (
        {"accuracy": "label_accuracy"} if target.kind == "multilabel" else {"micro_f1": "accuracy"}
    )
    shown = [key for key, name in bare.items() if name == own or twins.get(name) not in bare.values()]
    shown.sort(key=lambda key: (bare[key] not in (own, f"corrected_{own}"), bare[key].endswith("loss")))
    return [(key, values[key]) for key in shown]


def epoch_table(files: RunFiles) -> dict[str, Any]:
    """Return metrics.jsonl as a table: `heads` and `rows`, one per epoch (None: the epoch has no such
    metric).
    """
    keys = list(dict.fromkeys(key for row in files.metrics for key in row))
    prefix = {"train": "training ", "val": "validation "}
    return {
        "heads": [prefix.get(key.split("_")[0], "") + metric_name(key) for key in keys],
        "rows": [[row.get(key) for key in keys] for row in files.metrics],
    }


def class_counts(files: RunFiles) -> dict[str, Any] | None:
    """Return the training images of each class or label, largest first, with sum and median; None without
    counts.

    Grades keep their order in `by_class` and `rows`. `least` and `most` are (name, count).
    """
    counts = files.record.get("counts", {}).get("train_per_class")
    if not counts:
        return None
    by_number = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rows = (
        [(name, counts[name]) for name in files.target.names if name in counts]
        if files.target.kind == "ordinal"
        else by_number
    )
    total = files.record["counts"].get("train") if files.target.kind == "multilabel" else sum(counts.values())
    found = {"rows": rows, "by_class": dict(rows), "total": total, "median": median(counts.values())}
    return found | {"least": by_number[-1], "most": by_number[0]}


def corrections(files: RunFiles) -> dict[str, Any] | None:
    """Return the corrections of a run: counts of excluded and relabelled rows in `train` and `val`, `files`,
    and `score`.

    `score` is the text of the score by the corrected labels. None for a run without corrections.
    """
    found = files.told.get("corrections")
    if not isinstance(found, dict):
        return None
    scores = found.get("scores") or {
        key.removeprefix("val_"): value for key, value in files.kept_epoch.items()
    }
    key = f"corrected_{files.metric.name}"
    score = f"{metric_name(key)} {metric_value(key, scores[key])}" if scores.get(key) is not None else ""
    return found | {
        "names": ", ".join(one["file"] for one in found.get("files", {}).values()),
        "score": score,
    }


def parameters(files: RunFiles) -> list[dict[str, Any]]:
    """Return the rows of the parameter table; shares are of the model with its adapter, as PEFT prints
    them.
    """
    counts = files.record.get("counts", {}).get("parameters") or {}
    total = counts.get("model", 0) + counts.get("adapter", 0)
    return [
        {"label": label, "count": counts[key], "share": counts[key] / total}
        for key, label in PARAMETERS.items()
        if total and counts.get(key)
    ]


def settings(files: RunFiles) -> list[tuple[str, Any]]:
    """Return the recipe's main settings with their labels; LoRA settings only if there is an adapter."""
    values = dict(flat(files.told.get("recipe", {})))
    if values.get("lora.rank") == 0:
        values = {key: value for key, value in values.items() if not key.startswith("lora.")}
    rows = [(label, values[key]) for key, label in MAIN_SETTINGS.items() if values.get(key) is not None]
    effective = (files.schedule or {}).get("effective_batch_size")
    rows += [("Images per optimizer step", effective)] if effective else []
    pseudo = files.told.get("pseudo_labels") or {}
    return rows + (
        [("Test images that also trained (pseudo labels)", pseudo["rows"])] if pseudo.get("rows") else []
    )


def flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return nested recipe keys as (dotted key, value), in order."""
    rows = []
    for key, value in values.items():
        rows += (
            flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else [(prefix + key, value)]
        )
    return rows


def origin(files: RunFiles) -> list[tuple[str, Any]]:
    """Return when, where and on what device the run was made."""
    return [(label, files.told[key]) for key, label in ORIGIN.items() if files.told.get(key) is not None]


def speed(files: RunFiles) -> list[tuple[str, str]]:
    """Return training time, median images per second and peak memory as text, where timing.jsonl has them."""
    rows = []
    if files.timing:
        rows = [("Training time", human_time(sum(row.get("seconds") or 0 for row in files.timing)))]
    rates = [row["images_per_second"] for row in files.timing if row.get("images_per_second")]
    rows += [("Training images per second", f"{median(rates):,.1f}")] if rates else []
    peaks = [row["peak_memory_bytes"] for row in files.timing if row.get("peak_memory_bytes")]
    return rows + ([("Peak memory", human_size(max(peaks)))] if peaks else [])
