"""What torchrun starts in tests: commands one after the other in the same processes, so that libraries are
imported once.

python -m torch.distributed.run --standalone --nproc-per-node 2 tests/several.py COMMANDS [FAULT]

COMMANDS is JSON, such as '[["train", "--data", ...], ["inference", ...]]'.

A word that is a list is for each process its own. FAULT is `kind:rank:call`: what happens in that process at
that call of the task's loss in the last command. With PRETENDED_GPU=1 each process has a pretended GPU.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402
from pretended_gpu import pretended_gpu  # noqa: E402

import inference  # noqa: E402
import train  # noqa: E402
from pipeline import ranks  # noqa: E402
from pipeline.data.images import LostImage  # noqa: E402
from pipeline.errors import run_command  # noqa: E402
from pipeline.tasks.classification_task import ClassificationTask  # noqa: E402

MAINS = {"train": train.main, "inference": inference.main}


def fail(kind: str) -> None:
    """What can happen in one process."""
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "stopped":
        os.kill(os.getpid(), signal.SIGTERM)
    elif kind == "memory":
        raise torch.OutOfMemoryError("simulated")
    elif kind == "lost":
        raise LostImage("red_3.png cannot be decoded any more")
    elif kind == "broken":
        raise ZeroDivisionError("nobody foresaw this")
    elif kind == "slow":
        time.sleep(1)
    elif kind == "unreadable":  # what this process reads from now on
        ClassificationTask.train_batches = lambda *_: lost()


def lost() -> Iterator[dict]:
    """Batches of which the first cannot be read."""
    raise LostImage("red_3.png cannot be decoded any more")
    yield {}


def arm(kind: str, rank: int, call: int) -> None:
    """Let it happen in process `rank` at that call of the loss."""
    original, left = ClassificationTask.loss, call

    def loss(self: ClassificationTask, batch: dict) -> tuple:
        nonlocal left
        left -= 1
        if left == 0 and kind == "parts":
            held = sum(getattr(weight, "_local_tensor", weight).numel() for weight in self.model.parameters())
            print(f"process {ranks.rank()} holds {held}", file=sys.__stdout__, flush=True)
        elif left == 0 and ranks.rank() == rank:
            fail(kind)
        return original(self, batch)

    ClassificationTask.loss = loss


def main() -> int:
    commands = json.loads(sys.argv[1])
    with pretended_gpu(cards=2) if os.environ.get("PRETENDED_GPU") else nullcontext():
        return run_all(commands)


def run_all(commands: list[list]) -> int:
    """Run the commands; return the exit code of the first that fails, or 0."""
    for number, (name, *words) in enumerate(commands, 1):
        if number == len(commands) and len(sys.argv) > 2:
            kind, rank, call = sys.argv[2].split(":")
            arm(kind, int(rank), int(call))
        own = [word[ranks.rank()] if isinstance(word, list) else word for word in words]
        code = run_command(lambda name=name, own=own: MAINS[name](own), by_several=True)
        if code not in (0, 130):
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
