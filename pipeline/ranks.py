"""The rank of this process, as torchrun sets it in the environment. Without torchrun there is one process.

Several processes run one command: only the first prints and writes. If another one fails, it waits a while
before it prints, because the first usually fails for the same reason and prints it, and torchrun then ends
all processes.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable
from contextlib import suppress

# Set by torchrun
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SAME_REASON_SECONDS = 20.0  # time for the first process to fail for the same reason
TOLD_SECONDS = 600.0  # time for the first process to print the error that was sent to it
AFTER_FIRST_SECONDS = 2.0  # time for the first process to print a line after an interruption

# Sends this process's error to the first. Returns seconds to wait; 0: the error is printed. None: not
# connected.
tell_first: Callable[[str], float] | None = None


def world_size() -> int:
    """Return the number of processes that run this command."""
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in NAMES) else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return int(os.environ["RANK"]) if world_size() > 1 else 0


def local_rank() -> int:
    """Return the number of this process among those of this machine, from 0."""
    return int(os.environ["LOCAL_RANK"]) if world_size() > 1 else 0


def local_world_size() -> int:
    """Return the number of processes of this command on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if world_size() > 1 else 1


def is_first() -> bool:
    """Return True for the process that prints and writes."""
    return rank() == 0


def place() -> str:
    """Return rank and machine of this process as text."""
    return f"process {rank()} on {platform.node()}"


def launcher() -> list[str]:
    """Return the words before the script in a command that starts the same again.

    For several machines it is only `python`, because how they find each other is not known here.
    """
    if world_size() == 1 or world_size() != local_world_size():
        return ["python"]
    return ["torchrun", "--standalone", "--nproc-per-node", str(world_size())]


def hush() -> None:
    """Discard what this process prints, unless it is the first."""
    if not is_first():
        sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - as long as the process lives


def speak() -> None:
    """Undo `hush`, for a traceback that only this process has."""
    if not is_first():
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__


def end_after_first(words: str) -> None:
    """Wait until torchrun ends this failed process, which is not the first.

    If it does not, print the error.
    """
    seconds = SAME_REASON_SECONDS if tell_first is None else tell_first(words)
    if not seconds:
        return
    time.sleep(seconds)
    with suppress(OSError, ValueError, AttributeError):
        print(f"{place()}: {words}", file=sys.__stderr__, flush=True)
