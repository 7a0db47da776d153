"""Test-time augmentation: predict mirrored, enlarged and cropped views of an image and average their
probabilities.

Views are made from resized pixels, so the preprocessing of the run does not change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.competition.rows import Competition, Row
from pipeline.engines import TORCH
from pipeline.errors import UserError
from pipeline.folds.assembly import read_held
from pipeline.folds.team import Team, in_order
from pipeline.predictions import Predictions
from pipeline.run import Run
from pipeline.run_names import VAL_TABLE
from pipeline.targets.metrics import evaluate, find_metric
from pipeline.targets.target import Target
from pipeline.tasks.apply import built_for, predict, report_bad
from pipeline.training.compute import choose_compute
from pipeline.wording import nearest

if TYPE_CHECKING:
    import torch

    from pipeline.tasks.build import Predictor

# run, rows, sets of views: the predictions of each set, all by one model
PredictSets = Callable[[Run, Sequence[Row], Sequence[tuple[str, ...]]], list[Predictions]]

VIEWS, AUTO = ("flip", "crops", "scale"), "auto"
# scale: the middle, enlarged by this; crops: side of a corner crop as a share of the image
ZOOM, CROP = 1.15, 0.875
NO_GAINS = "validation images are missing, or a run is not finished"


def parse_views(text: str | None) -> tuple[str, ...]:
    """Return the views in a text such as `flip,scale`, in the order of `VIEWS`; `auto` alone; () for None.

    Raises:
        UserError: a view is not known.
    """
    asked = [part.strip() for part in (text or "").split(",") if part.strip()]
    if asked == [AUTO]:
        return (AUTO,)
    if unknown := [name for name in asked if name not in VIEWS]:
        known = f"{', '.join(VIEWS)}, several as flip,scale, or auto"
        raise UserError(
            f"--tta {text}: {unknown[0]!r} is not a view{nearest(unknown[0], VIEWS)}; use {known}"
        )
    return tuple(name for name in VIEWS if name in asked)


def may_flip(run: Run) -> bool:
    """Return False where the run's recipe does not mirror images: there left and right have a meaning."""
    recipe = (run.record.values.get("recipe") if run.record else None) or {}
    return bool((recipe.get("augmentation") or {}).get("horizontal_flip", False))


def check_views(views: Sequence[str], team: Team) -> None:
    """Check that every model of the team may see these views.

    Raises:
        UserError: a flip, and a run was trained without mirrored images; or the task is not classification.
    """
    if views and team.first.task != "classification":
        raise UserError(
            "--tta is for images with labels: a question about a mirrored or cropped image may have another "
            "answer"
        )
    never = [str(leaf.run.path) for leaf in team.leaves if not may_flip(leaf.run)]
    if "flip" in views and never:
        why = "was trained without mirrored images (augmentation.horizontal_flip is off, or not known)"
        raise UserError(f"--tta flip: {never[0]} {why}: leave flip out")


def make_views(pixels: torch.Tensor, views: Sequence[str]) -> list[torch.Tensor]:
    """Return the views of (B, 3, H, W) uint8 `pixels`, each of the same shape; the first is `pixels`.

    With "flip" every view is also mirrored.
    """
    height, width = pixels.shape[-2:]
    made = [pixels]
    if "scale" in views:
        tall, wide = round(height / ZOOM), round(width / ZOOM)
        top, left = (height - tall) // 2, (width - wide) // 2
        made.append(_enlarged(pixels[..., top : top + tall, left : left + wide], height, width))
    if "crops" in views:
        tall, wide = round(height * CROP), round(width * CROP)
        corners = [(top, left) for top in (0, height - tall) for left in (0, width - wide)]
        made += [
            _enlarged(pixels[..., top : top + tall, left : left + wide], height, width)
            for top, left in corners
        ]
    return [*made, *(view.flip(-1) for view in made)] if "flip" in views else made


