"""Unpack every kind of archive: zip and tar, 7z, and single files packed by gzip, bzip2 or xz
(`train.csv.gz`).
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline.errors import UserError
from pipeline.fetch.archives import (
    CHUNK_BYTES,
    Member,
    check_members,
    check_room,
    cleared_on_failure,
    unpack_zip,
)
from pipeline.fetch.budget import MAX_MEMBERS, Budget, TooMuch
from pipeline.files import human_size

ZIP_OR_TAR = (".tar.gz", ".tar.bz2", ".tar.xz", ".zip", ".tar", ".tgz", ".tbz2", ".tbz", ".txz")
SEVEN_ZIP = (".7z",)
SINGLE = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".lzma": lzma.open}
NOT_UNPACKED = (".rar", ".zst", ".lz4", ".z", ".lz")
LEFT_PACKED = (".nii.gz", ".mgz")  # volumes; their readers expect them packed


def packed_suffix(name: str) -> str:
    """Return the suffix of a file that can be unpacked here (`.tar.gz` for `a.tar.gz`); empty for other
    files.
    """
    folded = name.lower()
    if folded.endswith(LEFT_PACKED):
        return ""
    return next(
        (
            suffix
            for suffix in (*ZIP_OR_TAR, *SEVEN_ZIP, *SINGLE)
            if folded.endswith(suffix) and len(folded) > len(suffix)
        ),
        "",
    )


def unpack(path: Path, target_dir: Path, budget: Budget) -> None:
    """Unpack `path` into the new folder `target_dir`; after a failure nothing is left there.

    Raises:
        UserError: it is damaged, unsafe (links, devices, names outside the folder), encrypted, or exceeds
            `budget`.
    """
    suffix = packed_suffix(path.name)
    if suffix in SEVEN_ZIP:
        unpack_7z(path, target_dir, budget)
    elif suffix in SINGLE:
        unpack_single(path, target_dir, budget)
    else:
        unpack_zip(path, target_dir, budget=budget)


def unpack_7z(path: Path, target_dir: Path, budget: Budget) -> None:
    """Unpack a 7z archive into `target_dir`, with the checks of `unpack_zip` on names and sizes.

    Raises:
        UserError: py7zr is not installed, or the archive is damaged, encrypted, unsafe or too large.
    """
    try:
        import py7zr
        from py7zr.exceptions import ArchiveError, PasswordRequired
    except ImportError:
        raise UserError(
            f"{path}: 7z archives need one more package: python -m pip install -c constraints.txt py7zr"
        ) from None
    damage = (
        ArchiveError,
        AttributeError,
        KeyError,
        TypeError,
        IndexError,
        AssertionError,
        RuntimeError,
        MemoryError,
    )
    damage += (FileExistsError, NotADirectoryError)  # two names that are one on this disk
    locked = f"{path} was not unpacked: it is encrypted; unpack it with its password and give the folder"
    # py7zr reads an open file with one thread, but a path with several.
    with (
        open(path, "rb") as file,
        cleared_on_failure(path, target_dir, damage),
        _refused_if_encrypted(PasswordRequired, locked),
        py7zr.SevenZipFile(file) as archive,
    ):
        members = [Member(entry.filename, _kind(entry), entry.uncompressed or 0) for entry in archive.files]
        if archive.needs_password():
            raise UserError(locked)
        check_members(path, members, budget.bytes_left, MAX_MEMBERS, budget)
        target_dir.mkdir(parents=True, exist_ok=True)
        total = sum(member.size for member in members)
        check_room(target_dir, total)
        with tqdm(total=total, unit="B", unit_scale=True, desc="unpacking", disable=None) as bar:
            archive.extract(path=target_dir, factory=_writers(bar))


@contextmanager
def _refused_if_encrypted(encrypted: type[Exception], message: str) -> Iterator[None]:
    """Turn py7zr's error about an archive whose names are encrypted too into a UserError."""
    try:
        yield
    except encrypted:
        raise UserError(message) from None


def _kind(entry: Any) -> str:
    if entry.is_directory:
        return "folder"
    return "a link" if entry.is_symlink or entry.is_junction else "a device" if entry.is_socket else "file"


def _writers(bar: tqdm) -> Any:
    """Return the files that py7zr writes into; they count bytes. py7zr writes nothing itself, so it creates
    no links.
    """
    from py7zr.io import Py7zIO, WriterFactory

    class Writer(Py7zIO):
        def __init__(self, name: str) -> None:
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            self._file, self._size = open(name, "xb"), 0  # noqa: SIM115 (py7zr closes it)

        def write(self, data: bytes | bytearray) -> int:
            self._size += len(data)
            bar.update(len(data))
            return self._file.write(data)

        def read(self, size: int | None = None) -> bytes:
            return b""

        def seek(self, offset: int, whence: int = 0) -> int:
            return 0

        def flush(self) -> None:
            self._file.flush()

        def size(self) -> int:
            return self._size

        def close(self) -> None:
            self._file.close()

    class Writers(WriterFactory):
        def create(self, filename: str) -> Writer:
            return Writer(filename)

    return Writers()


def unpack_single(path: Path, target_dir: Path, budget: Budget) -> None:
    """Unpack the one file in a .gz, .bz2 or .xz file; its name is that of `path` without the suffix.

    Raises:
        UserError: it is damaged, or unpacks to more than `budget` allows.
    """
    suffix = packed_suffix(path.name)
    budget.spend(0, 1)
    limit, written = budget.bytes_left, 0
    with cleared_on_failure(path, target_dir):
        target_dir.mkdir(parents=True)
        limit = min(limit, shutil.disk_usage(target_dir).free)
        bar = tqdm(unit="B", unit_scale=True, desc="unpacking", disable=None)
        with (
            bar,
            SINGLE[suffix](path, "rb") as packed,
            open(target_dir / path.name[: -len(suffix)], "xb") as file,
        ):
            while chunk := packed.read(CHUNK_BYTES):
                written += len(chunk)
                if written > limit:
                    size = human_size(limit)
                    raise TooMuch(
                        f"{path.name} was not unpacked: it becomes more than {size}, the limit or the free "
                        "disk space"
                    )
                file.write(chunk)
                bar.update(len(chunk))
    budget.spend(written, 0)
