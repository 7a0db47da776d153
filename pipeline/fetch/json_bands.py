"""Convert images in JSON lists of numbers: rows such as {"id": ..., "band_1": [5625 numbers], "band_2":
[...], "is_iceberg": 0}.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pipeline.errors import UserError, raise_all
from pipeline.fetch.grey_range import Rule, Survey
from pipeline.fetch.pixels import Shape, channels_rule
from pipeline.fetch.staged_rows import (
    BETWEEN,
    Staged,
    id_column,
    named_rows,
    part_of,
    write_rows,
)
from pipeline.wording import capped, counted, listed

FEWEST = 64
PIECE = 1 << 20  # characters read at once
MAX_ROW = 256 << 20  # characters of one row in a list
MAX_FIRST = 16 << 20  # characters of a row outside a list; a larger one is the whole file


@dataclass(frozen=True)
class _Bands:
    """A JSON file whose rows hold images: the keys of their bands, and the shape of a band."""

    path: Path
    keys: list[str]
    shape: Shape
    part: str


def convert(stage: Staged) -> None:
    """Write an image for each row of each JSON file below `stage.root` with bands of numbers, and a table of
    the other keys.

    Raises:
        UserError: the JSON is cut short or broken, or bands differ in length or hold values that are not
            numbers; every such row is listed. Or a kernel finds other bands than `make data` did.
    """
    paths = sorted(stage.files((".json", ".jsonl")), key=lambda path: part_of(stage.shown(path)) != "train")
    found = [bands for path in paths if (bands := _recognised(stage, path))]
    if not found:
        return
    # The order of keys in JSON means nothing, but training and test images need the same one
    first = stage.decide("bands of numbers", lambda: found[0].keys)
    if stage.repeated is not None:
        raise_all(
            [
                f"{stage.shown(bands.path)}: {listed(bands.keys)}"
                for bands in found
                if set(bands.keys) != set(first)
            ],
            f"other bands than {listed(first)}, which `make data` made the channels of images; run it on the "
            "newest download, then train again:",
        )
    found = [replace(bands, keys=_in_order_of(first, bands.keys)) for bands in found]
    survey, others = Survey(), {}
    for bands in found:
        problems: list[str] = []
        others[bands.path] = []
        for number, row in enumerate(_rows(bands.path), start=1):
            others[bands.path].append({key: value for key, value in row.items() if key not in bands.keys})
            try:
                survey.add(_planes(row, bands))
            except ValueError as error:
                problems.append(f"row {number} ({row.get('id', 'no id')}): {error}")
        raise_all(
            capped(problems, "rows are incomplete"),
            f"{stage.shown(bands.path)} holds rows that are not images:",
        )
    rule = stage.rule("grey levels of bands", survey.rule)
    for bands in found:
        _write(stage, bands, others[bands.path], rule)
    colours = channels_rule(len(found[0].keys))
    stage.notes.append(f"bands in JSON: {rule.says}" + (f"; {colours}" if colours else ""))


def _in_order_of(first: list[str], keys: list[str]) -> list[str]:
    """Return `keys` in the order of the `first` file, if it has the same ones."""
    return list(first) if set(first) == set(keys) else keys


def _write(stage: Staged, bands: _Bands, rows: list[dict[str, Any]], rule: Rule) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_text(row.get(column)) for column in columns] for row in rows]
    original = stage.shown(bands.path)
    named = named_rows(stage, columns, cells, bands.part, bands.path, original)
    folder = stage.root / named.folder
    for name, row in zip(
        tqdm(named.names, unit="image", desc=original, disable=None), _rows(bands.path), strict=True
    ):
        stage.save(rule.apply(_planes(row, bands)), folder / f"{name}.png")
    bands.path.unlink()
    written = write_rows(stage, bands.part, bands.path.stem, named.columns, named.cells)
    stage.notes.append(
        f"{original}: {counted(len(rows), 'image')} written into {named.folder}/ ({bands.shape.says}, from "
        f"{listed(bands.keys)}; names: {named.how}); the other keys: {written}"
    )


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list) and not any(isinstance(each, (list, dict)) for each in value):
        return BETWEEN.join(_text(each) for each in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _recognised(stage: Staged, path: Path) -> _Bands | None:
    rows: list[dict[str, Any]] = []
    try:
        for row in _rows(path):
            rows.append(row)
            if len(rows) == 16:
                break
    except UserError as error:  # not a list of rows: other JSON is kept
        if any(_size(value) >= FEWEST for row in rows for value in row.values()):
            raise
        if "cut short" in str(error):
            stage.notes.append(f"{stage.shown(path)} was not read: {error}")
        return None
    if not rows:
        return None
    columns = [key for key, value in rows[0].items() if isinstance(value, (str, int))]
    column = id_column(stage, columns, [[_text(row.get(key)) for key in columns] for row in rows])
    if column is not None and stage.has_images([_text(row.get(columns[column])) for row in rows]):
        return None  # these images exist as files
    keys = [key for key, value in rows[0].items() if _size(value) >= FEWEST]
    sizes = {_size(row.get(key)) for row in rows for key in keys}
    usual = 0
    if sizes:
        usual = max(sizes, key=lambda size: sum(_size(row.get(key)) == size for row in rows for key in keys))
    # Boxes and outlines vary in length; bands of images nearly always have the same length.
    bands = [[_numbers(row.get(key)) for key in keys] for row in rows]
    whole = [row for row in bands if all(band is not None and band.size == usual for band in row)]
    if not keys or usual < FEWEST or len(whole) < 0.5 * len(rows):
        return None
    first = [band for row in whole for band in row]
    if first[0].ndim == 2:
        shape = Shape(*first[0].shape)
    else:
        shape = stage.shape(usual, np.stack([np.nan_to_num(values.ravel()) for values in first]))
    if shape is None:
        stage.notes.append(
            f"{stage.shown(path)}: not turned into images: height and width of {usual:,} numbers a band are "
            "unclear"
        )
        return None
    return _Bands(path, keys, shape, part_of(stage.shown(path)))


def _size(value: Any) -> int:
    """Return how many numbers a list (or list of lists) holds; 0 for other values."""
    if not isinstance(value, list) or not value:
        return 0
    if isinstance(value[0], list):
        if value[0] and isinstance(value[0][0], (int, float)):
            return sum(len(row) for row in value if isinstance(row, list))
        return 0
    return len(value) if isinstance(value[0], (int, float)) and not isinstance(value[0], bool) else 0


def _numbers(value: Any) -> np.ndarray | None:
    """Return a list (or list of lists of one length) of numbers as float64; None if it is none."""
    try:
        return np.asarray(value, np.float64) if _size(value) else None
    except (ValueError, TypeError, OverflowError):
        return None


def _planes(row: dict[str, Any], bands: _Bands) -> np.ndarray:
    """Return (C, H, W) float64 of a row.

    Raises:
        ValueError: a band is missing, has another length, or holds a value that is not a number.
    """
    planes = []
    for key in bands.keys:
        if _size(row.get(key)) == 0:
            raise ValueError(f"no numbers in {key!r}")
        values = _numbers(row[key])
        if values is None:
            raise ValueError(f"a value in {key!r} is not a number")
        count = bands.shape.height * bands.shape.width * (1 if bands.shape.order == "grey" else 3)
        if values.size != count:
            raise ValueError(f"{values.size:,} numbers in {key!r}, expected {count:,}")
        if not np.isfinite(values).all():
            raise ValueError(
                f"{counted(int((~np.isfinite(values)).sum()), 'value')} in {key!r} not finite (NaN or "
                "infinite)"
            )
        planes.append(bands.shape.planes(values.ravel()))
    return np.concatenate(planes)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON list (or of JSON lines) one at a time, because such files have gigabytes.

    Raises:
        UserError: it is not a list of objects, or it is cut short.
    """
    decoder, buffer, position, started, is_list = json.JSONDecoder(), "", 0, False, False
    with open(path, encoding="utf-8-sig") as file:
        while True:
            buffer, position = buffer[position:], 0
            try:
                piece = file.read(max(PIECE, len(buffer)))
            except UnicodeDecodeError as error:
                raise UserError(f"{path.name} is not UTF-8: {error}") from None
            ended, longest = not piece, MAX_ROW if is_list else MAX_FIRST
            buffer += piece
            while True:
                while position < len(buffer) and buffer[position] in " \t\r\n,":
                    position += 1
                if not started and position < len(buffer):
                    started = True
                    is_list = buffer[position] == "["
                    if is_list:
                        position += 1
                        longest = MAX_ROW
                        continue
                if position >= len(buffer):
                    break
                if buffer[position] == "]":
                    return
                if buffer[position] != "{":
                    raise UserError(f"{path.name} is not a list of objects")
                try:
                    value, position = decoder.raw_decode(buffer, position)
                except (ValueError, RecursionError) as error:  # also a number of thousands of digits
                    unreadable = not isinstance(error, json.JSONDecodeError)
                    if not ended and not is_list and len(buffer) > longest and not unreadable:
                        raise UserError(f"{path.name} is one large object, not a list") from None
                    if ended or len(buffer) > longest or unreadable:
                        raise UserError(
                            f"{path.name} is cut short or broken: {error}; download it again"
                        ) from None
                    break
                yield value
            if ended and is_list:
                raise UserError(f"{path.name} is cut short: its list does not end; download it again")
            if ended:
                return
