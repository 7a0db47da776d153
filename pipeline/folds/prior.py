"""Prior shift: correct probabilities when the classes have other frequencies in the test set than in
training.

Known class frequencies come from a file. Unknown ones are estimated from the test predictions: the most
probable frequencies under a Dirichlet prior (Sulc and Matas 2018, "Improving CNN classifiers by estimating
test-time priors", arXiv:1805.08235), found by expectation-maximisation (Saerens, Latinne and Decaestecker
2002). Their prior is symmetric; this one is centred at the training frequencies, so few images or uncertain
predictions change little. Without a prior (plain EM) rare classes are lost where the model is uncertain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError, raise_all
from pipeline.folds.decisions import temperature_of
from pipeline.predictions import Predictions
from pipeline.tables import load_table
from pipeline.targets.target import Target
from pipeline.wording import quoted

if TYPE_CHECKING:
    import numpy as np

ESTIMATE = "estimate"
# Strength of the Dirichlet prior, alpha - 1: as many images of each class, on average, are added with the
# training frequencies. Sulc and Matas use 2, for calibrated probabilities. Without out-of-fold rows the
# calibration is not known, so it is 8: with 2 the predictions of an uncertain model became worse
# (tests/benchmarks/README.md).
STRENGTH, STRENGTH_UNSURE = 2.0, 8.0
ROUNDS, STILL = 2000, 1e-8
COUNT, TOLERANCE = "count", 0.02  # shares are often written with two digits
SHARE_NAMES = ("share", COUNT, "frequency", "prior", "probability")


def check_target(target: Target) -> None:
    """Check that class frequencies have a meaning for this target.

    Raises:
        UserError: the target is not one of several classes, nor two classes.
    """
    if target.kind not in ("multiclass", "binary"):
        raise UserError(
            "--prior works for one of several classes, or two classes; this model predicts "
            f"{target.describe()}"
        )


def read_prior(path: Path, target: Target) -> np.ndarray:
    """Return the class frequencies in a file with the columns class and share (or count).

    (C,) float64, their sum is 1, in the order of the target's names. Shares add up to 1, or 100; whole
    numbers are taken as counts.

    Raises:
        UserError: lists every problem of the file.
    """
    import numpy as np

    if not path.exists():
        raise UserError(
            f"--prior {path}: there is no such file; name a CSV file with the columns class and share (or "
            f"count), or write {ESTIMATE}"
        )
    table = load_table(path)
    classes = next((name for name in table.columns if name.strip().lower() == "class"), None)
    column = next((name for name in table.columns if name.strip().lower() in SHARE_NAMES), None)
    if classes is None or column is None:
        raise UserError(
            f"{path}: expected the columns class and share (or count), found {quoted(table.columns)}"
        )
    shares, problems = {}, []
    for line, name, cell in zip(table.lines, table.column(classes), table.column(column), strict=True):
        try:
            value = float(cell)
        except ValueError:
            value = -1.0
        if not (0 <= value < float("inf")):
            problems.append(f"row {line}: {cell!r} is not a number of at least 0")
        if name not in target.names:
            problems.append(f"row {line}: {name!r} is not a class of the model: {quoted(target.names)}")
        elif name in shares:
            problems.append(f"row {line}: {name!r} occurs twice")
        shares[name] = value
    if missing := [name for name in target.names if name not in shares]:
        problems.append(f"no row for {quoted(missing)}")
    raise_all(problems, f"{path} (--prior):")
    found = np.array([shares[name] for name in target.names])
    if found.max() <= 0:
        raise UserError(f"{path} (--prior): every share is 0")
    are_counts = column.strip().lower() == COUNT or (found == np.floor(found)).all()
    total = 1.0 if are_counts else float(found.sum())
    if min(abs(total - 1), abs(total / 100 - 1)) > TOLERANCE:  # one of them is wrong, and which is not known
        raise UserError(
            f"{path} (--prior): column {column!r}: the sum is {total:.6g}, expected 1 (or 100, for percent); "
            f"if these are numbers of images, call the column {COUNT}"
        )
    found /= found.max()  # the sum of large counts may be infinite
    return found / found.sum()


def estimate(values: np.ndarray, trained: np.ndarray, strength: float = STRENGTH) -> np.ndarray:
    """Return the most probable class frequencies, (C,) float64, of the images behind (N, C) probabilities.

    `trained`: class frequencies of training. `strength`: the weight of these, as a number of images for each
    class on average.
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
    """Return (N, C) float32 probabilities for the class frequencies `shares`.

    The model was `trained` with others.
    """
    import numpy as np

    moved = np.asarray(values, dtype=np.float64) * (shares / trained)
    total = moved.sum(axis=1, keepdims=True)
    return np.where(total > 0, moved / np.where(total > 0, total, 1), values).astype(np.float32)


