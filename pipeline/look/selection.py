"""Choose the images to look at: all, or a sample in which every class keeps its share; and hold their
facts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.competition.rows import Competition, Row
from pipeline.look.image_facts import ImageFacts
from pipeline.wording import counted

MOST_IMAGES = 30_000
TEST_SHARE = 1 / 3  # maximum share of test images in a sample, unless there are few training images


@dataclass
class Looked:
    """The images of a look.

    `train` and `test` have one row per image (the first row about it); `facts` are theirs.
    """

    competition: Competition
    train: list[Row]
    test: list[Row]
    sampled: str = ""  # a sentence on how the sample was drawn; empty: all images
    facts: dict[Path, ImageFacts] = field(default_factory=dict)

    @property
    def paths(self) -> list[Path]:
        """Every image once, training images first."""
        return list(dict.fromkeys(row.path for row in (*self.train, *self.test)))

    def part(self, name: str) -> list[Row]:
        """Return the rows of `train` or `test`."""
        return self.train if name == "train" else self.test

    def facts_of(self, rows: Sequence[Row]) -> list[ImageFacts]:
        """Return the facts of each row's image."""
        return [self.facts[row.path] for row in rows]

    def sound(self, rows: Sequence[Row]) -> list[Row]:
        """Return the rows whose image can be decoded."""
        return [row for row in rows if not self.facts[row.path].problem]

    def shown(self, path: Path) -> str:
        """Return a path for the page, relative to the data folder."""
        root = self.competition.root
        return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def choose(competition: Competition, most: int = MOST_IMAGES) -> Looked:
    """Choose the images of `competition` to look at, at most `most`."""
    train, test = _first_rows(competition.train), _first_rows(competition.test)
    total = len(train) + len(test)
    if total <= most:
        return Looked(competition, train, test)
    num_test = min(len(test), max(round(most * TEST_SHARE), most - len(train)))
    # evenly spaced rows then give every class its share
    by_label = sorted(train, key=lambda row: row.label or "")
    chosen = set(map(id, _spread(by_label, most - num_test)))
    kept = [row for row in train if id(row) in chosen], _spread(test, num_test)
    says = (
        f"A sample: {len(kept[0]):,} of {counted(len(train), 'training image')} and {len(kept[1]):,} of "
        f"{counted(len(test), 'test image')}, evenly spaced, so that every class keeps its share. Statements "
        "below on files, duplicates and odd images are about this sample; labels are counted in all rows. "
        "--images N looks at more."
    )
    return Looked(competition, *kept, says)


def _first_rows(rows: Sequence[Row]) -> list[Row]:
    found: dict[Path, Row] = {}
    for row in rows:
        found.setdefault(row.path, row)
    return list(found.values())


def _spread(rows: Sequence[Row], count: int) -> list[Row]:
    """Return `count` evenly spaced rows, or all if there are fewer."""
    return [rows[len(rows) * number // count] for number in range(count)] if len(rows) > count else list(rows)
