"""Rewrites of layers that need less time or memory.

Results stay the same, up to rounding in half precision. In half precision (autocast) a frozen weight need not
be float32 (`hold_frozen`), and the backward pass needs less than torch stores (`keep_less`). BEiT's position
bias is computed once (`cache_frozen_bias`). `checkpoint_layers` saves memory and needs more time, in any
precision.

Under torch.compile the layers are torch's own: there the compiler's partitioner chooses what is stored for
the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface
from transformers.modeling_layers import GradientCheckpointingLayer

from pipeline.models import onednn
from pipeline.models.attention_functions import TRAINED_BIAS, attend
from pipeline.models.autograd import (
    AdaptedLinear,
    FrozenLinear,
    Gelu,
    Linear,
    Norm,
    autocast_dtype,
    kept_dtype,
    source_of,
)

HELD = (nn.Linear, nn.Conv2d)  # autocast casts the weights of these, so casting them earlier changes nothing
# Blocks in which only linear layers read the output of a norm.
PRE_NORM = ("BeitLayer", "ViTLayer", "DeiTLayer", "SwinLayer", "Dinov2Layer", "Dinov2WithRegistersLayer")
# MLPs that are fc2(activation_fn(fc1(x)))
PLAIN_MLP = ("BeitMLP", "ViTMLP", "DeiTMLP", "SwinMLP", "Dinov2MLP")
ROW_ALIGNMENT = 8  # CUDA's attention kernels copy a bias whose rows do not start at a multiple of 8 numbers


def use_half_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Prepare a model for autocast to `dtype`: `keep_less`, `hold_frozen` and `fuse_frozen`."""
    keep_less(model)
    hold_frozen(model, dtype)
    fuse_frozen(model)


def hold_frozen(model: nn.Module, dtype: torch.dtype) -> int:
    """Store frozen weights in half precision; return the number of layers changed.

    Under autocast the results are bit-identical. Modules that an adapter saves as copies are not changed,
    even their frozen parts.
    """
    held = 0
    for name, module in model.named_modules():
        frozen = (
            # Its bias may be trained
            isinstance(module, HELD) and not hasattr(module, "is_exact") and not module.weight.requires_grad
        )
        if frozen and ".modules_to_save." not in name:
            for weight in module.parameters(recurse=False):
                if not weight.requires_grad:
                    weight.data = weight.data.to(dtype)
            held += 1
    return held


def fuse_frozen(model: nn.Module) -> None:
    """Add biases and GELU in the pass of the matrix product, in frozen layers that `hold_frozen` has changed,
    where the machine can (`onednn.fuses`).

    Without GELU the results are bit-identical. GELU is fused only where nothing is stored for a backward
    pass.
    """
    for module in model.modules():
        if is_held_linear(module):
            module.forward = MethodType(_frozen_linear, module)
        elif type(module).__name__ in PLAIN_MLP and _is_gelu(module) and is_held_linear(module.fc1):
            module.forward = MethodType(_frozen_mlp, module)


def _is_gelu(mlp: Any) -> bool:
    # Before 5.9 transformers called it `activation` in DINOv2
    function = getattr(mlp, "activation_fn", None) or getattr(mlp, "activation", None)
    return getattr(function, "act", None) is nn.functional.gelu


def keep_less(model: nn.Module) -> None:
    """Store less for the backward pass under autocast, in every layer that has a rewrite in autograd.py.

    Without autocast nothing changes.
    """
    for module in model.modules():
        if type(module).__name__ in PRE_NORM:
            for part in module.children():
                # The copy that an adapter trains
                norm = part.modules_to_save["default"] if hasattr(part, "modules_to_save") else part
                if isinstance(norm, nn.LayerNorm):
                    norm.forward = MethodType(_norm, norm)
        elif hasattr(module, "lora_A"):
            module.forward = MethodType(_adapted, module)
        elif type(module).__name__ == "GELUActivation" and module.act is nn.functional.gelu:
            module.forward = MethodType(_gelu, module)
        elif type(module) is nn.Linear and module.weight.requires_grad and not hasattr(module, "is_exact"):
            module.forward = MethodType(_linear, module)
        elif type(module).__name__ == "BeitModel" and module.config._attn_implementation == "sdpa":
            AttentionInterface.register(TRAINED_BIAS, attend)
            module.config._attn_implementation = TRAINED_BIAS


