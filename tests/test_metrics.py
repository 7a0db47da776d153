"""Metrics against scikit-learn, called directly, and formulas written out where it has none."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import pytest
import sklearn.metrics as skm
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, log_loss, precision_recall_fscore_support, top_k_accuracy_score
from sklearn.metrics import confusion_matrix as sklearn_confusion

from pipeline.errors import UserError
from pipeline.targets.decide import decide
from pipeline.targets.evidence import Asked, LabelEvidence
from pipeline.targets.measures import top_ranks
from pipeline.targets.metrics import (
    METRICS,
    all_metrics,
    classification_metrics,
    confusion_matrix,
    evaluate,
    evaluate_labels,
    evaluate_ranks,
    find_metric,
    left_out,
    metric_for,
    per_class,
    softmax,
    why_undefined,
)
from pipeline.targets.target import Target, multiclass


@st.composite
def predictions(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    """Labels, predicted classes and their number; some classes may occur nowhere."""
    num_classes = draw(st.integers(2, 12))
    pairs = st.tuples(st.integers(0, num_classes - 1), st.integers(0, num_classes - 1))
    labels, predicted = zip(*draw(st.lists(pairs, min_size=1, max_size=60)), strict=True)
    return np.array(labels), np.array(predicted), num_classes


@settings(max_examples=150, deadline=None)
@given(predictions())
def test_averages_are_scikit_learns(case: tuple[np.ndarray, np.ndarray, int]) -> None:
    labels, predicted, num_classes = case
    metrics = classification_metrics(labels, predicted, num_classes)
    assert metrics["accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    for average in ("macro", "weighted"):
        expected = precision_recall_fscore_support(labels, predicted, average=average, zero_division=0)
        found = [metrics[f"{average}_{name}"] for name in ("precision", "recall", "f1")]
        assert found == pytest.approx(expected[:3], abs=1e-12)
    assert set(metrics) == {
        "accuracy",
        *(f"{a}_{n}" for a in ("macro", "weighted") for n in ("precision", "recall", "f1")),
    }


@settings(max_examples=50, deadline=None)
@given(predictions())
def test_confusion_and_classes_are_scikit_learns(case: tuple[np.ndarray, np.ndarray, int]) -> None:
    labels, predicted, num_classes = case
    confusion = confusion_matrix(labels, predicted, num_classes)
    np.testing.assert_array_equal(confusion, sklearn_confusion(labels, predicted, labels=range(num_classes)))
    expected = precision_recall_fscore_support(
        labels, predicted, labels=range(num_classes), average=None, zero_division=0
    )
    scores = per_class(confusion)
    for name, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        np.testing.assert_allclose(scores[name], values, atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.integers(1, 40), st.floats(0.1, 30))
def test_loss_and_top5_are_scikit_learns(seed: int, num_classes: int, rows: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    labels, logits = rng.integers(0, num_classes, rows), rng.normal(0, spread, (rows, num_classes))
    probs = softmax(logits)
    metrics = classification_metrics(labels, logits.argmax(axis=1), num_classes, probs)
    # scikit-learn clips there; rows where that matters are left to the next test
    clipped = np.clip(probs, np.finfo(float).eps, 1)
    if (probs[np.arange(rows), labels] > np.finfo(float).eps).all():
        assert metrics["loss"] == pytest.approx(
            log_loss(labels, clipped, labels=range(num_classes)), rel=1e-9, abs=1e-9
        )
    if num_classes > 5:
        assert metrics["top5_accuracy"] == pytest.approx(
            top_k_accuracy_score(labels, probs, k=5, labels=range(num_classes))
        )
    else:
        assert "top5_accuracy" not in metrics  # always 1


def test_a_certain_mistake_has_a_large_and_finite_loss() -> None:
    metrics = classification_metrics([0], [1], 2, np.array([[0.0, 1.0]]))
    assert 700 < metrics["loss"] < 720


def test_a_model_that_says_nothing_gets_no_credit_from_ties() -> None:
    labels = np.arange(10)
    metrics = classification_metrics(labels, np.zeros(10, dtype=int), 10, np.full((10, 10), 0.1))
    assert metrics["accuracy"] == 0.1 and metrics["top5_accuracy"] == 0.5


def test_classes_that_occur_nowhere_do_not_lower_the_macro_average() -> None:
    assert classification_metrics([0, 1], [0, 1], 100)["macro_f1"] == 1.0


def test_softmax_is_safe_and_sums_to_one() -> None:
    logits = np.array([[1e4, 0.0, -1e4], [0.0, 0.0, 0.0], [-1e30, -1e30, 5.0]], dtype=np.float32)
    probs = softmax(logits)
    assert probs.dtype == np.float64
    np.testing.assert_allclose(probs, [[1, 0, 0], [1 / 3] * 3, [0, 0, 1]], atol=1e-12)
    shifted = softmax(np.array([[0.1, 0.7, -3.0]]) + 1000)
    np.testing.assert_allclose(shifted, softmax(np.array([[0.1, 0.7, -3.0]])), rtol=1e-9)


# ---- the table ----

CLASSES = multiclass([f"c{number}" for number in range(7)])
GRADES = Target("ordinal", ("0", "1", "2", "3", "4"))
BINARY = Target("binary", ("benign", "malignant"), positive=("malignant",))
LABELS = Target("multilabel", ("a", "b", "c", "d"), may_be_empty=True)
NUMBERS = Target(
    "continuous", ("x", "y"), center=(3.0, 50.0), scale=(2.0, 10.0), low=(-10.0, 0.0), high=(20.0, 100.0)
)


def case(target: Target, rows: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Truth and predictions that are right more often than not, with equal predictions among them."""
    rng = np.random.default_rng(seed)
    if target.is_choice:
        truth = rng.integers(0, target.num_outputs, rows)
        logits = rng.normal(0, 1, (rows, target.num_outputs)) + 1.5 * np.eye(target.num_outputs)[truth]
    elif target.kind == "continuous":
        truth = rng.normal(target.center, target.scale, (rows, target.num_outputs)).astype(np.float32)
        return truth, (truth + rng.normal(0, 1, truth.shape)).astype(np.float32)
    else:
        truth = (rng.random((rows, target.num_outputs)) < 0.3).astype(np.float32)
        logits = rng.normal(0, 1, truth.shape) + 1.5 * truth - 1
    return truth, target.activate(logits.round(1))


