"""Files from Google Drive, from https or from this disk: fetched whole, continued where they were cut, and checked."""

from __future__ import annotations

import email.utils
import inspect
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

from pipeline import files
from pipeline.errors import UserError, raise_all
from pipeline.fetch.addresses import Source, parse_source, without_secrets
from pipeline.fetch.archives import CHUNK_BYTES, check_room, file_problems, page_in_words

MAX_RETRIES = 4  # in a row without a new byte; waits of 1, 2, 4 and 8 s
MAX_WAIT_S = 120.0  # a server that asks for more is not waited for
TIMEOUT_S = 60.0  # without a byte from the server
GDOWN_COOKIES = ".cache/gdown/cookies.txt"  # in the home folder


class _TryAgain(Exception):
    """A failure that may pass. `wait_s` is the pause that the server asked for, or None."""

    def __init__(self, reason: str, wait_s: float | None = None):
        super().__init__(reason)
        self.wait_s = wait_s


@dataclass(frozen=True)
class _Download:
    """One file on its way: where it comes from, where it goes, and what it must be."""

    source: Source
    target_path: Path
    sha256: str | None
    size: int | None
    cookies: Path | None

    @property
    def part(self) -> Path:
        """Where the bytes gather. Each source has its own, so bytes of two mirrors never mix."""
        return self.target_path.with_name(f".{self.target_path.name}.{self.source.key[:8]}.part")

    def partials(self) -> list[Path]:
        """The part and what belongs to it: gdown's own temporary file, the note of the file's version."""
        return [path for path in self.part.parent.iterdir() if path.name.startswith(self.part.name)]

    def received(self) -> int:
        """Bytes so far."""
        return sum(path.stat().st_size for path in self.partials() if path.suffix == ".part")

    def discard(self) -> None:
        """Forget what has come so far."""
        for path in self.partials():
            path.unlink()

    def problems(self) -> list[str]:
        """What is wrong with the whole part; empty when it is the file that was asked for."""
        return file_problems(self.part, self.target_path.name, self.sha256, self.size)


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
    download = _Download(source, target_path, sha256, size, cookies)
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
    os.replace(download.part, target_path)
    download.discard()
    return target_path


def _ways_out(source: Source, otherwise: Sequence[str]) -> list[str]:
    page = f"https://drive.google.com/file/d/{source.text}/view" if source.kind == "drive" else source.shown
    ways = [f"open {page} in a browser and download the file there", *otherwise]
    if source.kind == "drive":
        ways.append(f"let gdown use your Google account: keep the browser's google.com cookies (Netscape format) in ~/{GDOWN_COOKIES}")
    return ["What helps:", *[f"  - {way}" for way in ways]]


def _persist(download: _Download, sleep: Callable[[float], None]) -> bool:
    """Try until the part is whole; True when it was put together from more than one connection.

    Failures are counted in a row: one that brought new bytes starts the count again.
    """
    get = _get_drive if download.source.kind == "drive" else _get_url
    shown, failures, longest = download.source.shown, 0, download.received()
    continued = longest > 0
    while True:
        try:
            get(download)
            return continued
        except _TryAgain as failure:
            continued, received = True, download.received()
            failures, longest = (1, received) if received > longest else (failures + 1, longest)
            wait_s = 2.0 ** (failures - 1) if failure.wait_s is None else failure.wait_s
            if wait_s > MAX_WAIT_S or failures > MAX_RETRIES:
                end = f"it asks to wait {files.human_time(wait_s)}" if wait_s > MAX_WAIT_S else f"given up after {MAX_RETRIES} more tries"
                kept = f" ({files.human_size(received)} are kept: the same command continues from there)" if received else ""
                raise UserError(f"{shown}: {failure}; {end}{kept}") from None
            print(f"{shown}: {failure}; trying again in {wait_s:.0f} s", file=sys.stderr)
            sleep(wait_s)


def _get_drive(download: _Download) -> None:
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
            raise _failure(error, shown) from None
        except getattr(gdown.exceptions, "DownloadError", ()) as error:
            if "byte range" in str(error):
                download.discard()  # whole already, or of another version: there is nothing to continue
            raise _TryAgain(str(error).splitlines()[0]) from None
        except (KeyError, AssertionError) as error:
            raise UserError(f"{shown}: gdown does not understand the reply ({error!r}); is a proxy answering for Google?") from None


