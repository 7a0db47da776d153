"""Store the frozen backbones of several similar runs only once, by hard links."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from pipeline.files import sha256
from pipeline.run import model_dirs
from pipeline.run_names import ADAPTER_DIR


def share_base(folder: Path, others: Iterable[Path]) -> None:
    """Make the run in `folder` smaller: delete its resume state and share its frozen backbone files.

    Each file of a frozen backbone beside an adapter (questions have two) becomes a hard link to an equal file
    of one of `others`.
    Where the file system has no hard links, the copies stay.
    """
    shutil.rmtree(folder / "state", ignore_errors=True)
    if not (folder / ADAPTER_DIR).is_dir():
        return
    others = list(others)
    for base in (path / "model.safetensors" for path in model_dirs(folder) if path.name != ADAPTER_DIR):
        copies = (other / base.parent.name / base.name for other in others)
        equal = next((copy for copy in copies if _is_copy(copy, base)), None)
        if equal is None:
            continue
        link = base.with_suffix(".part")
        try:
            os.link(equal, link)
        except OSError:
            return
        os.replace(link, base)


def _is_copy(file: Path, base: Path) -> bool:
    """Return True if `file` is another file than `base` with the same content."""
    return (
        file.exists()
        and not file.samefile(base)
        and file.stat().st_size == base.stat().st_size
        and sha256(file) == sha256(base)
    )
