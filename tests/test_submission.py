import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score
from target_runs import NUMBERS

from pipeline.errors import UserError
from pipeline.files import sha256
from pipeline.forms.check import check_predictions
from pipeline.forms.form import SubmissionForm
from pipeline.predictions import Predictions
from pipeline.submission.grading import score_predictions
from pipeline.submission.score import main
from pipeline.submission.write import write_predictions
from pipeline.tables import load_table
from pipeline.targets.metrics import differs_by_column
from pipeline.targets.target import Target, multiclass

IDS = ("a", "b", "c")
LABEL = SubmissionForm("label", ("id", "label"), "id", IDS, None)
PROBABILITY = SubmissionForm("probabilities", ("id", "dog", "cat"), "id", IDS, None, sums_to_one=True)
CLASSES = ("cat", "dog")
PROBS = np.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]], dtype=np.float32)


def predicted(probs=PROBS, classes=CLASSES, ids=IDS):
    return Predictions(tuple(ids), np.asarray(probs), multiclass(classes))


def check(tmp_path, text, form=LABEL, class_names=CLASSES):
    path = tmp_path / "predictions.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return check_predictions(path, form, multiclass(class_names) if class_names else None)


# ---- write ----


def test_labels(tmp_path):
    write_predictions(tmp_path / "predictions.csv", LABEL, predicted())
    assert (tmp_path / "predictions.csv").read_bytes() == b"id,label\na,cat\nb,dog\nc,cat\n"


def test_probabilities_follow_the_columns_of_the_sample(tmp_path):
    write_predictions(tmp_path / "predictions.csv", PROBABILITY, predicted())
    table = load_table(tmp_path / "predictions.csv")
    assert table.columns == ("id", "dog", "cat")
    assert [float(cell) for cell in table.column("cat")] == pytest.approx([0.9, 0.2, 0.5], abs=1e-7)


@pytest.mark.parametrize("form", [LABEL, PROBABILITY])
@pytest.mark.parametrize(
    ("probs", "ids", "named"),
    [
        (PROBS * [[1], [np.nan], [1]], IDS, "'b'"),
        (np.array([[0.9, 0.1], [0.2, 0.8], [np.inf, 0.5]]), IDS, "'c'"),
        (PROBS[:2], ("a", "c"), "'b'"),
    ],
)
def test_predictions_that_cannot_be_written_leave_the_former_file(tmp_path, form, probs, ids, named):
    path = tmp_path / "predictions.csv"
    path.write_text("former")
    with pytest.raises(UserError, match=named):
        write_predictions(path, form, predicted(probs, ids=ids))
    assert path.read_text() == "former"
    assert list(tmp_path.iterdir()) == [path]


def test_columns_that_are_not_the_model_s_classes(tmp_path):
    with pytest.raises(UserError, match=r"'dog'.*'Dog'"):
        write_predictions(tmp_path / "predictions.csv", PROBABILITY, predicted(classes=("cat", "Dog")))


name = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8).filter(str.strip)
names = st.lists(
    name | st.sampled_from(["007", "1e5", "nan", "NA", "=1+1", "a,b", 'say "x"', " x ", "a;b", "é"]),
    unique=True,
    max_size=6,
)


@settings(max_examples=60, deadline=None)
@given(
    ids=names,
    classes=names,
    order=st.randoms(use_true_random=False),
    kind=st.sampled_from(["label", "probabilities"]),
    seed=st.integers(0, 99),
)
def test_written_checked_read(tmp_path_factory, ids, classes, order, kind, seed):
    ids = [*ids, "one more"] if "one more" not in ids else ids
    classes = list(dict.fromkeys([*classes, "first", "second"]))
    columns = classes[:] if kind == "probabilities" else ["the label"]
    order.shuffle(columns)
    id_column = "the id" if "the id" not in classes else "another id"
    form = SubmissionForm(
        kind, (id_column, *columns), id_column, tuple(ids), None, sums_to_one=kind != "label"
    )
    logits = np.random.default_rng(seed).normal(scale=8, size=(len(ids), len(classes))).astype(np.float32)
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    path = tmp_path_factory.mktemp("written") / "predictions.csv"
    write_predictions(path, form, predicted(probs, classes, ids))
    assert check_predictions(path, form, multiclass(classes)) == []
    table = load_table(path)
    assert table.column(id_column) == ids
    assert table.columns == (id_column, *columns)
    if kind == "label":
        assert table.column("the label") == [classes[index] for index in probs.argmax(axis=1)]
    else:
        values = np.array([table.column(label) for label in classes], dtype=float).T
        assert np.abs(values.sum(axis=1) - 1).max() < 1e-6
        assert np.abs(values - probs).max() < 1e-5


