"""Dropout with masks that cost little on a CPU.

torch draws the numbers of a mask one by one there. In LoRA with dropout, which needs a mask for each adapter,
this takes as long as a sixth of a step (a BEiT-base in bf16 on two cores with AMX).
"""

from __future__ import annotations

import torch
from torch import nn

aten = torch.ops.aten


class Dropout(nn.Dropout):
    """nn.Dropout, on a CPU by `drop`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x with the share p set to zero in training, and the rest divided by 1 - p."""
        if x.device.type != "cpu" or not self.training or not self.p:
            return super().forward(x)
        return drop(x, self.p)[0]


def drop(x: torch.Tensor, dropout: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x after dropout with the probability `dropout`, and the mask (bool) of what is kept.

    On a CPU 64 random bits are drawn for four numbers, so the probability is rounded to a multiple of 2^-16.
    """
    if x.device.type != "cpu":
        return torch.native_dropout(x, dropout, True)
    draws = torch.randint(-(2**63), 2**63 - 1, (-(-x.numel() // 4),), device=x.device).view(torch.int16)
    mask = draws[: x.numel()].view(x.shape) >= round(dropout * 2**16) - 2**15
    return keep(x, mask, dropout), mask


def keep(x: torch.Tensor, mask: torch.Tensor, dropout: float) -> torch.Tensor:
    """Return x where `mask` is true, divided by 1 - `dropout`; zero elsewhere. It is its own gradient."""
    scale = 1 / (1 - dropout)
    if x.device.type != "cpu" or torch.is_grad_enabled():
        return aten.native_dropout_backward(x, mask, scale)  # stores the mask alone, one byte per number
    # The same numbers in half the time: torch reads bytes faster than bools
    return mask.view(torch.uint8).to(x.dtype).mul_(x).mul_(scale)
