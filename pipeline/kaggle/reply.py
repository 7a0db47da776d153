"""Read the output of a `kaggle` command and Kaggle's answer; turn every failure into one sentence that says
what to do.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pipeline.errors import UserError, printable
from pipeline.kaggle.token import NEW_TOKEN, find_credentials, scrub


class KaggleError(UserError):
    """A failed command. `passing`: the same call may work later.

    `sent`: Kaggle may have accepted the request anyway.
    """

    def __init__(
        self, text: str, *, passing: bool = False, sent: bool = False, retry_after: float | None = None
    ):
        super().__init__(text)
        self.passing, self.sent, self.retry_after = passing, sent, retry_after


@dataclass(frozen=True)
class Reply:
    """The output of one call (without tokens and traffic), and the HTTP error in it (`status` None: none was
    shown).
    """

    code: int
    output: str
    errors: str
    status: int | None
    retry_after: float | None
    bodies: tuple[dict[str, Any], ...]

    @property
    def text(self) -> str:
        """The output of the call, followed by its errors."""
        return f"{self.output}\n{self.errors}".strip()

    @property
    def said(self) -> str:
        """Kaggle's own sentence about a failure, on one line; empty without one."""
        message = self.bodies[-1].get("message") if self.bodies else None
        lines = [line.strip() for line in self.text.splitlines() if line.strip()]
        sentence = message if isinstance(message, str) and message else lines[-1] if lines else ""
        return scrub(" ".join(sentence.split()))[:400]  # again: JSON may hold a token with escapes


_TRAFFIC = re.compile(r"^-{10,}(Request|Response)-{10,}\n(.*?)\n-{50}$\n?", re.DOTALL | re.MULTILINE)


def read_reply(code: int, output: str, errors: str) -> Reply:
    """Read the output of a call that ended with `code`; HTTP traffic goes to `status`, `retry_after` and
    `bodies`.

    Control characters are removed, because the text comes from Kaggle or strangers.
    """
    output, errors = printable(output.replace("\r\n", "\n")), printable(errors.replace("\r\n", "\n"))
    status, retry_after, bodies = None, None, [{}]
    for kind, block in _TRAFFIC.findall(output):
        if kind == "Request":
            # If this request gets no answer, the answer to an earlier one must not count for it.
            status, retry_after = None, None
            bodies.append({})
            continue
        head, _, body = block.partition("\n\n")
        status = int(head[:3]) if re.match(r"[4-9][0-9]{2}", head) else None
        header = re.search(r"(?im)^retry-after: *(.+)$", head)
        retry_after = _seconds(header[1]) if header else None
        bodies[-1] = _json_object(body)
    output = _TRAFFIC.sub("", output)
    errors = "\n".join(line for line in errors.splitlines() if not re.match(r"(DEBUG|INFO|WARNING):", line))
    shown = re.search(
        r"\b([45]\d\d) (?:Client|Server) Error|^([45]\d\d) - ", f"{output}\n{errors}", re.MULTILINE
    )
    if shown and status is None and code != 0:
        status = int(shown[1] or shown[2])
    return Reply(code, output, errors, status, retry_after, tuple(bodies))


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = _without_controls(json.loads(text))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _without_controls(value: Any) -> Any:
    """Remove terminal control characters from all texts in a JSON value, where they may be written as
    \\u001b.
    """
    if isinstance(value, dict):
        return {printable(name): _without_controls(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_without_controls(inner) for inner in value]
    return printable(value) if isinstance(value, str) else value


def _seconds(retry_after: str) -> float | None:
    """Return the seconds of a Retry-After header, which holds a number or an HTTP date."""
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]+)?", retry_after.strip()):
        return float(retry_after)
    try:
        moment = datetime.strptime(retry_after.strip(), "%a, %d %b %Y %H:%M:%S GMT").replace(tzinfo=UTC)
    except ValueError:
        return None
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


_LIMIT = re.compile(
    r"allowance|daily.{0,30}limit|submission limit|maximum number of submissions", re.IGNORECASE
)
_ENDED = re.compile(
    r"deadline|has ended|competition is over|not accepting|no longer accept|has closed", re.IGNORECASE
)
# A refused download shows only Kaggle's sentence, so the status follows from its words.
_STATUS_WORDS = {
    401: "unauthori[sz]ed|unauthenticated",
    403: "accept.{0,40}rules|denied|forbidden|permission",
    404: "not found|could not find competition",
    429: "too many requests",
}
_NETWORK = re.compile(
    r"Max retries exceeded|ConnectionError|Connection (aborted|refused|reset)|timed "
    r"out|NameResolution|ProxyError|SSLError"
)


def explain(reply: Reply, competition: str) -> KaggleError:
    """Build the error of a failed call: one sentence that says what to do, with Kaggle's own words if there
    are any.
    """
    said = f' (Kaggle says: "{reply.said}")' if reply.said else ""
    page, text = f"https://www.kaggle.com/competitions/{competition}", reply.text
    guesses = (
        number for number, words in _STATUS_WORDS.items() if re.search(words, reply.said, re.IGNORECASE)
    )
    status = reply.status or next(guesses, None)
    if missing := re.search(r"No module named '([\w.]+)'", text):
        return KaggleError(
            f"the kaggle command does not start, its package {missing[1]!r} is missing: pip install kaggle "
            "six"
        )
    if "Could not find kaggle.json" in text:
        return KaggleError(
            f"this kaggle command is too old for {find_credentials().kind}: pip install --upgrade kaggle six"
        )
    if status == 401 or "Authentication required" in text:
        kind = find_credentials().kind
        return KaggleError(
            f"Kaggle does not accept the token (401; {kind}): create a new one at {NEW_TOKEN} and put it in "
            "the same place"
        )
    if _LIMIT.search(reply.said):
        return KaggleError(
            f"the daily submission limit of {competition} is reached; it resets at midnight UTC: run the "
            f"same command then{said}"
        )
    if status and _ENDED.search(reply.said):
        return KaggleError(f"{competition} does not accept submissions any more: see {page}{said}")
    if status in (403, 404):
        refused = "refuses access to" if status == 403 else "finds no"
        rules = f"its rules are not accepted yet (open {page}/rules, then Join or Accept)"
        return KaggleError(
            f"Kaggle {refused} competition {competition!r} ({status}): either {rules}, or the name is wrong "
            f"(see {page}){said}"
        )
    if status == 429:
        wait = f"{reply.retry_after:.0f} s" if reply.retry_after is not None else "a few minutes"
        return KaggleError(
            f"too many requests (429): wait {wait} and run the same command again{said}",
            passing=True,
            retry_after=reply.retry_after,
        )
    if status and status >= 500:
        return KaggleError(
            f"Kaggle has a server error ({status}): try again in a few minutes{said}", passing=True, sent=True
        )
    if status:
        return KaggleError(
            f"Kaggle refused the request ({status}): compare it with what {page} asks for{said}"
        )
    if _NETWORK.search(text):
        return KaggleError(
            f"Kaggle could not be reached: check the network (and HTTPS_PROXY), then try again{said}",
            passing=True,
            sent=True,
        )
    return KaggleError(f"the kaggle command failed (exit code {reply.code}){said}: see {page}", sent=True)
