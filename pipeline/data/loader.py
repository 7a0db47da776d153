"""A DataLoader whose worker processes always end with it, even if only some of them could be started."""

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

# The user may ask for more processes than cores
warnings.filterwarnings("ignore", message="This DataLoader will create")


class Loader(DataLoader):
    """A DataLoader with `workers` processes, for batches of `tensors` tensors.

    `settings` go to torch's DataLoader.
    """

    def __init__(self, dataset: Any, workers: int, tensors: int, **settings: Any) -> None:
        """Create it as torch does.

        Raises:
            UserError: the processes would need more open files than this process may have.
        """
        allow_workers(workers, tensors)
        super().__init__(
            dataset,
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            prefetch_factor=PREFETCHED if workers else None,
            worker_init_fn=prepare_worker,
            # Otherwise it draws a seed from the global generator, which differs in a resumed run
            generator=torch.Generator(),
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
        # The last registered is called first, so before torch and multiprocessing wait for the processes
        atexit.unregister(end_processes)
        atexit.register(end_processes)
        return iterator


_processes: WeakSet[Any] = WeakSet()


def end_processes() -> None:
    """Kill the loader processes that are left when the program ends, such as those of an iterator held by
    an error.

    multiprocessing would send SIGTERM, which they ignore (see `prepare_worker`), and then wait for ever.
    """
    _kill(list(_processes))


def _kill(processes: Iterable[Any]) -> None:
    for process in processes:
        process.kill()
        process.join()


def prepare_worker(_worker: int) -> None:
    """Set up a decoding process."""
    torch.set_num_threads(1)
    # The main process handles signals to the whole process group (Ctrl-C, Slurm, a closed terminal); it needs
    # its workers to finish the step before it saves.
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def _forget_half_made(error: BaseException) -> None:
    """Mark the unfinished iterator as shut down, so that torch prints no second traceback when it is
    deleted.
    """
    trace = error.__traceback__
    while trace is not None:
        made = trace.tb_frame.f_locals.get("self")
        if hasattr(made, "_shutdown_workers"):
            made._shutdown = True
        trace = trace.tb_next
