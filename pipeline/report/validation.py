"""Page section for validation predictions, by target; for one class per image: confusions, mistakes with
images, classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.report.calibration import read_calibration
from pipeline.report.confusion import MAX_LABELLED_CLASSES, cell_classes, confusion_figure
from pipeline.report.label_section import read_labels
from pipeline.report.number_section import read_numbers
from pipeline.report.probability_section import read_probabilities
from pipeline.report.rendering import Drawn
from pipeline.report.run_files import RunFiles
from pipeline.report.thumbnails import kept_images
from pipeline.targets.classes import confusion_matrix, per_class

MAX_MATRIX_CLASSES = 2000  # a larger (C, C) table is unreadable and takes hundreds of megabytes
SHOWN_PAIRS, SHOWN_MISTAKES, SHOWN_WEAKEST = 15, 18, 10


def decided(files: RunFiles) -> list[dict[str, str]]:
    """Return the rows of val_predictions.csv with `label` and `predicted` as classes; binary labels become
    class names.
    """
    target = files.target
    if target.kind != "binary":
        return files.predictions
    names = target.names
    positive = {*target.positive, names[1]}
    return [
        row | {key: names[row[key] in positive] for key in ("label", "predicted")}
        for row in files.predictions
    ]


def confusions(files: RunFiles) -> tuple[list[str], np.ndarray | None]:
    """Return class names and (C, C) counts of the validation predictions, row = true class.

    The counts are None without predictions, with too many classes, or if labels are not classes (several
    labels, numbers). Answers that are not classes of the model come after the classes and count as mistakes.
    """
    known = list(files.target.names)
    if files.target.kind in ("multilabel", "continuous"):
        return known, None
    rows = decided(files)
    names = known + sorted({row[key] for row in rows for key in ("label", "predicted")} - set(known))
    if not rows or len(names) > MAX_MATRIX_CLASSES:
        return names, None
    number = {name: index for index, name in enumerate(names)}
    return names, confusion_matrix(
        [number[row["label"]] for row in rows], [number[row["predicted"]] for row in rows], len(names)
    )


def read_validation(files: RunFiles, drawn: Drawn) -> dict[str, Any] | None:
    """Return the section on the validation predictions; adds figures to `drawn`. None without predictions.

    Raises:
        UserError: val_predictions.csv holds labels that are not of the run's target.
    """
    if not files.predictions:
        return None
    if files.target.kind == "multilabel":
        return read_labels(files, drawn)
    if files.target.kind == "continuous":
        return read_numbers(files, drawn)
    return _read_classes(files, drawn)


def _read_classes(files: RunFiles, drawn: Drawn) -> dict[str, Any]:
    rows, kind = decided(files), files.target.kind
    noun = "grade" if kind == "ordinal" else "class"
    names, counts = confusions(files)
    mistakes = [row for row in rows if row["label"] != row["predicted"]]
    support = Counter(row["label"] for row in rows)
    pairs = Counter((row["label"], row["predicted"]) for row in mistakes).most_common(SHOWN_PAIRS)
    distance = _distances(files)
    surest = sorted(mistakes, key=lambda row: (distance(row), float(row["confidence"])), reverse=True)[
        :SHOWN_MISTAKES
    ]
    classes = None
    if counts is not None:
        path = files.path / "figures" / "confusion.png"
        confusion_figure(path, counts, names, noun)
        most = f"; most often {pairs[0][0][0]} was predicted as {pairs[0][0][1]}" if pairs else ""
        several = "grades" if noun == "grade" else "classes"
        drawn["confusion"] = (
            path,
            f"Confusion matrix of {len(names)} {several}: {len(mistakes):,} of {len(rows):,} {files.checked} "
            f"{files.rows_are} are wrong{most}.",
        )
        classes = _per_class(names, counts, files)
    probabilities = read_probabilities(files, drawn) if kind == "binary" else None
    return {
        "kind": kind,
        "noun": noun,
        "total": len(rows),
        "right": len(rows) - len(mistakes),
        "near": sum(distance(row) <= 1 for row in rows) if kind == "ordinal" else None,
        "num_classes": len(names),
        "labelled": len(names) <= MAX_LABELLED_CLASSES,
        "cell_classes": cell_classes(len(names)),
        "per_class": classes,
        "weakest": sorted((row for row in classes or [] if row["support"]), key=lambda row: row["f1"])[
            :SHOWN_WEAKEST
        ],
        "pairs": [
            {"label": label, "predicted": predicted, "count": count, "share": count / support[label]}
            for (label, predicted), count in pairs
        ],
        "mistakes": [
            {**row, "confidence": float(row["confidence"]), "file": Path(row["path"]).name, "thumbnail": jpeg}
            for row, jpeg in zip(surest, kept_images(files, surest, "mistake"), strict=True)
        ],
        "probabilities": probabilities,
        "calibration": probabilities["calibration"] if probabilities else _calibration(files, rows, drawn),
    }


def _distances(files: RunFiles) -> Any:
    """Return a function: row -> distance between true and predicted grade; always 0 if classes have no
    order.
    """
    place = {name: number for number, name in enumerate(files.target.names)}
    if files.target.kind != "ordinal":
        return lambda _row: 0

    def distance(row: dict[str, Any]) -> int:
        if {row["label"], row["predicted"]} <= set(place):
            return abs(place[row["label"]] - place[row["predicted"]])
        return len(place)

    return distance


def _per_class(names: Sequence[str], counts: np.ndarray, files: RunFiles) -> list[dict[str, Any]]:
    """Return one row per class, in class order; undefined values (no image of it, or never predicted) are
    None.
    """
    scores, predicted = per_class(counts), counts.sum(axis=0)
    train = files.record.get("counts", {}).get("train_per_class", {})
    rows = []
    for number, name in enumerate(names):
        support = int(scores["support"][number])
        defined = {"precision": predicted[number], "recall": support, "f1": support + predicted[number]}
        values = {key: float(scores[key][number]) if count else None for key, count in defined.items()}
        rows.append({"number": number, "name": name, "train": train.get(name), "support": support, **values})
    return rows


def _calibration(files: RunFiles, rows: Sequence[dict[str, str]], drawn: Drawn) -> dict[str, float] | None:
    confidence = np.array([float(row["confidence"]) for row in rows])
    right = np.array([row["label"] == row["predicted"] for row in rows])
    return read_calibration(
        files, drawn, confidence, right, "confidence of the prediction", "share of correct predictions"
    )
