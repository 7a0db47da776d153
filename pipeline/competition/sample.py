"""Find the sample submission among the tables, by its name or by its ids."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from shlex import quote

from pipeline.competition.folders import (
    ARCHIVE_SUFFIXES,
    DataFolder,
    hide_command,
    is_table,
    mv_command,
    suffix_of,
    unpack_command,
)
from pipeline.competition.id_columns import find_sample_ids
from pipeline.competition.id_styles import file_name
from pipeline.competition.ids import ImageIndex
from pipeline.competition.label_columns import FIRST, Wanted, is_number
from pipeline.competition.parts import HOLD_OUT_FOLDERS, words_of
from pipeline.competition.sources import Source, Sources, is_sample_name
from pipeline.errors import UserError, raise_all
from pipeline.forms.form import SubmissionForm
from pipeline.tables import Table, load_table, name_the_ids, repeated_ids, rows_of
from pipeline.wording import counted, listed, numbered, quoted

FEW_ROWS = 20  # most rows of a sample that may be an example of the form alone
FITS = 0.9  # share of a table's rows that must be test images, for a table with another name
MAX_ROW_LABELS = 200


def find_sample(folder: DataFolder, sources: Sources, index: ImageIndex) -> Source | None:
    """Return the sample submission of `folder`; None without one. `index` finds the test images.

    Raises:
        UserError: several tables may be it, a table with its name cannot be read, or it is broken.
    """
    named = sources.of_role("sample")
    for name, error in sources.broken.items():
        if is_sample_name(name) and is_table(name):
            raise error
    chosen = _fitting(named, index) if len(named) > 1 else named
    if not chosen:
        chosen = _one_folder_higher(folder, index) or _one_of_alike(_by_content(sources, index), index)
    if len(chosen) > 1:
        # the example hides the one with the fewest rows: that of an earlier stage
        chosen = sorted(chosen, key=lambda source: -len(source.table.cells))
        names = [f"{source.name} ({counted(len(source.table.cells), 'row')})" for source in chosen]
        raise UserError(
            f"{folder.root}: {' and '.join(names)} may all be the sample submission; "
            f"{hide_command(folder.root, [source.name for source in chosen])}"
        )
    if not chosen:
        _refuse_alike(folder, sources, index)
        return None
    check_sample(chosen[0].table)
    return chosen[0]


def with_test_folder(folder: DataFolder, sample: Table) -> DataFolder:
    """Return the folder with its test part, where no folder is called test: the one whose images are those of
    the sample submission.

    Unchanged if another number of folders holds nearly these images and no others.
    """
    if folder.parts.named("test") or folder.parts.named("train"):
        return folder
    tops = [name for name, held in folder.scans.items() if name and held.images]
    found = []
    for name in tops:
        images = [image for image in folder.scans[name].images if folder.parts.of(image) == ""]
        if FITS * len(images) <= len(sample.cells) and len(images) >= FITS * len(sample.cells):
            index = ImageIndex(folder, images)
            found += [name] if _share(sample, index) >= FITS else []
    if len(found) != 1 or len(tops) < 2:
        return folder
    parts = replace(folder.parts, folders={**folder.parts.folders, found[0]: "test"}, _known={})
    return replace(folder, parts=parts)


def check_sample(table: Table) -> None:
    """Check that a table can be a sample submission.

    Raises:
        UserError: it has one column only, or no rows.
    """
    problems = []
    if len(table.columns) < 2:
        problems.append(
            f"its only column is {table.columns[0]!r}: an id column and a label column (or one column per "
            "class) are needed"
        )
        problems += _unnamed(table)
    if not table.cells:
        problems.append("it has no rows: the ids to predict are needed")
    raise_all(problems, f"{table.path}:")


def check_sample_ids(sample: Table, id_column: str) -> None:
    """Check that every row of the sample submission has its own id.

    Raises:
        UserError: ids are empty or repeated; all problems are listed.
    """
    rows = rows_of(sample.column(id_column), sample.lines)
    empty = [line for image_id, lines in rows.items() for line in lines if not image_id.strip()]
    problems = repeated_ids({image_id: lines for image_id, lines in rows.items() if image_id.strip()})
    if empty:
        problems.append(f"{numbered(empty)}: no id in column {id_column!r}")
    if problems:
        problems += _unnamed(sample)
    raise_all(problems, f"{sample.path}:")


def refuse_headerless(sample: Table, id_column: str, index: ImageIndex) -> None:
    """Check that the first line of the sample submission is a header, not a row.

    Raises:
        UserError: the name of its id column is an image that no row names.
    """
    if not index.is_row(id_column, sample.column(id_column)):
        return
    advice = "add a first line with the names of its columns, as the competition's page gives them"
    if len(sample.columns) == 2 and sample.path.suffix.lower() not in (".gz", ".zip"):
        header, old, new = f"id{sample.delimiter}label", quote(str(sample.path)), quote(f"{sample.path}.new")
        advice += f", such as: {{ echo {quote(header)}; cat {old}; }} > {new} && mv {new} {old}"
    raise UserError(
        f"{sample.path}: row 1 has no names of columns: {id_column!r} is an image to predict, which would "
        f"get no prediction; {advice}"
    )


def refuse_labelled(folder: DataFolder, sample: Source, id_column: str, taken: Collection[str]) -> None:
    """Check that the images of a sample without a folder of its own are no labelled ones.

    Raises:
        UserError: most of its ids name labelled images.
    """
    ids = [cell.strip() for cell in sample.table.column(id_column)]
    match = ImageIndex(folder, sorted(taken)).match(ids)
    if match.num_found * 2 > len(ids):
        shown = quoted([images[0] for images in match.images if images][:2])
        raise UserError(
            f"{folder.root}: images of {sample.name}, such as {shown}, have labels and no folder of "
            "their own, so they would be trained on: take their rows out of the table of labels (or "
            "empty their label cells), or move the images into a folder test/"
        )


def refuse_excerpt(
    sample: Source, id_column: str, sources: Sources, index: ImageIndex, label_column: str
) -> None:
    """Check that a sample of a few rows is not only the beginning of a table of all test images.

    Raises:
        UserError: its ids are the first ones of such a table, which names twice as many images or more.
    """
    ids = [cell.strip() for cell in sample.table.column(id_column)]
    for source in sources.of_role("test") if len(ids) <= FEW_ROWS else ():
        for name in source.table.columns:
            cells = list(dict.fromkeys(cell.strip() for cell in source.table.column(name)))
            if cells[: len(ids)] != ids or len(cells) < 2 * len(ids):
                continue
            if index.match(cells).num_unique < len(cells):
                continue
            raise UserError(
                f"{sample.table.path} has {counted(len(ids), 'row')}, the first ids of {source.name} (column "
                f"{name!r}), which names {len(cells):,} images: a file of these rows only would be "
                f"incomplete. Add a row for each id of {source.name} to it (with anything in "
                f"{label_column!r}); if only these rows are asked for: {mv_command(source.table.path)}"
            )


def _unnamed(sample: Table) -> list[str]:
    advice = name_the_ids(sample)
    return [f"{advice} (predictions.csv then has this name too)"] if advice else []


def label_form(sample: Table, id_column: str) -> SubmissionForm:
    """Return the form of a sample submission with one answer text per row.

    Raises:
        UserError: ids are empty or repeated.
    """
    check_sample_ids(sample, id_column)
    return SubmissionForm("label", sample.columns, id_column, tuple(sample.column(id_column)), sample.path)


def wanted_by(sample: Table, id_column: str) -> Wanted:
    """Return the columns, ids and values that a sample submission asks for."""
    columns = tuple(name for name in sample.columns if name != id_column)
    ids = tuple(sample.column(id_column)[:FIRST])
    if len(columns) != 1:
        return Wanted(columns, ids)
    values = [value.strip() for value in sample.column(columns[0])]
    known = frozenset(value for value in values[:FIRST] if value)
    return Wanted(columns, ids, known, may_be_empty=bool(known) and not all(values))


def with_row_labels(wanted: Wanted, sample: Table, id_column: str, sources: Sequence[Source]) -> Wanted:
    """Add the possible row labels to `wanted`, from tables about the test set that hold all ids of the
    sample.

    Possible labels are the values of another column beside these ids.
    """
    ids = {cell.strip() for cell in sample.column(id_column)}
    found = []
    for source in sources:
        for name in source.table.columns if len(source.table.cells) <= 2 * len(ids) else ():
            if ids <= {cell.strip() for cell in source.table.column(name)}:
                others = (
                    frozenset(cell.strip() for cell in source.table.column(other))
                    for other in source.table.columns
                    if other != name
                )
                found += [
                    values
                    for values in others
                    if 1 < len(values) <= MAX_ROW_LABELS and len(values) * 2 <= len(ids)
                ]
    return replace(wanted, row_labels=tuple(found))


def _fitting(named: Sequence[Source], index: ImageIndex) -> list[Source]:
    """Return the samples whose ids name test images, or all if none do. Equal samples count once."""
    different = {source.table.columns + source.table.cells: source for source in reversed(named)}
    named = [source for source in named if source in different.values()]
    found = [source for source in named if _share(source.table, index) >= FITS]
    return found or list(named)


def _share(table: Table, index: ImageIndex) -> float:
    """Return the share of a table's rows with a test image."""
    if not index.images or not table.cells:
        return 0.0
    _, match = find_sample_ids(table, index, groups=True)
    return match.num_found / len(match.images)


