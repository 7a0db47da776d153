"""Read the labelled images of a data folder: from class folders, a table, JSON or file names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.competition.class_folders import (
    ClassFolders,
    class_folders,
    classes_in_names,
    from_folders,
    from_names,
)
from pipeline.competition.folders import DataFolder, absent, hide_command, mv_command, plain_name
from pipeline.competition.id_columns import find_ids
from pipeline.competition.ids import FOLDERS, LINKED, SEVERAL_EACH, ImageIndex, Match, file_name, settled
from pipeline.competition.label_columns import (
    LABEL_FLAG,
    LIKELY,
    SURE,
    Choice,
    Wanted,
    choose_labels,
    unclear,
)
from pipeline.competition.label_table import Found, Labelled, called_as_asked, read_table, without_test_rows
from pipeline.competition.long_tables import labels_together, made_wide, one_row_each
from pipeline.competition.sources import TRAIN_TABLES, Source, Sources, headerless
from pipeline.competition.subjects import linked_images
from pipeline.errors import UserError, raise_all
from pipeline.wording import MAX_NAMED, counted, listed, quoted

COVERS = 0.25  # share of the training images that a table must name if its own name has no role


@dataclass(frozen=True)
class _Candidate:
    """A table that may hold the labels."""

    found: Found
    choice: Choice
    parts: list[str]
    notes: list[str]
    trouble: UserError | None  # why its training and test rows cannot be separated

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


def read_labelled(
    folder: DataFolder,
    sources: Sources,
    wanted: Wanted,
    id_column: str | None,
    label_column: str | None,
    sample_name: str = "",
    skip_bad: bool = False,
) -> Labelled:
    """Read the labelled images of `folder`. `wanted`: the labels that the sample submission (table
    `sample_name`) asks for.

    `skip_bad`: rows without image or label are left out instead of refused.

    Raises:
        UserError: there are no labelled images, or they are contradictory or ambiguous.
    """
    index = ImageIndex(folder, folder.of_part("train", "val", ""))
    tables = [source for source in sources.of_role("train", "") if source.name != sample_name]
    named = [source for source in tables if source.role == "train"]
    broken = [error for name, error in sources.broken.items() if Source(name, None).role == "train"]  # type: ignore[arg-type]
    if broken:
        raise broken[0]
    if (id_column or label_column) and not tables:
        key = "data.id_column" if id_column else "data.label_column"
        raise absent(
            folder,
            f"table of labels, though {key} is set",
            "expected train.csv or labels.csv, or the recipe without that key",
        )
    bases = class_folders(folder)
    classes = bases[0]
    links = [source for source in sources.of_role("train", "") if source.name != sample_name]
    looked_up, unclear_tables = [], []
    for source in tables:
        try:
            if source.table.cells:
                looked_up.append(
                    _looked_up(source, index, wanted, _for_table(id_column, source, tables), links)
                )
        except UserError as error:
            if source.role == "train":
                raise
            unclear_tables.append(error)  # reported only if nothing else holds the labels
    candidates = _candidates(looked_up, index, wanted, label_column, classes)
    best = _best(candidates, label_column)
    if best is None and len(bases) > 1:
        names = [entry.base for entry in bases]
        raise UserError(
            f"{folder.root}: {' and '.join(names)} all hold class folders; {hide_command(folder.root, names)}"
        )
    if best is not None and _table_is_meant(folder, best, classes, wanted, label_column):
        labelled = _from_table(best, index, wanted, classes, label_column, skip_bad)
    elif classes.plausible:
        _refuse_weaker_folders(classes, looked_up, index, wanted)
        labelled, best = from_folders(folder, classes), None
    elif in_names := {} if named and index.images and looked_up else classes_in_names(index.images):
        labelled, best = from_names(folder, in_names), None
    elif unclear_tables:
        raise unclear_tables[0]
    else:
        raise _nothing_usable(folder, classes, named, looked_up, index)
    linked = best is not None and best.found.match.style is LINKED  # through one of the other tables
    unused = [
        source.name
        for source in tables
        if best is None or (source is not best.found.source and (source.role == "train" or not linked))
    ]
    if unused:
        labelled.notes.append(f"{listed(unused)} not used for labels")
    if labelled.evidence:
        labelled.evidence, note = called_as_asked(labelled.evidence, wanted.columns)
        labelled.notes += [note] if note else []
    _refuse_one_class(folder, labelled)
    return labelled


def has_training_data(folder: DataFolder, sources: Sources) -> bool:
    """Return True if the folder holds anything that looks like training data."""
    return bool(folder.parts.named("train") or sources.of_role("train") or folder.of_part(""))


def _refuse_weaker_folders(
    classes: ClassFolders, looked_up: Sequence[_LookedUp], index: ImageIndex, wanted: Wanted
) -> None:
    """Raise if the class folders are not in a training folder and a table about their images may hold the
    labels.
    """
    if classes.base or set(wanted.columns) >= set(classes.groups):
        return
    for entry in _about_images(looked_up, index):
        choice = choose_labels(entry.table, entry.id_column, entry.match, index, wanted, None)
        if choice.candidates or choice.names:
            advice = (
                f"; to take the folders in {classes.where} as classes: {mv_command(entry.source.table.path)}"
            )
            raise unclear(entry.table, Choice((), 0, choice.candidates or choice.names), advice)


def _about_images(looked_up: Sequence[_LookedUp], index: ImageIndex) -> list[Found]:
    """Return the tables whose ids name most training images."""
    return [entry.found for entry in looked_up if entry.found.match.num_unique * 2 > len(index.images)]


def _refuse_one_class(folder: DataFolder, labelled: Labelled) -> None:
    evidence = labelled.evidence
    if evidence and evidence.texts and len(set(evidence.texts)) == 1:
        images = counted(len(labelled.ids), "training image")
        raise UserError(
            f"{folder.root}: all {images} have the label {evidence.texts[0]!r} ({labelled.source}): at least "
            "two classes are needed"
        )


def _for_table(id_column: str | None, source: Source, tables: Sequence[Source]) -> str | None:
    """Return `id_column` for tables that have it; if none has it, for training tables, which then refuse
    it.
    """
    holders = [other for other in tables if id_column in other.table.columns]
    return id_column if source in holders or (not holders and source.role == "train") else None


# ---- tables ----


@dataclass(frozen=True)
class _LookedUp:
    """A table with matched ids, without the rows marked as test."""

    found: Found
    parts: list[str]
    notes: list[str]
    trouble: UserError | None


def _looked_up(
    source: Source, index: ImageIndex, wanted: Wanted, id_column: str | None, links: Sequence[Source]
) -> _LookedUp:
    """Match the ids of a table to images. `links`: other tables that may link its ids to images."""
    trouble = None
    try:
        table, parts, notes = without_test_rows(source.table)
    except UserError as error:  # reported only if the labels are taken from this table
        table, parts, notes, trouble = source.table, [], [], error
    if (
        source.is_json
        and not id_column
        and "file_name" in table.columns
        and index.match(table.column("file_name")).num_found
    ):
        id_column = "file_name"  # COCO: `id` is a separate number and may equal another image's name
    name, match = find_ids(table, index, id_column, groups=True, labels=wanted.columns)
    if match.num_found and index.match([name]).num_found and not parts:
        table = headerless(table)
        name, match = find_ids(table, index, None, groups=True)
    if not match.num_found and (wide := made_wide(table, index)):
        table, name = wide, wide.columns[0]
        match = find_ids(table, index, name, groups=True)[1]
    if wide := one_row_each(table, name, match, wanted):
        table, match, parts = wide, find_ids(wide, index, name, groups=True)[1], []
    if source.role == "train" and match.num_found * 2 < len(match.images):
        images = linked_images(table.column(name), index, [link for link in links if link is not source])
        match = Match(LINKED, images) if images else match
    match, note = settled(match, index.part_of)
    return _LookedUp(Found(source, table, name, match), parts, [*notes, *([note] if note else [])], trouble)


def _candidates(
    looked_up: Sequence[_LookedUp],
    index: ImageIndex,
    wanted: Wanted,
    label_column: str | None,
    classes: ClassFolders,
) -> list[_Candidate]:
    """Return the tables about training images that have, or may have, label columns."""
    candidates = []
    holders = [entry for entry in looked_up if label_column in entry.found.table.columns]
    for entry in looked_up:
        found = entry.found
        trained = found.source.role == "train"
        several = found.match.style in SEVERAL_EACH
        # Numbers in an unrelated table may equal the stems of many images in class folders by chance.
        if not found.match.num_found or not (several or found.match.num_unique or len(classes.groups) < 2):
            continue
        reached = {image for images in found.match.images for image in images}
        covers = len(reached) >= COVERS * len(index.images)
        if not trained and not covers:
            continue
        given = label_column if entry in holders or (not holders and trained) else None
        choice = choose_labels(found.table, found.id_column, found.match, index, wanted, given)
        if classes.plausible and found.match.style is FOLDERS and not _tells_folders_apart(found, choice):
            continue
        # A table without the role "train" counts only with a clear label column, or if there is nothing else.
        if not trained and choice.strength < LIKELY and (classes.plausible or not choice.strength):
            continue
        candidates.append(_Candidate(found, choice, entry.parts, entry.notes, entry.trouble))
    return candidates


def _tells_folders_apart(found: Found, choice: Choice) -> bool:
    """Return False for a table about the class folders themselves (`labels.csv`: number, name), not about
    their images.
    """
    if choice.strength >= SURE:
        return True
    values = found.table.column(choice.names[0]) if len(choice.names) == 1 else []
    return (
        "train" in found.name.lower() and len(choice.names) > 0 and len(set(values)) != len(found.table.cells)
    )


def _best(candidates: Sequence[_Candidate], label_column: str | None) -> _Candidate | None:
    """Return the candidate with the best rank; None without candidates. Raises UserError on a tie."""
    if not candidates:
        return None
    top = max(entry.rank for entry in candidates)
    best = [entry for entry in candidates if entry.rank == top]
    if len(best) > 1:
        most = max(entry.found.match.num_found for entry in best)
        best = [entry for entry in best if entry.found.match.num_found * 2 > most]
    if len(best) > 1:
        files = [entry.found.name for entry in best]
        root = _root(best[0].found)
        raise UserError(f"{root}: {' and '.join(files)} may all hold the labels; {hide_command(root, files)}")
    return best[0]


def _root(found: Found):
    return found.source.table.path.parents[found.name.count("/")]


def _table_is_meant(
    folder: DataFolder, best: _Candidate, classes: ClassFolders, wanted: Wanted, label_column: str | None
) -> bool:
    """Return True if the table holds the labels, False if the class folders (about other images) do.

    Raises:
        UserError: both are equally likely.
    """
    if not classes.plausible or label_column:
        return True
    in_folders = {image for group in classes.groups.values() for image in group}
    if any(image in in_folders for images in best.found.match.images for image in images):
        return True
    names = (
        set(best.found.table.column(best.choice.names[0]))
        if len(best.choice.names) == 1
        else set(best.choice.names)
    )
    asked = set(wanted.columns) if len(wanted.columns) > 1 else set(wanted.values)
    by_table, by_folders = len(asked & names), len(asked & set(classes.groups))
    if by_table != by_folders:
        return by_table > by_folders
    raise UserError(
        f"{folder.root}: {best.found.name} holds labels of other images than the class folders in "
        f"{classes.where} ({quoted(list(classes.groups)[:3])}), and either may be meant; to take the "
        f"folders: {mv_command(best.found.source.table.path)}; to take the table: {LABEL_FLAG}"
    )


def _from_table(
    best: _Candidate,
    index: ImageIndex,
    wanted: Wanted,
    classes: ClassFolders,
    label_column: str | None,
    skip_bad: bool,
) -> Labelled:
    if best.trouble:
        raise best.trouble
    if not best.choice.names:
        table = best.found.table
        advice = (
            f"; to take the folders in {classes.where} as classes: {mv_command(table.path)}"
            if classes.plausible
            else ""
        )
        raise unclear(table, best.choice, advice)
    found = (
        best.found
        if len(best.choice.names) > 1 or best.parts
        else labels_together(best.found, best.choice.names[0], wanted)
    )
    labelled = read_table(found, best.choice.names, index, best.parts, wanted.may_be_empty, skip_bad)
    if best.choice.called and labelled.evidence:
        labelled.evidence = replace(labelled.evidence, columns=best.choice.called)
        labelled.notes.append(
            f"{listed(best.choice.names)} are what the sample calls {listed(best.choice.called)}"
        )
    labelled.notes += best.notes
    if not label_column:
        _check_agreement(best.found, labelled, classes)
    return labelled


def _check_agreement(found: Found, labelled: Labelled, classes: ClassFolders) -> None:
    """Raise if class folders and table give an image different labels.

    Folders without any label name are no classes.
    """
    texts = labelled.evidence.texts if labelled.evidence else ()
    if not classes.plausible:
        return
    class_of = {image: name for name, group in classes.groups.items() for image in group}
    if not texts or not set(texts) & set(classes.groups):
        if class_of.keys() - labelled.taken == class_of.keys():
            labelled.notes.append(f"the folders in {classes.where} hold other images and are not used")
        return
    differing = [
        f"{image} is {label!r} in {found.name}"
        for images, label in zip(labelled.images, texts, strict=True)
        for image in images
        if class_of.get(image, label) != label
    ]
    if differing:
        settle = (
            f"to take the table, set {LABEL_FLAG}; to take the folders: {mv_command(found.source.table.path)}"
        )
        heading = f"class folders and {found.name} disagree on {counted(len(differing), 'image')} ({settle}):"
        raise_all(differing[:MAX_NAMED], f"{found.source.table.path.parent}: {heading}")
    labelled.notes.append(f"class folders in {classes.where} agree")


def _nothing_usable(
    folder: DataFolder,
    classes: ClassFolders,
    tables: Sequence[Source],
    looked_up: Sequence[_LookedUp],
    index: ImageIndex,
) -> UserError:
    groups, loose = classes.groups, classes.loose
    about = [entry.found for entry in looked_up if entry.found.source.role == "train"]
    if about and index.images:
        table, name = about[0].table, about[0].id_column
        what = f"image for any of the {counted(len(table.cells), 'id')} in {about[0].name}, column {name!r}"
        look_like = f"ids look like {quoted(table.column(name)[:3])}, images like {quoted(index.images[:3])}"
        return absent(folder, what, f"{look_like}; --set data.id_column=NAME names another column")
    if len(groups) > 1 and classes.base and loose:
        base, beside = folder.root / classes.base, counted(len(loose), "image")
        return UserError(
            f"{base} holds {beside} beside its {len(groups)} class folders: {listed(loose)}; move them into "
            "the folder of their class"
        )
    empty = [source.name for source in tables if not source.table.cells]
    what = (
        f"training images ({listed(empty)} has a header and no rows)"
        if empty
        else "training images with labels"
    )
    trouble = f"; {classes.trouble}" if classes.trouble else ""
    for found in _about_images(looked_up, index):
        trouble += (
            f"; {found.name} is about these images, but no column has the name of a label (choose one "
            f"with {LABEL_FLAG}): "
        )
        trouble += quoted(name for name in found.table.columns if name != found.id_column)
    return absent(
        folder,
        what,
        "expected train/<class>/*.jpg (two classes or more), or train.csv or labels.csv (id, label) with a "
        f"folder of images{trouble}",
    )
