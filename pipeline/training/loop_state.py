"""What the rest of a run depends on: position, trained weights, open gradients, optimizer and means."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Literal

import torch

from pipeline.models.adapter_starts import put_starts, starts_of
from pipeline.training.checkpoint import check_fits
from pipeline.training.compute import Compute
from pipeline.training.gradients import gradient_sum
from pipeline.training.means import Means, WeightMeans
from pipeline.training.position import Position
from pipeline.training.predict import Task
from pipeline.training.resume import rows_digest
from pipeline.training.sharding import part_of, parted_state, whole, whole_in_place, whole_state


class LoopState:
    """The parts of the training loop that are saved and restored.

    `order` says for which rows and which step size a position inside an epoch is valid.
    """

    def __init__(
        self,
        task: Task,
        optimizer: torch.optim.Optimizer,
        schedule: dict[str, Any],
        compute: Compute,
        sums: Literal["auto", "exact", "reduced"],
        means: Means,
    ) -> None:
        self.model, self.optimizer, self.processes = task.model, optimizer, compute.processes
        self.steps_per_epoch = schedule["steps_per_epoch"]
        self.order = {
            "rows": rows_digest(task.split_rows()),
            "effective_batch_size": schedule["effective_batch_size"],
        }
        self.position = Position()
        self.scaler = torch.amp.GradScaler(compute.device.type, enabled=compute.precision == "fp16")
        self.trainable = {
            name: weight for name, weight in task.model.named_parameters() if weight.requires_grad
        }
        self.means = WeightMeans(means, self.trainable)
        self.gradients = gradient_sum(sums, self.processes, list(self.trainable.values()))

    def saved(self) -> dict[str, Any]:
        """Return everything that the rest of the run depends on, as tensors and plain values."""
        position = self.position
        position.group_loss_sum = float(position.group_loss_sum)
        position.group_score_sum = float(position.group_score_sum)
        return {
            "position": asdict(position),
            "order": self.order,
            "weights": {name: whole(weight.detach()) for name, weight in self.trainable.items()},
            "gradients": {
                name: whole(weight.grad) for name, weight in self.trainable.items() if weight.grad is not None
            },
            "optimizer": whole_state(self.optimizer),
            "scaler": self.scaler.state_dict(),
            "means": self.means.state(),
            "starts": starts_of(self.model),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where `state` was saved.

        If other rows or groups were accepted since, start that epoch again.

        Raises:
            UserError: the state does not fit this model.
        """
        check_fits(state, self.trainable, self.optimizer, self.means.problems(state.get("means")))
        put_starts(self.model, state.get("starts", {}))
        with torch.no_grad():
            for name, weight in self.trainable.items():
                weight.copy_(part_of(state["weights"][name], weight))
        self._restore_optimizer(state["optimizer"])
        self.means.restore(state.get("means"))
        if state["scaler"]:  # empty if the run was not in fp16
            self.scaler.load_state_dict(state["scaler"])
        vars(self.position).update(state["position"])
        if state["order"] == self.order:
            self._restore_gradients(state["gradients"])
            return
        self.position.start_epoch(self.position.epoch)
        self.position.step = self.position.epoch * self.steps_per_epoch
        # The best value of other validation rows cannot be compared
        if state["order"]["rows"] != self.order["rows"]:
            self.position.best_epoch = 0
            self.means.forget()

    def _restore_optimizer(self, state: dict[str, Any]) -> None:
        """Restore the moments. The settings stay the recipe's: a change of weight decay may be accepted."""
        settings = [
            {name: value for name, value in group.items() if name != "params"}
            for group in self.optimizer.param_groups
        ]
        self.optimizer.load_state_dict(parted_state(state, self.optimizer))
        for group, setting in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(setting)

    def _restore_gradients(self, gradients: dict[str, torch.Tensor]) -> None:
        """Restore the gradients of the open group. If each process has its own sum, the first gets them."""
        if not self.gradients.whole and self.processes.rank > 0:
            return
        for name, gradient in gradients.items():
            weight = self.trainable[name]
            weight.grad = part_of(gradient, weight).to(weight.device)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside the block the model has the weights that are kept: means, and whole in the first process."""
        with self.means.in_place(), whole_in_place(self.model, self.processes):
            yield
