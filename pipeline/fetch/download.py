"""Files from Google Drive, from https or from this disk: fetched whole, continued where they were cut, and checked."""

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
from pipeline.errors import UserError, printable, raise_all
from pipeline.fetch.addresses import Source, parse_source, without_secrets
from pipeline.fetch.archives import file_problems
from pipeline.fetch.transfer import TIMEOUT_S, Download, TryAgain, failure_of, get_url

MAX_RETRIES = 4  # in a row without a new byte; waits of 1, 2, 4 and 8 s
MAX_WAIT_S = 120.0  # a server that asks for more is not waited for
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
    """The path of the whole, checked file: `target_path`, or the file itself where `source` is one on this disk.

    A download that was cut is continued by the next call with the same source and target. A `target_path` that is already there
    is checked and used. `size` is in bytes; `cookies` is a Netscape cookies.txt for Google Drive, which is read and left as it is;
    `otherwise` are the caller's own ways out, one line each, for the message when the source does not hand out the file.

    Raises:
        UserError: the source does not give the file, or what came is not it (a web page, another size or digest, no archive).
    """
    source = parse_source(source) if isinstance(source, str) else source
    target_path = Path(target_path)
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise UserError(f"sha256 {sha256!r} is not 64 hex digits; `sha256sum FILE` prints them")
    existing = Path(source.text) if source.kind == "file" else target_path
    if existing.exists():
        problems = file_problems(existing, target_path.name, sha256, size)
        raise_all(problems, f"{existing} is not the file that was asked for; move it away or give another:")
        return existing

    target_path.parent.mkdir(parents=True, exist_ok=True)
    download = Download(source, target_path, sha256, size, cookies)
    try:
        continued = _persist(download, sleep)
        problems = download.problems()
        if problems and continued:
            print(f"{source.shown}: the continued file is not right ({problems[0]}); starting over", file=sys.stderr)
            download.discard()
            _persist(download, sleep)
            problems = download.problems()
        if problems:
            download.discard()
            raise_all(problems, f"what came from {source.shown} is not the file that was asked for; it was discarded:")
    except UserError as error:
        if not download.received():
            download.discard()
        raise UserError("\n".join([str(error), *_ways_out(source, otherwise)])) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        download.discard()
        raise UserError(
            f"{target_path.parent}: the disk is full; what had come of {source.shown} was removed. Free some space first"
        ) from None
    os.replace(download.part, target_path)
    download.discard()
    return target_path


def _ways_out(source: Source, otherwise: Sequence[str]) -> list[str]:
    page = f"https://drive.google.com/file/d/{source.text}/view" if source.kind == "drive" else source.shown
    ways = [f"open {page} in a browser and download the file there", *otherwise]
    if source.kind == "drive":
        ways.append(f"let gdown use your Google account: keep the browser's google.com cookies (Netscape format) in ~/{GDOWN_COOKIES}")
    return ["What helps:", *[f"  - {way}" for way in ways]]


def _persist(download: Download, sleep: Callable[[float], None]) -> bool:
    """Try until the part is whole; True when it was put together from more than one connection.

    Failures are counted in a row: one that brought new bytes starts the count again.
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
            failures, longest = (1, received) if received > longest else (failures + 1, longest)
            wait_s = 2.0 ** (failures - 1) if failure.wait_s is None else failure.wait_s
            if wait_s > MAX_WAIT_S or failures > MAX_RETRIES:
                end = f"it asks to wait {files.human_time(wait_s)}" if wait_s > MAX_WAIT_S else f"given up after {MAX_RETRIES} more tries"
                kept = f" ({files.human_size(received)} are kept: the same command continues from there)" if received else ""
                raise UserError(f"{shown}: {failure}; {end}{kept}") from None
            print(printable(f"{shown}: {failure}; trying again in {wait_s:.0f} s"), file=sys.stderr)
            sleep(wait_s)


def _get_drive(download: Download) -> None:
    """Have gdown bring the part, continuing what it left there before."""
    import gdown
    import requests

    accepted = inspect.signature(gdown.download).parameters  # gdown 5 knows neither timeout nor cookies_file
    options: dict[str, Any] = {"timeout": TIMEOUT_S} if "timeout" in accepted else {}
    shown, cookies = download.source.shown, download.cookies
    if sum(path.suffix == ".part" for path in download.partials()) > 1:
        download.discard()  # of two calls at once; gdown would not know which to continue
    with tempfile.TemporaryDirectory() as private_dir:
        if cookies is not None:
            if "cookies_file" not in accepted:
                raise UserError(f"this gdown takes no cookies file: `pip install -U gdown`, or copy {cookies} to ~/{GDOWN_COOKIES}")
            if not Path(cookies).is_file():
                raise UserError(f"the cookies file {cookies} does not exist")
            # gdown writes the cookies it ends with into the file it was given; the user's own stays as it is.
            options["cookies_file"] = shutil.copy(cookies, Path(private_dir) / "cookies.txt")
        options |= {"quiet": not sys.stderr.isatty(), "resume": True, "log_messages": {"start": "", "output": ""}}
        try:
            gdown.download(id=download.source.text, output=str(download.part), **options)
        except gdown.exceptions.FileURLRetrievalError as error:
            raise UserError(f"{shown} is not handed out: {without_secrets(' '.join(str(error).split()))}") from None
        except requests.exceptions.RequestException as error:
            raise failure_of(error, shown) from None
        except getattr(gdown.exceptions, "DownloadError", ()) as error:
            if "byte range" in str(error):
                download.discard()  # whole already, or of another version: there is nothing to continue
            raise TryAgain(str(error).splitlines()[0]) from None
        except (KeyError, AssertionError) as error:
            raise UserError(f"{shown}: gdown does not understand the reply ({error!r}); is a proxy answering for Google?") from None
