"""Several processes that work together: they connect, compare their inputs, agree at every turn, and add
up results.

torchrun starts them and gives them a store of names and texts. It is all they share until they connect
(`meet`); through it a failed process can report its error. Afterwards they are a group of
`torch.distributed`: small messages and predictions use gloo on the CPU, gradients of CUDA GPUs use NCCL.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from pipeline import ranks
from pipeline.data.images import LostImage
from pipeline.errors import UserError, raise_all, system_refusal
from pipeline.stopping import end_with_parent

LOOK = timedelta(seconds=1)  # how often a waiting process checks for signals and failed processes
# An ended process is noticed at once by its closed connection; a computing one is waited for
PATIENCE = timedelta(days=7)
# Environment variable for tests: more processes than GPUs, tensors are sent through the CPU
SHARE_CARDS = "SHARE_CARDS"
# Errors of one process that all processes then raise, with the name used in messages between them.
TOLD: dict[str, type[Exception]] = {"memory": torch.OutOfMemoryError, "lost": LostImage, "user": UserError}


class OtherEnded(UserError):
    """Another process has ended, so this one cannot continue.

    `is_told`: that process has told its error, which says what to do.
    """

    def __init__(self, why: str, is_told: bool) -> None:
        super().__init__(why)
        self.is_told = is_told


@dataclass(frozen=True)
class Processes:
    """This process and the number of processes that train or predict together.

    `Processes()` is a single process, for which the methods here do nothing.
    """

    rank: int = 0
    count: int = 1
    # The weights are sharded (see `pipeline.training.sharding`), so every pass needs all processes
    shares_out: bool = False

    @property
    def share(self) -> tuple[int, int]:
        """This process's part of the micro-batches, see `pipeline.data.dataset.cut`."""
        return self.rank, self.count

    def describe(self) -> str:
        """Return processes and threads as text, because the bits of a result depend on them.

        "" for one process.
        """
        threads = torch.get_num_threads()
        if self.count > 1:
            return f", {self.count} processes of {threads} thread{'s' if threads > 1 else ''} each"
        return ""

    def agree(self, failure: Exception | None, wishes: Sequence[bool] = ()) -> list[bool]:
        """Return for each of `wishes` whether any process has it.

        If one process has a `failure`, all raise it.

        With sharded weights a process that fails inside a pass raises at once: the others wait in that
        pass, and notice when this process ends.

        Raises:
            Exception: `failure`, of this process or of another one.
        """
        # A lost image is found before the pass, so all processes can still agree on it
        if failure is not None and self.shares_out and not isinstance(failure, LostImage):
            raise _other_ended() if _is_closed(failure) else failure
        if self.count == 1:
            if failure is not None:
                raise failure
            return list(wishes)
        flags = torch.tensor([failure is not None, *wishes], dtype=torch.int32)
        with together():
            dist.all_reduce(flags, dist.ReduceOp.MAX)
        if flags[0]:
            self._fail(failure)
        return [bool(wish) for wish in flags[1:].tolist()]

    def texts(self, own: str | None) -> list[str | None]:
        """Return the text of each process, in their order."""
        if self.count == 1:
            return [own]
        all_own: list[str | None] = [None] * self.count
        with together():
            dist.all_gather_object(all_own, own)
        return all_own

    def gather(self, values: torch.Tensor) -> list[torch.Tensor]:
        """Return `values` of each process, all of one shape, in their order."""
        if self.count == 1:
            return [values]
        sent = exchangeable(values)
        received = [torch.empty_like(sent) for _ in range(self.count)]
        with together():
            dist.all_gather(received, sent)
        return [one.to(values.device) for one in received]

    def add_up(self, numbers: np.ndarray) -> None:
        """Replace integer `numbers` by their sum over all processes, in place."""
        if self.count > 1:
            with together():
                dist.all_reduce(torch.from_numpy(numbers))

    def least(self, number: int) -> int:
        """Return the smallest `number` of all processes."""
        if self.count == 1:
            return number
        found = torch.tensor(number)
        with together():
            dist.all_reduce(found, dist.ReduceOp.MIN)
        return int(found)

    def first_says(self, number: float) -> float:
        """Return the first process's `number`."""
        return float(self.gather(torch.tensor(number, dtype=torch.float64))[0])

    def wait_for_all(self) -> None:
        """Wait until every process has reached this call."""
        self.agree(None)

    def _fail(self, failure: Exception | None) -> None:
        """Raise the failure of the first process that has one."""
        own = None
        if failure is not None:
            kind = next((name for name, error in TOLD.items() if isinstance(failure, error)), "other")
            refusal = str(failure) if kind in TOLD else system_refusal(failure)
            own = json.dumps([kind, refusal or f"{type(failure).__name__}: {failure}"])
        told = self.texts(own)
        if failure is not None and kind == "other" and refusal is None:
            raise failure  # an unexpected error shows its own traceback
        number, (kind, text) = next(
            (number, json.loads(one)) for number, one in enumerate(told) if one is not None
        )
        raise TOLD.get(kind, UserError)(
            text if kind in ("lost", "memory") or number == 0 else f"process {number}: {text}"
        )


ALONE = Processes()


