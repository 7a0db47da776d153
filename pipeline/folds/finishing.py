"""The last steps on averaged predictions before they are written: prior shift, and the decision of a run of
folds.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.folds.averaging import RANKS
from pipeline.folds.decisions import read_decision
from pipeline.folds.prior import ESTIMATE, check_target, read_prior, shift
from pipeline.folds.team import Team
from pipeline.predictions import Predictions

DECISIONS = ("auto", "off")  # --decision


def check_prior(team: Team, asked: str | None) -> None:
    """Check that `--prior` can be applied to the predictions of `team`. `asked` None: there is none.

    Raises:
        UserError: ranks are averaged, the target has no class frequencies, the run does not know those of its
            training, or the file cannot be read.
    """
    if not asked:
        return
    if team.rule == RANKS and len(team.leaves) > 1:
        raise UserError(
            "--prior: ranks are averaged here, and a prior does not change the order: leave --prior out"
        )
    if team.prior is None:
        raise UserError(
            "--prior: the class frequencies in training are not known (a release has none): leave --prior out"
        )
    if team.first.target is None:
        return
    check_target(team.first.target)
    if asked != ESTIMATE:
        read_prior(Path(asked), team.first.target)


def finished(
    team: Team, predictions: Predictions, prior: str | None, decision: str
) -> tuple[Predictions, dict[str, Any]]:
    """Apply `prior` (a file, `estimate`, or None) and the team's decision (`auto`; `off`: without it).

    Returns the predictions, and what was done, for the record.

    Raises:
        UserError: a prior that does not fit, or a damaged decision.
    """
    done: dict[str, Any] = {}
    is_calibrated = False
    if prior:
        check_prior(team, prior)
        before = predictions
        predictions, line = shift(before, team.prior, prior, team.temperature, team.mean_probabilities)
        print(f"  {line}")
        done["prior"] = prior
        is_calibrated = predictions is not before and team.temperature is not None
    found = None
    if decision == "auto":
        found = read_decision(team.record.values if team.record else None, predictions.target)
    if found is not None and is_calibrated:  # it was fitted on the model's own probabilities
        found = None if found.kind == "temperature" else found.calibrated(team.temperature)
    if found is not None:
        predictions = replace(
            predictions, values=found.apply(predictions.target, predictions.values), logits=None
        )
        print(
            f"  decided by {found.kind}: they raised the out-of-fold score of {team.named[0].path}; "
            "--decision off turns this off"
        )
        done["decision"] = found.kind
    return predictions, done
