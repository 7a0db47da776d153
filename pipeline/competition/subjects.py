"""Find the images of each row of a sample submission: by name, through another table, several images or
several rows each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.competition.folder_columns import in_folders
from pipeline.competition.id_columns import NEARLY, find_sample_ids, is_id_name, repeats
from pipeline.competition.id_styles import SEVERAL_EACH, file_name, without_suffix
from pipeline.competition.ids import ImageIndex, Match, settled
from pipeline.competition.sources import Source
from pipeline.tables import Table, are_whole_numbers, numbers_the_rows

MOST = 0.5  # share of the ids that a table must hold to link them to images; missing ids are reported later
MAX_LABELS = 200  # of rows `<id>_<label>`


@dataclass(frozen=True)
class Resolved:
    """The images of each row of a table.

    `subjects` and `row_labels` are set only if a subject has several rows.
    """

    id_column: str
    images: tuple[tuple[str, ...], ...]
    says: str
    match: Match | None = None  # set if the ids themselves name one image each
    subjects: tuple[str, ...] = ()
    row_labels: tuple[str, ...] = ()

    @property
    def num_found(self) -> int:
        """Number of rows with an image."""
        return sum(bool(found) for found in self.images)


def resolve(
    table: Table, index: ImageIndex, sources: Sequence[Source], label_names: Sequence[str] | None = None
) -> Resolved:
    """Find the images of each row of a sample submission. `label_names`: labels that may end its ids
    (`<image>_<label>`); None: unknown.

    Raises:
        UserError: two columns name different images.
    """
    name, match = find_sample_ids(table, index)
    ids = [cell.strip() for cell in table.column(name)]
    match, note = settled(match, index.part_of)
    direct = Resolved(name, match.images, f"ids are {match.style.says}{'; ' if note else ''}{note}", match)
    if match.num_single * 2 >= len(ids):
        # Where images are numbered too, row numbers match by chance: a table that links each number to an
        # image is better. A table about training images is no such link: its ids and labels are numbers too.
        about_test = [source for source in sources if source.role not in ("train", "sample")]
        rows = numbers_the_rows(ids)
        about_test = _without_numbers(about_test, name) if rows else _with_files(about_test, name)
        linked = _linked(ids, index, about_test, label_names)
        if linked and linked.images != match.images and len(set(linked.images)) == len(set(ids)):
            return Resolved(name, linked.images, linked.says)
        return direct
    others = (column for column in table.columns if column != name and not repeats(table, column))
    columns = [name, *others]
    for column in columns[:3]:
        ids = [cell.strip() for cell in table.column(column)]
        found = _long(ids, index, sources, label_names) if label_names else None
        found = found or _several(ids, index) or _linked(ids, index, sources, label_names)
        if label_names is None:
            found = found or _long(ids, index, sources, ())
        if found:
            return Resolved(column, found.images, found.says, None, found.subjects, found.row_labels)
    return direct


def _with_files(sources: Sequence[Source], id_column: str) -> list[Source]:
    """Return the tables of test images that name the file of each id, cut to these two columns.

    A file name with its extension, in a column such as `file`, tells more than an id that equals the name of
    some image without its extension.
    """
    cut = []
    for source in sources:
        table = source.table
        if source.role != "test" or id_column not in table.columns:
            continue
        place = table.columns.index(id_column)
        for other, name in enumerate(table.columns):
            cells = [row[other].strip() for row in table.cells]
            if other != place and is_id_name(name) and all(without_suffix(cell) != cell for cell in cells):
                pairs = tuple((row[place], row[other]) for row in table.cells)
                cut.append(replace(source, table=replace(table, columns=(id_column, name), cells=pairs)))
    return cut


def _without_numbers(sources: Sequence[Source], id_column: str) -> list[Source]:
    """Return the tables without columns of numbers, such as patients, that may equal names of images by
    chance.

    Kept are the ids, those called like an id of an image, and those that number the rows of a table without
    `id_column`.
    """
    cut = []
    for source in sources:
        table = source.table
        kept = []
        for place, name in enumerate(table.columns):
            cells = [row[place].strip() for row in table.cells]
            may_lead = name == id_column or is_id_name(name) or not are_whole_numbers(cells)
            if may_lead or (id_column not in table.columns and numbers_the_rows(cells)):
                kept.append(place)
        columns = tuple(table.columns[place] for place in kept)
        rows = tuple(tuple(row[place] for place in kept) for row in table.cells)
        cut.append(replace(source, table=replace(table, columns=columns, cells=rows)))
    return cut


@dataclass(frozen=True)
class _Lead:
    images: tuple[tuple[str, ...], ...]
    says: str
    subjects: tuple[str, ...] = ()
    row_labels: tuple[str, ...] = ()


def _several(ids: Sequence[str], index: ImageIndex) -> _Lead | None:
    match = index.match_groups(ids)
    if match.num_found < NEARLY * len(ids):
        return None
    return _Lead(match.images, f"ids are {match.style.says}, several images each")


def _long(
    ids: Sequence[str], index: ImageIndex, sources: Sequence[Source], label_names: Sequence[str]
) -> _Lead | None:
    """Match rows `<subject>_<label>`; the label is one of `label_names`, or one of a few endings."""
    known = sorted(label_names, key=len, reverse=True) if 1 < len(label_names) <= MAX_LABELS else []
    pairs = [_split(text, known) for text in ids]
    if any(not subject for subject, _ in pairs):
        return None
    labels, subjects = {label for _, label in pairs}, list(dict.fromkeys(subject for subject, _ in pairs))
    if not 1 < len(labels) <= MAX_LABELS or len(subjects) * 2 > len(ids) or len(set(pairs)) < len(pairs):
        return None
    match = index.match(subjects)
    lead = None
    if match.num_found >= NEARLY * len(subjects):
        lead = _Lead(match.images, f"names of images ({match.style.says})")
    lead = (
        lead
        or _several(subjects, index)
        or _linked(subjects, index, [source for source in sources if source.role != "sample"])
    )
    if lead is None:
        return None
    images = dict(zip(subjects, lead.images, strict=True))
    says = f"rows are <id>_<label> with {len(labels)} labels; {lead.says}"
    return _Lead(
        tuple(images[subject] for subject, _ in pairs),
        says,
        tuple(subject for subject, _ in pairs),
        tuple(label for _, label in pairs),
    )


def _split(text: str, known: Sequence[str]) -> tuple[str, str]:
    for label in known:
        if text.endswith(label) and text[: -len(label)][-1:] in ("_", "-", " ", ".", ":"):
            return text[: -len(label) - 1], label
    head, _, tail = text.rpartition("_")
    return ("", "") if known else (head, tail)


def linked_images(
    ids: Sequence[str], index: ImageIndex, sources: Sequence[Source]
) -> tuple[tuple[str, ...], ...] | None:
    """Return the images of each id through one of `sources` that links ids to images; None if none does."""
    lead = _linked([text.strip() for text in ids], index, sources)
    return lead.images if lead else None


def _linked(
    ids: Sequence[str],
    index: ImageIndex,
    sources: Sequence[Source],
    label_names: Sequence[str] | None = None,
) -> _Lead | None:
    """Match ids through a table that has them in one column and images in another.

    `label_names`: the labels that rows may be about; None: unknown.
    """
    wanted = set(ids)
    best: tuple[float, _Lead] | None = None
    for source in sources:
        table = source.table
        for name in table.columns:
            cells = [cell.strip() for cell in table.column(name)]
            share = len(wanted & set(cells)) / len(wanted)
            if share < MOST or (best and share <= best[0]):
                continue
            rows = [row for row, cell in enumerate(cells) if cell in wanted]
            if lead := _through(ids, [cells[row] for row in rows], table, name, rows, index, label_names):
                says = f"{file_name(source.name)} leads from them ({name}) to images{lead.says}"
                best = share, _Lead(lead.images, says, lead.subjects, lead.row_labels)
    return best[1] if best else None


def _through(
    ids: Sequence[str],
    keys: Sequence[str],
    table: Table,
    name: str,
    rows: Sequence[int],
    index: ImageIndex,
    label_names: Sequence[str] | None,
) -> _Lead | None:
    """Match ids through one column of a table. None if no column leads on to images, or only to folders or
    groups of images that several ids share: such a column (experiment, well) tells where an image is, not
    which.
    """
    best: tuple[int, str, list[str], Match] | None = None
    for other in table.columns:
        if other == name:
            continue
        column = table.column(other)
        cells = [column[row].strip() for row in rows]
        match = index.match(cells)
        if parted := in_folders(table.kept(rows), other, match, index):
            cells = parted[0].column(other)
            match = index.match(cells)
        if match.num_found < NEARLY * len(cells):
            match = index.match_groups(cells)
            if match.num_found < NEARLY * len(cells):
                continue
        distinct = len({found for found in match.images if found})
        if best is None or distinct > best[0]:
            best = distinct, other, cells, match
    if best is None:
        return None
    _, other, cells, match = best
    if long := _labels_of_rows(ids, keys, cells, table, {name, other}, rows, label_names):
        image_of = dict(zip(cells, match.images, strict=True))
        return _Lead(
            tuple(image_of.get(subject, ()) for subject in long[0]), f" ({other}), several rows each", *long
        )
    if match.style in SEVERAL_EACH and len(set(cells)) < len(set(zip(keys, cells, strict=True))):
        return None
    images: dict[str, dict[str, None]] = {}
    for key, found in zip(keys, match.images, strict=True):
        images.setdefault(key, {}).update(dict.fromkeys(found))
    several = ", several each" if any(len(found) > 1 for found in images.values()) else ""
    return _Lead(tuple(tuple(images.get(key, ())) for key in ids), f" ({other}){several}")


def _labels_of_rows(
    ids: Sequence[str],
    keys: Sequence[str],
    cells: Sequence[str],
    table: Table,
    used: set[str],
    rows: Sequence[int],
    label_names: Sequence[str] | None,
) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """Return subject and label of every id, if a subject has several ids and another column tells them
    apart. That column must hold some of `label_names` (None: unknown).
    """
    if len(set(keys)) < len(keys) or len(set(cells)) * 2 > len(cells):
        return None
    for name in table.columns:
        if name in used:
            continue
        column = table.column(name)
        labels = [column[row].strip() for row in rows]
        if label_names is not None and set(labels).isdisjoint(label_names):
            continue
        if 1 < len(set(labels)) <= MAX_LABELS and len(set(zip(cells, labels, strict=True))) == len(labels):
            of_key = dict(zip(keys, zip(cells, labels, strict=True), strict=True))
            if all(key in of_key for key in ids):
                return tuple(of_key[key][0] for key in ids), tuple(of_key[key][1] for key in ids)
    return None
