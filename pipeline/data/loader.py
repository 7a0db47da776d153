"""A loader whose processes end with it, also where only some of them could be started."""

from __future__ import annotations

import atexit
import signal
import warnings
from collections.abc import Iterable, Iterator
from multiprocessing import active_children
from typing import Any
from weakref import WeakSet

import torch
from torch.utils.data import DataLoader

from pipeline.open_files import PREFETCHED, allow_workers

warnings.filterwarnings("ignore", message="This DataLoader will create")  # more processes than cores: the user's own number


class Loader(DataLoader):
    """A DataLoader of `workers` processes, for batches of `tensors`; `settings` say what the batches are."""

    def __init__(self, dataset: Any, workers: int, tensors: int, **settings: Any) -> None:
        """As torch's.

        Raises:
            UserError: so many processes need more open files than this one may have.
        """
        allow_workers(workers, tensors)
        super().__init__(
            dataset,
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            prefetch_factor=PREFETCHED if workers else None,
            worker_init_fn=prepare_worker,
            generator=torch.Generator(),  # its own: a loader would draw its seed from the global one, once more in a resumed run
            **settings,
        )

    def __iter__(self) -> Iterator[Any]:
        before = set(active_children())
        try:
            iterator = super().__iter__()
        except OSError as error:
            _kill(set(active_children()) - before)
            _forget_half_made(error)
            raise
        _processes.update(set(active_children()) - before)
        atexit.unregister(end_processes)  # what was registered last is called first: before torch and multiprocessing wait for them
        atexit.register(end_processes)
        return iterator


_processes: WeakSet[Any] = WeakSet()


def end_processes() -> None:
    """Kill the loader processes that are left when the program ends, of an iterator that an error still holds.

    multiprocessing would ask them to end by SIGTERM, which they ignore (see `prepare_worker`), and wait for ever.
    """
    _kill(list(_processes))


def _kill(processes: Iterable[Any]) -> None:
    for process in processes:
        process.kill()
        process.join()


def prepare_worker(_worker: int) -> None:
    """Settings of a decoding process."""
    torch.set_num_threads(1)
    # A signal to the whole process group (Ctrl-C, Slurm, a closed terminal) is the main process's to answer: it needs its workers to save.
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def _forget_half_made(error: BaseException) -> None:
    """Keep torch from failing once more, with a traceback, when it drops the iterator that could not be made."""
    trace = error.__traceback__
    while trace is not None:
        made = trace.tb_frame.f_locals.get("self")
        if hasattr(made, "_shutdown_workers"):
            made._shutdown = True
        trace = trace.tb_next
