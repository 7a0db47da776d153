"""Metrics against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, log_loss, precision_recall_fscore_support, top_k_accuracy_score
from sklearn.metrics import confusion_matrix as sklearn_confusion

from pipeline.targets.metrics import classification_metrics, confusion_matrix, per_class, softmax


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
    assert set(metrics) == {"accuracy", *(f"{a}_{n}" for a in ("macro", "weighted") for n in ("precision", "recall", "f1"))}


@settings(max_examples=50, deadline=None)
@given(predictions())
def test_confusion_and_classes_are_scikit_learns(case: tuple[np.ndarray, np.ndarray, int]) -> None:
    labels, predicted, num_classes = case
    confusion = confusion_matrix(labels, predicted, num_classes)
    np.testing.assert_array_equal(confusion, sklearn_confusion(labels, predicted, labels=range(num_classes)))
    expected = precision_recall_fscore_support(labels, predicted, labels=range(num_classes), average=None, zero_division=0)
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
    clipped = np.clip(probs, np.finfo(float).eps, 1)  # scikit-learn clips there; rows where that matters are left to the next test
    if (probs[np.arange(rows), labels] > np.finfo(float).eps).all():
        assert metrics["loss"] == pytest.approx(log_loss(labels, clipped, labels=range(num_classes)), rel=1e-9, abs=1e-9)
    if num_classes > 5:
        assert metrics["top5_accuracy"] == pytest.approx(top_k_accuracy_score(labels, probs, k=5, labels=range(num_classes)))
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
