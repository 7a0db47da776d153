"""Find the column of a table that holds the image ids."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from pipeline.competition.folders import plain_name
from pipeline.competition.ids import ImageIndex, Match
from pipeline.errors import UserError
from pipeline.tables import Table, are_whole_numbers, name_the_ids, numbers_the_rows
from pipeline.wording import nearest, quoted


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


ID_NAMES = _words(
    "id ids idcode image imageid imageids images img imgid imagename imgname imagefile imagefilename file "
    "filename filenames fileid fname name path filepath imagepath imgpath photo photoid picture"
)
# names of row number columns
ROW_NAMES = ("unnamed:0", "unnamed0", "row", "rownumber", "rownum", "index", "level0")
NEARLY = 0.9  # share of a column's cells that must find an image before its name may decide
PROBED_ROWS = 500  # enough rows to recognise an id column


def find_ids(
    table: Table,
    index: ImageIndex,
    given: str | None = None,
    groups: bool = False,
    labels: Collection[str] = (),
) -> tuple[str, Match]:
    """Return the id column of a table and its match. `given` names the column; else the one that finds the
    most images.

    A column with the name of an id column and nearly all images wins over one that finds more. A row number
    column never wins if another column finds images. `groups`: an id may have several images where no column
    finds single images. `labels`: label columns, which are not considered.

    Raises:
        UserError: there is no column `given`, or two columns find different images.
    """
    flag = "--set data.id_column=NAME"
    if given:
        name = column_called(table, given, flag)
        return name, _full(index, table.column(name), groups)
    maybe = [name for name in _maybe_ids(table) if name not in labels] or list(table.columns)
    probes = {name: index.match(table.column(name)[:PROBED_ROWS]) for name in maybe}
    best = _best_columns(table, probes, groups)
    if len({_common(probes[name], [probes[other] for other in best]) for name in best}) > 1:
        if groups and (views := _views(table, index, maybe, [probes[name] for name in best])):
            return views
        hint = f"; {name_the_ids(table)}" if table.numbering else ""
        raise UserError(
            f"{table.path}: the columns {quoted(best)} name different images; say which is the id with {flag}"
            f"{hint}"
        )
    match = index.match(table.column(best[0]))
    if groups and match.num_single < len(match.images) / 2:
        some: tuple[str, Match] | None = None
        for name in maybe:
            cells = table.column(name)
            if len(set(cells)) * 2 < len(cells) or not index.match_groups(cells[:20]).num_found:
                continue
            found = index.match_groups(cells)
            if found.num_found >= NEARLY * len(cells):
                return name, found
            if found.num_found * 2 > len(cells) and (some is None or found.num_found > some[1].num_found):
                some = name, found
        if some and not match.num_found:  # missing images are reported later
            return some
    if not match.num_found and is_id_name(best[0]):
        numbers = index.match_numbers(table.column(best[0]))
        match = numbers if numbers.num_single >= NEARLY * len(numbers.images) else match
        match = match if match.num_found else index.match_endings(table.column(best[0]))
    return best[0], match


def find_sample_ids(table: Table, index: ImageIndex, groups: bool = False) -> tuple[str, Match]:
    """Return the id column of a sample submission and its match, as `find_ids`.

    Ids do not repeat. A column that does, without the name of an id, holds labels, whose numbers may equal
    names of images (`0` in each row, `0.png` in each folder); it counts only if there is no other.
    """
    labels = [name for name in table.columns if repeats(table, name) and not is_id_name(name)]
    return find_ids(table, index, groups=groups, labels=labels)


def repeats(table: Table, name: str) -> bool:
    """Return True if a cell of the column occurs twice."""
    return len(set(table.column(name))) < len(table.cells)


def _views(
    table: Table, index: ImageIndex, names: Sequence[str], probes: Sequence[Match]
) -> tuple[str, Match] | None:
    """Return the column whose ids begin the names of just the images that other columns of the row name.

    An id 7 beside 7_left.jpg and 7_right.jpg is such an id. None without one.
    """
    found = zip(*(probe.images for probe in probes), strict=True)
    rows = [{image for images in row for image in images} for row in found]
    for name in names:
        cells = table.column(name)
        if list(map(set, index.match_groups(cells[: len(rows)]).images)) == rows:
            return name, index.match_groups(cells)
    return None


def without_id_name(table: Table, match: Match, index: ImageIndex) -> UserError | None:
    """Return an error where an ignored column without a name finds more than twice the images of the id
    column, whose result is `match`.

    None where it does not, no column was ignored, or the id column names images more than once.
    """
    numbers = [table.numbering[line] for line in table.lines if line in table.numbering]
    found = index.match(numbers).num_unique if numbers else 0
    if found <= 2 * match.num_unique or match.num_found > match.num_unique:
        return None
    return UserError(
        f"{table.path}: {name_the_ids(table)}\n  {found:,} of these numbers are names of images, of its "
        f"other columns ({quoted(table.columns)}) at most {match.num_unique:,}"
    )


def _full(index: ImageIndex, cells: Sequence[str], groups: bool) -> Match:
    match = index.match(cells)
    if (
        groups
        and match.num_single < len(cells) / 2
        and (found := index.match_groups(cells)).num_found > match.num_found
    ):
        return found
    return match


def _maybe_ids(table: Table) -> list[str]:
    """Return the columns that may hold ids.

    In a wide table only those with three values or more: 0/1 columns are slow.
    """
    if len(table.columns) <= 20 or len(table.cells) < 20:
        return list(table.columns)
    sample = table.cells[:20]
    wide = [name for position, name in enumerate(table.columns) if len({row[position] for row in sample}) > 2]
    return wide or list(table.columns)


def _best_columns(table: Table, probes: dict[str, Match], groups: bool) -> list[str]:
    ranks = {name: (match.num_unique, match.num_found) for name, match in probes.items()}
    most = max(ranks.values())
    rows = min(len(table.cells), PROBED_ROWS)
    if most == (0, 0):
        best = list(probes)
        named = [name for name in best if is_id_name(name)] or best
        # A class may be in the column `name`, and only ids of a labelled row may repeat
        different = [name for name in (*named, *best[:1]) if len(set(table.column(name))) == len(table.cells)]
        return (named if groups else different or named)[:1]
    # In a small table one missing image must not make another column win.
    needed = min(NEARLY * rows, rows - 1)
    near = [
        name
        for name in probes
        if ranks[name][1] >= needed and ranks[name][0] >= NEARLY * most[0] - 1 and ranks[name][0]
    ]
    numbering = [name for name in probes if ranks[name][0] and _numbers_rows(table, name)]
    better = [
        name for name in probes if name not in numbering and _may_be_ids(table, name, ranks[name][0], most[0])
    ]
    if better:
        # Other numbers (a patient, an age) may equal names of images as row numbers may
        surely = any(is_id_name(name) or not are_whole_numbers(table.column(name)) for name in better)
        called = [name for name in numbering if surely or plain_name(name) in ROW_NAMES]
        weak = [name for name in called if not is_id_name(name) or ranks[name] != most]
        ranks = {name: rank for name, rank in ranks.items() if name not in weak or _same(probes, name, near)}
        near = [name for name in near if name in ranks]
        most = max(ranks.values())
    named = [name for name in near if is_id_name(name)]
    top = [name for name in ranks if ranks[name] == most]
    return named or [name for name in top if is_id_name(name)] or top


def _may_be_ids(table: Table, name: str, found: int, most: int) -> bool:
    """Return True if a column finds half the images, or has an id name, finds some and is different in most
    rows.
    """
    return found * 2 >= most or (
        found > 0 and is_id_name(name) and len(set(table.column(name))) * 2 >= len(table.cells)
    )


def _same(probes: dict[str, Match], name: str, others: Sequence[str]) -> bool:
    return any(
        other != name and _common(probes[name], [probes[other]]) == _common(probes[other], [probes[name]])
        for other in others
    )


def _common(match: Match, others: Sequence[Match]) -> tuple[tuple[str, ...], ...]:
    """Return the images of the rows in which `match` and all `others` find some."""
    return tuple(
        found
        for row, found in enumerate(match.images)
        if all(other.images[row] for other in (match, *others))
    )


def without_numbering(table: Table, id_column: str) -> Table:
    """Return the table without a row number column beside the ids (`Unnamed: 0`, `index`), with a note.

    The numbers may start anywhere and be in any order: pandas keeps the old index when it writes a part of a
    table.
    """
    extra = [
        name
        for name in table.columns
        if name != id_column and plain_name(name) in ROW_NAMES and _are_row_numbers(table, name)
    ]
    if not extra or len(extra) + 1 == len(table.columns):  # the only value column is kept, whatever its name
        return table
    kept = [position for position, name in enumerate(table.columns) if name not in extra]
    return replace(
        table,
        columns=tuple(table.columns[position] for position in kept),
        cells=tuple(tuple(row[position] for position in kept) for row in table.cells),
        notes=(*table.notes, f"the column {extra[0]!r} that numbers the rows ignored"),
    )


def _are_row_numbers(table: Table, name: str) -> bool:
    cells = [cell.strip() for cell in table.column(name)]
    return len(set(cells)) == len(cells) > 1 and are_whole_numbers(cells)


def _numbers_rows(table: Table, name: str) -> bool:
    return plain_name(name) in ROW_NAMES or numbers_the_rows([cell.strip() for cell in table.column(name)])


def is_id_name(name: str) -> bool:
    """Return True for column names that mean an image id: `image_id`, `file_name`, `StudyInstanceUID`."""
    plain = plain_name(name)
    return plain in ID_NAMES or plain.endswith(("imageid", "filename", "instanceuid"))


def column_called(table: Table, name: str, flag: str) -> str:
    """Return the column `name` of a table as the file writes it, ignoring spaces around it.

    Raises:
        UserError: there is no such column; the message lists the columns.
    """
    for column in table.columns:
        if name in (column, column.strip()):
            return column
    raise UserError(
        f"{table.path} has no column {name!r}{nearest(name, table.columns)}; its columns: "
        f"{quoted(table.columns)}; {flag} names one"
    )
