"""Which of several processes this is, as torchrun says it in the environment; a process without torchrun is the first of one.

Several processes are one command: the first alone prints and writes. Another one that fails says nothing for a while, since the first
most often fails for the same reason, says so, and torchrun then ends all of them.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable
from contextlib import suppress

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets
SAME_REASON_SECONDS = 20.0  # how long the first may take to fail for the same reason
TOLD_SECONDS = 600.0  # ... where it was told why this one failed, and says that
AFTER_FIRST_SECONDS = 2.0  # ... where it was waited for, and has but to print a line

tell_first: Callable[[str], bool] | None = None  # set once processes can talk: hands over why this one failed; False: that failed too


def world_size() -> int:
    """How many processes run this command."""
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in NAMES) else 1


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ["RANK"]) if world_size() > 1 else 0


def local_rank() -> int:
    """Its number among those of this machine, from 0."""
    return int(os.environ["LOCAL_RANK"]) if world_size() > 1 else 0


def local_world_size() -> int:
    """How many processes of this command this machine runs."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if world_size() > 1 else 1


def is_first() -> bool:
    """Whether this process is the one that prints and writes."""
    return rank() == 0


def place() -> str:
    """This process, in words for another one."""
    return f"process {rank()} on {platform.node()}"


def launcher() -> list[str]:
    """The words before the script in a command that does the same again. Of several machines only a person knows how they find each other."""
    if world_size() == 1 or world_size() != local_world_size():
        return ["python"]
    return ["torchrun", "--standalone", "--nproc-per-node", str(world_size())]


def hush() -> None:
    """Let what this process prints go nowhere, unless it is the first."""
    if not is_first():
        sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - as long as the process lives


def speak() -> None:
    """Take `hush` back: for a traceback, which nobody else has."""
    if not is_first():
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__


def end_after_first(words: str) -> None:
    """Wait, in a process that is not the first and has failed, until torchrun ends it. If it does not, say why this one failed."""
    told = tell_first is not None and tell_first(words)
    time.sleep(TOLD_SECONDS if told else SAME_REASON_SECONDS)
    with suppress(OSError, ValueError, AttributeError):
        print(f"{place()}: {words}", file=sys.__stderr__, flush=True)
