"""Scoring with the metrics of `metric_table.py`.

Truth is as `target.encode` gives it, values are (N, O) predictions as `target.activate` gives them. For several labels an
image, and several numbers, a metric is the mean over columns unless its name says otherwise (micro, weighted, samples).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import UserError
from pipeline.targets.classes import classification_metrics, confusion_matrix, per_class, softmax, vqa_accuracy, vqa_scores
from pipeline.targets.metric_table import METRICS, Metric, find_metric
from pipeline.targets.target import KINDS, Target
from pipeline.wording import counted

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "METRICS",
    "Metric",
    "all_metrics",
    "classification_metrics",
    "confusion_matrix",
    "evaluate",
    "evaluate_labels",
    "evaluate_ranks",
    "find_metric",
    "left_out",
    "per_class",
    "softmax",
    "vqa_accuracy",
    "vqa_scores",
    "why_undefined",
]
# `all_metrics` sorts each column for these; beyond so much they are computed where they are asked for, not beside other metrics (seconds).
SORTED_METRICS, SORTED_OUTPUTS, SORTED_CELLS = ("roc_auc", "average_precision"), 200, 5_000_000


def evaluate(name: str, target: Target, truth: np.ndarray, values: np.ndarray) -> float | None:
    """The metric of (N, O) predictions; None where it is undefined on these rows, see `why_undefined`.

    Raises:
        UserError: there is no such metric, or it does not score such a target.
    """
    metric = _scoring(name, target)
    if metric.needs == "labels":
        return evaluate_labels(name, target, truth, target.chosen(values))
    if metric.needs == "ranks":
        from pipeline.targets.measures import top_ranks

        return evaluate_ranks(name, target, truth, top_ranks(values, metric.k))
    return _value(metric, target, truth, values)


def evaluate_labels(name: str, target: Target, truth: np.ndarray, chosen: np.ndarray) -> float | None:
    """A metric that needs labels alone, of decided ones: `chosen` as `target.chosen` or `target.encode` gives them.

    A position of -1 is a label that the target does not know: always wrong. None where it is undefined on these rows.

    Raises:
        UserError: there is no such metric, it does not score such a target, or decided labels are not enough for it.
    """
    metric = _scoring(name, target)
    if metric.needs != "labels":
        raise UserError(f"{metric.name} needs {metric.needs}, and there are only decided labels")
    return _value(metric, target, _decided(target, truth), _decided(target, chosen))


def evaluate_ranks(name: str, target: Target, truth: np.ndarray, ranks: np.ndarray) -> float | None:
    """map_at_K or top5_accuracy of (N, k) int positions in `target.names`, best first (-1: none); only the first K columns count.

    Raises:
        UserError: there is no such metric, it does not score such a target, or is none of ranks.
    """
    metric = _scoring(name, target)
    if metric.needs != "ranks":
        raise UserError(f"{metric.name} needs {metric.needs}, and there are only ranked labels")
    return _value(metric, target, truth, ranks[:, : metric.k])


def all_metrics(target: Target, truth: np.ndarray, values: np.ndarray, metric: str | None = None) -> dict[str, float]:
    """Every metric that is defined for the target and these rows, and `loss`: mean log loss in nats, or mean squared error of scaled numbers.

    One class or grade: also macro and weighted precision and recall; several labels: `label_accuracy`, the share of right single decisions.
    `metric` is the competition's: it is there too where it is no row of the table (map_at_3) or slow to compute.

    Raises:
        UserError: there is no such `metric`, or it does not score such a target.
    """
    import numpy as np

    from pipeline.targets import measures

    values = np.asarray(values)
    names = [name for name, known in METRICS.items() if target.kind in known.kinds]
    if values.shape[1] > SORTED_OUTPUTS or values.size > SORTED_CELLS:
        names = [name for name in names if name not in SORTED_METRICS]
    asked = [find_metric(metric).name] if metric else []
    scores: dict[str, float] = {}
    if target.is_choice:
        scores = classification_metrics(truth, target.chosen(values), target.num_outputs)
    if target.kind == "multilabel":
        scores["label_accuracy"] = measures.accuracy(_decided(target, truth), target.chosen(values))
    for name in dict.fromkeys([*names, *asked]):
        if name not in scores and (value := evaluate(name, target, truth, values)) is not None:
            scores[name] = value
    if target.kind == "continuous":
        scores["loss"] = float(np.mean(((values.astype(np.float64) - truth) / np.array(target.scale)) ** 2))
    else:
        scores["loss"] = measures.exact_loss(truth, values)
    return scores


def why_undefined(name: str, target: Target, truth: np.ndarray) -> str | None:
    """Why `evaluate` gives None on rows with this `truth`, in words; None where it gives a number.

    Raises:
        UserError: there is no such metric, or it does not score such a target.
    """
    from pipeline.targets.measures import has_both

    metric = _scoring(name, target)
    if not len(truth):
        return f"{metric.words} is undefined: there are no rows"
    if metric.name == "top5_accuracy" and target.num_outputs <= metric.k:
        return f"{metric.words} says nothing: with {counted(target.num_outputs, 'class', 'classes')} it is always 1"
    if metric.name == "r2" and len(truth) < 2:
        return f"{metric.words} is undefined on a single row"
    if metric.name == "pf1" and not truth.any():
        return f"{metric.words} is undefined: no row is positive"
    if metric.name not in _COMPARING:
        return None
    if target.kind == "multilabel":
        defined = any(has_both(truth[:, number]) for number in range(truth.shape[1]))
        return None if defined else f"{metric.words} is undefined: no label is present in some of these rows and absent in others"
    first = truth.reshape(-1)[0]
    if (truth != first).any():
        return None
    return f"{metric.words} is undefined: every row is {target.names[int(first)]!r}, and it compares rows of different classes"


def left_out(name: str, target: Target, truth: np.ndarray) -> tuple[str, ...]:
    """The classes or labels that do not count in a metric that compares rows: all of these rows have them, or none; else empty.

    Raises:
        UserError: there is no such metric, or it does not score such a target.
    """
    from pipeline.targets.measures import columns_of

    metric = _scoring(name, target)
    if metric.name not in _COMPARING or target.kind == "binary" or (target.is_choice and metric.needs == "labels"):
        return ()
    counted = {number for number, _ in columns_of(truth, target.num_outputs)}
    return tuple(label for number, label in enumerate(target.output_names) if number not in counted)


_COMPARING = ("roc_auc", "average_precision", "partial_auc_80tpr", "mcc", "qwk")  # undefined where all rows are alike


def _scoring(name: str, target: Target) -> Metric:
    """The metric, which scores such a target."""
    metric = find_metric(name)
    if target.kind not in metric.kinds:
        fitting = [other for other, known in METRICS.items() if target.kind in known.kinds]
        raise UserError(
            f"metric {metric.name} scores {' or '.join(kind for kind in KINDS if kind in metric.kinds)} targets, and this one is "
            f"{target.kind} ({target.describe()}); it can be scored by {', '.join(fitting)}"
        )
    return metric


def _decided(target: Target, labels: np.ndarray) -> np.ndarray:
    """Labels as `measures` takes them: (N,) positions, or (N, O) bool of several labels an image."""
    import numpy as np

    labels = np.asarray(labels)
    if target.kind == "multilabel":
        return labels > 0.5
    return labels.reshape(len(labels)).astype(np.int64)


def _value(metric: Metric, target: Target, truth: np.ndarray, given: np.ndarray) -> float | None:
    from pipeline.targets import measures

    if why_undefined(metric.name, target, truth) is not None:
        return None
    return measures.quietly(metric.function(measures, target), truth, given)
