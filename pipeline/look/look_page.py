"""The page of a first look: sections, figures and small images in one file, of a size that is kept to."""

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
from pipeline.look.section import Grid, Picture, Section, Sheet
from pipeline.report.rendering import embedded, render
from pipeline.report.thumbnails import thumbnail

FILE = "look.html"
ROWS_ON_PAGE = 2_000  # of one table; the text and the files beside the page hold the rest


class Thumbnails:
    """Small JPEGs of images, in base64, each made once."""

    def __init__(self, intensity: Intensity | None) -> None:
        self._intensity = intensity
        self._made: dict[tuple[Path, int], str | None] = {}

    def make(self, pictures: Sequence[Picture]) -> None:
        """Make those that are not there yet, on all cores."""
        wanted = [key for key in dict.fromkeys((one.path, one.side_px) for one in pictures) if key not in self._made]
        with ThreadPoolExecutor() as pool:
            self._made.update(zip(wanted, pool.map(lambda key: thumbnail(*key, self._intensity), wanted), strict=True))

    def of(self, picture: Picture) -> str | None:
        """One of them; None where the image cannot be decoded, or was not made."""
        return self._made.get((picture.path, picture.side_px))


def write_page(
    folder: Path, name: str, sections: Sequence[Section], thumbnails: Thumbnails, most_bytes: int, images: bool
) -> tuple[Path, str]:
    """Write look.html into `folder`: its path, and what was left out to keep it below `most_bytes`, empty when nothing was.

    First the images that stand for others become fewer, then all are left out.

    Raises:
        UserError: it is larger even without images.
    """
    levels = [1, 2, 4, 8, 0] if images else [0]
    for step in levels:
        shown = [_thinned(section, step) for section in sections]
        thumbnails.make([one for section in shown for sheet in section.sheets for strip in sheet.strips for one in strip.pictures])
        left = "" if step == levels[0] else "all images" if step == 0 else f"{step - 1} of {step} images of the sheet of classes"
        note = f"Left out, to keep this page below {human_size(most_bytes)}: {left}." if left else ""
        html = _html(name, shown, thumbnails, note)
        if len(html.encode("utf-8")) <= most_bytes:
            write_text(folder / FILE, html)
            return folder / FILE, note
    raise UserError(f"the page would take {human_size(len(html))} without any image, and --max-mb allows {human_size(most_bytes)}")


def _thinned(section: Section, step: int) -> Section:
    """The section with every `step`-th strip of sheets that are a sample; 0: without sheets."""
    if step == 1:
        return section
    sheets = [replace(sheet, strips=sheet.strips[::step]) if sheet.sample else sheet for sheet in section.sheets] if step else []
    return replace(section, sheets=sheets)


def _html(name: str, sections: Sequence[Section], thumbnails: Thumbnails, note: str) -> str:
    drawn = {figure.path.stem: (figure.path, figure.alt) for section in sections for figure in section.figures}
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
        "figures": [{"name": figure.path.stem, "caption": figure.caption, "classes": figure.classes} for figure in section.figures],
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
            "pictures": [{"jpeg": jpeg, "words": one.words} for one in strip.pictures if (jpeg := thumbnails.of(one))],
        }
        for strip in sheet.strips
    ]
    strips = [strip for strip in strips if strip["pictures"]]
    return {
        "title": sheet.title,
        "tiles": sheet.tiles,
        "captions": sheet.captions,
        "whole": sheet.whole,
        "open": strips[: sheet.open],
        "folded": strips[sheet.open :],
    }
