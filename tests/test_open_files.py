"""Too many open files, drives that fail, images that vanish: one message in time, and never an image that
counts as a black one.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import subprocess
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from conftest import colour_patch, make_competition
from test_resume import assert_same, flags, resume
from torch.utils.data import get_worker_info

import inference
import train
from pipeline import open_files
from pipeline.data import opening
from pipeline.data.dataset import ImageDataset, make_loader
from pipeline.data.loader import Loader
from pipeline.data.transforms import Preprocessing
from pipeline.errors import EXIT_USER, UserError, run_command
from pipeline.training import compute

ROOT = Path(__file__).resolve().parents[1]
resource = pytest.importorskip("resource", reason="Windows has no such limit")


def test_forty_open_files_and_eight_workers_are_refused_before_anything_is_loaded(
    tiny_backbone: Path, competition: Path
) -> None:
    command = [
        "train.py",
        *flags(competition, tiny_backbone, competition.parent / "run"),
        "--set",
        "data.workers=8",
    ]
    code = (
        "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40)); sys.argv = "
        "sys.argv[1:]; "
    )
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code, *command], cwd=ROOT, capture_output=True, text=True
    )
    said = [line for line in result.stderr.splitlines() if not line.startswith("import time:")]
    assert result.returncode == EXIT_USER and len(said) == 1
    assert "8 loader processes" in said[0]
    assert "allows 40" in said[0]
    assert "ulimit -n" in said[0]
    assert "data.workers=0" in said[0]
    assert not [line for line in result.stderr.splitlines() if line.endswith(" torch")]
    assert not (competition.parent / "run").exists()


def limits(monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, already: int = 20) -> list[tuple[int, int]]:
    """As if this process had these limits; what was set."""
    was_set: list[tuple[int, int]] = []
    monkeypatch.setattr(open_files.resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(open_files.resource, "setrlimit", lambda _, value: was_set.append(value))
    monkeypatch.setattr(open_files, "_files_open", lambda: already)
    return was_set


def test_the_limit_is_raised_where_it_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_files.files_needed(8, 5) == 224
    was_set = limits(monkeypatch, 128, resource.RLIM_INFINITY)  # as macOS starts a program
    open_files.allow_workers(8)
    assert was_set == [(244, resource.RLIM_INFINITY)]
    was_set = limits(monkeypatch, 1024, 4096)
    open_files.allow_workers(8)
    assert not was_set
    limits(monkeypatch, 128, 128)
    assert open_files.workers_that_fit(8) == 2
    with pytest.raises(UserError, match=r"up to 244 open files.*allows 128.*ulimit -n 244.*data\.workers=2"):
        open_files.allow_workers(8)
    open_files.allow_workers(2)


def test_where_not_every_process_can_be_started_those_that_were_are_ended(
    tmp_path: Path, monkeypatch
) -> None:
    colour_patch(tmp_path / "a.png", (9, 9, 9), 1)
    original, started = BaseProcess.start, []

    def start(self: BaseProcess) -> None:
        if len(started) == 2:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        started.append(self)
        original(self)

    dropped = []
    monkeypatch.setattr(sys, "unraisablehook", dropped.append)
    monkeypatch.setattr(BaseProcess, "start", start)
    loader = make_loader(
        ImageDataset([tmp_path / "a.png"] * 9, None, Preprocessing(16, 16)),
        [[row] for row in range(9)],
        workers=4,
    )
    assert isinstance(loader, Loader)
    assert run_command(lambda: list(loader)) == EXIT_USER
    assert len(started) == 2
    assert not any(process.is_alive() for process in started)
    assert not multiprocessing.active_children()
    assert not dropped  # torch drops the half-made iterator without a traceback


def test_a_program_ends_although_an_error_still_holds_its_loader_processes(tmp_path: Path) -> None:
    colour_patch(tmp_path / "a.png", (9, 9, 9), 1)
    code = """
