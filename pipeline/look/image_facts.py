"""What a look at one image file gives: its size and kind, how bright it is, a small copy, a perceptual hash. Nothing here knows of labels."""

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

DECODED_PX = 128  # a JPEG is decoded at the smallest scale that keeps both sides this long: at 64 fine textures made copies differ
GREY_PX, COLOUR_PX, HASH_PX, HASH_SIDE = 64, 16, 32, 8
FLAT_LEVELS = 3  # of 255: pixels so near the most frequent grey count as the same


@dataclass(frozen=True)
class ImageFacts:
    """One image. Without `problem` it can be decoded; with it only `path`, `num_bytes` and what its header told are known."""

    path: str
    num_bytes: int
    width: int = 0  # as a person sees it
    height: int = 0
    format: str = ""
    mode: str = ""
    turned: bool = False  # its EXIF data turn or mirror it
    problem: str = ""
    low: int = 0  # grey levels, 0 to 255
    high: int = 0
    flat: float = 0.0  # the share of pixels within FLAT_LEVELS of the most frequent grey
    hash: bytes = b""  # 64 bits, see `perceptual_hash`
    colour: bytes = b""  # (COLOUR_PX, COLOUR_PX, 3) uint8, squashed
    grey: bytes = b""  # (GREY_PX, GREY_PX) uint8, squashed; kept in the store alone

    @property
    def aspect(self) -> float:
        """Width by height; 0 where the header could not be read."""
        return self.width / self.height if self.height else 0.0

    @property
    def deep(self) -> bool:
        """Whether it is grey of more than 8 bits."""
        return is_deep(self.mode)


def image_facts(path: Path, intensity: Intensity | None = None) -> ImageFacts:
    """The facts of the file `path`; grey of more than 8 bits by the rule `intensity`. What cannot be decoded says why in `problem`."""
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
    """(GREY_PX, GREY_PX) uint8: the RGB `image` in grey, squashed, by a filter that smooths: with plain means, copies of another size differ."""
    return np.asarray(image.convert("L").resize((GREY_PX, GREY_PX), Image.Resampling.BILINEAR))


def perceptual_hash(grey: np.ndarray) -> bytes:
    """64 bits of a (GREY_PX, GREY_PX) grey image: which of its 8 x 8 lowest cosine frequencies, at 32 x 32 pixels, are above their median.

    The pHash of C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010), as the library imagehash
    computes it. Copies in another size, quality or brightness differ in few bits; so do other images now and then, so equal hashes alone
    say nothing.
    """
    small = grey.reshape(HASH_PX, 2, HASH_PX, 2).mean(axis=(1, 3))
    waves = _cosines()
    low = waves @ small @ waves.T
    return np.packbits(low.ravel() > np.median(low)).tobytes()


@cache
def _cosines() -> np.ndarray:
    """(HASH_SIDE, HASH_PX): the first cosines of the DCT of type II."""
    place = np.arange(HASH_PX) + 0.5
    return np.cos(np.pi / HASH_PX * np.outer(np.arange(HASH_SIDE), place))


def _flat_share(levels: np.ndarray) -> float:
    counts = np.bincount(levels.ravel(), minlength=256)
    mode = int(counts.argmax())
    return float(counts[max(mode - FLAT_LEVELS, 0) : mode + FLAT_LEVELS + 1].sum() / levels.size)
