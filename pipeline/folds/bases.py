"""Store the frozen backbone of several similar runs only once, by hard links."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from pipeline.files import sha256
from pipeline.run import model_dirs
from pipeline.run_names import ADAPTER_DIR


def share_base(folder: Path, others: Iterable[Path]) -> None:
    """Make the run in `folder` smaller: delete its resume state and share its frozen backbone file.

    The file of the frozen backbone beside an adapter becomes a hard link to an equal file of one of `others`.
    Where the file system has no hard links, the copies stay.
    """
    shutil.rmtree(folder / "state", ignore_errors=True)
    if not (folder / ADAPTER_DIR).is_dir():
        return
    for base in (path / "model.safetensors" for path in model_dirs(folder) if path.name != ADAPTER_DIR):
        for other in (path / base.parent.name / base.name for path in others):
            if (
                not other.exists()
                or other.samefile(base)
                or other.stat().st_size != base.stat().st_size
                or sha256(other) != sha256(base)
            ):
                continue
            link = base.with_suffix(".part")
            try:
                os.link(other, link)
            except OSError:
                return
            os.replace(link, base)
            return
