"""A plan for a deadline: the rule on given seconds, and the file and the command that come out, which run."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import pytest

import train
from pipeline.commands import planning
from pipeline.commands.planning import seconds_of
from pipeline.config import load_recipe
from pipeline.errors import UserError
from pipeline.files import read_json
from pipeline.training import deadline
from pipeline.training.deadline import Limits, Pace, Rows, propose, propose_head, smaller_sizes

ROWS = Rows(train=800, val=200, a_step=40)  # 20 steps an epoch: 150 are 8 epochs, 1,000 are 50
OWN = Pace(224, train=0.1, predict=0.02, start=10)  # an epoch: 80 + 4 s
HALF = Pace(112, train=0.025, predict=0.005, start=10)  # 21 s


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("9h", 32400), ("90m", 5400), ("2h30m", 9000), ("1.5h", 5400), ("45min", 2700), (" 9H ", 32400)],
)
def test_times(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "9", "h", "9s", "-1h", "0h", "1h 30m", "m30", "nine hours"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(UserError, match="9h, 90m or 2h30m"):
        seconds_of(text)


@pytest.mark.parametrize(
    ("seconds", "size", "epochs", "folds", "expected"),
    [
        (853, 224, 8, None, 682),  # 8 epochs and the start are 682 s, four fifths of 852.5
        (852, 112, 31, None, 661),  # which do not fit: smaller images, and as many epochs of 21 s as do
        (3000, 224, 28, None, 2362),  # more time, more epochs
        (5263, 224, 50, None, 4210),  # 1,000 steps: enough
        (20000, 224, 50, None, 4210),  # five such runs would be 21,050 s
        (26313, 224, 50, 5, 21050),  # now they fit
        (900000, 224, 50, 5, 21050),  # and more than enough is not planned
    ],
)
def test_the_rule(seconds: float, size: int, epochs: int, folds: int | None, expected: float) -> None:
    found = propose(Limits(seconds, ROWS), [OWN, HALF])
    assert (found.pace.image_size, found.epochs, found.folds, found.seconds) == (
        size,
        epochs,
        folds,
        pytest.approx(expected),
    )


def test_many_rows_have_epochs_and_few_have_steps() -> None:
    many = Rows(train=80_000, val=20_000, a_step=40)
    assert (many.epochs(150, 3, None), many.epochs(1000, 10, None)) == (3, 10)
    few = Rows(train=30, val=10, a_step=40)
    assert (few.epochs(150, 3, None), few.steps(150, None)) == (150, 150)


def test_what_was_asked_for_is_kept() -> None:
    found = propose(Limits(90_000, ROWS, epochs=3), [OWN])
    assert (found.epochs, found.folds, found.seconds) == (3, 5, pytest.approx(5 * (10 + 3 * 84)))
    # 3 runs of 667 and 333 rows, 17 steps an epoch: 9 epochs at least
    found = propose(Limits(5000, ROWS, folds=3), [OWN, HALF])
    assert (found.pace.image_size, found.folds) == (224, 3) and found.seconds <= 4000
    assert propose(Limits(90_000, ROWS, may_fold=False), [OWN]).folds is None


def test_too_little_time_is_the_head_alone_or_nothing() -> None:
    assert propose(Limits(200, ROWS), [OWN, HALF]) is None
    found = propose_head(Limits(40, ROWS), [OWN, HALF])  # 1,000 images once: 20 s and 5 s, and 10 s of start
    assert (found.pace.image_size, found.head_alone, found.seconds) == (224, True, 30)
    found = propose_head(Limits(200, ROWS), [OWN, HALF])  # five times 30 s in 160 s
    assert (found.pace.image_size, found.folds, found.seconds) == (224, 5, 150)
    assert propose_head(Limits(20, ROWS), [OWN, HALF]).pace.image_size == 112
    assert propose_head(Limits(18, ROWS), [OWN, HALF]) is None


def test_sizes_are_whole_patches() -> None:
    assert smaller_sizes(518, 14) == [518, 392, 252, 196, 126]
    assert smaller_sizes(384, 16) == [384, 288, 192, 144, 96]
    assert smaller_sizes(32, 16) == [32]


def plan(competition: Path, backbone: Path, *more: str) -> int:
    words = [
        *("--plan", "2h", "--data", str(competition), "--backbone", str(backbone), "--precision", "fp32"),
        *("--set", "data.val_fraction=0.25"),
    ]
    return train.main([*words, *more])


def test_the_plan_is_a_file_and_a_command_that_runs(
    tmp_path: Path, competition: Path, tiny_backbone: Path, capsys, monkeypatch
) -> None:
    """In a folder with a space and a quote in its name."""
    data = tmp_path / "bob's birds"
    competition.rename(data)
    monkeypatch.chdir(tmp_path)
    assert plan(data, tiny_backbone, "--epochs", "1", "--floor", "--set", "schedule.min_steps=700") == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    start = next(number for number, line in enumerate(lines) if "plan for 2h" in line)
    assert len(lines) - start == 6  # five lines, and the command
    command = shlex.split(lines[-1])
    assert command[:4] == ["python", "train.py", "--recipe", "plan-bob's birds.yaml"]
    assert command[4:] == [
        *("--data", str(data), "--folds", "5", "--max-minutes", "120"),
        *("--output", "runs/plan-bob's birds", "--floor"),
    ]
    recipe = load_recipe("plan-bob's birds.yaml")
    assert (recipe.epochs, recipe.image_size, recipe.effective_batch_size, recipe.data.val_fraction) == (
        1,
        32,
        32,
        0.25,
    )
    assert recipe.schedule.min_steps == 0  # which would be more epochs than were planned
    assert train.main([*command[2:], "--dry-run"]) == 0
    again = Path("plan-bob's birds.yaml").read_text()
    assert plan(data, tiny_backbone, "--epochs", "1") == 0
    assert Path("plan-bob's birds.yaml").read_text() == again and Path("plan-bob's birds-2.yaml").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["--epochs", "2", "--image-size", "24", "--batch-size", "2.0"],
        ["--set", "epochs=2", "--set", "image_size=24", "--set", "batch_size=2"],
    ],
    ids=["flags", "keys"],
)
def test_what_is_given_stays_whatever_the_spelling(
    competition: Path, tiny_backbone: Path, tmp_path: Path, capsys, monkeypatch, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert plan(competition, tiny_backbone, *words) == 0
    recipe = load_recipe("plan-data.yaml")
    assert (recipe.epochs, recipe.image_size, recipe.batch_size) == (2, 24, 2)
    assert "24 px (as given)" in capsys.readouterr().out


@pytest.mark.slow
def test_a_plan_with_folds_is_trained(
    tmp_path: Path, competition: Path, tiny_backbone: Path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert plan(competition, tiny_backbone, "--epochs", "1", "--folds", "2") == 0
    command = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert train.main(command[2:]) == 0
    assert read_json(tmp_path / "runs/plan-data/run.json")["folds"]["count"] == 2


def test_too_little_time_says_how_much_is_needed(
    competition: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch
) -> None:
    """The tiny backbone has drop path: its features cannot be computed once, so the head alone is no way
    out.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(planning, "seconds_of", lambda text: 1e-6)
    with pytest.raises(UserError, match=r"--plan 2h: too little for 24 rows .* need --plan \d+m"):
        plan(competition, tiny_backbone)
    assert [path for path in os.listdir() if path.endswith(".yaml")] == []


