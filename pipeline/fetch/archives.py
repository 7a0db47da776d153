"""Check a fetched file against its announced size and digest, and unpack archives safely into one folder."""

from __future__ import annotations

import errno
import lzma
import os
import re
import shutil
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

from tqdm import tqdm

from pipeline import files
from pipeline.errors import UserError, raise_all
from pipeline.fetch.budget import MAX_MEMBERS, MAX_UNPACKED_BYTES, Budget, TooMuch, allowed_bytes

CHUNK_BYTES = 64 * 1024  # read and written at a time
MAGIC = {".zip": (b"PK\x03\x04", b"PK\x05\x06"), ".tgz": (b"\x1f\x8b",), ".gz": (b"\x1f\x8b",)}
PAGE_STARTS = (b"<!doctype html", b"<html", b"<head", b"<!--")

# bytes of a long name or other header of one member; tarfile reads headers whole into memory
MAX_TAR_HEADER = 10**6


# Checking a fetched file


def file_problems(path: Path, name: str, sha256: str | None, size: int | None) -> list[str]:
    """Return why the file at `path` is not the wanted file `name`; empty if it is."""
    with open(path, "rb") as file:
        head = file.read(CHUNK_BYTES)
    suffix = Path(name).suffix.lower()
    if head.lstrip().lower().startswith(PAGE_STARTS) and suffix not in (".html", ".htm"):
        return [f"it is {page_in_words(head)}"]
    problems = []
    found_size = path.stat().st_size
    if size is not None and found_size != size:
        problems.append(f"it has {found_size} bytes, expected {size}")
    if not head.startswith(MAGIC.get(suffix, b"")):
        problems.append(f"it is not a {suffix} file: it starts with {head[:8]!r}")
    elif suffix == ".zip" and not zipfile.is_zipfile(path):
        problems.append("it is a zip file without its end: it was cut short, or it is one of several pieces")
    if sha256 is not None and (found := files.sha256(path)) != sha256.lower():
        problems.append(f"its sha256 is {found}, expected {sha256.lower()}")
    return problems


def page_in_words(html: bytes) -> str:
    """Describe a web page: its title, and its meaning where that is known."""
    text = html.decode("utf-8", "replace")
    title = re.search(r"<title[^>]*>(.*?)</title>", text, re.IGNORECASE | re.DOTALL)
    name = f"a web page ({' '.join(title[1].split())!r})" if title else "a web page"
    if re.search(r"quota|too many users", text, re.IGNORECASE):
        return f"{name} that says the file was downloaded too often; Google lifts that within a day"
    if re.search(r"sign in|log in|password|confirm", text, re.IGNORECASE):
        return f"{name}, perhaps one to sign in or to confirm"
    return name


