"""Convert images in NumPy files (.npy, .npz): one image per file, or a stack of images with arrays of ids and
labels.
"""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pipeline.errors import UserError
from pipeline.fetch.budget import allowed_bytes
from pipeline.fetch.pixels import channels_rule
from pipeline.fetch.stacks import (
    Array,
    described,
    is_image_shape,
    is_vector,
    planes_of,
    stacks_of,
    without_training,
    write_stacks,
)
from pipeline.fetch.staged_rows import Staged
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


@dataclass(frozen=True, slots=True)
class _Array(Array):
    """One array of an .npz, or that of an .npy."""

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
    arrays = without_training(stage, arrays)
    stage.notes += unread[:5] + (
        [f"{counted(len(unread) - 5, 'more file')} of NumPy could not be read"] if len(unread) > 5 else []
    )
    stacks = stacks_of(stage, arrays)
    counts = {array.shape[0] for array in stacks}
    single = [
        array
        for array in arrays
        if array not in stacks
        and not array.key
        and array.kind in "uifb"
        and is_image_shape(array.shape)
        and not (len(array.shape) == 2 and array.shape[0] in counts)  # features or labels of a stack
    ]
    if single and stage.has_images([array.path.stem for array in single]):
        stage.notes.append(
            f"{counted(len(single), 'NumPy file')} kept: images of the same names exist (masks, features?)"
        )
        arrays, single = [array for array in arrays if array not in single], []
    if single:
        _write_files(stage, single)
    if stacks:
        vectors = [array for array in arrays if is_vector(array)]
        others = [array for array in arrays if array not in stacks and array not in vectors]
        write_stacks(stage, stacks, vectors, others, "NumPy files")
        unused = [array for array in others if not array.path.exists()]
        if unused:
            stage.notes.append(f"of NumPy files not used: {described(unused)}")
    rest = sorted({stage.shown(array.path) for array in arrays if array.path.exists()})
    if rest:
        stage.notes.append(f"NumPy files without images, kept: {listed(rest)}")


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


def _write_files(stage: Staged, arrays: list[_Array]) -> None:
    some = arrays[:: max(1, len(arrays) // SURVEYED_FILES)]
    images = (planes_of(array.load()) for array in some)
    rule = stage.surveyed("grey levels of NumPy files", "NumPy files", images)
    for array in tqdm(arrays, unit="image", desc=".npy", disable=None):
        planes = planes_of(array.load())
        stage.save(rule.apply(planes), array.path.with_suffix(".png"))
        array.path.unlink()
    colours = {channels_rule(len(planes_of(np.empty(array.shape)))) for array in arrays[:1]} - {""}
    stage.notes.append(
        "; ".join(
            [f"{counted(len(arrays), 'NumPy file')} converted to images in place: {rule.says}", *colours]
        )
    )
