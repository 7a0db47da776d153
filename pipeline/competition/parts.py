"""Tell from a folder's name which part it holds: training, test or validation images, or another
competition.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

FOREIGN = "foreign"  # part of a folder that is a competition of its own
HOLD_OUT_FOLDERS = ("val", "valid", "validation", "dev")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# A nested folder counts as a part only if its name consists of such words: `imgs/train` counts, a class "test
# tube" does not.
BESIDE = _words(
    "set sets data dataset image images img imgs jpg jpgs jpeg jpegs png pngs tif tiff photo photos picture "
    "pictures crops cropped additional full all stage resized small v"
)


# Folders of images without labels, where no folder says train or test and the others are classes
UNLABELLED = _words(
    "unlabeled unlabelled evaluation eval private query queries holdout inference predict topredict hidden "
    "prediction predictions submission"
)


def words_of(name: str) -> list[str]:
    """Split a name into its words, in lower case: `trainLabels_v2.csv` gives train, labels, v, 2, csv."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_a-zA-Z]+|\d+", name)]


def part_of_name(name: str, strict: bool = False) -> str:
    """Return "train", "test", "val" or "" for a folder's name. `strict`: every word of the name must fit."""
    words = words_of(name)
    trains = any(word.startswith("train") for word in words)
    tests = any(re.fullmatch(r"test(s|ing|set|data|images?|imgs?)?", word) for word in words)
    held_out = "".join(words) in HOLD_OUT_FOLDERS
    if strict and not all(
        word in BESIDE
        or word.isdigit()
        or word in HOLD_OUT_FOLDERS
        or re.fullmatch(r"(train|test)(s|ing|set|images|imgs)?", word)
        for word in words
    ):
        return ""
    plain = "".join(words)
    if trains or plain.startswith("train"):
        return "" if tests else "train"
    if tests or plain.startswith("test"):
        return "test"
    return "val" if held_out else ""


@dataclass(frozen=True)
class Parts:
    """The parts of a data folder. `folders` maps the uppermost folder of each part to the part."""

    folders: Mapping[str, str]
    foreign: frozenset[str]  # top-level folders that are competitions of their own
    _known: dict[str, str] = field(default_factory=dict, compare=False)

    @classmethod
    def read(cls, images: Mapping[str, Sequence[str]]) -> Parts:
        """Find the parts from the names of all folders that hold images.

        `images`: of each folder directly in the data folder, as paths in the data folder.
        """
        images = {name: found for name, found in images.items() if name and found}
        upper = {name: part for name in images if (part := part_of_name(name))}
        inner = {
            name: _inner_parts({image.rpartition("/")[0] for image in found})
            for name, found in images.items()
            if name not in upper
        }
        if not upper:
            upper = _unlabelled(images)
        own = {part for part in upper.values() if part != "val"}
        foreign = {name for name, found in inner.items() if own & set(found.values())}
        several = [name for name, found in inner.items() if "train" in found.values() and name not in foreign]
        foreign |= set(several) if len(several) > 1 else set()
        lower = {
            folder: part
            for name, found in inner.items()
            if name not in foreign
            for folder, part in found.items()
        }
        return cls(upper | lower, frozenset(foreign))

    def of(self, path: str) -> str:
        """Return the part of a file in the data folder; empty if no folder name determines it."""
        folder = path.rpartition("/")[0]
        if folder not in self._known:
            steps = folder.split("/")
            above = ("/".join(steps[: count + 1]) for count in range(len(steps)))
            part = next((self.folders[name] for name in above if name in self.folders), "")
            self._known[folder] = FOREIGN if steps[0] in self.foreign else part
        return self._known[folder]

    def named(self, part: str) -> list[str]:
        """Return the folders of one part."""
        return [folder for folder, found in self.folders.items() if found == part]


def _unlabelled(images: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return the only folder beside two others or more that is called so (`evaluation`) and is flat."""
    found = [
        name
        for name, own in images.items()
        if "".join(word for word in words_of(name) if word not in BESIDE) in UNLABELLED
        and all(image.count("/") == 1 for image in own)
    ]
    return {found[0]: "test"} if len(found) == 1 and len(images) > 2 else {}


def _inner_parts(folders: Iterable[str]) -> dict[str, str]:
    found = {}
    for folder in sorted(folders):
        steps = folder.split("/")
        for count in range(1, len(steps)):
            if part := part_of_name(steps[count], strict=True):
                found["/".join(steps[: count + 1])] = part
                break
    return found
