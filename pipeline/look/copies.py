"""Report duplicates: images with two labels, rows that folds must keep together, and test images that are
also in training.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.competition.rows import Row
from pipeline.look.duplicates import Twins
from pipeline.look.section import Grid, Section, Sheet, SmallImage, Strip
from pipeline.look.selection import Looked
from pipeline.targets.target import Target
from pipeline.wording import counted, listed

SHOWN_SETS, SHOWN_EACH = 12, 6
FAR = 0.1  # of a number's standard deviation: labels that differ more are different


@dataclass(frozen=True)
class Copies:
    """One set of rows with the same image, in `train` and in `test`.

    `equal`: their files have the same bytes.
    """

    train: tuple[Row, ...]
    test: tuple[Row, ...]
    equal: bool

    @property
    def how(self) -> str:
        """The kind of equality, for messages."""
        return "equal bytes" if self.equal else "nearly equal"


def copies_of(looked: Looked, places: Sequence[Path], found: Sequence[Twins]) -> list[Copies]:
    """Return the sets of duplicates with their rows; `places`: the searched images, to which `found` refers
    by position.
    """
    rows: dict[str, dict[Path, Row]] = {
        part: {row.path: row for row in looked.part(part)} for part in ("train", "test")
    }
    sets = []
    for twins in found:
        paths = [places[place] for place in twins.places]
        train, test = (
            tuple(rows[part][path] for path in paths if path in rows[part]) for part in ("train", "test")
        )
        sets.append(Copies(train, test, twins.equal))
    return sets


def copies_section(looked: Looked, sets: Sequence[Copies], groups_file: str) -> Section:
    """Return the section on duplicates; `groups_file`: the file with the groups of training rows, empty if
    none was written.
    """
    section = Section("Duplicates")
    inside = [copies for copies in sets if len({row.id for row in copies.train}) > 1]
    differing = [copies for copies in inside if _labels_differ(copies.train, looked.competition.target)]
    leaks = [copies for copies in sets if copies.train and copies.test]
    in_test = [copies for copies in sets if len(copies.test) > 1]
    if not sets:
        section.says.append(
            "No two images have equal bytes, and none is a copy of another in a different size, quality or "
            "brightness."
        )
    if differing:
        images = sum(len(copies.train) for copies in differing)
        section.says.append(
            f"The same image with different labels: {counted(len(differing), 'set')}, "
            f"{counted(images, 'training image')}. One of the labels is wrong, or the image has several; a "
            "person should decide."
        )
        _show(section, "The same image with different labels", differing, looked, "train")
    if inside:
        images = sum(len(copies.train) for copies in inside)
        exact = sum(copies.equal for copies in inside)
        section.says.append(
            f"Duplicates inside train: {counted(len(inside), 'set')} with {counted(images, 'image')}, "
            f"{exact:,} of the sets with equal bytes."
        )
        if groups_file:
            section.says.append(
                "Validation is too optimistic if one copy trains and another validates. Files with equal "
                "bytes are always kept together; nearly equal ones are with: --set "
                f"data.groups={shlex.quote(groups_file)}"
                + (" (copies outside the sample are not known there)" if looked.sampled else "")
            )
        _show(
            section,
            "Duplicates inside train",
            [copies for copies in inside if copies not in differing],
            looked,
            "train",
        )
    if leaks:
        tests = sum(len(copies.test) for copies in leaks)
        section.says.append(
            f"Test images that are also in train: {tests:,} of {counted(len(looked.test), 'test image')}. "
            "Their labels are known, so a score on the test set is partly memory. This project does not use "
            "that."
        )
        _show(section, "Between train and test", leaks, looked, "both")
    if in_test:
        section.says.append(f"Duplicates inside test: {counted(len(in_test), 'set')}.")
        _show(section, "Duplicates inside test", in_test, looked, "test")
    section.says.append("Cropped, mirrored or rotated copies are not found.")
    return section


def _labels_differ(rows: Sequence[Row], target: Target | None) -> bool:
    labels = {row.label or "" for row in rows}
    if len(labels) < 2 or target is None:
        return False
    if target.kind == "multilabel":
        return len({frozenset(target.parts(label)) for label in labels}) > 1
    if target.kind == "continuous":
        values = target.encode(sorted(labels))
        scale = np.array(target.scale or (1.0,) * values.shape[1])
        known = ~np.isnan(values)  # of several numbers some may be missing
        largest = np.where(known, values, -np.inf).max(axis=0)
        return bool((largest - np.where(known, values, np.inf).min(axis=0) > FAR * scale).any())
    return True


def _show(section: Section, title: str, sets: Sequence[Copies], looked: Looked, part: str) -> None:
    if not sets:
        return
    lines = []
    for number, copies in enumerate(sets, start=1):
        for name, rows in (("train", copies.train), ("test", copies.test)):
            if part in (name, "both"):
                lines += [(number, copies.how, name, looked.shown(row.path), row.label or "") for row in rows]
    section.grids.append(Grid(title, ("set", "how", "part", "image", "label"), lines, open=0, texts=5))
    strips = []
    for number, copies in enumerate(sets[:SHOWN_SETS], start=1):
        chosen = [("train", row) for row in copies.train if part in ("train", "both")]
        chosen += [("test", row) for row in copies.test if part in ("test", "both")]
        if part == "both":  # show at least one of each
            chosen = [
                *chosen[:1],
                *[pair for pair in chosen[1:] if pair[0] == "test"],
                *[pair for pair in chosen[1:] if pair[0] == "train"],
            ]
        images = tuple(
            SmallImage(row.path, f"{name}: {row.label or row.path.name}") for name, row in chosen[:SHOWN_EACH]
        )
        labels = listed(dict.fromkeys(row.label or "" for row in copies.train)) if copies.train else "test"
        strips.append(Strip(f"{number}. {labels}", images, quiet=f"{copies.how}, {len(chosen)} images"))
    section.sheets.append(Sheet(title, tuple(strips), captions=True))
