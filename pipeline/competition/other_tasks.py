"""Refuse competitions of other tasks: segmentation, detection, free text, retrieval, pairs, whole images as
answers.

They are recognised by their sample submission. Read as classes, they would give a file that Kaggle accepts
and scores with 0.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from pipeline.competition.folders import plain_name
from pipeline.competition.ids import ImageIndex, Match
from pipeline.competition.label_columns import Wanted, is_number
from pipeline.competition.parts import words_of
from pipeline.competition.sources import Source, Sources
from pipeline.errors import UserError
from pipeline.tables import Table, are_whole_numbers, numbers_the_rows
from pipeline.wording import listed

LOOKED_AT = 2000  # rows of the sample submission
MASKS = "masks (which pixels of an image belong to an object: segmentation)"
BOXES = "boxes or other places in an image (detection)"
RANKED_WITH_CONFIDENCE = "labels with a number beside each (a confidence, a box or a mask)"
CERTAIN = "an answer and how certain it is"
DISTRIBUTION = "a distribution over many values of a number, not the number"
PIXELS = "a value for each pixel (the answer is an image: segmentation, denoising)"
STEPS = "many values for each image (of a signal or of points in it)"
LISTS = "a list of labels in each cell, which is not written here"
PAIRS = "answers about two images at once (pairs)"
MIXED = "answers about images and about other things in one file"
CERTAINTIES = ("confidence", "sigma", "std", "uncertainty")
FEWEST_PIXELS = 64  # rows of one image
FEWEST_STEPS = 50  # columns of a distribution
ALIKE = "other images of the competition (which are alike, or of the same thing: retrieval)"
ASKED_BY_NAME = {
    **dict.fromkeys(
        ("encodedpixels", "rlemask", "rle", "maskrle", "encodedmask", "segmentation", "mask"), MASKS
    ),
    **dict.fromkeys(("predictionstring", "bbox", "bboxes", "boxes", "boundingbox", "boundingboxes"), BOXES),
    **dict.fromkeys(("multipolygonwkt", "polygonwkt", "polygon", "polygons"), BOXES),
}


MASKS_OR_LABELS = ("annotation", "annotations")  # column names; of masks if the folder has such


def refuse_other_tasks(
    sample: Source, id_column: str, wanted: Wanted, tables: Sequence[Source], folders: Iterable[str] = ()
) -> None:
    """Check that a sample submission asks for classes, labels or numbers of whole images. `tables`: of
    training images. `folders`: names of the folders beside them.

    Raises:
        UserError: it asks for masks, boxes or similar images; the message gives the evidence.
    """
    table = sample.table
    for column in wanted.columns:
        if plain_name(column) in ASKED_BY_NAME and not _is_class(column, sample, wanted, tables):
            raise _refusal(sample, ASKED_BY_NAME[plain_name(column)], f"its column is called {column!r}")
    known = {column for source in tables for column in source.table.columns}
    masks = [name for name in folders if any(word.startswith("mask") for word in words_of(name))]
    for column in wanted.columns if masks else ():
        if plain_name(column) in MASKS_OR_LABELS and column not in known:
            why = f"its column is called {column!r}, which no training table has, and {masks[0]}/ holds masks"
            raise _refusal(sample, MASKS, why)
    certain = [name for name in wanted.columns if plain_name(name) in CERTAINTIES and name not in known]
    if certain and len(wanted.columns) == 2:
        raise _refusal(sample, CERTAIN, f"its columns are {listed(map(repr, wanted.columns))}")
    if {"x", "y"} <= set(map(plain_name, wanted.columns)):
        for column in wanted.columns:
            if text := next((cell for cell in table.column(column)[:LOOKED_AT] if not is_number(cell)), ""):
                why = f"its columns are {listed(map(repr, wanted.columns))}, and {column!r} holds {text!r}"
                raise _refusal(sample, BOXES, why)
    if len(wanted.columns) != 1:
        return
    column = wanted.columns[0]
    cells = [cell.strip() for cell in table.column(column)[:LOOKED_AT]]
    if first := next((cell for cell in cells if _numbers_beside(cell)), None):
        raise _refusal(sample, RANKED_WITH_CONFIDENCE, f"{column!r} holds {first!r}")
    if _only_asked_as_lists(cells, tables):
        raise _refusal(sample, LISTS, f"{column!r} holds {cells[0]!r}, and no training table holds lists")
    if _names_rows(table, id_column, cells):
        raise _refusal(sample, ALIKE, f"{column!r} holds ids of the rows themselves, such as {cells[0]!r}")


def _is_class(column: str, sample: Source, wanted: Wanted, tables: Sequence[Source]) -> bool:
    """Return True for a class that is called `mask`: probabilities in several columns, or labels 0 and 1."""
    if len(wanted.columns) > 1 and all(
        _is_probability(cell) for name in wanted.columns for cell in sample.table.column(name)[:LOOKED_AT]
    ):
        return True
    marks = [set(source.table.column(column)) for source in tables if column in source.table.columns]
    return any(cells == {"0", "1"} for cells in marks)


def refuse_several_questions(sample: Source, wanted: Wanted, tables: Sequence[Source]) -> None:
    """Check that the rows of a sample submission do not ask for different class columns: `<image>_<column>`.

    Raises:
        UserError: they do; several targets per image are not supported.
    """
    for source in tables:
        # An id test_7 does not ask for the column 7, which the sample has itself
        names = wanted.suffixed([name for name in source.table.columns if name not in wanted.columns])
        if names and len(wanted.columns) >= FEWEST_STEPS and all(map(_is_numbered, wanted.columns)):
            first, last = wanted.columns[0], wanted.columns[-1]
            asked = f"its ids end in {listed(names)} of {source.name}, its columns are {first!r} to {last!r}"
            raise _refusal(sample, DISTRIBUTION, asked)
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


def refuse_other_rows(
    sample: Source, id_column: str, wanted: Wanted, sources: Sources, index: ImageIndex
) -> None:
    """Check that each row of a sample submission is about one whole image, or about one thing of each image.

    Raises:
        UserError: rows are pixels or pairs of images, or only some are about images.
    """
    tables = sources.of_role("train", "")
    names = [name for source in tables for name in wanted.suffixed(source.table.columns)]
    # Not the id column: few values, such as 1, may equal names of images and be taken for ids
    _refuse_pixels(sample, sample.table.column(sample.table.columns[0])[:LOOKED_AT], names, tables, index)
    ids = sample.table.column(id_column)[:LOOKED_AT]
    for source in sources.found:
        is_other = source.role != "train" and source.name != sample.name
        paired = _paired_columns(source, set(ids), index) if is_other else []
        if paired:
            why = f"{source.name} has images in {listed(map(repr, paired))} of each row"
            raise _refusal(sample, PAIRS, why)
    _refuse_mixed(sample, ids, names, sources, index)


def _refuse_pixels(
    sample: Source, ids: Sequence[str], names: Sequence[str], tables: Sequence[Source], index: ImageIndex
) -> None:
    """Refuse ids that begin with an image and end in a number and another part: row, column or step, lead.

    Not if such an ending is a label: one of `names`, or a value in `tables`.
    """
    places = [re.fullmatch(r"(.+)[_-](\d+[_-][^_-]+|[^_-]+[_-]\d+)", row_id) for row_id in ids]
    image, rows = Counter(place[1] if place else "" for place in places).most_common(1)[0]
    if not all(places) or rows < FEWEST_PIXELS or all(_without_ending(row_id, names) for row_id in ids):
        return
    ending = ids[0].removeprefix(places[0][1])[1:] if places[0] else ""
    if any(ending in source.table.column(name) for source in tables for name in source.table.columns):
        return
    if index.match([image]).num_found and not index.match(ids).num_found:
        many = f"with {rows:,} rows or more of {image!r}"
        if re.fullmatch(r"\d+[_-]\d+", ending):
            why = f"its ids end in row and column, such as {ids[0]!r}, {many}"
            raise _refusal(sample, PIXELS, why)
        raise _refusal(sample, STEPS, f"its ids end in numbers, such as {ids[0]!r}, {many}")


def _refuse_mixed(
    sample: Source, ids: Sequence[str], names: Sequence[str], sources: Sources, index: ImageIndex
) -> None:
    """Refuse ids of which some are images and all others a value of a test table with a label (`names`)."""
    found = index.match(ids).images
    others = [row_id for row_id, images in zip(ids, found, strict=True) if not images]
    if not others or len(others) == len(ids):
        return
    things = {_without_ending(row_id, names) for row_id in others}
    for source in sources.of_role("test", "") if "" not in things else ():
        for column in source.table.columns:
            if things <= set(source.table.column(column)):
                why = f"such as {others[0]!r}, a value of {column!r} of {source.name} with a label"
                raise _refusal(sample, MIXED, f"{len(others):,} of {len(ids):,} ids are no images, {why}")


def _paired_columns(source: Source, ids: set[str], index: ImageIndex) -> list[str]:
    """Return the columns with different images in one row, of a table whose rows are those of the sample.

    [] unless there are two that are written alike (names of files, or numbers).
    """
    columns = {name: source.table.column(name)[:LOOKED_AT] for name in source.table.columns}
    own = next((name for name in columns if ids <= set(source.table.column(name))), None)
    if len(columns) < 3 or own is None or _are_images(own, columns, index):
        return []
    found: dict[str, Match] = {}
    for name, cells in columns.items():
        match = index.match(cells)
        # An id and the name of its file are one image; few values (a licence 1) and numbers of rows are none
        known = [other.images for other in found.values()]
        is_new = match.images not in known and not ids <= set(cells) and not numbers_the_rows(cells)
        are_many = 2 * len(set(cells)) >= min(len(cells), len(index.images))
        if match.num_found == len(cells) > 0 and are_many and is_new:
            found[name] = match
    written = Counter(are_whole_numbers(columns[name]) for name in found)
    found = {name: match for name, match in found.items() if written[are_whole_numbers(columns[name])] > 1}
    shown = [image for match in found.values() for row in match.images for image in row]
    # Two photographs of each id are views of it, which are found by its name
    are_views = len(set(shown)) == len(shown) and index.match_groups(sorted(ids)).num_found == len(ids)
    return list(found) if len(found) > 1 and not are_views else []


def _are_images(own: str, columns: dict[str, Sequence[str]], index: ImageIndex) -> bool:
    """Return True if the ids in the column `own` are images: others in a row, such as the next frame, belong
    to it.

    Numbers may equal names of images: another column must name the same image.
    """
    match = index.match(columns[own])
    if match.num_found < len(match.images):
        return False
    others = [cells for name, cells in columns.items() if name != own and list(cells) != list(columns[own])]
    return not are_whole_numbers(columns[own]) or any(
        index.match(cells).images == match.images for cells in others
    )


def _without_ending(row_id: str, names: Sequence[str]) -> str:
    """Return what stands before the label that ends an id; "" if none of `names` does."""
    ending = next((name for name in names if row_id.endswith("_" + name)), "")
    return row_id.removesuffix("_" + ending) if ending else ""


def _is_numbered(column: str) -> bool:
    return column[-1:].isdigit()


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


def _only_asked_as_lists(cells: Sequence[str], tables: Sequence[Source]) -> bool:
    """Return True if every cell is a list (`[3, 7]`) and no cell of a training table is one."""
    if not all(map(_is_list, cells)):
        return False
    trained = (cell for source in tables for row in source.table.cells[:LOOKED_AT] for cell in row)
    return not any(map(_is_list, trained))


def _is_list(cell: str) -> bool:
    return re.fullmatch(r"\s*\[.*\]\s*", cell, re.DOTALL) is not None


def _names_rows(table: Table, id_column: str, cells: Sequence[str]) -> bool:
    """Return True if the cells repeat ids of the sample: their own id, or several ids in one cell."""
    ids = [cell.strip() for cell in table.column(id_column)[:LOOKED_AT]]
    filled = [(own, cell) for own, cell in zip(ids, cells, strict=True) if cell]
    # numbers may be classes and ids
    if len(filled) < 2 or all(re.fullmatch(r"[\d.]+", cell) for _, cell in filled):
        return False
    known = set(ids)
    return all(set(cell.split()) <= known for _, cell in filled)


def _is_probability(cell: str) -> bool:
    return re.fullmatch(r"(0|1|0?\.\d+|[01]\.0*)", cell.strip()) is not None


def _is_fraction(cell: str) -> bool:
    return re.fullmatch(r"-?\d*\.\d*[1-9]\d*", cell.strip()) is not None
