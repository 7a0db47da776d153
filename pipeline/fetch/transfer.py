"""Download one file over https: resume it where it stopped, limit its size and time, and never follow a
redirect into the local network.
"""

from __future__ import annotations

import email.utils
import errno
import ipaddress
import os
import re
import shutil
import socket
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from tqdm import tqdm

from pipeline import files
from pipeline.errors import UserError, one_line
from pipeline.fetch.addresses import Source, without_secrets
from pipeline.fetch.archives import CHUNK_BYTES, check_room, file_problems, page_in_words
from pipeline.fetch.budget import allowed_bytes
from pipeline.fetch.sessions import new_session

TIMEOUT_S = 60.0  # without a byte from the server
SLOW_WINDOW_S, SLOW_BYTES = 20.0, 20_000  # a server that sends less in this time is too slow
MAX_DOWNLOAD_S = 24 * 3600.0
MAX_DOWNLOAD_BYTES = 500 * 10**9  # for a file of unknown size
RESERVE_BYTES = 200 * 10**6  # disk space that a download leaves free
CHECK_BYTES = 64 * 10**6  # the free space is checked after so many bytes
MAX_HOPS = 10  # redirects
PACKED = ("gzip", "x-gzip", "deflate")


class TryAgain(Exception):
    """A temporary failure. `wait_s`: the pause in seconds that the server asked for, or None."""

    def __init__(self, reason: str, wait_s: float | None = None):
        super().__init__(reason)
        self.wait_s = wait_s


@dataclass(frozen=True)
class Download:
    """A download in progress: its source, its target, and the expected digest and size in bytes."""

    source: Source
    target_path: Path
    sha256: str | None
    size: int | None
    cookies: Path | None

    @property
    def part(self) -> Path:
        """The file that collects the bytes. Each source has its own, so bytes of two mirrors never mix."""
        return self.target_path.with_name(f".{self.target_path.name}.{self.source.key[:8]}.part")

    def partials(self) -> list[Path]:
        """Return the part and its companions: gdown's temporary file, and the file's version."""
        return [path for path in self.part.parent.iterdir() if path.name.startswith(self.part.name)]

    def received(self) -> int:
        """Return the number of bytes so far."""
        return sum(path.stat().st_size for path in self.partials() if path.suffix == ".part")

    def discard(self) -> None:
        """Delete everything downloaded so far."""
        for path in self.partials():
            path.unlink()

    def problems(self) -> list[str]:
        """Return what is wrong with the complete part; empty if it is the requested file."""
        return file_problems(self.part, self.target_path.name, self.sha256, self.size)


def get_url(download: Download) -> None:
    """Download the part over http(s); resume it if the server supports that and still has the same version.

    Raises:
        UserError: the server does not give the file, or a limit is exceeded.
        TryAgain: a temporary failure.
    """
    import requests

    source, part = download.source, download.part
    version_path = part.with_name(part.name + ".version")
    version = version_path.read_text() if version_path.exists() else ""
    offset = part.stat().st_size if part.exists() and (version or download.sha256) else 0
    headers = {"Accept-Encoding": "identity"}
    if offset:
        headers |= {"Range": f"bytes={offset}-"} | ({"If-Range": version} if version else {})
    try:
        with new_session() as session, _answer(session, source.text, headers, download.sha256) as response:
            sent_range = response.headers.get("Content-Range", "")
            if offset and response.status_code == 416 and sent_range == f"bytes */{offset}":
                return  # complete already
            if response.status_code == 416 or (
                response.status_code == 206 and not sent_range.startswith(f"bytes {offset}-")
            ):
                download.discard()
                raise TryAgain("the server cannot resume this file")
            response.raise_for_status()
            if download.target_path.suffix in (".gz", ".tgz"):
                # Some servers declare an archive's own gzip as transfer encoding; decoded, it would be
                # another file.
                for headers in (response.headers, response.raw.headers):
                    headers.pop("Content-Encoding", None)
            if (
                response.headers.get("Content-Type", "").startswith("text/html")
                and download.target_path.suffix != ".html"
            ):
                page = page_in_words(next(filter(None, islice(_chunks(response), 100)), b""))
                raise UserError(f"{source.shown} answers with {page} instead of the file")
            if response.status_code != 206:
                offset = 0
                etag = response.headers.get("ETag", "W/")
                version_path.write_text(
                    response.headers.get("Last-Modified", "") if etag.startswith("W/") else etag
                )
            _write_body(response, download, offset)
    except requests.exceptions.RequestException as error:
        raise failure_of(error, source.shown) from None