import sys
from pipeline.data.dataset import ImageDataset, make_loader
from pipeline.data.transforms import Preprocessing
images = ImageDataset([sys.argv[1]] * 90, None, Preprocessing(16, 16))
held = iter(make_loader(images, [[row] for row in range(90)], workers=2))
next(held)
sys.modules["held"] = held  # never collected before the end
sys.exit(2)
"""
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.png")], cwd=ROOT, timeout=120, capture_output=True
    )
    assert result.returncode == 2


def fail_at(
    monkeypatch: pytest.MonkeyPatch, number: int, name: str, after: int = 0, in_worker: bool = False
) -> None:
    """The system fails with `number` whenever an image called `name` is opened, from the batch `after` on, or
    in loader processes alone.
    """
    original, move, batches = opening._open, compute.Compute.move, []

    def count(self: compute.Compute, batch: dict) -> dict:
        batches.append(len(batch))
        return move(self, batch)

    def open_image(path: str | Path) -> object:
        if Path(path).name == name and len(batches) >= after and (not in_worker or get_worker_info()):
            raise OSError(number, os.strerror(number))
        return original(path)

    monkeypatch.setattr(opening, "_open", open_image)
    monkeypatch.setattr(compute.Compute, "move", count)


@pytest.mark.parametrize(
    ("number", "workers", "said"), [(errno.EMFILE, 0, "ulimit -n"), (errno.EIO, 2, "input/output error")]
)
def test_training_stops_with_its_state_where_the_system_fails(
    whole: Path,
    tiny_backbone: Path,
    tmp_path: Path,
    monkeypatch,
    capsys,
    number: int,
    workers: int,
    said: str,
) -> None:
    """Found in a process of its own, too, of whose errors torch passes on the text alone."""
    more = ["--set", f"data.workers={workers}", "--set", "data.cache_gb=0"]
    with monkeypatch.context() as patched:
        fail_at(patched, number, "red_1.png", 0 if workers else 3, in_worker=bool(workers))
        assert (
            run_command(lambda: train.main([*flags(whole / "data", tiny_backbone, tmp_path / "run"), *more]))
            == EXIT_USER
        )
    told = capsys.readouterr().err
    assert f"red{os.sep}red_1.png: " in told and said in told and "Traceback" not in told
    assert not (tmp_path / "run" / "run.json").exists()
    assert resume(whole / "data", tmp_path / "run") == 0
    assert_same(tmp_path / "run", whole / "run")


@pytest.mark.parametrize(
    ("number", "said"), [(errno.EMFILE, "ulimit -n"), (errno.ESTALE, "stale file handle")]
)
def test_prediction_writes_nothing_where_the_system_fails(
    whole: Path, tmp_path: Path, monkeypatch, capsys, number: int, said: str
) -> None:
    fail_at(monkeypatch, number, "t001.png")
    output = tmp_path / "predictions.csv"
    command = ["--model", str(whole / "run"), "--data", str(whole / "data"), "--output", str(output)]
    assert run_command(lambda: inference.main(command)) == EXIT_USER
    told = capsys.readouterr().err
    assert "t001.png: " in told and said in told and not output.exists()


def test_prediction_stops_where_test_images_vanish(whole: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    data, output = make_competition(tmp_path / "data"), tmp_path / "predictions.csv"
    original, seen = compute.Compute.move, []

    def move(self: compute.Compute, batch: dict) -> dict:
        if not seen:
            os.rename(data / "test", data / "away")
        seen.append(1)
        return original(self, batch)

    monkeypatch.setattr(compute.Compute, "move", move)
    command = [
        *("--model", str(whole / "run"), "--data", str(data), "--output", str(output)),
        *("--batch-size", "2"),
    ]
    assert run_command(lambda: inference.main(command)) == EXIT_USER
    told = capsys.readouterr().err
    assert f"error: {data / 'test'}{os.sep}" in told and not output.exists()
