"""Read labels as grades: whole numbers in order, whose distance counts."""

from __future__ import annotations

from itertools import pairwise

from pipeline.errors import UserError
from pipeline.targets.decision_case import Case, Read
from pipeline.targets.target import Target, finite_number


def of_grades(case: Case, names: tuple[str, ...], why: str) -> Read:
    """Read whole numbers as grades, lowest first. A note says where a grade is missing between them.

    Raises:
        UserError: one grade is written in two ways.
    """
    value = {name: finite_number(name) or 0 for name in names}  # exact also above 2^53
    grades = tuple(sorted(names, key=lambda name: value[name]))
    for low, high in pairwise(grades):
        if value[low] == value[high]:
            raise UserError(f"{case.labels.where}: {low!r} and {high!r} are one grade: write it in one way")
    gaps = [(low, high) for low, high in pairwise(grades) if value[high] - value[low] > 1]
    notes = []
    if gaps:
        low, high = max(gaps, key=lambda gap: value[gap[1]] - value[gap[0]])
        far = float(value[high] - value[low])
        notes = [
            f"no grade between {low} and {high}: a wrong one counts by its distance, {far:.7g}, as Kaggle's "
            "kappa counts it; only grades of the training labels are predicted; names without a distance: "
            "--metric accuracy"
        ]
    return Target("ordinal", grades), case.labels.texts, why, notes