def _answer(session: Any, url: str, headers: dict[str, str], sha256: str | None) -> Any:
    """Return the response to `url` after its redirects; each address is checked before it is requested.

    Raises:
        UserError: a redirect leads from the internet into this machine or its network, to plain http, or in
            circles.
    """
    import requests

    from_inside = _is_inside(url)
    for _ in range(MAX_HOPS):
        _check_transport(url, sha256)
        response = session.get(url, headers=headers, stream=True, timeout=TIMEOUT_S, allow_redirects=False)
        former = url
        try:
            target = requests.Session.get_redirect_target(session, response)
            if target is None:
                return response
            url = urljoin(url, target)
            urlsplit(url)
        except ValueError:  # unclosed brackets, or bytes that are not text
            raise UserError(f"{without_secrets(former)} redirects to an invalid address") from None
        response.close()
        if not from_inside and _is_inside(url):
            raise UserError(
                f"{without_secrets(former)} redirects to {without_secrets(url)}, inside this machine or its "
                "network; refused"
            )
    raise UserError(f"{without_secrets(url)}: redirected more than {MAX_HOPS} times")


def _is_inside(url: str) -> bool:
    """Return True if the address is this machine or its network: loopback, private, link-local and reserved
    addresses.
    """
    try:
        found = socket.getaddrinfo(urlsplit(url).hostname or "", None)
    except (OSError, ValueError):  # perhaps only a proxy can resolve it
        return False
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    return not all((getattr(address, "ipv4_mapped", None) or address).is_global for address in addresses)


def _chunks(response: Any) -> Iterator[bytes]:
    """Yield the body as it arrives, without waiting for full chunks, so that a very slow server is noticed.

    Compressed bodies are decompressed here. A chunk may be empty, so that a body that never yields data is
    noticed too.

    Raises:
        UserError: the encoding is unknown.
    """
    import requests.exceptions as failures
    import urllib3.exceptions

    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("identity", "", *PACKED):
        raise UserError(
            f"{without_secrets(response.url)} sends the file in the encoding {one_line(encoding)!r}, which "
            "was not requested"
        )
    unpack = _unpacking() if encoding in PACKED else None
    read = getattr(response.raw, "read1", response.raw.read)  # urllib3 before 2.1 has no read1
    try:
        while chunk := read(CHUNK_BYTES, decode_content=False):
            while unpack and chunk:
                yield unpack.decompress(chunk, CHUNK_BYTES)
                chunk = unpack.unconsumed_tail or unpack.unused_data
                # one compressed stream may follow another
                unpack = _unpacking() if unpack.eof and chunk else unpack
            if not unpack:
                yield chunk
        if unpack:
            yield unpack.flush()
        if unpack and not unpack.eof:
            raise failures.ChunkedEncodingError("the compressed body ends too early")
    except zlib.error as error:
        raise failures.ContentDecodingError(error) from None
    except urllib3.exceptions.ReadTimeoutError as error:
        raise failures.ConnectionError(error) from None
    except urllib3.exceptions.SSLError as error:
        raise failures.SSLError(error) from None
    except urllib3.exceptions.HTTPError as error:
        raise failures.ChunkedEncodingError(error) from None


def _unpacking() -> Any:
    return zlib.decompressobj(zlib.MAX_WBITS | 32)  # detects gzip or zlib by the first bytes


