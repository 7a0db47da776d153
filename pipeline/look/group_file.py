"""Write groups.csv: training rows with equal images belong together.

It is used with `--set data.groups=FILE`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.competition.rows import Competition
from pipeline.files import replaceable, sha256, versioned
from pipeline.look.copies import Copies
from pipeline.tables import write_table

FILE = "groups.csv"


def grouped_ids(competition: Competition, sets: Sequence[Copies]) -> dict[str, str]:
    """Return the group of every labelled id, named after its first id.

    Given groups and copies of one image stay together.
    """
    top: dict[str, str] = {row.id: row.id for row in competition.train}

    def find(row_id: str) -> str:
        while top[row_id] != row_id:
            top[row_id] = top[top[row_id]]
            row_id = top[row_id]
        return row_id

    order = {row_id: place for place, row_id in enumerate(top)}

    def join(ids: Sequence[str]) -> None:
        for row_id in ids[1:]:
            first, second = sorted((find(ids[0]), find(row_id)), key=order.__getitem__)
            top[second] = first

    stated: dict[str, list[str]] = {}
    for row_id, group in (competition.groups or {}).items():
        stated.setdefault(group, []).append(row_id)
    for ids in stated.values():
        join(ids)
    for copies in sets:
        if copies.train:
            join([row.id for row in copies.train])
    return {row_id: find(row_id) for row_id in top}


def write_groups(folder: Path, groups: Mapping[str, str], written: str) -> tuple[Path, str]:
    """Write groups.csv (id, group) into `folder`; returns its path and digest.

    An existing file is kept under another name if it was changed since it had the digest `written`.
    """
    path = folder / FILE
    if path.is_file() and sha256(replaceable(path)) != written:
        path.rename(versioned(path))
    write_table(path, ("id", "group"), groups.items())
    return path, sha256(path)
