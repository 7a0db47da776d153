"""The style of every figure: axes saved as PNG, colours, and names in letters that an installed font has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path

import matplotlib
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font

from pipeline.files import replacing

DPI = 200
FORMATS = ("svg", "pdf")
_FORMATS: ContextVar[tuple[str, ...]] = ContextVar("formats", default=())
# inches; text of 11 pt stays readable with two figures in a row, on a phone, and in a column of a paper
CURVE_SIZE = (5.2, 3.5)

# Okabe and Ito's colours are distinct for common colour blindness; the two curves also differ in marker and
# lightness.
TRAINING, VALIDATION, INK, QUIET, GRID = "#0072B2", "#D55E00", "#222222", "#666666", "#E4E4E4"
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
    "text.parse_math": False,  # a class may be called $5, and a run $a_b$
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}
# Legend above the axes, where no curve crosses its text.
ABOVE = {
    "loc": "lower left",
    "bbox_to_anchor": (-0.02, 0.985),
    "ncols": 2,
    "borderpad": 0.2,
    "handlelength": 1.6,
    "columnspacing": 1.2,
}
# Tried in this order for letters that matplotlib's own font lacks; fonts that are not installed are skipped.
WIDER_FONTS = (
    *("Noto Sans", "Noto Sans CJK TC", "Noto Sans CJK SC", "Noto Sans CJK JP"),
    *("Microsoft JhengHei", "Microsoft YaHei", "PingFang TC", "Arial Unicode MS"),
)


@contextmanager
def new_axes(path: Path, size: tuple[float, float] = CURVE_SIZE) -> Iterator[Axes]:
    """Yield empty axes of `size` inches in the common style; after the block the figure is saved at `path`
    atomically.
    """
    with matplotlib.rc_context({**STYLE, "font.family": fonts()[0]}):
        figure = Figure(
            figsize=size, dpi=DPI, facecolor="white", layout=None if size == CURVE_SIZE else "constrained"
        )
        # fixed margins halve the drawing time of figures that are updated after each epoch
        if size == CURVE_SIZE:
            figure.subplots_adjust(left=0.145, right=0.975, bottom=0.15, top=0.89)
        canvas = FigureCanvasAgg(figure)
        yield figure.add_subplot()
        save(canvas, path)


@contextmanager
def also_as(formats: Sequence[str]) -> Iterator[None]:
    """In the block, also write every figure in `formats` (svg, pdf) beside its PNG."""
    token = _FORMATS.set(tuple(formats))
    try:
        yield
    finally:
        _FORMATS.reset(token)


def save(canvas: FigureCanvasAgg, path: Path) -> None:
    """Write a figure as PNG to `path`, and in the formats of `also_as`; each file atomically."""
    with replacing(path) as temporary:
        canvas.print_png(temporary)
    for form in _FORMATS.get():  # after the PNG: a vector format changes the canvas resolution
        with replacing(path.with_suffix(f".{form}")) as temporary:
            canvas.figure.savefig(temporary, format=form)


def drawable(name: str, number: int) -> str:
    """Return `name` cut to 24 characters; "class 3" if no installed font has its letters."""
    name = " ".join(name.split())
    if not all(any(has(ord(letter)) for has in fonts()[1]) for letter in name):
        return f"class {number}"
    return shortened(name, 24)


def drawable_names(names: Sequence[str]) -> list[str]:
    """Return class names for axes; names that are equal after shortening end with their number."""
    shown = [drawable(name, number) for number, name in enumerate(names)]
    times = Counter(shown)
    return [
        name if times[name] == 1 else f"{name[:16].rstrip('…')}… ({number})"
        for number, name in enumerate(shown)
    ]


def shortened(text: str, length: int) -> str:
    """Return `text` cut to `length` characters."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


@cache
def fonts() -> tuple[list[str], list[Callable[[int], int]]]:
    """Return the font families to draw with, and for each a function that returns 0 for letters it lacks."""
    installed = {font.name: font.fname for font in font_manager.fontManager.ttflist}
    families = ["DejaVu Sans", *(family for family in WIDER_FONTS if family in installed)]
    return families, [FT2Font(installed[family]).get_char_index for family in families]