def check_room(folder: Path, needed: int) -> None:
    """Check that the disk of `folder` has `needed` bytes free.

    Raises:
        UserError: it has fewer.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{folder} has {files.human_size(free)} free, but {files.human_size(needed)} are needed"
        )


# Unpacking


@dataclass(frozen=True)
class Member:
    """One file or folder of an archive, as its header describes it."""

    name: str
    kind: str  # "file", "folder", or a description of another kind
    size: int  # unpacked bytes according to the header
    open: Callable[[], IO[bytes]] | None = None  # None if the archive can only be read as a whole (7z)


def unpack_zip(
    zip_path: Path,
    target_dir: Path,
    *,
    max_bytes: int = MAX_UNPACKED_BYTES,
    max_members: int = MAX_MEMBERS,
    budget: Budget | None = None,
) -> list[Path]:
    """Unpack a zip (or tar, tar.gz) into `target_dir`, which must be empty or absent.

    Returns paths relative to it.

    All names are checked before anything is written, and bytes are counted while writing. After a failure
    `target_dir` is removed. Permissions are not kept; `__MACOSX/` and `.DS_Store` are left out. A `budget`,
    shared with the archives around this one, replaces the limits.

    Raises:
        UserError: the archive is damaged, or it has a forbidden member: a name outside the folder, a link, a
            device, an encrypted member, a repeated name; or it has more than `max_members`, or more than
            `max_bytes` or MAX_RATIO times its own size.
    """
    zip_path, target_dir = Path(zip_path), Path(target_dir)
    if target_dir.exists() and any(target_dir.iterdir()):
        raise UserError(f"{target_dir} is not empty; {zip_path.name} is unpacked only into a new folder")
    limit = budget.bytes_left if budget else min(max_bytes, allowed_bytes(zip_path.stat().st_size))
    with cleared_on_failure(zip_path, target_dir), _opened(zip_path) as archive:
        members = list(_members(archive, budget.members_left if budget else max_members, limit))
        check_members(zip_path, members, limit, max_members, budget)
        target_dir.mkdir(parents=True, exist_ok=True)
        check_room(target_dir, sum(member.size for member in members))
        return _write_members(members, target_dir, limit)


def check_members(
    path: Path, members: list[Member], limit: int, max_members: int, budget: Budget | None
) -> None:
    """Check that all `members` of the archive at `path` may be written, and count them in `budget` if there
    is one.

    Raises:
        UserError: names or kinds are forbidden (all are listed), or the members are too many or too large.
    """
    if budget:
        budget.spend(sum(member.size for member in members), len(members))
    raise_all(_member_problems(members, limit, max_members), f"{path} was not unpacked:")


@contextmanager
def cleared_on_failure(
    path: Path, target_dir: Path, damage: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Remove `target_dir` if the block fails; turn errors that mean a damaged archive (and `damage`) into a
    UserError.

    Raises:
        UserError: the archive at `path` is damaged.
    """
    try:
        yield
    except BaseException as error:
        shutil.rmtree(target_dir, ignore_errors=True)
        if isinstance(error, UserError) or not (_is_damage(error) or isinstance(error, damage)):
            raise
        raise UserError(f"{path} is damaged or of an unknown kind ({error}); download it again") from None


_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
    ValueError,
    OverflowError,
    struct.error,
)


def _is_damage(error: BaseException) -> bool:
    """Return True for errors of Python's readers on a damaged archive, False for errors of the disk.

    An OSError means damage if it has no number (bzip2, gzip) or comes from a seek before the file's start
    (EINVAL).
    """
    return isinstance(error, _DAMAGE) or (isinstance(error, OSError) and error.errno in (None, errno.EINVAL))


def _opened(path: Path) -> zipfile.ZipFile | tarfile.TarFile:
    with open(path, "rb") as file:
        start = file.read(4)
    if start.startswith(MAGIC[".zip"]):
        return zipfile.ZipFile(path)
    # A tar first: zipfile would find the end of a zip inside it, and read that one alone.
    try:
        return tarfile.open(path, tarinfo=_BoundedTarInfo)
    except tarfile.ReadError:
        if not zipfile.is_zipfile(path):
            raise
        return zipfile.ZipFile(path)  # behind a program that unpacks it


class _BoundedTarInfo(tarfile.TarInfo):
    """A tar member whose headers (long names, pax) are checked for size before they are read.

    A tar ends with a block of zeros. At any other end Python leaves out the rest without a word.
    """

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> _BoundedTarInfo:
        try:
            return super().fromtarfile(archive)
        except (tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError, tarfile.InvalidHeaderError) as error:
            if archive.offset == 0:  # no tar
                raise
            raise tarfile.ReadError(f"cut short or damaged at byte {archive.offset:,}: {error}") from None

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        about = (
            tarfile.GNUTYPE_LONGNAME,
            tarfile.GNUTYPE_LONGLINK,
            tarfile.XHDTYPE,
            tarfile.XGLTYPE,
            tarfile.SOLARIS_XHDTYPE,
        )
        if self.type in about and self.size > MAX_TAR_HEADER:
            raise TooMuch(
                f"{archive.name} was not unpacked: a name or header in it has {files.human_size(self.size)}"
            )
        return super()._proc_member(archive)


