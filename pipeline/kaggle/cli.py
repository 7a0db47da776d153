"""The `kaggle` command as a subprocess: submit, list, download.

The package is never imported: older versions log in on import and end the process if they cannot.
"""

from __future__ import annotations

import csv
import io
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pipeline.errors import UserError, one_line, printable
from pipeline.kaggle.reply import KaggleError, Reply, explain, read_reply
from pipeline.kaggle.token import find_credentials, scrub

INSTALL = "the kaggle command is not installed in this environment: pip install kaggle six"
COMMAND_TIMEOUT_S = 180.0
LONGEST_WAIT_S = 120.0
LISTING_ATTEMPTS = 4


# The command


def find_command() -> Path | None:
    """Return the `kaggle` command of this Python's environment, else the one on PATH, else None."""
    for name in ("kaggle", "kaggle.exe"):
        beside = Path(sys.executable).with_name(name)
        if beside.is_file():
            return beside
    on_path = shutil.which("kaggle")
    return Path(on_path) if on_path else None


def not_ready() -> list[str]:
    """Return what is missing before Kaggle can be called: a token, the command. Empty: ready."""
    problem = find_credentials().problem
    return ([problem] if problem else []) + ([] if find_command() else [INSTALL])


def clean_slug(text: str) -> str:
    """Return the competition's slug from that slug or from a Kaggle address.

    Raises:
        UserError: the text is neither.
    """
    address = re.match(r"(?i)(https?://)?(www\.)?kaggle\.com/(competitions|c)/", text.strip())
    slug = re.split("[/?#]", text.strip()[address.end() if address else 0 :])[0]
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", slug):
        raise UserError(
            f"{text!r} is not a competition name: expected the last part of "
            "https://www.kaggle.com/competitions/<name>"
        )
    return slug


# One call


def call(
    arguments: list[str],
    *,
    traffic: bool = True,
    timeout_s: float = COMMAND_TIMEOUT_S,
    tick: Callable[[], None] | None = None,
) -> Reply:
    """Run `kaggle <arguments>`; `tick` is called every second while it runs.

    `traffic` makes the command print Kaggle's HTTP answers. They hold what its tables leave out: why a
    scoring failed, the number of the new submission, Retry-After.

    Raises:
        UserError: the command is not installed.
        KaggleError: the command did not end within `timeout_s` seconds.
    """
    command = find_command()
    if command is None:
        raise UserError(INSTALL)
    environment = {name: value for name, value in os.environ.items() if name != "VERBOSE_OUTPUT"}
    environment |= {"VERBOSE": "true" if traffic else "false", "PYTHONUTF8": "1"}
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(
        [str(command), *arguments], env=environment, text=True, encoding="utf-8", errors="replace", **streams
    )
    deadline = time.monotonic() + timeout_s
    try:
        while True:
            try:
                output, errors = process.communicate(timeout=1)
                return read_reply(process.returncode, scrub(printable(output)), scrub(printable(errors)))
            except subprocess.TimeoutExpired:
                if tick:
                    tick()
            if time.monotonic() > deadline:
                raise KaggleError(
                    f"Kaggle did not answer within {timeout_s:.0f} s: check the network, then try again",
                    passing=True,
                    sent=True,
                )
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


# Requests to Kaggle


@dataclass(frozen=True)
class Submission:
    """One row of Kaggle's list. `status`: pending, complete or error. Scores are texts, empty until known.

    `date` is None if it cannot be read.
    """

    ref: str
    file_name: str
    date: datetime | None
    message: str
    status: str
    public_score: str
    private_score: str
    error: str

    @property
    def number(self) -> str:
        """Kaggle's number; empty where an old command lists none."""
        return self.ref if self.ref.isdigit() else ""


@dataclass(frozen=True)
class Upload:
    """An accepted upload: the number of the new submission (empty if not shown) and Kaggle's sentences."""

    ref: str
    said: str


def list_submissions(competition: str, *, sleep: Callable[[float], None] = time.sleep) -> list[Submission]:
    """Return the newest submissions of the user and the team, newest first. Temporary failures are retried.

    Raises:
        KaggleError: Kaggle refused, or did not answer after all retries.
    """
    for attempt in range(1, LISTING_ATTEMPTS + 1):
        try:
            reply = call(["competitions", "submissions", "-c", competition, "-v"])
            if reply.code != 0:
                raise explain(reply, competition)
            return _read_submissions(reply)
        except KaggleError as error:
            pause = error.retry_after if error.retry_after is not None else 5.0 * 2 ** (attempt - 1)
            if not error.passing or attempt == LISTING_ATTEMPTS or pause > LONGEST_WAIT_S:
                raise
            sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def _read_submissions(reply: Reply) -> list[Submission]:
    header = re.search(r"^(ref,)?fileName,date,", reply.output, re.MULTILINE)
    if header is None:
        if "No submissions found" in reply.output:
            return []
        raise KaggleError(
            f"the kaggle command printed no list of submissions (pip install --upgrade kaggle): {reply.said}"
        )
    listed = next(
        (body["submissions"] for body in reply.bodies if isinstance(body.get("submissions"), list)), []
    )
    errors = {
        str(item.get("ref")): scrub(one_line(str(item.get("errorDescription") or "")))
        for item in listed
        if isinstance(item, dict)
    }
    try:
        rows = [
            {name: value or "" for name, value in row.items() if name}
            for row in csv.DictReader(io.StringIO(reply.output[header.start() :]))
        ]
    except csv.Error as error:
        raise KaggleError(
            f"the kaggle command printed a list of submissions that cannot be read ({error}); try again"
        ) from None
    return [_submission(row, errors) for row in rows if row.get("status")]