@contextmanager
def together() -> Iterator[None]:
    """Run a step that needs all processes; raise `OtherEnded` if another process has ended.

    Its connections are then closed, and `torch.distributed` raises in the others.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise _other_ended() from error


def share_out(processes: Processes) -> Processes:
    """Return `processes`, marked as holding sharded weights.

    Their connections stay open as long as the model exists.
    """
    if not _shared_out:
        atexit.register(part)  # without this the program may never end
    _shared_out.append(True)
    return replace(processes, shares_out=True)


def current() -> Processes:
    """Return this process's rank and the number of processes that torchrun started; `ALONE` without
    torchrun.
    """
    return Processes(ranks.rank(), ranks.world_size()) if ranks.world_size() > 1 else ALONE


def card() -> int:
    """Return the number of this process's CUDA GPU.

    Raises:
        UserError: the machine has fewer GPUs than processes.
    """
    cards, wanted = torch.cuda.device_count(), ranks.local_world_size()
    if wanted > cards and not os.environ.get(SHARE_CARDS):
        raise UserError(
            f"{wanted} processes, but this machine has {cards} GPU{'s' if cards > 1 else ''}: "
            f"--nproc-per-node {cards}"
        )
    return ranks.local_rank() % cards


def first_does(work: Callable[[], Any]) -> Any:
    """Run `work` in the first process and return its result, a JSON value, in all of them.

    It may be used before the processes have connected.
    """
    if ranks.world_size() == 1:
        return work()
    name = f"done/{len(_done)}"
    _done.append(name)
    if ranks.is_first():
        value = json.dumps(work())
        _store().set(name, value)
    return json.loads(_wait_for(name))


def get_in_touch() -> None:
    """Connect to torchrun's store, so that a failed process can report its error to the first.

    One process: does nothing.
    """
    first_does(lambda: None)


_done: list[str] = []  # names of the calls of `first_does`
_met: list[bool] = []  # not empty while the processes are connected
_parted: list[bool] = []  # one item for each call of `part`
_shared_out: list[bool] = []  # not empty once weights were sharded


def meet(seen: Mapping[str, str]) -> None:
    """Wait for all processes, compare their inputs, and connect them as a group.

    `seen`: name -> digest of everything that must be equal in all processes.

    Raises:
        UserError: the digests differ, or a process has failed; the message has its error.
    """
    if ranks.world_size() == 1 or _met:
        return
    store = _store()
    store.set(f"seen/{ranks.rank()}", json.dumps([ranks.place(), dict(seen)]))
    if ranks.is_first():
        problems = _compare(seen)
        store.set("verdict", json.dumps(problems))
    else:
        problems = json.loads(_wait_for("verdict"))
    raise_all(problems, "the processes have different inputs, so they cannot work together:")
    _met.append(True)
    backend = "cpu:gloo,cuda:nccl" if _tensors_on() == "cuda" else "gloo"
    group = dist.PrefixStore("group", store)
    with together():
        dist.init_process_group(
            backend, store=group, rank=ranks.rank(), world_size=ranks.world_size(), timeout=PATIENCE
        )


def part() -> None:
    """Close the connections to the other processes; they may connect again."""
    if dist.is_initialized():
        dist.destroy_process_group()
        _met.clear()
        _done.clear()
        _parted.append(True)


def _compare(seen: Mapping[str, str]) -> list[str]:
    """Return how the inputs of other processes differ from those of the first, as messages."""
    problems = []
    for number in range(1, ranks.world_size()):
        place, other = json.loads(_wait_for(f"seen/{number}", f"failed/{number}"))
        differing = [name for name, digest in seen.items() if other.get(name) != digest]
        problems += [f"{place} has other {' and '.join(differing)} than the first"] if differing else []
    return problems


def _wait_for(name: str, failed: str | None = None) -> str:
    """Return the text that another process stores under `name`.

    Raises:
        UserError: that process has stored its error under `failed`, or the store is gone.
    """
    store = _store()
    while True:
        with suppress(dist.DistStoreError):
            store.wait([name], LOOK)
            return store.get(name).decode()
        if failed is not None and store.check([failed]):
            raise UserError(store.get(failed).decode())


def _store() -> dist.Store:
    """Return the store of names and texts for the current connection."""
    return dist.PrefixStore(f"pipeline/{len(_parted)}", _whole_store())


@cache
def _whole_store() -> dist.Store:
    """Return the store that torchrun gives to its processes."""
    store, _, _ = next(dist.rendezvous("env://", timeout=timedelta(minutes=10)))
    ranks.tell_first = _tell_first
    if sys.platform == "linux":
        end_with_parent()  # the parent is torchrun, which may be killed
    return store


def _tell_first(words: str) -> float:
    """Store this process's error, and close its connections, which the others notice. Return the seconds to
    wait.
    """
    with suppress(RuntimeError):
        _store().set(f"failed/{ranks.rank()}", f"{ranks.place()}: {words.removeprefix('error: ')}")
        part()
        # Sharded weights keep the connections open until this process ends
        return 0.0 if _shared_out else ranks.TOLD_SECONDS
    return ranks.SAME_REASON_SECONDS


def _is_closed(error: Exception) -> bool:
    """Return True for the error that `torch.distributed` raises when a connection was closed."""
    return isinstance(error, RuntimeError) and "gloo" in str(error)


def _other_ended() -> OtherEnded:
    """Return the error for "another process has ended", with what that process has told."""
    with suppress(RuntimeError):
        names = [f"failed/{number}" for number in range(1, ranks.world_size())]
        if told := [_store().get(name).decode() for name in names if _store().check([name])]:
            return OtherEnded(told[0], is_told=True)
    return OtherEnded(
        "another process of this command has ended (killed, or out of memory?); torchrun's report below "
        "names it",
        is_told=False,
    )


def exchangeable(values: torch.Tensor) -> torch.Tensor:
    """Return `values` on the device from which processes exchange tensors: the GPU with NCCL, otherwise
    the CPU.
    """
    return values if values.device.type == _tensors_on() else values.cpu()


def _tensors_on() -> str:
    """Return the kind of device for exchanged tensors."""
    return "cuda" if torch.cuda.is_available() and not os.environ.get(SHARE_CARDS) else "cpu"
