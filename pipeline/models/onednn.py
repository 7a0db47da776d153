"""Linear layers in bfloat16 on a CPU, with bias and GELU in the same pass as the matrix product.

torch copies the bias into the output before the product, and GELU reads and writes the output again. On a CPU
with AMX these passes over memory take as long as a third of the products. oneDNN's operator, which is also
that of torch.compile on a CPU (torch/_inductor/mkldnn_lowerings.py), adds both while it writes the output.
"""

from __future__ import annotations

from functools import cache

import torch
from torch.nn import functional as F


def linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, gelu: bool = False
) -> torch.Tensor:
    """Return `x @ weight.T + bias` (..., out), or the exact GELU of it, in the dtype of x (..., in).

    `weight` (out, in), which may be `packed`, and `bias` (out,) have the dtype of x. Without GELU the result
    has the bits of `F.linear`. With GELU it is rounded once, where torch rounds twice. There is no gradient.
    """
    if fuses(x.device, x.dtype):
        return torch.ops.mkldnn._linear_pointwise(
            x, weight, bias, "gelu" if gelu else "none", [], "none" if gelu else ""
        )
    output = F.linear(x, weight, bias)
    return F.gelu(output) if gelu else output


def packed(weight: torch.Tensor) -> torch.Tensor:
    """Return `weight` (out, in) in the layout that oneDNN's products read, which only `linear` takes.

    `fuses` is true for it. Products of several rows have the same bits with it.
    """
    return torch.ops.mkldnn._reorder_linear_weight(weight, None)


def fuses(device: torch.device, dtype: torch.dtype) -> bool:
    """Return True if oneDNN's operator takes tensors of `dtype` on `device`: bfloat16 on a CPU with
    instructions for it.
    """
    return device.type == "cpu" and dtype == torch.bfloat16 and _has_operator()


@cache
def _has_operator() -> bool:
    found = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return found and torch.ops.mkldnn._is_mkldnn_bf16_supported()
