"""Convert grey images of more than 8 bits (16-bit, 32-bit and float PNG, TIFF, PGM) with one range for a
whole data set.

If each image were scaled by its own brightest value, a dark scan would become brighter than a bright one. The
range is found from training images and saved with the weights, so that validation, prediction and pages use
the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.data.opening import BadImage, opened

FILE_NAME = "preprocessor_config.json"
KEY = "intensity"  # key in that file; transformers' processors ignore it
INTEGER_MODES, FLOAT_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I"), ("F",)
# Images used to find the range: read the header of so many, the values of so many of each kind
HEADERS, DECODED = 512, 48
VALUES = 250_000  # values read from one image, at most
TAILS = (0.01, 99.99)  # percentiles of an image's values: dead or hot pixels are ignored
NO_DATA = 1e30  # larger floats are fill values, like NaN and infinity


@dataclass(frozen=True)
class Intensity:
    """The values that become black and white (0 and 255), for whole numbers and for floats.

    The defaults are the ranges of 16-bit numbers and of floats from 0 to 1.
    """

    integer: tuple[float, float] = (0.0, 65_535.0)
    floating: tuple[float, float] = (0.0, 1.0)

    def to_8_bit(self, image: Image.Image) -> Image.Image:
        """Return mode L for an image whose mode `is_deep`.

        Values beyond the range become black or white; NaN and infinity (no data) become black.
        """
        low, high = self.floating if image.mode in FLOAT_MODES else self.integer
        pixels = np.empty((image.height, image.width), dtype=np.uint8)
        rows = max(4_000_000 // image.width, 1)  # in bands: a large scan as float64 would need a gigabyte
        stored = np.asarray(image)
        for top in range(0, image.height, rows):
            values = stored[top : top + rows].astype(np.float64)
            values = np.where(_is_data(values), values, low)
            pixels[top : top + rows] = np.clip((values - low) / (high - low) * 255 + 0.5, 0, 255)
        return Image.fromarray(pixels)

    def record(self) -> dict[str, Any]:
        """Return the values for the preprocessing file."""
        return {"integer": list(self.integer), "float": list(self.floating)}


OWN_RANGES = Intensity()


def is_deep(mode: str) -> bool:
    """Return True for a Pillow mode of more than 8 bits."""
    return mode in INTEGER_MODES or mode in FLOAT_MODES


def find_intensity(paths: Sequence[Path]) -> tuple[Intensity | None, list[str]]:
    """Return the range for the training images `paths`, and notes for the user.

    None where (almost) no image has more than 8 bits. The range covers the values of a sample of evenly
    spaced images, without the outermost values of each.
    """
    paths = list(dict.fromkeys(paths))
    with ThreadPoolExecutor() as pool:
        kinds = dict(zip(looked := _spread(paths, HEADERS), pool.map(_kind, looked), strict=True))
        ends, seen = {}, 0
        for kind in ("integer", "floating"):
            chosen = _spread([path for path in looked if kinds[path] == kind], DECODED)
            ranges = [found for found in pool.map(_ends, chosen) if found is not None]
            if ranges and (low := min(low for low, _ in ranges)) < (high := max(high for _, high in ranges)):
                ends[kind], seen = (low, high), seen + len(ranges)
    coloured = sum(kind == "colour" for kind in kinds.values())
    notes = [
        f"colour images with 16 bits per channel: 0 to 65,535 becomes 0 to 255 ({coloured} of {len(looked)} "
        "images checked)"
    ]
    notes = notes if coloured else []
    if not {"integer", "floating"} & set(kinds.values()):
        return None, notes
    intensity = Intensity(**ends)
    return intensity, [
        f"{range_in_words(intensity, set(kinds.values()))}; one range for all images, from {seen} of them",
        *notes,
    ]


def range_in_words(intensity: Intensity, kinds: Iterable[str] = ("integer", "floating")) -> str:
    """Return `grey of more than 8 bits: 12 is black and 4,080 white, of floats 0 is black ...`, for these
    `kinds`.
    """
    words = {
        name: f"{low:,.6g} is black and {high:,.6g} white"
        for name, (low, high) in vars(intensity).items()
        if name in kinds
    }
    floats = [f"of floats {words['floating']}"] if "floating" in words else []
    return (
        "grey of more than 8 bits: "
        f"{', '.join([*([words['integer']] if 'integer' in words else []), *floats])}, NaN and infinity "
        "black"
    )


def deep_images_without_range(paths: Sequence[Path], intensity: Intensity | None) -> str | None:
    """Return a warning where images need a range and the model was saved without one; None otherwise."""
    if intensity is not None:
        return None
    with ThreadPoolExecutor() as pool:
        kinds = set(pool.map(_kind, _spread(list(dict.fromkeys(paths)), DECODED)))
    if not {"integer", "floating"} & kinds:
        return None
    return (
        "the model was saved without a range for images of more than 8 bits; "
        f"{range_in_words(OWN_RANGES, kinds)}"
    )


def read_record(values: Any) -> Intensity | None:
    """Return the range that `Intensity.record` wrote; None when the values are not one."""
    try:
        ranges = [tuple(float(end) for end in values[kind]) for kind in ("integer", "float")]
    except (TypeError, ValueError, KeyError):
        return None
    if any(
        len(ends) != 2 or not abs(ends[0]) + abs(ends[1]) < NO_DATA or ends[0] >= ends[1] for ends in ranges
    ):
        return None
    return Intensity(*ranges)


def stored_intensity(run_dir: Path) -> Intensity | None:
    """Return the range that the run in this folder was trained with; None where it has none."""
    for path in sorted(Path(run_dir).glob(f"model_*/{FILE_NAME}")):
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(values, dict) and (intensity := read_record(values.get(KEY))):
            return intensity
    return None


def _is_data(values: np.ndarray) -> np.ndarray:
    return np.isfinite(values) & (np.abs(values) < NO_DATA)


def _kind(path: Path) -> str:
    """Return `integer` or `floating` for grey deeper than 8 bits, `colour` for 16-bit colour, else "".

    From the header.
    """
    try:
        with opened(path) as image:
            if is_deep(image.mode):
                return "floating" if image.mode in FLOAT_MODES else "integer"
            return "colour" if any(";16" in str(tile[3]) for tile in image.tile) else ""
    except BadImage:
        return ""


def _ends(path: Path) -> tuple[float, float] | None:
    """Return the lowest and highest value of an image, without `TAILS` and fill values.

    None if it has no values.
    """
    try:
        with opened(path) as image:
            step = int(max(image.width * image.height / VALUES, 1) ** 0.5)
            values = np.asarray(image)[::step, ::step].astype(np.float64).ravel()
    except BadImage:
        return None
    values = values[_is_data(values)]
    return tuple(np.percentile(values, TAILS).tolist()) if len(values) else None


def _spread(paths: Sequence[Path], count: int) -> list[Path]:
    """Return `count` of the paths, evenly spaced; all if there are fewer."""
    if len(paths) > count:
        return [paths[len(paths) * number // count] for number in range(count)]
    return list(paths)