def over_columns(
    function: Callable[[np.ndarray, np.ndarray], float], truth: np.ndarray, values: np.ndarray
) -> float:
    return float(np.mean([function(truth[:, number], values[:, number]) for number in range(truth.shape[1])]))


def one_class_golden(truth: np.ndarray, values: np.ndarray, chosen: np.ndarray) -> dict[str, float]:
    one_hot, exact = np.eye(values.shape[1], dtype=int)[truth], values.astype(np.float64)
    return {
        "accuracy": skm.accuracy_score(truth, chosen),
        "balanced_accuracy": skm.balanced_accuracy_score(truth, chosen),
        "macro_f1": skm.f1_score(truth, chosen, average="macro"),
        "micro_f1": skm.f1_score(truth, chosen, average="micro"),
        "weighted_f1": skm.f1_score(truth, chosen, average="weighted"),
        "macro_precision": skm.precision_score(truth, chosen, average="macro"),
        "weighted_recall": skm.recall_score(truth, chosen, average="weighted"),
        "mcc": skm.matthews_corrcoef(truth, chosen),
        "log_loss": skm.log_loss(truth, exact),
        "roc_auc": skm.roc_auc_score(
            truth, exact / exact.sum(axis=1, keepdims=True), multi_class="ovr", average="macro"
        ),
        "average_precision": skm.average_precision_score(one_hot, exact, average="macro"),
    }


