"""Write files completely or not at all, move a user's files aside, compute digests."""

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
STALE_SECONDS = 3600  # a temporary file that was not written for this time was left by a killed process
PART_DIR = ".part-"  # prefix of folders of temporary files


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`.

    When the block ends without an error, the file there replaces `path`. The file is flushed to disk before
    `os.replace`, so after a power cut `path` holds the old or the new bytes, never a part. If `path` is a
    link, the file it points to is replaced, and the link stays.

    Raises:
        UserError: `path` is a folder, a device or a pipe.
    """
    path = replaceable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    start = f".{path.name[:40]}."  # a long name would exceed the disk's limit
    for old in path.parent.glob(f"{glob.escape(start)}*.part"):
        _remove_stale(old)
    handle, name = tempfile.mkstemp(prefix=start, suffix=".part", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _flush(temporary)
        # mkstemp makes files private; set the permissions that open() would give.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
        _flush_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def replaceable(path: Path) -> Path:
    """Return the file that writing to `path` would create or replace: `path` itself, or the end of a link.

    Raises:
        UserError: there is something that is not a file.
    """
    path = Path(path)
    real = Path(os.path.realpath(path)) if path.is_symlink() else path
    try:
        # /dev/stdout may point to `pipe:[123]`, which is not a path
        found = path.stat() if path.exists() else real.lstat()
        mode = found.st_mode
    except (FileNotFoundError, NotADirectoryError):
        return real
    if not stat.S_ISREG(mode):
        kinds = {
            stat.S_IFDIR: "a folder",
            stat.S_IFIFO: "a pipe",
            stat.S_IFCHR: "a device",
            stat.S_IFBLK: "a device",
        }
        kind = kinds.get(stat.S_IFMT(mode), "not a file")
        raise UserError(f"{path} is {kind} and is not replaced: name a file")
    return real


def check_place(path: Path, how_else: str = "name another place") -> Path:
    """Return `path` after checking that a file can be written there: before hours of work, not afterwards.

    Raises:
        UserError: there is something that is not a file, a file where a folder is needed, or the user may not
            write there.
    """
    path = Path(path)
    folder = next(place for place in replaceable(path).absolute().parents if os.path.lexists(place))
    if not folder.is_dir():
        raise UserError(f"{folder} is a file, but {path} needs a folder there: {how_else}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(
            f"{path} cannot be written: you may not write to {folder} (read-only, or another user's): "
            f"{how_else}"
        )
    return path


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder inside `folder`.

    When the block ends, its files are flushed and moved into `folder`. Each file appears completely or not at
    all, in the order of their names: configs before weights.
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
    """Remove the temporary files of killed writers from `folder` and its folders.

    Only for the holder of the folder's lock (see pipeline/lock.py).
    """
    for place, folders, names in os.walk(folder):
        for name in folders:
            if name.startswith(PART_DIR):
                shutil.rmtree(Path(place) / name, ignore_errors=True)
        # Such as downloads, which may be resumed
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.startswith(".") and name.endswith(".part"):
                (Path(place) / name).unlink(missing_ok=True)


def _remove_stale(path: Path) -> None:
    with suppress(OSError):
        if time.time() - path.stat().st_mtime > STALE_SECONDS:
            path.unlink()


def _flush(path: Path) -> None:
    with open(path, "r+b") as written:  # Windows flushes only files opened for writing
        os.fsync(written.fileno())


def _flush_folder(folder: Path) -> None:
    """Flush renames in `folder`, so that they survive a power cut, if the system can."""
    if os.name != "posix":
        return
    with suppress(OSError):  # some network drives cannot
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically, with its own line ends."""
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Return the value in a JSON file.

    Raises:
        UserError: the file is missing or not JSON; the message names the file and the position.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except ValueError as error:  # of JSON, of UTF-8, or a number of thousands of digits
        raise UserError(f"{path} is not valid JSON: {error}") from None
    except RecursionError:
        raise UserError(f"{path} is not valid JSON: too many levels of nested lists or objects") from None


def write_json_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object per line, atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def read_yaml(path: Path, *, as_texts: bool = False) -> Any:
    """Return the value in a YAML file.

    `as_texts`: every value is the text as written (`yes`, `0012`), not converted by YAML.

    Raises:
        UserError: it is missing, too large for a hand-written file, not YAML, or uses aliases (with them a
            few lines can stand for billions of values).
    """
    import yaml

    path = Path(path)
    try:
        if path.stat().st_size > MAX_YAML_BYTES:
            raise UserError(
                f"{path}: {human_size(path.stat().st_size)}, the limit is {human_size(MAX_YAML_BYTES)}"
            )
        text = path.read_text(encoding="utf-8")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
            raise UserError(f"{path}: YAML aliases (*name) are not supported: write the value instead")
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
    """Return the objects of a JSON-lines file, in order; [] when there is no such file.

    Raises:
        UserError: a line is not JSON, or not an object; the message names the file and the line.
    """
    path = Path(path)
    if not path.exists():
        return []
    rows = []
    # splitlines() would also split a text at U+2028
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        try:
            if line.strip():
                rows.append(json.loads(line))
                if not isinstance(rows[-1], dict):
                    raise ValueError(f"expected an object, found {type(rows[-1]).__name__}")
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path} is damaged: line {number} is not valid JSON ({error}); remove the line, then try "
                "again"
            ) from None
    return rows


def read_array(path: Path, shape: tuple[int, int] | None) -> np.ndarray:
    """Return the numbers in an .npy file, (N, O) float32. `shape` None: any N and O.

    Raises:
        UserError: it is missing or damaged, has another shape, or holds NaN or infinity.
    """
    import numpy as np

    try:
        with open(path, "rb") as file:
            if file.read(6) != b"\x93NUMPY":
                raise ValueError("not an .npy file")
        # memory-mapped: a damaged header may state more than fits into memory
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
        fits = stored.ndim == 2 and stored.dtype.kind == "f" and shape in (None, stored.shape)
        values = np.array(stored, dtype=np.float32) if fits else None
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (
        OSError,
        ValueError,
        EOFError,
        SyntaxError,
        TypeError,
        LookupError,
        OverflowError,
        MemoryError,
    ) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    if values is None:
        found = f"{stored.dtype} of shape {stored.shape}"
        raise UserError(
            f"{path} holds {found}, expected floats of shape {shape or '(rows, outputs)'}: not of this run, "
            "or damaged"
        )
    if bad := int((~np.isfinite(values)).sum()):
        row = int(np.argwhere(~np.isfinite(values))[0, 0]) + 1
        raise UserError(
            f"{path} holds {bad} values that are not finite (nan or inf), the first in row {row}: it is "
            "damaged"
        )
    return values


def write_array(path: Path, values: np.ndarray) -> None:
    """Write (N, O) numbers as an .npy file of float32, atomically."""
    import numpy as np

    with replacing(path) as temporary, open(temporary, "wb") as file:  # np.save adds .npy to other names
        np.save(file, values.astype(np.float32))


def sha256(path: Path) -> str:
    """Return the file's SHA-256 as 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def checked_copy(path: Path, digest: str) -> Iterator[Path]:
    """Yield a private copy of a file, with the same name, whose content has the SHA-256 `digest`.

    What is sent from it is what was checked, even if the file changes meanwhile. It is removed afterwards.

    Raises:
        UserError: the file has another content than `digest` says, or cannot be copied.
    """
    with tempfile.TemporaryDirectory(prefix="checked-") as folder:
        copy = Path(folder) / path.name
        try:
            shutil.copyfile(path, copy)
        except OSError as error:
            raise UserError(
                f"{path} cannot be copied to {folder} ({error.strerror or error}); nothing was sent: free "
                "space there or set TMPDIR, then run the same command again"
            ) from None
        if sha256(copy) != digest:
            raise UserError(
                f"{path} was changed after it was checked; nothing was sent: run the same command again"
            )
        yield copy


def set_aside(paths: Iterable[Path], earlier_dir: Path) -> Path | None:
    """Move the existing ones of `paths` into a new folder `earlier_dir/<time>/` and return it.

    None when none exists.
    """
    existing = [Path(path) for path in paths if os.path.lexists(path)]
    if not existing:
        return None
    target = versioned(Path(earlier_dir) / datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))
    target.mkdir(parents=True)
    for path in existing:
        shutil.move(path, versioned(target / path.name))
    return target


def versioned(path: Path) -> Path:
    """Return `path`, or the first of `path-2`, `path-3`, ... (before the suffix) that does not exist yet."""
    path, number = Path(path), 2
    candidate = path
    while os.path.lexists(candidate):
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
        number += 1
    return candidate


def human_size(num_bytes: float) -> str:
    """Return a size in bytes as a short text: 3.8 GB, 612 MB, 9 kB (powers of 1000)."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        value = num_bytes / scale
        if value >= 0.9995:  # 999,600 bytes are 1.0 MB, not 1000 kB
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{num_bytes:.0f} B"


def human_time(seconds: float) -> str:
    """Return a duration as a short text: 12h03m, 4m10s, 9 s."""
    seconds = round(seconds)
    if seconds >= 3600:
        return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
    if seconds >= 60:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds} s"
