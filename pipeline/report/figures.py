"""The figures of a run: plain numbers and a path in, a PNG at that path out; one look for all."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from pipeline.files import replacing
from pipeline.report.run_files import RunFiles, read_run_files
from pipeline.report.words import percent, short_number
from pipeline.training.optim import lr_at

DPI = 200
CURVE_SIZE = (5.2, 3.5)  # inches: text of 11 pt stays readable two to a page row, on a phone, and in one column of a write-up
MAX_LABELLED_CLASSES = 30  # above this, class names on a confusion matrix would be too small to read
MAX_CELLS = 250  # cells on a side of a heat map; smaller ones would vanish at page width

# Okabe and Ito's colours stay distinct in the common kinds of colour blindness; the two curves also differ in marker and lightness.
TRAINING, VALIDATION, INK, QUIET, GRID = "#0072B2", "#D55E00", "#222222", "#666666", "#E4E4E4"
COLOURS = {"training": (TRAINING, "o"), "validation": (VALIDATION, "s")}
STYLE = {
    "font.size": 11,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "lines.linewidth": 2.0,
    "lines.markersize": 5,
    "legend.frameon": False,
    "legend.fontsize": 10.5,
    "text.color": INK,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}
# A legend over the axes, where no curve can run through its words.
ABOVE = {"loc": "lower left", "bbox_to_anchor": (-0.02, 0.985), "ncols": 2, "borderpad": 0.2, "handlelength": 1.6, "columnspacing": 1.2}
# Tried in this order for letters that matplotlib's own font lacks; only the installed ones count.
WIDER_FONTS = (
    *("Noto Sans", "Noto Sans CJK TC", "Noto Sans CJK SC", "Noto Sans CJK JP"),
    *("Microsoft JhengHei", "Microsoft YaHei", "PingFang TC", "Arial Unicode MS"),
)


def write_figures(run_dir: Path) -> list[Path]:
    """Draw the curves that the run's files allow so far, in `run_dir/figures/`; their paths. Made to be called after each epoch."""
    return [path for path, _ in draw_curves(read_run_files(run_dir)).values()]


def draw_curves(files: RunFiles) -> dict[str, tuple[Path, str]]:
    """Draw accuracy, loss and learning rate, as far as they are recorded: name -> (path, words for who cannot see it)."""
    drawn = {}
    for name in ("accuracy", "loss"):
        values = {
            label: [row.get(f"{key}_{name}") for row in files.metrics] for label, key in (("training", "train"), ("validation", "val"))
        }
        curves = {label: heights for label, heights in values.items() if any(height is not None for height in heights)}
        if curves:
            path = files.path / "figures" / f"{name}.png"
            share, best = name == "accuracy", _best_words(files, name)
            epoch_curves(path, [row["epoch"] for row in files.metrics], curves, name, best, share)
            drawn[name] = path, _alt(name, curves, share)
    # Line `step` counts the steps done; the rate beside it is that of the last of them, whose number is one less.
    ends = {row["epoch"]: row["step"] - 1 for row in files.metrics if row.get("step")}
    recorded = [(ends[row["epoch"]], row["lr"]) for row in files.metrics if row.get("step") and row.get("lr") is not None]
    steps, rates = _scheduled(files.schedule)
    if steps or recorded:
        path = files.path / "figures" / "learning_rate.png"
        learning_rate_curve(path, steps, rates, ends, recorded)
        last, highest = (max(column) for column in zip(*recorded, *zip(steps, rates, strict=True), strict=True))
        drawn["learning_rate"] = path, f"Learning rate over {last + 1:,} optimizer steps, at most {short_number(highest)}."
    return drawn


@contextmanager
def new_axes(path: Path, size: tuple[float, float] = CURVE_SIZE) -> Iterator[Axes]:
    """Empty axes of `size` inches in the house look; what is drawn in the block becomes the PNG at `path`, whole or not at all."""
    with matplotlib.rc_context({**STYLE, "font.family": _fonts()[0]}):
        figure = Figure(figsize=size, dpi=DPI, facecolor="white", layout=None if size == CURVE_SIZE else "constrained")
        if size == CURVE_SIZE:  # fixed margins halve the time of a figure that is drawn after each epoch
            figure.subplots_adjust(left=0.145, right=0.975, bottom=0.15, top=0.89)
        canvas = FigureCanvasAgg(figure)
        yield figure.add_subplot()
        with replacing(path) as temporary:
            canvas.print_png(temporary)


