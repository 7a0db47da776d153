"""Describe for the user how a data folder was read, in a few lines."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pipeline.competition.folders import DataFolder, join_command
from pipeline.competition.id_styles import composed
from pipeline.competition.label_table import Labelled
from pipeline.competition.sources import Sources
from pipeline.competition.test_rows import TestImages
from pipeline.forms.form import SubmissionForm
from pipeline.targets.evidence import Decision
from pipeline.targets.metrics import differs_by_column
from pipeline.targets.target import Target
from pipeline.wording import counted, listed, quoted


def train_notes(
    folder: DataFolder,
    labelled: Labelled,
    test: TestImages,
    target: Target | None,
    decision: Decision | None,
    trouble: str | None,
) -> list[str]:
    """Return up to three lines on the labelled rows: number and source, meaning, and rows left out."""
    if trouble:
        return [f"train: not used, and not needed here: {trouble}"]
    if not labelled.ids:
        return []
    num_images = len(labelled.taken)
    images = counted(num_images, "image")
    if num_images != len(labelled.ids):
        images += f" of {counted(len(labelled.ids), 'id')}"
    if target is None:
        meaning = ""
    else:
        meaning = (
            counted(len(target.names), "class", "classes")
            if target.kind == "multiclass"
            else target.describe()
        )
    lines = [f"train: {images}, {meaning} ({labelled.source})"]
    if decision and decision.says:
        lines.append(decision.says)
    notes = [*labelled.notes, *(decision.notes if decision else ())]
    taken, predicted = labelled.taken, {image for images in test.images for image in images}
    used = {_top(image) for image in taken}
    beside = [image for image in folder.of_part("train", "") if _top(image) in used and image not in taken]
    left = len([image for image in beside if image not in predicted])
    if left:
        notes.append(f"{counted(left, 'image')} without a label, not used")
    if target and target.kind == "multiclass":
        folded = Counter(map(_as_seen, target.names))
        alike = [name for name in target.names if folded[_as_seen(name)] > 1]
        if alike:
            what = "case, the way accents are stored, characters without ink"
            notes.append(f"classes that look alike ({what}): {quoted(alike)}")
    if endings := _endings_of_each(labelled.images):  # the last note, because it ends with a command
        notes.append(
            f"each id has the images {listed([f'..._{name}' for name in endings])}: each is predicted alone, "
            "then their predictions are combined; if they are channels of one image, "
            + _how_to_join(folder.root, endings)
        )
    return lines + (["train: " + "; ".join(notes)] if notes else [])


def _as_seen(name: str) -> str:
    """Return a name without case and characters that cannot be seen; spaces of any kind are one space."""
    seen = re.sub(r"[\u200b-\u200f\u2060\ufeff\xad]", "", composed(name).casefold())
    return " ".join(seen.split())


def _endings_of_each(images: Sequence[Sequence[str]]) -> list[str]:
    """Return the names in which the images of an id differ, such as red and green; [] if ids have other ones.

    Numbers are slices or photographs: [].
    """
    kinds = {tuple(sorted(_ending(image) for image in each)) for each in images if each}
    endings = list(kinds.pop()) if len(kinds) == 1 else []
    return endings if 1 < len(set(endings)) == len(endings) and all(map(str.isalpha, endings)) else []


def _how_to_join(root: Path, endings: Sequence[str]) -> str:
    """Return the end of a sentence: how to make one image of the files with these endings, with the
    command.
    """
    colours = ("red", "green", "blue")
    order = sorted(endings, key=lambda name: ([*colours, name.casefold()].index(name.casefold()), name))
    chosen, left = order[:3], order[3:]
    if not left:
        more = ""
    elif [name.casefold() for name in chosen] == list(colours):
        more = f" (an image has three; {listed(left)} {'is' if len(left) == 1 else 'are'} left out)"
    else:
        more = f" (an image has three: choose which of {', '.join(order)})"
    return f"join them first{more}: {join_command(root, chosen)}"


def _ending(image: str) -> str:
    return re.split(r"[_\-. /]", image.rsplit(".", 1)[0])[-1]


def test_notes(
    test: TestImages,
    labelled: Labelled,
    form: SubmissionForm | None,
    decision: Decision | None,
    more: Sequence[str],
) -> list[str]:
    """Return one or two lines on the images to predict."""
    images = f"{counted(test.num_images, 'image')}" if test.images else ""
    num_ids = len(set(test.ids))
    if images and test.num_images != num_ids:
        images += f" of {counted(num_ids, 'id')}"
    notes = [*test.notes, *more]
    if test.num_images > num_ids > 0 and labelled.images and all(len(one) == 1 for one in labelled.images):
        notes.append(
            "an id has several images, a labelled row has one: the validation score is of single images, the "
            "competition's of their mean"
        )
    if form is not None and decision is not None:
        notes += _other_scores(form, decision)
    return [f"test: {images + ', ' if images else ''}{test.source}"] + (
        ["test: " + "; ".join(notes)] if notes else []
    )


def _other_scores(form: SubmissionForm, decision: Decision) -> list[str]:
    """Return why the validation score is another number than the competition's would be on these rows."""
    target, metric, notes = decision.target, decision.metric, []
    asked = set(form.row_labels if form.kind == "rows" else form.value_columns)
    if target.kind == "multilabel" and form.kind in ("rows", "probabilities"):
        extra = [name for name in target.names if name not in asked]
        if extra:
            notes.append(f"not asked for: {listed(extra)}, which the validation score counts too")
    if form.kind == "rows" and target.num_outputs > 1 and differs_by_column(metric):
        notes.append(
            f"the validation {metric} is a mean over the {len(asked)} labels; a competition that scores the "
            "rows of all labels together, as make score does, has another number"
        )
    return notes


def other_notes(folder: DataFolder, labelled: Labelled, sources: Sources, test: TestImages) -> list[str]:
    """Return at most one line on other content of the folder that is not used."""
    notes = []
    held_out = [
        name
        for name in folder.parts.named("val")
        if not any(image.startswith(name + "/") for image in labelled.taken)
    ]
    if held_out:
        use = ""
        if labelled.found is not None and labelled.split is None:
            use = f"; to use them, add their rows to {labelled.found.name} with a column split (train, val)"
        notes.append(
            f"{listed(held_out)}/ not used: validation rows are taken from the training images "
            f"(data.val_fraction){use}"
        )
    used = {_top(image) for image in labelled.taken} | {
        _top(image) for images in test.images for image in images
    }
    known = {name.split("/")[0] for name in (*held_out, *folder.parts.folders, *folder.parts.foreign)}
    left = []
    if test.images:
        left = [
            name for name, found in folder.scans.items() if name and found.images and name not in used | known
        ]
    if left:
        notes.append(
            f"{listed(f'{name}/ ({len(folder.scans[name].images):,} images)' for name in left)} not used"
        )
    if folder.parts.foreign:
        notes.append(f"{listed(sorted(folder.parts.foreign))}/ not read: a competition of its own")
    notes += [f"{files} not read (`make data FROM=` converts what it can)" for files in folder.unread]
    if sources.seen:
        notes.append(f"seen and not read: {listed(sources.seen)}")
    if sources.broken:
        notes.append(f"{listed(sources.broken)} cannot be read as a table and is not used")
    repeated = [path for found in folder.scans.values() for path in found.repeated]
    if repeated:
        notes.append(f"links to a folder that was already read: {listed(repeated)}")
    return ["also: " + "; ".join(notes)] if notes else []


def _top(image: str) -> str:
    return image.split("/")[0] if "/" in image else ""
