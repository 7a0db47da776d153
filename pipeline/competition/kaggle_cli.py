"""The `kaggle` command as a subprocess: what Kaggle answered, and every failure as one sentence.

The package is never imported: older ones authenticate on import and end the process when they cannot.
"""

from __future__ import annotations

import csv
import io
import json
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
from typing import Any

from pipeline.competition.kaggle_token import NEW_TOKEN, find_credentials, scrub
from pipeline.errors import UserError

INSTALL = "the kaggle command is not installed in this environment: pip install kaggle six"
COMMAND_TIMEOUT_S = 180.0
LONGEST_WAIT_S = 120.0
LISTING_ATTEMPTS = 4


class KaggleError(UserError):
    """A failed command. `passing`: the same call may work a little later; `sent`: Kaggle may have acted on it all the same."""

    def __init__(self, text: str, *, passing: bool = False, sent: bool = False, retry_after: float | None = None):
        super().__init__(text)
        self.passing, self.sent, self.retry_after = passing, sent, retry_after


# The command


def find_command() -> Path | None:
    """The `kaggle` command of this Python's environment, else the one on PATH, else None."""
    for name in ("kaggle", "kaggle.exe"):
        beside = Path(sys.executable).with_name(name)
        if beside.is_file():
            return beside
    on_path = shutil.which("kaggle")
    return Path(on_path) if on_path else None


def not_ready() -> list[str]:
    """What is missing before Kaggle can be asked anything: a token, the command. Empty = ready."""
    problem = find_credentials().problem
    return ([problem] if problem else []) + ([] if find_command() else [INSTALL])


def clean_slug(text: str) -> str:
    """The competition's name in Kaggle's addresses, from that name or from a whole address.

    Raises:
        UserError: the text is neither.
    """
    slug = re.sub(r"^https?://(www\.)?kaggle\.com/(competitions|c)/", "", text.strip()).split("/")[0].split("?")[0]
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", slug):
        raise UserError(f"{text!r} is no competition name: it is the last part of its address, https://www.kaggle.com/competitions/<name>")
    return slug


# One call


@dataclass(frozen=True)
class Reply:
    """What one call printed (scrubbed, without traffic) and Kaggle's last HTTP answer (None where the command does not show it)."""

    code: int
    output: str
    errors: str
    status: int | None
    retry_after: float | None
    bodies: tuple[dict[str, Any], ...]

    @property
    def text(self) -> str:
        return f"{self.output}\n{self.errors}".strip()

    @property
    def said(self) -> str:
        """Kaggle's own sentence about a failure, on one line; empty when it gave none."""
        message = self.bodies[-1].get("message") if self.bodies else None
        lines = [line.strip() for line in self.text.splitlines() if line.strip()]
        sentence = message if isinstance(message, str) and message else lines[-1] if lines else ""
        return " ".join(sentence.split())[:400]


def call(
    arguments: list[str], *, traffic: bool = True, timeout_s: float = COMMAND_TIMEOUT_S, tick: Callable[[], None] | None = None
) -> Reply:
    """Run `kaggle <arguments>`; `tick` is called every second while it runs.

    `traffic` asks the command to show Kaggle's answers: its tables leave out why a scoring failed, the new submission's number and Retry-After.

    Raises:
        UserError: the command is not installed.
        KaggleError: no end within `timeout_s` seconds.
    """
    command = find_command()
    if command is None:
        raise UserError(INSTALL)
    environment = {name: value for name, value in os.environ.items() if name != "VERBOSE_OUTPUT"}
    environment |= {"VERBOSE": "true" if traffic else "false", "PYTHONUTF8": "1"}
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([str(command), *arguments], env=environment, text=True, encoding="utf-8", errors="replace", **streams)
    deadline = time.monotonic() + timeout_s
    try:
        while True:
            try:
                output, errors = process.communicate(timeout=1)
                return _read_reply(process.returncode, scrub(output), scrub(errors))
            except subprocess.TimeoutExpired:
                if tick:
                    tick()
            if time.monotonic() > deadline:
                raise KaggleError(
                    f"Kaggle did not answer within {timeout_s:.0f} s: check the network, then try again", passing=True, sent=True
                )
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


_TRAFFIC = re.compile(r"^-{10,}(Request|Response)-{10,}\n(.*?)\n-{50}$\n?", re.DOTALL | re.MULTILINE)


