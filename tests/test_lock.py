"""One process at a time: a lock is refused while its holder lives, and only then."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import train
from pipeline import lock
from pipeline.errors import UserError
from pipeline.lock import LOCK_FILE, holding_file, holding_folder

ROOT = Path(__file__).resolve().parents[1]
HOLD = """
import signal, sys, time
from pathlib import Path
from pipeline.lock import holding_folder
# A shell ignores SIGINT in what it starts in the background
signal.signal(signal.SIGINT, signal.default_int_handler)
with holding_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(folder: Path) -> subprocess.Popen:
    """A process that holds `folder`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen, number: int = signal.SIGKILL) -> None:
    process.send_signal(number)
    process.communicate()


def test_a_living_holder_is_named_and_a_killed_one_is_not_in_the_way(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = holder(folder)
    try:
        with pytest.raises(UserError) as caught, holding_folder(folder):
            pass
        text = str(caught.value)
        assert str(folder) in text
        assert f"process {process.pid} on {platform.node()}" in text
        assert "--output" in text
        assert json.loads((folder / LOCK_FILE).read_text())["process"] == process.pid
    finally:
        end(process)
    assert (folder / LOCK_FILE).exists()  # nobody tidied up
    with holding_folder(folder):
        assert json.loads((folder / LOCK_FILE).read_text())["process"] == os.getpid()
    assert not (folder / LOCK_FILE).exists() and folder.is_dir()


def test_an_interrupted_holder_leaves_nothing(tmp_path: Path) -> None:
    process = holder(tmp_path / "a" / "run")
    end(process, signal.SIGINT)
    assert list(tmp_path.iterdir()) == []


def test_what_was_put_into_a_new_folder_stays(tmp_path: Path) -> None:
    with holding_folder(tmp_path / "run"):
        (tmp_path / "run" / "run.json").write_text("{}")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.json"]


def test_a_forked_child_that_outlives_a_killed_holder_does_not_hold(tmp_path: Path) -> None:
    code = HOLD.replace(
        "    print(",
        "    import os\n    if os.fork() == 0:\n        time.sleep(30)\n        os._exit(0)\n    print(",
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    process.kill()
    process.wait()
    with holding_folder(tmp_path):
        pass
    process.stdout.close()


def left_by_another_machine(folder: Path, seconds_ago: float) -> Path:
    path = folder / LOCK_FILE
    path.write_text(json.dumps({"process": 7, "host": "gpu-node-3", "started": "2026-01-01T10:00:00+01:00"}))
    os.utime(path, (time.time() - seconds_ago,) * 2)
    return path


def test_another_machines_lock_counts_while_it_is_touched(tmp_path: Path) -> None:
    path = left_by_another_machine(tmp_path, 60)
    with pytest.raises(UserError, match="process 7 on gpu-node-3") as caught, holding_folder(tmp_path):
        pass
    assert f"rm {path}" in str(caught.value) and path.exists()
    left_by_another_machine(tmp_path, lock.SILENT_SECONDS + 60)
    with holding_folder(tmp_path):
        assert json.loads(path.read_text())["host"] == platform.node()


def test_a_holder_touches_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "TOUCH_SECONDS", 0.02)
    with holding_folder(tmp_path):
        left_at = time.time() - 1000
        os.utime(tmp_path / LOCK_FILE, (left_at, left_at))
        until = time.monotonic() + 5
        while (tmp_path / LOCK_FILE).stat().st_mtime < left_at + 900 and time.monotonic() < until:
            time.sleep(0.02)
        assert (tmp_path / LOCK_FILE).stat().st_mtime > left_at + 900


@pytest.mark.parametrize("content", ["", "{", "[]", "\x00\xff", '{"host": 5}'])
def test_a_damaged_lock_that_nobody_holds_is_taken(tmp_path: Path, content: str) -> None:
    path = tmp_path / LOCK_FILE
    path.write_text(content, encoding="latin-1")
    os.utime(path, (1, 1))
    with holding_folder(tmp_path):
        assert json.loads(path.read_text())["process"] == os.getpid()


def test_without_locks_of_the_file_system_the_touch_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_try_lock", lambda handle: None)
    with (
        holding_folder(tmp_path),
        pytest.raises(UserError, match=f"process {os.getpid()}"),
        holding_folder(tmp_path),
    ):
        pass


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(UserError, match="is not a folder"), holding_folder(tmp_path / "run"):
        pass
    assert (tmp_path / "run").read_text() == "mine"


def test_four_processes_take_turns(tmp_path: Path) -> None:
    """Each adds one to a number in a file, fifty times, reading and writing in two steps."""
    code = """
import sys, time
from pathlib import Path
from pipeline.lock import holding_file
folder = Path(sys.argv[1])
for _ in range(50):
    with holding_file(folder / "l", "busy", wait=lambda: time.sleep(0.001)):
        number = int((folder / "number").read_text())
        time.sleep(0.0005)
        (folder / "number").write_text(str(number + 1))
"""
    (tmp_path / "number").write_text("0")
    processes = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT) for _ in range(4)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0, 0]
    assert (tmp_path / "number").read_text() == "200" and not (tmp_path / "l").exists()


def test_a_busy_file_without_waiting_is_refused(tmp_path: Path) -> None:
    process = holder(tmp_path)
    try:
        with (
            pytest.raises(UserError, match="the ledger is busy: process"),
            holding_file(tmp_path / LOCK_FILE, "the ledger is busy"),
        ):
            pass
    finally:
        end(process)


def test_two_trainings_into_one_folder_are_one_training_and_one_refusal(
    competition: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others start, as a new run and with --resume, while the first is inside its first micro-batch."""
    from pipeline.training.compute import Compute

    flags = [
        *("--data", str(competition), "--backbone", str(tiny_backbone), "--output", str(tmp_path / "run")),
        *("--epochs", "1"),
    ]
    refusals = []

    def others_start(self: Compute, batch: dict) -> dict:
        if not refusals:
            for more in ([], ["--resume"]):
                command = [sys.executable, "train.py", *flags, *more]
                refusals.append(subprocess.run(command, cwd=ROOT, capture_output=True, text=True))
        return move(self, batch)

    move = Compute.move
    monkeypatch.setattr(Compute, "move", others_start)
    assert train.main(flags) == 0
    for refusal in refusals:
        assert refusal.returncode == 2, refusal.stderr
        assert refusal.stderr.startswith(f"error: {tmp_path / 'run'} is in use: process {os.getpid()}"), (
            refusal.stderr
        )
    assert len(refusals) == 2
    assert (tmp_path / "run" / "run.json").exists() and not (tmp_path / "run" / LOCK_FILE).exists()
