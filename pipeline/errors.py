"""What goes wrong, said once: the error a user can act on, and how a command ends."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterable

EXIT_DONE, EXIT_USER, EXIT_INTERRUPTED = 0, 2, 130


class UserError(ValueError):
    """Something the user must change. The text says what, where, the value found, and what settles it."""


class Interrupted(Exception):
    """Stopped on request (Ctrl-C, SIGTERM, --max-minutes) with the state kept. The text says how to go on."""


def raise_all(problems: Iterable[str], heading: str) -> None:
    """Nothing, when there is no problem.

    Raises:
        UserError: `heading` and under it the problems of one input, the first 20 by name.
    """
    problems = list(problems)
    if not problems:
        return
    shown = [f"  - {problem}" for problem in problems[:20]]
    if len(problems) > 20:
        shown.append(f"  ... and {len(problems) - 20} more")
    raise UserError("\n".join([heading, *shown]))


def run_command(main: Callable[[], int | None]) -> int:
    """The exit code of `main()`: 0 done, 2 after a `UserError`, 130 after an interruption; never a traceback for either."""
    try:
        return main() or EXIT_DONE
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_DONE
    except Interrupted as interruption:
        print(str(interruption), file=sys.stderr)
        return EXIT_INTERRUPTED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        if not disk_is_full(error):
            raise
        print(
            "error: the disk is full; nothing was left half-written. Free some space and run the command again (training: --resume)",
            file=sys.stderr,
        )
        return EXIT_USER


def disk_is_full(error: BaseException | None) -> bool:
    """True when `error`, or one behind it, is the system's "no space left": torch and safetensors wrap it in errors of their own."""
    while error is not None:
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