def _enlarged(pixels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    import torch
    from torch.nn import functional

    large = functional.interpolate(pixels.float(), size=(height, width), mode="bicubic", align_corners=False)
    return large.round().clamp(0, 255).to(torch.uint8)


def averaged_logits(
    logits: Callable[[dict], torch.Tensor], target: Target, views: Sequence[str]
) -> Callable[[dict], torch.Tensor]:
    """Return a function like `logits` that averages over views.

    The activation of its result is the mean of the views' probabilities (for numbers: the mean of the
    numbers).
    """
    import torch

    def average(batch: dict) -> torch.Tensor:
        found = torch.stack([logits(batch | {"pixels": view}) for view in make_views(batch["pixels"], views)])
        # Apple's GPUs have no float64
        found = (found.cpu() if found.device.type == "mps" else found).double()
        if target.kind == "continuous":
            return found.mean(dim=0).float()
        if target.is_choice:
            return found.log_softmax(dim=-1).exp().mean(dim=0).clamp_min(1e-30).log().float()
        return torch.logit(found.sigmoid().mean(dim=0), eps=1e-12).float()

    return average if views else logits


def predict_views(
    run: Run,
    competition: Competition,
    batch_size: int,
    precision: str,
    views: Sequence[str],
    given: Sequence[Row] | None = None,
    engine: str = TORCH,
    built: Predictor | None = None,
) -> tuple[Predictions, list[Path]]:
    """Predict the test ids (or the rows `given`), averaged over views.

    Return also the images that could not be decoded. `built`: see `predict`.

    Raises:
        UserError: the model cannot be rebuilt, or no test image can be decoded.
    """
    return predict(
        run,
        competition,
        batch_size,
        precision,
        lambda logits, target: averaged_logits(logits, target, views),
        given,
        engine,
        built,
    )


def predict_sets(
    run: Run,
    competition: Competition,
    batch_size: int,
    precision: str,
    sets: Sequence[tuple[str, ...]],
    rows: Sequence[Row],
    engine: str = TORCH,
) -> list[Predictions]:
    """Return the predictions of `rows` for each set of views. The model is built once for all sets.

    Raises:
        UserError: the model cannot be rebuilt, or no image can be decoded.
    """
    built = built_for(run, run.target.num_outputs, choose_compute(precision, engine))
    found = [
        predict_views(run, competition, batch_size, precision, views, rows, engine, built) for views in sets
    ]
    report_bad(found[0][1], len({row.path for row in rows}), "validation images")
    return [predictions for predictions, _ in found]


def gains(
    team: Team, candidates: Sequence[tuple[str, ...]], predict: PredictSets
) -> dict[tuple[str, ...], float] | None:
    """Return how much each set of views improves the metric on the models' validation (or out-of-fold) rows.

    Positive is better. None where those images are missing, or a run is unfinished: its rows have no record.

    Raises:
        UserError: an error of `predict`.
    """
    import numpy as np

    truth, before, after = [], [], {views: [] for views in candidates}
    target = team.first.target
    for leaf in team.leaves:
        if leaf.run.unfinished or not (leaf.run.path / VAL_TABLE).exists():
            return None
        held = read_held(leaf.run.path)
        rows = [Row(row_id, Path(path), label) for row_id, path, label, *_ in held.cells]
        if not rows or not all(row.path.exists() for row in rows):
            return None
        plain = Predictions.of_values(
            held.ids, held.values, leaf.run.target, held.record.data_settings.get("views", "mean")
        )
        label_of = {row.id: row.label for row in rows}
        truth += [label_of[name] for name in plain.ids]
        before.append(in_order(plain, target).values)
        for views, found in zip(candidates, predict(leaf.run, rows, candidates), strict=True):
            after[views].append(in_order(found.aligned(plain.ids), target).values)
    encoded, metric = target.encode(truth), team.first.metric
    sign = 1 if find_metric(metric).higher_is_better else -1
    base = evaluate(metric, target, encoded, np.concatenate(before))
    scores = {
        views: evaluate(metric, target, encoded, np.concatenate(values)) for views, values in after.items()
    }
    if base is None:
        return None
    return {views: sign * (score - base) for views, score in scores.items() if score is not None}


def choose_views(
    asked: tuple[str, ...], team: Team, predict: PredictSets
) -> tuple[tuple[str, ...], list[str]]:
    """Return the views to use, and lines on their gains on validation rows.

    `auto` uses all views that gain there, if together they gain at least as much as the best one alone;
    otherwise the best one. For each list of views to compare `predict` is called once for each model.

    Raises:
        UserError: a view that a model must not see, or an error of `predict`.
    """
    if not asked:
        return (), []
    if asked != (AUTO,):
        check_views(asked, team)
        found = gains(team, [asked], predict)
        shown = (
            f"{found[asked]:+.4f} {team.first.metric} (positive: better)"
            if found
            else f"not known: {NO_GAINS}"
        )
        return asked, [f"views {'+'.join(asked)}: gain on validation rows {shown}"]
    if team.first.task != "classification":
        return (), ["--tta auto: no views for questions"]
    allowed = [name for name in VIEWS if name != "flip" or all(may_flip(leaf.run) for leaf in team.leaves)]
    metric, found = team.first.metric, gains(team, [(name,) for name in allowed], predict)
    if found is None:
        return (), [f"--tta auto: {NO_GAINS}, so no view is used"]
    gaining = tuple(name for name in allowed if found.get((name,), 0) > 0)
    if len(gaining) > 1:  # views that gain alone may lose together
        found |= gains(team, [gaining], predict) or {}
    lines = [
        f"view{'s' * (len(views) > 1)} {'+'.join(views)}: gain on validation rows {gain:+.4f} {metric}"
        for views, gain in found.items()
    ]
    chosen = max(found, key=lambda views: (found[views], len(views))) if gaining else ()
    return chosen, [*lines, f"views used: {', '.join(chosen) or 'none'}"]