def exact_head(model: nn.Module, head: str) -> None:
    """Compute the linear layers of the submodule called `head` in float32, also under autocast.

    bfloat16 has no number between 8 and 8.0625, so rounded logits would tie, and the order of the classes
    would decide.
    """
    for name, module in model.named_modules():
        # Also the copies that an adapter makes of a head
        if isinstance(module, nn.Linear) and f".{head}." in f".{name}.":
            module.forward = MethodType(_exact, module)
            module.is_exact = True


def checkpoint_layers(model: nn.Module, on: bool = True) -> int:
    """Turn activation checkpointing on or off; return the number of blocks.

    Only the input of each block is stored for the backward pass, which computes the block again, with the
    same dropout (Chen et al. 2016, arXiv:1604.06174). Results are bit-identical.
    """
    blocks = blocks_of(model)
    for block in blocks:
        block._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
    for wrapper in [module for module in model.modules() if "timm_model" in dict(module.named_children())]:
        timm_model = wrapper.timm_model
        with suppress(AttributeError, AssertionError):  # of architectures that do not support it
            timm_model.set_grad_checkpointing(on)
            blocks += repeated_blocks(timm_model)
    for block in blocks:
        block.gradient_checkpointing = on  # for timm only a mark, see `training.memory`
    return len(blocks)


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The blocks of `model` that transformers can compute again, the innermost ones."""
    blocks = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    return [
        block
        for block in blocks
        if not any(isinstance(part, GradientCheckpointingLayer) for part in list(block.modules())[1:])
    ]


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """Return the modules of the innermost lists of equal modules: blocks of timm and of convolutional
    networks.
    """
    lists = [module for module in model.modules() if _is_list_of_blocks(module)]
    innermost = [one for one in lists if not any(map(_is_list_of_blocks, list(one.modules())[1:]))]
    return [block for one in innermost for block in one.children()]


def _is_list_of_blocks(module: nn.Module) -> bool:
    kinds = {type(child) for child in module.children()}
    return (
        isinstance(module, nn.ModuleList | nn.Sequential)
        and len(module) > 1
        and len(kinds) == 1
        and all(any(True for _ in child.children()) for child in module.children())
    )


def cache_frozen_bias(model: nn.Module) -> int:
    """Compute BEiT's relative position bias once for each input size; return the number of layers changed.

    transformers computes it again in every layer of every forward pass, with an interpolation and a gather of
    (tokens, tokens, heads). A trained table is not cached: its bias changes with every step.
    """
    changed = 0
    for beit in [module for module in model.modules() if type(module).__name__ == "BeitModel"]:
        for module in beit.modules():
            if (
                type(module).__name__ == "BeitRelativePositionBias"
                and not module.relative_position_bias_table.requires_grad
            ):
                module.forward = _remember(module, module.forward, beit.config)
                module.is_cached = True
                changed += 1
    return changed


def _remember(
    module: nn.Module, forward: Callable[..., torch.Tensor], config: Any
) -> Callable[..., torch.Tensor]:
    results: dict[Any, torch.Tensor] = {}
    module.remembered_bias = None  # an attribute, so that a compiled graph can read it

    def remembered(*args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the module's bias, computed only when its table, its arguments or the precision changed."""
        if torch.compiler.is_compiling():  # for one size of input: see `pipeline.training.compilation`
            return forward(*args, **kwargs) if module.remembered_bias is None else module.remembered_bias
        # Read each time: it may have been moved, reloaded, or replaced by functional_call
        table = module.relative_position_bias_table
        # Fused kernels cast it
        is_cast = autocast_dtype(table) is not None and config._attn_implementation != "eager"
        dtype = autocast_dtype(table) if is_cast else table.dtype
        key = (
            args,
            tuple(sorted(kwargs.items())),
            id(table),
            table._version,
            table.device,
            table.dtype,
            dtype,
        )
        if key not in results:
            results.clear()
            with torch.no_grad(), torch.autocast(table.device.type, enabled=False):
                results[key] = _aligned(forward(*args, **kwargs), dtype)
            if not isinstance(table, FakeTensor):  # `training.memory` runs this with shapes only
                module.remembered_bias = results[key]
        return results[key]

    return remembered


