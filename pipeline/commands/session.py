"""The command line of train.py: its recipe, and the unfinished run to resume."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError
from pipeline.files import sweep
from pipeline.ranks import is_first
from pipeline.run_names import PAGE, RECORD
from pipeline.unfinished import resume_command, started_with
from pipeline.wording import quoted

if TYPE_CHECKING:  # torch and transformers take seconds to import: not before the flags are known to be right
    from pipeline.recipe import Recipe
    from pipeline.run_record import RunRecord
    from pipeline.training.resume import ResumedRun

# Flag -> recipe key: short forms of --set KEY=VALUE.
RECIPE_FLAGS = {
    "backbone": "backbone",
    "epochs": "epochs",
    "batch_size": "batch_size",
    "accumulation_steps": "accumulation_steps",
    "lr": "optimizer.lr",
    "image_size": "image_size",
    "lora_rank": "lora.rank",
    "precision": "precision",
    "seed": "seed",
    "metric": "data.metric",
    "target": "data.target",
    "positive_class": "data.positive_class",
}


@dataclass(frozen=True)
class Session:
    """The command line, its recipe, and the run to resume."""

    args: argparse.Namespace
    recipe: Recipe
    resumed_run: ResumedRun | None  # the unfinished run to resume
    output: Path
    command: str
    started: float  # on the clock of `time.perf_counter`


def fill_in(args: argparse.Namespace) -> None:
    """Fill in flags that are not given.

    With --resume, --data and --batch-size auto are those of the first start.
    """
    stored = started_with(Path(args.output)) if args.resume else {}
    args.data = args.data or stored.get("data") or "data"
    if args.batch_size is None and stored.get("batch_size") == "auto":
        args.batch_size = "auto"


def open_session(
    args: argparse.Namespace, command: str, started: float, recipe: Recipe | None = None
) -> Session | None:
    """Return the session; None when the run is already complete.

    `recipe` replaces that of the command line.

    Raises:
        UserError: the recipe is wrong, or the output folder holds an unfinished run.
    """
    output = Path(args.output)
    if not args.dry_run and is_first():
        sweep(output)
    recipe, resumed_run = choose_recipe(args, output, recipe)
    return None if recipe is None else Session(args, recipe, resumed_run, output, command, started)


def given_keys(args: argparse.Namespace) -> dict[str, Any]:
    """Return {recipe key: value} of the command line, not checked; --set replaces other flags.

    `--batch-size auto` is left out: the recipe's step is cut into parts as large as fit in memory (see
    `announce`). With --backbone alone `image_size` is None: the backbone's own.

    Raises:
        UserError: a --set is not KEY=VALUE.
    """
    from pipeline.config import parse_assignments

    given = {key: getattr(args, flag) for flag, key in RECIPE_FLAGS.items()}
    given = {key: value for key, value in given.items() if value is not None}
    if args.backbone and args.image_size is None:
        given["image_size"] = None
    if args.batch_size == "auto":
        del given["batch_size"]
    return given | parse_assignments(args.set)


def asked_recipe(args: argparse.Namespace, stored: dict[str, Any] | None = None) -> Recipe:
    """Return the recipe of the command line. With `stored`, the flags are applied to that recipe.

    Raises:
        UserError: the recipe is wrong.
    """
    from pipeline.config import DEFAULT_RECIPE, load_recipe, validate_recipe
    from pipeline.naming import run_name

    overrides = given_keys(args)
    if stored is not None:
        return validate_recipe(stored, overrides, "--resume")
    recipe = load_recipe(args.recipe or DEFAULT_RECIPE, overrides)
    if "name" in overrides:
        return recipe
    try:
        written = load_recipe(args.recipe or DEFAULT_RECIPE)
    except UserError:  # the recipe file is complete only with the flags
        written = recipe
    return recipe.model_copy(update={"name": run_name(written, recipe, args.data)})


def choose_recipe(
    args: argparse.Namespace, output: Path, given: Recipe | None = None
) -> tuple[Recipe | None, ResumedRun | None]:
    """Return (recipe, resumed run): the recipe is `given` or from the flags.

    (None, None) when the run is already complete.

    Raises:
        UserError: the folder holds an unfinished run and --resume is not given, or folds of which one is
            missing or changed, or the flags differ from the run's recipe.
    """
    from pipeline.config import validate_recipe
    from pipeline.folds.plan import read_start
    from pipeline.run_record import read_record
    from pipeline.training.resume import ResumedRun, refuse_changes

    if read_start(output):
        raise UserError(
            f"{output} holds unfinished folds: continue with `{resume_command(output)}`, or use another "
            "--output"
        )
    record = read_record(output) if args.resume else None
    if record:
        if record.kind == "folds":
            check_folds(output, record)
        refuse_changes(
            output, record, lambda stored: given or asked_recipe(args, None if args.recipe else stored)
        )
        print(f"the run in {output} is complete: nothing to resume")
        if not (output / PAGE).exists() and is_first():  # killed in its last second
            from pipeline.report.page import build_report

            print(f"page: {build_report(output)}")
        return None, None
    resumed_run = ResumedRun.read(output, accept_changes=args.resume == "changed")
    if resumed_run is not None and args.resume:
        stored = validate_recipe(resumed_run.start["recipe"], {}, where=str(output / "state"))
        wanted = given or asked_recipe(args, None if args.recipe else stored.model_dump(mode="json"))
        resumed_run.check_recipe(stored, wanted)
        return wanted.model_copy(update={"name": stored.name}), resumed_run
    if args.resume:
        print(f"no state in {output}: starting from the beginning")
    elif resumed_run is not None and not args.dry_run:
        raise UserError(
            f"{output} holds an unfinished run: continue with `{resume_command(output)}`, or use another "
            "--output"
        )
    return given or asked_recipe(args), None


def check_folds(output: Path, record: RunRecord) -> None:
    """Check that the folds in `output` are those that were put together.

    Raises:
        UserError: one is missing or was trained again.
    """
    from pipeline.folds.assembly import is_put_together

    if is_put_together(output, record):
        return
    members = record.values.get("members") or {}
    missing = [name for name in members if not (output / name / RECORD).is_file()]
    reason = f"without {quoted(missing)}" if missing else "other than those that were put together"
    again = resume_command(output, folds=len(members))
    raise UserError(f"{output} holds folds {reason}: continue with `{again}`")
