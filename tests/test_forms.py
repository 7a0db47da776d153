"""Every form of a submission file: recognised in a sample, filled, checked, read back; and what each
refuses.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import assert_says

from pipeline.errors import UserError
from pipeline.forms.check import check_predictions, read_back
from pipeline.forms.form import SubmissionForm
from pipeline.forms.recognise import made_up, recognise
from pipeline.predictions import Predictions
from pipeline.submission.grading import score_predictions
from pipeline.submission.write import write_predictions
from pipeline.tables import load_table
from pipeline.targets.target import Target

WHALES = Target("multiclass", ("new", "w1", "w2", "w3"))
PETS = Target("binary", ("cat", "dog"), positive=("dog",))
SICK = Target("binary", ("0", "1"), positive=("1",))
BANDS = Target("multilabel", ("a b", "c", "d"), separator=",")
TAGS = Target("multilabel", ("clear", "road", "water"), threshold=0.2)
GRADES = Target("ordinal", ("0", "1", "2"))
NUMBER = Target("continuous", ("age",), center=(50.0,), scale=(10.0,), low=(1.0,), high=(100.0,))
POINTS = Target(
    "continuous",
    ("x", "y"),
    separator="|",
    center=(0.0, 0.0),
    scale=(1.0, 1.0),
    low=(-9.0, -9.0),
    high=(9.0, 9.0),
)


def sample(path: Path, text: str, target: Target, metric: str, **more: tuple[str, ...]) -> SubmissionForm:
    path.write_text(text)
    return recognise(load_table(path), load_table(path).columns[0], target, metric, **more)


def written(
    tmp_path: Path,
    form: SubmissionForm,
    target: Target,
    values: list[list[float]],
    ids: tuple[str, ...] = ("p", "q"),
) -> list[str]:
    """The lines of the written file, which is also checked and read back."""
    path = tmp_path / "predictions.csv"
    write_predictions(path, form, Predictions(ids, np.array(values, dtype=np.float32), target))
    assert check_predictions(path, form, target) == []
    return path.read_text().splitlines()


@pytest.mark.parametrize(
    ("text", "target", "metric", "kind", "values", "lines"),
    [
        (
            "id,label\nq,new\np,new\n",
            WHALES,
            "accuracy",
            "label",
            [[0.1, 0.6, 0.2, 0.1], [0.7, 0.1, 0.1, 0.1]],
            ["q,new", "p,w1"],
        ),
        (
            "Image,Id\np,new w1 w2\nq,new w1 w2\n",
            WHALES,
            "map_at_3",
            "ranked",
            [[0.1, 0.6, 0.2, 0.1], [0.05, 0.1, 0.25, 0.6]],
            ["p,w1 w2 new", "q,w3 w2 w1"],
        ),
        ("id,label\np,0.5\nq,0.5\n", PETS, "log_loss", "probability", [[0.25], [0.75]], ["p,0.25", "q,0.75"]),
        ("id,label\np,0\nq,0\n", PETS, "accuracy", "label", [[0.25], [0.75]], ["p,0", "q,1"]),
        ("id,label\np,cat\nq,cat\n", PETS, "accuracy", "label", [[0.25], [0.75]], ["p,cat", "q,dog"]),
        (
            "id,dog,cat\np,0,0\nq,0,0\n",
            PETS,
            "roc_auc",
            "probabilities",
            [[0.25], [0.75]],
            ["p,0.25,0.75", "q,0.75,0.25"],
        ),
        ("id,cancer\np,0\nq,0\n", SICK, "pf1", "probability", [[0.125], [0.5]], ["p,0.125", "q,0.5"]),
        (
            "id,diagnosis\np,0\nq,0\n",
            GRADES,
            "qwk",
            "label",
            [[0.4, 0.2, 0.4], [0.1, 0.1, 0.8]],
            ["p,1", "q,2"],
        ),
        ("id,age\np,0\nq,0\n", NUMBER, "rmse", "number", [[12.5], [99.0]], ["p,12.5", "q,99"]),
        ("id,y,x\np,0,0\nq,0,0\n", POINTS, "rmse", "number", [[1, 2], [3, 4.5]], ["p,2,1", "q,4.5,3"]),
        (
            "id,tags\np,clear road\nq,clear\n",
            TAGS,
            "samples_f2",
            "labels",
            [[0.3, 0.1, 0.9], [0.1, 0.15, 0.1]],
            ["p,clear water", "q,road"],
        ),
        (
            "id,c,a b\np,0,0\nq,0,0\n",
            BANDS,
            "roc_auc",
            "probabilities",
            [[0.25, 0.5, 0], [0.125, 0.75, 0]],
            ["p,0.5,0.25", "q,0.75,0.125"],
        ),
    ],
)
def test_recognised_filled_checked(tmp_path, text, target, metric, kind, values, lines) -> None:
    form = sample(tmp_path / "sample.csv", text, target, metric)
    assert form.kind == kind
    assert written(tmp_path, form, target, values) == [text.splitlines()[0], *lines]


def test_rows_of_numbers_are_no_probabilities(tmp_path: Path) -> None:
    text = "id,target\np_x,0\np_y,0\nq_x,0\nq_y,0\n"
    form = sample(
        tmp_path / "sample.csv",
        text,
        POINTS,
        "r2",
        subjects=("p", "p", "q", "q"),
        row_labels=("x", "y", "x", "y"),
    )
    assert form.kind == "rows" and form.of_numbers
    lines = written(tmp_path, form, POINTS, [[5.5, -2], [0, 8.25]])
    assert lines[1:] == ["p_x,5.5", "p_y,-2", "q_x,0", "q_y,8.25"]


def test_true_and_false_are_written_as_the_numbers_of_the_sample(tmp_path: Path) -> None:
    target = Target("binary", ("False", "True"), positive=("True",))
    form = sample(tmp_path / "sample.csv", "id,label\np,0\nq,0\n", target, "accuracy")
    assert written(tmp_path, form, target, [[0.75], [0.25]])[1:] == ["p,1", "q,0"]
    form = sample(tmp_path / "sample.csv", "id,label\np,False\nq,True\n", target, "accuracy")
    assert written(tmp_path, form, target, [[0.75], [0.25]])[1:] == ["p,True", "q,False"]


def test_rows_of_an_image_take_their_own_labels(tmp_path: Path) -> None:
    text = "row_id,fractured\np_c,0.5\np_d,0.5\nq_d,0.5\n"
    form = sample(
        tmp_path / "s.csv", text, BANDS, "log_loss", subjects=("p", "p", "q"), row_labels=("c", "d", "d")
    )
    assert (form.kind, form.ids) == ("rows", ("p", "q"))
    assert written(tmp_path, form, BANDS, [[0.5, 0.25, 0.75], [0.5, 0.5, 0.125]])[1:] == [
        "p_c,0.25",
        "p_d,0.75",
        "q_d,0.125",
    ]


def test_probabilities_of_one_class_sum_to_one_where_that_counts(tmp_path: Path) -> None:
    text = "id,new,w1,w2,w3\n" + "".join(f"{name},0.25,0.25,0.25,0.25\n" for name in "pq")
    for metric, asked in (("log_loss", True), ("roc_auc", False)):
        form = sample(tmp_path / "sample.csv", text, WHALES, metric)
        (tmp_path / "p.csv").write_text("id,new,w1,w2,w3\np,0.9,0.2,0.3,0.4\nq,0.25,0.25,0.25,0.25\n")
        problems = check_predictions(tmp_path / "p.csv", form, WHALES)
        assert bool(problems) == asked
        assert not asked or "row 2" in problems[0]


@pytest.mark.parametrize(
    ("text", "target", "metric", "content", "shown"),
    [
        ("id,x\n", SICK, "log_loss", [f"{number},{number % 2}" for number in range(6)], "exactly 0 or 1"),
        ("id,x\n", SICK, "log_loss", ["a,1.5"], "row 2: probabilities outside 0..1 (1.5)"),
        ("id,x\n", SICK, "log_loss", ["a,yes"], "'yes'"),
        ("id,age\n", NUMBER, "rmse", ["a,nan"], "row 2: no number in column 'age': 'nan'"),
        ("id,Id\n", WHALES, "map_at_2", ["a,w1 w2 w3"], "more than 2 labels"),
        ("id,Id\n", WHALES, "map_at_2", ["a,w1 w1"], "the same label twice"),
        ("id,Id\n", WHALES, "map_at_2", ["a,w1 w9"], "'w9' is no class"),
        ("id,Id\n", WHALES, "map_at_2", ["a,"], "row 2: no label in column 'Id'"),
        ("id,tags\n", TAGS, "samples_f2", ["a,clear sea"], "'sea' is no class"),
        ("id,label\n", PETS, "accuracy", ["a,2"], "'2' is no class"),
    ],
)
def test_a_file_of_another_kind_is_not_ready(tmp_path, text, target, metric, content, shown) -> None:
    fill = "0\n" if metric != "map_at_2" else "w1 w2\n"
    ids = [line.split(",")[0] for line in content]
    form = sample(tmp_path / "sample.csv", text + "".join(f"{name},{fill}" for name in ids), target, metric)
    (tmp_path / "p.csv").write_text(text + "\n".join(content) + "\n")
    problems = check_predictions(tmp_path / "p.csv", form, target)
    assert shown in "\n".join(problems)


@pytest.mark.parametrize(
    ("text", "target", "metric", "more", "shown"),
    [
        ("id\np\n", WHALES, "accuracy", {}, "'id'"),
        ("id,label\np,x\np,x\n", WHALES, "accuracy", {}, "rows 2, 3"),
        ("id,label\n ,x\n", WHALES, "accuracy", {}, "row 2"),
        ("id,new,w1,w2,w4\np,0,0,0,0\n", WHALES, "log_loss", {}, "'w4'"),
        ("id,label\np,0.5\n", WHALES, "log_loss", {}, "--positive-class"),
        ("id,label\np,0.5\n", WHALES, "accuracy", {}, "'label' holds 0.5"),
        ("id,label\np,0.25\n", PETS, "accuracy", {}, "'label' holds 0.25"),
        ("id,x\np,0\n", POINTS, "rmse", {}, "'x'"),
        ("id,x\np_z,0\n", BANDS, "log_loss", {"subjects": ("p",), "row_labels": ("z",)}, "'z'"),
    ],
)
def test_a_sample_that_the_target_cannot_fill(tmp_path, text, target, metric, more, shown) -> None:
    with pytest.raises(UserError) as caught:
        sample(tmp_path / "sample.csv", text, target, metric, **more)
    assert shown in str(caught.value) and "sample.csv" in str(caught.value)


def test_an_index_that_pandas_left_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("Unnamed: 0,id,label\n0,p,new\n1,q,new\n")
    form = recognise(load_table(tmp_path / "s.csv"), "id", WHALES, "accuracy")
    assert form.columns == ("id", "label")


@pytest.mark.parametrize(
    ("target", "metric", "kind", "columns"),
    [
        (WHALES, "accuracy", "label", ("id", "label")),
        (WHALES, "log_loss", "probabilities", ("id", "new", "w1", "w2", "w3")),
        (WHALES, "map_at_5", "ranked", ("id", "label")),
        (SICK, "roc_auc", "probability", ("id", "label")),
        (GRADES, "qwk", "label", ("id", "label")),
        (GRADES, "log_loss", "probabilities", ("id", "0", "1", "2")),
        (GRADES, "map_at_3", "ranked", ("id", "label")),
        (TAGS, "map_at_3", "ranked", ("id", "label")),
        (TAGS, "micro_f1", "labels", ("id", "label")),
        (TAGS, "roc_auc", "probabilities", ("id", "clear", "road", "water")),
        (NUMBER, "rmse", "number", ("id", "label")),
        (POINTS, "rmse", "number", ("id", "x", "y")),
    ],
)
def test_made_up_without_a_sample(target, metric, kind, columns) -> None:
    form = made_up(target, metric, ("p", "q"))
    assert (form.kind, form.columns, form.ids) == (kind, columns, ("p", "q"))


def test_a_class_may_be_called_id(tmp_path: Path) -> None:
    languages = Target("multiclass", ("en", "id"))
    form = made_up(languages, "log_loss", ("p", "q"))
    assert written(tmp_path, form, languages, [[0.25, 0.75], [0.5, 0.5]]) == [
        "id_,en,id",
        "p,0.25,0.75",
        "q,0.5,0.5",
    ]


def test_read_back_gives_what_was_written(tmp_path: Path) -> None:
    form = sample(tmp_path / "s.csv", "id,Id\np,new w1\nq,new w1\n", WHALES, "map_at_2")
    written(tmp_path, form, WHALES, [[0.1, 0.6, 0.2, 0.1], [0.05, 0.1, 0.25, 0.6]])
    read, problems = read_back(load_table(tmp_path / "predictions.csv"), form, WHALES)
    assert (read.ids, read.guesses, problems) == (("p", "q"), (("w1", "w2"), ("w3", "w2")), [])


def test_labels_are_joined_as_the_sample_joins_them(tmp_path: Path) -> None:
    trained = Target("multilabel", ("clear", "road"), separator="|")
    for mark in (" ", ",", ";"):
        form = sample(tmp_path / "s.csv", f'id,tags\np,"clear{mark}road"\nq,clear\n', trained, "micro_f1")
        lines = written(tmp_path, form, trained, [[0.9, 0.8], [0.1, 0.8]])
        assert lines[1].replace('"', "") == f"p,clear{mark}road"


@pytest.mark.parametrize("rows", [False, True])
def test_a_metric_of_labels_writes_zeros_and_ones(tmp_path: Path, rows: bool) -> None:
    text, more = "id,clear,water\np,0,1\nq,0,0\n", {}
    if rows:
        text = "id,v\np_clear,0\np_water,1\nq_clear,0\nq_water,0\n"
        more = {"subjects": ("p", "p", "q", "q"), "row_labels": ("clear", "water") * 2}
    values = [[0.3, 0.9, 0.1], [0.1, 0.1, 0.19]]  # the threshold is 0.2; the highest of q is chosen
    form = sample(tmp_path / "s.csv", text, TAGS, "samples_f2", **more)
    lines = written(tmp_path, form, TAGS, values)
    expected = ["p_clear,1", "p_water,0", "q_clear,0", "q_water,1"] if rows else ["p,1,0", "q,0,1"]
    assert lines[1:] == expected
    bad = tmp_path / "bad.csv"
    bad.write_text("\n".join(lines).replace(",1", ",0.5", 1) + "\n")
    assert "2" in check_predictions(bad, form, TAGS)[0]
    form = sample(tmp_path / "s.csv", text, TAGS, "log_loss", **more)
    assert written(tmp_path, form, TAGS, values)[1].startswith(("p,0.3", "p_clear,0.3"))
    with pytest.raises(UserError, match=r"row 2.*0\.5.*macro_f1"):
        sample(tmp_path / "s.csv", text.replace(",0", ",0.5", 1), TAGS, "macro_f1", **more)


@pytest.mark.parametrize(
    ("target", "metric", "names", "values", "expected"),
    [
        (
            WHALES,
            "macro_f1",
            ("w1", "new", "w3", "w2"),
            [[0.3, 0.4, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]],
            "1000 0010",
        ),
        (GRADES, "qwk", ("0", "1", "2"), [[0.4, 0.2, 0.4], [0.1, 0.1, 0.8]], "010 001"),
        (PETS, "accuracy", ("dog", "cat"), [[0.4], [0.6]], "01 10"),
    ],
)
@pytest.mark.parametrize("rows", [False, True])
def test_columns_of_one_class_hold_its_one_for_a_metric_of_labels(
    tmp_path, target, metric, names, values, expected, rows
) -> None:
    zeros = ",".join("0" * len(names))
    text, more = f"id,{','.join(names)}\np,{zeros}\nq,{zeros}\n", {}
    if rows:
        text = "id,v\n" + "".join(f"{row}_{name},0\n" for row in "pq" for name in names)
        more = {"subjects": tuple(row for row in "pq" for _ in names), "row_labels": names * 2}
    form = sample(tmp_path / "s.csv", text, target, metric, **more)
    lines = written(tmp_path, form, target, values)
    cells = [line.split(",")[1:] for line in lines[1:]]
    assert "".join(cell for row in cells for cell in row) == expected.replace(" ", "")
    bad = tmp_path / "bad.csv"
    bad.write_text("\n".join(lines).replace(",1", ",0.5", 1) + "\n")
    assert check_predictions(bad, form, target)
    bad.write_text("\n".join([lines[0], *(line.replace(",1", ",0") for line in lines[1:])]) + "\n")
    assert rows or "rows 2, 3" in check_predictions(bad, form, target)[0], "no class at all"
    head, _, body = text.partition("\n")
    form = sample(tmp_path / "s.csv", head + "\n" + body.replace(",0", ",0.5", 1), target, metric, **more)
    assert not form.decided, "the sample shows that probabilities are asked for"


@pytest.mark.parametrize("words", [("False", "True"), ("false", "true")])
def test_zeros_and_ones_are_written_in_the_words_of_the_sample(tmp_path: Path, words) -> None:
    text = f"id,clear,water\np,{words[0]},{words[0]}\nq,{words[0]},{words[1]}\n"
    form = sample(tmp_path / "s.csv", text, TAGS, "macro_f1")
    lines = written(tmp_path, form, TAGS, [[0.3, 0.9, 0.1], [0.1, 0.1, 0.3]])
    assert lines[1:] == [f"p,{words[1]},{words[0]}", f"q,{words[0]},{words[1]}"]
    read, problems = read_back(load_table(tmp_path / "predictions.csv"), form, TAGS)
    assert read.values.tolist() == [[1, 0], [0, 1]] and not problems
    (tmp_path / "bad.csv").write_text("\n".join(lines).replace(words[1], "1") + "\n")
    assert_says(check_predictions(tmp_path / "bad.csv", form, TAGS)[0], "2", "'clear'", "1")


def test_numbers_for_two_named_classes_are_0_and_1_or_refused(tmp_path: Path) -> None:
    form = sample(tmp_path / "s.csv", "id,label\np,0.0\nq,1.0\n", PETS, "accuracy")
    assert written(tmp_path, form, PETS, [[0.25], [0.75]])[1:] == ["p,0.0", "q,1.0"]
    with pytest.raises(UserError) as caught:
        sample(tmp_path / "s.csv", "id,label\np,1\nq,2\n", PETS, "accuracy")
    assert_says(str(caught.value), "s.csv", "'label'", "2", "'cat', 'dog'", "accuracy")


def test_several_labels_are_ranked_for_a_metric_of_ranks(tmp_path: Path) -> None:
    form = sample(tmp_path / "s.csv", "id,tags\np,clear\nq,clear\n", TAGS, "map_at_2")
    assert form.kind == "ranked"
    lines = written(tmp_path, form, TAGS, [[0.3, 0.1, 0.9], [0.1, 0.15, 0.12]])
    assert lines[1:] == ["p,water clear", "q,road water"]
    (tmp_path / "solution.csv").write_text("id,tags\np,clear water\nq,water\n")
    scores = score_predictions(
        tmp_path / "predictions.csv", tmp_path / "solution.csv", form=form, target=TAGS, metric="map_at_2"
    )
    assert scores["metrics"]["map_at_2"] == pytest.approx((1 + 0.5) / 2)


@pytest.mark.parametrize("names", [("cat", "red fox"), ("a", "b", "a b")])
def test_names_with_the_mark_between_guesses_are_refused_before_training(tmp_path: Path, names) -> None:
    target = Target("multiclass", names)
    with pytest.raises(UserError) as caught:
        sample(tmp_path / "s.csv", f"id,label\np,{names[0]}\n", target, "map_at_3")
    assert_says(str(caught.value), "s.csv", "'label'", "' '", repr(names[-1]), "--metric accuracy")
    with pytest.raises(UserError) as caught:
        made_up(target, "map_at_3", ("p",))
    assert_says(str(caught.value), "' '", repr(names[-1]))
    form = sample(tmp_path / "s.csv", f'id,label\np,"{names[0]},{names[-1]}"\n', target, "map_at_2")
    lines = written(tmp_path, form, target, np.eye(len(names))[-1:].tolist(), ids=("p",))
    assert lines[1] == f'p,"{names[-1]},{names[0]}"'


def test_a_row_for_each_of_two_classes(tmp_path: Path) -> None:
    more = {"subjects": ("p", "p"), "row_labels": ("cat", "dog")}
    form = sample(tmp_path / "s.csv", "id,v\np_cat,0.5\np_dog,0.5\n", PETS, "roc_auc", **more)
    assert written(tmp_path, form, PETS, [[0.25]], ids=("p",))[1:] == ["p_cat,0.75", "p_dog,0.25"]


def test_what_one_cell_cannot_hold(tmp_path: Path) -> None:
    joined = Target("binary", ("cat, dog", "fox"), positive=("fox",))
    with pytest.raises(UserError, match=r"cat, dog.*--positive-class"):
        sample(tmp_path / "s.csv", "id,label\np,cat\n", joined, "accuracy")
    form = sample(tmp_path / "s.csv", "id,label\np,0\nq,1\n", joined, "accuracy")
    assert written(tmp_path, form, joined, [[0.9], [0.1]])[1:] == ["p,1", "q,0"]
    with pytest.raises(UserError, match=r"average_precision.*tags.*micro_f1"):
        sample(tmp_path / "s.csv", "id,tags\np,clear road\n", TAGS, "average_precision")
