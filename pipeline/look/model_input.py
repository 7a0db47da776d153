"""Draw what the recipe's crop and resolution make of an image: the typical image of the set, and the longest
one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Rectangle
from PIL import Image

from pipeline.competition.rows import Row
from pipeline.data.crops import Crop, decoded, random_crop
from pipeline.data.images import decode
from pipeline.data.intensity import Intensity
from pipeline.data.policies import policy
from pipeline.data.transforms import Preprocessing, augmenter
from pipeline.look.section import Figure, Section
from pipeline.look.selection import Looked
from pipeline.recipe import Recipe
from pipeline.recipe_sections import Augmentation
from pipeline.report.figures import DPI, STYLE, fonts, save

CROPS = 3
SHOWN_PX = 800  # longest side of an image in the figure
BOX_COLOURS = ("#D55E00", "#0072B2", "#009E73")
LONG = 1.5  # longer side / shorter side from which the longest image is drawn too
SEED = 0


@dataclass(frozen=True)
class Views:
    """One image: `whole` as in the file, `read` by validation and prediction, `drawn` in three random draws
    of training.
    """

    whole: Image.Image
    size: tuple[int, int]
    read: Image.Image
    drawn: tuple[Image.Image, ...]
    crops: tuple[Crop, ...]  # of the draws, in pixels of `size`; empty without random crops


def input_section(
    looked: Looked,
    recipe: Recipe,
    preprocessing: Preprocessing,
    assumed: str,
    figures: Path,
    intensity: Intensity | None,
) -> Section:
    """Return the section on the model's input; `assumed`: why the preprocessing is a guess, empty if it came
    with the backbone.
    """
    section = Section("What the model will see")
    rows = looked.sound(looked.train) or looked.sound(looked.test)
    if not rows:
        section.says.append("No image could be decoded.")
        return section
    chosen = _usual_and_longest(looked, rows)
    views = [views_of(row.path, preprocessing, recipe.augmentation, intensity) for row in chosen]
    path = figures / "model_input.png"
    draw_views(path, views)
    usual = views[0]
    section.says.append(_in_words(usual.size, preprocessing, recipe))
    if assumed:
        section.says.append(assumed)
    words = "The typical image of this set" + (" and the longest one" if len(views) > 1 else "")
    crops = (
        " The coloured boxes are the three crops at the right, drawn at random as in training."
        if usual.crops
        else " At the right: three random draws of training."
    )
    caption = f"{words}: as in the file, as validation and prediction read it, and as training does.{crops}"
    section.figures.append(Figure(path, caption, caption, "wide large photo"))
    section.says += [
        f"{name}: {looked.shown(row.path)}."
        for name, row in zip(("The typical image", "The longest"), chosen, strict=False)
    ]
    return section


def views_of(
    path: Path, preprocessing: Preprocessing, augmentation: Augmentation, intensity: Intensity | None
) -> Views:
    """Return the image at `path` as the model sees it.

    Raises:
        BadImage: it cannot be decoded.
    """
    image = decode(path, intensity=intensity)
    generator = torch.Generator().manual_seed(SEED)
    crop, change = random_crop(augmentation, preprocessing), policy(augmentation) or (lambda drawn: drawn)
    with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
        torch.manual_seed(SEED)
        if crop is None:
            drawn = tuple(change(augmenter(augmentation, preprocessing)(image)) for _ in range(CROPS))
            return Views(image, image.size, preprocessing.resize(image), drawn, ())
        pixels = np.asarray(image)
        boxes = tuple(crop.draw(image.size, generator) for _ in range(CROPS))
        cut = [Image.fromarray(crop.cut(decoded(pixels), box).permute(1, 2, 0).numpy()) for box in boxes]
        return Views(image, image.size, preprocessing.resize(image), tuple(map(change, cut)), boxes)


def _usual_and_longest(looked: Looked, rows: Sequence[Row]) -> list[Row]:
    """Return the row whose image size is nearest to the medians; and the row of the longest image, if it is
    long.
    """
    facts = looked.facts_of(rows)
    logs = np.log([[one.width, one.height] for one in facts])
    usual = int(np.abs(logs - np.median(logs, axis=0)).sum(axis=1).argmin())
    stretched = np.abs(logs[:, 0] - logs[:, 1])
    longest = int(stretched.argmax())
    return [rows[usual], *([rows[longest]] if longest != usual and stretched[longest] > np.log(LONG) else [])]


def _in_words(size: tuple[int, int], preprocessing: Preprocessing, recipe: Recipe) -> str:
    width, height = size
    across, down = preprocessing.width / width, preprocessing.height / height  # the scales
    if preprocessing.resize_to is None:
        ratio = max(across, down) / min(across, down)
        read = f"resized to {preprocessing.width} x {preprocessing.height}" + (
            f", which stretches one side {ratio:.2f} times" if ratio > 1.02 else ""
        )
    else:
        if isinstance(preprocessing.resize_to, int):
            shorter = preprocessing.resize_to
            across = down = shorter / min(size)
        else:
            shorter = min(preprocessing.resize_to)
            down, across = (new / old for new, old in zip(preprocessing.resize_to, size[::-1], strict=True))
        side = f"{preprocessing.width} x {preprocessing.height}"
        read = f"resized to a shorter side of {shorter} and cropped to the central {side}"
    factor = np.sqrt(across * down)
    if factor < 0.98:
        scale = f"to {factor:.0%} of its resolution"
    elif factor > 1.02:
        scale = f"enlarged {factor:.1f} times"
    else:
        scale = "at its own resolution"
    config = recipe.augmentation
    training = "the same, changed at random"
    if config.random_resized_crop:
        low, high = config.crop_scale
        side = f"{preprocessing.width} x {preprocessing.height}"
        training = f"a random part of {low:.0%} to {high:.0%} of its area, resized to {side}"
    flip = ", mirrored in half of the draws" if config.horizontal_flip else ""
    flip += f", then changed by {config.policy}" if config.policy != "none" else ""
    return (
        f"The typical image has {width} x {height} pixels. Validation and prediction read it {read}: "
        f"{scale}. Training takes {training}{flip}."
    )


def draw_views(path: Path, views: Sequence[Views]) -> None:
    """Draw one row per image: the whole image, as it is read, and draws of training."""
    columns = 2 + CROPS
    titles = ("file", "validation, prediction", *("training",) * CROPS)
    with matplotlib.rc_context({**STYLE, "font.family": fonts()[0], "axes.grid": False}):
        figure = Canvas(
            figsize=(1.9 * columns, 2.2 * len(views) + 0.2), dpi=DPI, facecolor="white", layout="constrained"
        )
        canvas = FigureCanvasAgg(figure)
        all_axes = figure.subplots(len(views), columns, squeeze=False)
        for row, view in enumerate(views):
            for column, image in enumerate((view.whole, view.read, *view.drawn)):
                axes = all_axes[row, column]
                _draw_image(axes, image, view.size if column == 0 else image.size)
                axes.set_title(titles[column] if row == 0 else "", fontsize=10)
            for crop, colour, axes in zip(view.crops, BOX_COLOURS, all_axes[row, 2:], strict=False):
                place: dict[str, Any] = {
                    "xy": (crop.left, crop.top),
                    "width": crop.width,
                    "height": crop.height,
                    "fill": False,
                }
                all_axes[row, 0].add_patch(Rectangle(**place, edgecolor="white", linewidth=3))
                all_axes[row, 0].add_patch(Rectangle(**place, edgecolor=colour, linewidth=1.6))
                axes.spines[:].set_visible(True)
                axes.spines[:].set_color(colour)
                axes.spines[:].set_linewidth(2.5)
        save(canvas, path)


def _draw_image(axes: Axes, image: Image.Image, size: tuple[int, int]) -> None:
    """Draw `image` on axes in pixels of `size`."""
    shown = image.copy()
    shown.thumbnail((SHOWN_PX, SHOWN_PX))
    few = max(image.size) < 100
    axes.imshow(
        np.asarray(shown), extent=(0, size[0], size[1], 0), interpolation="nearest" if few else "antialiased"
    )
    axes.set_xlabel(f"{size[0]} x {size[1]}", fontsize=9.5)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
