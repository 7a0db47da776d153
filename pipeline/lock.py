"""Locks between processes: one training in a run folder, one writer of a ledger.

A lock ends with its process. It is a lock of the system on a small file that names the holder. Machines that
share a folder may not share the system's locks. So the holder also touches the file every few seconds: a lock
of another machine counts as abandoned when the file was not touched for `SILENT_SECONDS`.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from shlex import quote
from typing import Any

from pipeline.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

LOCK_FILE = ".lock"  # in a locked folder
TOUCH_SECONDS, SILENT_SECONDS = 20.0, 600.0
# Some network and user-space file systems
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
_FAR = 1 << 30  # position of the locked byte on Windows, which also blocks reading: far behind the text


@contextmanager
def holding_folder(folder: Path, how_else: str = "use another --output") -> Iterator[None]:
    """Hold `folder` for this process only. It is created if needed, and removed again if it stays empty.

    Raises:
        UserError: another running process holds it, or it is not a folder; `how_else` says what to do
            instead.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is not a folder: {how_else}")
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with holding_file(folder / LOCK_FILE, f"{folder} is in use", how_else):
            yield
    finally:
        for path in made:
            with suppress(OSError):  # not empty
                path.rmdir()


@contextmanager
def holding_file(
    path: Path, busy: str, how_else: str = "", wait: Callable[[], None] | None = None
) -> Iterator[None]:
    """Hold the lock file `path` for this process only.

    If another process holds it, `wait` is called until it is free.

    Raises:
        UserError: another running process holds it and there is no `wait`. The message starts with `busy`.
    """
    path = Path(path)
    handle = _take(path)
    while isinstance(handle, str):
        if wait is None:
            raise UserError(f"{busy}: {handle}. Wait until it ends{f', or {how_else}' if how_else else ''}")
        wait()
        handle = _take(path)
    over = threading.Event()
    touching = threading.Thread(target=_touch_until, args=(path, over), daemon=True)
    touching.start()
    try:
        yield
    finally:
        over.set()
        touching.join()
        # Windows cannot delete open files; a file that stays is recognised as abandoned
        with suppress(OSError):
            path.unlink()
        os.close(handle)


def _take(path: Path) -> int | str:
    """Return the open lock file if it is ours now; otherwise the holder as text."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            ours = _try_lock(handle)
            if ours and not _is_at(handle, path):  # removed by its holder between open and lock
                os.close(handle)
                continue
            silent = time.time() - os.fstat(handle).st_mtime
            holder = _read(handle)
            cannot_tell = ours is None or holder.get("host") not in (None, platform.node())
            if ours is not False and not (cannot_tell and holder and silent < SILENT_SECONDS):
                _write(handle)
                return handle
            os.close(handle)
            if not holder:
                return "another process has just taken it"
            text = (
                f"process {holder.get('process')} on {holder.get('host')} has used it since "
                f"{holder.get('started')}"
            )
            if ours is False:
                return text
            return f"{text} and touched it {silent:.0f} s ago (if it has ended: rm {quote(str(path))})"
        except BaseException:
            with suppress(OSError):
                os.close(handle)
            raise


def _try_lock(handle: int) -> bool | None:
    """Return True if the lock is ours now, False if another process has it, None if the file system has no
    locks.
    """
    try:
        if fcntl is not None:
            # lockf, not flock: loader processes must not inherit it
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            os.lseek(handle, _FAR, os.SEEK_SET)
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        return True
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            return False
        raise


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _read(handle: int) -> dict[str, Any]:
    """Return what the holder wrote; {} if it cannot be read."""
    os.lseek(handle, 0, os.SEEK_SET)
    try:
        value = json.loads(os.read(handle, 4096))
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _write(handle: int) -> None:
    values = {
        "process": os.getpid(),
        "host": platform.node(),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": " ".join(sys.argv)[:1000],
    }
    os.ftruncate(handle, 0)
    os.lseek(handle, 0, os.SEEK_SET)
    os.write(handle, json.dumps(values).encode())


def _touch_until(path: Path, over: threading.Event) -> None:
    while not over.wait(TOUCH_SECONDS):
        with suppress(OSError):
            os.utime(path)
