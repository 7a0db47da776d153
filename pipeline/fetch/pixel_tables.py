"""Convert images in tables: one column per pixel (MNIST), or one column with all pixels (FER2013); CSV or
parquet.
"""

from __future__ import annotations

import filecmp
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from pipeline.competition.folders import plain_name, suffix_of
from pipeline.errors import UserError, first_line, raise_all
from pipeline.fetch.grey_range import Rule, Survey
from pipeline.fetch.pixels import Shape
from pipeline.fetch.staged_rows import (
    Staged,
    cell_text,
    id_column,
    named_rows,
    part_of,
    write_rows,
)
from pipeline.tables import DELIMITERS
from pipeline.wording import capped, counted, listed, numbered

FEWEST = 64  # fewest numbers of an image: 8 x 8
HEAD_ROWS = 64
CHUNK_ROWS = 1000
PIXEL_NAME = re.compile(r"(pixel|pix|px|p|x)?[_\- ]*\d+$|\d+x\d+$|r\d+c\d+$|pixel.*", re.IGNORECASE)


class DamagedTable(ValueError):
    """A parquet table that cannot be read, perhaps only in its later rows."""


# Errors of reading rows from a table
DAMAGE = (DamagedTable, pd.errors.ParserError, UnicodeDecodeError)


@dataclass(frozen=True)
class _Table:
    """A table with pixels: its pixel columns (`cell`: one column with all pixels), and its other columns."""

    path: Path
    pixels: list[str]
    cell: bool
    others: list[str]
    shape: Shape
    part: str


def convert(stage: Staged) -> None:
    """Write an image for each row of each pixel table below `stage.root`, and the table again without the
    pixels.

    Images go to the folder of their part (train/, test/); their names are the ids. All tables share one grey
    range.

    Raises:
        UserError: rows are cut short or hold values that are not numbers; every such row is listed.
    """
    paths = [path for path in stage.files((".csv", ".tsv", ".parquet")) if path != stage.sample]
    paths.sort(key=lambda path: (part_of(stage.shown(path)) != "train", len(path.parts), path))
    tables: list[_Table] = []
    for path in paths:
        table = _recognised(stage, path)
        twin = next(
            (other for other in tables if table and filecmp.cmp(path, other.path, shallow=False)), None
        )
        if twin:
            stage.notes.append(f"{stage.shown(path)} left out: it is the same as {stage.shown(twin.path)}")
            path.unlink()
        elif table:
            tables.append(table)
    if not tables:
        return
    # the only data must be the training data; a kernel has the test part only
    if len(tables) == 1 and not tables[0].part and not stage.image_names and stage.repeated is None:
        tables = [replace(tables[0], part="train")]
    survey, rows = Survey(), {table.path: [] for table in tables}
    for table in tables:
        for others, values in _chunks(stage, table):
            rows[table.path] += others
            for row in values if stage.repeated is None else ():
                survey.add(table.shape.planes(row))
    rule = stage.rule("grey levels of tables", lambda: survey.rule(by_channel=False))
    for table in tables:
        stage.packages |= {"pyarrow"} if suffix_of(table.path.name) == ".parquet" else set()
        _write(stage, table, rows[table.path], rule)
    stage.notes.append(f"pixels of tables: {rule.says}")


def _write(stage: Staged, table: _Table, rows: list[list[str]], rule: Rule) -> None:
    original = stage.shown(table.path)
    named = named_rows(stage, table.others, rows, table.part, table.path, original)
    folder, waiting = stage.root / named.folder, iter(named.names)
    with tqdm(total=len(rows), unit="image", desc=original, disable=None) as bar:
        for _, values in _chunks(stage, table):
            for row in values:
                stage.save(rule.apply(table.shape.planes(row)), folder / f"{next(waiting)}.png")
                bar.update()
    table.path.unlink()
    written = write_rows(stage, table.part, table.path.stem, named.columns, named.cells)
    stage.notes.append(
        f"{original}: {counted(len(rows), 'image')} written into {named.folder}/ "
        f"({table.shape.says}; names: {named.how}); the other columns: {written}"
    )


def _recognised(stage: Staged, path: Path) -> _Table | None:
    """Return the table at `path` if it holds pixels; a pixel table that cannot be used is noted."""
    try:
        head = next(frames(path, HEAD_ROWS, text=True), None)
    except UserError as error:  # a package is missing
        if not stage.image_names:
            raise
        stage.notes.append(str(error))
        return None
    # not a table: reported with the layout, unless it is a pixel table
    except (ValueError, OSError) as error:
        if isinstance(error, pd.errors.ParserError) and _pixel_columns(_header(path)[1])[0]:
            raise UserError(
                f"{stage.shown(path)}: rows of pixels are not complete: {' '.join(str(error).split())}"
            ) from None
        if suffix_of(path.name) == ".parquet":  # only read here
            stage.notes.append(f"{stage.shown(path)} was not read: {' '.join(str(error).split())}")
        return None
    if head is None or not len(head):
        return None
    names = [str(name) for name in head.columns]
    pixels, size = _pixel_columns(names)
    cell = not pixels
    if cell:
        pixels = [name for name in names if _is_cell(head[name])]
        if len(pixels) != 1:
            return None
    others = [name for name in names if name not in set(pixels)]
    count = len(pixels) if not cell else _usual(head[pixels[0]])
    values = _whole_rows(head, pixels, cell, count)
    if not _are_pixels(stage, pixels, cell, values, head, others):
        return None
    shape = Shape(*size) if size else stage.shape(count, values)
    if shape is None:
        stage.notes.append(
            f"{stage.shown(path)}: not turned into images: height and width of {count:,} numbers a row are "
            "unclear"
        )
        return None
    return _Table(path, pixels, cell, others, shape, part_of(stage.shown(path)))