# ---- check ----


def test_a_file_that_is_ready(tmp_path):
    assert check(tmp_path, "id,label\na,cat\nb,dog\nc,cat\n") == []
    assert check(tmp_path, "id,label\r\na,cat\r\nb,dog\r\nc,cat\r\n") == []
    assert check(tmp_path, "id,dog,cat\na,0.1,0.9\nb,1,0\nc,1e-3,0.999\n", PROBABILITY) == []


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        (
            "Id,label\na,cat\nb,dog\nc,cat\n",
            ["the column 'id' is missing (nearest: 'Id')", "unexpected columns: 'Id'"],
        ),
        (
            "label,id\ncat,a\ndog,b\ncat,c\n",
            ["columns in another order: 'label', 'id', expected 'id', 'label'"],
        ),
        (",id,label\n0,a,cat\n1,b,dog\n2,c,cat\n", ["numbers the rows (a pandas index)"]),
        ("id,label,x\na,cat,1\nb,dog,1\nc,cat,1\n", ["unexpected columns: 'x'"]),
        ("id,label\na,cat\nb,dog\n", ["2 rows for 3 ids", "1 id missing: 'c'"]),
        (
            "id,label\na,cat\nb,dog\nc.jpg,cat\nd,cat\n",
            ["4 rows for 3 ids", "1 id missing: 'c'", "2 unexpected ids, rows 4, 5: 'c.jpg', 'd'"],
        ),
        (
            "id,label\na,cat\nb,dog\nc,cat\nb,dog\n",
            ["4 rows for 3 ids", "rows 3, 5: the id 'b' occurs 2 times"],
        ),
        (
            "id,label\nb,cat\na,dog\nc,cat\n",
            ["ids in another order than expected, first in row 2: 'b' instead of 'a'"],
        ),
        ("id,label\na,\nb,dog\nc, \n", ["rows 2, 4: no label in column 'label'"]),
        (
            "id,label\na,Cat\nb,dog\nc,nan\n",
            ["row 2: 'Cat' is no class (nearest: 'cat')", "row 4: 'nan' is no class"],
        ),
        ("id;label\na;cat\nb;dog\nc;cat\n", ["cells are separated by semicolons: expected commas"]),
        (
            "\ufeffid,label\na,cat\nb,dog\nc,cat\n",
            ["it begins with a byte order mark (Excel writes it): save it as plain UTF-8"],
        ),
        ("id,label,\na,cat,\nb,dog,\nc,cat,\n", ["it has columns without a name and without cells"]),
        ("", ["it is empty"]),
        (b"id,label\na,caf\xe9\nb,dog\nc,cat\n", ["not UTF-8 in row 2"]),
    ],
)
def test_label_problems(tmp_path, text, problems):
    found = check(tmp_path, text)
    assert len(found) == len(problems)
    for problem, expected in zip(found, problems, strict=True):
        assert expected in problem


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("id,dog,cat\na,0.1,0.9\nb,nan,0\nc,0,1\n", "row 3: no number in column 'dog': 'nan'"),
        ("id,dog,cat\na,,0.9\nb,1,0\nc,x,1\n", "rows 2, 4: no number in column 'dog': ''"),
        ("id,dog,cat\na,0.1,inf\nb,1,0\nc,0,1\n", "row 2: no number in column 'cat': 'inf'"),
        ("id,dog,cat\na,-0.5,1.5\nb,1,0\nc,0,1\n", "row 2: probabilities outside 0..1 (-0.5)"),
        ("id,dog,cat\na,0.5,0.4\nb,1,0\nc,0,1\n", "row 2: probabilities sum to 0.9, expected 1"),
        (
            "id,cat,dog\na,0.5,0.5\nb,1,0\nc,0,1\n",
            "columns in another order: 'id', 'cat', 'dog', expected 'id', 'dog', 'cat'",
        ),
        ("id,dog,Cat\na,0.5,0.5\nb,1,0\nc,0,1\n", "the column 'cat' is missing (nearest: 'Cat')"),
    ],
)
def test_probability_problems(tmp_path, text, problem):
    assert problem in "\n".join(check(tmp_path, text, PROBABILITY))


