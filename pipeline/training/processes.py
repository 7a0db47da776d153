"""Several processes as one: they meet, compare what they see, agree at every turn, and add up what each has computed.

torchrun starts them and gives them a store of names and texts, which is all they share until they meet: so one that fails before can say why.
Afterwards they are a group of `torch.distributed`: small agreements and predictions go over gloo on the CPU, gradients of CUDA cards over NCCL.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
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

LOOK = timedelta(seconds=1)  # how often a wait looks up, for a signal and for a process that failed
PATIENCE = timedelta(days=7)  # a process that ended is noticed at once, by its closed connection; one that computes is waited for
SHARE_CARDS = "SHARE_CARDS"  # in the environment, for tests: more processes than cards, tensors through the CPU
# What one process meets and all of them end with, by the name it is told under.
TOLD: dict[str, type[Exception]] = {"memory": torch.OutOfMemoryError, "lost": LostImage, "user": UserError}


class OtherEnded(UserError):
    """Another process has ended, and this one cannot go on without it."""


@dataclass(frozen=True)
class Processes:
    """This process among those that train or predict together; `Processes()` is one alone, for which everything here is nothing to do."""

    rank: int = 0
    count: int = 1

    @property
    def share(self) -> tuple[int, int]:
        """What of the micro-batches is this process's own, see `pipeline.data.dataset.cut`."""
        return self.rank, self.count

    def describe(self) -> str:
        """In words, what a result's bits depend on: empty for one process."""
        threads = torch.get_num_threads()
        return f", {self.count} processes of {threads} thread{'s' if threads > 1 else ''} each" if self.count > 1 else ""

    def agree(self, failure: Exception | None, wishes: Sequence[bool] = ()) -> list[bool]:
        """Which of `wishes` some process has. After a `failure` of one all raise it, each for itself.

        Raises:
            Exception: `failure`, of this process or of another one.
        """
        if self.count == 1:
            if failure is not None:
                raise failure
            return list(wishes)
        said = torch.tensor([failure is not None, *wishes], dtype=torch.int32)
        with together():
            dist.all_reduce(said, dist.ReduceOp.MAX)
        if said[0]:
            self._fail(failure)
        return [bool(wish) for wish in said[1:].tolist()]

    def texts(self, own: str | None) -> list[str | None]:
        """What each process says, in their order."""
        if self.count == 1:
            return [own]
        all_own: list[str | None] = [None] * self.count
        with together():
            dist.all_gather_object(all_own, own)
        return all_own

    def gather(self, values: torch.Tensor) -> list[torch.Tensor]:
        """`values` of each process, all of one shape, in their order."""
        if self.count == 1:
            return [values]
        sent = exchangeable(values)
        received = [torch.empty_like(sent) for _ in range(self.count)]
        with together():
            dist.all_gather(received, sent)
        return [one.to(values.device) for one in received]

    def add_up(self, numbers: np.ndarray) -> None:
        """Let whole `numbers` become their sum over all processes, in place."""
        if self.count > 1:
            with together():
                dist.all_reduce(torch.from_numpy(numbers))

    def least(self, number: int) -> int:
        """The smallest `number` of any process."""
        if self.count == 1:
            return number
        found = torch.tensor(number)
        with together():
            dist.all_reduce(found, dist.ReduceOp.MIN)
        return int(found)

    def first_says(self, number: float) -> float:
        """The first process's `number`."""
        return float(self.gather(torch.tensor(number, dtype=torch.float64))[0])

    def wait_for_all(self) -> None:
        """Go on when every process has come here."""
        self.agree(None)

    def _fail(self, failure: Exception | None) -> None:
        """Raise the failure of the first process that has one."""
        kinds = [name for name, kind in TOLD.items() if isinstance(failure, kind)]
        words = kinds[0] if kinds else "other"
        text = "" if failure is None else str(failure) if kinds else system_refusal(failure) or f"{type(failure).__name__}: {failure}"
        told = self.texts(None if failure is None else json.dumps([words, text]))
        if failure is not None and not kinds and system_refusal(failure) is None:
            raise failure  # which nobody foresaw: with its own traceback
        number, (kind, text) = next((number, json.loads(one)) for number, one in enumerate(told) if one is not None)
        raise TOLD.get(kind, UserError)(text if kind in ("lost", "memory") or number == 0 else f"process {number}: {text}")


ALONE = Processes()


