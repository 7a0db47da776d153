"""List the content of a data folder (images, tables, archives) and build the errors for missing files."""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Literal

from pipeline.competition.parts import FOREIGN, Parts
from pipeline.errors import UserError, raise_all
from pipeline.files import read_json
from pipeline.run_names import FOLDS_START, PAGE, RECORD, START
from pipeline.wording import counted, listed, natural_key

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".jfif", ".jpe")
)
UNREAD_SUFFIXES = frozenset(
    ".heic .heif .avif .jp2 .j2k .jxl .psd .svg .dcm .nii .npy .h5 .hdf5 .hdf .raw .tfrec .tga .ppm .pgm "
    ".pbm .pnm .exr .hdr .cr2 .nef .dng".split()
)
ARCHIVE_SUFFIXES = frozenset((".zip", ".tar", ".tgz", ".gz", ".7z", ".rar"))
TABLE_SUFFIXES = (".csv", ".tsv")  # also compressed: train.csv.zip, train.csv.gz
TEXT_SUFFIXES = (".txt", ".lst", ".jsonl", ".ndjson", ".manifest")
SEEN_SUFFIXES = tuple(".xlsx .xls .ods .parquet .feather .pkl .mat .xml .yaml .yml".split())
LABEL_SUFFIXES = (".cls", ".label", ".labels", ".data", ".rec", ".idx", ".npz", ".xlsm", ".numbers", ".db")
ARRIVING = "arriving.json"  # exists in a hidden folder while `make data` moves a competition in
JUNK_FOLDERS = ("__macosx", "@eadir", "lost+found", "__pycache__")


@dataclass
class Scan:
    """The content of one folder. Paths are sorted, relative to the data folder, with `/` as separator."""

    images: list[str] = field(default_factory=list)
    archives: list[str] = field(default_factory=list)
    without_images: list[str] = field(default_factory=list)  # innermost folders that hold no image
    broken_links: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)  # links to a folder that was read already
    # suffix -> number of images in an unsupported format
    unread: Counter[str] = field(default_factory=Counter)
    # suffix, or name without suffix -> number of unknown files
    others: Counter[str] = field(default_factory=Counter)
    tables: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)  # files of lines, which may be tables
    json_files: list[str] = field(default_factory=list)
    # unsupported files that may hold labels: .xlsx, .parquet, ...
    seen: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class DataFolder:
    """The content of a data folder on disk."""

    root: Path
    tables: tuple[str, ...]  # names of the tables directly in the data folder
    archives: tuple[str, ...]
    json_files: tuple[str, ...]
    scans: dict[str, Scan]  # sub-folder -> its content; "" -> files directly in the data folder
    parts: Parts = field(default_factory=lambda: Parts({}, frozenset()))

    def images(self, names: Iterable[str]) -> list[str]:
        """Return the images of several sub-folders."""
        return [image for name in names for image in self.scans[name].images]

    def named(self, beginning: str) -> list[str]:
        """Return sub-folders with images whose names begin so: `train` finds train/, train_images/, Training
        Set/.
        """
        return [
            name for name in self.scans if plain_name(name).startswith(beginning) and self.scans[name].images
        ]

    def of_part(self, *parts: str) -> list[str]:
        """Return the images of these parts: "train", "test", "val"; "" stands for images of no part."""
        return [
            image for found in self.scans.values() for image in found.images if self.parts.of(image) in parts
        ]

    def files(self, kind: Literal["tables", "texts", "json_files", "seen"]) -> list[str]:
        """Return the files of one kind at any depth, upper folders first, without those of other
        competitions.
        """
        found = [
            path
            for scan in self.scans.values()
            for path in getattr(scan, kind)
            if self.parts.of(path) != FOREIGN
        ]
        return sorted(found, key=lambda path: (path.count("/"), natural_key(path)))

    @property
    def unread(self) -> list[str]:
        """The numbers of images in formats that are not read: `3 .tga files`."""
        found = sum((scan.unread for scan in self.scans.values()), Counter())
        return [counted(count, f"{suffix} file") for suffix, count in found.items()]

    def tables_called(self, names: Sequence[str]) -> list[Path]:
        """Return the tables with one of these names, ignoring case and separators."""
        return [self.root / name for name in self.tables if plain_name(name) in names]


