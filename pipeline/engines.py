"""What computes predictions and in which number format: the choices of --engine and --precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import ArgumentParser

TORCH, OPENVINO, INT8 = "torch", "openvino", "openvino-int8"
ENGINES = (TORCH, OPENVINO, INT8)
ON_CPU = (OPENVINO, INT8)  # engines that compute on the CPU only, by the package openvino
PRECISIONS = ("auto", "fp32", "bf16", "fp16")


def add_flags(parser: ArgumentParser) -> None:
    """Add --precision and --engine to the command line of a program that predicts."""
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="auto", help="number format (default: auto)"
    )
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default=TORCH,
        help="openvino: faster on CPUs, equal up to rounding (python -m pip install openvino); "
        "openvino-int8: faster still, weights and activations in 8 bits, "
        "the loss in validation score is shown (python -m pip install openvino nncf)",
    )
