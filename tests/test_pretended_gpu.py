"""The commands under a pretended GPU: what would mix tensors of two devices on a real one fails here, on any
machine; and the numbers are those of a CPU.
"""

from __future__ import annotations

import gc
import json
import math
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import competitions
import numpy as np
import pandas as pd
import pretended_gpu
import pytest
import test_vqa
import torch
from safetensors.torch import load_file, save_file
from test_gpu import history
from test_processes import torchrun
from test_train import arguments
from transformers import AutoConfig, AutoModelForImageClassification

import inference
import train
from pipeline.cleaning import suspects
from pipeline.competition.facts import CompetitionFacts
from pipeline.errors import Interrupted, UserError
from pipeline.files import read_json
from pipeline.folds.team import gather
from pipeline.kernel.answer import predict_carried
from pipeline.kernel.bundle import Options, make_bundle
from pipeline.kernel.carried import open_bundle
from pipeline.report import attention
from pipeline.run import load_run
from pipeline.tasks import apply, classification
from pipeline.tasks.classification_task import ClassificationTask
from pipeline.tasks.frozen_features import _together
from pipeline.tasks.image_classifier import ImageClassifier
from pipeline.training import deadline
from pipeline.training.compute import Compute
from pipeline.training.engine import _Loop

H100, T4 = (9, 0), (7, 5)
# Answers that are computed in different ways: a grade, a number, labels, the mean of several images
KINDS = ("grades", "numbers", "tags", "views_by_table")
# What changes a step or the weights that are kept
RUNS = {
    "mixed images": "--floor --set augmentation.policy=rand_augment --set augmentation.erasing=0.5 "
    "--set augmentation.mixup=0.4 --set augmentation.cutmix=1 --set augmentation.noise=0.1 "
    "--set optimizer.loss=focal --set optimizer.logit_adjustment=1",
    "mean of steps": "--set optimizer.ema=0.9 --set checkpoint.keep=best --set lora.variant=dora "
    "--set head.init=probe --set optimizer.max_grad_norm=1",
    "soup": "--set checkpoint.keep=soup --set schedule.image_sizes=[16,32] --set lora.init=pissa "
    "--set optimizer.label_smoothing=0.1 --set data.sampling=classes",
    "all weights": "--lora-rank 0 --set optimizer.layer_decay=0.8 --set checkpoint.keep=average "
    "--set optimizer.name=sgd",
}


@pytest.fixture
def h100() -> Iterator[pretended_gpu.Gpu]:
    with pretended_gpu.pretended_gpu(H100) as gpu:
        yield gpu


@pytest.fixture
def t4() -> Iterator[None]:
    with pretended_gpu.pretended_gpu(T4):
        yield


def record(run: Path) -> dict:
    return read_json(run / "run.json")


@pytest.mark.parametrize(
    "mixed",
    [
        lambda here, there: here + there,
        lambda here, there: here.matmul(there),
        lambda here, there: torch.nn.functional.linear(here, there),
        lambda here, there: torch.where(here > 0, here, there),
        lambda here, there: there.add_(here),
        lambda here, there: here[there.long()],
        lambda here, there: torch.cat([here, there]),
        lambda here, there: there.numpy(),
        lambda here, there: np.asarray(there),
        lambda here, there: (here.requires_grad_() * there.cpu()).sum().backward(there.sum()),
    ],
)
def test_what_a_gpu_refuses_is_refused(h100: None, mixed: object) -> None:
    here, there = torch.eye(3), torch.eye(3).to("cuda")
    assert (here.device.type, there.device.type) == ("cpu", "cuda")
    with pytest.raises((RuntimeError, TypeError), match="cuda"):
        mixed(here, there)


