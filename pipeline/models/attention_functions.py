"""Attention functions that models of transformers use in place of its own: a trained bias without (tokens,
tokens) matrices, and attention by two matrix products.

Results stay the same, up to rounding in half precision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface

from pipeline.models.autograd import BiasedAttention, ProductAttention, kept_dtype

TRAINED_BIAS = "sdpa_trained_bias"  # names under which transformers finds our attention functions
BY_PRODUCTS = {"sdpa": "products", TRAINED_BIAS: "products_trained_bias"}


def attend_by_products(model: nn.Module, on: bool = True) -> int:
    """Turn attention by two batched matrix products (`ProductAttention`) on or off.

    Return the number of configs changed. It is used only in training under autocast, with results equal up to
    rounding. 0 if the model cannot use it.
    """
    for name in BY_PRODUCTS.values():
        AttentionInterface.register(name, _attend_by_products)
    return set_attention(model, BY_PRODUCTS if on else {name: before for before, name in BY_PRODUCTS.items()})


def set_attention(model: nn.Module, new_name: Mapping[str, str]) -> int:
    """Replace attention functions, from the name of the present one to that of a registered one.

    Return the number of configs changed. Not for text models: transformers makes no padding mask for an
    attention function that it does not know.
    """
    configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    before = [
        (config, getattr(config, "_attn_implementation", None))
        for config in configs.values()
        if getattr(config, "model_type", None) != "timm_wrapper"  # timm has its own attention
    ]
    if not any(name in new_name for _, name in before):
        return 0
    # Every one, outer ones first: setting one (SigLIP's) sets those inside it too
    for config, name in before:
        config._attn_implementation = new_name.get(name, name)
    return sum(name in new_name for _, name in before)


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Run transformers' sdpa, but without (tokens, tokens) matrices for a trained bias on the CPU under
    autocast.

    torch would store them there.
    """
    dtype = kept_dtype(query)
    needs_own = (
        dtype is not None
        and query.device.type == "cpu"
        and attention_mask is not None
        and attention_mask.requires_grad
    )
    if not needs_own or kwargs.get("dropout"):
        return AttentionInterface()["sdpa"](module, query, key, value, attention_mask, **kwargs)
    return attend_in(dtype, BiasedAttention.apply, query, key, value, attention_mask, kwargs["scaling"])


def _attend_by_products(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Run attention by products where possible; see `attend_by_products`."""
    dtype = kept_dtype(query)
    is_additive = attention_mask is None or attention_mask.is_floating_point()
    if (
        dtype is None
        or not torch.is_grad_enabled()
        or kwargs.get("dropout")
        or not is_additive
        or query.shape[1] != key.shape[1]
    ):
        return attend(module, query, key, value, attention_mask, **kwargs)
    return attend_in(dtype, ProductAttention.apply, query, key, value, attention_mask, kwargs.get("scaling"))


def attend_in(
    dtype: torch.dtype,
    compute: Callable[..., torch.Tensor],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor | None,
    scale: float | None,
) -> tuple[torch.Tensor, None]:
    """Return `compute(query, key, value, bias, scale)` in `dtype`, in the form that transformers expects.

    `scale` None: one over the root of the width.
    """
    bias = None if bias is None else bias.to(dtype)
    scale = scale or query.shape[-1] ** -0.5
    output = compute(*(part.to(dtype) for part in (query, key, value)), bias, scale)
    return output.transpose(1, 2).contiguous(), None
