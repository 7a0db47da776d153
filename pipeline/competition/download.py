"""Files from Google Drive, from https or from this disk: fetched whole, checked, and unpacked inside their folder."""

from __future__ import annotations

import difflib
import email.utils
import gzip
import hashlib
import inspect
import lzma
import os
import re
import shutil
import stat
import sys
import tarfile
import tempfile
import time
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import parse_qs, urlsplit

from tqdm import tqdm

from pipeline import files
from pipeline.errors import UserError, raise_all

MAX_RETRIES = 4  # in a row without a new byte; waits of 1, 2, 4 and 8 s
MAX_WAIT_S = 120.0  # a server that asks for more is not waited for
TIMEOUT_S = 60.0  # without a byte from the server
CHUNK_BYTES = 64 * 1024

MAX_UNPACKED_BYTES = 500 * 10**9
MAX_MEMBERS = 5_000_000
MAX_RATIO = 100  # unpacked bytes for each byte of the archive, beyond the first SMALL_BYTES; photos are at 1, CSV at 10
SMALL_BYTES = 64 * 10**6

DRIVE_HOSTS = ("drive.google.com", "docs.google.com", "drive.usercontent.google.com")
MAGIC = {".zip": (b"PK\x03\x04", b"PK\x05\x06"), ".tgz": (b"\x1f\x8b",), ".gz": (b"\x1f\x8b",)}
PAGE_STARTS = (b"<!doctype html", b"<html", b"<head", b"<!--")


# Sources


@dataclass(frozen=True)
class Source:
    """Where a file comes from: kind "drive" (text: the file's id), "url" or "file" (text: the path)."""

    kind: str
    text: str

    @property
    def shown(self) -> str:
        """The source for a message, without a user name, password or signed query."""
        if self.kind == "drive":
            return f"Google Drive file {self.text}"
        return _without_secrets(self.text) if self.kind == "url" else self.text

    @property
    def browser_url(self) -> str:
        """The address to open by hand."""
        return f"https://drive.google.com/file/d/{self.text}/view" if self.kind == "drive" else self.shown


def parse_source(text: str, folder: Path = Path()) -> Source:
    """What `text` names: a file (relative to `folder`), a Google Drive id or link, or an http(s) address.

    Raises:
        UserError: it is none of these, a Drive folder, or a file that does not exist.
    """
    text = text.strip()
    path = Path(folder) / Path(text).expanduser()
    if text and path.is_file():
        return Source("file", str(path))
    if scheme := re.match(r"([A-Za-z][A-Za-z0-9+.-]+)://", text):
        if scheme[1].lower() not in ("http", "https"):
            raise UserError(
                f"{_without_secrets(text)}: {scheme[1]}:// is not supported; give an https address, a Google Drive id or a path"
            )
        return _parse_url(text)
    if re.fullmatch(r"[-\w]{25,}", text):
        return Source("drive", text)
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the archive file itself")
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=1)
    hint = f" (is it {path.parent / near[0]}?)" if near else ""
    raise UserError(f"{text!r} is no file{hint}; give a path, a Google Drive id or link, or an https address")


def _parse_url(url: str) -> Source:
    parts = urlsplit(url)
    if not parts.hostname:
        raise UserError(f"{url!r} names no host; give a full address such as https://host/file.zip")
    if parts.hostname not in DRIVE_HOSTS:
        return Source("url", url)
    if "/folders/" in parts.path:
        raise UserError(
            f"{_without_secrets(url)} is a Google Drive folder; give the link of one file (Share > Copy link on the file itself)"
        )
    in_path = re.search(r"/d/([-\w]+)", parts.path)
    file_id = in_path[1] if in_path else parse_qs(parts.query).get("id", [""])[0]
    if not re.fullmatch(r"[-\w]+", file_id):
        raise UserError(
            f"{_without_secrets(url)} holds no Google Drive file id; it should look like https://drive.google.com/file/d/FILE_ID/view"
        )
    return Source("drive", file_id)


def _without_secrets(text: str) -> str:
    """`text` with the user names and queries of its addresses left out; both may be credentials."""
    text = re.sub(r"(://)[^/\s@]+@", r"\1", text)
    return re.sub(r"\?[^\s'\")]+", "?...", text)


