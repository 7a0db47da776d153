"""Choose which weights a run keeps: of the best epoch, of the last epoch, or a mean.

An accuracy measured on n rows has a standard error of up to 0.5 / sqrt(n) (binomial distribution). Late
epochs differ by a point or two. With fewer than `TELLING_ROWS` rows that is less than the error, so the best
of many epochs would be chosen by luck. Then the last epoch, at the end of the schedule, is the better choice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

TELLING_ROWS = 400  # a standard error of 2.5 points


@dataclass(frozen=True)
class Keeping:
    """`last`: keep the newest epoch, otherwise the best (of equal ones the one with the lower loss).

    `why`: the reason as text. `mean`: what is kept is a mean of weights: `average` (of the last epochs) or
    `soup` (of the best epochs).
    """

    last: bool
    why: str
    mean: str = ""

    def record(self) -> dict[str, str]:
        """Return the entry of run.json."""
        return {"rule": self.rule, "why": self.why}

    @property
    def rule(self) -> str:
        """The rule: last, best, average or soup."""
        return self.mean or ("last" if self.last else "best")

    @property
    def words(self) -> str:
        """What is kept, as the start of a sentence."""
        epoch = f"the {'last' if self.last else 'best'} epoch is kept"
        return {
            "average": "the mean of the last epochs is kept",
            "soup": "the mean of the best epochs is kept",
        }.get(self.mean, epoch)


def keeping(asked: str, num_val: int, average_last: int = 0) -> Keeping:
    """Return the rule for a run: from `checkpoint.keep`, or (auto) from the number of validation rows.

    `num_val`: these rows as the score counts them, each id once. `average_last`: number of
    epochs to average.
    """
    if asked == "average":
        return Keeping(
            True, f"checkpoint.keep=average: the mean of the last {average_last} epochs", "average"
        )
    if not num_val:
        return Keeping(True, "no validation rows")
    if asked == "soup":
        return Keeping(
            False,
            "checkpoint.keep=soup: those of the best epochs whose mean does not lower the score",
            "soup",
        )
    if asked != "auto":
        return Keeping(asked == "last", f"checkpoint.keep={asked}")
    error = 50 / math.sqrt(num_val)
    rows = f"{num_val:,} validation row{'s' if num_val > 1 else ''}"
    if num_val < TELLING_ROWS:
        return Keeping(
            True, f"{rows} are too few to compare epochs: a standard error of up to {error:.1f} points"
        )
    return Keeping(False, f"{rows}: a standard error of at most {error:.1f} points")
