"""The head alone: its features are computed once where that gives what training without it gives, and one
line says where it does not.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_resume import interrupt_after
from torch._subclasses import FakeTensor

import train
from pipeline.commands import fitting, probing
from pipeline.errors import Interrupted
from pipeline.tasks.image_classifier import ImageClassifier
from pipeline.training.features import Features

WEIGHTS = "model_beit/model.safetensors"
STILL = ["--set", "augmentation.random_resized_crop=false", "--set", "augmentation.horizontal_flip=false"]
SAME = ("metrics.jsonl", "val_predictions.csv", "val_probs.npy", WEIGHTS)


@pytest.fixture(scope="module")
def steady_backbone(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path) -> Path:
    """The tiny backbone without stochastic depth: what it makes of an image is the same in every step."""
    folder = tmp_path_factory.mktemp("steady") / "model_beit"
    shutil.copytree(tiny_backbone, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"drop_path_rate": 0.0}))
    return folder


def flags(root: Path, backbone: Path, output: Path, *more: str, precision: str = "fp32") -> list[str]:
    """18 rows train in groups of 4 micro-batches of 2, the last group smaller."""
    recipe = [
        *"--lora-rank 0 --set head_only=true --lr 0.01".split(),
        *("--precision", precision, "--set", "data.val_fraction=0.25"),
    ]
    recipe += ["--epochs", "2", "--batch-size", "2", "--accumulation-steps", "4", *STILL]
    return ["--data", str(root), "--backbone", str(backbone), "--output", str(output), *recipe, *more]


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if "computed once" in line]


def record(run: Path) -> dict:
    return json.loads((run / "run.json").read_text())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, steady_backbone: Path) -> Path:
    """A competition in data/, the run on features computed once in once/, and the one that runs the whole
    model in whole/.

    seen.json: how many images each call of the first run's backbone had.
    """
    from conftest import make_competition

    root = make_competition(tmp_path_factory.mktemp("features") / "data").parent
    seen, original = [], ImageClassifier.forward

    def forward(self: ImageClassifier, model: object, pixel_values: torch.Tensor) -> torch.Tensor:
        seen.append(0 if isinstance(pixel_values, FakeTensor) else len(pixel_values))
        return original(self, model, pixel_values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageClassifier, "forward", forward)
        train.main(flags(root / "data", steady_backbone, root / "once"))
        (root / "seen.json").write_text(json.dumps(seen))
        patch.setattr(fitting, "features_once", lambda *_: (None, ""))
        train.main(flags(root / "data", steady_backbone, root / "whole"))
    return root


def test_the_head_on_features_computed_once_is_the_head_of_the_whole_model(trained: Path) -> None:
    """To the bit: a row's features do not depend on which others stand in its micro-batch."""
    assert record(trained / "once")["features"] is True and "features" not in record(trained / "whole")
    for name in SAME:
        assert (trained / "once" / name).read_bytes() == (trained / "whole" / name).read_bytes(), name


def test_class_balanced_epochs_use_the_features_of_a_row_again(
    trained: Path, steady_backbone: Path, tmp_path: Path, monkeypatch
) -> None:
    """Two red images for eight blue and eight green ones."""
    data = shutil.copytree(trained / "data", tmp_path / "data")
    for path in sorted((data / "train" / "red").iterdir())[2:]:
        path.unlink()
    balanced = ["--set", "data.sampling=classes"]
    train.main(flags(data, steady_backbone, tmp_path / "once", *balanced))
    monkeypatch.setattr(fitting, "features_once", lambda *_: (None, ""))
    train.main(flags(data, steady_backbone, tmp_path / "whole", *balanced))
    assert record(tmp_path / "once")["features"] is True
    for name in SAME:
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_the_backbone_is_run_once_for_each_image(trained: Path) -> None:
    """24 images in 2 epochs; beside them micro-batches that are timed (twice, of training and of prediction)
    and two images tried thrice.
    """
    assert sum(json.loads((trained / "seen.json").read_text())) <= 24 + 4 * 2 + 3 * 2


@pytest.mark.parametrize(
    "micro_batch", [pytest.param(2, marks=pytest.mark.slow), 11, pytest.param(15, marks=pytest.mark.slow)]
)
def test_interrupted_and_resumed_is_bit_identical(
    trained: Path, steady_backbone: Path, tmp_path: Path, monkeypatch, micro_batch
) -> None:
    # 9 micro-batches of features and 2 of validation, beside what is tried before
    interrupt_after(monkeypatch, 14 + micro_batch)
    with pytest.raises(Interrupted):
        train.main(flags(trained / "data", steady_backbone, tmp_path / "run"))
    monkeypatch.undo()
    train.main(["--data", str(trained / "data"), "--output", str(tmp_path / "run"), "--resume"])
    assert record(tmp_path / "run")["features"] is True
    for name in SAME:
        assert (tmp_path / "run" / name).read_bytes() == (trained / "once" / name).read_bytes(), name


