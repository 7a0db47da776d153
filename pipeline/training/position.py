"""How far a run is, and what one of its epochs gave."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch


@dataclass
class Position:
    """How far a run is. `row` counts the rows of this epoch already passed, the sums are over them; `group_*` is where the open group began."""

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
    best_value: float = 0.0  # of the epoch that is kept; `best_epoch` 0: none yet
    history: list[dict[str, Any]] = field(default_factory=list)

    def start_epoch(self, epoch: int) -> None:
        """Reset to the start of `epoch`."""
        self.epoch, self.row, self.loss_sum, self.score_sum, self.seconds = epoch, 0, 0.0, 0.0, 0.0
        self.group_row, self.group_loss_sum, self.group_score_sum = 0, 0.0, 0.0


@dataclass(frozen=True)
class EpochReport:
    """What one epoch gave: the deterministic line, the timing line, the validation logits (None without validation rows), best so far?"""

    metrics: dict[str, Any]
    timing: dict[str, Any]
    val_logits: np.ndarray | None
    is_best: bool