def _pixel_columns(names: Sequence[str]) -> tuple[list[str], tuple[int, int] | None]:
    """Return the columns with one name and consecutive numbers; also height and width if the names tell
    (`28x28`, `r27c27`).
    """
    groups: dict[str, list[tuple[tuple[int, ...], str]]] = {}
    for name in names:
        numbers = tuple(int(number) for number in re.findall(r"\d+", name)[-2:] if len(number) < 9)
        if numbers:
            groups.setdefault(re.sub(r"\d+", "#", name), []).append((numbers, name))
    large = [members for members in groups.values() if len(members) >= FEWEST]
    if len(large) != 1:  # several such groups are probably measurements
        return [], None
    members = large[0]
    if all(len(numbers) == 2 for numbers, _ in members):
        rows, columns = ({numbers[axis] for numbers, _ in members} for axis in (0, 1))
        if (
            len(rows) * len(columns) == len(members) == len({numbers for numbers, _ in members})
            and len(rows) > 1
        ):
            return [name for _, name in sorted(members)], (len(rows), len(columns))
    last = sorted((numbers[-1], name) for numbers, name in members)
    first = last[0][0]
    if first in (0, 1) and [number for number, _ in last] == list(range(first, first + len(last))):
        return [name for _, name in last], None
    return [], None


def _is_cell(column: pd.Series) -> bool:
    """Return True for a column where nearly every row has the same number of values, enough for an image."""
    usual = _usual(column)
    alike = [value for value in column if _length(value) == usual]
    if usual < FEWEST or len(alike) < 0.9 * len(column):
        return False
    words = (
        _words(str(alike[0])) if isinstance(alike[0], str) else [str(number) for number in np.ravel(alike[0])]
    )
    return all(re.fullmatch(r"-?\d+(\.\d*)?([eE][+-]?\d+)?", word) for word in words)


def _usual(column: pd.Series) -> int:
    """Return the most frequent number of values in a cell."""
    return int(pd.Series([_length(value) for value in column]).mode()[0])


def _whole_rows(head: pd.DataFrame, pixels: Sequence[str], cell: bool, count: int) -> np.ndarray:
    """Return (N, count) float32: the rows of `head` with all their numbers; one row of zeros if there is
    none.
    """
    rows = []
    for number in range(len(head)):
        try:
            rows.append(_numbers(head.iloc[number : number + 1], pixels, cell))
        except ValueError:
            continue
    whole = [row for row in rows if row.shape == (1, count) and np.isfinite(row).all()]
    return np.concatenate(whole) if whole else np.zeros((1, count), np.float32)


def _words(text: str) -> list[str]:
    return text.strip("[]() \n").replace(",", " ").split()


def _length(value: Any) -> int:
    return np.asarray(value).size if isinstance(value, (list, tuple, np.ndarray)) else len(_words(str(value)))


def _are_pixels(
    stage: Staged,
    pixels: Sequence[str],
    cell: bool,
    values: np.ndarray,
    head: pd.DataFrame,
    others: Sequence[str],
) -> bool:
    """Decide whether numbers are pixels and not measurements.

    They are if the columns are named so, or if all are whole numbers from 0 to 255 and there are no other
    images.
    """
    rows = [[cell_text(value) for value in row] for row in head[list(others)].itertuples(index=False)]
    column = id_column(stage, others, rows)
    if column is not None and stage.has_images([row[column] for row in rows]):
        return False  # these images exist as files
    if all("pix" in plain_name(name) for name in pixels):
        return True
    grey = (
        values.size > 0
        and bool(np.isin(values, np.arange(256)).mean() > 0.99)
        and float(np.nanmax(values)) > 1
    )
    return grey and not stage.image_names and (cell or all(PIXEL_NAME.fullmatch(name) for name in pixels))


# ---- rows ----


def _header(path: Path) -> tuple[str, list[str]]:
    """Return the delimiter of a CSV file, and the column names in its first row."""
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        header = file.readline()
    delimiter = max(DELIMITERS, key=header.count)
    return delimiter, [
        str(name)
        for name in pd.read_csv(path, sep=delimiter, nrows=0, encoding="utf-8-sig", index_col=False).columns
    ]


