"""Convert images in BSON files (Cdiscount): documents with an id, a class and encoded images, read by
pymongo's bson.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline.errors import UserError
from pipeline.fetch.pixels import encoded_suffix, new_file
from pipeline.fetch.staged_rows import Staged, check_names, part_of, row_ids, write_rows
from pipeline.wording import counted

INSTALL = "python -m pip install pymongo"


def convert(stage: Staged) -> None:
    """Write the images of each BSON file below `stage.root` unchanged, and a table of the other values, one
    row per image.

    Raises:
        UserError: pymongo is not installed, or a file is damaged or holds no images.
    """
    paths = sorted(stage.files((".bson",)), key=lambda path: -path.stat().st_size)
    written: dict[str, set[str]] = {}
    stage.packages |= {"pymongo"} if paths else set()
    for path in paths:
        part = part_of(stage.shown(path))
        known = written.setdefault(part, set())
        key = _key(stage, path)
        head = [_id(document, key) for _, document in zip(range(100), _documents(stage, path), strict=False)]
        if key and known and set(head) <= known:
            stage.notes.append(f"{stage.shown(path)} left out: its documents are part of a larger file")
        else:
            known |= _write(stage, path, part, key)
        path.unlink()


def _documents(stage: Staged, path: Path) -> Iterator[dict[str, Any]]:
    try:
        from bson import InvalidBSON, decode_file_iter  # another package is also called bson, but lacks these
    except ImportError:
        raise UserError(
            f"{stage.shown(path)}: BSON files need one more package: {INSTALL}; then run the command again"
        ) from None
    with open(path, "rb") as file:
        try:
            yield from decode_file_iter(file)
        except (InvalidBSON, MemoryError) as error:
            raise UserError(
                f"{stage.shown(path)} is damaged or cut short ({error}); download it again"
            ) from None


def _images_of(document: dict[str, Any]) -> list[bytes]:
    """Return the encoded images of a document, also from lists of values or of documents, in order."""
    found: list[bytes] = []
    for value in document.values():
        for entry in value if isinstance(value, list) else [value]:
            for data in entry.values() if isinstance(entry, dict) else [entry]:
                if isinstance(data, bytes) and encoded_suffix(data):
                    found.append(data)
    return found


def _key(stage: Staged, path: Path) -> str:
    """Return the key of the documents' id; empty if they have none."""
    first = next(_documents(stage, path), None)
    if first is None or not _images_of(first):
        raise UserError(
            f"{stage.shown(path)}: its documents hold no encoded image; its keys: "
            f"{', '.join(first or ['none'])}"
        )
    return next((name for name in (stage.id_column, "_id", "id") if name in first), "")


def _id(document: dict[str, Any], key: str) -> str:
    return str(document.get(key, ""))


def _write(stage: Staged, path: Path, part: str, key: str) -> set[str]:
    folder, original = part or path.stem, stage.shown(path)
    documents = _documents(stage, path)
    if key:
        names: list[str] = []
    else:
        names, _ = row_ids(stage, part, sum(1 for _ in _documents(stage, path)))
    columns: list[str] = []
    rows: list[list[str]] = []
    ids: set[str] = set()
    several = False
    for number, document in enumerate(tqdm(documents, unit="row", desc=original, disable=None)):
        name = _id(document, key) if key else names[number]
        check_names([name], original)
        if name in ids:
            raise UserError(f"{original}: the id {name!r} occurs several times")
        ids.add(name)
        values = {
            column: str(value)
            for column, value in document.items()
            if column != key and isinstance(value, (str, int, float))
        }
        columns += [column for column in values if column not in columns]
        images = _images_of(document)
        several = several or len(images) > 1
        for index, data in enumerate(images):
            file = f"{name}_{index}" if len(images) > 1 else name
            target = stage.root / folder / (file + encoded_suffix(data))
            with new_file(target) as written:
                written.write(data)
            rows.append([file, name, *(values.get(column, "") for column in columns)])
    cells = [[*row, *[""] * (2 + len(columns) - len(row))] for row in rows]
    id_name = key or stage.id_column
    header = ["image", id_name, *columns] if several else [id_name, *columns]
    if columns or several:
        table = write_rows(stage, part, path.stem, header, cells if several else [row[1:] for row in cells])
    else:
        table = "none"
    also = ", several for some ids: see column 'image' of the table" if several else ""
    stage.notes.append(
        f"{original}: {counted(len(rows), 'image')} written into {folder}/ (names: {id_name!r}{also}); "
        f"table: {table}"
    )
    return ids
