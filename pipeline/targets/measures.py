"""The formulas of the metrics: arrays in, one float out.

They are scikit-learn's where it has one that is fast for many classes. Labels of one class or grade are (N,)
positions; several labels per image are (N, O) of 0 and 1. None is returned where a metric is undefined.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence

import numpy as np

# Predictions ranked at once: 5,000 classes of 100,000 rows together would need gigabytes
BLOCK_CELLS = 10_000_000
BINS = 30  # of the histogram of a number


def has_both(column: np.ndarray) -> bool:
    """Return True where a column of 0 and 1 holds both."""
    return bool(column.any()) and not bool(column.all())


def columns_of(truth: np.ndarray, num_outputs: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (number, (N,) bool) of each output for which `truth` holds both yes and no.

    The other outputs cannot be ranked, so they do not count.
    """
    for number in range(num_outputs):
        column = truth == number if truth.ndim == 1 else truth[:, number] > 0.5
        if has_both(column):
            yield number, column


def mean_of_columns(
    truth: np.ndarray, values: np.ndarray, function: Callable[[np.ndarray, np.ndarray], float]
) -> float | None:
    """Return the mean of `function(truth, values)` over the columns that hold both yes and no.

    For one class per image: each class against the others. None where there is no such column.
    """
    scores = [function(column, values[:, number]) for number, column in columns_of(truth, values.shape[1])]
    return float(np.mean(scores)) if scores else None


# ---- decided labels ----


def accuracy(truth: np.ndarray, chosen: np.ndarray) -> float:
    """Return the share of right decisions. With several labels per image every label is one decision."""
    return float((truth == chosen).mean())


def balanced_accuracy(truth: np.ndarray, chosen: np.ndarray) -> float:
    """Return the mean recall of the classes that occur; for several labels the mean over labels."""
    from sklearn.metrics import balanced_accuracy_score

    if truth.ndim == 2:
        return float(
            np.mean(
                [
                    balanced_accuracy_score(truth[:, number], chosen[:, number])
                    for number in range(truth.shape[1])
                ]
            )
        )
    return float(balanced_accuracy_score(truth, chosen))


def f_score(average: str, beta: float = 1.0) -> Callable[[np.ndarray, np.ndarray], float]:
    """Return scikit-learn's F-score with this average; a division by zero gives 0."""

    def function(truth: np.ndarray, chosen: np.ndarray) -> float:
        from sklearn.metrics import fbeta_score

        return float(fbeta_score(truth, chosen, beta=beta, average=average, zero_division=0))

    return function


def mcc(truth: np.ndarray, chosen: np.ndarray) -> float | None:
    """Return Matthews' correlation; for several labels the mean over those that hold both yes and no."""
    from sklearn.metrics import matthews_corrcoef

    if truth.ndim == 1:
        return float(matthews_corrcoef(truth, chosen))
    return mean_of_columns(truth, chosen, matthews_corrcoef)


def quadratic_kappa(grades: np.ndarray) -> Callable[[np.ndarray, np.ndarray], float]:
    """Return Cohen's kappa with quadratic weights for positions in (O,) `grades`.

    A distance is the difference of two grades, as Kaggle counts it (from the lowest rating to the highest,
    with those that do not occur): from 2 to 10 it is 8. scikit-learn counts places: 1, if no grade is
    between. NaN where a grade is no number, or a position is -1 (an unknown grade).
    """

    def function(truth: np.ndarray, chosen: np.ndarray) -> float:
        known = np.append(grades, np.nan)  # position -1
        one, other = known[truth], known[chosen]
        by_chance = one.var() + other.var() + (one.mean() - other.mean()) ** 2
        return float(1 - ((one - other) ** 2).mean() / by_chance)

    return function


# ---- probabilities ----


def log_loss(truth: np.ndarray, values: np.ndarray) -> float:
    """Return the mean log loss in nats; for several labels the mean over labels.

    Probabilities are kept within float64's eps of 0 and 1, as scikit-learn does.
    """
    eps = np.finfo(np.float64).eps
    return float(-np.log(np.clip(probability_of_truth(truth, values), eps, 1 - eps)).mean())


def exact_loss(truth: np.ndarray, values: np.ndarray) -> float:
    """Return the mean log loss in nats, close to the training loss.

    Probabilities are only clipped where they are 0 (or 1) in their own precision.
    """
    if truth.ndim == 1:
        return float(
            -np.log(np.clip(probability_of_truth(truth, values), np.finfo(values.dtype).tiny, 1.0)).mean()
        )
    # A float32 probability rounds to 1 early, so 1 - p would be 0. Half of eps is used instead.
    nearest_to_one = np.finfo(values.dtype).eps / 2
    yes = np.clip(values.astype(np.float64), np.finfo(values.dtype).tiny, 1.0)
    no = np.clip(1.0 - values.astype(np.float64), nearest_to_one, 1.0)
    return float(-np.where(truth > 0.5, np.log(yes), np.log(no)).mean())


