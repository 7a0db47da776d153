"""Sharded weights (`shard`): results equal those of one process up to rounding, any number of processes can
continue, and one that fails ends all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_competition
from safetensors.torch import load_file
from test_processes import flags, in_one_thread, resume, together

import inference
import train
from pipeline.errors import UserError
from pipeline.training.checkpoint import StateStore

FULL = ["--lora-rank", "0", "--lr", "0.001", "--set", "optimizer.ema=0"]
SHARD = [*FULL, "--set", "shard=true"]
WEIGHTS = "model_beit/model.safetensors"


def assert_close(a: Path, b: Path) -> None:
    one, other = load_file(a / WEIGHTS), load_file(b / WEIGHTS)
    assert one.keys() == other.keys()
    for name, weight in one.items():
        torch.testing.assert_close(other[name], weight, rtol=1e-4, atol=1e-5, msg=name)
    losses = [[json.loads(line)["train_loss"] for line in (run / "metrics.jsonl").open()] for run in (a, b)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)


def test_every_key_that_stands_in_the_way_is_named_with_what_mends_it(
    tmp_path: Path, tiny_backbone: Path
) -> None:
    words = flags(
        tmp_path,
        tiny_backbone,
        "unused",
        "--precision",
        "fp16",
        *(word for key in SHARD[-1:] for word in ("--set", key)),
    )
    with pytest.raises(UserError) as refused:
        train.main([*words, "--set", "checkpoint.keep=soup"])
    for fix in ("lora.rank=0", "optimizer.ema=0", "precision=fp32", "checkpoint.keep=auto"):
        assert f"--set {fix}" in str(refused.value)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path) -> Iterator[Path]:
    """A folder with data/ and one/: the run of one process, without sharding."""
    root = make_competition(tmp_path_factory.mktemp("shared-out") / "data").parent
    in_one_thread(train.main, flags(root, tiny_backbone, "one", *FULL))
    return root


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3, 4])
def test_uneven_groups_at_any_number_of_processes(root: Path, tiny_backbone: Path, count: int) -> None:
    """Groups of four micro-batches, the last of an epoch of one: with three and four processes some have
    none. Each holds a part.
    """
    name = f"by-{count}"
    code, out, err = together(count, [["train", *flags(root, tiny_backbone, name, *SHARD)]], "parts:0:1")
    assert code == 0, out + err
    assert_close(root / "one", root / name)
    held = [int(line.split()[-1]) for line in out.splitlines() if line.startswith("process ")]
    num_weights = sum(weight.numel() for weight in load_file(root / "one" / WEIGHTS).values())
    assert len(held) == count and sum(held) == num_weights and max(held) < 1.2 * num_weights / count
    predict = [
        *("--model", str(root / name), "--data", str(root / "data")),
        *("--output", str(root / f"{name}.csv")),
    ]
    assert inference.main(predict) == 0


@pytest.mark.slow
def test_half_precision_and_checkpointed_blocks(root: Path, tiny_backbone: Path) -> None:
    words = ["--precision", "bf16", "--set", "activation_checkpointing=true"]
    in_one_thread(train.main, flags(root, tiny_backbone, "half-one", *FULL, *words))
    code, out, err = together(2, [["train", *flags(root, tiny_backbone, "half-two", *SHARD, *words)]])
    assert code == 0, out + err
    assert_close(root / "half-one", root / "half-two")


@pytest.mark.slow
def test_killed_and_finished_by_another_number(root: Path, tiny_backbone: Path) -> None:
    """The last state is inside a group, with the gradients of a part of it."""
    words = flags(root, tiny_backbone, "killed", *SHARD, "--set", "checkpoint.every_minutes=0.00001")
    code, _, err = together(2, [["train", *words]], "killed:1:7")
    assert (
        code == 1 and err.count("error: ") == 1 and "error: another process of this command has ended" in err
    )
    state, _ = StateStore(root / "killed" / "state").load()
    assert state["gradients"] and state["position"]["row"] % 8
    whole = [
        sorted(tuple(weight.shape) for weight in weights.values())
        for weights in (load_file(root / "one" / WEIGHTS), state["weights"])
    ]
    assert whole[0] == whole[1]
    stopped = [*words, "--resume", "--max-minutes", "0"]
    code, out, err = together(3, [["train", *stopped]])  # for one turn
    assert code == 0 and err.count("stopped (--max-minutes reached)") == 1, out + err
    resume(root, "killed")  # by one process, without sharding
    assert_close(root / "one", root / "killed")


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault, says",
    [
        ("memory:1:6", "--resume changed --batch-size 1 --accumulation-steps 8"),
        ("memory:0:6", "--resume changed --batch-size 1 --accumulation-steps 8"),
        ("unreadable:1:3", "red_3.png cannot be decoded any more"),
        ("broken:1:6", "another process of this command has ended"),
    ],
)
def test_a_process_that_fails_alone_ends_all_with_one_message(
    root: Path, tiny_backbone: Path, fault: str, says: str
) -> None:
    name = fault.replace(":", "-")
    code, _, err = together(2, [["train", *flags(root, tiny_backbone, name, *SHARD)]], fault)
    assert code == 1
    assert err.count("error: ") == 1
    assert says in err
    assert err.count("ontinue with: ") == (not fault.startswith("unreadable"))
    resume(root, name)
    assert_close(root / "one", root / name)
