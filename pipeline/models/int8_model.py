"""A finished image model with weights and activations in 8 bits, for `--engine openvino-int8`.

Post-training quantization by NNCF: it reads the ranges of activations from a few images, without training.
https://docs.openvino.ai/2025/openvino-workflow/model-optimization-guide/quantizing-models-post-training/basic-quantization-flow.html
"""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from pipeline.errors import UserError
from pipeline.models.openvino_model import OpenVinoModel, compile_converted, convert, openvino_version

XML, BIN = "model.xml", "model.bin"  # OpenVINO's own format: the layers, the weights


def nncf_version() -> str:
    """Return the version of NNCF.

    Raises:
        UserError: it is not installed.
    """
    try:
        import nncf
    except ImportError:
        raise UserError(
            "--engine openvino-int8: the package nncf, which makes the model in 8 bits, is not installed: "
            "python -m pip install nncf"
        ) from None
    return str(nncf.__version__)


def quantize(
    model: nn.Module, extra: dict[str, Any], size: tuple[int, int], images: Sequence[np.ndarray]
) -> Any:
    """Return `model` as an openvino.Model in 8 bits. `model`, `extra`, `size`: as for `to_openvino`.

    `images`: arrays (1, 3, H, W) float32, preprocessed as for prediction, from which the ranges are read.

    Raises:
        UserError: a package is missing, or the model cannot be converted or quantized.
    """
    openvino_version()
    nncf_version()
    import nncf

    converted = convert(model, extra, size)
    nncf.set_log_level(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()):  # its progress bars
            return nncf.quantize(
                converted,
                nncf.Dataset(images),
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
