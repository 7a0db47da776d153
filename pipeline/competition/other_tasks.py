"""Refuse competitions of other tasks: segmentation, detection, free text, retrieval.

They are recognised by their sample submission. Read as classes, they would give a file that Kaggle accepts
and scores with 0.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pipeline.competition.folders import plain_name
from pipeline.competition.label_columns import Wanted
from pipeline.competition.sources import Source
from pipeline.errors import UserError
from pipeline.tables import Table
from pipeline.wording import listed

LOOKED_AT = 2000  # rows of the sample submission
MASKS = "masks (which pixels of an image belong to an object: segmentation)"
BOXES = "boxes or other places in an image (detection)"
RANKED_WITH_CONFIDENCE = "labels with a number beside each (a confidence, a box or a mask)"
ALIKE = "other images of the competition (which are alike, or of the same thing: retrieval)"
ASKED_BY_NAME = {
    **dict.fromkeys(
        ("encodedpixels", "rlemask", "rle", "maskrle", "encodedmask", "segmentation", "mask"), MASKS
    ),
    **dict.fromkeys(("predictionstring", "bbox", "bboxes", "boxes", "boundingbox", "boundingboxes"), BOXES),
    **dict.fromkeys(("multipolygonwkt", "polygonwkt", "polygon", "polygons"), BOXES),
}


def refuse_other_tasks(sample: Source, id_column: str, wanted: Wanted) -> None:
    """Check that a sample submission asks for classes, labels or numbers of whole images.

    Raises:
        UserError: it asks for masks, boxes or similar images; the message gives the evidence.
    """
    table = sample.table
    for column in wanted.columns:
        if plain_name(column) in ASKED_BY_NAME:
            raise _refusal(sample, ASKED_BY_NAME[plain_name(column)], f"its column is called {column!r}")
    if len(wanted.columns) != 1:
        return
    column = wanted.columns[0]
    cells = [cell.strip() for cell in table.column(column)[:LOOKED_AT]]
    if first := next((cell for cell in cells if _numbers_beside(cell)), None):
        raise _refusal(sample, RANKED_WITH_CONFIDENCE, f"{column!r} holds {first!r}")
    if _names_rows(table, id_column, cells):
        raise _refusal(sample, ALIKE, f"{column!r} holds ids of the rows themselves, such as {cells[0]!r}")


def refuse_several_questions(sample: Source, wanted: Wanted, tables: Sequence[Source]) -> None:
    """Check that the rows of a sample submission do not ask for different class columns: `<image>_<column>`.

    Raises:
        UserError: they do; several targets per image are not supported.
    """
    for source in tables:
        names = wanted.suffixed(source.table.columns)
        several = [
            name
            for name in names
            if len({cell.strip() for cell in source.table.column(name)} - {"", "0", "1"}) > 0
        ]
        if len(several) > 1 and not any(
            _is_fraction(cell) for name in several for cell in source.table.column(name)[:LOOKED_AT]
        ):
            asked = (
                f"its ids end in {listed(several)}, columns of {source.name} with one of several classes each"
            )
            raise _refusal(sample, "the answers to several questions about each image", asked)


def _refusal(sample: Source, asked: str, evidence: str) -> UserError:
    return UserError(
        f"{sample.table.path} asks for {asked}: {evidence}. This task is not supported: the pipeline "
        "predicts a class, a probability, labels or a number for a whole image. If your competition does "
        "ask for that: --target multiclass (or binary, multilabel, ordinal, continuous)"
    )


def _numbers_beside(cell: str) -> bool:
    """Return True if a cell holds labels with numbers: a number occurs twice, or a fraction stands beside a
    word.
    """
    parts = cell.split()
    numbers = [part for part in parts if re.fullmatch(r"-?\d+(\.\d*)?([eE]-?\d+)?", part)]
    if len(parts) < 2:
        return False
    return len(set(numbers)) < len(numbers) or (
        any("." in part for part in numbers) and any("." not in part for part in parts)
    )


def _names_rows(table: Table, id_column: str, cells: Sequence[str]) -> bool:
    """Return True if the cells repeat ids of the sample: their own id, or several ids in one cell."""
    ids = [cell.strip() for cell in table.column(id_column)[:LOOKED_AT]]
    filled = [(own, cell) for own, cell in zip(ids, cells, strict=True) if cell]
    # numbers may be classes and ids
    if len(filled) < 2 or all(re.fullmatch(r"[\d.]+", cell) for _, cell in filled):
        return False
    known = set(ids)
    return all(set(cell.split()) <= known for _, cell in filled)


def _is_fraction(cell: str) -> bool:
    return re.fullmatch(r"-?\d*\.\d*[1-9]\d*", cell.strip()) is not None
