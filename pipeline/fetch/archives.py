"""An archive after it is fetched: whether a file is the one announced, and unpacking inside one folder."""

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

MAX_TAR_HEADER = 10**6  # bytes of a long name or of other words about one member; tarfile reads them into memory whole


# Whether a file is the one that was announced


def file_problems(path: Path, name: str, sha256: str | None, size: int | None) -> list[str]:
    """Why the bytes at `path` are not the wanted file, which is to be called `name`; empty when they are."""
    with open(path, "rb") as file:
        head = file.read(CHUNK_BYTES)
    suffix = Path(name).suffix.lower()
    if head.lstrip().lower().startswith(PAGE_STARTS) and suffix not in (".html", ".htm"):
        return [f"it is {page_in_words(head)}"]
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


def page_in_words(html: bytes) -> str:
    """A web page in words: its title, and what it means where that is known."""
    text = html.decode("utf-8", "replace")
    title = re.search(r"<title[^>]*>(.*?)</title>", text, re.IGNORECASE | re.DOTALL)
    name = f"a web page ({' '.join(title[1].split())!r})" if title else "a web page"
    if re.search(r"quota|too many users", text, re.IGNORECASE):
        return f"{name} that says the file was downloaded too often; Google lifts that within a day"
    return f"{name}, perhaps one to sign in or to confirm" if re.search(r"sign in|log in|password|confirm", text, re.IGNORECASE) else name


def check_room(folder: Path, needed: int) -> None:
    """Nothing, when the disk of `folder` has `needed` bytes free.

    Raises:
        UserError: it has fewer.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(f"{folder} has {files.human_size(free)} free, and {files.human_size(needed)} are needed")


# Unpacking


@dataclass(frozen=True)
class Member:
    """One file or folder of an archive, as its header says."""

    name: str
    kind: str  # "file", "folder", or in words what else it is
    size: int  # unpacked bytes, as its header says
    open: Callable[[], IO[bytes]] | None = None  # None where the archive is only read as a whole (7z)


def unpack_zip(
    zip_path: Path,
    target_dir: Path,
    *,
    max_bytes: int = MAX_UNPACKED_BYTES,
    max_members: int = MAX_MEMBERS,
    budget: Budget | None = None,
) -> list[Path]:
    """The files of a zip (or tar, tar.gz) written under `target_dir`, relative to it; the folder must be empty or absent.

    Every name is checked before the first byte is written, and bytes are counted as they come. Whatever fails, nothing is left
    in `target_dir`. Permissions are not taken over; what macOS adds to its zips (`__MACOSX/`, `.DS_Store`) is left out.
    A `budget`, shared with the archives around this one, takes the place of the limits.

    Raises:
        UserError: the archive is damaged, or holds what it must not: a name outside the folder, a link, a device, an encrypted
            member, the same name twice, more than `max_members`, more than `max_bytes` or MAX_RATIO times its own size unpacked.
    """
    zip_path, target_dir = Path(zip_path), Path(target_dir)
    if target_dir.exists() and any(target_dir.iterdir()):
        raise UserError(f"{target_dir} is not empty; {zip_path.name} is only unpacked into a new folder")
    limit = budget.bytes_left if budget else min(max_bytes, allowed_bytes(zip_path.stat().st_size))
    with cleared_on_failure(zip_path, target_dir), _opened(zip_path) as archive:
        members = list(_members(archive, budget.members_left if budget else max_members, limit))
        check_members(zip_path, members, limit, max_members, budget)
        target_dir.mkdir(parents=True, exist_ok=True)
        check_room(target_dir, sum(member.size for member in members))
        return _write_members(members, target_dir, limit)


def check_members(path: Path, members: list[Member], limit: int, max_members: int, budget: Budget | None) -> None:
    """Pass when all `members` of the archive at `path` may be written; they are taken from the `budget` where there is one.

    Raises:
        UserError: a name or a kind of member must not be (all such are named), or they are too much.
    """
    if budget:
        budget.spend(sum(member.size for member in members), len(members))
    raise_all(_member_problems(members, limit, max_members), f"{path} was not unpacked:")


@contextmanager
def cleared_on_failure(path: Path, target_dir: Path, damage: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Whatever fails in the block leaves nothing in `target_dir`; what readers raise on damage (and `damage`) becomes one sentence.

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
    """True for what Python's readers raise on a damaged archive, as opposed to a disk that fails.

    An OSError is theirs when it has no number (bzip2, gzip) or comes of a jump to before the file's start (EINVAL).
    """
    return isinstance(error, _DAMAGE) or (isinstance(error, OSError) and error.errno in (None, errno.EINVAL))


def _opened(path: Path) -> zipfile.ZipFile | tarfile.TarFile:
    return zipfile.ZipFile(path) if zipfile.is_zipfile(path) else tarfile.open(path, tarinfo=_BoundedTarInfo)


class _BoundedTarInfo(tarfile.TarInfo):
    """A member whose own words (long names, pax headers) are bounded before they are read."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        about = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
        if self.type in about and self.size > MAX_TAR_HEADER:
            raise TooMuch(f"{archive.name} was not unpacked: a name or header in it has {files.human_size(self.size)}")
        return super()._proc_member(archive)


def _members(archive: zipfile.ZipFile | tarfile.TarFile, max_members: int, max_bytes: int) -> Iterator[Member]:
    """The members in the archive's order, to the first that is more than `max_members` or goes beyond `max_bytes`.

    To see a tar's next member its present one is decompressed: a bomb is not to be walked through to its end.
    """
    total = 0
    for number, entry in enumerate(archive.infolist() if isinstance(archive, zipfile.ZipFile) else archive):
        if number > max_members or total > max_bytes:
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
            total += size
            yield Member(name, kind, size, partial(_open_member, archive, entry))


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
            problems.append(f"{member.name!r} is there twice")
        seen.add(path)
    total = sum(member.size for member in members)
    if total > limit:
        problems.append(
            f"it would unpack to {files.human_size(total)}; at most {files.human_size(limit)} are allowed for an archive of its size"
        )
    return problems


def name_problem(name: str) -> str | None:
    """Why a member's name cannot be trusted, or None. Names must mean the same on every system."""
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
                with member.open() as packed, open(path, "xb") as file:  # x: a name that this disk takes for an earlier one is an error
                    while chunk := packed.read(CHUNK_BYTES):
                        written += len(chunk)
                        if written > limit:
                            raise UserError(f"{member.name!r} unpacks to more than it announced; nothing was kept")
                        file.write(chunk)
                        bar.update(len(chunk))
            except OSError as error:
                if error.errno == errno.ENAMETOOLONG:
                    raise UserError(f"{member.name[:60]!r}...: the name is too long for this disk; nothing was kept") from None
                if not isinstance(error, FileExistsError | NotADirectoryError):
                    raise
                raise UserError(f"{member.name!r} collides with an earlier member on this disk; nothing was kept") from None
            paths.append(path.relative_to(target_dir))
    return paths
