"""Page section for a run of folds: one row per fold, the scores of all out-of-fold rows, and the curves of
all folds.
"""

from __future__ import annotations

from typing import Any

from pipeline.report.curves import RUN_LOOKS, RunCurve, compared_curves
from pipeline.report.rendering import Drawn
from pipeline.report.run_facts import ordered
from pipeline.report.run_files import RunFiles
from pipeline.report.words import metric_name, metric_value
from pipeline.run_names import METRICS
from pipeline.run_record import read_metrics


def read_folds(files: RunFiles, drawn: Drawn) -> dict[str, Any] | None:
    """Return `rows` of the folds, `mean` and `deviation` of the metric, its value over `all` rows, and
    `scores`.

    The figure `folds` is added to `drawn`, with the curves of as many folds as there are colours; `caption`
    says of which. None for a run without folds.

    Raises:
        UserError: a fold's metrics.jsonl is damaged.
    """
    folds = files.record.get("folds")
    if not folds:
        return None
    name, curves = folds["metric"], []
    for line in folds["each"][: len(RUN_LOOKS)]:
        epochs = read_metrics(files.path / f"fold-{line['fold']}" / METRICS)
        curves.append(
            RunCurve(
                f"fold {line['fold']}",
                [row["epoch"] for row in epochs],
                [row.get(f"val_{name}") for row in epochs],
            )
        )
    curves = [curve for curve in curves if any(value is not None for value in curve.y)]
    if curves:
        path = files.path / "figures" / "folds.png"
        compared_curves(path, curves, name)
        drawn["folds"] = path, f"Validation {metric_name(name)} of {len(curves)} folds over the epochs."
    all_drawn = len(curves) == len(folds["each"])
    of = "each fold" if all_drawn else f"{len(curves)} of the {len(folds['each'])} folds"

    def words(value: float | None) -> str:
        return "–" if value is None else metric_value(name, value)

    return {
        "metric": metric_name(name),
        "caption": f"Validation {metric_name(name)} of {of} over the epochs.",
        "count": folds["count"],
        "all": words(folds["scores"].get(name)),
        "rows": [line | {"value": words(line.get("value"))} for line in folds["each"]],
        "mean": words(folds.get("mean")),
        "deviation": words(folds.get("deviation")),
        "scores": [(metric_name(key), value) for key, value in ordered(folds["scores"], files)],
        "notes": folds.get("notes") or [],
    }
