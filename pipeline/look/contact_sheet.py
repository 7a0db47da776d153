"""Show a few images of every class, and train beside test, so that a person sees whether test looks
different.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest

import numpy as np

from pipeline.competition.rows import Row
from pipeline.look.section import Section, Sheet, SmallImage, Strip
from pipeline.look.selection import Looked
from pipeline.report.thumbnails import rows_by_label
from pipeline.wording import counted

BESIDE, A_ROW = 48, 6  # images of each part beside the other part; images per row
MOST_SHOWN, A_CLASS = 600, 6
SEED = 0


def contact_section(looked: Looked) -> Section:
    """Return the section with images; images that cannot be decoded are in another section."""
    train, test = (looked.sound(looked.part(name)) for name in ("train", "test"))
    section = Section("Images")
    if train and test:
        section.sheets.append(
            Sheet("Train and test side by side, drawn at random", _beside(train, test), open=BESIDE)
        )
        section.says.append(
            "Each row shows six images of train on the left and six of test on the right: does test look "
            "different?"
        )
    elif not test:
        section.says.append("There are no test images to compare with the training images.")
    if looked.competition.task == "vqa":
        section.sheets.append(_asked(train))
    elif train:
        _of_classes(looked, train, section)
    return section


def _drawn(rows: Sequence[Row], count: int) -> list[Row]:
    chosen = np.random.default_rng(SEED).permutation(len(rows))[:count]
    return [rows[place] for place in chosen.tolist()]


def _beside(train: Sequence[Row], test: Sequence[Row]) -> tuple[Strip, ...]:
    strips = []
    parts = [
        [_drawn(rows, BESIDE)[start : start + A_ROW] for start in range(0, BESIDE, A_ROW)]
        for rows in (train, test)
    ]
    for left, right in zip_longest(*parts, fillvalue=[]):
        for name, rows in (("train", left), ("test", right)):
            if rows:
                strips.append(
                    Strip(
                        name,
                        tuple(
                            SmallImage(row.path, f"{name}: {row.label}" if row.label else name)
                            for row in rows
                        ),
                    )
                )
    return tuple(strips)


def _asked(rows: Sequence[Row]) -> Sheet:
    strips = [
        Strip(row.question or "", (SmallImage(row.path, row.question or ""),), quiet=row.label or "")
        for row in _drawn(rows, MOST_SHOWN // 20)
    ]
    return Sheet("Questions with their images, drawn at random", tuple(strips), open=24)


def _of_classes(looked: Looked, train: Sequence[Row], section: Section) -> None:
    target = looked.competition.target
    assert target is not None
    groups = {name: rows for name, rows in rows_by_label(train, target).items() if rows}
    names = list(groups)
    shown = names[:: -(-len(names) // MOST_SHOWN)] if names else []
    each = A_CLASS if len(shown) * A_CLASS <= MOST_SHOWN else 1
    counts = Counter(
        target.counts([row.label or "" for row in {row.id: row for row in looked.competition.train}.values()])
    )
    strips = []
    for name in shown:
        rows = _drawn(groups[name], each)
        images = tuple(SmallImage(row.path, f"{name}: {looked.shown(row.path)}") for row in rows)
        strips.append(Strip(name, images, quiet=f"{counts[name]:,}" if name in counts else ""))
    noun = {"multilabel": "label", "ordinal": "grade", "continuous": target.names[0]}.get(
        target.kind, "class"
    )
    section.sheets.append(
        Sheet(
            f"Training images by {noun}",
            tuple(strips),
            tiles=each == 1,
            open=60 if each == 1 else 24,
            sample=True,
        )
    )
    if len(shown) < len(names):
        section.says.append(
            f"{len(shown):,} of {counted(len(names), 'class', 'classes')} are shown, evenly spaced in the "
            "order of their names."
        )
