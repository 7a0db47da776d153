"""`make ablation`: train every row of a grid with every seed, predict and score the test images, and write
one table.

# a grid of pipeline/recipes/grids
python -m pipeline.experiments.ablation --grid lora-full-head --data data/birds
# your own grid; the same command continues after a stop
python -m pipeline.experiments.ablation --grid my-grid.yaml --data data/birds
# two trials at once, one per GPU
python -m pipeline.experiments.ablation --grid ranks --data data/birds --parallel 2
# the same changes in every row
python -m pipeline.experiments.ablation --grid ranks --data data/birds --set epochs=5 --seeds 0,1,2
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import mean

from pipeline.competition.layout import read_for_training
from pipeline.config import parse_assignments
from pipeline.errors import UserError, raise_all, run_command
from pipeline.experiments.ablation_table import summary, write_tables
from pipeline.experiments.grids import BESIDE_METRICS, Grid, Trial, load_grid
from pipeline.experiments.trials import (
    Bench,
    build_key,
    changes,
    dry_run,
    has_begun,
    is_done,
    note,
    run_trial,
)
from pipeline.files import check_place, human_time, set_aside
from pipeline.folds.parallel import places_for
from pipeline.targets.metrics import metric_for

LOCK_SECONDS = 60  # time for a script whose parent was killed to finish its micro-batch and save its state


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the command line.

    Raises:
        UserError: --parallel is less than 1.
    """
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.experiments.ablation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--grid",
        metavar="NAME|FILE",
        required=True,
        help="a name from pipeline/recipes/grids, or a .yaml file",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        default=Path("data"),
        help="the competition folder (default: data)",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: runs/<grid>-<data folder>")
    parser.add_argument(
        "--solution",
        type=Path,
        metavar="FILE",
        help="true labels of the test images (default: solution.csv in --data)",
    )
    parser.add_argument("--seeds", metavar="N,N", help="seeds, instead of those of the grid")
    parser.add_argument(
        "--backbone",
        metavar="HUB_ID|DIR",
        help="backbone for all rows; it also sets image size and preprocessing",
    )
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="any recipe key, for all rows; repeatable",
    )
    parser.add_argument(
        "--parallel",
        type=int,
        default=1,
        metavar="P",
        help="trials at once, each on its own GPU (without a GPU they share the CPU threads)",
    )
    parser.add_argument("--dry-run", action="store_true", help="check every row, train nothing")
    parser.add_argument(
        "--redo",
        action="store_true",
        help="train rows again whose definition changed; their earlier results are moved to earlier/",
    )
    args = parser.parse_args(argv)
    if args.parallel < 1:
        raise UserError(f"--parallel {args.parallel}: at least 1")
    return args


def main(argv: list[str] | None = None) -> int:
    """Train the trials that are not finished and write the table. Return the exit code.

    Raises:
        UserError: grid or data are not valid, rows changed, a dry run failed (then nothing was trained), or
            trials failed (the others were run).
        Interrupted: stopped; the same command continues.
    """
    args = parse(argv)
    if args.parallel > 1:
        places_for(args.parallel)
    grid = load_grid(args.grid, args.backbone, parse_assignments(args.set), parse_seeds(args.seeds))
    output = args.output or Path("runs") / f"{grid.name}-{args.data.resolve().name}"
    check_place(output / "table.md", "name a folder with --output")
    with locked(output) as lock:
        bench, metric = open_bench(args, grid, output, lock)
        beside = [
            name if name in BESIDE_METRICS else metric_for(name, bench.target_kind).name
            for name in grid.metrics
        ]
        grid = replace(grid, metrics=tuple(dict.fromkeys((metric, *beside))))
        settle_changes(grid, bench, args.redo)
        todo = [trial for trial in grid.trials if not is_done(trial, bench)]
        print(
            f"{grid.name}: {len(grid.rows)} rows, {len(grid.trials)} trials, {len(grid.trials) - len(todo)} "
            f"finished; in {output}"
        )
        check_builds(todo, grid, bench)
        if args.dry_run:
            return 0
        failures = run_all(todo, grid, bench, args.parallel)
        tables = write_tables(grid, bench, figures=True)
    print(f"\n{summary(grid, bench)}\n{', '.join(str(path) for path in tables)}")
    raise_all(
        failures, f"{len(failures)} of {len(grid.trials)} trials failed; the same command tries them again:"
    )
    return 0


def parse_seeds(text: str | None) -> list[int] | None:
    """Return `0,1,2` as numbers.

    Raises:
        UserError: it is something else.
    """
    try:
        return [int(part) for part in text.split(",")] if text is not None else None
    except ValueError:
        raise UserError(
            f"--seeds {text}: expected whole numbers with commas between them, such as 0,1,2"
        ) from None


