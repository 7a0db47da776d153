"""The loss of each kind of target, and the score shown in training.

Both map logits and labels of a batch to one number.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional as F

from pipeline.recipe_sections import Optimizer
from pipeline.targets.target import Target
from pipeline.training.hard_rows import asymmetric, focal_choice, focal_decisions

BatchFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (logits (B, O), label) -> scalar


def loss_function(target: Target, label_smoothing: float = 0.0) -> BatchFunction:
    """Return the loss: the mean over a batch and its columns, computed in float32.

    multiclass, ordinal: cross-entropy; label (B,) int64, or (B, O) shares of each class. binary, multilabel:
    binary cross-entropy of (B, O) labels in 0..1. continuous: squared error of (B, O) scaled numbers, 0 where
    a number is missing (NaN); `label_smoothing` is ignored.
    """
    if target.is_choice:
        return lambda logits, label: F.cross_entropy(logits.float(), label, label_smoothing=label_smoothing)
    if target.kind == "continuous":
        return _squared_error

    def binary_loss(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        # Yes and no are two classes: each gets half
        smooth = label.float() * (1 - label_smoothing) + label_smoothing / 2
        return F.binary_cross_entropy_with_logits(logits.float(), smooth)

    return binary_loss


def _squared_error(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    logits = logits.float()
    return F.mse_loss(logits, torch.where(label.isnan(), logits.detach(), label.float()))


def training_loss(target: Target, config: Optimizer, num_rows: np.ndarray) -> BatchFunction:
    """Return the recipe's training loss, the mean over a batch.

    `num_rows` (O,): training rows of each class. Logit adjustment (Menon et al. 2021, arXiv:2007.07314,
    equation 10): the loss uses logits + tau * log(share of the class). The model's own logits then assume
    equally frequent classes. A class without training rows counts as if it had one.
    """
    smoothing = config.label_smoothing
    if config.loss == "asymmetric":
        gammas = config.asymmetric_gamma_negative, config.asymmetric_gamma_positive
        loss = asymmetric(*gammas, config.asymmetric_margin, smoothing)
    elif config.loss == "focal":
        loss = (focal_choice if target.is_choice else focal_decisions)(config.focal_gamma, smoothing)
    else:
        loss = loss_function(target, smoothing)
    if not config.logit_adjustment:
        return loss
    shares = np.maximum(num_rows, 1) / np.maximum(num_rows, 1).sum()
    added = torch.from_numpy(config.logit_adjustment * np.log(shares)).float()
    return lambda logits, label: loss(logits.float() + added.to(logits.device, non_blocking=True), label)


def training_score(target: Target) -> tuple[str, BatchFunction]:
    """Return the name of the score shown in training, and the function of its sum over the rows of a
    batch.

    Divided by the number of rows it is: accuracy (one class or grade, and binary): share of right rows.
    label_accuracy (several labels): share of right single decisions. mae (numbers, in the data's units): mean
    distance over rows and columns (for each row over the numbers that it has). A mixed row, whose label is
    shares, counts by the share of the predicted class. Rows with one class or grade are counted in int64, the
    others summed in float64 (float32 on Apple's GPUs, which have no float64).
    """
    if target.kind == "continuous":
        return "mae", _Distance(target)
    if target.kind == "ordinal":
        return "accuracy", _RightGrades(target)
    if target.kind == "multiclass":
        return "accuracy", _right_classes
    return "label_accuracy" if target.kind == "multilabel" else "accuracy", _right_decisions


def _right_classes(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    predicted = logits.argmax(dim=1)
    if label.ndim == 1:
        return (predicted == label).sum()
    return _exact(label, logits).gather(1, predicted[:, None]).sum()


def _right_decisions(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    label = _exact(label, logits)
    return torch.where(logits >= 0, label, 1 - label).sum() / label.shape[1]


class _RightGrades:
    """How many rows have the right grade, the one nearest to the expected grade, as in `Target.chosen`."""

    def __init__(self, target: Target) -> None:
        self.grades, self.limits = (
            torch.tensor(numbers, dtype=torch.float32) for numbers in (target.grades, target.half_way)
        )

    def __call__(self, logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        # Moved once: a copy per batch would make the GPU wait
        if self.grades.device != logits.device:
            self.grades, self.limits = self.grades.to(logits.device), self.limits.to(logits.device)
        expected = logits.float().softmax(dim=1) @ self.grades
        return (torch.searchsorted(self.limits, expected, right=True) == _positions(label)).sum()


class _Distance:
    """Sum over rows of the mean distance in the data's units.

    Predictions are clipped to the range of training, as in validation.
    """

    def __init__(self, target: Target) -> None:
        self.columns = target.center, target.scale, target.low, target.high
        self.placed: tuple[torch.Tensor, ...] = ()

    def __call__(self, logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        # Copied once: a copy per batch would make the GPU wait
        if not self.placed or self.placed[0].device != logits.device:
            self.placed = tuple(
                _exact(torch.tensor(column, device=logits.device), logits) for column in self.columns
            )
        center, scale, low, high = self.placed
        predicted = (_exact(logits, logits) * scale + center).clamp(low, high)
        distances = (predicted - (_exact(label, logits) * scale + center)).abs()
        return distances.nanmean(dim=1).sum()


def _positions(label: torch.Tensor) -> torch.Tensor:
    """Return the class of each row; for shares the largest."""
    return label if label.ndim == 1 else label.argmax(dim=1)


def _exact(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return values.to(torch.float32 if like.device.type == "mps" else torch.float64)
