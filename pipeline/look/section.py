"""The parts of a section of the first look: sentences, tables, figures and images.

The page and the text are built from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class SmallImage:
    """An image of the data folder, shown small on the page, with `words` below it."""

    path: Path
    words: str


@dataclass(frozen=True)
class Strip:
    """Images that belong together: of one class, or one set of duplicates.

    `words`: heading; `quiet`: grey text behind it.
    """

    words: str
    images: tuple[SmallImage, ...]
    quiet: str = ""


@dataclass(frozen=True)
class Sheet:
    """Strips under one heading. `tiles`: one image per strip, close together.

    Strips beyond `open` are collapsed.
    """

    title: str
    strips: tuple[Strip, ...]
    tiles: bool = False
    open: int = 24
    captions: bool = False  # show the words of each image below it
    whole: bool = False  # show images uncut, where their shape matters
    sample: bool = False  # images are examples of more: the first to be dropped if the page is too large


@dataclass(frozen=True)
class Grid:
    """A table.

    Rows beyond `open` are collapsed on the page; the text shows the first ten and the number of the others.
    """

    title: str
    heads: tuple[str, ...]
    rows: Sequence[Sequence[Any]]
    open: int = 20
    texts: int = 1  # number of text columns, from the left


@dataclass(frozen=True)
class Figure:
    """A drawn figure: its file, a text for people who cannot see it, and its caption."""

    path: Path
    alt: str
    caption: str
    classes: str = "wide"


@dataclass
class Section:
    """The answer to one question about the data, under `title`."""

    title: str
    says: list[str] = field(default_factory=list)
    grids: list[Grid] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    sheets: list[Sheet] = field(default_factory=list)