def test_what_a_gpu_takes_is_taken(h100: None) -> None:
    here, there = torch.eye(3), torch.ones(3, 3, device="cuda")
    assert (there * 2 + torch.tensor(1.0))[torch.tensor([0])].device.type == "cuda"
    here.copy_(there)
    assert here.device.type == "cpu" and float(here.sum()) == 9 == there.sum().item()
    weight = torch.nn.Parameter(there)
    (weight * 3).sum().backward()
    assert weight.grad.device.type == "cuda" and weight.grad.cpu().numpy().tolist() == [[3.0] * 3] * 3


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_answer(kind: str, tmp_path: Path, tiny_backbone: Path) -> None:
    made = competitions.KINDS[kind](tmp_path / "data")
    flags = [
        *"--epochs 1 --batch-size 8 --precision fp32 --set lora.dropout=0 --set data.workers=0".split(),
        *made.flags,
    ]
    found = []
    for device in (nullcontext(), pretended_gpu.pretended_gpu(H100)):
        run, file = tmp_path / f"run{len(found)}", tmp_path / f"predictions{len(found)}.csv"
        with device:
            words = ["--data", str(made.root), "--output"]
            assert train.main([*words, str(run), "--backbone", str(tiny_backbone), *flags]) == 0
            assert inference.main([*words, str(file), "--model", str(run), "--precision", "fp32"]) == 0
        found.append(
            (record(run)["device"], history(run)[-1]["train_loss"], np.load(run / "val_probs.npy"), file)
        )
    (cpu, cpu_loss, cpu_values, cpu_file), (gpu, loss, values, file) = found
    assert gpu == pretended_gpu.NAME != cpu
    assert loss == pytest.approx(cpu_loss, rel=1e-4)
    np.testing.assert_allclose(values, cpu_values, atol=1e-4)
    pd.testing.assert_frame_equal(pd.read_csv(file), pd.read_csv(cpu_file), atol=1e-3)


