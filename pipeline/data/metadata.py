"""Remove metadata from image files, for good images whose comments, EXIF or colour profile are damaged.

Pillow refuses a PNG with a wrong checksum in a comment, and stops reading a TIFF's tags at the first one that
it cannot read.
"""

from __future__ import annotations

import struct
import zlib
from typing import BinaryIO

MAX_BYTES = 256_000_000  # larger files are not copied into memory for this
PNG, RIFF, TIFF_ORDERS = b"\x89PNG\r\n\x1a\n", b"RIFF", {b"II*\0": "<", b"MM\0*": ">"}
PNG_CRITICAL = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
# Change what is seen; removed only if checksum or length is wrong, as libpng does with tRNS
PNG_SEEN = (b"tRNS", b"eXIf")
# Smallest and largest tRNS by colour type; others have none
PNG_TRANSPARENT_BYTES = {0: (2, 2), 2: (6, 6), 3: (1, 256)}
PNG_COLOUR_AT = 25  # position of the colour type, in IHDR
EXIF_BYTES = 64_000  # an orientation never needs more
WEBP_ALPHA = 0x10  # in the flags of VP8X; the other flags stand for a profile, EXIF, XMP and frames
# Tags that a decoder needs: size, layout, compression, colours.
# https://www.awaresystems.be/imaging/tiff/tifftags.html
TIFF_DECODING = frozenset(
    int(tag)
    for tag in (
        "254 255 256 257 258 259 262 266 273 274 277 278 279 280 281 284 290 291 292 293 301 317 318 319 320 "
        "321 322 323 324 325 332 333 334 336 338 339 340 341 342 347 512 513 514 515 517 518 519 520 521 529 "
        "530 531 532"
    ).split()
)
# Bytes of a value, by type
TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}


def without_metadata(content: bytes) -> bytes | None:
    """Return the PNG, WebP or TIFF in `content` without its metadata.

    None for other formats or if that fails.
    """
    for kind in (_png, _webp, _tiff):
        if (found := kind(content)) is not None:
            return found
    return None


def hides_tags(file: BinaryIO) -> bool:
    """Return True for a TIFF with a tag whose value lies outside the file: Pillow would not read the tags
    after it.

    Leaves `file` at position 0.
    """
    try:
        file.seek(0)
        order = TIFF_ORDERS.get(file.read(4))
        if order is None:
            return False
        (start,) = struct.unpack(order + "L", file.read(4))
        file.seek(start)
        (count,) = struct.unpack(order + "H", file.read(2))
        table = file.read(12 * count)
        end = file.seek(0, 2)
        for tag, kind, number, offset in struct.iter_unpack(order + "HHLL", table[: len(table) // 12 * 12]):
            num_bytes = TIFF_SIZES.get(kind, 0) * number
            if num_bytes > 4 and offset + num_bytes > end and tag not in TIFF_DECODING:
                return True
        return False
    except (struct.error, OSError):  # truncated: the decoder reports it
        return False
    finally:
        file.seek(0)


def _png(content: bytes) -> bytes | None:
    if not content.startswith(PNG):
        return None
    kept, place = [PNG], len(PNG)
    while place + 12 <= len(content):
        (length,) = struct.unpack(">L", content[place : place + 4])
        name, end = content[place + 4 : place + 8], place + 12 + length
        if name in PNG_CRITICAL or (name in PNG_SEEN and _is_whole(content, place, length)):
            kept.append(content[place:end])
        if name == b"IEND":
            break
        place = end
    return b"".join(kept)


def _is_whole(content: bytes, place: int, length: int) -> bool:
    if content[place + 4 : place + 8] == b"tRNS":
        least, most = PNG_TRANSPARENT_BYTES.get(content[PNG_COLOUR_AT], (1, 0))
        if not least <= length <= most:
            return False
    (checksum,) = struct.unpack(">L", content[place + 8 + length : place + 12 + length].ljust(4, b"\0"))
    return length <= EXIF_BYTES and zlib.crc32(content[place + 4 : place + 8 + length]) == checksum


def _webp(content: bytes) -> bytes | None:
    if not content.startswith(RIFF) or content[8:12] != b"WEBP":
        return None
    chunks, place = {}, 12
    while place + 8 <= len(content):
        name, (length,) = content[place : place + 4], struct.unpack("<L", content[place + 4 : place + 8])
        end = place + 8 + length + length % 2
        chunks.setdefault(name, content[place:end])
        if name in (b"VP8 ", b"VP8L") or name == b"ANMF":
            break
        place = end
    if b"ANMF" in chunks:
        return None
    if not {b"VP8 ", b"VP8L"} & chunks.keys():  # an earlier chunk states a wrong length
        chunks |= {
            name: content[place:]
            for name in (b"ALPH", b"VP8 ", b"VP8L")
            if (place := content.find(name, 12)) > 0
        }
        chunks = {name: chunk[: 8 + int.from_bytes(chunk[4:8], "little")] for name, chunk in chunks.items()}
        chunks = {name: chunk + bytes(len(chunk) % 2) for name, chunk in chunks.items()}
    pixels = chunks.get(b"VP8 ") or chunks.get(b"VP8L")
    if pixels is None or len(pixels) < 8 + int.from_bytes(pixels[4:8], "little"):  # truncated
        return None
    body = [pixels]
    if b"ALPH" in chunks and len(head := chunks.get(b"VP8X", b"")) == 18:
        body = [head[:8] + bytes([WEBP_ALPHA]) + head[9:], chunks[b"ALPH"], pixels]
    joined = b"WEBP" + b"".join(body)
    return RIFF + struct.pack("<L", len(joined)) + joined


def _tiff(content: bytes) -> bytes | None:
    order = TIFF_ORDERS.get(content[:4])
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(order + "L", content, 4)
        (count,) = struct.unpack_from(order + "H", content, start)
        entries = list(struct.iter_unpack(order + "H10s", content[start + 2 : start + 2 + 12 * count]))
    except struct.error:
        return None
    if len(entries) < count:
        return None
    kept = [struct.pack(order + "H10s", *entry) for entry in entries if entry[0] in TIFF_DECODING]
    directory = struct.pack(order + "H", len(kept)) + b"".join(kept) + bytes(4)  # no further image
    return content[:start] + directory + content[start + len(directory) :]