def look(root: Path, with_images: bool = True) -> DataFolder:
    """List the content of the data folder `root`. `with_images=False` skips its sub-folders.

    Raises:
        UserError: `root` is not a folder, or something in it cannot be read.
    """
    if not root.is_dir():
        if not root.exists():
            raise UserError(
                f"{root} does not exist: unpack the competition's files there, or name another folder with "
                "--data DIR"
            )
        unpack = f"unpack it ({unpack_command(root)}) and name" if is_archive(root.name) else "name"
        raise UserError(f"{root} is a file: {unpack} the competition's folder with --data DIR")
    _check_arrived(root)
    sub_folders, entries = list_folder(root)
    scans = {name: scan(root, name) for name in sub_folders} if with_images else {}
    own = scans[""] = Scan()
    for entry in entries:
        _sort_in(own, entry, entry.name)
    for paths in (own.images, own.tables, own.archives, own.json_files, own.texts, own.seen):
        paths.sort(key=natural_key)
    for found in scans.values():
        _without_twins(found)
    parts = Parts.read({name: found.images for name, found in scans.items()})
    return DataFolder(root, tuple(own.tables), tuple(own.archives), tuple(own.json_files), scans, parts)


def _check_arrived(root: Path) -> None:
    """Raise if `make data` was interrupted while moving files into `root`: the folder would look complete."""
    for note in root.glob(f".*/{ARRIVING}"):
        value = read_json(note)
        command = value.get("command") if isinstance(value, dict) else "the same make data command"
        raise UserError(
            f"{root} holds only a part of its competition: `make data` was interrupted; finish it with: "
            f"{command}"
        )


def scan(root: Path, folder: str) -> Scan:
    """List everything under `root/folder`, at any depth.

    A link to a folder that was read already is not followed.
    """
    found = Scan()
    read: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        relative = waiting.pop()
        status = os.stat(os.path.join(root, relative))
        if (status.st_dev, status.st_ino) in read:
            found.repeated.append(relative)
            continue
        read.add((status.st_dev, status.st_ino))
        names, entries = list_folder(root, relative)
        waiting += [f"{relative}/{name}" for name in reversed(names)]
        num_before = len(found.images)
        for entry in entries:
            _sort_in(found, entry, f"{relative}/{entry.name}")
        if not names and len(found.images) == num_before:
            found.without_images.append(relative)
    for paths in (
        found.images,
        found.archives,
        found.broken_links,
        found.tables,
        found.texts,
        found.json_files,
        found.seen,
    ):
        paths.sort()
    return found


def _without_twins(found: Scan) -> None:
    """Drop the compressed copy of a table that also lies there uncompressed."""
    plain = set(found.tables)
    found.tables = [
        path for path in found.tables if path.endswith(TABLE_SUFFIXES) or path.rpartition(".")[0] not in plain
    ]


def _sort_in(found: Scan, entry: os.DirEntry[str], relative: str) -> None:
    suffix = suffix_of(entry.name)
    if suffix in IMAGE_SUFFIXES:
        (found.images if _leads_to(entry.is_file) else found.broken_links).append(relative)
    elif is_table(entry.name) and _leads_to(entry.is_file):
        found.tables.append(relative)
    elif suffix == ".json":
        found.json_files.append(relative)
    elif suffix in TEXT_SUFFIXES:
        found.texts.append(relative)
    elif suffix in SEEN_SUFFIXES:
        found.seen.append(relative)
    elif suffix in ARCHIVE_SUFFIXES:
        found.archives.append(relative)
    elif suffix in UNREAD_SUFFIXES:
        found.unread[suffix] += 1
    else:
        found.others[suffix or entry.name] += 1


