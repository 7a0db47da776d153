"""Run several processes of train.py at once, and print their lines in one output.

Each process gets a GPU of its own, or its share of the CPU threads.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import EXIT_DONE, EXIT_INTERRUPTED, Interrupted, UserError
from pipeline.stopping import end_with_parent, stop_requests

ROOT = Path(__file__).resolve().parents[2]
LOOK_SECONDS = 0.1
IS_CHILD = "CHILD_OF_PARALLEL"  # in the environment of each process that is started here


@dataclass(frozen=True)
class Child:
    """A process to start. `name` is printed before each of its lines.

    `words`: a script of this project (or `-m` and a module), then its flags. `keeps`: file descriptors that
    the process inherits.
    """

    name: str
    words: Sequence[str]
    keeps: Sequence[int] = ()


@dataclass
class _Running:
    name: str
    slot: int
    process: subprocess.Popen
    reader: threading.Thread
    output: list[str] = field(default_factory=list)


def is_child() -> bool:
    """Return True in a process that `run_children` started.

    Only the parent prints what to do next: it sees all children.
    """
    return IS_CHILD in os.environ


def run_children(
    children: Sequence[Callable[[], Child]], at_once: int, after: Callable[[str], None] = lambda name: None
) -> None:
    """Run all `children`, at most `at_once` at a time.

    After one fails no other is started, and the running ones are waited for. `after(name)` is called when one
    has ended well.

    Raises:
        UserError: fewer GPUs than `at_once`, or a process failed (its last message is shown).
        Interrupted: stopped, or a child was stopped (--max-minutes); all have saved their state.
    """
    places = places_for(at_once)
    waiting, running, ended = list(children), [], []
    stopped: list[str] = []

    def stop(reason: str, _again: bool) -> None:
        stopped.append(reason)
        for one in running:
            with suppress(OSError):
                one.process.terminate()

    with stop_requests(stop):
        try:
            while running or (waiting and not stopped and not any(one.process.returncode for one in ended)):
                free = [slot for slot in range(at_once) if slot not in [one.slot for one in running]]
                while waiting and free and not stopped and not any(one.process.returncode for one in ended):
                    slot = free.pop(0)
                    running.append(_start(waiting.pop(0)(), slot, places[slot]))
                for one in [one for one in running if one.process.poll() is not None]:
                    one.reader.join()
                    running.remove(one)
                    ended.append(one)
                    if one.process.returncode == EXIT_DONE:
                        after(one.name)
                time.sleep(LOOK_SECONDS)
        finally:
            for one in running:
                one.process.terminate()
                one.process.wait()
    if stopped or any(one.process.returncode == EXIT_INTERRUPTED for one in ended):
        why = stopped[0] if stopped else "because a fold stopped"
        raise Interrupted(
            f"stopped ({why}); the state of every fold is saved. Continue with the same command and --resume"
        )
    if bad := [one for one in ended if one.process.returncode != EXIT_DONE]:
        raise UserError(
            "\n".join(
                f"{one.name} ended with exit code {one.process.returncode}: {_last_words(one.output)}"
                for one in bad
            )
        )


def places_for(at_once: int) -> list[dict[str, str]]:
    """Return the environment variables of each of `at_once` processes: a GPU, or a share of the CPU threads.

    Raises:
        UserError: there are fewer GPUs than processes.
    """
    import torch

    cards = torch.cuda.device_count()
    if not cards:
        threads = str(max(1, torch.get_num_threads() // at_once))
        return [{"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}] * at_once
    if at_once > cards:
        raise UserError(
            f"--parallel {at_once}: this machine has {cards} GPU{'s' if cards > 1 else ''}; use --parallel "
            f"{cards}"
        )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(number) for number in range(cards)]
    return [{"CUDA_VISIBLE_DEVICES": names[slot].strip()} for slot in range(at_once)]


def _start(child: Child, slot: int, place: dict[str, str]) -> _Running:
    first, *flags = child.words
    found_first = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    process = subprocess.Popen(
        [sys.executable, first if first == "-m" else str(ROOT / first), *flags],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        env=os.environ
        | place
        | {"TQDM_DISABLE": "1", "PYTHONUNBUFFERED": "1", "PYTHONPATH": found_first, IS_CHILD: "1"},
        pass_fds=child.keeps,
        start_new_session=True,  # Ctrl-C reaches only this process, which passes it on once
        preexec_fn=end_with_parent if sys.platform == "linux" else None,
    )
    output: list[str] = []

    def read() -> None:
        for line in process.stdout:
            output.append(line.rstrip("\n"))
            print(f"{child.name} | {line.rstrip()}", flush=True)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    return _Running(child.name, slot, process, reader, output)


def _last_words(output: Sequence[str]) -> str:
    starts = [number for number, line in enumerate(output) if line.startswith("error: ")]
    if starts:
        return "\n".join(output[starts[-1] :]).removeprefix("error: ")
    return next((line for line in reversed(output) if line.strip()), "it printed nothing")
