"""File names that lie in several folders (`cam1/1.jpg`, `cam2/1.jpg`), told apart by a column of folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pipeline.competition.id_styles import SEVERAL_EACH
from pipeline.competition.ids import ImageIndex, Match
from pipeline.tables import Table


def in_folders(table: Table, name: str, match: Match, index: ImageIndex) -> tuple[Table, str] | None:
    """Return the table with paths for the ids of column `name`, whose result is `match`, and the column of
    their folders.

    None unless ids have several images each (not as views: `match_groups`), and the cells of one other
    column, put before them as folders, give each row its own image.
    """
    if match.style in SEVERAL_EACH or not any(len(images) > 1 for images in match.images):
        return None
    folders = {step for images in match.different for image in images for step in image.split("/")[:-1]}
    ids = [cell.strip() for cell in table.column(name)]
    found: dict[tuple[tuple[str, ...], ...], tuple[Sequence[str], str]] = {}
    for other in table.columns:
        above = [cell.strip().strip("/") for cell in table.column(other)]
        if other == name or not all(cell.split("/")[-1] in folders for cell in above):
            continue
        paths = [f"{folder}/{row_id}" for folder, row_id in zip(above, ids, strict=True)]
        joined = index.match(paths)
        if joined.num_unique == len(set(paths)) and joined.num_single == len(paths):
            found.setdefault(joined.images, (paths, other))
    if len(found) != 1:
        return None
    paths, other = next(iter(found.values()))
    place = table.columns.index(name)
    cells = tuple(
        (*row[:place], path, *row[place + 1 :]) for row, path in zip(table.cells, paths, strict=True)
    )
    return replace(table, cells=cells), other
