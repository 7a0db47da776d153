"""The sample submission: which table it is, by its name or by what it holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pipeline.competition.folders import ARCHIVE_SUFFIXES, DataFolder, hide_command, is_table, mv_command, suffix_of, unpack_command
from pipeline.competition.id_columns import find_ids
from pipeline.competition.ids import ImageIndex
from pipeline.competition.label_columns import Wanted, is_number
from pipeline.competition.sources import Source, Sources, is_sample_name
from pipeline.errors import UserError, raise_all
from pipeline.forms.form import SubmissionForm
from pipeline.tables import Table, load_table, repeated_ids, rows_of
from pipeline.wording import listed, numbered

FITS = 0.9  # of the rows of a table that must be test images before it is taken for a sample submission whatever its name
MAX_ROW_LABELS = 200
FIRST = 5000  # rows that are looked at for what the sample says of labels


def find_sample(folder: DataFolder, sources: Sources, index: ImageIndex) -> Source | None:
    """The sample submission of `folder`; `index` finds its test images. None when there is none.

    Raises:
        UserError: several may be it, something may be it and cannot be read, or it is broken.
    """
    named = sources.of_role("sample")
    for name, error in sources.broken.items():
        if is_sample_name(name) and is_table(name):
            raise error
    chosen = _fitting(named, index) if len(named) > 1 else named
    if not chosen:
        chosen = _one_folder_higher(folder, index) or _one_of_alike(_by_content(sources, index), index)
    if len(chosen) > 1:
        names = [source.name for source in chosen]
        raise UserError(f"{folder.root}: {' and '.join(names)} may all be the sample submission; {hide_command(folder.root, names)}")
    if not chosen:
        _refuse_alike(folder, sources, index)
        return None
    check_sample(chosen[0].table)
    return chosen[0]


def check_sample(table: Table) -> None:
    """Pass for a table that can be a sample submission.

    Raises:
        UserError: it has one column, or no rows.
    """
    problems = []
    if len(table.columns) < 2:
        problems.append(f"it has the one column {table.columns[0]!r}: an id column and a label column (or one column per class) are needed")
    if not table.cells:
        problems.append("it has no rows: the ids to predict are needed")
    raise_all(problems, f"{table.path}:")


def check_sample_ids(sample: Table, id_column: str) -> None:
    """Pass when every row of the sample submission has an id of its own.

    Raises:
        UserError: ids that are empty or occur several times; every problem at once.
    """
    rows = rows_of(sample.column(id_column), sample.lines)
    empty = [line for image_id, lines in rows.items() for line in lines if not image_id.strip()]
    problems = repeated_ids({image_id: lines for image_id, lines in rows.items() if image_id.strip()})
    if empty:
        problems.append(f"{numbered(empty)}: no id in column {id_column!r}")
    raise_all(problems, f"{sample.path}:")


def label_form(sample: Table, id_column: str) -> SubmissionForm:
    """The form of a sample submission whose rows are answers: one cell of text each.

    Raises:
        UserError: ids that are empty or occur several times.
    """
    check_sample_ids(sample, id_column)
    return SubmissionForm("label", sample.columns, id_column, tuple(sample.column(id_column)), sample.path)


def wanted_by(sample: Table | None, id_column: str | None) -> Wanted:
    """What a sample submission says of labels."""
    if sample is None or id_column is None:
        return Wanted()
    columns = tuple(name for name in sample.columns if name != id_column)
    ids = tuple(sample.column(id_column)[:FIRST])
    if len(columns) != 1:
        return Wanted(columns, ids)
    values = [value.strip() for value in sample.column(columns[0])]
    known = frozenset(value for value in values[:FIRST] if value)
    return Wanted(columns, ids, known, may_be_empty=bool(known) and not all(values))


def with_row_labels(wanted: Wanted, sample: Table, id_column: str, sources: Sequence[Source]) -> Wanted:
    """`wanted` with what the rows of the sample may be about: the values of a column beside the sample's ids in a table about the test."""
    ids = {cell.strip() for cell in sample.column(id_column)}
    found = []
    for source in sources:
        for name in source.table.columns if len(source.table.cells) <= 2 * len(ids) else ():
            if ids <= {cell.strip() for cell in source.table.column(name)}:
                others = (frozenset(cell.strip() for cell in source.table.column(other)) for other in source.table.columns if other != name)
                found += [values for values in others if 1 < len(values) <= MAX_ROW_LABELS and len(values) * 2 <= len(ids)]
    return replace(wanted, row_labels=tuple(found))


