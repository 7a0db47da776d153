"""Where and in which number format a model runs."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from pipeline import ranks
from pipeline.errors import UserError
from pipeline.training.processes import ALONE, Processes, card, current

Batch = dict[str, torch.Tensor]  # by name; always holds `row` (B,) int64 and, with labels, `label` (B,) int64


@dataclass(frozen=True)
class Compute:
    """Where and in which number format a model runs, and beside which other processes."""

    device: torch.device
    precision: str  # fp32 | bf16 | fp16
    processes: Processes = ALONE
    engine: str = "torch"  # or openvino, in prediction: see `pipeline.models.openvino_model`

    @property
    def half(self) -> torch.dtype | None:
        """The half precision that autocast computes in; None for float32."""
        return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)

    def autocast(self) -> Any:
        """A context that computes in `half`; for float32 one that changes nothing."""
        return nullcontext() if self.half is None else torch.autocast(self.device.type, self.half)

    def move(self, batch: Batch) -> Batch:
        """The batch on `device`; a copy from pinned memory is not waited for."""
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}

    def device_name(self) -> str:
        """The card's own name on CUDA, else `CPU` or `MPS`."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type.upper()

    def describe(self) -> str:
        """Device and precision in words: `CPU, fp32`; a warning with it where bf16 was asked for and is slow."""
        by = "" if self.engine == "torch" else f" by {self.engine}"
        words = f"{self.device_name()}, {self.precision}{by}{self.processes.describe()}"
        if self.precision != "bf16" or self.device.type == "mps" or computes_bf16(self.device):
            return words
        return f"{words} (this hardware only imitates it: expect less speed than with --precision auto)"


def computes_bf16(device: torch.device) -> bool:
    """Whether `device` has instructions for bf16 matrix products: Ampere or later, AVX512-BF16 or AMX; torch imitates it everywhere."""
    if device.type == "cuda":  # torch.cuda.is_bf16_supported() also says yes to imitation
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def choose_compute(precision: str, engine: str = "torch") -> Compute:
    """The best device at hand, with `precision` (auto: bf16 where the hardware computes in it, else fp16 on CUDA and fp32 elsewhere).
    The engine openvino takes the CPU.

    Of several processes each has a CUDA card of its own.

    Raises:
        UserError: fp16 is asked for and there is no CUDA device, or there are fewer cards than processes.
    """
    kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind = "cpu" if engine == "openvino" else kind
    device = torch.device(kind)
    if ranks.world_size() > 1 and kind == "cuda":
        device = torch.device(kind, card())
        torch.cuda.set_device(device)
    if precision == "auto":
        precision = "bf16" if computes_bf16(device) else "fp16" if kind == "cuda" else "fp32"
    if precision == "fp16" and kind != "cuda":
        raise UserError(f"--precision fp16 needs a CUDA device, found {kind}; use auto, bf16 or fp32")
    return Compute(device, precision, current(), engine)


def peak_memory(device: torch.device) -> int:
    """The most memory so far, in bytes: allocated on a CUDA device, resident on the CPU (0 where the system does not say)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
