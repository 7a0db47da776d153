"""A disk cache of decoded training images, so that each is decoded only once.

The cache never changes results: what it returns equals what decoding would give, bit for bit, so a run
computes the same with a full, an empty or a damaged cache. Each image has one file: a header, then rows of
RGB bytes. A crop reads only its own rows; the original image file is not opened again. The file name is a
digest of path, size, times and so on: a changed image gets a new name, and its old cache file is no longer
used. Files are written completely or not at all, and any may be deleted at any time.
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

from pipeline.data.crops import DecodedImage, decoded, random_crop
from pipeline.data.images import DECODERS, LEVELS, load, load_pixels, seen_size
from pipeline.data.opening import REDUCIBLE, BadImage, opened
from pipeline.data.transforms import Preprocessing
from pipeline.errors import UserError
from pipeline.files import human_size
from pipeline.recipe_sections import Augmentation

FACTS = struct.Struct(
    "<8s5I"
    # magic; width and height of the stored pixels; width and height of the full image; 1 if its format is
    # REDUCIBLE
)
CRC = struct.Struct("<I")  # CRC-32 of the facts and the pixels
HEADER_BYTES = FACTS.size + CRC.size
MAGIC, SUFFIX, PART = b"pixels 3", ".rgb", ".part"
PART_SECONDS = 86_400  # an unfinished file older than this was left by a killed run


class ImageCache:
    """At most `limit_bytes` of decoded images in `folder`.

    Each image is stored at the smallest size (see the levels in `images`) that is enough for every crop of
    `augmentation`. `paths`: the images that this run reads in every epoch. Loader processes share the cache:
    the used bytes are counted together, and each file is checked against its CRC once per run.
    """

    def __init__(
        self,
        folder: Path,
        limit_bytes: int,
        paths: Sequence[Path],
        augmentation: Augmentation,
        preprocessing: Preprocessing,
    ) -> None:
        self.folder, self.limit_bytes = Path(folder), limit_bytes
        self.paths = {path: number for number, path in enumerate(dict.fromkeys(map(os.path.abspath, paths)))}
        self.crop, self.intensity = random_crop(augmentation, preprocessing), preprocessing.intensity
        self.folder.mkdir(parents=True, exist_ok=True)
        self.used = Value("q", self._make_room())
        # Mark of the checked file of each path
        self.checked = torch.zeros(len(self.paths), dtype=torch.int64).share_memory_()

    def describe(self) -> str:
        """Return one line: where the cache is, its limit, and how to turn it off."""
        return (
            f"decoded images are cached in {self.folder}, at most {human_size(self.limit_bytes)} (--set "
            "data.cache_gb=0: no cache)"
        )

    def image(self, path: str | Path) -> DecodedImage:
        """Return the image in `path` from the cache, or decode it and store it if there is room.

        Raises:
            BadImage: it is not in the cache and cannot be decoded.
        """
        if kept := self._open(path):
            file, size, shape = kept
            return DecodedImage(size, shape, partial(_read_rows, file, shape[1]))
        with opened(path) as image:
            return self._decode(image, path)

    def check(self, path: str | Path) -> None:
        """Check that `path` can be decoded. An image of this run is stored in the cache if there is room.

        Raises:
            BadImage: it cannot be decoded.
        """
        own = os.path.abspath(path) in self.paths
        if own and (kept := self._open(path)):
            kept[0].close()
            return
        with opened(path) as image:
            num_bytes = (
                3
                * image.width
                * image.height
                // 4 ** self._level(seen_size(image), image.format in REDUCIBLE)
            )
            if own and self.used.value + num_bytes < self.limit_bytes:
                self._decode(image, path)
            else:
                load(image, smallest=1)

    def _level(self, size: tuple[int, int], reducible: bool) -> int:
        return self.crop.level_for_any(size) if self.crop and reducible else 0

    def _decode(self, image: Image.Image, path: str | Path) -> DecodedImage:
        size, reducible = seen_size(image), image.format in REDUCIBLE
        level = self._level(size, reducible)
        pixels = load_pixels(image, level, self.intensity)
        decoded_image = decoded(pixels, size if reducible else None)
        if key := self._key(path):
            facts = FACTS.pack(MAGIC, *pixels.shape[1::-1], *decoded_image.size, reducible)
            self._keep(path, key, level, facts, np.ascontiguousarray(pixels))
        return decoded_image

    def _keep(self, path: str | Path, key: str, level: int, facts: bytes, pixels: np.ndarray) -> None:
        num_bytes = HEADER_BYTES + pixels.nbytes
        with self.used.get_lock():
            if self.used.value + num_bytes > self.limit_bytes:
                return
            self.used.value += num_bytes
        temporary = None
        try:
            handle, temporary = tempfile.mkstemp(suffix=PART, dir=self.folder)
            with open(handle, "wb") as file:  # not flushed to disk: after a power cut the CRC detects damage
                file.write(facts + CRC.pack(zlib.crc32(pixels, zlib.crc32(facts))))
                file.write(pixels)
            os.replace(temporary, self._path(key, level))
            self._know(path, key, level)
        except OSError:  # a full or read-only disk: the run continues without a cache
            self.limit_bytes = 0
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)

    def _open(self, path: str | Path) -> tuple[FileIO, tuple[int, int], tuple[int, int]] | None:
        """Return the cache file of an image, the image's full size, and the shape of the stored pixels.

        None when there is no such file, or it is damaged (then it is deleted).
        """
        key = self._key(path)
        for level in range(LEVELS if key else 0):
            name = self._path(key, level)
            try:
                file = FileIO(name)
            except OSError:
                continue
            if not (facts := self._verified(file, path, key, level)):
                file.close()  # Windows cannot delete an open file
                return self._drop(name)
            width, height, *size, reducible = facts
            if level == self._level((size[0], size[1]), bool(reducible)):
                return file, (size[0], size[1]), (height, width)
            file.close()  # stored for the crops of another augmentation
        return None

    def _verified(self, file: FileIO, path: str | Path, key: str, level: int) -> list[int] | None:
        """Return the header's values; None when the file is damaged."""
        try:
            facts, crc = file.read(FACTS.size), file.read(CRC.size)
            magic, width, height, *others = FACTS.unpack(facts)
            if magic != MAGIC or os.fstat(file.fileno()).st_size != HEADER_BYTES + 3 * width * height:
                return None
            if not self._knows(path, key, level):
                if CRC.pack(zlib.crc32(file.readall(), zlib.crc32(facts))) != crc:
                    return None
                os.utime(file.name)  # marks it as recently used: the least recently used are deleted first
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
        """Return hex digits that identify the bytes of file `path` and how they are decoded.

        None if there is no such file.
        """
        path = os.path.abspath(path)
        try:
            found = os.stat(path)
        except OSError:
            return None
        identity = (
            path,
            found.st_size,
            found.st_mtime_ns,
            found.st_ctime_ns,
            found.st_ino,
            DECODERS,
            self.intensity,
        )
        return hashlib.sha256(repr(identity).encode()).hexdigest()[:32]

    def _path(self, key: str, level: int) -> str:
        return f"{self.folder}{os.sep}{key}.{level}{SUFFIX}"

    def _drop(self, name: str) -> None:
        # Another loader process may have deleted it already, or the disk is read-only
        with self.used.get_lock(), suppress(OSError):
            num_bytes = os.stat(name).st_size
            os.unlink(name)
            self.used.value -= num_bytes

    def _make_room(self) -> int:
        """Delete old cache files and return the bytes that are left.

        Deleted are: unfinished files of killed runs; images of other runs beyond half of the limit; any
        images beyond the limit.
        """
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
    """Yield time of change, size and path of each file.

    Another run that uses the folder may rename a file meanwhile.
    """
    with os.scandir(folder) as found:
        for entry in found:
            with suppress(FileNotFoundError):
                if entry.is_file():
                    facts = entry.stat()
                    yield facts.st_mtime, facts.st_size, entry.path


