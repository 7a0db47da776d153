"""The page of a run during training: written again whenever that costs little time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LIVE_SHARE = 0.05  # of the time of training
FIRST_PAGE_S, FIRST_CURVES_S = 1.5, 0.5  # assumed cost of the first one, which is not measured yet


class Budget:
    """Decides when to repeat a piece of work, so that it takes at most `LIVE_SHARE` of the time since the start."""

    def __init__(self, first_cost: float) -> None:
        self._began, self._spent, self._cost = time.monotonic(), 0.0, first_cost  # seconds

    def allows(self) -> bool:
        """Whether there is time for it once more, if it takes as long as last time."""
        return self._spent + self._cost <= LIVE_SHARE * (time.monotonic() - self._began)

    @contextmanager
    def spending(self) -> Iterator[None]:
        """A context whose time is counted as spent."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._cost = time.monotonic() - start
            self._spent += self._cost


class LivePage:
    """Keeps a run's page and figures up to date during training: the curves in at most 5 % of the time, the page in at most 5 %.

    Epochs of a minute or more update both; of shorter epochs only some do."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._curves, self._page = Budget(FIRST_CURVES_S), Budget(FIRST_PAGE_S)

    def update(self, at_once: bool = False) -> str | None:
        """Write the page if there is time for it, or `at_once`; else draw the curves, if there is time for them.

        Returns an error message instead of raising: a failed page must never stop training.
        """
        try:  # what is imported takes a second: only where it is needed
            if at_once or self._page.allows():
                from pipeline.report.page import build_report

                with self._page.spending():
                    build_report(self.run_dir)
            elif self._curves.allows():
                from pipeline.report.curves import draw_curves
                from pipeline.report.run_files import read_run_files

                with self._curves.spending():
                    draw_curves(read_run_files(self.run_dir))
        except Exception as error:
            return f"the page of this run could not be written ({type(error).__name__}: {error}); training goes on"
        return None
