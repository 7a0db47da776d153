"""Write stacks of images as PNG or as they are encoded, with the arrays of ids and labels beside them; of any
file format.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from pipeline.competition.folders import IMAGE_SUFFIXES, plain_name, suffix_of
from pipeline.errors import UserError, one_line
from pipeline.fetch.grey_range import Rule, Survey
from pipeline.fetch.pixels import SMALLEST_SIDE, channels_rule, encoded_suffix, new_file
from pipeline.fetch.staged_rows import (
    ID_NAMES,
    TABLES,
    Staged,
    are_sample_ids,
    cell_text,
    check_names,
    id_column,
    new_column,
    part_of,
    row_ids,
    write_rows,
)
from pipeline.tables import load_table
from pipeline.wording import counted, listed

LABEL_NAMES = frozenset("y label labels target targets class classes onehot".split())


@dataclass(frozen=True, slots=True)
class Array:
    """One array of a file, not loaded yet. `key`: its name in the file; empty if the file holds one array."""

    path: Path
    key: str
    shape: tuple[int, ...]
    kind: str  # NumPy's: u i f b U S; e: encoded images (JPEG, PNG, ...)

    def load(self) -> np.ndarray:
        """Return the whole array.

        Raises:
            UserError: its data are damaged.
        """
        raise NotImplementedError

    def entries(self) -> Iterator[np.ndarray | bytes]:
        """Yield the entries along the first axis, one after the other.

        Raises:
            UserError: its data are damaged.
        """
        loaded = self.load()
        yield from (np.asarray(loaded[number]) for number in range(len(loaded)))


AnyArray = TypeVar("AnyArray", bound=Array)


def is_vector(array: Array) -> bool:
    """Return True for one value for each row: (N,), (N, 1), (N, 1, 1, 1), (1, N)."""
    return bool(array.shape) and array.shape.count(1) >= len(array.shape) - 1


def described(arrays: Iterable[Array]) -> str:
    """Return names and shapes of arrays, for messages."""
    return listed(f"{one_line(array.key or array.path.name)} {array.shape}" for array in arrays)


def name_without_part(array: Array) -> str:
    """Return the plain name of an array without the words for a part of the data: `x` for `x_train`."""
    name = plain_name((array.key or array.path.stem).rpartition("/")[2])
    return re.sub(r"train(ing)?|test(ing)?|valid(ation)?|val|dev", "", name)


def is_image_shape(shape: tuple[int, ...]) -> bool:
    """Return True for the shape of one image: (H, W), (H, W, C) or (C, H, W)."""
    return (len(shape) == 2 and min(shape) >= SMALLEST_SIDE) or (
        len(shape) == 3 and sorted(shape)[1] >= SMALLEST_SIDE
    )


def is_stack(array: Array, arrays: list[Array]) -> bool:
    """Return True if an array holds many images: it has four dimensions, or three and few other files have
    three.
    """
    if array.kind == "e":
        return len(array.shape) == 1
    if array.kind not in "uifb" or min(array.shape, default=0) == 0:
        return False
    if len(array.shape) == 4:
        return sorted(array.shape[1:])[1] >= SMALLEST_SIDE
    if len(array.shape) != 3 or min(array.shape[1:]) < SMALLEST_SIDE:
        return False
    alike = sum(len(other.shape) == 3 and not other.key for other in arrays)
    return bool(array.key) or (alike <= 4 and array.shape[0] > 4)


def stacks_of(stage: Staged, arrays: list[Array]) -> list[Array]:
    """Return the `arrays` that hold many images, also of few images if these have the shape of others."""
    sure, name = [array for array in arrays if is_stack(array, arrays)], "shapes of stacks"
    if name not in stage.repeated if stage.repeated is not None else not sure:
        return []  # few files, of a kernel's placeholder set, may look like stacks
    shapes = stage.decide(name, lambda: [list(shape) for shape in sorted({each.shape[1:] for each in sure})])
    alike = [each for each in arrays if len(each.shape) > 2 and list(each.shape[1:]) in shapes]
    return [each for each in arrays if each in sure or (each in alike and each.kind in "uifb")]


def planes_of(image: np.ndarray) -> np.ndarray:
    """Return (C, H, W) of one image (H, W), (H, W, C) or (C, H, W); the last axis is the channels if it is
    the shortest.
    """
    image = np.asarray(image).astype(np.uint8) if image.dtype.kind == "b" else np.asarray(image)
    if image.ndim == 2:
        return image[None]
    if image.shape[2] <= min(image.shape[:2]) and image.shape[2] <= image.shape[0]:
        return image.transpose(2, 0, 1)
    return image


def write_stacks(
    stage: Staged, stacks: list[Array], vectors: list[Array], others: list[Array], where: str
) -> None:
    """Write the images of `stacks`, and a table for each part with labels; deletes the files that were used.

    Ids and labels are those `vectors` of the same part that have a value for each image. Arrays become PNGs
    by one rule for all stacks, encoded images are not changed. `where`: the kind of file, in messages.
    `others`: arrays that are not used.

    Raises:
        UserError: a training stack has no labels of its length, or several values for each image are called
            its labels; its ids cannot name files, or its data are damaged.
    """
    for array in stacks:
        _check_labels(stage, array, others)
    rule, plain = Survey().rule(), [array for array in stacks if array.kind != "e"]
    if plain:
        rule = stage.surveyed(f"grey levels of stacks in {where}", "stacks of images", _all_planes(plain))
    used: set[Array] = set()
    for array in stacks:
        others = {other.path for other in stacks} - {array.path}  # their ids and labels are of other images
        used |= _write_stack(stage, array, [each for each in vectors if each.path not in others], rule)
    if plain:
        colours = channels_rule(len(planes_of(np.empty(plain[0].shape[1:]))))
        stage.notes.append("; ".join(filter(None, [f"stacks of images: {rule.says}", colours])))
    for path in {array.path for array in stacks} | {vector.path for vector in vectors if vector in used}:
        path.unlink(missing_ok=True)


def _check_labels(stage: Staged, array: Array, others: Iterable[Array]) -> None:
    """Check that no array with several values for each training image is called its labels, without a table:
    they are not read, and another array would be taken for the labels.
    """
    part, count = part_of_array(stage, array), array.shape[0]
    if part in ("test", "val") or _table_ids(stage, part, count)[0]:
        return
    for other in others:
        if (
            len(other.shape) == 2
            and other.shape[0] == count
            and part_of_array(stage, other) == part
            and name_without_part(other) in LABEL_NAMES
        ):
            shown = one_line("/".join(filter(None, [stage.shown(other.path), other.key])))
            called = "" if part else ", and call the array of images x_train"
            raise UserError(
                f"{shown} has {other.shape[1]:,} values for each of {counted(count, 'image')}, and labels in "
                "an array must be one for each: put a train.csv beside the file, with a column id (0 to "
                f"{count - 1}) and a column for each value{called}"
            )


def _all_planes(arrays: Iterable[Array]) -> Iterator[np.ndarray]:
    for array in arrays:
        for image in tqdm(array.entries(), total=array.shape[0], unit="image", desc="range", disable=None):
            yield planes_of(image)


def without_training(stage: Staged, arrays: list[AnyArray]) -> list[AnyArray]:
    """Return the `arrays` that a kernel needs: a file may hold training images too, but not their labels
    beside it. All of them for the first conversion, and where each file is one array.
    """
    if stage.repeated is None:
        return arrays
    return [array for array in arrays if not array.key or part_of_array(stage, array) != "train"]


def part_of_array(stage: Staged, array: Array) -> str:
    """Return `train`, `test` or `val` from the names of the array and of its file; else empty."""
    return part_of(f"{stage.shown(array.path)}/{array.key}")


def _write_stack(stage: Staged, array: Array, vectors: list[Array], rule: Rule) -> set[Array]:
    """Write the images of one stack and their table; returns the arrays with its ids and labels."""
    count = array.shape[0]
    part = part_of_array(stage, array)
    original = one_line("/".join(filter(None, [stage.shown(array.path), array.key])))
    beside = [
        vector for vector in vectors if max(vector.shape) == count and part_of_array(stage, vector) == part
    ]
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
        tqdm(names, unit="image", desc=original, disable=None), array.entries(), strict=True
    ):
        if isinstance(image, bytes):
            write_encoded(image, stage.root / folder, name, original)
        else:
            stage.save(rule.apply(planes_of(image)), stage.root / folder / f"{name}.png")
    written = ""
    if labels:
        columns = [_label_name(vector, len(labels)) for vector in labels]
        columns = [new_column(stage, columns), *columns]
        rows = [[name, *(texts[vector][number] for vector in labels)] for number, name in enumerate(names)]
        written = f"; labels: {write_rows(stage, part, array.path.stem, columns, rows)}"
    stage.notes.append(
        f"{original}: {counted(count, 'image')} written into {folder}/ (names: {how}){written}"
    )
    return set(beside)


def write_encoded(data: bytes, folder: Path, name: str, original: str) -> None:
    """Write an encoded image unchanged; its suffix comes from its first bytes, if `name` has none.

    Raises:
        UserError: it is no encoded image, or its file exists.
    """
    suffix = encoded_suffix(data)
    if not suffix:
        raise UserError(f"{original}: the entry of {name!r} holds no encoded image (JPEG, PNG, ...)")
    with new_file(folder / (name if suffix_of(name) in IMAGE_SUFFIXES else name + suffix)) as file:
        file.write(data)


def _names_rows(stage: Staged, part: str, vector: Array, texts: list[str]) -> bool:
    """Return True for an array with the name of ids (`id`, `test_ids`), or with ids of the sample."""
    return name_without_part(vector).removesuffix("s").endswith(ID_NAMES) or are_sample_ids(
        stage, part, texts
    )


def _label_name(vector: Array, count: int) -> str:
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
