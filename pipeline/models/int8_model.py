"""A finished image model with weights and activations in 8 bits, for `--engine openvino-int8`.

Post-training quantization by NNCF: it reads the ranges of activations from a few images, without training.
https://docs.openvino.ai/2025/openvino-workflow/model-optimization-guide/quantizing-models-post-training/basic-quantization-flow.html
"""

from __future__ import annotations

import io
import logging
import platform
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.errors import UserError
from pipeline.models.openvino_model import OpenVinoModel, compile_converted, convert, openvino_version

XML, BIN = "model.xml", "model.bin"  # OpenVINO's own format: the layers, the weights


def read_versions() -> dict[str, str]:
    """Return the versions of the packages that make a model in 8 bits.

    Raises:
        UserError: one is not installed; all that are missing are named.
    """
    missing = []
    for name in ("openvino", "nncf"):
        try:
            import_module(name)
        except ImportError:
            missing.append(name)
    if missing:
        raise UserError(
            "--engine openvino-int8: packages that make the model in 8 bits are not installed: "
            f"python -m pip install {' '.join(missing)}"
        )
    return {"openvino": openvino_version(), "nncf": str(import_module("nncf").__version__)}


def is_slow_here() -> bool:
    """Return True on an x86 CPU whose products in 8 bits are slow: it has neither AVX-512 nor VNNI."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return not (torch.cpu._is_avx512_supported() or known.get("avx_vnni", False))


def quantize(
    model: nn.Module,
    extra: dict[str, Any],
    size: tuple[int, int],
    images: Sequence[Any],
    prepared: Callable[[Any], np.ndarray],
) -> Any:
    """Return `model` as an openvino.Model in 8 bits. `model`, `extra`, `size`: as for `to_openvino`.

    `images`: those from which the ranges are read; `prepared` makes of one of them an array (1, 3, H, W)
    float32, preprocessed as for prediction. It is called again in each pass, so that memory holds `images`
    alone.

    Raises:
        UserError: a package is missing, or the model cannot be converted or quantized.
    """
    read_versions()
    import nncf

    converted = convert(model, extra, size)
    nncf.set_log_level(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()):  # its progress bars
            return nncf.quantize(
                converted,
                nncf.Dataset(images, prepared),
                model_type=nncf.ModelType.TRANSFORMER,
                subset_size=len(images),
            )
    except Exception as error:  # classes of NNCF and of OpenVINO
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(
            f"--engine openvino-int8 cannot quantize this model ({reason}): use --engine openvino"
        ) from error


def save_quantized(quantized: Any, folder: Path) -> None:
    """Write `quantized` into `folder`: `XML` and `BIN`."""
    import openvino

    openvino.save_model(quantized, str(folder / XML), compress_to_fp16=False)


def load_quantized(folder: Path, precision: str) -> OpenVinoModel:
    """Return the model that `save_quantized` wrote; layers not in 8 bits are computed in `precision`.

    Raises:
        UserError: it cannot be read.
    """
    return compile_converted(str(folder / XML), precision)
