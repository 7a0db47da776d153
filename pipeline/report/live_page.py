"""A run's page while it trains: drawn again as often as it costs little."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LIVE_SHARE = 0.05  # of the time of training
FIRST_PAGE_S, FIRST_CURVES_S = 1.5, 0.5  # what a first one may cost, before it was measured


class Budget:
    """Decides when to repeat a piece of work, so that it takes at most `LIVE_SHARE` of the time since the start."""

    def __init__(self, first_cost: float) -> None:
        self._began, self._spent, self._cost = time.monotonic(), 0.0, first_cost  # seconds

    def allows(self) -> bool:
        """True where doing it once more, at its last cost, stays within the share."""
        return self._spent + self._cost <= LIVE_SHARE * (time.monotonic() - self._began)

    @contextmanager
    def spending(self) -> Iterator[None]:
        """What is done inside counts."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._cost = time.monotonic() - start
            self._spent += self._cost


class LivePage:
    """Keeps a run's figures and page up to date while it trains: the curves in at most 5 % of the time, the page in at most 5 %. Epochs
    of a minute have both at once, of shorter ones only some have."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._curves, self._page = Budget(FIRST_CURVES_S), Budget(FIRST_PAGE_S)

    def update(self, at_once: bool = False) -> str | None:
        """Write the page if there is time for it, or `at_once`; else draw the curves, if there is time for them.

        An error message instead of raising: a failed page must never stop training.
        """
        from pipeline.report.curves import draw_curves  # a second of imports: not before the first batch
        from pipeline.report.page import build_report
        from pipeline.report.run_files import read_run_files

        try:
            if at_once or self._page.allows():
                with self._page.spending():
                    build_report(self.run_dir)
            elif self._curves.allows():
                with self._curves.spending():
                    draw_curves(read_run_files(self.run_dir))
        except Exception as error:
            return f"the page of this run could not be written ({type(error).__name__}: {error}); training goes on"
        return None
