"""Make the models in 8 bits of a team (`--engine openvino-int8`), and say how far they are from torch.

A model is quantized once and kept in its run's folder. Only that needs training images.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from pipeline import ranks
from pipeline.competition.layout import read_for_run
from pipeline.competition.rows import Competition, Row, images_digest
from pipeline.engines import INT8, TORCH
from pipeline.errors import UserError
from pipeline.folds.assembly import Held, read_held
from pipeline.folds.team import Team
from pipeline.predictions import Predictions
from pipeline.run import Run
from pipeline.run_names import INT8_DIR, VAL_TABLE
from pipeline.targets.metrics import evaluate, find_metric
from pipeline.targets.target import Target
from pipeline.tasks.apply import predict
from pipeline.tasks.quantized import keep_quantized, note_made, read_made_of

if TYPE_CHECKING:
    import numpy as np

CALIBRATION = 128  # training images from which the ranges of the activations are read
COMPARED = 32  # of them, predicted by torch too
VALIDATED = 1000  # validation images at most
RESAMPLES = 200  # of the validation rows, for the standard error of the score
SEED = 0

Predict = Callable[[Run, Sequence[Row], str], Predictions]  # run, rows, engine


def quantize_team(
    team: Team, data_dir: Path, competition: Competition, batch_size: int, precision: str
) -> None:
    """Make the models in 8 bits that are missing, and print how far the predictions of each are from torch's.

    `data_dir`: where training images are looked for if the run's own data folder is not there. `competition`,
    `batch_size`, `precision`: as for `predict`.

    Raises:
        UserError: a run answers questions, its training images are missing, or a package is.
    """

    def predicted(run: Run, rows: Sequence[Row], engine: str) -> Predictions:
        return predict(run, competition, batch_size, precision, given=rows, engine=engine)[0]

    for leaf in team.leaves:
        run = leaf.run
        if run.task != "classification":
            raise UserError(
                f"--engine {INT8} is for images, but {run.path} answers questions: leave --engine out"
            )
        made = read_made_of(run)
        if made is None or "validation" not in made:  # there is none, or the comparison was cut short
            made = _quantize(run, data_dir, predicted)
        lines, warning = described(made)
        print("".join(f"  {line}\n" for line in lines), end="", flush=True)
        if warning:
            print(f"WARNING: {run.path}: {warning}", file=sys.stderr)


def _quantize(run: Run, data_dir: Path, predicted: Predict) -> dict[str, Any]:
    from pipeline.models.int8_model import quantize, read_versions
    from pipeline.tasks.registry import task_module

    versions = read_versions()
    if ranks.world_size() > 1:
        raise UserError(
            f"{run.path} has no model in 8 bits yet: make it with one process, "
            f"`python inference.py --engine {INT8} --model {quote(str(run.path))}`"
        )
    if run.target is None:
        raise UserError(f"--engine {INT8}: {run.path} names no classes: use --engine openvino")
    rows = calibration_rows(run, data_dir)
    print(f"  {run.path}: quantizing to 8 bits with {len(rows)} of its training images ...", flush=True)
    classifier = task_module(run.task).rebuild(run, run.target.num_outputs)
    batches = [batch for batch in classifier.batches(rows, 1) if not batch["bad"].any()]
    if not batches:
        raise UserError(f"--engine {INT8}: no training image of {run.path} can be decoded")
    preprocessing = classifier.preprocessing
    quantized = quantize(
        classifier.model,
        classifier.extra,
        (preprocessing.height, preprocessing.width),
        batches,
        lambda batch: preprocessing.normalize(batch["pixels"]).float().numpy(),
    )
    calibration = {"images": len(batches), "seed": SEED, "of": images_digest(rows)}
    made: dict[str, Any] = {"versions": versions, "calibration": calibration}
    keep_quantized(run, quantized, made)
    made["training_images"] = _differences(
        run.target, *(predicted(run, rows[:COMPARED], engine).values for engine in (TORCH, INT8))
    )
    made["validation"] = _validation(run, predicted)
    note_made(run, run.path / INT8_DIR, made)
    return made


def calibration_rows(run: Run, data_dir: Path) -> list[Row]:
    """Return at most `CALIBRATION` training images of the run, drawn by `SEED`; none that validated it.

    Raises:
        UserError: its data folder and `data_dir` hold no training images.
    """
    import numpy as np

    own = run.record.values.get("data") if run.record else None
    folder = Path(own) if own and Path(own).is_dir() else data_dir
    try:
        rows = _training_rows(run, folder)
    except UserError as error:
        raise UserError(
            f"--engine {INT8}: {run.path} has no model in 8 bits yet, and making it needs its training "
            f"images, but {folder} has none that can be read ({error}). Make it where they are, then copy "
            f"{run.path / INT8_DIR} with the run; or use --engine openvino"
        ) from error
    validated = set()
    if (run.path / VAL_TABLE).exists() and not run.unfinished:
        validated = {cells[0] for cells in read_held(run.path).cells}
    trained = [row for row in rows if row.id not in validated and row.path.exists()]
    if not trained:
        raise UserError(
            f"--engine {INT8}: {folder} holds no training images of {run.path}: use --engine openvino"
        )
    drawn = np.random.default_rng(SEED).permutation(len(trained))[:CALIBRATION]
    return [trained[number] for number in drawn.tolist()]


def _training_rows(run: Run, folder: Path) -> list[Row]:
    settings = run.record.data_settings if run.record else {}
    competition = read_for_run(
        folder, settings, run.target, run.metric, skip_bad_images=True, partial_labels=True
    )
    return list(competition.train)


def _differences(target: Target, by_torch: np.ndarray, by_int8: np.ndarray) -> dict[str, Any]:
    """Return rows, largest difference of a prediction, and (but for numbers) the share of equal decisions."""
    import numpy as np

    found: dict[str, Any] = {"rows": len(by_torch), "largest": float(np.abs(by_torch - by_int8).max())}
    if target.kind != "continuous":
        found["equal"] = float(np.mean(target.chosen(by_torch) == target.chosen(by_int8)))
    return found


def _validation(run: Run, predicted: Predict) -> dict[str, Any] | None:
    """Return both scores on the run's validation rows and the standard error; None where images miss."""
    if run.record is None or run.unfinished or not (run.path / VAL_TABLE).exists():
        return None
    held = read_held(run.path)
    rows = [Row(row_id, Path(path), label) for row_id, path, label, *_ in held.cells]
    if not rows or not all(row.path.exists() for row in rows):
        return None
    return _scores(run, held, rows, predicted)


