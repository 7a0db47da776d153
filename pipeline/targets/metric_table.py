"""The table of metrics: name, direction, what each needs, the targets it scores, and the function that
computes it.

Averages and names follow scikit-learn's user guide (section 3.4).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Literal

from pipeline.errors import UserError
from pipeline.targets.target import Target
from pipeline.wording import nearest

Needs = Literal["labels", "probabilities", "ranks", "numbers"]

_CHOICE: tuple[str, ...] = ("multiclass", "ordinal")
_DECIDED = (*_CHOICE, "binary", "multilabel")


@dataclass(frozen=True)
class Metric:
    """One metric.

    `kinds`: the targets it can score. `words`: its name in texts. `function(measures, target)`: returns the
    function of truth and predictions; the module `measures` is passed in because it is imported only when the
    first score is computed. `spellings`: other common names. `k`: how many ranked labels count.
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
    # What `accuracy` is called where an image has several labels: see `metric_for`
    Metric(
        "label_accuracy",
        True,
        "labels",
        ("multilabel",),
        "label accuracy",
        lambda measures, _: measures.accuracy,
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
        spellings="logloss cross_entropy multiclass_log_loss multiclass_loss logarithmic_loss "
        "binary_cross_entropy",
    ),
    Metric(
        "roc_auc",
        True,
        "probabilities",
        _DECIDED,
        "ROC AUC",
        lambda measures, _: measures.roc_auc,
        spellings="auc auroc auc_roc rocauc roc_auc_score area_under_the_roc_curve area_under_roc_curve "
        "mean_column_wise_auc",
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
        lambda measures, target: measures.quadratic_kappa(target.grades),
        spellings="kappa quadratic_weighted_kappa quadratic_kappa",
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

# Names of other formulas, which a metric of the table must not stand for; and which metric is near
_OTHERS = dict.fromkeys(
    (
        "cohen_kappa",
        "cohens_kappa",
        "cohen_s_kappa",
        "cohen_kappa_score",
        "weighted_kappa",
        "linear_kappa",
        "linear_weighted_kappa",
    ),
    ("without weights (scikit-learn's cohen_kappa_score) or with linear ones", "qwk"),
) | dict.fromkeys(
    ("subset_accuracy", "exact_match", "exact_match_ratio"),
    ("the share of images with every label right", "label_accuracy"),
)

_NAMES = {spelling: metric.name for metric in _TABLE for spelling in (metric.name, *metric.spellings.split())}


def find_metric(name: str) -> Metric:
    """Return the metric called `name`, also by another common spelling (auc, f1_macro, kappa, map@5).

    `map_at_K` works for any K from 1.

    Raises:
        UserError: the name is not known; the nearest one is suggested. So is a name of another formula, such
            as Cohen's kappa without weights.
    """
    plain = re.sub(r"[^a-z0-9]+", "_", name.strip().casefold().replace("@", "_at_").replace("²", "2")).strip(
        "_"
    )
    if ranked := re.fullmatch(r"(?:map|mean_average_precision)_(?:at_)?([1-9]\d*)", plain):
        k = int(ranked[1])
        return replace(METRICS["map_at_5"], name=f"map_at_{k}", words=f"MAP@{k}", k=k)
    if plain in _NAMES:
        return METRICS[_NAMES[plain]]
    if plain in _OTHERS:
        meaning, near = _OTHERS[plain]
        raise UserError(
            f"metric {name!r} is not computed here ({meaning}); {near} is the {METRICS[near].words}: if the "
            f"competition's page says that, --metric {near}"
        )
    near = nearest(plain, [*METRICS, *_NAMES])
    for spelling, known in _NAMES.items():
        near = near.replace(f"{spelling!r}", f"{known!r}")
    raise UserError(
        f"metric {name!r} is not known{near}; known metrics: {', '.join(METRICS)} (any K in map_at_K)"
    )


def metric_for(name: str, kind: str) -> Metric:
    """Return the metric that `name` means for a target of this kind.

    With several labels per image `accuracy` is `label_accuracy`, the share of right single decisions;
    scikit-learn's accuracy of such labels is another number, the share of images with every label right.

    Raises:
        UserError: as `find_metric`.
    """
    metric = find_metric(name)
    return METRICS["label_accuracy"] if (metric.name, kind) == ("accuracy", "multilabel") else metric


def names_for(kind: str) -> list[str]:
    """Return the names of the table's metrics that score targets of this kind, each formula once."""
    return [
        name
        for name, metric in METRICS.items()
        if kind in metric.kinds and metric_for(name, kind).name == name
    ]