@contextmanager
def together() -> Iterator[None]:
    """A step that needs all processes: where one has ended, its connections are closed, and `torch.distributed` raises in the others."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise OtherEnded(_why_ended()) from error


def current() -> Processes:
    """This process among those that torchrun started; alone where there is one."""
    return Processes(ranks.rank(), ranks.world_size()) if ranks.world_size() > 1 else ALONE


def card() -> int:
    """The number of this process's CUDA card.

    Raises:
        UserError: the machine has fewer cards than processes.
    """
    cards, wanted = torch.cuda.device_count(), ranks.local_world_size()
    if wanted > cards and not os.environ.get(SHARE_CARDS):
        raise UserError(f"{wanted} processes, and this machine has {cards} card{'s' if cards > 1 else ''}: --nproc-per-node {cards}")
    return ranks.local_rank() % cards


def first_does(work: Callable[[], Any]) -> Any:
    """What `work` gives in the first process, for all of them; a value that JSON can hold. For the time before they have met."""
    if ranks.world_size() == 1:
        return work()
    name = f"done/{len(_done)}"
    _done.append(name)
    if ranks.is_first():
        value = json.dumps(work())
        _store().set(name, value)
    return json.loads(_wait_for(name))


def get_in_touch() -> None:
    """From here on a process that fails can tell the first one why, and all of them say it. Of one process there is nothing to do."""
    first_does(lambda: None)


_done: list[str] = []  # names of what the first process did for all
_met: list[bool] = []  # holds something once the processes have met
_parted: list[bool] = []  # as often as they have parted


def meet(seen: Mapping[str, str]) -> None:
    """Wait for all processes and become a group with them. `seen`: digests of what must be the same everywhere, by what they are of.

    Raises:
        UserError: they see different things, or one has failed; it says why.
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
    raise_all(problems, "the processes do not see the same, so they cannot work together:")
    _met.append(True)
    backend = "cpu:gloo,cuda:nccl" if _tensors_on() == "cuda" else "gloo"
    group = dist.PrefixStore("group", store)
    with together():
        dist.init_process_group(backend, store=group, rank=ranks.rank(), world_size=ranks.world_size(), timeout=PATIENCE)


def part() -> None:
    """Close the connections to the other processes; they may meet again."""
    if dist.is_initialized():
        dist.destroy_process_group()
        _met.clear()
        _done.clear()
        _parted.append(True)


def _compare(seen: Mapping[str, str]) -> list[str]:
    """What other processes see otherwise than the first, in words."""
    problems = []
    for number in range(1, ranks.world_size()):
        place, other = json.loads(_wait_for(f"seen/{number}", f"failed/{number}"))
        differing = [name for name, digest in seen.items() if other.get(name) != digest]
        problems += [f"{place} sees other {' and '.join(differing)} than the first"] if differing else []
    return problems


def _wait_for(name: str, failed: str | None = None) -> str:
    """The text that another process stores under `name`.

    Raises:
        UserError: the process that would has stored under `failed` why it cannot, or the store is gone.
    """
    store = _store()
    while True:
        with suppress(dist.DistStoreError):
            store.wait([name], LOOK)
            return store.get(name).decode()
        if failed is not None and store.check([failed]):
            raise UserError(store.get(failed).decode())


def _store() -> dist.Store:
    """The store of names and texts, as long as these processes are together."""
    return dist.PrefixStore(f"pipeline/{len(_parted)}", _whole_store())


@cache
def _whole_store() -> dist.Store:
    """What torchrun gives to its processes."""
    store, _, _ = next(dist.rendezvous("env://", timeout=timedelta(minutes=10)))
    ranks.tell_first = _tell_first
    if sys.platform == "linux":
        end_with_parent()  # torchrun, which may be killed
    return store


def _tell_first(words: str) -> bool:
    """Store why this process fails, and close its connections, which the others notice."""
    with suppress(RuntimeError):
        _store().set(f"failed/{ranks.rank()}", f"{ranks.place()}: {words.removeprefix('error: ')}")
        part()
        return True
    return False


def _why_ended() -> str:
    """What to say after another process has ended."""
    with suppress(RuntimeError):
        names = [f"failed/{number}" for number in range(1, ranks.world_size())]
        if told := [_store().get(name).decode() for name in names if _store().check([name])]:
            return told[0]
    return "another process of this command has ended (killed, or out of memory?); torchrun's report below says which"


def exchangeable(values: torch.Tensor) -> torch.Tensor:
    """`values` where processes exchange tensors from: on the card over NCCL, else on the CPU."""
    return values if values.device.type == _tensors_on() else values.cpu()


def _tensors_on() -> str:
    """The kind of device that tensors are exchanged on."""
    return "cuda" if torch.cuda.is_available() and not os.environ.get(SHARE_CARDS) else "cpu"
