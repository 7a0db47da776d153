"""Rewrites that leave every result as it is and cost less."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def cache_frozen_bias(model: nn.Module) -> int:
    """Compute BEiT's relative position bias once for each input size; the number of layers changed.

    transformers rebuilds it in every layer of every forward, with an interpolation and a gather of (tokens, tokens, heads).
    A table that is being trained is left alone: its bias changes with every step.
    """
    changed = 0
    for module in model.modules():
        if type(module).__name__ == "BeitRelativePositionBias" and not module.relative_position_bias_table.requires_grad:
            module.forward = _remember(module, module.forward)
            changed += 1
    return changed


def _remember(module: nn.Module, forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    results: dict[Any, torch.Tensor] = {}

    def remembered(*args: Any, **kwargs: Any) -> torch.Tensor:
        table = module.relative_position_bias_table  # asked each time: it may have been moved, loaded anew, or swapped by functional_call
        key = (args, tuple(sorted(kwargs.items())), id(table), table._version, table.device, table.dtype)
        if key not in results:
            results.clear()
            with torch.no_grad(), torch.autocast(table.device.type, enabled=False):
                results[key] = forward(*args, **kwargs)
        return results[key]

    return remembered
