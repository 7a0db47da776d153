"""Draw the confusion matrix: with names and percentages while they are readable, else as a heat map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.ticker import MaxNLocator, PercentFormatter

from pipeline.report.figures import GRID, INK, drawable_names, new_axes

MAX_LABELLED_CLASSES = 30  # with more classes, names on a confusion matrix would be too small to read
MAX_CELLS = 250  # cells per side of a heat map; smaller cells would be invisible at page width


def confusion_figure(path: Path, counts: np.ndarray, class_names: Sequence[str], noun: str = "class") -> None:
    """Draw (C, C) counts, row = true class, as shares of each row: with names up to 30 classes, else as a
    heat map.
    """
    num_classes = len(class_names)
    support = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, support, out=np.zeros(counts.shape), where=support > 0)
    if num_classes > MAX_LABELLED_CLASSES:
        _heat_map(path, shares)
        return
    names = drawable_names(class_names)
    side = min(11.0, max(0.34 * num_classes, 2.1) + 1.0 + 0.085 * max(map(len, names)))
    with new_axes(path, (side, side)) as axes:
        axes.imshow(np.where(counts > 0, shares, np.nan), cmap="Blues", vmin=0, vmax=1, aspect="equal")
        for row, column in np.argwhere(counts > 0):
            colour = "white" if shares[row, column] > 0.55 else INK
            percent = max(1, round(100 * shares[row, column]))
            axes.text(
                column,
                row,
                f"{percent}",
                ha="center",
                va="center",
                color=colour,
                fontsize=8 if num_classes > 10 else 10,
            )
        size = 9 if num_classes > 10 else 10.5
        turned: dict[str, Any] = (
            {"rotation": 90}
            if num_classes > 10
            else {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
        )
        if max(map(len, names)) <= (8 if num_classes <= 4 else 3 if num_classes <= 10 else 2):
            turned = {}
        axes.set_xticks(range(num_classes), names, fontsize=size, **turned)
        axes.set_yticks(range(num_classes), names, fontsize=size)
        _as_matrix(axes)
        axes.set_xlabel(
            f"predicted {noun}\n(numbers: % of the true {noun})", fontsize=10 if num_classes > 4 else 9
        )
        axes.set_ylabel(f"true {noun}", fontsize=10 if num_classes > 4 else 9)


def cell_classes(num_classes: int) -> int:
    """Return how many classes share a row of the heat map."""
    return math.ceil(num_classes / MAX_CELLS)


def _heat_map(path: Path, shares: np.ndarray) -> None:
    num_classes, block = len(shares), cell_classes(len(shares))
    padded = np.pad(shares, (0, -num_classes % block))
    cells = padded.reshape(len(padded) // block, block, len(padded) // block, block).max(axis=(1, 3))
    with new_axes(path, (7.0, 6.2)) as axes:
        # The square root makes single confusions visible beside a full diagonal.
        norm, edge = PowerNorm(0.5, vmin=0, vmax=1), len(padded) - 0.5
        image = axes.imshow(
            np.where(cells > 0, cells, np.nan),
            cmap="Blues",
            norm=norm,
            interpolation="nearest",
            extent=(-0.5, edge, edge, -0.5),
        )
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        _as_matrix(axes)
        axes.set_xlabel("predicted class (number)")
        axes.set_ylabel("true class (number)")
        bar = axes.figure.colorbar(
            image,
            ax=axes,
            format=PercentFormatter(1.0, decimals=0),
            ticks=[0, 0.05, 0.25, 0.5, 1],
            shrink=0.8,
        )
        bar.set_label("share of the true class")
        bar.outline.set_visible(False)


def _as_matrix(axes: Axes) -> None:
    axes.grid(False)
    axes.spines[:].set_visible(True)
    axes.spines[:].set_color(GRID)
    axes.tick_params(length=0)
