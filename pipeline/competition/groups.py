"""Read which labelled rows belong together (groups) and which fold a row is in: from a column, or a file of
ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.competition.folders import DataFolder, named_file
from pipeline.competition.id_columns import find_ids
from pipeline.competition.ids import ImageIndex
from pipeline.competition.label_columns import fold_column
from pipeline.competition.label_table import Labelled
from pipeline.competition.sources import Source, Sources
from pipeline.errors import UserError, raise_all
from pipeline.run_names import FOLDS_FILE
from pipeline.tables import Table, load_table, restored
from pipeline.wording import capped, counted, listed, nearest, numbered, quoted

COLUMN_FLAG, FILE_FLAG = "--set data.group_column=NAME", "--set data.groups=FILE"


@dataclass(frozen=True)
class Grouping:
    """The source of the groups: a `column` of a table in the data folder, a `file` (columns id and group), or
    none.
    """

    column: str | None = None
    file: str | None = None

    def path(self, data_dir: Path) -> Path | None:
        """Return the groups file, as given or in the data folder; None without one.

        Raises:
            UserError: neither path exists.
        """
        if self.file is None:
            return None
        return named_file("data.groups", self.file, data_dir, "a table with the columns id and group")


def read_groups(
    folder: DataFolder, sources: Sources, labelled: Labelled, asked: Grouping
) -> dict[str, str] | None:
    """Return the group of every labelled id; None if no groups are requested.

    Raises:
        UserError: there is no such column or file, or a labelled id has no group or two groups.
    """
    if asked.file is not None:
        path = asked.path(folder.root)
        table = load_table(path)
        return _complete(labelled, _by_id(labelled, folder, table, "group"), f"{path}, column 'group'")
    if asked.column is None:
        return None
    source, column = _with_column(sources, labelled, asked.column, folder.root)
    table = source.table
    _refuse_empty(table, column, "group")
    return _complete(
        labelled, _by_image(labelled, folder, source, column), f"{table.path}, column {column!r}"
    )


def read_folds(folder: DataFolder, labelled: Labelled) -> tuple[dict[str, str], str] | None:
    """Return id -> fold and its source: folds.csv, else a column of the label table; None if there is
    neither.

    Ids without a fold are left out.

    Raises:
        UserError: folds.csv cannot be read, or an id has two folds.
    """
    path = folder.root / FOLDS_FILE
    if path.is_file():
        found = _by_id(labelled, folder, load_table(path), "fold")
        return {row_id: next(iter(values)) for row_id, values in found.items()}, str(path)
    if labelled.found is None or (column := fold_column(labelled.found.table)) is None:
        return None
    found = _by_image(labelled, folder, labelled.found.source, column)
    _refuse_two(found, f"{labelled.found.table.path}, column {column!r}", "fold")
    where = f"the column {column!r} of {labelled.found.table.path}"
    return {row_id: next(iter(values)) for row_id, values in found.items() if next(iter(values))}, where


def _with_column(sources: Sources, labelled: Labelled, name: str, root: Path) -> tuple[Source, str]:
    """Return the table with the column: the label table, else the only other table that has it."""
    own = [labelled.found.source] if labelled.found else []
    others = [source for source in sources.of_role("train", "") if source not in own]
    having = [source for source in own if _called(source.table, name)] or [
        source for source in others if _called(source.table, name)
    ]
    if len(having) > 1:
        raise UserError(
            f"{root}: {listed([source.name for source in having])} all have a column {name!r}; set the "
            f"groups with {FILE_FLAG}"
        )
    if having:
        return having[0], _called(having[0].table, name)
    known = [column for source in (*own, *others) for column in source.table.columns]
    seen = (
        "; ".join(f"{source.name}: {listed(source.table.columns)}" for source in (*own, *others))
        or "no table"
    )
    raise UserError(
        f"{root}: no table has a column {name!r}{nearest(name, known)} (data.group_column); found {seen}. "
        f"Set another column with {COLUMN_FLAG}, or a table with the columns id and group with {FILE_FLAG}"
    )


def _called(table: Table, name: str) -> str:
    return next((column for column in table.columns if name in (column, column.strip())), "")


def _by_image(labelled: Labelled, folder: DataFolder, source: Source, column: str) -> dict[str, set[str]]:
    """Return id -> the values of `column` in the rows of its images."""
    if (
        labelled.found is not None
        and source is labelled.found.source
        and column in labelled.found.table.columns
    ):
        table, match = labelled.found.table, labelled.found.match
    else:
        table = source.table
        match = find_ids(table, ImageIndex(folder, folder.of_part("train", "val", "")), groups=True)[1]
    values: dict[str, set[str]] = {}
    for images, cell in zip(match.images, table.column(column), strict=True):
        for image in images:
            values.setdefault(image, set()).add(cell.strip())
    return _of_ids(labelled, values)


def _by_id(labelled: Labelled, folder: DataFolder, table: Table, name: str) -> dict[str, set[str]]:
    """Return id -> the value of column `name` (a set of one) in a table with the columns id and `name`."""
    if missing := [wanted for wanted in ("id", name) if not _called(table, wanted)]:
        raise UserError(
            f"{table.path}: no column {listed(missing)}; expected the columns id and {name}, found "
            f"{quoted(table.columns)}"
        )
    known = set(labelled.ids)
    written = [text.strip() for text in table.column(_called(table, "id"))]
    ids = [text if text in known else restored(text) for text in written]  # our tables guard `-a` as `'-a`
    cells = [cell.strip() for cell in table.column(_called(table, name))]
    _refuse_empty(table, _called(table, name), name)
    values: dict[str, set[str]] = {}
    if known <= set(ids):
        for text, cell in zip(ids, cells, strict=True):
            values.setdefault(text, set()).add(cell)
        found = {row_id: values[row_id] for row_id in labelled.ids}
        other = [text for text in ids if text not in found]
    else:  # ids in another form: with an extension, or as a path
        match = ImageIndex(folder, folder.of_part("train", "val", "")).match(ids)
        for images, cell in zip(match.images, cells, strict=True):
            for image in images:
                values.setdefault(image, set()).add(cell)
        found, taken = _of_ids(labelled, values), labelled.taken
        other = [text for text, images in zip(ids, match.images, strict=True) if not taken & set(images)]
    _refuse_two(found, str(table.path), name)
    if other:  # of another version of the data, or a typo
        labelled.notes.append(
            f"{table.path.name}: {counted(len(other), 'id')} of no labelled image, not used: {quoted(other)}"
        )
    return found


def _of_ids(labelled: Labelled, values: Mapping[str, set[str]]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for row_id, images in zip(labelled.ids, labelled.images, strict=True):
        found_values = set().union(*(values.get(image, set()) for image in images))
        if found_values:
            found.setdefault(row_id, set()).update(found_values)
    return found


def _complete(labelled: Labelled, found: dict[str, set[str]], where: str) -> dict[str, str]:
    missing = [row_id for row_id in dict.fromkeys(labelled.ids) if row_id not in found]
    if missing:
        raise UserError(
            f"{where}: {len(missing):,} of {counted(len(set(labelled.ids)), 'labelled id')} have no group: "
            f"{quoted(missing)}"
        )
    _refuse_two(found, where, "group")
    return {row_id: next(iter(values)) for row_id, values in found.items()}


def _refuse_two(found: Mapping[str, set[str]], where: str, what: str) -> None:
    twice = [f"{row_id!r}: {quoted(sorted(values))}" for row_id, values in found.items() if len(values) > 1]
    raise_all(
        capped(twice, f"ids with several {what}s"),
        f"{where}: an id has more than one {what}; keep one of its rows:",
    )


def _refuse_empty(table: Table, column: str, name: str) -> None:
    empty = [line for line, cell in zip(table.lines, table.column(column), strict=True) if not cell.strip()]
    if empty:
        alone = " (a row without a group: a value of its own)" if name == "group" else ""
        raise UserError(
            f"{table.path}: {numbered(empty)}: column {column!r} is empty; give each row a value{alone}"
        )


def take_folds(ids: Sequence[str], stated: Mapping[str, str], where: str, count: int) -> list[int]:
    """Return the fold of each of `ids`, from 1 to `count`: the sorted values (numbers in numeric order) are
    numbered.

    Raises:
        UserError: an id has no fold, or the number of different folds is not `count`.
    """
    missing = [row_id for row_id in ids if row_id not in stated]
    if missing:
        raise UserError(
            f"{where}: {len(missing):,} of {counted(len(ids), 'labelled id')} have no fold: {quoted(missing)}"
        )
    kinds = sorted({stated[row_id] for row_id in ids}, key=_sort_key)
    if len(kinds) == 1:
        raise UserError(
            f"{where} puts all {counted(len(ids), 'labelled id')} into the fold {kinds[0]!r}: at least 2 are "
            "needed; give some rows another fold, or remove this fold assignment"
        )
    if len(kinds) != count:
        found = f"{where} holds {counted(len(kinds), 'fold')} ({quoted(kinds)})"
        raise UserError(
            f"{found}, but --folds is {count}: use --folds {len(kinds)}, or remove this fold assignment"
        )
    number = {kind: place for place, kind in enumerate(kinds, start=1)}
    return [number[stated[row_id]] for row_id in ids]


def _sort_key(text: str) -> tuple[bool, float, str]:
    try:
        return False, float(text), text
    except ValueError:
        return True, 0.0, text
