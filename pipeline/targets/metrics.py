"""Classification metrics: arrays in, floats out. Averages and names follow scikit-learn's user guide (section 3.4, classification metrics)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.answers import answer_accuracy

FEWEST_ANSWERS = 4  # with fewer annotators not even a unanimous answer reaches an accuracy of 1


def softmax(logits: np.ndarray) -> np.ndarray:
    """(N, C) float64 probabilities; every row sums to 1."""
    shifted = np.asarray(logits, dtype=np.float64) - np.max(logits, axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """(C, C) int64 counts: row = true class, column = predicted class."""
    counts = np.zeros((num_classes, num_classes), dtype=np.int64)
    np.add.at(counts, (np.asarray(labels), np.asarray(predicted)), 1)
    return counts


def per_class(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """`precision`, `recall`, `f1` (float64 in 0..1; 0 where undefined) and `support` (int64), each of shape (C,)."""
    hits = np.diag(confusion).astype(np.float64)
    support, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    precision = np.divide(hits, predicted, out=np.zeros_like(hits), where=predicted > 0)
    recall = np.divide(hits, support, out=np.zeros_like(hits), where=support > 0)
    f1 = np.divide(2 * hits, support + predicted, out=np.zeros_like(hits), where=(support + predicted) > 0)
    return {"precision": precision, "recall": recall, "f1": f1, "support": support}


def classification_metrics(
    labels: Sequence[int] | np.ndarray,
    predicted: Sequence[int] | np.ndarray,
    num_classes: int,
    probs: np.ndarray | None = None,
) -> dict[str, float]:
    """Accuracy, macro and weighted precision / recall / F1; with `probs` (N, C) also `loss` (mean log loss, nats) and `top5_accuracy`.

    Classes that occur neither in `labels` nor in `predicted` do not enter the macro averages (as in scikit-learn).
    """
    labels, predicted = np.asarray(labels, dtype=np.int64), np.asarray(predicted, dtype=np.int64)
    confusion = confusion_matrix(labels, predicted, num_classes)
    scores = per_class(confusion)
    seen = (confusion.sum(axis=1) + confusion.sum(axis=0)) > 0
    weights = scores["support"] / scores["support"].sum()
    metrics = {"accuracy": float(np.mean(labels == predicted))}
    for name in ("precision", "recall", "f1"):
        metrics[f"macro_{name}"] = float(scores[name][seen].mean())
        metrics[f"weighted_{name}"] = float((scores[name] * weights).sum())
    if probs is not None:
        own = np.asarray(probs, dtype=np.float64)[np.arange(len(labels)), labels]
        metrics["loss"] = float(-np.log(np.clip(own, np.finfo(np.float64).tiny, 1.0)).mean())
        if num_classes > 5:
            best = np.argsort(-np.asarray(probs), axis=1, kind="stable")[:, :5]  # equal ones by class index, as argmax decides for accuracy
            metrics["top5_accuracy"] = float(np.mean((best == labels[:, None]).any(axis=1)))
    return metrics


def vqa_accuracy(predicted: Sequence[str], answers: Sequence[Sequence[str]]) -> np.ndarray:
    """(N,) float64 in 0..1: the official VQA accuracy of each predicted answer against those of its annotators (Antol et al. 2015)."""
    return np.array([answer_accuracy(answer, given) for answer, given in zip(predicted, answers, strict=True)], dtype=np.float64)


def vqa_scores(predicted: Sequence[str], answers: Sequence[Sequence[str]], answer_types: Sequence[str | None]) -> dict[str, float]:
    """`vqa_accuracy` over all questions and `vqa_accuracy_yes_no` (number, other, ...) by type; empty without several annotators a question."""
    if not answers or any(len(given) < FEWEST_ANSWERS for given in answers):
        return {}
    each = vqa_accuracy(predicted, answers)
    types = np.array([kind or "" for kind in answer_types])
    scores = {"vqa_accuracy": float(each.mean())}
    for kind in sorted(set(types.tolist()) - {""}):
        scores[f"vqa_accuracy_{kind.replace('/', '_')}"] = float(each[types == kind].mean())
    return scores