def test_the_head_alone_where_more_does_not_fit(
    competition: Path, tiny_backbone: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    steady = tmp_path / "steady"
    shutil.copytree(tiny_backbone, steady)
    config = json.loads((steady / "config.json").read_text())
    (steady / "config.json").write_text(json.dumps(config | {"drop_path_rate": 0.0}))
    monkeypatch.chdir(tmp_path)
    # As where no steps fit
    monkeypatch.setattr(deadline, "propose", lambda limits, paces: list(paces) and None)
    assert plan(competition, steady) == 0
    command = shlex.split(capsys.readouterr().out.splitlines()[-1])
    recipe = load_recipe("plan-data.yaml")
    assert (recipe.head_only, recipe.lora.rank, recipe.augmentation.in_use, recipe.epochs) == (
        True,
        0,
        [],
        30,
    )
    train.main([*command[2:], "--dry-run"])
    assert "computed once" in capsys.readouterr().out


def test_flags_that_make_no_sense_beside_a_plan(competition: Path, tiny_backbone: Path) -> None:
    with pytest.raises(UserError) as caught:
        plan(competition, tiny_backbone, "--resume", "--dry-run", "--max-minutes", "0", "--folds", "1")
    assert re.findall(r"--resume|--dry-run|--max-minutes|--folds 1", str(caught.value)) == [
        "--resume",
        "--dry-run",
        "--max-minutes",
        "--folds 1",
    ]
