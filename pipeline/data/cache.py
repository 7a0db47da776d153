"""Decoded training pictures on disk, so that only the first epoch pays for decoding.

A memo and nothing more: what is read back is what decoding would have given, bit for bit, so a run computes the same with a full, an
empty or a damaged cache. One file for each picture: a header, then rows of RGB bytes, mapped into memory, so a crop reads its own part
alone. A file's name is a digest of what identifies the source file: a changed picture has another name, and its old one is never asked for.
Files appear whole or not at all, and any may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
import tempfile
import time
import zlib
from collections.abc import Iterable, Sequence
from multiprocessing import Value
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image

from pipeline.errors import UserError
from pipeline.files import human_size

HEADER = struct.Struct("<8sIIIxxxx")  # magic, width, height, CRC-32 of the pixels
MAGIC, SUFFIX, PART = b"pixels 1", ".rgb", ".part"
PART_SECONDS = 86_400  # an unfinished file of that age was left by a killed run


class PictureCache:
    """At most `limit_bytes` of decoded pictures in `folder`; `paths` are the files of the rows that this run will ask for.

    Loader processes share it: the bytes used are counted together, and a file is checked against its CRC once a run.
    """

    def __init__(self, folder: Path, limit_bytes: int, paths: Sequence[str]) -> None:
        self.folder, self.limit_bytes, self.paths = Path(folder), limit_bytes, [os.path.abspath(path) for path in paths]
        self.folder.mkdir(parents=True, exist_ok=True)
        self.used = Value("q", self._make_room())
        self.checked = torch.zeros(len(paths), dtype=torch.int64).share_memory_()

    def describe(self) -> str:
        """One line for a person: where, how much, and how to do without."""
        return f"decoded pictures are kept in {self.folder}, {human_size(self.limit_bytes)} at most (--set data.cache_gb=0: none are)"

    def get(self, row: int, level: int) -> np.ndarray | None:
        """(H, W, 3) uint8 of the row's picture at `level` (see `crops`); None when it is not here, or was damaged (and is now gone)."""
        key = self._key(row)
        path = self._path(key, level)
        try:
            with open(path, "rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            magic, width, height, crc = HEADER.unpack_from(mapped)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, struct.error):  # ValueError: an empty file
            return self._drop(path)
        if magic != MAGIC or len(mapped) != HEADER.size + 3 * width * height:
            return self._drop(path)
        pixels = np.frombuffer(mapped, dtype=np.uint8, offset=HEADER.size)
        mark = int(key[:15], 16)  # of this very file: a row whose picture has changed is checked again
        if self.checked[row] != mark:
            if zlib.crc32(pixels) != crc:
                return self._drop(path)
            os.utime(path)  # the least recently used go first
            self.checked[row] = mark
        return pixels.reshape(height, width, 3)

    def put(self, row: int, level: int, picture: Image.Image) -> None:
        """Keep the row's `picture` if there is room."""
        width, height = picture.size
        num_bytes = HEADER.size + 3 * width * height
        with self.used.get_lock():
            if self.used.value + num_bytes > self.limit_bytes:
                return
            self.used.value += num_bytes
        key, pixels = self._key(row), picture.tobytes()
        temporary = None
        try:
            handle, temporary = tempfile.mkstemp(suffix=PART, dir=self.folder)
            with open(handle, "wb") as file:  # not flushed to disk: the CRC finds what a power cut leaves
                file.write(HEADER.pack(MAGIC, width, height, zlib.crc32(pixels)))
                file.write(pixels)
            os.replace(temporary, self._path(key, level))
            self.checked[row] = int(key[:15], 16)
        except OSError:  # a full or read-only disk: the run goes on as if there were no cache
            self.limit_bytes = 0
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)

    def _key(self, row: int) -> str:
        """What identifies the bytes of the row's file, and the decoder, as hex digits.

        Raises:
            OSError: there is no such file.
        """
        path = self.paths[row]
        found = os.stat(path)
        identity = (path, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, PIL.__version__)
        return hashlib.sha256(repr(identity).encode()).hexdigest()[:32]

    def _path(self, key: str, level: int) -> Path:
        return self.folder / f"{key}.{level}{SUFFIX}"

    def _drop(self, path: Path) -> None:
        with self.used.get_lock():
            try:
                self.used.value -= path.stat().st_size
                path.unlink()
            except FileNotFoundError:  # another loader process was first
                pass

    def _make_room(self) -> int:
        """Delete what killed runs left, what is over the limit, and of other pictures what takes more than half of it; the bytes left."""
        with os.scandir(self.folder) as found:
            files = sorted((entry.stat().st_mtime, entry.stat().st_size, entry.path) for entry in found if entry.is_file())
        for modified, _, path in files:
            if path.endswith(PART) and time.time() - modified > PART_SECONDS:
                Path(path).unlink(missing_ok=True)
        files = [file for file in files if file[2].endswith(SUFFIX)]
        total = sum(size for _, size, _ in files)
        if total <= self.limit_bytes / 2:
            return total
        own = set(self._existing_keys())
        foreign = [file for file in files if Path(file[2]).name.split(".")[0] not in own]
        for candidates, bound in ((foreign, self.limit_bytes / 2), (files, self.limit_bytes)):
            for _, size, path in candidates:
                if total > bound and os.path.exists(path):
                    Path(path).unlink(missing_ok=True)
                    total -= size
        return total

    def _existing_keys(self) -> Iterable[str]:
        return (self._key(row) for row, path in enumerate(self.paths) if os.path.exists(path))


def cache_folder() -> Path:
    """Where decoded pictures are kept for every run on this machine: the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kaggle-image-pipeline" / "pictures"


def open_cache(cache_gb: float, paths: Sequence[Path]) -> PictureCache | None:
    """The cache for recipe key `data.cache_gb`; None when that is 0.

    Raises:
        UserError: the user's cache folder cannot be written to.
    """
    if not cache_gb:
        return None
    try:
        return PictureCache(cache_folder(), int(cache_gb * 1e9), [str(path) for path in paths])
    except OSError as error:
        raise UserError(
            f"data.cache_gb={cache_gb}: {cache_folder()} cannot be used ({error}); set XDG_CACHE_HOME, or cache_gb to 0"
        ) from None
