"""Prior shift: probabilities re-weighted where the test set holds other shares of the classes than the training set.

Known shares come from a file; unknown ones are estimated on the test predictions themselves: the most probable shares under a Dirichlet prior
(Sulc and Matas 2018, "Improving CNN classifiers by estimating test-time priors", arXiv:1805.08235), found by expectation-maximisation
(Saerens, Latinne and Decaestecker 2002). Their prior is symmetric; this one is centred at the training shares, so that few images, or unsure
predictions, leave things as they are. Without a prior (plain EM) rare classes are lost where the model is unsure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UserError, raise_all
from pipeline.predictions import Predictions
from pipeline.tables import load_table
from pipeline.targets.target import Target
from pipeline.wording import quoted

if TYPE_CHECKING:
    import numpy as np

ESTIMATE = "estimate"
# Imagined images of each class, on the average: alpha - 1. 2 is Sulc and Matas' own, for probabilities that are right as often as they say.
# Where no out-of-fold rows say whether they are, 8: with 2 an unsure model lost by it. tests/benchmarks/README.md
STRENGTH, STRENGTH_UNSURE = 2.0, 8.0
ROUNDS, STILL = 2000, 1e-8
SHARE_NAMES = ("share", "count", "frequency", "prior", "probability")


def check_target(target: Target) -> None:
    """Pass where a prior means something.

    Raises:
        UserError: the target is not one of several classes, nor one of two.
    """
    if target.kind not in ("multiclass", "binary"):
        raise UserError(f"--prior: shares of classes re-weight one of several classes, or of two; this model predicts {target.describe()}")


def read_prior(path: Path, target: Target) -> np.ndarray:
    """(C,) float64 shares of the classes, in the order of the target's names, that a file with the columns class and share (or count) gives.

    Raises:
        UserError: every problem of the file at once.
    """
    import numpy as np

    table = load_table(path)
    column = next((name for name in table.columns if name.strip().lower() in SHARE_NAMES), None)
    if "class" not in table.columns or column is None:
        raise UserError(f"{path}: expected the columns class and share (or count), found {quoted(table.columns)}")
    shares, problems = {}, []
    for line, name, cell in zip(table.lines, table.column("class"), table.column(column), strict=True):
        try:
            value = float(cell)
        except ValueError:
            value = -1.0
        if not (0 <= value < float("inf")):
            problems.append(f"row {line}: {cell!r} is no number from 0 upwards")
        if name not in target.names:
            problems.append(f"row {line}: {name!r} is no class of the model: {quoted(target.names)}")
        elif name in shares:
            problems.append(f"row {line}: {name!r} is there twice")
        shares[name] = value
    if missing := [name for name in target.names if name not in shares]:
        problems.append(f"no row for {quoted(missing)}")
    raise_all(problems, f"{path} (--prior):")
    found = np.array([shares[name] for name in target.names])
    if found.sum() <= 0:
        raise UserError(f"{path} (--prior): every share is 0")
    return found / found.sum()


def estimate(values: np.ndarray, trained: np.ndarray, strength: float = STRENGTH) -> np.ndarray:
    """(C,) float64: the most probable shares of the classes behind (N, C) probabilities of a model trained with the shares `trained`.

    `strength`: how many images of each class, on the average, are imagined to show the shares of training.
    """
    import numpy as np

    likelihood = np.asarray(values, dtype=np.float64) / trained
    imagined = strength * len(trained) * trained
    shares = trained.copy()
    for _ in range(ROUNDS):
        weighted = likelihood * shares
        weighted /= weighted.sum(axis=1, keepdims=True)
        new = weighted.sum(axis=0) + imagined
        new /= new.sum()
        moved = float(np.abs(new - shares).max())
        shares = new
        if moved < STILL:
            break
    return shares


def reweighted(values: np.ndarray, trained: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """(N, C) float32 probabilities under other `shares` of the classes than the model was `trained` with."""
    import numpy as np

    moved = np.asarray(values, dtype=np.float64) * (shares / trained)
    total = moved.sum(axis=1, keepdims=True)
    return np.where(total > 0, moved / np.where(total > 0, total, 1), values).astype(np.float32)


def is_shifted(values: np.ndarray, trained: np.ndarray, shares: np.ndarray) -> bool:
    """True where `shares` explain (N, C) probabilities better than those of training by more than chance: the likelihood ratio test, 1 in 20."""
    import numpy as np
    from scipy.stats import chi2

    likelihood = np.asarray(values, dtype=np.float64) / trained
    gain = 2 * float((np.log(likelihood @ shares) - np.log(likelihood @ trained)).sum())
    return gain > float(chi2.ppf(0.95, len(trained) - 1))


def shift(
    predictions: Predictions, trained: Sequence[float] | None, asked: str, temperature: float | None = None
) -> tuple[Predictions, str]:
    """`predictions` under the prior that `asked` names (a file, or `estimate`), and a line on what changed. `temperature`: what makes the
    probabilities as sure as they are right, from out-of-fold rows; an estimate from over- or underconfident ones would be off. None: not
    known, and an estimate needs more to go by.

    Estimated shares that are not told apart from those of training by more than chance change nothing.

    Raises:
        UserError: the target has no such shares, the run does not know those of its training, or the file cannot be read.
    """
    import numpy as np

    target = predictions.target
    check_target(target)
    if trained is None:
        raise UserError("--prior: the model does not say how often it saw each class in training (a release): it cannot be re-weighted")
    known = np.array(trained, dtype=np.float64)
    probabilities = predictions.values.astype(np.float64)
    if target.kind == "binary":
        known = np.array([1 - known[0], known[0]])
        probabilities = np.hstack([1 - probabilities, probabilities])
    probabilities = np.clip(probabilities, 1e-12, None) ** (1 / (temperature or 1.0))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    known = np.clip(known, 1e-6, None)
    known /= known.sum()
    shares = (
        estimate(probabilities, known, STRENGTH if temperature else STRENGTH_UNSURE)
        if asked == ESTIMATE
        else read_prior(Path(asked), target)
    )
    if asked == ESTIMATE and not is_shifted(probabilities, known, shares):
        return predictions, "prior (estimate): the test set shows the shares of training, as far as can be told: nothing is changed"
    moved = reweighted(probabilities, known, shares)
    after = replace(predictions, values=moved[:, 1:] if target.kind == "binary" else moved, logits=None)
    most = np.abs(shares - known).argsort()[::-1][:3]
    told = ", ".join(f"{target.names[place]!r} {known[place]:.3f} -> {shares[place]:.3f}" for place in most.tolist())
    changed = int((target.chosen(after.values) != target.chosen(predictions.values)).sum())
    return after, f"prior ({asked}): shares of classes changed most: {told}; {changed:,} of {len(moved):,} decisions are others now"
