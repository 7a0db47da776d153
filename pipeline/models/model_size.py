"""How many numbers a model holds, counted before it is built: a config of a few bytes may ask for more than a computer has."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForImageClassification

from pipeline.errors import UserError
from pipeline.files import human_size

BYTES = 4  # of a number: models are built in float32
# A file has two or four bytes a weight. What it lacks is made anew: the head, tables of positions at another image size, their indices.
MOST_A_BYTE, ENOUGH = 8, 10_000_000
WEIGHTS = ("*.safetensors", "*.bin")


def check_size(source: str, config: Any, key: str = "--backbone") -> None:
    """Nothing for a model that this machine can hold and whose weights the files in the folder `source` can be.

    Raises:
        UserError: `config` asks for more than the machine's memory, or for far more numbers than its files hold.
    """
    try:
        with torch.device("meta"):  # shapes without memory
            model = AutoModelForImageClassification.from_config(config)
    except Exception:  # whatever keeps it from being built is said where it is built
        return
    numbers = _count(model)
    if numbers * BYTES > _memory():
        raise UserError(
            f"{key} {source}: its config asks for {numbers:,} weights, {human_size(numbers * BYTES)} in float32; this machine has "
            f"{human_size(_memory())} of memory"
        )
    files = [file for pattern in WEIGHTS for file in Path(source).glob(pattern)] if Path(source).is_dir() else []
    in_files = sum(file.stat().st_size for file in files)
    if files and numbers > MOST_A_BYTE * in_files + ENOUGH:
        raise UserError(f"{key} {source}: its config.json asks for {numbers:,} weights, and its files of weights have {in_files:,} bytes")


def _count(model: nn.Module) -> int:
    return sum(weight.numel() for weight in (*model.parameters(), *model.buffers()))


def _memory() -> int:
    """Bytes of memory of this machine; no limit where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 2**63
