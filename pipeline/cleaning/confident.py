"""Find given labels that look wrong, from out-of-fold predictions, by confident learning (cleanlab).

Northcutt, Jiang, Chuang 2021, "Confident Learning: Estimating Uncertainty in Dataset Labels" (JAIR 70).
Several labels per image: Thyagarajan et al. 2022 (arXiv:2211.13895). For numbers cleanlab gives only a
ranking; here a residual is odd from a modified z-score of 3.5 (Iglewicz, Hoaglin 1993, "How to Detect and
Handle Outliers").
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError
from pipeline.targets.target import Target

if TYPE_CHECKING:
    import numpy as np

ODD_Z = 3.5
TO_DEVIATION = 1.4826  # standard deviation / median absolute deviation of a normal distribution
FEWEST_ROWS = 10
HOW_TO_INSTALL = "python -m pip install -c constraints.txt cleanlab"


@dataclass(frozen=True)
class Suspect:
    """A row whose label looks wrong.

    `score`: 1 - cleanlab's label quality; near 1, the label is hardly correct.
    """

    row: int
    given: str
    suggested: str
    score: float


def need_cleanlab() -> Any:
    """Import and return cleanlab.

    Raises:
        UserError: it is not installed; the message gives the command.
    """
    try:
        import cleanlab
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "cleanlab":
            raise
        raise UserError(
            f"finding wrong labels needs cleanlab, which is not installed: {HOW_TO_INSTALL}"
        ) from None
    return cleanlab


def find_suspects(target: Target, labels: Sequence[str], values: np.ndarray) -> list[Suspect]:
    """Return the suspects among N rows with `labels` and out-of-fold `values` (N, O), the least credible
    label first.

    Raises:
        UserError: cleanlab is not installed, there are too few rows, or only one class.
    """
    need_cleanlab()
    if len(labels) < FEWEST_ROWS:
        raise UserError(
            f"{len(labels)} labelled rows are too few to find wrong labels: at least {FEWEST_ROWS} are needed"
        )
    found = _FINDERS[target.kind](target, list(labels), values)
    return sorted((one for one in found if one.suggested != one.given), key=lambda one: (-one.score, one.row))


def _one_of_several(target: Target, labels: list[str], values: np.ndarray) -> list[Suspect]:
    import numpy as np

    given, probs = target.encode(labels), np.asarray(values, dtype=np.float64)
    most_probable = probs.argmax(axis=1)
    decided = np.where(target.chosen(values) == given, most_probable, target.chosen(values))
    return _of_classes(labels, given, probs, [target.names[number] for number in decided])


def _yes_or_no(target: Target, labels: list[str], values: np.ndarray) -> list[Suspect]:
    import numpy as np

    given = target.encode(labels)[:, 0].astype(np.int64)
    positive = np.asarray(values[:, 0], dtype=np.float64)
    # The texts of the two classes in the data; each class may have several.
    texts = [
        Counter(label for label, own in zip(labels, given, strict=True) if own == number) for number in (0, 1)
    ]
    word = [
        texts[number].most_common(1)[0][0] if texts[number] else target.names[number] for number in (0, 1)
    ]
    return _of_classes(
        labels,
        given,
        np.stack([1 - positive, positive], axis=1),
        [word[int(value >= 0.5)] for value in positive],
    )


def _of_classes(
    labels: list[str], given: np.ndarray, probs: np.ndarray, suggested: list[str]
) -> list[Suspect]:
    import numpy as np
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    present = np.unique(given)
    if len(present) < 2:
        raise UserError(f"every labelled row is {labels[0]!r}: with one class wrong labels cannot be found")
    number = {int(one): place for place, one in enumerate(present)}
    own = np.array([number[int(one)] for one in given])
    probs = probs[:, present] + 1e-12  # cleanlab must not see classes without rows
    probs /= probs.sum(axis=1, keepdims=True)
    flagged = find_label_issues(own, probs, n_jobs=1)
    quality = get_label_quality_scores(own, probs)
    return [
        Suspect(int(row), labels[row], suggested[row], float(1 - quality[row]))
        for row in np.flatnonzero(flagged)
    ]


def _several_labels(target: Target, labels: list[str], values: np.ndarray) -> list[Suspect]:
    import numpy as np
    from cleanlab.multilabel_classification.filter import find_multilabel_issues_per_class

    truth = target.encode(labels) > 0.5
    # cleanlab needs rows with and without a label
    varied = np.flatnonzero(truth.any(axis=0) & ~truth.all(axis=0))
    if not len(varied):
        raise UserError("every label is on all rows or on none: wrong labels cannot be found")
    probs = np.clip(np.asarray(values, dtype=np.float64), 1e-6, 1 - 1e-6)[:, varied]
    lists = [np.flatnonzero(row).tolist() for row in truth[:, varied]]
    wrong = np.zeros(truth.shape, dtype=bool)
    wrong[:, varied] = find_multilabel_issues_per_class(lists, probs, n_jobs=1)
    # cleanlab's quality of a label; of an image the lowest
    quality = np.where(truth[:, varied], probs, 1 - probs).min(axis=1)
    right = truth ^ wrong
    suggested = [
        target.separator.join(target.names[number] for number in np.flatnonzero(row)) for row in right
    ]
    usable = wrong.any(axis=1) & (right.any(axis=1) | target.may_be_empty)
    return [
        Suspect(int(row), labels[row], suggested[row], float(1 - quality[row]))
        for row in np.flatnonzero(usable)
    ]


def _numbers(target: Target, labels: list[str], values: np.ndarray) -> list[Suspect]:
    import numpy as np
    from cleanlab.regression.rank import get_label_quality_scores

    truth, predicted = target.encode(labels).astype(np.float64), np.asarray(values, dtype=np.float64)
    errors = truth - predicted
    off = np.abs(errors - np.nanmedian(errors, axis=0))
    spread = TO_DEVIATION * np.nanmedian(off, axis=0)
    odd = (off > ODD_Z * np.where(spread > 0, spread, np.inf)).any(axis=1)
    quality = np.ones(truth.shape)  # a missing number is no wrong label
    for column, known in enumerate(~np.isnan(truth).T):
        quality[known, column] = get_label_quality_scores(truth[known, column], predicted[known, column])
    quality = quality.min(axis=1)
    suggested = target.decode(values)
    return [
        Suspect(int(row), labels[row], suggested[row], float(1 - quality[row])) for row in np.flatnonzero(odd)
    ]


_FINDERS = {
    "multiclass": _one_of_several,
    "ordinal": _one_of_several,
    "binary": _yes_or_no,
    "multilabel": _several_labels,
    "continuous": _numbers,
}