@pytest.mark.parametrize("name", RUNS)
def test_fp16_with_everything_that_changes_a_step(
    name: str, t4: None, competition: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    """A T4 has no bf16: fp16 and a scaler. Stopped and resumed, predicted with other views."""
    run, flags = tmp_path / "run", ["--epochs", "3", "--set", "data.workers=0", *RUNS[name].split()]
    start = arguments(competition, tiny_backbone, run, *flags)
    with pytest.raises(Interrupted):
        train.main([*start, "--max-minutes", "0"])
    assert train.main([*start, "--resume"]) == 0
    assert record(run)["precision"] == "fp16"
    losses = [line["val_loss"] for line in history(run)]
    assert len(losses) == 3 and np.isfinite(losses).all()
    file = tmp_path / "predictions.csv"
    words = ["--model", str(run), "--data", str(competition), "--output", str(file), "--tta", "flip"]
    assert inference.main(words) == 0
    assert len(pd.read_csv(file)) == 5


def test_dry_run_folds_suspects_attention(
    h100: None, competition: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    start = arguments(competition, tiny_backbone, run)
    assert train.main([*start, "--dry-run"]) == 0
    assert train.main([*start, "--folds", "2"]) == 0
    file = tmp_path / "predictions.csv"
    words = ["--model", str(run), "--data", str(competition), "--output", str(file)]
    assert inference.main(words) == 0
    assert record(run / "fold-1")["precision"] == "bf16"
    assert suspects.main(["--model", str(run), "--data", str(competition)]) == 0
    assert attention.main(["--runs", str(run / "fold-1")]) == 0


def test_a_model_is_freed_before_the_next_one_is_loaded(
    h100: pretended_gpu.Gpu, two_folds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the models of folds and blends would add up on the GPU, and those of `--tta auto` too."""
    folds = shutil.copytree(two_folds / "folds", tmp_path / "folds")
    held, real = [], classification.rebuild

    def watched(*args: object) -> object:
        held.append(h100.held)
        return real(*args)

    monkeypatch.setattr(classification, "rebuild", watched)
    gc.collect()
    gc.disable()  # what it would free depends on chance
    try:
        words = ["--model", str(folds), "--data", str(two_folds / "data")]
        assert inference.main([*words, "--output", str(tmp_path / "file.csv"), "--tta", "auto"]) == 0
        assert suspects.main(words) == 0
    finally:
        gc.enable()
    assert len(held) >= 6 and max(held) == 0  # of each fold: the views, the test images, suspects


def test_a_plan_measures_each_image_size_alone_on_the_gpu(
    h100: pretended_gpu.Gpu,
    competition: Path,
    tiny_backbone: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else the models of larger sizes would leave less memory for the next one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(deadline, "propose", lambda limits, paces: list(paces) and None)
    config = AutoConfig.from_pretrained(tiny_backbone)
    config.drop_path_rate, config.image_size = 0.0, 64
    AutoModelForImageClassification.from_config(config).save_pretrained(tmp_path / "backbone")
    held, real = [], classification.build

    def watched(*args: object) -> object:
        held.append(h100.held)
        return real(*args)

    monkeypatch.setattr(classification, "build", watched)
    words = ["--plan", "2h", "--data", str(competition), "--set", "data.workers=0"]
    assert train.main([*words, "--backbone", str(tmp_path / "backbone")]) == 0
    assert len(held) > 3 and max(held) == 0


def test_questions(h100: None, tiny_backbone: Path, tmp_path: Path) -> None:
    data = test_vqa.make_questions(tmp_path / "data")
    path = test_vqa.recipe(tmp_path, tiny_backbone, precision="auto", epochs="1")
    assert train.main(test_vqa.arguments(tmp_path, path, tmp_path / "run")) == 0
    file = tmp_path / "answers.csv"
    assert inference.main(["--model", str(tmp_path / "run"), "--data", str(data), "--output", str(file)]) == 0
    assert pd.read_csv(file, dtype=str).shape[0] == 15


@pytest.mark.slow
def test_two_processes_with_a_gpu_each(competition: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    """Each process has its own card, and tensors are exchanged from there; also with sharded weights."""
    full = ["--lora-rank", "0", "--lr", "0.001", "--set", "gradient_sum=reduced", "--precision", "fp32"]
    runs = {"lora": (), "full": full, "parts": [*full, "--set", "shard=true"]}
    commands = [
        ["train", *arguments(competition, tiny_backbone, tmp_path / name, "--set", "data.workers=0", *more)]
        for name, more in runs.items()
    ]
    file = tmp_path / "predictions.csv"
    words = ["--model", str(tmp_path / "lora"), "--data", str(competition), "--output", str(file)]
    process = torchrun(
        2, "tests/several.py", json.dumps([*commands, ["inference", *words]]), PRETENDED_GPU="1"
    )
    out, err = process.communicate()
    assert process.returncode == 0, out + err
    for name, precision in (("lora", "bf16"), ("full", "fp32"), ("parts", "fp32")):
        found = record(tmp_path / name)
        assert (found["processes"], found["device"]) == (2, pretended_gpu.NAME)
        assert found["precision"] == precision
    assert len(pd.read_csv(file)) == 5
    one, two = (load_file(tmp_path / name / "model_beit/model.safetensors") for name in ("full", "parts"))
    assert one.keys() == two.keys()
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-3, atol=1e-4, msg=name)


def test_a_gpu_with_memory_for_more_images_at_a_time_says_so(
    h100: None, competition: Path, tiny_backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = ["--accumulation-steps", "4", "--dry-run"]
    for size, says in (("2", True), ("auto", False)):
        train.main([*arguments(competition, tiny_backbone, tmp_path / "run"), *words, "--batch-size", size])
        assert ("images fit in memory at a time" in capsys.readouterr().out) is says


@pytest.mark.parametrize("name", [*KINDS, *RUNS])
def test_training_and_prediction_do_not_wait_for_the_gpu_in_every_batch(
    name: str,
    h100: pretended_gpu.Gpu,
    competition: Path,
    tiny_backbone: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else the GPU has nothing to do until the next kernels come. The first batch may: what is copied once is
    no harm.
    """
    data, flags = competition, RUNS.get(name, "").split()
    if name in KINDS:
        made = competitions.KINDS[name](tmp_path / "made")
        data, flags = made.root, made.flags
    waits: dict[object, list[list[str]]] = defaultdict(list)
    for place in (_Loop.pass_micro_batch, _Loop.optimizer_step, ClassificationTask.logits):

        def watched(*args: object, real: Callable[..., object] = place) -> object:
            before = len(h100.waits)
            result = real(*args)
            waits[real].append(h100.waits[before:])
            return result

        owner = ClassificationTask if place is ClassificationTask.logits else _Loop
        monkeypatch.setattr(owner, place.__name__, watched)
    train.main([*arguments(data, tiny_backbone, tmp_path / "run"), *flags])
    assert {place for calls in waits.values() for call in calls[1:] for place in call} == set()


@pytest.mark.parametrize("views", ["", "crops,scale"])
def test_prediction_does_not_wait_for_the_gpu_in_every_batch(
    views: str, h100: pretended_gpu.Gpu, finished_run: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(finished_run / "run", tmp_path / "run")
    words = ["--model", str(run), "--data", str(finished_run / "data"), "--tta", views]
    waits = []
    for size in ("1", "5"):
        h100.waits.clear()
        inference.main([*words, "--output", str(tmp_path / f"{size}.csv"), "--batch-size", size])
        waits.append(list(h100.waits))
    assert waits[0] == waits[1] != []  # the weights are copied once


def test_what_is_moved_and_brought_back_waits_for_nothing(h100: pretended_gpu.Gpu) -> None:
    compute, large = Compute(torch.device("cuda"), "bf16"), torch.arange(40_000.0)
    large.to("cuda", non_blocking=True)
    assert len(h100.waits) == 1  # from memory that is not pinned
    h100.waits.clear()
    moved = compute.move({"features": large, "row": torch.arange(3), "none": torch.zeros(0, 3)})
    assert all(tensor.device.type == "cuda" for tensor in moved.values())
    assert compute.move(moved)["features"] is moved["features"]
    results = (moved["features"][start : start + 10_000].bfloat16() for start in range(0, 40_000, 10_000))
    features = _together(results, 40_000, "features", compute)
    assert h100.waits == []
    assert torch.equal(features, large.bfloat16().float())


def overflowing(folder: Path) -> None:
    """Change the weights of the model in `folder`: hidden numbers overflow in fp16, its outputs stay."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    for name, weight in weights.items():
        if "attention" not in name and name.endswith("dense.weight"):
            weight *= 3e5 if "intermediate" in name else 1 / 3e5
    save_file(weights, path, metadata={"format": "pt"})


def test_overflow_in_fp16_is_refused_and_suspects_are_computed_in_fp32(
    t4: None, two_folds: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folds = shutil.copytree(two_folds / "folds", tmp_path / "folds")
    for fold in ("fold-1", "fold-2"):
        overflowing(folds / fold / "model_beit")
    words = ["--model", str(folds), "--data", str(two_folds / "data")]
    predict = [*words, "--output", str(tmp_path / "file.csv")]
    with pytest.raises(UserError, match=r"fold-1 is not a number in 5 of 5 rows; fp16 .* --precision fp32"):
        inference.main(predict)
    # As in a kernel whose time is up: rows that were not reached hold the class frequencies
    run = load_run(folds / "fold-1")
    rows = list(apply.read_for(run, two_folds / "data").test)
    with pytest.raises(UserError, match="in 2 of 2 rows"):
        apply.compute_rows(run, run.target, rows, 2, "auto", go_on=lambda done: done < 2)
    assert inference.main([*predict, "--precision", "fp32"]) == 0
    assert suspects.main(words) == 0
    assert "fold 2: fp16 overflows, so it is computed again in fp32" in capsys.readouterr().out
    assert np.isfinite(pd.read_csv(folds / "disagreement.csv")["disagreement"]).all()


def test_features_that_overflow_in_fp16_are_refused(
    t4: None, competition: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    backbone = shutil.copytree(tiny_backbone, tmp_path / "backbone")
    overflowing(backbone)
    with pytest.raises(UserError, match=r"--floor: .* they are not a number .* --precision fp32"):
        train.main([*arguments(competition, backbone, tmp_path / "run"), "--floor"])


def test_a_gpu_that_is_too_small_for_prediction_says_what_to_do(
    h100: None, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--model", str(finished_run / "run"), "--data", str(finished_run / "data"), "--tta", "crops"]
    words += ["--output", str(tmp_path / "file.csv")]

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    for place, size, says in (
        ("pipeline.folds.views.make_views", "4", r"run with 4 rows at a time; use --batch-size 2 "),
        ("pipeline.folds.views.make_views", "1", r"run with 1 row at a time; end other programs"),
        ("pipeline.models.half_weights.use_half_weights", "4", r"the model of .*run; end other programs"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, full)
            with pytest.raises(UserError, match=f"out of memory on cuda for .*{says}.*Tried to allocate"):
                inference.main([*words, "--batch-size", size])


def test_gradients_that_overflow_in_every_step_end_the_run(
    t4: None, competition: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step is skipped and the loss stays finite, so nothing else would show that nothing is learnt."""
    real = ClassificationTask.loss

    def loss(self: ClassificationTask, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
        value, logits = real(self, batch)
        return value + (logits.float() * 0).sum().sqrt(), logits

    monkeypatch.setattr(ClassificationTask, "loss", loss)
    words = arguments(competition, tiny_backbone, tmp_path / "run", "--epochs", "40")
    with pytest.raises(UserError, match=r"after step 0 overflow in fp16.*--resume changed --precision fp32"):
        train.main([*words, "--lora-rank", "0"])


def test_validation_and_features_that_do_not_fit_are_computed_in_smaller_batches(
    h100: None,
    competition: Path,
    tiny_backbone: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """A frozen backbone stores nothing for a backward pass, so twice the images need twice the memory."""
    sizes, real = [], ClassificationTask.logits

    def small(self: ClassificationTask, batch: dict) -> torch.Tensor:
        sizes.append(len(batch["row"]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, batch)

    monkeypatch.setattr(ClassificationTask, "logits", small)
    words = arguments(competition, tiny_backbone, tmp_path / "run", "--set", "checkpoint.keep=soup")
    assert train.main([*words, "--floor"]) == 0
    printed = capsys.readouterr()
    told = printed.out + printed.err
    assert "out of memory: computing the features of 2 images at a time" in told
    assert told.count("out of memory: validating with 2 rows at a time") == 1
    assert len(history(tmp_path / "run")) == 2 and max(sizes[-6:]) == 2


def test_a_kernel_on_a_t4_predicts_as_on_a_cpu_and_waits_in_no_batch(two_folds: Path, tmp_path: Path) -> None:
    made = make_bundle(
        gather([two_folds / "folds"]),
        tmp_path / "dataset",
        CompetitionFacts(),
        options=Options(("crops",)),
    )
    carried = open_bundle(made.folder)
    competition = apply.read_for(carried.team.first, two_folds / "data")
    expected = predict_carried(carried, competition, 2, "fp32", math.inf, 1).predictions
    waits = []
    for size in (1, 5):
        with pretended_gpu.pretended_gpu(T4) as gpu:
            found = predict_carried(carried, competition, size, "auto", math.inf, 1).predictions
        waits.append(gpu.waits)
        np.testing.assert_allclose(found.values, expected.values, atol=2e-3)
    assert waits[0] == waits[1]


def test_a_kernel_whose_batch_does_not_fit_goes_on_with_a_smaller_one(
    two_folds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    made = make_bundle(gather([two_folds / "folds"]), tmp_path / "dataset", CompetitionFacts())
    carried = open_bundle(made.folder)
    competition = apply.read_for(carried.team.first, two_folds / "data")
    expected = predict_carried(carried, competition, 2, "fp32", math.inf, 1).predictions
    real = ImageClassifier.logits

    def small(self: ImageClassifier, batch: dict) -> torch.Tensor:
        if len(batch["row"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, batch)

    monkeypatch.setattr(ImageClassifier, "logits", small)
    capsys.readouterr()
    with pretended_gpu.pretended_gpu(T4):
        found = predict_carried(carried, competition, 32, "fp32", math.inf, 1).predictions
    assert capsys.readouterr().out.count("WARNING: continuing with BATCH_SIZE 2") == 1
    np.testing.assert_allclose(found.values, expected.values, atol=1e-5)
