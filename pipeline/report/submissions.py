"""The ledger of submissions as a figure: what Kaggle gave against what validation had promised."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pipeline.competition.datasets import remembered_slug
from pipeline.competition.ledger import read_ledger
from pipeline.errors import UserError
from pipeline.report.charts import submissions_figure
from pipeline.report.rendering import Drawn
from pipeline.report.run_files import RunFiles

MIN_POINTS = 2  # one point is no relation


def read_submissions(files: RunFiles, ledger: Path, drawn: Drawn) -> dict[str, Any] | None:
    """The submissions to the run's competition (the latest one where it is not known), numbered; None when there are none.

    Adds their figure to `drawn` where two or more have both scores. A ledger that cannot be read is a `problem`, not the end of the page.
    """
    try:
        rows = read_ledger(ledger)[1]
        slug = remembered_slug(Path(files.told.get("data") or "data"))
    except UserError as error:
        return {"problem": str(error)}
    competition = slug or (rows[-1]["competition"] if rows else None)
    rows = [row | {"number": number} for number, row in enumerate((row for row in rows if row["competition"] == competition), start=1)]
    if not rows:
        return None
    scored = [(row["number"], _number(row["validation_score"]), _number(row["public_score"]), row["validation_score"]) for row in rows]
    points = [(number, validation, public) for number, validation, public, _ in scored if validation is not None and public is not None]
    if len(points) >= MIN_POINTS:
        own = f"{files.best['value']:.6g}" if files.best else None  # as `make submit` writes it
        path = files.path / "figures" / "submissions.png"
        submissions_figure(path, points, [number for number, _, _, written in scored if written == own])
        drawn["submissions"] = path, f"Public score against validation score of {len(points)} submissions to {competition}."
    return {"problem": None, "competition": competition, "rows": rows}


def _number(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
