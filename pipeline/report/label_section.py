"""Page section for several labels per image: scores of each label, and the most confident wrong decisions
with images.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.report.calibration import read_calibration
from pipeline.report.rendering import Drawn
from pipeline.report.run_files import RunFiles
from pipeline.report.thumbnails import kept_images
from pipeline.targets.measures import has_both

MAX_NAMED_LABELS = 40  # rows of a table that is not collapsed
MAX_RANKED_LABELS = 1000  # labels with an AUC; more would take over a second
SHOWN_WEAKEST, SHOWN_WRONG, SHOWN_A_LABEL = 10, 18, 3


def read_labels(files: RunFiles, drawn: Drawn) -> dict[str, Any]:
    """Return scores, rows `per_class` and the most confident `wrong` decisions; adds the calibration figure
    to `drawn`.

    Raises:
        UserError: val_predictions.csv holds an unknown label.
    """
    target, rows, values = files.target, files.predictions, files.values
    truth, chosen = _decisions(files)
    per_label = label_scores(files)
    weakest = sorted((row for row in per_label if row["support"]), key=lambda row: row["f1"])
    calibration = None
    if values is not None:
        words = ("probability of a label", "share of images with the label")
        calibration = read_calibration(files, drawn, values.ravel(), truth.ravel(), *words)
    return {
        "kind": target.kind,
        "total": len(rows),
        "num_classes": len(target.names),
        "right_decisions": float((truth == chosen).mean()),
        "all_right": int((truth == chosen).all(axis=1).sum()),
        "labels_an_image": float(truth.sum(axis=1).mean()),
        "labelled": len(target.names) <= MAX_NAMED_LABELS,
        "per_class": per_label,
        "weakest": weakest[:SHOWN_WEAKEST],
        "wrong": _wrong(files, truth, chosen) if values is not None else [],
        "calibration": calibration,
    }


def label_scores(files: RunFiles) -> list[dict[str, Any]]:
    """Return a row per label: number, name, train, support, precision, recall, f1, auc.

    Raises:
        UserError: as `read_labels`.
    """
    truth, chosen = _decisions(files)
    return [
        _label(files, number, truth[:, number], chosen[:, number])
        for number in range(len(files.target.names))
    ]


def _decisions(files: RunFiles) -> tuple[np.ndarray, np.ndarray]:
    """Return (N, O) bool: the truth, and the decisions."""
    truth, chosen = (
        files.target.encode([row[key] for row in files.predictions]) > 0.5 for key in ("label", "predicted")
    )
    return truth, chosen


def _label(files: RunFiles, number: int, truth: np.ndarray, chosen: np.ndarray) -> dict[str, Any]:
    """Return the row of one label; undefined values (no image has the label, or it is never predicted) are
    None.
    """
    from sklearn.metrics import roc_auc_score

    name, values = files.target.names[number], files.values
    hits, support, predicted = int((truth & chosen).sum()), int(truth.sum()), int(chosen.sum())
    ranked = values is not None and has_both(truth) and len(files.target.names) <= MAX_RANKED_LABELS
    return {
        "number": number,
        "name": name,
        "train": files.record.get("counts", {}).get("train_per_class", {}).get(name),
        "support": support,
        "precision": hits / predicted if predicted else None,
        "recall": hits / support if support else None,
        "f1": 2 * hits / (predicted + support) if predicted + support else None,
        "auc": float(roc_auc_score(truth, values[:, number])) if ranked else None,
    }


def _wrong(files: RunFiles, truth: np.ndarray, chosen: np.ndarray) -> list[dict[str, Any]]:
    """Return the most confident wrong decisions, a few per label at most."""
    at, labels = np.nonzero(truth != chosen)
    predicted = files.values[at, labels]
    sure = np.where(chosen[at, labels], predicted, 1 - predicted)
    shown, times = [], Counter()
    for place in np.argsort(-sure, kind="stable").tolist():
        label = int(labels[place])
        if times[label] < SHOWN_A_LABEL and len(shown) < SHOWN_WRONG:
            times[label] += 1
            shown.append((int(at[place]), label, float(predicted[place])))
    images = list(dict.fromkeys(row for row, _, _ in shown))
    jpegs = dict(
        zip(images, kept_images(files, [files.predictions[row] for row in images], "mistake"), strict=True)
    )
    return [
        {
            "label": files.target.names[label],
            "missed": bool(truth[row, label]),
            "probability": probability,
            "file": Path(files.predictions[row]["path"]).name,
            "thumbnail": jpegs[row],
        }
        for row, label, probability in shown
    ]
