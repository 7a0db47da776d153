"""Move a finished folder into the data folder, completely or not at all; after a kill the same command
continues.
"""

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
READY = "unpacked"  # in the work folder: the complete content to move


def arriving(work_dir: Path) -> dict[str, Any] | None:
    """Return the note written when moving `work_dir/unpacked` began; None if no move is in progress."""
    path = work_dir / ARRIVING
    if not path.is_file():
        with suppress(OSError):
            work_dir.rmdir()  # empty: an earlier command was killed just before its end
        return None
    return read_shaped(path, _NOTE, f"check the content of {work_dir.parent}, then delete {work_dir}")


def move_in(work_dir: Path, data_dir: Path, note: dict[str, Any]) -> None:
    """Move everything in `work_dir/unpacked` into `data_dir`, or nothing if a name is taken; continue an
    interrupted move.

    `note` (with the `command` that continues) is in `work_dir` from the first move to the last; `done`
    removes it.

    Raises:
        UserError: a name exists already.
    """
    ready = work_dir / READY
    entries = sorted(ready.iterdir()) if ready.is_dir() else []
    goals = {entry: data_dir / entry.name for entry in entries}
    for entry, goal in goals.items():
        if entry.name.upper().startswith("README") and os.path.lexists(goal):
            goals[entry] = files.versioned(goal)
    taken = [f"{goal} exists already" for goal in goals.values() if os.path.lexists(goal)]
    raise_all(taken, f"the download stays in {ready}; move these away or name another folder with --data:")
    if not (work_dir / ARRIVING).exists():
        files.write_json(work_dir / ARRIVING, note)
    for entry, goal in goals.items():
        entry.rename(goal)


def done(work_dir: Path) -> None:
    """Remove the work folder; the note of the move is removed last."""
    for entry in list(work_dir.iterdir()):
        if entry.name != ARRIVING:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    (work_dir / ARRIVING).unlink(missing_ok=True)
    work_dir.rmdir()


def fingerprint(source: Path) -> dict[str, Any]:
    """Return what identifies the state of `source`: its path, and the number, bytes and newest time of its
    files.

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
            continue  # a broken link
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from None
        count, size, newest = count + 1, size + status.st_size, max(newest, status.st_mtime_ns)
    return {"path": str(source.resolve()), "files": count, "bytes": size, "newest": newest}
