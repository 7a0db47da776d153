"""Read files of lines as tables: lists of images and labels, class names, JSON lines, MXNet's .lst."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.competition.folders import IMAGE_SUFFIXES, suffix_of
from pipeline.competition.json_tables import load_json_lines
from pipeline.competition.parts import words_of
from pipeline.errors import UserError
from pipeline.tables import Table, load_table

MAX_BYTES = 64 << 20
LIST_OF_NAMES = "\n"  # delimiter of a table of class names: it describes no images
CLASS_WORDS = frozenset("class classes category categories label labels names synset synsets".split())


def text_table(path: Path) -> Table | None:
    """Read lines such as `train/1.jpg 3`, or a table in a .txt file; None for other text.

    A list of images (`test.txt`) has the column `image`; a list of class names has their numbers, from 0 and
    from 1.

    Raises:
        UserError: a line of JSON lines is not valid.
    """
    if suffix_of(path.name) not in (".txt", ".lst"):
        return load_json_lines(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            return None
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    if suffix_of(path.name) == ".lst":
        return _mxnet(path, lines)
    if any(mark in lines[0] for mark in ",;\t") if lines else False:
        try:
            table = load_table(path)
        except UserError:
            return None
        return table if len(table.columns) > 1 else None
    words = words_of(path.stem)
    texts = [(line.strip(), number) for number, line in enumerate(lines, start=1) if line.strip()]
    if len(texts) > 1 and "test" in words and all(suffix_of(text) in IMAGE_SUFFIXES for text, _ in texts):
        return _table(path, ("image",), [((text,), number) for text, number in texts])
    if names := _class_names(path, texts, bool(CLASS_WORDS & set(words))):
        return names
    rows = [(tuple(text.rsplit(maxsplit=1)), number) for text, number in texts]
    if len(rows) < 2 or any(len(parts) != 2 for parts, _ in rows):
        return None
    header, *cells = rows
    if header[0][0] == header[0][1]:
        return None
    return _table(path, header[0], cells)


def _class_names(path: Path, lines: Sequence[tuple[str, int]], called: bool) -> Table | None:
    """Read a list of class names: one in each line, where the file is `called` so, or behind numbers that
    count the lines (`0 cat`, `1: dog`); None if it is none.
    """
    texts = [text for text, _ in lines]
    found = [re.fullmatch(r"(\d+)\s*[\s:=,.)-]\s*(\S.*)", text) for text in texts]
    numbers = [match[1] for match in found if match]
    counted = any(numbers == [str(n + start) for n in range(len(texts))] for start in (0, 1))
    names = [match[2] for match in found if match] if counted else texts
    if not (counted or called) or not 1 < len(set(names)) == len(names):
        return None
    if any(suffix_of(name) in IMAGE_SUFFIXES or "/" in name or name.isdecimal() for name in names):
        return None
    columns = ("number", "name") if counted else ("number", "number from 1", "name")
    kept = [(number,) for number in numbers] if counted else [(str(n), str(n + 1)) for n in range(len(names))]
    rows = [((*cells, name), line) for cells, name, (_, line) in zip(kept, names, lines, strict=True)]
    return _table(path, columns, rows, LIST_OF_NAMES)


def _mxnet(path: Path, lines: Sequence[str]) -> Table | None:
    """Read `number, label, path` with tabs between them."""
    rows = [(tuple(line.split("\t")), number) for number, line in enumerate(lines, start=1) if line.strip()]
    if not rows or any(len(cells) != 3 or not cells[0].isdecimal() for cells, _ in rows):
        return None
    return _table(path, ("number", "label", "image"), rows)


def _table(
    path: Path,
    columns: tuple[str, ...],
    rows: Sequence[tuple[tuple[str, ...], int]],
    delimiter: str = " ",
) -> Table:
    cells, lines = (tuple(cells for cells, _ in rows), tuple(line for _, line in rows))
    return Table(path, columns, cells, lines, delimiter, False)
