"""Killed, interrupted, resumed: what comes out is bit-identical to the run that was left alone."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from pipeline.errors import Interrupted, UserError, run_command
from pipeline.training import compute
from pipeline.training.checkpoint import StateStore

ROOT = Path(__file__).resolve().parents[1]
SAME = ("metrics.jsonl", "val_predictions.csv", "val_probs.npy", "model_lora/adapter_model.safetensors", "model_beit/model.safetensors")


def flags(competition: Path, backbone: Path, output: Path) -> list[str]:
    """Augmentation, accumulation, dropout and stochastic depth all on."""
    recipe = ["--epochs", "3", "--batch-size", "2", "--accumulation-steps", "3", "--lr", "0.01", "--precision", "fp32"]
    recipe += ["--set", "data.val_fraction=0.25", "--set", "augmentation.noise=0.05"]
    return ["--data", str(competition), "--backbone", str(backbone), "--output", str(output), *recipe]


def resume(competition: Path, output: Path) -> int:
    return train.main(["--data", str(competition), "--output", str(output), "--resume"])


def assert_same(a: Path, b: Path) -> None:
    for name in SAME:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path) -> Path:
    """A competition and the uninterrupted run on it."""
    from conftest import make_competition

    root = tmp_path_factory.mktemp("whole")
    make_competition(root / "data")
    train.main(flags(root / "data", tiny_backbone, root / "run"))
    return root


def interrupt_after(monkeypatch: pytest.MonkeyPatch, micro_batches: int) -> None:
    """A SIGTERM during the given micro-batch of the process."""
    seen = iter(range(10_000))
    original = compute.Compute.move

    def move(self: compute.Compute, batch: compute.Batch) -> compute.Batch:
        if "label" in batch and next(seen) == micro_batches:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch)

    monkeypatch.setattr(compute.Compute, "move", move)


@pytest.mark.parametrize("micro_batch", [2, 5, 9, 17, 26])  # inside a group, between groups, in another epoch
def test_interrupted_anywhere_and_resumed_is_bit_identical(
    whole: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch, capsys, micro_batch: int
) -> None:
    output = tmp_path / "run"
    with monkeypatch.context() as patched:
        interrupt_after(patched, micro_batch)
        with pytest.raises(Interrupted, match=r"SIGTERM.*the state is saved.*--resume"):
            train.main(flags(whole / "data", tiny_backbone, output))
    assert not (output / "run.json").exists()
    assert resume(whole / "data", output) == 0
    assert "resuming in epoch" in capsys.readouterr().out
    assert_same(output, whole / "run")


def test_interrupted_twice_with_other_workers_is_bit_identical(whole: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch) -> None:
    """Workers only decode: what a row yields depends on (seed, epoch, row) alone, so their number may differ between the parts of a run."""
    from pipeline.tasks import classification

    output = tmp_path / "run"
    with monkeypatch.context() as patched:
        interrupt_after(patched, 7)
        with pytest.raises(Interrupted):
            train.main(flags(whole / "data", tiny_backbone, output))
    monkeypatch.setattr(classification, "resolve_workers", lambda *_: 2)
    with monkeypatch.context() as patched:
        interrupt_after(patched, 6)
        with pytest.raises(Interrupted):
            resume(whole / "data", output)
    resume(whole / "data", output)
    assert_same(output, whole / "run")


def test_max_minutes_saves_and_exits_130(whole: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    with pytest.raises(Interrupted, match="--max-minutes"):
        train.main([*flags(whole / "data", tiny_backbone, output), "--max-minutes", "0"])
    state, _ = StateStore(output / "state").load()
    assert state["position"]["row"] == 2  # the micro-batch at hand was finished
    assert resume(whole / "data", output) == 0
    assert_same(output, whole / "run")


def test_the_same_command_with_resume_goes_on(whole: Path, tiny_backbone: Path, tmp_path: Path, capsys) -> None:
    """As the farewell says; a recipe and a backbone named again are the run's own."""
    command = [*flags(whole / "data", tiny_backbone, tmp_path / "run"), "--recipe", "beit-large-384-lora"]
    with pytest.raises(Interrupted, match="the same command and --resume"):
        train.main([*command, "--max-minutes", "0"])
    assert train.main([*command, "--resume"]) == 0
    assert "resuming in epoch 1 at row 2" in capsys.readouterr().out
    assert_same(tmp_path / "run", whole / "run")


def test_a_damaged_newest_state_falls_back_to_the_one_before(whole: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    output = tmp_path / "run"
    with monkeypatch.context() as patched:
        interrupt_after(patched, 22)
        with pytest.raises(Interrupted):
            train.main(flags(whole / "data", tiny_backbone, output))
    newest = max((output / "state").glob("[0-9]*.pt"))
    damaged = bytearray(newest.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    newest.write_bytes(damaged)
    assert resume(whole / "data", output) == 0
    printed = capsys.readouterr().out
    assert f"{newest} is damaged" in printed and "resuming in epoch" in printed
    assert_same(output, whole / "run")


def test_changed_recipe_or_data_is_refused_with_the_differences(whole: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch) -> None:
    from conftest import make_competition

    data, output = make_competition(tmp_path / "data"), tmp_path / "run"
    with monkeypatch.context() as patched:
        interrupt_after(patched, 4)
        with pytest.raises(Interrupted):
            train.main(flags(data, tiny_backbone, output))
    with pytest.raises(UserError, match=r"optimizer\.lr: 0\.01 -> 0\.5"):
        train.main(["--data", str(data), "--output", str(output), "--resume", "--lr", "0.5"])
    (data / "train" / "red" / "red_0.png").unlink()
    with pytest.raises(UserError, match="have changed since"):
        resume(data, output)


def test_resume_without_a_state_starts_and_says_so(whole: Path, tiny_backbone: Path, tmp_path: Path, capsys) -> None:
    assert train.main([*flags(whole / "data", tiny_backbone, tmp_path / "run"), "--resume"]) == 0
    assert "no state in" in capsys.readouterr().out
    assert_same(tmp_path / "run", whole / "run")


def test_a_loss_that_is_not_a_number_stops_with_the_step_range(whole: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"NaN or infinite somewhere within steps \[\d+, \d+\] at learning rate .*--lr"):
        train.main([*flags(whole / "data", tiny_backbone, tmp_path / "run"), "--lr", "1e30", "--set", "optimizer.name=sgd"])


def test_out_of_memory_halves_the_micro_batch_and_changes_no_step(
    whole: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    """The second micro-batch of a group fails: the group is done again in smaller pieces and its mean is the same."""
    from pipeline.tasks.classification import ClassificationTask

    backbone = shutil.copytree(tiny_backbone, tmp_path / "backbone")
    config = json.loads((backbone / "config.json").read_text())
    (backbone / "config.json").write_text(json.dumps(config | {"drop_path_rate": 0.0}))

    def losses(name: str) -> list[float]:
        arguments = [*flags(whole / "data", backbone, tmp_path / name), "--set", "optimizer.name=sgd", "--set", "lora.dropout=0"]
        train.main([*arguments, "--set", "augmentation.noise=0"])
        return [json.loads(line)["train_loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]

    undisturbed = losses("a")
    original, micro_batch_sizes = ClassificationTask.train_batches, []

    def train_batches(self: ClassificationTask, epoch: int, start: int, micro_batch_size: int, group_size: int):
        micro_batch_sizes.append(micro_batch_size)
        for number, batch in enumerate(original(self, epoch, start, micro_batch_size, group_size)):
            if epoch == 1 and micro_batch_size == 2 and number == 4:
                raise torch.OutOfMemoryError("simulated")
            yield batch

    monkeypatch.setattr(ClassificationTask, "train_batches", train_batches)
    np.testing.assert_allclose(losses("b"), undisturbed, rtol=1e-5)
    assert micro_batch_sizes[-3:] == [2, 1, 1]  # the epoch that failed, its rest, and the one after
    assert "out of memory: going on with 1 images at a time" in capsys.readouterr().out


def test_a_full_disk_keeps_the_last_good_state_and_says_so(whole: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """The third state does not fit: half of it is written, then comes what torch.save raises on a file system without space."""
    original, saved = torch.save, []

    def save(state: dict, file: io.BufferedWriter) -> None:
        saved.append(file)
        if len(saved) == 3:
            file.write(b"half of it")
            try:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                raise RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 704 vs 598")  # noqa: B904
        original(state, file)

    output = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", save)
        assert run_command(lambda: train.main(flags(whole / "data", tiny_backbone, output))) == 2
    assert "the disk is full" in capsys.readouterr().err
    assert sorted(path.name for path in (output / "state").iterdir()) == [
        "000001.json",
        "000001.pt",
        "000002.json",
        "000002.pt",
        "start.json",
    ]
    assert resume(whole / "data", output) == 0
    assert_same(output, whole / "run")


def test_a_run_that_will_not_fit_on_the_disk_does_not_start(whole: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch) -> None:
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("pipeline.training.estimate.shutil.disk_usage", lambda _: usage(10**9, 10**9, 10**6))
    with pytest.raises(UserError, match=r"the run will write up to .* and the disk has 1\.0 MB"):
        train.main(flags(whole / "data", tiny_backbone, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def run_in_a_process(arguments: list[str]) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "train.py", *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_sigint_in_a_process_exits_130_and_sigkill_loses_nothing_saved(whole: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    long_run = [*flags(whole / "data", tiny_backbone, output), "--epochs", "100000", "--set", "checkpoint.every_minutes=0.001"]
    process = run_in_a_process(long_run)
    wait_for_state(output, process)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "the state is saved" in printed and "Traceback" not in printed
    process = run_in_a_process(["--data", str(whole / "data"), "--output", str(output), "--resume"])
    wait_for_state(output, process, newer_than=max((output / "state").glob("[0-9]*.json")))
    process.kill()
    process.communicate()
    state, _ = StateStore(output / "state").load()
    assert state is not None and not list(output.glob("run.json"))


def wait_for_state(output: Path, process: subprocess.Popen, newer_than: Path | None = None, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        states = sorted((output / "state").glob("[0-9]*.json"))
        if states and (newer_than is None or states[-1].name > newer_than.name):
            return
        time.sleep(0.05)
    process.kill()
    raise AssertionError(f"no state after {seconds} s; exit code {process.poll()}; printed:\n{process.communicate()[0]}")


@pytest.mark.slow
def test_killed_at_twenty_random_moments_is_bit_identical(whole: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    """SIGKILL in start-up, inside epochs, inside state writes, during evaluation; each run resumed until it ends."""
    draw = random.Random(20261121)
    for number in range(20):
        output = tmp_path / str(number)
        arguments = [*flags(whole / "data", tiny_backbone, output), "--set", "checkpoint.every_minutes=0.0001"]
        for _ in range(3):
            process = run_in_a_process(arguments)
            time.sleep(draw.uniform(2, 14))
            process.kill()
            process.communicate()
            arguments = ["--data", str(whole / "data"), "--output", str(output), "--resume"]
        if not (output / "state").exists():  # killed before it began
            arguments = [*flags(whole / "data", tiny_backbone, output), "--set", "checkpoint.every_minutes=0.0001"]
        process = run_in_a_process(arguments)
        printed, _ = process.communicate(timeout=300)
        assert process.returncode == 0, printed
        assert_same(output, whole / "run")
        assert json.loads((output / "run.json").read_text())["best"]