def probability_of_truth(truth: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the probability of the true labels, float64: (N,) for one class, (N, O) for several labels or
    binary.
    """
    if truth.ndim == 1:  # scikit-learn would make a dense (N, C) array of 0 and 1
        return values[np.arange(len(truth)), truth].astype(np.float64)
    exact = values.astype(np.float64)
    return np.where(truth > 0.5, exact, 1.0 - exact)


def roc_auc(truth: np.ndarray, values: np.ndarray) -> float | None:
    """Return the mean area under the ROC curve, each class or label against the rest."""
    from sklearn.metrics import roc_auc_score

    return mean_of_columns(truth, values, roc_auc_score)


def average_precision(truth: np.ndarray, values: np.ndarray) -> float | None:
    """Return the mean average precision, each class or label against the rest."""
    from sklearn.metrics import average_precision_score

    return mean_of_columns(truth, values, average_precision_score)


def partial_auc_80tpr(truth: np.ndarray, values: np.ndarray) -> float | None:
    """Return the area under the ROC curve above a true positive rate of 80 %, 0 to 0.2 (ISIC 2024)."""
    return mean_of_columns(truth, values, _area_above_80)


def _area_above_80(truth: np.ndarray, values: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    # With classes swapped, the area above a true positive rate of 0.8 is the area left of a false positive
    # rate of 0.2. scikit-learn scales that area so that chance is 0.5; this undoes it, as the competition
    # does.
    left, chance = 0.2, 0.5 * 0.2**2
    scaled = roc_auc_score(~truth, -values.astype(np.float64), max_fpr=left)
    return float(chance + (left - chance) * (scaled - 0.5) / 0.5)


def probabilistic_f1(truth: np.ndarray, values: np.ndarray) -> float | None:
    """Return F1 with sums of probabilities as counts (RSNA breast cancer).

    The mean over labels that occur.
    """
    exact = values.astype(np.float64)
    hits, said, occurs = (exact * truth).sum(axis=0), exact.sum(axis=0), truth.sum(axis=0, dtype=np.float64)
    counted = occurs > 0
    return float((2 * hits[counted] / (said[counted] + occurs[counted])).mean()) if counted.any() else None


# ---- ranks ----


def top_ranks(values: np.ndarray, k: int) -> np.ndarray:
    """Return (N, k) int64 positions of the largest predictions, largest first.

    Equal predictions are ordered by position, as argmax does. -1 stands where there are fewer than k.
    """
    ranks = np.full((len(values), k), -1, dtype=np.int64)
    rows_together = max(1, BLOCK_CELLS // values.shape[1])
    for start in range(0, len(values), rows_together):
        left = np.array(values[start : start + rows_together], dtype=np.result_type(values, np.float32))
        rows = np.arange(len(left))
        for place in range(min(k, values.shape[1])):
            best = left.argmax(axis=1)
            ranks[start + rows, place] = best
            left[rows, best] = -np.inf
    return ranks


def top_accuracy(truth: np.ndarray, ranks: np.ndarray) -> float:
    """Return the share of rows whose class is among the (N, k) ranked ones."""
    return float((ranks == truth[:, None]).any(axis=1).mean())


def map_at_k(truth: np.ndarray, ranks: np.ndarray) -> float:
    """Return the mean average precision of (N, k) ranked positions (-1: none).

    For one class it is 1/place; for several labels the mean precision at each hit. A repeated label counts
    once; a row without any label gives 0.
    """
    hit = (
        ranks == truth[:, None]
        if truth.ndim == 1
        else np.take_along_axis(truth > 0.5, np.maximum(ranks, 0), axis=1) & (ranks >= 0)
    )
    for place in range(1, ranks.shape[1]):
        hit[:, place] &= ~(ranks[:, :place] == ranks[:, place : place + 1]).any(axis=1)
    precision = hit.cumsum(axis=1) / np.arange(1, ranks.shape[1] + 1)
    relevant = (
        np.ones(len(truth)) if truth.ndim == 1 else np.minimum((truth > 0.5).sum(axis=1), ranks.shape[1])
    )
    return float(((precision * hit).sum(axis=1) / np.maximum(relevant, 1)).mean())


# ---- numbers ----


def number_error(name: str) -> Callable[[np.ndarray, np.ndarray], float]:
    """Return the function of `rmse`, `mae` or `r2` for (N, O) numbers: the mean over columns.

    Numbers that are NaN in the truth do not count; a column without others does not count.
    """

    def function(truth: np.ndarray, values: np.ndarray) -> float:
        from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

        score = {"rmse": mean_squared_error, "mae": mean_absolute_error, "r2": r2_score}[name]
        columns = [
            score(truth[rows, column].astype(np.float64), values[rows, column].astype(np.float64))
            for column, rows in enumerate(~np.isnan(truth).T)
            if rows.sum() >= (2 if name == "r2" else 1)
        ]
        return float(np.mean(np.sqrt(columns) if name == "rmse" else columns))

    return function


def quietly(function: Callable[..., float | None], *arrays: np.ndarray) -> float | None:
    """Return `function(*arrays)` without scikit-learn's warnings.

    None for a result that is not a finite number.
    """
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore")
        value = function(*arrays)
    return None if value is None or not np.isfinite(value) else value


def histograms(names: Sequence[str], numbers: np.ndarray) -> dict[str, dict[str, list[float]]]:
    """Return for each name of (N, O) numbers its B + 1 `edges` and B `counts`, as run.json stores them.

    NaN is not counted.
    """
    counted = {
        name: np.histogram(column[~np.isnan(column)], BINS)
        for name, column in zip(names, numbers.astype(np.float64).T, strict=True)
    }
    return {
        name: {"edges": edges.tolist(), "counts": counts.tolist()}
        for name, (counts, edges) in counted.items()
    }