def test_one_class_is_scikit_learns() -> None:
    truth, values = case(CLASSES)
    scores = all_metrics(CLASSES, truth, values)
    golden = one_class_golden(truth, values, values.argmax(axis=1))
    assert {name: scores[name] for name in golden} == pytest.approx(golden, abs=1e-9)
    place = np.array(
        [list(np.argsort(-row, kind="stable")).index(label) for row, label in zip(values, truth, strict=True)]
    )
    assert scores["map_at_5"] == pytest.approx(np.where(place < 5, 1 / (place + 1), 0).mean(), abs=1e-12)
    assert scores["top5_accuracy"] == pytest.approx((place < 5).mean(), abs=1e-12)
    own = values[np.arange(300), truth].astype(np.float64)
    assert scores["loss"] == pytest.approx(-np.log(own).mean(), abs=1e-12)
    assert set(scores) == {name for name, metric in METRICS.items() if "multiclass" in metric.kinds} | {
        *(f"{average}_{name}" for average in ("macro", "weighted") for name in ("precision", "recall", "f1")),
        "loss",
    }


def test_grades_are_decided_by_the_expected_grade() -> None:
    truth, values = case(GRADES)
    scores = all_metrics(GRADES, truth, values)
    chosen = np.floor(values.astype(np.float64) @ np.arange(5) + 0.5).astype(int)
    assert (chosen != values.argmax(axis=1)).any()
    golden = one_class_golden(truth, values, chosen)
    assert {name: scores[name] for name in golden} == pytest.approx(golden, abs=1e-9)
    assert scores["qwk"] == pytest.approx(
        skm.cohen_kappa_score(truth, chosen, weights="quadratic"), abs=1e-12
    )
    assert "top5_accuracy" not in scores and evaluate("top5_accuracy", GRADES, truth, values) is None, (
        "always 1 with five grades"
    )


def test_kappa_keeps_the_distance_over_a_grade_that_does_not_occur() -> None:
    truth, chosen = np.array([0, 0, 4, 4]), np.array([0, 4, 4, 3])
    expected = skm.cohen_kappa_score(truth, chosen, weights="quadratic", labels=range(5))
    assert evaluate_labels("qwk", GRADES, truth, chosen) == pytest.approx(expected, abs=1e-12)
    assert expected != pytest.approx(skm.cohen_kappa_score(truth, chosen, weights="quadratic"), abs=0.05), (
        "as if 3 were next to 0"
    )


def test_binary_is_scikit_learns() -> None:
    truth, values = case(BINARY)
    scores = all_metrics(BINARY, truth, values)
    labels, p = truth[:, 0].astype(int), values[:, 0].astype(np.float64)
    chosen = (p >= 0.5).astype(int)
    hits, said = (p * labels).sum(), p.sum()
    precision, recall = hits / said, hits / labels.sum()
    golden = {
        "accuracy": skm.accuracy_score(labels, chosen),
        "balanced_accuracy": skm.balanced_accuracy_score(labels, chosen),
        "macro_f1": skm.f1_score(labels, chosen, average="macro"),
        "micro_f1": skm.f1_score(labels, chosen, average="micro"),
        "weighted_f1": skm.f1_score(labels, chosen, average="weighted"),
        "mcc": skm.matthews_corrcoef(labels, chosen),
        "log_loss": skm.log_loss(labels, p),
        "roc_auc": skm.roc_auc_score(labels, p),
        "average_precision": skm.average_precision_score(labels, p),
        "partial_auc_80tpr": isic_2024(labels, p),
        "pf1": 2 * precision * recall / (precision + recall),
        "loss": skm.log_loss(labels, p),
    }
    assert scores == pytest.approx(golden, abs=1e-9)


def isic_2024(truth: np.ndarray, scores: np.ndarray) -> float:
    """The area of the ROC curve that lies above a true positive rate of 0.8, by integrating the curve
    itself.
    """
    false_rate, true_rate, _ = skm.roc_curve(truth, scores, drop_intermediate=False)
    return sum(
        (x1 - x0) * (max(y0, 0.8) + max(y1, 0.8) - 1.6) / 2
        if (y0 - 0.8) * (y1 - 0.8) >= 0
        else (x1 - x0) * (y1 - 0.8) ** 2 / (y1 - y0) / 2
        for x0, x1, y0, y1 in zip(false_rate, false_rate[1:], true_rate, true_rate[1:], strict=False)
    )


def test_partial_auc_lies_between_nothing_and_a_fifth() -> None:
    truth = np.array([[0], [0], [1], [1]], dtype=np.float32)
    assert evaluate("partial_auc_80tpr", BINARY, truth, truth) == pytest.approx(0.2)
    assert evaluate("partial_auc_80tpr", BINARY, truth, 1 - truth) == pytest.approx(0.0, abs=1e-12)
    assert evaluate("partial_auc_80tpr", BINARY, truth, np.full((4, 1), 0.3)) == pytest.approx(0.02)


