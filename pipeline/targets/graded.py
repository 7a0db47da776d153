"""Read labels as grades: whole numbers in order, whose distance counts."""

from __future__ import annotations

from itertools import pairwise

from pipeline.errors import UserError
from pipeline.targets.decision_case import Case, Read
from pipeline.targets.target import Target


def of_grades(case: Case, names: tuple[str, ...], why: str) -> Read:
    """Read whole numbers as grades, lowest first. A note says where a grade is missing between them.

    Raises:
        UserError: one grade is written in two ways.
    """
    grades = tuple(sorted(names, key=float))
    for low, high in pairwise(grades):
        if float(low) == float(high):
            raise UserError(f"{case.labels.where}: {low!r} and {high!r} are one grade: write it in one way")
    gaps = [(low, high) for low, high in pairwise(grades) if float(high) - float(low) > 1]
    notes = []
    if gaps:
        low, high = max(gaps, key=lambda gap: float(gap[1]) - float(gap[0]))
        notes = [
            f"no grade between {low} and {high}: a wrong one counts by its distance, "
            f"{float(high) - float(low):.7g}, as Kaggle's kappa counts it; only grades of the training "
            "labels are predicted; names without a distance: --metric accuracy"
        ]
    return Target("ordinal", grades), case.labels.texts, why, notes
