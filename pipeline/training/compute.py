"""The device and precision of a model."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from pipeline import ranks
from pipeline.engines import ON_CPU, TORCH
from pipeline.errors import UserError
from pipeline.training.processes import ALONE, Processes, card, current

Batch = dict[str, torch.Tensor]  # by name; always holds `row` (B,) int64 and, with labels, `label` (B,) int64


@dataclass(frozen=True)
class Compute:
    """Device and precision of a model, and the processes that work together."""

    device: torch.device
    precision: str  # fp32 | bf16 | fp16
    processes: Processes = ALONE
    # Or another of `pipeline.engines`, in prediction: see `pipeline.models.openvino_model`
    engine: str = TORCH

    @property
    def half(self) -> torch.dtype | None:
        """The half precision of autocast; None for float32."""
        return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)

    def autocast(self) -> Any:
        """Return a context that computes in `half`; for float32 it changes nothing."""
        return nullcontext() if self.half is None else torch.autocast(self.device.type, self.half)

    def move(self, batch: Batch) -> Batch:
        """Return the batch on `device`. The copy does not wait for what a GPU has to do already."""
        if self.device.type == "cuda":  # most are pinned: `pipeline.data.loader` does it in another thread
            batch = {name: _pinned(tensor) for name, tensor in batch.items()}
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}

    def bring(self, output: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Start to copy `output` to the CPU, in float32; return a function that waits for it and returns it.

        A copy that starts later, when the GPU has the next batch to do, would wait for that batch too.
        """
        if self.device.type != "cuda":
            return lambda: output.float().cpu()
        copied, is_there = output.float().to("cpu", non_blocking=True), torch.cuda.Event()
        is_there.record()

        def wait() -> torch.Tensor:
            is_there.synchronize()
            return copied

        return wait

    def device_name(self) -> str:
        """Return the GPU's name on CUDA, else `CPU` or `MPS`."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return self.device.type.upper()

    def describe(self) -> str:
        """Return device and precision as text, such as `CPU, fp32`, with a warning if bf16 is slow here."""
        by = "" if self.engine == TORCH else f" by {self.engine}"
        words = f"{self.device_name()}, {self.precision}{by}{self.processes.describe()}"
        if self.precision != "bf16" or self.device.type == "mps" or computes_bf16(self.device):
            return words
        return f"{words} (this hardware only emulates it: slower than --precision auto)"


def _pinned(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.device.type != "cpu" or not tensor.numel() or tensor.is_pinned():
        return tensor
    return tensor.pin_memory()


def computes_bf16(device: torch.device) -> bool:
    """Return True if `device` has instructions for bf16 matrix products: Ampere or later, AVX512-BF16 or
    AMX.

    torch emulates them on other hardware.
    """
    if device.type == "cuda":  # torch.cuda.is_bf16_supported() is also True for emulation
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and (
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )


def choose_compute(precision: str, engine: str = TORCH) -> Compute:
    """Return the best available device, with `precision`.

    auto: bf16 if the hardware computes in it, else fp16 on CUDA and fp32 elsewhere. The engine openvino uses
    the CPU. With several processes each has its own GPU.

    Raises:
        UserError: fp16 without a CUDA device, or fewer GPUs than processes.
    """
    kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind = "cpu" if engine in ON_CPU else kind
    device = torch.device(kind)
    if ranks.world_size() > 1 and kind == "cuda":
        device = torch.device(kind, card())
        torch.cuda.set_device(device)
    if precision == "auto":
        precision = "bf16" if computes_bf16(device) else "fp16" if kind == "cuda" else "fp32"
    if precision == "fp16" and kind != "cuda":
        raise UserError(f"--precision fp16 needs a CUDA device, found {kind}; use auto, bf16 or fp32")
    return Compute(device, precision, current(), engine)


def free_unused() -> None:
    """Free the models that nothing uses any more, also on the GPU; for use before another one is loaded.

    A rewritten layer (see `pipeline.models.half_weights`) refers to itself. So it stays until Python looks
    for such circles, and Python does not know that a GPU's memory is full.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def peak_memory(device: torch.device) -> int:
    """Return the peak memory so far in bytes: allocated on a CUDA device, resident on the CPU (0 if
    unknown).
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
