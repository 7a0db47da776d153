"""Turn a download (a folder, an archive, a file) into one folder of plain files, unpacked at any depth;
originals are kept.
"""

from __future__ import annotations

import filecmp
import os
import re
import shutil
from pathlib import Path

from tqdm import tqdm

from pipeline.competition.folders import IMAGE_SUFFIXES, is_hidden, plain_name, suffix_of
from pipeline.errors import UserError, raise_all
from pipeline.fetch.archives import check_room
from pipeline.fetch.budget import Budget, TooMuch
from pipeline.fetch.packed import NOT_UNPACKED, packed_suffix, unpack
from pipeline.fetch.pieces import join, whole_runs
from pipeline.wording import counted, listed

PIECE = re.compile(r"\.(7z|zip|rar|tar)\.\d{2,3}$|\.z\d\d$|\.part\d+\.rar$", re.IGNORECASE)
# People edit and save these small files, so they are copied: saving a hard link would change the original
# too.
COPIED = frozenset(".csv .tsv .json .jsonl .txt .md .yaml .yml .xml .xls .xlsx .parquet .py .ipynb".split())

THERE = " is there already"  # end of the reason why an archive was not unpacked
TELLING = frozenset(".csv .tsv .json .parquet .npy .npz .bson .h5 .hdf5 .tfrec .tfrecord .tfrecords".split())


def stage(source: Path, target: Path) -> list[str]:
    """Fill the new folder `target` with the content of `source`, unpacked.

    Returns a line for each thing left packed.

    Files are hard-linked where the file system allows it, else copied; at the end `own_tables` makes copies
    of tables.

    Raises:
        UserError: an archive is damaged, unsafe or too large, something cannot be read, or the disk is too
            small.
    """
    target.mkdir(parents=True)
    budget = None
    if source.is_dir():
        notes = _stage_folder(source, target)
    elif not packed_suffix(source.name):
        _place(source, target / source.name)
        notes = []
    else:
        target.rmdir()
        budget = Budget(source.name, source.stat().st_size)
        unpack(source, target, budget)
        notes = _unpack_below(target, "", budget, 1)
    notes += _join_pieces(target, budget)
    foreign = [_shown(path, target) for path in _files(target) if path.name.lower().endswith(NOT_UNPACKED)]
    pieces = [_shown(path, target) for path in _files(target) if PIECE.search(path.name)]
    if foreign:
        notes.append(f"stays packed, unpack it with another tool: {listed(foreign)}")
    if pieces:
        notes.append(
            f"pieces of an archive are left as they are, join them first (7z x does it): {listed(pieces)}"
        )
    return notes


def _join_pieces(target: Path, budget: Budget | None) -> list[str]:
    """Join numbered pieces of archives and unpack them in place; returns a line for each.

    `budget`: of the archive around them.
    """
    notes: list[str] = []
    for whole, pieces in whole_runs(_files(target)).items():
        shown = _shown(whole, target)
        join(whole, pieces)
        spent = budget or Budget(shown, whole.stat().st_size)
        problem, _ = _unpack_beside(whole, whole.parent, shown, spent, 1, notes)
        if problem:
            notes.append(f"{shown}, joined from {counted(len(pieces), 'piece')}, stays packed: {problem}")
        else:
            notes.append(f"{shown} joined from {counted(len(pieces), 'piece')} and unpacked")
            whole.unlink()
    return notes


def _stage_folder(source: Path, target: Path) -> list[str]:
    plain, archives, notes = _walked(source)
    check_room(target, 0 if _can_link(source, target) else sum(path.stat().st_size for path in plain))
    for path in tqdm(plain, unit="file", desc="taking over", disable=None):
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        _place(path, place)
    problems = []
    for path in archives:
        place = target / path.relative_to(source).parent
        place.mkdir(parents=True, exist_ok=True)
        budget, shown = Budget(_shown(path, source), path.stat().st_size), _shown(path, source)
        try:
            problem, missing = _unpack_beside(path, place, shown, budget, 0, notes)
        except TooMuch:
            raise
        except UserError as error:
            problems.append(f"{error}")
            continue
        if missing:
            problems.append(
                f"{shown} holds {counted(len(missing), 'file')} that are missing in the folder "
                f"{problem.removesuffix(THERE)!r} beside it ({listed(missing)}): was it unpacked only "
                "partly? Move one of the two away"
            )
        elif problem:
            notes.append(
                f"{shown} not unpacked: {problem}, with all its files"
                if problem.endswith(THERE)
                else f"{shown} left out: {problem}"
            )
    raise_all(
        problems,
        f"{source} is not complete; fix this, or move it out of the folder, and run the command again:",
    )
    return notes


