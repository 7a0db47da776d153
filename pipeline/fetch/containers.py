"""What is no image file becomes images: every reader in its turn, and what none of them can read is named."""

from __future__ import annotations

import importlib.util
import os
import zipfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from pipeline.competition.folders import IMAGE_SUFFIXES, suffix_of
from pipeline.errors import UserError
from pipeline.fetch.staged_rows import Staged, part_of, staged
from pipeline.files import write_json
from pipeline.shapes import COUNT, TEXT, Each, read_shaped
from pipeline.wording import listed

CONVERTED = ".converted.json"  # in a data folder: what `make data` turned into images, and Kaggle keeps otherwise
EXTRAS = {".dcm": ("pydicom", "python -m pip install pydicom"), ".bson": ("bson", "python -m pip install pymongo")}
UNREAD = {
    ".nii": "NIfTI volumes are not read",
    ".nii.gz": "NIfTI volumes are not read",
    ".mha": "volumes are not read",
    ".mat": "MATLAB files are not read",
    ".h5": "HDF5 files are not read",
    ".hdf5": "HDF5 files are not read",
    ".pkl": "pickles run what they hold and are not read",
    ".pickle": "pickles run what they hold and are not read",
    ".rec": "MXNet records are not read",
    ".lmdb": "LMDB files are not read",
    ".heic": "not read: convert them to .jpg or .png",
    ".avif": "not read: convert them to .jpg or .png",
    ".jp2": "not read: convert them to .jpg or .png",
    ".svs": "slides are not read: cut them into tiles first",
    ".mp4": "films are not read: write their frames as images first",
    ".avi": "films are not read: write their frames as images first",
}


def check_extras(source: Path) -> None:
    """Pass unless `source` (a folder or a zip) visibly holds what needs a package that is not installed: said before hours of unpacking.

    Raises:
        UserError: the package is missing; the message names its command.
    """
    names: Iterable[str] = ()
    if source.is_dir():
        names = (name for _, _, found in os.walk(source) for name in found)
    elif zipfile.is_zipfile(source):
        try:
            with zipfile.ZipFile(source) as archive:
                names = archive.namelist()
        except zipfile.BadZipFile:  # unpacking says so
            return
    missing = {suffix: (package, command) for suffix, (package, command) in EXTRAS.items() if importlib.util.find_spec(package) is None}
    for name in names if missing else ():
        suffix = suffix_of(name)
        if suffix in missing:
            raise UserError(
                f"{source} holds {suffix} files ({name}), which need one more package: {missing[suffix][1]}; then run this again"
            )


def convert(root: Path) -> list[str]:
    """Turn what holds images without being an image file, anywhere below `root`, into image files and tables; a line on each rule used.

    A container is taken away once its images are written, so `root` must be a copy.

    Raises:
        UserError: a container is damaged or cut short, or an optional package is missing.
    """
    from pipeline.fetch import arrays, bson_files, dicom, json_bands, pixel_tables, tfrecords

    stage = staged(root)
    for reader in (dicom, tfrecords, bson_files, json_bands, pixel_tables, arrays):
        reader.convert(stage)
    for folder in {path.parent for path in stage.files(("",), gone=True)}:
        _sweep(folder, root)
    return stage.notes + _unread(stage)


def stand(root: Path) -> dict[str, tuple[int, int]]:
    """Every file below `root` that is no image, by its path from there: its bytes and time of change."""
    paths = (path for path in root.rglob("*") if path.is_file() and suffix_of(path.name) not in IMAGE_SUFFIXES)
    return {path.relative_to(root).as_posix(): (status.st_size, status.st_mtime_ns) for path in paths for status in [path.stat()]}


def write_converted(root: Path, before: dict[str, tuple[int, int]]) -> None:
    """Write down in `root` which of its files, as they stood `before`, became images: they are the form in which Kaggle keeps them.

    Those of the training part are left out, and nothing is written where there are no others.
    """
    after = stand(root)
    gone = [name for name, stood in sorted(before.items()) if after.get(name) != stood and part_of(name) != "train"]
    gone.sort(key=lambda name: part_of(name) != "test")
    counts = Counter(suffix_of(name) for name in gone)
    if gone:
        write_json(root / CONVERTED, {"files": dict(sorted(counts.items())), "examples": gone[:3]})


def read_converted(data_dir: Path) -> str:
    """In words, which files of `data_dir` other than training ones `make data` turned into images; empty where it did not.

    Raises:
        UserError: the note of it is damaged.
    """
    path = data_dir / CONVERTED
    if not path.is_file():
        return ""
    noted = read_shaped(path, {"files": Each(COUNT), "examples": [TEXT]}, "delete it, if Kaggle has these images as image files")
    counts = listed(f"{count:,} {suffix}" for suffix, count in noted["files"].items())
    return f"{counts} (such as {listed(noted['examples'][:1])})"


def _sweep(folder: Path, root: Path) -> None:
    """Take away a folder that held nothing but containers, and those around it."""
    while folder != root and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


def _unread(stage: Staged) -> list[str]:
    found: Counter[tuple[str, str]] = Counter()
    for path in stage.files(tuple(UNREAD)):
        suffix = max((end for end in UNREAD if path.name.lower().endswith(end)), key=len)
        found[(stage.shown(path).rpartition("/")[0] or ".", suffix)] += 1
    return [f"{folder}: {count:,} {suffix} not turned into images: {UNREAD[suffix]}" for (folder, suffix), count in sorted(found.items())]
