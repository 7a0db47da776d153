"""The pipeline; see README.md.

Importing it makes waiting threads sleep, and prints one line instead of a traceback when a package is
missing. This file must be readable by any Python 3, also by versions that are too old for the other files.
"""

import os
import sys

# Threads that wait for each other should sleep, not spin. Spinning threads take CPU time from loader workers
# and each other: a training step of a 3.6 M BEiT took 6.1 s instead of 1.8 s on two cores with two other
# processes running.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _one_line(kind, error, trace):
    """Replace `sys.excepthook` for packages that are missing at import: `run_command` does not run yet."""
    from pipeline.errors import outside_the_environment

    words = outside_the_environment(error)
    if words is None:
        sys.__excepthook__(kind, error, trace)
        return
    sys.stderr.write("error: " + words + "\n")
    sys.stderr.flush()
    os._exit(2)  # the only way for a hook to set the exit code; nothing was started yet


if sys.version_info < (3, 11):  # noqa: UP036 - this is the first check
    found = sys.version.split()[0] + " (" + sys.executable + ")"
    sys.stderr.write(
        "error: Python 3.11 or newer is needed, this is "
        + found
        + "; `make setup`, then: source .venv/bin/activate\n"
    )
    sys.exit(2)
if sys.excepthook is sys.__excepthook__:
    sys.excepthook = _one_line
