"""Run a new Python process under Kaggle's conditions: no network, no home folder, read-only inputs."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PACKAGE_ROOT = Path(__file__).resolve().parents[2]
# Environment variables that are not passed on: they lead to tokens, caches and this project's own modules.
_LEFT_OUT = (
    *"HOME USERPROFILE XDG_CACHE_HOME XDG_CONFIG_HOME TORCH_HOME TRANSFORMERS_CACHE".split(),
    *("KAGGLE_", "HF_", "HUGGING"),
)
_ISOLATED = """
for place in "$@"; do
  [ "$place" = -- ] && break
  mount --bind "$place" "$place" && mount -o remount,bind,ro "$place" || exit 97
  shift
done
shift
exec "$@"
"""
_NO_SOCKETS = """
import runpy, socket, sys
def refused(*_, **__):
    raise OSError("no network: a kernel runs without internet")
class Refusing(socket.socket):
    def connect(self, address):
        return super().connect(address) if self.family == getattr(socket, "AF_UNIX", None) else refused()
    connect_ex = connect
socket.socket, socket.create_connection, socket.getaddrinfo = Refusing, refused, refused
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@dataclass(frozen=True)
class Ended:
    """Exit code and complete output of the process."""

    code: int
    output: str


def run_sealed(script: Path, work: Path, input_dir: Path, read_only: Sequence[Path]) -> Ended:
    """Run a Python script in the folder `work` with KERNEL_INPUT = `input_dir`.

    The `read_only` folders are mounted read-only if the system allows it.
    """
    command = [sys.executable, str(script)]
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.upper().startswith(_LEFT_OUT) and "PROXY" not in name.upper()
    }
    environment |= {
        "HOME": str(work / "no-home"),
        "KERNEL_INPUT": str(input_dir),
        "PYTHONUNBUFFERED": "1",
        "PYTHONUTF8": "1",
    }
    paths = [
        path
        for path in os.environ.get("PYTHONPATH", "").split(os.pathsep)
        if path and Path(path).resolve() != PACKAGE_ROOT
    ]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    if isolation := isolates():
        command = [
            *isolation,
            *("sh", "-c", _ISOLATED, "sealed"),
            *(str(path.resolve()) for path in read_only),
            "--",
            *command,
        ]
    else:
        command = [sys.executable, "-c", _NO_SOCKETS, str(script)]
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(
        command, cwd=work, env=environment, text=True, encoding="utf-8", errors="replace", **streams
    )
    return Ended(done.returncode, done.stdout)


@functools.cache
def isolates() -> tuple[str, ...]:
    """Return the command that starts another one without network and with private mounts; empty if not
    possible here.
    """
    unshare = shutil.which("unshare")
    if unshare is None or not sys.platform.startswith("linux"):
        return ()
    for flags in (("--net", "--mount"), ("--map-root-user", "--net", "--mount")):
        command = (unshare, *flags)
        # Also test a read-only bind mount: some containers allow the one and not the other.
        probe = [*command, "sh", "-c", _ISOLATED, "sealed", str(PACKAGE_ROOT), "--", "true"]
        try:
            if subprocess.run(probe, capture_output=True, timeout=20).returncode == 0:
                return command
        except (OSError, subprocess.TimeoutExpired):
            continue
    return ()


def describe() -> str:
    """Describe how the process is kept from the network."""
    if isolates():
        return "no network, inputs read-only (namespaces)"
    return "every socket refused; inputs compared before and after"
