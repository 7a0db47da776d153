"""CSV tables as text: every cell stays as written (`007`, `1e5`, `NA`, `true`).

Errors are reported with their rows.
"""

from __future__ import annotations

import csv
import gzip
import io
import lzma
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from shlex import quote
from typing import IO, Any

from pipeline.errors import UserError, raise_all
from pipeline.files import write_text
from pipeline.wording import capped, counted, numbered

csv.field_size_limit(1 << 30)  # characters: masks as text are longer than the default of 131,072
DELIMITERS = (",", ";", "\t", "|")
EMPTY_COLUMNS = "columns without a name and without cells ignored"  # as spreadsheets write them
DELIMITER_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}


@dataclass(frozen=True)
class Table:
    """One CSV file. `cells[i]` is a row, as wide as `columns`.

    `lines[i]` is its row number in the file (the header is row 1). `numbering`: line -> cell of a first
    column without a name that was ignored; empty if there was none.
    """

    path: Path
    columns: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]
    lines: tuple[int, ...]
    delimiter: str
    has_byte_order_mark: bool
    notes: tuple[str, ...] = ()  # what was ignored
    numbering: Mapping[int, str] = field(default_factory=dict, compare=False)

    def column(self, name: str) -> list[str]:
        """Return the cells of the column called `name`, top to bottom."""
        index = self.columns.index(name)
        return [row[index] for row in self.cells]

    def kept(self, rows: Sequence[int]) -> Table:
        """Return the table with these rows alone, in their order."""
        return replace(
            self, cells=tuple(self.cells[row] for row in rows), lines=tuple(self.lines[row] for row in rows)
        )


def load_table(path: Path) -> Table:
    """Return the table in a CSV file.

    Cells may be separated by `,` `;` `|` or tabs and may be quoted; any line ends; UTF-8 with or without a
    byte order mark. A first column without a name that only numbers the rows (a pandas index) is ignored,
    with a note; so are columns without a name and without cells. A `.gz`, or a `.zip` with one file, is
    unpacked.

    Raises:
        UserError: lists every problem with row numbers: not UTF-8, NUL bytes, broken quotes, rows with
            another number of cells than the header, column names that are empty or occur twice.
    """
    path = Path(path)
    text, problems = _decoded(path)
    notes: tuple[str, ...] = ()
    numbering: dict[int, str] = {}
    has_byte_order_mark = text.startswith("\ufeff")
    text = text.removeprefix("\ufeff")
    delimiter, rows, lines, broken_quote = _parsed(text)
    if not rows:
        problems.append("it is empty: a header row is needed")
    else:
        problems += _width_problems(rows, lines, delimiter)
        if not problems and not broken_quote and (filled := _filled(rows)) != list(range(len(rows[0]))):
            rows = [[row[place] for place in filled] for row in rows]
            notes = (EMPTY_COLUMNS,)
        if not problems and not broken_quote and _has_index(rows):
            numbering = {line: row[0] for line, row in zip(lines[1:], rows[1:], strict=True)}
            rows = [row[1:] for row in rows]
            notes += ("an unnamed column that numbers the rows (a pandas index) ignored",)
        problems += _header_problems(rows[0])
    if broken_quote:
        problems.append(broken_quote)
    raise_all(problems, f"{path} cannot be read as a table:")
    cells = tuple(tuple(row) for row in rows[1:])
    return Table(
        path, tuple(rows[0]), cells, tuple(lines[1:]), delimiter, has_byte_order_mark, notes, numbering
    )


def name_the_ids(table: Table) -> str:
    """Return how to name the first column of a table, whose `numbering` may be its ids; "" without one."""
    if not table.numbering:
        return ""
    cells = list(table.numbering.values())
    what = (
        f"its first column has no name and holds {cells[0]} to {cells[-1]}, so it was ignored as row numbers"
    )
    named = "name it"
    if table.path.suffix.lower() not in (".gz", ".zip"):
        mark = {"\t": "\\t"}.get(table.delimiter, table.delimiter)
        named += f": sed -i.bak {quote(f'1s/^[^{mark}]*/id/')} {quote(str(table.path))}"
    return f"{what}; if these are the ids, {named}"


def numbers_the_rows(cells: Sequence[str]) -> bool:
    """Return True for `0, 1, 2, ...` or `1, 2, 3, ...` of at least two rows: these may be row numbers, not
    ids.
    """
    if len(cells) < 2 or cells[0] not in ("0", "1"):
        return False
    start = int(cells[0])
    return all(cell == str(start + row) for row, cell in enumerate(cells))


