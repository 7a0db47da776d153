"""Convert images in NumPy files (.npy, .npz): one image per file, or a stack of images with arrays of ids and
labels.
"""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pipeline.competition.folders import plain_name
from pipeline.errors import UserError
from pipeline.fetch.budget import allowed_bytes
from pipeline.fetch.grey_range import Rule, Survey
from pipeline.fetch.pixels import SMALLEST_SIDE, channels_rule, save
from pipeline.fetch.staged_rows import (
    ID_NAMES,
    TABLES,
    Staged,
    are_sample_ids,
    cell_text,
    check_names,
    id_column,
    part_of,
    row_ids,
    write_rows,
)
from pipeline.tables import load_table
from pipeline.wording import counted, listed

_DAMAGE = (
    ValueError,
    OSError,
    EOFError,
    KeyError,
    SyntaxError,
    TypeError,
    zipfile.BadZipFile,
    zlib.error,
    tokenize.TokenError,
    MemoryError,
)
SURVEYED_FILES = 2000  # files with one image each that are read for the grey range


@dataclass(frozen=True)
class _Array:
    """One array of a file. `key`: its name in an .npz; empty for an .npy."""

    path: Path
    key: str
    shape: tuple[int, ...]
    kind: str  # NumPy's: u i f b U S

    def load(self) -> np.ndarray:
        """Return the array; an .npy is memory-mapped.

        Raises:
            UserError: the data after its header is damaged.
        """
        try:
            if self.key:
                with np.load(self.path, allow_pickle=False) as file:
                    return file[self.key]
            return np.load(self.path, mmap_mode="r", allow_pickle=False)
        except _DAMAGE as error:
            raise UserError(f"{self.path.name} is damaged ({error}); download it again") from None


def convert(stage: Staged) -> None:
    """Write the images in .npy and .npz files below `stage.root` as PNG; a stack with labels also gets a
    table.

    Files with pickled objects are never loaded. Files without images are kept and noted.

    Raises:
        UserError: a training stack has no labels of its length.
    """
    arrays, unread = [], []
    for path in stage.files((".npy", ".npz")):
        try:
            arrays += _headers(path)
        except _DAMAGE as error:
            reason = f"it is damaged ({error})"
            if any(words in str(error) for words in ("allow_pickle", "Object arrays", "Python objects")):
                reason = "it holds pickled Python objects, which may run code"
            unread.append(f"{stage.shown(path)} was not turned into images: {reason}")
    if stage.repeated is not None:  # a file may hold training images too; their labels are not here
        arrays = [array for array in arrays if not array.key or _part(stage, array) != "train"]
    stage.notes += unread[:5] + (
        [f"{counted(len(unread) - 5, 'more file')} of NumPy could not be read"] if len(unread) > 5 else []
    )
    stacks = _stacks(stage, arrays)
    single = [
        array for array in arrays if array not in stacks and not array.key and _planes_shape(array.shape)
    ]
    if single and stage.has_images([array.path.stem for array in single]):
        stage.notes.append(
            f"{counted(len(single), 'NumPy file')} kept: images of the same names exist (masks, features?)"
        )
        arrays, single = [array for array in arrays if array not in single], []
    if single:
        _write_files(stage, single)
    if stacks:
        _write_stacks(stage, stacks, [array for array in arrays if _is_vector(array)])
    rest = sorted({stage.shown(array.path) for array in arrays if array.path.exists()})
    if rest:
        stage.notes.append(f"NumPy files without images, kept: {listed(rest)}")


def _is_vector(array: _Array) -> bool:
    return len(array.shape) == 1 or (len(array.shape) == 2 and 1 in array.shape)


