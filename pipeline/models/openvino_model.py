"""Run a finished image model with OpenVINO, which is faster than torch on CPUs: `python inference.py
--engine openvino`.

https://docs.openvino.ai/2025/openvino-workflow/model-preparation/convert-model-pytorch.html
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from pipeline.errors import UserError

PRECISIONS = {"fp32": "f32", "bf16": "bf16"}  # ours -> OpenVINO's name


class _Logits(nn.Module):
    """`model` as a function of one tensor that returns one tensor, for the conversion."""

    def __init__(self, model: nn.Module, extra: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.extra = model, extra

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=pixel_values, **self.extra).logits


class OpenVinoModel(nn.Module):
    """Replaces the torch model: `model(pixel_values=(B, 3, H, W) float32).logits` is (B, C) float32."""

    def __init__(self, compiled: Any) -> None:
        super().__init__()
        self.compiled = compiled

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> SimpleNamespace:
        """Return the logits. Other arguments were fixed by the conversion and are ignored."""
        found = self.compiled([pixel_values.contiguous().numpy()])[0]
        # OpenVINO writes the next batch into the same memory
        return SimpleNamespace(logits=torch.from_numpy(found.copy()))


def openvino_version() -> str:
    """Return the version of the package.

    Raises:
        UserError: it is not installed.
    """
    try:
        import openvino
    except ImportError:
        raise UserError(
            "--engine openvino: the package openvino is not installed: python -m pip install openvino"
        ) from None
    return str(openvino.__version__).split("-")[0]


def to_openvino(
    model: nn.Module, extra: dict[str, Any], size: tuple[int, int], precision: str
) -> OpenVinoModel:
    """Convert `model` (float32, on the CPU) for images of `size` (height, width) and any batch size, and
    compile it.

    It uses as many threads as torch. `extra`: its other arguments, which are fixed. In bf16 the output of the
    last layer stays float32, so that logits do not tie.

    Raises:
        UserError: the package is missing, the precision is not in `PRECISIONS`, or the model cannot be
            converted.
    """
    check_precision(precision)
    return compile_converted(convert(model, extra, size), precision)


def check_precision(precision: str) -> None:
    """Check that OpenVINO is installed and computes in `precision`.

    Raises:
        UserError: it is not, or does not.
    """
    openvino_version()
    if precision not in PRECISIONS:
        raise UserError(
            f"--engine openvino computes in {' or '.join(PRECISIONS)}, not in {precision}: --precision auto"
        )


def convert(model: nn.Module, extra: dict[str, Any], size: tuple[int, int]) -> Any:
    """Return `model` as an openvino.Model; arguments as for `to_openvino`.

    Raises:
        UserError: it cannot be converted.
    """
    import openvino

    example = torch.zeros(2, 3, *size)
    with _refusing("convert"), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of the tracer about fixed shapes
        converted = openvino.convert_model(_Logits(model.eval(), extra), example_input=example)
        converted.reshape([-1, 3, *size])
    return converted


def compile_converted(converted: Any, precision: str) -> OpenVinoModel:
    """Compile an openvino.Model, or the path of one, for as many threads as torch uses.

    Raises:
        UserError: it cannot be read or compiled.
    """
    import openvino

    hints = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": str(torch.get_num_threads()),
    }
    with _refusing("compile"):
        return OpenVinoModel(
            openvino.Core().compile_model(
                converted, "CPU", {**hints, "INFERENCE_PRECISION_HINT": PRECISIONS[precision]}
            )
        )


@contextmanager
def _refusing(what: str) -> Iterator[None]:
    """Raise any exception as a UserError: OpenVINO raises RuntimeError and classes of its own."""
    try:
        yield
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = (lines or [type(error).__name__])[-1][
            :200
        ]  # the lines before it name OpenVINO's source files
        raise UserError(
            f"--engine openvino cannot {what} this model ({reason}); to predict with torch, leave --engine "
            "out"
        ) from error
