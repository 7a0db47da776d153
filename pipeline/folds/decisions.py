"""Turn probabilities into decisions that raise the metric, fitted on rows that the models did not see.

    thresholds    write a label from this probability on; one for each label, or one for all labels
                  (F1, balanced accuracy, MCC; for labels and for two classes)
    offsets       are added to the logarithms of class probabilities
                  (macro F1, balanced accuracy, MCC; for one of several classes)
    cuts          between one grade and the next, on the expected grade
                  (quadratic weighted kappa and other metrics of grades)
    temperature   divides the logarithms of probabilities (log loss)
    count         the smallest number of labels for an image, the most probable first (F1 of an image)

Each is fitted on all parts but one and judged on that one, in turn for every part (nested). It is used only
where its gain is more than chance: 1.64 standard errors of the gain, from resampled rows. Labels of test
images are never read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError
from pipeline.targets.metrics import evaluate, find_metric
from pipeline.targets.target import Target

if TYPE_CHECKING:
    import numpy as np

ENOUGH_ERRORS, RESAMPLES, GRID, PASSES = 1.64, 200, 24, 2
MAX_ASCENDED = 40  # with more labels: one threshold for all; with more classes: no offsets
DECIDED = tuple(
    "accuracy balanced_accuracy macro_f1 micro_f1 weighted_f1 samples_f1 samples_f2 mcc qwk".split()
)
OFFSET = ("balanced_accuracy", "macro_f1", "weighted_f1", "mcc")


@dataclass(frozen=True)
class Decision:
    """One way to decide. `numbers` are its parameters, in the order of the target's outputs."""

    kind: str
    numbers: tuple[float, ...]

    def apply(self, target: Target, values: np.ndarray) -> np.ndarray:
        """Return (N, O) float32 predictions. The target's own decoding of them gives this decision."""
        import numpy as np

        exact = np.clip(np.asarray(values, dtype=np.float64), 1e-12, 1 - 1e-12)
        numbers = np.array(self.numbers)
        if self.kind == "thresholds":
            rule = target.threshold if target.kind == "multilabel" else 0.5
            odds = _log_odds(exact) - _log_odds(numbers) + _log_odds(np.array(rule))
            moved = (1 / (1 + np.exp(-odds))).astype(np.float32)
            below = np.nextafter(np.float32(rule), np.float32(0))
            return np.where(exact >= numbers, np.maximum(moved, np.float32(rule)), np.minimum(moved, below))
        if self.kind == "count":
            place = (-exact).argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
            return np.where(
                place < numbers[0], np.maximum(values, np.float32(target.threshold)), values
            ).astype(np.float32)
        if self.kind == "cuts":
            grade = np.searchsorted(numbers, target.expected_grade(values), side="right")
            return np.eye(target.num_outputs, dtype=np.float32)[grade]
        if self.kind == "temperature" and not target.is_choice:
            return (1 / (1 + np.exp(-_log_odds(exact) / numbers[0]))).astype(np.float32)
        logs = np.log(exact)
        logs = logs / numbers[0] if self.kind == "temperature" else logs + numbers
        moved = np.exp(logs - logs.max(axis=1, keepdims=True))
        return (moved / moved.sum(axis=1, keepdims=True)).astype(np.float32)

    def calibrated(self, temperature: float) -> Decision:
        """Return the same decision for probabilities that were divided by `temperature` (`prior.shift`).

        It was fitted on the model's own probabilities. Their logarithms are divided, so thresholds (their log
        odds) and offsets are divided too; other kinds have no such probabilities.
        """
        import numpy as np

        numbers = np.array(self.numbers)
        if self.kind == "thresholds":
            numbers = 1 / (1 + np.exp(-_log_odds(numbers) / temperature))
        elif self.kind == "offsets":
            numbers = numbers / temperature
        return Decision(self.kind, tuple(numbers.tolist()))


