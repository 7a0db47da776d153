"""Commands struck at random moments, by kills and by a disk that fails, and run again: they end with what
they would have given.

`make fuzz STRIKES=100` strikes each so often and prints what came of it.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("resource", reason="Windows has no such limits")
ROOT = Path(__file__).resolve().parents[1]
STRIKES = int(os.environ.get("STRIKES", "10"))
SCENES = ("weights", "data", "train", "folds", "blend", "kernel", "inference", "ledger", "submit", "page")


@pytest.mark.slow
@pytest.mark.parametrize("scene", SCENES)
def test_a_struck_command_run_again_gives_what_it_would_have(tmp_path: Path, scene: str) -> None:
    command = [sys.executable, "tests/struck.py", scene, "0", str(STRIKES), str(tmp_path / "scene")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-6000:]
    print(result.stdout.splitlines()[-1])
    assert result.stdout.count('"came"') == STRIKES and '"killed"' in result.stdout


HOLDER = """
import os, sys, time
from contextlib import suppress
from pathlib import Path
from pipeline.lock import holding_file
folder, me = Path(sys.argv[1]), sys.argv[2]

def is_inside(path):
    # A killed one leaves its file for a moment.
    # A living one that is inside beside us is the fault looked for.
    with suppress(FileNotFoundError, ValueError):
        process = int(path.read_text())
        for _ in range(500):
            try:
                os.kill(process, 0)
            except ProcessLookupError:
                return False
            time.sleep(0.01)
        return True
    return False

while True:
    with holding_file(folder / "lock", "busy", wait=lambda: time.sleep(0.001)):
        own = folder / f"inside-{me}"
        own.write_text(str(os.getpid()))
        if any(is_inside(path) for path in folder.glob("inside-*") if path != own):
            (folder / "two").write_text(me)
        time.sleep(0.0005)
        own.unlink()
        with open(folder / "turns", "a") as file:
            file.write(".")
"""


@pytest.mark.slow
def test_holders_that_are_killed_at_random_never_leave_two_inside_or_the_lock_closed(tmp_path: Path) -> None:
    draw, kills = random.Random(0), 0

    def start(number: int) -> subprocess.Popen:
        (tmp_path / f"inside-{number}").unlink(missing_ok=True)  # of the one that was killed inside
        return subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path), str(number)], cwd=ROOT)

    holders = {number: start(number) for number in range(3)}
    for number in range(3, 3 + STRIKES):
        time.sleep(draw.uniform(0.2, 0.6))
        chosen = draw.choice(sorted(holders))
        holders[chosen].kill()
        holders.pop(chosen).wait()
        (tmp_path / f"inside-{chosen}").unlink(missing_ok=True)
        kills += 1
        holders[number] = start(number)
    before = (tmp_path / "turns").stat().st_size
    end = time.monotonic() + 60
    while (tmp_path / "turns").stat().st_size == before and time.monotonic() < end:
        time.sleep(0.05)
    after = (tmp_path / "turns").stat().st_size
    for holder in holders.values():
        holder.kill()
        holder.wait()
    print(f"locks: {kills} holders killed, {after:,} turns")
    assert after > before and not (tmp_path / "two").exists()
