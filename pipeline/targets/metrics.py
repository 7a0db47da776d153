"""Compute the metrics of `metric_table.py`.

Truth is as `target.encode` returns it; of several numbers those that are NaN do not count. Values are (N, O)
predictions as `target.activate` returns them. For several labels or several numbers per image a metric is the
mean over columns, unless its name says otherwise (micro, weighted, samples).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import UserError
from pipeline.targets.classes import (
    classification_metrics,
    confusion_matrix,
    per_class,
    softmax,
    vqa_accuracy,
    vqa_scores,
)
from pipeline.targets.metric_table import METRICS, Metric, find_metric, metric_for, names_for
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
    "differs_by_column",
    "evaluate",
    "evaluate_labels",
    "evaluate_ranks",
    "find_metric",
    "left_out",
    "metric_for",
    "names_for",
    "per_class",
    "softmax",
    "vqa_accuracy",
    "vqa_scores",
    "why_undefined",
]
# These metrics sort each column. With more outputs or cells than this they take seconds, so `all_metrics`
# leaves them out unless one is the competition's metric.
SORTED_METRICS, SORTED_OUTPUTS, SORTED_CELLS = ("roc_auc", "average_precision"), 200, 5_000_000


def evaluate(name: str, target: Target, truth: np.ndarray, values: np.ndarray) -> float | None:
    """Return the metric of (N, O) predictions.

    None where it is undefined on these rows (see `why_undefined`).

    Raises:
        UserError: the metric is not known, or does not score such a target.
    """
    metric = _scoring(name, target)
    if metric.needs == "labels":
        return evaluate_labels(name, target, truth, target.chosen(values))
    if metric.needs == "ranks":
        from pipeline.targets.measures import top_ranks

        # More guesses than classes change nothing
        return evaluate_ranks(name, target, truth, top_ranks(values, min(metric.k, target.num_outputs)))
    return _value(metric, target, truth, values)


def evaluate_labels(name: str, target: Target, truth: np.ndarray, chosen: np.ndarray) -> float | None:
    """Return a metric that needs only labels. `chosen`: as `target.chosen` or `target.encode` returns them.

    A position of -1 is a label that the target does not know: always wrong. None where the metric is
    undefined.

    Raises:
        UserError: the metric is not known, does not score such a target, or needs more than labels.
    """
    metric = _scoring(name, target)
    if metric.needs != "labels":
        raise UserError(f"{metric.name} needs {metric.needs}, but there are only labels")
    return _value(metric, target, _decided(target, truth), _decided(target, chosen))


def evaluate_ranks(name: str, target: Target, truth: np.ndarray, ranks: np.ndarray) -> float | None:
    """Return map_at_K or top5_accuracy of (N, k) int positions in `target.names`, best first (-1: none).

    Only the first K columns count.

    Raises:
        UserError: the metric is not known, does not score such a target, or does not use ranks.
    """
    metric = _scoring(name, target)
    if metric.needs != "ranks":
        raise UserError(f"{metric.name} needs {metric.needs}, but there are only ranked labels")
    return _value(metric, target, truth, ranks[:, : metric.k])


def all_metrics(
    target: Target, truth: np.ndarray, values: np.ndarray, metric: str | None = None
) -> dict[str, float]:
    """Return every metric that is defined for the target and these rows, and `loss`.

    `loss` is the mean log loss in nats, or the mean squared error of scaled numbers (a missing number adds
    0). One class or grade: also macro and weighted precision and recall. `metric`, the competition's, is
    included even if the table does not list it (map_at_3) or it is slow.

    Raises:
        UserError: `metric` is not known, or does not score such a target.
    """
    import numpy as np

    from pipeline.targets import measures

    values = np.asarray(values)
    names = names_for(target.kind)
    if values.shape[1] > SORTED_OUTPUTS or values.size > SORTED_CELLS:
        names = [name for name in names if name not in SORTED_METRICS]
    asked = [metric_for(metric, target.kind).name] if metric else []
    scores: dict[str, float] = {}
    if target.is_choice:
        scores = classification_metrics(truth, target.chosen(values), target.num_outputs)
    for name in dict.fromkeys([*names, *asked]):
        if name not in scores and (value := evaluate(name, target, truth, values)) is not None:
            scores[name] = value
    if target.kind == "continuous":
        errors = (values.astype(np.float64) - truth) / np.array(target.scale)
        scores["loss"] = float(np.mean(np.where(np.isnan(truth), 0, errors) ** 2))
    else:
        scores["loss"] = measures.exact_loss(truth, values)
    return scores


def why_undefined(name: str, target: Target, truth: np.ndarray) -> str | None:
    """Return the reason why `evaluate` returns None on rows with this `truth`.

    None where it returns a number.

    Raises:
        UserError: the metric is not known, or does not score such a target.
    """
    import numpy as np

    from pipeline.targets.measures import has_both

    metric = _scoring(name, target)
    if not len(truth):
        return f"{metric.words} is undefined: there are no rows"
    if metric.name == "top5_accuracy" and target.num_outputs <= metric.k:
        return f"{metric.words} is always 1 with {counted(target.num_outputs, 'class', 'classes')}"
    if metric.name == "r2" and (~np.isnan(truth)).sum(axis=0).max() < 2:
        return f"{metric.words} is undefined on a single row"
    if metric.name == "pf1" and not truth.any():
        return f"{metric.words} is undefined: no row is positive"
    if metric.name not in _COMPARING:
        return None
    if target.kind == "multilabel":
        defined = any(has_both(truth[:, number]) for number in range(truth.shape[1]))
        if defined:
            return None
        return f"{metric.words} is undefined: no label is present in some of these rows and absent in others"
    first = truth.reshape(-1)[0]
    if (truth != first).any():
        return None
    return (
        f"{metric.words} is undefined: it compares rows of different classes, but every row is "
        f"{target.names[int(first)]!r}"
    )


def left_out(name: str, target: Target, truth: np.ndarray) -> tuple[str, ...]:
    """Return the classes or labels that do not count in a metric that compares rows.

    A class does not count when all rows have it, or none. () for other metrics.

    Raises:
        UserError: the metric is not known, or does not score such a target.
    """
    from pipeline.targets.measures import columns_of

    metric = _scoring(name, target)
    if (
        metric.name not in _COMPARING
        or target.kind == "binary"
        or (target.is_choice and metric.needs == "labels")
    ):
        return ()
    counted = {number for number, _ in columns_of(truth, target.num_outputs)}
    return tuple(label for number, label in enumerate(target.output_names) if number not in counted)


def differs_by_column(name: str) -> bool:
    """Return True if the mean of a metric over columns is not the metric of all their cells together.

    Raises:
        UserError: the metric is not known.
    """
    return find_metric(name).name not in _MEANS_OF_CELLS


_MEANS_OF_CELLS = ("accuracy", "label_accuracy", "log_loss", "mae")
# Undefined where all rows have the same label
_COMPARING = ("roc_auc", "average_precision", "partial_auc_80tpr", "mcc", "qwk")


def _scoring(name: str, target: Target) -> Metric:
    """Return the metric after checking that it scores such a target."""
    metric = metric_for(name, target.kind)
    if target.kind not in metric.kinds:
        raise UserError(
            f"metric {metric.name} scores {' or '.join(kind for kind in KINDS if kind in metric.kinds)} "
            f"targets, but this one is {target.kind} ({target.describe()}); metrics for it: "
            f"{', '.join(names_for(target.kind))}"
        )
    return metric


def _decided(target: Target, labels: np.ndarray) -> np.ndarray:
    """Return labels as `measures` takes them: (N,) positions, or (N, O) bool for several labels per image."""
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
