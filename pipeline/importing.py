"""Import torch, transformers and the libraries they need in less time."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Do not search for garbage within the block.

    These libraries make a million objects that stay. Python's collector would search all of them again and
    again while they are made, which takes a fifth of the time of the imports.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