def _members(
    archive: zipfile.ZipFile | tarfile.TarFile, max_members: int, max_bytes: int
) -> Iterator[Member]:
    """Yield the members in order; stop after the first one beyond `max_members` or `max_bytes`.

    Reading a tar's next member decompresses the current one, so a decompression bomb must not be read to its
    end.
    """
    total = 0
    for number, entry in enumerate(archive.infolist() if isinstance(archive, zipfile.ZipFile) else archive):
        if number > max_members or total > max_bytes:
            return
        if isinstance(entry, tarfile.TarInfo):
            if entry.isfile():
                kind = "file"
            elif entry.isdir():
                kind = "folder"
            elif entry.islnk() or entry.issym():
                kind = "a link"
            else:
                kind = "a device"
            name, size = entry.name, entry.size
        else:
            mode = stat.S_IFMT(entry.external_attr >> 16)
            kind = {0: "file", stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "a link"}.get(
                mode, "a device"
            )
            kind = "an encrypted file" if entry.flag_bits & 0x1 else "folder" if entry.is_dir() else kind
            name, size = _zip_name(entry), entry.file_size
        if not (name.startswith("__MACOSX/") or name.endswith(".DS_Store")):
            total += size
            yield Member(name, kind, size, partial(_open_member, archive, entry))


def _zip_name(entry: zipfile.ZipInfo) -> str:
    """Return the name of a zip's member.

    Python reads a name that is not marked as UTF-8 in code page 437. Many tools write UTF-8 without the mark,
    among them Finder on macOS.
    """
    name, marked = entry.orig_filename, entry.flag_bits & 0x800
    if marked or name.isascii():
        return name
    try:
        return name.encode("cp437").decode("utf-8")
    except UnicodeError:  # really another code page
        return name


def _open_member(archive: Any, entry: Any) -> IO[bytes]:
    return archive.open(entry) if isinstance(archive, zipfile.ZipFile) else archive.extractfile(entry)


def _member_problems(members: list[Member], limit: int, max_members: int) -> list[str]:
    if len(members) > max_members:
        return [f"it has more than {max_members} members"]
    problems = []
    seen: set[PurePosixPath] = set()
    for member in members:
        path = PurePosixPath(member.name)
        if reason := name_problem(member.name):
            problems.append(f"{member.name!r}: {reason}")
        elif member.kind not in ("file", "folder"):
            problems.append(f"{member.name!r} is {member.kind}; only plain files and folders are unpacked")
        elif member.kind == "file" and path in seen:
            problems.append(f"{member.name!r} occurs twice")
        seen.add(path)
    total = sum(member.size for member in members)
    if total > limit:
        problems.append(
            f"it would unpack to {files.human_size(total)}; at most {files.human_size(limit)} are allowed "
            "for an archive of its size"
        )
    return problems


def name_problem(name: str) -> str | None:
    """Return why a member's name is not safe, or None. A name must mean the same on every system."""
    if "\\" in name:
        return "a backslash in the name"
    if any(unicodedata.category(letter) == "Cc" for letter in name):
        return "a control character in the name"
    if name.startswith("/") or re.match(r"[A-Za-z]:", name) or (os.name == "nt" and ":" in name):
        return "an absolute path or a drive"
    return "a path that leaves the folder" if ".." in name.split("/") else None


def _write_members(members: list[Member], target_dir: Path, limit: int) -> list[Path]:
    written, paths = 0, []
    total = sum(member.size for member in members)
    with tqdm(total=total, unit="B", unit_scale=True, desc="unpacking", disable=None) as bar:
        for member in members:
            path = target_dir / PurePosixPath(member.name)
            try:
                (path if member.kind == "folder" else path.parent).mkdir(parents=True, exist_ok=True)
                if member.kind == "folder":
                    continue
                # x: if this disk treats two names as one, that is an error
                with member.open() as packed, open(path, "xb") as file:
                    while chunk := packed.read(CHUNK_BYTES):
                        written += len(chunk)
                        if written > limit:
                            raise UserError(
                                f"{member.name!r} unpacks to more than its header says; nothing was kept"
                            )
                        file.write(chunk)
                        bar.update(len(chunk))
            except OSError as error:
                if error.errno == errno.ENAMETOOLONG:
                    raise UserError(
                        f"{member.name[:60]!r}...: the name is too long for this disk; nothing was kept"
                    ) from None
                if not isinstance(error, FileExistsError | NotADirectoryError):
                    raise
                raise UserError(
                    f"{member.name!r} collides with an earlier member on this disk; nothing was kept"
                ) from None
            paths.append(path.relative_to(target_dir))
    return paths
