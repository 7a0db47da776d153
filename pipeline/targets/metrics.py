"""The table of metrics: what each is called, which way is better, what it needs, which targets it scores; and scoring with it.

Averages and names follow scikit-learn's user guide (section 3.4). Truth is as `target.encode` gives it, values are (N, O) predictions as
`target.activate` gives them. For several labels an image, and several numbers, a metric is the mean over columns unless its name says
otherwise (micro, weighted, samples).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import TYPE_CHECKING, Literal

from pipeline.errors import UserError
from pipeline.targets.classes import classification_metrics, confusion_matrix, per_class, softmax, vqa_accuracy, vqa_scores
from pipeline.targets.target import KINDS, Target
from pipeline.wording import counted, nearest

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
Needs = Literal["labels", "probabilities", "ranks", "numbers"]
# `all_metrics` sorts each column for these; beyond so much they are computed where they are asked for, not beside other metrics (seconds).
SORTED_METRICS, SORTED_OUTPUTS, SORTED_CELLS = ("roc_auc", "average_precision"), 200, 5_000_000

_CHOICE: tuple[str, ...] = ("multiclass", "ordinal")
_DECIDED = (*_CHOICE, "binary", "multilabel")


@dataclass(frozen=True)
class Metric:
    """One way to score predictions.

    `kinds`: the targets it can score. `words`: its name for people. `function`: gives what computes it, from truth and predictions; it gets
    the module `measures`, which is loaded when the first score is computed, and the target. `spellings`: other names that people use for it.
    `k`: how many ranked labels count.
    """

    name: str
    higher_is_better: bool
    needs: Needs
    kinds: tuple[str, ...]
    words: str
    function: Callable[[ModuleType, Target], Callable[..., float | None]]
    spellings: str = ""
    k: int = 0


_TABLE = (
    Metric(
        "accuracy",
        True,
        "labels",
        _DECIDED,
        "accuracy",
        lambda measures, _: measures.accuracy,
        spellings="acc accuracy_score categorization_accuracy classification_accuracy multiclass_accuracy",
    ),
    Metric(
        "balanced_accuracy",
        True,
        "labels",
        _DECIDED,
        "balanced accuracy",
        lambda measures, _: measures.balanced_accuracy,
        spellings="balanced_accuracy_score bal_acc balanced_acc",
    ),
    Metric(
        "macro_f1",
        True,
        "labels",
        _DECIDED,
        "macro F1",
        lambda measures, _: measures.f_score("macro"),
        spellings="f1_macro macro_f1_score macro_averaged_f1",
    ),
    Metric(
        "micro_f1",
        True,
        "labels",
        _DECIDED,
        "micro F1",
        lambda measures, _: measures.f_score("micro"),
        spellings="f1_micro micro_f1_score micro_averaged_f1",
    ),
    Metric(
        "weighted_f1",
        True,
        "labels",
        _DECIDED,
        "weighted F1",
        lambda measures, _: measures.f_score("weighted"),
        spellings="f1_weighted weighted_f1_score",
    ),
    Metric(
        "samples_f1",
        True,
        "labels",
        ("multilabel",),
        "mean F1 of an image",
        lambda measures, _: measures.f_score("samples"),
        spellings="f1_samples",
    ),
    Metric(
        "samples_f2",
        True,
        "labels",
        ("multilabel",),
        "mean F2 of an image",
        lambda measures, _: measures.f_score("samples", beta=2.0),
        spellings="f2_samples mean_f2",
    ),
    Metric(
        "mcc",
        True,
        "labels",
        _DECIDED,
        "Matthews correlation",
        lambda measures, _: measures.mcc,
        spellings="matthews matthews_corrcoef matthews_correlation matthews_correlation_coefficient",
    ),
    Metric(
        "log_loss",
        False,
        "probabilities",
        _DECIDED,
        "log loss",
        lambda measures, _: measures.log_loss,
        spellings="logloss cross_entropy multiclass_log_loss multiclass_loss logarithmic_loss binary_cross_entropy",
    ),
    Metric(
        "roc_auc",
        True,
        "probabilities",
        _DECIDED,
        "ROC AUC",
        lambda measures, _: measures.roc_auc,
        spellings="auc auroc auc_roc rocauc roc_auc_score area_under_the_roc_curve area_under_roc_curve mean_column_wise_auc",
    ),
    Metric(
        "average_precision",
        True,
        "probabilities",
        _DECIDED,
        "average precision",
        lambda measures, _: measures.average_precision,
        spellings="average_precision_score mean_average_precision",
    ),
    Metric(
        "partial_auc_80tpr",
        True,
        "probabilities",
        ("binary", "multilabel"),
        "partial AUC above 80% TPR",
        lambda measures, _: measures.partial_auc_80tpr,
        spellings="pauc partial_auc pauc_80tpr",
    ),
    Metric(
        "qwk",
        True,
        "labels",
        ("ordinal",),
        "quadratic weighted kappa",
        lambda measures, target: measures.quadratic_kappa(len(target.names)),
        spellings="kappa quadratic_weighted_kappa quadratic_kappa cohen_kappa cohens_kappa weighted_kappa",
    ),
    Metric(
        "map_at_5",
        True,
        "ranks",
        ("multiclass", "ordinal", "multilabel"),
        "MAP@5",
        lambda measures, _: measures.map_at_k,
        k=5,
    ),
    Metric(
        "top5_accuracy",
        True,
        "ranks",
        _CHOICE,
        "top-5 accuracy",
        lambda measures, _: measures.top_accuracy,
        spellings="top5 top_5 top_5_accuracy top5_acc",
        k=5,
    ),
    Metric(
        "pf1",
        True,
        "probabilities",
        ("binary", "multilabel"),
        "probabilistic F1",
        lambda measures, _: measures.probabilistic_f1,
        spellings="probabilistic_f1 prob_f1",
    ),
    Metric(
        "rmse",
        False,
        "numbers",
        ("continuous",),
        "RMSE",
        lambda measures, _: measures.number_error("rmse"),
        spellings="root_mean_squared_error root_mean_square_error",
    ),
    Metric(
        "mae",
        False,
        "numbers",
        ("continuous",),
        "mean absolute error",
        lambda measures, _: measures.number_error("mae"),
        spellings="mean_absolute_error",
    ),
    Metric(
        "r2",
        True,
        "numbers",
        ("continuous",),
        "R²",
        lambda measures, _: measures.number_error("r2"),
        spellings="r2_score r_squared",
    ),
)
METRICS: dict[str, Metric] = {metric.name: metric for metric in _TABLE}

_NAMES = {spelling: metric.name for metric in _TABLE for spelling in (metric.name, *metric.spellings.split())}


def find_metric(name: str) -> Metric:
    """The metric called `name`, also by a common other spelling (auc, f1_macro, kappa, map@5); `map_at_K` for any K from 1.

    Raises:
        UserError: there is none; the nearest is named.
    """
    plain = re.sub(r"[^a-z0-9]+", "_", name.strip().casefold().replace("@", "_at_").replace("²", "2")).strip("_")
    if ranked := re.fullmatch(r"(?:map|mean_average_precision)_(?:at_)?([1-9]\d*)", plain):
        k = int(ranked[1])
        return replace(METRICS["map_at_5"], name=f"map_at_{k}", words=f"MAP@{k}", k=k)
    if plain in _NAMES:
        return METRICS[_NAMES[plain]]
    near = nearest(plain, [*METRICS, *_NAMES])
    for spelling, known in _NAMES.items():
        near = near.replace(f"{spelling!r}", f"{known!r}")
    raise UserError(f"metric {name!r} is none that can be computed here{near}; known: {', '.join(METRICS)} (any K in map_at_K)")


# ---- scoring ----


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
