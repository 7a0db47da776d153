"""What `fit` computes, on a model of three weights: a second loop in numpy computes the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.data.dataset import cut_turns
from pipeline.errors import Interrupted, UserError
from pipeline.training.checkpoint import StateStore
from pipeline.training.compute import Compute
from pipeline.training.engine import fit
from pipeline.training.means import Means, Soup
from pipeline.training.position import EpochReport, Position

ROWS, GROUP, EPOCHS = 20, 8, 3  # the last group of an epoch has 4 rows
STEPS = 3  # of an epoch
SCHEDULE = {
    "name": "linear",
    "lr": 0.1,
    "end_lr": 0.01,
    "warmup_steps": 2,
    "total_steps": STEPS * EPOCHS,
    "steps_per_epoch": STEPS,
    "effective_batch_size": GROUP,
}
RATES = np.concatenate([[0, 0.05], np.linspace(0.1, 0.01, 8)[:7]])
DRAW = np.random.default_rng(0)
INPUTS, WANTED = DRAW.normal(size=(ROWS, 3)), DRAW.normal(size=ROWS)


def order_of(epoch: int) -> np.ndarray:
    return np.random.default_rng(epoch).permutation(ROWS)


class Line:
    """Least squares by three weights. `before(rows)` is called before each forward pass."""

    num_train, num_outputs, best_metric, train_score = ROWS, 1, "val_accuracy", "accuracy"

    def __init__(self, before: Callable[[int], None] = lambda rows: None, scores: tuple = ()) -> None:
        self.model = nn.ParameterDict({"weight": nn.Parameter(torch.zeros(3, dtype=torch.float64))})
        self.optimizer = torch.optim.SGD([{"params": list(self.model.parameters()), "lr_scale": 1.0}])
        self.before, self.left, self.num_val = before, list(scores), 1 if scores else 0
        self.higher_is_better = True

    def train_batches(
        self, epoch: int, start: int, micro_batch_size: int, group_size: int, _share: tuple[int, int]
    ) -> Iterator[dict[str, torch.Tensor]]:
        for (part,) in cut_turns(ROWS, micro_batch_size, group_size, start):
            yield {"row": torch.from_numpy(order_of(epoch)[part.start : part.stop])}

    def val_batches(self, *_: object) -> Iterator[dict[str, torch.Tensor]]:
        yield {"row": torch.zeros(1, dtype=torch.long)}

    def split_rows(self) -> list[tuple[str, str, str]]:
        return [(str(row), "", "train") for row in range(ROWS)]

    def logits(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return (torch.from_numpy(INPUTS)[batch["row"]] @ self.model["weight"])[:, None]

    def loss(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        self.before(len(batch["row"]))
        logits = self.logits(batch)
        return (logits[:, 0] - torch.from_numpy(WANTED)[batch["row"]]).square().mean(), logits

    def score(self, logits: torch.Tensor, _batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.tensor(float(len(logits)))

    def scores(self, _logits: np.ndarray) -> dict[str, float]:
        accuracy, loss = self.left.pop(0)
        return {"accuracy": accuracy, "loss": loss}

    @property
    def weight(self) -> np.ndarray:
        return self.model["weight"].detach().numpy()


def run(task: Line, folder: Path, micro_batch_size: int = 4, **options: object) -> list[EpochReport]:
    reports: list[EpochReport] = []
    compute, store = Compute(torch.device("cpu"), "fp32"), StateStore(folder / "state")
    options = {"epochs": EPOCHS, "micro_batch_size": micro_batch_size} | options
    fit(task, task.optimizer, SCHEDULE, compute, store, reports.append, **options)
    return reports


def trained_by_numpy() -> tuple[np.ndarray, list[float]]:
    """Return the weights after all steps, and the mean loss of each epoch over its rows."""
    weight, losses = np.zeros(3), []
    for epoch in range(EPOCHS):
        order, loss_sum = order_of(epoch), 0.0
        for number, first in enumerate(range(0, ROWS, GROUP)):
            rows = order[first : first + GROUP]
            error = INPUTS[rows] @ weight - WANTED[rows]
            loss_sum += float((error**2).sum())
            weight = weight - RATES[epoch * STEPS + number] * 2 * INPUTS[rows].T @ error / len(rows)
        losses.append(loss_sum / ROWS)
    return weight, losses


@pytest.fixture(params=[1, 3, 4, 8, 100])
def micro_batch_size(request: pytest.FixtureRequest) -> int:
    return request.param


def test_a_step_is_the_mean_over_its_group_also_over_a_smaller_last_one(
    tmp_path: Path, micro_batch_size: int
) -> None:
    task = Line()
    reports = run(task, tmp_path, micro_batch_size)
    weight, losses = trained_by_numpy()
    np.testing.assert_allclose(task.weight, weight, rtol=1e-12)
    assert [report.metrics["train_loss"] for report in reports] == pytest.approx(losses, rel=1e-6)
    assert [report.metrics["step"] for report in reports] == [3, 6, 9]
    assert [report.metrics["train_accuracy"] for report in reports] == [1, 1, 1]


@pytest.mark.parametrize("stop_at", [1, 2, 5, 6, 8, 13, 15])
def test_stopped_after_any_micro_batch_and_resumed_gives_the_same_bits(tmp_path: Path, stop_at: int) -> None:
    """Five micro-batches an epoch; the groups are cut in halves."""
    undisturbed = Line()
    run(undisturbed, tmp_path / "undisturbed")
    done: list[int] = []

    def late() -> float:
        return 1e6 if len(done) >= stop_at else 0.0  # the time is over

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted, match="--max-minutes"):
        patch.setattr("pipeline.training.engine.time.monotonic", late)
        run(Line(done.append), tmp_path, max_minutes=1000)
    state, damaged = StateStore(tmp_path / "state").load()
    assert not damaged and state["position"]["epoch"] == (stop_at - 1) // 5
    assert state["position"]["row"] == min(4 * ((stop_at - 1) % 5 + 1), ROWS)
    task = Line()
    run(task, tmp_path, state=state)
    assert task.weight.tobytes() == undisturbed.weight.tobytes()


def test_out_of_memory_halves_the_micro_batch_and_not_the_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[int] = []

    def full(rows: int) -> None:
        seen.append(rows)
        if rows > 2 and len(seen) > 4:  # a larger image, in the middle of a group
            raise torch.OutOfMemoryError("CUDA out of memory")

    task = Line(full)
    run(task, tmp_path, 8)
    np.testing.assert_allclose(task.weight, trained_by_numpy()[0], rtol=1e-12)
    assert seen[:7] == [8, 8, 4, 8, 8, 4, 2] and set(seen[7:]) == {2}


def test_one_image_too_large_is_said_with_the_flags_that_help(tmp_path: Path) -> None:
    def full(_rows: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(UserError, match="activation_checkpointing=true") as error:
        run(Line(full), tmp_path)
    assert "--lora-rank" in str(error.value) and "--image-size" in str(error.value)


def test_a_loss_that_is_no_number_leaves_the_last_good_state(tmp_path: Path) -> None:
    task, done = Line(), []

    def spoil(_rows: int) -> None:
        done.append(1)
        if len(done) == 7:  # in epoch 2
            task.model["weight"].data.fill_(torch.nan)

    task.before = spoil
    with pytest.raises(UserError, match="NaN") as error:
        run(task, tmp_path)
    assert "--lr" in str(error.value) and "--precision fp32" in str(error.value)
    state, _ = StateStore(tmp_path / "state").load()
    assert state["position"]["epoch"] == 1 and state["position"]["row"] == 0
    assert torch.isfinite(state["weights"]["weight"]).all()


def test_a_loss_that_is_no_number_in_the_warm_up_names_a_third_of_the_peak_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rate of the first step is 0, and `--lr 0` is refused."""
    monkeypatch.setattr("pipeline.training.engine.REFRESH_SECONDS", -1.0)  # the loss is read in every turn
    task = Line(lambda _rows: task.model["weight"].data.fill_(torch.nan))
    with pytest.raises(UserError, match=r"(?s)within steps \[0, 1\] .*--resume changed --lr 3e-02") as error:
        run(task, tmp_path, GROUP)
    assert "at learning rate 0.00e+00" in str(error.value)