def test_unknown_classes_are_not_checked(tmp_path):
    text = "id,label\na,anything\nb,nan\nc,x\n"
    assert check(tmp_path, text, class_names=None) == []
    assert check(tmp_path, text, class_names=()) == []


def test_long_lists_are_capped(tmp_path):
    ids = tuple(str(n) for n in range(100))
    rows = "".join(f"{image_id},class {image_id}\n" for image_id in ids)
    found = check(tmp_path, "id,label\n" + rows, SubmissionForm("label", ("id", "label"), "id", ids, None))
    assert len(found) == 6
    assert found[-1] == "95 more labels are no classes"
    assert check(
        tmp_path, "id,label\n0,cat\n", SubmissionForm("label", ("id", "label"), "id", ids, None)
    ) == ["1 row for 100 ids", "99 ids missing: '1', '2', '3', '4', '5' and 94 more"]


def test_a_missing_file_is_a_problem(tmp_path):
    (problem,) = check_predictions(tmp_path / "nowhere.csv", LABEL, multiclass(CLASSES))
    assert "nowhere.csv does not exist" in problem


# ---- score ----


def files(tmp_path, predictions, solution):
    (tmp_path / "predictions.csv").write_text(predictions)
    (tmp_path / "solution.csv").write_text(solution)
    return tmp_path / "predictions.csv", tmp_path / "solution.csv"


def refused(tmp_path, predictions, solution, **options):
    with pytest.raises(UserError) as caught:
        score_predictions(*files(tmp_path, predictions, solution), **options)
    return str(caught.value)


FOUR = "id,label\na,cat\nb,dog\nc,cat\nd,dog\n"


