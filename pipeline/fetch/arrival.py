"""A finished folder moves into the data folder: all of it or nothing, and when killed halfway the same command goes on."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.competition.folders import ARRIVING
from pipeline.errors import UserError, raise_all
from pipeline.shapes import TEXT, read_shaped

_NOTE = {"source": {"path?": TEXT, "slug?": TEXT}, "command": TEXT}
READY = "unpacked"  # in the work folder: what is to be moved in, complete


def arriving(work_dir: Path) -> dict[str, Any] | None:
    """What was noted when moving `work_dir/unpacked` into its data folder began; None when it did not, or has ended."""
    path = work_dir / ARRIVING
    if not path.is_file():
        with suppress(OSError):
            work_dir.rmdir()  # empty: an earlier command was killed in its last moment
        return None
    return read_shaped(path, _NOTE, f"look at what is in {work_dir.parent}, then delete {work_dir}")


def move_in(work_dir: Path, data_dir: Path, note: dict[str, Any]) -> None:
    """Move everything in `work_dir/unpacked` into `data_dir`, or nothing when a name is taken; go on where an earlier call was stopped.

    `note` (with the `command` that goes on) lies in `work_dir` from the first move to the last; `done` takes it away.

    Raises:
        UserError: a name is there already.
    """
    ready = work_dir / READY
    entries = sorted(ready.iterdir()) if ready.is_dir() else []
    goals = {entry: data_dir / entry.name for entry in entries}
    for entry, goal in goals.items():
        if entry.name.upper().startswith("README") and os.path.lexists(goal):
            goals[entry] = files.versioned(goal)
    taken = [f"{goal} is there already" for goal in goals.values() if os.path.lexists(goal)]
    raise_all(taken, f"the download stays in {ready}; move these away or name another folder with --data:")
    if not (work_dir / ARRIVING).exists():
        files.write_json(work_dir / ARRIVING, note)
    for entry, goal in goals.items():
        entry.rename(goal)


def done(work_dir: Path) -> None:
    """Take the work folder away; the note that it was being moved goes last."""
    for entry in list(work_dir.iterdir()):
        if entry.name != ARRIVING:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    (work_dir / ARRIVING).unlink(missing_ok=True)
    work_dir.rmdir()


def fingerprint(source: Path) -> dict[str, Any]:
    """What tells whether `source` is still what it was: its path, and the number, bytes and newest time of its files.

    Raises:
        UserError: it cannot be read.
    """
    paths = [source]
    if source.is_dir():
        paths = [Path(folder, name) for folder, _, names in os.walk(source) for name in names]
    count = size = newest = 0
    for path in paths:
        try:
            status = path.stat()
        except FileNotFoundError:
            continue  # a link to nowhere
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from None
        count, size, newest = count + 1, size + status.st_size, max(newest, status.st_mtime_ns)
    return {"path": str(source.resolve()), "files": count, "bytes": size, "newest": newest}
