"""Average predictions of several models: their probabilities (or numbers), or their ranks.

Ranks are averaged where the metric depends only on the order (areas under curves) and each output stands for
itself. There a model with more extreme probabilities would outweigh the others in a mean of probabilities,
although its order is no better; ranks put all models on one scale. Otherwise probabilities are averaged:
where they are scored themselves, or one of several classes is chosen, ranks would lose information.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.errors import UserError
from pipeline.predictions import Predictions
from pipeline.targets.target import Target
from pipeline.wording import quoted

if TYPE_CHECKING:
    import numpy as np

PROBABILITIES, RANKS = "probabilities", "ranks"
ORDER_ALONE = ("roc_auc", "partial_auc_80tpr", "average_precision")


def by_ranks(target: Target | None, metric: str) -> str:
    """Return "ranks" or "probabilities", by the rule in this module's docstring."""
    each_for_itself = target is not None and target.kind in ("binary", "multilabel")
    return RANKS if each_for_itself and metric in ORDER_ALONE else PROBABILITIES


def ranks(values: np.ndarray) -> np.ndarray:
    """Return the ranks in each column as shares between 0 and 1: (N, O) float64.

    Equal values get their mean rank.
    """
    import numpy as np
    from scipy.stats import rankdata

    if len(values):
        return (rankdata(values, axis=0) - 0.5) / max(1, len(values))
    return np.asarray(values, dtype=np.float64)


def weighted(values: Sequence[np.ndarray], weights: Sequence[float], rule: str) -> np.ndarray:
    """Return the weighted mean of predictions of equal shape, or of their ranks: (N, O) float32."""
    import numpy as np

    total = np.zeros(np.shape(values[0]), dtype=np.float64)
    for one, weight in zip(values, weights, strict=True):
        total += weight * (ranks(one) if rule == RANKS else np.asarray(one, dtype=np.float64))
    return (total / sum(weights)).astype(np.float32)


def average(
    members: Sequence[Predictions], weights: Sequence[float], rule: str = PROBABILITIES
) -> Predictions:
    """Return the weighted average of predictions for the same ids and outputs, in the order of the first.

    Raises:
        UserError: ids or outputs differ.
    """
    first = members[0]
    for other in members[1:]:
        if other.target.output_names != first.target.output_names:
            differ = sorted(set(other.target.output_names) ^ set(first.target.output_names))
            raise UserError(
                f"predictions of different outputs cannot be averaged: {quoted(differ) or 'in another order'}"
            )
    return Predictions(
        first.ids,
        weighted([member.aligned(first.ids).values for member in members], weights, rule),
        first.target,
    )
