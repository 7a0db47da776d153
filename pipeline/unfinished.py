"""A stopped run: which weights are in its folder, and the command that continues it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.files import read_json, write_json
from pipeline.ranks import launcher
from pipeline.run_names import FOLDS_START, KEPT, START
from pipeline.shapes import read_object

_FLAGS = {"data": "--data", "batch_size": "--batch-size"}


def resume_command(path: Path | str, *flags: str, folds: int | None = None) -> str:
    """Return the command that continues the unfinished run (or folds) in `path`, quoted for the shell.

    Data and flags are the run's own; `flags` are added. `folds`: their number, where they were complete
    before.
    """
    path = Path(path)
    path = path.parent if path.name.startswith("fold-") and (path.parent / FOLDS_START).is_file() else path
    start = read_object(path / FOLDS_START) if (path / FOLDS_START).is_file() else {}
    several = ["--folds", str(folds or start.get("folds"))] if folds or start else []
    several += ["--parallel", str(start["parallel"])] if start.get("parallel", 1) != 1 else []
    begin = ["python"] if several else launcher()
    return shlex.join([*begin, "train.py", "--output", str(path), *several, "--resume", *flags])


def started_with(path: Path) -> dict[str, Any]:
    """Return the flags that the run in `path` was started with and that are not in its recipe: `data`,
    `batch_size`.

    {} where no run was started.
    """
    start = next((Path(path) / name for name in (START, FOLDS_START) if (Path(path) / name).is_file()), None)
    if start is None:
        return {}
    values = read_object(start)
    words = words_of(str(values.get("command") or ""))  # runs of earlier versions stored only the command
    given = {
        name: words[place + 1]
        for name, flag in _FLAGS.items()
        for place, word in enumerate(words[:-1])
        if word == flag
    }
    given |= {
        name: word.partition("=")[2]
        for name, flag in _FLAGS.items()
        for word in words
        if word.startswith(f"{flag}=")
    }
    return given | {name: values[name] for name in _FLAGS if isinstance(values.get(name), str | int)}


def words_of(command: str) -> list[str]:
    """Return the words of a stored command line; [] if its quotes are not closed."""
    try:
        return shlex.split(command)
    except ValueError:
        return []


def write_kept(
    path: Path,
    epoch: int,
    metric: str = "",
    value: float | None = None,
    row: int | None = None,
    step: int | None = None,
) -> None:
    """Store which weights are in the folder of run `path`: of a whole `epoch`, or of a position in it
    (`row`, `step`).
    """
    write_json(path / KEPT, {"epoch": epoch, "metric": metric, "value": value, "row": row, "step": step})


def planned_epochs(values: dict[str, Any]) -> int | None:
    """Return the number of epochs of a run from the values of start.json or run.json.

    It is the schedule's number (`schedule.min_steps` may add epochs), else the recipe's.
    """
    schedule = values.get("schedule") or {}
    total, an_epoch = schedule.get("total_steps"), schedule.get("steps_per_epoch")
    if type(total) is int and type(an_epoch) is int and an_epoch > 0:
        return total // an_epoch
    return (values.get("recipe") or {}).get("epochs")


def read_kept(path: Path, epochs: int | None) -> tuple[dict[str, Any], str]:
    """Return `best` as in run.json ({} for weights inside an epoch), and which weights are in the folder
    of run `path`.

    Raises:
        UserError: no weights were saved yet, or the file about them is damaged.
    """
    if not (path / KEPT).is_file():
        raise UserError(
            f"{path} holds an unfinished run that was stopped before any weights were saved: continue with "
            f"`{resume_command(path)}`"
        )
    kept = read_json(path / KEPT)
    if not isinstance(kept, dict) or type(kept.get("epoch")) is not int:
        raise UserError(
            f"{path / KEPT} was changed by hand or is damaged: continue with `{resume_command(path)}`"
        )
    epoch = f"{kept['epoch']} of {epochs}" if epochs else str(kept["epoch"])
    go_on = f"continue with: {resume_command(path)}"
    if kept.get("row") is not None:
        where = f"epoch {epoch}, row {kept['row']}, after {kept.get('step')} optimizer steps"
        return (
            {},
            f"unfinished: no epoch was completed, these are the weights when it was stopped ({where}); "
            f"{go_on}",
        )
    value, metric = kept.get("value"), str(kept.get("metric") or "")
    if isinstance(value, int | float) and metric:
        best = {"epoch": kept["epoch"], "metric": metric, "value": value}
        return (
            best,
            f"unfinished: these are the weights of its best epoch so far, {epoch} ({metric} {value:.4f}); "
            f"{go_on}",
        )
    return {}, f"unfinished: these are the weights of its last completed epoch, {epoch}; {go_on}"
