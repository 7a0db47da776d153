"""Join an archive that was split into numbered pieces (`train.zip.001`, `train.zip.002`, ...)."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from pipeline.fetch.archives import check_room
from pipeline.fetch.packed import packed_suffix

NUMBERED = re.compile(r"(.+)\.(\d{2,3})")


def whole_runs(paths: Iterable[Path]) -> dict[Path, list[Path]]:
    """Return archive -> its pieces in order, for runs from 1 without a gap.

    Only unpacking the joined archive shows whether the last piece is missing.
    """
    runs: dict[Path, dict[int, Path]] = {}
    for path in paths:
        if (found := NUMBERED.fullmatch(path.name)) and packed_suffix(found[1]):
            runs.setdefault(path.with_name(found[1]), {})[int(found[2])] = path
    return {
        whole: [pieces[number] for number in sorted(pieces)]
        for whole, pieces in runs.items()
        if sorted(pieces) == list(range(1, len(pieces) + 1)) and not whole.exists()
    }


def join(whole: Path, pieces: list[Path]) -> None:
    """Write the archive `whole` from its pieces; each piece is removed once it is copied.

    Raises:
        UserError: the disk is too small.
    """
    check_room(whole.parent, sum(piece.stat().st_size for piece in pieces))
    with (
        open(whole, "xb") as file,
        tqdm(total=len(pieces), unit="piece", desc=f"joining {whole.name}", disable=None) as bar,
    ):
        for piece in pieces:
            with open(piece, "rb") as part:
                shutil.copyfileobj(part, file, 1 << 20)
            piece.unlink()
            bar.update()
