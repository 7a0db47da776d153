"""Read a competition folder: labelled rows, test rows in order, the target, and the form of
predictions.csv.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.competition import corrections, groups
from pipeline.competition.class_tables import translated
from pipeline.competition.facts import own_files, read_facts
from pipeline.competition.folders import DataFolder, look, natural_key
from pipeline.competition.id_columns import find_sample_ids, repeats, without_numbering
from pipeline.competition.ids import ImageIndex
from pipeline.competition.label_columns import Wanted
from pipeline.competition.label_table import Labelled
from pipeline.competition.labels import has_training_data, read_labelled
from pipeline.competition.likely_groups import likely_groups
from pipeline.competition.notes import other_notes, test_notes, train_notes
from pipeline.competition.other_tasks import (
    refuse_other_rows,
    refuse_other_tasks,
    refuse_several_questions,
)
from pipeline.competition.rows import Competition, Row
from pipeline.competition.sample import (
    check_sample,
    find_sample,
    refuse_headerless,
    wanted_by,
    with_row_labels,
    with_test_folder,
)
from pipeline.competition.sample_classes import check_classes
from pipeline.competition.sources import Source, Sources, read_sources
from pipeline.competition.spelling import spelled_as
from pipeline.competition.subjects import resolve
from pipeline.competition.test_rows import (
    TestImages,
    find_test_images,
    form_of,
    sample_evidence,
)
from pipeline.competition.vqa_layout import is_vqa, read_vqa
from pipeline.errors import UserError
from pipeline.forms.form import FormKind, SubmissionForm
from pipeline.forms.recognise import recognise
from pipeline.targets.decide import decide
from pipeline.targets.evidence import Asked, Decision, LabelEvidence
from pipeline.targets.metrics import find_metric
from pipeline.targets.readings import is_true
from pipeline.targets.target import Target, multiclass
from pipeline.wording import counted, quoted

if TYPE_CHECKING:
    from pipeline.recipe_sections import Data


def read_layout(
    data_dir: Path | str,
    *,
    id_column: str | None = None,
    label_column: str | None = None,
    need: Literal["train", "test", "both"] = "both",
    test_images: bool = True,
    skip_bad_images: bool = False,
    partial_labels: bool = False,
    asked: Asked = Asked(),  # noqa: B008 - frozen
    known: tuple[Target, str | None] | None = None,
    grouped: groups.Grouping = groups.Grouping(),  # noqa: B008 - frozen
    corrected: corrections.CorrectionFiles = corrections.CorrectionFiles(),  # noqa: B008 - frozen
) -> Competition:
    """Read the competition in `data_dir`: class folders, a table or JSON of labels, or questions about
    images.

    Args:
        id_column: column of the label table that names the image; label_column: its label column.
        need: the part that must be complete; the other may be missing.
        test_images: False if the images of the sample submission may be missing too.
        skip_bad_images: leave out training rows without image or label and questions without an image, do not
            refuse.
        partial_labels: with several columns of numbers, use rows in which some are empty.
        asked: the user's flags on target and metric.
        known: target and metric of an existing run (a release has no metric); they are used and not decided
            again.
        grouped: source of the groups.
        corrected: tables of rows to exclude from training, and of new labels.

    Raises:
        UserError: needed data is missing, contradictory or ambiguous; the message says where and how to
            resolve it.
    """
    folder = look(Path(data_dir))
    if is_vqa(folder):
        return _read_questions(folder, id_column, label_column, need, skip_bad_images, corrected)
    named = [file for file in (grouped.file, *corrected.named.values()) if file]
    own = (*own_files(folder.root), groups.FOLDS_FILE, *corrections.OWN_NAMES, *named)
    sources = read_sources(folder, skip=own)
    folder, test_index, sample, wanted = _read_sample(folder, sources, asked, known)
    labelled, trouble = _labelled(
        folder, sources, sample, wanted, id_column, label_column, need, skip_bad_images, partial_labels
    )
    _call_labels(labelled, wanted, sources, sample, asked, known)
    test = find_test_images(
        folder,
        sources,
        sample,
        test_index,
        labelled.taken,
        _label_names(labelled.evidence, known, wanted),
        required=need != "train" and test_images,
        label_column=_column_name(labelled),
        group_column=_group_column(labelled),
    )
    decision, trouble = _decided(labelled, test, asked, known, need, trouble)
    target, metric = _target_and_metric(decision, known, test, wanted)
    form = _form(test, target, metric, known)
    more = check_classes(test, target, form, asked)
    grouping, folds, where = None, None, ""
    if need != "test":  # before the notes: these add some
        grouping = groups.read_groups(folder, sources, labelled, grouped)
        folds, where = groups.read_folds(folder, labelled) or (None, "")
    together = need != "test" and not trouble and grouping is None and not labelled.split
    several = test.resolved.id_column if test.resolved and test.num_images > len(set(test.ids)) else ""
    lines = [
        *train_notes(folder, labelled, test, target, decision, trouble),
        *(likely_groups(sources, target.names if target else (), several) if together else ()),
        *test_notes(test, labelled, form, decision, more),
        *other_notes(folder, labelled, sources, test),
    ]
    competition = Competition(
        folder.root,
        _train_rows(folder.root, labelled, decision),
        _test_rows(folder.root, test),
        target,
        metric,
        form,
        tuple(lines),
        split=labelled.split,
        split_from=labelled.split_from,
        groups=grouping,
        folds=folds,
        folds_from=where,
    )
    if need == "test" or decision is None:
        return competition
    return replace(
        competition,
        corrections=corrections.read_corrections(folder, labelled, decision.labels, target, corrected),
    )


def _read_questions(
    folder: DataFolder,
    id_column: str | None,
    label_column: str | None,
    need: Literal["train", "test", "both"],
    skip_bad_images: bool,
    corrected: corrections.CorrectionFiles,
) -> Competition:
    """Read a competition of questions about images."""
    if corrected.named:
        raise UserError(
            f"data.{next(iter(corrected.named))}: for images with labels, and {folder.root} holds questions "
            "about images"
        )
    sources = read_sources(folder, skip=(*own_files(folder.root), *folder.files("json_files")))
    sample = find_sample(folder, sources, ImageIndex(folder, ()))
    return read_vqa(folder, sample.table if sample else None, id_column, label_column, need, skip_bad_images)


def _read_sample(
    folder: DataFolder, sources: Sources, asked: Asked, known: tuple[Target, str | None] | None
) -> tuple[DataFolder, ImageIndex, Source | None, Wanted]:
    """Find the sample submission (None without one), and what it asks for.

    Return the data folder with the test folder that the sample names, the index of its test images, the
    sample, and the wanted labels.

    Raises:
        UserError: it asks for masks, boxes or several questions, and no flag says otherwise.
    """
    index = ImageIndex(folder, folder.of_part("test"))
    sample = find_sample(folder, sources, index)
    if sample is None:
        return folder, index, None, Wanted()
    if not index.images:
        folder = with_test_folder(folder, sample.table)
        index = ImageIndex(folder, folder.of_part("test"))
    id_column = _sample_id(sample, index, folder)
    sample = replace(sample, table=without_numbering(sample.table, id_column))
    wanted = wanted_by(sample.table, id_column)
    if asked.kind is None and known is None:
        labels = sources.of_role("train", "")
        refuse_other_tasks(sample, id_column, wanted, labels, folder.scans)
        shown = index if index.images else ImageIndex(folder, folder.of_part("train", "val", ""))
        refuse_other_rows(sample, id_column, wanted, sources, shown)
        if not (asked.metric and find_metric(asked.metric).needs == "numbers"):
            refuse_several_questions(sample, wanted, labels)
    wanted = with_row_labels(wanted, sample.table, id_column, sources.of_role("test", ""))
    return folder, index, sample, wanted


def read_for_training(
    data_dir: Path,
    data: Data,
    *,
    asked: Asked | None = None,
    skip_bad_images: bool,
    partial_labels: bool | None = None,
    with_corrections: bool = True,
) -> Competition:
    """Read the labelled part of a competition.

    Columns and groups come from the recipe's `data` keys, else competition.yaml.

    `asked`: target and metric flags of a run that is continued. `partial_labels`: as in `data`, if None.
    `with_corrections=False` ignores
    `data.exclude` and `data.relabel`.

    Raises:
        UserError: as `read_layout`.
    """
    facts = read_facts(data_dir)
    return read_layout(
        data_dir,
        id_column=data.id_column or facts.id_column,
        label_column=data.label_column or facts.label_column,
        need="train",
        skip_bad_images=skip_bad_images,
        partial_labels=data.partial_labels if partial_labels is None else partial_labels,
        asked=asked or facts.asked(data.metric, data.target, data.positive_class),
        grouped=groups.Grouping(
            None if data.groups else data.group_column or facts.group_column, data.groups
        ),
        corrected=corrections.CorrectionFiles(*((data.exclude, data.relabel) if with_corrections else ())),
    )


def read_for_run(
    data_dir: Path,
    settings: Mapping[str, Any],
    target: Target,
    metric: str | None,
    *,
    skip_bad_images: bool,
    partial_labels: bool,
    corrected: corrections.CorrectionFiles = corrections.CorrectionFiles(),  # noqa: B008 - frozen
) -> Competition:
    """Read the labelled part of a competition again, as a run with these `data` settings, target and metric
    read it. `corrected`: as in `read_layout`.

    Raises:
        UserError: as `read_layout`.
    """
    facts = read_facts(data_dir)
    separator = target.separator if target.kind == "multilabel" else None
    return read_layout(
        data_dir,
        id_column=settings.get("id_column") or facts.id_column,
        label_column=settings.get("label_column") or facts.label_column,
        need="train",
        skip_bad_images=skip_bad_images,
        partial_labels=partial_labels,
        asked=Asked(metric, target.kind, target.positive, separator),
        corrected=corrected,
    )


def _sample_id(sample: Source, test_index: ImageIndex, folder: DataFolder) -> str:
    """Return the id column of the sample submission, found before the labels are read."""
    for index in (test_index, ImageIndex(folder, folder.of_part("train", "val", ""))):
        name, match = find_sample_ids(sample.table, index)
        if match.num_found:
            refuse_headerless(sample.table, name, index)
            return name
    columns = sample.table.columns
    return next((name for name in columns if not repeats(sample.table, name)), columns[0])


def _labelled(
    folder: DataFolder,
    sources: Sources,
    sample: Source | None,
    wanted: Wanted,
    id_column: str | None,
    label_column: str | None,
    need: str,
    skip_bad: bool,
    partial: bool,
) -> tuple[Labelled, str | None]:
    """Read the labelled rows; if they are not needed, return none and the reason why they cannot be read."""
    if need == "test" and not has_training_data(folder, sources):
        return Labelled(), None
    try:
        name = sample.name if sample else ""
        return read_labelled(folder, sources, wanted, id_column, label_column, name, skip_bad, partial), None
    except UserError as error:
        if need != "test":
            raise
        return Labelled(), _short(error)


def _call_labels(
    labelled: Labelled,
    wanted: Wanted,
    sources: Sources,
    sample: Source | None,
    asked: Asked,
    known: tuple[Target, str | None] | None,
) -> None:
    """Call the labels as the known target does, else as the sample submission does."""
    if not labelled.evidence:
        return
    names = wanted.columns if len(wanted.columns) > 1 else tuple(wanted.values)
    if known:
        names = (*known[0].names, *known[0].positive)
        labelled.evidence, _ = spelled_as(labelled.evidence, names)
    own = labelled.found.source if labelled.found else None
    tables = [source for source in sources.found if source not in (sample, own)]
    labelled.evidence, note = translated(
        labelled.evidence, names, tables, numbers=bool(known) or asked.kind is None
    )
    labelled.notes += filter(None, (note,))


def _decided(
    labelled: Labelled,
    test: TestImages,
    asked: Asked,
    known: tuple[Target, str | None] | None,
    need: str,
    trouble: str | None,
) -> tuple[Decision | None, str | None]:
    """Decide the target; None without labels.

    If it is not needed, return the reason why it cannot be decided.
    """
    if labelled.evidence is None:
        return None, trouble
    if known:
        return Decision(*known, _as_texts(labelled.evidence, known[0]), ""), trouble
    try:
        return decide(labelled.evidence, sample_evidence(test), asked), trouble
    except UserError as error:
        if need != "test":
            raise
        return None, _short(error)


def _target_and_metric(
    decision: Decision | None,
    known: tuple[Target, str | None] | None,
    test: TestImages,
    wanted: Wanted,
) -> tuple[Target | None, str | None]:
    """Return the target and the metric; without labels the target has the names in the sample submission."""
    target, metric = (decision.target, decision.metric) if decision else known or (None, None)
    if target is None and test.resolved and test.resolved.row_labels:
        target = Target("multilabel", tuple(dict.fromkeys(test.resolved.row_labels)))
    elif target is None and len(wanted.columns) > 1:
        target = multiclass(sorted(wanted.columns, key=natural_key))
    return target, metric


def _form(
    test: TestImages, target: Target | None, metric: str | None, known: tuple[Target, str | None] | None
) -> SubmissionForm | None:
    """Return the form of predictions.csv.

    If a run's model cannot fill it, the error lists the model's classes.
    """
    try:
        return form_of(test, target, metric)
    except UserError as error:
        if known is None:
            raise
        names = known[0].names
        raise UserError(
            f"{error}\n(the model knows {counted(len(names), 'class', 'classes')}: {quoted(names)})"
        ) from None


def _label_names(
    evidence: LabelEvidence | None, known: tuple[Target, str | None] | None, wanted: Wanted
) -> Sequence[str] | None:
    """Return all labels, which rows of a long sample submission may be about; None if they are unknown.

    Folders that the sample submission does not name may be studies or cameras, no labels.
    """
    if known:
        return known[0].names
    if evidence is None:
        return None
    folders = set(evidence.texts) if evidence.source == "folders" else set()
    if (
        folders
        and wanted.ids
        and not folders & {*wanted.columns, *wanted.values, *wanted.suffixed([*folders])}
    ):
        return None
    return evidence.columns or tuple(
        dict.fromkeys(part for text in set(evidence.texts) for part in (text, *text.split()))
    )


def _column_name(labelled: Labelled) -> str:
    """Return the name of the labels' column; empty if a file without a header has none."""
    name = labelled.evidence.column if labelled.evidence else ""
    return "" if re.fullmatch(r"column \d+", name) else name


