"""Import torch, transformers and the libraries they need in less time."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any


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
        with suppress(ImportError, AttributeError):  # of another version of transformers
            _read_models_once()
        yield
    finally:
        if was_on:
            gc.enable()


def _read_models_once() -> None:
    """Let transformers read the names in all its model files once instead of twice: 0.3 of 1.6 seconds.

    Its cache is too small for all folders, and it names the folder of the second time by a file in it.
    """
    import transformers  # noqa: F401 - the first time
    from transformers.utils import import_utils

    read = import_utils.create_import_structure_from_path
    if not hasattr(read, "cache_info"):  # it is `read_folder` already
        return

    @wraps(read)
    def read_folder(path: Any) -> Any:
        """Return what the folder holds, also for a file in it, as transformers' own function does."""
        return read(Path(os.path.dirname(path) if os.path.isfile(path) else path))

    import_utils.create_import_structure_from_path = read_folder