# Fetching


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
        key = hashlib.sha256(self.source.text.encode()).hexdigest()[:8]
        return self.target_path.with_name(f".{self.target_path.name}.{key}.part")

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
        return _problems(self.part, self.target_path.name, self.sha256, self.size)


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
        problems = _problems(existing, target_path.name, sha256, size)
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
    ways = [f"open {source.browser_url} in a browser and download the file there", *otherwise]
    if source.kind == "drive":
        ways.append(
            "let gdown use your Google account: keep your browser's google.com cookies in ~/.cache/gdown/cookies.txt (Netscape format)"
        )
    return ["What helps:", *[f"  - {way}" for way in ways]]


def _persist(download: _Download, sleep: Callable[[float], None]) -> bool:
    """Try until the part is whole; True when it was put together from more than one connection.

    Failures are counted in a row: one that brought new bytes starts the count again.
    """
    get = _get_drive if download.source.kind == "drive" else _get_url
    failures, longest = 0, download.received()
    continued = longest > 0
    while True:
        try:
            get(download)
            return continued
        except _TryAgain as failure:
            continued, received = True, download.received()
            failures, longest = (1, received) if received > longest else (failures + 1, longest)
            kept = f" ({files.human_size(received)} are kept: the same command continues from there)" if received else ""
            wait_s = 2.0 ** (failures - 1) if failure.wait_s is None else failure.wait_s
            if wait_s > MAX_WAIT_S:
                raise UserError(f"{download.source.shown}: {failure}; it asks to wait {files.human_time(wait_s)}{kept}") from None
            if failures > MAX_RETRIES:
                raise UserError(f"{download.source.shown}: {failure}; given up after {MAX_RETRIES} more tries{kept}") from None
            print(f"{download.source.shown}: {failure}; trying again in {wait_s:.0f} s", file=sys.stderr)
            sleep(wait_s)


def _get_drive(download: _Download) -> None:
    """Have gdown bring the part, continuing what it left there before."""
    import gdown
    import requests

    accepted = inspect.signature(gdown.download).parameters  # gdown 5 knows neither timeout nor cookies_file
    options: dict[str, Any] = {"timeout": TIMEOUT_S} if "timeout" in accepted else {}
    shown, part = download.source.shown, download.part
    if sum(path.suffix == ".part" for path in download.partials()) > 1:
        download.discard()  # of two calls at once; gdown would not know which to continue
    with tempfile.TemporaryDirectory() as private_dir:
        if download.cookies is not None:
            if "cookies_file" not in accepted:
                raise UserError(
                    f"this gdown takes no cookies file: `pip install -U gdown`, or copy {download.cookies} to ~/.cache/gdown/cookies.txt"
                )
            if not Path(download.cookies).is_file():
                raise UserError(f"the cookies file {download.cookies} does not exist")
            # gdown writes the cookies it ends with into the file it was given; the user's own stays as it is.
            options["cookies_file"] = shutil.copy(download.cookies, Path(private_dir) / "cookies.txt")
        options |= {"quiet": not sys.stderr.isatty(), "resume": True, "log_messages": {"start": "", "output": ""}}
        try:
            gdown.download(id=download.source.text, output=str(part), **options)
        except gdown.exceptions.FileURLRetrievalError as error:
            raise UserError(f"{shown} is not handed out: {_without_secrets(' '.join(str(error).split()))}") from None
        except requests.exceptions.HTTPError as error:
            raise _http_failure(error.response, shown) from None
        except requests.exceptions.RequestException as error:
            raise _request_failure(error, shown) from None
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
            if response.status_code >= 400:
                raise _http_failure(response, source.shown)
            if response.headers.get("Content-Type", "").startswith("text/html") and download.target_path.suffix != ".html":
                raise UserError(f"{source.shown} answers with {_page(next(response.iter_content(CHUNK_BYTES), b''))} instead of the file")
            if response.status_code != 206:
                offset = 0
                etag = response.headers.get("ETag", "W/")
                version_path.write_text(response.headers.get("Last-Modified", "") if etag.startswith("W/") else etag)
            _write_body(response, download, offset)
    except requests.exceptions.RequestException as error:
        raise _request_failure(error, source.shown) from None


def _write_body(response: Any, download: _Download, offset: int) -> None:
    announced = response.headers.get("Content-Length", "")
    total = offset + int(announced) if announced.isdigit() and "Content-Encoding" not in response.headers else None
    if total and download.size and total != download.size:
        raise UserError(f"{download.source.shown} has {total} bytes, not the {download.size} that were announced")
    _check_room(download.part.parent, (total or download.size or 0) - offset)
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
        raise UserError(f"{_without_secrets(url)} is plain http; use https, or give the file's sha256")


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(f"{folder} has {files.human_size(free)} free, and {files.human_size(needed)} are needed")


