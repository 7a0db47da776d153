"""The engine's interface of a task, and the function from batches to logits for validation and test
predictions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from pipeline.data.dataset import ALL
from pipeline.training.compute import Batch, Compute
from pipeline.training.resume import SplitRow


class Task(Protocol):
    """A task as the training loop uses it.

    `best_metric`: `val_` and a key of `scores()`. `train_score`: the name of the score shown in training.
    """

    model: nn.Module
    num_train: int
    num_val: int
    num_outputs: int
    best_metric: str
    higher_is_better: bool
    train_score: str

    def train_batches(
        self, epoch: int, start: int, micro_batch_size: int, group_size: int, share: tuple[int, int] = ALL
    ) -> Iterable[Batch]: ...
    def val_batches(self, batch_size: int, share: tuple[int, int] = ALL) -> Iterable[Batch]: ...
    # Scalar mean over the batch, logits (B, O)
    def loss(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]: ...
    # scalar: the sum of `train_score` over the batch
    def score(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor: ...
    def logits(self, batch: Batch) -> torch.Tensor: ...  # (B, O)
    def scores(self, logits: np.ndarray) -> dict[str, float]: ...  # metrics of the validation rows
    def split_rows(self) -> list[SplitRow]: ...  # (id, label, train or val) of every row


def evaluate(task: Task, compute: Compute, batch_size: int) -> np.ndarray:
    """Return (num_val, O) float32 logits of the validation rows."""
    batches = task.val_batches(batch_size, compute.processes.share)
    return predict_logits(
        task.model, task.logits, batches, task.num_val, task.num_outputs, compute, "validating", leave=False
    )


def predict_logits(
    model: nn.Module,
    logits: Callable[[Batch], torch.Tensor],
    batches: Iterable[Batch],
    num_rows: int,
    num_outputs: int,
    compute: Compute,
    title: str,
    leave: bool = True,
    reached: np.ndarray | None = None,
) -> np.ndarray:
    """Return (num_rows, num_outputs) float32 logits.

    Each batch's logits are placed at its `row`s, in any order. With several processes each computes its share
    of the batches, and all get the result. `reached` (num_rows,) bool: must be True, once `batches` end, for
    the rows in them; the other rows stay NaN. None: every row must be in a batch.

    Raises:
        RuntimeError: a row was filled twice or not at all.
    """
    result = np.full((num_rows, num_outputs), np.nan, dtype=np.float32)
    times_filled = np.zeros(num_rows, dtype=np.int64)
    was_training, failure = model.training, None
    model.eval()
    try:
        _fill(result, times_filled, logits, batches, compute, title, leave)
    except Exception as error:
        failure = error
    compute.processes.agree(failure)  # raises it in all processes
    result[times_filled == 0] = 0
    # Each row has the bits of one process and zeros of the others
    compute.processes.add_up(result.view(np.int32))
    compute.processes.add_up(times_filled)
    if reached is not None:
        compute.processes.add_up(reached.view(np.uint8))
    result[times_filled == 0] = np.nan
    model.train(was_training)
    wrong = times_filled != (1 if reached is None else reached)
    if wrong.any():
        raise RuntimeError(f"rows filled other than once: {np.flatnonzero(wrong)[:10].tolist()}")
    return result


def not_finite(values: np.ndarray, precision: str) -> str | None:
    """Return what to say about (N, D) results that are NaN or infinite in some rows; None if there are none.

    `precision`: in which they were computed. Numbers of fp16 end at 65504; those of bf16 and fp32 do not.
    """
    bad = int((~np.isfinite(values).all(axis=1)).sum())
    if not bad:
        return None
    why = (
        "fp16 overflows: use --precision fp32 (in a kernel PRECISION)"
        if precision == "fp16"
        else "its weights do not work for these inputs"
    )
    return f"not a number in {bad:,} of {len(values):,} rows; {why}"


def _fill(
    result: np.ndarray,
    times_filled: np.ndarray,
    logits: Callable[[Batch], torch.Tensor],
    batches: Iterable[Batch],
    compute: Compute,
    title: str,
    leave: bool,
) -> None:
    """Put the logits of each batch at their rows."""
    computing: deque[tuple[np.ndarray, Callable[[], torch.Tensor]]] = deque()
    num_own = len(result) // compute.processes.count
    # no_grad, not inference_mode: training could not use tensors that BEiT caches inside
    with torch.no_grad(), tqdm(total=num_own, desc=title, unit="img", leave=leave, dynamic_ncols=True) as bar:

        def read_back(as_many_as: int) -> None:
            while len(computing) > as_many_as:
                rows, arriving = computing.popleft()
                # With sharded weights a batch may have an image but no rows
                result[rows] = arriving()[: len(rows)].numpy()
                np.add.at(times_filled, rows, 1)
                bar.update(len(rows))

        for batch in batches:
            with compute.autocast():
                computing.append((batch["row"].numpy(), compute.bring(logits(compute.move(batch)))))
            read_back(1)  # all but the newest: the GPU computes it while the next one is prepared
        read_back(0)
