"""How attention is computed in training: tried, kept where it is the same and faster, stored with the run,
and kept on resume.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from test_train import arguments

import train
from pipeline.errors import Interrupted, UserError
from pipeline.training import attending
from pipeline.training.attending import Call, Trial, choose_attention
from pipeline.training.compute import Compute

BF16, FP32 = Compute(torch.device("cpu"), "bf16"), Compute(torch.device("cpu"), "fp32")


class Attending:
    """A task of one block that remembers how it was told to attend."""

    num_train = 8
    model = torch.nn.Linear(1, 1)

    def __init__(self, layers: int = 2) -> None:
        self.layers, self.on = layers, False

    def attend_by_products(self, on: bool) -> int:
        self.on = on
        return self.layers

    def train_batches(self, *_: int) -> list[dict[str, torch.Tensor]]:
        return [{"pixels": torch.ones(4, 4)}]


def trial(seconds: float, update: float = 1.0, gradient: float = 1.0, stored: int = 0) -> Trial:
    return Trial(seconds, torch.tensor([update]), torch.tensor([gradient]), stored)


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> dict[bool, Trial]:
    """What a block gives with products (True) and without: a test changes it."""
    found = {False: trial(1.0), True: trial(0.5)}
    monkeypatch.setattr(attending, "_calls", lambda task, *_: [Call(task, (), {}, 2)])
    monkeypatch.setattr(attending, "_run", lambda call, _: found[call.block.on])
    return found


def choose(
    task: Attending,
    choice: str = "auto",
    compute: Compute = BF16,
    before: str | None = None,
    batches: int = 1000,
    seconds: float = 1e4,
    check=lambda more: None,
):
    return choose_attention(task, compute, choice, 4, batches, seconds, before, check)


def no_room(more: int | None) -> None:
    raise UserError("a step of batch 4 needs about 9 GB")


def test_what_is_faster_and_the_same_is_used(trials: dict[bool, Trial]) -> None:
    task = Attending()
    kind, note = choose(task)
    assert kind == "products" and task.on and "2.00 x" in note
    trials[True] = trial(0.99)
    assert choose(task) == ("fused", None) and not task.on


@pytest.mark.parametrize("wrong", [{"update": 1.2}, {"gradient": 1.2}, {"update": float("nan")}])
def test_another_result_is_not_used(trials: dict[bool, Trial], wrong: dict[str, float]) -> None:
    task = Attending()
    trials[True] = trial(0.5, **wrong)
    kind, note = choose(task)
    assert kind == "fused" and not task.on and next(iter(wrong)) in note


def test_it_is_not_tried_where_it_cannot_pay(trials: dict[bool, Trial]) -> None:
    assert choose(Attending(), compute=FP32) == ("fused", None)
    assert choose(Attending(), batches=attending.MIN_MICRO_BATCHES - 1) == ("fused", None)
    assert choose(Attending(), seconds=attending.MIN_SECONDS - 1) == ("fused", None)
    assert choose(Attending(layers=0)) == ("fused", None)
    task = Attending()
    assert choose(task, check=no_room) == ("fused", None) and not task.on


def test_a_run_that_goes_on_keeps_its_form(trials: dict[bool, Trial]) -> None:
    task = Attending()
    assert choose(task, before="fused") == ("fused", None) and not task.on
    trials[True] = trial(9.0, 9.0, 9.0)
    assert choose(task, before="products", batches=1) == ("products", None) and task.on


@pytest.mark.parametrize(
    ("task", "compute", "check", "named"),
    [
        (Attending(), FP32, lambda more: None, "half precision"),
        (Attending(0), BF16, lambda more: None, "backbone"),
        (Attending(), BF16, no_room, "9 GB"),
    ],
)
def test_what_was_asked_for_and_cannot_be_had_is_an_error(
    task: Attending, compute: Compute, check: object, named: str
) -> None:
    with pytest.raises(UserError, match=named):
        choose(task, "products", compute, check=check)


def test_a_run_by_products_trains_and_resumes_bit_for_bit(
    competition: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    def run(name: str, *more: str) -> Path:
        train.main(arguments(competition, tiny_backbone, tmp_path / name, "--precision", "bf16", *more))
        return tmp_path / name

    whole, fused = run("whole", "--set", "attention=products"), run("fused")
    assert [json.loads((folder / "run.json").read_text())["attention"] for folder in (whole, fused)] == [
        "products",
        "fused",
    ]
    adapter = "model_lora/adapter_model.safetensors"
    assert (whole / adapter).read_bytes() != (fused / adapter).read_bytes()
    with pytest.raises(Interrupted):
        run("stopped", "--set", "attention=products", "--max-minutes", "0")
    resumed = run("stopped", "--set", "attention=products", "--resume")
    for file in ("metrics.jsonl", "val_probs.npy", adapter):
        assert (resumed / file).read_bytes() == (whole / file).read_bytes(), file


def test_the_blocks_of_a_model_are_tried_and_compared(
    competition: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call for each shape of input, and both forms give the same."""
    found: list[list[Call]] = []
    compared: list[tuple[Trial, Trial]] = []
    calls, difference = attending._calls, attending._difference
    monkeypatch.setattr(attending, "MIN_SECONDS", 0)
    monkeypatch.setattr(attending, "MIN_MICRO_BATCHES", 0)
    monkeypatch.setattr(attending, "_calls", lambda *a: found.append(calls(*a)) or found[-1])
    monkeypatch.setattr(attending, "_difference", lambda *a: compared.append(a[:2]) or difference(*a))
    train.main(arguments(competition, tiny_backbone, tmp_path / "run", "--precision", "bf16"))
    layers = json.loads((tiny_backbone / "config.json").read_text())["num_hidden_layers"]
    assert [[call.count for call in one] for one in found] == [[layers]]
    ((fused, products),) = compared
    assert fused.update.norm() > 0 and fused.gradient.norm() > 0
    assert not torch.equal(fused.update, products.update)
    assert attending._difference(fused, products, 2e-2) is None


@pytest.mark.parametrize("dropout", [0, 0.1])
def test_the_bytes_that_products_store_are_those_that_the_account_counts(
    competition: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dropout: float
) -> None:
    found: list[tuple[int, int]] = []
    tries = attending._try

    def counted(task, compute: Compute, size: int) -> tuple[float, int, str | None]:
        result = tries(task, compute, size)
        totals = {}
        for by_products in (False, True):
            task.attend_by_products(by_products)
            totals[by_products] = task.account(compute, "adamw").total(min(size, task.num_train))
        found.append((result[1], totals[True] - totals[False]))
        return result

    monkeypatch.setattr(attending, "MIN_SECONDS", 0)
    monkeypatch.setattr(attending, "MIN_MICRO_BATCHES", 0)
    monkeypatch.setattr(attending, "_try", counted)
    flags = ("--precision", "bf16", "--set", f"lora.dropout={dropout}")
    train.main(arguments(competition, tiny_backbone, tmp_path / "run", *flags))
    ((measured, expected),) = found
    assert measured == expected != 0
