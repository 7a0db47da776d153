"""`make submit`: check predictions.csv, send it to Kaggle, wait for its score, and keep the ledger."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from pipeline import files
from pipeline.errors import Interrupted, UserError, run_command
from pipeline.kaggle import cli
from pipeline.kaggle.begun import LOST_LOOKS, LOST_PAUSE_S, Find, begin, finder, same, settle, settle_begun
from pipeline.kaggle.cli import Submission
from pipeline.kaggle.ledger import LEDGER, NUMBER, SPREAD, Row, append_row, read_ledger, sending, update_row
from pipeline.kaggle.preflight import Plan, preflight
from pipeline.kaggle.remembered import agreed
from pipeline.kaggle.reply import KaggleError

Sleep = Callable[[float], None]

FINAL = ("complete", "error")


def main(argv: list[str] | None = None, *, sleep: Sleep = time.sleep) -> int:
    """Check a predictions file, send it, wait for its score and print it; returns the exit code.

    Raises:
        UserError: something is missing or wrong and nothing was sent, or Kaggle refused the file or did not
            score it.
        Interrupted: the file was sent, but waiting for its score was cut short.
    """
    args = _parser().parse_args(argv)
    plan = preflight(args)
    submit(
        plan, yes=args.yes, poll_seconds=args.poll_seconds, timeout_s=60 * args.timeout_minutes, sleep=sleep
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipeline.kaggle.submit", description=__doc__)
    parser.add_argument(
        "--predictions",
        type=Path,
        default=Path("predictions.csv"),
        metavar="FILE",
        help="default: %(default)s",
    )
    parser.add_argument("--competition", metavar="SLUG", help="default: the one that `make data` installed")
    parser.add_argument("--message", metavar="TEXT", help="default: run name, validation score, commit")
    parser.add_argument("--yes", action="store_true", help="send without asking, also the same file again")
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("data"),
        metavar="DIR",
        help="the competition folder (default: %(default)s)",
    )
    parser.add_argument(
        "--model",
        type=Path,
        metavar="DIR",
        help="the run that made the file (default: recorded by inference.py)",
    )
    parser.add_argument(
        "--poll-seconds", type=_not_negative, default=10.0, metavar="N", help="default: %(default)s"
    )
    parser.add_argument(
        "--timeout-minutes", type=_not_negative, default=30.0, metavar="N", help="default: %(default)s"
    )
    return parser


def _not_negative(text: str) -> float:
    with suppress(ValueError):
        if 0 <= (value := float(text)) < float("inf"):
            return value
    raise argparse.ArgumentTypeError(f"{text} is not a number from 0 upwards")


def submit(
    plan: Plan,
    *,
    yes: bool = False,
    poll_seconds: float = 10.0,
    timeout_s: float = 1800.0,
    sleep: Sleep = time.sleep,
) -> None:
    """Send the file, wait for its score and print it.

    A file that was sent and is not scored yet is not sent again.

    Raises:
        UserError: the file was not sent, or not scored.
        Interrupted: the file was sent, but waiting for its score was cut short.
    """
    with sending(LEDGER, _waiting_for_another()):  # two processes must not send the same file
        sent = _send_once(plan, yes, sleep)
    if sent is None:
        print("nothing was sent")
        return
    find, waiting, listed = sent
    found = _wait(find, plan, listed, poll_seconds, timeout_s, sleep)
    if found.status == "complete":
        _print_scores(plan, found)
    update_row(LEDGER, waiting, _outcome(found))
    if found.status == "error":
        raise UserError(
            f"Kaggle could not score the file: {found.error or f'the reason is at {_page(plan)}'}"
        )


def _send_once(plan: Plan, yes: bool, sleep: Sleep) -> tuple[Find, Row, list[Submission] | None] | None:
    """Send the file unless Kaggle has it.

    Returns the finder of the submission, its row, and a fresh list or None.

    Returns None if the user answered no.
    """
    settle_begun(LEDGER, sleep)
    same_file = [
        row
        for row in read_ledger(LEDGER)[1]
        if (row["competition"], row["file_sha256"]) == (plan.competition, plan.sha256)
    ]
    row = None if yes else next((row for row in reversed(same_file) if row["status"] == "pending"), None)
    if same_file and not row and not yes and not _send_again(plan, same_file[-1]):
        return None
    if (
        not same_file
        and not yes
        and sys.stdin.isatty()
        and not agreed(f"Send {plan.file} to {plan.competition}? [y/N] ")
    ):
        return None
    before = cli.list_submissions(plan.competition, sleep=sleep)
    _refresh(plan.competition, before, skip=row)
    if row:
        print(f"{plan.file} was sent at {row['time']}; it is not sent again, only its score is looked up")
        return finder(row), row, before
    row = _row_of(plan)
    # A kernel's version is on Kaggle already, whatever has become of its file
    with nullcontext(plan.file) if plan.send else files.checked_copy(plan.file, plan.sha256) as file:
        begin(LEDGER, row, [submission.ref for submission in before])
        find, number = _send(plan, file, row, before, sleep)
    return find, _add_row(row | {NUMBER: number}), None


def _waiting_for_another() -> Callable[[], None]:
    """Return the `wait` for while another `make submit` sends: it prints once, and pauses 0.2 s per call."""
    announced: list[bool] = []

    def wait() -> None:
        if not announced:
            print("another `make submit` is sending; waiting for it ...", flush=True)
            announced.append(True)
        time.sleep(0.2)

    return wait


def _send_again(plan: Plan, row: Row) -> bool:
    score = f", public score {row['public_score']}" if row["public_score"] else ""
    sent = f"{plan.file} was already sent to {plan.competition} at {row['time']} ({row['message']}{score})"
    if not sys.stdin.isatty():
        raise UserError(f"{sent}: YES=1 (--yes) sends the same file again")
    return agreed(f"{sent}. Send it again? [y/N] ")


def _send(plan: Plan, file: Path, row: Row, before: list[Submission], sleep: Sleep) -> tuple[Find, str]:
    """Upload `file`, which holds what was checked, once.

    Returns a function that finds it in Kaggle's list, among older and team members' submissions, and Kaggle's
    number (empty if not shown).
    """
    known = {submission.ref for submission in before}

    def find(submissions: list[Submission], ref: str = "") -> Submission | None:
        new = [
            submission
            for submission in submissions
            if submission.ref not in known and same(submission.message, plan.message)
        ]
        exact = [submission for submission in submissions if submission.ref == ref]
        return (exact or new or [None])[-1]

    line = cli.StatusLine()
    try:
        send = plan.send or partial(cli.upload, plan.competition, file, plan.message)
        sent = send(tick=lambda: line.show("sending ..."))
    except KaggleError as error:
        if not error.sent:
            settle(LEDGER)
            raise
        found = _look_for_lost(find, plan, UserError, str(error), sleep)
        print("Kaggle's answer was lost, but its list shows the submission")
        return find, found.number
    except KeyboardInterrupt:
        found = _look_for_lost(find, plan, Interrupted, "interrupted", sleep)
        _add_row(row | {NUMBER: found.number})
        raise Interrupted(f"interrupted, but Kaggle has the file. {plan.again} shows its score") from None
    finally:
        line.close()
    left = re.search(r"\d+ submissions remaining today", sent.said)
    print(f"sent to Kaggle ({left[0]})" if left else "sent to Kaggle", flush=True)
    return lambda submissions: find(submissions, sent.ref), sent.ref


def _look_for_lost(find: Find, plan: Plan, ending: type[Exception], problem: str, sleep: Sleep) -> Submission:
    """Check Kaggle's list after an upload without an answer, and return the submission.

    Raises `ending` if the file is not there: never resend blindly.
    """
    print("checking whether Kaggle has the file ...", flush=True)
    try:
        for _ in range(LOST_LOOKS):
            sleep(LOST_PAUSE_S)
            if found := find(cli.list_submissions(plan.competition, sleep=sleep)):
                return found
    except (KaggleError, KeyboardInterrupt):
        raise ending(
            f"{problem}\nIt is unknown whether Kaggle has the file: check {_page(plan)} before you send it "
            "again"
        ) from None
    raise ending(
        f"{problem}\nKaggle's list ({_page(plan)}) does not show the file, so it was most likely not "
        "submitted"
    )


def _wait(
    find: Find,
    plan: Plan,
    listed: list[Submission] | None,
    poll_seconds: float,
    timeout_s: float,
    sleep: Sleep,
) -> Submission:
    """Wait until the submission is scored or refused, and return it.

    `listed`: a fresh list, if there is one.
    """
    line, start = cli.StatusLine(), time.monotonic()
    later = (
        f"{plan.again} shows its score, and so does: kaggle competitions submissions -c {plan.competition}"
    )
    try:
        while True:
            found = find(cli.list_submissions(plan.competition, sleep=sleep) if listed is None else listed)
            if found and found.status in FINAL:
                return found
            elapsed, listed = time.monotonic() - start, None
            if elapsed >= timeout_s:
                raise Interrupted(f"no score after {files.human_time(elapsed)}. {later}")
            line.show(f"waiting for Kaggle's score ({files.human_time(elapsed)})")
            sleep(poll_seconds)
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted while waiting for the score. {later}") from None
    except KaggleError as error:
        raise UserError(f"{error}\nThe file itself was submitted. {later}") from None
    finally:
        line.close()


def _print_scores(plan: Plan, found: Submission) -> None:
    print(f"public score      {found.public_score or 'not shown by this competition'}")
    if found.private_score:
        print(f"private score     {found.private_score}")
    if plan.validation_score:
        print(f"validation score  {plan.origin.shown_score if plan.origin else plan.validation_score}")


def _refresh(competition: str, submissions: list[Submission], skip: Row | None) -> None:
    """Write new scores into the ledger's pending rows of `competition`, except the row `skip`."""
    for row in read_ledger(LEDGER)[1]:
        if row["competition"] != competition or row["status"] != "pending" or row == skip:
            continue
        found = finder(row)(submissions)
        if found and found.status in FINAL:
            update_row(LEDGER, row, _outcome(found))
            print(f"new score: {row['time']} {row['message']}: {found.public_score or found.status}")


def _outcome(found: Submission) -> Row:
    return {"status": found.status, "public_score": found.public_score, "private_score": found.private_score}


def _row_of(plan: Plan) -> Row:
    """Build the ledger row of a submission without a score."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "competition": plan.competition,
        "file_sha256": plan.sha256,
        "message": plan.message,
        "validation_score": plan.validation_score,
        SPREAD: plan.origin.spread if plan.origin else "",
        "public_score": "",
        "private_score": "",
        "status": "pending",
    }


def _add_row(row: Row) -> Row:
    """Append the row of a sent submission to the ledger; returns the row as written."""
    try:
        added = append_row(LEDGER, row)
        settle(LEDGER)
        return added
    except (UserError, OSError) as error:
        cells = ", ".join(f"{name}={value}" for name, value in row.items() if value)
        raise UserError(
            f"the file was submitted, but {LEDGER} could not be written: {error}\nIts line would be: {cells}"
        ) from None


def _page(plan: Plan) -> str:
    return f"https://www.kaggle.com/competitions/{plan.competition}/submissions"


if __name__ == "__main__":
    sys.exit(run_command(main))
