"""Images that vanish while a run trains (a drive unmounted): it stops with its state kept, and goes on bit
for bit when they are back.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import make_competition
from test_resume import assert_same, flags, resume
from test_vqa import arguments, make_questions, recipe

import train
from pipeline.errors import EXIT_USER, run_command
from pipeline.training import compute, validating


def lose_at_batch(monkeypatch: pytest.MonkeyPatch, number: int, folder: Path) -> None:
    """`folder` is moved away as soon as that many batches have been computed."""
    seen, original = iter(range(10_000)), compute.Compute.move

    def move(self: compute.Compute, batch: compute.Batch) -> compute.Batch:
        if "label" in batch and next(seen) == number:
            os.rename(folder, folder.with_name("away"))
        return original(self, batch)

    monkeypatch.setattr(compute.Compute, "move", move)


def lose_before_validation(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    original = validating.evaluate

    def evaluate(*args: object) -> object:
        os.rename(folder, folder.with_name("away"))
        return original(*args)

    monkeypatch.setattr(validating, "evaluate", evaluate)


@pytest.mark.parametrize("moment", [2, 8, "validation"])
def test_training_stops_with_its_state_and_goes_on_when_the_images_are_back(
    whole: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch, capsys, moment: int | str
) -> None:
    data, output = whole / "data", tmp_path / "run"
    try:
        with monkeypatch.context() as patched:
            if moment == "validation":
                lose_before_validation(patched, data / "train")
            else:
                lose_at_batch(patched, moment, data / "train")
            assert run_command(lambda: train.main(flags(data, tiny_backbone, output))) == EXIT_USER
    finally:
        os.rename(data / "away", data / "train")
    told = capsys.readouterr().err
    assert f"{data / 'train'}{os.sep}" in told
    assert "no such file" in told
    assert "--resume" in told
    assert "Traceback" not in told
    assert not (output / "run.json").exists()
    assert resume(data, output) == 0
    assert "resuming in epoch" in capsys.readouterr().out
    assert_same(output, whole / "run")


def test_an_image_that_was_agreed_to_be_bad_is_no_lost_one(
    whole: Path, tiny_backbone: Path, tmp_path: Path, capsys
) -> None:
    data = make_competition(tmp_path / "data")
    (data / "train" / "red" / "red_1.png").write_text("no image")
    arguments = [
        *flags(data, tiny_backbone, tmp_path / "run"),
        *"--set data.skip_bad_images=true --epochs 1".split(),
    ]
    assert train.main(arguments) == 0
    assert "skipped 1 images" in capsys.readouterr().out


def test_questions_stop_too(tiny_backbone: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    make_questions(tmp_path / "data")
    mine = recipe(tmp_path, tiny_backbone, epochs="2", augmentation="{random_resized_crop: true}")
    lose_at_batch(monkeypatch, 9, tmp_path / "data" / "train2014")
    assert run_command(lambda: train.main(arguments(tmp_path, mine, tmp_path / "run"))) == EXIT_USER
    told = capsys.readouterr().err
    assert "COCO_train2014_" in told and "no such file" in told and "--resume" in told
    os.rename(tmp_path / "data" / "away", tmp_path / "data" / "train2014")
    monkeypatch.undo()
    assert train.main(arguments(tmp_path, mine, tmp_path / "run", "--resume")) == 0
