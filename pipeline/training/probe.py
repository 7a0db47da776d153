"""A linear probe: a head fitted by scikit-learn's linear models on frozen features.

One class or grade: LogisticRegression over all classes. Binary and several labels: one LogisticRegression per
output. Numbers: Ridge on the scaled numbers, for each column on the rows that have one. Features are
standardised with the training rows. Penalties are scikit-learn's defaults (C = 1, alpha = 1), without a
search.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline.targets.target import Target

MAX_ITERATIONS = 1000  # of L-BFGS; usually it needs tens to a few hundred


@dataclass(frozen=True)
class Probe:
    """A linear head: `weight` (O, D) and `bias` (O,), float32."""

    weight: np.ndarray
    bias: np.ndarray

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Return (N, O) float64 logits for (N, D) features."""
        return features.astype(np.float64) @ self.weight.T.astype(np.float64) + self.bias


@dataclass(frozen=True)
class Floor:
    """`value`: the probe's score on the validation rows by the run's metric.

    `seconds`: for its features and its fit.
    """

    value: float
    seconds: float
    words: str = "linear probe on frozen features"

    def record(self) -> dict[str, Any]:
        """Return the entry of run.json."""
        return asdict(self)


def fit_probe(target: Target, features: np.ndarray, labels: Sequence[str]) -> Probe:
    """Return the probe of (N, D) float32 training `features` and their label texts.

    The bits are the same for any number of threads. A class without rows gets the probability of half a row
    among N; so does the missing value of an output whose rows are all equal.
    """
    from threadpoolctl import threadpool_limits

    exact = features.astype(np.float64)
    mean, deviation = exact.mean(axis=0), exact.std(axis=0)
    deviation[deviation == 0] = 1
    exact = (exact - mean) / deviation
    encoded = target.encode(labels)
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore")  # a fit that has not fully converged is good enough for a probe
        if target.is_choice:
            weight, bias = _choice(exact, encoded, target.num_outputs)
        elif target.kind == "continuous":
            weight, bias = _numbers(exact, target.scaled(encoded))
        else:
            columns = [_yes_or_no(exact, encoded[:, column] > 0.5) for column in range(target.num_outputs)]
            weight, bias = np.array([one for one, _ in columns]), np.array([one for _, one in columns])
    weight = weight / deviation
    return Probe(weight.astype(np.float32), (bias - weight @ mean).astype(np.float32))


def _choice(features: np.ndarray, classes: np.ndarray, num_outputs: int) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.linear_model import LogisticRegression

    weight = np.zeros((num_outputs, features.shape[1]))
    bias = np.full(num_outputs, np.log(0.5 / len(features)))
    present = np.unique(classes)
    if len(present) == 1:
        bias[present] = 0
        return weight, bias
    if len(present) == 2:  # one set of weights: the second class against the first
        weight[present[1]], offset = _yes_or_no(features, classes == present[1])
        bias[present] = 0, offset
        return weight, bias
    found = LogisticRegression(max_iter=MAX_ITERATIONS).fit(features, classes)
    weight[present], bias[present] = found.coef_, found.intercept_
    return weight, bias


def _yes_or_no(features: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, float]:
    from sklearn.linear_model import LogisticRegression

    if positive.all() or not positive.any():
        odds = (len(positive) + 0.5) / 0.5
        return np.zeros(features.shape[1]), float(np.log(odds if positive.all() else 1 / odds))
    found = LogisticRegression(max_iter=MAX_ITERATIONS).fit(features, positive)
    return found.coef_[0], float(found.intercept_[0])


def _numbers(features: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.linear_model import Ridge

    known, exact = ~np.isnan(numbers), numbers.astype(np.float64)
    if known.all():
        found = Ridge().fit(features, exact)
        return np.atleast_2d(found.coef_), np.atleast_1d(found.intercept_)
    fits = [Ridge().fit(features[rows], exact[rows, column]) for column, rows in enumerate(known.T)]
    return np.array([fit.coef_ for fit in fits]), np.array([fit.intercept_ for fit in fits])
