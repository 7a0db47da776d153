"""Requests to stop: signals, and a reader of our output that has ended.

The command can first finish its step.
"""

from __future__ import annotations

import ctypes
import errno
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from pipeline.errors import silence

GONE = "nobody reads the output any more"


@contextmanager
def stop_requests(request: Callable[[str, bool], None]) -> Iterator[None]:
    """Call `request(reason, again)` instead of ending the process, on signals and on a closed output.

    Signals: Ctrl-C, SIGTERM (Colab, Kaggle, Slurm), SIGHUP (a closed terminal). `again`: a second Ctrl-C may
    stop at once. Text printed into a closed pipe is lost. SIGHUP stays ignored under nohup.
    """

    def on_signal(number: int, _frame: Any) -> None:
        request(signal.Signals(number).name, number == signal.SIGINT)

    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    try:
        before = {number: signal.signal(number, on_signal) for number in numbers}
    except ValueError:  # not the main thread, which alone receives signals
        before = {}
    streams = sys.stdout, sys.stderr
    # None: already closed
    watched = [stream and _Watched(stream, lambda: request(GONE, False)) for stream in streams]
    sys.stdout, sys.stderr = watched
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams
        for stream in filter(None, watched):
            stream.forget()
        for number, handler in before.items():
            signal.signal(number, handler)


def end_with_parent() -> None:
    """In a new process: ask Linux for a SIGTERM when the parent dies, even by SIGKILL (prctl(2),
    PR_SET_PDEATHSIG = 1).
    """
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


class _Watched:
    """An output that reports when its reader has ended, and then discards the rest.

    Complete lines are flushed at once, also into a pipe.
    """

    def __init__(self, stream: TextIO, on_gone: Callable[[], None]) -> None:
        self._stream, self._on_gone, self._is_gone = stream, on_gone, False

    def forget(self) -> None:
        """Do not report any more.

        A thread keeps the stderr it was started with. What `on_gone` refers to would be freed when the last
        thread ends; if Python itself is ending then, that aborts the process.
        """
        self._on_gone = lambda: None

    def write(self, text: str) -> int:
        with self._noticing():
            self._stream.write(text)
            if "\n" in text:
                self._stream.flush()
        return len(text)

    def flush(self) -> None:
        with self._noticing():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextmanager
    def _noticing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # EIO: the terminal was closed
            if not isinstance(error, BrokenPipeError) and error.errno != errno.EIO:
                raise
            silence(self._stream)
            if not self._is_gone:
                self._is_gone = True
                self._on_gone()
