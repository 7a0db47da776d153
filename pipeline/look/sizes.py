"""Describe sizes, shapes, modes, file formats and bytes of the images of train and test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.files import human_size
from pipeline.look.drawing import shares_figure, sizes_figure
from pipeline.look.image_facts import ImageFacts
from pipeline.look.section import Figure, Grid, Section
from pipeline.look.selection import Looked
from pipeline.wording import counted

DIFFERENT = 1.25  # ratio of the medians of train and test from which a difference is reported
RARE = 0.01  # a format or mode with a smaller share of the images is odd


def size_section(looked: Looked, figures: Path, model_px: int | None) -> Section:
    """Return the section on sizes; `model_px`: the side of the model's input in pixels, if known."""
    section = Section("Sizes and files")
    parts = {
        name: [one for one in looked.facts_of(looked.part(name)) if one.width and not one.problem]
        for name in ("train", "test")
    }
    parts = {name: found for name, found in parts.items() if found}
    if not parts:
        section.says.append("No image could be decoded.")
        return section
    section.grids.append(Grid("Images of each part", ("", *parts), _table(parts), open=30))
    section.says += _differences(parts) + _in_words(parts, model_px)
    path = figures / "sizes.png"
    sizes = {name: [(one.width, one.height) for one in found] for name, found in parts.items()}
    sizes_figure(path, sizes, model_px)
    words = "Width and height of the images; larger points stand for more images" + (
        f"; the cross is the model's input, {model_px} pixels" if model_px else ""
    )
    section.figures.append(Figure(path, f"{words}.", f"{words}. Images on the dashed line are square.", ""))
    path = figures / "brightness.png"
    shares_figure(
        path,
        {name: [_brightness(one) for one in found] for name, found in parts.items()},
        "mean brightness, 0 to 255",
    )
    section.figures.append(
        Figure(path, "Histogram of mean brightness.", "Brightness: the mean grey level of an image.", "")
    )
    return section


def _brightness(one: ImageFacts) -> float:
    return float(np.frombuffer(one.colour, np.uint8).mean())


def _table(parts: dict[str, list[ImageFacts]]) -> list[tuple[str, ...]]:
    rows: dict[str, list[str]] = {}
    for found in parts.values():
        areas = sorted(found, key=lambda one: one.width * one.height)
        aspects = np.array([one.aspect for one in found])
        num_bytes = np.array([one.num_bytes for one in found])
        values = {
            "images": f"{len(found):,}",
            "usual width x height": _usual([(one.width, one.height) for one in found]),
            "smallest": _size(areas[0]),
            "median": f"{np.median([one.width for one in found]):.0f} x "
            f"{np.median([one.height for one in found]):.0f}",
            "largest": _size(areas[-1]),
            "width / height: least, median, largest": " ".join(
                f"{value:.2f}" for value in np.percentile(aspects, [0, 50, 100])
            ),
            "formats": _shares([one.format for one in found]),
            "modes": _shares([one.mode for one in found]),
            "bytes: median, all": f"{human_size(float(np.median(num_bytes)))}, "
            f"{human_size(int(num_bytes.sum()))}",
            "turned by their EXIF data": f"{sum(one.turned for one in found):,}",
        }
        for name, value in values.items():
            rows.setdefault(name, []).append(value)
    return [(name, *values) for name, values in rows.items()]


def _size(one: ImageFacts) -> str:
    return f"{one.width} x {one.height}"


def _usual(sizes: Sequence[tuple[int, int]]) -> str:
    (width, height), count = Counter(sizes).most_common(1)[0]
    return f"{width} x {height} ({count / len(sizes):.0%})"


def _shares(values: Sequence[str]) -> str:
    return ", ".join(
        f"{value} {_percent(count / len(values))}" for value, count in Counter(values).most_common(5)
    )


def _percent(share: float) -> str:
    return "100%" if share == 1 else "<1%" if share < 0.01 else f"{min(99, round(100 * share))}%"


def _differences(parts: dict[str, list[ImageFacts]]) -> list[str]:
    """Return sentences on differences between train and test; empty without differences."""
    if len(parts) < 2:
        return []
    lines = []
    measures = {
        "pixels": lambda one: one.width * one.height,
        "width / height": lambda one: one.aspect,
        "bytes a pixel": lambda one: one.num_bytes / (one.width * one.height),
    }
    for name, measure in measures.items():
        train, test = (float(np.median([measure(one) for one in parts[part]])) for part in ("train", "test"))
        if max(train, test) > DIFFERENT * min(train, test):
            lines.append(
                f"Train and test differ in {name}: the median is {_short(train)} in train and {_short(test)} "
                "in test."
            )
    for name in ("format", "mode"):
        train, test = ({getattr(one, name) for one in parts[part]} for part in ("train", "test"))
        if only := test - train:
            lines.append(f"Test has images of a {name} that train does not have: {', '.join(sorted(only))}.")
    return lines


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _in_words(parts: dict[str, list[ImageFacts]], model_px: int | None) -> list[str]:
    train = parts.get("train") or next(iter(parts.values()))
    lines = []
    if model_px:
        shorter = np.array([min(one.width, one.height) for one in train])
        small = int((shorter < model_px).sum())
        lines.append(
            f"{counted(small, 'image')} of {len(train):,} {'has' if small == 1 else 'have'} a side shorter "
            f"than the model's {model_px} pixels and will be enlarged; the median shorter side is "
            f"{np.median(shorter):.0f}."
        )
    for what in ("format", "mode"):
        counts = Counter(getattr(one, what) for one in train)
        rare = {name: count for name, count in counts.items() if count < RARE * len(train)}
        if rare:
            named = ", ".join(f"{name} ({counted(count, 'image')})" for name, count in rare.items())
            lines.append(f"Rare {what}s: {named}.")
    return lines
