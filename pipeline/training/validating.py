"""Validation between epochs, with as many rows at a time as fit in memory."""

from __future__ import annotations

import sys

import numpy as np
import torch
from tqdm import tqdm

from pipeline.errors import UserError
from pipeline.training.compute import Compute
from pipeline.training.failures import one_image_too_large
from pipeline.training.predict import Task, evaluate


class Validation:
    """Computes the scores of the validation rows.

    `most`: rows at a time. It is halved when memory runs out, for later epochs too.
    """

    def __init__(self, task: Task, compute: Compute) -> None:
        self.task, self.compute, self.most = task, compute, sys.maxsize

    def run(self, micro_batch_size: int) -> tuple[np.ndarray, dict[str, float]]:
        """Return the logits of the validation rows (num_val, O) and their scores as `val_...`.

        Twice `micro_batch_size` rows are computed at a time: nothing is stored for a backward pass.

        Raises:
            UserError: even one image at a time needs too much memory.
            OutOfMemoryError: with sharded weights, because other processes wait in the pass that failed.
        """
        logits = None
        while logits is None:
            rows = min(2 * micro_batch_size, self.most)
            try:
                logits = evaluate(self.task, self.compute, rows)
            except torch.OutOfMemoryError as error:
                self._halve(rows, error)
        return logits, {f"val_{name}": value for name, value in self.task.scores(logits).items()}

    def _halve(self, rows: int, error: torch.OutOfMemoryError) -> None:
        if self.compute.processes.shares_out:
            raise error
        if rows == 1:
            raise UserError(one_image_too_large(str(self.compute.device), error)) from None
        self.most = rows // 2
        tqdm.write(f"out of memory: validating with {self.most} rows at a time")
