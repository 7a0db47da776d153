"""Folders of questions about images: VQA v2's JSON files and tables, whole and damaged."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import assert_says, colour_patch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.competition.folders import look
from pipeline.competition.layout import read_layout
from pipeline.competition.rows import Competition
from pipeline.competition.vqa_files import load_results, write_results
from pipeline.competition.vqa_layout import is_vqa
from pipeline.errors import UserError

QUESTIONS, ANNOTATIONS = "v2_OpenEnded_mscoco_{}_questions.json", "v2_mscoco_{}_annotations.json"
ASKED = [
    (11, 1, "Is it red?", "yes", "yes/no"),
    (12, 1, "How many?", "2", "number"),
    (21, 2, "Is it red?", "no", "yes/no"),
]


def save(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


def entry(question_id: Any, image_id: Any, question: Any) -> dict[str, Any]:
    return {"question_id": question_id, "image_id": image_id, "question": question}


def annotation(question_id: Any, image_id: Any, answer: Any, kind: str = "other") -> dict[str, Any]:
    answers = [{"answer": answer, "answer_confidence": "yes", "answer_id": number} for number in range(1, 11)]
    return {
        "question_id": question_id,
        "image_id": image_id,
        "multiple_choice_answer": answer,
        "answers": answers,
        "answer_type": kind,
    }


def split(root: Path, name: str, rows: Sequence[tuple], answered: bool, images: bool = True) -> None:
    """One split as VQA v2 names its files, with tiny JPEGs."""
    save(
        root / QUESTIONS.format(name), {"data_subtype": name, "questions": [entry(*row[:3]) for row in rows]}
    )
    if answered:
        save(
            root / ANNOTATIONS.format(name),
            {"annotations": [annotation(row[0], row[1], *row[3:]) for row in rows]},
        )
    for image in {row[1] for row in rows} if images else ():
        colour_patch(root / name / f"COCO_{name}_{image:012d}.jpg", (200, 50, 40), image, (8, 8))


@pytest.fixture
def vqa(tmp_path: Path) -> Path:
    """train2014 answered, val2014 to predict; its ids and image numbers are those of train2014 again, as in
    easy_vqa.
    """
    split(tmp_path, "train2014", ASKED, answered=True)
    split(tmp_path, "val2014", [(11, 1, "Is it blue?"), (12, 3, "")], answered=False)
    return tmp_path


def refusal(root: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        read_layout(root, **options)
    return str(caught.value)


def damage(root: Path, name: str, key: str, change: Any) -> Path:
    """Change the list in a JSON file by `change(list)`."""
    content = json.loads((root / name).read_text(encoding="utf-8"))
    change(content[key])
    save(root / name, content)
    return root


def said(competition: Competition) -> str:
    assert len(competition.notes) <= 5 and all("\n" not in note for note in competition.notes)
    return "\n".join(competition.notes)


# ---- VQA v2 ----


def test_vqa_v2(vqa: Path) -> None:
    competition = read_layout(vqa)
    assert (competition.task, competition.class_names) == ("vqa", ())
    assert [
        (row.id, row.label, row.question, row.answer_type, row.image_id) for row in competition.train
    ] == [
        ("11", "yes", "Is it red?", "yes/no", "1"),
        ("12", "2", "How many?", "number", "1"),
        ("21", "no", "Is it red?", "yes/no", "2"),
    ]
    assert competition.train[0].path == vqa / "train2014/COCO_train2014_000000000001.jpg"
    assert competition.train[0].answers == ("yes",) * 10
    assert [(row.id, row.path.name, row.label, row.question) for row in competition.test] == [
        ("11", "COCO_val2014_000000000001.jpg", None, "Is it blue?"),
        ("12", "COCO_val2014_000000000003.jpg", None, ""),
    ]
    assert competition.form is not None
    assert (competition.form.id_column, competition.form.value_columns) == ("question_id", ("answer",))
    assert competition.form.ids == ("11", "12")
    notes = said(competition)
    assert (
        "train: 3 questions on 2 images, 3 different answers (v2_OpenEnded_mscoco_train2014_questions.json "
        "+ v2_" in notes
    )
    assert (
        "test: 2 questions on 2 images (v2_OpenEnded_mscoco_val2014_questions.json); no sample submission: "
        "columns question_id,answer" in notes
    )
    assert "1 empty question, answered from the image alone: question_id 12" in notes


def test_the_sample_submission_gives_ids_and_order(vqa: Path) -> None:
    (vqa / "sample_submission.csv").write_text("question_id,answer\n12,yes\n11,yes\n")
    competition = read_layout(vqa, need="test")
    assert [row.id for row in competition.test] == ["12", "11"] and competition.train == ()
    assert "ids and order from sample_submission.csv (question_id -> answer)" in said(competition)
    (vqa / "sample_submission.csv").write_text("id,response\n12,yes\n")
    competition = read_layout(vqa)
    assert [row.id for row in competition.test] == ["12"]
    assert "1 question of v2_OpenEnded_mscoco_val2014_questions.json not asked for" in said(competition)


def test_a_sample_submission_of_other_questions(vqa: Path) -> None:
    (vqa / "sample_submission.csv").write_text("question_id,answer\n12,yes\n77,yes\n")
    assert_says(refusal(vqa), "1 of 2 ids", QUESTIONS.format("val2014"), "'77' in row 3")
    (vqa / "sample_submission.csv").write_text("question_id,yes,no\n11,0,1\n12,0,1\n")
    assert_says(refusal(vqa), "'question_id'", "'yes', 'no'")


def test_training_alone_and_test_alone(tmp_path: Path) -> None:
    split(tmp_path, "train2014", ASKED, answered=True)
    competition = read_layout(tmp_path, need="train")
    assert len(competition.train) == 3 and competition.form is None
    assert "test: none found; needed for predictions only" in said(competition)
    message = refusal(tmp_path, need="test")
    assert_says(message, "annotations", "train2014", "mv ", f".{ANNOTATIONS.format('train2014')}")
    (tmp_path / ANNOTATIONS.format("train2014")).unlink()
    assert len(read_layout(tmp_path, need="test").test) == 3
    assert "no answers to train on: expected an annotations file" in refusal(tmp_path, need="train")


def test_several_splits_that_may_be_the_test(vqa: Path) -> None:
    """As VQA v2 comes: test2015 and test-dev2015 ask about the same images; val2014 is answered too."""
    split(vqa, "test2015", [(31, 5, "What?"), (32, 6, "Who?")], answered=False)
    message = refusal(vqa, need="test")
    assert (
        "test2015_questions.json and " in message and "val2014_questions.json have no annotations" in message
    )
    assert "keep one and hide the other" in message
    competition = read_layout(vqa, need="train")
    assert len(competition.train) == 3 and "test: not used, and not needed here" in said(competition)
    (vqa / QUESTIONS.format("val2014")).unlink()
    split(vqa, "test-dev2015", [(31, 5, "What?")], answered=False, images=False)
    assert "v2_OpenEnded_mscoco_test2015_questions.json" in refusal(vqa, need="test")
    (vqa / QUESTIONS.format("test2015")).unlink()
    assert [row.path.parent.name for row in read_layout(vqa, need="test").test] == ["test2015"]


def test_several_answered_splits_train_on_the_one_called_train(vqa: Path) -> None:
    split(vqa, "val2014", [(91, 1, "Is it?", "no")], answered=True)
    competition = read_layout(vqa, need="train")
    assert [row.id for row in competition.train] == ["11", "12", "21"]
    assert (
        "v2_OpenEnded_mscoco_val2014_questions.json not used: validation rows are taken from the training "
        "images" in said(competition)
    )
    for template in (QUESTIONS, ANNOTATIONS):
        (vqa / template.format("train2014")).rename(vqa / template.format("abstract"))
    assert "may all be the training answers; keep one and hide the other" in refusal(vqa, need="train")


def test_other_names_and_folders(tmp_path: Path) -> None:
    """Image ids that are file names, plain file names, images one folder deeper."""
    save(
        tmp_path / "train_questions.json",
        {"questions": [entry("q1", "cat.jpg", "Is it?"), entry("q2", "dog.jpg", "Is it?")]},
    )
    answers = [
        {"question_id": "q1", "answers": ["yes", "no", "yes"]},
        {"question_id": "q2", "multiple_choice_answer": 2},
    ]
    save(tmp_path / "train_annotations.json", {"annotations": answers})
    for name in ("cat", "dog"):
        colour_patch(tmp_path / "images" / "train" / f"{name}.jpg", (0, 0, 0), 1, (8, 8))
        colour_patch(tmp_path / "images" / "test" / f"{name}.jpg", (0, 0, 0), 1, (8, 8))
    competition = read_layout(tmp_path, need="train")
    assert [(row.id, row.label, row.answers) for row in competition.train] == [
        ("q1", "yes", ("yes", "no", "yes")),
        ("q2", "2", ()),
    ]
    assert competition.train[0].path == tmp_path / "images/train/cat.jpg"


def test_files_in_folders_of_their_own(tmp_path: Path) -> None:
    """As the official zips unpack, and as the official tools want them: Questions/, Annotations/,
    Images/mscoco/train2014/.
    """
    split(tmp_path, "train2014", ASKED, answered=True)
    for template, folder in ((QUESTIONS, "Questions"), (ANNOTATIONS, "Annotations")):
        (tmp_path / folder).mkdir()
        (tmp_path / template.format("train2014")).rename(tmp_path / folder / template.format("train2014"))
    (tmp_path / "Images" / "mscoco").mkdir(parents=True)
    (tmp_path / "train2014").rename(tmp_path / "Images" / "mscoco" / "train2014")
    competition = read_layout(tmp_path, need="train", label_column="x")
    assert competition.train[0].path == tmp_path / "Images/mscoco/train2014/COCO_train2014_000000000001.jpg"
    assert "data.label_column not used: for tables only" in said(competition)
    (tmp_path / "Questions" / QUESTIONS.format("train2014")).unlink()
    assert not is_vqa(look(tmp_path))


def test_easy_vqa(shared: Path) -> None:
    competition = read_layout(shared / "competitions" / "easy_vqa")
    assert (len(competition.train), len(competition.test)) == (7754, 1957)
    assert len({row.path for row in competition.train}) == 800
    assert len({row.label for row in competition.train}) == 13
    assert all(row.path.parent.name == "val2014" for row in competition.test)


def test_a_number_of_thousands_of_digits_is_no_image(vqa: Path) -> None:
    damage(vqa, QUESTIONS.format("val2014"), "questions", lambda rows: rows[1].update(image_id="9" * 5000))
    assert "1 of 2 questions without an image" in refusal(vqa, need="test")


# ---- what is wrong, in words ----


def test_questions_without_their_image(vqa: Path) -> None:
    (vqa / "train2014/COCO_train2014_000000000001.jpg").unlink()
    message = refusal(vqa, need="train")
    assert_says(
        message, "2 of 3 questions", "'1' of question_id 11 (entry 1), '1' of question_id 12 (entry 2)"
    )
    assert "--set data.skip_bad_images=true" in message
    competition = read_layout(vqa, need="train", skip_bad_images=True)
    assert [row.id for row in competition.train] == ["21"]
    assert "2 questions left out: " in said(competition)
    (vqa / "val2014/COCO_val2014_000000000003.jpg").unlink()
    message = refusal(vqa, need="test", skip_bad_images=True)
    assert_says(message, "1 of 2 questions", "'3' of question_id 12 (entry 2)")


def test_images_that_are_absent_packed_or_ambiguous(vqa: Path) -> None:
    colour_patch(vqa / "train2014" / "copy_1.jpg", (0, 0, 0), 1, (8, 8))
    assert (
        "entry 1: '1' may be train2014/COCO_train2014_000000000001.jpg or train2014/copy_1.jpg: keep one"
        in refusal(vqa)
    )
    for image in vqa.rglob("*.jpg"):
        image.unlink()
    (vqa / "train2014.zip").touch()
    (vqa / "train2014").rmdir()
    message = refusal(vqa, need="train")
    assert (
        "no images for the questions of train2014: expected train2014/COCO_train2014_000000000001.jpg"
        in message
    )
    assert f"train2014.zip is not unpacked: make data FROM={vqa} DATA={vqa}-unpacked" in message


def test_annotations_and_questions_that_do_not_fit(vqa: Path) -> None:
    name = ANNOTATIONS.format("train2014")
    damage(vqa, name, "annotations", lambda rows: rows.append(annotation(99, 1, "yes")))
    assert_says(refusal(vqa), "1 of 4 annotations without a question", "question_id 99")
    damage(vqa, name, "annotations", lambda rows: rows.pop() and rows[0].update(image_id=7))
    assert "question_id 11: about image_id 1 (entry 1), annotated for 7" in refusal(vqa)
    damage(vqa, name, "annotations", lambda rows: rows.pop(0))
    competition = read_layout(vqa, need="train")
    assert len(competition.train) == 2 and "1 question without an annotation, not used" in said(competition)
    (vqa / QUESTIONS.format("train2014")).unlink()
    message = refusal(vqa)
    assert f"{name} has no questions: expected a file like v2_mscoco_train2014_questions.json" in message
    assert "(nearest: 'v2_OpenEnded_mscoco_val2014_questions.json')" in message
    assert len(read_layout(vqa, need="test").test) == 2  # where nothing asks for answers


def test_every_broken_entry_is_named_at_once(vqa: Path) -> None:
    def change(rows: list) -> None:
        rows += [
            entry(11, 2, "again"),
            entry(None, 2, "x"),
            {"question_id": 5, "image": 2, "question": "x"},
            entry(6, 2, ["x"]),
            "text",
        ]
        rows.append(entry(7, 2, "half \ud83d"))

    content = json.loads((vqa / QUESTIONS.format("train2014")).read_text())
    change(content["questions"])
    (vqa / QUESTIONS.format("train2014")).write_text(json.dumps(content))
    message = refusal(vqa)
    for line in (
        "entries 1 and 4: the question_id 11 occurs twice",
        "entry 5: question_id is None; a number or a text is needed",
        "entry 6: no image_id (nearest: 'image'); a number or a text is needed",
        "entry 7 (question_id 6): question is ['x']; a text is needed",
        "entry 8 is a str, not an object with keys",
        "entry 9 (question_id 7): question is 'half \\ud83d'; a text is needed",
    ):
        assert line in message


def test_broken_annotations(vqa: Path) -> None:
    def change(rows: list) -> None:
        rows[0]["multiple_choice_answer"] = "  "
        del rows[1]["multiple_choice_answer"], rows[1]["answers"]
        rows[2]["answers"] = {"answer": "no"}
        rows.append(annotation(21, 2, "no"))
        rows.append(annotation(22, 2, float("nan")))  # as Python writes a missing value

    message = refusal(damage(vqa, ANNOTATIONS.format("train2014"), "annotations", change))
    assert "entry 1 (question_id 11): the answer is empty" in message
    assert "entry 2 (question_id 12): no multiple_choice_answer" in message
    assert 'entry 3 (question_id 21): answers is not a list of {"answer": text}' in message
    assert "entry 4: the question_id 21 occurred before" in message
    assert "entry 5 (question_id 22): multiple_choice_answer is nan; a text is needed" in message


def test_an_empty_training_question(vqa: Path) -> None:
    damage(vqa, QUESTIONS.format("train2014"), "questions", lambda rows: rows[1].update(question=" "))
    assert "entry 2 (question_id 12): the question is empty" in refusal(vqa, need="train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"questions": [{"question_id": 1,', "it ends too early, as an interrupted download does"),
        (b'{"questions": [}]}', "line 1, character 16"),
        (b"", "it is empty"),
        (b"\xff\xfe{\x00", "is not UTF-8 (byte 0)"),
        (b'["x"]', 'a list found; expected {"questions": [...]} as in VQA v2'),
        (b'{"question": []}', "keys 'question' found"),
        (b'{"questions": []}', "an empty list found; expected a list of questions"),
        (b"[" * 100_000, "is not valid JSON"),
    ],
)
def test_broken_json(vqa: Path, content: bytes, message: str) -> None:
    (vqa / QUESTIONS.format("train2014")).write_bytes(content)
    text = refusal(vqa, need="train")
    assert message in text and QUESTIONS.format("train2014") in text


def test_two_files_of_one_split(vqa: Path) -> None:
    save(vqa / "MultipleChoice_mscoco_train2014_questions.json", {"questions": []})
    assert "may both be meant for train2014; keep one and hide the other" in refusal(vqa)


# ---- tables ----


def table_kind(root: Path, train: str, test: str = "image,question\nc.jpg,Is it?\n") -> Path:
    for name in ("a", "b", "c"):
        colour_patch(root / "images" / f"{name}.jpg", (0, 0, 0), 1, (8, 8))
    (root / "train.csv").write_text(train, encoding="utf-8")
    (root / "test.csv").write_text(test, encoding="utf-8")
    return root


def test_tables(tmp_path: Path) -> None:
    competition = read_layout(
        table_kind(
            tmp_path,
            'image,question,answer\na.jpg,"Is it red, or blue?",red\n'
            "a.jpg,何色ですか？,赤\nb.jpg,Is it?,No\n",
        )
    )
    assert competition.task == "vqa"
    assert [(row.id, row.path.name, row.question, row.label) for row in competition.train] == [
        ("1", "a.jpg", "Is it red, or blue?", "red"),
        ("2", "a.jpg", "何色ですか？", "赤"),
        ("3", "b.jpg", "Is it?", "No"),
    ]
    assert [(row.id, row.path.name, row.question, row.label) for row in competition.test] == [
        ("1", "c.jpg", "Is it?", None)
    ]
    assert "train: 3 questions on 2 images, 3 different answers (train.csv)" in said(competition)


def test_tables_with_ids_and_a_sample_submission(tmp_path: Path) -> None:
    train = "question_id,image_id,question,answer\n1,a,Is it?,yes\n2,b,Is it?,no\n"
    root = table_kind(tmp_path, train, "id,image_id,question\n7,c,Is it?\n8,a,Is it?\n")
    (root / "sample_submission.csv").write_text("question_id,answer\n8,x\n7,x\n")
    competition = read_layout(root)
    assert [(row.id, row.path.name) for row in competition.test] == [("8", "a.jpg"), ("7", "c.jpg")]
    assert [row.id for row in competition.train] == ["1", "2"]


def test_ids_of_the_sample_stand_in_a_column_of_any_name(tmp_path: Path) -> None:
    asked = "row_id,image,question\n7,c.jpg,Is it?\n8,c.jpg,How many?\n"
    root = table_kind(tmp_path, "image,question,answer\na.jpg,Is it?,yes\nb.jpg,Is it?,no\n", asked)
    (root / "sample_submission.csv").write_text("row_id,answer\n8,yes\n7,yes\n")
    rows = read_layout(root, need="test").test
    assert [(row.id, row.question) for row in rows] == [("8", "How many?"), ("7", "Is it?")]


def test_a_test_table_without_ids_takes_those_of_the_sample_submission(tmp_path: Path) -> None:
    root = table_kind(
        tmp_path, "image,question,answer\na,Is it?,yes\nb,Is it?,no\n", "image,question\nc,Is it?\na,Is it?\n"
    )
    (root / "sample_submission.csv").write_text("question_id,answer\n70,x\n60,x\n")
    competition = read_layout(root, need="test")
    assert [(row.id, row.path.name) for row in competition.test] == [("70", "c.jpg"), ("60", "a.jpg")]
    assert "test.csv has no ids: " in said(competition) and "of sample_submission.csv" in said(competition)
    (root / "sample_submission.csv").write_text("question_id,answer\n70,x\n")
    assert "cannot give the ids by its order: 2 questions and 1 id" in refusal(root, need="test")


def test_columns_named_by_the_user(tmp_path: Path) -> None:
    root = table_kind(
        tmp_path,
        "pic,question,short,long\na,Is it?,yes,yes it is\nb,Is it?,no,it is not\n",
        "pic,question\nc,Is it?\n",
    )
    assert_says(refusal(root), "'pic', 'question', 'short', 'long'", "--set data.label_column=NAME")
    competition = read_layout(root, id_column="pic", label_column="short")
    assert [row.label for row in competition.train] == ["yes", "no"]


def test_broken_tables(tmp_path: Path) -> None:
    message = refusal(
        table_kind(tmp_path, "id,image,question,answer\n1,a,,yes\n1,b,Is it?, \n2,,Is it?,no\n")
    )
    for line in (
        "rows 2, 3: the id '1' occurs 2 times",
        "row 2: no question in",
        "row 3: no answer in",
        "row 4: no image in",
    ):
        assert line in message
    (tmp_path / "train.csv").write_text("image,question,answer\nz.jpg,Is it?,yes\nb,Is it?,no\n")
    assert_says(refusal(tmp_path), "1 of 2 questions without an image", "'z.jpg' of question_id 1 (row 2)")
    (tmp_path / "train.csv").write_text("image,question,question,answer\n")
    assert "the column name 'question' occurs 2 times" in refusal(tmp_path)


def test_a_table_of_images_is_no_table_of_questions(tmp_path: Path) -> None:
    root = table_kind(tmp_path, "image,label\na.jpg,cat\nb.jpg,dog\n", "image\nc.jpg\n")
    assert not is_vqa(look(root))
    assert read_layout(root, need="train").task == "classification"


# ---- results ----


def test_results_are_written_and_read_back(tmp_path: Path) -> None:
    write_results(tmp_path / "r.json", ["12", "7"], ["yes", '赤 "x"'])
    assert json.loads((tmp_path / "r.json").read_text(encoding="utf-8")) == [
        {"question_id": 12, "answer": "yes"},
        {"question_id": 7, "answer": '赤 "x"'},
    ]
    assert load_results(tmp_path / "r.json") == {"12": (1, "yes"), "7": (2, '赤 "x"')}
    write_results(tmp_path / "r.json", ["012", "7"], ["yes", "no"])
    assert [item["question_id"] for item in json.loads((tmp_path / "r.json").read_text())] == ["012", "7"]
    save(
        tmp_path / "r.json",
        [{"question_id": 1, "answer": "a"}, {"question_id": 1, "answer": "b"}, {"answer": "c"}],
    )
    with pytest.raises(
        UserError, match=r"(?s)entries 1 and 2: the question_id 1 occurs twice.*entry 3: no question_id"
    ):
        load_results(tmp_path / "r.json")


# ---- anything at all ----

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
KEYS = ("question_id", "image_id", "question", "multiple_choice_answer", "answers", "answer_type")
ENTRIES = st.lists(
    st.dictionaries(st.sampled_from(KEYS), st.sampled_from([1, "1", "Is it?", "yes"]) | JSON) | JSON,
    max_size=3,
)


def understood_or_refused(root: Path) -> None:
    try:
        competition = read_layout(root)
    except UserError as error:
        assert str(root) in str(error)
    else:
        assert all(row.question and row.label and row.id and row.path.is_file() for row in competition.train)


@settings(max_examples=100, deadline=None)
@given(questions=ENTRIES, annotations=ENTRIES)
def test_any_entries_are_understood_or_refused_in_words(
    tmp_path_factory: Any, questions: list, annotations: list
) -> None:
    root = tmp_path_factory.mktemp("vqa")
    colour_patch(root / "train2014" / "COCO_train2014_000000000001.jpg", (0, 0, 0), 1, (4, 4))
    (root / QUESTIONS.format("train2014")).write_text(json.dumps({"questions": questions}))
    (root / ANNOTATIONS.format("train2014")).write_text(json.dumps({"annotations": annotations}))
    understood_or_refused(root)


@settings(max_examples=100, deadline=None)
@given(
    place=st.integers(0, 10_000),
    inserted=st.binary(max_size=4),
    removed=st.integers(0, 40),
    which=st.sampled_from([QUESTIONS, ANNOTATIONS]),
)
def test_any_damage_is_understood_or_refused_in_words(
    tmp_path_factory: Any, place: int, inserted: bytes, removed: int, which: str
) -> None:
    root = tmp_path_factory.mktemp("vqa")
    split(root, "train2014", ASKED, answered=True)
    split(root, "val2014", [(11, 1, "Is it blue?")], answered=False)
    path = root / which.format("train2014")
    content = path.read_bytes()
    place %= len(content)
    path.write_bytes(content[:place] + inserted + content[place + removed :])
    understood_or_refused(root)
