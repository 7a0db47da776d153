"""Files that are whole or absent: atomic writes, setting a user's file aside, digests."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError

if TYPE_CHECKING:
    import numpy as np

MAX_YAML_BYTES = 1_000_000
STALE_SECONDS = 3600  # a temporary file not written to for so long was left by a process that was killed
PART_DIR = ".part-"  # how folders of temporary files begin


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; what is written there becomes `path` when the block ends without an error.

    The file is flushed to disk before `os.replace`, so after a power cut `path` holds the old or the new bytes, never a part. Where `path`
    is a link, the file it leads to is replaced, and the link stays.

    Raises:
        UserError: `path` is a folder, a device or a pipe.
    """
    path = replaceable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    start = f".{path.name[:40]}."  # a name may use up the disk's length alone
    for old in path.parent.glob(f"{glob.escape(start)}*.part"):
        _remove_stale(old)
    handle, name = tempfile.mkstemp(prefix=start, suffix=".part", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _flush(temporary)
        # mkstemp makes files private; a shared folder expects what open() would have made.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
        _flush_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def replaceable(path: Path) -> Path:
    """The file that writing to `path` would make or replace: `path` itself, or where a link leads.

    Raises:
        UserError: there is something that is no file.
    """
    path = Path(path)
    real = Path(os.path.realpath(path)) if path.is_symlink() else path
    try:
        found = path.stat() if path.exists() else real.lstat()  # /dev/stdout may lead to `pipe:[123]`, which is no path
        mode = found.st_mode
    except (FileNotFoundError, NotADirectoryError):
        return real
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
        kind = kinds.get(stat.S_IFMT(mode), "no file")
        raise UserError(f"{path} is {kind}, and is not replaced: name a file")
    return real


def check_place(path: Path, how_else: str = "name another place") -> Path:
    """`path`, where a file can be written: asked before hours of work, not after.

    Raises:
        UserError: there is something that is no file, a file where a folder is needed, or a place that this user may not write to.
    """
    path = Path(path)
    folder = next(place for place in replaceable(path).absolute().parents if os.path.lexists(place))
    if not folder.is_dir():
        raise UserError(f"{folder} is a file, and {path} needs a folder there: {how_else}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{path} cannot be written, {folder} takes no files from you (read-only, or another user's): {how_else}")
    return path


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """A temporary folder inside `folder`; files written there are flushed to disk and take their places in `folder` when the block ends.

    Each is whole or absent; they come in the order of their names, configs before weights.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=PART_DIR, dir=folder) as temporary:
        yield Path(temporary)
        written = sorted(Path(temporary).iterdir())
        for file in written:
            _flush(file)
        for file in written:
            os.replace(file, folder / file.name)
        _flush_folder(folder)


def sweep(folder: Path) -> None:
    """Remove the temporary files of killed writers from `folder` and the folders in it; only for who holds it (see pipeline/lock.py)."""
    for place, folders, names in os.walk(folder):
        for name in folders:
            if name.startswith(PART_DIR):
                shutil.rmtree(Path(place) / name, ignore_errors=True)
        folders[:] = [name for name in folders if not name.startswith(".")]  # such as downloads, which go on later
        for name in names:
            if name.startswith(".") and name.endswith(".part"):
                (Path(place) / name).unlink(missing_ok=True)


def _remove_stale(path: Path) -> None:
    with suppress(OSError):
        if time.time() - path.stat().st_mtime > STALE_SECONDS:
            path.unlink()


def _flush(path: Path) -> None:
    with open(path, "r+b") as written:  # Windows flushes only what is open for writing
        os.fsync(written.fileno())


def _flush_folder(folder: Path) -> None:
    """Make renames in `folder` outlast a power cut, where the system can."""
    if os.name != "posix":
        return
    with suppress(OSError):  # some network drives cannot
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically, with the line ends it has."""
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        UserError: the file is missing or is not JSON; the message names the file and the place in it.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None
    except RecursionError:
        raise UserError(f"{path} is not valid JSON: lists or objects inside each other, too many levels of them") from None


def write_json_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object a line, atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def read_yaml(path: Path, *, as_texts: bool = False) -> Any:
    """The value in a YAML file; `as_texts`: every value is the text that stands there (`yes`, `0012`), not what YAML makes of it.

    Raises:
        UserError: it is missing, too large for a file that a person writes, not YAML, or uses aliases, with which a few lines name
            billions of values.
    """
    import yaml

    path = Path(path)
    try:
        if path.stat().st_size > MAX_YAML_BYTES:
            raise UserError(f"{path}: {human_size(path.stat().st_size)}, and at most {human_size(MAX_YAML_BYTES)} are read")
        text = path.read_text(encoding="utf-8")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
            raise UserError(f"{path}: YAML aliases (*name) are not read: write the value out")
        return yaml.load(text, yaml.BaseLoader if as_texts else yaml.SafeLoader)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is not valid YAML: {error}") from None
    except RecursionError:
        raise UserError(f"{path} is not valid YAML: too many levels of nesting") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file, in order; empty when there is no such file.

    Raises:
        UserError: a line is not JSON, or no object; the message names the file and the line.
    """
    path = Path(path)
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):  # splitlines() would also cut inside a text, at U+2028
        try:
            if line.strip():
                rows.append(json.loads(line))
                if not isinstance(rows[-1], dict):
                    raise ValueError(f"expected an object, found {type(rows[-1]).__name__}")
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is damaged: line {number} is not valid JSON ({error}); remove the line, then try again") from None
    return rows


def read_array(path: Path, shape: tuple[int, int] | None) -> np.ndarray:
    """(N, O) float32: the numbers in an .npy file. `shape` None: of any N and O.

    Raises:
        UserError: it is missing or damaged, has another shape than `shape`, or holds what is no finite number.
    """
    import numpy as np

    try:
        with open(path, "rb") as file:
            if file.read(6) != b"\x93NUMPY":
                raise ValueError("no .npy file")
        stored = np.load(path, mmap_mode="r", allow_pickle=False)  # mapped: a header may claim more than memory holds
        fits = stored.ndim == 2 and stored.dtype.kind == "f" and shape in (None, stored.shape)
        values = np.array(stored, dtype=np.float32) if fits else None
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (OSError, ValueError, EOFError, SyntaxError, TypeError, LookupError, OverflowError, MemoryError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    if values is None:
        found = f"{stored.dtype} of shape {stored.shape}"
        raise UserError(
            f"{path} holds {found}, expected decimal numbers of shape {shape or '(rows, outputs)'}: not of this run, or damaged"
        )
    if bad := int((~np.isfinite(values)).sum()):
        row = int(np.argwhere(~np.isfinite(values))[0, 0]) + 1
        raise UserError(f"{path} holds {bad} values that are no finite numbers (nan or inf), the first in row {row}: it is damaged")
    return values


def sha256(path: Path) -> str:
    """The file's SHA-256 as 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def set_aside(paths: Iterable[Path], earlier_dir: Path) -> Path | None:
    """Move the existing ones of `paths` into a new folder `earlier_dir/<time>/`, which is returned; None when none exists."""
    existing = [Path(path) for path in paths if os.path.lexists(path)]
    if not existing:
        return None
    target = versioned(Path(earlier_dir) / datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))
    target.mkdir(parents=True)
    for path in existing:
        shutil.move(path, versioned(target / path.name))
    return target


def versioned(path: Path) -> Path:
    """`path`, or the first of `path-2`, `path-3`, ... (before the suffix) that does not exist yet."""
    path, number = Path(path), 2
    candidate = path
    while os.path.lexists(candidate):
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
        number += 1
    return candidate


def human_size(num_bytes: float) -> str:
    """A size in bytes as a short text: 3.8 GB, 612 MB, 9 kB (powers of 1000)."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= scale:
            value = num_bytes / scale
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{num_bytes:.0f} B"


def human_time(seconds: float) -> str:
    """A duration as a short text: 12h03m, 4m10s, 9 s."""
    seconds = round(seconds)
    if seconds >= 3600:
        return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
    if seconds >= 60:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds} s"