def _one_folder_higher(folder: DataFolder, index: ImageIndex) -> list[Source]:
    """Return sample submissions in the parent folder, if their ids are the test images."""
    above = folder.root.resolve().parent
    try:
        names = sorted(
            entry.name
            for entry in above.iterdir()
            if is_table(entry.name) and is_sample_name(entry.name) and entry.is_file()
        )
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
    """Return tables without a role whose rows are the test images. Not `val.csv`: it numbers other images."""
    return [
        source
        for source in sources.of_role("")
        if _is_about_test(source, index)
        and not source.is_json
        and not set(words_of(file_name(source.name))) & set(HOLD_OUT_FOLDERS)
    ]


def _one_of_alike(found: Sequence[Source], index: ImageIndex) -> list[Source]:
    """Choose one of several tables with equal columns and ids (`all_zeros_benchmark.csv`,
    `all_ones_benchmark.csv`).

    The one with the most different values is taken, with a note. Other tables are returned unchanged.
    """
    ids = {
        (source.table.columns, tuple(source.table.column(find_sample_ids(source.table, index)[0])))
        for source in found
    }
    values = [cell for source in found for row in source.table.cells for cell in row[1:]]
    if len(found) < 2 or len(ids) > 1 or not all(is_number(cell) for cell in values[:FIRST]):
        return list(found)
    best = max(found, key=lambda source: len({cell for row in source.table.cells for cell in row}))
    others = listed(source.name for source in found if source is not best)
    note = f"{others} has the same rows and columns; used as the sample submission: {best.name}"
    return [replace(best, table=replace(best.table, notes=(*best.table.notes, note)))]


def _is_about_test(source: Source, index: ImageIndex) -> bool:
    table = source.table
    if len(table.columns) < 2 or not table.cells or not index.images:
        return False
    try:
        _, match = find_sample_ids(table, index)
    except UserError:
        return False
    return match.num_unique >= FITS * len(table.cells) and match.num_unique >= FITS * len(index.images)


def _refuse_alike(folder: DataFolder, sources: Sources, index: ImageIndex) -> None:
    """Raise if a file looks like a sample submission but is not usable: inventing columns would be a
    guess.
    """
    packed = [
        name for name in folder.archives if is_sample_name(name) and suffix_of(name) in ARCHIVE_SUFFIXES
    ]
    if packed:
        raise UserError(f"{folder.root}: {packed[0]} is not unpacked: {unpack_command(folder.root)}")
    alike = [
        source
        for source in sources.of_role("answers")
        if "submi" in source.name.lower() and _is_about_test(source, index)  # submission, submit
    ]
    if alike:
        path = alike[0].table.path
        raise UserError(
            f"{folder.root}: {listed(source.name for source in alike)} looks like the sample submission; if "
            f"it is, rename it to sample_submission.csv; if not: {mv_command(path)}"
        )
