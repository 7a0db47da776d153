"""One trial of a grid, from its recipe to its score: its folder, and the processes that fill it.

A trial's folder is a run folder with three more files: recipe.yaml (the input of train.py), trial.json (data,
seconds, error message) and trial.log (the output of its processes).
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import differences, load_recipe
from pipeline.errors import EXIT_DONE, EXIT_INTERRUPTED, Interrupted, UserError
from pipeline.experiments.grids import Trial
from pipeline.files import sha256, write_json, write_text
from pipeline.folds.bases import share_base
from pipeline.recipe import Recipe
from pipeline.run_names import RECORD, SCORES
from pipeline.shapes import NUMBER, TEXT, read_shaped
from pipeline.stopping import end_with_parent
from pipeline.submission import score

NOTE = {"data?": TEXT, "solution?": TEXT, "seconds?": NUMBER, "failed?": TEXT}
ROOT = Path(__file__).resolve().parents[2]
STOPPED = "stopped; finished trials and the state of running ones are saved. Continue with the same command"


@dataclass(frozen=True)
class Bench:
    """Where the trials of a grid are trained, predicted and scored.

    `lock` is inherited by every process, and released when the last one ends.
    """

    data: Path
    output: Path
    predicts: bool  # the data have test images
    solution: Path | None
    lock: tuple[int, ...] = ()
    target_kind: str = "multiclass"  # of the competition

    def folder(self, trial: Trial) -> Path:
        """Return the run folder of `trial`; it may not exist yet."""
        return self.output / trial.folder_name


def changes(trial: Trial, bench: Bench) -> list[str]:
    """Return how the trial differs from the definition stored in its folder.

    [] if it does not, or there is no folder.
    """
    folder = bench.folder(trial)
    if not (folder / "recipe.yaml").exists():
        return []
    changed = differences(load_recipe(str(folder / "recipe.yaml")), trial.recipe)
    data = note(folder).get("data", str(bench.data))
    changed |= {"data": f"{data} -> {bench.data}"} if data != str(bench.data) else {}
    return [f"{key}: {change}" for key, change in changed.items()]


def note(folder: Path) -> dict[str, Any]:
    """Return the trial's record: `data`, the digest of the `solution` that scored it, `seconds` of all its
    processes, and `failed` (an error message).

    {} before any.

    Raises:
        UserError: trial.json is damaged.
    """
    if (folder / "trial.json").exists():
        return read_shaped(folder / "trial.json", NOTE, "move the folder away, then try again")
    return {}


def is_trained(folder: Path) -> bool:
    """Return True when the run in `folder` is complete: run.json is written last."""
    return (folder / RECORD).exists()


def has_begun(folder: Path) -> bool:
    """Return True when a run was started in `folder`, complete or not."""
    return is_trained(folder) or (folder / "state").is_dir()


def is_done(trial: Trial, bench: Bench) -> bool:
    """Return True when the trial is trained, and predicted and scored where the data allow it."""
    folder = bench.folder(trial)
    wanted = [folder / RECORD]
    wanted += [folder / "predictions.csv"] if bench.predicts else []
    return all(path.exists() for path in wanted) and (is_scored(folder, bench) or not bench.predicts)


def is_scored(folder: Path, bench: Bench) -> bool:
    """Return True when the run in `folder` is scored by the solution as it is now, or there is none."""
    if bench.solution is None:
        return True
    return (folder / SCORES).exists() and note(folder).get("solution") == sha256(bench.solution)


def build_key(recipe: Recipe) -> str:
    """Return a text that is equal for recipes with the same model, memory and loader: they need only one
    dry run.
    """
    values = recipe.model_dump(
        mode="json", exclude={"name", "seed", "epochs", "schedule", "augmentation", "checkpoint"}
    )
    values["optimizer"] = recipe.optimizer.name
    for name in ("alpha", "dropout"):
        del values["lora"][name]
    return repr(values)


def dry_run(trial: Trial, bench: Bench) -> tuple[str, str | None]:
    """Run `train.py --dry-run` on the trial.

    Return the line with the needs of a run, and an error message or None.
    """
    folder = bench.output / ".dry_run"
    write_recipe(trial, folder)
    log = folder / "dry_run.log"
    log.unlink(missing_ok=True)
    code = run_logged(train_command(bench, folder, "--dry-run"), log, bench)
    needs = [
        line.strip() for line in log.read_text(encoding="utf-8").splitlines() if line.startswith("  on ")
    ]
    return needs[0] if needs else "", None if code == EXIT_DONE else last_words(log, code)


def run_trial(trial: Trial, bench: Bench) -> str | None:
    """Train, predict and score, each only if it is not done yet. Return an error message or None.

    Raises:
        Interrupted: a process was stopped; its state is saved.
    """
    folder = bench.folder(trial)
    write_recipe(trial, folder)
    log, earlier = folder / "trial.log", note(folder)
    before = earlier.get("seconds", 0)
    record = {"row": trial.row, "seed": trial.seed, "data": str(bench.data)}
    record |= {"solution": earlier["solution"]} if "solution" in earlier else {}
    write_json(folder / "trial.json", record | {"seconds": before})
    started, failed = time.monotonic(), None
    try:
        if not is_trained(folder):
            failed = _step(train_command(bench, folder, "--resume"), log, bench)
        if failed is None:
            tidy(folder, bench.output)
        if failed is None and bench.predicts and not (folder / "predictions.csv").exists():
            words = [
                "inference.py",
                *("--model", folder, "--data", bench.data, "--output", folder / "predictions.csv"),
            ]
            failed = _step([*words, "--precision", trial.recipe.precision], log, bench)
        if failed is None and bench.predicts and not is_scored(folder, bench):
            digest = sha256(bench.solution)
            failed = _score(folder, bench, log)
            record |= {"solution": digest} if failed is None else {}
    finally:
        seconds = round(before + time.monotonic() - started, 1)
        write_json(
            folder / "trial.json", record | {"seconds": seconds} | ({"failed": failed} if failed else {})
        )
    return failed


def write_recipe(trial: Trial, folder: Path) -> None:
    """Write the trial's complete recipe into its folder, for train.py and for later calls of the grid."""
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(trial.recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    write_text(folder / "recipe.yaml", text)


def train_command(bench: Bench, folder: Path, flag: str) -> list[object]:
    """Return the command that trains the recipe in `folder`, with `flag` (--resume or --dry-run), for
    `run_logged`.
    """
    return ["train.py", "--recipe", folder / "recipe.yaml", "--data", bench.data, "--output", folder, flag]


def run_logged(command: Sequence[object], log: Path, bench: Bench) -> int:
    """Run one of the project's scripts as a process, with its output in `log`. Return its exit code.

    A SIGINT or SIGTERM to this process is passed on, so that the script saves its state.

    Raises:
        Interrupted: there was such a signal, and the script has ended.
    """
    script, *words = map(str, command)
    with open(log, "a", encoding="utf-8") as file:
        print(f"$ python {shlex.join([script, *words])}", file=file, flush=True)
        process = subprocess.Popen(
            [sys.executable, str(ROOT / script), *words],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | {"TQDM_DISABLE": "1", "PYTHONUNBUFFERED": "1"},
            pass_fds=bench.lock,
            preexec_fn=end_with_parent if sys.platform == "linux" else None,
        )
        with _passing_on(process):
            return process.wait()


@contextmanager
def _passing_on(process: subprocess.Popen) -> Iterator[None]:
    stopped: list[int] = []

    def pass_on(number: int, _frame: Any) -> None:
        stopped.append(number)
        # The terminal may have sent Ctrl-C to both; a second request changes nothing
        process.send_signal(signal.SIGTERM)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if stopped:
        raise Interrupted(STOPPED)


def last_words(log: Path, code: int) -> str:
    """Return why a process ended: its last message (from "error:" on), or its last line."""
    lines = [
        line.rstrip()
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines()
        if line.strip()
    ]
    command = max(number for number, line in enumerate(lines) if line.startswith("$ python "))
    output = lines[command + 1 :]
    starts = [number for number, line in enumerate(output) if line.startswith("error: ")]
    if starts:
        message = " ".join(line.strip() for line in output[starts[-1] :])
    elif output:
        message = output[-1].strip()
    else:
        message = "it printed nothing"
    ended = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"{message.removeprefix('error: ')} ({ended})"


def tidy(folder: Path, output: Path) -> None:
    """Make a trained trial smaller: delete its resume state and hard-link its frozen backbone to an equal
    one of another trial.

    Backbones are equal if seed and class names are: a new head is drawn by the seed.
    """
    share_base(folder, sorted(path for path in output.glob("*") if path.is_dir() and path != folder))


def _step(command: Sequence[object], log: Path, bench: Bench) -> str | None:
    code = run_logged(command, log, bench)
    if code == EXIT_INTERRUPTED:
        raise Interrupted(STOPPED)
    return None if code == EXIT_DONE else last_words(log, code)


def _score(folder: Path, bench: Bench, log: Path) -> str | None:
    words = [
        *("--solution", bench.solution, "--predictions", folder / "predictions.csv", "--model", folder),
        *("--data", bench.data),
    ]
    with open(log, "a", encoding="utf-8") as file, redirect_stdout(file):
        print("$ python -m pipeline.submission.score", shlex.join(map(str, words)))
        try:
            score.main([str(word) for word in words])
        except UserError as error:
            print(f"error: {error}")
            return str(error)
    return None
