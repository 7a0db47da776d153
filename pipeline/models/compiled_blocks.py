"""Training steps with torch.compile, block by block.

The blocks of a ViT have the same code and the same shapes, so one graph serves all of them and is compiled in
seconds, where the whole model takes a minute (PyTorch's recipe "regional compilation",
https://docs.pytorch.org/tutorials/recipes/regional_compilation.html). Only micro-batches of one size use it,
in training. All others, and prediction, run the plain layers, so that no graph is compiled for them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import nn

from pipeline.models.half_weights import blocks_of, repeated_blocks
from pipeline.models.lora import PeftModel

OPTIONS = {"fallback_random": True}  # dropout has the masks that it has without torch.compile


def compile_blocks(model: nn.Module, rows: int) -> int:
    """Compile the blocks of `model` when a micro-batch of `rows` images trains; return their number.

    A model without equal blocks is compiled as a whole (1). Nothing is compiled before the first such
    micro-batch.
    """
    parts = _parts(model)
    # Else torch refuses a graph for each size of window or of image (Swin)
    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, 2 * len(parts))
    compiled: dict[type, Callable[..., Any]] = {}
    for part in parts:
        if type(part) not in compiled:
            compiled[type(part)] = torch.compile(
                type(part).forward, fullgraph=True, dynamic=False, options=OPTIONS
            )
        part.forward = MethodType(_forward_of(compiled[type(part)], rows), part)
    for module in _drop_paths(parts):
        module.keep_prob = torch.tensor(1 - module.drop_prob, device=next(model.parameters()).device)
        module.forward = MethodType(_drop_path, module)
    return len(parts)


def leave_uncompiled(model: nn.Module) -> None:
    """Undo `compile_blocks`."""
    parts = _parts(model)
    for module in (*parts, *_drop_paths(parts)):
        module.__dict__.pop("forward", None)


def _parts(model: nn.Module) -> list[nn.Module]:
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return blocks_of(model) or repeated_blocks(base) or [base]


def _drop_paths(parts: list[nn.Module]) -> list[Any]:
    """Return transformers' modules of this kind; timm's draw other numbers."""
    return [
        module
        for part in parts
        for module in part.modules()
        if re.fullmatch(r"transformers\..*DropPath", f"{type(module).__module__}.{type(module).__name__}")
        and module.drop_prob
    ]


def _drop_path(module: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    """Do what transformers' drop path does, with a tensor as the probability.

    A number would be part of the graph, and each block has its own: each would be compiled.
    """
    if not module.training:
        return hidden_states
    shape = (hidden_states.shape[0],) + (1,) * (hidden_states.ndim - 1)
    draws = torch.rand(shape, dtype=hidden_states.dtype, device=hidden_states.device)
    return hidden_states / module.keep_prob * (draws + module.keep_prob).floor()


def _forward_of(compiled: Callable[..., Any], rows: int) -> Callable[..., Any]:
    def forward(part: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Run the compiled forward pass if `rows` images train, else the plain one."""
        images = next(
            (len(value) for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)), 0
        )
        trains = part.training and torch.is_grad_enabled()
        run = compiled if trains and images == rows else type(part).forward
        return run(part, *args, **kwargs)

    return forward