def _http_failure(response: Any, shown: str) -> Exception:
    """What to raise for a status of 400 and above: another try for a busy or broken server, else the end."""
    status = response.status_code
    if status == 429 or status >= 500:
        return _TryAgain(f"the server answers {status} {response.reason}", _retry_after(response.headers.get("Retry-After", "")))
    meaning = {401: "it wants a sign-in", 403: "it refuses access; a link with a signature may have expired", 404: "there is no such file"}
    return UserError(f"{shown} answers {status}: {meaning.get(status, response.reason)}")


def _request_failure(error: Exception, shown: str) -> Exception:
    """What to raise when there was no whole reply: another try for a lost connection, else the end."""
    import requests.exceptions as failures

    final = (failures.SSLError, failures.ProxyError)
    passing = (failures.ConnectionError, failures.Timeout)
    if isinstance(error, failures.ChunkedEncodingError):
        return _TryAgain("the connection was cut")
    if isinstance(error, passing) and not isinstance(error, final):
        cause = re.search(r"\[Errno -?\d+\] ([^'\")]+)", str(error))
        return _TryAgain(f"the connection failed: {cause[1] if cause else _without_secrets(str(error))}")
    return UserError(f"{shown}: {_without_secrets(str(error))}")


def _retry_after(value: str) -> float | None:
    """Seconds of a Retry-After header (a number or a date); None when it says nothing."""
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _problems(path: Path, name: str, sha256: str | None, size: int | None) -> list[str]:
    """Why the bytes at `path` are not the wanted file, which is to be called `name`; empty when they are."""
    with open(path, "rb") as file:
        head = file.read(CHUNK_BYTES)
    suffix = Path(name).suffix.lower()
    if head.lstrip().lower().startswith(PAGE_STARTS) and suffix not in (".html", ".htm"):
        return [f"it is {_page(head)}"]
    problems = []
    found_size = path.stat().st_size
    if size is not None and found_size != size:
        problems.append(f"it has {found_size} bytes, not {size}")
    if not head.startswith(MAGIC.get(suffix, b"")):
        problems.append(f"it is no {suffix} file: it starts with {head[:8]!r}")
    elif suffix == ".zip" and not zipfile.is_zipfile(path):
        problems.append("it is a zip file whose end is missing: it was cut short, or it is one piece of several")
    if sha256 is not None and (found := files.sha256(path)) != sha256.lower():
        problems.append(f"its sha256 is {found}, not {sha256.lower()}")
    return problems


def _page(html: bytes) -> str:
    """A web page in words: its title, and what it means where that is known."""
    text = html.decode("utf-8", "replace")
    title = re.search(r"<title[^>]*>(.*?)</title>", text, re.IGNORECASE | re.DOTALL)
    name = f"a web page ({' '.join(title[1].split())!r})" if title else "a web page"
    if re.search(r"quota|too many users", text, re.IGNORECASE):
        return f"{name} that says the file was downloaded too often; Google lifts that within a day"
    return f"{name}, perhaps one to sign in or to confirm" if re.search(r"sign in|log in|password|confirm", text, re.IGNORECASE) else name


# Unpacking


@dataclass(frozen=True)
class _Member:
    name: str
    kind: str  # "file", "folder", or in words what else it is
    size: int  # unpacked bytes, as its header says
    open: Callable[[], IO[bytes]]


def unpack_zip(zip_path: Path, target_dir: Path, *, max_bytes: int = MAX_UNPACKED_BYTES, max_members: int = MAX_MEMBERS) -> list[Path]:
    """The files of a zip (or tar, tar.gz) written under `target_dir`, relative to it; the folder must be empty or absent.

    Every name is checked before the first byte is written, and bytes are counted as they come. Whatever fails, nothing is left
    in `target_dir`. Permissions are not taken over; what macOS adds to its zips (`__MACOSX/`, `.DS_Store`) is left out.

    Raises:
        UserError: the archive is damaged, or holds what it must not: a name outside the folder, a link, a device, an encrypted
            member, the same name twice, more than `max_members`, more than `max_bytes` or MAX_RATIO times its own size unpacked.
    """
    zip_path, target_dir = Path(zip_path), Path(target_dir)
    if target_dir.exists() and any(target_dir.iterdir()):
        raise UserError(f"{target_dir} is not empty; {zip_path.name} is only unpacked into a new folder")
    limit = min(max_bytes, max(SMALL_BYTES, MAX_RATIO * zip_path.stat().st_size))
    try:
        with _opened(zip_path) as archive:
            members = list(_members(archive, max_members))
            raise_all(_member_problems(members, limit, max_members), f"{zip_path} was not unpacked:")
            target_dir.mkdir(parents=True, exist_ok=True)
            _check_room(target_dir, sum(member.size for member in members))
            return _write_members(members, target_dir, limit)
    except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError) as error:
        shutil.rmtree(target_dir, ignore_errors=True)
        raise UserError(f"{zip_path} is damaged or of an unknown kind ({error}); download it again") from None
    except BaseException:
        shutil.rmtree(target_dir, ignore_errors=True)
        raise


