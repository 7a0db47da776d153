"""Convert tables with one row per label of an image, or with lists as cells, into one row per image."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import replace

from pipeline.competition.folders import plain_name
from pipeline.competition.ids import ImageIndex, Match
from pipeline.competition.json_tables import SEVERAL
from pipeline.competition.label_columns import Wanted, is_number
from pipeline.competition.label_table import Found
from pipeline.competition.spelling import as_whole
from pipeline.errors import UserError
from pipeline.tables import Table
from pipeline.targets.readings import SEPARATORS, split_parts
from pipeline.wording import counted

FIRST = 2000  # rows that show whether a table has such ids
# columns that say of a row whether the image has its label; 0 is no
SAYS_IF = frozenset("confidence conf present presence positive verified exists value".split())
MANY = 0.1  # share of the images that must have several labels; below that, repeated images are mistakes


def made_wide(table: Table, index: ImageIndex) -> Table | None:
    """Convert rows `<image>_<label>, value` into one row per image with a column per label; None for other
    tables.

    A label may contain `_` too: the row is split where its beginning names an image.

    Raises:
        UserError: a row can be split at two places.
    """
    for position, name in enumerate(table.columns):
        cells = [text.strip() for text in table.column(name)]
        if len(table.columns) != 2 or not all("_" in text.strip("_") for text in cells):
            continue
        split = _split(cells[:FIRST], index, table) and _split(cells, index, table)
        labels, heads = (list(dict.fromkeys(pair[place] for pair in split)) for place in (1, 0))
        if not 1 < len(labels) <= 200 or len(heads) * 2 > len(cells):
            continue
        rows: dict[str, dict[str, str]] = {}
        lines: dict[str, int] = {}
        for (head, label), row, line in zip(split, table.cells, table.lines, strict=True):
            rows.setdefault(head, {})[label] = row[1 - position]
            lines.setdefault(head, line)
        wide = tuple((head, *(found.get(label, "") for label in labels)) for head, found in rows.items())
        return replace(table, columns=(name, *labels), cells=wide, lines=tuple(lines.values()))
    return None


def _split(cells: Sequence[str], index: ImageIndex, table: Table) -> list[tuple[str, str]]:
    """Return image and label of each cell `<image>_<label>`; [] if half of the cells begin with no image."""
    places = [[mark.start() for mark in re.finditer("_", text[:-1]) if mark.start()] for text in cells]
    pairs = [
        [(text[:mark], text[mark + 1 :]) for mark in marks] for text, marks in zip(cells, places, strict=True)
    ]
    heads = list(dict.fromkeys(head for options in pairs for head, _ in options))
    known = _found(heads, index.match(heads))
    longest = not known  # beginnings of file names: of `s`, `s_1` the longer one is the id
    known = known or _found(heads, index.match_groups(heads))
    pairs = [[option for option in options if option[0] in known] for options in pairs]
    pairs = [options[-1:] for options in pairs] if longest else pairs
    if sum(map(bool, pairs)) * 2 < len(cells):
        return []
    labels = {options[0][1] for options in pairs if len(options) == 1}
    split = []
    for text, options, line in zip(cells, pairs, table.lines, strict=False):
        named = [option for option in options if option[1] in labels] if len(options) > 1 else options
        if len(named) > 1 or (options and not named):
            ways = " or ".join(f"label {label!r} of the image {head!r}" for head, label in named or options)
            raise UserError(
                f"{table.path}: row {line}: {text!r} may be {ways}: write one row for each image there, with "
                "a column for each label"
            )
        if not named:  # its image is missing, which is reported later
            ends = [label for label in labels if text.endswith("_" + label)]
            label = max(ends, key=len) if ends else text.rpartition("_")[2]
            named = [(text[: -len(label) - 1], label)]
        split += named
    return split


def _found(heads: Sequence[str], match: Match) -> set[str]:
    return {head for head, images in zip(heads, match.images, strict=True) if images}


def one_row_each(table: Table, id_column: str, match: Match, wanted: Wanted) -> Table | None:
    """Convert rows `image, target_name, target` into one row per image with a column per label; None for
    other tables.

    One column must have the name of the sample submission's value column. Another column must hold the labels
    that tell the rows of an image apart, and the sample's rows must be about these labels. Most images must
    have several rows.
    """
    if (
        len(wanted.columns) != 1
        or wanted.columns[0] not in table.columns
        or match.num_unique * 2 > len(table.cells)
    ):
        return None
    value, ids = wanted.columns[0], [cell.strip() for cell in table.column(id_column)]
    if len(set(ids)) * 2 > len(ids):
        return None
    for name in table.columns:
        labels = [cell.strip() for cell in table.column(name)] if name not in (value, id_column) else []
        names = list(dict.fromkeys(labels))
        if (
            not 1 < len(names) <= 200
            or any(is_number(label) for label in names)
            or len(set(zip(ids, labels, strict=True))) < len(ids)
        ):
            continue
        if not any(set(names) <= about for about in wanted.row_labels) and len(wanted.suffixed(names)) < len(
            names
        ):
            continue
        rows: dict[str, dict[str, str]] = {}
        lines: dict[str, int] = {}
        for row_id, label, cell, line in zip(ids, labels, table.column(value), table.lines, strict=True):
            rows.setdefault(row_id, {})[label] = cell
            lines.setdefault(row_id, line)
        wide = tuple((row_id, *(found.get(label, "") for label in names)) for row_id, found in rows.items())
        note = f"its rows are one for each of {len(names)} values of {name!r}"
        return replace(
            table,
            columns=(id_column, *names),
            cells=wide,
            lines=tuple(lines.values()),
            notes=(*table.notes, note),
        )
    return None


def labels_together(found: Found, column: str, wanted: Wanted) -> Found:
    """Join the rows of an image into one row, with its labels in one cell (separated by `SEVERAL`).

    This happens only if the sample submission has several labels in a cell, some of them these, or a column
    for each of them, and many images have several; else the table is unchanged. Rows that deny their label
    (`Confidence` 0) are left out.
    """
    known = {cell.strip() for cell in found.table.column(column)}
    cells = [split_parts(value, mark) for value in wanted.values for mark in SEPARATORS]
    affirmed = _without_denied(found, column)
    pairs = list(zip(found.match.images, (cell.strip() for cell in found.table.column(column)), strict=True))
    # The same label twice for an image: votes of several people.
    once = len(set(pairs)) == len(pairs) and affirmed is found
    in_columns = len(known) > 1 and known <= set(wanted.columns) and once
    written = known | set(map(as_whole, known))  # 53.0 where the sample has 53
    if not in_columns and not any(len(parts) > 1 and set(parts) & written for parts in cells):
        return found
    found = affirmed
    labels, images = [cell.strip() for cell in found.table.column(column)], found.match.images
    together: dict[tuple[str, ...], dict[str, None]] = {}
    kept: list[int] = []  # the first row of each image; also rows without an image, which are refused later
    for row, (row_images, label) in enumerate(zip(images, labels, strict=True)):
        if not row_images or row_images not in together:
            kept.append(row)
        if row_images:
            together.setdefault(row_images, {})[label] = None
    several = sum(len(found_labels) > 1 for found_labels in together.values())
    if several < MANY * len(together):
        return found
    place = found.table.columns.index(column)
    cells_of = {row: list(found.table.cells[row]) for row in kept}
    for row, row_cells in cells_of.items():
        row_cells[place] = SEVERAL.join(together.get(images[row], {labels[row]: None}))
    note = f"{counted(several, 'image')} with a row for each label"
    lines = tuple(found.table.lines[row] for row in kept)
    table = replace(
        found.table, cells=tuple(map(tuple, cells_of.values())), lines=lines, notes=(*found.table.notes, note)
    )
    return replace(found, table=table, match=replace(found.match, images=tuple(images[row] for row in kept)))


def _without_denied(found: Found, column: str) -> Found:
    """Return the table without the rows in which another column of 0 and 1 denies the label, with a note."""
    table = found.table
    for name in table.columns:
        cells = [cell.strip() for cell in table.column(name)]
        if name == column or plain_name(name) not in SAYS_IF or not all(map(is_number, cells)):
            continue
        if {float(cell) for cell in cells} != {0.0, 1.0}:
            continue
        keep = [row for row, cell in enumerate(cells) if float(cell)]
        note = f"{counted(len(cells) - len(keep), 'row')} with 0 in {name!r} taken as no label of their image"
        left = found.kept(keep)
        return replace(left, table=replace(left.table, notes=(*table.notes, note)))
    return found


def lists_read(found: Found, column: str, wanted: Wanted) -> Found:
    """Replace label cells that are lists of Python or JSON (`['cat', 'dog']`, `[52.0]`), or tuples or sets,
    by their labels.

    The table is unchanged if a cell is no such list, or if the sample submission writes lists too.
    """
    cells = found.table.column(column)
    read = {cell: _labels_of_list(cell) for cell in set(cells)}
    if None in read.values() or any(value.startswith(("[", "(", "{")) for value in wanted.values):
        return found
    place = found.table.columns.index(column)
    rows = tuple(
        (*row[:place], SEVERAL.join(read[row[place]] or ()), *row[place + 1 :]) for row in found.table.cells
    )
    note = f"lists in the column {column!r} are read as several labels"
    return replace(found, table=replace(found.table, cells=rows, notes=(*found.table.notes, note)))


def _labels_of_list(cell: str) -> list[str] | None:
    """Return the texts and whole numbers of a list, tuple or set; None for any other cell."""
    if not re.fullmatch(r"\s*[\[({].*[\])}]\s*", cell, re.DOTALL) or re.search(r"['\"]\s+['\"]", cell):
        return None  # without commas Python would join two texts
    try:
        items = ast.literal_eval(cell.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    if not isinstance(items, list | tuple | set):
        return None
    items = sorted(items, key=str) if isinstance(items, set) else items
    labels = [str(int(item)) if isinstance(item, float) and item.is_integer() else item for item in items]
    labels = [str(label) if isinstance(label, int) else label for label in labels]
    return labels if all(isinstance(label, str) and label.strip() for label in labels) else None
