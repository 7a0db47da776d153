"""Read TFRecord files and tf.train.Example messages by their documented formats, without TensorFlow."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, raise_all

MAX_RECORD = 1 << 28  # bytes
Features = dict[str, list[Any]]  # name -> values: bytes, int or float


def examples(path: Path, where: str) -> Iterator[Features]:
    """Yield the examples of a file in order, also from a gzip file. `where`: the file's name in messages.

    Raises:
        UserError: it is cut short, or is not a TFRecord file of tf.train.Example messages.
    """
    with open(path, "rb") as plain:
        packed = plain.read(2) == b"\x1f\x8b"
        plain.seek(0)
        file = gzip.GzipFile(fileobj=plain) if packed else plain
        number = 0
        try:
            while head := file.read(12):
                number += 1
                length = struct.unpack("<Q", head[:8])[0] if len(head) == 12 else 0
                if (
                    len(head) < 12
                    or masked_crc32c(head[:8]) != struct.unpack("<I", head[8:])[0]
                    or length > MAX_RECORD
                ):
                    raise UserError(
                        f"{where}, record {number}: its length is damaged or cut short; download the file "
                        "again"
                    )
                data = file.read(length)
                if len(data) < length or len(file.read(4)) < 4:
                    raise UserError(f"{where}, record {number}: the file is cut short; download it again")
                yield features(data)
        except (
            IndexError,
            KeyError,
            TypeError,
            AttributeError,
            struct.error,
            EOFError,
            OSError,
            zlib.error,
            ValueError,
        ) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"{where}, record {number}: not a tf.train.Example ({error}); download the file again"
            ) from None
    raise_all([f"{where} holds no record"] if number == 0 else [], "empty:")


def features(data: bytes) -> Features:
    """Decode the features of one tf.train.Example message.

    Raises:
        ValueError: it is not such a message.
    """
    found: Features = {}
    for field_number, _, content in _fields(data):
        if field_number != 1:
            continue
        for _, _, entry in _fields(content):
            parts = {number: value for number, _, value in _fields(entry)}
            found[parts[1].decode("utf-8")] = _values(parts.get(2, b""))
    return found


def _values(feature: bytes) -> list[Any]:
    values: list[Any] = []
    for kind, _, content in _fields(feature):
        for _, wire, value in _fields(content):
            if kind == 1:
                values.append(value)
            elif kind == 2:
                values += [value] if wire == 5 else list(struct.unpack(f"<{len(value) // 4}f", value))
            elif kind == 3 and wire == 0:
                values.append(_signed(value))
            elif kind == 3:
                position = 0
                while position < len(value):
                    number, position = _varint(value, position)
                    values.append(_signed(number))
    return values


def _signed(number: int) -> int:
    return number - (1 << 64) if number >= 1 << 63 else number


def _fields(data: bytes) -> Iterator[tuple[int, int, Any]]:
    """Yield (field number, wire type, value) of a protobuf message; value is an int, a float, or bytes."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        wire = tag & 7
        if wire == 0:
            value, position = _varint(data, position)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
            value = struct.unpack_from("<d" if wire == 1 else "<f", data, position)[0]
            position = position + size
        elif wire == 2:
            length, position = _varint(data, position)
            if position + length > len(data):
                raise ValueError("a field is longer than its message")
            value, position = data[position : position + length], position + length
        else:
            raise ValueError(f"wire type {wire}")
        yield tag >> 3, wire, value


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("a number without end")


def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_CRC = _crc_table()


def masked_crc32c(data: bytes) -> int:
    """Return TFRecord's checksum of `data`.

    Only record lengths are checked: in Python, checking images would be too slow.
    """
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC[(crc ^ byte) & 255] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
