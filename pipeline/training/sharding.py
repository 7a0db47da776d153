"""Shard weights, gradients and optimizer state: each process holds only a part (FSDP2,
`torch.distributed.fsdp.fully_shard`).

Before a block is computed, its weights are gathered in every process; afterwards each process keeps only its
part. Gradients are summed over processes, and each keeps its part of the sum. So every process must take part
in every pass. A process without a micro-batch in a turn computes one image without a row (`Turns`), which
adds nothing to the sum. Saved tensors are whole, so any number of processes can continue, with or without
sharding.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from pipeline import ranks
from pipeline.data.dataset import ALL, cut_turns
from pipeline.errors import raise_all
from pipeline.models.half_weights import blocks_of
from pipeline.recipe import Recipe
from pipeline.training.compute import Batch, Compute
from pipeline.training.memory import Memory
from pipeline.training.predict import Task
from pipeline.training.processes import Processes, exchangeable, share_out


def is_shared_out(recipe: Recipe, processes: Processes) -> bool:
    """Return True if the recipe asks for sharding and there are several processes."""
    return recipe.shard and processes.count > 1


def check_sharding(model: nn.Module, compute: Compute, floor: bool) -> None:
    """Check that the weights of `model` can be sharded here. `floor`: --floor is given.

    Raises:
        UserError: they cannot; the message lists every reason.
    """
    from torch.distributed.fsdp import FSDPModule

    kind, problems = compute.device.type, []
    if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
        problems.append(
            f"torch {torch.__version__} cannot add up gradients without dividing them: update torch"
        )
    if compute.precision == "fp16":
        problems.append("precision: expected bf16 or fp32, found fp16: --precision fp32")
    if kind == "mps" or exchangeable(torch.empty(0, device=compute.device)).device.type != kind:
        problems.append(
            "each process needs a CUDA card of its own, or all of them the CPU; found "
            f"{compute.device_name()}"
        )
    if not blocks_of(model):
        problems.append(f"{type(model).__name__} has no blocks that could be gathered one after the other")
    if floor:
        problems.append("--floor: expected without it; a run without sharding computes it")
    raise_all(problems, "the weights cannot be sharded; train with --set shard=false, or change this:")


def shard(model: nn.Module, compute: Compute) -> Compute:
    """Shard `model`: each process keeps its part, on its device. Return the new `compute`.

    All processes must call it.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(compute.device.type, (compute.processes.count,))
    for module in [*blocks_of(model), model]:
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
        module.set_gradient_divide_factor(1.0)  # a sum: each micro-batch has its share of the group already
        module.set_force_sum_reduction_for_comms(True)  # gloo supports only sums
    return replace(compute, processes=share_out(compute.processes))


def memory_of_a_part(memory: Memory, model: nn.Module, count: int) -> Memory:
    """Return the memory of one of `count` processes, from the `memory` of a process with the whole `model`.

    Besides its part, a process holds gathered weights and gradients: all parameters outside of the blocks,
    one block, and the next one.
    """
    blocks = [sum(weight.nbytes for weight in block.parameters()) for block in blocks_of(model)]
    together = sum(weight.nbytes for weight in model.parameters()) - sum(blocks) + 2 * max(blocks)
    weights, gradients, optimizer = (
        math.ceil(whole / count) for whole in (memory.weights, memory.gradients, memory.optimizer)
    )
    return replace(memory, weights=weights + together, gradients=gradients + together, optimizer=optimizer)


class Turns:
    """A task with sharded weights: in each turn every process gets a batch. The rest is unchanged."""

    def __init__(self, task: Task, processes: Processes) -> None:
        self.task, self.processes = task, processes
        first = next(iter(task.train_batches(0, 0, 1, task.num_train)))
        # One image to compute, without a row number, so its result is used nowhere
        self.no_rows = {**first, "row": first["row"][:0]}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def train_batches(
        self, epoch: int, start: int, micro_batch_size: int, group_size: int, share: tuple[int, int] = ALL
    ) -> Iterable[Batch]:
        """Yield the task's batches, and a batch of no rows in turns in which this process has none."""
        turns = cut_turns(self.task.num_train, micro_batch_size, group_size, start, share[1])
        return self._in_every_turn(
            self.task.train_batches(epoch, start, micro_batch_size, group_size, share), turns, share
        )

    def val_batches(self, batch_size: int, share: tuple[int, int] = ALL) -> Iterable[Batch]:
        """Yield the task's batches, and a batch of no rows in turns in which this process has none."""
        turns = cut_turns(self.task.num_val, batch_size, self.task.num_val, 0, share[1])
        return self._in_every_turn(self.task.val_batches(batch_size, share), turns, share)

    def _in_every_turn(
        self, batches: Iterable[Batch], turns: Sequence[Sequence[range]], share: tuple[int, int]
    ) -> Iterator[Batch]:
        own = iter(batches)
        for turn in turns:
            batch, failure = self.no_rows, None
            try:
                if share[0] < len(turn):
                    batch = next(own)
            except Exception as error:
                failure = error
            if share != ALL:
                # Before the pass: a process that fails inside it would leave the others waiting
                self.processes.agree(failure)
            elif failure is not None:
                raise failure
            yield batch


def whole(value: Any) -> Any:
    """Return a sharded tensor as one whole CPU tensor in the first process; in the others an empty one (0,).

    All processes must call it. Other values are returned unchanged.
    """
    if not hasattr(value, "full_tensor"):
        return value
    gathered = value.full_tensor()
    return gathered.cpu() if ranks.is_first() else torch.empty(0)


def whole_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the optimizer's state with whole tensors (see `whole`)."""
    state = optimizer.state_dict()
    return state | {
        "state": {
            number: {name: whole(value) for name, value in of.items()}
            for number, of in state["state"].items()
        }
    }


def part_of(tensor: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return this process's part of a whole `tensor`, if `weight` is sharded; else all of it."""
    if not hasattr(weight, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(
        tensor.to(weight.device), weight.device_mesh, weight.placements, src_data_rank=None
    )


def parted_state(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return this process's part of the whole `state` of `optimizer`."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]

    def part(number: int, value: Any) -> Any:
        return part_of(value, weights[number]) if isinstance(value, torch.Tensor) and value.ndim else value

    return state | {
        "state": {
            number: {name: part(number, value) for name, value in of.items()}
            for number, of in state["state"].items()
        }
    }


@contextmanager
def whole_in_place(model: nn.Module, processes: Processes) -> Iterator[None]:
    """Within the block `model.state_dict()` of the first process holds the whole weights.

    All processes must enter it.
    """
    if not processes.shares_out:
        yield
        return
    weights = {name: whole(value) for name, value in model.state_dict().items()}
    hook = model.register_state_dict_post_hook(
        lambda _model, state, _prefix, _metadata: state.update(weights)
    )
    try:
        yield
    finally:
        hook.remove()
