"""Read the labelled images of a data folder: from class folders, a table, JSON or file names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from shlex import quote

from pipeline.competition.class_folders import (
    ClassFolders,
    class_folders,
    classes_in_names,
    from_folders,
    from_names,
)
from pipeline.competition.folders import (
    TEXT_SUFFIXES,
    DataFolder,
    absent,
    hide_command,
    mv_command,
    plain_name,
    suffix_of,
)
from pipeline.competition.id_styles import FOLDERS, LINKED, SEVERAL_EACH
from pipeline.competition.ids import ImageIndex, link_advice
from pipeline.competition.label_candidates import (
    COVERS,
    Candidate,
    LookedUp,
    about_images,
    best_of,
    find_candidates,
    id_column_for,
    labels_of_folders,
    look_up,
)
from pipeline.competition.label_columns import (
    FIRST,
    LABEL_FLAG,
    LABEL_NAMES,
    Choice,
    Wanted,
    choose_labels,
    unclear,
)
from pipeline.competition.label_table import Found, Labelled, read_table, without_asked_rows
from pipeline.competition.long_tables import labels_together, lists_read
from pipeline.competition.sources import Source, Sources
from pipeline.competition.spelling import called_as_asked, spelled_as, without_affixes
from pipeline.errors import UserError, raise_all
from pipeline.wording import MAX_NAMED, counted, listed, quoted


def read_labelled(
    folder: DataFolder,
    sources: Sources,
    wanted: Wanted,
    id_column: str | None,
    label_column: str | None,
    sample_name: str = "",
    skip_bad: bool = False,
    partial: bool = False,
) -> Labelled:
    """Read the labelled images of `folder`. `wanted`: the labels that the sample submission (table
    `sample_name`) asks for.

    `skip_bad`: rows without image or label are left out instead of refused. `partial`: rows with some of
    several numbers are used.

    Raises:
        UserError: there are no labelled images, or they are contradictory or ambiguous.
    """
    index = ImageIndex(folder, folder.of_part("train", "val", ""))
    tables = [source for source in sources.of_role("train", "") if source.name != sample_name]
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
    asked = wanted.columns if len(wanted.columns) > 1 else wanted.values
    bases = class_folders(folder, asked)
    classes = bases[0]
    looked_up, unclear_tables = _look_up_all(tables, index, wanted, id_column)
    best = best_of(find_candidates(looked_up, index, wanted, id_column, label_column, classes))
    if best is None and len(bases) > 1:
        names = [entry.base for entry in bases]
        raise UserError(
            f"{folder.root}: {' and '.join(names)} all hold class folders; {hide_command(folder.root, names)}"
        )
    if best is not None and _table_is_meant(folder, best, classes, wanted, label_column):
        labelled = _from_table(folder, best, index, wanted, classes, label_column, skip_bad, partial)
    else:
        best = None
        labelled = _without_table(folder, sources, tables, classes, looked_up, unclear_tables, index, wanted)
    linked = best is not None and best.found.match.style is LINKED  # through one of the other tables
    unused = [
        source.name
        for source in tables
        if best is None or (source is not best.found.source and (source.role == "train" or not linked))
    ]
    if unused:
        labelled.notes.append(f"{listed(unused)} not used for labels")
    if labelled.evidence:
        labelled.evidence, written = spelled_as(labelled.evidence, asked)
        labelled.evidence, called = called_as_asked(labelled.evidence, wanted.columns)
        if best is not None and classes.plausible and not label_column:
            _call_as_folders(labelled, classes, asked)
        labelled.evidence, shortened = without_affixes(labelled.evidence, asked)
        labelled.notes += filter(None, (written, called, shortened))
    _refuse_one_class(folder, labelled)
    return labelled


def _look_up_all(
    tables: Sequence[Source], index: ImageIndex, wanted: Wanted, id_column: str | None
) -> tuple[list[LookedUp], list[UserError]]:
    """Return the tables whose rows were looked up among the images, and why others cannot be.

    Raises:
        UserError: a training table cannot be.
    """
    looked_up, unclear_tables = [], []
    for source in tables:
        try:
            if source.table.cells:
                column = id_column_for(id_column, source, tables)
                looked_up.append(look_up(source, index, wanted, column, tables))
        except UserError as error:
            if source.role == "train":
                raise
            unclear_tables.append(error)  # reported only if nothing else holds the labels
    return looked_up, unclear_tables


def _without_table(
    folder: DataFolder,
    sources: Sources,
    tables: Sequence[Source],
    classes: ClassFolders,
    looked_up: Sequence[LookedUp],
    unclear_tables: Sequence[UserError],
    index: ImageIndex,
    wanted: Wanted,
) -> Labelled:
    """Read the labels from class folders, else from the names of the images.

    Raises:
        UserError: a table may hold the labels after all, or nothing does.
    """
    if classes.plausible:
        _refuse_weaker_folders(classes, looked_up, index, wanted)
        _refuse_unlinked_labels(classes, looked_up, index, wanted)
        if of_folders := labels_of_folders(looked_up, index, wanted):
            found, choice = of_folders
            advice = _columns_advice(found, wanted) + _folders_advice(classes, found)
            raise unclear(found.table, choice, advice)
        held = [image for group in classes.held.values() for image in group]
        if not folder.of_part("test") and ImageIndex(folder, held).match(wanted.ids).num_found:
            classes = replace(classes, held={})  # the images to predict
        return from_folders(folder, classes)
    named = [source for source in tables if source.role == "train"]
    if in_names := {} if named and index.images and looked_up else classes_in_names(index.images):
        return from_names(folder, in_names)
    if hidden := [entry for entry in looked_up if entry.trouble and not entry.found.match.num_found]:
        raise hidden[0].trouble
    if unclear_tables:
        raise unclear_tables[0]
    raise _nothing_usable(folder, classes, named, looked_up, index, sources)


def _call_as_folders(labelled: Labelled, classes: ClassFolders, asked: Iterable[str]) -> None:
    """Call the labels of a table as the class folders of their images, where the sample asks for these names
    and each label has one folder of its own (0 is cat).
    """
    evidence, wanted = labelled.evidence, set(asked)
    if (
        evidence is None
        or not evidence.texts
        or wanted & set(evidence.texts)
        or not wanted & set(classes.groups)
    ):
        return
    folder_of = {image: name for name, group in classes.groups.items() for image in group}
    pairs = {
        (text, folder_of.get(image, ""))
        for text, images in zip(evidence.texts, labelled.images, strict=True)
        for image in images
    }
    called = dict(pairs)
    if "" in called.values() or not len(pairs) == len(called) == len(set(called.values())):
        return
    first = min(called)
    labelled.evidence = replace(evidence, texts=tuple(called[text] for text in evidence.texts))
    labelled.notes.append(
        f"labels are called as the folders in {classes.where}: {first!r} is {called[first]!r}"
    )


def has_training_data(folder: DataFolder, sources: Sources) -> bool:
    """Return True if the folder holds anything that looks like training data."""
    return bool(folder.parts.named("train") or sources.of_role("train") or folder.of_part(""))


def _refuse_weaker_folders(
    classes: ClassFolders, looked_up: Sequence[LookedUp], index: ImageIndex, wanted: Wanted
) -> None:
    """Raise if the class folders are not in a training folder and a table about their images may hold the
    labels.
    """
    if classes.base or classes.bases or set(wanted.columns) >= set(classes.groups):
        return
    for entry in about_images(looked_up, index):
        choice = choose_labels(entry.table, entry.id_column, entry.match, index, wanted, None)
        if choice.candidates or choice.names:
            advice = _folders_advice(classes, entry)
            raise unclear(entry.table, Choice((), 0, choice.candidates or choice.names), advice)


def _columns_advice(found: Found, wanted: Wanted) -> str:
    """Return the end of an error where nothing says that several columns are the labels: how to say it."""
    if wanted.columns:
        return ""
    return (
        f" (one); if there are several, add sample_submission.csv with a header ({found.id_column} and the "
        "columns of labels) and a row of the id and numbers such as 0.5"
    )


def _folders_advice(classes: ClassFolders, found: Found) -> str:
    """Return the end of an error: the command that takes the class folders and not this table."""
    return f"; to take the folders in {classes.where} as classes: {mv_command(found.source.table.path)}"


def _refuse_unlinked_labels(
    classes: ClassFolders, looked_up: Sequence[LookedUp], index: ImageIndex, wanted: Wanted
) -> None:
    """Raise if a training table has labels other than the folders' names, and only its ids lead to no image,
    or each to several: the folders are then cameras or sites, not classes.

    Its labels are in the column that the sample asks for; without a sample in one that is called so.
    """
    for found in (entry.found for entry in looked_up if entry.found.source.role == "train"):
        table, ids = found.table, found.table.column(found.id_column)
        asked = [plain_name(name) for name in wanted.columns] if len(wanted.columns) == 1 else []
        called = asked or (() if wanted.columns else LABEL_NAMES)
        same = [name for name in table.columns if name != found.id_column and plain_name(name) in called]
        labels = {cell.strip() for name in same for cell in table.column(name)}
        about_classes = not asked and (len(ids) <= len(classes.groups) or set(ids) & set(classes.groups))
        single = found.match.num_found if found.match.style in SEVERAL_EACH else found.match.num_single
        if labels and not single and not labels & set(classes.groups) and not about_classes:
            why = ", which the sample submission asks for," if asked else ""
            leads = "no id leads to an image"
            if several := [images for images in found.match.images if images]:
                leads = f"each id is the name of several images, such as {listed(several[0])}"
            raise UserError(
                f"{table.path}: its column {same[0]!r}{why} holds {quoted(sorted(labels)[:3])}, but "
                f"{leads}: ids look like {quoted(ids[:3])} "
                f"(column {found.id_column!r}; --set data.id_column=NAME names another one), images like "
                f"{quoted(index.images[:3])}; {link_advice(found.id_column)}. The "
                f"folders in {classes.where} have other names ({quoted(list(classes.groups)[:3])}); if they "
                f"are the classes: {mv_command(table.path)}"
            )


def _refuse_one_class(folder: DataFolder, labelled: Labelled) -> None:
    evidence = labelled.evidence
    if evidence and evidence.texts and len(set(evidence.texts)) == 1:
        images = counted(len(labelled.ids), "training image")
        raise UserError(
            f"{folder.root}: all {images} have the label {evidence.texts[0]!r} ({labelled.source}): at least "
            "two classes are needed"
        )


def _table_is_meant(
    folder: DataFolder, best: Candidate, classes: ClassFolders, wanted: Wanted, label_column: str | None
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
    folder: DataFolder,
    best: Candidate,
    index: ImageIndex,
    wanted: Wanted,
    classes: ClassFolders,
    label_column: str | None,
    skip_bad: bool,
    partial: bool,
) -> Labelled:
    if best.trouble:
        raise best.trouble
    if not best.choice.names:
        table = best.found.table
        raise unclear(table, best.choice, _folders_advice(classes, best.found) if classes.plausible else "")
    found = (
        best.found
        if len(best.choice.names) > 1 or best.parts
        else labels_together(best.found, best.choice.names[0], wanted)
    )
    parts, notes = best.parts, best.notes
    if len(best.choice.names) == 1:
        found = lists_read(found, best.choice.names[0], wanted)
        all_asked, own_folder = len(wanted.ids) < FIRST, bool(folder.parts.named("test"))
        found, parts, more = without_asked_rows(
            found, best.choice.names[0], parts, wanted.ids, all_asked, own_folder
        )
        notes = [*notes, *more]
    labelled = read_table(found, best.choice.names, index, parts, wanted.may_be_empty, skip_bad, partial)
    if best.choice.called and labelled.evidence:
        labelled.evidence = replace(labelled.evidence, columns=best.choice.called)
        labelled.notes.append(
            f"{listed(best.choice.names)} are what the sample calls {listed(best.choice.called)}"
        )
    labelled.notes += notes
    if not label_column:
        _check_agreement(best.found, labelled, classes)
    return labelled


def _check_agreement(found: Found, labelled: Labelled, classes: ClassFolders) -> None:
    """Raise if class folders and table give an image different labels.

    Folders without any label name are no classes, nor are those that are called as the ids of the table.
    """
    texts = labelled.evidence.texts if labelled.evidence else ()
    ids = {cell.strip() for cell in found.table.column(found.id_column)}
    of_ids = found.match.style is FOLDERS and len(ids & set(classes.groups)) * 2 > len(classes.groups)
    if not classes.plausible or of_ids:
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
        column = labelled.evidence.column if labelled.evidence else ""
        flag = LABEL_FLAG.replace("NAME", quote(column)) if column else LABEL_FLAG
        settle = f"to take the table: {flag}; to take the folders: {mv_command(found.source.table.path)}"
        heading = f"class folders and {found.name} disagree on {counted(len(differing), 'image')} ({settle}):"
        raise_all(differing[:MAX_NAMED], f"{found.source.table.path.parent}: {heading}")
    labelled.notes.append(f"class folders in {classes.where} agree")


def _nothing_usable(
    folder: DataFolder,
    classes: ClassFolders,
    tables: Sequence[Source],
    looked_up: Sequence[LookedUp],
    index: ImageIndex,
    sources: Sources,
) -> UserError:
    groups, loose = classes.groups, classes.loose
    about = [entry.found for entry in looked_up if entry.found.source.role == "train"]
    if not about:  # a table that could have a row for each image
        rows = [entry.found for entry in looked_up if len(entry.found.table.cells) * 2 > len(index.images)]
        about = [found for found in rows if not found.match.num_found and not found.source.is_json]
    if about and index.images and not classes.trouble:
        table, name = about[0].table, about[0].id_column
        what = f"image for any of the {counted(len(table.cells), 'id')} in {about[0].name}, column {name!r}"
        look_like = f"ids look like {quoted(table.column(name)[:3])}, images like {quoted(index.images[:3])}"
        advice = f"add a column image to {about[0].name}: the path of each row's image in the data folder"
        if len(set(table.column(name))) == len(table.cells):
            advice = link_advice(name)
        return absent(folder, what, f"{look_like}; --set data.id_column=NAME names another column; {advice}")
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
    for found in about_images(looked_up, index, COVERS):
        trouble += (
            f"; {found.name} is about these images, but no column has the name of a label (choose one "
            f"with {LABEL_FLAG}): "
        )
        trouble += quoted(name for name in found.table.columns if name != found.id_column)
    for source in sources.found if not index.images else ():
        for name in source.table.columns:
            if (cells := source.table.column(name)) and re.match(r"https?://", cells[0].strip()):
                trouble += (
                    f"; the images of {source.name} are not here, only their addresses (column {name!r}, "
                    f"such as {cells[0].strip()!r}): download each into a folder under the "
                    "name that ends its address"
                )
    unread = [name for name in sources.seen if suffix_of(name) in (".json", *TEXT_SUFFIXES)]
    if unread:
        trouble += (
            f"; {listed(unread)} hold no table that is understood: if the labels are in there, write them "
            "into train.csv with the columns image,label"
        )
    return absent(
        folder,
        what,
        "expected train/<class>/*.jpg (two classes or more), or train.csv or labels.csv (id, label) with a "
        f"folder of images{trouble}",
    )
