"""Format numbers, times and names of metrics for people."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pipeline.targets.metrics import METRICS, Metric, find_metric

CORRECTED = "corrected_"  # prefix of scores by corrected labels (data.exclude, data.relabel)


def short_number(value: float) -> str:
    """Format a number as in a recipe: 5e-5, 2.5e-4, 0.01, 16."""
    if value == 0 or abs(value) >= 0.01:
        return f"{value:.6g}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def percent(value: float) -> str:
    """Format a share (0 to 1) as 94.1%."""
    return f"{100 * value:.1f}%"


def metric_name(key: str) -> str:
    """Return the name of a metric's key: val_top5_accuracy -> top-5 accuracy, val_qwk -> quadratic weighted
    kappa.
    """
    name = _bare(key)
    if name.startswith(CORRECTED):
        return f"corrected {metric_name(name.removeprefix(CORRECTED))}"
    if known := _known(name):
        return known.words
    words = name.replace("_", " ").replace("f1", "F1").replace("vqa", "VQA")
    return "learning rate" if words == "lr" else words


def metric_value(key: str, value: float) -> str:
    """Format a metric's value: shares in percent, errors with four digits in the data's units, others with
    four decimals.
    """
    name = _bare(key).removeprefix(CORRECTED)
    if is_share(key):
        return percent(value)
    if name in ("rmse", "mae"):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.4g}"
    return f"{value:.4f}"


def is_share(key: str) -> bool:
    """Return True if a metric is a share of correct decisions, which people read in percent."""
    name = _bare(key)
    return (
        "accuracy" in name
        or name.endswith(("_f1", "_f2", "recall"))
        or (name.endswith("precision") and name != "average_precision")
    )


def higher_is_better(key: str) -> bool:
    """Return True if higher values of a metric's key are better; False for a loss."""
    name = _bare(key).removeprefix(CORRECTED)
    known = _known(name)
    return known.higher_is_better if known else not name.endswith("loss")


def direction(key: str) -> str:
    """Return `higher is better` or `lower is better`."""
    return "higher is better" if higher_is_better(key) else "lower is better"


def sentence(words: str) -> str:
    """Return `words` with a capital first letter; others are unchanged, as in ROC AUC."""
    return words[:1].upper() + words[1:]


def _bare(key: str) -> str:
    return key.removeprefix("val_").removeprefix("train_").removeprefix("test_")


def _known(name: str) -> Metric | None:
    """Return the metric of exactly this name; None if there is none.

    Other spellings are not accepted for keys.
    """
    if name in METRICS:
        return METRICS[name]
    return (
        find_metric(name) if name.startswith("map_at_") and name.removeprefix("map_at_").isdigit() else None
    )


def measured(value: float | None, decimals: int = 4) -> str:
    """Format a measured value: 304,178,888 / 0.9412 / 4.8e-5; a dash for None."""
    if value is None or isinstance(value, int):
        return "–" if value is None else f"{value:,}"
    return short_number(value) if 0 < abs(value) < 1e-3 else f"{value:.{decimals}f}"


def brief(value: float) -> str:
    """Format a number of the data with four digits: 21.98 / 0.5 / 12,346."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value + 0.0:.4g}"  # -0.0 is 0


def setting(value: Any) -> str:
    """Format a setting: 64 / 5e-5 / yes / query, key; a dash for None."""
    if value is None or isinstance(value, bool):
        return {None: "–", True: "yes", False: "no"}[value]
    if isinstance(value, (list, tuple)):
        return ", ".join(setting(item) for item in value)
    return short_number(value) if isinstance(value, float) else str(value)


def to_the_minute(text: str) -> str:
    """Format an ISO time as 2026-01-31 09:15."""
    return datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M")
