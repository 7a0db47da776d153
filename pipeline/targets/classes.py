"""Metrics of one class per image (confusion matrix, precision, recall, F1), softmax, and the official VQA
accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.answers import answer_accuracy

if TYPE_CHECKING:
    import numpy as np

FEWEST_ANSWERS = 4  # with fewer annotators even a unanimous answer has an accuracy below 1


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return (N, C) float64 probabilities; every row sums to 1."""
    import numpy as np

    shifted = np.asarray(logits, dtype=np.float64) - np.max(logits, axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Return (C, C) int64 counts: row = true class, column = predicted class."""
    import numpy as np

    counts = np.zeros((num_classes, num_classes), dtype=np.int64)
    np.add.at(counts, (np.asarray(labels), np.asarray(predicted)), 1)
    return counts


def per_class(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Return `precision`, `recall`, `f1` (float64 in 0..1; 0 where undefined) and `support` (int64), each of
    shape (C,).
    """
    import numpy as np

    return _per_class(np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0))


def _per_class(hits: np.ndarray, support: np.ndarray, predicted: np.ndarray) -> dict[str, np.ndarray]:
    import numpy as np

    hits = hits.astype(np.float64)
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
    """Return accuracy, and macro and weighted precision, recall and F1.

    With `probs` (N, C) also `loss` (mean log loss in nats) and, for more than 5 classes, `top5_accuracy`.
    Classes that occur neither in `labels` nor in `predicted` do not enter the macro averages (as in
    scikit-learn).
    """
    import numpy as np

    from pipeline.targets.measures import exact_loss, top_accuracy, top_ranks

    labels, predicted = np.asarray(labels, dtype=np.int64), np.asarray(predicted, dtype=np.int64)
    support, chosen = (np.bincount(values, minlength=num_classes) for values in (labels, predicted))
    scores = _per_class(np.bincount(labels[labels == predicted], minlength=num_classes), support, chosen)
    seen = (support + chosen) > 0
    weights = support / support.sum()
    metrics = {"accuracy": float(np.mean(labels == predicted))}
    for name in ("precision", "recall", "f1"):
        metrics[f"macro_{name}"] = float(scores[name][seen].mean())
        metrics[f"weighted_{name}"] = float((scores[name] * weights).sum())
    if probs is not None:
        metrics["loss"] = exact_loss(labels, np.asarray(probs))
        if num_classes > 5:
            metrics["top5_accuracy"] = top_accuracy(labels, top_ranks(np.asarray(probs), 5))
    return metrics


def vqa_accuracy(predicted: Sequence[str], answers: Sequence[Sequence[str]]) -> np.ndarray:
    """Return the official VQA accuracy of each predicted answer (Antol et al. 2015): (N,) float64 in 0..1."""
    import numpy as np

    return np.array(
        [answer_accuracy(answer, given) for answer, given in zip(predicted, answers, strict=True)],
        dtype=np.float64,
    )


def vqa_scores(
    predicted: Sequence[str], answers: Sequence[Sequence[str]], answer_types: Sequence[str | None]
) -> dict[str, float]:
    """Return the mean `vqa_accuracy`, and `vqa_accuracy_yes_no`, `vqa_accuracy_number`, ... by answer type.

    {} where a question has fewer than 4 annotators.
    """
    import numpy as np

    if not answers or any(len(given) < FEWEST_ANSWERS for given in answers):
        return {}
    each = vqa_accuracy(predicted, answers)
    types = np.array([kind or "" for kind in answer_types])
    scores = {"vqa_accuracy": float(each.mean())}
    for kind in sorted(set(types.tolist()) - {""}):
        scores[f"vqa_accuracy_{kind.replace('/', '_')}"] = float(each[types == kind].mean())
    return scores