def is_shifted(values: np.ndarray, trained: np.ndarray, shares: np.ndarray) -> bool:
    """Return True where `shares` explain (N, C) probabilities significantly better than the training
    frequencies.

    It is the likelihood ratio test at the level 0.05.
    """
    import numpy as np
    from scipy.stats import chi2

    likelihood = np.asarray(values, dtype=np.float64) / trained
    gain = 2 * float((np.log(likelihood @ shares) - np.log(likelihood @ trained)).sum())
    return gain > float(chi2.ppf(0.95, len(trained) - 1))


def mean_probabilities(target: Target, values: np.ndarray, temperature: float | None) -> list[float] | None:
    """Return the mean over (N, num_outputs) out-of-fold probabilities at `temperature`, one number per class.

    A model predicts some classes more often than they occur. Against the training frequencies, this would
    look like another test set (Alexandari et al. 2020, arXiv:1901.06852: calibrate with a bias for each
    class). None for targets without class frequencies.
    """
    if target.kind not in ("multiclass", "binary"):
        return None
    return _calibrated(target, values, temperature).mean(axis=0).tolist()


def calibration(target: Target, truth: np.ndarray, values: np.ndarray) -> dict[str, Any]:
    """Return what run.json keeps of out-of-fold probabilities, for `shift`: `temperature` and
    `mean_probabilities`.
    """
    temperature = temperature_of(target, truth, values)
    return {"temperature": temperature, "mean_probabilities": mean_probabilities(target, values, temperature)}


def _calibrated(target: Target, values: np.ndarray, temperature: float | None) -> np.ndarray:
    """Return (N, C) float64 probabilities of all classes (of both, for a binary target) at `temperature`."""
    import numpy as np

    probabilities = values.astype(np.float64)
    if target.kind == "binary":
        probabilities = np.hstack([1 - probabilities, probabilities])
    probabilities = np.clip(probabilities, 1e-12, None) ** (1 / (temperature or 1.0))
    return probabilities / probabilities.sum(axis=1, keepdims=True)


def shift(
    predictions: Predictions,
    trained: Sequence[float] | None,
    asked: str,
    temperature: float | None = None,
    mean: Sequence[float] | None = None,
) -> tuple[Predictions, str]:
    """Return the predictions corrected for other class frequencies, and a message on what changed.

    `asked`: a file, or `estimate`. `temperature`: calibrates the probabilities before frequencies are
    estimated, from out-of-fold rows; without calibration the estimate would be biased. None: not known, so
    the training frequencies get more weight. `mean`: the `mean_probabilities` of these rows. The new
    frequencies are compared with them instead of with those of training. Estimated frequencies that do not
    differ significantly from those of training change nothing.

    Raises:
        UserError: the target has no class frequencies, the run does not know those of its training, or the
            file cannot be read.
    """
    import numpy as np

    target = predictions.target
    check_target(target)
    if trained is None:
        raise UserError(
            "--prior: the class frequencies in training are not known (a release has none): leave --prior out"
        )
    known = np.array(trained, dtype=np.float64)
    if target.kind == "binary":
        known = np.array([1 - known[0], known[0]])
    probabilities = _calibrated(target, predictions.values, temperature)
    known = np.clip(known if mean is None else np.array(mean, dtype=np.float64), 1e-6, None)
    known /= known.sum()
    shares = (
        estimate(probabilities, known, STRENGTH if temperature else STRENGTH_UNSURE)
        if asked == ESTIMATE
        else read_prior(Path(asked), target)
    )
    if asked == ESTIMATE and not is_shifted(probabilities, known, shares):
        return (
            predictions,
            "prior (estimate): the class frequencies do not differ significantly from training: nothing is "
            "changed",
        )
    moved = reweighted(probabilities, known, shares)
    after = replace(predictions, values=moved[:, 1:] if target.kind == "binary" else moved, logits=None)
    most = np.abs(shares - known).argsort()[::-1][:3]
    listed = ", ".join(
        f"{target.names[place]!r} {known[place]:.3f} -> {shares[place]:.3f}" for place in most.tolist()
    )
    changed = int((target.chosen(after.values) != target.chosen(predictions.values)).sum())
    counts = f"{changed:,} of {len(moved):,} decisions changed"
    return after, f"prior ({asked}): largest changes of class frequencies: {listed}; {counts}"
