"""Predict with a bundle on Kaggle: apply the models, average them, decide. kernel.py calls this."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.competition.rows import Competition
from pipeline.folds.averaging import RANKS, average, ranks
from pipeline.folds.finishing import finished
from pipeline.folds.team import in_order
from pipeline.kernel.cards import AUTO, Clock, apply_models
from pipeline.kernel.carried import Carried
from pipeline.predictions import Predictions
from pipeline.tasks.apply import assemble, report_bad
from pipeline.wording import counted


@dataclass(frozen=True)
class Answer:
    """Predictions of every id.

    `rates`: rows per second of each model; `memory`: peak bytes of the largest process.
    """

    predictions: Predictions
    rates: list[float]
    memory: int


def predict_carried(
    carried: Carried,
    competition: Competition,
    batch_size: int,
    precision: str,
    until: float,
    cards: int | str = AUTO,
    clock: Clock = time.monotonic,
) -> Answer:
    """Predict as inference.py does with the same models, views, prior and decision, in the order of the form.

    No batch starts after `until` (on `clock`). Each model gets an equal share of the remaining time. An id is
    averaged over the models that predicted it; if none did, it gets the class frequencies of training.
    `cards`: see `apply_models`.

    Raises:
        UserError: a model cannot be rebuilt, or no test image can be decoded.
    """
    output = apply_models(carried, competition, batch_size, precision, until, cards, clock)
    leaves, rows = carried.team.leaves, list(competition.test)
    found = [
        assemble(leaf.run, leaf.run.target, rows, one)
        for leaf, one in zip(leaves, output.computed, strict=True)
    ]
    lost = list(dict.fromkeys(path for one in found for path in one.unreadable))
    report_bad(lost, len({row.path for row in rows}))
    members = [(one.predictions, one.unreached) for one in found]
    predictions, unreached = average_reached(members, [leaf.weight for leaf in leaves], carried.team.rule)
    if unreached:
        print(
            f"WARNING: {counted(len(unreached), 'id')} of {len(predictions.ids):,} were NOT PREDICTED "
            "because time was up: their rows hold the class frequencies of training. Use a larger batch, "
            "fewer members or a smaller model.",
            flush=True,
        )
    predictions, _ = finished(carried.team, predictions, carried.prior, carried.decision)
    return Answer(predictions, output.rates, output.memory)


def average_reached(
    found: Sequence[tuple[Predictions, frozenset[str]]], weights: Sequence[float], rule: str
) -> tuple[Predictions, frozenset[str]]:
    """Average predictions with `weights`, each with the ids it did not reach.

    Returns them and the ids that none reached.

    An id is averaged over the models that reached it. Ranks are computed among the ids that a model reached.
    An id that no model reached gets the average of the models' fallback values; for ranks this is the middle
    rank, 0.5.

    Raises:
        UserError: the models predict different ids or outputs.
    """
    import numpy as np

    if len(found) == 1:
        return found[0]
    target = found[0][0].target
    members = [in_order(predictions, target) for predictions, _ in found]
    mean = average(members, weights, rule)
    if not any(missed for _, missed in found):
        return mean, frozenset()
    reached = np.array([[name not in missed for name in mean.ids] for _, missed in found])  # (models, N)
    shares = reached * np.array(weights)[:, None]
    nobody = shares.sum(axis=0) == 0
    shares[:, nobody] = np.array(weights)[:, None]
    values = np.zeros(mean.values.shape, dtype=np.float64)
    for member, share, its in zip(members, shares, reached, strict=True):
        scale = np.array(member.aligned(mean.ids).values, dtype=np.float64)
        if rule == RANKS:
            scale[its], scale[~its] = ranks(scale[its]), 0.5
        values += scale * share[:, None]
    values = (values / shares.sum(axis=0)[:, None]).astype(np.float32)
    return replace(mean, values=values), frozenset(
        name for name, lost in zip(mean.ids, nobody, strict=True) if lost
    )
