"""Several processes of train.py at once: each with a card of its own, or with its share of the processor's threads; their lines in one output."""

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
    """A process to start: `name` stands before its lines, `words` are a script of this project, or -m and a module, and its flags.

    `keeps`: file descriptors that it inherits.
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
    said: list[str] = field(default_factory=list)


def is_child() -> bool:
    """True in a process that `run_children` started: what to do next is said by that one, which sees all of them."""
    return IS_CHILD in os.environ


def run_children(children: Sequence[Callable[[], Child]], at_once: int, after: Callable[[str], None] = lambda name: None) -> None:
    """Run all of them, `at_once` at a time. After one that ended badly no other is started, and the running ones are waited for.

    `after(name)` is called when one has ended well.

    Raises:
        UserError: there are fewer cards than `at_once`, or one ended badly; its last message is given.
        Interrupted: stopped, or a child was (--max-minutes); all have saved their state.
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
        why = stopped[0] if stopped else "as a fold was"
        raise Interrupted(f"stopped ({why}); the state of every fold is saved. Go on with the same command and --resume")
    if bad := [one for one in ended if one.process.returncode != EXIT_DONE]:
        raise UserError("\n".join(f"{one.name} ended with exit code {one.process.returncode}: {_last_words(one.said)}" for one in bad))


def places_for(at_once: int) -> list[dict[str, str]]:
    """What each of so many processes gets in its environment: a card, or its share of the threads.

    Raises:
        UserError: there are fewer cards.
    """
    import torch

    cards = torch.cuda.device_count()
    if not cards:
        threads = str(max(1, torch.get_num_threads() // at_once))
        return [{"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}] * at_once
    if at_once > cards:
        raise UserError(f"--parallel {at_once}: this machine has {cards} card{'s' if cards > 1 else ''}; use --parallel {cards}")
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
        env=os.environ | place | {"TQDM_DISABLE": "1", "PYTHONUNBUFFERED": "1", "PYTHONPATH": found_first, IS_CHILD: "1"},
        pass_fds=child.keeps,
        start_new_session=True,  # Ctrl-C goes to this process alone, which passes it on once
        preexec_fn=end_with_parent if sys.platform == "linux" else None,
    )
    said: list[str] = []

    def read() -> None:
        for line in process.stdout:
            said.append(line.rstrip("\n"))
            print(f"{child.name} | {line.rstrip()}", flush=True)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    return _Running(child.name, slot, process, reader, said)


def _last_words(said: Sequence[str]) -> str:
    starts = [number for number, line in enumerate(said) if line.startswith("error: ")]
    if starts:
        return "\n".join(said[starts[-1] :]).removeprefix("error: ")
    return next((line for line in reversed(said) if line.strip()), "it printed nothing")
