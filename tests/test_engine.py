"""The loop: what a step of it takes beside the model's passes and the optimizer, and in which order it asks for batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pipeline.training.checkpoint import StateStore
from pipeline.training.compute import Compute
from pipeline.training.engine import fit

STEPS = 400
SCHEDULE = {"name": "constant", "lr": 1e-3, "end_lr": 0, "warmup_steps": 0, "total_steps": STEPS, "steps_per_epoch": STEPS}


class NoTask:
    """A task whose model is two numbers, and whose batches are there already."""

    num_train, num_val, num_classes, best_metric = 8 * STEPS, 0, 2, "epoch"

    def __init__(self) -> None:
        self.model = nn.ParameterDict({"weight": nn.Parameter(torch.zeros(1, 2))})
        self.optimizer = torch.optim.AdamW([{"params": list(self.model.parameters()), "lr_scale": 1.0}], fused=True)
        self.batch = {name: torch.zeros(8, dtype=torch.long) for name in ("row", "label", "pixels")}

    def train_batches(self, *_position: int) -> Iterator[dict[str, torch.Tensor]]:
        return (self.batch for _ in range(STEPS))

    def split_rows(self) -> list[tuple[str, str, str]]:
        return []

    def loss(self, _batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.model["weight"].expand(8, 2)
        return logits.sum(), logits


def milliseconds_a_step(run: Callable[[], object]) -> float:
    """Of CPU time, which other processes of the machine hardly change."""
    started = time.process_time()
    run()
    return 1e3 * (time.process_time() - started) / STEPS


def test_the_loop_costs_less_than_0_4_ms_a_step(tmp_path: Path) -> None:
    def bare() -> None:
        for batch in task.train_batches():
            task.loss(batch)[0].backward()
            task.optimizer.step()
            task.optimizer.zero_grad(set_to_none=True)

    def whole() -> None:
        store, compute = StateStore(tmp_path), Compute(torch.device("cpu"), "fp32")
        schedule = SCHEDULE | {"effective_batch_size": 8}
        fit(task, task.optimizer, schedule, compute, store, lambda report: None, epochs=1, micro_batch_size=8)

    task = NoTask()
    rounds = [(milliseconds_a_step(bare), milliseconds_a_step(whole)) for _ in range(3)]
    assert min(whole_ms - bare_ms for bare_ms, whole_ms in rounds) < 0.4


class Watched(NoTask):
    """A task of two batches and a validation, that notes what is asked of it."""

    num_train, num_val, best_metric = 16, 8, "val_accuracy"

    def __init__(self) -> None:
        super().__init__()
        self.batch["row"], self.asked = torch.arange(8), []

    def train_batches(self, epoch: int, start: int, micro_batch_size: int, group_size: int) -> Iterator[dict[str, torch.Tensor]]:
        self.asked.append(("train", epoch, start, micro_batch_size, group_size))
        return (self.batch for _ in range((16 - start) // 8))

    def val_batches(self, batch_size: int) -> list[dict[str, torch.Tensor]]:
        self.asked.append(("validate", batch_size))
        return [self.batch]

    def logits(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.loss(batch)[1]

    def scores(self, _logits: np.ndarray) -> dict[str, float]:
        return {"accuracy": 0.5}


def test_the_next_epoch_is_begun_before_this_one_is_validated(tmp_path: Path) -> None:
    """Its loader's processes start meanwhile. Once for each epoch, and not for one that will not come."""
    task, reports = Watched(), []
    schedule = SCHEDULE | {"effective_batch_size": 8, "total_steps": 6, "steps_per_epoch": 2}
    compute = Compute(torch.device("cpu"), "fp32")
    last = fit(task, task.optimizer, schedule, compute, StateStore(tmp_path), reports.append, epochs=3, micro_batch_size=8)
    epochs = [("train", epoch, 0, 8, 8) for epoch in range(3)]
    assert task.asked == [*epochs[:2], ("validate", 16), epochs[2], ("validate", 16), ("validate", 16)]
    assert last.step == 6 and [report.metrics["train_accuracy"] for report in reports] == [1.0, 1.0, 1.0]
