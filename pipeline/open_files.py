"""How many files loader processes hold open, and this process's limit: raised where it can be, said before anything is loaded where not."""

from __future__ import annotations

import os
from contextlib import suppress

from pipeline.errors import UserError

try:
    import resource
except ImportError:  # Windows has no such limit
    resource = None

PREFETCHED = 4  # batches that each loader process works ahead
IMAGE_TENSORS, QUESTION_TENSORS = 5, 7  # of a batch; each is an open file while it is on its way
PIPES = 3  # of a loader process: both ends of its queue, and what tells that it has ended
OWN_FILES = 40  # what everything else may open meanwhile: images, states, a log
UNLIMITED = 1 << 30


def allow_workers(workers: int, tensors: int = IMAGE_TENSORS) -> None:
    """Raise this process's own limit of open files to what so many loader processes need, where it is too low and may be raised.

    Raises:
        UserError: it may not; the text names the number of processes that fits.
    """
    if resource is None or not workers:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = files_needed(workers, tensors) + _files_open()
    if needed <= _number(soft):
        return
    if needed <= _number(hard):
        with suppress(OSError, ValueError):  # it may also lie above what the system has at all
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
            return
    raise UserError(
        f"data.workers: {workers} loader processes need up to {needed} open files, and this shell allows {_number(soft)}: "
        f"raise the limit (`ulimit -n {needed}`), or use --set data.workers={workers_that_fit(workers, tensors)}"
    )


def workers_that_fit(workers: int, tensors: int = IMAGE_TENSORS) -> int:
    """As many of `workers` loader processes as this process may open files for."""
    if resource is None:
        return workers
    room = _number(resource.getrlimit(resource.RLIMIT_NOFILE)[1]) - _files_open()
    return next(count for count in range(workers, -1, -1) if count == 0 or files_needed(count, tensors) <= room)


def files_needed(workers: int, tensors: int) -> int:
    """How many files are open at once at most, beside those that are now, with so many loader processes and tensors in a batch."""
    return workers * (PIPES + PREFETCHED * tensors) + OWN_FILES


def _number(limit: int) -> int:
    return UNLIMITED if limit == resource.RLIM_INFINITY else limit


def _files_open() -> int:
    try:
        return len(os.listdir("/dev/fd"))
    except OSError:  # not one more may be opened
        return OWN_FILES
