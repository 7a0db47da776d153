"""Calibration, images a class, and what Kaggle made of the submissions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator, PercentFormatter

from pipeline.report.figures import ABOVE, CURVE_SIZE, INK, QUIET, TRAINING, VALIDATION, drawable_names, new_axes

MAX_BARS = 30  # named bars; above, names would make a picture taller than a page
MAX_NUMBERED = 25


def calibration_figure(path: Path, bins: Sequence[tuple[float, float, int]]) -> None:
    """Share that is right against stated confidence, one point a bin: (mean confidence, share right, count); area grows with the count."""
    with new_axes(path) as axes:
        confidence, right, counts = (np.array(column, dtype=float) for column in zip(*bins, strict=True))
        axes.plot([0, 1], [0, 1], color=QUIET, linewidth=1.2, linestyle=(0, (4, 3)), label="perfectly calibrated")
        axes.plot(confidence, right, color=VALIDATION, linewidth=1.2)
        look: dict[str, Any] = {"color": VALIDATION, "alpha": 0.85, "linewidths": 0, "zorder": 3, "clip_on": False}
        axes.scatter(confidence, right, s=25 + 200 * counts / counts.max(), label="predictions (larger = more)", **look)
        axes.set(xlim=(0, 1.03), ylim=(0, 1.03), xlabel="confidence of the prediction", ylabel="share that is right")
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.figure.subplots_adjust(left=0.165)  # room for 100%
        legend = axes.legend(**ABOVE)
        for handle in legend.legend_handles[1:]:
            handle.set_sizes([40])


def class_counts_figure(path: Path, class_names: Sequence[str], counts: Sequence[int]) -> None:
    """Training images of each class, most first: a named bar each up to `MAX_BARS` classes, else one falling outline."""
    order = sorted(range(len(counts)), key=lambda number: -counts[number])
    heights = [counts[number] for number in order]
    if len(counts) > MAX_BARS:
        with new_axes(path) as axes:
            axes.figure.subplots_adjust(right=0.95)  # room for half of the last number
            axes.fill_between(np.arange(len(heights) + 1), [*heights, heights[-1]], step="post", color=TRAINING, alpha=0.85, linewidth=0)
            axes.set(xlim=(0, len(heights)), ylim=(0, max(heights) * 1.06), xlabel="classes, most images first", ylabel="training images")
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        return
    names = drawable_names(class_names)
    with new_axes(path, (CURVE_SIZE[0], 0.9 + 0.24 * len(counts))) as axes:
        bars = axes.barh(range(len(heights)), heights, color=TRAINING, height=0.72)
        axes.bar_label(bars, [f"{height:,}" for height in heights], padding=3, fontsize=9, color=QUIET)
        axes.set_yticks(range(len(heights)), [names[number] for number in order], fontsize=9.5, parse_math=False)
        axes.set(ylim=(len(heights) - 0.4, -0.6), xlim=(0, max(heights) * 1.12), xlabel="training images")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)


def submissions_figure(path: Path, points: Sequence[tuple[int, float, float]], own: Sequence[int] = ()) -> None:
    """Public score against validation score, a point a submission: (number, validation, public). `own` numbers are this run's."""
    with new_axes(path) as axes:
        validation, public = [point[1] for point in points], [point[2] for point in points]
        low, high = min(*validation, *public), max(*validation, *public)
        if high - low < 4 * max(max(validation) - min(validation), max(public) - min(public), 0.01):  # on one scale, and near each other
            axes.axline((low, low), slope=1, color=QUIET, linewidth=1.2, linestyle=(0, (4, 3)), label="same score")
        for chosen, colour, label in ((True, VALIDATION, "this run"), (False, TRAINING, "others")):
            group = [point for point in points if (point[0] in own) == chosen]
            if group:
                look: dict[str, Any] = {"color": colour, "markeredgewidth": 0, "zorder": 3, "clip_on": False}
                axes.plot([point[1] for point in group], [point[2] for point in group], "o", markersize=8, label=label, **look)
        if len(points) <= MAX_NUMBERED:
            for number, across, up in points:
                axes.annotate(str(number), (across, up), (6, 5), textcoords="offset points", fontsize=9, color=INK)
        for set_limits, values in ((axes.set_xlim, validation), (axes.set_ylim, public)):
            margin = max(0.12 * (max(values) - min(values)), 0.004 * abs(max(values)), 1e-4)
            set_limits(min(values) - margin, max(values) + margin)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
        axes.set(xlabel="validation score", ylabel="public score")
        axes.figure.subplots_adjust(left=0.165)
        axes.legend(**ABOVE | {"ncols": 3})
