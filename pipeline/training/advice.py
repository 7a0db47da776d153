"""Warnings about the plan of a run, before and during training: too little for a new head, too few
validation rows, low scores.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Sequence
from typing import Any

from pipeline.config import validate_recipe
from pipeline.errors import UserError
from pipeline.recipe import Recipe
from pipeline.recipe_sections import Augmentation
from pipeline.targets.baseline import Baseline
from pipeline.training.optim import lr_at

# A step of Adam moves a weight by about the learning rate, so the sum of learning rates limits how far a new
# head can move. On 24 kinds of fruit and vegetables (README) 0.006 learnt nothing (the default recipe), 0.03
# gave accuracy 0.44, 0.08 gave 0.63, and 0.3 and more gave 0.61 to 0.82.
LITTLE_WAY = 0.03
LARGE_BACKBONE = "microsoft/beit-large-patch16-384"
LARGE_RECIPE = "beit-large-384-lora-ours"  # the settings of lora-ours for this backbone
MOST_STEPS = 20_000  # of a longer plan only a sample of learning rates is summed
# Validation rows: with fewer the standard error of an accuracy of one half is more than 5 points
FEW_ROWS = 100
SHARE = 0.2  # of the rows for validation, where the recipe takes fewer
HALF_WAY = 0.5  # share of the steps after which a run that is no better than a constant is reported again
A_THIRD = 1 / 3  # share of the steps after which a run below its floor is reported


def advise(
    recipe: Recipe,
    schedule: dict[str, Any],
    num_train: int,
    num_val: int,
    num_classes: int,
    new_head: bool,
    kind: str,
    images_each: float = 1.0,
    new_split: bool = True,
    num_pseudo: int = 0,
) -> list[str]:
    """Return lines on what is too little in this plan, each with a better setting; [] if there is nothing.

    `num_train`: images. `num_val`: validation rows as the score counts them, each id once. `kind`: the kind
    of the target. `images_each`: images of an id, on average. `new_split`: the recipe chooses the validation
    rows; False for a fold, for a resumed run, and where the data state them. `num_pseudo`: how many of the
    training images are pseudo-labelled, so that they can never validate.
    """
    lines = []
    if new_head and recipe.head.init == "random" and recipe.optimizer.name != "sgd":
        lines += _head_lines(recipe, schedule, num_train, kind)
    if 0 < num_val < max(FEW_ROWS, 2 * num_classes):
        more = new_split and recipe.data.val_fraction < SHARE
        lines.append(_row_line((num_train - num_pseudo) / images_each, num_val, num_classes, kind, more))
    return lines


def moved_coordinates(augmentation: Augmentation, names: Sequence[str]) -> list[str]:
    """Return a line if two numbers are called like the coordinates of a point (`nose_x`, `nose_y`), and
    training images are moved: their numbers stay as they are.
    """
    points = {match[1]: name for name in names if (match := re.fullmatch(r"(.*[^a-z])?x", name.lower()))}
    pair = next(
        (
            (points[match[1]], name)
            for name in names
            if (match := re.fullmatch(r"(.*[^a-z])?y", name.lower())) and match[1] in points
        ),
        None,
    )
    moving = {
        "random_resized_crop=false": augmentation.random_resized_crop,
        "horizontal_flip=false": augmentation.horizontal_flip,
        "rotation_degrees=0": augmentation.rotation_degrees > 0,
        "policy=none": augmentation.policy != "none",
    }
    flags = " ".join(f"--set augmentation.{setting}" for setting, moves in moving.items() if moves)
    if pair is None or not flags:
        return []
    return [
        f"WARNING: {pair[0]!r} and {pair[1]!r} look like the coordinates of a point, but training images are "
        f"moved (crops, flips) and their numbers are not; if they are places in the image: {flags}"
    ]


def mirrored_sides(augmentation: Augmentation, names: Sequence[str]) -> list[str]:
    """Return a line if two classes or labels differ only in left and right, and half of the training images
    are mirrored under their own label.
    """
    lower = {name.lower(): name for name in names}
    pair = next(
        (
            (name, lower[other])
            for name in names
            if (other := name.lower().replace("left", "right")) != name.lower() and other in lower
        ),
        None,
    )
    if pair is None or not augmentation.horizontal_flip:
        return []
    return [
        f"WARNING: {pair[0]!r} and {pair[1]!r} differ in left and right, but half of the training images are "
        "mirrored and keep their label; if mirroring an image changes its label: --set "
        "augmentation.horizontal_flip=false"
    ]


def way_of_head(recipe: Recipe, schedule: dict[str, Any]) -> float:
    """Return about how far the schedule can move a weight of the head: the sum of its learning rates over
    all steps.
    """
    scale = (recipe.optimizer.head_lr or recipe.optimizer.lr) / recipe.optimizer.lr
    total = schedule["total_steps"]
    steps = range(0, total, max(total // MOST_STEPS, 1))  # of a long plan an even sample
    return scale * sum(lr_at(step, schedule) for step in steps) / len(steps) * total


def _head_lines(recipe: Recipe, schedule: dict[str, Any], num_train: int, kind: str) -> list[str]:
    way, steps = way_of_head(recipe, schedule), schedule["total_steps"]
    if way >= LITTLE_WAY:
        return []
    rate = recipe.optimizer.head_lr or recipe.optimizer.lr
    lines = [
        f"too little training for a new head: {steps:,} optimizer steps with a learning rate of at most "
        f"{rate:.0e} move its weights by about {way:.1g} in total; even {LITTLE_WAY} is little"
    ]
    if recipe.lora.rank and recipe.optimizer.head_lr is None:
        lines.append(
            "  the new head has the adapter's learning rate; one that is 10 times higher is possible"
        )
    better = []
    if recipe.lora.rank and _fits(recipe, {"optimizer.lr": 1e-3, "optimizer.head_lr": 1e-2}):
        better.append(
            "    --lr 1e-3 --set optimizer.head_lr=1e-2                    0.63 -> 0.76 by the head's "
            "learning rate, 10 epochs"
        )
    alone = {"lora.rank": 0, "head_only": True, "optimizer.lr": 1e-2}
    if not recipe.head_only and not recipe.random_weights and _fits(recipe, alone):
        better.append(
            "    --lora-rank 0 --set head_only=true --lr 1e-2 --epochs 10  0.73: only the head, in minutes"
        )
    if recipe.task == "classification" and recipe.lora.rank and kind in ("multiclass", "binary"):
        large = recipe.backbone == LARGE_BACKBONE
        own = (
            ["--recipe", LARGE_RECIPE] if large else ["--recipe", "lora-ours", "--backbone", recipe.backbone]
        )
        better.append(f"    {shlex.join(own)}")
        better.append(
            "        0.79 -> 0.93 compared with query + key and 1e-3 for all: 348 of the images, DINOv2 "
            "ViT-S at 112 px, 8 epochs, on held-back images"
        )
    if recipe.accumulation_steps > 1:
        more = math.ceil(num_train / recipe.batch_size) * recipe.epochs
        better.append(
            f"    --accumulation-steps 1                                    {more:,} steps instead of "
            f"{steps:,}"
        )
    if better:
        lines.append(
            "  better in our tests, with one of 24 classes for each of 580 photographs and a small backbone "
            "(pipeline/recipes/README.md; seeds 0, 1, 2):"
        )
    return lines + better


def _fits(recipe: Recipe, overrides: dict[str, Any]) -> bool:
    """Return True where this recipe accepts other values: advice must not end in an error."""
    try:
        validate_recipe(recipe.model_dump(mode="json"), overrides, "advice")
    except UserError:
        return False
    return True


def _row_line(num_train: float, num_val: int, num_classes: int, kind: str, may_be_more: bool) -> str:
    if kind == "continuous":
        error = f"an error measured on them has an uncertainty of about {1 / math.sqrt(2 * num_val):.0%}"
    else:
        error = (
            f"an accuracy has a standard error of up to {math.sqrt(0.25 / num_val):.2f} (binomial), and "
            f"one row is {1 / num_val:.3f}"
        )
    classes = f" for {num_classes:,} classes" if kind in ("multiclass", "ordinal") else ""
    rows = round(SHARE * (num_train + num_val))
    more = f"; --set data.val_fraction={SHARE} gives {rows:,}" if may_be_more and rows > num_val else ""
    return f"{num_val:,} validation rows{classes} are too few to compare epochs: {error}{more}"


def no_better(baseline: Baseline, best: float, higher_is_better: bool, metric: str, num_val: int) -> bool:
    """Return True if the best score so far is no better than a constant prediction.

    An accuracy must be better by more than its standard error.
    """
    chance = math.sqrt(baseline.value * (1 - baseline.value) / num_val) if metric == "val_accuracy" else 0.0
    return _gain(baseline, best, higher_is_better) <= chance


def _gain(baseline: Baseline, best: float, higher_is_better: bool) -> float:
    return best - baseline.value if higher_is_better else baseline.value - best


class Watch:
    """Warns, once after the warm-up and once half-way, when a run is no better than a constant prediction."""

    def __init__(
        self,
        baseline: Baseline | None,
        metric: str,
        higher_is_better: bool,
        num_val: int,
        schedule: dict[str, Any],
    ) -> None:
        self.baseline = baseline
        self.metric = metric
        self.higher_is_better = higher_is_better
        self.num_val = num_val
        self.due = [schedule["warmup_steps"], HALF_WAY * schedule["total_steps"]]

    def warning(self, history: list[dict[str, Any]]) -> str | None:
        """Return the warning after the last of these epochs (lines of metrics.jsonl), or None."""
        scores = [row[self.metric] for row in history if row.get(self.metric) is not None]
        step = history[-1]["step"]
        reached = [due for due in self.due if step > due]
        if self.baseline is None or not scores or not reached:
            return None
        self.due = [due for due in self.due if due not in reached]
        best = max(scores) if self.higher_is_better else min(scores)
        if not no_better(self.baseline, best, self.higher_is_better, self.metric, self.num_val):
            return None
        gains = _gain(self.baseline, best, self.higher_is_better) > 0
        chance = f" by more than chance on {self.num_val:,} rows" if gains else ""
        return (
            f"WARNING: after {step:,} optimizer steps no better than a constant prediction{chance}: "
            f"{self.metric} {best:.4f}, {self.baseline.words} {self.baseline.value:.4f}; a higher learning "
            "rate or more steps may help (Ctrl-C stops and saves the state)"
        )


class FloorWatch:
    """Warns when a run is below its floor, with settings to change.

    The warning comes at the end of the first epoch after a third of the steps, and again at the end.
    """

    def __init__(
        self, floor: Baseline | None, metric: str, recipe: Recipe, schedule: dict[str, Any], keep_last: bool
    ) -> None:
        self.floor, self.metric, self.recipe, self.keep_last = floor, metric, recipe, keep_last
        self.due = [A_THIRD * schedule["total_steps"], schedule["total_steps"]]

    def warning(self, history: list[dict[str, Any]]) -> str | None:
        """Return the warning after the last of these epochs (lines of metrics.jsonl), or None."""
        scores = [row[self.metric] for row in history if row.get(self.metric) is not None]
        step = history[-1]["step"]
        if self.floor is None or not scores or not self.due or step < self.due[0]:
            return None
        self.due = [due for due in self.due if step < due]
        best = max(scores)
        kept = scores[-1] if self.keep_last else best
        if kept >= self.floor.value:
            return None
        lines = [
            f"WARNING: after {step:,} optimizer steps below the score of the question alone: {self.metric} "
            f"{kept:.4f}, {self.floor.words} {self.floor.value:.4f}. Try:"
        ]
        if best >= self.floor.value:
            lines.append(
                f"  --set checkpoint.keep=best             an earlier epoch was above it: {best:.4f}"
            )
        return "\n".join([*lines, *below_floor(self.recipe)])


def below_floor(recipe: Recipe) -> list[str]:
    """Return flags for a new run on questions (vqa) that was worse than the questions alone.

    The best for small data sets come first.
    """
    lines = []
    if not recipe.head_only and not recipe.freeze and recipe.text_architecture is None:
        lines.append(
            "  --recipe vqa-bert-vit-ours             for small sets, with the same --backbone and --set "
            "text_backbone="
        )
    if recipe.head.text_pooling != "mean":
        lines.append("  --set head.text_pooling=mean           uses all words of a question, not one token")
    if recipe.optimizer.head_lr is None and not recipe.head_only:
        lines.append(
            f"  --set optimizer.head_lr={10 * recipe.optimizer.lr:.0e}            a new head needs a higher "
            "learning rate than its backbones"
        )
    if recipe.head.fusion == "concat" and recipe.head.activation == "none":
        lines.append(
            "  --set head.activation=gelu             without it an image adds the same to every answer for "
            "any question"
        )
    if not recipe.head.dropout:
        lines.append("  --set head.dropout=0.3                 against overfitting")
    lines.append(
        f"  --epochs {2 * recipe.epochs}                            if the validation loss still falls; if "
        "it rises, use a higher weight decay"
    )
    return lines
