"""Convert encoded images in a column of a table: base64 in CSV, bytes in parquet (Hugging Face datasets)."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.competition.folders import suffix_of
from pipeline.errors import UserError, raise_all
from pipeline.fetch.pixel_tables import DAMAGE, frames
from pipeline.fetch.pixels import encoded_suffix, new_file
from pipeline.fetch.staged_rows import (
    Staged,
    are_sample_ids,
    cell_text,
    id_column,
    named_rows,
    part_of,
    write_rows,
)
from pipeline.wording import capped, counted, listed, natural_key, quoted

ROWS = 200  # read at once
FEWEST = 60  # characters of an encoded image
DATA_URI = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)


def convert(stage: Staged) -> None:
    """Write the images of each table of encoded images below `stage.root` unchanged, and the table again
    without them.

    Tables of one part with the same columns (shards) are one, in the order of their numbers: their rows may
    have no ids.

    Raises:
        UserError: a table has several columns of images, or rows without one.
    """
    shards: dict[tuple[str, str, frozenset[str]], list[Path]] = {}
    orders: dict[Path, list[str]] = {}  # the other columns of each table
    tables = stage.files((".csv", ".tsv", ".parquet"))
    for path in sorted(tables, key=lambda path: natural_key(stage.shown(path))):
        if path == stage.sample or not (found := _image_columns(path)):
            continue
        columns, others = found
        if len(columns) > 1:
            raise UserError(
                f"{stage.shown(path)}: the columns {quoted(columns)} all hold encoded images, and a row can "
                "have one: take the others out of the table"
            )
        orders[path] = others
        shards.setdefault((part_of(stage.shown(path)), columns[0], frozenset(others)), []).append(path)
    if len(shards) == 1 and not stage.image_names and stage.repeated is None:
        shards = {(part or "train", *rest): paths for (part, *rest), paths in shards.items()}  # type: ignore[misc]
    for (part, column, _), paths in shards.items():
        stage.packages |= {"pyarrow"} if suffix_of(paths[0].name) == ".parquet" else set()
        _write(stage, part, column, orders[paths[0]], paths)


def _image_columns(path: Path) -> tuple[list[str], list[str]] | None:
    """Return the columns of encoded images and the other ones; None where there are no images."""
    try:
        head = next(frames(path, 8, text=True), None)
    except (UserError, ValueError, OSError):  # reported by another reader
        return None
    if head is None or not len(head):
        return None
    names = [str(name) for name in head.columns]
    found = [name for name in names if any(_decoded(value) for value in head[name])]
    return (found, [name for name in names if name not in found]) if found else None


def _decoded(value: Any) -> bytes:
    """Return the encoded image in a cell: bytes, bytes with a path, or base64; empty if it is none."""
    if isinstance(value, dict):
        value = value.get("bytes")
    if isinstance(value, str):
        text = DATA_URI.sub("", value.strip(), count=1)
        if len(text) < FEWEST or not re.fullmatch(r"[A-Za-z0-9+/\s]{24}", text[:24]):
            return b""
        try:
            value = base64.b64decode("".join(text.split()), validate=True)
        except (binascii.Error, ValueError):
            return b""
    return value if isinstance(value, bytes) and encoded_suffix(value) else b""


def _file_name(value: Any) -> str:
    """Return the file name that a cell of Hugging Face datasets gives beside the bytes; empty without one."""
    path = value.get("path") if isinstance(value, dict) else None
    return path.replace("\\", "/").rpartition("/")[2] if isinstance(path, str) else ""


def _rows(
    stage: Staged, paths: list[Path], column: str, others: list[str]
) -> Iterator[tuple[Any, list[str]]]:
    for path in paths:
        try:
            for frame in frames(path, ROWS, text=True):
                cells = frame[others].to_numpy(dtype=object).tolist()
                for value, row in zip(frame[column], cells, strict=True):
                    yield value, [cell_text(cell) for cell in row]
        except DAMAGE as error:
            raise UserError(
                f"{stage.shown(path)} cannot be read as a table: {' '.join(str(error).split())}"
            ) from None


def _write(stage: Staged, part: str, column: str, others: list[str], paths: list[Path]) -> None:
    shown = listed(stage.shown(path) for path in paths)
    bad, rows, file_names = [], [], []
    for number, (value, row) in enumerate(_rows(stage, paths, column, others), start=1):
        rows.append(row)
        file_names.append(_file_name(value))
        if not _decoded(value):
            bad.append(f"row {number} (without header): column {column!r} holds no encoded image")
    raise_all(
        capped(bad, "rows have no image"), f"{shown}: images are missing or damaged, download it again:"
    )
    if id_column(stage, others, rows, part) is None:
        for ids in (file_names, [name.rpartition(".")[0] for name in file_names]):
            if are_sample_ids(stage, part, ids):
                others, rows = (
                    [stage.id_column, *others],
                    [[name, *row] for name, row in zip(ids, rows, strict=True)],
                )
                break
    named = named_rows(stage, others, rows, part, paths[0], shown)
    for name, (value, _) in zip(named.names, _rows(stage, paths, column, []), strict=True):
        data = _decoded(value)
        # an id 7.png is the name of the file
        suffix = "" if suffix_of(name) == encoded_suffix(data) else encoded_suffix(data)
        with new_file(stage.root / named.folder / f"{name}{suffix}") as file:
            file.write(data)
    for path in paths:
        path.unlink()
    table = "none"
    if len(named.columns) > 1 or part:
        table = write_rows(stage, part, paths[0].stem, named.columns, named.cells)
    stage.notes.append(
        f"{shown}: {counted(len(rows), 'image')} of column {column!r} written into {named.folder}/ (names: "
        f"{named.how}); the other columns: {table}"
    )
