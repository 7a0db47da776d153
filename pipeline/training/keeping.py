"""Which weights a run keeps: the best epoch's by validation, or the last one's where the validation part cannot tell epochs apart; or a mean.

A share measured on n rows has a standard error of up to 0.5 / sqrt(n) (the binomial distribution). Late epochs differ by a point or two:
below `TELLING_ROWS` rows that is less than the error, and choosing the best of many epochs by it is choosing by luck. The last epoch, at
the end of the schedule, is then the better bet.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

TELLING_ROWS = 400  # a standard error of 2.5 points


@dataclass(frozen=True)
class Keeping:
    """`last`: the newest epoch is kept, else the best (of equal ones the one with the lower loss); `why`, in words.

    `mean`: what is kept is a mean of weights, `average` (of the newest epochs) or `soup` (of the best).
    """

    last: bool
    why: str
    mean: str = ""

    def record(self) -> dict[str, str]:
        """As run.json keeps it."""
        return {"rule": self.rule, "why": self.why}

    @property
    def rule(self) -> str:
        """last, best, average or soup."""
        return self.mean or ("last" if self.last else "best")

    @property
    def words(self) -> str:
        """What is kept, as a sentence begins."""
        epoch = f"the {'last' if self.last else 'best'} epoch is kept"
        return {"average": "the mean of the last epochs is kept", "soup": "the mean of the best epochs is kept"}.get(self.mean, epoch)


def keeping(asked: str, num_val: int, average_last: int = 0) -> Keeping:
    """The rule for a run: what `checkpoint.keep` asks for, or (auto) by the number of validation rows. `average_last`: of how many epochs."""
    if asked == "average":
        return Keeping(True, f"checkpoint.keep=average: the mean of the last {average_last} epochs", "average")
    if not num_val:
        return Keeping(True, "no validation rows")
    if asked == "soup":
        return Keeping(False, "checkpoint.keep=soup: the best epochs whose mean is no worse", "soup")
    if asked != "auto":
        return Keeping(asked == "last", f"checkpoint.keep={asked}")
    error = 50 / math.sqrt(num_val)
    rows = f"{num_val:,} validation row{'s' if num_val > 1 else ''}"
    if num_val < TELLING_ROWS:
        return Keeping(True, f"{rows} cannot tell epochs apart: a standard error of up to {error:.1f} points")
    return Keeping(False, f"{rows}: a standard error of at most {error:.1f} points")