def test_several_labels_are_scikit_learns_and_means_over_columns() -> None:
    truth, values = case(LABELS)
    chosen, exact = values >= 0.5, values.astype(np.float64)
    golden = {
        "label_accuracy": over_columns(skm.accuracy_score, truth, chosen),
        "balanced_accuracy": over_columns(skm.balanced_accuracy_score, truth, chosen),
        **{
            f"{average}_f1": skm.f1_score(truth, chosen, average=average, zero_division=0)
            for average in ("macro", "micro", "weighted")
        },
        "samples_f1": skm.f1_score(truth, chosen, average="samples", zero_division=0),
        "samples_f2": skm.fbeta_score(truth, chosen, beta=2, average="samples", zero_division=0),
        "mcc": over_columns(skm.matthews_corrcoef, truth, chosen),
        "log_loss": over_columns(skm.log_loss, truth, exact),
        "roc_auc": skm.roc_auc_score(truth, exact, average="macro"),
        "average_precision": skm.average_precision_score(truth, exact, average="macro"),
        "partial_auc_80tpr": over_columns(isic_2024, truth, exact),
        "pf1": over_columns(lambda true, p: 2 * (p * true).sum() / (p.sum() + true.sum()), truth, exact),
        "loss": over_columns(skm.log_loss, truth, exact),
    }
    scores = all_metrics(LABELS, truth, values)
    map_at_5 = scores.pop("map_at_5")
    assert scores == pytest.approx(golden, abs=1e-9)
    precision_at_hits = [
        skm.average_precision_score(true, p) for true, p in zip(truth, exact, strict=True) if true.any()
    ]
    # Equal predictions are one step there, two places here
    assert map_at_5 == pytest.approx(sum(precision_at_hits) / 300, abs=0.02)


def test_accuracy_of_several_labels_is_never_called_plain_accuracy() -> None:
    """scikit-learn's accuracy of several labels is the share of rows with every label right."""
    truth, values = case(LABELS)
    chosen = values >= 0.5
    by_label = (truth == chosen).mean()
    assert skm.accuracy_score(truth, chosen) < by_label - 0.2
    for name in (None, "accuracy", "label_accuracy"):
        scores = all_metrics(LABELS, truth, values, name)
        assert "accuracy" not in scores and scores["label_accuracy"] == pytest.approx(by_label)
    assert evaluate("accuracy", LABELS, truth, values) == pytest.approx(by_label), "as older runs recorded it"
    decided = decide(
        LabelEvidence("table", "train.csv", texts=("a b", "b c", "a", "c", "a b c", "b")),
        None,
        Asked(metric="accuracy", kind="multilabel"),
    )
    assert decided.metric == "label_accuracy"
    assert "label_accuracy" in decided.says and "--metric accuracy" in decided.says
    assert "label_accuracy" in "".join(decided.notes)


@pytest.mark.parametrize("name", ["cohen_kappa", "Cohen's kappa", "cohen_kappa_score", "weighted kappa"])
def test_kappa_without_weights_is_not_the_quadratic_one(name: str) -> None:
    """scikit-learn's cohen_kappa_score has no weights unless they are asked for."""
    truth, values = case(GRADES)
    chosen = GRADES.chosen(values)
    weighted = skm.cohen_kappa_score(truth, chosen, weights="quadratic")
    assert evaluate("qwk", GRADES, truth, values) == pytest.approx(weighted)
    assert skm.cohen_kappa_score(truth, chosen) < weighted - 0.1
    with pytest.raises(UserError, match="quadratic") as caught:
        find_metric(name)
    assert "--metric qwk" in str(caught.value)


def test_numbers_are_scikit_learns() -> None:
    truth, values = case(NUMBERS)
    exact = truth.astype(np.float64), values.astype(np.float64)
    golden = {
        "rmse": over_columns(lambda true, value: skm.mean_squared_error(true, value) ** 0.5, *exact),
        "mae": skm.mean_absolute_error(*exact),
        "r2": skm.r2_score(*exact),
        "loss": skm.mean_squared_error(exact[0] / [2.0, 10.0], exact[1] / [2.0, 10.0]),
    }
    assert all_metrics(NUMBERS, truth, values) == pytest.approx(golden, abs=1e-9)


