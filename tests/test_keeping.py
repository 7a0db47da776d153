"""Which epoch is kept: the best, the lower loss of equal ones, or the last where the validation rows are too
few to tell.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_competition

import train
from pipeline.files import read_json, read_json_lines
from pipeline.training.checkpoint import StateStore
from pipeline.training.compute import Compute
from pipeline.training.engine import fit
from pipeline.training.keeping import keeping

SCHEDULE = {
    "name": "constant",
    "lr": 1e-3,
    "end_lr": 0,
    "warmup_steps": 0,
    "total_steps": 5,
    "steps_per_epoch": 1,
    "effective_batch_size": 2,
}


class Scripted:
    """A task whose validation gives what a script says, an epoch after another."""

    num_train, num_val, num_outputs, best_metric, train_score = 2, 1, 1, "val_accuracy", "accuracy"
    higher_is_better = True

    def __init__(self, script: list[tuple[float, float]]) -> None:
        self.script = iter(script)
        self.model = torch.nn.ParameterDict({"weight": torch.nn.Parameter(torch.zeros(1))})

    def train_batches(self, *_: int):
        return iter([{"row": torch.arange(2)}])

    def val_batches(self, *_: int):
        return iter([{"row": torch.arange(1)}])

    def loss(self, batch):
        return self.model["weight"].sum(), torch.zeros(2, 1)

    def score(self, logits, batch):
        return logits.sum()

    def logits(self, batch):
        return torch.zeros(1, 1)

    def split_rows(self):
        return []

    def scores(self, logits: np.ndarray) -> dict[str, float]:
        accuracy, loss = next(self.script)
        return {"accuracy": accuracy, "loss": loss}


def kept(tmp_path: Path, script: list[tuple[float, float]], last: bool) -> tuple[int, float]:
    task = Scripted(script)
    optimizer = torch.optim.SGD([{"params": list(task.model.parameters()), "lr_scale": 1.0}], lr=0.1)
    where = StateStore(tmp_path / str(len(list(tmp_path.iterdir()))))
    compute = Compute(torch.device("cpu"), "fp32")
    done = fit(
        task,
        optimizer,
        SCHEDULE,
        compute,
        where,
        lambda report: None,
        epochs=len(script),
        micro_batch_size=2,
        keep_last=last,
    )
    return done.best_epoch, done.best_value


def test_the_best_epoch_and_of_equal_ones_the_lower_loss(tmp_path: Path) -> None:
    script = [(0.5, 2.0), (0.7, 1.5), (0.7, 1.2), (0.7, 1.3), (0.6, 0.9)]
    assert kept(tmp_path, script, last=False) == (3, 0.7)
    assert kept(tmp_path, script, last=True) == (5, 0.6)


@pytest.mark.parametrize(
    ("asked", "rows", "last"),
    [("auto", 399, True), ("auto", 400, False), ("best", 5, False), ("last", 9999, True)],
)
def test_few_rows_cannot_tell_epochs_apart(asked: str, rows: int, last: bool) -> None:
    assert keeping(asked, rows).last is last


def test_the_reason_names_the_error_of_a_share() -> None:
    # 50 / sqrt(29)
    assert "29 validation rows" in keeping("auto", 29).why and "9.3 points" in keeping("auto", 29).why
    assert "2.5 points" in keeping("auto", 400).why


def test_the_run_and_its_page_say_which_epoch_is_kept(tmp_path: Path, tiny_backbone: Path) -> None:
    data = make_competition(tmp_path / "data")
    flags = [
        *("--data", str(data), "--backbone", str(tiny_backbone)),
        *"--precision fp32 --epochs 3 --batch-size 6".split(),
    ]
    flags += "--accumulation-steps 1 --set data.val_fraction=0.25 --lr 0.01 --set data.workers=0".split()
    for name, more, rule in (("auto", [], "last"), ("best", ["--set", "checkpoint.keep=best"], "best")):
        output = tmp_path / name
        assert train.main([*flags, "--output", str(output), *more]) == 0
        record, lines = read_json(output / "run.json"), read_json_lines(output / "metrics.jsonl")
        assert record["best"]["rule"] == rule
        assert record["best"]["value"] == lines[record["best"]["epoch"] - 1]["val_accuracy"]
        page = (output / "report.html").read_text(encoding="utf-8")
        assert f"marks the {rule} epoch, whose weights are kept ({record['best']['why']})" in page
    assert read_json(tmp_path / "auto/run.json")["best"]["epoch"] == 3
