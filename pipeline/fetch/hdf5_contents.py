"""List the datasets of an HDF5 file within limits, and read their entries one after the other, with h5py.

A file from elsewhere may lead to other files, declare any size, or hold a bomb of compressed chunks: nothing
outside the file is opened, and sizes are compared with the size of the file before anything is read.
"""

from __future__ import annotations

import math
import mmap
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pipeline.errors import UserError, one_line
from pipeline.fetch.budget import MAX_DEPTH, Budget, allowed_bytes
from pipeline.fetch.pixels import encoded_suffix
from pipeline.fetch.stacks import Array

INSTALL = "python -m pip install h5py"
MAX_ENTRY_BYTES = 10**9  # one image, or one chunk
BLOCK_BYTES, MAX_BLOCK_BYTES = 16 * 10**6, 512 * 10**6  # rows of a stack that are read at once
SMALL_CHUNK = 10**6  # stored bytes; gzip makes of them at most a thousand times as much
DEFLATE, COMPRESSIONS = 1, {1: "gzip", 4: "szip", 32000: "lzf"}
WITHOUT_ZEROS = (".jpg", ".png", ".gif")  # formats that do not end with a zero byte
# attributes by which other programs know their own files
FOREIGN = {
    "keras_version": "it holds the weights of a Keras model",
    "layer_names": "it holds the weights of a Keras model",
    "pandas_type": "it holds tables of pandas; save them as CSV",
}
_DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, MemoryError, AttributeError)


class Unsuited(Exception):
    """A file is not damaged, but it is not read; the text says why."""


@dataclass(frozen=True, slots=True)
class Dataset(Array):
    """One dataset of an HDF5 file. `key`: its path in the file; `shown`: the file, for messages.

    `kind`: as of `Array`, and B for bytes of unknown content, O for what is never an image.
    """

    shown: str = ""
    num_bytes: int = 0  # as declared; of values of variable length their places alone

    def load(self) -> np.ndarray:
        """Return all values.

        Raises:
            UserError: they are damaged.
        """
        with opened(self.path, self.shown) as file:
            _check_chunks(file[self.key], self)
            return np.asarray(file[self.key][()])

    def entries(self) -> Iterator[np.ndarray | bytes]:
        """Yield the entries along the first axis; encoded images as bytes.

        Raises:
            UserError: they are damaged, or more than a file of this size can hold.
        """
        spent, allowed = 0, allowed_bytes(self.path.stat().st_size)
        with opened(self.path, self.shown) as file:
            dataset = file[self.key]
            _check_chunks(dataset, self)
            step = _rows_at_once(dataset)
            for start in range(0, self.shape[0], step):
                stop = min(start + step, self.shape[0])
                for entry in _bytes(dataset, start, stop) if self.kind == "e" else dataset[start:stop]:
                    spent += len(entry)
                    if self.kind == "e" and spent > allowed:
                        raise UserError(_too_much(self, allowed))
                    yield entry


def read_each(datasets: Sequence[Dataset]) -> Iterator[np.ndarray | bytes]:
    """Yield the value of each of `datasets`, all of one file; encoded images (kind e) as bytes.

    Raises:
        UserError: one is damaged, or together they are more than a file of this size can hold.
    """
    if not datasets:
        return
    spent, allowed = 0, allowed_bytes(datasets[0].path.stat().st_size)
    with opened(datasets[0].path, datasets[0].shown) as file:
        for entry in datasets:
            dataset = file[entry.key]
            _check_chunks(dataset, entry)
            value = _single(dataset) if entry.kind == "e" else np.asarray(dataset[()])
            spent += len(value) if isinstance(value, bytes) else value.nbytes
            if spent > allowed:
                raise UserError(_too_much(entry, allowed))
            yield value


def starts(datasets: Sequence[Dataset]) -> Iterator[str]:
    """Yield for each of `datasets`, all of one file, the suffix of the encoded image that it (or its first
    entry) holds; empty for anything else.

    Raises:
        UserError: one is damaged.
    """
    if not datasets:
        return
    with opened(datasets[0].path, datasets[0].shown) as file:
        for entry in datasets:
            dataset = file[entry.key]
            _check_chunks(dataset, entry)
            if entry.kind == "u":
                yield encoded_suffix(bytes(dataset[:32]))
            elif entry.shape in ((), (1,)):
                yield encoded_suffix(_single(dataset))
            else:
                yield encoded_suffix(_bytes(dataset, 0, 1)[0]) if entry.shape[0] else ""