def _read_reply(code: int, output: str, errors: str) -> Reply:
    status, retry_after, bodies = None, None, []
    for kind, block in _TRAFFIC.findall(output):
        if kind == "Request":
            continue
        head, _, body = block.partition("\n\n")
        status = int(head[:3]) if head[:3].isdigit() else None
        header = re.search(r"(?im)^retry-after: *(.+)$", head)
        retry_after = _seconds(header[1]) if header else None
        try:
            values = json.loads(body)
        except ValueError:
            values = {}
        bodies.append(values if isinstance(values, dict) else {})
    output = _TRAFFIC.sub("", output)
    errors = "\n".join(line for line in errors.splitlines() if not re.match(r"(DEBUG|INFO|WARNING):", line))
    if (
        status is None
        and code != 0
        and (told := re.search(r"\b([45]\d\d) (?:Client|Server) Error|^([45]\d\d) - ", output + errors, re.MULTILINE))
    ):
        status = int(told[1] or told[2])
    return Reply(code, output, errors, status, retry_after, tuple(bodies))


def _seconds(retry_after: str) -> float | None:
    """Seconds from a Retry-After header: a number or an HTTP date."""
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        moment = datetime.strptime(retry_after.strip(), "%a, %d %b %Y %H:%M:%S GMT").replace(tzinfo=UTC)
    except ValueError:
        return None
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


_LIMIT = re.compile(r"allowance|daily.{0,30}limit|submission limit|maximum number of submissions", re.IGNORECASE)
_ENDED = re.compile(r"deadline|has ended|is over|not accepting|no longer accept|has closed", re.IGNORECASE)
# A refused download shows only Kaggle's sentence.
_STATUS_WORDS = {
    401: "unauthori[sz]ed|unauthenticated",
    403: "accept.{0,40}rules|denied|forbidden|permission",
    404: "not found",
    429: "too many requests",
}
_NETWORK = re.compile(
    r"Max retries exceeded|ConnectionError|Connection (aborted|refused|reset)|timed out|NameResolution|ProxyError|SSLError"
)


def explain(reply: Reply, competition: str) -> KaggleError:
    """A failed call as one sentence that says what to do, with Kaggle's own words where it gave some."""
    said = f' (Kaggle says: "{reply.said}")' if reply.said else ""
    page, text = f"https://www.kaggle.com/competitions/{competition}", reply.text
    told = (number for number, words in _STATUS_WORDS.items() if re.search(words, reply.said, re.IGNORECASE))
    status = reply.status or next(told, None)
    if missing := re.search(r"No module named '([\w.]+)'", text):
        return KaggleError(f"the kaggle command does not start, its package {missing[1]!r} is missing: pip install kaggle six")
    if "Could not find kaggle.json" in text:
        return KaggleError(f"this kaggle command is too old for {find_credentials().kind}: pip install --upgrade kaggle six")
    if status == 401 or "Authentication required" in text:
        kind = find_credentials().kind
        return KaggleError(f"Kaggle does not accept the token (401; {kind}): create a new one at {NEW_TOKEN} and put it in the same place")
    if _LIMIT.search(reply.said):
        return KaggleError(
            f"the daily submission limit of {competition} is reached; it starts anew at midnight UTC: run the same command then{said}"
        )
    if status and _ENDED.search(reply.said):
        return KaggleError(f"{competition} takes no more submissions: see {page}{said}")
    if status in (403, 404):
        refused = "refuses access to" if status == 403 else "finds no"
        rules = f"its rules are not accepted yet (open {page}/rules, then Join or Accept)"
        return KaggleError(
            f"Kaggle {refused} competition {competition!r} ({status}): either {rules}, or the name is wrong (see {page}){said}"
        )
    if status == 429:
        wait = f"{reply.retry_after:.0f} s" if reply.retry_after is not None else "a few minutes"
        return KaggleError(
            f"too many requests (429): wait {wait} and run the same command again{said}", passing=True, retry_after=reply.retry_after
        )
    if status and status >= 500:
        return KaggleError(f"Kaggle has a problem of its own ({status}): try again in a few minutes{said}", passing=True, sent=True)
    if status:
        return KaggleError(f"Kaggle refused the request ({status}): compare it with what {page} asks for{said}")
    if _NETWORK.search(text):
        return KaggleError(
            f"Kaggle could not be reached: check the network (and HTTPS_PROXY), then try again{said}", passing=True, sent=True
        )
    return KaggleError(f"the kaggle command failed (exit code {reply.code}){said}: see {page}", sent=True)


