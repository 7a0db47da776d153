"""Measure one image file: size and format, brightness, a small copy, a perceptual hash.

Labels play no role here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.data.images import TURNS, load, orientation, seen_size
from pipeline.data.intensity import Intensity, is_deep
from pipeline.data.opening import BadImage, opened

# A JPEG is decoded at the smallest scale with both sides at least this long; at 64, fine textures made copies
# differ.
DECODED_PX = 128
GREY_PX, COLOUR_PX, HASH_PX, HASH_SIDE = 64, 16, 32, 8
FLAT_LEVELS = 3  # of 255: pixels within this distance of the most frequent grey count as equal to it


@dataclass(frozen=True)
class ImageFacts:
    """Facts of one image.

    With `problem` it cannot be decoded, and only `path`, `num_bytes` and header values are set.
    """

    path: str
    num_bytes: int
    width: int = 0  # after its EXIF orientation
    height: int = 0
    format: str = ""
    mode: str = ""
    turned: bool = False  # its EXIF orientation rotates or mirrors it
    problem: str = ""
    low: int = 0  # grey levels, 0 to 255
    high: int = 0
    flat: float = 0.0  # the share of pixels within FLAT_LEVELS of the most frequent grey
    hash: bytes = b""  # 64 bits, see `perceptual_hash`
    colour: bytes = b""  # (COLOUR_PX, COLOUR_PX, 3) uint8, without keeping the aspect ratio
    grey: bytes = b""  # (GREY_PX, GREY_PX) uint8, without keeping the aspect ratio; only in the store

    @property
    def aspect(self) -> float:
        """Width / height; 0 if the header could not be read."""
        return self.width / self.height if self.height else 0.0

    @property
    def deep(self) -> bool:
        """True for grey images of more than 8 bits."""
        return is_deep(self.mode)


def image_facts(path: Path, intensity: Intensity | None = None) -> ImageFacts:
    """Measure the file `path`; `intensity` scales grey of more than 8 bits.

    A decoding error is returned in `problem`.
    """
    header: dict[str, object] = {}
    try:
        num_bytes = os.stat(path).st_size
        with opened(path) as file:
            width, height = seen_size(file)
            header = {"format": file.format or "", "mode": file.mode, "width": width, "height": height}
            header["turned"] = orientation(file) in TURNS
            image = load(file, DECODED_PX, intensity)
            grey, colour = small_grey(image), image.resize((COLOUR_PX, COLOUR_PX), Image.Resampling.BILINEAR)
            levels = np.asarray(image.convert("L"))
    except BadImage as bad:
        return ImageFacts(str(path), num_bytes, problem=str(bad) or "cannot be decoded", **header)  # type: ignore[arg-type]
    except OSError as error:
        return ImageFacts(str(path), 0, problem=error.strerror or str(error))
    return ImageFacts(
        str(path),
        num_bytes,
        **header,  # type: ignore[arg-type]
        low=int(levels.min()),
        high=int(levels.max()),
        flat=_flat_share(levels),
        hash=perceptual_hash(grey),
        colour=np.asarray(colour).tobytes(),
        grey=grey.tobytes(),
    )


def small_grey(image: Image.Image) -> np.ndarray:
    """Return (GREY_PX, GREY_PX) uint8: `image` in grey, by a smoothing filter; with plain means, resized
    copies differ.
    """
    return np.asarray(image.convert("L").resize((GREY_PX, GREY_PX), Image.Resampling.BILINEAR))


def perceptual_hash(grey: np.ndarray) -> bytes:
    """Return a 64-bit hash of a (GREY_PX, GREY_PX) grey image.

    Bit i is set if the i-th of the 8 x 8 lowest DCT frequencies at 32 x 32 pixels is above their median. This
    is the pHash of C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010), as
    the library imagehash computes it. Copies in another size, quality or brightness differ in few bits. Some
    different images do too, so equal hashes alone prove nothing.
    """
    small = grey.reshape(HASH_PX, 2, HASH_PX, 2).mean(axis=(1, 3))
    waves = _cosines()
    low = waves @ small @ waves.T
    return np.packbits(low.ravel() > np.median(low)).tobytes()


@cache
def _cosines() -> np.ndarray:
    """Return (HASH_SIDE, HASH_PX): the first basis functions of the DCT of type II."""
    place = np.arange(HASH_PX) + 0.5
    return np.cos(np.pi / HASH_PX * np.outer(np.arange(HASH_SIDE), place))


def _flat_share(levels: np.ndarray) -> float:
    counts = np.bincount(levels.ravel(), minlength=256)
    mode = int(counts.argmax())
    return float(counts[max(mode - FLAT_LEVELS, 0) : mode + FLAT_LEVELS + 1].sum() / levels.size)