@dataclass(frozen=True)
class Judged:
    """A decision fitted on all rows, with the gain of the nested decisions and the standard error of that
    gain.
    """

    decision: Decision
    before: float
    after: float
    gain: float  # positive: better
    error: float
    grades: tuple[float, ...] = ()  # cuts: `target.grades`, between which they lie

    @property
    def used(self) -> bool:
        """True where the gain is more than chance."""
        return self.gain > ENOUGH_ERRORS * self.error and self.gain > 1e-9

    def why_not(self) -> str:
        """Return why this decision is not used: it makes the score worse, does not gain more than chance, or
        another one gains more.
        """
        if self.used:
            return "another gains more"
        return "worse" if -self.gain > ENOUGH_ERRORS * self.error and self.gain < -1e-9 else "within chance"

    def describe(self, metric: str, used: bool) -> str:
        """Return a line such as `thresholds: macro_f1 0.6100 -> 0.6500 (gain +0.0400 ± 0.0100), used`."""
        verdict = "used" if used else f"not used: {self.why_not()}"
        return (
            f"{self.decision.kind}: {metric} {self.before:.4f} -> {self.after:.4f} (gain {self.gain:+.4f} "
            f"± {self.error:.4f}), {verdict}"
        )

    def record(self, used: bool) -> dict[str, Any]:
        """Return the entry of run.json."""
        numbers = [float(number) for number in self.decision.numbers]
        scores = {"before": self.before, "after": self.after, "gain": self.gain, "error": self.error}
        scores |= {} if used else {"why_not": self.why_not()}
        scale = {"grades": list(self.grades)} if self.grades else {}
        return {"kind": self.decision.kind, "numbers": numbers, **scale, **scores, "used": used}


def read_decision(record: dict[str, Any] | None, target: Target) -> Decision | None:
    """Return the decision that a run.json marks as used; None if there is none.

    Raises:
        UserError: the entry was changed by hand or is damaged.
    """
    for line in (record or {}).get("decisions") or []:
        if line.get("used"):
            try:
                decision = Decision(str(line["kind"]), tuple(float(number) for number in line["numbers"]))
                wanted = {
                    "thresholds": target.num_outputs,
                    "offsets": target.num_outputs,
                    "cuts": target.num_outputs - 1,
                }
                if decision.kind not in FITS or len(decision.numbers) != wanted.get(decision.kind, 1):
                    raise ValueError(f"{decision.kind} with {len(decision.numbers)} numbers")
                if decision.kind == "cuts" and not _on_these_grades(line.get("grades"), target):
                    raise UserError(
                        "run.json: decisions: the cuts were fitted as if the grades "
                        f"{', '.join(target.names)} were all 1 apart; put the folds together or blend again, "
                        "or predict without them: --decision off"
                    )
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(
                    f"run.json: decisions: changed by hand or damaged ({error}); to predict without it: "
                    "--decision off"
                ) from None
            return decision
    return None


def _on_these_grades(stored: list[float] | None, target: Target) -> bool:
    """Return True where cuts lie between the target's grades.

    Earlier versions stored no grades: they counted places, which is the same for grades without a gap.
    """
    grades = target.grades.tolist()
    return grades == (list(range(len(grades))) if stored is None else stored)


def judge(
    target: Target, metric: str, truth: np.ndarray, values: np.ndarray, parts: np.ndarray, seed: int = 0
) -> list[Judged]:
    """Return every decision that may raise the metric, the best first.

    `truth`: as `target.encode` returns it. `values`: (N, O) predictions of rows that the models did not see.
    `parts`: (N,) the part (fold) of each row. Returns [] where no decision serves the metric, or the metric
    is undefined on these rows.
    """
    import numpy as np

    sign = 1 if find_metric(metric).higher_is_better else -1
    before = evaluate(metric, target, truth, values)
    numbers = np.unique(parts)
    if before is None or len(numbers) < 2:
        return []
    found = []
    for kind in serving(target, metric):
        moved = np.array(values, dtype=np.float32)
        for number in numbers:
            seen = parts != number
            decision = FITS[kind](target, metric, truth[seen], values[seen])
            moved[~seen] = decision.apply(target, values[~seen])
        after = evaluate(metric, target, truth, moved)
        if after is None:
            continue
        error = _error_of_gain(target, metric, truth, values, moved, seed)
        decision = FITS[kind](target, metric, truth, values)
        grades = tuple(target.grades.tolist()) if kind == "cuts" else ()
        found.append(Judged(decision, before, after, sign * (after - before), error, grades))
    return sorted(found, key=lambda one: (not one.used, -one.gain))