def test_features_that_a_soup_needs_after_the_last_epoch_may_run_out_of_memory_too(tmp_path: Path) -> None:
    scores, soup = [(0.5, 1.0), (0.6, 1.0), (0.6, 0.9)], Means(soup=2)
    run(Line(scores=(*scores, scores[2])), tmp_path, means=soup)
    state, _ = StateStore(tmp_path / "state").load()
    assert state["position"]["epoch"] == EPOCHS
    asked: list[int] = []

    def prepare(micro_batch_size: int, _go_on: Callable[[], bool]) -> bool:
        asked.append(micro_batch_size)
        if micro_batch_size > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return True

    kept: list[Soup] = []
    task = Line(scores=(scores[2],))
    assert run(task, tmp_path, means=soup, state=state, prepare=prepare, on_soup=kept.append) == []
    assert asked == [4, 2] and kept[0].epochs == (3, 2)


# (accuracy, loss) of the three epochs; the flags of the kept ones
@pytest.mark.parametrize(
    ("scores", "keep_last", "kept"),
    [
        ([(0.5, 1), (0.7, 1), (0.6, 0)], False, [True, True, False]),
        ([(0.5, 1), (0.5, 0.9), (0.5, 0.95)], False, [True, True, False]),  # equal: the lower loss
        ([(0.5, 1), (0.4, 1), (0.3, 1)], True, [True, True, True]),
        ([], False, [True, True, True]),  # no validation rows
    ],
)
def test_which_epochs_are_kept(tmp_path: Path, scores: list, keep_last: bool, kept: list[bool]) -> None:
    reports = run(Line(scores=tuple(scores)), tmp_path, keep_last=keep_last)
    assert [report.is_best for report in reports] == kept


def test_for_an_error_the_lower_value_is_kept() -> None:
    position = Position(best_epoch=1, best_value=0.5, history=[{"epoch": 1, "val_loss": 1.0}])
    assert position.is_better(0.4, 1.0, higher_is_better=False)
    assert not position.is_better(0.6, 0.1, higher_is_better=False)
