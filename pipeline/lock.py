"""Locks between processes: one training in a run folder, one writer of a ledger. A lock ends with its process, however that ends.

The lock is the system's, on a small file that says who holds it. Machines that share a folder need not share the system's locks, so the
holder touches the file every few seconds: another machine's lock counts as left behind once it has been silent for `SILENT_SECONDS`.
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

LOCK_FILE = ".lock"  # in a folder that is held
TOUCH_SECONDS, SILENT_SECONDS = 20.0, 600.0
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)  # some network and user-space file systems
_FAR = 1 << 30  # Windows locks bytes against reading too: one far behind the text


@contextmanager
def holding_folder(folder: Path, how_else: str = "use another --output") -> Iterator[None]:
    """Hold `folder` for this process alone; it is made when absent, and removed again when nothing was put into it.

    Raises:
        UserError: another living process holds it, or it is no folder; `how_else` says what one can do instead.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is no folder: {how_else}")
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
def holding_file(path: Path, busy: str, how_else: str = "", wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock file `path` for this process alone. With `wait`, which is called between looks, a busy lock is waited for.

    Raises:
        UserError: another living process holds it (`busy` begins the sentence), and there is no `wait`.
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
        with suppress(OSError):  # Windows keeps open files; what stays there is known as left behind
            path.unlink()
        os.close(handle)


def _take(path: Path) -> int | str:
    """The open lock file, now ours; or who holds it, in words."""
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
            text = f"process {holder.get('process')} on {holder.get('host')} has it since {holder.get('started')}"
            return text if ours is False else f"{text} and touched it {silent:.0f} s ago (if it is gone: rm {quote(str(path))})"
        except BaseException:
            with suppress(OSError):
                os.close(handle)
            raise


def _try_lock(handle: int) -> bool | None:
    """True: ours now; False: another process has it; None: this file system has no locks."""
    try:
        if fcntl is not None:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # lockf, not flock: loader processes must not inherit it
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
    """What the holder wrote; empty when it wrote nothing that can be read."""
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
