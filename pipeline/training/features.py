"""Compute the inputs of the last layer once, for a frozen backbone and images that are the same in every
epoch.

Training then runs only the head. A row's features are always computed in a batch with the same other rows,
for any epoch, number of processes or resumed position, so all of these give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.utils.data import default_collate

from pipeline.data.dataset import ALL, cut
from pipeline.errors import UserError
from pipeline.training.compute import Batch, Compute
from pipeline.training.predict import Task, not_finite, predict_logits
from pipeline.training.resume import SplitRow

FLOAT_BYTES = 4


class Featured(Task, Protocol):
    """A task whose logits are the head's output for an image's features."""

    head: nn.Linear
    train_labels: Sequence[Any]  # of each row, as in batches
    val_labels: Sequence[Any]
    loss_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

    def train_order(self, epoch: int) -> np.ndarray: ...  # order of the rows in an epoch
    # Training rows in order, not augmented
    def plain_batches(self, batch_size: int, share: tuple[int, int] = ALL) -> Iterable[Batch]: ...


class Features:
    """Float32 features: `train` (num_train, D) and `val` (num_val, D); None if not computed yet."""

    def __init__(self, task: Featured, compute: Compute) -> None:
        self.task, self.compute = task, compute
        self.width = task.head.in_features
        self.train: torch.Tensor | None = None
        self.val: torch.Tensor | None = None

    @property
    def num_bytes(self) -> int:
        """Memory of all features in bytes."""
        return FLOAT_BYTES * self.width * (self.task.num_train + self.task.num_val)

    def ready(self, batch_size: int, go_on: Callable[[], bool] = lambda: True) -> bool:
        """Compute missing features, `batch_size` rows at a time (twice as many in validation).

        Several processes each compute their share. Returns False if `go_on`, called before each batch,
        returned False.

        Raises:
            UserError: features are not numbers.
        """
        share = self.compute.processes.share
        if self.train is None:
            batches = self.task.plain_batches(batch_size, share)
            self.train = self._of_all(batches, self.task.num_train, "features", go_on)
        if self.val is None and self.train is not None:
            self.val = self._of_all(
                self.task.val_batches(2 * batch_size, share), self.task.num_val, "features, validation", go_on
            )
        return self.train is not None and self.val is not None

    def of(self, batch: Batch) -> torch.Tensor:
        """Return the head's input for a batch of images, (B, D)."""
        return self._pass(batch)[0]

    def problem(self) -> str | None:
        """Return why training the head on features differs from running the whole model.

        None if it does not. It is tested with two images.
        """
        model, device = self.task.model, self.compute.device
        was_training = model.training
        with (
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            torch.no_grad(),
            self.compute.autocast(),
        ):
            batch, before = self._two_images(), _generators(device)
            model.train()
            trained = self.of(batch)
            drawn = any(
                not torch.equal(one, other) for one, other in zip(before, _generators(device), strict=True)
            )
            model.eval()
            features = self.of(batch)
        model.train(was_training)
        if problem := self._not_finite(features):
            return problem
        if drawn:
            return "the backbone has dropout or drop path, so its features differ in every step"
        if not torch.equal(trained, features):
            return f"{type(model).__name__} computes different features in training and in prediction"
        return self.probe_problem()

    def probe_problem(self) -> str | None:
        """Return why no head can be fitted on the features: other layers also affect the logits.

        None if not. It is tested with two images.
        """
        model = self.task.model
        was_training = model.training
        model.eval()
        with torch.no_grad(), self.compute.autocast():
            features, logits = self._pass(self._two_images())
            head_is_last = features.shape == (len(logits), self.width) and torch.equal(
                self.task.head(features), logits
            )
        model.train(was_training)
        if problem := self._not_finite(features):
            return problem
        if head_is_last:
            return None
        return f"in {type(model).__name__} the logits are not only the output of the last layer"

    def _not_finite(self, features: torch.Tensor) -> str | None:
        """Return why the features of two images cannot be used: NaN is not equal to NaN."""
        problem = not_finite(features.float().flatten(1).cpu().numpy(), self.compute.precision)
        return problem and f"they are {problem}"

    def _two_images(self) -> Batch:
        return self.compute.move(next(iter(self.task.plain_batches(min(2, self.task.num_train)))))

    def _pass(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the head's input, and the logits."""
        seen: list[torch.Tensor] = []
        hook = self.task.head.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
        try:
            logits = self.task.logits(batch)
        finally:
            hook.remove()
        return seen[-1], logits

    def _of_all(
        self, batches: Iterable[Batch], num_rows: int, title: str, go_on: Callable[[], bool]
    ) -> torch.Tensor | None:
        reached = np.zeros(num_rows, dtype=bool)

        def until_stopped() -> Iterator[Batch]:
            for batch in batches:
                if not go_on():
                    return
                reached[batch["row"].numpy()] = True
                yield batch

        values = predict_logits(
            self.task.model,
            self.of,
            until_stopped(),
            num_rows,
            self.width,
            self.compute,
            title,
            leave=False,
            reached=reached,
        )
        if problem := not_finite(values[reached], self.compute.precision):
            raise UserError(f"the features of the frozen backbone are {problem}")
        return torch.from_numpy(values) if reached.all() else None


def _generators(device: torch.device) -> list[torch.Tensor]:
    """Return the states of the random generators that a forward pass could use."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


class HeadTask:
    """A task that runs only the head, on `Features`. It replaces the task in training and validation."""

    def __init__(self, task: Featured, features: Features) -> None:
        self.task, self.features = task, features
        self.model = task.model
        self.num_train = task.num_train
        self.num_val = task.num_val
        self.num_outputs = task.num_outputs
        self.best_metric = task.best_metric
        self.higher_is_better = task.higher_is_better
        self.train_score = task.train_score
        self.train_labels, self.val_labels = (
            default_collate(list(labels)) if len(labels) else None
            for labels in (task.train_labels, task.val_labels)
        )

    def train_batches(
        self, epoch: int, start: int, micro_batch_size: int, group_size: int, share: tuple[int, int] = ALL
    ) -> Iterable[Batch]:
        """Yield the batches of `epoch` from row `start` of its order on, with `features` (B, D) instead of
        images.
        """
        order = self.task.train_order(epoch)
        return _batches(
            cut(order, micro_batch_size, group_size, start, share), self.features.train, self.train_labels
        )

    def val_batches(self, batch_size: int, share: tuple[int, int] = ALL) -> Iterable[Batch]:
        """Yield the validation rows in order."""
        return _batches(
            cut(range(self.num_val), batch_size, self.num_val, share=share),
            self.features.val,
            self.val_labels,
        )

    def loss(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the task's loss, the mean over the batch (scalar), and the logits (B, O)."""
        logits = self.logits(batch)
        return self.task.loss_of(logits, batch["label"]), logits

    def logits(self, batch: Batch) -> torch.Tensor:
        """Return the logits (B, O)."""
        return self.task.head(batch["features"])

    def score(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the task's score."""
        return self.task.score(logits, batch)

    def scores(self, logits: np.ndarray) -> dict[str, float]:
        """Return the task's scores."""
        return self.task.scores(logits)

    def split_rows(self) -> list[SplitRow]:
        """Return the task's rows."""
        return self.task.split_rows()


def _batches(rows: list[list[int]], features: torch.Tensor, labels: torch.Tensor) -> Iterator[Batch]:
    for numbers in rows:
        row = torch.tensor(numbers) % len(features)  # a row that is used again has a larger number
        yield {"row": row, "label": labels[row], "features": features[row]}
