"""Read questions about images from disk: VQA v2's JSON files, or tables with image, question, answer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.competition.folders import DataFolder, hide_command, list_folder, mv_command, suffix_of
from pipeline.competition.id_styles import file_name
from pipeline.competition.ids import ImageIndex
from pipeline.competition.rows import Competition, Row
from pipeline.competition.sample import label_form
from pipeline.competition.vqa_files import Answered, Question, load_annotations, load_questions
from pipeline.competition.vqa_images import find_images, image_problems, images_of
from pipeline.competition.vqa_tables import load_question_table, test_tables, train_tables
from pipeline.errors import UserError, raise_all
from pipeline.forms.form import SubmissionForm
from pipeline.tables import Table
from pipeline.wording import MAX_NAMED, capped, counted, listed, nearest, quoted

# Words of the official file names that do not name the split: v2_OpenEnded_mscoco_train2014_questions.json.
NO_SPLIT = ("v1", "v2", "openended", "multiplechoice", "mscoco", "coco", "vqa", "vqav2")


@dataclass(frozen=True)
class _Source:
    """The files of one split. Without `annotations`, its questions are to be predicted."""

    split: str  # train2014, test-dev2015; for tables train, test
    questions: Path
    annotations: Path | None

    @property
    def is_table(self) -> bool:
        return self.questions.suffix.lower() != ".json"

    @property
    def place(self) -> str:
        """The noun for `Question.place`."""
        return "row" if self.is_table else "entry"

    @property
    def files(self) -> str:
        return " + ".join(dict.fromkeys(path.name for path in (self.questions, self.annotations) if path))


@dataclass
class _Part:
    """The rows for training or for prediction, with notes for the user."""

    rows: list[Row] = field(default_factory=list)
    says: str = ""
    notes: list[str] = field(default_factory=list)
    form: SubmissionForm | None = None

    def lines(self, name: str) -> list[str]:
        if self.says:
            return [f"{name}: {self.says}", *([f"{name}: {'; '.join(self.notes)}"] if self.notes else [])]
        return []


def is_vqa(folder: DataFolder) -> bool:
    """Return True if the folder holds questions: a JSON file with that name, or a train or test table with a
    question column.
    """
    return bool(_json_files(folder, "question") or train_tables(folder) or test_tables(folder))


def read_vqa(
    folder: DataFolder,
    sample: Table | None,
    id_column: str | None,
    label_column: str | None,
    need: Literal["train", "test", "both"],
    skip_bad_images: bool,
) -> Competition:
    """Read the questions in `folder`; for the parameters see `layout.read_layout`.

    A part that `need` does not name is not read, or may have problems.

    Raises:
        UserError: needed files are missing, contradictory or ambiguous.
    """
    sources = _sources(folder, orphans=need == "test")
    train, test = _Part(), _Part()
    if need != "test":
        chosen = _train_source(folder, sources)
        train = _read_train(folder, chosen, id_column, label_column, skip_bad_images)
        unused = [source.questions.name for source in sources if source.annotations and source is not chosen]
        if unused:
            train.notes.append(
                f"{listed(unused)} not used: validation rows are taken from the training images "
                "(data.val_fraction)"
            )
    if need == "train" and all(source.annotations for source in sources):
        test.says = "none found; needed for predictions only"
    else:
        test = _read_test_if_needed(folder, sources, sample, id_column, needed=need != "train")
    return Competition(
        folder.root,
        tuple(train.rows),
        tuple(test.rows),
        None,
        None,
        test.form,
        (*train.lines("train"), *test.lines("test")),
        "vqa",
    )


# ---- which files ----


def _json_files(folder: DataFolder, word: str) -> list[str]:
    """Return JSON files with `word` in their name, in the data folder and in sub-folders without images."""
    inner = [name for name, found in folder.scans.items() if name and not found.images]
    nested = [
        f"{name}/{entry.name}"
        for name in inner
        for entry in list_folder(folder.root, name)[1]
        if suffix_of(entry.name) == ".json"
    ]
    return [path for path in (*folder.json_files, *sorted(nested)) if word in file_name(path).lower()]


def _split_of(path: str) -> str:
    words = re.split(r"[_\s.]+", file_name(path).lower())[:-1]
    return "-".join(
        word for word in words if word not in NO_SPLIT and not word.startswith(("question", "annotation"))
    )


def _sources(folder: DataFolder, orphans: bool) -> list[_Source]:
    """Return the splits on disk. `orphans`: allow annotations without questions."""
    asked = _json_files(folder, "question")
    if not asked:
        trained = [_Source("train", path, path) for path in train_tables(folder)]
        return trained + [_Source("test", path, None) for path in test_tables(folder)]
    answered = [name for name in _json_files(folder, "annotation") if name not in asked]
    by_split: dict[str, tuple[list[str], list[str]]] = {}
    for position, names in enumerate((asked, answered)):
        for name in names:
            by_split.setdefault(_split_of(name), ([], []))[position].append(name)
    problems, sources = [], []
    for split, (ask, answer) in by_split.items():
        for names in (ask, answer):
            if len(names) > 1:
                problems.append(
                    f"{' and '.join(names)} may both be meant for {split or 'all'}; "
                    f"{hide_command(folder.root, names)}"
                )
        if not ask and not orphans:
            expected = file_name(answer[0]).replace("annotations", "questions")
            problems.append(
                f"{answer[0]} has no questions: expected a file like {expected} beside "
                f"it{nearest(expected, map(file_name, asked))}"
            )
        elif ask:
            sources.append(_Source(split, folder.root / ask[0], folder.root / answer[0] if answer else None))
    raise_all(problems, f"{folder.root}:")
    return sources


def _train_source(folder: DataFolder, sources: Sequence[_Source]) -> _Source:
    answered = [source for source in sources if source.annotations]
    if not answered:
        names = listed(source.questions.name for source in sources)
        raise UserError(
            f"{folder.root}: {names}, but no answers to train on: expected an annotations file such as "
            "v2_mscoco_train2014_annotations.json, or train.csv with columns image, question, answer"
        )
    chosen = (
        [source for source in answered if re.search(r"\btrain", source.split)]
        if len(answered) > 1
        else answered
    )
    if len(chosen) != 1:
        names = [source.annotations.name for source in chosen or answered if source.annotations]
        raise UserError(
            f"{folder.root}: {' and '.join(names)} may all be the training answers; "
            f"{hide_command(folder.root, names)}"
        )
    return chosen[0]


def _test_source(folder: DataFolder, sources: Sequence[_Source]) -> _Source:
    """Return the only split whose questions have no answers."""
    asked = [source for source in sources if not source.annotations]
    if len(asked) > 1:
        names = [source.questions.name for source in asked]
        raise UserError(
            f"{folder.root}: {' and '.join(names)} have no annotations, each may be the test; "
            f"{hide_command(folder.root, names)}"
        )
    if asked:
        return asked[0]
    example = sources[-1]
    if example.is_table:
        raise UserError(
            f"{folder.root}: no questions to predict: expected test.csv with columns image, question and, "
            "where it has one, id"
        )
    settle = ""
    if example.annotations:
        settle = (
            f"; to predict {example.split or 'these'}, hide its answers: {mv_command(example.annotations)}"
        )
    raise UserError(f"{folder.root}: no questions to predict: every questions file has annotations{settle}")


# ---- rows ----


def _read_train(
    folder: DataFolder, source: _Source, id_column: str | None, label_column: str | None, skip: bool
) -> _Part:
    index = ImageIndex(folder, images_of(folder, source.split))
    assert source.annotations
    if source.is_table:
        questions, answers, notes = load_question_table(
            source.questions, index, id_column=id_column, label_column=label_column, with_answers=True
        )
    else:
        questions, answers = load_questions(source.questions), load_annotations(source.annotations)
        columns = [
            f"data.{name}"
            for name, value in (("id_column", id_column), ("label_column", label_column))
            if value
        ]
        notes = [f"{' and '.join(columns)} not used: for tables only"] if columns else []
        raise_all(
            _disagreements(questions, answers),
            f"{source.annotations} and {source.questions.name} do not fit:",
        )
    empty = [question for question in questions.values() if not question.text.strip()]
    where = listed(f"entry {question.place} (question_id {question.id})" for question in empty)
    raise_all([f"{where}: the question is empty; remove the entry"] if empty else [], f"{source.questions}:")
    without = len(questions) - len(answers)
    if without:
        notes.append(f"{counted(without, 'question')} without an annotation, not used")
    asked = [question for question in questions.values() if question.id in answers]
    found = find_images(index, asked)
    advice = "add the images, or train without these questions: --set data.skip_bad_images=true"
    missing, several = image_problems(asked, found, source.place, index, advice)
    raise_all(([] if skip else missing) + several, f"{source.questions}:")
    rows = [
        _row(folder.root, question, found[question.image][0], answers[question.id])
        for question in asked
        if found[question.image]
    ]
    if not rows:
        raise UserError(
            f"{source.questions}: none of {counted(len(asked), 'question')} has its image; "
            f"{advice.split(',')[0]}"
        )
    if len(rows) < len(asked):
        notes.append(
            f"{counted(len(asked) - len(rows), 'question')} left out: image missing (data.skip_bad_images)"
        )
    num_answers = counted(len({row.label for row in rows}), "different answer")
    return _Part(rows, f"{_counts(rows)}, {num_answers} ({source.files})", notes)


def _read_test_if_needed(
    folder: DataFolder, sources: Sequence[_Source], sample: Table | None, id_column: str | None, needed: bool
) -> _Part:
    try:
        return _read_test(folder, _test_source(folder, sources), sample, id_column)
    except UserError as error:
        if needed:
            raise
        return _Part(
            says="not used, and not needed here: "
            + " ".join(line.strip(" -") for line in str(error).splitlines()[:2])
        )


def _read_test(folder: DataFolder, source: _Source, sample: Table | None, id_column: str | None) -> _Part:
    index = ImageIndex(folder, images_of(folder, source.split))
    if source.is_table:
        questions, _, notes = load_question_table(
            source.questions, index, id_column=id_column, with_answers=False, sample=sample
        )
    else:
        questions, notes = load_questions(source.questions), []
    form, how = _form(questions, sample, source)
    asked = [questions[question_id.strip()] for question_id in form.row_ids]
    if len(asked) < len(questions):
        notes.append(
            f"{counted(len(questions) - len(asked), 'question')} of {source.questions.name} not asked for, "
            "not predicted"
        )
    found = find_images(index, asked)
    missing, several = image_problems(asked, found, source.place, index, "add the images")
    raise_all(missing + several, f"{source.questions}:")
    empty = [question.id for question in asked if not question.text.strip()]
    if empty:
        notes.append(
            f"{counted(len(empty), 'empty question')}, answered from the image alone: question_id "
            f"{listed(empty)}"
        )
    rows = [_row(folder.root, question, found[question.image][0], None) for question in asked]
    return _Part(rows, f"{_counts(rows)} ({source.files}); {how}", notes, form)


def _row(root: Path, question: Question, image: str, answered: Answered | None) -> Row:
    if answered is None:
        return Row(question.id, root / image, None, question.text, image_id=question.image)
    label = answered.answer.strip()
    return Row(
        question.id,
        root / image,
        label,
        question.text,
        answered.answers,
        answered.answer_type,
        question.image,
    )


def _counts(rows: Sequence[Row]) -> str:
    return f"{counted(len(rows), 'question')} on {counted(len({row.path for row in rows}), 'image')}"


def _disagreements(questions: Mapping[str, Question], answers: Mapping[str, Answered]) -> list[str]:
    """List annotations whose question is missing, or is about another image."""
    unasked = [question_id for question_id in answers if question_id not in questions]
    problems = []
    if unasked:
        share = f"{len(unasked):,} of {counted(len(answers), 'annotation')}"
        hint = "; are the two files of the same split and version?" if len(unasked) > len(answers) / 2 else ""
        problems.append(
            f"{share} without a question: question_id {listed(unasked)}; take them out, or add the "
            f"questions{hint}"
        )
    other = []
    for question_id, answered in answers.items():
        question = questions.get(question_id)
        if question and answered.image is not None and answered.image != question.image:
            other.append(
                f"question_id {question_id}: about image_id {question.image} (entry {question.place}), "
                f"annotated for {answered.image}"
            )
    return problems + capped(other, "annotations are about another image than their question")


def _form(
    questions: Mapping[str, Question], sample: Table | None, source: _Source
) -> tuple[SubmissionForm, str]:
    """Return the form of predictions.csv, and its source for messages."""
    if sample is None:
        form = SubmissionForm("label", ("question_id", "answer"), "question_id", tuple(questions), None)
        return form, "no sample submission: columns question_id,answer"
    known = {name: sum(cell.strip() in questions for cell in sample.column(name)) for name in sample.columns}
    id_column = max(known, key=lambda name: known[name])
    form = label_form(sample, id_column)
    problems = []
    if len(form.value_columns) != 1:
        problems.append(
            f"one column for the answer is needed beside {id_column!r}, it has {quoted(form.value_columns)}"
        )
    lines = {cell.strip(): line for cell, line in zip(form.row_ids, sample.lines, strict=True)}
    extra = [question_id for question_id in lines if question_id not in questions]
    if extra:
        shown = [f"{question_id!r} in row {lines[question_id]}" for question_id in extra[:MAX_NAMED]]
        more = f" and {len(extra) - MAX_NAMED} more" if len(extra) > MAX_NAMED else ""
        problems.append(
            f"{len(extra):,} of {counted(len(lines), 'id')} without a question in {source.questions.name}: "
            f"{', '.join(shown)}{more}"
        )
    raise_all(problems, f"{sample.path}:")
    return form, f"ids and order from {sample.path.name} ({id_column} -> {form.value_columns[0]})"
