"""Draw calibration, ROC, predicted against true numbers, images per class, and scores of submissions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from pipeline.report.figures import (
    ABOVE,
    CURVE_SIZE,
    INK,
    QUIET,
    TRAINING,
    VALIDATION,
    drawable,
    drawable_names,
    new_axes,
)
from pipeline.report.words import short_number

MAX_BARS = 30  # maximum of named bars; more would make a figure taller than a page
MAX_NUMBERED = 25
SMALLEST_BAR = 0.7  # start of a logarithmic scale, so that a bar of one image is visible
# line style of the neutral diagonal
EVEN: dict[str, Any] = {"color": QUIET, "linewidth": 1.2, "linestyle": (0, (4, 3))}


def calibration_figure(
    path: Path,
    bins: Sequence[tuple[float, float, int]],
    predicted_words: str = "confidence of the prediction",
    true_words: str = "share that is right",
) -> None:
    """Draw calibration, one point per bin: (mean predicted, observed share, count).

    A point's area grows with the count.
    """
    with new_axes(path) as axes:
        confidence, right, counts = (np.array(column, dtype=float) for column in zip(*bins, strict=True))
        axes.plot([0, 1], [0, 1], label="perfectly calibrated", **EVEN)
        axes.plot(confidence, right, color=VALIDATION, linewidth=1.2)
        look: dict[str, Any] = {
            "color": VALIDATION,
            "alpha": 0.85,
            "linewidths": 0,
            "zorder": 3,
            "clip_on": False,
        }
        axes.scatter(
            confidence, right, s=25 + 200 * counts / counts.max(), label="predictions (larger = more)", **look
        )
        axes.set(xlim=(0, 1.03), ylim=(0, 1.03), xlabel=predicted_words, ylabel=true_words)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.figure.subplots_adjust(left=0.165)  # room for 100%
        legend = axes.legend(**ABOVE)
        for handle in legend.legend_handles[1:]:
            handle.set_sizes([40])


def roc_figure(path: Path, truth: np.ndarray, probabilities: np.ndarray) -> None:
    """Draw the ROC curve of (N,) bool truth, with both values, and probabilities; the point of the threshold
    0.5 is marked.
    """
    from sklearn.metrics import roc_curve

    false_rate, true_rate, _ = roc_curve(truth, probabilities)
    positive = probabilities >= 0.5
    with new_axes(path) as axes:
        axes.plot([0, 1], [0, 1], label="chance", **EVEN)
        axes.plot(false_rate, true_rate, color=VALIDATION, clip_on=False)
        look: dict[str, Any] = {
            "color": VALIDATION,
            "markersize": 11,
            "fillstyle": "none",
            "markeredgewidth": 1.6,
            "clip_on": False,
        }
        axes.plot(positive[~truth].mean(), positive[truth].mean(), "o", label="threshold 0.5", **look)
        axes.set(
            xlim=(0, 1.02), ylim=(0, 1.02), xlabel="false positive rate", ylabel="true positive rate (recall)"
        )
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.figure.subplots_adjust(left=0.165)
        axes.legend(**ABOVE)


def scatter_figure(path: Path, truth: np.ndarray, predicted: np.ndarray, name: str) -> None:
    """Draw predicted against true numbers of the column `name`, (N,) each, one point per image, with one
    scale.
    """
    with new_axes(path) as axes:
        low, high = float(min(truth.min(), predicted.min())), float(max(truth.max(), predicted.max()))
        margin = 0.04 * (high - low) or 0.5
        axes.axline((low, low), slope=1, label="predicted = true", **EVEN)
        alpha = min(0.8, max(0.08, 120 / len(truth)))  # where many points overlap it is darker
        axes.plot(truth, predicted, "o", color=VALIDATION, markersize=4.5, alpha=alpha, markeredgewidth=0)
        shown = drawable(name, 0)
        axes.set(xlim=(low - margin, high + margin), ylim=(low - margin, high + margin))
        axes.set_xlabel(f"true {shown}")
        axes.set_ylabel(f"predicted {shown}")
        _number_axes(axes)
        axes.legend(**ABOVE)


def residuals_figure(path: Path, errors: np.ndarray, name: str) -> None:
    """Draw a histogram of (N,) errors, predicted minus true, of the column `name`."""
    with new_axes(path) as axes:
        axes.hist(
            errors, bins=min(40, max(8, round(2 * math.sqrt(len(errors))))), color=VALIDATION, alpha=0.85
        )
        axes.axvline(0, **EVEN)
        axes.set_xlabel(f"predicted minus true {drawable(name, 0)}")
        axes.set_ylabel("images")
        _number_axes(axes)


def number_counts_figure(
    path: Path, edges: Sequence[float], counts: Sequence[int], name: str, of: str = "training images"
) -> None:
    """Draw a histogram of the column `name` from its B + 1 `edges` and B `counts`."""
    with new_axes(path) as axes:
        axes.stairs(counts, edges, fill=True, color=TRAINING, alpha=0.85)
        axes.set(xlim=(edges[0], edges[-1]), ylim=(0, max(counts) * 1.06 or 1), ylabel=of)
        axes.set_xlabel(drawable(name, 0))
        _number_axes(axes)


def _number_axes(axes: Axes) -> None:
    axes.figure.subplots_adjust(left=0.2, right=0.955)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
    # matplotlib would write a common factor above the axes, into the legend
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value).replace("e+0", "e")))


def class_counts_figure(
    path: Path,
    class_names: Sequence[str],
    counts: Sequence[int],
    noun: str = "classes",
    ordered: bool = False,
    logarithmic: bool = False,
) -> None:
    """Draw the training images per class, largest first: one named bar each up to `MAX_BARS` classes, else an
    outline.

    `ordered`: keep the given order (grades). `logarithmic`: for a tail that would be invisible otherwise.
    """
    order = list(range(len(counts)))
    if not ordered:
        order.sort(key=lambda number: -counts[number])
    heights = [counts[number] for number in order]
    if len(counts) > MAX_BARS:
        with new_axes(path) as axes:
            axes.figure.subplots_adjust(right=0.95)  # room for the right half of the last number
            axes.fill_between(
                np.arange(len(heights) + 1),
                [*heights, heights[-1]],
                step="post",
                color=TRAINING,
                alpha=0.85,
                linewidth=0,
            )
            across = f"{noun}, in order" if ordered else f"{noun}, most images first"
            axes.set(
                xlim=(0, len(heights)), ylim=(0, max(heights) * 1.06), xlabel=across, ylabel="training images"
            )
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
            if logarithmic:
                axes.set_yscale("log")
                axes.set_ylim(SMALLEST_BAR, max(heights) * 1.5)
                axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        return
    names = drawable_names(class_names)
    with new_axes(path, (CURVE_SIZE[0], 0.9 + 0.24 * len(counts))) as axes:
        bars = axes.barh(range(len(heights)), heights, color=TRAINING, height=0.72)
        axes.bar_label(bars, [f"{height:,}" for height in heights], padding=3, fontsize=9, color=QUIET)
        axes.set_yticks(range(len(heights)), [names[number] for number in order], fontsize=9.5)
        axes.set(ylim=(len(heights) - 0.4, -0.6), xlim=(0, max(heights) * 1.12), xlabel="training images")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        if logarithmic:
            axes.set_xscale("log")
            axes.set_xlim(SMALLEST_BAR, max(heights) * 2)
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)


def submissions_figure(
    path: Path,
    points: Sequence[tuple[int, float, float]],
    own: Sequence[int] = (),
    metric: str = "",
    better: str = "",
) -> None:
    """Draw public against validation scores, one point per submission: (number, validation, public).

    `own`: numbers of this run. `metric`: the name of the validation score; `better`: its direction.
    """
    with new_axes(path) as axes:
        validation, public = [point[1] for point in points], [point[2] for point in points]
        low, high = min(*validation, *public), max(*validation, *public)
        # the diagonal is only useful if both scores are on one scale and near each other
        if high - low < 4 * max(max(validation) - min(validation), max(public) - min(public), 0.01):
            axes.axline((low, low), slope=1, label="same score", **EVEN)
        for chosen, colour, label in ((True, VALIDATION, "this run"), (False, TRAINING, "others")):
            group = [point for point in points if (point[0] in own) == chosen]
            if group:
                look: dict[str, Any] = {"color": colour, "markeredgewidth": 0, "zorder": 3, "clip_on": False}
                axes.plot(
                    [point[1] for point in group],
                    [point[2] for point in group],
                    "o",
                    markersize=8,
                    label=label,
                    **look,
                )
        if len(points) <= MAX_NUMBERED:
            for number, across, up in points:
                axes.annotate(
                    str(number), (across, up), (6, 5), textcoords="offset points", fontsize=9, color=INK
                )
        for set_limits, values in ((axes.set_xlim, validation), (axes.set_ylim, public)):
            margin = max(0.12 * (max(values) - min(values)), 0.004 * abs(max(values)), 1e-4)
            set_limits(min(values) - margin, max(values) + margin)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
        axes.set(
            xlabel=f"validation {metric or 'score'}", ylabel=f"public score{f' ({better})' if better else ''}"
        )
        axes.figure.subplots_adjust(left=0.165)
        axes.legend(**ABOVE | {"ncols": 3})
