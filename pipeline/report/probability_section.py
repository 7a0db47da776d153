"""What the page says of a probability of one class: how well it orders, what each threshold gives, and whether it can be believed."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.report.calibration import read_calibration
from pipeline.report.charts import roc_figure
from pipeline.report.rendering import Drawn
from pipeline.report.run_files import RunFiles
from pipeline.targets.measures import has_both

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def read_probabilities(files: RunFiles, drawn: Drawn) -> dict[str, Any] | None:
    """`auc`, `thresholds` and `calibration` of the validation rows' probabilities; adds figures to `drawn`. None where they are not kept."""
    if files.values is None or files.truth is None:
        return None
    truth, said = files.truth[:, 0] > 0.5, np.asarray(files.values[:, 0])
    found: dict[str, Any] = {"positive": files.target.names[1], "auc": None, "thresholds": [_at(truth, said, at) for at in THRESHOLDS]}
    if has_both(truth):
        from sklearn.metrics import roc_auc_score

        found["auc"] = float(roc_auc_score(truth, said))
        path = files.path / "figures" / "roc.png"
        roc_figure(path, truth, said)
        drawn["roc"] = path, f"ROC curve of {files.target.names[1]} on {len(truth):,} {files.checked} images: area {found['auc']:.4f}."
    words = "probability of the positive class", "share of images that are of it"
    return found | {"calibration": read_calibration(files, drawn, said, truth, *words)}


def _at(truth: np.ndarray, said: np.ndarray, threshold: float) -> dict[str, Any]:
    """What counting probabilities from `threshold` on as positive gives; None where it divides by nothing."""
    positive = said >= threshold
    hits, count, support = int((positive & truth).sum()), int(positive.sum()), int(truth.sum())
    return {
        "threshold": threshold,
        "count": count,
        "accuracy": float((positive == truth).mean()),
        "precision": hits / count if count else None,
        "recall": hits / support if support else None,
        "f1": 2 * hits / (count + support) if count + support else None,
    }
