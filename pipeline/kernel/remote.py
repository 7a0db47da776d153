"""Call Kaggle for `make kernel`: datasets and kernels.

Many refusals exit with code 0, so the printed text decides.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError, printable
from pipeline.kaggle import cli
from pipeline.kaggle.reply import KaggleError, Reply, explain

OLDEST = (1, 8, 4)  # first version whose `kernels push` has --accelerator; 1.7.4 added submissions of kernels
UPLOAD_TIMEOUT_S = 12 * 3600.0
ENDED = ("complete", "error", "cancel_acknowledged", "cancel_requested")
Tick = Callable[[], None]


def check_version() -> None:
    """Check that the kaggle command is new enough.

    Raises:
        UserError: it is older than OLDEST.
    """
    reply = cli.call(["--version"], traffic=False)
    found = re.search(r"\d+(?:\.\d+)+", reply.text)
    if found is None or tuple(map(int, found[0].split("."))) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise UserError(
            f"kernels need the kaggle command in version {oldest} or later, found "
            f"{found[0] if found else repr(reply.said)}: pip install --upgrade kaggle six"
        )


def signed_in_as() -> str:
    """Return the account name of the kaggle command's token.

    Raises:
        UserError: the command does not tell it.
    """
    reply = cli.call(["config", "view"], traffic=False)
    found = re.search(r"^- username: (\S+)$", reply.output, re.MULTILINE)
    if reply.code != 0 or found is None or found[1] == "None":
        raise UserError(
            f"the kaggle command does not tell the account of this token ({reply.said}): create a new one, "
            "see `make submit`"
        )
    return found[1]


# Datasets


def dataset_status(dataset: str) -> str | None:
    """Return Kaggle's status word, such as `ready`; None if this account has no such dataset.

    Raises:
        KaggleError: Kaggle did not answer, or refused the token.
    """
    reply = cli.call(["datasets", "status", dataset])
    if reply.code == 0:
        lines = [line.strip() for line in reply.output.splitlines() if line.strip()]
        return lines[-1].lower() if lines else ""
    if _absent(reply):
        return None
    raise _refused(reply, f"dataset {dataset}")


def send_dataset(folder: Path, dataset: str, message: str | None, tick: Tick | None = None) -> None:
    """Create the private dataset in `folder` or, with a `message`, its next version.

    Folders are sent as zip files.

    Tables are sent unchanged (-t); by default Kaggle converts them to csv.

    Raises:
        KaggleError: the dataset was refused, or parts of it were not sent.
    """
    verb = ["create"] if message is None else ["version", f"--message={message}"]
    reply = cli.call(
        ["datasets", *verb, "-p", str(folder), "-r", "zip", "-t"], timeout_s=UPLOAD_TIMEOUT_S, tick=tick
    )
    left_out = re.findall(
        r"^(?:Skipping(?: folder)?|Upload unsuccessful): ([^;\n]+)", reply.output, re.MULTILINE
    )
    if left_out:
        raise KaggleError(
            f"the dataset {dataset} lacks {', '.join(left_out)}, which the kaggle command did not send: run "
            "it again",
            sent=True,
        )
    if error := re.search(r"^Dataset (?:version )?creation error: (.*)$", reply.output, re.MULTILINE):
        raise KaggleError(f'Kaggle did not accept the dataset {dataset}: "{error[1]}"')
    if reply.code != 0:
        raise _refused(reply, f"dataset {dataset}")
    if "is being created" not in reply.output:
        raise KaggleError(
            f'the kaggle command did not confirm the dataset {dataset} (it printed: "{reply.said}")',
            sent=True,
        )


# Kernels


@dataclass(frozen=True)
class Status:
    """Status of a kernel's newest run: `queued`, `running`, or one of `ENDED`; and Kaggle's message on a
    failure.
    """

    word: str
    failure: str = ""


def kernel_status(kernel: str) -> Status | None:
    """Return the status of a kernel's (owner/slug) newest run; None if this account has no such kernel.

    Raises:
        KaggleError: Kaggle did not answer, or refused the token.
    """
    reply = cli.call(["kernels", "status", kernel])
    if reply.code != 0:
        if _absent(reply):
            return None
        raise _refused(reply, f"kernel {kernel}")
    found = re.search(r'has status "(?:\w+\.)?(\w+)"', reply.output)
    if found is None:
        raise KaggleError(f'the kaggle command printed no status of {kernel} (it printed: "{reply.said}")')
    failure = re.search(r'^Failure message: "(.*)"$', reply.output, re.MULTILINE | re.DOTALL)
    return Status(found[1].lower(), failure[1] if failure else "")


def push_kernel(folder: Path, kernel: str, seconds: int, accelerator: str, tick: Tick | None = None) -> int:
    """Push the kernel in `folder` once. Returns the number of its new version.

    Raises:
        KaggleError: it was refused; with `sent` set, there may be a new version anyway.
    """
    more = [] if accelerator == "none" else ["--accelerator", accelerator]
    reply = cli.call(["kernels", "push", "-p", str(folder), "--timeout", str(seconds), *more], tick=tick)
    if error := re.search(r"^Kernel push error: (.*)$", reply.output, re.MULTILINE):
        raise KaggleError(f'Kaggle did not accept the kernel {kernel}: "{error[1]}"')
    if reply.code != 0:
        raise _refused(reply, f"kernel {kernel}")
    version = re.search(r"Kernel version (\d+) successfully pushed", reply.output)
    if lost := re.findall(
        r"not valid (\w+) sources and could not be added to the kernel: (.*)", reply.output
    ):
        what = "; ".join(f"{kind} {names}" for kind, names in lost)
        made = f" Version {version[1]} runs without it and cannot work." if version else ""
        raise KaggleError(
            f"Kaggle pushed {kernel} without what it needs ({what}).{made} Is the dataset ready, are the "
            "competition's rules accepted?",
            sent=True,
        )
    if version is None:
        raise KaggleError(
            f"the kaggle command did not say which version of {kernel} it pushed "
            f'(it printed: "{reply.said}")',
            sent=True,
        )
    return int(version[1])


def fetch_output(kernel: str, folder: Path) -> tuple[list[str], str]:
    """Download the output of a kernel's newest run into `folder`.

    Returns the file names without the log, and the log's text.

    Raises:
        KaggleError: it cannot be downloaded.
    """
    folder.mkdir(parents=True, exist_ok=True)
    reply = cli.call(
        ["kernels", "output", kernel, "-p", str(folder), "--force"], traffic=False, timeout_s=3600
    )
    if reply.code != 0:
        raise _refused(reply, f"output of kernel {kernel}")
    log = folder / f"{kernel.rpartition('/')[2]}.log"
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    return sorted(path.name for path in folder.iterdir() if path != log), plain_log(text)


def plain_log(text: str) -> str:
    """Return a kernel's log as printed.

    Kaggle stores a JSON list of pieces, which may be cut off if the run was cancelled.
    """
    pieces = re.findall(r'"data"\s*:\s*("(?:[^"\\]|\\.)*")', text)
    return (
        printable("".join(json.loads(piece, strict=False) for piece in pieces)) if pieces else printable(text)
    )


# Refusals


def _absent(reply: Reply) -> bool:
    """Return True for a missing kernel or dataset.

    For Kaggle, 403 and 404 both mean missing or of another account.
    """
    return reply.status in (403, 404) or "Cannot access kernel" in reply.text


def _refused(reply: Reply, what: str) -> KaggleError:
    said = f' (Kaggle says: "{reply.said}")' if reply.said else ""
    if _absent(reply):
        return KaggleError(
            f"Kaggle refuses access to {what} ({reply.status or 403}): it does not exist, or is not "
            f"yours{said}"
        )
    if reply.status in (401, 429) or (reply.status or 0) >= 500 or reply.status is None:
        return explain(reply, "")
    return KaggleError(f"Kaggle refused the {what} ({reply.status}){said}")