def _submission(row: dict[str, str], errors: dict[str, str]) -> Submission:
    try:
        date = datetime.fromisoformat(row["date"])
        date = date if date.tzinfo else date.replace(tzinfo=UTC)
    except ValueError:
        date = None
    public, private = (
        "" if value == "None" else value
        for value in (row.get("publicScore", ""), row.get("privateScore", ""))
    )
    # An old command lists no number; then file and time identify a submission.
    ref = row.get("ref") or f"{row['fileName']} {row['date']}"
    status = row["status"].rpartition(".")[2].lower()
    return Submission(
        ref, row["fileName"], date, row.get("description", ""), status, public, private, errors.get(ref, "")
    )


def upload(competition: str, file: Path, message: str, *, tick: Callable[[], None] | None = None) -> Upload:
    """Submit `file` once. There is no retry: it could use up one of the day's submissions.

    Raises:
        KaggleError: the upload was refused; with `sent` set, Kaggle may have the file anyway; check its list.
    """
    # One argument each: a message may begin with a dash.
    arguments = ["competitions", "submit", "-c", competition, f"--file={file}", f"--message={message}"]
    reply = call(arguments, timeout_s=600 + file.stat().st_size / 50_000, tick=tick)
    return _sent(reply, competition)


def upload_kernel(
    competition: str,
    kernel: str,
    version: int,
    file_name: str,
    message: str,
    *,
    tick: Callable[[], None] | None = None,
) -> Upload:
    """Submit the output `file_name` of a kernel version (owner/slug) once.

    Kaggle then runs it on the hidden test set.

    Raises:
        KaggleError: it was refused; with `sent` set, Kaggle may have it anyway; check its list.
    """
    arguments = ["competitions", "submit", "-c", competition, f"--file={file_name}", f"--message={message}"]
    return _sent(call([*arguments, f"--kernel={kernel}", f"--version={version}"], tick=tick), competition)


def _sent(reply: Reply, competition: str) -> Upload:
    """Return the accepted upload, or raise.

    The command exits with 0 even if Kaggle rejected the file, so only a number or Kaggle's sentence proves
    success.
    """
    if "Could not submit to competition" in reply.output:
        raise KaggleError(
            "Kaggle did not accept the file (Could not submit to competition), nothing was submitted: run "
            "the same command again"
        )
    if reply.code != 0 or "Could not find competition" in reply.output:
        raise explain(reply, competition)
    ref = next(
        (
            str(body["ref"])
            for body in reversed(reply.bodies)
            if body.get("ref") and "submissions" not in body
        ),
        "",
    )
    if not ref and "Successfully submitted" not in reply.output:
        raise KaggleError(
            f'the kaggle command did not confirm the submission (it printed: "{reply.said}")', sent=True
        )
    return Upload(ref, " ".join(reply.output.split()))


def download(competition: str, folder: Path, *, tick: Callable[[], None] | None = None) -> None:
    """Download all files of a competition into `folder`; a partial file is resumed if the command supports
    it.

    Raises:
        KaggleError: the download was refused or interrupted.
    """
    # Without traffic, because the command would print the whole archive as text.
    reply = call(
        ["competitions", "download", "-c", competition, "-p", str(folder)],
        traffic=False,
        timeout_s=24 * 3600,
        tick=tick,
    )
    if reply.code != 0:
        raise explain(reply, competition)


class StatusLine:
    """A progress line: rewritten in place on a terminal, else printed at most once a minute."""

    def __init__(self) -> None:
        self.in_place, self.last, self.width = sys.stdout.isatty(), -60.0, 0

    def show(self, text: str) -> None:
        """Show `text` in place of the previous text; without a terminal print it at most once a minute."""
        if self.in_place:
            print(f"\r{text.ljust(self.width)}", end="", flush=True)
            self.width = len(text)
        elif time.monotonic() - self.last >= 60:
            print(text, flush=True)
            self.last = time.monotonic()

    def close(self) -> None:
        """End the line, so that later output starts on a new one."""
        if self.in_place and self.width:
            print(flush=True)
            self.width = 0