def are_whole_numbers(cells: Sequence[str]) -> bool:
    """Return True if every cell holds digits alone: numbers, which may equal names of images by chance."""
    return all(cell.strip().isdecimal() for cell in cells)


def _filled(rows: list[list[str]]) -> list[int]:
    """Return the places of the columns that have a name or a cell.

    All are kept in a table without rows, and beside a column of cells without a name, which is refused.
    """
    places = list(range(len(rows[0])))
    unnamed = [place for place in places if not rows[0][place].strip()] if len(rows) > 1 else []
    empty = [place for place in unnamed if not any(row[place].strip() for row in rows)]
    return [place for place in places if place not in empty] if set(unnamed) <= {0, *empty} else places


def _has_index(rows: list[list[str]]) -> bool:
    cells = [row[0] for row in rows[1:]]
    return len(rows[0]) > 1 and not rows[0][0].strip() and (cells == ["0"] or numbers_the_rows(cells))


_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?")


def is_formula(cell: str) -> bool:
    """Return True for a cell that a spreadsheet would run, or whose apostrophes `restored` would take for
    ours.
    """
    return _FORMULA.match(cell) is not None and not _NUMBER.fullmatch(cell)


def guarded(cell: str) -> str:
    """Return the cell, with a leading apostrophe if a spreadsheet would run it as a formula."""
    return f"'{cell}" if is_formula(cell) else cell


