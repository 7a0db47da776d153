"""train.py --plan 9h: measure the speed here and write a recipe file that fits into the time, with its
command.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from pipeline.commands.session import asked_recipe, given_keys
from pipeline.errors import UserError, raise_all
from pipeline.files import human_size, human_time, versioned, write_text
from pipeline.ranks import world_size
from pipeline.recipe import Recipe
from pipeline.recipe_sections import Augmentation
from pipeline.wording import counted

if TYPE_CHECKING:
    from pipeline.competition.rows import Competition
    from pipeline.tasks.build import Build
    from pipeline.tasks.step_cost import StepCost
    from pipeline.training.deadline import Pace, Proposal, Rows

PLAN_RECIPE = "beit-large-384-lora-ours"  # without --recipe
HEAD_LR = 1e-2  # of the head alone: see pipeline/recipes/README.md
DEFAULT_OUTPUT = "finetuned_model"


def seconds_of(text: str) -> float:
    """Return `9h`, `90m` or `2h30m` in seconds.

    Raises:
        UserError: not a time, or zero.
    """
    found = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m(?:in)?)?", text.strip().lower())
    seconds = 3600 * float(found[1] or 0) + 60 * float(found[2] or 0) if found else 0.0
    if not seconds:
        raise UserError(f"--plan {text}: expected a time such as 9h, 90m or 2h30m")
    return seconds


def plan(args: argparse.Namespace, read: Callable[[argparse.Namespace, Recipe], Competition]) -> int:
    """Measure, decide, write the recipe file and print the command that runs it. Return the exit code.

    `read` reads the data folder.

    Raises:
        UserError: flags that cannot be combined, unusable data or backbone, or too little time for any run.
    """
    from pipeline.models.places import check_recipe
    from pipeline.training.deadline import MARGIN, Limits, propose, propose_head

    deadline = seconds_of(args.plan)
    check_flags(args)
    if args.recipe is None:
        args.recipe = PLAN_RECIPE
    recipe = asked_recipe(args)
    if recipe.data.pseudo_labels:
        raise UserError(
            "data.pseudo_labels: cannot be combined with --plan; plan without it, then add it to the "
            "command that is printed"
        )
    check_recipe(recipe)
    competition = read(args, recipe)
    rows = rows_of(recipe, competition)
    given = given_keys(args)  # what is given stays
    bench = Bench(
        recipe,
        competition,
        has_fixed_size=given.get("image_size") is not None,
        batch_size=recipe.batch_size if "batch_size" in given else None,
    )
    epochs = recipe.epochs if "epochs" in given else None
    # Otherwise the data give split or folds
    may_fold = recipe.task == "classification" and not competition.split and not competition.folds
    limits = Limits(deadline, rows, epochs, args.folds, may_fold)
    found = propose(limits, bench.paces())
    if found is None:
        whole, bench = bench, bench.of_head() or bench
        paces = [bench.measured(size) for size in sorted(bench.costs, reverse=True)]
        found = propose_head(limits, paces) if bench is not whole else None
        if found is None:
            raise UserError(too_little(args.plan, whole, rows, args.folds))
    kept = f"{human_time(MARGIN * deadline)} of {human_time(deadline)} reserved"
    print(f"plan for {args.plan}: {counted(rows.total, 'row')} of {args.data}; {bench.compute}; {kept}")
    path = write_plan(args, bench, found, rows)
    print(f"  wrote {path} (you can edit it); run it with\n{command_of(args, path, found, deadline)}")
    return 0


def check_flags(args: argparse.Namespace) -> None:
    """Refuse flags that cannot be combined with --plan.

    Raises:
        UserError: lists every problem.
    """
    asked = {
        "--resume": args.resume,
        "--dry-run": args.dry_run,
        "--fold": args.fold,
        "--parallel": args.parallel,
        "--max-minutes": args.max_minutes,
    }
    problems = [
        f"{flag}: cannot be combined with --plan, which does not train"
        for flag, value in asked.items()
        if value is not None and value is not False
    ]
    problems += (
        [f"--folds {args.folds}: expected 2 or more"] if args.folds is not None and args.folds < 2 else []
    )
    problems += ["torchrun: start --plan with python, in one process"] if world_size() > 1 else []
    raise_all(problems, "no plan can be made:")


def rows_of(recipe: Recipe, competition: Competition) -> Rows:
    """Return the numbers of training and validation rows of one run."""
    from pipeline.tasks.parting import expected_rows
    from pipeline.training.deadline import Rows

    return Rows(*expected_rows(recipe, competition), recipe.effective_batch_size)


class Bench:
    """Measures the recipe at several image sizes, each when it is first needed.

    `has_fixed_size`: only at the recipe's. `batch_size`: rows at a time; None: as many of the recipe's as fit
    in memory. `build`: the newest model. Earlier ones are freed: they would take the GPU's memory from what
    is measured.
    """

    def __init__(
        self, recipe: Recipe, competition: Competition, has_fixed_size: bool, batch_size: int | None
    ) -> None:
        self.recipe, self.competition, self.has_fixed_size = recipe, competition, has_fixed_size
        self.batch_size = batch_size
        self.costs: dict[int, StepCost] = {}  # by image size
        self.build: Build | None = None
        self.known: dict[int, Pace] = {}
        self.own_size = 0
        self.start_seconds = 0.0  # until the first model is built, with the import of its libraries

    @property
    def compute(self) -> str:
        """Device and precision of the measurement, as text."""
        return f"on {next(iter(self.costs.values())).compute.describe()}"

    def paces(self) -> Iterator[Pace]:
        """Yield the pace at each image size, from the recipe's (or the backbone's own) down.

        With a fixed size only at that one.
        """
        from pipeline.training.deadline import smaller_sizes

        yield self.measured(self.recipe.image_size)
        if self.has_fixed_size or self.recipe.task != "classification":
            return
        config = getattr(self.build.task.model, "config", None)
        patch = getattr(config, "patch_size", None)
        for size in smaller_sizes(self.own_size, patch if isinstance(patch, int) else 32)[1:]:
            try:
                yield self.measured(size)
            except (UserError, RuntimeError, ValueError):  # an architecture with one fixed size
                return

    def measured(self, size: int | None) -> Pace:
        """Return the pace at `size` (None: the backbone's own)."""
        from pipeline.data.dataset import resolve_workers
        from pipeline.tasks.step_cost import measure_step
        from pipeline.training.deadline import Pace

        if size in self.known:
            return self.known[size]
        recipe = at_size(self.recipe, size)
        rows = list(self.competition.train)
        self.build = None
        cost, self.build = measure_step(recipe, self.competition, rows, self.batch_size, must_fit=True)
        side = self.build.task.preprocessing.height
        self.own_size = self.own_size or side
        self.costs[side] = cost
        workers = resolve_workers(recipe.data.workers, [row.path for row in rows])
        read = cost.read / max(workers, 1)
        # Loader processes read images while the GPU computes
        if cost.compute.device.type == "cuda" and workers:
            seconds = max(cost.train, read), max(cost.predict, read)
        else:
            seconds = cost.train + read, cost.predict + read
        self.start_seconds = max(self.start_seconds, cost.build_seconds)
        self.known[side] = Pace(side, *seconds, self.start_seconds, recipe.schedule.image_sizes)
        return self.known[side]

    def of_head(self) -> Bench | None:
        """Return the bench for training only the head, at the measured sizes.

        None if features cannot be computed once.
        """
        from pipeline.training.features import Features

        if self.recipe.task != "classification":
            return None
        self.build = None
        bench = Bench(head_recipe(self.recipe), self.competition, self.has_fixed_size, self.batch_size)
        bench.own_size, bench.start_seconds = self.own_size, self.start_seconds
        bench.measured(min(self.costs))
        [cost] = bench.costs.values()
        if Features(bench.build.task, cost.compute).problem():
            return None
        for size in self.costs:
            bench.measured(size)
        return bench


def at_size(recipe: Recipe, size: int | None) -> Recipe:
    """`recipe` at another image size (None: the backbone's own).

    A schedule of image sizes is kept only for its own last size.
    """
    if size == recipe.image_size:
        return recipe
    return recipe.model_copy(
        update={"image_size": size, "schedule": recipe.schedule.model_copy(update={"image_sizes": ()})}
    )


def head_recipe(recipe: Recipe) -> Recipe:
    """Return `recipe` changed to train only the head, without augmentation."""
    lora = recipe.lora.model_copy(update={"rank": 0, "also_train": ()})
    optimizer = recipe.optimizer.model_copy(update={"lr": HEAD_LR, "head_lr": None})
    still = Augmentation(random_resized_crop=False, horizontal_flip=False)  # the others are off by default
    schedule = recipe.schedule.model_copy(update={"image_sizes": ()})
    changed = {
        "lora": lora,
        "head_only": True,
        "optimizer": optimizer,
        "augmentation": still,
        "schedule": schedule,
    }
    return recipe.model_copy(update=changed)


def too_little(asked: str, bench: Bench, rows: Rows, folds: int | None) -> str:
    """Return the error message when nothing fits into the time."""
    from pipeline.training.deadline import FEWEST_EPOCHS, FEWEST_STEPS, MARGIN

    size = min(bench.costs)
    pace = bench.measured(size)
    needed = pace.seconds(rows, rows.epochs(FEWEST_STEPS, FEWEST_EPOCHS, folds), folds) / (1 - MARGIN)
    return (
        f"--plan {asked}: too little for {counted(rows.total, 'row')} with {bench.recipe.backbones}: "
        f"{FEWEST_STEPS} optimizer steps at {size} px need --plan {int(needed // 60) + 1}m; a smaller "
        "--backbone or --image-size is faster"
    )


def planned_recipe(bench: Bench, found: Proposal, name: str) -> Recipe:
    """Return the complete recipe of the proposal."""
    cost = bench.costs[found.pace.image_size]
    recipe = at_size(bench.recipe, found.pace.image_size or None)
    batch = cost.batch_size if recipe.effective_batch_size % cost.batch_size == 0 else recipe.batch_size
    changed = {"name": name, "epochs": found.epochs}
    changed |= {"batch_size": batch, "accumulation_steps": recipe.effective_batch_size // batch}
    # The epochs are what was planned
    changed["schedule"] = recipe.schedule.model_copy(update={"min_steps": 0})
    return Recipe.model_validate(recipe.model_copy(update=changed).model_dump(mode="json"))


def write_plan(args: argparse.Namespace, bench: Bench, found: Proposal, rows: Rows) -> Path:
    """Print the proposal and write it as a new recipe file. Return the path."""
    from pipeline.commands.announcing import kind_of

    folder = Path(os.path.abspath(args.data)).name or "data"
    path = versioned(Path(f"plan-{folder}.yaml"))
    recipe = planned_recipe(bench, found, path.stem)
    cost = bench.costs[found.pace.image_size]
    pace = found.pace
    if bench.has_fixed_size:
        why = "as given"
    elif pace.image_size != bench.own_size:
        why = f"at {bench.own_size} px there is too little time"
    else:
        why = "the recipe's" if bench.recipe.image_size else "the backbone's own"
    alone = "; there is no time to train more than the head" if found.head_alone else ""
    steps = (
        f"{rows.steps(found.epochs, found.folds):,} optimizer steps of {recipe.effective_batch_size} "
        f"{bench.build.task.rows_are}"
    )
    one = bench.build.task.rows_are.removesuffix("s")
    speed = f"{pace.train:.3g} s per {one} in training, {pace.predict:.3g} s in validation"
    lines = [
        f"{args.recipe}: {kind_of(recipe)} of {recipe.backbones}; images of {pace.image_size} px "
        f"({why}){alone}",
        f"{counted(found.epochs, 'epoch')}: {steps}, {recipe.batch_size} at a time; "
        + (f"{found.folds} folds" if found.folds else "one model, no folds"),
        f"expected: {human_time(found.seconds)} ({speed}), {human_size(cost.needed)} of memory counted",
    ]
    print("\n".join(f"  {line}" for line in lines))
    head = [f"Planned by train.py --plan {args.plan} from measurements {bench.compute}.", *lines]
    values = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    write_text(path, "".join(f"# {line}\n" for line in head) + values)
    return path


def command_of(args: argparse.Namespace, path: Path, found: Proposal, deadline: float) -> str:
    """Return the command that runs the plan, quoted for the shell."""
    output = str(versioned(Path("runs") / path.stem)) if args.output == DEFAULT_OUTPUT else args.output
    words = ["python", "train.py", "--recipe", str(path), "--data", args.data]
    words += ["--folds", str(found.folds)] if found.folds else []
    words += ["--max-minutes", str(int(deadline // 60) or 1), "--output", output]
    return shlex.join(words + (["--floor"] if args.floor else []))
