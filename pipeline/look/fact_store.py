"""Store the facts of images on disk, so that a stopped look continues and a later one measures only new and
changed files.

The store is an SQLite file: committed facts survive a kill. A file is unchanged while its size and time of
change are.
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
from pipeline.errors import UserError
from pipeline.look.image_facts import GREY_PX, ImageFacts

FILE = "facts.sqlite"
VERSION = 2
COLUMNS = tuple(field.name for field in fields(ImageFacts))
READ = tuple(name for name in COLUMNS if name != "grey")  # the grey copies are read only for comparing images
AT_ONCE = 500  # paths in one query


class FactStore:
    """The store in `folder`, for these decoders and this intensity rule.

    Facts made with others are deleted.

    Raises:
        UserError: the file cannot be opened or written.
    """

    def __init__(self, folder: Path, intensity: Intensity | None, seconds: float = 5) -> None:
        """`seconds`: how long to wait for another command that writes the file."""
        self.path, self._seconds = folder / FILE, seconds
        self._database: sqlite3.Connection | None = None
        folder.mkdir(parents=True, exist_ok=True)
        made_by = f"{VERSION}, {DECODERS}, {intensity}"
        try:
            self._open(made_by)
        except sqlite3.DatabaseError as problem:
            self.close()
            self._check_free(problem)
            # Damaged, or not SQLite: everything in it can be measured again
            try:
                self.path.unlink()
                self._open(made_by)
            except (OSError, sqlite3.DatabaseError) as error:
                self.close()
                raise UserError(
                    f"{self.path} cannot be written ({error}): free some space, or name another --output"
                ) from None

    def _open(self, made_by: str) -> None:
        self._database = sqlite3.connect(self.path, timeout=self._seconds)
        # a power cut may damage the file, but it is only a cache
        self._database.execute("pragma synchronous = off")
        self._database.execute("create table if not exists made (by text)")
        stored = self._database.execute("select by from made").fetchone()
        if stored != (made_by,):
            self._database.executescript(
                "drop table if exists images; drop table if exists digests; delete from made"
            )
            self._database.execute("insert into made values (?)", (made_by,))
        self._database.execute(
            f"create table if not exists images ({', '.join(COLUMNS)}, modified, primary key (path)) without "
            "rowid"
        )
        self._database.execute(
            "create table if not exists digests (path, num_bytes, modified, digest, primary key (path)) "
            "without rowid"
        )
        self._database.commit()

    def known(self, paths: Sequence[Path]) -> dict[Path, ImageFacts]:
        """Return the facts (without `grey`) of those `paths` that were measured and have not changed
        since.
        """
        wanted = {str(path): path for path in paths}
        found = {}
        for row in self._rows(f"select modified, {', '.join(READ)} from images", list(wanted)):
            facts = ImageFacts(
                **dict(zip(READ, row[1:], strict=True)) | {"turned": bool(row[1 + READ.index("turned")])}
            )
            if (facts.num_bytes, row[0]) == stamp(facts.path):
                found[wanted[facts.path]] = facts
        return found

    def add(self, several: Iterable[ImageFacts]) -> None:
        """Store these facts.

        Raises:
            UserError: the file cannot be written, because the disk is full.
        """
        marks = ", ".join("?" * (len(COLUMNS) + 1))
        rows = [(*astuple(facts), stamp(facts.path)[1]) for facts in several]
        self._write(f"insert or replace into images values ({marks})", rows)

    def greys(self, paths: Sequence[str]) -> np.ndarray:
        """Return (N, GREY_PX, GREY_PX) uint8: the grey copies of decodable images, in the order of
        `paths`.
        """
        found = {
            path: np.frombuffer(grey, np.uint8)
            for path, grey in self._rows("select path, grey from images", list(set(paths)))
        }
        return np.stack([found[path] for path in paths]).reshape(-1, GREY_PX, GREY_PX)

    def digests(self, paths: Sequence[str]) -> dict[str, str]:
        """Return the stored SHA-256 of those `paths` that have not changed since."""
        rows = self._rows("select path, num_bytes, modified, digest from digests", paths)
        return {
            path: digest for path, num_bytes, modified, digest in rows if (num_bytes, modified) == stamp(path)
        }

    def add_digests(self, digests: dict[str, str]) -> None:
        """Store these digests.

        Raises:
            UserError: as `add`.
        """
        rows = [(path, *stamp(path), digest) for path, digest in digests.items()]
        self._write("insert or replace into digests values (?, ?, ?, ?)", rows)

    def close(self) -> None:
        """Close the file, if it is open."""
        if self._database is not None:
            self._database.close()

    def _write(self, statement: str, rows: Sequence[tuple]) -> None:
        try:
            self._database.executemany(statement, rows)
            self._database.commit()
        except sqlite3.OperationalError as error:
            self._check_free(error)
            raise UserError(
                f"{self.path} cannot be written ({error}): free some space, then run the same command again; "
                "it continues"
            ) from None

    def _check_free(self, error: sqlite3.Error) -> None:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
            raise UserError(
                f"{self.path} is used by another command: wait for it, or name another --output"
            ) from None

    def _rows(self, question: str, paths: Sequence[str]) -> Iterator[tuple]:
        for start in range(0, len(paths), AT_ONCE):
            part = list(paths[start : start + AT_ONCE])
            yield from self._database.execute(
                f"{question} where path in ({', '.join('?' * len(part))})", part
            )


def stamp(path: str) -> tuple[int, int]:
    """Return (bytes, time of change in ns) of a file; zeros if it does not exist."""
    try:
        found = os.stat(path)
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns
