"""The limit of open files, for loader processes: raise it where possible.

Otherwise report it before anything is loaded.
"""

from __future__ import annotations

import os
from contextlib import suppress

from pipeline.errors import UserError

try:
    import resource
except ImportError:  # Windows has no such limit
    resource = None

PREFETCHED = 4  # batches that each loader process works ahead
IMAGE_TENSORS, QUESTION_TENSORS = 5, 7  # tensors of a batch; each is an open file while it is sent
PIPES = 3  # of a loader process: both ends of its queue, and the sentinel of the process
OWN_FILES = 40  # for everything else: images, states, a log
UNLIMITED = 1 << 30


def allow_workers(workers: int, tensors: int = IMAGE_TENSORS) -> None:
    """Raise this process's limit of open files to what the loader processes need, if it is too low.

    Raises:
        UserError: it cannot be raised; the message gives the number of processes that fits.
    """
    if resource is None or not workers:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = files_needed(workers, tensors) + _files_open()
    if needed <= _number(soft):
        return
    if needed <= _number(hard):
        with suppress(OSError, ValueError):  # it may also be above the system's own maximum
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
            return
    raise UserError(
        f"data.workers: {workers} loader processes need up to {needed} open files, but this shell allows "
        f"{_number(soft)}: raise the limit (`ulimit -n {needed}`), or use --set "
        f"data.workers={workers_that_fit(workers, tensors)}"
    )


def workers_that_fit(workers: int, tensors: int = IMAGE_TENSORS) -> int:
    """Return how many of `workers` loader processes fit into the limit of open files."""
    if resource is None:
        return workers
    room = _number(resource.getrlimit(resource.RLIMIT_NOFILE)[1]) - _files_open()
    return next(
        count for count in range(workers, -1, -1) if count == 0 or files_needed(count, tensors) <= room
    )


def files_needed(workers: int, tensors: int) -> int:
    """Return how many more files are open at once at most, for this many loader processes and tensors per
    batch.
    """
    return workers * (PIPES + PREFETCHED * tensors) + OWN_FILES


def _number(limit: int) -> int:
    return UNLIMITED if limit == resource.RLIM_INFINITY else limit


def _files_open() -> int:
    try:
        return len(os.listdir("/dev/fd"))
    except OSError:  # no more file can be opened
        return OWN_FILES
