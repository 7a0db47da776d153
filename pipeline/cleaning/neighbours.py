"""Find the training images nearest to each suspect, and how much the models of the folds disagree on every
image.

Near means: a high cosine of the inputs of the last layer, in the model that did not train on the suspect,
among the images that it did train on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.cleaning.out_of_fold import OutOfFold
from pipeline.competition.rows import Row
from pipeline.errors import UserError
from pipeline.run_names import DISAGREEMENT
from pipeline.tables import guarded, write_table

if TYPE_CHECKING:
    import numpy as np
    import torch

    from pipeline.training.compute import Compute

BATCH_SIZE = 32


@dataclass(frozen=True)
class Neighbour:
    """A training image near a suspect; `likeness`: the cosine, at most 1."""

    row: Row
    likeness: float


def look_around(
    oof: OutOfFold, suspects: Sequence[int], count: int
) -> tuple[Mapping[int, list[Neighbour]], np.ndarray]:
    """Return the `count` nearest training images of each row in `suspects`, and (N,) float64 disagreement of
    the models.

    Disagreement is the standard deviation of the models' predictions for an image, over all outputs (the
    square root of the summed variances): 0 if all models agree. Numbers are in units of their training
    standard deviation.

    Raises:
        UserError: a model cannot be rebuilt, or an image can no longer be read.
    """
    import numpy as np

    from pipeline.predictions import Predictions

    target = oof.target
    rows = [row for row_id in oof.ids for row in oof.images[row_id]]
    place = {row_id: number for number, row_id in enumerate(oof.ids)}
    fold_of = np.array([oof.folds[place[row.id]] for row in rows])
    first = {row_id: number for number, row_id in reversed(list(enumerate(row.id for row in rows)))}
    scale = (
        np.array(target.scale)
        if target.kind == "continuous" and target.scale
        else np.ones(target.num_outputs)
    )
    found: dict[int, list[Neighbour]] = {}
    total, squares = np.zeros(oof.values.shape), np.zeros(oof.values.shape)
    for fold in range(1, oof.num_folds + 1):
        logits, features = _through(oof, fold, rows)
        predicted = (
            Predictions.of_images([row.id for row in rows], logits, target).aligned(oof.ids).values / scale
        )
        total += predicted
        squares += predicted.astype(np.float64) ** 2
        mine = [number for number in suspects if oof.folds[number] == fold]
        found |= _nearest(
            features,
            [first[oof.ids[number]] for number in mine],
            np.flatnonzero(fold_of != fold),
            mine,
            rows,
            count,
        )
    variance = np.maximum(squares / oof.num_folds - (total / oof.num_folds) ** 2, 0)
    return found, np.sqrt(variance.sum(axis=1))


def write_disagreement(oof: OutOfFold, disagreement: np.ndarray) -> None:
    """Write disagreement.csv (id, disagreement) into the run's folder; the run's page reads it there."""
    cells = [
        (guarded(row_id), f"{value:.6f}")
        for row_id, value in zip(oof.ids, disagreement.tolist(), strict=True)
    ]
    write_table(oof.path / DISAGREEMENT, ("id", "disagreement"), cells)


def _through(oof: OutOfFold, fold: int, rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    """Return (M, O) logits of a fold's model, and (M, D) float32 features of length 1.

    Where fp16 overflows, they are computed in float32.

    Raises:
        UserError: they are not numbers.
    """
    import numpy as np

    from pipeline.training.compute import choose_compute
    from pipeline.training.predict import not_finite

    compute = choose_compute("auto")
    values = _logits_and_features(oof, fold, rows, compute)
    if compute.precision == "fp16" and not_finite(values, compute.precision):
        print(f"  fold {fold}: fp16 overflows, so it is computed again in fp32")
        compute = choose_compute("fp32")
        values = _logits_and_features(oof, fold, rows, compute)
    if problem := not_finite(values, compute.precision):
        raise UserError(f"the output of the model in {oof.path / f'fold-{fold}'} is {problem}")
    features = values[:, oof.target.num_outputs :]
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return values[:, : oof.target.num_outputs], features / np.where(length > 0, length, 1)


def _logits_and_features(oof: OutOfFold, fold: int, rows: Sequence[Row], compute: Compute) -> np.ndarray:
    """Return (M, O + D) float32: the logits of a fold's model, then its features."""
    import torch

    from pipeline.data.dataset import readable
    from pipeline.models.backbones import head_name
    from pipeline.run import load_run
    from pipeline.tasks.apply import ready
    from pipeline.training.predict import predict_logits

    predictor = ready(load_run(oof.path / f"fold-{fold}"), oof.target.num_outputs, compute)
    head = predictor.model.get_submodule(head_name(predictor.model))
    seen: list[torch.Tensor] = []
    hook = head.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))

    def both(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        seen.clear()
        logits = predictor.logits(batch)
        features = seen[-1]
        return torch.cat(
            [logits.float(), features.reshape(len(logits), -1, features.shape[-1]).mean(dim=1).float()], dim=1
        )

    width = oof.target.num_outputs + head.in_features
    batches = readable(predictor.batches(rows, BATCH_SIZE), [row.path for row in rows])
    values = predict_logits(
        predictor.model, both, batches, len(rows), width, compute, f"fold {fold} of {oof.num_folds}"
    )
    hook.remove()
    return values


def _nearest(
    features: np.ndarray,
    asked: Sequence[int],
    trained: np.ndarray,
    numbers: Sequence[int],
    rows: Sequence[Row],
    count: int,
) -> dict[int, list[Neighbour]]:
    import numpy as np

    found = {}
    known = features[trained]  # a copy
    for number, own in zip(numbers, asked, strict=True):
        likeness = known @ features[own]
        nearest = np.argsort(-likeness, kind="stable")[:count]
        found[number] = [Neighbour(rows[trained[place]], float(likeness[place])) for place in nearest]
    return found