def _headers(path: Path) -> list[_Array]:
    """Return the arrays of a file, from their headers only.

    Raises:
        ValueError: the file is damaged, or an array holds objects.
    """
    if path.suffix.lower() == ".npy":
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        return [_Array(path, "", array.shape, array.dtype.kind)]
    found = []
    with zipfile.ZipFile(path) as file:
        for name in file.namelist():
            with file.open(name) as member:
                version = np.lib.format.read_magic(member)
                read = (
                    np.lib.format.read_array_header_1_0
                    if version == (1, 0)
                    else np.lib.format.read_array_header_2_0
                )
                shape, _, kind = read(member)
            if kind.hasobject:
                raise ValueError("Object arrays cannot be loaded when allow_pickle=False")
            if math.prod(shape) * kind.itemsize > allowed_bytes(path.stat().st_size):
                raise ValueError(f"an array of shape {shape} in a file of {path.stat().st_size:,} bytes")
            found.append(_Array(path, name.removesuffix(".npy"), shape, kind.kind))
    return found


def _planes_shape(shape: tuple[int, ...]) -> bool:
    """Return True for the shape of one image: (H, W), (H, W, C) or (C, H, W)."""
    return (len(shape) == 2 and min(shape) >= SMALLEST_SIDE) or (
        len(shape) == 3 and sorted(shape)[1] >= SMALLEST_SIDE
    )


def _stacks(stage: Staged, arrays: list[_Array]) -> list[_Array]:
    """Return the arrays that hold many images, also those of few images shaped like those of a larger one."""
    sure, name = [array for array in arrays if _is_stack(array, arrays)], "shapes of stacks"
    if name not in stage.repeated if stage.repeated is not None else not sure:
        return []  # few files, of a kernel's placeholder set, may look like stacks
    shapes = stage.decide(
        name, lambda: [list(shape) for shape in sorted({array.shape[1:] for array in sure})]
    )
    return [
        array
        for array in arrays
        if array in sure
        or (array.kind in "uifb" and len(array.shape) > 2 and list(array.shape[1:]) in shapes)
    ]


def _is_stack(array: _Array, arrays: list[_Array]) -> bool:
    """Return True if an array holds many images: it has four dimensions, or three and few other files have
    three.
    """
    if array.kind not in "uifb" or min(array.shape, default=0) == 0:
        return False
    if len(array.shape) == 4:
        return sorted(array.shape[1:])[1] >= SMALLEST_SIDE
    if len(array.shape) != 3 or min(array.shape[1:]) < SMALLEST_SIDE:
        return False
    alike = sum(len(other.shape) == 3 and not other.key for other in arrays)
    return bool(array.key) or (alike <= 4 and array.shape[0] > 4)


def _planes(image: np.ndarray) -> np.ndarray:
    """Return (C, H, W) of one image (H, W), (H, W, C) or (C, H, W); the last axis is the channels if it is
    the shortest.
    """
    image = np.asarray(image).astype(np.uint8) if image.dtype.kind == "b" else np.asarray(image)
    if image.ndim == 2:
        return image[None]
    if image.shape[2] <= min(image.shape[:2]) and image.shape[2] <= image.shape[0]:
        return image.transpose(2, 0, 1)
    return image


