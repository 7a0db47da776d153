"""`train.py --folds K`: train one ordinary run per fold, then assemble their out-of-fold predictions."""

from __future__ import annotations

import argparse
import shlex
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.competition.rows import Competition
from pipeline.config import validate_recipe
from pipeline.errors import EXIT_DONE, Interrupted, UserError, raise_all
from pipeline.files import set_aside
from pipeline.folds.assembly import assemble, is_put_together
from pipeline.folds.bases import share_base
from pipeline.folds.parallel import Child, is_child, run_children
from pipeline.folds.plan import Plan, folds_command, full_command, original_command, plan_folds, read_start
from pipeline.lock import holding_folder
from pipeline.ranks import world_size
from pipeline.recipe import Recipe
from pipeline.run import run_entries
from pipeline.run_names import RECORD, START
from pipeline.run_record import read_record, read_values
from pipeline.training.resume import deciding_differences, refuse_changes
from pipeline.wording import listed


@dataclass(frozen=True)
class Steps:
    """The steps of train.py, passed in by it.

    `recipe(args, stored)`: the recipe from the flags, applied on top of the stored recipe if there is one.
    `read(args, recipe)`: the competition. `train(args, command, started, recipe, competition)`: one whole
    run, returns the exit code.
    """

    recipe: Callable[[argparse.Namespace, dict[str, Any] | None], Recipe]
    read: Callable[[argparse.Namespace, Recipe], Competition]
    train: Callable[[argparse.Namespace, str, float, Recipe, Competition], int]


def train_folds(args: argparse.Namespace, words: list[str], started: float, steps: Steps) -> int:
    """Train the folds that `args` select; assemble them once all are trained. Return the exit code.

    `words`: the command line after the script's name.

    Raises:
        UserError: flags that contradict each other, folds that cannot be made, other folds in the output
            folder, or an error of a run.
        Interrupted: stopped in a fold; its state is saved.
    """
    check_flags(args)
    output, command = Path(args.output), shlex.join(["python", "train.py", *words])
    hold = nullcontext() if args.dry_run or args.fold else holding_folder(output)
    with hold:
        start = read_start(output)
        if args.resume and (record := read_record(output)) and record.kind == "folds":
            _check_count(output, len(record.values["members"]), args.folds)
            if not args.fold and is_put_together(output, record):
                refuse_changes(output, record, lambda old: steps.recipe(args, None if args.recipe else old))
                print(f"the folds in {output} are complete: nothing to resume")
                return 0
            # One fold is missing or was trained again
            start = {name: record.values.get(name) for name in ("recipe", "command")}
            start["folds"] = len(record.values["members"])
        _check_before(args, output, start)
        if start and args.resume and not args.fold and args.parallel is None:
            args.parallel = start.get("parallel")  # another number changes the threads and so the rounding
        stored = start["recipe"] if start and args.resume and not args.recipe else None
        recipe = steps.recipe(args, stored)
        if recipe.task != "classification":
            raise UserError(
                f"--folds is for images with labels, but the recipe {recipe.name} is for {recipe.task}: "
                "train it without --folds"
            )
        competition = steps.read(args, recipe)
        plan = plan_folds(output, competition, recipe, args.folds)
        print("\n".join(f"  {note}" for note in plan.notes))
        if args.dry_run:
            print(f"dry run of fold 1; {args.folds} folds take {args.folds} times as long")
            return steps.train(
                _for_fold(args, plan, 1, started), command, started, recipe, plan.split(competition, 1)
            )
        _check_members(plan, recipe)
        if (
            not args.resume
            and not args.fold
            and (moved := set_aside(run_entries(output), output / "earlier"))
        ):
            print(f"the earlier files of {output} are kept in {moved}")
        plan.write(recipe, command, args.parallel or 1)
        todo = [args.fold] if args.fold else plan.missing()
        if args.parallel and args.parallel > 1 and len(todo) > 1:
            _train_beside(args, words, started, plan, todo)
        else:
            _train_in_turn(args, command, started, steps, recipe, competition, plan, todo)
        if args.fold:
            return EXIT_DONE if is_child() else _say_what_is_left(args, plan)
        if args.resume == "exact" and start and start.get("command"):
            command = original_command(str(start["command"]), output)
        return assemble(plan, recipe, competition, command, args.data)


def check_flags(args: argparse.Namespace) -> None:
    """Check the flags for folds.

    Raises:
        UserError: lists every problem.
    """
    problems = []
    if args.folds is None:
        problems += [
            f"--{name} {value}: only with --folds K"
            for name, value in (("fold", args.fold), ("parallel", args.parallel))
            if value is not None
        ]
    elif args.folds < 2:
        problems.append(
            f"--folds {args.folds}: at least 2 are needed (each fold is validated by a model trained on the "
            "others)"
        )
    elif args.fold is not None and not 1 <= args.fold <= args.folds:
        problems.append(f"--fold {args.fold}: a number from 1 to {args.folds} is needed")
    if args.fold is not None and (args.parallel or 1) > 1:
        problems.append(
            f"--fold {args.fold} --parallel {args.parallel}: one fold is one process; leave out one of the "
            "two"
        )
    if args.parallel is not None and args.parallel < 1:
        problems.append(f"--parallel {args.parallel}: at least 1")
    if (processes := world_size()) > 1:
        instead = f"start it with python and --parallel {processes}: one fold per GPU"
        problems.append(f"--folds under torchrun ({processes} processes): {instead}")
    raise_all(problems, "the folds cannot be trained:")