def _aligned(bias: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return `bias` (1, heads, tokens, tokens) in `dtype`, with rows aligned as CUDA's kernels need."""
    tokens = bias.shape[-1]
    width = -(-tokens // ROW_ALIGNMENT) * ROW_ALIGNMENT
    return bias.new_empty(*bias.shape[:-1], width, dtype=dtype)[..., :tokens].copy_(bias)


def _norm(module: nn.LayerNorm, x: torch.Tensor) -> torch.Tensor:
    dtype = kept_dtype(x)
    if dtype is None:
        return nn.LayerNorm.forward(module, x)
    if not torch.is_grad_enabled():
        return nn.LayerNorm.forward(module, x.float()).to(dtype)
    return Norm.apply(x, module.weight, module.bias, module.eps, dtype)


def _gelu(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return type(module).forward(module, x) if kept_dtype(x) is None else Gelu.apply(x)


def _linear(module: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    dtype = kept_dtype(x)
    if dtype is None:
        return nn.Linear.forward(module, x)
    return Linear.apply(x, module.weight, module.bias, dtype, source_of(x))


def is_held_linear(module: nn.Module) -> bool:
    """Return True if the layer's weight and bias are frozen and in half precision."""
    return type(module) is nn.Linear and not any(
        weight.requires_grad or weight.dtype == torch.float32 for weight in module.parameters(recurse=False)
    )


def _fusable(x: torch.Tensor) -> torch.Tensor | None:
    """Return `x` in half precision if oneDNN's operator takes it; None where torch's own layer runs."""
    dtype = kept_dtype(x)
    return x.to(dtype) if dtype is not None and onednn.fuses(x.device, dtype) else None


def _frozen_linear(module: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    half = _fusable(x)
    if half is None:
        return nn.Linear.forward(module, x)
    if torch.is_grad_enabled():
        return FrozenLinear.apply(half, module.weight, module.bias)
    return onednn.linear(half, _for_products(module), module.bias)


def _for_products(module: nn.Module) -> torch.Tensor:
    """Return the layer's weight, in oneDNN's layout if it is stored in that too (`cpu_prediction`)."""
    return module.packed if hasattr(module, "packed") else module.weight


def _frozen_mlp(module: Any, x: torch.Tensor) -> torch.Tensor:
    half = None if torch.is_grad_enabled() else _fusable(x)
    if half is None:
        return type(module).forward(module, x)
    return module.fc2(onednn.linear(half, _for_products(module.fc1), module.fc1.bias, gelu=True))


def _exact(module: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return nn.Linear.forward(module, x.float())


def _adapted(module: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Run peft's layer: the frozen layer plus the update of its adapter.

    peft itself copies x to float32 and stores the copy, once for each adapter.
    """
    dtype, base = kept_dtype(x), module.base_layer
    plain = type(base) is nn.Linear and not base.weight.requires_grad
    if (
        dtype is None
        or not plain
        or module.disable_adapters
        or module.merged
        or len(module.active_adapters) != 1
    ):
        return type(module).forward(module, x, *args, **kwargs)
    (name,) = module.active_adapters
    if name in getattr(module, "lora_variant", {}):  # DoRA is not only an added update
        return type(module).forward(module, x, *args, **kwargs)
    dropout = getattr(module.lora_dropout[name], "p", 0.0) if module.training else 0.0
    a, b = module.lora_A[name].weight, module.lora_B[name].weight
    return AdaptedLinear.apply(
        x, base.weight, base.bias, a, b, module.scaling[name], dropout, dtype, source_of(x)
    )
