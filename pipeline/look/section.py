"""What one question about the data comes to: sentences, tables, figures and images. The page and the text are both made of these alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Picture:
    """An image of the data folder that a page shows small, and the words below it."""

    path: Path
    words: str
    side_px: int = 112


@dataclass(frozen=True)
class Strip:
    """Images that belong together: some of one class, one set of duplicates. `words` stand above them, `quiet` behind in grey."""

    words: str
    pictures: tuple[Picture, ...]
    quiet: str = ""


@dataclass(frozen=True)
class Sheet:
    """Strips under one heading. `tiles`: one image a strip, close together. More strips than `open` are folded."""

    title: str
    strips: tuple[Strip, ...]
    tiles: bool = False
    open: int = 24
    captions: bool = False  # the words of each image are shown below it
    whole: bool = False  # images are shown uncut: where their shape matters
    sample: bool = False  # images that stand for others: the first to go where the page would be too large


@dataclass(frozen=True)
class Grid:
    """A table. Rows beyond `open` are folded on the page; the text shows the first ten and says how many more there are."""

    title: str
    heads: tuple[str, ...]
    rows: Sequence[Sequence[Any]]
    open: int = 20
    texts: int = 1  # how many columns, from the left, hold text


@dataclass(frozen=True)
class Figure:
    """A drawn figure: its file, words for who cannot see it, and what stands below it."""

    path: Path
    alt: str
    caption: str
    classes: str = "wide"


@dataclass
class Section:
    """The answer to one question, under `title`."""

    title: str
    says: list[str] = field(default_factory=list)
    grids: list[Grid] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    sheets: list[Sheet] = field(default_factory=list)
