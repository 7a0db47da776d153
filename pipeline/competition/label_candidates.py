"""Which tables of a data folder may hold the labels of its training images, and which one is best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from pipeline.competition.class_folders import ClassFolders
from pipeline.competition.folder_columns import in_folders
from pipeline.competition.folders import hide_command, mv_command, plain_name
from pipeline.competition.id_columns import find_ids, is_id_name, without_id_name
from pipeline.competition.id_styles import FOLDERS, LINKED, SEVERAL_EACH, file_name
from pipeline.competition.ids import ImageIndex, Match, link_advice, settled
from pipeline.competition.label_columns import LIKELY, SURE, Choice, Wanted, choose_labels
from pipeline.competition.label_table import Found, without_test_rows
from pipeline.competition.line_tables import LIST_OF_NAMES
from pipeline.competition.long_tables import made_wide, one_row_each
from pipeline.competition.parts import words_of
from pipeline.competition.sources import TRAIN_TABLES, Source, headerless
from pipeline.competition.subjects import linked_images
from pipeline.errors import UserError
from pipeline.tables import Table
from pipeline.wording import quoted

# In the name of an id column: its folders are what was photographed or scanned, no classes.
SUBJECTS = tuple("patient subject person study series session video clip case lesion exam scan".split())
OWN_TABLES = ("labels.csv", "train_labels.csv", "train.csv")  # names that win over those of parts
COVERS = 0.25  # share of the training images that a table must name if its own name has no role


@dataclass(frozen=True)
class LookedUp:
    """A table with matched ids, without the rows marked as test."""

    found: Found
    parts: list[str]
    notes: list[str]
    trouble: UserError | None


def look_up(
    source: Source, index: ImageIndex, wanted: Wanted, id_column: str | None, links: Sequence[Source]
) -> LookedUp:
    """Match the ids of a table to images. `links`: other tables that may link its ids to images."""
    table, parts, notes, trouble = _trained_rows(source.table)
    if (
        source.is_json
        and not id_column
        and "file_name" in table.columns
        and index.match(table.column("file_name")).num_found
    ):
        id_column = "file_name"  # COCO: `id` is a separate number and may equal another image's name
    name, match = find_ids(table, index, id_column, groups=True, labels=wanted.columns)
    named = index.match([name])  # `image` may be the name of all images
    if match.num_found and named.num_found and (named.num_single or not is_id_name(name)):
        table, parts, notes, trouble = _trained_rows(headerless(source.table))
        name, match = find_ids(table, index, None, groups=True)
    if parted := in_folders(table, name, match, index):
        table, folders = parted
        match = index.match(table.column(name))
        notes = [*notes, f"ids are told apart by their folders in column {folders!r}"]
    if not match.num_found and (wide := made_wide(table, index)):
        table, name = wide, wide.columns[0]
        match = find_ids(table, index, name, groups=True)[1]
    if wide := one_row_each(table, name, match, wanted):
        table, match, parts = wide, find_ids(wide, index, name, groups=True)[1], []
    trouble = trouble or without_id_name(table, match, index)
    if source.role == "train" and match.num_found * 2 < len(match.images):
        images = linked_images(table.column(name), index, [link for link in links if link is not source])
        match = Match(LINKED, images) if images else match
    match, note = settled(match, index.part_of)
    return LookedUp(Found(source, table, name, match), parts, [*notes, *([note] if note else [])], trouble)


def _trained_rows(table: Table) -> tuple[Table, list[str], list[str], UserError | None]:
    """Return the result of `without_test_rows` and its error, which counts only if labels are taken from
    there.
    """
    try:
        return *without_test_rows(table), None
    except UserError as error:
        return table, [], [], error


def id_column_for(id_column: str | None, source: Source, tables: Sequence[Source]) -> str | None:
    """Return `id_column` for tables that have it; if none has it, for training tables, which then refuse
    it.
    """
    holders = [other for other in tables if id_column in other.table.columns]
    return id_column if source in holders or (not holders and source.role == "train") else None


def about_images(looked_up: Sequence[LookedUp], index: ImageIndex, share: float = 0.5) -> list[Found]:
    """Return the tables whose ids name more than this share of the training images."""
    return [entry.found for entry in looked_up if entry.found.match.num_unique > share * len(index.images)]


@dataclass(frozen=True)
class Candidate:
    """A table that may hold the labels."""

    found: Found
    choice: Choice
    parts: list[str]
    notes: list[str]
    trouble: UserError | None  # why its training and test rows cannot be separated
    held_out: bool = False  # all its images are in folders of validation images

    @property
    def rank(self) -> tuple[int, bool, bool, bool]:
        """Sort key: strength of the columns, role "train", a usual name of a label table, and no columns of
        boxes.
        """
        source = self.found.source
        columns = {plain_name(name) for name in source.table.columns}
        boxes = bool(columns & {"bbox", "boundingbox", "xmin", "x1", "xcenter"}) or {"x", "y"} <= columns
        return (
            self.choice.strength,
            source.role == "train",
            plain_name(file_name(source.name)) in TRAIN_TABLES,
            not boxes,
        )


def find_candidates(
    looked_up: Sequence[LookedUp],
    index: ImageIndex,
    wanted: Wanted,
    id_column: str | None,
    label_column: str | None,
    classes: ClassFolders,
) -> list[Candidate]:
    """Return the tables about training images that have, or may have, label columns.

    `id_column`, `label_column`: the user's choice; only tables with these columns count, if there are any.

    Raises:
        UserError: these columns are in two tables, or in tables that are not about training images.
    """
    candidates = []
    named = [name for name in (id_column, label_column) if name]
    holders = _holders(looked_up, named)
    for entry in holders or looked_up:
        found = entry.found
        if found.source.table.delimiter == LIST_OF_NAMES:
            continue
        trained = found.source.role == "train"
        several = found.match.style in SEVERAL_EACH
        # Numbers in an unrelated table may equal the stems of many images in class folders by chance.
        if not found.match.num_found or not (several or found.match.num_unique or len(classes.groups) < 2):
            continue
        reached = {image for images in found.match.images for image in images}
        covers = len(reached) >= COVERS * len(index.images)
        if not trained and not covers:
            continue
        given = label_column if label_column in found.table.columns or trained else None
        choice = choose_labels(found.table, found.id_column, found.match, index, wanted, given)
        if found.match.style is FOLDERS and len(choice.names) == 1 and _counts_images(found, choice.names[0]):
            continue
        if classes.plausible and found.match.style is FOLDERS and not _tells_folders_apart(found, choice):
            continue
        # A table without the role "train" counts only with a clear label column, or if there is nothing else.
        if not trained and choice.strength < LIKELY and (classes.plausible or not choice.strength):
            continue
        held_out = all(index.part_of(image) == "val" for image in reached)
        candidates.append(Candidate(found, choice, entry.parts, entry.notes, entry.trouble, held_out))
    if holders and not candidates:
        raise _leads_nowhere(holders[0].found, named[-1], index)
    return candidates


def _holders(looked_up: Sequence[LookedUp], names: Sequence[str]) -> list[LookedUp]:
    """Return the tables with all columns that the user names; empty if no table has one of them."""
    if not names:
        return []
    having = [
        [
            entry
            for entry in looked_up
            if name in (*entry.found.table.columns, *entry.found.source.table.columns)
        ]
        for name in names
    ]
    both = [entry for entry in having[0] if entry in having[-1]]
    if not both and all(having):
        first, last = (entries[0].found for entries in having)
        raise UserError(
            f"{first.table.path} has the column {names[0]!r} (data.id_column), {last.name} the column "
            f"{names[-1]!r} (data.label_column), and no table has both: name columns of one table"
        )
    return both


def _leads_nowhere(found: Found, column: str, index: ImageIndex) -> UserError:
    ids = found.table.column(found.id_column)
    return UserError(
        f"{found.table.path} has the column {column!r}, which was named, but no row of it is known to be "
        f"about a training image: ids look like {quoted(ids[:3])} (column {found.id_column!r}; --set "
        f"data.id_column=NAME names another one), images like {quoted(index.images[:3])}; "
        f"{link_advice(found.id_column)}"
    )


def _tells_folders_apart(found: Found, choice: Choice) -> bool:
    """Return False for a table about the class folders themselves (`labels.csv`: number, name), not about
    their images.
    """
    if choice.strength >= SURE:
        return True
    values = found.table.column(choice.names[0]) if len(choice.names) == 1 else []
    about_train = "train" in found.name.lower() or _names_subjects(found)
    return about_train and len(choice.names) > 0 and len(set(values)) != len(found.table.cells)


def _counts_images(found: Found, name: str) -> bool:
    """Return True for a column with the number of images in each folder."""
    cells = zip(found.table.column(name), found.match.images, strict=True)
    return all(cell.strip() == str(len(images)) for cell, images in cells if images)


def _names_subjects(found: Found) -> bool:
    return any(word.startswith(SUBJECTS) for word in words_of(found.id_column))


def labels_of_folders(
    looked_up: Sequence[LookedUp], index: ImageIndex, wanted: Wanted
) -> tuple[Found, Choice] | None:
    """Return a table whose ids are folders of images, with the columns that may be their labels; None without
    one.

    Such folders (series, patients) are no classes. A table that describes classes has no role, ids of
    classes, or another value in each row.
    """
    for found in (entry.found for entry in looked_up):
        if found.match.style is not FOLDERS or not (found.source.role == "train" or _names_subjects(found)):
            continue
        choice = choose_labels(found.table, found.id_column, found.match, index, wanted, None)
        names = choice.names or choice.candidates
        if names := tuple(name for name in names if _tells_rows(found, name)):
            return found, Choice((), 0, names)
    return None


def _tells_rows(found: Found, name: str) -> bool:
    several = 1 < len(set(found.table.column(name))) < len(found.table.cells)
    return several and not _counts_images(found, name)


def best_of(candidates: Sequence[Candidate]) -> Candidate | None:
    """Return the candidate with the best rank; None without candidates.

    Raises:
        UserError: several are equally likely.
    """
    if not candidates:
        return None
    top = max(entry.rank for entry in candidates)
    best = [entry for entry in candidates if entry.rank == top]
    best = [entry for entry in best if not entry.held_out] or best
    largest = max(best, key=lambda entry: entry.found.match.num_found)
    parts = [
        entry for entry in best if entry.found.source.table.columns == largest.found.source.table.columns
    ]
    if len(parts) > 1 and _share_images(parts):
        raise _in_parts([entry.found.name for entry in parts], _root(best[0].found))
    if len(best) > 1:
        best = [entry for entry in best if entry.found.match.num_found * 2 > largest.found.match.num_found]
    if len(best) > 1:
        files = [entry.found.name for entry in best]
        root = _root(best[0].found)
        raise UserError(f"{root}: {' and '.join(files)} may all hold the labels; {hide_command(root, files)}")
    return best[0]


def _in_parts(files: Sequence[str], root: Path) -> UserError:
    """Build the error for tables that share the images, with the command that joins them."""
    free = next((name for name in OWN_TABLES if not (root / name).exists()), "")
    paths = " ".join(quote(str(root / file)) for file in files)
    join = f"join them: awk 'FNR > 1 || NR == 1' {paths} > {quote(str(root / free))}" if free else "join them"
    return UserError(
        f"{root}: {' and '.join(files)} have the same columns and are about different images; to use all of "
        f"them, {join}; to use one of them, hide the other: {mv_command(root / files[-1])}"
    )


def _share_images(candidates: Sequence[Candidate]) -> bool:
    """Return True for CSV files with one header whose rows are different images: labels in several parts."""
    tables = [entry.found.source.table for entry in candidates]
    if len({(table.columns, table.delimiter) for table in tables}) > 1 or not tables[0].delimiter.strip(" "):
        return False
    if any(file_name(entry.found.name).endswith((".gz", ".zip")) for entry in candidates):
        return False
    reached = [{image for images in entry.found.match.images for image in images} for entry in candidates]
    return len(set().union(*reached)) == sum(map(len, reached))


def _root(found: Found):
    return found.source.table.path.parents[found.name.count("/")]
