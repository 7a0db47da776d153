"""Convert images in TFRecord files: group the records, name the images, and write tables of the other
features.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline.competition.folders import plain_name
from pipeline.errors import UserError
from pipeline.fetch.pixels import encoded_suffix, new_file
from pipeline.fetch.staged_rows import (
    BETWEEN,
    ID_NAMES,
    Staged,
    check_names,
    new_column,
    part_of,
    row_ids,
    write_rows,
)
from pipeline.fetch.tf_examples import Features, examples
from pipeline.wording import counted, listed, natural_key

SUFFIXES = (".tfrec", ".tfrecord", ".tfrecords")
MOST_VALUES = 64  # of a feature that becomes a cell, such as the labels of an image


@dataclass
class _Set:
    """TFRecord files that belong together.

    `name`: their path without the part (train, test, val) and the file number.
    """

    name: str
    files: dict[str, list[Path]] = field(default_factory=dict)  # part -> files
    side: int = 0  # sort key for the image size: from the first image, then from the name


def convert(stage: Staged) -> None:
    """Write the encoded images of TFRecord files below `stage.root` unchanged, and tables of the other
    features.

    If the same images come in several sizes, the largest is taken. Rows of a validation part have labels and
    go to train/. If the images exist as files already, the records are not used.

    Raises:
        UserError: a file is cut short or damaged, or holds no image.
    """
    files = sorted(stage.files(SUFFIXES), key=lambda path: natural_key(stage.shown(path)))
    if not files:
        return
    sets: dict[str, _Set] = {}
    for path in files:
        part = part_of(stage.shown(path))
        name = re.sub(
            r"[^/]*$",
            "",
            re.sub(r"(train(ing)?|test(ing)?|valid(ation)?|val|dev)", "", stage.shown(path).lower()),
        )
        sets.setdefault(name, _Set(name)).files.setdefault(part, []).append(path)
    chosen = _largest(stage, list(sets.values()))
    done: list[Path] = []
    for records in chosen:
        done += _write(stage, records)
    for path in files:  # those that were converted, and other sizes of the same images
        path.unlink()


def _largest(stage: Staged, sets: list[_Set]) -> list[_Set]:
    """Return the sets without those that hold another set's images in a smaller size."""
    groups: dict[frozenset[str], list[_Set]] = {}
    for records in sets:
        part, paths = max(records.files.items())
        head = [example for _, example in zip(range(32), _of(stage, paths[0]), strict=False)]
        image, name = _keys(stage, head, paths[0], part)
        data = head[0][image][0]
        width, height = _size(data)
        in_name = max([int(number) for number in re.findall(r"(\d{2,4})x\d{2,4}", records.name)], default=0)
        records.side = max(width, height) * 100_000 + in_name
        # Sets without row names are never treated as equal.
        ids = frozenset(_texts(example, name)[0] for example in head) if name else frozenset([records.name])
        groups.setdefault(ids, []).append(records)
    kept = []
    for group in groups.values():
        best = max(group, key=lambda records: records.side)
        kept.append(best)
        others = [records.name.strip("/") or "." for records in group if records is not best]
        if others:
            stage.notes.append(
                f"the same images in several sizes: the largest is used, {best.name.strip('/') or '.'}, not "
                f"{listed(others)}"
            )
    return kept


def _size(data: bytes) -> tuple[int, int]:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.size
    except (OSError, ValueError, SyntaxError):
        return (0, 0)