def _write_body(response: Any, download: Download, offset: int) -> None:
    announced = response.headers.get("Content-Length", "")
    encoded = "Content-Encoding" in response.headers
    total = offset + int(announced) if re.fullmatch(r"[0-9]{1,15}", announced) and not encoded else None
    if total and download.size and total != download.size:
        raise UserError(f"{download.source.shown} has {total} bytes, expected {download.size}")
    check_room(download.part.parent, (total or download.size or 0) - offset)
    limit = download.size or total or MAX_DOWNLOAD_BYTES
    with open(download.part, "ab" if offset else "wb") as file:
        watch = _Watch(download, file.tell())
        with tqdm(total=total, initial=offset, unit="B", unit_scale=True, disable=None) as bar:
            for chunk in _chunks(response):
                size = file.tell() + len(chunk)
                if size > limit:
                    raise UserError(
                        f"{download.source.shown} sends more than the {limit} bytes that "
                        f"{_limit_source(download, total)}"
                    )
                if encoded and size > allowed_bytes(response.raw.tell()):
                    download.discard()
                    raise UserError(
                        f"{download.source.shown} sends a file that is compressed too strongly to hold "
                        "images (a decompression bomb)"
                    )
                watch.look(size)
                file.write(chunk)
                bar.update(len(chunk))
        if total and file.tell() < total:
            raise TryAgain(f"the connection ended after {file.tell()} of {total} bytes")


def _limit_source(download: Download, total: int | None) -> str:
    return "were announced" if download.size or total else "are allowed for a file of unknown size"


class _Watch:
    """Monitors a download: its speed, its total time, and the free disk space."""

    def __init__(self, download: Download, size: int) -> None:
        self.download = download
        self.started = self.window_started = time.monotonic()
        self.window_size = self.checked_size = size

    def look(self, size: int) -> None:
        """Check the limits; `size`: bytes so far.

        Raises:
            UserError: the server is too slow, or the download takes longer than a day.
            OSError: the disk is nearly full (ENOSPC).
        """
        now, shown = time.monotonic(), self.download.source.shown
        kept = "the part so far is kept: the same command continues from there"
        if now - self.window_started > SLOW_WINDOW_S:
            if size - self.window_size < SLOW_BYTES:
                seconds = now - self.window_started
                raise UserError(
                    f"{shown}: the server sent {size - self.window_size} bytes in {seconds:.0f} s, which is "
                    f"too slow; {kept}"
                )
            self.window_started, self.window_size = now, size
        if now - self.started > MAX_DOWNLOAD_S:
            raise UserError(f"{shown}: not complete after {files.human_time(now - self.started)}; {kept}")
        if size - self.checked_size > CHECK_BYTES:
            self.checked_size = size
            if shutil.disk_usage(self.download.part.parent).free < RESERVE_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _check_transport(url: str, sha256: str | None) -> None:
    """Refuse plain http, where the bytes may be changed on the way, unless a digest is given or the host is
    this machine.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme == "http" and sha256 is None and host not in ("localhost", "127.0.0.1", "::1"):
        raise UserError(f"{without_secrets(url)} is plain http; use https, or give the file's sha256")


def failure_of(error: Exception, shown: str) -> Exception:
    """Return the error for a failed request: TryAgain if the server is busy or the connection was lost, else
    UserError.
    """
    import requests.exceptions as failures

    if isinstance(error, failures.HTTPError):
        response = error.response
        if response.status_code == 429 or response.status_code >= 500:
            wait_s = _retry_after(response.headers.get("Retry-After", ""))
            return TryAgain(
                f"the server answers {response.status_code} {one_line(response.reason or '')}", wait_s
            )
        meaning = {
            401: "sign-in required",
            403: "access denied; a link with a signature may have expired",
            404: "no such file",
        }
        return UserError(
            f"{shown} answers {response.status_code}: "
            f"{meaning.get(response.status_code, one_line(response.reason or ''))}"
        )
    if isinstance(error, failures.ChunkedEncodingError):
        return TryAgain("the connection was cut")
    passing = isinstance(error, (failures.ConnectionError, failures.Timeout))
    if passing and not isinstance(error, (failures.SSLError, failures.ProxyError)):
        cause = re.search(r"\[Errno -?\d+\] ([^'\")]+)", str(error))
        return TryAgain(f"the connection failed: {cause[1] if cause else without_secrets(str(error))}")
    return UserError(f"{shown}: {without_secrets(str(error))}")


def _retry_after(value: str) -> float | None:
    """Return the seconds of a Retry-After header (a number or a date); None if it cannot be read."""
    if re.fullmatch(r"[0-9]{1,9}", value.strip()):
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return None
