"""Decoded training images on disk, so that they are decoded once.

A memo and nothing more: what is read back is what decoding would have given, bit for bit, so a run computes the same with a full, an
empty or a damaged cache. One file for each image: a header, then rows of RGB bytes, of which a crop reads its own alone; the image's
own file is not opened again. A file's name is a digest of what identifies that one: a changed image has another name, and its old one
is never asked for. Files appear whole or not at all, and any may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from io import FileIO
from multiprocessing import Value
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipeline.data.crops import Picture, decoded, random_crop
from pipeline.data.images import DECODERS, LEVELS, load, load_pixels, seen_size
from pipeline.data.opening import REDUCIBLE, BadImage, opened
from pipeline.data.transforms import Preprocessing
from pipeline.errors import UserError
from pipeline.files import human_size
from pipeline.recipe import Augmentation

FACTS = struct.Struct("<8s5I")  # magic; width and height of the pixels, and of the whole image as seen; 1 if its format is REDUCIBLE
CRC = struct.Struct("<I")  # CRC-32 of the facts and the pixels
HEADER_BYTES = FACTS.size + CRC.size
MAGIC, SUFFIX, PART = b"pixels 3", ".rgb", ".part"
PART_SECONDS = 86_400  # an unfinished file of that age was left by a killed run


class PictureCache:
    """At most `limit_bytes` of decoded images in `folder`, each at the lowest level (see `images`) that serves every crop of `augmentation`.

    `paths` are the images that this run will ask for in every epoch. Loader processes share the cache: the bytes used are counted
    together, and a file is checked against its CRC once a run.
    """

    def __init__(self, folder: Path, limit_bytes: int, paths: Sequence[Path], augmentation: Augmentation, rule: Preprocessing) -> None:
        self.folder, self.limit_bytes = Path(folder), limit_bytes
        self.paths = {path: number for number, path in enumerate(dict.fromkeys(map(os.path.abspath, paths)))}
        self.crop, self.intensity = random_crop(augmentation, rule), rule.intensity
        self.folder.mkdir(parents=True, exist_ok=True)
        self.used = Value("q", self._make_room())
        self.checked = torch.zeros(len(self.paths), dtype=torch.int64).share_memory_()  # which file of a path is known to be whole

    def describe(self) -> str:
        """One line for a person: where, how much, and how to do without."""
        return f"decoded images are kept in {self.folder}, {human_size(self.limit_bytes)} at most (--set data.cache_gb=0: none are)"

    def picture(self, path: str | Path) -> Picture:
        """The image in `path`: as it is kept, or decoded, and kept from now on if there is room.

        Raises:
            BadImage: it is not kept and cannot be decoded.
        """
        if kept := self._open(path):
            file, size, shape = kept
            return Picture(size, shape, partial(_read_rows, file, shape[1]))
        with opened(path) as image:
            return self._decode(image, path)

    def check(self, path: str | Path) -> None:
        """Make sure that `path` can be decoded. An image of this run is kept, if there is room, and then need not be decoded again.

        Raises:
            BadImage: it cannot be decoded.
        """
        own = os.path.abspath(path) in self.paths
        if own and (kept := self._open(path)):
            kept[0].close()
            return
        with opened(path) as image:
            num_bytes = 3 * image.width * image.height // 4 ** self._level(seen_size(image), image.format in REDUCIBLE)
            if own and self.used.value + num_bytes < self.limit_bytes:
                self._decode(image, path)
            else:
                load(image, smallest=1)

    def _level(self, size: tuple[int, int], reducible: bool) -> int:
        return self.crop.level_for_any(size) if self.crop and reducible else 0

    def _decode(self, image: Image.Image, path: str | Path) -> Picture:
        size, reducible = seen_size(image), image.format in REDUCIBLE
        level = self._level(size, reducible)
        pixels = load_pixels(image, level, self.intensity)
        picture = decoded(pixels, size if reducible else None)
        if key := self._key(path):
            facts = FACTS.pack(MAGIC, *pixels.shape[1::-1], *picture.size, reducible)
            self._keep(path, key, level, facts, np.ascontiguousarray(pixels))
        return picture

    def _keep(self, path: str | Path, key: str, level: int, facts: bytes, pixels: np.ndarray) -> None:
        num_bytes = HEADER_BYTES + pixels.nbytes
        with self.used.get_lock():
            if self.used.value + num_bytes > self.limit_bytes:
                return
            self.used.value += num_bytes
        temporary = None
        try:
            handle, temporary = tempfile.mkstemp(suffix=PART, dir=self.folder)
            with open(handle, "wb") as file:  # not flushed to disk: the CRC finds what a power cut leaves
                file.write(facts + CRC.pack(zlib.crc32(pixels, zlib.crc32(facts))))
                file.write(pixels)
            os.replace(temporary, self._path(key, level))
            self._know(path, key, level)
        except OSError:  # a full or read-only disk: the run goes on as if there were no cache
            self.limit_bytes = 0
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)

    def _open(self, path: str | Path) -> tuple[FileIO, tuple[int, int], tuple[int, int]] | None:
        """The file in which the image is kept, its whole size and its shape here; None when there is none, or it is damaged (and now gone)."""
        key = self._key(path)
        for level in range(LEVELS if key else 0):
            name = self._path(key, level)
            try:
                file = FileIO(name)
            except OSError:
                continue
            if not (facts := self._verified(file, path, key, level)):
                file.close()  # before it is removed: Windows
                return self._drop(name)
            width, height, *size, reducible = facts
            if level == self._level((size[0], size[1]), bool(reducible)):
                return file, (size[0], size[1]), (height, width)
            file.close()  # it was kept for other crops
        return None

    def _verified(self, file: FileIO, path: str | Path, key: str, level: int) -> list[int] | None:
        """What the header says; None when the file is damaged."""
        try:
            facts, crc = file.read(FACTS.size), file.read(CRC.size)
            magic, width, height, *others = FACTS.unpack(facts)
            if magic != MAGIC or os.fstat(file.fileno()).st_size != HEADER_BYTES + 3 * width * height:
                return None
            if not self._knows(path, key, level):
                if CRC.pack(zlib.crc32(file.readall(), zlib.crc32(facts))) != crc:
                    return None
                os.utime(file.name)  # the least recently used go first
                self._know(path, key, level)
        except (OSError, struct.error):
            return None
        return [width, height, *others]

    def _know(self, path: str | Path, key: str, level: int) -> None:
        if (place := self.paths.get(os.path.abspath(path))) is not None:
            self.checked[place] = _mark(key, level)

    def _knows(self, path: str | Path, key: str, level: int) -> bool:
        place = self.paths.get(os.path.abspath(path))
        return place is not None and self.checked[place].item() == _mark(key, level)

    def _key(self, path: str | Path) -> str | None:
        """What identifies the bytes of the file `path` and how they are decoded, as hex digits; None when there is no such file."""
        path = os.path.abspath(path)
        try:
            found = os.stat(path)
        except OSError:
            return None
        identity = (path, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, DECODERS, self.intensity)
        return hashlib.sha256(repr(identity).encode()).hexdigest()[:32]

    def _path(self, key: str, level: int) -> str:
        return f"{self.folder}{os.sep}{key}.{level}{SUFFIX}"

    def _drop(self, name: str) -> None:
        with self.used.get_lock():
            try:
                self.used.value -= os.stat(name).st_size
                os.unlink(name)
            except FileNotFoundError:  # another loader process was first
                pass

    def _make_room(self) -> int:
        """Delete what killed runs left, what is over the limit, and of other images what takes more than half of it; the bytes left."""
        files = sorted(_files_in(self.folder))
        for modified, _, path in files:
            if path.endswith(PART) and time.time() - modified > PART_SECONDS:
                Path(path).unlink(missing_ok=True)
        files = [file for file in files if file[2].endswith(SUFFIX)]
        total = sum(size for _, size, _ in files)
        if total <= self.limit_bytes / 2:
            return total
        own = {self._key(path) for path in self.paths}
        foreign = [file for file in files if Path(file[2]).name.split(".")[0] not in own]
        for candidates, bound in ((foreign, self.limit_bytes / 2), (files, self.limit_bytes)):
            for _, size, path in candidates:
                if total > bound and os.path.exists(path):
                    Path(path).unlink(missing_ok=True)
                    total -= size
        return total


def _files_in(folder: Path) -> Iterator[tuple[float, int, str]]:
    """Time of change, size and path of each file. Another run that uses the folder may rename one while it is looked at."""
    with os.scandir(folder) as found:
        for entry in found:
            with suppress(FileNotFoundError):
                if entry.is_file():
                    facts = entry.stat()
                    yield facts.st_mtime, facts.st_size, entry.path


def _mark(key: str, level: int) -> int:
    return int(key[:14], 16) * LEVELS + level  # of this very file: where the image has changed its new file is checked


def _read_rows(file: FileIO, width: int, top: int, bottom: int) -> np.ndarray:
    rows = np.empty((bottom - top, width, 3), dtype=np.uint8)
    with file:
        file.seek(HEADER_BYTES + 3 * width * top)
        if file.readinto(rows) != rows.nbytes:  # it was whole when it was opened
            raise BadImage("its kept pixels were cut while they were read")
    return rows


def cache_folder() -> Path:
    """Where decoded images are kept for every run on this machine: the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kaggle-image-pipeline" / "pictures"


def open_cache(cache_gb: float, paths: Sequence[Path], augmentation: Augmentation, rule: Preprocessing) -> PictureCache | None:
    """The cache for recipe key `data.cache_gb`, see `PictureCache`; None when that is 0.

    Raises:
        UserError: the user's cache folder cannot be written to.
    """
    if not cache_gb:
        return None
    try:
        return PictureCache(cache_folder(), int(cache_gb * 1e9), paths, augmentation, rule)
    except OSError as error:
        raise UserError(
            f"data.cache_gb={cache_gb}: {cache_folder()} cannot be used ({error}); set XDG_CACHE_HOME, or cache_gb to 0"
        ) from None