def _scores(run: Run, held: Held, rows: list[Row], predicted: Predict) -> dict[str, Any] | None:
    import numpy as np

    target, metric = run.target, run.metric
    stored = Predictions.of_values(
        held.ids, held.values, target, held.record.data_settings.get("views", "mean")
    )
    drawn = set(np.random.default_rng(SEED).permutation(len(stored.ids))[:VALIDATED].tolist())
    ids = [name for number, name in enumerate(stored.ids) if number in drawn]
    chosen = [row for row in rows if row.id in set(ids)]
    label_of = {row.id: row.label for row in chosen}
    truth, before = target.encode([label_of[name] for name in ids]), stored.aligned(ids).values
    after = predicted(run, chosen, INT8).aligned(ids).values
    scores = [evaluate(metric, target, truth, values) for values in (before, after)]
    if None in scores:
        return None
    found = {
        "metric": metric,
        "stored": scores[0],
        "int8": scores[1],
        "error": _standard_error(metric, target, truth, before),
    }
    return {**found, **_differences(target, before, after)}


def _standard_error(metric: str, target: Target, truth: np.ndarray, values: np.ndarray) -> float | None:
    """Return the score's standard deviation over `RESAMPLES` bootstrap draws of the rows (Efron 1979)."""
    import numpy as np

    draws = np.random.default_rng(SEED).integers(len(truth), size=(RESAMPLES, len(truth)))
    scores = [evaluate(metric, target, truth[rows], values[rows]) for rows in draws]
    known = [score for score in scores if score is not None]
    return float(np.std(known, ddof=1)) if len(known) > 1 else None


def described(made: dict[str, Any]) -> tuple[list[str], str]:
    """Return lines on what `made_of.json` says, and a warning ("" for none).

    The warning comes where the score lost more than its standard error.
    """
    versions, images = made["versions"], made["calibration"]["images"]
    lines = [f"8 bits by nncf {versions['nncf']} from {images} training images"]
    if found := made.get("training_images"):
        lines.append(f"against torch on {found['rows']} training images: {_far(found)}")
    found = made.get("validation")
    if not found:
        return [*lines, "the loss in validation score is not known: the validation images were missing"], ""
    error = "" if found["error"] is None else f" (standard error {found['error']:.4f})"
    scores = f"{found['metric']} {found['int8']:.4f} in 8 bits, {found['stored']:.4f} by torch{error}"
    lines.append(f"on {found['rows']} validation rows: {scores}; {_far(found)}")
    sign = 1 if find_metric(found["metric"]).higher_is_better else -1
    loss = sign * (found["stored"] - found["int8"])
    if loss <= (found["error"] or 0):
        return lines, ""
    return (
        lines,
        f"in 8 bits {found['metric']} is worse by {loss:.4f}, more than its standard error: "
        "--engine openvino loses nothing",
    )


def _far(found: dict[str, Any]) -> str:
    equal = f"{found['equal']:.1%} of the decisions are equal, " if "equal" in found else ""
    return f"{equal}largest difference of a prediction {found['largest']:.4f}"
