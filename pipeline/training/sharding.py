"""Weights, gradients and optimizer states shared out to several processes, each holding a part: FSDP2,
`torch.distributed.fsdp.fully_shard`.

Before a block is computed its weights come together in every process, and afterwards each keeps its part
again; gradients are added up, and each process keeps its part of the sum. So every process takes part in
every pass. One without a micro-batch in a turn passes a batch of no rows (`Turns`), which weighs nothing.
What is saved are whole tensors: a run goes on at any number of processes, shared out or not.
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
    """Whether the recipe asks for it, and there are processes to share with."""
    return recipe.shard and processes.count > 1


def check_sharding(model: nn.Module, compute: Compute, floor: bool) -> None:
    """Nothing, where the weights of `model` can be shared out here. `floor`: --floor is given.

    Raises:
        UserError: they cannot; each reason is named.
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
        problems.append(
            f"{type(model).__name__} has no blocks whose weights could come together one after the other"
        )
    if floor:
        problems.append("--floor: expected without it; a run without sharding computes it")
    raise_all(problems, "the weights cannot be shared out; --set shard=false trains without, or change this:")


def shard(model: nn.Module, compute: Compute) -> Compute:
    """Let each process hold its part of `model`, on its device; `compute` from now on. All processes take
    part.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(compute.device.type, (compute.processes.count,))
    for module in [*blocks_of(model), model]:
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
        module.set_gradient_divide_factor(1.0)  # a sum: each micro-batch has its share of the group already
        module.set_force_sum_reduction_for_comms(True)  # gloo knows no other
    return replace(compute, processes=share_out(compute.processes))


def memory_of_a_part(memory: Memory, model: nn.Module, count: int) -> Memory:
    """What one of `count` processes holds, of the `memory` of a process that holds all of `model`.

    Besides its part there are the weights and gradients that have come together: what is outside of the
    blocks, a block and the next.
    """
    blocks = [sum(weight.nbytes for weight in block.parameters()) for block in blocks_of(model)]
    together = sum(weight.nbytes for weight in model.parameters()) - sum(blocks) + 2 * max(blocks)
    weights, gradients, optimizer = (
        math.ceil(whole / count) for whole in (memory.weights, memory.gradients, memory.optimizer)
    )
    return replace(memory, weights=weights + together, gradients=gradients + together, optimizer=optimizer)


class Turns:
    """A task whose weights are shared out: each turn has a batch for every process. All else is the
    task's.
    """

    def __init__(self, task: Task, processes: Processes) -> None:
        self.task, self.processes = task, processes
        first = next(iter(task.train_batches(0, 0, 1, task.num_train)))
        # One image, so that there is something to compute, and no row that it is of
        self.no_rows = {**first, "row": first["row"][:0]}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def train_batches(
        self, epoch: int, start: int, micro_batch_size: int, group_size: int, share: tuple[int, int] = ALL
    ) -> Iterable[Batch]:
        """The task's; in a turn without one of this process a batch of no rows."""
        turns = cut_turns(self.task.num_train, micro_batch_size, group_size, start, share[1])
        return self._in_every_turn(
            self.task.train_batches(epoch, start, micro_batch_size, group_size, share), turns, share
        )

    def val_batches(self, batch_size: int, share: tuple[int, int] = ALL) -> Iterable[Batch]:
        """The task's; in a turn without one of this process a batch of no rows."""
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
                # Before the pass, in which nobody can say that it has nothing to pass
                self.processes.agree(failure)
            elif failure is not None:
                raise failure
            yield batch


def whole(value: Any) -> Any:
    """The whole of a tensor of which this process holds a part, in the host's memory, for the first process;
    for the others nothing (0,).

    All processes take part. What is no part of a tensor stays as it is.
    """
    if not hasattr(value, "full_tensor"):
        return value
    gathered = value.full_tensor()
    return gathered.cpu() if ranks.is_first() else torch.empty(0)


def whole_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's state, as `whole` as its weights."""
    state = optimizer.state_dict()
    return state | {
        "state": {
            number: {name: whole(value) for name, value in of.items()}
            for number, of in state["state"].items()
        }
    }


def part_of(tensor: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """What this process holds of a whole `tensor`, where it holds a part of `weight`; else all of it."""
    if not hasattr(weight, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(
        tensor.to(weight.device), weight.device_mesh, weight.placements, src_data_rank=None
    )


def parted_state(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What this process holds of the whole `state` of `optimizer`."""
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
    """Inside the block `model.state_dict()` of the first process has the whole weights. All processes take
    part.
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
