"""Write the page of a first look: sections, figures and small images in one file of limited size."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline.data.intensity import Intensity
from pipeline.errors import UserError
from pipeline.files import human_size, write_text
from pipeline.look.section import Grid, Section, Sheet, SmallImage
from pipeline.report.rendering import embedded, render
from pipeline.report.thumbnails import SMALL_PX, thumbnail

FILE = "look.html"
ROWS_ON_PAGE = 2_000  # maximum rows of one table; files beside the page may hold more


class Thumbnails:
    """Small JPEGs of images, in base64; each is made once."""

    def __init__(self, intensity: Intensity | None) -> None:
        self._intensity = intensity
        self._made: dict[Path, str | None] = {}

    def make(self, images: Sequence[SmallImage]) -> None:
        """Make the missing ones, on all cores."""
        wanted = [path for path in dict.fromkeys(one.path for one in images) if path not in self._made]
        with ThreadPoolExecutor() as pool:
            made = pool.map(lambda path: thumbnail(path, SMALL_PX, self._intensity), wanted)
            self._made.update(zip(wanted, made, strict=True))

    def of(self, image: SmallImage) -> str | None:
        """Return one of them; None if the image cannot be decoded, or was not made."""
        return self._made.get(image.path)


def write_page(
    folder: Path,
    name: str,
    sections: Sequence[Section],
    thumbnails: Thumbnails,
    most_bytes: int,
    images: bool,
) -> tuple[Path, str]:
    """Write look.html into `folder`.

    Returns its path, and a note on images left out to stay below `most_bytes` ("": none).

    First the sample images become fewer, then all images are left out.

    Raises:
        UserError: the page is too large even without images.
    """
    levels = [1, 2, 4, 8, 0] if images else [0]
    for step in levels:
        shown = [_thinned(section, step) for section in sections]
        thumbnails.make(
            [
                one
                for section in shown
                for sheet in section.sheets
                for strip in sheet.strips
                for one in strip.images
            ]
        )
        if step == levels[0]:
            left = ""
        elif step == 0:
            left = "all images"
        else:
            left = f"{step - 1} of {step} images of the sheet of classes"
        note = f"Left out to keep this page below {human_size(most_bytes)}: {left}." if left else ""
        html = _html(name, shown, thumbnails, note)
        if len(html.encode("utf-8")) <= most_bytes:
            write_text(folder / FILE, html)
            return folder / FILE, note
    raise UserError(
        f"the page would take {human_size(len(html))} without any image, but --max-mb allows "
        f"{human_size(most_bytes)}"
    )


def _thinned(section: Section, step: int) -> Section:
    """Return the section with every `step`-th strip of sample sheets; 0: without sheets."""
    if step == 1:
        return section
    sheets = []
    if step:
        sheets = [
            replace(sheet, strips=sheet.strips[::step]) if sheet.sample else sheet for sheet in section.sheets
        ]
    return replace(section, sheets=sheets)


def _html(name: str, sections: Sequence[Section], thumbnails: Thumbnails, note: str) -> str:
    drawn = {
        figure.path.stem: (figure.path, figure.alt) for section in sections for figure in section.figures
    }
    return render(
        "look.html.j2",
        name=name,
        sections=[_section(section, thumbnails) for section in sections],
        figures=embedded(drawn),
        rows_are="images",
        note=note,
        written=datetime.now().astimezone().isoformat(),
    )


def _section(section: Section, thumbnails: Thumbnails) -> dict[str, Any]:
    return {
        "title": section.title,
        "says": section.says,
        "grids": [_grid(grid) for grid in section.grids],
        "figures": [
            {"name": figure.path.stem, "caption": figure.caption, "classes": figure.classes}
            for figure in section.figures
        ],
        "sheets": [_sheet(sheet, thumbnails) for sheet in section.sheets if sheet.strips],
    }


def _grid(grid: Grid) -> dict[str, Any]:
    rows = list(grid.rows)
    return {
        "title": grid.title,
        "heads": grid.heads,
        "texts": grid.texts,
        "rows": rows[: grid.open],
        "folded": rows[grid.open : ROWS_ON_PAGE],
        "more": max(len(rows) - ROWS_ON_PAGE, 0),
        "count": len(rows),
    }


def _sheet(sheet: Sheet, thumbnails: Thumbnails) -> dict[str, Any]:
    strips = [
        {
            "words": strip.words,
            "quiet": strip.quiet,
            "images": [
                {"jpeg": jpeg, "words": one.words} for one in strip.images if (jpeg := thumbnails.of(one))
            ],
        }
        for strip in sheet.strips
    ]
    strips = [strip for strip in strips if strip["images"]]
    return {
        "title": sheet.title,
        "tiles": sheet.tiles,
        "captions": sheet.captions,
        "whole": sheet.whole,
        "open": strips[: sheet.open],
        "folded": strips[sheet.open :],
    }
