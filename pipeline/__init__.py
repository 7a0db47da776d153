"""The pipeline; see README.md. Importing it sets one thing, before torch is loaded."""

import os

# Threads that wait for each other should sleep, not spin. Spinning threads starve loader workers, and each other, on busy cores:
# a training step of a 3.6 M BEiT took 6.1 s instead of 1.8 s on two cores with two other processes running.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
