"""Is what the model says as often true as it says? Ten bins, a figure and the expected calibration error."""

from __future__ import annotations

import numpy as np

from pipeline.report.charts import calibration_figure
from pipeline.report.rendering import Drawn
from pipeline.report.run_files import RunFiles
from pipeline.report.words import percent

MIN_CALIBRATION_ROWS = 100  # ten bins of fewer than ten predictions each are noise


def read_calibration(
    files: RunFiles, drawn: Drawn, said: np.ndarray, true: np.ndarray, said_words: str, true_words: str
) -> dict[str, float] | None:
    """`confidence` (mean of `said`, (N,) in 0..1), `right` (share of `true`, (N,) bool) and `error`, and their figure in `drawn`.

    The error is the expected calibration error over ten equal bins (Guo et al. 2017). None for few predictions.
    """
    if len(files.predictions) < MIN_CALIBRATION_ROWS:
        return None
    place = np.minimum((said * 10).astype(int), 9)
    inside = [chosen for number in range(10) if (chosen := place == number).any()]
    bins = [(float(said[chosen].mean()), float(true[chosen].mean()), int(chosen.sum())) for chosen in inside]
    error = sum(abs(sure - share) * count for sure, share, count in bins) / len(true)
    path = files.path / "figures" / "calibration.png"
    calibration_figure(path, bins, said_words, true_words)
    what = f"{true_words.capitalize()} against {said_words.split(' of ')[0]}"
    drawn["calibration"] = path, f"{what}: {percent(said.mean())} sure on average, {percent(true.mean())} right."
    return {"confidence": float(said.mean()), "right": float(true.mean()), "error": float(error)}
