"""Measure calibration: do predictions with probability p come true in a share p? Ten bins, a figure, and the
calibration error.
"""

from __future__ import annotations

import numpy as np

from pipeline.report.charts import calibration_figure
from pipeline.report.rendering import Drawn
from pipeline.report.run_files import RunFiles
from pipeline.report.words import percent

MIN_CALIBRATION_ROWS = 100  # with fewer, ten bins would be noise


def read_calibration(
    files: RunFiles,
    drawn: Drawn,
    predicted: np.ndarray,
    true: np.ndarray,
    predicted_words: str,
    true_words: str,
) -> dict[str, float] | None:
    """Return `confidence`, `right` and `error`, and add their figure to `drawn`; None for few predictions.

    `confidence` is the mean of `predicted` ((N,) in 0..1), `right` the share of `true` ((N,) bool). `error`
    is the expected calibration error over ten equal bins (Guo et al. 2017).
    """
    if len(files.predictions) < MIN_CALIBRATION_ROWS:
        return None
    place = np.minimum((predicted * 10).astype(int), 9)
    inside = [chosen for number in range(10) if (chosen := place == number).any()]
    bins = [
        (float(predicted[chosen].mean()), float(true[chosen].mean()), int(chosen.sum())) for chosen in inside
    ]
    error = sum(abs(sure - share) * count for sure, share, count in bins) / len(true)
    path = files.path / "figures" / "calibration.png"
    calibration_figure(path, bins, predicted_words, true_words)
    what = f"{true_words.capitalize()} against {predicted_words.split(' of ')[0]}"
    drawn["calibration"] = (
        path,
        f"{what}: {percent(predicted.mean())} sure on average, {percent(true.mean())} right.",
    )
    return {"confidence": float(predicted.mean()), "right": float(true.mean()), "error": float(error)}
