"""Find the weights of a blend by greedy forward selection with replacement, and score the choice on unseen
rows.

Caruana, Niculescu-Mizil, Crew, Ksikes 2004, "Ensemble selection from libraries of models": start with the
best member, then repeatedly add the member that raises the metric most. The weight of a member is how often
it was added. It is compared with the plain mean, the mean of ranks, and the best member alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.folds.averaging import PROBABILITIES, RANKS, by_ranks, ranks
from pipeline.targets.metrics import evaluate, find_metric
from pipeline.targets.target import Target

if TYPE_CHECKING:
    import numpy as np

MOST_ROUNDS, PATIENCE, INNER_PARTS = 30, 5, 3
WAYS = ("best alone", "plain mean", "rank mean", "greedy")


@dataclass(frozen=True)
class Scale:
    """Scores members by the metric. `truth`: as `target.encode` returns it."""

    target: Target
    metric: str
    truth: np.ndarray

    def __call__(self, values: np.ndarray, rows: np.ndarray | None = None) -> float:
        """Return the metric with a sign such that more is better; minus infinity where it is undefined."""
        value = evaluate(self.metric, self.target, self.truth if rows is None else self.truth[rows], values)
        if value is None:
            return float("-inf")
        return value if find_metric(self.metric).higher_is_better else -value

    @property
    def takes_ranks(self) -> bool:
        """True where ranks may be averaged: see `averaging.by_ranks`."""
        return by_ranks(self.target, self.metric) == RANKS


@dataclass(frozen=True)
class Choice:
    """One way to blend: its name, what is averaged (`rule`), and the weights (one per member, their sum is
    1).
    """

    way: str
    rule: str
    weights: tuple[float, ...]

    def blend(self, members: np.ndarray) -> np.ndarray:
        """Return (N, O) float32 from (M, N, O) predictions of M members."""
        import numpy as np

        weights = np.array(self.weights)
        used = members if self.rule == PROBABILITIES else np.stack([ranks(member) for member in members])
        return np.tensordot(weights / weights.sum(), used, axes=1).astype(np.float32)


def greedy(scale: Scale, members: np.ndarray, rows: np.ndarray) -> tuple[float, ...]:
    """Return the weights of (M, N, O) `members` from forward selection on `rows`."""
    import numpy as np

    seen = members[:, rows].astype(np.float64)
    counts = np.zeros(len(seen), dtype=np.int64)
    total, best, best_counts, waited = np.zeros(seen.shape[1:]), float("-inf"), counts, 0
    for size in range(1, MOST_ROUNDS + 1):
        scores = [scale((total + member) / size, rows) for member in seen]
        chosen = int(np.argmax(scores))
        counts = counts.copy()
        counts[chosen] += 1
        total = total + seen[chosen]
        if scores[chosen] > best + 1e-12:
            best, best_counts, waited = scores[chosen], counts, 0
        else:
            waited += 1
        if waited >= PATIENCE:
            break
    if not best_counts.any():  # the metric is undefined on these rows
        return (1 / len(seen),) * len(seen)
    return tuple((best_counts / best_counts.sum()).tolist())


def ways(scale: Scale, members: np.ndarray, rows: np.ndarray) -> list[Choice]:
    """Return every way to blend the members, chosen on `rows`."""
    count = len(members)
    alone = max(range(count), key=lambda place: (scale(members[place, rows], rows), -place))
    equal = (1 / count,) * count
    found = [
        Choice(WAYS[0], PROBABILITIES, tuple(float(place == alone) for place in range(count))),
        Choice(WAYS[1], PROBABILITIES, equal),
    ]
    if scale.takes_ranks:
        found.append(Choice(WAYS[2], RANKS, equal))
    return [*found, Choice(WAYS[3], PROBABILITIES, greedy(scale, members, rows))]


def unseen(
    scale: Scale, members: np.ndarray, rows: np.ndarray, parts: np.ndarray
) -> dict[str, tuple[float, np.ndarray]]:
    """Return for each way its score on `rows`, and its (len(rows), O) predictions of them.

    Each part is predicted by the choice made on the other parts. `parts`: (N,) the part of each row, of all
    rows.
    """
    import numpy as np

    moved: dict[str, np.ndarray] = {}
    for part in np.unique(parts[rows]):
        held = parts[rows] == part
        for choice in ways(scale, members, rows[~held]):
            values = moved.setdefault(choice.way, np.zeros((len(rows), members.shape[2]), dtype=np.float32))
            values[held] = (
                choice.blend(members[:, rows])[held]
                if choice.rule == RANKS
                else choice.blend(members[:, rows[held]])
            )
    return {way: (scale(values, rows), values) for way, values in moved.items()}


def select(
    scale: Scale, members: np.ndarray, rows: np.ndarray, seed: int
) -> tuple[Choice, list[tuple[int, float, float]]]:
    """Return the best way with its weights, and the refused members as (member, score with it, score without
    it).

    Best means on parts of `rows` that the weights were not chosen on. A refused member has the weight 0.
    """
    import numpy as np

    parts = np.zeros(len(scale.truth), dtype=np.int64)
    parts[rows] = np.random.default_rng(seed).permutation(len(rows)) % INNER_PARTS
    kept, refused = list(range(len(members))), []

    def best_of(places: Sequence[int]) -> tuple[str, float]:
        found = unseen(scale, members[list(places)], rows, parts)
        way = max(found, key=lambda name: (found[name][0], -WAYS.index(name)))
        return way, found[way][0]

    way, score = best_of(kept)
    while len(kept) > 1:
        without = {place: best_of([other for other in kept if other != place]) for place in kept}
        place = max(without, key=lambda one: (without[one][1], one))
        if without[place][1] < score:
            break
        refused.append((place, score, without[place][1]))
        kept.remove(place)
        way, score = without[place]
    chosen = next(choice for choice in ways(scale, members[kept], rows) if choice.way == way)
    weights = [0.0] * len(members)
    for place, weight in zip(kept, chosen.weights, strict=True):
        weights[place] = weight
    return Choice(chosen.way, chosen.rule, tuple(weights)), refused


def nested(scale: Scale, members: np.ndarray, parts: np.ndarray, seed: int) -> np.ndarray:
    """Return (N, O) float32: each part is predicted by the result of `select` on the other parts.

    So its score measures the whole choice on unseen rows.
    """
    import numpy as np

    values = np.zeros(members.shape[1:], dtype=np.float32)
    for part in np.unique(parts):
        held = parts == part
        choice, _ = select(scale, members, np.flatnonzero(~held), seed)
        values[held] = choice.blend(members)[held] if choice.rule == RANKS else choice.blend(members[:, held])
    return values
