"""submissions.csv: one line for every file that Kaggle has, never lost, and harmless in a spreadsheet."""

from __future__ import annotations

import csv
import io
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from pipeline import files
from pipeline.errors import UserError, one_line, printable
from pipeline.lock import holding_file
from pipeline.tables import guarded, restored

LEDGER = Path("submissions.csv")
COLUMNS = ("time", "competition", "file_sha256", "message", "validation_score", "public_score", "private_score", "status")
SPREAD = "validation_spread"  # the deviation of the validation score over folds; a column that the first such submission adds

Row = dict[str, str]


def ledger_digests(path: Path = LEDGER) -> set[str]:
    """The SHA-256 of every file that was submitted; empty when there is no ledger.

    Raises:
        UserError: the ledger cannot be read.
    """
    return {row["file_sha256"] for row in read_ledger(path)[1]}


def read_ledger(path: Path) -> tuple[list[str], list[Row]]:
    """The ledger's columns (columns added by hand are kept) and its rows.

    Raises:
        UserError: it cannot be read as written, so it must not be written either.
    """
    if not path.exists():
        return list(COLUMNS), []
    try:
        text = path.read_bytes().decode("utf-8-sig")
        lines = [line for line in csv.reader(io.StringIO(text, newline=""), strict=True) if line]
    except (UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(path, str(error)) from None
    if not lines:
        return list(COLUMNS), []
    columns = lines[0]
    if missing := [name for name in COLUMNS if name not in columns]:
        raise _unreadable(path, f"no column {', '.join(missing)}; its first line has {', '.join(columns)}")
    for number, line in enumerate(lines[1:], start=1):
        if len(line) != len(columns):
            raise _unreadable(path, f"submission {number} has {len(line)} cells instead of {len(columns)}")
    return columns, [dict(zip(columns, (printable(restored(cell)) for cell in line), strict=True)) for line in lines[1:]]


def _unreadable(path: Path, reason: str) -> UserError:
    return UserError(f"{path} is not a readable ledger of submissions ({reason}); it was left as it is: repair it or move it elsewhere")


def append_row(path: Path, row: Row) -> Row:
    """Add a row to the ledger as it is now, and return it with the cells that it has there.

    Raises:
        UserError: the ledger cannot be read, and stays as it is.
    """
    with _writing(path):
        columns, rows = read_ledger(path)
        if row.get(SPREAD) and SPREAD not in columns:
            columns.insert(columns.index("validation_score") + 1, SPREAD)
        row = {name: cell for name, cell in row.items() if name != SPREAD or name in columns}
        row = dict.fromkeys(columns, "") | {name: one_line(cell) for name, cell in row.items()}
        _write_ledger(path, columns, [*rows, row])
    return row


def update_row(path: Path, row: Row, changes: Row) -> None:
    """Change cells of `row`, which is added again when someone removed it in the meantime.

    Raises:
        UserError: the ledger cannot be read, and stays as it is.
    """
    with _writing(path):
        columns, rows = read_ledger(path)
        place = next((index for index, other in enumerate(rows) if _names(other) == _names(row)), len(rows))
        kept = rows[place] if place < len(rows) else row
        rows[place : place + 1] = [kept | {name: one_line(cell) for name, cell in changes.items()}]
        _write_ledger(path, columns, rows)


def sending(path: Path = LEDGER, wait: Callable[[], None] | None = None) -> AbstractContextManager[None]:
    """Hold the right to send to Kaggle, from the look whether a file is in the ledger until its row is: `wait` is called while another has it.

    Raises:
        UserError: another process has it, and there is no `wait`.
    """
    return holding_file(_beside(path, "sending"), "another `make submit` is at work here", wait=wait)


def _names(row: Row) -> tuple[str, ...]:
    """What tells a row from others; its scores another process may have written since it was read."""
    return tuple(row.get(name, "") for name in ("time", "competition", "file_sha256", "message"))


def _writing(path: Path) -> AbstractContextManager[None]:
    """Between reading the ledger and writing it nobody else writes it."""
    return holding_file(_beside(path, "lock"), f"{path} is being written", wait=lambda: time.sleep(0.02))


def _beside(path: Path, suffix: str) -> Path:
    """The lock file of a ledger: beside the file itself, however many links lead to it."""
    real = Path(os.path.realpath(path))
    return real.with_name(f".{real.name}.{suffix}")


def _write_ledger(path: Path, columns: list[str], rows: list[Row]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([guarded(row.get(name, "")) for name in columns] for row in rows)
    files.write_text(path, text.getvalue())
