"""A competition folder as it lies on disk -> labelled rows, test rows in the order to predict, class names, the form of predictions.csv."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.competition.folders import DataFolder, absent, check_whole, hide_command, look, plain_name
from pipeline.competition.ids import ImageIndex, Match, composed, file_name, find_ids, short_ids
from pipeline.competition.labels import Labelled, has_training_data, read_labelled
from pipeline.competition.rows import Competition, Row
from pipeline.competition.sample import sample_table
from pipeline.competition.vqa_layout import is_vqa, read_vqa
from pipeline.errors import UserError, raise_all
from pipeline.forms.form import SubmissionForm
from pipeline.forms.recognise import made_up, recognise
from pipeline.tables import Table
from pipeline.targets.decide import decide
from pipeline.targets.evidence import Asked, LabelEvidence, SampleEvidence
from pipeline.targets.target import Target
from pipeline.wording import capped, counted, listed, natural_key, nearest, numbered, quoted

HOLD_OUT_FOLDERS = ("val", "valid", "validation", "dev")


def read_layout(
    data_dir: Path | str,
    *,
    id_column: str | None = None,
    label_column: str | None = None,
    need: Literal["train", "test", "both"] = "both",
    skip_bad_images: bool = False,
    asked: Asked = Asked(),  # noqa: B008 - frozen
    known: tuple[Target, str] | None = None,
) -> Competition:
    """The competition in `data_dir`: class folders or a table of labels, test images, sample submission; or questions about images.

    `id_column` (names the image) and `label_column` name columns of the table of labels. What `need` does not name may be absent.
    With `skip_bad_images` training questions whose image is not there are left out instead of refused.

    Raises:
        UserError: what is needed is absent, contradicts itself, or can be read in two ways; the message says where, and what settles it.
    """
    folder = look(Path(data_dir))
    sample = sample_table(folder)
    if is_vqa(folder):
        return read_vqa(folder, sample, id_column, label_column, need, skip_bad_images)
    test_dirs = folder.named("test")
    others = [name for name in folder.scans if name not in test_dirs and folder.scans[name].images]
    labelled, train_trouble = Labelled(), None
    if need != "test" or has_training_data(folder):
        try:
            labelled = read_labelled(folder, others, id_column, label_column, sample.columns[1:] if sample else ())
        except UserError as error:
            if need != "test":
                raise
            train_trouble = " ".join(line.strip(" -") for line in str(error).splitlines()[:2])
    target, metric, decided = None, None, ""
    sample_evidence = None
    if sample:
        id_column_of_sample, _ = find_ids(sample, ImageIndex(folder, folder.images(list(folder.scans))))
        values = tuple(name for name in sample.columns if name != id_column_of_sample)
        sample_evidence = SampleEvidence(sample.path.name, values, tuple(zip(*(sample.column(name) for name in values), strict=True)))
    if known is not None:
        target, metric = known
    elif labelled.labels:
        decision = decide(LabelEvidence("table", labelled.source, tuple(labelled.labels), column="label"), sample_evidence, asked)
        target, metric, decided = decision.target, decision.metric, decision.says
        labelled.labels = list(decision.labels)
    class_names = target.names if target else ()
    taken = set(labelled.images)
    unlabelled = [image for image in folder.images(others) if image not in taken]
    test = _read_test(folder, test_dirs, unlabelled, sample, class_names, required=need != "train", target=target, metric=metric)
    root = folder.root
    train_rows = (Row(*row) for row in zip(labelled.ids, (root / image for image in labelled.images), labelled.labels, strict=True))
    test_rows = (Row(image_id, root / image, None) for image_id, image in zip(test.ids, test.images, strict=True))
    notes = _train_notes(folder, labelled, test, class_names, train_trouble) + _test_notes(test) + _other_notes(folder, labelled)
    return Competition(root, tuple(train_rows), tuple(test_rows), target, metric, test.form, (*notes, *([decided] if decided else [])))


def read_form(data_dir: Path | str, target: Target | None, metric: str | None) -> SubmissionForm | None:
    """The form that the sample submission in `data_dir` asks for, without a look at the images; None when there is no sample.

    Without a target its columns alone are known: one is taken for labels, several for probabilities.

    Raises:
        UserError: there are several, or it is broken.
    """
    sample = sample_table(look(Path(data_dir), with_images=False))
    if sample is None:
        return None
    if target is None:
        kind = "label" if len(sample.columns) == 2 else "probabilities"
        return SubmissionForm(kind, sample.columns, sample.columns[0], tuple(sample.column(sample.columns[0])), sample.path)
    return recognise(sample, sample.columns[0], target, metric)


# ---- test images ----


@dataclass(frozen=True)
class _Test:
    """The images to predict. `ids` and `images` (paths in the data folder) belong together."""

    ids: Sequence[str] = ()
    images: Sequence[str] = ()
    form: SubmissionForm | None = None
    source: str = ""
    notes: Sequence[str] = ()


def _read_test(
    folder: DataFolder,
    test_dirs: Sequence[str],
    unlabelled: Sequence[str],
    sample: Table | None,
    class_names: Sequence[str],
    required: bool,
    target: Target | None,
    metric: str | None,
) -> _Test:
    if sample:
        return _from_sample(folder, test_dirs, unlabelled, sample, class_names, required, target, metric)
    if len(test_dirs) > 1:
        raise UserError(f"{folder.root}: {' and '.join(test_dirs)} may all be the test images; {hide_command(folder.root, test_dirs)}")
    if not test_dirs:
        if required:
            raise absent(folder, "test images", "expected a folder test/ (or test_images/, ...) with images")
        return _Test(source="none found; needed for predictions only")
    check_whole(folder, test_dirs)
    images = sorted(folder.images(test_dirs), key=lambda image: (natural_key(file_name(image)), image))
    ids, style = short_ids(images)
    form = made_up(target, metric, ids) if target else None
    return _Test(ids, images, form, f"{test_dirs[0]}/; no sample submission: columns id,label, ids are {style}")


def _from_sample(
    folder: DataFolder,
    test_dirs: Sequence[str],
    unlabelled: Sequence[str],
    sample: Table,
    class_names: Sequence[str],
    required: bool,
    target: Target | None,
    metric: str | None,
) -> _Test:
    """The images that the ids of the sample submission mean: in the test folders, or among the unlabelled images of a shared folder."""
    index = ImageIndex(folder, folder.images(test_dirs))
    id_column, match = find_ids(sample, index)
    if not match.num_found and unlabelled:
        shared = ImageIndex(folder, unlabelled)
        shared_column, shared_match = find_ids(sample, shared)
        if shared_match.num_found:
            index, id_column, match = shared, shared_column, shared_match
    submission = (
        recognise(sample, id_column, target, metric)
        if target
        else SubmissionForm("label", sample.columns, id_column, tuple(sample.column(id_column)), sample.path)
    )
    if not match.num_found and not index.images:
        if required:
            raise absent(folder, "test images", f"expected a folder test/ (or test_images/, ...) with the images of {sample.path.name}")
        return _Test(form=submission, source=f"no images of {sample.path.name} found; needed for predictions only")
    _check_ids(submission, sample, index, match)
    images = [found[0] for found in match.images]
    used = sorted({image.split("/")[0] for image in images if "/" in image}, key=natural_key)
    columns = submission.describe()
    notes = [f"images in {', '.join(f'{name}/' for name in used) or 'the data folder'}, ids are {match.style.says}"]
    left = sum(image.split("/")[0] in used for image in folder.images(test_dirs)) - len(images) if set(used) <= set(test_dirs) else 0
    if left:
        notes.append(f"{counted(left, 'image')} not in {sample.path.name}, not predicted")
    notes += _placeholder_notes(submission, sample, class_names)
    return _Test(submission.ids, images, submission, f"ids and order from {sample.path.name} ({id_column} -> {columns})", notes)


def _check_ids(submission: SubmissionForm, sample: Table, index: ImageIndex, match: Match) -> None:
    problems = []
    problems = match.problems(submission.ids, sample.lines, index, f"images look like {quoted(index.images[:2])}")
    rows: dict[str, list[int]] = {}
    for line, images in zip(sample.lines, match.images, strict=True):
        rows.setdefault(images[0] if len(images) == 1 else "", []).append(line)
    shared = [f"{numbered(lines)}: all mean {image}" for image, lines in rows.items() if image and len(lines) > 1]
    raise_all(problems + capped(shared, "images are meant by several ids"), f"{sample.path} and the test images do not fit:")


def _placeholder_notes(submission: SubmissionForm, sample: Table, class_names: Sequence[str]) -> list[str]:
    if submission.kind != "label" or not class_names:
        return []
    values = Counter(value.strip() for value in sample.column(submission.value_columns[0]))
    unknown = [value for value in values if value and value not in class_names]
    if not unknown:
        return []
    return [f"its labels {quoted(unknown)} are no classes of the training data{nearest(unknown[0], class_names)} and taken as placeholders"]


# ---- what was understood ----


def _train_notes(folder: DataFolder, labelled: Labelled, test: _Test, class_names: Sequence[str], trouble: str | None) -> list[str]:
    if trouble:
        return [f"train: not used, and not needed here: {trouble}"]
    if not labelled.images:
        return []
    classes = counted(len(class_names), "class", "classes")
    lines = [f"train: {counted(len(labelled.images), 'image')}, {classes} ({labelled.source})"]
    used = {image.split("/")[0] if "/" in image else "" for image in labelled.images}
    left = sum(len(folder.scans[name].images) for name in used) - len(labelled.images)
    left -= sum((image.split("/")[0] if "/" in image else "") in used for image in test.images)
    notes = list(labelled.notes)
    if left:
        notes.append(f"{counted(left, 'image')} without a label, not used")
    folded = Counter(composed(name).casefold() for name in class_names)
    alike = [name for name in class_names if folded[composed(name).casefold()] > 1]
    if alike:
        notes.append(f"classes that look alike (case, or the way accents are stored): {quoted(alike)}")
    return lines + (["train: " + "; ".join(notes)] if notes else [])


def _test_notes(test: _Test) -> list[str]:
    images = f"{counted(len(test.images), 'image')}, " if test.images else ""
    return [f"test: {images}{test.source}"] + (["test: " + "; ".join(test.notes)] if test.notes else [])


def _other_notes(folder: DataFolder, labelled: Labelled) -> list[str]:
    notes = []
    used = {image.split("/")[0] for image in labelled.images}
    held_out = [name for name in folder.scans if plain_name(name) in HOLD_OUT_FOLDERS and name not in used and folder.scans[name].images]
    if held_out:
        notes.append(f"{listed(held_out)}/ not used: validation rows are taken from the training images (data.val_fraction)")
    unread = sum((found.unread for found in folder.scans.values()), Counter())
    notes += [f"{counted(count, f'{suffix} file')} not read (convert to .jpg or .png)" for suffix, count in unread.items()]
    repeated = [path for found in folder.scans.values() for path in found.repeated]
    if repeated:
        notes.append(f"links to a folder that was already read: {listed(repeated)}")
    return ["also: " + "; ".join(notes)] if notes else []