@contextmanager
def opened(path: Path, shown: str) -> Iterator[Any]:
    """Open an HDF5 file for reading.

    Raises:
        UserError: h5py is not installed, or what is read inside the block is damaged.
    """
    try:
        import h5py
    except ImportError:
        raise UserError(
            f"{shown}: HDF5 files need one more package: {INSTALL}; then run the command again"
        ) from None
    try:
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except UserError:
        raise
    except _DAMAGE as error:
        reason = one_line(str(error))[:300] or type(error).__name__
        raise UserError(
            f"{shown} is damaged or cut short ({reason}); download it again, or move it away, and run the "
            "command again"
        ) from None


def contents(path: Path, shown: str) -> tuple[list[Dataset], int]:
    """Return the datasets of an HDF5 file, from their headers, and the number of links inside the file.

    These links are not followed: what they lead to has a name of its own.

    Raises:
        UserError: the file is damaged, or leads to other files.
        Unsuited: it belongs to another program, or declares more than a file of its size can hold.
    """
    with open(path, "rb") as start:
        if start.read(4) == b"\x0e\x03\x13\x01":
            raise Unsuited("it is HDF4, an older format; convert it with h4toh5")
    found: list[Dataset] = []
    links, heaps_checked = 0, False
    budget = Budget(shown, path.stat().st_size)
    with opened(path, shown) as file, tqdm(unit="name", desc=shown, disable=None, leave=False) as bar:
        waiting, seen = [("", file)], {_address(file)}
        while waiting:
            place, group = waiting.pop()
            if reason := next((reason for name, reason in FOREIGN.items() if name in group.attrs), ""):
                raise Unsuited(reason)
            for name in group:
                key = f"{place}/{name}" if place else name
                bar.update()
                budget.used_members += 1
                if budget.members_left < 0 or key.count("/") > MAX_DEPTH:
                    raise Unsuited("it has more names, or groups in groups, than a file of images needs")
                if (entry := _target(group, name, f"{shown}/{one_line(key)}")) is None:
                    links += 1
                elif hasattr(entry, "attrs") and hasattr(entry, "keys"):
                    if _address(entry) in seen:  # a second name, or a circle
                        links += 1
                        continue
                    seen.add(_address(entry))
                    waiting.append((key, entry))
                elif hasattr(entry, "chunks"):
                    if entry.dtype.kind == "O" and not heaps_checked:
                        _check_heaps(path, file.id.get_create_plist().get_sizes()[1])
                        heaps_checked = True
                    found.append(_described(entry, path, key, shown))
                    budget.used_bytes += found[-1].num_bytes
                    if budget.bytes_left < 0 or _entry_bytes(entry) > MAX_ENTRY_BYTES:
                        raise Unsuited(
                            f"{one_line(key)!r} has the shape {entry.shape} in a file of "
                            f"{path.stat().st_size:,} bytes"
                        )
    return found, links


def _address(entry: Any) -> Any:
    import h5py

    return h5py.h5o.get_info(entry.id).addr


def _target(group: Any, name: str, shown: str) -> Any:
    """Return the group or dataset of a name; None for a link inside the file."""
    import h5py

    link = group.get(name, getlink=True)
    if isinstance(link, h5py.SoftLink):
        return None
    if isinstance(link, h5py.HardLink):
        entry = group[name]
        if not isinstance(entry, h5py.Dataset) or not (entry.is_virtual or entry.external):
            return entry
    raise UserError(
        f"{shown} leads to another file, which is not opened; move the HDF5 file away, or write one that "
        "holds its data itself, and run the command again"
    )


def _described(dataset: Any, path: Path, key: str, shown: str) -> Dataset:
    import h5py

    shape, kind, num_bytes = dataset.shape, dataset.dtype.kind, dataset.dtype.itemsize
    base = h5py.check_vlen_dtype(dataset.dtype)
    text = h5py.check_string_dtype(dataset.dtype)
    if shape is None or dataset.dtype.fields or dataset.dtype.subdtype:
        kind = "O"
    elif kind == "V" or text or (base is not None and base.kind in "ui" and base.itemsize == 1):
        kind = "B"
    elif kind not in "uifb":
        kind = "O"
    shape = shape or ()
    return Dataset(path, key, shape, kind, shown, math.prod(shape) * num_bytes)


