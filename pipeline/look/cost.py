"""Estimate what training takes here: seconds per epoch, memory and disk of a recipe, measured on one step
with a few images.
"""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.competition.rows import Row
from pipeline.data.transforms import Preprocessing
from pipeline.errors import UserError, first_line
from pipeline.files import human_size, human_time
from pipeline.look.section import Grid, Section
from pipeline.look.selection import Looked
from pipeline.models.places import looks_local
from pipeline.recipe import Recipe
from pipeline.wording import counted

if TYPE_CHECKING:
    from pipeline.tasks.step_cost import StepCost
    from pipeline.training.deadline import Rows

SESSION_HOURS = 9  # of a GPU notebook on Kaggle


def backbone_here(recipe: Recipe) -> bool:
    """Return True if the recipe's backbones need no download: described in the recipe, in a folder, or in the
    hub's cache.
    """
    from huggingface_hub import try_to_load_from_cache

    sources = [] if recipe.architecture else [recipe.backbone]
    sources += [recipe.text_backbone] if recipe.text_backbone else []
    return all(
        looks_local(source) or isinstance(try_to_load_from_cache(source, "config.json"), str)
        for source in sources
    )


def input_preprocessing(recipe: Recipe) -> tuple[Preprocessing, str]:
    """Return the preprocessing of the recipe's model, and a sentence if it is a guess because the backbone is
    not here.
    """
    if backbone_here(recipe):
        from pipeline.models.checkpoint_config import load_config, preprocessing_of

        try:
            if recipe.architecture is None:
                preprocessing = preprocessing_of(
                    recipe.backbone, load_config(recipe.backbone), recipe.image_size
                )
                return preprocessing.resized(recipe.resize), ""
        except UserError as error:
            return _square(recipe), f"{first_line(error)}: a square is assumed."
        return _square(recipe), ""
    return _square(
        recipe
    ), f"{recipe.backbone} is not on this machine; assumed: it reads the whole image, resized to a square."


def _square(recipe: Recipe) -> Preprocessing:
    side = recipe.image_size or (recipe.architecture or {}).get("image_size") or 224
    return Preprocessing(side, side).resized(recipe.resize)


def cost_section(looked: Looked, recipe: Recipe, output: Path) -> Section:
    """Return the section on what `recipe` takes here; `output`: the folder that a run would write to."""
    section = Section(f"What it would take: {recipe.name or recipe.backbone}")
    competition = looked.competition
    if recipe.task != competition.task:
        section.says.append(
            f"The recipe {recipe.name} is for {recipe.task}, this competition is {competition.task}: set "
            "another with --recipe."
        )
        return section
    if not backbone_here(recipe):
        section.says.append(
            f"{recipe.backbones} is not on this machine, so nothing is measured. "
            f"`{shlex.join(['python', 'train.py', '--dry-run', '--data', str(competition.root)])}` downloads "
            "it and prints the same; --recipe NAME or --backbone DIR here measures another."
        )
        return section
    try:
        _measure(looked, recipe, output, section)
    except UserError as error:
        section.says.append(f"Cannot be measured: {error}")
    return section


def _measure(looked: Looked, recipe: Recipe, output: Path, section: Section) -> None:
    from pipeline.tasks.parting import expected_rows
    from pipeline.tasks.step_cost import measure_step
    from pipeline.training.advice import advise
    from pipeline.training.deadline import Rows
    from pipeline.training.estimate import check_disk, check_fits
    from pipeline.training.optim import epochs_of, plan_schedule

    competition = looked.competition
    num_rows = len(competition.train)
    num_train, num_val = expected_rows(recipe, competition)
    cost, build = measure_step(recipe, competition, _usable(looked), recipe.batch_size)
    compute, memory, room, needed = cost.compute, cost.memory, cost.room, cost.needed
    task, train_s, predict_s = build.task, cost.train, cost.predict
    epoch = num_train * train_s + num_val * predict_s
    schedule = plan_schedule(recipe, num_train)
    rows = [
        ("on", compute.describe()),
        ("trained parameters", f"{build.counts.trainable:,} of {build.counts.model:,}"),
        (
            "an epoch",
            f"about {human_time(epoch)}: {counted(num_train, 'row')} trained on, {num_val:,} validated",
        ),
        (
            f"all {recipe.epochs} epochs",
            f"about {human_time(recipe.epochs * epoch)}, {schedule['total_steps']:,} optimizer steps",
        ),
        (
            f"memory of a step of {recipe.batch_size}",
            f"{human_size(needed)} counted" + (f", {human_size(room)} free" if room else ""),
        ),
    ]
    side = task.preprocessing.height
    planned = _planned(cost, side, recipe, Rows(num_train, num_val, recipe.effective_batch_size))
    rows.append((f"`train.py --plan {SESSION_HOURS}h` would run", planned))
    problems = []
    try:
        disk = check_disk(output, task.model, recipe, epochs_of(schedule))
        rows.append(("disk", f"up to {human_size(disk)}"))
    except UserError as error:
        problems.append(str(error))
    try:
        check_fits(memory, recipe.batch_size, compute.device)
    except UserError as error:
        problems.append(str(error))
    if len(looked.test):
        rows.append(
            ("predicting the test images", f"about {human_time(len(looked.competition.test) * predict_s)}")
        )
    section.grids.append(Grid("Estimated here", ("", "value"), rows, texts=2))
    section.says.append(
        "Measured on a few images while this page was made. Only the plan includes reading and decoding "
        "images."
    )
    kind = competition.target.kind if competition.target else "multiclass"
    images_each = num_rows / len({row.id for row in competition.train})
    section.says += problems + advise(
        recipe,
        schedule,
        num_train,
        math.ceil(num_val / images_each),
        len(task.class_names),
        build.new_head,
        kind,
        images_each,
        new_split=competition.split is None,
    )


def _planned(cost: StepCost, side: int, recipe: Recipe, rows: Rows) -> str:
    """Return what `train.py --plan` would run in this time, with images of `side` px."""
    from pipeline.training.deadline import FEWEST_STEPS, Limits, Pace, propose

    pace = Pace(
        side,
        cost.train + cost.read,
        cost.predict + cost.read,
        cost.build_seconds,
    )
    found = propose(Limits(SESSION_HOURS * 3600, rows, may_fold=recipe.task == "classification"), [pace])
    if found is None:
        return f"fewer than {FEWEST_STEPS} optimizer steps fit: use smaller images, or train only the head"
    runs = f"{found.folds} folds" if found.folds else "one model"
    return (
        f"{counted(found.epochs, 'epoch')} of this, {runs}: about {human_time(found.seconds)}, reading "
        "images included"
    )


def _usable(looked: Looked) -> list[Row]:
    """Return the training rows whose images were measured and can be decoded."""
    return [
        row
        for row in looked.competition.train
        if (one := looked.facts.get(row.path)) is not None and not one.problem
    ]