# What the project asks of Kaggle


@dataclass(frozen=True)
class Submission:
    """One row of Kaggle's list. `status`: pending, complete or error; scores are texts, empty until there; `date` is None when unreadable."""

    ref: str
    file_name: str
    date: datetime | None
    message: str
    status: str
    public_score: str
    private_score: str
    error: str


@dataclass(frozen=True)
class Upload:
    """An accepted upload: the new submission's number (empty when the command does not show it) and Kaggle's sentences."""

    ref: str
    said: str


def list_submissions(competition: str, *, sleep: Callable[[float], None] = time.sleep) -> list[Submission]:
    """This user's (and team's) newest submissions, newest first; passing failures are tried again a few times.

    Raises:
        KaggleError: Kaggle refused, or did not answer even then.
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
        raise KaggleError(f"the kaggle command printed no list of submissions (pip install --upgrade kaggle): {reply.said}")
    listed = next((body["submissions"] for body in reply.bodies if isinstance(body.get("submissions"), list)), [])
    errors = {str(item.get("ref")): str(item.get("errorDescription") or "") for item in listed if isinstance(item, dict)}
    rows = csv.DictReader(io.StringIO(reply.output[header.start() :]))
    return [_submission({name: value or "" for name, value in row.items() if name}, errors) for row in rows if row.get("status")]


def _submission(row: dict[str, str], errors: dict[str, str]) -> Submission:
    try:
        date = datetime.fromisoformat(row["date"])
        date = date if date.tzinfo else date.replace(tzinfo=UTC)
    except ValueError:
        date = None
    public, private = ("" if value == "None" else value for value in (row.get("publicScore", ""), row.get("privateScore", "")))
    # An old command lists no number; file and moment name a submission as well.
    ref = row.get("ref") or f"{row['fileName']} {row['date']}"
    status = row["status"].rpartition(".")[2].lower()
    return Submission(ref, row["fileName"], date, row.get("description", ""), status, public, private, errors.get(ref, ""))


def upload(competition: str, file: Path, message: str, *, tick: Callable[[], None] | None = None) -> Upload:
    """Submit `file`, once: nothing here tries again, for a second try could spend one of the day's submissions.

    Raises:
        KaggleError: refused; with `sent` set Kaggle may have it nevertheless, and its list tells.
    """
    # One word each: a message may begin with a dash.
    arguments = ["competitions", "submit", "-c", competition, f"--file={file}", f"--message={message}"]
    reply = call(arguments, timeout_s=600 + file.stat().st_size / 50_000, tick=tick)
    # The command ends with 0 also when the upload itself failed.
    if "Could not submit to competition" in reply.output:
        raise KaggleError(
            "Kaggle did not take the file (Could not submit to competition), nothing was submitted: run the same command again"
        )
    if reply.code != 0 or "Could not find competition" in reply.output:
        raise explain(reply, competition)
    ref = next((str(body["ref"]) for body in reversed(reply.bodies) if body.get("ref") and "submissions" not in body), "")
    if not ref and "Successfully submitted" not in reply.output:
        raise KaggleError(f'the kaggle command did not confirm the submission (it printed: "{reply.said}")', sent=True)
    return Upload(ref, " ".join(reply.output.split()))


def download(competition: str, folder: Path, *, tick: Callable[[], None] | None = None) -> None:
    """Download all files of a competition into `folder`; a partial file there is resumed where the command can.

    Raises:
        KaggleError: refused, or broken off.
    """
    # Without traffic: the command would print the whole archive as text.
    reply = call(["competitions", "download", "-c", competition, "-p", str(folder)], traffic=False, timeout_s=24 * 3600, tick=tick)
    if reply.code != 0:
        raise explain(reply, competition)


class StatusLine:
    """A line that says how far something is: rewritten in place on a terminal, else printed once a minute."""

    def __init__(self) -> None:
        self.in_place, self.last, self.width = sys.stdout.isatty(), -60.0, 0

    def show(self, text: str) -> None:
        if self.in_place:
            print(f"\r{text.ljust(self.width)}", end="", flush=True)
            self.width = len(text)
        elif time.monotonic() - self.last >= 60:
            print(text, flush=True)
            self.last = time.monotonic()

    def close(self) -> None:
        if self.in_place and self.width:
            print(flush=True)
            self.width = 0
