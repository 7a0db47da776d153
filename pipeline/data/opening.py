"""Open image files from unknown sources safely: allowed formats, and limits on memory and time that are
checked before decoding.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path

from PIL import Image

from pipeline.data import metadata
from pipeline.files import human_size

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

# Larger images are refused: a decompression bomb, or a scan that must be shrunk first
Image.MAX_IMAGE_PIXELS = 128_000_000
# Set once: changing warning filters in threads is not safe
warnings.simplefilter("ignore", Image.DecompressionBombWarning)
# About damaged metadata, which counts as absent
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

REDUCIBLE = ("JPEG", "MPO")  # formats that decode faster at a half, a quarter or an eighth of their size
# Left out are formats that start another program (PostScript) or use other libraries, films, and JPEG 2000,
# whose decoder crashes the whole process on some damaged files. The format is recognised from the content,
# not the name.
FORMATS = ("PNG", *REDUCIBLE, *"GIF BMP DIB TIFF WEBP AVIF PPM TGA ICO DDS PCX SGI QOI".split())
READ_WHOLE = ("WEBP", "AVIF")  # opening these reads the whole file into memory
SMALL_FILES = (*READ_WHOLE, *REDUCIBLE)  # formats that are small on disk: accepted only up to MAX_READ_BYTES

MAX_FILE_BYTES = 1_100_000_000  # 128 megapixels of four 16-bit channels
MAX_READ_BYTES = 256_000_000  # largest file in SMALL_FILES
MAX_DECODED_BYTES = 1_500_000_000  # memory for decoding one image, see `decoded_bytes`
# Only one image above this is decoded at a time on this machine, over all processes
LARGE_BYTES = 256_000_000
MAX_SCANS = 100  # limit for a progressive JPEG; cameras and editors write about ten
START_OF_SCAN = b"\xff\xda"
SCANNED_PIXELS = 2_000_000_000  # scans x pixels: about ten seconds
# The highest compression of a format: deflate 1,032 bytes per byte; a JPEG needs one bit for each block of 64
# pixels.
MAX_RATIO = dict.fromkeys(("PNG", "JPEG", "MPO"), 1_032)
MAX_RATIO |= dict.fromkeys(("BMP", "DIB", "PPM", "TGA", "PCX", "SGI", "DDS"), 256)
# Bytes per pixel in Pillow; 4 in other modes
STORED_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}
# Smallest number of bits per pixel in the file, by mode
FILE_BITS = {"1": 1, "L": 1, "P": 1, "RGB": 8, "RGBA": 8, "CMYK": 8, "LA": 16, "I;16": 16, "I": 16, "F": 32}

# Errors of Pillow's decoders and their libraries on damaged files (AVIF: RuntimeError; DDS:
# NotImplementedError, a subclass).
DAMAGE = (
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    RuntimeError,
    ArithmeticError,
    struct.error,
)
# Errors that do not come from the image: too many open files, a failing or missing drive.
OF_THE_SYSTEM = ("EMFILE", "ENFILE", "ENOMEM", "EIO", "ESTALE", "ENOTCONN", "EREMOTEIO", "ENODEV")
# Windows lacks some
_SYSTEM_NUMBERS = {getattr(errno, name) for name in OF_THE_SYSTEM if hasattr(errno, name)}
_TURN = threading.Lock()


class BadImage(Exception):
    """An image that cannot be decoded; the text gives the reason, without the path."""


@contextmanager
def opened(path: str | Path) -> Iterator[Image.Image]:
    """Open the file at `path` and read its header, not its pixels: call `images.load` inside the block.

    Only one image that needs much memory is open at a time, so work that needs its pixels belongs into the
    block.

    Raises:
        BadImage: as `images.decode` does.
        OSError: an error of the system, not of the image (see `OF_THE_SYSTEM`).
    """
    try:
        with ExitStack() as stack:
            image = stack.enter_context(_open(path))
            if _refuse_giant(image, path) > LARGE_BYTES:
                stack.enter_context(_turn())
            yield image
    except Image.DecompressionBombError:
        raise BadImage(f"more than {Image.MAX_IMAGE_PIXELS:,} pixels") from None
    except FileNotFoundError:
        raise BadImage("no such file") from None
    except Image.UnidentifiedImageError:
        num_bytes = Path(path).stat().st_size
        large = (
            f"a file of {human_size(num_bytes)} that is not a PNG, TIFF or BMP"
            if num_bytes > MAX_READ_BYTES
            else "not an image"
        )
        raise BadImage(large if num_bytes else "empty file") from None
    except OSError as error:  # the caller knows the path
        if error.errno in _SYSTEM_NUMBERS:
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise BadImage(error.strerror or str(error) or type(error).__name__) from None
    except DAMAGE as error:
        raise BadImage(str(error) or type(error).__name__) from None


def reopened(image: Image.Image) -> Image.Image | None:
    """Open an image again without its metadata.

    None where its format has none that matters, or it cannot be read.
    """
    return _without_metadata(image.filename) if getattr(image, "filename", "") else None


def decoded_bytes(image: Image.Image) -> int:
    """Return the largest memory that an opened image needs until it is an RGB array, from its header."""
    per_pixel = STORED_BYTES.get(image.mode, 4) + (0 if image.mode == "RGB" else 4) + 3
    if image.info.get("progressive"):
        per_pixel += 6  # libjpeg keeps the coefficients
    if image.format in READ_WHOLE:
        per_pixel += 8  # the library's own copy
    return per_pixel * image.width * image.height


def refuse_many_scans(image: Image.Image, content: bytes | None = None) -> None:
    """Check that an opened JPEG does not have too many scans. `content`: the file, if it was already read.

    Raises:
        BadImage: there are hundreds of scans, and each passes over the whole image.
    """
    if content is None:
        image.fp.seek(0)
        content = image.fp.read(MAX_READ_BYTES)
    if not image.info.get("progressive") and _has_one_scan(content, len(image.getbands())):
        return  # counting the scans would take a tenth of the decoding time
    scans = content.count(START_OF_SCAN)
    if scans > MAX_SCANS or (scans > 12 and scans * image.width * image.height > SCANNED_PIXELS):
        raise BadImage(f"a JPEG of {scans} scans, which would take minutes")


def _has_one_scan(content: bytes, components: int) -> bool:
    """Return True if the first scan holds all components: then libjpeg reads no other."""
    place = 2
    while content[place : place + 1] == b"\xff":
        if content[place : place + 2] == START_OF_SCAN:
            return content[place + 4 : place + 5] == bytes([components])
        place += 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    return False


@cache
def _formats(small: bool) -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN and (small or name not in SMALL_FILES))


def _open(path: str | Path) -> Image.Image:
    """Open the image at `path`; if only its metadata is damaged, without them."""
    found = os.stat(path)
    # Reading a pipe could wait for ever
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
        raise BadImage("not a file")
    if found.st_size > MAX_FILE_BYTES:
        raise BadImage(f"a file of {human_size(found.st_size)}; the limit is {human_size(MAX_FILE_BYTES)}")
    try:
        image = Image.open(path, formats=_formats(found.st_size <= MAX_READ_BYTES))
        if image.format == "TIFF" and metadata.hides_tags(image.fp) and (repaired := _without_metadata(path)):
            image.close()
            return repaired
        return image
    except Image.DecompressionBombError:
        raise
    except (OSError, *DAMAGE):
        repaired = _without_metadata(path)
        if repaired is None:
            raise
        return repaired


def _without_metadata(path: str | Path) -> Image.Image | None:
    try:
        if os.stat(path).st_size > metadata.MAX_BYTES:
            return None
        content = metadata.without_metadata(Path(path).read_bytes())
        return None if content is None else Image.open(io.BytesIO(content), formats=_formats(True))
    except Image.DecompressionBombError:
        raise
    except (OSError, *DAMAGE):
        return None


def _refuse_giant(image: Image.Image, path: str | Path) -> int:
    """Return `decoded_bytes` of an opened image after checking its size.

    Raises:
        BadImage: it would need too much memory, or its file is too small for the size in its header.
    """
    pixels = image.width * image.height
    if pixels > Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError
    size = f"{image.width:,} x {image.height:,} pixels"
    num_bytes, file_bytes = decoded_bytes(image), os.stat(path).st_size
    bits = 1 if image.format in REDUCIBLE else FILE_BITS.get(image.mode, 1)
    if image.format in MAX_RATIO and pixels * bits > 8 * MAX_RATIO[image.format] * file_bytes:
        raise BadImage(f"truncated: {file_bytes:,} bytes cannot hold {size}")
    if num_bytes > MAX_DECODED_BYTES:
        raise BadImage(
            f"{size} would need {human_size(num_bytes)} to decode; the limit is "
            f"{human_size(MAX_DECODED_BYTES)}"
        )
    return num_bytes


@contextmanager
def _turn() -> Iterator[None]:
    """Wait until no other process or thread is in such a block. The lock ends with the process."""
    with ExitStack() as stack:
        if fcntl is None:
            stack.enter_context(_TURN)
        else:
            # Every caller opens it: a lock belongs to the open file
            file = stack.enter_context(open(__file__, "rb"))
            with suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
