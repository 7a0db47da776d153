"""The installed `kaggle` command with its libraries imported once: each call is a fork of one process.

Starting Python and importing them is most of what a call costs, and the tests make hundreds. `kaggle` itself
is imported anew by each call, because it reads the user's token then.

python tests/warm_kaggle.py serve FOLDER         the process that forks, until its input ends
python tests/warm_kaggle.py call FOLDER WORDS    one call: its outputs and its exit code are those of the fork
"""

from __future__ import annotations

import json
import os
import socket
import sys

NAME = "socket"  # in FOLDER, which the process that forks removes


def serve(folder: str) -> list[str]:
    """In a fork: the words of its call. The process itself never returns."""
    import gc
    import select
    import shutil
    import signal

    import kaggle.cli  # noqa: F401 - it says that there is no token

    for name in [name for name in sys.modules if name.partition(".")[0] == "kaggle"]:
        del sys.modules[name]
    sys.stdout.flush()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(os.path.join(folder, "new"))
        door.listen()
        os.rename(os.path.join(folder, "new"), os.path.join(folder, NAME))
        while True:
            if 0 in select.select([door, 0], [], [])[0]:
                shutil.rmtree(folder)
                os._exit(0)
            link, _ = door.accept()
            if os.fork() == 0:
                break
            link.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return _answer(link)


def _answer(link: socket.socket) -> list[str]:
    """In a fork of this fork: the words of the call that came over `link`, whose outputs are the caller's."""
    text, outputs, _, _ = socket.recv_fds(link, 1 << 20, 2)
    while more := link.recv(1 << 20):
        text += more
    caller = os.fork()
    if caller:
        _, status = os.waitpid(caller, 0)
        link.sendall(str(os.waitstatus_to_exitcode(status)).encode())
        os._exit(0)
    link.close()
    for number, output in enumerate([os.open(os.devnull, os.O_RDONLY), *outputs]):
        os.dup2(output, number)
        os.close(output)
    words, environment, folder = json.loads(text)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    return words


def call(folder: str, words: list[str]) -> int:
    """The exit code of `kaggle WORDS`, run by a fork of the process that serves in `folder`."""
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(os.path.join(folder, NAME))
        socket.send_fds(link, [json.dumps([words, dict(os.environ), os.getcwd()]).encode()], [1, 2])
        link.shutdown(socket.SHUT_WR)
        return int(link.recv(16) or 1)


if __name__ == "__main__":
    if sys.argv[1] == "call":
        sys.exit(call(sys.argv[2], sys.argv[3:]))
    sys.argv = ["kaggle", *serve(sys.argv[2])]
    from kaggle.cli import main

    sys.exit(main())
