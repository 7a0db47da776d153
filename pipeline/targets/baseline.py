"""Score a constant prediction: the same for every row, taken from the training labels without looking at an
image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pipeline.targets.metrics import all_metrics, evaluate, find_metric
from pipeline.targets.target import Target

if TYPE_CHECKING:
    import numpy as np


# Every class scores the same as a constant: 0, and the share of one class
NO_CLASS_IS_BETTER = ("qwk", "mcc", "balanced_accuracy")


@dataclass(frozen=True)
class Baseline:
    """A constant prediction. `value`: its score on the validation rows; `words`: what is predicted."""

    value: float
    words: str  # always 'apple', always the mean, always one grade, whichever

    def record(self) -> dict[str, Any]:
        """Return the entry of run.json."""
        return asdict(self)


def constant_baseline(
    name: str, target: Target, train_labels: Sequence[str], truth: np.ndarray
) -> Baseline | None:
    """Return the best constant prediction by the score `name` (a metric, or `loss`).

    It predicts the class frequencies (or mean number) of the training labels. Where one class is chosen, the
    most frequent class is tried too; it is not named where every class scores the same. `truth`: of the
    validation rows, as `target.encode` returns it. None where there are no rows, or the score is undefined on
    them.
    """
    import numpy as np

    if not len(truth) or not len(train_labels):
        return None
    prior = target.prior(train_labels)
    shares = {"binary": f"always the share of {target.names[-1]!r}", "continuous": "always the mean"}
    guesses = [(prior, shares.get(target.kind, "always the training frequencies"))]
    if target.is_choice:
        most = int(prior.argmax())
        words = f"always {target.names[most]!r}"
        if name in NO_CLASS_IS_BETTER:
            words = f"always one {'grade' if target.kind == 'ordinal' else 'class'}, whichever"
        guesses.append((np.eye(target.num_outputs, dtype=np.float32)[most], words))
        guesses.reverse()  # of two equal scores the simpler description is kept
    if name == "loss" or find_metric(name).needs not in ("labels", "ranks"):
        guesses = [guess for guess in guesses if guess[0] is prior]
    found = []
    for guess, words in guesses:
        values = np.tile(guess, (len(truth), 1))
        score = (
            all_metrics(target, truth, values)["loss"]
            if name == "loss"
            else evaluate(name, target, truth, values)
        )
        if score is not None and np.isfinite(score):
            found.append(Baseline(float(score), words))
    better = max if name != "loss" and find_metric(name).higher_is_better else min
    return better(found, key=lambda baseline: baseline.value, default=None)
