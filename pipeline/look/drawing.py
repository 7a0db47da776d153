"""Draw figures that only the first look has: labels that occur together, image sizes, distributions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from pipeline.report.figures import ABOVE, GRID, INK, QUIET, TRAINING, VALIDATION, drawable_names, new_axes

SMALLEST_AREA, LARGEST_AREA = 14, 130  # of a point, in points squared
COLOURS = {"train": TRAINING, "test": VALIDATION}


def together_figure(path: Path, share: np.ndarray, names: Sequence[str]) -> None:
    """Draw (L, L) shares: of the images with the row's label, those that also have the column's.

    The diagonal is empty.
    """
    names = drawable_names(names)
    side = min(9.0, max(0.34 * len(names), 2.1) + 1.0 + 0.085 * max(map(len, names)))
    shown = np.where(np.eye(len(names), dtype=bool) | (share == 0), np.nan, share)
    with new_axes(path, (side, side)) as axes:
        axes.imshow(shown, cmap="Blues", vmin=0, vmax=1, aspect="equal")
        for row, column in np.argwhere(np.nan_to_num(shown) > 0):
            colour = "white" if shown[row, column] > 0.55 else INK
            axes.text(
                column,
                row,
                f"{max(1, round(100 * shown[row, column]))}",
                ha="center",
                va="center",
                color=colour,
                fontsize=8,
            )
        axes.set_xticks(range(len(names)), names, fontsize=9, rotation=90)
        axes.set_yticks(range(len(names)), names, fontsize=9)
        axes.grid(False)
        axes.spines[:].set_visible(True)
        axes.spines[:].set_color(GRID)
        axes.tick_params(length=0)


def sizes_figure(path: Path, sizes: Mapping[str, Sequence[tuple[int, int]]], model_px: int | None) -> None:
    """Draw the image sizes (width, height) in pixels of train and test, and the model's input square if
    `model_px` is given.

    Larger points stand for sizes of more images.
    """
    both = [size for part in sizes.values() for size in part]
    sides = np.array(both, dtype=float)
    low, high = float(sides.min()), float(sides.max())
    if model_px:
        low, high = min(low, model_px), max(high, model_px)
    logarithmic = high > 8 * low
    with new_axes(path) as axes:
        if logarithmic:
            axes.set_xscale("log", base=2)
            axes.set_yscale("log", base=2)
        most = max((count for points in sizes.values() for count in Counter(points).values()), default=1)
        for part, points in sizes.items():
            if points:
                counts = Counter(points)
                across, up = np.array(list(counts), dtype=float).T
                area = SMALLEST_AREA + (LARGEST_AREA - SMALLEST_AREA) * np.sqrt(
                    np.array(list(counts.values())) / most
                )
                alpha = min(0.8, max(0.15, 150 / len(counts)))
                filled = (
                    {"facecolors": COLOURS[part], "linewidths": 0}
                    if part == "train"
                    else {"facecolors": "none", "linewidths": 1.4}
                )
                axes.scatter(
                    across, up, area, edgecolors=COLOURS[part], alpha=alpha, label=part, zorder=3, **filled
                )
        if model_px:
            look = {"color": INK, "markersize": 13, "markeredgewidth": 1.6, "linestyle": ""}
            axes.plot([model_px], [model_px], "+", label="model input", **look)
        margin = 1.25 if logarithmic else 1.0
        room = 0.0 if logarithmic else 0.06 * (high - low) + 2
        limits = low / margin - room, high * margin + room
        axes.set(xlim=limits, ylim=limits, xlabel="width (pixels)", ylabel="height (pixels)")
        axes.axline(
            (low, low),
            (high, high) if high > low else (low + 1, low + 1),
            color=QUIET,
            linewidth=1.0,
            linestyle=(0, (4, 3)),
        )
        for axis in (axes.xaxis, axes.yaxis):
            if logarithmic:
                axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
                axis.set_minor_formatter(NullFormatter())
            else:
                axis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        axes.figure.subplots_adjust(left=0.18)
        legend = axes.legend(**ABOVE | {"ncols": 3})
        for handle in legend.legend_handles:
            handle.set_alpha(1)
            if hasattr(handle, "set_sizes"):
                handle.set_sizes([40])


def shares_figure(path: Path, values: Mapping[str, Sequence[float]], across: str) -> None:
    """Draw the distributions of `values` in train and test as shares of each part, with common bins."""
    both = np.concatenate([np.asarray(part, dtype=float) for part in values.values() if len(part)])
    edges = np.histogram_bin_edges(both, bins=min(40, max(8, round(2 * math.sqrt(len(both))))))
    with new_axes(path) as axes:
        for part, found in values.items():
            if len(found):
                counts = np.histogram(found, edges)[0] / len(found)
                axes.stairs(
                    counts,
                    edges,
                    color=COLOURS[part],
                    linewidth=2.0,
                    fill=part == "train",
                    alpha=0.45 if part == "train" else 1,
                    label=part,
                )
        axes.set(xlim=(edges[0], edges[-1]), xlabel=across, ylabel="share of the images")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}%"))
        axes.figure.subplots_adjust(left=0.165)
        axes.legend(**ABOVE)