def epoch_curves(
    path: Path,
    epochs: Sequence[int],
    curves: dict[str, Sequence[float | None]],
    y_label: str,
    best: tuple[int, str] | None = None,
    share: bool = False,
) -> None:
    """One line a curve over epochs; `best` = (epoch, words) is ringed. `share`: values lie in 0..1 and are shown in percent.

    A curve's name is "training" or "validation"; None or NaN leaves a gap; a single epoch shows as a point.
    """
    with new_axes(path) as axes:
        for name, values in curves.items():
            colour, marker = COLOURS[name]
            heights = _floats(values)
            axes.plot(epochs, heights, color=colour, marker=marker if len(epochs) <= 40 else "", label=name)
            if best and best[0] in epochs and (name == "validation" or len(curves) == 1):
                at_best = heights[list(epochs).index(best[0])]
                axes.plot(best[0], at_best, "o", color=colour, markersize=12, fillstyle="none", markeredgewidth=1.6, clip_on=False)
        if best:
            axes.axvline(best[0], color=QUIET, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
            axes.text(1, 1.02, best[1], transform=axes.transAxes, ha="right", va="bottom", fontsize=10.5)
        axes.legend(**ABOVE)
        axes.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=9, integer=True, min_n_ticks=1))
        axes.set_xlabel("epoch")
        axes.set_ylabel(y_label)
        every_value = np.concatenate([_floats(values) for values in curves.values()])
        axes.set_ylim(*(_share_limits if share else _loss_limits)(every_value))
        if share:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def learning_rate_curve(
    path: Path,
    steps: Sequence[int],
    rates: Sequence[float],
    epoch_ends: dict[int, int],
    recorded: Sequence[tuple[int, float]] = (),
) -> None:
    """The learning rate over optimizer steps. `epoch_ends`: epoch -> its last step, marked above; `recorded`: (step, rate) as dots."""
    with new_axes(path) as axes:
        if len(steps):
            axes.plot(steps, rates, color=TRAINING, label="schedule")
        if recorded:
            sparse = recorded[:: math.ceil(len(recorded) / 30)]  # so that the line stays visible between the dots
            axes.plot(*zip(*sparse, strict=True), "o", color=VALIDATION, markersize=4.5, label="recorded during training")
        last_step = max([*steps, *(step for step, _ in recorded)])
        shown = {epoch: step for epoch, step in epoch_ends.items() if epoch % max(1, math.ceil(len(epoch_ends) / 12)) == 0}
        axes.figure.subplots_adjust(top=0.85, left=0.165)  # room for the epochs above and for rates such as 2.5e-4
        above = axes.secondary_xaxis("top")
        above.set_xticks(list(shown.values()), [str(epoch) for epoch in shown])
        above.set_xlabel("end of epoch", color=QUIET, fontsize=10)
        above.tick_params(length=3, labelsize=9, labelcolor=QUIET)
        above.spines["top"].set_color(GRID)
        # Not axvline: the legend would look for a place clear of these lines too, and end up on the curve.
        axes.vlines(list(shown.values()), 0, 1, transform=axes.get_xaxis_transform(), color=GRID, linewidth=0.8, zorder=0)
        axes.grid(axis="x", visible=False)
        axes.set_xlim(0, max(last_step * 1.02, 1))
        axes.set_ylim(0, max([*rates, *(rate for _, rate in recorded)]) * 1.12 or 1)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda rate, _: short_number(rate)))
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("learning rate")
        axes.legend(loc="best", borderpad=0.2)


