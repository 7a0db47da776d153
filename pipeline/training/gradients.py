"""Add up gradients over several processes.

In each turn every process computes one micro-batch of the open group (step).

exact     The gradients of each process are sent to all, and added to `.grad` in the order of the
          micro-batches, as one process does: bit-identical for any number of processes. Each turn sends all
          gradients, so it is for few trained parameters.
reduced   Each process adds up its own gradients. They are added when the group is complete, in buckets that
          are sent while the backward pass still computes others: equal up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal, Protocol

import torch
import torch.distributed as dist

from pipeline.training.processes import Processes, exchangeable, together

EXACT_NUMBERS = 10_000_000  # `auto` is exact up to this many trained parameters
BUCKET_BYTES = 25_000_000  # size of one all-reduce, as in torch's DistributedDataParallel


class GradientSum(Protocol):
    """Makes `.grad` of the trained weights the sum over all micro-batches so far, in every process."""

    whole: bool  # True: `.grad` is the sum after every turn; False: only when a group is complete

    # Before a turn's micro-batch; `completes`: the group's last turn
    def begin(self, completes: bool) -> None: ...
    # After it; how many processes, from the first on, had a micro-batch
    def finish(self, num_computed: int) -> None: ...
    def give_up(self) -> None: ...  # instead of `finish`, if a process failed


def gradient_sum(
    choice: Literal["auto", "exact", "reduced"], processes: Processes, weights: Sequence[torch.Tensor]
) -> GradientSum:
    """Return the sum for a recipe's `gradient_sum`."""
    if processes.count == 1 or processes.shares_out:
        return Alone()
    if is_exact(choice, sum(map(torch.Tensor.numel, weights))):
        return ExactSum(processes, weights)
    return ReducedSum(processes, weights)


def is_exact(choice: Literal["auto", "exact", "reduced"], num_trained: int) -> bool:
    """Return True if several processes give the same bits as one."""
    return num_trained <= EXACT_NUMBERS if choice == "auto" else choice == "exact"


class Alone:
    """One process, or several with sharded weights: the backward pass itself adds up gradients."""

    whole = True

    def begin(self, completes: bool) -> None:
        """Do nothing."""

    def finish(self, num_computed: int) -> None:
        """Do nothing."""

    def give_up(self) -> None:
        """Do nothing."""


class ExactSum:
    """Adds gradients in the order of the micro-batches."""

    whole = True

    def __init__(self, processes: Processes, weights: Sequence[torch.Tensor]) -> None:
        self.processes, self.weights = processes, list(weights)
        self.sums: list[torch.Tensor | None] = []  # up to the previous turn

    def begin(self, completes: bool) -> None:
        """Move the sums out of `.grad`, so that the backward pass leaves only one micro-batch's gradients
        there.
        """
        self.sums = [weight.grad for weight in self.weights]
        self._hold([None] * len(self.weights))

    def finish(self, num_computed: int) -> None:
        """Add the gradients of each process in their order, which is that of the micro-batches."""
        flat, sizes = _flat(self.weights), [weight.numel() for weight in self.weights]
        present = self.processes.gather(_present(self.weights))
        self._hold([None] * len(self.weights))
        for number, gradients in enumerate(self.processes.gather(flat)[:num_computed]):
            self._add(present[number].tolist(), gradients.split(sizes))
        self._hold(self.sums)

    def give_up(self) -> None:
        """Restore the sums of the previous turn."""
        self._hold(self.sums)

    def _add(self, present: list[int], gradients: Sequence[torch.Tensor]) -> None:
        for number, (weight, gradient) in enumerate(zip(self.weights, gradients, strict=True)):
            if not present[number]:  # a weight that this micro-batch does not reach
                continue
            gradient, total = gradient.view(weight.shape).to(weight.dtype), self.sums[number]
            # A separate tensor with the weight's memory layout, as one process has after its backward pass. A
            # norm over it then has the same bits.
            self.sums[number] = (
                torch.empty_like(weight).copy_(gradient) if total is None else total.add_(gradient)
            )

    def _hold(self, gradients: Sequence[torch.Tensor | None]) -> None:
        for weight, gradient in zip(self.weights, gradients, strict=True):
            weight.grad = gradient


class ReducedSum:
    """Adds each process's own gradients, and all-reduces them in the turn that completes a group."""

    whole = False

    def __init__(self, processes: Processes, weights: Sequence[torch.Tensor]) -> None:
        self.processes, self.weights = processes, list(weights)
        # A separate group: processes without a micro-batch send later, after `agree`
        self.group = dist.new_group()
        self.buckets = _in_buckets(self.weights)
        self.completes = False
        self.waiting: list[set[int]] = []  # for each bucket: weights whose gradients are missing
        self.present = torch.zeros(len(self.weights), dtype=torch.uint8)
        self.sent: list[tuple[torch.Tensor, dist.Work]] = []  # for each bucket that was sent
        for number, bucket in enumerate(self.buckets):
            for place in bucket:
                arrived = partial(self._arrived, number, place)
                self.weights[place].register_post_accumulate_grad_hook(arrived)

    def begin(self, completes: bool) -> None:
        """Prepare a turn. In the last turn of a group buckets are sent as soon as their gradients are
        computed.
        """
        self.completes, self.sent = completes, []
        self.waiting = [set(bucket) for bucket in self.buckets]

    def finish(self, num_computed: int) -> None:
        """When the group is complete, send the remaining buckets and put the sums into `.grad`."""
        if not self.completes:
            return
        sums = self._sums()
        present = torch.stack(self.processes.gather(self.present)).any(dim=0).tolist()
        for bucket, total in zip(self.buckets, sums, strict=True):
            for place, part in zip(
                bucket, total.split([self.weights[place].numel() for place in bucket]), strict=True
            ):
                weight = self.weights[place]
                weight.grad = part.view(weight.shape).to(weight) if present[place] else None

    def give_up(self) -> None:
        """Send all buckets, because every process must send equally many; the sums are dropped."""
        if self.completes:
            self._sums()

    def _arrived(self, number: int, place: int, _weight: torch.Tensor) -> None:
        """Send the next full buckets in their order, which is the same in all processes."""
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
            weight.grad = None  # it is in `flat`
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
    """Return weight numbers in buckets of about `BUCKET_BYTES`, from the last weight on, as the backward
    pass reaches them.
    """
    buckets: list[list[int]] = [[]]
    for number in reversed(range(len(weights))):
        if (
            buckets[-1]
            and sum(weights[other].nbytes for other in buckets[-1]) + weights[number].nbytes > BUCKET_BYTES
        ):
            buckets.append([])
        buckets[-1].append(number)
    return buckets


def _flat(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the gradients in one tensor, with zeros for missing ones."""
    return torch.cat(
        [(torch.zeros_like(weight) if weight.grad is None else weight.grad).flatten() for weight in weights]
    )


def _present(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return which of the weights have a gradient: (len(weights),) uint8 on the CPU."""
    return torch.tensor([weight.grad is not None for weight in weights], dtype=torch.uint8)
