"""Turn rows of numbers into images: find height, width and order, map channels to red, green and blue, and
save.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
from PIL import Image
from tqdm import tqdm

from pipeline.errors import UserError

SMALLEST_SIDE = 8
PIXELS_AT_ONCE = 32_000_000  # of all threads together; three channels as float64 are 800 MB
Found = TypeVar("Found")
CLEARLY = 0.75  # the best arrangement must have at most this share of the next best one's roughness
ENCODED = {
    b"\xff\xd8\xff": ".jpg",
    b"\x89PNG\r\n\x1a\n": ".png",
    b"GIF8": ".gif",
    b"BM": ".bmp",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
}


@dataclass(frozen=True)
class Shape:
    """The layout of a row of numbers.

    `order`: "grey", "planes" (all red, all green, all blue) or "pixels" (r, g, b, r, ...).
    """

    height: int
    width: int
    order: str = "grey"

    @property
    def says(self) -> str:
        """The shape, for messages."""
        colours = {
            "grey": "grey",
            "planes": "colour, one channel after the other",
            "pixels": "colour, pixel by pixel",
        }
        return f"{self.height} x {self.width} pixels, {colours[self.order]}"

    def planes(self, row: np.ndarray) -> np.ndarray:
        """Return (C, height, width) of one row of numbers."""
        if self.order == "pixels":
            return row.reshape(self.height, self.width, 3).transpose(2, 0, 1)
        return row.reshape(1 if self.order == "grey" else 3, self.height, self.width)


def shape_of(count: int, rows: np.ndarray) -> Shape | None:
    """Return the shape of images with `count` numbers; None if it is unclear.

    `rows`: some images, (N, count).

    A square number is a square grey image, three times a square number a square colour image. Otherwise the
    arrangement is taken in which neighbouring pixels differ clearly less than in any other.
    """
    side, colour_side = math.isqrt(count), math.isqrt(count // 3)
    if side * side == count and side >= SMALLEST_SIDE:
        return Shape(side, side)
    if count % 3 == 0 and colour_side**2 * 3 == count and colour_side >= SMALLEST_SIDE:
        candidates = [Shape(colour_side, colour_side, "planes"), Shape(colour_side, colour_side, "pixels")]
        return min(candidates, key=lambda shape: _roughness(shape, rows))
    heights = [height for height in range(SMALLEST_SIDE, count // SMALLEST_SIDE + 1) if count % height == 0]
    candidates = [
        Shape(height, count // height) for height in heights if 1 / 8 <= height * height / count <= 8
    ]
    ranked = sorted((_roughness(shape, rows), shape.height) for shape in candidates)
    if not ranked or (len(ranked) > 1 and ranked[0][0] > CLEARLY * ranked[1][0]) or ranked[0][0] == 0:
        return None
    return next(shape for shape in candidates if shape.height == ranked[0][1])


def _roughness(shape: Shape, rows: np.ndarray) -> float:
    """Return the mean difference of neighbouring pixels over some images; it is least for the right
    arrangement.
    """
    planes = np.stack([shape.planes(row) for row in rows[:64]]).astype(np.float64)
    return float(
        np.abs(np.diff(planes, axis=2)).mean()
        + (np.abs(np.diff(planes, axis=3)).mean() if shape.order != "grey" else 0)
    )


def channels_rule(count: int) -> str:
    """Describe what `as_rgb` makes of `count` channels; empty for one and three."""
    if count == 2:
        return "two channels become red and green, their mean blue"
    return f"{count} channels lie one below the other in one grey image" if count > 3 else ""


def as_rgb(planes: np.ndarray) -> np.ndarray:
    """Return (H, W) or (H, W, 3) uint8 from grey levels (C, H, W) uint8."""
    if len(planes) == 1:
        return planes[0]
    if len(planes) == 2:
        planes = np.stack(
            [planes[0], planes[1], ((planes[0].astype(np.uint16) + planes[1] + 1) // 2).astype(np.uint8)]
        )
    if len(planes) > 3:
        return planes.reshape(-1, planes.shape[2])
    return np.ascontiguousarray(planes.transpose(1, 2, 0))


def save(planes: np.ndarray, path: Path, longest: int = 0) -> None:
    """Write grey levels (C, H, W) uint8 to a new PNG file.

    `longest`: most pixels of its longer side, a larger image is reduced; 0: any number.

    Raises:
        UserError: the file exists; it may be a hard link to an original.
    """
    planes = _reduced(planes, longest) if longest else planes
    with new_file(path) as file:
        Image.fromarray(as_rgb(planes)).save(file, "PNG", compress_level=3)


def _reduced(planes: np.ndarray, longest: int) -> np.ndarray:
    height, width = planes.shape[1:]
    if max(height, width) <= longest:
        return planes
    scale = longest / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    # https://pillow.readthedocs.io, Image.resize: with a gap of 3 almost the result of LANCZOS alone
    how = {"resample": Image.Resampling.LANCZOS, "reducing_gap": 3}
    return np.stack([np.asarray(Image.fromarray(plane).resize(size, **how)) for plane in planes])


def in_threads(
    work: Callable[[Path], Found], paths: Sequence[Path], words: str, most_pixels: int
) -> Iterator[Found]:
    """Yield what `work` returns for each path, in their order, with a progress bar called `words`.

    `most_pixels`: of the largest image. There are fewer threads where images are large.
    """
    with ThreadPoolExecutor(max(1, min(os.cpu_count() or 1, PIXELS_AT_ONCE // most_pixels))) as pool:
        try:  # threads are enough: decoding and encoding release the GIL
            yield from tqdm(pool.map(work, paths), words, len(paths), unit="image", disable=None)
        finally:  # Ctrl-C, or the caller needs no more
            pool.shutdown(cancel_futures=True)


def new_file(path: Path) -> IO[bytes]:
    """Open the new file `path` for writing, and make its folder.

    Raises:
        UserError: the file exists; it may be a hard link to an original.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return open(path, "xb")
    except FileExistsError:
        raise UserError(
            f"{path.parent.name}/{path.name} would be two images: a file of that name exists already"
        ) from None


def encoded_suffix(data: bytes) -> str:
    """Return `.jpg`, `.png`, ... if `data` is an encoded image, by its first bytes; else empty."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return ".webp"
    if len(data) > 24:
        return next((suffix for start, suffix in ENCODED.items() if data.startswith(start)), "")
    return ""
