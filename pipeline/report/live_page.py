"""Update the page of a run during training whenever that takes little time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LIVE_SHARE = 0.05  # maximum share of the training time
FIRST_PAGE_S, FIRST_CURVES_S = 1.5, 0.5  # assumed seconds of the first time, before it is measured


class Budget:
    """Decides when to repeat a piece of work, so that it takes at most `LIVE_SHARE` of the time since the
    start.
    """

    def __init__(self, first_cost: float) -> None:
        self._began, self._spent, self._cost = time.monotonic(), 0.0, first_cost  # seconds

    def allows(self) -> bool:
        """Return True if there is time to repeat it, assuming the duration of the last time."""
        return self._spent + self._cost <= LIVE_SHARE * (time.monotonic() - self._began)

    @contextmanager
    def spending(self) -> Iterator[None]:
        """Count the time of the block as spent."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._cost = time.monotonic() - start
            self._spent += self._cost


class LivePage:
    """Keeps a run's page and figures up to date during training, each in at most 5 % of the training time.

    Epochs of a minute or more update both; of shorter epochs only some do.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._curves, self._page = Budget(FIRST_CURVES_S), Budget(FIRST_PAGE_S)

    def update(self, at_once: bool = False) -> str | None:
        """Write the page if there is time for it, or `at_once`; else draw the curves, if there is time for
        them.

        Returns an error message instead of raising: a failed page must never stop training.
        """
        try:  # these imports take a second, so they are made only when needed
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
            return (
                f"the page of this run could not be written ({type(error).__name__}: {error}); training "
                "continues"
            )
        return None
