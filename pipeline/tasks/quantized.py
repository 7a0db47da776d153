"""Keep a run's 8-bit model (`--engine openvino-int8`), and check that it is complete and of these weights.

`openvino-int8/` holds model.xml, model.bin and made_of.json: how it was made, and how much its
predictions differ from torch's.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError
from pipeline.files import filling, sha256, write_json
from pipeline.run import Run
from pipeline.run_names import INT8_DIR
from pipeline.shapes import read_object

if TYPE_CHECKING:
    from pipeline.models.openvino_model import OpenVinoModel

MADE_OF = "made_of.json"


def weights_of(run: Run) -> str:
    """Return a digest of every file of the run's model: weights, adapter, preprocessing, settings."""
    found = []
    for folder in (run.backbone_dir, run.adapter_dir):
        for file in sorted(folder.rglob("*")) if folder else []:
            if file.is_file():
                found.append((f"{folder.name}/{file.relative_to(folder).as_posix()}", sha256(file)))
    return hashlib.sha256(repr(found).encode()).hexdigest()


def read_made_of(run: Run) -> dict[str, Any] | None:
    """Return what made the run's model in 8 bits; None if it is missing, damaged, or of other weights."""
    folder = run.path / INT8_DIR
    with suppress(UserError, OSError):
        made = read_object(folder / MADE_OF)
        files = made.get("files")
        whole = isinstance(files, dict) and all(
            sha256(folder / name) == digest for name, digest in files.items()
        )
        if whole and files and made.get("weights") == weights_of(run):
            return made
    return None


def keep_quantized(run: Run, quantized: Any, made: dict[str, Any]) -> None:
    """Write a model in 8 bits into the run's folder. `made`: further entries of `made_of.json`."""
    from pipeline.models.int8_model import save_quantized

    folder = run.path / INT8_DIR
    (folder / MADE_OF).unlink(missing_ok=True)  # until it is written again, there is no model
    with filling(folder) as temporary:
        save_quantized(quantized, temporary)
    note_made(run, folder, made)


def note_made(run: Run, folder: Path, made: dict[str, Any]) -> None:
    """Write `made_of.json` beside the model in `folder`, which belongs to `run`."""
    files = {file.name: sha256(file) for file in sorted(folder.iterdir()) if file.suffix in (".xml", ".bin")}
    write_json(folder / MADE_OF, {**made, "weights": weights_of(run), "files": files})


def copy_quantized(run: Run, copy: Run) -> None:
    """Copy the run's model in 8 bits to the run `copy`, of the same weights with the adapter merged."""
    made, target = required(run), copy.path / INT8_DIR
    shutil.copytree(run.path / INT8_DIR, target)
    note_made(copy, target, made)


def required(run: Run) -> dict[str, Any]:
    """Return what made the run's model in 8 bits.

    Raises:
        UserError: there is none for these weights.
    """
    made = read_made_of(run)
    if made is None:
        raise UserError(
            f"{run.path / INT8_DIR} holds no complete 8-bit model of these weights: "
            f"`python inference.py --engine openvino-int8 --model {quote(str(run.path))}` makes it, "
            "where the training images are"
        )
    return made


def load(run: Run, precision: str) -> OpenVinoModel:
    """Return the run's model in 8 bits.

    Raises:
        UserError: there is none for these weights, or a package is missing.
    """
    from pipeline.models.int8_model import is_slow_here, load_quantized
    from pipeline.models.openvino_model import check_precision

    check_precision(precision)
    required(run)
    if is_slow_here():
        print(
            "WARNING: --engine openvino-int8: this CPU has neither AVX-512 nor VNNI: "
            "--engine openvino is faster",
            file=sys.stderr,
        )
    return load_quantized(run.path / INT8_DIR, precision)
