"""What rows of the training part belong together (groups), and which fold somebody has put them in: a column, or a file of ids."""

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
from pipeline.tables import Table, load_table
from pipeline.wording import capped, counted, listed, nearest, numbered, quoted

COLUMN_FLAG, FILE_FLAG = "--set data.group_column=NAME", "--set data.groups=FILE"


@dataclass(frozen=True)
class Grouping:
    """Where groups are said to stand: a `column` of a table in the data folder, or a `file` with the columns id and group; or nowhere."""

    column: str | None = None
    file: str | None = None

    def path(self, data_dir: Path) -> Path | None:
        """The file, as given or in the data folder; None where none is asked for.

        Raises:
            UserError: it is in neither place.
        """
        if self.file is None:
            return None
        return named_file("data.groups", self.file, data_dir, "a table with the columns id and group")


def read_groups(folder: DataFolder, sources: Sources, labelled: Labelled, asked: Grouping) -> dict[str, str] | None:
    """The group of every labelled id; None where nobody asks for groups.

    Raises:
        UserError: there is no such column or file, or it leaves a labelled id without a group, or gives it two.
    """
    if asked.file is not None:
        path = asked.path(folder.root)
        table = load_table(path)
        return _complete(labelled, _by_id(labelled, folder, table, "group"), f"{path}, column 'group'")
    if asked.column is None:
        return None
    source, column = _with_column(sources, labelled, asked.column, folder.root)
    table = source.table
    _refuse_empty(table, column)
    return _complete(labelled, _by_image(labelled, folder, source, column), f"{table.path}, column {column!r}")


def read_folds(folder: DataFolder, labelled: Labelled) -> tuple[dict[str, str], str] | None:
    """The fold that folds.csv, or a column of the table of labels, gives each labelled id, and which of them it is; None where neither is
    there. Ids that it does not name are left out.

    Raises:
        UserError: folds.csv cannot be read, or gives an id two folds.
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
    """The table that has the column: that of the labels if it does, else the only other one."""
    own = [labelled.found.source] if labelled.found else []
    others = [source for source in sources.of_role("train", "") if source not in own]
    having = [source for source in own if _called(source.table, name)] or [source for source in others if _called(source.table, name)]
    if len(having) > 1:
        raise UserError(
            f"{root}: {listed([source.name for source in having])} all have a column {name!r}; {FILE_FLAG} says which groups count"
        )
    if having:
        return having[0], _called(having[0].table, name)
    known = [column for source in (*own, *others) for column in source.table.columns]
    seen = "; ".join(f"{source.name}: {listed(source.table.columns)}" for source in (*own, *others)) or "no table"
    raise UserError(
        f"{root}: no table has a column {name!r}{nearest(name, known)} (data.group_column); found {seen}. "
        f"{COLUMN_FLAG} names another, {FILE_FLAG} a table with the columns id and group"
    )


def _called(table: Table, name: str) -> str:
    return next((column for column in table.columns if name in (column, column.strip())), "")


def _by_image(labelled: Labelled, folder: DataFolder, source: Source, column: str) -> dict[str, set[str]]:
    """id -> the values of `column` in the rows about its images."""
    if labelled.found is not None and source is labelled.found.source and column in labelled.found.table.columns:
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
    """id -> the one value of the column `name` in a table with the columns id and `name`."""
    if missing := [wanted for wanted in ("id", name) if not _called(table, wanted)]:
        raise UserError(f"{table.path}: no column {listed(missing)}; expected the columns id and {name}, found {quoted(table.columns)}")
    ids, cells = table.column(_called(table, "id")), [cell.strip() for cell in table.column(_called(table, name))]
    _refuse_empty(table, _called(table, name))
    values: dict[str, set[str]] = {}
    if set(labelled.ids) <= {text.strip() for text in ids}:
        for text, cell in zip(ids, cells, strict=True):
            values.setdefault(text.strip(), set()).add(cell)
        found = {row_id: values[row_id] for row_id in labelled.ids}
    else:  # ids written in another way: with an extension, as a path
        match = ImageIndex(folder, folder.of_part("train", "val", "")).match(ids)
        for images, cell in zip(match.images, cells, strict=True):
            for image in images:
                values.setdefault(image, set()).add(cell)
        found = _of_ids(labelled, values)
    _refuse_two(found, str(table.path), name)
    return found


def _of_ids(labelled: Labelled, values: Mapping[str, set[str]]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for row_id, images in zip(labelled.ids, labelled.images, strict=True):
        said = set().union(*(values.get(image, set()) for image in images))
        if said:
            found.setdefault(row_id, set()).update(said)
    return found


def _complete(labelled: Labelled, found: dict[str, set[str]], where: str) -> dict[str, str]:
    missing = [row_id for row_id in dict.fromkeys(labelled.ids) if row_id not in found]
    if missing:
        raise UserError(f"{where}: {len(missing):,} of {counted(len(set(labelled.ids)), 'labelled id')} have no group: {quoted(missing)}")
    _refuse_two(found, where, "group")
    return {row_id: next(iter(values)) for row_id, values in found.items()}


def _refuse_two(found: Mapping[str, set[str]], where: str, what: str) -> None:
    twice = [f"{row_id!r}: {quoted(sorted(values))}" for row_id, values in found.items() if len(values) > 1]
    raise_all(capped(twice, f"ids with several {what}s"), f"{where}: an id has more than one {what}; keep one of its rows:")


def _refuse_empty(table: Table, column: str) -> None:
    empty = [line for line, cell in zip(table.lines, table.column(column), strict=True) if not cell.strip()]
    if empty:
        raise UserError(
            f"{table.path}: {numbered(empty)}: nothing in column {column!r}; give each row a value (a row alone: one of its own)"
        )


def take_folds(ids: Sequence[str], stated: Mapping[str, str], where: str, count: int) -> list[int]:
    """The stated fold of each of `ids`, as a number from 1: the sorted values (as numbers where they are) are folds 1 to `count`.

    Raises:
        UserError: an id has none, or there are more or fewer than `count` values.
    """
    missing = [row_id for row_id in ids if row_id not in stated]
    if missing:
        raise UserError(f"{where}: {len(missing):,} of {counted(len(ids), 'labelled id')} have no fold: {quoted(missing)}")
    kinds = sorted({stated[row_id] for row_id in ids}, key=_sort_key)
    if len(kinds) != count:
        found = f"{where} holds {counted(len(kinds), 'fold')} ({quoted(kinds)})"
        raise UserError(f"{found}, and --folds asks for {count}: use --folds {len(kinds)}, or take it away to have folds made")
    number = {kind: place for place, kind in enumerate(kinds, start=1)}
    return [number[stated[row_id]] for row_id in ids]


def _sort_key(text: str) -> tuple[bool, float, str]:
    try:
        return False, float(text), text
    except ValueError:
        return True, 0.0, text
