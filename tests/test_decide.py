"""What labels mean: each kind of evidence alone, two readings refused with the flag for each, and flags that
contradict the data.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from conftest import assert_says

from pipeline.competition.spelling import other_spellings
from pipeline.errors import UserError
from pipeline.targets.decide import decide
from pipeline.targets.evidence import Asked, Decision, LabelEvidence, SampleEvidence
from pipeline.targets.readings import number

FLAGS = ["0", "1"] * 20
GRADES = ["0", "1", "2", "3", "4"] * 6
PETS = ["cat", "dog"] * 8
STEGO = ["Cover", "JMiPOD", "UERD"] * 4
RUST = ["rust", "scab", "rust scab", "healthy", "scab frog", "frog"] * 4
TAGS = [
    "clear",
    "clear primary",
    "cloudy",
    "primary agriculture clear",
    "water primary",
    "agriculture water",
] * 3
APPLES = ["Granny Smith", "Golden Delicious", "Red Delicious", "Fuji"] * 4
DRESSES = ["black dress", "black shirt", "blue dress", "blue shirt", "red dress", "red shirt"] * 3


def read(
    texts: Sequence[str],
    sample: Sequence[str] | None = None,
    *,
    column: str = "label",
    source: str = "table",
    **asked: object,
) -> Decision:
    evidence = LabelEvidence(source, "train.csv", tuple(texts), column="label")
    cells = (
        None if sample is None else SampleEvidence("sample.csv", (column,), tuple((cell,) for cell in sample))
    )
    return decide(evidence, cells, Asked(**asked))


def read_columns(cells: Sequence[str], sample: str = "0", **asked: object) -> Decision:
    """Three label columns a, b, c; a row as the text `100`."""
    rows = tuple(tuple(row.split()) if " " in row else tuple(row) for row in cells)
    sample_rows = SampleEvidence("sample.csv", ("a", "b", "c"), ((sample,) * 3,))
    return decide(
        LabelEvidence("table", "train.csv", columns=("a", "b", "c"), cells=rows), sample_rows, Asked(**asked)
    )


def refused(*arguments: object, **more: object) -> str:
    with pytest.raises(UserError) as caught:
        read(*arguments, **more)
    return str(caught.value)


@pytest.mark.parametrize(
    ("texts", "sample", "more", "kind", "metric", "names"),
    [
        (PETS, ["cat"], {}, "multiclass", "accuracy", ("cat", "dog")),
        (FLAGS, ["0.5"], {"column": "has_cactus"}, "binary", "log_loss", ("0", "1")),
        (FLAGS, ["0"], {"metric": "roc_auc"}, "binary", "roc_auc", ("0", "1")),
        (FLAGS, ["0"], {"metric": "pf1"}, "binary", "pf1", ("0", "1")),
        (FLAGS, ["0"], {"metric": "accuracy"}, "multiclass", "accuracy", ("0", "1")),
        (["False", "True"] * 5, ["0.3"], {}, "binary", "log_loss", ("False", "True")),
        (PETS, ["0.5"], {"column": "is_dog"}, "binary", "log_loss", ("cat", "dog")),
        (PETS, ["0.5"], {"positive_class": ("dog",)}, "binary", "log_loss", ("cat", "dog")),
        (
            STEGO,
            ["0"],
            {"metric": "auc", "positive_class": ("JMiPOD", "UERD")},
            "binary",
            "roc_auc",
            ("Cover", "JMiPOD, UERD"),
        ),
        (
            ["new_whale", "w_1", "w_2"] * 3,
            ["new_whale w_7 w_8"],
            {},
            "multiclass",
            "map_at_3",
            ("new_whale", "w_1", "w_2"),
        ),
        (
            ["w_1", "w_2", "w_3"] * 3,
            ["w_1"],
            {"metric": "map@5"},
            "multiclass",
            "map_at_5",
            ("w_1", "w_2", "w_3"),
        ),
        (RUST, ["healthy"], {}, "multilabel", "micro_f1", ("frog", "healthy", "rust", "scab")),
        (
            TAGS,
            ["primary cloudy"],
            {},
            "multilabel",
            "micro_f1",
            ("agriculture", "clear", "cloudy", "primary", "water"),
        ),
        (
            ["16 0", "7", "0", "0 7", "16", "7 16"] * 3,
            ["0"],
            {"metric": "macro_f1"},
            "multilabel",
            "macro_f1",
            ("0", "7", "16"),
        ),
        (
            APPLES,
            ["Fuji"],
            {},
            "multiclass",
            "accuracy",
            ("Fuji", "Golden Delicious", "Granny Smith", "Red Delicious"),
        ),
        (
            DRESSES,
            ["red shirt"],
            {"kind": "multilabel"},
            "multilabel",
            "micro_f1",
            ("black", "blue", "dress", "red", "shirt"),
        ),
        (GRADES, ["0"], {}, "multiclass", "accuracy", ("0", "1", "2", "3", "4")),
        (GRADES, ["0"], {"metric": "qwk"}, "ordinal", "qwk", ("0", "1", "2", "3", "4")),
        (["10", "9", "1"] * 3, ["1"], {"kind": "ordinal"}, "ordinal", "qwk", ("1", "9", "10")),
        ([str(number) for number in range(1, 101)], ["12.5"], {}, "continuous", "rmse", ("label",)),
        (["1.5", "2", "3.25"], ["0"], {}, "continuous", "rmse", ("label",)),
        (GRADES, ["0"], {"metric": "mae"}, "continuous", "mae", ("label",)),
        (GRADES, ["2.5"], {}, "continuous", "rmse", ("label",)),
        (
            [str(number) for number in range(60)],
            ["0"],
            {"metric": "macro_f1"},
            "multiclass",
            "macro_f1",
            tuple(map(str, range(60))),
        ),
        (
            [str(number) for number in range(60)],
            ["0"],
            {"source": "folders"},
            "multiclass",
            "accuracy",
            tuple(map(str, range(60))),
        ),
    ],
)
def test_one_reading(texts, sample, more, kind, metric, names) -> None:
    decision = read(texts, sample, **more)
    assert (decision.target.kind, decision.metric, decision.target.names) == (kind, metric, names)
    assert len(decision.target.encode(decision.labels)) == len(texts)
    assert metric in decision.says


@pytest.mark.parametrize("sample", [None, ["1"], ["0.5"], ["cat"]])
@pytest.mark.parametrize("kind", ["multiclass", "binary", "multilabel", "ordinal", "continuous"])
@pytest.mark.parametrize("texts", [PETS, FLAGS, GRADES, STEGO, RUST, ["0.5", "1.5", "2"] * 5])
def test_a_kind_that_is_set_is_never_ignored(texts: list[str], kind: str, sample: list[str] | None) -> None:
    try:
        assert read(texts, sample, kind=kind).target.kind == kind
    except UserError as error:
        assert any(
            flag in str(error) for flag in ("--target", "--positive-class", "--metric", "not a number")
        )


def test_one_of_several_numbers_has_the_probability() -> None:
    found = read(GRADES, ["0.5"], kind="binary", positive_class=("3", "4"))
    assert found.target.names == ("0, 1, 2", "3, 4") and found.target.positive == ("3", "4")
    assert_says(refused(GRADES, ["0.5"], kind="binary"), "--positive-class 1")


def test_one_number_of_a_cell_may_be_one_of_several_labels() -> None:
    assert read(GRADES, kind="multilabel").target.names == ("0", "1", "2", "3", "4")


def test_classes_in_one_column_of_probabilities_contradict_the_kind() -> None:
    message = refused(PETS, ["0.5"], column="dog", kind="multiclass", metric="log_loss")
    assert_says(message, "--target multiclass", "'dog'", "--target binary")


def test_grades_with_a_gap_are_told() -> None:
    decision = read(["0", "1", "2", "10"] * 6, ["0"], metric="qwk")
    assert decision.target.names == ("0", "1", "2", "10")
    assert_says(" ".join(decision.notes), "between 2 and 10", "8", "--metric accuracy")
    assert not read(["1", "2", "3"] * 6, ["1"], metric="qwk").notes
    assert_says(refused(["1", "01", "2"] * 6, ["1"], metric="qwk"), "train.csv", "'01'", "'1'")
    large = [str(2**53 + step) for step in range(4)]  # which float64 cannot tell apart
    target = read(large[::-1] * 6, large[:1], metric="qwk").target
    assert target.names == tuple(large) and target.grades.tolist() == [0, 1, 2, 3]


def test_large_numbers_that_float64_cannot_tell_apart_are_two_labels() -> None:
    one, next_one = str(2**53), str(2**53 + 1)
    assert number(one) != number(next_one) and number(f"{next_one}.0") == number(next_one)
    assert other_spellings([next_one], {one, "7"}) == {}
    assert other_spellings([f"{next_one}.0"], {one, next_one}) == {f"{next_one}.0": next_one}


def test_the_positive_class_is_what_is_encoded_as_one() -> None:
    decision = read(STEGO, ["0"], metric="roc_auc", positive_class=("JMiPOD", "UERD"))
    assert decision.target.encode(decision.labels)[:3, 0].tolist() == [0, 1, 1]
    decision = read(["0.0", "1.0"] * 8, ["0"], metric="roc_auc", positive_class=("1",))
    assert decision.target.positive == ("1.0",)
    decision = read(PETS, ["0.5"], column="dog")
    assert decision.target.encode(decision.labels)[:2, 0].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("texts", "sample", "more", "flags"),
    [
        (FLAGS, ["0"], {}, ["--metric roc_auc", "--metric accuracy"]),
        (FLAGS, [""], {}, ["--metric roc_auc", "--metric accuracy"]),
        (PETS, ["0.5"], {}, ["--positive-class cat", "--positive-class dog"]),
        (STEGO, ["0"], {"metric": "roc_auc"}, ["--positive-class Cover", "--positive-class A,B"]),
        (PETS, ["0"], {"source": "folders"}, ["--positive-class", "--target multiclass"]),
        (DRESSES, ["red shirt"], {}, ["--target multiclass", "--target multilabel"]),
        (
            [str(number) for number in range(60)],
            ["0"],
            {},
            ["--metric accuracy", "--metric rmse", "--metric qwk"],
        ),
        (["1", "2"] * 9, ["0.5"], {}, ["--positive-class 2", "--metric rmse"]),
        (["-1", "1"] * 9, ["0.5"], {}, ["--positive-class", "--metric rmse"]),
        (
            ["-1", "0", "1"] * 9,
            ["0.5"],
            {},
            ["--positive-class", "several as --positive-class A,B", "--metric rmse"],
        ),
        (GRADES, ["0.5"], {}, ["--positive-class A,B", "--metric rmse"]),
        (["1,3", "2,1", "0", "1,1", "3,2"] * 4, ["0"], {}, ["'1.3'", "--target multilabel"]),
        (["0,5", "1,5", "2,5", "3,5"] * 4, ["0,5"], {}, ["'0.5'", "--target multilabel"]),
        (["0,5", "1,5", "2,5", "3,5"] * 4, None, {}, ["'0.5'", "--target multilabel"]),
        (["1,500", "2,500"] * 9, ["0"], {}, ["'1.500' or '1500'", "--target multilabel"]),
        (["['cat' 'dog']", "['cat']"] * 4, ["cat"], {}, ["no commas", "--target multiclass"]),
    ],
)
def test_two_readings_are_an_error_that_shows_both(texts, sample, more, flags) -> None:
    message = refused(texts, sample, **more)
    assert "train.csv" in message
    assert [flag for flag in flags if flag not in message] == []


@pytest.mark.parametrize(
    ("texts", "more", "shown"),
    [
        (PETS, {"metric": "acuracy"}, "'accuracy'"),
        (PETS, {"kind": "multiclas"}, "'multiclass'"),
        (PETS, {"metric": "rmse"}, "'cat'"),
        (PETS, {"metric": "qwk"}, "'cat'"),
        (PETS, {"metric": "roc_auc", "positive_class": ("dgo",)}, "'dog'"),
        (PETS, {"metric": "roc_auc", "positive_class": ("cat", "dog")}, "--positive-class cat,dog"),
        (["1.5", "2"], {"kind": "ordinal"}, "'1.5'"),
        (GRADES, {"metric": "rmse", "kind": "ordinal"}, "rmse"),
        (FLAGS, {"metric": "rmse", "positive_class": ("1",)}, "rmse"),
    ],
)
def test_what_is_asked_for_must_fit_the_data(texts, more, shown) -> None:
    assert shown in refused(texts, ["x"], **more)


@pytest.mark.parametrize(
    ("cells", "more", "kind", "metric"),
    [
        (["100", "010", "001"], {}, "multiclass", "log_loss"),
        (["100", "010", "001"], {"metric": "roc_auc"}, "multiclass", "roc_auc"),
        (["100", "010", "001"], {"metric": "samples_f2"}, "multilabel", "samples_f2"),
        (["100", "011", "000"], {}, "multilabel", "log_loss"),
        (["0.1 0.9 0", "0.2 0.3 0.1"], {"metric": "rmse"}, "continuous", "rmse"),
        (["10.5 3 0", "20 4 1"], {}, "continuous", "rmse"),
    ],
)
def test_labels_in_columns(cells, more, kind, metric) -> None:
    decision = read_columns(cells, **more)
    assert (decision.target.kind, decision.metric, decision.target.names) == (kind, metric, ("a", "b", "c"))
    assert len(decision.target.encode(decision.labels)) == len(cells)


@pytest.mark.parametrize("metric", [None, "rmse"])
@pytest.mark.parametrize(
    ("texts", "written"),
    [(["0,5", "1,5", "2,5", "3"], "0.5"), (["1,500", "2,500", "3,500", "4,500"], "1.500 or 1500")],
)
def test_a_comma_in_a_number_is_named_with_what_it_may_mean(texts, written, metric) -> None:
    """Not as a class whose probability is asked for, nor as a reason for another metric."""
    message = refused(texts, ["0.5"], **({"metric": metric} if metric else {}))
    assert_says(message, repr(texts[0]), "comma", f"{texts[0]!r} as {written}")
    assert "name another" not in message
    with pytest.raises(UserError, match=r"'2,25'.*comma.*2\.25"):
        read_columns(["0.5 2,25 1", "0.75 2 1"], metric="rmse")


@pytest.mark.parametrize("unit", [" kg", "%", "cm"])
def test_a_number_with_a_unit_is_named_as_such(unit) -> None:
    texts = [f"{number}.5{unit}" for number in range(20)]
    message = refused(texts, ["0"], metric="rmse")
    assert_says(message, repr(texts[0]), "unit", "as 0.5")
    assert "name another" not in message
    assert_says(refused(texts, ["0"]), "unit", "as 0.5")
    assert "unit" not in refused([f"{number}x{number}" for number in range(20)], ["0"], metric="rmse")


def test_a_class_that_may_mean_no_label_is_noted() -> None:
    assert "'-1' is a class too" in read(["-1", "0", "1", "2"] * 5, ["0"]).notes[0]
    assert "'-1'" not in read(["-1", "0", "1"] * 5, ["0"]).notes[0]


def test_spaces_behind_commas_belong_to_the_commas() -> None:
    cells = ["clear sky", "haze, road", "clear sky, road", "haze", "clear sky, haze, road"]
    decision = decide(
        LabelEvidence("table", "train.csv, column 'tags'", texts=tuple(cells), column="tags"), None
    )
    assert decision.target.names == ("clear sky", "haze", "road") and decision.labels[2] == "clear sky, road"


PLANTS = ("Tomato", "Potato", "Apple", "Grape", "Corn")


@pytest.mark.parametrize("between", [" ", " - "])
def test_names_that_share_words_are_not_taken_for_several_labels(between) -> None:
    names = [f"{plant}{between}{state}" for plant in PLANTS for state in ("healthy", "Late blight")]
    assert_says(refused(names * 3, names[:2]), repr(names[0]), "--target multiclass", "--target multilabel")
    assert set(read(names * 3, names[:2], kind="multiclass").target.names) == set(names)


@pytest.mark.parametrize("between", [" + ", " & ", " / ", " and ", "||"])
def test_a_mark_between_labels_is_no_label(between) -> None:
    texts = ["cat", "dog", "fox", "cat+dog", "dog+fox", "cat+dog+fox"] * 4
    decision = read([text.replace("+", between) for text in texts], ["cat"])
    assert decision.target.names == ("cat", "dog", "fox") and decision.target.separator == between
    assert decision.labels[5] == f"cat{between}dog{between}fox"


@pytest.mark.parametrize("between", ["/", "+", "\n", "_"])
def test_labels_that_others_join_are_two_readings(between) -> None:
    texts = ["cat", "dog", "fox", f"cat{between}dog", f"dog{between}fox"] * 4
    assert_says(refused(texts, ["cat"]), repr(texts[3]), "--target multiclass", "--target multilabel")
    assert read(texts, ["cat"], kind="multilabel").target.names == ("cat", "dog", "fox")
    assert read(texts[:4] * 5, ["cat"]).target.kind == "multiclass"  # one such name says little


def test_several_labels_keep_the_rows_without_any() -> None:
    decision = read_columns(["100", "011", "000"])
    assert decision.target.encode(decision.labels).tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 0]]
    assert decision.target.may_be_empty


@pytest.mark.parametrize("cell", ["a", "0.5", "0", ""])
def test_label_columns_and_one_column_in_the_sample_that_shows_no_mark(cell) -> None:
    rows = tuple(tuple(row) for row in ("100", "011", "000"))
    labels = LabelEvidence("table", "train.csv", columns=("a", "b", "c"), cells=rows)
    sample = SampleEvidence("sample.csv", ("tags",), ((cell,), (cell,)))
    with pytest.raises(UserError) as caught:
        decide(labels, sample, Asked(metric="micro_f1"))
    assert_says(str(caught.value), "train.csv", "'tags'", cell or "nothing", "separator", "data.label_column")
    assert decide(labels, sample, Asked(metric="micro_f1", separator=";")).target.separator == ";"
    shown = SampleEvidence("sample.csv", ("tags",), (("c|a",), ("b",)))
    assert decide(labels, shown, Asked()).target.separator == "|"


@pytest.mark.parametrize("cells", [["1 0 -1", "0 1 0", "-1 -1 1"], ["0 1 2", "2 1 0"]])
def test_columns_of_few_whole_numbers_and_a_sample_of_a_half_are_two_readings(cells) -> None:
    with pytest.raises(UserError) as caught:
        read_columns(cells, sample="0.5")
    other = "'-1'" if "-1" in cells[0] else "'2'"
    assert_says(str(caught.value), "train.csv", "a, b, c", "0.5", other, "--metric roc_auc", "--metric rmse")
    assert read_columns(cells, sample="0.5", metric="rmse").target.kind == "continuous"
    with pytest.raises(UserError) as caught:
        read_columns(cells, sample="0.5", metric="roc_auc")
    assert_says(str(caught.value), "train.csv", other, "0 or 1")


@pytest.mark.parametrize(
    ("cells", "more", "shown"),
    [
        (["0.1 0.9 0", "0.2 0.3 0.1"], {}, "--metric rmse"),
        (["x 0 1", "0 1 0"], {}, "'x'"),
        (["100", "011"], {"kind": "multiclass"}, "--target multiclass"),
        (["0.5 0 1", "0 1 0"], {"metric": "roc_auc"}, "'0.5'"),
    ],
)
def test_columns_that_cannot_be_read(cells, more, shown) -> None:
    with pytest.raises(UserError) as caught:
        read_columns(cells, **more)
    assert shown in str(caught.value)


def test_a_column_of_zeros_and_ones_beside_numbers_is_another_question() -> None:
    cells = ["0 610.5 3", "1 620 4", "1 630.5 3", "0 640 7"] * 3
    with pytest.raises(UserError) as caught:
        read_columns(cells, "0.5")
    message = str(caught.value)
    assert "a holds only 0 and 1" in message and "--metric rmse" in message
    assert "--set data.label_column=NAME" in message
    assert read_columns(cells, "0.5", metric="rmse").target.kind == "continuous"  # as the message says
    constant = [f"0{row[1:]}" for row in cells]  # the number 0 in every row tells no class
    assert read_columns(constant, "0.5").target.kind == "continuous"


def test_a_positive_class_is_for_labels_in_one_column() -> None:
    with pytest.raises(UserError, match=r"--positive-class b: .* 3 columns \(a, b, c\).*label_column"):
        read_columns(["100", "010", "001"], positive_class=("b",))


def test_a_number_that_float32_cannot_hold_is_refused() -> None:
    decided = read_columns(["1 2 1.5", "3 4 1e39"], sample="0.5", metric="rmse")
    with pytest.raises(UserError, match=r"1e39.* too large"):
        decided.target.fitted(decided.labels)
