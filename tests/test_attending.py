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
from pipeline.training.attending import BlockTimes, Call, Trial, choose_attention, time_blocks
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


def blocks(products: float = 0.5, problem: str | None = None) -> BlockTimes:
    """Blocks that need a second with the fused kernel, and 7 bytes more by products."""
    return BlockTimes(4, 0.0, 0.3, 1.0, products, 7, problem)


def choose(
    task: Attending,
    choice: str = "auto",
    compute: Compute = BF16,
    timed: BlockTimes | None = None,
    before: str | None = None,
    batches: int = 1000,
    seconds: float = 1e4,
    check=lambda more: None,
):
    return choose_attention(task, compute, choice, timed, batches, seconds, before, check)


def no_room(more: int | None) -> None:
    raise UserError(f"a step of batch 4 needs about 9 GB and {more} bytes")


def test_what_is_faster_and_the_same_is_used() -> None:
    task, asked = Attending(), []
    kind, note = choose(task, timed=blocks(), check=asked.append)
    assert kind == "products" and task.on and "2.00 x" in note and asked == [7]
    assert choose(Attending(), timed=blocks(products=0.99)) == ("fused", None)


def test_another_result_is_not_used() -> None:
    task = Attending()
    kind, note = choose(task, timed=blocks(problem="the gradient differs"))
    assert kind == "fused" and not task.on and "the gradient differs" in note


def test_it_is_not_used_where_it_cannot_pay() -> None:
    assert choose(Attending()) == ("fused", None)  # nothing was timed
    assert choose(Attending(), timed=blocks(), batches=attending.MIN_MICRO_BATCHES - 1) == ("fused", None)
    assert choose(Attending(), timed=blocks(), seconds=attending.MIN_SECONDS - 1) == ("fused", None)
    task = Attending()
    assert choose(task, timed=blocks(), check=no_room) == ("fused", None) and not task.on


def test_a_run_that_goes_on_keeps_its_form() -> None:
    task = Attending()
    assert choose(task, timed=blocks(), before="fused") == ("fused", None) and not task.on
    slower, asked = blocks(9.0, "the update differs"), []
    assert choose(task, timed=slower, before="products", batches=1, check=asked.append) == ("products", None)
    assert task.on and asked == [7]


@pytest.mark.parametrize(
    ("task", "compute", "check", "named"),
    [
        (Attending(), FP32, lambda more: None, "half precision"),
        (Attending(0), BF16, lambda more: None, "backbone"),
        (Attending(), BF16, no_room, "9 GB and None bytes"),
    ],
)
def test_what_was_asked_for_and_cannot_be_had_is_an_error(
    task: Attending, compute: Compute, check: object, named: str
) -> None:
    with pytest.raises(UserError, match=named):
        choose(task, "products", compute, check=check)


def trial(update: float = 1.0, gradient: float = 1.0) -> Trial:
    return Trial(0.1, 0.3, torch.tensor([update]), torch.tensor([gradient]), 5)


@pytest.mark.parametrize("wrong", [{"update": 1.2}, {"gradient": 1.2}, {"update": float("nan")}, {}])
def test_blocks_with_another_result_are_a_problem(
    monkeypatch: pytest.MonkeyPatch, wrong: dict[str, float]
) -> None:
    """`wrong`: of products; two blocks."""
    task = Attending()
    found = {False: trial(), True: trial(**wrong)}
    monkeypatch.setattr(attending, "_calls", lambda task, *_: [Call(task, (), {}, True, 2)])
    monkeypatch.setattr(attending, "_run", lambda call, _: found[call.block.on])
    timed = time_blocks(task, BF16, 4)
    assert (timed.rows, timed.forward, timed.fused, timed.more) == (4, 0.2, 0.6, 0) and not task.on
    assert timed.problem is None if not wrong else next(iter(wrong)) in timed.problem
    assert time_blocks(task, FP32, 4) is None and time_blocks(Attending(layers=0), BF16, 4) is None


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


@pytest.mark.parametrize("dropout", [0, 0.1])
def test_the_blocks_of_a_model_are_timed_and_compared(
    competition: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dropout: float
) -> None:
    """One call for each shape of input; both forms give the same; the bytes that products store more are
    those that the account counts.
    """
    found: list[list[Call]] = []
    compared: list[tuple[Trial, Trial]] = []
    more: list[tuple[int, int]] = []
    calls, difference, time_all = attending._calls, attending._difference, attending.time_blocks

    def counted(task, compute: Compute, size: int) -> BlockTimes:
        timed = time_all(task, compute, size)
        totals = {}
        for by_products in (False, True):
            task.attend_by_products(by_products)
            totals[by_products] = task.account(compute, "adamw").total(timed.rows)
        task.attend_by_products(False)
        more.append((timed.more, totals[True] - totals[False]))
        return timed

    monkeypatch.setattr(attending, "_calls", lambda *a: found.append(calls(*a)) or found[-1])
    monkeypatch.setattr(attending, "_difference", lambda *a: compared.append(a[:2]) or difference(*a))
    monkeypatch.setattr(attending, "time_blocks", counted)
    flags = ("--precision", "bf16", "--set", f"lora.dropout={dropout}")
    train.main(arguments(competition, tiny_backbone, tmp_path / "run", *flags))
    layers = json.loads((tiny_backbone / "config.json").read_text())["num_hidden_layers"]
    assert [[(call.count, call.trains) for call in one] for one in found] == [[(layers, True)]]
    ((fused, products),) = compared
    assert fused.update.norm() > 0 and fused.gradient.norm() > 0
    assert not torch.equal(fused.update, products.update)
    assert difference(fused, products, 2e-2) is None
    ((measured, expected),) = more
    assert measured == expected != 0


def test_frozen_blocks_have_no_backward_pass(
    competition: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[list[Call]] = []
    calls = attending._calls
    monkeypatch.setattr(attending, "_calls", lambda *a: found.append(calls(*a)) or found[-1])
    flags = ("--precision", "bf16", "--lora-rank", "0", "--set", "head_only=true")
    train.main(arguments(competition, tiny_backbone, tmp_path / "run", *flags))
    assert [[(call.count, call.trains) for call in one] for one in found] == [[(2, False)]]
