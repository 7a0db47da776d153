"""Facts of images on disk, so that a look that was stopped goes on, and the next one measures new and changed files alone.

An SQLite file: a process killed at any time leaves what was committed. A file counts as unchanged while its size and time of change are.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, fields
from pathlib import Path

import numpy as np

from pipeline.data.images import DECODERS
from pipeline.data.intensity import Intensity
from pipeline.look.image_facts import GREY_PX, ImageFacts

FILE = "facts.sqlite"
VERSION = 2
COLUMNS = tuple(field.name for field in fields(ImageFacts))
READ = tuple(name for name in COLUMNS if name != "grey")  # the small copies are asked for when they are compared
AT_ONCE = 500  # names in one question


class FactStore:
    """The facts in `folder`, as they were measured by these decoders and with this rule for deep images; others are dropped."""

    def __init__(self, folder: Path, intensity: Intensity | None) -> None:
        self.path = folder / FILE
        folder.mkdir(parents=True, exist_ok=True)
        made_by = f"{VERSION}, {DECODERS}, {intensity}"
        try:
            self._open(made_by)
        except sqlite3.DatabaseError:  # damaged, or no such file: it holds nothing that cannot be measured again
            self._database.close()
            self.path.unlink()
            self._open(made_by)

    def _open(self, made_by: str) -> None:
        self._database = sqlite3.connect(self.path)
        self._database.execute("pragma synchronous = off")  # a power cut may cost the file, which is only a memo
        self._database.execute("create table if not exists made (by text)")
        stored = self._database.execute("select by from made").fetchone()
        if stored != (made_by,):
            self._database.executescript("drop table if exists images; drop table if exists digests; delete from made")
            self._database.execute("insert into made values (?)", (made_by,))
        self._database.execute(f"create table if not exists images ({', '.join(COLUMNS)}, modified, primary key (path)) without rowid")
        self._database.execute("create table if not exists digests (path, num_bytes, modified, digest, primary key (path)) without rowid")
        self._database.commit()

    def known(self, paths: Sequence[Path]) -> dict[Path, ImageFacts]:
        """The facts (without `grey`) of those `paths` that were measured and have not changed since."""
        wanted = {str(path): path for path in paths}
        found = {}
        for row in self._rows(f"select modified, {', '.join(READ)} from images", list(wanted)):
            facts = ImageFacts(**dict(zip(READ, row[1:], strict=True)) | {"turned": bool(row[1 + READ.index("turned")])})
            if (facts.num_bytes, row[0]) == stamp(facts.path):
                found[wanted[facts.path]] = facts
        return found

    def add(self, several: Iterable[ImageFacts]) -> None:
        """Keep these facts from now on."""
        marks = ", ".join("?" * (len(COLUMNS) + 1))
        rows = [(*astuple(facts), stamp(facts.path)[1]) for facts in several]
        self._database.executemany(f"insert or replace into images values ({marks})", rows)
        self._database.commit()

    def greys(self, paths: Sequence[str]) -> np.ndarray:
        """(N, GREY_PX, GREY_PX) uint8: the small copies of images that can be decoded, in the order of `paths`."""
        found = {path: np.frombuffer(grey, np.uint8) for path, grey in self._rows("select path, grey from images", list(set(paths)))}
        return np.stack([found[path] for path in paths]).reshape(-1, GREY_PX, GREY_PX)

    def digests(self, paths: Sequence[str]) -> dict[str, str]:
        """The SHA-256 of those `paths` of which it is known and that have not changed since."""
        rows = self._rows("select path, num_bytes, modified, digest from digests", paths)
        return {path: digest for path, num_bytes, modified, digest in rows if (num_bytes, modified) == stamp(path)}

    def add_digests(self, digests: dict[str, str]) -> None:
        """Keep these digests from now on."""
        rows = [(path, *stamp(path), digest) for path, digest in digests.items()]
        self._database.executemany("insert or replace into digests values (?, ?, ?, ?)", rows)
        self._database.commit()

    def close(self) -> None:
        """Give the file back."""
        self._database.close()

    def _rows(self, question: str, paths: Sequence[str]) -> Iterator[tuple]:
        for start in range(0, len(paths), AT_ONCE):
            part = list(paths[start : start + AT_ONCE])
            yield from self._database.execute(f"{question} where path in ({', '.join('?' * len(part))})", part)


def stamp(path: str) -> tuple[int, int]:
    """(bytes, time of change in ns) of a file; zeros where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns
