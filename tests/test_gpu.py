"""What only a GPU can tell, by `make test-gpu`: half precision, compiled steps, measured memory, running out
of it, and resuming there.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_processes import ADAPTER, flags, in_one_thread, resume, together
from test_train import arguments
from torch import nn
from transformers import BeitConfig, BeitForImageClassification

import inference
import train
from pipeline.errors import Interrupted
from pipeline.models.half_weights import cache_frozen_bias, use_half_weights
from pipeline.models.lora import attach
from pipeline.training.compute import choose_compute
from pipeline.training.memory import account

pytestmark = pytest.mark.gpu
BASE = {
    "use_relative_position_bias": True,
    "use_mean_pooling": True,
    "layer_scale_init_value": 0.1,
    "drop_path_rate": 0.0,
}


@pytest.fixture(autouse=True)
def device() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    return torch.device("cuda")


def history(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("precision", ["fp32", "auto", "fp16"])
def test_train_resume_predict(competition: Path, tiny_backbone: Path, tmp_path: Path, precision: str) -> None:
    """A run, the same one stopped and resumed (equal up to the order of CUDA's sums), and its predictions, on
    the GPU throughout.
    """
    flags = ["--precision", precision, "--set", "augmentation.crop_scale=[0.5, 1]", "--epochs", "6"]
    assert train.main(arguments(competition, tiny_backbone, tmp_path / "whole", *flags)) == 0
    with pytest.raises(Interrupted):
        train.main(arguments(competition, tiny_backbone, tmp_path / "stopped", *flags, "--max-minutes", "0"))
    assert train.main(arguments(competition, tiny_backbone, tmp_path / "stopped", *flags, "--resume")) == 0
    whole, stopped = history(tmp_path / "whole"), history(tmp_path / "stopped")
    np.testing.assert_allclose(
        [line["train_loss"] for line in stopped], [line["train_loss"] for line in whole], rtol=2e-2
    )
    record = json.loads((tmp_path / "whole" / "run.json").read_text())
    assert record["device"] == torch.cuda.get_device_name()
    assert record["precision"] == choose_compute(precision).precision
    output = tmp_path / "predictions.csv"
    inference.main(
        [
            *("--model", str(tmp_path / "whole"), "--data", str(competition), "--output", str(output)),
            *("--precision", precision),
        ]
    )
    assert len(output.read_text().splitlines()) == 1 + 5


def test_a_run_with_every_trick(competition: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    keys = ("policy=rand_augment", "erasing=0.5", "mixup=0.4", "cutmix=1")
    tricks = [
        *(f"augmentation.{key}" for key in keys),
        "optimizer.loss=focal",
        "optimizer.logit_adjustment=1",
    ]
    words = [word for trick in tricks for word in ("--set", trick)]
    assert train.main(arguments(competition, tiny_backbone, tmp_path / "run", *words)) == 0
    assert all(
        line["train_loss"] > 0 and 0 < line["train_accuracy"] < 1 for line in history(tmp_path / "run")
    )


def test_a_compiled_run_is_a_plain_one(competition: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    for name, choice in (("plain", "false"), ("compiled", "true")):
        train.main(
            arguments(
                competition,
                tiny_backbone,
                tmp_path / name,
                *("--precision", "fp32", "--set", f"compile={choice}"),
            )
        )
    assert json.loads((tmp_path / "compiled" / "run.json").read_text())["compiled"] is True
    losses = [[line["train_loss"] for line in history(tmp_path / name)] for name in ("plain", "compiled")]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)


@pytest.mark.parametrize("lora", [True, False])
def test_the_count_is_what_a_step_takes(device: torch.device, lora: bool) -> None:
    """BEiT-base of six layers at batch 8 in half precision; the count leaves out outputs and scratch space, a
    tenth at most.
    """
    compute = choose_compute("auto")
    torch.manual_seed(0)
    model: nn.Module = BeitForImageClassification(BeitConfig(**BASE, num_hidden_layers=6))
    if lora:
        model = attach(model, 16, 16, 0.1, ("query", "key"))
        cache_frozen_bias(model)
    use_half_weights(model, compute.half)
    model.to(device).train()

    def loss(forward: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
        with compute.autocast():
            return forward(pixel_values=pixels).logits.float().logsumexp(1).sum()

    counted = account(model, loss, torch.zeros(1, 3, 224, 224, device=device), "adamw").total(8)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad])
    pixels = torch.randn(8, 3, 224, 224, device=device)
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        loss(model, pixels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    assert 0.9 * counted < torch.cuda.max_memory_allocated() < 1.1 * counted + 150_000_000


def test_out_of_memory_halves_the_micro_batch(
    competition: Path,
    tiny_backbone: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody knows beforehand what the device has, and it has less than the 4,096 tokens of 18 images
    take.
    """
    monkeypatch.setattr("pipeline.training.estimate.device_memory", lambda _: 0)
    flags = "--batch-size 18 --accumulation-steps 1 --image-size 512 --lora-rank 0 --precision fp32".split()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(3e9 / torch.cuda.mem_get_info()[1])
    try:
        assert train.main(arguments(competition, tiny_backbone, tmp_path / "run", *flags)) == 0
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    printed = capsys.readouterr()
    assert "out of memory: continuing with 9 images at a time" in printed.out + printed.err
    assert history(tmp_path / "run")[-1]["step"] == 2


def test_two_processes_on_one_card_train_and_predict_as_one(
    competition: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both use the card of this machine; two/ and stopped/ are trained by two processes, and stopped/ is
    finished by one.
    """
    monkeypatch.setenv("SHARE_CARDS", "1")
    full = ["--lora-rank", "0", "--lr", "0.001", "--set", "gradient_sum=reduced"]
    predict = ["--model", str(tmp_path / "one"), "--data", str(competition), "--precision", "fp32"]
    for name, more in (("one", []), ("full-one", full)):
        assert in_one_thread(train.main, flags(tmp_path, tiny_backbone, name, *more)) == 0
    commands = [
        ["train", *flags(tmp_path, tiny_backbone, "two")],
        ["train", *flags(tmp_path, tiny_backbone, "full-two", *full)],
        ["inference", *predict, "--output", str(tmp_path / "two.csv")],
        ["train", *flags(tmp_path, tiny_backbone, "stopped", "--max-minutes", "0")],
    ]
    code, out, err = together(2, commands)
    assert (tmp_path / "stopped/state").exists(), f"{code} {out} {err}"
    resume(tmp_path, "stopped")
    inference.main([*predict, "--output", str(tmp_path / "one.csv")])
    assert (tmp_path / "one.csv").read_text() == (tmp_path / "two.csv").read_text()
    assert json.loads((tmp_path / "two/run.json").read_text())["device"] == torch.cuda.get_device_name()
    model = "model_beit/model.safetensors"
    for one, two, file in (
        ("one", "two", ADAPTER),
        ("one", "stopped", ADAPTER),
        ("full-one", "full-two", model),
    ):
        losses = [[line["train_loss"] for line in history(tmp_path / name)] for name in (one, two)]
        np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)
        weights = [load_file(tmp_path / name / file) for name in (one, two)]
        for name, weight in weights[0].items():
            torch.testing.assert_close(weights[1][name], weight, rtol=1e-2, atol=1e-4, msg=f"{two}: {name}")
