"""The table of speed: what is put side by side is the same work, and wrong answers are seen."""

from __future__ import annotations

import inspect
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.benchmarks import baselines, benchmark, throughput
from pipeline.benchmarks.baselines import (
    NUM_CLASSES,
    RANK,
    Work,
    our_inference,
    our_training,
    prepare,
    titled,
)
from pipeline.benchmarks.benchmark import load_peer, main
from pipeline.benchmarks.step_memory import footprints, memory_table, overlap
from pipeline.benchmarks.throughput import Line, matrix_rate, measure, table
from pipeline.training.compute import Compute

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
}
CPU = Compute(torch.device("cpu"), "fp32")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Work:
    monkeypatch.setitem(baselines.SIZES, "tiny", TINY)
    return prepare(tmp_path, "tiny", 8, 4, CPU)


@titled("inference", "a wrong peer")
def wrong(work: Work) -> Callable[[], np.ndarray]:
    run = our_inference(work)
    return lambda: run() + 0.5


@titled("inference", "a slow peer")
def slow(work: Work) -> Callable[[], np.ndarray]:
    run = our_inference(work)

    def slowly() -> np.ndarray:
        time.sleep(0.5)
        return run()

    return slowly


def test_peers_are_timed_beside_ours_and_their_answers_compared(work: Work) -> None:
    ours, late, mistaken = measure(work, [our_inference, slow, wrong], rounds=1, flops=10**6)
    assert (ours.who, ours.ratio, ours.agrees) == ("ours", None, None)
    assert late.ratio > 1 and late.agrees is True and late.images_per_second < 8 / 0.5
    assert mistaken.agrees is False
    assert ours.share > 0


def test_losses_are_compared_from_the_first_weights_though_later_rounds_train_on(work: Work) -> None:
    pytest.importorskip("accelerate")
    ours, trainer = measure(
        work, [our_training, load_peer("tests.benchmarks.peers:trainer_documented")], rounds=2, flops=10**6
    )
    assert trainer.agrees is True and trainer.ratio > 0 and ours.images_per_second > 0


@pytest.mark.parametrize(
    ("name", "needs"),
    [
        ("trainer_documented", "accelerate"),
        ("pipeline_documented", "transformers"),
        ("pipeline_best", "transformers"),
        ("ours_plain", "transformers"),
        pytest.param("ours_by_openvino", "openvino", marks=pytest.mark.slow),  # also tested by its engine
    ],
)
def test_the_peers_give_our_answers(work: Work, name: str, needs: str) -> None:
    pytest.importorskip(needs)
    peer = load_peer(f"tests.benchmarks.peers:{name}")
    ours = {"training": our_training, "inference": our_inference}[peer.kind]
    expected, found = np.asarray(ours(work)()), np.asarray(peer(work)())
    assert np.isfinite(expected).all() and np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.slow
def test_ours_in_8_bits_is_near(work: Work) -> None:
    pytest.importorskip("nncf", reason="nncf makes the models in 8 bits: python -m pip install nncf")
    expected, found = our_inference(work)(), load_peer("tests.benchmarks.peers:ours_by_int8")(work)()
    assert 0 < np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


def test_timms_loop_trains_a_model_of_our_shape(work: Work) -> None:
    pytest.importorskip("timm")
    from transformers import AutoModelForImageClassification

    run = load_peer("tests.benchmarks.peers:timm_loop")(work)
    model, optimizer = (inspect.getclosurevars(run).nonlocals[name] for name in ("model", "optimizer"))
    ours = AutoModelForImageClassification.from_pretrained(work.model_dir)
    layers, width = ours.config.num_hidden_layers, ours.config.hidden_size
    assert model.get_base_model().num_features == width and len(model.get_base_model().blocks) == layers
    before = [weight.detach().clone() for group in optimizer.param_groups for weight in group["params"]]
    run()
    after = [weight for group in optimizer.param_groups for weight in group["params"]]
    assert sum(weight.numel() for weight in after) == layers * 2 * RANK * width + NUM_CLASSES * (width + 1)
    assert not any(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_footprints_are_what_train_py_counts(work: Work) -> None:
    found = {(line.trains, line.batch_size): line for line in footprints(work)}
    assert len(found) == 12 and all(line.measured is None for line in found.values())
    lora, full, head = (
        found[trains, 16].counted - found[trains, 8].counted
        for trains in ("LoRA", "full fine-tuning", "the head alone")
    )
    assert full > lora > head >= 0
    assert "| LoRA | " in memory_table(list(found.values()), "fp32")


def test_training_from_files_is_watched_and_traced(work: Work, tmp_path: Path) -> None:
    watched = overlap(work, tmp_path / "trace.json")
    assert 0 <= watched.waiting < 1
    assert watched.first_batch_seconds > 0
    assert watched.images_per_second > 0
    assert watched.busy is None
    names = [event.get("name") for event in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]]
    assert names.count("waiting for a batch") == 2 * 2  # two epochs of two batches


def test_the_table_has_a_row_for_each_line_and_says_what_disagrees() -> None:
    printed = table(
        [
            Line("training", "ours", 12.34, share=0.5),
            Line("training", "them", 6.0, 2.0566, 0.25, False, 2_000_000_000),
        ],
        "fp32",
    )
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines()]
    assert rows[2] == ["training", "ours", "12.3", "", "50%", "", "", "fp32"]
    assert rows[3] == ["training", "them", "6.0", "2.06 x", "25%", "NO", "2.00 GB", "fp32"]


def test_the_matrix_rate_is_a_number() -> None:
    assert 1e8 < matrix_rate(torch.device("cpu"), "fp32") < math.inf


def test_the_command_prints_one_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setitem(baselines.SIZES, "tiny", TINY)
    monkeypatch.setattr(throughput, "IMAGE_SIDES", (64, 96))
    monkeypatch.setattr(benchmark, "LOOP_STEPS", 20)
    monkeypatch.setattr(benchmark, "startup", lambda _: (0.1, 9.0))
    arguments = "--size tiny --images 4 --batch-size 4 --rounds 1 --precision fp32".split()
    peers = [
        f"--peer=tests.benchmarks.peers:{name}" for name in ("image_folder_documented", "image_folder_best")
    ]
    assert main([*arguments, *peers]) == 0
    printed = capsys.readouterr().out
    for expected in (
        "ours, first epoch",
        "later epochs",
        "ImageFolder + v2, documented",
        "matrix rate",
        "--help 0.10 s",
        "| inference | ours",
        "| the head alone | ",
        "training from files: ",
        "25 epochs over 10,000 images at the speed of ours: ",
    ):
        assert expected in printed, expected


def test_an_unknown_peer_is_one_message() -> None:
    from pipeline.errors import UserError

    for name in ("tests.benchmarks.peers:nobody", "no_such_module:peer", "peers"):
        with pytest.raises(UserError, match=rf"--peer {name}: .*expected MODULE:FUNCTION"):
            load_peer(name)


@pytest.mark.parametrize("flag", ["--batch-size", "--rounds"])
def test_a_number_below_one_is_a_message(flag: str) -> None:
    from pipeline.benchmarks.benchmark import main
    from pipeline.errors import UserError

    with pytest.raises(UserError, match=f"{flag} 0: at least 1"):
        main([flag, "0"])
