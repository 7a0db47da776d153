"""Kill a training run at chosen moments, resume it until it ends: one line of JSON for each run.

python tests/killed.py DATA BACKBONE OUTPUT FIRST COUNT

The libraries are imported once and every run is a fork of this process, so a kill hits training and not
seconds of start-up.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

import torch  # noqa: E402

import train  # noqa: E402
from pipeline import files  # noqa: E402
from pipeline.report import page  # noqa: E402
from pipeline.tasks import registry  # noqa: E402, F401
from pipeline.training import compute, record, validating  # noqa: E402, F401

FLAGS = "--epochs 3 --batch-size 2 --accumulation-steps 3 --lr 0.01 --precision fp32".split()
FLAGS += ["--set", "data.val_fraction=0.25", "--set", "augmentation.noise=0.05", "--set", "data.workers=2"]
# A state after every micro-batch: most moments are inside a write
FLAGS += ["--set", "checkpoint.every_minutes=0.00001"]
MOMENTS = (
    "any time",
    "micro-batch",
    "half a state",
    "before a rename",
    "after a rename",
    "validation",
    "after the end",
)


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(moment: str, draw: random.Random, seconds: float) -> None:
    """Let this process be killed at `moment`; an undisturbed run takes `seconds`."""
    if moment == "any time":
        signal.setitimer(signal.ITIMER_REAL, draw.uniform(0.001, seconds))
        # Ends the process as SIGKILL does: at once, nothing runs after it
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    elif moment == "micro-batch":
        at_call(compute.Compute, "move", draw.randrange(35), before=True)
    elif moment == "half a state":
        save, left = torch.save, draw.randrange(30)

        def half(state: object, file: object) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                file.write(b"PK\3\4 half of a state")
                file.flush()
                die()
            save(state, file)

        torch.save = half
    elif moment == "validation":
        at_call(validating, "evaluate", draw.randrange(3), before=draw.random() < 0.5)
    elif moment == "after the end":
        at_call(page, "build_report", 0, before=draw.random() < 0.5)
    else:
        at_call(files.os, "replace", draw.randrange(60), before=moment == "before a rename")


def at_call(owner: object, name: str, number: int, before: bool) -> None:
    """Die at the call of `owner.name` with that number, before or after it does its work."""
    original, left = getattr(owner, name), number

    def call(*args: object, **kwargs: object) -> object:
        nonlocal left
        left -= 1
        if left < 0 and before:
            die()
        result = original(*args, **kwargs)
        if left < 0:
            die()
        return result

    setattr(owner, name, call)


def in_a_fork(work: Callable[[], int], log: Path) -> int:
    """The wait status of a fork that runs `work` with its output in `log`."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        with log.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        try:
            code = work()
            sys.stdout.flush()
            os._exit(code)
        except BaseException:
            import traceback

            traceback.print_exc()
            sys.stderr.flush()
            os._exit(99)
    return os.waitpid(child, 0)[1]


def one_run(arguments: list[str], output: Path, moment: str, draw: random.Random, seconds: float) -> dict:
    """Train into `output`, killed at `moment` up to three times, then left alone; what happened."""
    kills, began = [], False
    log = output.with_suffix(".log")
    for attempt in range(5):
        resuming = [*arguments, "--resume"] if began else arguments

        def work(resuming: list[str] = resuming, attempt: int = attempt) -> int:
            torch.set_num_threads(1)  # as the loader's workers: threads of OpenMP do not survive a fork
            if attempt < 3:
                arm(moment, draw, seconds)
            return train.main([*resuming, "--output", str(output)])

        for _ in range(attempt):
            draw.random()  # another moment each time: a fork draws from a copy
        status = in_a_fork(work, log)
        if os.WIFEXITED(status):
            return {"moment": moment, "kills": kills, "exit": os.WEXITSTATUS(status), "log": str(log)}
        began = (output / "state" / "start.json").exists() or (output / "run.json").exists()
        states = sorted((output / "state").glob("[0-9]*.json"))
        position = json.loads(states[-1].read_text()) if states else {}
        kills.append(
            {"signal": os.WTERMSIG(status), "step": position.get("step"), "row": position.get("row")}
        )
    return {"moment": moment, "kills": kills, "exit": None, "log": str(log)}


def main() -> None:
    data, backbone, root, first, count = *map(Path, sys.argv[1:4]), *map(int, sys.argv[4:6])
    arguments = ["--data", str(data), "--backbone", str(backbone), *FLAGS]
    root.mkdir(parents=True, exist_ok=True)
    whole, started = root / "whole", time.monotonic()

    def undisturbed() -> int:
        torch.set_num_threads(1)
        return train.main([*arguments, "--output", str(whole)])

    assert in_a_fork(undisturbed, root / "whole.log") == 0, (root / "whole.log").read_text()
    seconds = time.monotonic() - started
    for number in range(first, first + count):
        started = time.monotonic()
        result = one_run(
            arguments, root / str(number), MOMENTS[number % len(MOMENTS)], random.Random(number), seconds
        )
        print(
            json.dumps({"number": number, **result, "seconds": round(time.monotonic() - started, 1)}),
            flush=True,
        )
        names = (
            "metrics.jsonl",
            "val_predictions.csv",
            "val_probs.npy",
            "model_lora/adapter_model.safetensors",
            "model_beit/model.safetensors",
        )
        differing = [
            name for name in names if (root / str(number) / name).read_bytes() != (whole / name).read_bytes()
        ]
        assert (root / str(number) / "report.html").exists()
        assert result["exit"] == 0 and not differing, (
            number,
            result,
            differing,
            Path(result["log"]).read_text()[-3000:],
        )
        shutil.rmtree(root / str(number))


if __name__ == "__main__":
    main()
