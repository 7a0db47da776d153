"""Draw curves over epochs and optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from pipeline.report.figures import ABOVE, CURVE_SIZE, GRID, QUIET, TRAINING, VALIDATION, new_axes, shortened
from pipeline.report.rendering import Drawn
from pipeline.report.run_files import RunFiles
from pipeline.report.words import (
    direction,
    higher_is_better,
    is_share,
    metric_name,
    metric_value,
    sentence,
    short_number,
)
from pipeline.run_record import NEWEST
from pipeline.training.optim import lr_at

# Okabe and Ito's colours, without yellow, which is hard to see on white.
RUN_LOOKS = tuple(
    zip(
        (TRAINING, VALIDATION, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#222222", "#8C564B"),
        "os^Dv<>P",
        strict=True,
    )
)
COLOURS = {"training": (TRAINING, "o"), "validation": (VALIDATION, "s")}


def draw_curves(files: RunFiles) -> Drawn:
    """Draw the training score, the loss, the competition's metric and the learning rate, where they are
    recorded.

    Returns figure name -> (path, alternative text).
    """
    drawn = {}
    for name in curve_names([files]):
        values = {
            label: [row.get(f"{key}_{name}") for row in files.metrics]
            for label, key in (("training", "train"), ("validation", "val"))
        }
        curves = {
            label: heights
            for label, heights in values.items()
            if any(height is not None for height in heights)
        }
        if curves:
            path = files.path / "figures" / f"{name}.png"
            epoch_curves(
                path, [row["epoch"] for row in files.metrics], curves, name, _best_words(files, name)
            )
            drawn[name] = path, _alt(name, curves)
    # `step` counts finished steps from 1; the learning rate beside it is that of the last one, with index
    # step - 1.
    ends = {row["epoch"]: row["step"] - 1 for row in files.metrics if row.get("step")}
    recorded = [
        (ends[row["epoch"]], row["lr"])
        for row in files.metrics
        if row.get("step") and row.get("lr") is not None
    ]
    steps, rates = scheduled(files.schedule)
    if steps or recorded:
        path = files.path / "figures" / "learning_rate.png"
        learning_rate_curve(path, steps, rates, ends, recorded)
        last, highest = (
            max(column) for column in zip(*recorded, *zip(steps, rates, strict=True), strict=True)
        )
        drawn["learning_rate"] = (
            path,
            f"Learning rate over {last + 1:,} optimizer steps, at most {short_number(highest)}.",
        )
    return drawn


def curve_names(runs: Sequence[RunFiles]) -> list[str]:
    """Return the curves over epochs of these runs: the training score, the loss, and the competition's
    metric.
    """
    scores, metrics = [files.training_score for files in runs], [files.metric.name for files in runs]
    return list(dict.fromkeys([*scores, "loss", *metrics]))


def axis_words(name: str) -> str:
    """Return the axis label of a metric: its name, and its direction if that is not obvious."""
    words = metric_name(name)
    return words if name == "loss" or "accuracy" in name else f"{words}\n({direction(name)})"


def axis_limits(name: str, values: np.ndarray) -> tuple[float, float]:
    """Return the axis limits of a metric: shares within 0..1, errors from 0, others around their values."""
    if is_share(name):
        return _share_limits(values)
    return _free_limits(values) if higher_is_better(name) else _loss_limits(values)


def epoch_curves(
    path: Path,
    epochs: Sequence[int],
    curves: dict[str, Sequence[float | None]],
    name: str,
    best: tuple[int, str] | None = None,
) -> None:
    """Draw one line per curve of the metric `name`; `best` = (epoch, text) is marked.

    Shares are shown in percent.

    Curves are named "training" or "validation". None or NaN leaves a gap; a single epoch is a point.
    """
    with new_axes(path) as axes:
        for label, values in curves.items():
            colour, marker = COLOURS[label]
            heights = _floats(values)
            axes.plot(epochs, heights, color=colour, marker=marker if len(epochs) <= 40 else "", label=label)
            if best and best[0] in epochs and (label == "validation" or len(curves) == 1):
                at_best = heights[list(epochs).index(best[0])]
                axes.plot(
                    best[0],
                    at_best,
                    "o",
                    color=colour,
                    markersize=12,
                    fillstyle="none",
                    markeredgewidth=1.6,
                    clip_on=False,
                )
        if best:
            axes.axvline(best[0], color=QUIET, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
            axes.text(1, 1.02, best[1], transform=axes.transAxes, ha="right", va="bottom", fontsize=10.5)
        axes.legend(**ABOVE)
        axes.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=9, integer=True, min_n_ticks=1))
        axes.set_xlabel("epoch")
        axes.set_ylabel(axis_words(name))
        bottom, top = axis_limits(name, np.concatenate([_floats(values) for values in curves.values()]))
        axes.set_ylim(bottom, top)
        if "\n" in axis_words(name):
            # room for two lines, and for long numbers
            axes.figure.subplots_adjust(left=0.185 if top < 1000 else 0.225)
        if is_share(name):
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


@dataclass(frozen=True)
class RunCurve:
    """One line of a comparison. `run` decides its colour; `dashed` means training."""

    run: str
    x: Sequence[float]
    y: Sequence[float | None]
    dashed: bool = False


def compared_curves(path: Path, curves: Sequence[RunCurve], name: str) -> None:
    """Draw the curves of a metric, a loss or the learning rate (`lr`) of several runs over epochs.

    Each run has a colour and a marker; training is dashed and thin.
    """
    look = dict(zip(dict.fromkeys(curve.run for curve in curves), RUN_LOOKS, strict=False))
    columns = 2 if max(map(len, look)) <= 20 else 1
    with new_axes(path, (CURVE_SIZE[0], CURVE_SIZE[1] + 0.19 * math.ceil((len(look) + 1) / columns))) as axes:
        few = max(len(curve.x) for curve in curves) <= 40
        for curve in curves:
            colour, marker = look[curve.run]
            if curve.dashed:
                axes.plot(curve.x, _floats(curve.y), "--", color=colour, linewidth=1.2, alpha=0.75)
            else:
                axes.plot(
                    curve.x,
                    _floats(curve.y),
                    color=colour,
                    marker=marker if few else "",
                    label=shortened(curve.run, 48),
                )
        if any(curve.dashed for curve in curves):
            axes.plot([], [], "--", color=QUIET, linewidth=1.2, label="training (dashed)")
        last = max(max(curve.x) for curve in curves)
        axes.set_xlim(min(0.5, *(min(curve.x) for curve in curves)), last + 0.5)
        heights = np.concatenate([_floats(curve.y) for curve in curves])
        axes.set_ylim(*(_loss_limits(heights) if name == "lr" else axis_limits(name, heights)))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=9, integer=True, min_n_ticks=1))
        as_number = FuncFormatter(lambda value, _: short_number(value))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0) if is_share(name) else as_number)
        axes.set(xlabel="epoch", ylabel="learning rate" if name == "lr" else axis_words(name))
        axes.figure.legend(loc="outside upper left", ncols=columns, fontsize=10, handlelength=2.2)


def learning_rate_curve(
    path: Path,
    steps: Sequence[int],
    rates: Sequence[float],
    epoch_ends: dict[int, int],
    recorded: Sequence[tuple[int, float]] = (),
) -> None:
    """Draw the learning rate over optimizer steps.

    `epoch_ends`: epoch -> its last step, marked above; `recorded`: (step, learning rate) as dots.
    """
    with new_axes(path) as axes:
        if len(steps):
            axes.plot(steps, rates, color=TRAINING, label="schedule")
        if recorded:
            sparse = recorded[:: math.ceil(len(recorded) / 30)]  # few dots, so that the line stays visible
            axes.plot(
                *zip(*sparse, strict=True),
                "o",
                color=VALIDATION,
                markersize=4.5,
                label="recorded during training",
            )
        last_step = max([*steps, *(step for step, _ in recorded)])
        shown = {
            epoch: step
            for epoch, step in epoch_ends.items()
            if epoch % max(1, math.ceil(len(epoch_ends) / 12)) == 0
        }
        # room for the epochs above and for numbers such as 2.5e-4
        axes.figure.subplots_adjust(top=0.85, left=0.165)
        above = axes.secondary_xaxis("top")
        above.set_xticks(list(shown.values()), [str(epoch) for epoch in shown])
        above.set_xlabel("end of epoch", color=QUIET, fontsize=10)
        above.tick_params(length=3, labelsize=9, labelcolor=QUIET)
        above.spines["top"].set_color(GRID)
        # Not axvline: the legend would avoid these lines too, and end up on the curve.
        axes.vlines(
            list(shown.values()),
            0,
            1,
            transform=axes.get_xaxis_transform(),
            color=GRID,
            linewidth=0.8,
            zorder=0,
        )
        axes.grid(axis="x", visible=False)
        axes.set_xlim(0, max(last_step * 1.02, 1))
        axes.set_ylim(0, max([*rates, *(rate for _, rate in recorded)]) * 1.12 or 1)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda rate, _: short_number(rate)))
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("learning rate")
        axes.legend(loc="best", borderpad=0.2)


def _best_words(files: RunFiles, name: str) -> tuple[int, str] | None:
    """Return the best epoch and its text for the figure of `name`; None without validation."""
    if not files.best or files.best["epoch"] is None:
        return None
    epoch, value = files.best["epoch"], files.kept_epoch.get(f"val_{name}")
    if files.best.get("soup"):
        return epoch, "best epoch of a mean of several" + (
            "" if value is None else f", which has {_value(name, value)}"
        )
    return epoch, f"{'last' if files.best.get('rule') in NEWEST else 'best'} epoch {epoch}" + (
        "" if value is None else f": {_value(name, value)}"
    )


def scheduled(schedule: dict[str, Any] | None) -> tuple[list[int], list[float]]:
    """Return steps (all, or about 1,500 including both sides of each epoch's end) and the learning rate at
    each.
    """
    if not schedule:
        return [], []
    total, per_epoch = schedule["total_steps"], max(1, schedule["steps_per_epoch"])
    chosen = {*range(0, total, max(1, math.ceil(total / 1500))), schedule["warmup_steps"], total - 1}
    if total <= 250 * per_epoch:
        chosen |= {step for end in range(per_epoch, total, per_epoch) for step in (end - 1, end)}
    steps = sorted(step for step in chosen if 0 <= step < total)
    return steps, [lr_at(step, schedule) for step in steps]


def _alt(name: str, curves: dict[str, list[float | None]]) -> str:
    parts = []
    for label, values in curves.items():
        known = [_value(name, value) for value in values if value is not None]
        parts.append(f"{label} {known[0]}" if len(known) == 1 else f"{label} from {known[0]} to {known[-1]}")
    count = len(next(iter(curves.values())))
    return f"{sentence(metric_name(name))} over {count} epoch{'s' if count > 1 else ''}: {', '.join(parts)}."


def _value(name: str, value: float) -> str:
    return f"{value:.3f}" if name == "loss" else metric_value(name, value)


def _share_limits(values: np.ndarray) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    bottom = 0.0 if low < 0.5 else math.floor((low - 0.03) * 20) / 20
    return bottom, (1.0 + 0.02 * (1 - bottom) if high > 0.8 else min(1.0, math.ceil((high + 0.02) * 10) / 10))


def _loss_limits(values: np.ndarray) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    return 0.0, (float(finite.max()) * 1.06 if finite.size and finite.max() > 0 else 1.0)


def _free_limits(values: np.ndarray) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    margin = 0.08 * (high - low) or 0.05 * max(abs(high), 0.1)
    return low - margin, high + margin


def _floats(values: Sequence[float | None]) -> np.ndarray:
    return np.array([math.nan if value is None else value for value in values], dtype=float)