def frames(path: Path, rows: int, text: bool = False, pixels: Sequence[str] = ()) -> Iterator[pd.DataFrame]:
    """Yield a table some rows at a time. `text`: all cells of a CSV file as text; else all but `pixels`.

    Raises:
        UserError: pyarrow is needed and missing.
        DamagedTable: a parquet table cannot be read.
    """
    if suffix_of(path.name) == ".parquet":
        try:
            import pyarrow.parquet
        except ImportError as error:  # missing, or built for another numpy
            raise UserError(
                f"{path.name}: parquet tables need one more package ({error}): python -m pip install "
                "pyarrow; then run the command again"
            ) from None
        try:
            file = pyarrow.parquet.ParquetFile(path)
            metadata = file.schema_arrow.pandas_metadata or {}
            for batch in file.iter_batches(rows):
                yield _with_index(batch.to_pandas(ignore_metadata=True), metadata)
        except (pyarrow.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno:  # of the disk
                raise
            raise DamagedTable(f"{first_line(error)} (damaged? download it again)") from None
        return
    delimiter, names = _header(path)
    named = set(pixels)
    types = str if text else {name: str for name in names if name not in named}
    with pd.read_csv(
        path,
        sep=delimiter,
        chunksize=rows,
        dtype=types,
        keep_default_na=False,
        low_memory=False,
        encoding="utf-8-sig",
    ) as reader:
        for frame in reader:
            if not isinstance(frame.index, pd.RangeIndex):  # pandas makes surplus cells the index
                raise pd.errors.ParserError(f"rows have more cells than the header ({len(frame.columns)})")
            yield frame


def _with_index(frame: pd.DataFrame, metadata: dict[str, Any]) -> pd.DataFrame:
    """Return a parquet table with the index of pandas as first columns, because it often holds the ids.

    An index of numbers without a name is left out: it tells where a row was before.
    """
    stored = [name for name in metadata.get("index_columns", ()) if isinstance(name, str)]
    index = [name for name in stored if name in frame.columns]
    unnamed = [name for name in index if name.startswith("__index_level_")]
    left = [name for name in unnamed if pd.api.types.is_numeric_dtype(frame[name])]
    columns = [*index, *(name for name in frame.columns if name not in index)]
    frame = frame[[name for name in columns if name not in left]]
    return frame.rename(columns=dict.fromkeys(unnamed, "index"))


def _numbers(frame: pd.DataFrame, pixels: Sequence[str], cell: bool) -> np.ndarray:
    """Return (N, count) float32: the pixels of some rows.

    Raises:
        ValueError: a value is not a number, or rows differ in length.
    """
    if not cell:
        return frame[list(pixels)].to_numpy(np.float32)
    values = frame[pixels[0]]
    return np.asarray(
        [
            np.asarray(value if not isinstance(value, str) else _words(value), np.float32).ravel()
            for value in values
        ]
    )


def _chunks(stage: Staged, table: _Table) -> Iterator[tuple[list[list[str]], np.ndarray]]:
    """Yield the other cells as text and the pixels (n, count) float32, some rows at a time."""
    shape, first = table.shape, 2
    count = shape.height * shape.width * (1 if shape.order == "grey" else 3)
    problems: list[str] = []
    try:
        for frame in frames(table.path, CHUNK_ROWS, pixels=table.pixels if not table.cell else ()):
            try:
                values = _numbers(frame, table.pixels, table.cell)
                if values.shape != (len(frame), count) or not np.isfinite(values).all():
                    raise ValueError
            except ValueError:
                problems += _problems(frame, table, first, count)
                values = None
            if values is not None and not problems:
                # Not itertuples: before pandas 2.1 it gives no rows where there are no other columns
                others = frame[table.others].to_numpy(dtype=object).tolist()
                yield [[cell_text(value) for value in row] for row in others], values
            first += len(frame)
    except DAMAGE as error:
        raise UserError(
            f"{stage.shown(table.path)} cannot be read as a table of pixels: {' '.join(str(error).split())}"
        ) from None
    raise_all(
        capped(problems, "rows are incomplete"),
        f"{stage.shown(table.path)}: pixels are missing or not numbers, download it again:",
    )


def _problems(frame: pd.DataFrame, table: _Table, first: int, count: int) -> list[str]:
    """Return one line for each row whose pixels are not `count` numbers."""
    found = []
    for line, (_, row) in enumerate(frame[table.pixels].iterrows(), start=first):
        cells = (
            _words(str(row.iloc[0]))
            if table.cell and isinstance(row.iloc[0], str)
            else list(np.ravel(row.iloc[0]) if table.cell else row)
        )
        numbers = pd.to_numeric(pd.Series(cells, dtype=object), errors="coerce").to_numpy(np.float64)
        bad = np.flatnonzero(~np.isfinite(numbers))
        if table.cell and len(cells) != count:
            found.append(
                f"{numbered([line])}: {len(cells):,} pixels in column {table.pixels[0]!r}, expected {count:,}"
            )
        elif len(bad):
            where = (
                table.pixels[0] if table.cell else listed([table.pixels[position] for position in bad[:3]])
            )
            empty = isinstance(cells[bad[0]], float) or cells[bad[0]] == ""
            found.append(
                f"{numbered([line])}: {counted(len(bad), 'value')} ({where}) "
                f"{'missing' if empty else f'not a number: {cells[bad[0]]!r}'}"
            )
    return found
