"""Read the training part of a competition, then build the model and move it to the device."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.commands.session import Session
from pipeline.errors import UserError
from pipeline.open_files import IMAGE_TENSORS, QUESTION_TENSORS, allow_workers
from pipeline.ranks import world_size

if TYPE_CHECKING:  # torch and transformers take seconds to import: not before the flags are known to be right
    from pipeline.competition.rows import Competition
    from pipeline.recipe import Recipe
    from pipeline.tasks.build import Build
    from pipeline.training.compute import Compute
    from pipeline.training.resume import ResumedRun


def read_data(args: argparse.Namespace, recipe: Recipe, resumed_run: ResumedRun | None = None) -> Competition:
    """Return the training part of the competition, read as the recipe, competition.yaml or the resumed run
    asks.

    Prints how the folder was understood.

    Raises:
        UserError: the data are missing, ambiguous, or do not fit the recipe.
    """
    from pipeline.competition.layout import read_for_training

    asked = resumed_run.asked() if resumed_run else None
    competition = read_for_training(
        Path(args.data), recipe.data, asked=asked, skip_bad_images=recipe.data.skip_bad_images
    )
    print("\n".join(f"  {note}" for note in competition.notes))
    if competition.form is not None and not competition.test:
        where = competition.form.path or args.data
        print(f"WARNING: the images listed in {where} are missing: prediction needs them", file=sys.stderr)
    if competition.folds and not args.folds:
        print(f"  note: {competition.folds_from} names folds; they are used only with --folds")
    if recipe.task != competition.task:
        fix = (
            "--recipe vqa-bert-vit-lora-r8"
            if competition.task == "vqa"
            else "a recipe without task: vqa, such as the default"
        )
        raise UserError(
            f"{args.data} is for {competition.task}, but the recipe {recipe.name} is for {recipe.task}: use "
            f"{fix}, or another --data"
        )
    return competition


def build_task(session: Session, competition: Competition | None = None) -> tuple[Build, Compute]:
    """Return the built task on its device. The competition is read unless it is given.

    Prints how the folder was understood.

    Raises:
        UserError: the data are missing, ambiguous or do not fit the recipe, or the backbone cannot be loaded.
    """
    from pipeline.models.places import check_recipe

    args, recipe, resumed_run = session.args, session.recipe, session.resumed_run
    if world_size() > 1:
        from pipeline.training.processes import get_in_touch

        get_in_touch()
    print(f"{recipe.name}: {recipe.task} with {recipe.backbones}")
    if resumed_run is None:  # a resumed run has its own weights
        check_recipe(recipe)
    if recipe.data.workers != "auto":
        allow_workers(int(recipe.data.workers), QUESTION_TENSORS if recipe.task == "vqa" else IMAGE_TENSORS)
    if competition is None:
        competition = read_data(args, recipe, resumed_run)

    from pipeline.tasks.registry import task_module  # imports torch (seconds), so after all other checks
    from pipeline.training.compute import choose_compute
    from pipeline.training.sharding import check_sharding

    if args.dry_run:  # a dry run writes nothing, so it has no cache
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"cache_gb": 0})})
    compute = choose_compute(recipe.precision)
    build = task_module(recipe.task).build(recipe, competition, resumed_run)
    if recipe.shard and compute.processes.count == 1:
        print("  note: shard is for several processes (torchrun); one process holds all weights")
    elif recipe.shard:
        check_sharding(build.task.model, compute, args.floor)
    if resumed_run is not None:
        resumed_run.check_rows(build.task.split_rows())
    print("\n".join(f"  {note}" for note in build.notes))
    build.task.to_device(compute, fresh=resumed_run is None)
    if compute.processes.count > 1:
        check_processes(session, build, compute)
    return build, compute


def check_processes(session: Session, build: Build, compute: Compute) -> None:
    """Connect the processes and check that all of them have the same run.

    Raises:
        UserError: there are more processes than rows, or they see different recipes, data, weights or states.
    """
    from pipeline.training.checkpoint import weights_digest
    from pipeline.training.processes import meet
    from pipeline.training.resume import rows_digest

    task, count = build.task, compute.processes.count
    if count > task.num_train:
        raise UserError(
            f"{count} processes for {task.num_train} training rows: --nproc-per-node {task.num_train} at most"
        )
    states = sorted((session.output / "state").glob("[0-9]*.json")) if session.resumed_run else []
    meet(
        {
            "flags or recipe": session.recipe.model_dump_json(),
            "images or labels": rows_digest(task.split_rows()),
            "weights": weights_digest(task.model),
            "saved states": states[-1].read_text(encoding="utf-8") if states else "",
            "precision": compute.precision,
        }
    )