def _check_before(args: argparse.Namespace, output: Path, start: dict[str, Any] | None) -> None:
    """Raise if the output folder holds unfinished work that this command would not continue."""
    if start is not None:
        _check_count(output, start["folds"], args.folds)
    lost = args.fold and not (output / f"fold-{args.fold}" / RECORD).exists()
    if args.fold and (record := read_record(output)) and not (record.kind == "folds" and lost):
        what = "complete folds" if record.kind == "folds" else "another run"
        raise UserError(f"{output} holds {what}: name another --output for --fold {args.fold}")
    if args.dry_run or args.resume or args.fold:
        return
    if start is not None:
        raise UserError(f"{output} holds unfinished folds: continue with --resume, or use another --output")
    if (output / START).exists() and not (output / RECORD).exists():
        raise UserError(
            f"{output} holds an unfinished run of one model: finish it without --folds, or use another "
            "--output"
        )
    copied = sorted(folder.name for folder in output.glob("fold-*") if (folder / RECORD).exists())
    if copied and not (output / RECORD).exists():
        raise UserError(
            f"{output} holds {', '.join(copied)}: assemble them with --resume, or use another --output"
        )


def _check_count(output: Path, held: int, asked: int) -> None:
    if held != asked:
        raise UserError(
            f"{output} holds {held} folds, not {asked}: use --folds {held} --resume, or another --output"
        )


def _check_members(plan: Plan, recipe: Recipe) -> None:
    """Raise if an existing fold was trained with another recipe: the score must describe one recipe."""
    found: dict[str, list[int]] = {}
    commands = []
    for number in plan.done():
        path = plan.folder(number) / RECORD
        values = read_values(path)
        commands.append(str(values.get("command") or ""))
        stored = validate_recipe(values.get("recipe") or {}, {}, str(path))
        for key, change in deciding_differences(stored, recipe).items():
            found.setdefault(f"{key}: {change}", []).append(number)
    raise_all(
        [f"fold {listed(map(str, numbers))}: {change}" for change, numbers in found.items()],
        f"folds in {plan.output} were trained with another recipe; give the same flags "
        f"({folds_command(full_command(commands), plan.output)}), or use another --output:",
    )


def _for_fold(args: argparse.Namespace, plan: Plan, number: int, started: float) -> argparse.Namespace:
    """Return the flags of one fold's run: its own folder, and the remaining minutes.

    Raises:
        Interrupted: no minutes are left.
    """
    left = _minutes_left(args, started)
    folder = plan.folder(number)
    resume = args.resume if (folder / "state").is_dir() or args.fold else None
    return argparse.Namespace(
        **vars(args) | {"output": str(folder), "max_minutes": left, "resume": resume, "fold": number}
    )


def _minutes_left(args: argparse.Namespace, started: float) -> float | None:
    if args.max_minutes is None:
        return None
    left = args.max_minutes - (time.perf_counter() - started) / 60
    if left <= 0 and not args.fold and args.max_minutes > 0:
        raise Interrupted(
            "stopped (--max-minutes reached) between two folds; finished folds are kept. Continue with the "
            "same command and --resume"
        )
    return max(left, 0.0)


def _train_in_turn(
    args: argparse.Namespace,
    command: str,
    started: float,
    steps: Steps,
    recipe: Recipe,
    competition: Competition,
    plan: Plan,
    todo: list[int],
) -> None:
    for number in todo:
        print(f"fold {number} of {plan.count}:")
        steps.train(
            _for_fold(args, plan, number, started),
            command,
            time.perf_counter(),
            recipe,
            plan.split(competition, number),
        )
        tidy(plan, number)
        _forget()


def _train_beside(
    args: argparse.Namespace, words: list[str], started: float, plan: Plan, todo: list[int]
) -> None:
    """Train several folds at once, each in its own process with `--fold`. This process reports the result."""

    def child(number: int) -> Child:
        left = _minutes_left(args, started)
        more = [] if left is None else ["--max-minutes", f"{left:.4f}"]
        return Child(f"fold {number}", ["train.py", *words, "--parallel", "1", "--fold", str(number), *more])

    run_children([lambda number=number: child(number) for number in todo], args.parallel)
    for number in todo:
        tidy(plan, number)


def tidy(plan: Plan, number: int) -> None:
    """Make a trained fold smaller: delete its resume state and share the frozen backbone file with another
    fold.
    """
    share_base(plan.folder(number), [plan.folder(other) for other in plan.done() if other != number])


def _forget() -> None:
    """Free the memory of the previous fold, also on the GPU."""
    import torch

    from pipeline.training.compute import free_unused

    torch.compiler.reset()
    free_unused()


def _say_what_is_left(args: argparse.Namespace, plan: Plan) -> int:
    missing = plan.missing()
    left = f"missing: {', '.join(map(str, missing))}" if missing else "all are trained"
    words = shlex.join(
        [
            "python",
            "train.py",
            *("--folds", str(plan.count), "--resume", "--data", args.data, "--output", args.output),
        ]
    )
    print(f"folds in {plan.output}: {left}. Assemble them with {words}")
    return 0
