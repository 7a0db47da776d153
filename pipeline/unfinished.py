"""A run that was stopped: which weights lie in its folder meanwhile, and the command that goes on with it."""

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


def resume_command(path: Path | str, *flags: str) -> str:
    """The command that goes on with the unfinished run (or folds) in `path`, to be pasted; data and flags are the run's own. `flags`: more."""
    path = Path(path)
    path = path.parent if path.name.startswith("fold-") and (path.parent / FOLDS_START).is_file() else path
    start = read_object(path / FOLDS_START) if (path / FOLDS_START).is_file() else {}
    several = ["--folds", str(start.get("folds"))] if start else []
    several += ["--parallel", str(start["parallel"])] if start.get("parallel", 1) != 1 else []
    return shlex.join([*(["python"] if several else launcher()), "train.py", "--output", str(path), *several, "--resume", *flags])


def started_with(path: Path) -> dict[str, Any]:
    """Flags that the run in `path` was started with and its recipe does not hold: `data`, `batch_size`; empty where no run was started."""
    start = next((Path(path) / name for name in (START, FOLDS_START) if (Path(path) / name).is_file()), None)
    if start is None:
        return {}
    values = read_object(start)
    words = words_of(str(values.get("command") or ""))  # runs of earlier versions wrote down no more
    given = {name: words[place + 1] for name, flag in _FLAGS.items() for place, word in enumerate(words[:-1]) if word == flag}
    given |= {name: word.partition("=")[2] for name, flag in _FLAGS.items() for word in words if word.startswith(f"{flag}=")}
    return given | {name: values[name] for name in _FLAGS if isinstance(values.get(name), str | int)}


def words_of(command: str) -> list[str]:
    """The words of a command line that was written down; none where its quotes do not close."""
    try:
        return shlex.split(command)
    except ValueError:
        return []


def write_kept(
    path: Path, epoch: int, metric: str = "", value: float | None = None, row: int | None = None, step: int | None = None
) -> None:
    """Write down which weights the folder of run `path` holds: of a whole `epoch`, or of a moment in it (`row`, `step`)."""
    write_json(path / KEPT, {"epoch": epoch, "metric": metric, "value": value, "row": row, "step": step})


def planned_epochs(told: dict[str, Any]) -> int | None:
    """How many epochs a run has, by what start.json or run.json holds: its schedule's (a floor in steps adds some), else its recipe's."""
    schedule = told.get("schedule") or {}
    total, an_epoch = schedule.get("total_steps"), schedule.get("steps_per_epoch")
    if type(total) is int and type(an_epoch) is int and an_epoch > 0:
        return total // an_epoch
    return (told.get("recipe") or {}).get("epochs")


def read_kept(path: Path, epochs: int | None) -> tuple[dict[str, Any], str]:
    """`best` as run.json has it (empty for the weights of a moment), and in words which weights the folder of run `path` holds.

    Raises:
        UserError: none were kept so far, or what is written down of them is damaged.
    """
    if not (path / KEPT).is_file():
        raise UserError(
            f"{path} holds an unfinished run that was stopped before any weights were kept: go on with `{resume_command(path)}`"
        )
    kept = read_json(path / KEPT)
    if not isinstance(kept, dict) or type(kept.get("epoch")) is not int:
        raise UserError(f"{path / KEPT} was changed by hand or is damaged: go on with `{resume_command(path)}`")
    epoch = f"{kept['epoch']} of {epochs}" if epochs else str(kept["epoch"])
    go_on = f"it goes on with: {resume_command(path)}"
    if kept.get("row") is not None:
        where = f"epoch {epoch}, row {kept['row']}, after {kept.get('step')} optimizer steps"
        return {}, f"unfinished: no epoch has ended, these are the weights of the moment it was stopped ({where}); {go_on}"
    value, metric = kept.get("value"), str(kept.get("metric") or "")
    if isinstance(value, int | float) and metric:
        best = {"epoch": kept["epoch"], "metric": metric, "value": value}
        return best, f"unfinished: these are the weights of its best epoch so far, {epoch} ({metric} {value:.4f}); {go_on}"
    return {}, f"unfinished: these are the weights of its last whole epoch, {epoch}; {go_on}"