def _opened(path: Path) -> zipfile.ZipFile | tarfile.TarFile:
    return zipfile.ZipFile(path) if zipfile.is_zipfile(path) else tarfile.open(path)


def _members(archive: zipfile.ZipFile | tarfile.TarFile, max_members: int) -> Iterator[_Member]:
    """The members in the archive's order, at most one more than `max_members`."""
    for number, entry in enumerate(archive.infolist() if isinstance(archive, zipfile.ZipFile) else archive):
        if number > max_members:
            return
        if isinstance(entry, tarfile.TarInfo):
            kind = "file" if entry.isfile() else "folder" if entry.isdir() else "a link" if entry.islnk() or entry.issym() else "a device"
            name, size = entry.name, entry.size
        else:
            mode = stat.S_IFMT(entry.external_attr >> 16)
            kind = {0: "file", stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "a link"}.get(mode, "a device")
            kind = "an encrypted file" if entry.flag_bits & 0x1 else "folder" if entry.is_dir() else kind
            name, size = entry.orig_filename, entry.file_size
        if not (name.startswith("__MACOSX/") or name.endswith(".DS_Store")):
            yield _Member(name, kind, size, partial(_open_member, archive, entry))


def _open_member(archive: Any, entry: Any) -> IO[bytes]:
    return archive.open(entry) if isinstance(archive, zipfile.ZipFile) else archive.extractfile(entry)


def _member_problems(members: list[_Member], limit: int, max_members: int) -> list[str]:
    if len(members) > max_members:
        return [f"it has more than {max_members} members"]
    problems = []
    seen: set[PurePosixPath] = set()
    for member in members:
        path = PurePosixPath(member.name)
        if reason := _name_problem(member.name):
            problems.append(f"{member.name!r}: {reason}")
        elif member.kind not in ("file", "folder"):
            problems.append(f"{member.name!r} is {member.kind}; only plain files and folders are unpacked")
        elif member.kind == "file" and path in seen:
            problems.append(f"{member.name!r} is there twice")
        seen.add(path)
    total = sum(member.size for member in members)
    if total > limit:
        problems.append(
            f"it would unpack to {files.human_size(total)}; at most {files.human_size(limit)} are allowed for an archive of its size"
        )
    return problems


def _name_problem(name: str) -> str | None:
    """Why a member's name cannot be trusted, or None. Names must mean the same on every system."""
    if "\\" in name:
        return "a backslash in the name"
    if any(unicodedata.category(letter) == "Cc" for letter in name):
        return "a control character in the name"
    if name.startswith("/") or re.match(r"[A-Za-z]:", name) or (os.name == "nt" and ":" in name):
        return "an absolute path or a drive"
    return "a path that leaves the folder" if ".." in name.split("/") else None


def _write_members(members: list[_Member], target_dir: Path, limit: int) -> list[Path]:
    written, paths = 0, []
    total = sum(member.size for member in members)
    with tqdm(total=total, unit="B", unit_scale=True, desc="unpacking", disable=None) as bar:
        for member in members:
            path = target_dir / PurePosixPath(member.name)
            try:
                (path if member.kind == "folder" else path.parent).mkdir(parents=True, exist_ok=True)
                if member.kind == "folder":
                    continue
                with member.open() as packed, open(path, "xb") as file:  # x: a name that this disk takes for an earlier one is an error
                    while chunk := packed.read(CHUNK_BYTES):
                        written += len(chunk)
                        if written > limit:
                            raise UserError(f"{member.name!r} unpacks to more than it announced; nothing was kept")
                        file.write(chunk)
                        bar.update(len(chunk))
            except (FileExistsError, NotADirectoryError):
                raise UserError(f"{member.name!r} collides with an earlier member on this disk; nothing was kept") from None
            paths.append(path.relative_to(target_dir))
    return paths