def test_scores_join_by_id_in_any_order(tmp_path):
    scores = score_predictions(*files(tmp_path, FOUR, "id,label\nd,dog\na,cat\nc,dog\nb,dog\n"))
    assert scores["rows"] == 4
    assert scores["class_names"] == ["cat", "dog"]
    assert scores["metrics"]["accuracy"] == 0.75
    # cat: 1 of 1 found, 1 of 2 right; dog: 2 of 3 found, 2 of 2 right.
    assert scores["metrics"]["macro_f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert "loss" not in scores["metrics"]


def test_usage_gives_scores_by_part(tmp_path):
    solution = "id,label,Usage\na,cat,Public\nb,cat,Private\nc,cat,Private\nd,cat,Ignored\n"
    scores = score_predictions(*files(tmp_path, FOUR, solution))
    assert scores["rows"] == 3
    assert list(scores["parts"]) == ["Public", "Private"]
    assert [scores["parts"][part]["accuracy"] for part in ("Public", "Private")] == [1.0, 0.5]
    assert scores["metrics"]["accuracy"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("solution", ["id,cat,dog\na,1,0\nb,0,1\n", "id,label\nb,dog\na,cat\n"])
def test_probabilities_are_scored_with_log_loss(tmp_path, solution):
    metrics = score_predictions(*files(tmp_path, "id,dog,cat\na,0.2,0.8\nb,0.4,0.6\n", solution))["metrics"]
    assert metrics["accuracy"] == 0.5
    assert metrics["loss"] == pytest.approx(-(np.log(0.8) + np.log(0.4)) / 2)


def test_other_column_names_in_the_solution(tmp_path):
    scores = score_predictions(*files(tmp_path, FOUR, "truth,image_id\ncat,a\ndog,b\ncat,c\ndog,d\n"))
    assert scores["metrics"]["accuracy"] == 1


def test_classes_of_the_model_and_labels_it_does_not_know(tmp_path):
    scores = score_predictions(
        *files(tmp_path, FOUR, "id,label\na,Cat\nb,dog\nc,cat\nd,dog\n"), target=multiclass(["cat", "bird"])
    )
    assert set(scores["class_names"]) == {"bird", "Cat", "cat", "dog"}
    assert (scores["unseen"], scores["foreign"]) == (["Cat", "dog"], ["dog"])


@pytest.mark.parametrize(
    ("target", "form", "predictions", "solution", "metric"),
    [
        (
            Target("multilabel", ("c", "d")),
            SubmissionForm(
                "rows", ("id", "v"), "id", ("a_c", "a_d"), None, subjects=("a",) * 2, row_labels=("c", "d")
            ),
            "id,v\na_c,0.9\na_d,0.1\n",
            "id,v\na_c,True\na_d,False\n",
            "roc_auc",
        ),
        (
            Target("binary", ("1", "0"), positive=("0",)),
            SubmissionForm("probability", ("id", "p"), "id", ("a", "b"), None),
            "id,p\na,0.9\nb,0.2\n",
            "id,label\na,0\nb,1\n",
            "roc_auc",
        ),
        (
            NUMBERS,
            SubmissionForm("number", ("id", "y", "x"), "id", ("a", "b"), None),
            "id,y,x\na,590,2\nb,410,1\n",
            "id,y,x\na,500,0\nb,500,3\n",
            "loss",  # each number is wrong by one scale
        ),
        (
            multiclass(("0", "1")),
            LABEL,
            "id,label\na,0\nb,1\n",
            "id,label\na,0.0\nb,1.0\n",
            "accuracy",
        ),
        (
            Target("multilabel", ("x", "y", "z"), separator="|"),
            SubmissionForm("labels", ("id", "label"), "id", ("a", "b"), None, separator="|"),
            "id,label\na,x|y\nb,z\n",
            "id,label\na,x y\nb,z\n",
            "micro_f1",
        ),
    ],
    ids=["rows of yes and no", "the label 0 is positive", "numbers in order", "1.0 is 1", "another mark"],
)
def test_a_solution_is_read_as_it_is_written(tmp_path, target, form, predictions, solution, metric) -> None:
    paths = files(tmp_path, predictions, solution)
    scores = score_predictions(
        *paths, form=form, target=target, metric="rmse" if target is NUMBERS else metric
    )
    assert scores["metrics"][metric] == pytest.approx(1.0)
    assert not scores["unseen"]


ROWS = SubmissionForm(
    "rows",
    ("id", "v"),
    "id",
    ("a_c", "a_d", "b_c", "b_d"),
    None,
    subjects=("a", "a", "b", "b"),
    row_labels=("c", "d") * 2,
)


@pytest.mark.parametrize(
    ("target", "form", "predictions", "solution", "right"),
    [
        (
            Target("multilabel", ("c", "d")),
            SubmissionForm("probabilities", ("id", "c", "d"), "id", ("a", "b"), None, decided=True),
            "id,c,d\na,1,0\nb,0,0\n",
            "id,c,d\na,1,1\nb,0,1\n",
            2 / 4,  # nothing is chosen in row b, and nothing is added to it
        ),
        (
            multiclass(("c", "d")),
            SubmissionForm("probabilities", ("id", "c", "d"), "id", ("a", "b"), None, decided=True),
            "id,c,d\na,1,0\nb,0,1\n",
            "id,label\na,c\nb,c\n",
            1 / 2,
        ),
        (
            Target("multilabel", ("c", "d")),
            replace(ROWS, decided=True),
            "id,v\na_c,1\na_d,0\nb_c,0\nb_d,1\n",
            "id,v\na_c,1\na_d,1\nb_c,0\nb_d,1\n",
            3 / 4,
        ),
    ],
    ids=["several labels", "one class", "rows"],
)
def test_labels_written_as_0_and_1_are_no_probabilities(
    tmp_path, target, form, predictions, solution, right
) -> None:
    """A log loss or AUC of decisions would look like one of the model."""
    found = score_predictions(*files(tmp_path, predictions, solution), form=form, target=target)["metrics"]
    assert found.get("accuracy", found.get("label_accuracy")) == pytest.approx(right)
    assert not {"loss", "log_loss", "roc_auc", "average_precision", "pf1"} & set(found)


def test_rows_of_several_numbers_are_told_apart_from_a_mean_over_columns(tmp_path) -> None:
    """RMSE of all rows together is not the mean of each number's RMSE, which validation gives."""
    form = replace(ROWS, row_labels=("x", "y") * 2, of_numbers=True)
    paths = files(tmp_path, "id,v\na_c,0\na_d,0\nb_c,0\nb_d,0\n", "id,v\na_c,1\na_d,7\nb_c,1\nb_d,7\n")
    scores = score_predictions(*paths, form=form, target=NUMBERS, metric="rmse")
    assert scores["metrics"]["rmse"] == pytest.approx(5.0)  # sqrt((1 + 49) / 2); by columns (1 + 7) / 2
    assert scores["pooled"] and "2 labels" in scores["of"]
    assert differs_by_column("rmse") and differs_by_column("auc") and not differs_by_column("log_loss")


def test_what_is_counted_is_called_by_its_name(tmp_path) -> None:
    form = SubmissionForm("number", ("id", "x", "y"), "id", ("a", "b"), None)
    paths = files(tmp_path, "id,x,y\na,1,2\nb,3,4\n", "id,x,y\na,1,2\nb,3,5\n")
    assert score_predictions(*paths, form=form, target=NUMBERS, metric="rmse")["of"] == "2 numbers"


def test_a_grade_that_only_the_solution_has_keeps_its_distance(tmp_path):
    paths = files(tmp_path, "id,label\na,0\nb,1\nc,2\nd,4\ne,4\n", "id,label\na,0\nb,1\nc,2\nd,3\ne,4\n")
    scores = score_predictions(
        *paths, form=LABEL, target=Target("ordinal", ("0", "1", "2", "4")), metric="qwk"
    )
    golden = cohen_kappa_score([0, 1, 2, 4, 4], [0, 1, 2, 3, 4], weights="quadratic", labels=range(5))
    assert scores["metrics"]["qwk"] == pytest.approx(golden, abs=1e-12)
    assert scores["unseen"] == ["3"]


@pytest.mark.parametrize(("truth", "right"), [("4", 1), ("3", 3 / 4)])  # 3: a grade of the solution alone
def test_a_column_for_each_grade_in_any_order(tmp_path, truth: str, right: float) -> None:
    form = SubmissionForm("probabilities", ("id", "4", "2", "1", "0"), "id", tuple("abcd"), None)
    lines = ["id,4,2,1,0", "a,0,0,0,1", "b,0,0,1,0", "c,0.1,0.9,0,0", "d,1,0,0,0"]
    paths = files(tmp_path, "\n".join(lines) + "\n", f"id,label\na,0\nb,1\nc,2\nd,{truth}\n")
    target = Target("ordinal", ("0", "1", "2", "4"))
    found = score_predictions(*paths, form=form, target=target, metric="qwk")["metrics"]
    golden = cohen_kappa_score([0, 1, 2, 4], [0, 1, 2, int(truth)], weights="quadratic", labels=range(5))
    assert found["accuracy"] == pytest.approx(right) and found["qwk"] == pytest.approx(golden, abs=1e-12)


@pytest.mark.parametrize(
    ("target", "predictions", "solution", "metric"),
    [
        (
            Target("binary", ("cat", "dog"), positive=("dog",)),
            "id,p\na,0.9\nb,0.2\n",
            "id,p\na,1\nb,0\n",
            "roc_auc",
        ),
        (
            Target("binary", ("cat", "dog"), positive=("dog",)),
            "id,p\na,1\nb,0\n",
            "id,p\na,dog\nb,cat\n",
            "accuracy",
        ),
        (
            multiclass(("x", "y", "z")),
            "id,label\na,x y\nb,z x\n",
            "id,label\na,x\nb,z\n",
            "map_at_5",
        ),
        (
            Target("multilabel", ("x", "y", "z")),
            "id,label\na,x y\nb,z\n",
            "id,label\na,x y\nb,z\n",
            "micro_f1",
        ),
        (
            Target("multilabel", ("x", "y")),
            "id,x,y\na,0.9,0.8\nb,0.2,0.1\nc,0.3,0.7\n",
            "id,x,y\na,1,1\nb,0,0\nc,0,1\n",
            "roc_auc",
        ),
        (NUMBERS, "id,y,x\na,500.5,1\nb,500,2\n", "id,y,x\na,500.5,1\nb,500,2\n", "r2"),
    ],
    ids=["probabilities", "zeros and ones", "guesses", "several labels", "columns of labels", "numbers"],
)
def test_without_a_sample_the_target_says_what_the_file_holds(
    tmp_path, target, predictions, solution, metric
) -> None:
    scores = score_predictions(*files(tmp_path, predictions, solution), target=target, metric=metric)
    assert scores["metrics"][metric] == pytest.approx(1.0) and not scores["foreign"]


@pytest.mark.parametrize("target", [None, multiclass(("cat", "dog"))])
def test_numbers_of_unknown_meaning_are_not_scored_as_labels(tmp_path, target) -> None:
    message = refused(tmp_path, "id,label\na,0.9\nb,0.2\n", "id,label\na,1\nb,0\n", target=target)
    assert "'label'" in message and "'0.9'" in message and "--data" in message


def test_ids_that_do_not_match(tmp_path):
    message = refused(tmp_path, FOUR, "id,label\na,cat\nb,dog\nx,cat\n")
    assert "predictions.csv cannot be scored against" in message
    assert "1 id missing: 'x'" in message
    assert "2 unexpected ids, rows 4, 5: 'c', 'd'" in message


def test_other_broken_solutions(tmp_path):
    assert "rows 2, 3: the id 'a' occurs 2 times" in refused(tmp_path, FOUR, "id,label\na,cat\na,dog\n")
    assert "solution.csv, row 3: no label in column 'label'" in refused(
        tmp_path, FOUR, "id,label\na,cat\nb,\n"
    )
    assert "the label may be in 'x', 'z'" in refused(tmp_path, FOUR, "id,x,z\na,1,2\n")
    assert "there is no label column" in refused(tmp_path, FOUR, "id,Usage\na,Public\n")
    assert "has no rows: ids and labels are needed" in refused(tmp_path, FOUR, "id,label\n")
    ignored = "id,label,Usage\n" + "".join(f"{image_id},cat,Ignored\n" for image_id in "abcd")
    assert "every row is marked as ignored" in refused(tmp_path, FOUR, ignored)


def test_other_broken_predictions(tmp_path):
    solution = "id,label\na,cat\nb,dog\n"
    assert "row 3: no label in column 'label'" in refused(tmp_path, "id,label\na,cat\nb,\n", solution)
    assert "it has 0 rows" in refused(tmp_path, "id,label\n", solution)
    assert "no number in column 'cat': 'x'" in refused(tmp_path, "id,cat,dog\na,x,1\nb,0,1\n", solution)
    message = refused(tmp_path, "id,Cat,dog\na,1,0\nb,0,1\n", solution)
    assert "the solution's label 'cat' has no column (nearest: 'Cat')" in message


def command(tmp_path, *more):
    predictions, solution = tmp_path / "predictions.csv", tmp_path / "solution.csv"
    model, data = tmp_path / "model", tmp_path / "data"
    return main(
        [
            *("--solution", f"{solution}", "--predictions", f"{predictions}", "--model", f"{model}"),
            *("--data", f"{data}"),
            *more,
        ]
    )


def test_the_command_prints_scores_and_keeps_them(tmp_path, capsys):
    files(tmp_path, FOUR, "id,label,Usage\na,cat,Public\nb,dog,Public\nc,dog,Private\nd,dog,Private\n")
    (tmp_path / "model").mkdir()
    (tmp_path / "model/run.json").write_text(json.dumps({"format": 1, "class_names": ["cat", "dog"]}))
    assert command(tmp_path) == 0
    output = capsys.readouterr().out
    assert "4 rows, 2 classes" in output
    assert [line.split() for line in output.splitlines() if line.startswith(("  ", "accuracy"))] == [
        ["all", "Public", "Private"],
        ["accuracy", "0.7500", "1.0000", "0.5000"],
    ]
    kept = json.loads((tmp_path / "model/scores.json").read_text())
    assert set(kept) == {"predictions", "sha256", "solution", "time", "rows", "metrics", "parts"}
    assert kept["sha256"] == sha256(tmp_path / "predictions.csv")
    assert (kept["rows"], kept["metrics"]["accuracy"], kept["parts"]["Private"]["accuracy"]) == (4, 0.75, 0.5)


def test_scores_are_not_kept_beside_a_run_that_did_not_make_them(tmp_path, capsys):
    files(tmp_path, FOUR, FOUR)
    assert command(tmp_path) == 0
    output = capsys.readouterr().out
    assert "model holds no finished run" in output and "--model" in output
    (tmp_path / "model").mkdir()
    (tmp_path / "model/run.json").write_text(json.dumps({"format": 1, "class_names": ["cat", "bird"]}))
    assert command(tmp_path) == 0
    output = capsys.readouterr().out
    assert "did not make these predictions (labels 'dog')" in output
    assert "note: labels of" in output
    assert not (tmp_path / "model/scores.json").exists()


def test_the_command_takes_the_id_column_from_the_sample(tmp_path, capsys):
    files(tmp_path, "label,key\ncat,a\ndog,b\n", "key,label\na,cat\nb,dog\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/sample_submission.csv").write_text("key,label\na,cat\nb,cat\n")
    assert command(tmp_path) == 0
    assert "accuracy" in capsys.readouterr().out


def test_the_command_without_files(tmp_path):
    with pytest.raises(UserError, match=r"predictions\.csv does not exist"):
        command(tmp_path)
    with pytest.raises(SystemExit):
        main([])