def apk(actual: set[int], predicted: list[int], k: int) -> float:
    """Average precision at k as Kaggle's forum has it (Ben Hamner)."""
    score, hits = 0.0, 0
    for place, name in enumerate(predicted[:k]):
        if name in actual and name not in predicted[:place]:
            hits += 1
            score += hits / (place + 1)
    return score / min(len(actual), k) if actual else 0.0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 7), st.booleans())
def test_map_at_k_is_the_average_precision_of_ranked_names(seed: int, k: int, several: bool) -> None:
    rng = np.random.default_rng(seed)
    ranks = rng.integers(-1, 4, (20, 7))  # with names said twice, and gaps
    truth = (rng.random((20, 4)) < 0.4).astype(np.float32) if several else rng.integers(0, 4, 20)
    actual = [set(np.flatnonzero(row).tolist()) if several else {int(row)} for row in truth]
    target = LABELS if several else multiclass("abcd")
    expected = np.mean([apk(labels, row, k) for labels, row in zip(actual, ranks.tolist(), strict=True)])
    assert evaluate_ranks(f"map_at_{k}", target, truth, ranks) == pytest.approx(expected, abs=1e-12)


def test_equal_predictions_are_ranked_by_position() -> None:
    values = np.array([[0.2, 0.3, 0.3, 0.2], [0.25] * 4])
    np.testing.assert_array_equal(top_ranks(values, 3), [[1, 2, 0], [0, 1, 2]])
    np.testing.assert_array_equal(top_ranks(values[:, :2], 3), [[1, 0, -1], [0, 1, -1]])
    assert evaluate("map_at_3", multiclass("abcd"), np.array([2, 3]), values) == 0.25
    few = evaluate("map_at_4", multiclass("abcd"), np.array([2, 3]), values)
    assert evaluate("map_at_999999999999", multiclass("abcd"), np.array([2, 3]), values) == few


def test_the_competitions_metric_is_among_all_even_where_it_is_no_row_of_the_table() -> None:
    truth, values = case(CLASSES)
    assert all_metrics(CLASSES, truth, values, "map@3")["map_at_3"] == evaluate(
        "map_at_3", CLASSES, truth, values
    )
    many = multiclass([str(number) for number in range(300)])
    truth, values = case(many, rows=40)
    assert "roc_auc" not in all_metrics(many, truth, values)
    assert all_metrics(many, truth, values, "auc")["roc_auc"] == evaluate("roc_auc", many, truth, values)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([CLASSES, GRADES, BINARY, LABELS, NUMBERS]), st.integers(1, 6), st.integers(0, 2**32 - 1)
)
def test_few_rows_never_crash_and_what_is_undefined_has_a_reason(
    target: Target, rows: int, seed: int
) -> None:
    truth, values = case(target, rows, seed)
    scores = all_metrics(target, truth, values)
    for name, metric in METRICS.items():
        if target.kind not in metric.kinds:
            with pytest.raises(UserError):
                evaluate(name, target, truth, values)
            continue
        value, why = evaluate(name, target, truth, values), why_undefined(name, target, truth)
        assert (value is None) == (why is not None), (name, value, why)
        called = metric_for(name, target.kind).name
        assert scores.get(called) == (None if value is None else pytest.approx(value))
    assert math.isfinite(scores["loss"])


def test_a_class_that_is_absent_does_not_count_against_the_others() -> None:
    truth, values = case(CLASSES)
    kept = truth != 3
    truth, values = truth[kept], values[kept]
    present = [number for number in range(7) if number != 3]
    expected = np.mean([skm.roc_auc_score(truth == number, values[:, number]) for number in present])
    assert evaluate("roc_auc", CLASSES, truth, values) == pytest.approx(expected, abs=1e-12)
    assert left_out("roc_auc", CLASSES, truth) == ("c3",)
    assert left_out("accuracy", CLASSES, truth) == left_out("mcc", CLASSES, truth) == ()