def temperature_of(target: Target, truth: np.ndarray, values: np.ndarray) -> float | None:
    """Return the temperature that calibrates the probabilities (see `_fit_temperature`).

    None for targets other than one of several classes, or two classes.
    """
    if target.kind not in ("multiclass", "binary"):
        return None
    return _fit_temperature(target, "log_loss", truth, values).numbers[0]


def serving(target: Target, metric: str) -> list[str]:
    """Return the kinds of decisions that can change a metric of this target."""
    if metric == "log_loss":
        return ["temperature"]
    if metric not in DECIDED:
        return []
    if target.kind in ("binary", "multilabel"):
        return ["thresholds", *(["count"] if metric.startswith("samples_") else [])]
    if target.kind == "ordinal":
        return ["cuts"]
    if target.kind == "multiclass" and metric in OFFSET and target.num_outputs <= MAX_ASCENDED:
        return ["offsets"]
    return []


def _fit_thresholds(target: Target, metric: str, truth: np.ndarray, values: np.ndarray) -> Decision:
    columns = [_grid(values[:, number]) for number in range(target.num_outputs)]
    if metric == "macro_f1" and target.kind == "multilabel":  # each label counts for itself
        return Decision("thresholds", tuple(map(_best_for_f1, truth.T > 0.5, values.T, columns)))

    def score(threshold: float) -> tuple[float, bool]:
        return _score(
            "thresholds", [threshold] * target.num_outputs, target, metric, truth, values
        ), threshold == 0.5

    start = [float(max([*_grid(values).tolist(), 0.5], key=score))] * target.num_outputs
    if target.num_outputs == 1 or target.num_outputs > MAX_ASCENDED:
        return Decision("thresholds", tuple(start))
    return _ascend("thresholds", start, columns, target, metric, truth, values)


def _grid(values: np.ndarray) -> np.ndarray:
    """Return the thresholds to try for these probabilities: quantiles between 0.01 and 0.99."""
    import numpy as np

    return np.unique(np.clip(np.quantile(values, np.linspace(0.02, 0.98, GRID)), 0.01, 0.99))


def _best_for_f1(truth: np.ndarray, values: np.ndarray, grid: np.ndarray) -> float:
    """Return the threshold with the highest F1 of one label; 0.5 where no other is better."""

    def score(threshold: float) -> tuple[float, bool]:
        chosen = values >= threshold
        return 2 * float((chosen & truth).sum()) / max(1, int(chosen.sum() + truth.sum())), threshold == 0.5

    return float(max([*grid.tolist(), 0.5], key=score))


def _fit_offsets(target: Target, metric: str, truth: np.ndarray, values: np.ndarray) -> Decision:
    import numpy as np

    return _ascend(
        "offsets",
        [0.0] * target.num_outputs,
        [np.linspace(-1.5, 1.5, 13)] * target.num_outputs,
        target,
        metric,
        truth,
        values,
    )


def _fit_cuts(target: Target, metric: str, truth: np.ndarray, values: np.ndarray) -> Decision:
    import numpy as np

    expected = target.expected_grade(values)
    start = target.half_way.tolist()
    grid = np.unique(np.quantile(expected, np.linspace(0.01, 0.99, 2 * GRID)))
    return _ascend("cuts", start, [grid] * len(start), target, metric, truth, values)


