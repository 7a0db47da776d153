"""`make ablation --parallel N`: run several trials of a grid at once, each with its own GPU or its share
of the CPU threads.

The grid's process starts `python -m pipeline.experiments.side_by_side` for each trial, which does the same as
for a single trial.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.config import load_recipe
from pipeline.errors import EXIT_DONE, EXIT_INTERRUPTED, Interrupted, run_command
from pipeline.experiments.grids import Trial
from pipeline.experiments.trials import STOPPED, Bench, is_trained, note, run_trial, tidy, write_recipe
from pipeline.folds.parallel import Child, run_children


def run_beside(
    todo: Sequence[Trial],
    bench: Bench,
    at_once: int,
    started: Callable[[Trial], None],
    ended: Callable[[Trial, str | None], None],
) -> None:
    """Run the trials, `at_once` at a time.

    `started(trial)` is called before each, `ended(trial, failed)` after it; `failed` is an error message or
    None.

    Raises:
        Interrupted: stopped; the state of each trial is saved.
        UserError: fewer GPUs than `at_once`, or a trial's process was killed from outside.
    """
    by_title = {trial.title: trial for trial in todo}

    def child(trial: Trial) -> Child:
        started(trial)
        write_recipe(trial, bench.folder(trial))
        return Child(trial.title, _words(trial, bench), bench.lock)

    def after(title: str) -> None:
        trial = by_title[title]
        folder = bench.folder(trial)
        if is_trained(folder):
            tidy(folder, bench.output)  # two that ended at the same time may not have shared their backbone
        ended(trial, note(folder).get("failed"))

    try:
        run_children([lambda trial=trial: child(trial) for trial in todo], min(at_once, len(todo)), after)
    except Interrupted:
        raise Interrupted(STOPPED) from None


def _words(trial: Trial, bench: Bench) -> list[str]:
    words = ["-m", "pipeline.experiments.side_by_side", f"--row={trial.row}", f"--seed={trial.seed}"]
    words += [
        *("--recipe", str(bench.folder(trial) / "recipe.yaml"), "--data", str(bench.data)),
        *("--output", str(bench.output)),
    ]
    words += ["--predicts"] if bench.predicts else []
    words += ["--solution", str(bench.solution)] if bench.solution else []
    return [*words, "--lock", ",".join(map(str, bench.lock))]


def main(argv: list[str] | None = None) -> int:
    """Train, predict and score one trial.

    Return the exit code; it is 0 also for an error that is written to trial.json.
    """
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.experiments.side_by_side",
        description=main.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--row", required=True, metavar="NAME", help="row of the grid")
    parser.add_argument("--seed", required=True, type=int, metavar="N", help="seed of the trial")
    parser.add_argument("--recipe", required=True, metavar="FILE", help="complete recipe of the trial")
    parser.add_argument("--data", required=True, type=Path, metavar="DIR", help="the competition folder")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="the folder of the grid")
    parser.add_argument("--predicts", action="store_true", help="the data have test images")
    parser.add_argument("--solution", type=Path, metavar="FILE", help="true labels of the test images")
    parser.add_argument(
        "--lock", default="", metavar="N,N", help="file descriptors that hold the folder of the grid"
    )
    args = parser.parse_args(argv)
    lock = tuple(int(number) for number in args.lock.split(",") if number)
    bench = Bench(args.data, args.output, args.predicts, args.solution, lock)
    try:
        run_trial(Trial(args.row, args.seed, load_recipe(args.recipe)), bench)
    except Interrupted:
        return EXIT_INTERRUPTED  # the grid's process prints the message
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(run_command(main))
