"""What is done to averaged predictions before they are written: another prior, and the decision that a run of folds found to gain."""

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
    """Pass where the predictions of `team` can be put under the prior that `asked` names; None: there is none.

    Raises:
        UserError: ranks are averaged, the target has no such shares, the run does not know those of its training, or the file is no prior.
    """
    if not asked:
        return
    if team.rule == RANKS and len(team.leaves) > 1:
        raise UserError("--prior: ranks are averaged here, and another prior changes no order: leave it out")
    if team.prior is None:
        raise UserError("--prior: the model does not say how often it saw each class in training (a release): it cannot be re-weighted")
    if team.first.target is None:
        return
    check_target(team.first.target)
    if asked != ESTIMATE:
        read_prior(Path(asked), team.first.target)


def finished(team: Team, predictions: Predictions, prior: str | None, decision: str) -> tuple[Predictions, dict[str, Any]]:
    """The predictions under the `prior` (a file, `estimate`, or None) and with the team's decision (`auto`; `off`: without).

    Also what was done, for the record.

    Raises:
        UserError: a prior that does not fit, or a damaged decision.
    """
    done: dict[str, Any] = {}
    if prior:
        check_prior(team, prior)
        predictions, line = shift(predictions, team.prior, prior, team.temperature)
        print(f"  {line}")
        done["prior"] = prior
    found = read_decision(team.record.values if team.record else None, predictions.target) if decision == "auto" else None
    if found is not None:
        predictions = replace(predictions, values=found.apply(predictions.target, predictions.values), logits=None)
        print(f"  decided by {found.kind}, as {team.named[0].path} found to gain; --decision off leaves that out")
        done["decision"] = found.kind
    return predictions, done