def _fit_temperature(target: Target, metric: str, truth: np.ndarray, values: np.ndarray) -> Decision:
    """Return the temperature with the lowest log loss of softened labels.

    With N rows a label counts as 1 - 1 / (N + 2), as in Platt 1999. Otherwise a model without a mistake on
    few rows would get the smallest temperature, so its probabilities would become almost exactly 0 and 1.
    """
    from math import exp, log

    import numpy as np
    from scipy.optimize import minimize_scalar

    kept = 1 - 1 / (len(truth) + 2)
    hard = np.eye(target.num_outputs)[truth] if target.is_choice else np.asarray(truth, dtype=np.float64)
    soft = kept * hard + (1 - kept) * (1 / target.num_outputs if target.is_choice else 0.5)

    def loss(logarithm: float) -> float:
        """Return the log loss at the temperature exp(logarithm): a mean over rows, a sum over labels."""
        moved = np.clip(
            Decision("temperature", (exp(logarithm),)).apply(target, values).astype(np.float64),
            1e-12,
            1 - 1e-7,
        )
        return -float(
            (soft * np.log(moved) + (0 if target.is_choice else (1 - soft) * np.log1p(-moved)))
            .sum(axis=1)
            .mean()
        )

    return Decision(
        "temperature", (exp(float(minimize_scalar(loss, bounds=(log(0.1), log(10)), method="bounded").x)),)
    )


def _fit_count(target: Target, metric: str, truth: np.ndarray, values: np.ndarray) -> Decision:
    most = min(target.num_outputs, 10)
    best = max(
        range(most + 1), key=lambda count: (_score("count", [count], target, metric, truth, values), -count)
    )
    return Decision("count", (float(best),))


FITS: dict[str, Callable[..., Decision]] = {
    "thresholds": _fit_thresholds,
    "offsets": _fit_offsets,
    "cuts": _fit_cuts,
    "temperature": _fit_temperature,
    "count": _fit_count,
}


def _ascend(
    kind: str,
    start: list[float],
    grids: list[np.ndarray],
    target: Target,
    metric: str,
    truth: np.ndarray,
    values: np.ndarray,
) -> Decision:
    """Move one number after another to the best value of its grid, with the others fixed.

    Returns `start` where nothing is better.
    """
    numbers = list(start)
    best = _score(kind, numbers, target, metric, truth, values)
    for _ in range(PASSES):
        before = best
        for place, grid in enumerate(grids):
            for value in grid.tolist():
                tried = [*numbers[:place], value, *numbers[place + 1 :]]
                if kind == "cuts" and tried != sorted(tried):
                    continue
                score = _score(kind, tried, target, metric, truth, values)
                if score > best + 1e-12:
                    best, numbers = score, tried
        if best == before:
            break
    return Decision(kind, tuple(float(number) for number in numbers))


def _score(
    kind: str, numbers: list[float], target: Target, metric: str, truth: np.ndarray, values: np.ndarray
) -> float:
    value = evaluate(metric, target, truth, Decision(kind, tuple(numbers)).apply(target, values))
    if value is None:
        return float("-inf")
    return value if find_metric(metric).higher_is_better else -value


def _error_of_gain(
    target: Target, metric: str, truth: np.ndarray, before: np.ndarray, after: np.ndarray, seed: int
) -> float:
    """Return the standard error of the gain: its standard deviation over resampled rows."""
    import numpy as np

    draw, gains = np.random.default_rng(seed), []
    for _ in range(RESAMPLES):
        rows = draw.integers(0, len(truth), len(truth))
        pair = [evaluate(metric, target, truth[rows], values[rows]) for values in (before, after)]
        if None not in pair:
            gains.append(pair[1] - pair[0])
    return float(np.std(gains)) if len(gains) > 1 else float("inf")


def _log_odds(values: np.ndarray) -> np.ndarray:
    import numpy as np

    return np.log(values) - np.log1p(-values)
