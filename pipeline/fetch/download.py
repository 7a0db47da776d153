"""Fetch files from Google Drive, https or this disk: complete, resumed after interruptions, and checked."""

from __future__ import annotations

import errno
import inspect
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.errors import UserError, first_line, printable, raise_all
from pipeline.fetch.addresses import Source, parse_source, without_secrets
from pipeline.fetch.archives import file_problems
from pipeline.fetch.transfer import SLOW_BYTES, TIMEOUT_S, Download, TryAgain, failure_of, get_url

MAX_RETRIES = 4  # in a row with hardly a new byte; with waits of 1, 2, 4 and 8 s
MAX_WAIT_S = 120.0  # if a server asks for a longer wait, give up
GDOWN_COOKIES = ".cache/gdown/cookies.txt"  # in the home folder


def fetch(
    source: str | Source,
    target_path: Path,
    *,
    sha256: str | None = None,
    size: int | None = None,
    cookies: Path | None = None,
    otherwise: Sequence[str] = (),
    sleep: Callable[[float], None] = time.sleep,
) -> Path:
    """Return the path of the complete, checked file: `target_path`, or the file itself if `source` is on this
    disk.

    An interrupted download is resumed by the next call with the same source and target. An existing
    `target_path` is checked and used. `size` is in bytes. `cookies`: a Netscape cookies.txt for Google Drive;
    it is not changed. `otherwise`: further advice, one line each, for the message if the source does not give
    the file.

    Raises:
        UserError: the source does not give the file, or the file is wrong (a web page, another size or
            digest, no archive).
    """
    source = parse_source(source) if isinstance(source, str) else source
    target_path = Path(target_path)
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise UserError(f"sha256 {sha256!r} is not 64 hex digits; `sha256sum FILE` prints them")
    existing = Path(source.text) if source.kind == "file" else target_path
    if existing.exists():
        problems = file_problems(existing, target_path.name, sha256, size)
        raise_all(problems, f"{existing} is not the expected file; move it away or give another:")
        return existing

    target_path.parent.mkdir(parents=True, exist_ok=True)
    download = Download(source, target_path, sha256, size, cookies)
    try:
        continued = _persist(download, sleep)
        problems = download.problems()
        if problems and continued:
            print(
                f"{source.shown}: the resumed file is wrong ({problems[0]}); starting again", file=sys.stderr
            )
            download.discard()
            _persist(download, sleep)
            problems = download.problems()
        if problems:
            download.discard()
            raise_all(problems, f"the file from {source.shown} is not the expected one; it was deleted:")
    except UserError as error:
        if not download.received():
            download.discard()
        raise UserError("\n".join([str(error), *_ways_out(source, otherwise)])) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        download.discard()
        raise UserError(
            f"{target_path.parent}: the disk is full; the partial download of {source.shown} was removed. "
            "Free some space first"
        ) from None
    os.replace(download.part, target_path)
    download.discard()
    return target_path


def _ways_out(source: Source, otherwise: Sequence[str]) -> list[str]:
    page = f"https://drive.google.com/file/d/{source.text}/view" if source.kind == "drive" else source.shown
    ways = [f"open {page} in a browser and download the file there", *otherwise]
    if source.kind == "drive":
        ways.append(
            "let gdown use your Google account: save the browser's google.com cookies (Netscape format) in "
            f"~/{GDOWN_COOKIES}"
        )
    return ["What helps:", *[f"  - {way}" for way in ways]]


def _persist(download: Download, sleep: Callable[[float], None]) -> bool:
    """Try until the part is complete. Returns True if it was put together from more than one connection.

    Only failures in a row count: a failure that brought SLOW_BYTES starts the count again.
    """
    get = _get_drive if download.source.kind == "drive" else get_url
    shown, failures, longest = download.source.shown, 0, download.received()
    continued = longest > 0
    while True:
        try:
            get(download)
            return continued
        except TryAgain as failure:
            continued, received = True, download.received()
            failures, longest = (1, received) if received >= longest + SLOW_BYTES else (failures + 1, longest)
            wait_s = 2.0 ** (failures - 1) if failure.wait_s is None else failure.wait_s
            if wait_s > MAX_WAIT_S or failures > MAX_RETRIES:
                end = (
                    f"it asks to wait {files.human_time(wait_s)}"
                    if wait_s > MAX_WAIT_S
                    else f"stopped after {MAX_RETRIES} retries"
                )
                kept = ""
                if received:
                    kept = f" ({files.human_size(received)} are kept: the same command continues from there)"
                raise UserError(f"{shown}: {failure}; {end}{kept}") from None
            print(printable(f"{shown}: {failure}; trying again in {wait_s:.0f} s"), file=sys.stderr)
            sleep(wait_s)


def _get_drive(download: Download) -> None:
    """Let gdown download the part, and resume an earlier one."""
    import gdown
    import requests

    accepted = inspect.signature(gdown.download).parameters  # gdown 5 knows neither timeout nor cookies_file
    options: dict[str, Any] = {"timeout": TIMEOUT_S} if "timeout" in accepted else {}
    shown, cookies = download.source.shown, download.cookies
    if sum(path.suffix == ".part" for path in download.partials()) > 1:
        download.discard()  # left by two calls at the same time; gdown would not know which one to resume
    with tempfile.TemporaryDirectory() as private_dir:
        if cookies is not None:
            if "cookies_file" not in accepted:
                raise UserError(
                    f"this gdown takes no cookies file: `pip install -U gdown`, or copy {cookies} to "
                    f"~/{GDOWN_COOKIES}"
                )
            if not Path(cookies).is_file():
                raise UserError(f"the cookies file {cookies} does not exist")
            # gdown writes its cookies back into the file it was given, so it gets a copy.
            options["cookies_file"] = shutil.copy(cookies, Path(private_dir) / "cookies.txt")
        options |= {
            "quiet": not sys.stderr.isatty(),
            "resume": True,
            "log_messages": {"start": "", "output": ""},
        }
        try:
            gdown.download(id=download.source.text, output=str(download.part), **options)
        except gdown.exceptions.FileURLRetrievalError as error:
            raise UserError(
                f"{shown} cannot be downloaded: {without_secrets(' '.join(str(error).split()))}"
            ) from None
        except requests.exceptions.RequestException as error:
            raise failure_of(error, shown) from None
        except getattr(gdown.exceptions, "DownloadError", ()) as error:
            if "byte range" in str(error):
                download.discard()  # already complete, or another version: it cannot be resumed
            raise TryAgain(first_line(error)) from None
        except (KeyError, AssertionError) as error:
            raise UserError(
                f"{shown}: gdown does not understand the answer ({error!r}); is a proxy answering for Google?"
            ) from None
