"""The test suite's switch TEST_PRECISION=fp32|bf16: what `precision: auto` means on the CPU, whatever this
machine computes in.

Python runs this file when it starts (conftest.py puts its folder on PYTHONPATH), so it also holds in every
process that a test starts.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MODULE = "pipeline.training.compute"


class _Switch(MetaPathFinder):
    """Changes `computes_bf16` as soon as its module is imported, and not before: torch takes seconds."""

    def __init__(self, answer: bool) -> None:
        self.answer = answer

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != MODULE:
            return None
        sys.meta_path.remove(self)  # or it would find itself
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def load_and_change(module: ModuleType) -> None:
            load(module)
            asked = module.computes_bf16

            @functools.wraps(asked)
            def computes_bf16(device: Any) -> bool:
                return self.answer if device.type == "cpu" else asked(device)

            module.computes_bf16 = computes_bf16

        spec.loader.exec_module = load_and_change
        return spec


if wanted := os.environ.get("TEST_PRECISION"):
    if wanted not in ("fp32", "bf16"):
        sys.exit(f"TEST_PRECISION={wanted}: expected fp32 or bf16")
    sys.meta_path.insert(0, _Switch(wanted == "bf16"))