def _write(stage: Staged, records: _Set) -> list[Path]:
    rows: dict[str, tuple[list[str], list[list[str]]]] = {}
    total = sum(len(paths) for paths in records.files.values())
    with tqdm(total=total, unit="file", desc="TFRecord", disable=None) as bar:
        for part, paths in sorted(records.files.items()):
            into = (
                "train" if part == "val" else part or (records.name.strip("/").replace("/", "_") or "images")
            )
            first = [example for _, example in zip(range(64), _of(stage, paths[0]), strict=False)]
            image, name = _keys(stage, first, paths[0], part)
            if name and stage.has_images(_named(stage, paths, name)):
                stage.notes.append(
                    f"{listed([stage.shown(path) for path in paths])} not used: the images exist as files"
                )
                bar.update(len(paths))
                continue
            columns = [
                key
                for key in sorted({key for example in first for key in example})
                if key not in (image, name)
            ]
            left = [key for key in columns if not all(_is_cell(example.get(key)) for example in first)]
            columns = [key for key in columns if key not in left]
            id_name = name or new_column(stage, columns)
            unnamed = sum(1 for path in paths for _ in _of(stage, path)) if not name else 0
            names, how = row_ids(stage, part, unnamed) if not name else ([], f"feature {name!r}")
            if part == "val":  # in train/, where training rows have these numbers
                names = [f"val_{number}" for number in names]
            written: list[str] = []
            cells: list[list[str]] = []
            for path in paths:
                for example in _of(stage, path):
                    image_id = _texts(example, name)[0] if name else names[len(written)]
                    data = (example.get(image) or [b""])[0]
                    suffix = encoded_suffix(data) if isinstance(data, bytes) else ""
                    if not suffix:
                        raise UserError(
                            f"{stage.shown(path)}: the record of {image_id!r} holds no encoded image in "
                            f"{image!r}"
                        )
                    check_names([image_id], stage.shown(path))
                    has_suffix = image_id.lower().endswith((".jpg", ".jpeg", ".png"))
                    file_name = image_id if has_suffix else image_id + suffix
                    with new_file(stage.root / into / file_name) as file:
                        file.write(data)
                    written.append(image_id)
                    cells.append([image_id, *(_cell(example.get(key)) for key in columns)])
                bar.update()
            header, _ = rows.setdefault(into, ([id_name, *columns], []))
            if left:
                stage.notes.append(f"{into}/: left out of the table, too long for a cell: {listed(left)}")
            rows[into][1].extend(_aligned(header, [id_name, *columns], cells))
            also = "; rows of the validation part are labelled too" if part == "val" else ""
            stage.notes.append(
                f"{counted(len(written), 'image')} of TFRecords written into {into}/ (names: {how}){also}"
            )
    for into, (header, cells) in rows.items():
        if len(header) > 1:
            table = write_rows(stage, into, into, header, cells)
            stage.notes.append(f"{into}/: {listed(header[1:])} are in {table}")
    return [path for paths in records.files.values() for path in paths]


def _aligned(header: list[str], columns: list[str], cells: list[list[str]]) -> list[list[str]]:
    """Return rows of `columns` in the order of `header`. The first is the name of the image in both."""
    found = [dict(zip(columns, row, strict=True)) for row in cells]
    return [
        [row[0], *(known.get(column, "") for column in header[1:])]
        for row, known in zip(cells, found, strict=True)
    ]


def _named(stage: Staged, paths: list[Path], name: str) -> list[str]:
    return [_texts(example, name)[0] for path in paths[:2] for example in _of(stage, path)]


def _keys(stage: Staged, head: list[Features], path: Path, part: str) -> tuple[str, str]:
    """Return the feature with the encoded image, and the one with its name (empty if there is none)."""
    if not head:
        raise UserError(f"{stage.shown(path)} holds no record")
    images = [
        key
        for key, values in head[0].items()
        if values and isinstance(values[0], bytes) and encoded_suffix(values[0])
    ]
    if not images:
        raise UserError(
            f"{stage.shown(path)}: no feature holds an encoded image (JPEG, PNG, ...); its features: "
            f"{listed(sorted(head[0]))}. Records of raw or serialised tensors are not read"
        )
    image = min(images, key=lambda key: ("image" not in key, len(key), key))
    candidates = []
    for key in head[0]:
        texts = [_texts(example, key) for example in head]
        if key != image and all(len(values) == 1 and 0 < len(values[0]) <= 200 for values in texts):
            values = [found[0] for found in texts]
            integers = isinstance(head[0][key][0], int)
            known = part == "test" and bool(stage.ids) and set(values) <= set(stage.ids)
            called = plain_name(key.split("/")[-1]).endswith(ID_NAMES)
            if len(set(values)) == len(values) and (known or called or not integers):
                candidates.append((not known, not called, integers, key))
    return image, min(candidates)[-1] if candidates else ""


def _texts(example: Features, key: str) -> list[str]:
    found = []
    for value in example.get(key, []):
        try:
            found.append(value.decode("utf-8") if isinstance(value, bytes) else str(value))
        except UnicodeDecodeError:
            return []
    return found


def _is_cell(values: list[Any] | None) -> bool:
    return values is None or (
        len(values) <= MOST_VALUES
        and all(not isinstance(value, bytes) or len(value) <= 1000 for value in values)
    )


def _cell(values: list[Any] | None) -> str:
    return BETWEEN.join(
        value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value) for value in values or ()
    )


def _of(stage: Staged, path: Path) -> Iterator[Features]:
    return examples(path, stage.shown(path))
