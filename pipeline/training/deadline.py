"""What to train before a deadline: a fixed rule over measured seconds, no search. pipeline/recipes/PLAN.md says it in words."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

MARGIN = 0.2  # of the time is kept back: for states, pages, and a machine that is slower later
FEWEST_STEPS, FEWEST_EPOCHS = 150, 3  # where fewer fit, the images become smaller
ENOUGH_STEPS, ENOUGH_EPOCHS = 1000, 10  # more are not planned: the time goes into folds
FOLDS = 5
HEAD_EPOCHS = 30  # of the head alone on features computed once, which cost next to nothing


@dataclass(frozen=True)
class Pace:
    """Seconds an image in training and in validation at one image size, and until a run's first step."""

    image_size: int
    train: float
    predict: float
    start: float

    def seconds(self, rows: Rows, epochs: int, folds: int | None) -> float:
        """What all runs take."""
        train, val = rows.of_one_run(folds)
        return (folds or 1) * (self.start + epochs * (train * self.train + val * self.predict))

    def seconds_once(self, rows: Rows, folds: int | None) -> float:
        """What all runs take where every image goes through the backbone once and the head alone is trained."""
        return (folds or 1) * (self.start + rows.total * self.predict)


@dataclass(frozen=True)
class Rows:
    """How many rows train and validate where there are no folds, and how many make a step."""

    train: int
    val: int
    a_step: int

    @property
    def total(self) -> int:
        """All labelled rows."""
        return self.train + self.val

    def of_one_run(self, folds: int | None) -> tuple[int, int]:
        """How many train and validate in one of the runs."""
        return (self.train, self.val) if folds is None else (self.total - self.total // folds, math.ceil(self.total / folds))

    def steps(self, epochs: int, folds: int | None) -> int:
        """Optimizer steps of one run."""
        return epochs * math.ceil(self.of_one_run(folds)[0] / self.a_step)

    def epochs(self, steps: int, at_least: int, folds: int | None) -> int:
        """Whole epochs with so many steps."""
        return max(math.ceil(steps / self.steps(1, folds)), at_least)


@dataclass(frozen=True)
class Proposal:
    """What to run: `folds` None is one model; `head_alone`: the backbone frozen, features computed once. `seconds`: what is expected."""

    pace: Pace
    epochs: int
    folds: int | None
    seconds: float
    head_alone: bool = False


@dataclass(frozen=True)
class Limits:
    """The deadline in `seconds`, the `rows` to train on, and what was asked for: `epochs` and `folds` are kept where they are given."""

    seconds: float
    rows: Rows
    epochs: int | None = None
    folds: int | None = None
    may_fold: bool = True

    @property
    def budget(self) -> float:
        """The seconds that are planned."""
        return (1 - MARGIN) * self.seconds

    @property
    def chooses_folds(self) -> bool:
        """Whether folds may be proposed."""
        return self.folds is None and self.may_fold


def propose(limits: Limits, paces: Iterable[Pace]) -> Proposal | None:
    """The rule; `paces` from the largest images to the smallest, asked for one at a time. None: too little time."""
    rows, epochs, folds = limits.rows, limits.epochs, limits.folds
    for pace in paces:
        fewest = epochs or rows.epochs(FEWEST_STEPS, FEWEST_EPOCHS, folds)
        if pace.seconds(rows, fewest, folds) > limits.budget:
            continue
        if epochs is None:
            enough = rows.epochs(ENOUGH_STEPS, ENOUGH_EPOCHS, folds)
            fitting = (number for number in range(fewest, max(enough, fewest) + 1) if pace.seconds(rows, number, folds) <= limits.budget)
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
    """The head alone on features computed once, with the largest images that fit; None: not even the smallest do."""
    rows, folds = limits.rows, limits.folds
    for pace in paces:
        if pace.seconds_once(rows, folds) > limits.budget:
            continue
        if limits.chooses_folds and pace.seconds_once(rows, FOLDS) <= limits.budget:
            folds = FOLDS
        return Proposal(pace, limits.epochs or HEAD_EPOCHS, folds, pace.seconds_once(rows, folds), head_alone=True)
    return None


def smaller_sizes(own: int, patch: int) -> list[int]:
    """`own` and, in falling order, three quarters, half, three eighths and a quarter of it, in whole patches; none below four patches."""
    sizes = [own] + [round(own * share / patch) * patch for share in (3 / 4, 1 / 2, 3 / 8, 1 / 4)]
    return [size for number, size in enumerate(sizes) if size >= 4 * patch and size not in sizes[:number]] or [own]