def confusion_figure(path: Path, counts: np.ndarray, class_names: Sequence[str]) -> None:
    """(C, C) counts, row = true class, as shares of each row: names and percentages up to 30 classes, else a heat map."""
    num_classes = len(class_names)
    support = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, support, out=np.zeros(counts.shape), where=support > 0)
    if num_classes > MAX_LABELLED_CLASSES:
        _heat_map(path, shares)
        return
    side = float(np.clip(0.34 * num_classes + 2.1, 3.6, 11))
    with new_axes(path, (side, side)) as axes:
        axes.imshow(np.where(counts > 0, shares, np.nan), cmap="Blues", vmin=0, vmax=1, aspect="equal")
        for row, column in np.argwhere(counts > 0):
            colour = "white" if shares[row, column] > 0.55 else INK
            percent = max(1, round(100 * shares[row, column]))
            axes.text(column, row, f"{percent}", ha="center", va="center", color=colour, fontsize=8 if num_classes > 10 else 10)
        names = [_drawable(name, number) for number, name in enumerate(class_names)]
        size = 9 if num_classes > 10 else 10.5
        turned: dict[str, Any] = {"rotation": 90} if num_classes > 10 else {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
        if num_classes <= 4 and max(map(len, names)) <= 8:
            turned = {}
        axes.set_xticks(range(num_classes), names, fontsize=size, parse_math=False, **turned)
        axes.set_yticks(range(num_classes), names, fontsize=size, parse_math=False)
        _as_matrix(axes)
        axes.set_xlabel("predicted class (numbers: % of the true class)", fontsize=10 if num_classes > 4 else 9)
        axes.set_ylabel("true class", fontsize=10 if num_classes > 4 else 9)


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


def cell_classes(num_classes: int) -> int:
    """How many classes share a row of the heat map."""
    return math.ceil(num_classes / MAX_CELLS)


def _heat_map(path: Path, shares: np.ndarray) -> None:
    num_classes, block = len(shares), cell_classes(len(shares))
    padded = np.pad(shares, (0, -num_classes % block))
    cells = padded.reshape(len(padded) // block, block, len(padded) // block, block).max(axis=(1, 3))
    with new_axes(path, (7.0, 6.2)) as axes:
        # The square root keeps single confusions visible beside a full diagonal.
        norm, edge = PowerNorm(0.5, vmin=0, vmax=1), len(padded) - 0.5
        image = axes.imshow(
            np.where(cells > 0, cells, np.nan), cmap="Blues", norm=norm, interpolation="nearest", extent=(-0.5, edge, edge, -0.5)
        )
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        _as_matrix(axes)
        axes.set_xlabel("predicted class (number)")
        axes.set_ylabel("true class (number)")
        bar = axes.figure.colorbar(image, ax=axes, format=PercentFormatter(1.0, decimals=0), ticks=[0, 0.05, 0.25, 0.5, 1], shrink=0.8)
        bar.set_label("share of the true class")
        bar.outline.set_visible(False)


def _as_matrix(axes: Axes) -> None:
    axes.grid(False)
    axes.spines[:].set_visible(True)
    axes.spines[:].set_color(GRID)
    axes.tick_params(length=0)


def _best_words(files: RunFiles, name: str) -> tuple[int, str] | None:
    """The best epoch, and what a figure of `name` says of it; None without validation."""
    if not files.best:
        return None
    epoch, value = files.best["epoch"], files.kept_epoch.get(f"val_{name}")
    return epoch, f"best epoch {epoch}" + ("" if value is None else f": {_value(value, name == 'accuracy')}")


def _scheduled(schedule: dict[str, Any] | None) -> tuple[list[int], list[float]]:
    """Steps (all, or about 1,500 of them with both sides of each epoch's end) and the schedule's rate at each."""
    if not schedule:
        return [], []
    total, per_epoch = schedule["total_steps"], max(1, schedule["steps_per_epoch"])
    chosen = {*range(0, total, math.ceil(total / 1500)), schedule["warmup_steps"], total - 1}
    if total <= 250 * per_epoch:
        chosen |= {step for end in range(per_epoch, total, per_epoch) for step in (end - 1, end)}
    steps = sorted(step for step in chosen if 0 <= step < total)
    return steps, [lr_at(step, schedule) for step in steps]


def _alt(name: str, curves: dict[str, list[float | None]], share: bool) -> str:
    parts = []
    for label, values in curves.items():
        known = [_value(value, share) for value in values if value is not None]
        parts.append(f"{label} {known[0]}" if len(known) == 1 else f"{label} from {known[0]} to {known[-1]}")
    count = len(next(iter(curves.values())))
    return f"{name.capitalize()} over {count} epoch{'s' if count > 1 else ''}: {', '.join(parts)}."


def _value(value: float, share: bool) -> str:
    return percent(value) if share else f"{value:.3f}"


def _share_limits(values: np.ndarray) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    bottom = 0.0 if low < 0.5 else math.floor((low - 0.03) * 20) / 20
    return bottom, (1.0 + 0.02 * (1 - bottom) if high > 0.8 else min(1.0, math.ceil((high + 0.02) * 10) / 10))


def _loss_limits(values: np.ndarray) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    return 0.0, (float(finite.max()) * 1.06 if finite.size and finite.max() > 0 else 1.0)


def _floats(values: Sequence[float | None]) -> np.ndarray:
    return np.array([math.nan if value is None else value for value in values], dtype=float)


def _drawable(name: str, number: int) -> str:
    """`name`, cut to 24 characters; "class 3" where no installed font has its letters (boxes would say less than the number)."""
    name = " ".join(name.split())
    if not all(any(has(ord(letter)) for has in _fonts()[1]) for letter in name):
        return f"class {number}"
    return name if len(name) <= 24 else f"{name[:23]}…"


@cache
def _fonts() -> tuple[list[str], list[Callable[[int], int]]]:
    """The font families to draw with, and for each what says whether it has a letter."""
    installed = {font.name: font.fname for font in font_manager.fontManager.ttflist}
    families = ["DejaVu Sans", *(family for family in WIDER_FONTS if family in installed)]
    return families, [FT2Font(installed[family]).get_char_index for family in families]
