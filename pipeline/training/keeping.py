"""Which epoch's weights a run keeps: the best by validation, or the last where the validation part cannot tell epochs apart.

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
    """`last`: the newest epoch is kept, else the best (of equal ones the one with the lower loss); `why`, in words."""

    last: bool
    why: str

    def record(self) -> dict[str, str]:
        """As run.json keeps it."""
        return {"rule": "last" if self.last else "best", "why": self.why}


def keeping(asked: str, num_val: int) -> Keeping:
    """The rule for a run: what `checkpoint.keep` asks for (best, last), or (auto) by the number of validation rows."""
    if not num_val:
        return Keeping(True, "no validation rows")
    if asked != "auto":
        return Keeping(asked == "last", f"checkpoint.keep={asked}")
    error = 50 / math.sqrt(num_val)
    rows = f"{num_val:,} validation row{'s' if num_val > 1 else ''}"
    if num_val < TELLING_ROWS:
        return Keeping(True, f"{rows} cannot tell epochs apart: a standard error of up to {error:.1f} points")
    return Keeping(False, f"{rows}: a standard error of at most {error:.1f} points")
