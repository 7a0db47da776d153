"""The position of a run, and the report of an epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch


@dataclass
class Position:
    """The position of a run.

    `row`: rows of this epoch that are done; the sums are over them. `group_*`: values at the start of the
    open group (the rows of the current optimizer step).
    """

    epoch: int = 0
    row: int = 0
    step: int = 0
    loss_sum: float = 0.0
    score_sum: float = 0.0
    seconds: float = 0.0
    group_row: int = 0
    group_loss_sum: float | torch.Tensor = 0.0
    group_score_sum: float | torch.Tensor = 0.0
    best_epoch: int = 0
    best_value: float = 0.0  # of the kept epoch; `best_epoch` 0: none yet
    history: list[dict[str, Any]] = field(default_factory=list)

    def start_epoch(self, epoch: int) -> None:
        """Reset to the start of `epoch`."""
        self.epoch, self.row, self.loss_sum, self.score_sum, self.seconds = epoch, 0, 0.0, 0.0, 0.0
        self.group_row, self.group_loss_sum, self.group_score_sum = 0, 0.0, 0.0

    def is_better(self, value: float, loss: float, higher_is_better: bool) -> bool:
        """Return True if an epoch with this metric value and loss beats the kept one, or if none is kept yet.

        For equal values the lower loss wins.
        """
        if self.best_epoch == 0:
            return True
        if value == self.best_value:
            kept = next((line for line in self.history if line["epoch"] == self.best_epoch), {})
            return loss < kept.get("val_loss", -math.inf)
        return value > self.best_value if higher_is_better else value < self.best_value


@dataclass(frozen=True)
class EpochReport:
    """The result of one epoch: deterministic metrics, timing, validation logits (None without validation
    rows), is it the best?
    """

    metrics: dict[str, Any]
    timing: dict[str, Any]
    val_logits: np.ndarray | None
    is_best: bool