def list_folder(root: Path, relative: str = "") -> tuple[list[str], list[os.DirEntry[str]]]:
    """Return the sorted names of the sub-folders of one folder, and its other entries. Hidden names and run
    folders are left out.

    Raises:
        UserError: the folder cannot be read, or a name in it is not valid UTF-8.
    """
    folders, others = [], []
    try:
        with os.scandir(os.path.join(root, relative)) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                if not entry.name.isascii():
                    _check_locale(root, relative, entry.name)
                    entry.name.encode("utf-8")
                if _leads_to(entry.is_dir):
                    if not _is_run(entry.path):
                        folders.append(entry.name)
                else:
                    others.append(entry)
    except UnicodeEncodeError as error:
        raise UserError(
            f"{root / relative}: the file name {os.fsencode(error.object)!r} is not valid UTF-8: rename that "
            "file"
        ) from None
    except OSError as error:
        raise UserError(f"{root / relative} cannot be read: {error.strerror}") from None
    return sorted(folders, key=natural_key), others


def _is_run(folder: str) -> bool:
    """Return True for a run folder: its rows are no table of labels, and its figures are no images."""
    has = {name: os.path.isfile(os.path.join(folder, name)) for name in (START, FOLDS_START, RECORD, PAGE)}
    return has[START] or has[FOLDS_START] or (has[RECORD] and has[PAGE])


def _check_locale(root: Path, relative: str, name: str) -> None:
    # With another encoding Python decodes file names wrongly, and ids and class names would be written wrong.
    encoding = sys.getfilesystemencoding()
    if encoding.lower().replace("-", "") != "utf8":
        where = os.fsencode(os.path.join(root, relative, name))
        raise UserError(
            f"file names are not ASCII ({where!r}) and this terminal's locale is {encoding}: export "
            "PYTHONUTF8=1"
        )


def _leads_to(kind: Callable[[], bool]) -> bool:
    try:
        return kind()
    except OSError:  # a link to itself, or into a folder without permission
        return False


def suffix_of(name: str) -> str:
    """Return the suffix in lower case, `.jpg` for `a.b.JPG`; empty without a dot."""
    return "." + name.rpartition(".")[2].lower() if "." in name else ""


def is_table(name: str) -> bool:
    """Return True for the name of a CSV or TSV file, compressed or not."""
    return re.search(r"\.(csv|tsv)(\.(gz|zip))?$", name.lower()) is not None


def is_hidden(name: str) -> bool:
    """Return True for names that are never data: `.DS_Store`, `._x.jpg`, `.git`, `__MACOSX`, ..."""
    return name.startswith(".") or name.lower() in JUNK_FOLDERS


def is_archive(name: str) -> bool:
    """Return True for the name of an archive (zip, tar, ...)."""
    return suffix_of(name) in ARCHIVE_SUFFIXES


def plain_name(name: str) -> str:
    """Return a name without case, separators and `.csv`: `sample_submission.csv` equals
    `SampleSubmission.CSV`.
    """
    return re.sub(r"[\s_.\-]+", "", re.sub(r"\.(csv|tsv)(\.(gz|zip))?$", "", name.casefold()))


def hide_command(root: Path, names: Sequence[str]) -> str:
    """Return the advice for two files or folders with one meaning: hide one, because hidden names are never
    read.
    """
    return f"keep one and hide the other, for example: {mv_command(root / names[-1])}"


def mv_command(path: Path) -> str:
    """Return the shell command that hides a file or folder."""
    return f"mv {quote(str(path))} {quote(str(path.with_name('.' + path.name)))}"


def unpack_command(root: Path) -> str:
    """Return the command that unpacks `root`, a folder or an archive, into a new folder beside it."""
    root = root if root.name else root.resolve()
    return _data_command(root, root.with_name(f"{root.name.split('.')[0] or root.name}-unpacked"))


def join_command(root: Path, channels: Sequence[str]) -> str:
    """Return the command that joins files of one channel each into images, in a new folder beside `root`."""
    root = root if root.name else root.resolve()
    into, given, number = root.with_name(f"{root.name}-rgb"), quote(",".join(channels)), 2
    while into.exists():
        into, number = root.with_name(f"{root.name}-rgb{number}"), number + 1
    command = _data_command(root, into)
    return f"{command} CHANNELS={given}" if command.startswith("make ") else f"{command} --channels {given}"


