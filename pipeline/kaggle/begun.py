"""Note a submission before the file is sent and remove the note once its row is in the ledger.

If the process is killed in between, the next command finds the note and checks Kaggle's list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from pipeline.files import write_json
from pipeline.kaggle import cli
from pipeline.kaggle.cli import Submission
from pipeline.kaggle.ledger import COLUMNS, NUMBER, Row, append_row, read_ledger
from pipeline.shapes import TEXT, read_shaped

Find = Callable[[list[Submission]], Submission | None]

LOST_LOOKS, LOST_PAUSE_S = 3, 5.0  # Kaggle lists a new submission after some seconds
_SHAPE = {"row": dict.fromkeys(COLUMNS, TEXT), "before": [TEXT]}


def begin(ledger: Path, row: Row, before: Sequence[str]) -> None:
    """Note that the submission of `row` is about to be sent. `before`: numbers that Kaggle lists already."""
    write_json(_path(ledger), {"row": row, "before": list(before)})


def settle(ledger: Path) -> None:
    """Remove the note: the row is in the ledger, or the file was not sent."""
    _path(ledger).unlink(missing_ok=True)


def settle_begun(ledger: Path, sleep: Callable[[float], None]) -> None:
    """Resolve a submission whose command was killed while sending: if Kaggle has it, its row is added to the
    ledger.

    Raises:
        UserError: Kaggle cannot be reached, or the note is damaged.
    """
    begun = _begun(ledger)
    if begun is None:
        return
    row, before = begun
    if not any(
        all(row[name] == other[name] for name in ("time", "file_sha256")) for other in read_ledger(ledger)[1]
    ):
        print(
            f"an earlier command was stopped while it sent {row['message']!r}: checking Kaggle's list ...",
            flush=True,
        )
        for look in range(LOST_LOOKS):
            if look:
                sleep(LOST_PAUSE_S)
            listed = cli.list_submissions(row["competition"], sleep=sleep)
            if found := finder(row)([submission for submission in listed if submission.ref not in before]):
                print("Kaggle has it")
                append_row(ledger, row | {NUMBER: found.number})
                break
        else:
            print("Kaggle does not have it")
    settle(ledger)


def _begun(ledger: Path) -> tuple[Row, set[str]] | None:
    """Return the noted row and the numbers that Kaggle listed before; None without a note.

    Raises:
        UserError: the note is damaged.
    """
    path = _path(ledger)
    if not path.is_file():
        return None
    note = read_shaped(
        path, _SHAPE, "check in Kaggle's list whether the last file is there, then delete this note"
    )
    return note["row"], set(note["before"])


def finder(row: Row) -> Find:
    """Return a function that finds a ledger row's submission: by Kaggle's number.

    A row without a number (an old row, an old command): the same message, the nearest time within a day. The
    clock of this machine may be wrong, and several submissions often have one message, so the number counts.
    """

    def distance(submission: Submission) -> float:
        try:
            if submission.date:
                return abs((submission.date - datetime.fromisoformat(row["time"])).total_seconds())
            return 0.0
        except (ValueError, TypeError):
            # A spreadsheet may have rewritten the time; then only the message is compared.
            return 0.0

    def find(submissions: list[Submission]) -> Submission | None:
        if row.get(NUMBER, "").isdigit() and any(submission.number for submission in submissions):
            return next((one for one in submissions if one.number == row[NUMBER]), None)
        alike = [
            submission
            for submission in submissions
            if same(submission.message, row["message"]) and distance(submission) < 86_400
        ]
        return min(alike, key=distance, default=None)

    return find


def same(one: str, other: str) -> bool:
    """Return True if two messages are equal except for spaces."""
    return " ".join(one.split()) == " ".join(other.split())


def _path(ledger: Path) -> Path:
    return ledger.resolve().with_name(f".{ledger.resolve().name}.begun")
