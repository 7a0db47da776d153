"""Draw the ledger of submissions: public scores against validation scores."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.kaggle.ledger import read_ledger
from pipeline.kaggle.remembered import remembered_slug
from pipeline.report.charts import submissions_figure
from pipeline.report.rendering import Drawn
from pipeline.report.run_files import RunFiles
from pipeline.report.words import direction

MIN_POINTS = 2  # a single point shows no relation


def read_submissions(files: RunFiles, ledger: Path, drawn: Drawn) -> dict[str, Any] | None:
    """Return the numbered submissions to the run's competition; None if there are none.

    The competition is the one that `make data` installed, else that of the latest submission with this run's
    validation score. If two or more have both scores, their figure is added to `drawn`. An unreadable ledger
    gives a `problem` text, because the page must still be written.
    """
    try:
        rows = read_ledger(ledger)[1]
        competition = remembered_slug(Path(files.told.get("data") or "data"))
    except UserError as error:
        return {"problem": str(error)}
    own = f"{files.best['value']:.6g}" if files.best else None  # in the format of `make submit`
    competition = competition or next(
        (row["competition"] for row in reversed(rows) if row["validation_score"] == own), None
    )
    rows = [
        row | {"number": number}
        for number, row in enumerate((row for row in rows if row["competition"] == competition), start=1)
    ]
    if not rows:
        return None
    scored = [(row["number"], _number(row["validation_score"]), _number(row["public_score"])) for row in rows]
    points = [point for point in scored if None not in point]
    # Only a metric that was set is surely the competition's; only then is the direction of the public score
    # known.
    better = direction(files.metric.name) if files.told.get("metric") else ""
    if len(points) >= MIN_POINTS:
        path = files.path / "figures" / "submissions.png"
        own_numbers = [row["number"] for row in rows if row["validation_score"] == own]
        submissions_figure(path, points, own_numbers, files.metric.words if better else "", better)
        drawn["submissions"] = (
            path,
            f"Public score against validation score of {len(points)} submissions to "
            f"{competition}{'; ' if better else ''}{better}.",
        )
    return {
        "problem": None,
        "competition": competition,
        "rows": rows,
        "best": _best(files, rows),
        "better": better,
    }


def _best(files: RunFiles, rows: list[dict[str, Any]]) -> int | None:
    """Return the number of the submission with the best public score; None if the direction is unknown or all
    are equal.
    """
    scored = {row["number"]: score for row in rows if (score := _number(row["public_score"])) is not None}
    if not files.told.get("metric") or len(set(scored.values())) < 2:
        return None
    return (max if files.metric.higher_is_better else min)(scored, key=lambda number: scored[number])


def _number(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
