"""Page section for numbers: predicted against true, the distribution of errors, and the largest errors with
images.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.report.charts import number_counts_figure, residuals_figure, scatter_figure
from pipeline.report.rendering import Drawn
from pipeline.report.run_files import RunFiles
from pipeline.report.thumbnails import kept_images
from pipeline.targets.metrics import evaluate
from pipeline.targets.target import Target

MAX_DRAWN_COLUMNS = 4
SHOWN_ERRORS = 18


def read_numbers(files: RunFiles, drawn: Drawn) -> dict[str, Any]:
    """Return `columns` with their errors and the error of the training mean, and the `largest` errors.

    Figures are added to `drawn`.

    Raises:
        UserError: val_predictions.csv holds a label that is not a number.
    """
    target, rows = files.target, files.predictions
    truth = target.encode([row["label"] for row in rows]).astype(np.float64)
    values = files.values if files.values is not None else target.encode([row["predicted"] for row in rows])
    errors = np.asarray(values, dtype=np.float64) - truth
    columns = [
        _column(files, number, truth[:, number], errors[:, number]) for number in range(len(target.names))
    ]
    known = ~np.isnan(truth)
    shown = [column for column in range(len(target.names)) if known[:, column].any()][:MAX_DRAWN_COLUMNS]
    for number in shown:
        figures, name, has = files.path / "figures", target.names[number], known[:, number]
        true, error = truth[has, number], errors[has, number]
        scatter_figure(figures / f"predicted_{number}.png", true, true + error, name)
        residuals_figure(figures / f"residuals_{number}.png", error, name)
        drawn[f"predicted_{number}"] = (
            figures / f"predicted_{number}.png",
            f"Predicted against true {name} of {len(true):,} {files.checked} images.",
        )
        drawn[f"residuals_{number}"] = (
            figures / f"residuals_{number}.png",
            f"Histogram of predicted minus true {name}.",
        )
    return {
        "kind": target.kind,
        "total": len(rows),
        "columns": columns,
        "some_missing": not known.all(),
        "drawn": [(number, target.names[number]) for number in shown],
        "largest": _largest(files, truth, errors),
    }


def read_number_counts(files: RunFiles, drawn: Drawn) -> list[dict[str, Any]]:
    """Return `name`, `figure` and `of` (the counted images) of each column's histogram; figures are added to
    `drawn`.

    The histogram of the training images is in run.json (`counts.train_histograms`, see
    `measures.histograms`); without it, the validation images are counted.
    """
    stored, of = files.record.get("counts", {}).get("train_histograms"), "training images"
    if not stored and files.truth is not None:
        from pipeline.targets.measures import histograms

        stored, of = histograms(files.target.names, files.truth), f"{files.checked} images"
    shown = []
    whole = [
        (name, found)
        for name, found in (stored or {}).items()
        if len(found["edges"]) == len(found["counts"]) + 1 > 1  # not changed by hand
    ]
    for number, (name, histogram) in enumerate(whole[:MAX_DRAWN_COLUMNS]):
        path = files.path / "figures" / f"numbers_{number}.png"
        number_counts_figure(path, histogram["edges"], histogram["counts"], name, of)
        drawn[path.stem] = path, f"Histogram of {name} over {sum(histogram['counts']):,} {of}."
        shown.append(
            {
                "name": name,
                "figure": path.stem,
                "of": of,
                "low": histogram["edges"][0],
                "high": histogram["edges"][-1],
            }
        )
    return shown


def _column(files: RunFiles, number: int, truth: np.ndarray, errors: np.ndarray) -> dict[str, Any]:
    target, known = files.target, ~np.isnan(truth)
    truth, errors = truth[known], errors[known]
    single = Target("continuous", (target.names[number],))
    pair = truth[:, None], (truth + errors)[:, None]
    mean = target.center[number]
    return {
        "name": target.names[number],
        "rmse": evaluate("rmse", single, *pair),
        "mae": evaluate("mae", single, *pair),
        "r2": evaluate("r2", single, *pair),
        "rows": len(truth),
        "median": float(np.median(np.abs(errors))) if len(truth) else None,
        "mean": mean,
        "mean_rmse": float(np.sqrt(np.mean((truth - mean) ** 2))) if len(truth) else None,
    }


def _largest(files: RunFiles, truth: np.ndarray, errors: np.ndarray) -> list[dict[str, Any]]:
    """Return the images with the largest errors; for several numbers, by the mean of the scaled errors."""
    several = len(files.target.names) > 1
    scale = np.array(files.target.scale or np.nanstd(truth, axis=0)) if several else np.ones(1)
    size = np.nanmean(np.abs(errors / np.where(scale > 0, scale, 1)), axis=1)
    shown = [int(row) for row in np.argsort(-size, kind="stable")[:SHOWN_ERRORS] if size[row] > 0]
    rows = [files.predictions[row] for row in shown]
    return [
        {
            "numbers": [
                {
                    "name": name,
                    "true": float(truth[at, number]),
                    "predicted": float(truth[at, number] + errors[at, number]),
                }
                for number, name in enumerate(files.target.names)
                if not np.isnan(truth[at, number])
            ][:MAX_DRAWN_COLUMNS],
            "file": Path(row["path"]).name,
            "thumbnail": jpeg,
        }
        for at, row, jpeg in zip(shown, rows, kept_images(files, rows, "mistake"), strict=True)
    ]