def _fitting(named: Sequence[Source], index: ImageIndex) -> list[Source]:
    """Those whose ids lead to test images; all where none or several do, one where they are equal."""
    different = {source.table.columns + source.table.cells: source for source in reversed(named)}
    named = [source for source in named if source in different.values()]
    found = [source for source in named if _share(source.table, index) >= FITS]
    return found or list(named)


def _share(table: Table, index: ImageIndex) -> float:
    """How much of a table is about different test images."""
    if not index.images or not table.cells:
        return 0.0
    _, match = find_ids(table, index, groups=True)
    return match.num_found / len(match.images)


def _one_folder_higher(folder: DataFolder, index: ImageIndex) -> list[Source]:
    """Sample submissions beside the data folder, where they are about its test images."""
    above = folder.root.resolve().parent
    try:
        names = sorted(entry.name for entry in above.iterdir() if is_table(entry.name) and is_sample_name(entry.name) and entry.is_file())
    except OSError:
        return []
    found = []
    for name in names:
        try:
            table = load_table(above / name)
        except UserError:
            continue
        if table.cells and _share(table, index) >= FITS:
            found.append(Source(f"../{name}", table))
    return found


def _by_content(sources: Sources, index: ImageIndex) -> list[Source]:
    """Tables of names that say nothing, whose rows are the test images."""
    return [source for source in sources.of_role("") if _is_about_test(source, index) and not source.is_json]


def _one_of_alike(found: Sequence[Source], index: ImageIndex) -> list[Source]:
    """One of several tables with the same columns and ids (`all_zeros_benchmark.csv`, `all_ones_benchmark.csv`): the one whose values tell
    the most, with a note. Tables that differ in more stay as they are."""
    ids = {(source.table.columns, tuple(source.table.column(find_ids(source.table, index)[0]))) for source in found}
    values = [cell for source in found for row in source.table.cells for cell in row[1:]]
    if len(found) < 2 or len(ids) > 1 or not all(is_number(cell) for cell in values[:FIRST]):
        return list(found)
    best = max(found, key=lambda source: len({cell for row in source.table.cells for cell in row}))
    others = listed(source.name for source in found if source is not best)
    note = f"{others} has the same rows and columns; taken for the sample submission: {best.name}"
    return [replace(best, table=replace(best.table, notes=(*best.table.notes, note)))]


def _is_about_test(source: Source, index: ImageIndex) -> bool:
    table = source.table
    if len(table.columns) < 2 or not table.cells or not index.images:
        return False
    try:
        _, match = find_ids(table, index)
    except UserError:
        return False
    return match.num_unique >= FITS * len(table.cells) and match.num_unique >= FITS * len(index.images)


def _refuse_alike(folder: DataFolder, sources: Sources, index: ImageIndex) -> None:
    """Raise where something looks like a sample submission: made-up columns would be a guess."""
    packed = [name for name in folder.archives if is_sample_name(name) and suffix_of(name) in ARCHIVE_SUFFIXES]
    if packed:
        raise UserError(f"{folder.root}: {packed[0]} is not unpacked: {unpack_command(folder.root)}")
    alike = [source for source in sources.of_role("answers") if "submission" in source.name.lower() and _is_about_test(source, index)]
    if alike:
        path = alike[0].table.path
        raise UserError(
            f"{folder.root}: {listed(source.name for source in alike)} looks like the sample submission; if it is, rename it to "
            f"sample_submission.csv; if not: {mv_command(path)}"
        )