def restored(cell: str) -> str:
    """Return the cell that was given to `guarded`."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    r"""Write a CSV file atomically: UTF-8, `,` between cells, `\n` after each row, quotes only where
    needed.

    Raises:
        ValueError: a row has another number of cells than `columns`; the file is unchanged.
    """
    lines = [_line(columns)]
    for number, row in enumerate(rows, start=2):
        if len(row) != len(columns):
            raise ValueError(f"row {number} has {len(row)} cells for {len(columns)} columns")
        lines.append(_line(row))
    write_text(path, "".join(lines))


def _line(cells: Sequence[Any]) -> str:
    # csv.writer of Python 3.11 does not quote a single \r when lines end in \n; such a row would be read as
    # two rows.
    texts = [str(cell) for cell in cells]
    quoted = ['"' + text.replace('"', '""') + '"' if re.search('[,"\r\n]', text) else text for text in texts]
    return (",".join(quoted) if quoted != [""] else '""') + "\n"


MAX_UNPACKED = 4 << 30  # bytes: a larger file is not a table


def _bytes(path: Path) -> bytes:
    """Return the content of the file, unpacked if its name ends in .gz or .zip."""
    if path.suffix.lower() not in (".gz", ".zip"):
        return path.read_bytes()
    try:
        with _unpacked(path) as file:
            data = file.read(MAX_UNPACKED + 1)
    except (
        zipfile.BadZipFile,
        gzip.BadGzipFile,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        NotImplementedError,
        RuntimeError,
    ) as error:
        raise UserError(f"{path} cannot be unpacked: {error}: copy it again, or unpack it by hand") from None
    if len(data) > MAX_UNPACKED:
        raise UserError(f"{path} is larger than {MAX_UNPACKED >> 30} GB when unpacked: too large for a table")
    return data


@contextmanager
def _unpacked(path: Path) -> Iterator[IO[bytes]]:
    if path.suffix.lower() == ".gz":
        with gzip.open(path) as file:
            yield file
        return
    with zipfile.ZipFile(path) as archive:
        names = [
            name for name in archive.namelist() if not name.endswith("/") and not name.startswith("__MACOSX")
        ]
        if len(names) != 1:
            raise UserError(f"{path} holds {counted(len(names), 'file')}, but one table is needed: unpack it")
        with archive.open(names[0]) as file:
            yield file


def _decoded(path: Path) -> tuple[str, list[str]]:
    """Return the text of the file with its line ends, and the problems of its bytes."""
    try:
        data = _bytes(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{path} is UTF-16: save it as UTF-8{_recode(path, 'UTF-16')}")
    problems = []
    if b"\x00" in data:
        rows = [data.count(b"\n", 0, found.start()) + 1 for found in re.finditer(b"\x00", data)]
        problems.append(f"NUL bytes in {numbered(rows)}")
    try:
        return data.replace(b"\x00", b"").decode("utf-8"), problems
    except UnicodeDecodeError:
        text = data.replace(b"\x00", b"").decode("utf-8", errors="surrogateescape")
        bad = [
            (number, line)
            for number, line in enumerate(text.split("\n"), start=1)
            if re.search("[\udc80-\udcff]", line)
        ]
        line = bad[0][1].rstrip("\r").encode("utf-8", errors="surrogateescape").decode("latin-1")
        rows = numbered([number for number, _ in bad])
        problems.append(
            f"not UTF-8 in {rows} ({line!r} if it is Latin-1): save it as UTF-8{_recode(path, 'LATIN1')}"
        )
        return text, problems


def _recode(path: Path, encoding: str) -> str:
    """Return the advice with the command that writes a file again as UTF-8."""
    if path.suffix.lower() in (".gz", ".zip"):
        return f" (unpack it, then iconv -f {encoding} -t UTF-8)"
    old, new = quote(str(path)), quote(f"{path}.new")
    return f", for example with: iconv -f {encoding} -t UTF-8 {old} > {new} && mv {new} {old}"


def _parsed(text: str) -> tuple[str, list[list[str]], list[int], str | None]:
    """Return delimiter, rows (without blank ones), their row numbers, and the problem of the quotes, if
    any.

    The comma is used if it gives a consistent table; otherwise the delimiter with the fewest inconsistent
    rows.
    """
    header = text.split("\n", 1)[0]
    best: tuple[tuple[bool, bool, int], tuple[str, list[list[str]], list[int], str | None]] | None = None
    for delimiter in [candidate for candidate in DELIMITERS if candidate in header] or [","]:
        rows, lines, broken_quote = _split(text, delimiter)
        width = len(rows[0]) if rows else 0
        ragged = sum(len(row) != width for row in rows)
        rank = (width < 2, broken_quote is not None, ragged)
        if best is None or rank < best[0]:
            best = rank, (delimiter, rows, lines, broken_quote)
        if rank == (False, False, 0):
            break
    assert best is not None
    return best[1]


def _split(text: str, delimiter: str) -> tuple[list[list[str]], list[int], str | None]:
    rows: list[list[str]] = []
    lines: list[int] = []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    start = 1
    try:
        for row in reader:
            if row:
                rows.append(row)
                lines.append(start)
            start = reader.line_num + 1
    except csv.Error as error:
        return rows, lines, f"row {start}: quotes that do not close or that stand inside a cell ({error})"
    return rows, lines, None


def _header_problems(header: list[str]) -> list[str]:
    problems = []
    empty = [number for number, name in enumerate(header, start=1) if not name.strip()]
    if empty:
        which = f"column {empty[0]} has" if len(empty) == 1 else f"columns {', '.join(map(str, empty))} have"
        problems.append(
            f"row 1: {which} no name (a pandas index? write the file with index=False, or name the column)"
        )
    counts = {name: count for name, count in Counter(header).items() if count > 1 and name.strip()}
    if counts and len(header) > 2 and all(re.fullmatch(r"\s*-?\d+(\.\d+)?\s*", name) for name in header):
        shown = ",".join(header[:3])
        return [
            f"row 1: {shown},... are numbers: the file has no header; add a first line with a name for each "
            f"of its {len(header):,} columns (of a table of pixels: label,pixel1,pixel2,...)"
        ]
    problems += [f"row 1: the column name {name!r} occurs {count} times" for name, count in counts.items()]
    return problems


def _width_problems(rows: list[list[str]], lines: list[int], delimiter: str) -> list[str]:
    width = len(rows[0])
    by_width: dict[int, list[int]] = {}
    for row, line in zip(rows, lines, strict=True):
        if len(row) != width:
            by_width.setdefault(len(row), []).append(line)
    separated = f"(cells are separated by {DELIMITER_NAMES[delimiter]})"
    return [
        f"{numbered(found)}: {counted(count, 'cell')} for {width} columns {separated}"
        for count, found in sorted(by_width.items())
    ]


def rows_of(cells: Iterable[str], lines: Iterable[int]) -> dict[str, list[int]]:
    """Return the row numbers of every different cell of a column."""
    rows: dict[str, list[int]] = {}
    for cell, line in zip(cells, lines, strict=True):
        rows.setdefault(cell, []).append(line)
    return rows


def repeated_ids(rows: dict[str, list[int]]) -> list[str]:
    """Return the problems of a column of ids in which some occur several times.

    `rows`: the result of `rows_of`.
    """
    found = [
        f"{numbered(lines)}: the id {image_id!r} occurs {len(lines)} times"
        for image_id, lines in rows.items()
        if len(lines) > 1
    ]
    return capped(found, "ids occur several times")
