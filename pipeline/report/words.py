"""Numbers, times and names of metrics as people write them."""

from __future__ import annotations

from datetime import datetime
from typing import Any


def short_number(value: float) -> str:
    """A number as people write it in a recipe: 5e-5, 2.5e-4, 0.01, 16."""
    if value == 0 or abs(value) >= 0.01:
        return f"{value:.6g}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def percent(value: float) -> str:
    """A share of 1 as 94.1%."""
    return f"{100 * value:.1f}%"


def metric_name(key: str) -> str:
    """A metric's key in words: val_top5_accuracy -> top-5 accuracy."""
    words = (
        key.removeprefix("val_").removeprefix("train_").replace("_", " ").replace("top5", "top-5").replace("f1", "F1").replace("vqa", "VQA")
    )
    return "learning rate" if words == "lr" else words


def metric_value(key: str, value: float) -> str:
    """A metric's value by its key: shares in percent, others with four decimals."""
    return percent(value) if "accuracy" in key or key.endswith(("f1", "precision", "recall")) else f"{value:.4f}"


def measured(value: float | None, decimals: int = 4) -> str:
    """A measured value: 304,178,888 / 0.9412 / 4.8e-5; a dash for none."""
    if value is None or isinstance(value, int):
        return "–" if value is None else f"{value:,}"
    return short_number(value) if 0 < abs(value) < 1e-3 else f"{value:.{decimals}f}"


def setting(value: Any) -> str:
    """A chosen value: 64 / 5e-5 / yes / query, key; a dash for none."""
    if value is None or isinstance(value, bool):
        return {None: "–", True: "yes", False: "no"}[value]
    if isinstance(value, (list, tuple)):
        return ", ".join(setting(item) for item in value)
    return short_number(value) if isinstance(value, float) else str(value)


def to_the_minute(text: str) -> str:
    """An ISO time as 2026-01-31 09:15."""
    return datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M")
