"""Convert containers to image files with every reader in turn, and report what none of them can read."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.competition.folders import IMAGE_SUFFIXES, suffix_of
from pipeline.errors import UserError
from pipeline.fetch.grey_range import Rule
from pipeline.fetch.staged_rows import Staged, is_for_training, part_of, staged
from pipeline.files import write_json
from pipeline.shapes import ANYTHING, COUNT, TEXT, Each, read_shaped
from pipeline.wording import listed

# in a data folder: which files `make data` converted; on Kaggle they are still containers
CONVERTED = ".converted.json"
JOINED, JOINED_LEVELS = "joined channels", "grey levels of joined channels"  # decisions
LONGEST = "longer side of converted images"
JOINED_DEEP = "joined channels of more than 8 bits"
_SHAPE = {"files": Each(COUNT), "examples": [TEXT], "decided?": Each(ANYTHING), "packages?": [TEXT]}
EXTRAS = {
    ".dcm": ("pydicom", "python -m pip install pydicom"),
    ".bson": ("bson", "python -m pip install pymongo"),
    **dict.fromkeys((".h5", ".hdf5", ".hdf"), ("h5py", "python -m pip install h5py")),
}
UNREAD = {
    ".nii": "NIfTI volumes are not read",
    ".nii.gz": "NIfTI volumes are not read",
    ".mha": "volumes are not read",
    ".mat": "MATLAB files are not read",
    ".pkl": "pickles may run code and are not read",
    ".pickle": "pickles may run code and are not read",
    ".rec": "MXNet records are not read",
    ".lmdb": "LMDB files are not read",
    ".heic": "not read: convert them to .jpg or .png",
    ".avif": "not read: convert them to .jpg or .png",
    ".jp2": "not read: convert them to .jpg or .png",
    ".svs": "slides are not read: cut them into tiles first",
    ".mp4": "videos are not read: write their frames as images first",
    ".avi": "videos are not read: write their frames as images first",
}


def check_extras(source: Path) -> None:
    """Check that no package is missing for files seen in `source` (a folder or a zip), before hours of
    unpacking.

    Raises:
        UserError: a package is missing; the message gives the command that installs it.
    """
    names: Iterable[str] = ()
    if source.is_dir():
        names = (name for _, _, found in os.walk(source) for name in found)
    elif zipfile.is_zipfile(source):
        try:
            with zipfile.ZipFile(source) as archive:
                names = archive.namelist()
        except zipfile.BadZipFile:  # reported by unpacking
            return
    missing = {
        suffix: (package, command)
        for suffix, (package, command) in EXTRAS.items()
        if importlib.util.find_spec(package) is None
    }
    for name in names if missing else ():
        suffix = suffix_of(name)
        if suffix in missing:
            raise UserError(
                f"{source} holds {suffix} files ({name}), which need one more package: {missing[suffix][1]}; "
                "then run this again"
            )


@dataclass(frozen=True)
class Conversion:
    """A conversion of containers to images.

    `notes`: a line for each rule used. `decided`: what must be the same when other images of the set are
    converted, by name (`Staged.decide`). `packages`: optional ones that it needed. `joined`: relative paths
    of image files of one channel each, which are joined and gone.
    """

    notes: list[str]
    decided: dict[str, Any]
    packages: list[str]
    joined: list[str]


@dataclass(frozen=True)
class Converted:
    """What `make data` converted, except training files: their number by suffix, and a few names.

    `decided`, `packages`: see `Conversion`; None if an older version of `make data` did not store them.
    """

    files: dict[str, int]
    examples: list[str]
    decided: dict[str, Any] | None
    packages: list[str]

    def describe(self) -> str:
        """Return numbers and one name."""
        counts = listed(f"{count:,} {suffix}" for suffix, count in self.files.items())
        return f"{counts} (such as {listed(self.examples[:1])})"

    def digest(self) -> str:
        """Return a digest of what was decided; empty if that was not stored."""
        if self.decided is None:
            return ""
        return hashlib.sha256(json.dumps(self.decided, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Wishes:
    """How the user wants images to be made.

    `channels`: endings of image files that are joined into one image each (`fetch.channels.stack`).
    `longest`: most pixels of the longer side of images that are converted or joined; 0: any number.
    """

    channels: tuple[str, ...] = ()
    longest: int = 0

    def record(self) -> dict[str, Any]:
        """Return what is asked for, as JSON."""
        asked = {"channels": list(self.channels), "longest": self.longest}
        return {name: value for name, value in asked.items() if value}

    def flags(self) -> list[str]:
        """Return the flags of `fetch.install` for it."""
        joined = ["--channels", ",".join(self.channels)] if self.channels else []
        return [*joined, *(["--longest", str(self.longest)] if self.longest else [])]


def convert(
    root: Path,
    repeated: Mapping[str, Any] | None = None,
    wishes: Wishes = Wishes(),
) -> Conversion:
    """Convert everything below `root` that holds images but is not an image file.

    A container is deleted once its images are written, so `root` must be a copy. `repeated`: the decisions of
    the conversion that made the training images, if these are other images of that set; then `wishes` are
    those of that conversion.

    Raises:
        UserError: a container is damaged or cut short, or an optional package is missing; or most images hold
            numbers of another kind than those of the earlier conversion.
    """
    from pipeline.fetch import (
        arrays,
        bson_files,
        dicom,
        encoded_tables,
        hdf5_files,
        json_bands,
        pixel_tables,
        tfrecords,
    )

    longest = repeated.get(LONGEST, 0) if repeated is not None else wishes.longest
    stage = staged(root, repeated, longest)
    for reader in (
        dicom,
        tfrecords,
        bson_files,
        hdf5_files,
        json_bands,
        encoded_tables,
        pixel_tables,
        arrays,
    ):
        reader.convert(stage)
    stage.check_numbers()
    for folder in {path.parent for path in stage.files(("",), gone=True)}:
        _sweep(folder, root)
    notes, joined = stage.notes + _unread(stage), []
    if names := wishes.channels or _channels_again(root, repeated):
        from pipeline.fetch.channels import Levels, stack

        known = None
        if repeated is not None:
            levels = repeated[JOINED_LEVELS]
            known = Levels(repeated[JOINED_DEEP], Rule.read(levels) if levels else None)
        done = stack(root, names, known, longest)
        notes, joined, rule = notes + done.notes, done.gone, done.levels.rule
        stage.decided |= {JOINED: list(names), JOINED_DEEP: done.levels.deep}
        stage.decided[JOINED_LEVELS] = asdict(rule) if rule else None
    if longest and (stage.decided or joined):
        stage.decided[LONGEST] = longest
        notes = [*notes, f"converted images have at most {longest:,} pixels on their longer side"]
    return Conversion(notes, stage.decided, sorted(stage.packages), joined)


def _channels_again(root: Path, repeated: Mapping[str, Any] | None) -> list[str]:
    """Return the channels that an earlier conversion joined, if `root` holds such files."""
    names = (repeated or {}).get(JOINED)
    if not names:
        return []
    from pipeline.fetch.channels import are_there

    return names if are_there(root, names) else []


def stand(root: Path) -> dict[str, tuple[int, int]]:
    """Return the state of every file below `root` that is not an image: relative path -> (bytes, time of
    change in ns).
    """
    paths = (
        path for path in root.rglob("*") if path.is_file() and suffix_of(path.name) not in IMAGE_SUFFIXES
    )
    return {
        path.relative_to(root).as_posix(): (status.st_size, status.st_mtime_ns)
        for path in paths
        for status in [path.stat()]
    }


def write_converted(root: Path, before: dict[str, tuple[int, int]], done: Conversion) -> list[str]:
    """Record in `root` which of its files (state `before`) were converted: on Kaggle they are still
    containers.

    Return their relative paths. Files of the training part are left out. Without other files nothing is
    written.
    """
    after, before = stand(root), before | dict.fromkeys(done.joined, (0, 0))
    gone = [
        name
        for name, stood in sorted(before.items())
        if after.get(name) != stood and not is_for_training(name)
    ]
    gone.sort(key=lambda name: part_of(name) != "test")
    counts = Counter(suffix_of(name) for name in gone)
    if gone:
        write_json(
            root / CONVERTED,
            {
                "files": dict(sorted(counts.items())),
                "examples": gone[:3],
                "decided": done.decided,
                "packages": done.packages,
            },
        )
    return gone


def read_converted(data_dir: Path) -> Converted | None:
    """Return which files of `data_dir`, except training ones, `make data` converted; None if there are none.

    Raises:
        UserError: the record is damaged.
    """
    path = data_dir / CONVERTED
    if not path.is_file():
        return None
    noted = read_shaped(path, _SHAPE, "run `make data` on the download again, into another folder")
    return Converted(noted["files"], noted["examples"], noted.get("decided"), noted.get("packages", []))


def conversion_of(data_dir: Path) -> str:
    """Return the digest of how `make data` converted the files of `data_dir` to images; see
    `Converted.digest`. Empty if it converted none.

    Raises:
        UserError: the record is damaged.
    """
    converted = read_converted(data_dir)
    return converted.digest() if converted else ""


def _sweep(folder: Path, root: Path) -> None:
    """Remove a folder that held only containers, and its parents if they are empty too."""
    while folder != root and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


def _unread(stage: Staged) -> list[str]:
    found: Counter[tuple[str, str]] = Counter()
    for path in stage.files(tuple(UNREAD)):
        suffix = max((end for end in UNREAD if path.name.lower().endswith(end)), key=len)
        found[(stage.shown(path).rpartition("/")[0] or ".", suffix)] += 1
    return [
        f"{folder}: {count:,} {suffix} not turned into images: {UNREAD[suffix]}"
        for (folder, suffix), count in sorted(found.items())
    ]
