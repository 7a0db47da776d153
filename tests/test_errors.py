"""How a command ends: exit codes, what the system refuses in words, what a terminal must not obey."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import (
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_USER,
    Interrupted,
    UserError,
    one_line,
    printable,
    raise_all,
    run_command,
)

ROOT = Path(__file__).resolve().parents[1]


def raising(error: BaseException):
    """A command that fails with `error`."""

    def main() -> int:
        raise error

    return main


def test_exit_codes_and_one_message_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(lambda: None) == run_command(lambda: 0) == EXIT_DONE == 0
    assert run_command(lambda: 3) == 3
    assert run_command(raising(UserError("column id: missing"))) == EXIT_USER == 2
    assert capsys.readouterr().err == "error: column id: missing\n"
    assert run_command(raising(Interrupted("go on with --resume"))) == EXIT_INTERRUPTED == 130
    assert capsys.readouterr().err == "go on with --resume\n"
    assert run_command(raising(KeyboardInterrupt())) == 130
    with pytest.raises(ZeroDivisionError):  # a mistake of ours keeps its traceback
        run_command(lambda: 1 // 0)


def test_raise_all_lists_every_problem_up_to_twenty() -> None:
    raise_all([], "nothing wrong:")
    with pytest.raises(UserError) as caught:
        raise_all((f"row {number}" for number in range(25)), "bad rows:")
    lines = str(caught.value).splitlines()
    assert lines[0] == "bad rows:"
    assert lines[1] == "  - row 0"
    assert lines[-1] == "  ... and 5 more"
    assert len(lines) == 22


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ENOSPC", "the disk is full"),
        ("EDQUOT", "quota"),
        ("EROFS", "read-only"),
        ("EACCES", "permissions"),
        ("EIO", "input/output error"),
        ("ESTALE", "stale file handle"),
        ("EFBIG", "ulimit -f"),
        ("EMFILE", "ulimit -n"),
        ("ENAMETOOLONG", "too long"),
    ],
)
def test_what_the_system_refuses_is_one_line_with_the_path(
    name: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    number = getattr(errno, name)
    assert run_command(raising(OSError(number, os.strerror(number), "/data/run/run.json"))) == EXIT_USER
    text = capsys.readouterr().err
    assert text.startswith("error: /data/run/run.json: ") and said in text and text.count("\n") == 1
    # As safetensors and torch say it: another type, the system's words in the text.
    assert (
        run_command(
            raising(
                RuntimeError(f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})")
            )
        )
        == EXIT_USER
    )
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
            r"the GPU has no free memory; .*--batch-size.*: CUDA out of memory. Tried to allocate 2 GiB",
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), "no free memory"),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), "no free memory"),
        (
            RuntimeError("CUDA error: no kernel image is available for execution on the device\nhint"),
            r"the installed torch was not built for this GPU; .*CUDA_VISIBLE_DEVICES.*on the device\n",
        ),
    ],
)
def test_what_a_gpu_refuses_is_one_line(
    error: Exception, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(raising(error)) == EXIT_USER
    text = capsys.readouterr().err
    assert re.match(f"error: .*{says}", text) and text.count("\n") == 1


def test_an_error_of_another_kind_keeps_its_traceback() -> None:
    with pytest.raises(OSError, match="no such device"):
        run_command(raising(OSError(errno.ENODEV, "no such device")))


def test_a_loader_process_that_was_killed_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run_command(raising(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")))
        == EXIT_USER
    )
    assert "--resume" in capsys.readouterr().err
    assert (
        run_command(raising(RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"))) == EXIT_USER
    )
    assert "loader process" in capsys.readouterr().err


def ends(code: str, reader: str = "", **options: object) -> subprocess.CompletedProcess:
    """A process that runs `code` as a command, its output read by the shell command `reader`; its code is
    that of the process.
    """
    start = f"import sys\nfrom pipeline.errors import *\ndef main():\n    {code}\nsys.exit(run_command(main))"
    line = f'"{sys.executable}" -c "$CODE" {reader}; exit ${{PIPESTATUS[0]}}'
    return subprocess.run(
        ["bash", "-c", line],
        env=os.environ | {"CODE": start},
        cwd=ROOT,
        capture_output=True,
        text=True,
        **options,
    )


def test_a_full_disk_in_a_thread_is_said_once_and_a_mistake_of_ours_keeps_its_traceback() -> None:
    code = "import threading, errno\n    t = threading.Thread(target=lambda: {})\n    t.start()\n    t.join()"
    full = ends(code.format("exec('raise OSError(errno.ENOSPC, str())', {'errno': errno})"))
    assert (full.returncode, full.stderr) == (0, "")
    assert "ZeroDivisionError" in ends(code.format("1 / 0")).stderr


def test_a_closed_pipe_is_an_interruption_and_never_success() -> None:
    for code in (
        "[print('a' * 99) for _ in range(99999)]",
        "print('a' * 99)\n    import time\n    time.sleep(1)",
    ):
        result = ends(code, "| head -c 0")
        assert (result.returncode, result.stderr) == (EXIT_INTERRUPTED, "")
    assert ends("print('done')", "| cat").returncode == 0


def test_an_error_into_a_closed_stderr_keeps_its_exit_code() -> None:
    assert ends("raise UserError('x')", "2>&1 | head -c 0").returncode == EXIT_USER
    assert ends("raise UserError('x')", ">&- 2>&-").returncode == EXIT_USER


def test_foreign_text_moves_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "\x1b]0;title\x07\x1b[2J\x9b31mdone\r\x08\u202efdp.exe\x00"
    assert printable(f"a\n\t{hostile}") == "a\n\t]0;title[2J31mdonefdp.exe"
    assert one_line("two\nlines\r\n and\x1b[A") == "two lines and[A"
    assert printable("日本語 Ω é 👩‍🔬") == "日本語 Ω é 👩‍🔬"  # joined by U+200D, which stays
    run_command(raising(UserError(f"name {hostile}")))
    assert set("\x1b\x07\x9b\r\x08\x00\u202e").isdisjoint(capsys.readouterr().err)


def test_whatever_a_command_prints_moves_no_cursor_and_progress_still_does(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def main() -> None:
        print("class \x1b[2J\x9b31m\x07red\u202e", "\x1b]0;title")
        print("\rwaiting\x1b[A", file=sys.stderr, end="")

    assert run_command(main) == 0
    printed = capsys.readouterr()
    assert printed.out == "class [2J31mred ]0;title\n" and printed.err == "\rwaiting\x1b[A"


def test_a_name_that_is_no_text_is_printed_with_its_bytes() -> None:
    assert (
        ends("sys.stdout.reconfigure(errors='strict')\n    print(chr(0xdcff) + ' x')").stdout == "\\udcff x\n"
    )
    assert ends("raise UserError(chr(0xdcff))").stderr == "error: \\udcff\n"