def _mark(key: str, level: int) -> int:
    # Identifies the file: a changed image has another one, which is checked again
    return int(key[:14], 16) * LEVELS + level


def _read_rows(file: FileIO, width: int, top: int, bottom: int) -> np.ndarray:
    rows = np.empty((bottom - top, width, 3), dtype=np.uint8)
    with file:
        file.seek(HEADER_BYTES + 3 * width * top)
        if file.readinto(rows) != rows.nbytes:  # it was complete when it was opened
            raise BadImage("its cache file was truncated while it was read")
    return rows


def cache_folder() -> Path:
    """Return the folder for decoded images of all runs on this machine: in the user's cache folder."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "kaggle-image-pipeline" / "pictures"  # the name that earlier versions use


def open_cache(
    cache_gb: float, paths: Sequence[Path], augmentation: Augmentation, preprocessing: Preprocessing
) -> ImageCache | None:
    """Return the cache for recipe key `data.cache_gb`, see `ImageCache`; None when that is 0.

    Raises:
        UserError: the user's cache folder cannot be written.
    """
    if not cache_gb:
        return None
    try:
        return ImageCache(cache_folder(), int(cache_gb * 1e9), paths, augmentation, preprocessing)
    except OSError as error:
        raise UserError(
            f"data.cache_gb={cache_gb}: {cache_folder()} cannot be used ({error}); set XDG_CACHE_HOME, or "
            "cache_gb to 0"
        ) from None
