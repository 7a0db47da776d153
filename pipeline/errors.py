"""Errors that a user can act on, and the exit of a command with one message."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import threading
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from pipeline import ranks

EXIT_DONE, EXIT_USER, EXIT_INTERRUPTED = 0, 2, 130


class UserError(ValueError):
    """An error that the user must fix. The text says what, where, the value found, and how to fix it."""


class Interrupted(Exception):
    """Stopped on request (Ctrl-C, SIGTERM, SIGHUP, a closed output, --max-minutes) with the state saved.

    The text says how to continue.
    """


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text; its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def raise_all(problems: Iterable[str], heading: str) -> None:
    """Raise one UserError that lists all problems; return if there are none.

    Raises:
        UserError: `heading`, and below it the first 20 problems of one input.
    """
    problems = list(problems)
    if not problems:
        return
    shown = [f"  - {problem}" for problem in problems[:20]]
    if len(problems) > 20:
        shown.append(f"  ... and {len(problems) - 20} more")
    raise UserError("\n".join([heading, *shown]))


def run_command(main: Callable[[], int | None], by_several: bool = False) -> int:
    """Run `main()` and return the exit code: 0 done, 2 after a `UserError`, 130 after an interruption.

    130 also when nobody reads the output any more. None of these prints a traceback, nor do errors of the
    system (a full disk, a folder that cannot be written). `by_several`: several processes, started by
    torchrun, may run it together; then only the first prints.
    """
    threading.excepthook = _in_a_thread
    with _harmless_output():
        return _run(main, by_several)


def _run(main: Callable[[], int | None], by_several: bool) -> int:
    if ranks.world_size() > 1:
        main = _among_several(main, by_several)
    try:
        code = main() or EXIT_DONE
        if sys.stdout is not None:  # None: closed by the parent process
            sys.stdout.flush()
        return code
    except UserError as error:
        return _end(f"error: {error}", EXIT_USER)
    # The reader of our output, such as `head`, has ended; the rest of the output is lost
    except BrokenPipeError:
        return EXIT_INTERRUPTED
    except Interrupted as interruption:
        return _end(str(interruption), EXIT_INTERRUPTED)
    except KeyboardInterrupt:
        return _end("interrupted", EXIT_INTERRUPTED)
    except SystemExit as end:
        if end.code and not ranks.is_first():  # argparse has printed the error, also in the first process
            ranks.end_after_first("wrong flags")
        raise
    except Exception as error:
        refusal = outside_the_environment(error) or system_refusal(error)
        if refusal is None:
            ranks.speak()
            raise
        return _end(f"error: {refusal}", EXIT_USER)
    finally:
        _drop_what_nobody_reads()


def _end(words: str, code: int) -> int:
    """Print why the command ends. With several processes the first prints, and the others wait for it."""
    if ranks.is_first():
        _say(words)
        if ranks.world_size() > 1:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # printed: torchrun may end it now
    elif code == EXIT_INTERRUPTED:
        time.sleep(ranks.AFTER_FIRST_SECONDS)
    else:
        ranks.end_after_first(words)
    return code


def _among_several(main: Callable[[], int | None], by_several: bool) -> Callable[[], int | None]:
    """Return `main` for one of several processes.

    Only the first prints, also when torchrun ends it because another one has ended.
    """
    ranks.hush()

    def refuse() -> None:
        raise UserError("this command is for one process: start it with python, not with torchrun")

    def on_signal(_number: int, _frame: Any) -> None:
        if sys.exc_info()[1] is None:  # otherwise it is already printing its own error
            raise Interrupted(
                "stopped (SIGTERM): torchrun ends all processes when one has ended; its report names it"
            )

    if ranks.is_first():
        signal.signal(signal.SIGTERM, on_signal)
    return main if by_several else refuse


# Errors of the system, and what the user can do. Files are written to a temporary name first, so none is
# half-written.
_AGAIN = "nothing was left half-written. {}, and run the command again (training: --resume)"
_NOT_YOURS = "you may not read or write it; change its permissions (chmod, chown), or use another place"
_REFUSALS = {
    "ENOSPC": "the disk is full; " + _AGAIN.format("Free some space"),
    "EDQUOT": "your share of this disk (quota) is used up; " + _AGAIN.format("Free some space"),
    "EROFS": "this place is read-only; use another folder",
    "EACCES": _NOT_YOURS,
    "EPERM": _NOT_YOURS,
    "EIO": "the disk or network drive failed (input/output error); " + _AGAIN.format("Check the drive"),
    "ESTALE": "the network drive has lost this file (stale file handle); "
    + _AGAIN.format("Connect the drive again"),
    "ENOTCONN": "the network drive is not connected; " + _AGAIN.format("Connect it"),
    "EFBIG": "the file would be larger than the limit (`ulimit -f`, or of the disk); "
    + _AGAIN.format("Raise the limit"),
    "EMFILE": "too many files are open; "
    + _AGAIN.format("Raise the limit (`ulimit -n 4096`), or use --set data.workers=1"),
    "ENFILE": "too many files are open on this machine; " + _AGAIN.format("Close other programs"),
    "EAGAIN": "the system starts no more processes for you (`ulimit -u`); use --set data.workers=0, or end "
    "some",
    "ENOMEM": "there is no free memory; close other programs, or use --set data.workers=0 and a smaller "
    "--batch-size",
    "ENAMETOOLONG": "the name is too long for this disk; use a shorter one",
    "ENOTDIR": "there is a file where a folder is needed; use another place",
    "EISDIR": "there is a folder where a file is needed; use another place",
}
# Windows lacks some
_NUMBERS = {getattr(errno, name): text for name, text in _REFUSALS.items() if hasattr(errno, name)}
# A tensor from a loader process did not arrive: too many open files
_NO_FILE_CAME = re.compile(r"received \d+ items of ancdata")
_PATH = re.compile(r"\[Errno \d+\] .*: '(.*)'$", re.MULTILINE)
# RuntimeErrors of torch about a GPU: CUDA's and its libraries', and Apple's
_GPU_REFUSALS = (
    (
        re.compile("(CUDA|CUDA error:|MPS backend) out of memory|_STATUS_ALLOC_FAILED"),
        "the GPU has no free memory; end other programs that use it (nvidia-smi lists them), or use a "
        "smaller --batch-size, --image-size or --backbone",
    ),
    (
        re.compile("no kernel image is available"),
        "the installed torch was not built for this GPU; on Kaggle choose another accelerator (T4), "
        "elsewhere install a torch for it, or set CUDA_VISIBLE_DEVICES= (empty) to use the CPU",
    ),
)
_LOADER_DIED = re.compile(r"DataLoader worker .*(exited unexpectedly|killed by signal)")


def system_refusal(error: BaseException | None) -> str | None:
    """Return the message for an error of system or GPU in `error` or its causes; None for other errors.

    torch and safetensors wrap system errors in their own and keep the system's text; torch also wraps those
    of loader processes.
    """
    while error is not None:
        text = str(error)
        if isinstance(error, RuntimeError):
            for pattern, refusal in _GPU_REFUSALS:
                if pattern.search(text):
                    return f"{refusal}: {first_line(error)}"
        if isinstance(error, RuntimeError) and _LOADER_DIED.search(text):
            return (
                "a loader process was killed, usually because there was no free memory; the last state is "
                "saved. Continue with the same command and --resume, with fewer processes: --set "
                "data.workers=1"
            )
        if isinstance(error, RuntimeError) and _NO_FILE_CAME.search(text):
            return _REFUSALS["EMFILE"]
        code = getattr(error, "errno", None)
        path = getattr(error, "filename", None) or (_PATH.search(text) or [None, None])[1]
        for number, refusal in _NUMBERS.items():
            if code == number or (code is None and os.strerror(number) in text):
                return refusal if path is None else f"{path}: {refusal}"
        error = error.__cause__ or error.__context__
    return None


def outside_the_environment(error: BaseException) -> str | None:
    """Return how to install a missing package, if `error` is about one; None for other errors."""
    name = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if not name or name in ("pipeline", "tests", "train", "inference"):
        return None
    root = Path(__file__).resolve().parents[1]
    activate = r".venv\Scripts\activate" if os.name == "nt" else "source .venv/bin/activate"
    unused = (root / ".venv").is_dir() and not Path(sys.prefix).is_relative_to(root / ".venv")
    how = (
        f"activate the environment first: {activate}"
        if unused
        else f"`make setup` installs what is needed, then: {activate}"
    )
    return (
        f"the package {name!r} is not installed in {sys.executable} (Python {sys.version.split()[0]}; "
        f"3.11 or newer is needed): {how}"
    )


def printable(text: str) -> str:
    """Return `text` without characters that a terminal would obey.

    These are control characters, except line ends and tabs, and marks that change the direction of text. It
    is for texts from elsewhere: a server's messages, names in an archive, the scores in an answer.
    """
    return "".join(
        letter
        for letter in text
        if letter in "\n\t" or not (unicodedata.category(letter) == "Cc" or letter in _REVERSING)
    )


def one_line(text: str) -> str:
    """Return `printable(text)` on one line, with single spaces."""
    return " ".join(printable(text.replace("\r", " ")).split())


@contextmanager
def _harmless_output() -> Iterator[None]:
    """Remove characters that a terminal would obey from everything printed in the block.

    Names of files, classes and cells come from others.
    """
    before = sys.stdout, sys.stderr
    harmless = tuple(stream and _Harmless(stream) for stream in before)
    sys.stdout, sys.stderr = harmless
    try:
        yield
    finally:
        if (sys.stdout, sys.stderr) == harmless:  # otherwise `ranks.hush` has replaced them
            sys.stdout, sys.stderr = before


class _Harmless:
    """An output without control characters, except those of our progress lines: back to the line's start,
    and one line up.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        clean = "".join(piece if piece in _OF_PROGRESS else printable(piece) for piece in _PIECES.split(text))
        try:
            self._stream.write(clean)
        except UnicodeEncodeError:  # a name with invalid bytes, or letters that the terminal's encoding lacks
            encoding = self._stream.encoding or "utf-8"
            self._stream.write(clean.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


_OF_PROGRESS = ("\r", "\x1b[A")
_PIECES = re.compile("(" + "|".join(map(re.escape, _OF_PROGRESS)) + ")")
_REVERSING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def _in_a_thread(failed: threading.ExceptHookArgs) -> None:
    """Hide system errors in threads, such as TensorBoard's writer.

    They are raised again, and reported, where the thread's work is waited for.
    """
    if failed.exc_value is None or system_refusal(failed.exc_value) is None:
        threading.__excepthook__(failed)


def _say(text: str) -> None:
    with suppress(OSError, ValueError):  # stderr may be the pipe that was closed
        print(printable(text), file=sys.stderr, flush=True)


def _drop_what_nobody_reads() -> None:
    """Discard the rest of an output whose reader has ended, so that Python does not fail at exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            silence(stream)
        except (ValueError, AttributeError):  # closed now, or already closed at the start
            continue


def silence(stream: TextIO) -> None:
    """Discard everything that is written to `stream` from now on, also what is still in its buffer."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
