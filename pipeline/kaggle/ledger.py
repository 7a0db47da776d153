"""Read and write submissions.csv, the ledger: one row for every submission to Kaggle, safe to open in a
spreadsheet.
"""

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
COLUMNS = tuple(
    "time competition file_sha256 message validation_score public_score private_score status".split()
)
# The first submission that has such a value adds the column, after the one named here:
# deviation of the validation score over folds, Kaggle's number of the submission
SPREAD, NUMBER = "validation_spread", "kaggle_number"
ADDED = {SPREAD: "validation_score", NUMBER: "status"}

Row = dict[str, str]


def ledger_digests(path: Path = LEDGER) -> set[str]:
    """Return the SHA-256 of every submitted file; empty without a ledger.

    Raises:
        UserError: the ledger cannot be read.
    """
    return {row["file_sha256"] for row in read_ledger(path)[1]}


def read_ledger(path: Path) -> tuple[list[str], list[Row]]:
    """Return the ledger's columns (also those that the user added) and its rows.

    Raises:
        UserError: it cannot be read exactly; then it must not be rewritten either.
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
    return columns, [
        dict(zip(columns, (printable(restored(cell)) for cell in line), strict=True)) for line in lines[1:]
    ]


def _unreadable(path: Path, reason: str) -> UserError:
    return UserError(
        f"{path} is not a readable ledger of submissions ({reason}); it was not changed: repair it or move "
        "it elsewhere"
    )


def append_row(path: Path, row: Row) -> Row:
    """Append a row to the ledger and return it with the cells that were written.

    Raises:
        UserError: the ledger cannot be read; it is not changed.
    """
    with _writing(path):
        columns, rows = read_ledger(path)
        for name, after in ADDED.items():
            if row.get(name) and name not in columns:
                columns.insert(columns.index(after) + 1, name)
        row = {name: cell for name, cell in row.items() if name not in ADDED or name in columns}
        row = dict.fromkeys(columns, "") | {name: one_line(cell) for name, cell in row.items()}
        _write_ledger(path, columns, [*rows, row])
    return row


def update_row(path: Path, row: Row, changes: Row) -> None:
    """Change cells of `row`; if the row was removed in the meantime, it is added again.

    Raises:
        UserError: the ledger cannot be read; it is not changed.
    """
    with _writing(path):
        columns, rows = read_ledger(path)
        place = next((index for index, other in enumerate(rows) if _names(other) == _names(row)), len(rows))
        kept = rows[place] if place < len(rows) else row
        rows[place : place + 1] = [kept | {name: one_line(cell) for name, cell in changes.items()}]
        _write_ledger(path, columns, rows)


def sending(path: Path = LEDGER, wait: Callable[[], None] | None = None) -> AbstractContextManager[None]:
    """Lock sending to Kaggle, from the check of the ledger until the new row is written.

    `wait` is called repeatedly while another process holds the lock.

    Raises:
        UserError: another process holds the lock, and `wait` is None.
    """
    return holding_file(_beside(path, "sending"), "another `make submit` is running here", wait=wait)


def _names(row: Row) -> tuple[str, ...]:
    """Return the cells that identify a row.

    Scores are not among them: another process may have written them since.
    """
    return tuple(row.get(name, "") for name in ("time", "competition", "file_sha256", "message"))


def _writing(path: Path) -> AbstractContextManager[None]:
    """Lock the ledger between reading and writing it."""
    return holding_file(_beside(path, "lock"), f"{path} is being written", wait=lambda: time.sleep(0.02))


def _beside(path: Path, suffix: str) -> Path:
    """Return the lock file of a ledger, beside the real file even if `path` is a link."""
    real = Path(os.path.realpath(path))
    return real.with_name(f".{real.name}.{suffix}")


def _write_ledger(path: Path, columns: list[str], rows: list[Row]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([guarded(row.get(name, "")) for name in columns] for row in rows)
    files.write_text(path, text.getvalue())