def test_a_label_that_all_rows_have_is_left_out_and_named() -> None:
    truth, values = case(LABELS)
    truth[:, 1], truth[:, 2] = 1, 0
    expected = np.mean([skm.roc_auc_score(truth[:, number], values[:, number]) for number in (0, 3)])
    assert evaluate("auc", LABELS, truth, values) == pytest.approx(expected, abs=1e-12)
    assert left_out("auc", LABELS, truth) == ("b", "c") and why_undefined("auc", LABELS, truth) is None
    assert "no label is present" in why_undefined("auc", LABELS, truth[:1])


def test_why_a_metric_is_undefined_names_the_class() -> None:
    truth = np.ones((5, 1), dtype=np.float32)
    assert "'malignant'" in why_undefined("roc_auc", BINARY, truth) and "'benign'" in why_undefined(
        "mcc", BINARY, 0 * truth
    )
    assert "no row is positive" in why_undefined("pf1", BINARY, 0 * truth)
    assert "'2'" in why_undefined("qwk", GRADES, np.full(5, 2))
    assert "single row" in why_undefined("r2", NUMBERS, np.zeros((1, 2)))
    assert "no rows" in why_undefined("accuracy", CLASSES, np.zeros(0, dtype=int))


def test_decided_labels_alone_can_be_scored() -> None:
    truth = BINARY.encode(["malignant", "benign", "malignant"])
    assert evaluate_labels(
        "accuracy", BINARY, truth, BINARY.encode(["malignant", "malignant", "malignant"])
    ) == pytest.approx(2 / 3)
    labels = LABELS.encode(["a b", "c", ""])
    assert evaluate_labels("samples_f1", LABELS, labels, LABELS.encode(["a", "c d", ""])) == pytest.approx(
        (2 / 3 + 2 / 3 + 0) / 3
    )
    assert evaluate_labels("accuracy", CLASSES, np.array([1, 2]), np.array([1, -1])) == 0.5, (
        "-1 is a label that the target does not know"
    )
    with pytest.raises(UserError, match=r"roc_auc needs probabilities"):
        evaluate_labels("roc_auc", BINARY, truth, truth)
    with pytest.raises(UserError, match=r"accuracy needs labels"):
        evaluate_ranks("accuracy", CLASSES, np.array([1]), np.array([[1]]))


def test_a_certain_mistake_costs_much_and_not_everything() -> None:
    truth = np.array([[1.0], [0.0]], dtype=np.float32)
    for dtype, most in ((np.float32, (87 + 16.6) / 2), (np.float64, (708 + 36.7) / 2)):
        wrong = 1 - truth.astype(dtype)
        assert all_metrics(BINARY, truth, wrong)["loss"] == pytest.approx(most, rel=0.01)
        assert evaluate("log_loss", BINARY, truth, wrong) == pytest.approx(
            skm.log_loss([1, 0], [0.0, 1.0]), abs=1e-9
        )


@pytest.mark.parametrize(
    "spelling, name",
    [
        *((name, name) for name in METRICS),
        *(
            ("AUC", "roc_auc"),
            ("ROC-AUC", "roc_auc"),
            ("f1_macro", "macro_f1"),
            ("F1 macro", "macro_f1"),
            ("kappa", "qwk"),
        ),
        *(
            ("Quadratic Weighted Kappa", "qwk"),
            ("map@5", "map_at_5"),
            ("MAP@12", "map_at_12"),
            ("map_at_1", "map_at_1"),
        ),
        *(
            ("logloss", "log_loss"),
            ("R²", "r2"),
            ("top-5", "top5_accuracy"),
            (" RMSE ", "rmse"),
            ("pAUC", "partial_auc_80tpr"),
        ),
    ],
)
def test_a_metric_is_found_by_its_common_spellings(spelling: str, name: str) -> None:
    assert find_metric(spelling).name == name


def test_ranked_metrics_of_any_length() -> None:
    assert find_metric("map@17").k == 17
    assert find_metric("map@17").words == "MAP@17"
    assert find_metric("map@17").higher_is_better
    for wrong in ("map@0", "map_at_", "map"):
        with pytest.raises(UserError):
            find_metric(wrong)