def open_bench(
    args: argparse.Namespace, grid: Grid, output: Path, lock: tuple[int, ...]
) -> tuple[Bench, str]:
    """Read the data folder once. Return where trials are trained, and the competition's metric.

    Raises:
        UserError: it is not a competition folder, or --solution does not exist.
    """
    data = grid.trials[0].recipe.data
    competition = read_for_training(args.data, data, skip_bad_images=data.skip_bad_images)
    print("\n".join(f"  {line}" for line in competition.notes))
    solution = args.solution or args.data / "solution.csv"
    if args.solution and not solution.is_file():
        raise UserError(f"--solution {solution}: no such file")
    if not competition.test:
        print("  no test images: rows are compared by validation score")
    elif not solution.is_file():
        print(
            "  no solution.csv: rows are compared by validation score; predictions.csv of each trial can be "
            "submitted"
        )
    bench = Bench(
        args.data,
        output,
        bool(competition.test),
        solution if solution.is_file() else None,
        lock,
        competition.target.kind if competition.target else "multiclass",
    )
    return bench, competition.metric or "accuracy"


def settle_changes(grid: Grid, bench: Bench, redo: bool) -> None:
    """Compare the grid with existing trials. With `redo`, move changed trials to earlier/.

    Raises:
        UserError: trials in the output folder have another definition, and `redo` is False.
    """
    changed = [(trial, found) for trial in grid.trials if (found := changes(trial, bench))]
    if changed and redo:
        moved = set_aside([bench.folder(trial) for trial, _ in changed], bench.output / "earlier")
        print(
            f"{len(changed)} trials had another definition and are trained again; their earlier results are "
            f"kept in {moved}"
        )
    elif changed:
        raise_all(
            [f"{trial.title}: {'; '.join(found)}" for trial, found in changed],
            f"{bench.output} holds trials of these rows with another definition. Restore the grid, name "
            "another --output, or add --redo to train them again (their earlier results are moved to "
            "earlier/):",
        )


def check_builds(todo: Sequence[Trial], grid: Grid, bench: Bench) -> None:
    """Dry-run one trial of every different model, except models that an earlier call has started to train.

    Raises:
        UserError: some cannot be trained; nothing was started.
    """
    begun = {build_key(trial.recipe) for trial in grid.trials if has_begun(bench.folder(trial))}
    by_build: dict[str, list[Trial]] = {}
    for trial in todo:
        if (key := build_key(trial.recipe)) not in begun:
            by_build.setdefault(key, []).append(trial)
    problems = []
    for number, trials in enumerate(by_build.values(), start=1):
        needs, problem = dry_run(trials[0], bench)
        rows = ", ".join(dict.fromkeys(trial.row for trial in trials))
        print(f"dry run {number}/{len(by_build)}, {rows}: {needs if problem is None else 'FAILED'}")
        problems += [f"{rows}: {problem}"] if problem else []
    raise_all(problems, "nothing was started, because these rows cannot be trained:")


def run_all(todo: Sequence[Trial], grid: Grid, bench: Bench, at_once: int = 1) -> list[str]:
    """Run the trials, `at_once` at a time, and update the table after each.

    Return one line for each that failed.
    """
    failures, left = [], list(todo)

    def started(trial: Trial) -> None:
        log = bench.folder(trial) / "trial.log"
        print(
            f"[{todo.index(trial) + 1}/{len(todo)}] {trial.title}: started {time.strftime('%H:%M')}, log in "
            f"{log}",
            flush=True,
        )

    def ended(trial: Trial, failed: str | None) -> None:
        """Write the tables again and print the trial's result; `failed`: why it has none."""
        left.remove(trial)
        write_tables(grid, bench, figures=False)
        failures.extend([f"{trial.title}: {failed}"] if failed else [])
        result = f"FAILED: {failed}" if failed else summary(grid, bench, trial)
        about = estimate(left, grid, bench, at_once)
        print(
            f"  {f'{trial.title}: ' if at_once > 1 else ''}{result}" + (f"; {about}" if about else ""),
            flush=True,
        )

    if at_once > 1 and len(todo) > 1:
        from pipeline.experiments.side_by_side import run_beside

        run_beside(todo, bench, at_once, started, ended)
    else:
        for trial in todo:
            started(trial)
            ended(trial, run_trial(trial, bench))
    return failures


def estimate(left: Sequence[Trial], grid: Grid, bench: Bench, at_once: int = 1) -> str:
    """Return how much is left, as text.

    A trial is expected to take as long as its row did with other seeds. If its row was not trained yet, the
    mean of all is used.
    """
    if not left:
        return ""
    took: dict[str, list[float]] = {}
    for trial in grid.trials:
        if is_done(trial, bench):
            took.setdefault(trial.row, []).append(note(bench.folder(trial)).get("seconds", 0))
    every = [seconds for row in took.values() for seconds in row]
    if not every:
        return f"{len(left)} left"
    return (
        f"{len(left)} left, about "
        f"{human_time(sum(mean(took.get(trial.row, every)) for trial in left) / at_once)}"
    )


@contextmanager
def locked(output: Path) -> Iterator[tuple[int, ...]]:
    """Hold `output` for this process and its children. Yield the file descriptors that they must inherit.

    Raises:
        UserError: another process works there, perhaps one whose parent was killed.
    """
    try:
        import fcntl
    except ImportError:  # Windows: two commands are not kept apart
        yield ()
        return
    output.mkdir(parents=True, exist_ok=True)
    with open(output / ".lock", "w") as file:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise UserError(
                        f"{output}: another process works there; wait for it, end it, or name another "
                        "--output"
                    ) from None
                time.sleep(0.5)
        yield (file.fileno(),)


if __name__ == "__main__":
    sys.exit(run_command(main))
