"""Gradients of several processes added up, one turn after the other: in a turn each process computes one micro-batch of the open group.

exact     What each process computed is sent to all, and added to `.grad` micro-batch by micro-batch in their order, as one process adds
          them up: the same bits at any number of processes. Each turn sends all gradients, so this is for few trained numbers.
reduced   Each process adds up its own, and the sums are added when the group is complete, in buckets that are sent while the backward
          pass still computes others: equal to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal, Protocol

import torch
import torch.distributed as dist

from pipeline.training.processes import Processes, exchangeable, together

EXACT_NUMBERS = 10_000_000  # trained numbers up to which `auto` is exact
BUCKET_BYTES = 25_000_000  # of one all-reduce, as torch's DistributedDataParallel has it


class GradientSum(Protocol):
    """How `.grad` of the trained weights comes to hold the sum over all micro-batches so far, in every process."""

    whole: bool  # after every turn; else only when a group is complete

    def begin(self, completes: bool) -> None: ...  # before a turn's micro-batch; the group's last turn?
    def finish(self, num_computed: int) -> None: ...  # after it: how many processes, from the first on, had a micro-batch
    def give_up(self) -> None: ...  # instead: one of them failed


def gradient_sum(choice: Literal["auto", "exact", "reduced"], processes: Processes, weights: Sequence[torch.Tensor]) -> GradientSum:
    """The sum that a recipe's `gradient_sum` asks for."""
    if processes.count == 1:
        return Alone()
    return ExactSum(processes, weights) if is_exact(choice, sum(map(torch.Tensor.numel, weights))) else ReducedSum(processes, weights)


def is_exact(choice: Literal["auto", "exact", "reduced"], num_trained: int) -> bool:
    """Whether several processes give the bits of one."""
    return num_trained <= EXACT_NUMBERS if choice == "auto" else choice == "exact"


class Alone:
    """One process: the backward pass adds up by itself."""

    whole = True

    def begin(self, completes: bool) -> None:
        """Nothing to do."""

    def finish(self, num_computed: int) -> None:
        """Nothing to do."""

    def give_up(self) -> None:
        """Nothing to do."""


class ExactSum:
    """Sums in the order of the micro-batches."""

    whole = True

    def __init__(self, processes: Processes, weights: Sequence[torch.Tensor]) -> None:
        self.processes, self.weights = processes, list(weights)
        self.sums: list[torch.Tensor | None] = []  # up to the turn before

    def begin(self, completes: bool) -> None:
        """Keep the sums apart, so that the backward pass leaves one micro-batch's gradients alone in `.grad`."""
        self.sums = [weight.grad for weight in self.weights]
        self._hold([None] * len(self.weights))

    def finish(self, num_computed: int) -> None:
        """Add what each process has computed, in their order, which is that of the micro-batches."""
        flat, sizes = _flat(self.weights), [weight.numel() for weight in self.weights]
        present = self.processes.gather(_present(self.weights))
        self._hold([None] * len(self.weights))
        for number, gradients in enumerate(self.processes.gather(flat)[:num_computed]):
            self._add(present[number].tolist(), gradients.split(sizes))
        self._hold(self.sums)

    def give_up(self) -> None:
        """Back to the sums up to the turn before."""
        self._hold(self.sums)

    def _add(self, present: list[int], gradients: Sequence[torch.Tensor]) -> None:
        for number, (weight, gradient) in enumerate(zip(self.weights, gradients, strict=True)):
            if not present[number]:  # a weight that this micro-batch does not reach
                continue
            gradient, total = gradient.view(weight.shape).to(weight.dtype), self.sums[number]
            # A tensor of its own, laid out as the weight is: what the backward pass of one process leaves, also for a norm over it.
            self.sums[number] = torch.empty_like(weight).copy_(gradient) if total is None else total.add_(gradient)

    def _hold(self, gradients: Sequence[torch.Tensor | None]) -> None:
        for weight, gradient in zip(self.weights, gradients, strict=True):
            weight.grad = gradient


class ReducedSum:
    """Sums of each process's own micro-batches, added by all-reduce in the turn that completes a group."""

    whole = False

    def __init__(self, processes: Processes, weights: Sequence[torch.Tensor]) -> None:
        self.processes, self.weights = processes, list(weights)
        self.group = dist.new_group()  # its own: processes without a micro-batch send later, after they have agreed
        self.buckets = _in_buckets(self.weights)
        self.completes = False
        self.waiting: list[set[int]] = []  # of each bucket the weights whose gradients are not there yet
        self.present = torch.zeros(len(self.weights), dtype=torch.uint8)
        self.sent: list[tuple[torch.Tensor, dist.Work]] = []  # of each bucket that was sent
        for number, bucket in enumerate(self.buckets):
            for place in bucket:
                arrived = partial(self._arrived, number, place)
                self.weights[place].register_post_accumulate_grad_hook(arrived)

    def begin(self, completes: bool) -> None:
        """In a group's last turn buckets are sent as soon as their gradients are there."""
        self.completes, self.sent = completes, []
        self.waiting = [set(bucket) for bucket in self.buckets]

    def finish(self, num_computed: int) -> None:
        """When the group is complete: send what was not sent, and put the sums into `.grad`."""
        if not self.completes:
            return
        sums = self._sums()
        present = torch.stack(self.processes.gather(self.present)).any(dim=0).tolist()
        for bucket, total in zip(self.buckets, sums, strict=True):
            for place, part in zip(bucket, total.split([self.weights[place].numel() for place in bucket]), strict=True):
                weight = self.weights[place]
                weight.grad = part.view(weight.shape).to(weight) if present[place] else None

    def give_up(self) -> None:
        """All processes send as many buckets, whatever is in them: the sums are dropped."""
        if self.completes:
            self._sums()

    def _arrived(self, number: int, place: int, _weight: torch.Tensor) -> None:
        """Send the next buckets, in their order, which is that of all processes, as far as they are full."""
        if self.completes:
            self.waiting[number].discard(place)
            while len(self.sent) < len(self.buckets) and not self.waiting[len(self.sent)]:
                self._send()

    def _send(self) -> None:
        bucket = self.buckets[len(self.sent)]
        weights = [self.weights[place] for place in bucket]
        self.present[bucket] = _present(weights)
        flat = exchangeable(_flat(weights))
        for weight in weights:
            weight.grad = None  # which is in `flat`
        with together():
            self.sent.append((flat, dist.all_reduce(flat, group=self.group, async_op=True)))

    def _sums(self) -> list[torch.Tensor]:
        while len(self.sent) < len(self.buckets):
            self._send()
        with together():
            for _, work in self.sent:
                work.wait()
        self.completes = False
        return [flat for flat, _ in self.sent]


def _in_buckets(weights: Sequence[torch.Tensor]) -> list[list[int]]:
    """The numbers of the weights from the last on, as the backward pass reaches them, about `BUCKET_BYTES` together."""
    buckets: list[list[int]] = [[]]
    for number in reversed(range(len(weights))):
        if buckets[-1] and sum(weights[other].nbytes for other in buckets[-1]) + weights[number].nbytes > BUCKET_BYTES:
            buckets.append([])
        buckets[-1].append(number)
    return buckets


def _flat(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """The gradients in one tensor, zeros where there is none."""
    return torch.cat([(torch.zeros_like(weight) if weight.grad is None else weight.grad).flatten() for weight in weights])


def _present(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """Which of the weights have a gradient: (len(weights),) uint8 on the CPU."""
    return torch.tensor([weight.grad is not None for weight in weights], dtype=torch.uint8)
