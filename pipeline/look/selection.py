"""Which images are looked at: all, or of very many a sample in which every class keeps its share; and what was found of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.competition.rows import Competition, Row
from pipeline.look.image_facts import ImageFacts
from pipeline.wording import counted

MOST_IMAGES = 30_000
TEST_SHARE = 1 / 3  # of a sample at most, where the training images are more than the rest


@dataclass
class Looked:
    """What is looked at. `train` and `test` have one row an image, of several rows about one image the first; `facts` are theirs."""

    competition: Competition
    train: list[Row]
    test: list[Row]
    sampled: str = ""  # how a sample was drawn, in a sentence; empty: everything is looked at
    facts: dict[Path, ImageFacts] = field(default_factory=dict)

    @property
    def paths(self) -> list[Path]:
        """Every image, training images first; one that both parts name is there once."""
        return list(dict.fromkeys(row.path for row in (*self.train, *self.test)))

    def part(self, name: str) -> list[Row]:
        """`train` or `test`."""
        return self.train if name == "train" else self.test

    def facts_of(self, rows: Sequence[Row]) -> list[ImageFacts]:
        """Of each row's image."""
        return [self.facts[row.path] for row in rows]

    def sound(self, rows: Sequence[Row]) -> list[Row]:
        """The rows whose image can be decoded."""
        return [row for row in rows if not self.facts[row.path].problem]

    def shown(self, path: Path) -> str:
        """A path as the page writes it: from the data folder on."""
        root = self.competition.root
        return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def choose(competition: Competition, most: int = MOST_IMAGES) -> Looked:
    """The images of `competition` to look at, `most` of them at most."""
    train, test = _first_rows(competition.train), _first_rows(competition.test)
    total = len(train) + len(test)
    if total <= most:
        return Looked(competition, train, test)
    num_test = min(len(test), max(round(most * TEST_SHARE), most - len(train)))
    by_label = sorted(train, key=lambda row: row.label or "")  # evenly spaced over them: every class its share
    chosen = set(map(id, _spread(by_label, most - num_test)))
    kept = [row for row in train if id(row) in chosen], _spread(test, num_test)
    says = (
        f"A sample: {len(kept[0]):,} of {counted(len(train), 'training image')} and {len(kept[1]):,} of {counted(len(test), 'test image')}, "
        "evenly spaced, every class with its share. What is said below of files, duplicates and odd images is of these; labels are "
        "counted in all rows. --images N looks at more."
    )
    return Looked(competition, *kept, says)


def _first_rows(rows: Sequence[Row]) -> list[Row]:
    found: dict[Path, Row] = {}
    for row in rows:
        found.setdefault(row.path, row)
    return list(found.values())


def _spread(rows: Sequence[Row], count: int) -> list[Row]:
    """`count` rows (or all, where there are fewer), evenly spaced."""
    return [rows[len(rows) * number // count] for number in range(count)] if len(rows) > count else list(rows)
