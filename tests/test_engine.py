"""The loop's own cost: what a step takes beside the model's forward and backward pass and the optimizer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from pipeline.training.checkpoint import StateStore
from pipeline.training.compute import Compute
from pipeline.training.engine import fit

STEPS = 400
SCHEDULE = {
    "name": "constant",
    "lr": 1e-3,
    "end_lr": 0,
    "warmup_steps": 0,
    "total_steps": STEPS,
    "steps_per_epoch": STEPS,
}


class NoTask:
    """A task whose model is two numbers, and whose batches are there already."""

    num_train, num_val, num_outputs, best_metric = 8 * STEPS, 0, 2, "epoch"
    higher_is_better, train_score = True, "accuracy"

    def __init__(self) -> None:
        self.model = nn.ParameterDict({"weight": nn.Parameter(torch.zeros(1, 2))})
        self.optimizer = torch.optim.AdamW(
            [{"params": list(self.model.parameters()), "lr_scale": 1.0}], fused=True
        )
        self.batch = {name: torch.zeros(8, dtype=torch.long) for name in ("row", "label", "pixels")}

    def train_batches(self, *_position: int) -> Iterator[dict[str, torch.Tensor]]:
        return (self.batch for _ in range(STEPS))

    def split_rows(self) -> list[tuple[str, str, str]]:
        return []

    def loss(self, _batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.model["weight"].expand(8, 2)
        return logits.sum(), logits

    def score(self, logits: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return (logits.argmax(dim=1) == batch["label"]).sum()


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
