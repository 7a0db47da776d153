"""The labelled images of a data folder: from one folder per class, or from a table of ids and labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.competition.folders import DataFolder, absent, check_whole, hide_command, mv_command, plain_name
from pipeline.competition.ids import ImageIndex, Match, column_called, find_ids, short_ids
from pipeline.errors import UserError, raise_all
from pipeline.tables import Table, load_table
from pipeline.wording import MAX_NAMED, capped, counted, listed, natural_key, numbered, quoted

TRAIN_TABLES = ("train", "labels", "label", "trainlabels", "trainlabel", "traininglabels", "training", "trainset", "traindata")
LABEL_NAMES = (
    *("label", "labels", "class", "classes", "target", "targets", "category", "y", "labelname", "classname", "categoryname", "labelid"),
    *("classid", "categoryid", "labelgroup", "classlabel"),
)
LABEL_FLAG = "--set data.label_column=NAME"


@dataclass
class Labelled:
    """Labelled images. `ids`, `images` (paths in the data folder) and `labels` belong together position by position."""

    ids: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    source: str = ""  # in words: `train.csv: image_id, label`
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Found:
    """A table of labels whose ids were looked up."""

    table: Table
    id_column: str
    match: Match


@dataclass(frozen=True)
class _ClassFolders:
    """The folders below `base` that hold images, and the images that lie in `base` itself."""

    base: str  # `train`, or `train/train` when nested
    groups: dict[str, list[str]]
    loose: list[str]


def read_labelled(
    folder: DataFolder, where: Sequence[str], id_column: str | None, label_column: str | None, wanted: Sequence[str] = ()
) -> Labelled:
    """The labelled images of `folder`, looked for in its sub-folders `where`. `wanted`: label columns of the sample submission.

    Raises:
        UserError: there are none, or they contradict themselves, or can be read in two ways.
    """
    index = ImageIndex(folder, folder.images(where))
    tables = [load_table(path) for path in folder.tables_called(TRAIN_TABLES)]
    if (id_column or label_column) and not tables:
        named = "data.id_column" if id_column else "data.label_column"
        raise absent(folder, f"table of labels, though {named} is set", "expected train.csv or labels.csv, or the recipe without that key")
    found = [_Found(table, *find_ids(table, index, _for_table(id_column, table, tables))) for table in tables if table.cells]
    bases = _class_folders(folder)
    classes = bases[0]
    # Numbers in a table that is not about images may be the stems of many images; in class folders that means nothing.
    usable = [entry for entry in found if entry.match.num_unique or (entry.match.num_found and len(classes.groups) < 2)]
    if len(usable) > 1:
        usable = [_with_labels(usable, label_column, wanted)]
    if not usable and len(bases) > 1:
        names = [entry.base for entry in bases]
        raise UserError(f"{folder.root}: {' and '.join(names)} all hold class folders; {hide_command(folder.root, names)}")
    if usable:
        labelled = _from_table(usable[0], index, label_column, wanted, classes)
        if not label_column:
            _check_agreement(usable[0].table, labelled, classes)
    elif len(classes.groups) > 1 and not classes.loose:
        labelled = _from_folders(folder, classes)
    else:
        raise _nothing_usable(folder, classes, tables, found, index)
    unused = [table.path.name for table in tables if not usable or table is not usable[0].table]
    if unused:
        labelled.notes.append(f"{listed(unused)} not used for labels")
    if len(set(labelled.labels)) == 1:
        images = counted(len(labelled.labels), "training image")
        raise UserError(f"{folder.root}: all {images} have the label {labelled.labels[0]!r} ({labelled.source}): two classes are needed")
    return labelled


def has_training_data(folder: DataFolder) -> bool:
    """True when there is anything that looks like training data."""
    return bool(folder.named("train") or folder.tables_called(TRAIN_TABLES))


def _for_table(id_column: str | None, table: Table, tables: Sequence[Table]) -> str | None:
    """`id_column` where it applies: in the tables that have it, or in all (to be refused there) when none has."""
    holders = [other for other in tables if id_column in other.columns]
    return id_column if not holders or table in holders else None


def _nothing_usable(
    folder: DataFolder, classes: _ClassFolders, tables: Sequence[Table], found: Sequence[_Found], index: ImageIndex
) -> UserError:
    groups, loose = classes.groups, classes.loose
    if found and index.images:
        table, name = found[0].table, found[0].id_column
        what = f"image for any of the {counted(len(table.cells), 'id')} in {table.path.name}, column {name!r}"
        look_like = f"ids look like {quoted(table.column(name)[:3])}, images like {quoted(index.images[:3])}"
        return absent(folder, what, f"{look_like}; --set data.id_column=NAME names another column")
    if len(groups) > 1:
        base, beside = folder.root / classes.base, counted(len(loose), "image")
        return UserError(
            f"{base} holds {beside} beside its {len(groups)} class folders: {listed(loose)}; move them into the folder of their class"
        )
    empty = [table.path.name for table in tables if not table.cells]
    what = f"training images ({listed(empty)} has a header and no rows)" if empty else "training images with labels"
    return absent(
        folder, what, "expected train/<class>/*.jpg (two classes or more), or train.csv or labels.csv (id, label) with a folder of images"
    )


# ---- one folder per class ----


def _class_folders(folder: DataFolder) -> list[_ClassFolders]:
    """Every training folder that holds class folders; if none does, the first training folder, or an empty one."""
    found = [_grouped(name, folder.scans[name].images) for name in folder.named("train")]
    return [entry for entry in found if len(entry.groups) > 1] or found[:1] or [_ClassFolders("train", {}, [])]


def _grouped(base: str, images: Sequence[str]) -> _ClassFolders:
    while True:
        groups: dict[str, list[str]] = {}
        loose = []
        for image in images:
            head, slash, _ = image[len(base) + 1 :].partition("/")
            if slash:
                groups.setdefault(head, []).append(image)
            else:
                loose.append(image)
        # A single folder that holds only folders is a wrapping (train/train/...), not a class.
        if loose or len(groups) != 1 or any(image.count("/") < base.count("/") + 3 for image in images):
            return _ClassFolders(base, dict(sorted(groups.items(), key=lambda group: natural_key(group[0]))), loose)
        base = f"{base}/{next(iter(groups))}"


def _from_folders(folder: DataFolder, classes: _ClassFolders) -> Labelled:
    base = classes.base
    top = base.split("/")[0]
    check_whole(folder, [top])
    images = [image for group in classes.groups.values() for image in group]
    ids, _ = short_ids([top + image[len(base) :] for image in images])
    labels = [name for name, group in classes.groups.items() for _ in group]
    without = [path for path in folder.scans[top].without_images if path.rsplit("/", 1)[0] == base]
    notes = [f"no images in {listed(without)}: not a class"] if without else []
    return Labelled(ids, images, labels, f"one folder per class in {base}/", notes)


# ---- a table ----


def _with_labels(usable: Sequence[_Found], label_column: str | None, wanted: Sequence[str]) -> _Found:
    """The one of several tables that has a label column."""
    names = {plain_name(label_column)} if label_column else {*LABEL_NAMES, *map(plain_name, wanted)}
    chosen = [entry for entry in usable if any(plain_name(name) in names for name in entry.table.columns if name != entry.id_column)]
    if len(chosen) == 1:
        return chosen[0]
    files = [entry.table.path.name for entry in chosen or usable]
    root = usable[0].table.path.parent
    raise UserError(f"{root}: {' and '.join(files)} may all hold the labels; {hide_command(root, files)}")


def _from_table(found: _Found, index: ImageIndex, label_column: str | None, wanted: Sequence[str], classes: _ClassFolders) -> Labelled:
    """The rows of a table that have an image and a label; repeated rows once.

    Raises:
        UserError: every row problem at once: no image, two images, no label, one image with two labels.
    """
    table, ids = found.table, found.table.column(found.id_column)
    label_name, labels = _labels(found, index, label_column, wanted, classes)
    problems = found.match.problems(ids, table.lines, index, "add the images, or take these rows out") + _label_problems(
        table, label_name, labels
    )
    rows: dict[str, int] = {}
    repeated = 0
    conflicts: dict[str, list[int]] = {}
    for row, images in enumerate(found.match.images):
        if len(images) != 1:
            continue
        first = rows.setdefault(images[0], row)
        if first != row and labels[first].strip() == labels[row].strip():
            repeated += 1
        elif first != row:
            conflicts.setdefault(images[0], [first]).append(row)
    twice = []
    for image, which in conflicts.items():
        where, values = numbered(table.lines[row] for row in which), quoted(labels[row] for row in which)
        twice.append(f"{where}: {ids[which[0]]!r} ({image}) has different labels: {values}")
    problems += capped(twice, "images have different labels")
    raise_all(problems, f"{table.path} ({found.id_column}, {label_name}):")
    labelled = Labelled(
        [ids[row].strip() for row in rows.values()], list(rows), [labels[row].strip() for row in rows.values()],
        f"{table.path.name}: {found.id_column}, {label_name}", [f"ids are {found.match.style.says}"],
    )  # fmt: skip
    spaced = sum(label != label.strip() for label in labels)
    if spaced:
        labelled.notes.append(f"spaces around {counted(spaced, 'label')} removed")
    if repeated:
        labelled.notes.append(f"{counted(repeated, 'repeated row')} with the same label counted once")
    return labelled


def _label_problems(table: Table, name: str, labels: Sequence[str]) -> list[str]:
    empty = [line for line, label in zip(table.lines, labels, strict=True) if not label.strip()]
    return [f"{numbered(empty)}: no label in column {name!r} (fill it in, or take the row out)"] if empty else []


def _labels(found: _Found, index: ImageIndex, given: str | None, wanted: Sequence[str], classes: _ClassFolders) -> tuple[str, list[str]]:
    """The label column's name and cells: the one given, or that of the sample submission, or the only one that can be meant."""
    table = found.table
    if given:
        name = column_called(table, given, LABEL_FLAG)
        return name, table.column(name)
    others = [name for name in table.columns if name != found.id_column]
    if len(wanted) > 1 and set(wanted) <= set(others):
        return f"one column for each of {len(wanted)} classes", one_hot(table, wanted)
    named = [name for name in others if name in wanted] or [name for name in others if plain_name(name) in LABEL_NAMES]
    candidates = named or _not_ids(found, index, others)
    if len(candidates) == 1:
        return candidates[0], table.column(candidates[0])
    what = "it has no label column" if not candidates else "the label may be in "
    what += ", ".join(f"{name!r} ({counted(len(set(table.column(name))), 'value')})" for name in candidates)
    folders = f"; to take the folders in {classes.base}/ as classes: {mv_command(table.path)}" if len(classes.groups) > 1 else ""
    raise UserError(f"{table.path}: {what}; its columns: {quoted(table.columns)}; {LABEL_FLAG} says which{folders}")