def _data_command(source: Path, into: Path) -> str:
    if re.search(r"[^\w@%+=:,./ -]", f"{source}{into}"):  # make would interpret such characters
        return f"python -m pipeline.fetch.install --from {quote(str(source))} --data {quote(str(into))}"
    return f"make data FROM={quote(str(source))} DATA={quote(str(into))}"


def check_whole(folder: DataFolder, names: Iterable[str]) -> None:
    """Check that the sub-folders `names` are complete.

    Raises:
        UserError: they hold archives that were not unpacked, or broken links.
    """
    scans = [folder.scans[name] for name in names]
    packed = _packed(folder.root, [path for scan in scans for path in scan.archives])
    broken = [path for scan in scans for path in scan.broken_links]
    problems = []
    if packed:
        problems.append(f"{listed(packed)} not unpacked: {unpack_command(folder.root)}")
    if broken:
        problems.append(f"{counted(len(broken), 'link')} to a file that cannot be read: {listed(broken)}")
    raise_all(problems, f"{folder.root} is not complete:")


def find_file(file: str, root: Path) -> Path | None:
    """Return the path as given, or else inside the data folder `root`; None if neither is a file."""
    return next((place for place in (Path(file), root / file) if place.is_file()), None)


def named_file(key: str, file: str, root: Path, expected: str) -> Path:
    """Return the file of recipe key `key`: the path as given, or else inside the data folder `root`.

    Raises:
        UserError: neither path exists; `expected` describes the file in the message.
    """
    if found := find_file(file, root):
        return found
    nor = f", nor does {root / file}" if root / file != Path(file) else ""
    raise UserError(f"{key}: {file} does not exist{nor}; it should be {expected}")


def absent(folder: DataFolder, what: str, wanted: str) -> UserError:
    """Build the error for missing data: what was expected, what the folder holds instead, and the command
    that helps.
    """
    root = folder.root
    seen = [f"{name}/ ({counted(len(scan.images), 'image')})" for name, scan in folder.scans.items() if name]
    loose = len(folder.scans[""].images)
    seen += [
        *folder.tables,
        *folder.archives,
        *folder.json_files,
        *([counted(loose, "loose image")] if loose else []),
    ]
    lines = [f"{root}: no {what}: {wanted}", f"  found there: {', '.join(seen) or 'nothing'}"]
    packed = _packed(root, [path for scan in reversed(folder.scans.values()) for path in scan.archives])
    lines += [f"  {path} is not unpacked: {unpack_command(root)}" for path in packed[:5]]
    for name, found in folder.scans.items():
        inner = {image.split("/")[1] for image in found.images if image.count("/") > 1}
        if not plain_name(name).startswith(("train", "test")) and any(
            plain_name(part).startswith(("train", "test")) for part in inner
        ):
            lines.append(
                f"  {name}/ looks like a competition folder itself: --data {quote(str(root / name))}"
            )
    if not_read := folder.files("seen"):
        lines.append(
            f"  not read: {listed(not_read)}; if the images or labels are in there, convert them to .jpg or "
            ".png and .csv"
        )
    lines += [
        f"  {files} in a format that is not read directly: {unpack_command(root)}" for files in folder.unread
    ]
    others = sum((found.others for found in folder.scans.values()), Counter())
    if any(found.images for found in folder.scans.values()):  # beside images, other files may be the labels
        others = Counter({name: count for name, count in others.items() if name in LABEL_SUFFIXES})
    if others:
        shown = listed(
            f"{counted(count, 'file')} {name}" if name.startswith(".") else name
            for name, count in others.most_common()
        )
        lines.append(f"  of unknown kind: {shown}")
    return UserError("\n".join(lines))


def _packed(root: Path, archives: Iterable[str]) -> list[str]:
    """Return the archives without an unpacked folder of the same name beside them."""
    return [path for path in archives if not (root / path).with_suffix("").is_dir()]
