"""The pipeline; see README.md. Importing it sets two things: threads that sleep, and one line instead of a traceback outside the environment.

This file is read by any Python 3, also by one that is too old for the others.
"""

import os
import sys

# Threads that wait for each other should sleep, not spin. Spinning threads starve loader workers, and each other, on busy cores:
# a training step of a 3.6 M BEiT took 6.1 s instead of 1.8 s on two cores with two other processes running.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _one_line(kind, error, trace):
    """As `sys.excepthook`, for a package that is missing when a module is loaded: `run_command` has not begun yet."""
    from pipeline.errors import outside_the_environment

    words = outside_the_environment(error)
    if words is None:
        sys.__excepthook__(kind, error, trace)
        return
    sys.stderr.write("error: " + words + "\n")
    sys.stderr.flush()
    os._exit(2)  # a hook cannot choose the exit code otherwise; nothing has begun


if sys.version_info < (3, 11):  # noqa: UP036 - nobody checks that before
    found = sys.version.split()[0] + " (" + sys.executable + ")"
    sys.stderr.write("error: Python 3.11 or newer is needed, this is " + found + "; `make setup`, then: source .venv/bin/activate\n")
    sys.exit(2)
if sys.excepthook is sys.__excepthook__:
    sys.excepthook = _one_line
