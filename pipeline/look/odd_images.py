"""List images that need a look: damaged, black, of one colour, nearly empty, tiny, very long, or with a wrong
suffix.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipeline.competition.rows import Row
from pipeline.data.intensity import FLOAT_MODES, Intensity, range_in_words
from pipeline.look.image_facts import ImageFacts
from pipeline.look.section import Grid, Section, Sheet, SmallImage, Strip
from pipeline.look.selection import Looked
from pipeline.wording import counted

BLACK, WHITE = 12, 243  # of 255: brightest grey of a black image, darkest grey of a white one
ONE_COLOUR = 2  # maximum difference of the darkest and the brightest grey level
NEARLY_EMPTY = 0.99  # minimum share of pixels with one grey
TINY_PX, TINY_SHARE = 32, 0.5  # shorter side in pixels, and relative to the median; both must be undercut
LONG = 4.0  # longer side / shorter side, if the median image is less elongated
SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "TIFF": (".tif", ".tiff"),
    "DIB": (".bmp",),
}
SHOWN = 6


def odd_section(looked: Looked, intensity: Intensity | None, deep_notes: list[str]) -> Section:
    """Return the section on odd images; `intensity`: the rule for images of many bits, `deep_notes`: how it
    was found.
    """
    section = Section("Odd images")
    rows = {row.path: (part, row) for part in ("test", "train") for row in looked.part(part)}
    facts = {path: looked.facts[path] for path in looked.paths}
    damaged = [path for path, one in facts.items() if one.problem]
    if damaged:
        lines = [(rows[path][0], looked.shown(path), facts[path].problem) for path in damaged]
        section.grids.append(
            Grid("Damaged: cannot be decoded", ("part", "image", "why"), lines, open=12, texts=3)
        )
        section.says.append(
            f"{counted(len(damaged), 'image')} cannot be decoded; training stops there, or skips them with "
            "--set data.skip_bad_images=true. A damaged test image gets the class frequencies as its "
            "prediction."
        )
    kinds = _kinds([one for one in facts.values() if not one.problem])
    strips = []
    for name, is_odd in kinds.items():
        found = [path for path, one in facts.items() if not one.problem and is_odd(one)]
        if found:
            strips.append(_show(section, looked, name, found, rows))
    if strips:
        section.sheets.append(Sheet("The first ones of each kind", tuple(strips), captions=True, whole=True))
    if not damaged and not strips:
        section.says.append(
            "None: no image is damaged, black, white, of one colour, nearly empty, tiny or very long for "
            "this set."
        )
    deep = [one for one in facts.values() if one.deep and not one.problem]
    if deep:
        ranges = ["floating" if one.mode in FLOAT_MODES else "integer" for one in deep]
        words = range_in_words(intensity, ranges) if intensity else "each type's own range becomes 0 to 255"
        section.says.append(
            f"{counted(len(deep), 'image')} of more than 8 bits "
            f"({', '.join(sorted({one.mode for one in deep}))}): {words}."
        )
    section.says += [
        f"{note[:1].upper()}{note[1:]}." for note in deep_notes if not deep or not note.startswith("grey")
    ]
    return section


def _kinds(sound: list[ImageFacts]) -> dict[str, Callable[[ImageFacts], bool]]:
    """Return kind -> test for odd images.

    An image is counted only under the first kind if one implies the other.
    """
    usual_side = float(np.median([min(one.width, one.height) for one in sound])) if sound else 0.0
    usual_shape = float(np.median([_elongation(one) for one in sound])) if sound else 1.0
    return {
        "Black": _is_black,
        "White": _is_white,
        "Of one colour": lambda one: (
            one.high - one.low <= ONE_COLOUR and not _is_black(one) and not _is_white(one)
        ),
        "Nearly empty": lambda one: (
            one.flat >= NEARLY_EMPTY
            and one.high - one.low > ONE_COLOUR
            and not _is_black(one)
            and not _is_white(one)
        ),
        "Tiny": lambda one: min(one.width, one.height) < min(TINY_PX, TINY_SHARE * usual_side),
        "Very long": lambda one: _elongation(one) >= LONG > usual_shape,
        "Suffix of another format": _misnamed,
    }


def _is_black(one: ImageFacts) -> bool:
    return one.high <= BLACK


def _is_white(one: ImageFacts) -> bool:
    return one.low >= WHITE


def _elongation(one: ImageFacts) -> float:
    return max(one.width, one.height) / min(one.width, one.height)


def _misnamed(one: ImageFacts) -> bool:
    return Path(one.path).suffix.lower() not in SUFFIXES.get(one.format, (f".{one.format.lower()}",))


def _show(
    section: Section, looked: Looked, name: str, found: list[Path], rows: dict[Path, tuple[str, Row]]
) -> Strip:
    """Add a kind of odd images to the section; returns its first images as a strip."""
    lines = []
    for path in found:
        one = looked.facts[path]
        part, row = rows[path]
        grey = f"{one.low} to {one.high}, {one.flat:.1%} alike"
        lines.append(
            (
                part,
                looked.shown(path),
                row.label or "",
                f"{one.width} x {one.height}",
                f"{one.format} {one.mode}",
                grey,
            )
        )
    share = len(found) / max(len(looked.facts), 1)
    section.says.append(
        f"{name}: {counted(len(found), 'image')} ({share:.1%}), such as {looked.shown(found[0])}."
    )
    section.grids.append(
        Grid(name, ("part", "image", "label", "pixels", "file", "grey"), lines, open=0, texts=6)
    )
    images = tuple(SmallImage(path, f"{rows[path][0]}: {path.name}") for path in found[:SHOWN])
    return Strip(name, images, quiet=f"{len(found):,}")
