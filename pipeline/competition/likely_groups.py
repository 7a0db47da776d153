"""Columns of the tables whose name and values look like groups of rows that must not be split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from shlex import quote

from pipeline.competition.folders import plain_name
from pipeline.competition.parts import words_of
from pipeline.competition.sources import Sources
from pipeline.tables import Table
from pipeline.wording import counted, listed

# They are only suggested to the user, never applied
GROUP_WORDS = (
    *"patient subject person driver rider user owner family individual animal donor study session".split(),
    *"series video clip sequence scene site location hospital camera slide plot field well batch".split(),
)

# A column with such a word (patient_age) says what a patient is like, not who it is
TRAITS = frozenset("age sex gender weight height size position orientation count".split())
FEWEST = 3  # values; a column of two is more often a property of the image (yes or no) than a group


def likely_groups(sources: Sources, labels: Collection[str], predicted: str) -> list[str]:
    """Return at most one line on the columns that may name groups, with the flag that keeps groups together.

    `predicted`: the column of ids with several test images each; "" if an id has one. Not for columns that
    hold nothing but `labels`.
    """
    found: list[tuple[str, str]] = []
    for source in sources.of_role("train", ""):
        for name in source.table.columns:
            words = words_of(name)
            named = bool(predicted) and plain_name(name) == plain_name(predicted)
            named = named or (
                any(word.startswith(GROUP_WORDS) for word in words) and TRAITS.isdisjoint(words)
            )
            if named and (size := _group_size(source.table, name, labels)) is not None:
                rows = counted(len(source.table.cells), "row")
                found.append((name, f"{name!r} of {source.name} ({size:,} different values in {rows})"))
    if not found:
        return []
    names = list(dict.fromkeys(name for name, _ in found))
    flags = " or ".join(f"--set data.group_column={quote(name)}" for name in names[:2])
    return [
        f"train: rows may belong together by {listed([says for _, says in found])}; where rows of one value "
        f"are alike, validation is too optimistic unless they stay together: {flags}"
    ]


def _group_size(table: Table, name: str, labels: Collection[str]) -> int | None:
    """Return the number of values of a column if most rows share theirs with another row; None for other
    columns, and for the `labels`.
    """
    counts = Counter(cell.strip() for cell in table.column(name))
    if counts.keys() <= set(labels):
        return None
    several = sum(count for count in counts.values() if count > 1)
    return (
        len(counts) if FEWEST <= len(counts) < len(table.cells) and several * 2 > len(table.cells) else None
    )
