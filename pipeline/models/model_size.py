"""Count a model's weights before it is built: a config of a few bytes may need more memory than the
machine has.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForImageClassification

from pipeline.errors import UserError
from pipeline.files import human_size

BYTES = 4  # per weight: models are built in float32
# Files store two or four bytes per weight. Some weights are not in them: a new head, position tables for
# another image size, and their indices. So a model may have up to this many weights per byte, plus a
# constant.
MOST_A_BYTE, ENOUGH = 8, 10_000_000
WEIGHTS = ("*.safetensors", "*.bin")


def check_size(source: str, config: Any, key: str = "--backbone") -> None:
    """Check that the model fits into this machine's memory and agrees with its weight files in folder
    `source`.

    Raises:
        UserError: `config` needs more memory than the machine has, or far more weights than the files hold.
    """
    try:
        with torch.device("meta"):  # shapes without memory
            model = AutoModelForImageClassification.from_config(config)
    except Exception:  # the error is reported where the model is built
        return
    numbers = _count(model)
    if numbers * BYTES > _memory():
        raise UserError(
            f"{key} {source}: its config needs {numbers:,} weights, {human_size(numbers * BYTES)} in "
            f"float32; this machine has {human_size(_memory())} of memory"
        )
    files = (
        [file for pattern in WEIGHTS for file in Path(source).glob(pattern)] if Path(source).is_dir() else []
    )
    in_files = sum(file.stat().st_size for file in files)
    if files and numbers > MOST_A_BYTE * in_files + ENOUGH:
        raise UserError(
            f"{key} {source}: its config.json needs {numbers:,} weights, but its weight files have only "
            f"{in_files:,} bytes"
        )


def _count(model: nn.Module) -> int:
    return sum(weight.numel() for weight in (*model.parameters(), *model.buffers()))


def _memory() -> int:
    """Return the machine's memory in bytes; a huge number where the system does not report it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 2**63