@pytest.mark.parametrize(
    "wrong, near",
    [("roc_acu", "roc_auc"), ("macro_f2", "macro_f1"), ("f1_macr", "macro_f1"), ("rsme", "rmse")],
)
def test_an_unknown_metric_names_the_nearest(wrong: str, near: str) -> None:
    with pytest.raises(UserError, match=rf"'{wrong}'.*nearest: '{near}'.*accuracy, balanced_accuracy"):
        find_metric(wrong)


def test_a_metric_of_another_kind_of_target_names_those_that_fit() -> None:
    truth, values = case(NUMBERS)
    with pytest.raises(
        UserError, match=r"roc_auc scores multiclass or binary or multilabel or ordinal .* rmse, mae, r2"
    ):
        evaluate("auc", NUMBERS, truth, values)


def test_lower_is_better_where_errors_are_counted() -> None:
    assert {name for name, metric in METRICS.items() if not metric.higher_is_better} == {
        "log_loss",
        "rmse",
        "mae",
    }
    assert {metric.needs for metric in METRICS.values()} == {"labels", "probabilities", "ranks", "numbers"}


def test_five_thousand_classes_are_scored_at_once() -> None:
    rng = np.random.default_rng(0)
    target = multiclass([str(number) for number in range(5000)])
    truth, values = rng.integers(0, 5000, 4000), rng.random((4000, 5000), dtype=np.float32)
    begun = time.process_time()
    scores = all_metrics(target, truth, values / values.sum(axis=1, keepdims=True))
    assert time.process_time() - begun < 10  # about 1.5 s on a machine that is not shared
    assert scores["macro_f1"] == pytest.approx(
        skm.f1_score(truth, values.argmax(axis=1), average="macro"), abs=1e-12
    )


def hamners_kappa(truth: list[int], chosen: list[int]) -> float:
    """Ben Hamner's `quadratic_weighted_kappa`, which Kaggle's competitions of grades show: every rating from
    the lowest to the highest has a row, also one that does not occur.
    """
    low, high = min(truth + chosen), max(truth + chosen)
    span = high - low + 1
    both, ones, others = np.zeros((span, span)), np.zeros(span), np.zeros(span)
    for one, other in zip(truth, chosen, strict=True):
        both[one - low, other - low] += 1
        ones[one - low] += 1
        others[other - low] += 1
    weights = np.subtract.outer(np.arange(span), np.arange(span)) ** 2 / (span - 1) ** 2
    return 1 - (weights * both).sum() / (weights * np.outer(ones, others) / len(truth)).sum()


def test_kappa_counts_the_distance_between_grades_with_a_gap() -> None:
    target = Target("ordinal", ("0", "1", "2", "10"))
    truth, chosen = [0, 1, 2, 10, 0, 1, 2, 10], [0, 1, 10, 10, 0, 1, 2, 2]
    place = {int(name): number for number, name in enumerate(target.names)}
    places = [np.array([place[grade] for grade in grades]) for grades in (truth, chosen)]
    found = evaluate_labels("qwk", target, *places)
    assert found == pytest.approx(hamners_kappa(truth, chosen), abs=1e-12)
    assert found == pytest.approx(0.4900, abs=1e-4)
    by_values = skm.cohen_kappa_score(truth, chosen, labels=range(11), weights="quadratic")
    assert found == pytest.approx(by_values, abs=1e-12)
    assert evaluate_labels("qwk", target, places[0], np.full(8, -1)) is None, "a grade that nothing names"


@pytest.mark.parametrize("names", [("0", "1", "2", "3", "4"), ("1", "2", "3"), ("-2", "0", "5", "6")])
def test_kappa_is_hamners(names: tuple[str, ...]) -> None:
    rng, target = np.random.default_rng(3), Target("ordinal", names)
    truth = rng.integers(0, len(names), 60)
    chosen = np.clip(truth + rng.integers(-1, 2, 60), 0, len(names) - 1)
    grades = [[int(names[place]) for place in places] for places in (truth, chosen)]
    assert evaluate_labels("qwk", target, truth, chosen) == pytest.approx(hamners_kappa(*grades), abs=1e-12)