def _group_column(labelled: Labelled) -> str:
    found = labelled.found
    return found.id_column if found and any(len(images) > 1 for images in labelled.images) else ""


def _as_texts(evidence: LabelEvidence, target: Target) -> Sequence[str]:
    """Return the labels as texts that the known target takes."""
    if not evidence.columns:
        return evidence.texts
    if target.kind == "continuous":
        return [target.separator.join(row) for row in evidence.cells]
    names = evidence.columns
    return [
        target.separator.join(name for name, cell in zip(names, row, strict=True) if is_true(cell))
        for row in evidence.cells
    ]


def _short(error: UserError) -> str:
    return " ".join(line.strip(" -") for line in str(error).splitlines()[:2])


def _train_rows(root: Path, labelled: Labelled, decision: Decision | None) -> tuple[Row, ...]:
    """Return one row per image of each labelled id."""
    if decision is None:
        return ()
    rows = zip(labelled.ids, labelled.images, decision.labels, strict=True)
    return tuple(Row(row_id, root / image, label) for row_id, images, label in rows for image in images)


def _test_rows(root: Path, test: TestImages) -> tuple[Row, ...]:
    """Return one row per image of each test id, in the order of the sample submission."""
    return tuple(Row(subject, root / image, None) for subject, images in test.subjects() for image in images)


def read_form(data_dir: Path | str, target: Target | None, metric: str | None) -> SubmissionForm | None:
    """Return the form of the sample submission in `data_dir`, even without test images; None without a
    sample.

    Without a target the form follows from the columns: one value column means labels, several mean
    probabilities.

    Raises:
        UserError: there are several samples, the sample is broken, or the target cannot fill it.
    """
    folder = look(Path(data_dir))
    index = ImageIndex(folder, folder.of_part("test"))
    sources = read_sources(folder, skip=own_files(folder.root))
    sample = find_sample(folder, sources, index)
    if sample is None:
        return None
    check_sample(sample.table)
    if target is None or metric is None:
        id_column = _sample_id(sample, index, folder)
        kind: FormKind = "label" if len(sample.table.columns) == 2 else "probabilities"
        return SubmissionForm(
            kind, sample.table.columns, id_column, tuple(sample.table.column(id_column)), sample.table.path
        )
    others = [source for source in sources.found if source is not sample and source.role != "answers"]
    resolved = resolve(
        sample.table, index, sorted(others, key=lambda source: source.role != "test"), target.names
    )
    return recognise(sample.table, resolved.id_column, target, metric, resolved.subjects, resolved.row_labels)
