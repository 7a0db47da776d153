"""Track a kernel's progress: progress lines, a forecast, and the moment to stop so that the file is written
in time.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from pipeline.files import human_time

SPARE_S = 120.0  # seconds kept for the last batch and for writing the file
# seconds before the first line (the first batches are slow), and between two lines
FIRST_S, EVERY_S = 5.0, 30.0


class Pace:
    """Decides before each batch whether there is time for it.

    `total`: rows; `until`: the deadline on `clock`.

    A batch starts only if the longest batch so far would end in time. The first batch starts if there is any
    time left.
    """

    def __init__(
        self,
        total: int,
        until: float,
        title: str = "images",
        clock: Callable[[], float] = time.monotonic,
        say: Callable[[str], None] = lambda text: print(text, flush=True),
    ) -> None:
        self.total, self.until, self.title, self.clock, self.say = total, until, title, clock, say
        self.begun: float | None = None  # time when the first batch was ready
        self.reported = self.asked = self.longest = 0.0
        self.done = 0
        self.forecast_given = False

    def __call__(self, done: int) -> bool:
        """Return whether another batch may start after `done` rows; print the progress from time to time."""
        now = self.clock()
        self.done = done
        if self.begun is None:
            self.begun = self.reported = self.asked = now
        self.longest, self.asked = max(self.longest, now - self.asked), now
        if now >= self.until or now + self.longest > self.until:
            self.say(f"STOPPED: time is up after {done:,} of {self.total:,} {self.title}")
            return False
        if done and now - self.reported >= (EVERY_S if self.forecast_given else FIRST_S):
            self._report(now)
        return True

    def rate(self) -> float:
        """Return rows per second so far; 0 before the second batch."""
        return self._rate(self.clock())

    def _rate(self, now: float) -> float:
        passed = now - self.begun if self.begun is not None else 0.0
        return self.done / passed if passed > 0 else 0.0

    def _report(self, now: float) -> None:
        self.reported, self.forecast_given = now, True
        rate = self._rate(now)
        needed = (self.total - self.done) / rate if rate else 0.0
        left = self.until - now
        line = (
            f"{self.done:,} of {self.total:,} {self.title}, {rate:.3g} a second, {human_time(needed)} "
            "more needed"
        )
        line += f", {human_time(left)} left" if left < float("inf") else ""
        if needed > left:
            reach = min(self.done + int(rate * left), self.total)
            line += (
                f"; WARNING: about {reach:,} will be predicted, the others get the class frequencies of "
                "training"
            )
        self.say(line)


def last_moment(started: float, hours: float) -> float:
    """Return the time when the last batch must be done, for a kernel that `started` and may run for
    `hours`.
    """
    seconds = hours * 3600
    return started + seconds - min(SPARE_S, seconds / 20)
