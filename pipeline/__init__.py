"""The pipeline; see README.md. Importing it sets one thing, before torch is loaded."""

import os

# Threads that wait for each other should sleep, not spin: with loader workers (or anything else) on the same cores, spinning made
# a training step on two cores three times slower. Measured: see the README.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
