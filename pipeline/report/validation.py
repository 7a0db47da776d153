"""What the page says of the validation predictions: confusions, mistakes with their images, classes, calibration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.report.charts import calibration_figure
from pipeline.report.confusion import MAX_LABELLED_CLASSES, cell_classes, confusion_figure
from pipeline.report.rendering import Drawn
from pipeline.report.run_files import RunFiles
from pipeline.report.thumbnails import kept_pictures
from pipeline.report.words import percent
from pipeline.targets.metrics import confusion_matrix, per_class

MAX_MATRIX_CLASSES = 2000  # a (C, C) table of counts beyond this says nothing on a page and costs hundreds of megabytes
MIN_CALIBRATION_ROWS = 100  # ten bins of fewer than ten predictions each are noise
SHOWN_PAIRS, SHOWN_MISTAKES, SHOWN_WEAKEST = 15, 18, 10


def confusions(files: RunFiles) -> tuple[list[str], np.ndarray | None]:
    """Class names, and (C, C) counts of the validation predictions, row = true class; None for none, or for too many classes.

    A question may be answered outside the answers a model knows: such a label comes after the classes, and counts as a mistake.
    """
    rows, known = files.predictions, list(files.told.get("class_names", []))
    names = known + sorted({row[key] for row in rows for key in ("label", "predicted")} - set(known))
    if not rows or len(names) > MAX_MATRIX_CLASSES:
        return names, None
    number = {name: index for index, name in enumerate(names)}
    return names, confusion_matrix([number[row["label"]] for row in rows], [number[row["predicted"]] for row in rows], len(names))


def read_validation(files: RunFiles, drawn: Drawn) -> dict[str, Any] | None:
    """What the page says of the validation predictions; adds their figures to `drawn`. None when there are no predictions."""
    rows = files.predictions
    if not rows:
        return None
    names, counts = confusions(files)
    mistakes = [row for row in rows if row["label"] != row["predicted"]]
    support = Counter(row["label"] for row in rows)
    pairs = Counter((row["label"], row["predicted"]) for row in mistakes).most_common(SHOWN_PAIRS)
    surest = sorted(mistakes, key=lambda row: float(row["confidence"]), reverse=True)[:SHOWN_MISTAKES]
    classes = None
    if counts is not None:
        path = files.path / "figures" / "confusion.png"
        confusion_figure(path, counts, names)
        most = f"; most often {pairs[0][0][0]} was taken for {pairs[0][0][1]}" if pairs else ""
        drawn["confusion"] = (
            path,
            f"Confusion matrix of {len(names)} classes: {len(mistakes):,} of {len(rows):,} validation {files.rows_are} are mistaken{most}.",
        )
        classes = _per_class(names, counts, files)
    return {
        "total": len(rows),
        "right": len(rows) - len(mistakes),
        "num_classes": len(names),
        "labelled": len(names) <= MAX_LABELLED_CLASSES,
        "cell_classes": cell_classes(len(names)),
        "per_class": classes,
        "weakest": sorted((row for row in classes or [] if row["support"]), key=lambda row: row["f1"])[:SHOWN_WEAKEST],
        "pairs": [
            {"label": label, "predicted": predicted, "count": count, "share": count / support[label]} for (label, predicted), count in pairs
        ],
        "mistakes": [
            {**row, "confidence": float(row["confidence"]), "file": Path(row["path"]).name, "thumbnail": picture}
            for row, picture in zip(surest, kept_pictures(files, surest, "mistake"), strict=True)
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


def _calibration(files: RunFiles, drawn: Drawn) -> dict[str, float] | None:
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
    calibration_figure(path, bins)
    drawn["calibration"] = (
        path,
        f"Share that is right against confidence: {percent(confidence.mean())} sure on average, {percent(right.mean())} right.",
    )
    return {"confidence": float(confidence.mean()), "right": float(right.mean()), "error": float(error)}
