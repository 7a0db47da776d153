"""A closed pipe and a closed terminal stop a training as SIGTERM does: after the micro-batch, with the state
saved, exit code 130.
"""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_resume import ROOT, flags, wait_for_state

from pipeline.stopping import GONE, stop_requests
from pipeline.training.checkpoint import StateStore


@pytest.fixture(scope="module", autouse=True)
def in_a_terminal() -> Iterator[None]:
    """A closed terminal ends a program here also where the tests themselves run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def long_run(competition: Path, backbone: Path, output: Path) -> list[str]:
    # So long a run would try torch.compile
    keys = ("checkpoint.every_minutes=0.001", "data.workers=2", "compile=false")
    more = ["--epochs", "100000", *(word for key in keys for word in ("--set", key))]
    return [sys.executable, "train.py", *flags(competition, backbone, output), *more]


def test_a_reader_that_has_seen_enough_stops_the_training_with_its_state(
    competition: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    with open(tmp_path / "errors", "w+") as errors:
        process = subprocess.Popen(
            long_run(competition, tiny_backbone, output),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        wait_for_state(output, process)
        process.stdout.close()  # as head does after its tenth line
        assert process.wait(timeout=60) == 130
        errors.seek(0)
        said = errors.read()
    assert GONE in said and "the state is saved" in said and "Traceback" not in said
    state, _ = StateStore(output / "state").load()
    assert state is not None and not (output / "run.json").exists() and not (output / ".lock").exists()


def test_a_closed_terminal_stops_the_whole_group_with_the_state(
    competition: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    process = subprocess.Popen(
        long_run(competition, tiny_backbone, output),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    wait_for_state(output, process)
    os.killpg(process.pid, signal.SIGHUP)
    said, _ = process.communicate(timeout=60)
    assert (
        process.returncode == 130
        and "SIGHUP" in said
        and "the state is saved" in said
        and "Traceback" not in said
    ), said


def test_under_nohup_a_closed_terminal_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_requests(lambda reason, _again: asked.append(reason)):
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
        assert asked == ["SIGTERM"] and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_thread_that_goes_on_keeps_nothing_of_what_was_to_stop() -> None:
    """It would free a whole model when it ends, which aborts a Python that is ending itself."""

    class Loop:
        def request_stop(self, reason: str, again: bool) -> None: ...

    loop, over = Loop(), threading.Event()
    known = weakref.ref(loop)
    with stop_requests(loop.request_stop):
        thread = threading.Thread(target=over.wait)  # which keeps sys.stderr as it is now
        thread.start()
    del loop
    gc.collect()
    freed = known() is None
    over.set()
    thread.join()
    assert freed


def test_only_a_second_ctrl_c_may_stop_at_once() -> None:
    asked: list[tuple[str, bool]] = []
    before = signal.getsignal(signal.SIGINT)  # a shell starts what runs in the background with SIGINT ignored
    with stop_requests(lambda *request: asked.append(request)):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)
    assert asked == [("SIGINT", True), ("SIGTERM", False), ("SIGHUP", False)]
    assert signal.getsignal(signal.SIGINT) is before