def _check_heaps(path: Path, length: int) -> None:
    """Check the places where values of variable length lie: in damaged ones HDF5 goes round without end.

    `length`: bytes of a size in this file.

    Raises:
        ValueError: an object has no size, or leaves its place.
    """
    head = -(-(8 + length) // 8) * 8  # of a place, and of each object in it
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = -1
        while (start := data.find(b"GCOL\1\0\0\0", start + 1)) >= 0:
            end = start + int.from_bytes(data[start + 8 : start + 8 + length], "little")
            place = start + head
            while place + head <= min(end, len(data)):
                size = int.from_bytes(data[place + 8 : place + 8 + length], "little")
                number = int.from_bytes(data[place : place + 2], "little")
                needed = head + -(-size // 8) * 8 if number else size
                if not 0 < needed <= end - place:
                    raise ValueError(f"values of variable length at byte {place:,}: size {size:,}")
                place += needed


def _entry_bytes(dataset: Any) -> int:
    """Return the bytes of one image or one chunk, the larger one."""
    shape = dataset.shape or ()
    one = math.prod(shape[1:] if len(shape) > 3 else shape) if len(shape) != 1 else 1
    chunk = math.prod(dataset.chunks) if dataset.chunks else 0
    return max(one, chunk) * dataset.dtype.itemsize


def _rows_at_once(dataset: Any) -> int:
    """Return how many entries to read at once: whole chunks, so that each is decompressed once."""
    row = max(1, math.prod(dataset.shape[1:]) * max(dataset.dtype.itemsize, 16))
    rows = max(1, BLOCK_BYTES // row)
    if not dataset.chunks:
        return rows
    chunk = dataset.chunks[0]
    return max(1, min(-(-rows // chunk) * chunk, max(rows, MAX_BLOCK_BYTES // row)))


def _check_chunks(dataset: Any, entry: Dataset) -> None:
    """Check that no chunk decompresses to more than its declared size, before h5py does it in memory.

    Raises:
        UserError: one does, or it is compressed in a way that h5py lacks.
    """
    import h5py

    if not dataset.chunks:
        return
    plist = dataset.id.get_create_plist()
    codes = [plist.get_filter(number)[0] for number in range(plist.get_nfilters())]
    where = f"{entry.shown}/{one_line(entry.key)}"
    missing = [str(code) for code in codes if not h5py.h5z.filter_avail(code)]
    if missing:
        raise UserError(
            f"{where} is compressed with filter {', '.join(missing)}, which h5py lacks; write the file again "
            "with h5repack -f GZIP=4, and run the command again"
        )
    if sum(code in COMPRESSIONS for code in codes) > 1:
        raise UserError(f"{where} is compressed twice, as no file of images is; move the file away")
    if DEFLATE not in codes:
        return
    limit = math.prod(dataset.chunks) * dataset.dtype.itemsize
    large: list[Any] = []
    dataset.id.chunk_iter(lambda chunk: large.append(chunk) if chunk.size > SMALL_CHUNK else None)
    for chunk in large:
        _, data = dataset.id.read_direct_chunk(chunk.chunk_offset)
        unpacker, size = zlib.decompressobj(), 0
        while data and not unpacker.eof and size <= limit:
            try:
                size += len(unpacker.decompress(data, BLOCK_BYTES))
            except zlib.error as error:
                raise ValueError(str(error)) from None
            data = unpacker.unconsumed_tail
        if size > limit + 4:  # a checksum
            raise UserError(
                f"{where}: a chunk of {chunk.size:,} bytes becomes more than the {limit:,} that it declares; "
                "it may be a decompression bomb: move the file away"
            )


def _single(dataset: Any) -> bytes:
    """Return the bytes of a dataset with one value, or with one value for each byte."""
    if dataset.dtype.kind == "u":
        return np.asarray(dataset[()]).tobytes()
    if dataset.dtype.kind in "SV":
        return _raw(dataset, dataset.shape, None)[0]
    value = dataset[()] if dataset.shape == () else dataset[0]
    return value.encode() if isinstance(value, str) else bytes(value)


def _bytes(dataset: Any, start: int, stop: int) -> list[bytes]:
    """Return some entries as bytes; those of a fixed length without the zeros that fill it."""
    if dataset.dtype.kind in "SV":
        found = _raw(dataset, (stop - start,), start)
        return [data.rstrip(b"\0") if encoded_suffix(data) in WITHOUT_ZEROS else data for data in found]
    return [value.encode() if isinstance(value, str) else bytes(value) for value in dataset[start:stop]]


def _raw(dataset: Any, shape: tuple[int, ...], start: int | None) -> list[bytes]:
    """Return values of a fixed length as they are stored; as texts they would end at a zero byte."""
    import h5py

    values = np.empty(shape or (1,), np.dtype(f"V{dataset.dtype.itemsize}"))
    source = dataset.id.get_space()
    if start is not None:
        source.select_hyperslab((start,), shape)
    target = h5py.h5s.create_simple(shape) if shape else h5py.h5s.create(h5py.h5s.SCALAR)
    dataset.id.read(target, source, values, mtype=dataset.id.get_type())
    return [value.tobytes() for value in values]


def _too_much(entry: Dataset, allowed: int) -> str:
    return (
        f"{entry.shown} was not read: up to {one_line(entry.key)!r} it becomes more than {allowed:,} bytes, "
        "more than a file of its size with images can hold; move the file away"
    )
