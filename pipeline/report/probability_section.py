"""Page section for the probability of one class: ROC, thresholds, calibration."""

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
    """Return `auc`, `thresholds` and `calibration` of the validation probabilities; None if they are not
    stored.

    Figures are added to `drawn`.
    """
    if files.values is None or files.truth is None:
        return None
    truth, probabilities = files.truth[:, 0] > 0.5, np.asarray(files.values[:, 0])
    found: dict[str, Any] = {
        "positive": files.target.names[1],
        "auc": None,
        "thresholds": [_at(truth, probabilities, at) for at in THRESHOLDS],
    }
    if has_both(truth):
        from sklearn.metrics import roc_auc_score

        found["auc"] = float(roc_auc_score(truth, probabilities))
        path = files.path / "figures" / "roc.png"
        roc_figure(path, truth, probabilities)
        drawn["roc"] = (
            path,
            f"ROC curve of {files.target.names[1]} on {len(truth):,} {files.checked} images: area "
            f"{found['auc']:.4f}.",
        )
    words = "probability of the positive class", "share of positive images"
    return found | {"calibration": read_calibration(files, drawn, probabilities, truth, *words)}


def _at(truth: np.ndarray, probabilities: np.ndarray, threshold: float) -> dict[str, Any]:
    """Return the scores if probabilities from `threshold` on count as positive; undefined scores are None."""
    positive = probabilities >= threshold
    hits, count, support = int((positive & truth).sum()), int(positive.sum()), int(truth.sum())
    return {
        "threshold": threshold,
        "count": count,
        "accuracy": float((positive == truth).mean()),
        "precision": hits / count if count else None,
        "recall": hits / support if support else None,
        "f1": 2 * hits / (count + support) if count + support else None,
    }
