"""Choose what to train before a deadline: a fixed rule over measured seconds, without a search.

See pipeline/recipes/PLAN.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.training.image_sizes import relative_cost

MARGIN = 0.2  # share of the time in reserve: for states, pages, and a machine that becomes slower
FEWEST_STEPS, FEWEST_EPOCHS = 150, 3  # if fewer fit into the time, images become smaller
ENOUGH_STEPS, ENOUGH_EPOCHS = 1000, 10  # more are not planned: remaining time is used for folds
FOLDS = 5
HEAD_EPOCHS = 30  # for training only the head on features computed once, which takes almost no time


@dataclass(frozen=True)
class Pace:
    """Seconds per image in training and in prediction at one image size, and `start`: seconds until a
    run's first step.
    """

    image_size: int
    train: float
    predict: float
    start: float
    image_sizes: tuple[int, ...] = ()  # of training, where the first epochs have smaller images

    def seconds(self, rows: Rows, epochs: int, folds: int | None) -> float:
        """Return the seconds of all runs."""
        train, val = rows.of_one_run(folds)
        train_seconds = self.train * relative_cost(epochs, self.image_sizes)
        return (folds or 1) * (self.start + epochs * (train * train_seconds + val * self.predict))

    def seconds_once(self, rows: Rows, folds: int | None) -> float:
        """Return the seconds of all runs if every image passes the backbone once and only the head is
        trained.
        """
        return (folds or 1) * (self.start + rows.total * self.predict)


@dataclass(frozen=True)
class Rows:
    """Numbers of training and validation rows without folds, and of rows per optimizer step."""

    train: int
    val: int
    a_step: int

    @property
    def total(self) -> int:
        """Number of labelled rows."""
        return self.train + self.val

    def of_one_run(self, folds: int | None) -> tuple[int, int]:
        """Return the numbers of training and validation rows of one run."""
        if folds is None:
            return (self.train, self.val)
        return (self.total - self.total // folds, math.ceil(self.total / folds))

    def steps(self, epochs: int, folds: int | None) -> int:
        """Return the optimizer steps of one run."""
        return epochs * math.ceil(self.of_one_run(folds)[0] / self.a_step)

    def epochs(self, steps: int, at_least: int, folds: int | None) -> int:
        """Return how many whole epochs have at least `steps` optimizer steps."""
        return max(math.ceil(steps / self.steps(1, folds)), at_least)


@dataclass(frozen=True)
class Proposal:
    """What to run. `folds` None: one model.

    `head_alone`: frozen backbone, features computed once. `seconds`: expected.
    """

    pace: Pace
    epochs: int
    folds: int | None
    seconds: float
    head_alone: bool = False


@dataclass(frozen=True)
class Limits:
    """The deadline in `seconds`, the `rows`, and the user's `epochs` and `folds`, which are kept if they
    are given.
    """

    seconds: float
    rows: Rows
    epochs: int | None = None
    folds: int | None = None
    may_fold: bool = True

    @property
    def budget(self) -> float:
        """Seconds to plan for."""
        return (1 - MARGIN) * self.seconds

    @property
    def chooses_folds(self) -> bool:
        """True if folds may be proposed."""
        return self.folds is None and self.may_fold


def propose(limits: Limits, paces: Iterable[Pace]) -> Proposal | None:
    """Return the proposal by the rule; None if there is too little time.

    `paces`: from the largest images to the smallest, measured one at a time.
    """
    rows, epochs, folds = limits.rows, limits.epochs, limits.folds
    for pace in paces:
        fewest = epochs or rows.epochs(FEWEST_STEPS, FEWEST_EPOCHS, folds)
        if pace.seconds(rows, fewest, folds) > limits.budget:
            continue
        if epochs is None:
            enough = rows.epochs(ENOUGH_STEPS, ENOUGH_EPOCHS, folds)
            fitting = (
                number
                for number in range(fewest, max(enough, fewest) + 1)
                if pace.seconds(rows, number, folds) <= limits.budget
            )
            chosen = max(fitting)
            is_enough = chosen >= enough
        else:
            chosen, is_enough = epochs, True
        if limits.chooses_folds and is_enough:
            in_folds = epochs or rows.epochs(ENOUGH_STEPS, ENOUGH_EPOCHS, FOLDS)
            if pace.seconds(rows, in_folds, FOLDS) <= limits.budget:
                return Proposal(pace, in_folds, FOLDS, pace.seconds(rows, in_folds, FOLDS))
        return Proposal(pace, chosen, folds, pace.seconds(rows, chosen, folds))
    return None


def propose_head(limits: Limits, paces: Iterable[Pace]) -> Proposal | None:
    """Return the proposal for training only the head on features computed once, with the largest images
    that fit.

    None: not even the smallest fit.
    """
    rows, folds = limits.rows, limits.folds
    for pace in paces:
        if pace.seconds_once(rows, folds) > limits.budget:
            continue
        if limits.chooses_folds and pace.seconds_once(rows, FOLDS) <= limits.budget:
            folds = FOLDS
        return Proposal(
            pace, limits.epochs or HEAD_EPOCHS, folds, pace.seconds_once(rows, folds), head_alone=True
        )
    return None


def smaller_sizes(own: int, patch: int) -> list[int]:
    """Return `own` and three quarters, half, three eighths and a quarter of it, in whole patches.

    Sizes below four patches are left out.
    """
    sizes = [own] + [round(own * share / patch) * patch for share in (3 / 4, 1 / 2, 3 / 8, 1 / 4)]
    return [
        size for number, size in enumerate(sizes) if size >= 4 * patch and size not in sizes[:number]
    ] or [own]