def _not_ids(found: _Found, index: ImageIndex, names: Sequence[str]) -> list[str]:
    """Columns that may hold labels: they do not name the same images as the ids do, and where possible some value occurs twice."""
    table = found.table
    candidates = [name for name in names if index.match(table.column(name)[:50]).images != found.match.images[:50]]
    return [name for name in candidates if len(set(table.column(name))) < len(table.cells)] or candidates


def one_hot(table: Table, class_names: Sequence[str]) -> list[str]:
    """Labels from columns of 0 and 1, one column for each class; in the order of the table's rows.

    Raises:
        UserError: a row has another number of ones than one, or other values; all such rows are named.
    """
    positions = [table.columns.index(name) for name in class_names]
    labels, bad = [], []
    for line, cells in zip(table.lines, table.cells, strict=True):
        values = [cells[position].strip() for position in positions]
        ones = [name for name, value in zip(class_names, values, strict=True) if value in ("1", "1.0")]
        if len(ones) != 1 or any(value not in ("0", "0.0", "1", "1.0") for value in values):
            bad.append(line)
        labels.append(ones[0] if ones else "")
    if bad:
        raise UserError(
            f"{table.path}, {numbered(bad)}: one class column must hold 1 and the others 0 (several labels an image are not supported)"
        )
    return labels


def _check_agreement(table: Table, labelled: Labelled, classes: _ClassFolders) -> None:
    """Raise when class folders and table give an image different labels; folders that share no name with the labels are no classes."""
    if not set(labelled.labels) & set(classes.groups):
        return
    class_of = {image: name for name, group in classes.groups.items() for image in group}
    differing = [
        f"{image} is {label!r} in {table.path.name}"
        for image, label in zip(labelled.images, labelled.labels, strict=True)
        if class_of.get(image, label) != label
    ]
    if differing:
        settle = f"the table is taken with {LABEL_FLAG}, the folders after: {mv_command(table.path)}"
        heading = f"class folders and {table.path.name} disagree on {counted(len(differing), 'image')} ({settle}):"
        raise_all(differing[:MAX_NAMED], f"{table.path.parent}: {heading}")
    labelled.notes.append(f"class folders in {classes.base}/ agree")