def _get_url(download: _Download) -> None:
    """Bring the part over http(s), continuing it where the server can and has the same version of the file."""
    import requests

    source, part = download.source, download.part
    version_path = part.with_name(part.name + ".version")
    version = version_path.read_text() if version_path.exists() else ""
    offset = part.stat().st_size if part.exists() and (version or download.sha256) else 0
    headers = {"Accept-Encoding": "identity"}
    if offset:
        headers |= {"Range": f"bytes={offset}-"} | ({"If-Range": version} if version else {})
    _check_transport(source.text, download.sha256)
    try:
        with requests.get(source.text, headers=headers, stream=True, timeout=TIMEOUT_S) as response:
            for hop in [*response.history, response]:
                _check_transport(hop.url, download.sha256)
            sent_range = response.headers.get("Content-Range", "")
            if response.status_code == 416 and sent_range == f"bytes */{offset}":
                return  # whole already
            if response.status_code == 416 or (response.status_code == 206 and not sent_range.startswith(f"bytes {offset}-")):
                download.discard()
                raise _TryAgain("the server has no such part of the file")
            response.raise_for_status()
            if download.target_path.suffix in (".gz", ".tgz"):
                # Some servers announce an archive's own gzip as the transfer's; undone, it would not be the file any more.
                for headers in (response.headers, response.raw.headers):
                    headers.pop("Content-Encoding", None)
            if response.headers.get("Content-Type", "").startswith("text/html") and download.target_path.suffix != ".html":
                page = page_in_words(next(response.iter_content(CHUNK_BYTES), b""))
                raise UserError(f"{source.shown} answers with {page} instead of the file")
            if response.status_code != 206:
                offset = 0
                etag = response.headers.get("ETag", "W/")
                version_path.write_text(response.headers.get("Last-Modified", "") if etag.startswith("W/") else etag)
            _write_body(response, download, offset)
    except requests.exceptions.RequestException as error:
        raise _failure(error, source.shown) from None


def _write_body(response: Any, download: _Download, offset: int) -> None:
    announced = response.headers.get("Content-Length", "")
    total = offset + int(announced) if announced.isdigit() and "Content-Encoding" not in response.headers else None
    if total and download.size and total != download.size:
        raise UserError(f"{download.source.shown} has {total} bytes, not the {download.size} that were announced")
    check_room(download.part.parent, (total or download.size or 0) - offset)
    with open(download.part, "ab" if offset else "wb") as file:
        with tqdm(total=total, initial=offset, unit="B", unit_scale=True, disable=None) as bar:
            for chunk in response.iter_content(CHUNK_BYTES):
                if download.size and file.tell() + len(chunk) > download.size:
                    raise UserError(f"{download.source.shown} sends more than the {download.size} bytes that were announced")
                file.write(chunk)
                bar.update(len(chunk))
        if total and file.tell() < total:
            raise _TryAgain(f"the connection ended after {file.tell()} of {total} bytes")


def _check_transport(url: str, sha256: str | None) -> None:
    """Refuse plain http, where anybody on the way may change the bytes, unless a digest or this very machine vouches for them."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme == "http" and sha256 is None and host not in ("localhost", "127.0.0.1", "::1"):
        raise UserError(f"{without_secrets(url)} is plain http; use https, or give the file's sha256")


def _failure(error: Exception, shown: str) -> Exception:
    """What to raise for a failed request: another try where the server is busy or the connection was lost, else the end."""
    import requests.exceptions as failures

    if isinstance(error, failures.HTTPError):
        response = error.response
        if response.status_code == 429 or response.status_code >= 500:
            wait_s = _retry_after(response.headers.get("Retry-After", ""))
            return _TryAgain(f"the server answers {response.status_code} {response.reason}", wait_s)
        meaning = {
            401: "it wants a sign-in",
            403: "it refuses access; a link with a signature may have expired",
            404: "there is no such file",
        }
        return UserError(f"{shown} answers {response.status_code}: {meaning.get(response.status_code, response.reason)}")
    if isinstance(error, failures.ChunkedEncodingError):
        return _TryAgain("the connection was cut")
    passing = isinstance(error, (failures.ConnectionError, failures.Timeout))
    if passing and not isinstance(error, (failures.SSLError, failures.ProxyError)):
        cause = re.search(r"\[Errno -?\d+\] ([^'\")]+)", str(error))
        return _TryAgain(f"the connection failed: {cause[1] if cause else without_secrets(str(error))}")
    return UserError(f"{shown}: {without_secrets(str(error))}")


def _retry_after(value: str) -> float | None:
    """Seconds of a Retry-After header (a number or a date); None when it says nothing."""
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None
