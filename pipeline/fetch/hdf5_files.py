"""Convert images in HDF5 files: a dataset for each image, encoded (ISIC) or an array, or stacks of images
with arrays of ids and labels (PatchCamelyon).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from pipeline.competition.folders import IMAGE_SUFFIXES, suffix_of
from pipeline.errors import UserError, one_line
from pipeline.fetch.grey_range import Rule, Survey
from pipeline.fetch.hdf5_contents import Dataset, Unsuited, contents, read_each, starts
from pipeline.fetch.pixels import channels_rule
from pipeline.fetch.stacks import (
    described,
    is_image_shape,
    is_stack,
    is_vector,
    name_without_part,
    planes_of,
    without_training,
    write_encoded,
    write_stacks,
)
from pipeline.fetch.staged_rows import PARTS, Staged, check_names, part_of
from pipeline.wording import counted, listed

SUFFIXES = (".h5", ".hdf5", ".hdf")
SURVEYED = 2000  # datasets of one image each that are read for the grey range
# names of a stack, without the words for a part of the data; no id of an image
STACK_NAMES = frozenset("x data dataset set setx setxorig image images img imgs input inputs pixels".split())


@dataclass
class _File:
    """The images of one file. `singles`: datasets of one image each, by their group."""

    path: Path
    stacks: list[Dataset] = field(default_factory=list)
    vectors: list[Dataset] = field(default_factory=list)
    singles: dict[str, list[Dataset]] = field(default_factory=dict)
    rest: list[Dataset] = field(default_factory=list)


def convert(stage: Staged) -> None:
    """Write the images in HDF5 files below `stage.root`: encoded ones unchanged, arrays as PNG.

    Groups become folders. Files whose images are there already are left out; files without images are kept
    and noted.

    Raises:
        UserError: h5py is not installed, a file is damaged or leads to other files, a training stack has no
            labels, or an id occurs in several groups.
    """
    found = [file for path in stage.files(SUFFIXES) if (file := _read(stage, path))]
    stage.packages |= {"h5py"} if found else set()
    singles = [each for file in found for group in file.singles.values() for each in group]
    there = _image_names(stage)
    rule = _rule(stage, [each for each in singles if each.kind != "e"])
    for file in found:
        if file.singles:
            _write_singles(stage, file, rule, there)
    stacks = [array for file in found for array in file.stacks]
    if stacks:
        vectors = [vector for file in found for vector in file.vectors]
        others = [array for file in found for array in file.rest]
        write_stacks(stage, list(stacks), list(vectors), list(others), "HDF5 files")
    for file in found:
        if file.singles or file.stacks:
            file.path.unlink(missing_ok=True)
            unused = [*file.rest, *([] if file.stacks else file.vectors)]
            if unused:
                stage.notes.append(f"{stage.shown(file.path)}: not used: {described(unused)}")
        elif file.path.exists():
            stage.notes.append(
                f"{stage.shown(file.path)} kept, no images found in it: "
                f"{described([*file.vectors, *file.rest]) or 'it is empty'}"
            )


def _read(stage: Staged, path: Path) -> _File | None:
    """Return what a file holds; None, with a note, if it is not read."""
    shown = stage.shown(path)
    try:
        datasets, links = contents(path, shown)
    except Unsuited as reason:
        stage.notes.append(f"{shown} was not turned into images: {reason}")
        return None
    if links:
        stage.notes.append(f"{shown}: {counted(links, 'second name')} of the same data left out")
    groups: dict[str, list[Dataset]] = {}
    for dataset in without_training(stage, _encoded(datasets)):
        groups.setdefault(dataset.key.rpartition("/")[0], []).append(dataset)
    file = _File(path)
    lengths = {max(each.shape) for each in datasets if is_vector(each) and each.kind != "e"}
    for group, inside in sorted(groups.items(), key=lambda item: item[0]):
        _sort_in(file, group, inside, lengths)
    return file


def _encoded(datasets: Sequence[Dataset]) -> list[Dataset]:
    """Return `datasets`; those that hold encoded images, or begin with one, with the kind e."""
    asked = [each for each in datasets if each.kind == "B" and len(each.shape) < 2]
    asked += [
        each
        for each in datasets
        if each.kind == "u" and len(each.shape) == 1 and 24 < each.shape[0] == each.num_bytes
    ]
    suffixes = tqdm(starts(asked), total=len(asked), unit="dataset", desc="first bytes", disable=None)
    found = {each for each, suffix in zip(asked, suffixes, strict=True) if suffix}
    return [dataclasses.replace(each, kind="e") if each in found else each for each in datasets]


def _is_bytes(array: Dataset) -> bool:
    """Return True for one encoded image: one value, or a value for each byte."""
    return array.kind == "e" and (array.shape in ((), (1,)) or array.shape[0] == array.num_bytes)


def _sort_in(file: _File, group: str, inside: list[Dataset], lengths: set[int]) -> None:
    """Sort the datasets of one group; `lengths`: of all vectors of the file."""
    singles: list[Dataset] = []
    stacks: list[Dataset] = []
    for array in inside:
        if _is_bytes(array) and not _is_stack_name(array):
            singles.append(array)
        elif _is_stack(array, lengths):
            stacks.append(array)
        elif is_vector(array) and array.kind in "uifbB":
            file.vectors.append(array)
        elif (
            array.kind in "uifb"
            and is_image_shape(array.shape)
            and not _is_stack_name(array)
            and any(map(str.isdigit, _leaf(array)))
        ):
            singles.append(array)
        else:
            file.rest.append(array)
    if stacks:  # arrays beside a stack are features, masks or labels
        file.rest += [each for each in singles if each.kind != "e"]
        singles = [each for each in singles if each.kind == "e"]
    file.stacks += stacks
    if singles:
        file.singles[group] = singles


def _is_stack(array: Dataset, lengths: set[int]) -> bool:
    """Return True for a stack; (N, H, W) is one if its name says so, or a vector has N values."""
    if array.kind == "e":
        return not _is_bytes(array)
    named = len(array.shape) != 3 or _is_stack_name(array) or array.shape[0] in lengths
    return named and is_stack(array, [array])


def _leaf(array: Dataset) -> str:
    return array.key.rpartition("/")[2]


def _is_stack_name(array: Dataset) -> bool:
    """Return True for names such as `x`, `images`, `X_train`, `train_set_x`, `test`."""
    rest = name_without_part(array)
    return rest in STACK_NAMES or not rest


def _image_names(stage: Staged) -> dict[str, set[str]]:
    """Return the names of the image files of each part, with and without suffix."""
    names: dict[str, set[str]] = {}
    for path in stage.files(tuple(IMAGE_SUFFIXES)):
        names.setdefault(part_of(stage.shown(path)), set()).update((path.name, path.stem))
    return names


# ---- a dataset for each image ----


def _rule(stage: Staged, arrays: Sequence[Dataset]) -> Rule:
    """Return the grey range of images that are arrays, with a note."""
    if not arrays:
        return Survey().rule()
    by_path: dict[Path, list[Dataset]] = {}
    for array in arrays[:: max(1, len(arrays) // SURVEYED)]:
        by_path.setdefault(array.path, []).append(array)
    images = (planes_of(value) for each in by_path.values() for value in read_each(each))
    rule = stage.surveyed("grey levels of HDF5 files", "arrays of HDF5 files", images)
    colours = channels_rule(_num_channels(arrays[0].shape))
    stage.notes.append("; ".join(filter(None, [f"arrays of HDF5 files: {rule.says}", colours])))
    return rule


def _num_channels(shape: tuple[int, ...]) -> int:
    return 1 if len(shape) == 2 else shape[2] if shape[2] <= min(shape[:2]) else shape[0]


def _write_singles(stage: Staged, file: _File, rule: Rule, there: dict[str, set[str]]) -> None:
    """Write the images of one file, except those that are image files of the same part already."""
    shown = stage.shown(file.path)
    folders = {group: _folder(shown, group) for group in file.singles}
    _check_ids(shown, file, folders)
    wanted: list[Dataset] = []
    known = 0
    for group, arrays in file.singles.items():
        names = there.setdefault(folders[group].parts[0], set())
        wanted += [array for array in arrays if not names & {_leaf(array), _stem(array)}]
        known += sum(bool(names & {_leaf(array), _stem(array)}) for array in arrays)
    if not wanted:
        stage.notes.append(f"{shown} left out: its {counted(known, 'image')} exist as files already")
        return
    values = tqdm(read_each(wanted), total=len(wanted), unit="image", desc=shown, disable=None)
    for array, value in zip(wanted, values, strict=True):
        folder = folders[array.key.rpartition("/")[0]]
        if isinstance(value, bytes):
            write_encoded(value, stage.root / folder, _leaf(array), shown)
        else:
            stage.save(rule.apply(planes_of(value)), stage.root / folder / f"{_stem(array)}.png")
        there[folder.parts[0]].update((_leaf(array), _stem(array)))
    into = listed(f"{folder.as_posix()}/" for folder in sorted({*folders.values()}))
    also = f"; {counted(known, 'image')} of it exist as files already" if known else ""
    stage.notes.append(
        f"{shown}: {counted(len(wanted), 'image')} written into {into} (names: those of the datasets){also}"
    )


def _stem(array: Dataset) -> str:
    name = _leaf(array)
    return name.rpartition(".")[0] if suffix_of(name) in IMAGE_SUFFIXES else name


def _folder(shown: str, group: str) -> Path:
    """Return the folder of a group's images: its part (train, test, val) or the file's name, then the groups
    below.

    Raises:
        UserError: the names of file and group are of different parts.
    """
    own = (
        part_of(shown)
        if len({match.lastindex for match in PARTS.finditer(Path(shown).stem.lower())}) < 2
        else ""
    )
    pieces = group.split("/") if group else []
    for position, piece in enumerate(pieces):
        part = part_of(piece)
        if part and own and part != own:
            raise UserError(
                f"{shown}: it is unclear whether the images of its group {one_line(group)!r} are of the part "
                f"{own!r} or {part!r}; rename the file (images.h5), and run the command again"
            )
        if part:
            return Path(part, *pieces[position + 1 :])
    return Path(own or Path(shown).stem, *pieces)


def _check_ids(shown: str, file: _File, folders: dict[str, Path]) -> None:
    """Check that the names of groups and datasets can name files, and that each id is one image of its part.

    Raises:
        UserError: they cannot, or an id occurs in several groups.
    """
    first: dict[tuple[str, str], Dataset] = {}
    for group, arrays in file.singles.items():
        check_names([_leaf(array) for array in arrays], shown)
        for piece in group.split("/") if group else []:
            check_names([piece], shown)
        for array in arrays:
            other = first.setdefault((folders[group].parts[0], _stem(array)), array)
            if other is not array:
                raise UserError(
                    f"{shown}: {one_line(other.key)!r} and {one_line(array.key)!r} have the same id: it is "
                    "unclear whether a group is a class, an image or a kind of images; write the images as "
                    "files, train/CLASS/ID.png, and move the HDF5 file away"
                )
