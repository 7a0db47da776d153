"""An image file as a person would see it: orientation applied, first frame, transparency over white, 8-bit RGB."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import PIL
from PIL import ExifTags, Image, ImageOps, features
from tqdm import tqdm

from pipeline.errors import UserError

try:
    import simplejpeg
except (ImportError, ValueError):  # not installed, or built for another numpy: Pillow decodes the same pixels
    simplejpeg = None

Image.MAX_IMAGE_PIXELS = 128_000_000  # beyond it decode() refuses: a decompression bomb, or a scan to shrink first
warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # once for all: warning filters cannot be changed safely in threads

REDUCIBLE = ("JPEG", "MPO")  # formats that are decoded at a half, a quarter or an eighth of their size for less

LEVELS = 4  # full size, a half, a quarter, an eighth: levels 0 to 3
# Through simplejpeg a JPEG takes 14 to 25 % less time. Only two libjpeg-turbos decode to the same pixels.
FAST_JPEG = simplejpeg is not None and features.check("libjpeg_turbo")
DECODERS = f"Pillow {PIL.__version__}" + (f", simplejpeg {simplejpeg.__version__}" if FAST_JPEG else "")
SMALLEST_FAST = 16  # pixels: below, a size does not tell at which scale simplejpeg is to decode

# What Pillow's decoders and the libraries under them raise on damage (AVIF: RuntimeError; DDS: NotImplementedError, a RuntimeError too).
_DAMAGE = (ValueError, SyntaxError, EOFError, LookupError, TypeError, RuntimeError, ArithmeticError, struct.error)


class BadImage(Exception):
    """An image that cannot be decoded; the text says why, without the path."""


def decode(path: Path, smallest: int | None = None) -> Image.Image:
    """The picture in `path`, mode RGB.

    With `smallest` (pixels) a large JPEG may be decoded at a half, a quarter or an eighth of its size, as long as both sides
    stay at least `smallest`: several times faster, and then not bit-equal to the full decode.

    Raises:
        BadImage: the file is missing, empty, truncated, not an image, or larger than 128 megapixels.
    """
    with opened(path) as image:
        return load(image, smallest)


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """The file at `path`, its header read and its pixels not: see `seen_size` and `load`, which belong inside the block.

    Raises:
        BadImage: as `decode` does.
    """
    try:
        with Image.open(path) as image:
            if image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError
            yield image
    except Image.DecompressionBombError:
        raise BadImage(f"more than {Image.MAX_IMAGE_PIXELS:,} pixels") from None
    except FileNotFoundError:
        raise BadImage("no such file") from None
    except Image.UnidentifiedImageError:
        raise BadImage("empty file" if Path(path).stat().st_size == 0 else "not an image") from None
    except OSError as error:  # without the path, which the caller knows
        raise BadImage(error.strerror or str(error) or type(error).__name__) from None
    except _DAMAGE as error:
        raise BadImage(str(error) or type(error).__name__) from None


def seen_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) of an opened picture as a person sees it, before any decoding."""
    return (image.height, image.width) if _orientation(image) in (5, 6, 7, 8) else image.size


def load(image: Image.Image, smallest: int | None = None) -> Image.Image:
    """The pixels of an opened picture; see `decode`."""
    pixels = _jpeg_pixels(image, smallest)
    if pixels is None:
        return _load(image, smallest)
    picture = Image.fromarray(pixels)
    picture.info = dict(image.info)  # the colour profile, for who saves it again
    return picture


def load_pixels(image: Image.Image, level: int = 0) -> np.ndarray:
    """(H, W, 3) uint8: the pixels of an opened picture; those of a large JPEG at 1 / 2 ** `level` of its size."""
    smallest = min(image.size) >> level if level else None
    pixels = _jpeg_pixels(image, smallest)
    return np.asarray(_load(image, smallest)) if pixels is None else pixels


def check(path: Path) -> None:
    """Decode the picture in `path` for nothing but to know that it can be, a JPEG at an eighth of its size.

    Raises:
        BadImage: as `decode` does.
    """
    decode(path, smallest=1)


def find_bad(paths: Sequence[Path], check: Callable[[Path], object] = check, title: str = "checking images") -> dict[int, str]:
    """Position -> reason for every path that cannot be decoded: of which `check` raises `BadImage`, called once for each, on all cores."""

    def problem(path: Path) -> str | None:
        try:
            check(path)
        except BadImage as bad:
            return str(bad)
        return None

    with ThreadPoolExecutor() as pool:  # threads: decoders let others run meanwhile
        results = tqdm(pool.map(problem, paths), title, len(paths), unit="img", leave=False)
        return {position: reason for position, reason in enumerate(results) if reason is not None}


def bad_images_error(bad: dict[Path, str]) -> UserError:
    """One error that lists undecodable training images and says how to go on."""
    lines = [f"  - {path}: {reason}" for path, reason in list(bad.items())[:20]]
    if len(bad) > 20:
        lines.append(f"  ... and {len(bad) - 20} more")
    count = f"{len(bad)} training image{'s' if len(bad) > 1 else ''}"
    return UserError("\n".join([f"{count} cannot be decoded; mend them, or train without them: --set data.skip_bad_images=true", *lines]))


def _orientation(image: Image.Image) -> int:
    return image.getexif().get(ExifTags.Base.Orientation, 1)


def _load(image: Image.Image, smallest: int | None) -> Image.Image:
    """Pillow's way, which also decides what is damaged."""
    if smallest:
        image.draft("RGB", (smallest, smallest))
    image.load()
    return _to_rgb(ImageOps.exif_transpose(image))


def _jpeg_pixels(image: Image.Image, smallest: int | None) -> np.ndarray | None:
    """What `_load` gives of an upright RGB JPEG, from simplejpeg. None for anything else, and where libjpeg has as much as a warning."""
    if not FAST_JPEG or image.format not in REDUCIBLE or image.mode != "RGB" or _orientation(image) != 1:
        return None
    if smallest:
        image.draft("RGB", (smallest, smallest))
    width, height = image.size
    if min(width, height) < SMALLEST_FAST:
        return None
    image.fp.seek(0)
    try:
        pixels = simplejpeg.decode_jpeg(image.fp.read(), "RGB", min_width=width, min_height=height, strict=True)
    except ValueError:
        return None
    return pixels if pixels.shape == (height, width, 3) else None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I;16", "I;16B", "I;16L", "I;16N", "I", "F"):
        image = _to_8_bit(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        pixels = image.convert("RGBA")
        white = Image.new("RGBA", pixels.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, pixels).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits, scaled: Pillow's own convert("L") clips it to white."""
    values = np.asarray(image, dtype=np.float64)
    if image.mode == "F":
        top = values.max() if values.size and values.max() > 255 else (255.0 if values.max() > 1 else 1.0)
    else:
        top = 255.0 if values.max() <= 255 else 65535.0
    return Image.fromarray(np.clip(values / top * 255 + 0.5, 0, 255).astype(np.uint8), mode="L")
