"""`make data DATASET=...`: put a public set into a data folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from shlex import quote

from pipeline import files
from pipeline.competition.layout import read_layout
from pipeline.errors import Interrupted, raise_all
from pipeline.fetch import public_sets, set_layout
from pipeline.fetch.data_folder import no_room, public_set_in
from pipeline.kaggle.remembered import REMEMBERED


def install_set(name: str, data_dir: Path, yes: bool = False) -> None:
    """Make `data_dir` the competition folder of a public set, and print how it is read and what to do next.

    Nothing is changed if it is that set already. Partial downloads in a hidden folder of `data_dir` are
    resumed.

    Raises:
        UserError: there is no such set, the folder is in use, or the download failed; nothing was moved.
        Interrupted: Ctrl-C.
    """
    public_set = public_sets.find(name)
    work_dir = data_dir / f".{name}.download"
    laid_out = work_dir / "laid_out"
    try:
        if public_set_in(data_dir) != name:
            raise_all(no_room(data_dir, name, yes), f"{name} cannot be downloaded yet:")
            print(f"{name}: {public_set.about}", flush=True)
            set_layout.download(public_set, work_dir)
            shutil.rmtree(laid_out, ignore_errors=True)
            set_layout.lay_out(name, work_dir, laid_out)
            _move_set_in(laid_out, data_dir)
            print(f"{name} is in {data_dir}")
        elif laid_out.exists():  # the move was interrupted; the record is the first file to be moved
            _move_set_in(laid_out, data_dir)
            print(f"{name} is in {data_dir}")
        else:
            print(f"{name} is in {data_dir} already")
    except KeyboardInterrupt:
        raise Interrupted("interrupted; the same command continues") from None
    finally:
        if work_dir.is_dir() and not any(work_dir.iterdir()):
            work_dir.rmdir()
    shutil.rmtree(work_dir, ignore_errors=True)
    for note in read_layout(data_dir).notes:
        print(f"  {note}")
    for recipe in public_set.recipes:
        print(f"  python train.py --recipe {recipe} --data {quote(str(data_dir))}")
    print(
        f"  python inference.py --data {quote(str(data_dir))} && make score "
        f"SOLUTION={quote(str(data_dir / set_layout.SOLUTION))}"
    )


def _move_set_in(unpacked: Path, data_dir: Path) -> None:
    """Move everything in `unpacked` into `data_dir`, or nothing if a name is taken."""
    if (unpacked / REMEMBERED).exists():
        (unpacked / REMEMBERED).rename(files.versioned(unpacked / REMEMBERED))
    entries = sorted(unpacked.iterdir())
    taken = [
        f"{data_dir / entry.name} exists already"
        for entry in entries
        if os.path.lexists(data_dir / entry.name)
    ]
    raise_all(taken, f"the download stays in {unpacked}; move these away or name another folder with --data:")
    for entry in entries:
        entry.rename(data_dir / entry.name)