def _write_files(stage: Staged, arrays: list[_Array]) -> None:
    survey = Survey()
    for array in arrays[:: max(1, len(arrays) // SURVEYED_FILES)] if stage.repeated is None else ():
        survey.add(_planes(array.load()))
    rule = stage.rule("grey levels of NumPy files", survey.rule)
    for array in tqdm(arrays, unit="image", desc=".npy", disable=None):
        planes = _planes(array.load())
        save(rule.apply(planes), array.path.with_suffix(".png"))
        array.path.unlink()
    colours = {channels_rule(len(_planes(np.empty(array.shape)))) for array in arrays[:1]} - {""}
    stage.notes.append(
        "; ".join(
            [f"{counted(len(arrays), 'NumPy file')} converted to images in place: {rule.says}", *colours]
        )
    )
    if survey.num_without:
        stage.notes.append("NumPy files: NaN and infinite values count as missing and are black")


# ---- stacks ----


def _write_stacks(stage: Staged, stacks: list[_Array], vectors: list[_Array]) -> None:
    survey = Survey()
    for array in stacks if stage.repeated is None else ():
        for image in _images(array):
            survey.add(_planes(image))
    rule = stage.rule("grey levels of stacks", survey.rule)
    used: set[_Array] = set()
    for array in stacks:
        used |= _write_stack(stage, array, vectors, rule)
    colours = channels_rule(len(_planes(np.empty(stacks[0].shape[1:]))))
    stage.notes.append("; ".join(filter(None, [f"stacks of images: {rule.says}", colours])))
    if survey.num_without:
        stage.notes.append("stacks of images: NaN and infinite values count as missing and are black")
    for path in {array.path for array in stacks} | {vector.path for vector in vectors if vector in used}:
        path.unlink(missing_ok=True)


def _images(array: _Array) -> Iterator[np.ndarray]:
    loaded = array.load()
    yield from (np.asarray(loaded[number]) for number in range(len(loaded)))


def _part(stage: Staged, array: _Array) -> str:
    return part_of(f"{stage.shown(array.path)}/{array.key}")


def _write_stack(stage: Staged, array: _Array, vectors: list[_Array], rule: Rule) -> set[_Array]:
    """Write the images of one stack and their table; returns the arrays with its ids and labels."""
    count = array.shape[0]
    part = _part(stage, array)
    original = "/".join(filter(None, [stage.shown(array.path), array.key]))
    beside = [vector for vector in vectors if max(vector.shape) == count and _part(stage, vector) == part]
    texts = {vector: [cell_text(value) for value in np.asarray(vector.load()).ravel()] for vector in beside}
    ids = [
        vector
        for vector in beside
        if len(set(texts[vector])) == count and _names_rows(stage, part, vector, texts[vector])
    ]
    ids.sort(key=lambda vector: not are_sample_ids(stage, part, texts[vector]))
    labels = [vector for vector in beside if vector not in ids]
    table_ids, table_name = _table_ids(stage, part, count)
    if ids:
        names, how = texts[ids[0]], (ids[0].key or ids[0].path.name)
    elif table_ids:
        names, how = table_ids, f"row by row the ids of {table_name}"
    else:
        names, how = row_ids(stage, part, count)
    if part == "train" and not labels and not table_ids:
        raise UserError(
            f"{original} holds {counted(count, 'image')}, but no table or array beside it has {count:,} "
            "labels: one label for each image is needed"
        )
    check_names(names, original)
    folder = part or array.path.stem
    for name, image in zip(
        tqdm(names, unit="image", desc=original, disable=None), _images(array), strict=True
    ):
        save(rule.apply(_planes(image)), stage.root / folder / f"{name}.png")
    written = ""
    if not table_ids:
        columns = [stage.id_column, *(_label_name(vector, len(labels)) for vector in labels)]
        rows = [[name, *(texts[vector][number] for vector in labels)] for number, name in enumerate(names)]
        written = f"; labels: {write_rows(stage, part, array.path.stem, columns, rows)}" if labels else ""
    stage.notes.append(
        f"{original}: {counted(count, 'image')} written into {folder}/ (names: {how}){written}"
    )
    return set(beside)


def _names_rows(stage: Staged, part: str, vector: _Array, texts: list[str]) -> bool:
    """Return True for an array with the name of ids (`id`, `test_ids`), or with ids of the sample."""
    name = plain_name(vector.key or vector.path.stem)
    return name.removesuffix("s").endswith(ID_NAMES) or are_sample_ids(stage, part, texts)


def _label_name(vector: _Array, count: int) -> str:
    return "label" if count == 1 else (vector.key or vector.path.stem)


def _table_ids(stage: Staged, part: str, count: int) -> tuple[list[str], str]:
    """Return the ids of a part's table with as many rows as the stack has images, and the table's name."""
    for path in stage.files(TABLES):
        if path == stage.sample or part_of(stage.shown(path)) != part or not part:
            continue
        try:
            table = load_table(path)
        except UserError:
            continue
        column = id_column(stage, table.columns, table.cells, part) if len(table.cells) == count else None
        if column is not None:
            return [row[column] for row in table.cells], path.name
    return [], ""