def _walked(source: Path) -> tuple[list[Path], list[Path], list[str]]:
    """Return sorted plain files and archives below `source`, and notes on the rest.

    Links are followed, hidden names skipped. In each folder of `source`, a link to a folder that was read
    there already is left out, as `competition.folders.scan` does.
    """
    plain: list[Path] = []
    archives: list[Path] = []
    odd: list[str] = []
    again: list[str] = []
    seen: set[tuple[str, int, int]] = set()

    def stop(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}")

    own = os.stat(source)
    for folder, folders, names in os.walk(source, followlinks=True, onerror=stop):
        status, shown = os.stat(folder), _shown(Path(folder), source)
        key = (shown.split("/")[0], status.st_dev, status.st_ino)
        if key in seen or ((status.st_dev, status.st_ino) == (own.st_dev, own.st_ino) and shown != "."):
            again.append(shown)
            folders.clear()
            continue
        seen.add(key)
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        for name in sorted(names):
            path = Path(folder, name)
            if is_hidden(name):
                continue
            if not path.is_file():
                odd.append(_shown(path, source))
            else:
                (archives if packed_suffix(name) else plain).append(path)
    notes = [f"left out, not readable as a file: {listed(odd)}"] if odd else []
    notes += [f"left out, links to folders that were read already: {listed(again)}"] if again else []
    return plain, archives, notes


def _can_link(source: Path, target: Path) -> bool:
    return os.stat(source).st_dev == os.stat(target).st_dev


def _place(path: Path, place: Path) -> None:
    try:
        os.link(os.path.realpath(path), place)
    except OSError:  # another disk, or a file system without hard links
        shutil.copy2(path, place)


def _unpack_below(folder: Path, prefix: str, budget: Budget, depth: int) -> list[str]:
    """Unpack the archives below `folder` in place, and those inside them; returns a line for each that stays
    packed.
    """
    notes: list[str] = []
    for path in [path for path in _files(folder) if packed_suffix(path.name)]:
        budget.descend(depth)
        shown = prefix + _shown(path, folder)
        try:
            problem, _ = _unpack_beside(path, path.parent, shown, budget, depth, notes)
        except TooMuch:
            raise
        except UserError as error:
            problem = " ".join(str(error).replace(str(path), path.name).split())
        if problem:
            notes.append(f"{shown} stays packed: {problem}")
        else:
            path.unlink()
    return notes


def _unpack_beside(
    path: Path, place: Path, shown: str, budget: Budget, depth: int, notes: list[str]
) -> tuple[str, list[str]]:
    """Unpack an archive into the folder `place`: train.zip becomes train/, train.csv.zip becomes train.csv.

    Returns why it was not unpacked ("" if it was), and the files in it that the existing folder of that name
    lacks.
    """
    stem = path.name[: -len(packed_suffix(path.name))]
    fresh = place / f".{path.name}.new"
    try:
        unpack(path, fresh, budget)
        inner = _unpack_below(fresh, f"{shown}/", budget, depth + 1)
        inside = list(fresh.iterdir()) if fresh.exists() else []
        alone = inside[0] if len(inside) == 1 and _needs_no_folder(inside[0], stem, place) else None
        content, goal = (alone, place / alone.name) if alone else (fresh, place / stem)
        if not inside or goal.exists():
            missing = (
                [name for name in _names(content) if not (goal / name).exists()] if goal.is_dir() else []
            )
            return (f"{goal.name}{THERE}" if inside else "it is empty"), missing
        content.rename(goal)
        notes += inner
        return "", []
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _needs_no_folder(only: Path, stem: str, place: Path) -> bool:
    """Return True if the only entry of an archive needs no folder around it: it has the archive's name, or is
    a table whose place is free.

    For an image, the archive's name may be its class or its part of the data.
    """
    if only.name == stem:
        return True
    if not only.is_file() or suffix_of(only.name) not in COPIED:
        return False
    there = place / only.name
    return not there.exists() or (there.is_file() and filecmp.cmp(only, there, shallow=False))


def _names(content: Path) -> list[str]:
    return [_shown(path, content) for path in _files(content)] if content.is_dir() else []


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _shown(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def unwrap(root: Path) -> str:
    """Remove a folder that wraps the whole competition. Returns a line that says so, empty if there was none.

    A wrapper is recognised by its content: a table, or folders for training and test. Class folders alone are
    kept: they may be the intended content of `root`.
    """
    line = ""
    while True:
        entries = [entry for entry in root.iterdir() if not is_hidden(entry.name)]
        if len(entries) != 1 or not entries[0].is_dir() or not _wraps(entries[0]):
            return line
        place = root.with_name(f"{root.name}.wrapping")
        shutil.rmtree(place, ignore_errors=True)  # left by a killed command
        wrapping = entries[0].rename(place)
        shutil.rmtree(root)
        wrapping.rename(root)
        line = f"everything was in {entries[0].name}/, which is left out"


def _wraps(folder: Path) -> bool:
    inside = [entry for entry in folder.iterdir() if not is_hidden(entry.name)]
    if any(entry.is_file() and suffix_of(entry.name) in TELLING for entry in inside):
        return not plain_name(folder.name).startswith(("train", "test"))
    parts = {
        part
        for entry in inside
        if entry.is_dir()
        for part in ("train", "test")
        if part in plain_name(entry.name)
    }
    return bool(parts) or (len(inside) == 1 and inside[0].is_dir() and _wraps(inside[0]))


def own_tables(root: Path) -> None:
    """Replace hard-linked tables and texts below `root` by copies, so that saving them does not change the
    originals.
    """
    for path in _files(root):
        if (
            suffix_of(path.name) in COPIED
            and suffix_of(path.name) not in IMAGE_SUFFIXES
            and path.stat().st_nlink > 1
        ):
            copy = path.with_name(f".{path.name}.own")
            shutil.copy2(path, copy)
            os.replace(copy, path)
