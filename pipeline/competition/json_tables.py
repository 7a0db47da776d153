"""Read JSON about images as a table: COCO (images, annotations, categories), a list of rows, or a mapping
name -> label.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.tables import Table

SEVERAL = "\x1f"  # separates several labels of one image in a cell; no label contains it
CATEGORY_ID, CATEGORY = "category_id", "category"
MAX_BYTES = 4 << 30


def load_json_table(path: Path) -> Table | None:
    """Read the table in a JSON file; None if it holds no table.

    COCO: one row per image with its fields and, where annotated, `category_id` and `category` (the name). An
    image or category may be called as in the annotations (`image_id`, `category_id`) in place of `id`.
    Several labels of an image are joined with `SEVERAL` in one cell.

    Raises:
        UserError: the file cannot be read, is too large, or is not valid JSON.
    """
    try:
        _check_size(path)
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None
    if isinstance(content, dict) and _are_rows(content.get("images")):
        return _coco(path, content)
    if _are_rows(content):
        return _table(path, content)
    if isinstance(content, dict) and len(content) > 1:
        return _mapping(path, content)
    return None


def load_json_lines(path: Path) -> Table | None:
    """Read a file with a JSON object in each line (`metadata.jsonl`, a manifest); None if it is none.

    The fields of an object inside get its name before theirs: `class-metadata.class-name`.

    Raises:
        UserError: the file cannot be read, is too large, or a line of it is not valid JSON.
    """
    rows, lines, number = [], [], 0
    try:
        _check_size(path)
        # not splitlines: a text may hold other line ends, such as U+2028
        for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
            if line.strip():
                rows.append(json.loads(line))
                lines.append(number)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: row {number} is not valid JSON: {error}") from None
    table = _table(path, [_flat(row) for row in rows]) if _are_rows(rows) else None
    return replace(table, lines=tuple(lines)) if table else None


def _check_size(path: Path) -> None:
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path} is larger than {MAX_BYTES >> 30} GB and is not read")


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    inner = {name: value for name, value in row.items() if isinstance(value, dict)}
    flat = {f"{name}.{key}": value for name, fields in inner.items() for key, value in fields.items()}
    return {name: value for name, value in row.items() if name not in inner} | flat


def _are_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(entry, dict) for entry in value)


def _coco(path: Path, content: Mapping[str, Any]) -> Table:
    names = {_key(entry, CATEGORY_ID): _name(entry) for entry in _dicts(content.get("categories"))}
    marks: dict[str, dict[str, None]] = {}
    for entry in _dicts(content.get("annotations")):
        if "category_id" in entry and "image_id" in entry:
            marks.setdefault(_text(entry["image_id"]), {})[_text(entry["category_id"])] = None
    rows = content["images"]
    if marks:
        rows = [row | _labels(marks.get(_key(row, "image_id"), {}), names) for row in rows]
    return _table(path, rows)


def _key(entry: Mapping[str, Any], name: str) -> str:
    """Return the number of an image or category; some files call it as the annotations do."""
    return _text(entry.get(name) if entry.get("id") is None else entry["id"])


def _name(entry: Mapping[str, Any]) -> str:
    """Return the name of a category: `name`, else its only text that is called a name (`scientificName`)."""
    called = [key for key, value in entry.items() if isinstance(value, str) and key.lower().endswith("name")]
    return _text(entry.get("name") or (entry[called[0]] if len(called) == 1 else _key(entry, CATEGORY_ID)))


def _labels(found: Iterable[str], names: Mapping[str, str]) -> dict[str, str]:
    numbers = list(found)
    labels = {CATEGORY_ID: SEVERAL.join(numbers)}
    return labels | (
        {CATEGORY: SEVERAL.join(names.get(number, number) for number in numbers)} if names else {}
    )


def _mapping(path: Path, content: Mapping[str, Any]) -> Table | None:
    if all(isinstance(value, dict) for value in content.values()):
        return _table(path, [{"id": key} | value for key, value in content.items()])
    if all(_is_cell(value) for value in content.values()):
        return _table(path, [{"id": key, "label": value} for key, value in content.items()])
    return None


def _table(path: Path, rows: list[dict[str, Any]]) -> Table | None:
    """Build a table of the fields that are text or numbers in every row; `lines` count the entries from 1."""
    fields = list(dict.fromkeys(name for row in rows for name in row))
    columns = [name for name in fields if name.strip() and all(_is_cell(row.get(name)) for row in rows)]
    if not columns:
        return None
    cells = tuple(tuple(_text(row.get(name)) for name in columns) for row in rows)
    for number, row in enumerate((columns, *cells)):
        for text in row:
            if not text.isascii() and re.search("[\ud800-\udfff]", text):
                raise UserError(
                    f"{path}: {f'entry {number}' if number else 'a field name'} holds {text!r}, half of a "
                    "character (a pair of \\u escapes was cut): write the text in full there"
                )
    return Table(path, tuple(columns), cells, tuple(range(1, len(rows) + 1)), "", False)


def _is_cell(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(part, (str, int)) for part in value)
    return value is None or isinstance(value, (str, int, float))


def _text(value: Any) -> str:
    if isinstance(value, list):
        return SEVERAL.join(map(_text, value))
    return "" if value is None or value != value else str(value)  # NaN is how Python writes a missing value


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []
