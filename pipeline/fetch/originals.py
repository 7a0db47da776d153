"""Keep the test part of a download in its original form, and convert such files to images again.

On Kaggle the hidden test set of a code competition has the original form. `make data` keeps that of the test
images here, so that `make kernel` can rehearse on it; a kernel converts the hidden ones.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.competition.folders import IMAGE_SUFFIXES, is_hidden, suffix_of
from pipeline.errors import UserError
from pipeline.fetch.containers import Converted, convert
from pipeline.fetch.staged_rows import is_for_training
from pipeline.files import human_size
from pipeline.wording import counted, listed

ORIGINALS = ".originals"  # in a data folder: hard links to the files of the test part, as they were
MOST_BYTES = 1_000_000_000  # of files that would be deleted if they were not kept


def keep_originals(root: Path) -> None:
    """Link every file below `root` that is not of the training part into `root/.originals`.

    Nothing is kept on a file system without hard links; `drop_originals` says so.
    """
    place = root / ORIGINALS
    paths = list(_test_part(root))
    try:
        for path in paths:
            (place / path.relative_to(root)).parent.mkdir(parents=True, exist_ok=True)
            os.link(path, place / path.relative_to(root))
    except OSError:
        shutil.rmtree(place, ignore_errors=True)


def drop_originals(root: Path, converted: Sequence[str]) -> str:
    """Remove `root/.originals` if none of its files was `converted` (relative paths), or if these are large.

    Return a line that says so in the second case, or if they could not be linked; else an empty text.
    """
    place, lost = root / ORIGINALS, "`make kernel` will not rehearse their conversion"
    if converted and not place.is_dir():
        return f"the original test files are not kept (no hard links on this file system): {lost}"
    size = sum((place / name).stat().st_size for name in converted if (place / name).is_file())
    if converted and size <= MOST_BYTES:
        return ""
    shutil.rmtree(place, ignore_errors=True)
    if not size:
        return ""
    return f"the original test files ({human_size(size)}) are not kept: {lost}"


def as_images(data_dir: Path, converted: Converted | None) -> Path:
    """Return a new temporary folder: the test part of `data_dir`, with images as `make data` made them.

    It is removed when the process ends. `converted`: what `make data` converted here; None: nothing. Then,
    and if the test set holds image files, the folder is `data_dir` itself. A file that is damaged becomes an
    empty image file.

    Raises:
        UserError: a container is damaged as a whole, or is of a kind that was not converted here; or there
            are no images.
    """
    if converted is None or converted.decided is None:
        return data_dir
    started, root = time.perf_counter(), Path(tempfile.mkdtemp(prefix="images-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    links = [root / path.relative_to(data_dir) for path in _test_part(data_dir)]
    for link in links:
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to((data_dir / link.relative_to(root)).resolve())
    print(f"converting the test set to images, as `make data` did, in {root} ...", flush=True)
    try:
        done = convert(root, converted.decided)
    except OSError as error:
        raise UserError(f"{root}: the images of the test set cannot be written: {error.strerror}") from None
    num_converted = sum(not link.is_symlink() for link in links)  # a table may be written again
    if not num_converted:
        if not any(suffix_of(link.name) in IMAGE_SUFFIXES for link in links):
            kinds = listed(sorted({suffix_of(link.name) or link.name for link in links})) or "no file"
            shutil.rmtree(root)
            problem = (
                f"{data_dir}: the test part holds no image and nothing that becomes one ({kinds}); "
                f"`make data` converted {converted.describe()}"
            )
            raise UserError("\n  - ".join([problem, *done.notes]))
        print("the test set holds image files: nothing was converted", flush=True)
        shutil.rmtree(root)
        return data_dir
    print("\n".join(f"  {note}" for note in done.notes))
    seconds = time.perf_counter() - started
    print(f"{counted(num_converted, 'file')} converted in {seconds:.2f} s", flush=True)
    return root


def files_below(root: Path) -> Iterator[Path]:
    """Yield every file below `root` that is not hidden; a folder with several links to it is entered once."""
    seen = set()
    for place, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = [] if real in seen else sorted(name for name in folders if not is_hidden(name))
        if real not in seen:
            seen.add(real)
            yield from (Path(place) / name for name in sorted(names) if not is_hidden(name))


def _test_part(root: Path) -> Iterator[Path]:
    for path in files_below(root):
        if path.is_file() and not is_for_training(path.relative_to(root).as_posix()):
            yield path
