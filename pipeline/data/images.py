"""Decode an image file as a person would see it: orientation applied, first frame, transparency over
white, 8-bit RGB.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL
from PIL import ExifTags, Image, features
from tqdm import tqdm

from pipeline.data.intensity import OWN_RANGES, Intensity, is_deep
from pipeline.data.opening import DAMAGE, REDUCIBLE, BadImage, opened, refuse_many_scans, reopened
from pipeline.errors import UserError

try:
    import simplejpeg
except (ImportError, ValueError):  # missing, or built for another numpy: Pillow gives the same pixels
    simplejpeg = None

LEVELS = 4  # full size, a half, a quarter, an eighth: levels 0 to 3
# simplejpeg decodes a JPEG in 14 to 25 % less time. The pixels are equal only if Pillow uses libjpeg-turbo
# too.
FAST_JPEG = simplejpeg is not None and features.check("libjpeg_turbo")
DECODERS = f"Pillow {PIL.__version__}" + (f", simplejpeg {simplejpeg.__version__}" if FAST_JPEG else "")
# pixels: for smaller images the size does not determine the scale at which simplejpeg decodes
SMALLEST_FAST = 16
LARGEST_FAST = 64_000_000  # bytes: simplejpeg needs the whole file in memory
BAND_PIXELS = 4_000_000  # pixels that are blended over white at once
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # EXIF orientation -> how to turn the image


class LostImage(UserError):
    """An image that could be decoded before training and cannot be decoded any more; the text names it."""


def decode(path: Path, smallest: int | None = None, intensity: Intensity | None = None) -> Image.Image:
    """Return the image in `path`, mode RGB.

    Grey images of more than 8 bits are converted with `intensity`, or by the range of their type. With
    `smallest` (pixels) a large JPEG may be decoded at a half, a quarter or an eighth of its size, as long as
    both sides stay at least `smallest`: that is several times faster, and not bit-identical to the full
    decode.

    Raises:
        BadImage: the file is missing, empty, truncated, not an image, larger than 128 megapixels, or would
            need too much memory or time.
    """
    with opened(path) as image:
        return load(image, smallest, intensity)


def seen_size(image: Image.Image) -> tuple[int, int]:
    """Return (width, height) of an opened image after its EXIF orientation, without decoding it."""
    return (image.height, image.width) if orientation(image) in (5, 6, 7, 8) else image.size


def load(image: Image.Image, smallest: int | None = None, intensity: Intensity | None = None) -> Image.Image:
    """Return the pixels of an opened image; see `decode`."""
    pixels = _jpeg_pixels(image, smallest)
    if pixels is None:
        return _load(image, smallest, intensity)
    loaded = Image.fromarray(pixels)
    loaded.info = dict(image.info)  # the colour profile, for a caller that saves the image
    return loaded


def load_pixels(image: Image.Image, level: int = 0, intensity: Intensity | None = None) -> np.ndarray:
    """Return the pixels of an opened image, (H, W, 3) uint8.

    A large JPEG is reduced to 1 / 2 ** `level` of its size.
    """
    smallest = min(image.size) >> level if level else None
    pixels = _jpeg_pixels(image, smallest)
    return np.asarray(_load(image, smallest, intensity)) if pixels is None else pixels


def check(path: Path) -> None:
    """Check that the image in `path` decodes; a JPEG is decoded at an eighth of its size.

    Raises:
        BadImage: as `decode` does.
    """
    with opened(path) as image:
        load(image, smallest=1)


def find_bad(
    paths: Sequence[Path], check: Callable[[Path], object] = check, title: str = "checking images"
) -> dict[int, str]:
    """Return {position: reason} of every path for which `check` raises `BadImage`. Uses all cores."""

    def problem(path: Path) -> str | None:
        try:
            check(path)
        except BadImage as bad:
            return str(bad)
        return None

    with ThreadPoolExecutor() as pool:  # threads are enough: decoders release the GIL
        results = tqdm(pool.map(problem, paths), title, len(paths), unit="img", leave=False)
        return {position: reason for position, reason in enumerate(results) if reason is not None}


def bad_images_error(bad: dict[Path, str]) -> UserError:
    """Return one error that lists undecodable training images and how to continue."""
    lines = [f"  - {path}: {reason}" for path, reason in list(bad.items())[:20]]
    if len(bad) > 20:
        lines.append(f"  ... and {len(bad) - 20} more")
    count = f"{len(bad)} training image{'s' if len(bad) > 1 else ''}"
    head = f"{count} cannot be decoded; fix them, or train without them: --set data.skip_bad_images=true"
    return UserError("\n".join([head, *lines]))


def lost_image_error(paths: Sequence[Path]) -> LostImage:
    """Return the error for images of one batch that could be decoded before training and cannot be any
    more.
    """
    try:
        check(paths[0])
        reason = "it could not be read, but can be now"
    except BadImage as bad:
        reason = str(bad)
    others = f" (and {len(paths) - 1} more of its batch)" if len(paths) > 1 else ""
    return LostImage(
        f"{paths[0]} cannot be decoded any more{others}: {reason}. No step was trained or scored without it, "
        "and the state is saved: restore the images (is their disk still mounted?), then continue with the "
        "same command and --resume"
    )


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an opened image (see `TURNS`); 1 if it has none."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except (OSError, *DAMAGE):  # damaged EXIF counts as absent
        return 1


def _load(image: Image.Image, smallest: int | None, intensity: Intensity | None) -> Image.Image:
    """Decode with Pillow, which also decides what counts as damaged."""
    if image.format in REDUCIBLE:
        refuse_many_scans(image)
        if smallest:
            image.draft("RGB", (smallest, smallest))
    try:
        image.load()
    except (OSError, *DAMAGE):  # damaged metadata may stand after the pixels
        image = reopened(image)
        if image is None:
            raise
        image.load()
    turn = TURNS.get(orientation(image))
    return _to_rgb(image if turn is None else image.transpose(turn), intensity or OWN_RANGES)


def _jpeg_pixels(image: Image.Image, smallest: int | None) -> np.ndarray | None:
    """Return the pixels of an upright RGB JPEG from simplejpeg, equal to those of `_load`.

    None for any other image, and where libjpeg gives an error or a warning.
    """
    if not FAST_JPEG or image.format not in REDUCIBLE or image.mode != "RGB" or orientation(image) != 1:
        return None
    if os.fstat(image.fp.fileno()).st_size > LARGEST_FAST:
        return None
    image.fp.seek(0)
    content = image.fp.read()
    refuse_many_scans(image, content)
    if smallest:
        image.draft("RGB", (smallest, smallest))
    width, height = image.size
    if min(width, height) < SMALLEST_FAST:
        return None
    try:
        pixels = simplejpeg.decode_jpeg(content, "RGB", min_width=width, min_height=height, strict=True)
    except ValueError:
        return None
    return pixels if pixels.shape == (height, width, 3) else None


def _to_rgb(image: Image.Image, intensity: Intensity) -> Image.Image:
    if is_deep(image.mode):
        image = _to_8_bit(image, intensity)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return _over_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8_bit(image: Image.Image, intensity: Intensity) -> Image.Image:
    """Convert grey of more than 8 bits with `intensity`.

    A value that the file declares transparent becomes white.
    """
    grey, clear = intensity.to_8_bit(image), image.info.get("transparency")
    if isinstance(clear, int):
        grey = Image.fromarray(np.where(np.asarray(image) == clear, np.uint8(255), np.asarray(grey)))
    return grey


def _over_white(image: Image.Image) -> Image.Image:
    result, rows = Image.new("RGB", image.size), max(BAND_PIXELS // image.width, 1)
    for top in range(0, image.height, rows):  # in bands: four copies of a whole image would need gigabytes
        whole = rows >= image.height
        pixels = (
            image if whole else image.crop((0, top, image.width, min(top + rows, image.height)))
        ).convert("RGBA")
        white = Image.new("RGBA", pixels.size, (255, 255, 255, 255))
        over = Image.alpha_composite(white, pixels).convert("RGB")
        if whole:
            return over
        result.paste(over, (0, top))
    return result
