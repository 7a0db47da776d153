"""Join images that come as one grey file per channel (`ID_red.png`, `ID_green.png`, ...): one image each."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pipeline.competition.folders import IMAGE_SUFFIXES, suffix_of
from pipeline.data.images import load_pixels, seen_size
from pipeline.data.intensity import is_deep
from pipeline.data.opening import BadImage, opened
from pipeline.errors import UserError, raise_all
from pipeline.fetch.archives import check_room
from pipeline.fetch.grey_range import Rule, Survey
from pipeline.fetch.pixels import channels_rule, in_threads, new_file, save
from pipeline.fetch.staged_rows import shown_files
from pipeline.wording import counted, listed, nearest

COLOURS = ["red", "green", "blue"]
SEPARATORS = r"_\-. "  # between the name of an image and of its channel; a folder for each image is one too
ENDING = re.compile(rf"(.*[^{SEPARATORS}])[{SEPARATORS}]+([^{SEPARATORS}]+)")
SURVEYED = 512  # images of more than 8 bits that are read for the grey range, spread over the set
SHOWN = 20  # images with colours that are found before the command ends: as many as an error lists
# A plane of an RGB file equals the brightest one if it differs from it, on average, by at most so much of its
# standard deviation, and is dark if its mean is so much of its mean. JPEG files leak a little between planes.
ALIKE, DARK = 0.05, 0.2


class _Coloured(Exception):
    """A file that holds more than one channel; the text is its path."""


class _Damaged(Exception):
    """Files of an image that cannot be decoded, with the reasons."""

    def __init__(self, reasons: dict[Path, str]) -> None:
        super().__init__()
        self.reasons = reasons


@dataclass
class _Stack:
    """The files of one image: of each channel asked for, and others, with their endings."""

    files: dict[str, list[Path]] = field(default_factory=dict)
    others: list[tuple[str, Path]] = field(default_factory=list)


def names_of(text: str) -> list[str]:
    """Return the channels in `text` (`red,green,blue`), in this order.

    Raises:
        UserError: there are none or more than three, one is given twice, or one cannot end the name of a
            file.
    """
    names = [name.strip() for name in text.split(",")]
    example = "for example CHANNELS=red,green,blue (--channels) for files ID_red.png, ID_green.png, ..."
    if not all(re.fullmatch(rf"[^{SEPARATORS}/\\]+", name) for name in names):
        raise UserError(
            f"CHANNELS={text}: each name is the last part of a file's name, without the separator before it "
            f"(one of _ - . and space): {example}"
        )
    if len(names) > len(COLOURS):
        raise UserError(
            f"CHANNELS={text}: an image has at most three channels, these are {len(names)}; name the three "
            f"that become red, green and blue: {example}"
        )
    if len({name.casefold() for name in names}) < len(names):
        raise UserError(f"CHANNELS={text}: a channel is named twice: {example}")
    return names


@dataclass(frozen=True)
class Levels:
    """The channels whose files have more than 8 bits, and the grey range of these (None: there are none)."""

    deep: list[str]
    rule: Rule | None


@dataclass(frozen=True)
class Joined:
    """What `stack` did: lines for the user, the paths of the deleted files, and the levels."""

    notes: list[str]
    gone: list[str]
    levels: Levels


def are_there(root: Path, names: Sequence[str]) -> bool:
    """Return True if files of these channels lie below `root`."""
    wanted = {name.casefold() for name in names}
    return any(
        _split(path)[1].casefold() in wanted or path.stem.casefold() in wanted for path in _images(root)
    )


def stack(root: Path, names: Sequence[str], known: Levels | None = None, longest: int = 0) -> Joined:
    """Write one PNG for each image below `root` whose files end with `names`, and delete these files.

    The first channel becomes red, the second green, the third blue; of two, the mean becomes blue; one is a
    grey image. Files of other channels are deleted too, so `root` must be a copy. An image with a damaged
    file is this file, so that train.py and inference.py treat it as any damaged image.

    `longest`: most pixels of the longer side of an image; 0: any number. `known`: the levels of other images
    of the set, joined before: the same are used. Then an image that lacks a file, or whose files differ in
    size, counts as damaged too; a damaged image is an empty file.

    Raises:
        UserError: a channel, or its file for an image, is missing; files of an image differ in size; a file
            holds colours or has another depth than known; or none can be decoded. Every problem of a kind is
            listed.
    """
    asked = f"CHANNELS={','.join(names)}"
    stacks, partial = _found(root, names), {}
    if known:
        partial = {target: reasons for target, one in stacks.items() if (reasons := _lacking(one, names))}
    complete = {target: one for target, one in stacks.items() if target not in partial}
    raise_all(_incomplete(root, complete, names), f"{asked} does not fit the images:")
    damaged, levels, most_pixels = _headers(root, complete, names, asked, known)
    damaged |= partial
    rule = levels.rule
    if levels.deep and not rule:
        rule = _survey(complete, names)
    coloured: list[str] = []
    gone: list[Path] = []
    left: Counter[str] = Counter()
    example = ""

    def join(target: Path) -> Exception | None:
        try:
            planes = _planes(stacks[target], names)
            save(rule.apply(planes) if rule else planes, target, longest)
        except (_Damaged, _Coloured) as error:
            return error
        return None

    whole = [target for target in stacks if target not in damaged]
    done = in_threads(join, whole, "joining channels", most_pixels)
    for target, error in zip(whole, done, strict=True):
        if isinstance(error, _Damaged):
            damaged[target] = error.reasons
        elif error:
            coloured.append(f"{_shown(Path(f'{error}'), root)} holds colours, not one channel")
            if len(coloured) == SHOWN:
                break
        else:
            taken = _remove(stacks[target], target, names)
            example = example or f"{_shown(taken[0], root)} -> {_shown(target, root)}"
            gone += taken
            left.update(ending for ending, _ in stacks[target].others)
    raise_all(coloured, f"{asked}: these files are no channels:")
    reasons = [
        f"{_shown(path, root)}: {reason}" for found in damaged.values() for path, reason in found.items()
    ]
    if len(damaged) == len(stacks):
        raise UserError("\n  - ".join([f"{asked}: no image can be decoded", *reasons[:SHOWN]]))
    bits = rule.says if rule else "grey levels are not changed"
    says = "; ".join([*([] if list(names) == COLOURS else [_colours(names)]), bits])
    for target, found in damaged.items():
        path = next(iter(found))
        if known:
            new_file(target).close()
        else:
            path.replace(target.with_name(f"{target.stem}{path.suffix}"))
        gone += _remove(stacks[target], target, names)
    lines = [f"{counted(len(stacks) - len(damaged), 'image')} from {listed(names)} ({example}): {says}"]
    if left:
        lines.append(
            "channels left out: " + listed(f"{name} ({counted(left[name], 'file')})" for name in sorted(left))
        )
    if damaged:
        lines.append(
            f"{counted(len(damaged), 'damaged image')}, because these files cannot be used: "
            + "; ".join(reasons[:3])
            + (f" and {len(reasons) - 3} more" if len(reasons) > 3 else "")
        )
    return Joined(lines, [_shown(path, root) for path in gone], Levels(levels.deep, rule))


def _remove(one: _Stack, target: Path, names: Sequence[str]) -> list[Path]:
    """Delete the files of an image, and a folder that held only these. Returns the files."""
    taken = [*(one.files[name][0] for name in names if name in one.files), *(path for _, path in one.others)]
    for path in taken:
        path.unlink(missing_ok=True)
    if taken[0].parent != target.parent and not any(taken[0].parent.iterdir()):
        taken[0].parent.rmdir()
    return taken


def _colours(names: Sequence[str]) -> str:
    if len(names) == 3:
        return f"{names[0]} becomes red, {names[1]} green, {names[2]} blue"
    return channels_rule(len(names)) or "grey"


def _shown(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _found(root: Path, names: Sequence[str]) -> dict[Path, _Stack]:
    """Return the files of each image to write.

    Raises:
        UserError: no file ends with a name.
    """
    paths = _images(root)
    by_case = {name.casefold(): name for name in names}
    stacks: dict[Path, _Stack] = {}
    rest: list[Path] = []
    for path in paths:
        target, ending = _split(path)
        if ending.casefold() not in by_case:
            target, ending = _split_folder(path, root)
        if ending.casefold() in by_case:
            stacks.setdefault(target, _Stack()).files.setdefault(by_case[ending.casefold()], []).append(path)
        else:
            rest.append(path)
    for path in rest:
        for target, ending in (_split(path), _split_folder(path, root)):
            one = stacks.get(target)
            if one and any(path.parent == there.parent for files in one.files.values() for there in files):
                one.others.append((ending, path))
                break
    absent = [name for name in names if not any(name in one.files for one in stacks.values())]
    endings = Counter(ending for path in paths if (ending := _split(path)[1] or _split_folder(path, root)[1]))
    most = [name for name, count in endings.most_common() if count > 1] or list(endings)
    raise_all(
        [f"no image is called ..._{name}{nearest(name, endings)}" for name in absent],
        f"CHANNELS={','.join(names)}: not among {counted(len(paths), 'image')}, whose names end with "
        f"{listed(most) or 'nothing like it'}:",
    )
    return stacks


def _images(root: Path) -> list[Path]:
    return [path for path in shown_files(root) if suffix_of(path.name) in IMAGE_SUFFIXES]


def _split(path: Path) -> tuple[Path, str]:
    """Return the image that `train/a_red.png` belongs to, `train/a.png`, and `red`; "" for other names."""
    parts = ENDING.fullmatch(path.name.rpartition(".")[0])
    return (path.with_name(f"{parts[1]}.png"), parts[2]) if parts else (path, "")


def _split_folder(path: Path, root: Path) -> tuple[Path, str]:
    """Return the image that `train/a/red.png` belongs to, `train/a.png`, and `red`; "" outside a folder."""
    if path.parent == root:
        return path, ""
    return path.parent.with_name(f"{path.parent.name}.png"), path.name.rpartition(".")[0]


def _lacking(one: _Stack, names: Sequence[str]) -> dict[Path, str]:
    """Return a file of an image that has no file for some channels, with the reason; empty for others."""
    missing = [name for name in names if name not in one.files]
    return {next(iter(one.files.values()))[0]: f"no {', '.join(missing)} beside it"} if missing else {}


def _incomplete(root: Path, stacks: dict[Path, _Stack], names: Sequence[str]) -> list[str]:
    """Return what hinders writing an image: files that are missing, double, or in its place."""
    whole = [name for name in names if all(name in one.files for one in stacks.values())]
    problems, lacking = [], []
    for target, one in stacks.items():
        shown = _shown(target, root).removesuffix(".png")
        missing = [name for name in names if name not in one.files]
        if missing:
            lacking.append(f"{shown} has no {', '.join(missing)} (there: {', '.join(sorted(one.files))})")
        problems += [
            f"{shown} has {len(paths)} files for {name}: {listed(_shown(path, root) for path in paths)}"
            for name, paths in one.files.items()
            if len(paths) > 1
        ]
        there = [target.with_name(f"{target.stem}{suffix}") for suffix in sorted(IMAGE_SUFFIXES)]
        problems += [
            f"{shown} would be joined, but {_shown(path, root)} exists already"
            for path in there
            if path.exists()
        ]
    if lacking:
        advice = f"name channels that all have (CHANNELS={','.join(whole)}), or move" if whole else "move"
        lacking[10:] = [f"{len(lacking) - 10} more images lack a channel"] if len(lacking) > 10 else []
        problems = [
            *lacking,
            *problems[: SHOWN - len(lacking) - 1],
            f"{advice} the files of these images away, or bring the missing ones, and run this again",
        ]
    return problems


def _headers(
    root: Path, stacks: dict[Path, _Stack], names: Sequence[str], asked: str, known: Levels | None
) -> tuple[dict[Path, dict[Path, str]], Levels, int]:
    """Read the header of every file.

    Returns why images cannot be decoded, the levels (the rule only if it is known), and the pixels of the
    largest.

    Raises:
        UserError: files of an image differ in size, or those of a channel in depth (also from the known one);
            or the disk is too small.
    """
    damaged: dict[Path, dict[Path, str]] = {}
    problems, needed, most_pixels = [], 0, 1
    depths: dict[str, dict[bool, Path]] = {name: {} for name in names}
    for target, one in tqdm(stacks.items(), unit="image", desc="looking at channels", disable=None):
        sizes: dict[str, tuple[int, int]] = {}
        for name in names:
            path = one.files[name][0]
            try:
                status = path.stat()
                needed += status.st_size if status.st_nlink > 1 else 0  # others are deleted on the way
                with opened(path) as image:
                    sizes[name] = seen_size(image)
                    most_pixels = max(most_pixels, image.width * image.height)
                    depths[name].setdefault(is_deep(image.mode), path)
            except BadImage as bad:
                damaged.setdefault(target, {})[path] = f"{bad}"
        if len(set(sizes.values())) > 1:
            told = ", ".join(f"{name} {width} x {height}" for name, (width, height) in sizes.items())
            if known:
                damaged[target] = {one.files[names[0]][0]: f"its channels differ in size ({told})"}
                continue
            problems.append(f"{_shown(target, root).removesuffix('.png')}: {told}")
    raise_all(problems, f"{asked}: files of one image differ in size (pixels, width x height):")
    raise_all(
        [
            f"{name}: {_shown(kinds[True], root)} has more than 8 bits, {_shown(kinds[False], root)} has 8"
            for name, kinds in depths.items()
            if len(kinds) > 1
        ],
        f"{asked}: files of one channel differ in depth, so no grey level means the same in all; save them "
        "alike:",
    )
    deep = [name for name, kinds in depths.items() if True in kinds]
    if known:
        bits = {True: "more than 8 bits", False: "8 bits"}
        raise_all(
            [
                f"{name}: {_shown(path, root)} has {bits[other]}, the files joined before have "
                f"{bits[name in known.deep]}"
                for name, kinds in depths.items()
                for other, path in kinds.items()
                if other != (name in known.deep)
            ],
            f"{asked}: files have another depth than those of training, so no grey level means the same; run "
            "`make data` on the newest download, then train again:",
        )
    check_room(root, needed)
    return damaged, known or Levels(deep, None), most_pixels


def _survey(stacks: dict[Path, _Stack], names: Sequence[str]) -> Rule:
    """Return the range of each channel, from images that are spread over the set."""
    survey, every = Survey(), list(stacks.values())
    chosen = every[:: -(-len(every) // SURVEYED)]
    for one in tqdm(chosen, unit="image", desc="finding the grey range", disable=None):
        try:
            survey.add(_planes(one, names))
        except (_Damaged, _Coloured):  # reported where every image is read
            continue
    return survey.rule()


def _planes(one: _Stack, names: Sequence[str]) -> np.ndarray:
    """Return (C, H, W) of an image.

    Raises:
        _Damaged: files cannot be decoded.
        _Coloured: a file holds more than one channel.
    """
    planes, damaged = [], {}
    for path in (one.files[name][0] for name in names):
        try:
            with opened(path) as image:
                plane = np.asarray(image) if is_deep(image.mode) else _brightest(load_pixels(image))
        except BadImage as bad:
            damaged[path] = f"{bad}"
            continue
        if plane is None:
            raise _Coloured(f"{path}")
        planes.append(plane)
    if damaged:
        raise _Damaged(damaged)
    return np.stack(planes)


def _brightest(pixels: np.ndarray) -> np.ndarray | None:
    """Return the plane (H, W) that holds the values of an RGB image of one channel; None if it holds colours.

    It may be grey, or have its values in one plane, or equal ones in two (yellow).
    """
    means = pixels.reshape(-1, 3).mean(axis=0)
    top = int(means.argmax())
    for plane in {0, 1, 2} - {top}:
        if means[plane] > 1 + DARK * means[top]:
            apart = np.abs(pixels[..., plane].astype(np.int16) - pixels[..., top]).mean()
            if apart > 1 + ALIKE * pixels[..., top].std():
                return None
    return pixels[..., top]