def test_stopped_while_features_are_computed(
    trained: Path, steady_backbone: Path, tmp_path: Path, capsys
) -> None:
    with pytest.raises(Interrupted, match="row 0 of 18, step 0"):
        train.main(flags(trained / "data", steady_backbone, tmp_path / "run", "--max-minutes", "0"))
    assert train.main(["--data", str(trained / "data"), "--output", str(tmp_path / "run"), "--resume"]) == 0
    assert (tmp_path / "run" / WEIGHTS).read_bytes() == (trained / "once" / WEIGHTS).read_bytes()


@pytest.mark.slow
def test_half_precision_is_equal_to_rounding(
    trained: Path, steady_backbone: Path, tmp_path: Path, monkeypatch
) -> None:
    words = flags(trained / "data", steady_backbone, tmp_path / "once", precision="bf16")
    train.main(words)
    monkeypatch.setattr(fitting, "features_once", lambda *_: (None, ""))
    train.main([*words, "--output", str(tmp_path / "whole")])
    once, whole = (load_file(tmp_path / name / WEIGHTS) for name in ("once", "whole"))
    torch.testing.assert_close(once["classifier.weight"], whole["classifier.weight"], rtol=1e-2, atol=1e-4)
    assert record(tmp_path / "once")["features"] is True


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--set", "augmentation.horizontal_flip=true"], "horizontal_flip"),
        (["--set", "augmentation.noise=0.1"], "noise"),
        (["--set", "lora.also_train=[norms]"], "norms"),
        (["--backbone", "TINY"], "drop path"),
    ],
)
def test_where_features_change_the_whole_model_is_run_and_one_line_says_why(
    trained: Path,
    steady_backbone: Path,
    tiny_backbone: Path,
    tmp_path: Path,
    capsys,
    more: list[str],
    reason: str,
) -> None:
    more = [str(tiny_backbone) if word == "TINY" else word for word in more]
    train.main([*flags(trained / "data", steady_backbone, tmp_path / "run"), *more, "--dry-run"])
    [line] = said(capsys)
    assert reason in line and "each step runs the whole model" in line


def test_too_many_features_for_the_memory(
    trained: Path, steady_backbone: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    """24 images of 32 numbers are 3,072 bytes."""
    monkeypatch.setattr(probing, "MOST_BYTES", 3071)
    train.main([*flags(trained / "data", steady_backbone, tmp_path / "run"), "--dry-run"])
    [line] = said(capsys)
    assert "3.1 kB" in line and "whole model" in line
    monkeypatch.setattr(probing, "MOST_BYTES", 3072)
    train.main([*flags(trained / "data", steady_backbone, tmp_path / "run"), "--dry-run"])
    assert "24 images" in said(capsys)[0]


def test_where_an_adapter_is_trained_nothing_is_said(
    trained: Path, steady_backbone: Path, tmp_path: Path, capsys
) -> None:
    train.main(
        [
            *("--data", str(trained / "data"), "--backbone", str(steady_backbone)),
            *("--output", str(tmp_path / "run")),
            *STILL,
            "--dry-run",
        ]
    )
    assert said(capsys) == []


@pytest.mark.slow
def test_memory_that_runs_out_while_features_are_computed(
    trained: Path, steady_backbone: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    """Half as many images at a time, as in training; the steps stay."""
    sizes, original = [], Features.ready

    def ready(self: Features, batch_size: int, *more: object) -> bool:
        sizes.append(batch_size)
        if len(sizes) == 1:
            raise torch.OutOfMemoryError("simulated")
        return original(self, batch_size, *more)

    monkeypatch.setattr(Features, "ready", ready)
    train.main(flags(trained / "data", steady_backbone, tmp_path / "run"))
    assert sizes == [2, 1] and record(tmp_path / "run")["schedule"] == record(trained / "once")["schedule"]
    once, halved = (
        load_file(run / WEIGHTS)["classifier.weight"] for run in (trained / "once", tmp_path / "run")
    )
    torch.testing.assert_close(once, halved, rtol=1e-4, atol=1e-6)
