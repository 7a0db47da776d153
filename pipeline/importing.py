"""Import torch, transformers and the libraries they need in less time."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Do not search for garbage within the block, and never among the objects of torch.

    These libraries make a million objects that stay. Python's collector would search all of them again and
    again while they are made, which takes a fifth of the time of the imports, and three times more when the
    process ends.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        if "triton" not in sys.modules:  # it reports objects that are not collected at the end as leaks
            import torch  # noqa: F401

            gc.freeze()  # https://docs.python.org/3/library/gc.html#gc.freeze
        yield
    finally:
        if was_on:
            gc.enable()
