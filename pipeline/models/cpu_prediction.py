"""Prediction in bfloat16 on a CPU in less time: weights in oneDNN's layout, attention in pieces.

Both are used where `onednn.fuses` says that the machine can, and never while a gradient is computed. They
are not tried first, as training's ways of attention are (`pipeline.training.attending`): the same run must
predict the same bytes every time, so no clock may decide.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface

from pipeline.models import onednn
from pipeline.models.attention_functions import BY_PRODUCTS, attend_in, set_attention
from pipeline.models.autograd import kept_dtype
from pipeline.models.half_weights import is_held_linear

IN_PIECES = "pieces"  # the name under which transformers finds our attention function
PIECE_BYTES = 2_000_000  # scores of a piece: they stay in the cache of a core


def pack_frozen(model: nn.Module) -> int:
    """Store the weights of frozen layers also in the layout of oneDNN's products.

    Return the number of layers. Otherwise each product copies its weights into that layout first. It takes as
    much memory again as these weights.
    """
    packed = 0
    for module in model.modules():
        if is_held_linear(module) and onednn.fuses(module.weight.device, module.weight.dtype):
            module.packed = onednn.packed(module.weight)
            packed += 1
    return packed


def attend_in_pieces(model: nn.Module) -> int:
    """Compute attention in pieces (`attention`) where torch's fused kernel was used; return the number of
    configs changed (`set_attention`).
    """
    AttentionInterface.register(IN_PIECES, _attend_in_pieces)
    return set_attention(model, dict.fromkeys(BY_PRODUCTS, IN_PIECES))


def attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """Return softmax(query key.T * scale + bias) value, (B, heads, tokens, width) as `query`, without a
    gradient.

    All are of one dtype. `bias`: (1, heads, tokens, tokens). The scores of a few images, or of a few heads of
    one image, are computed at a time, so that softmax and the second product find them in the cache.
    """
    images, heads, tokens, _ = query.shape
    # Scaled and brought into one piece of memory in one pass
    query = torch.mul(query, scale, out=query.new_empty(query.shape))
    key, value = key.contiguous(), value.contiguous()
    output = torch.empty_like(value)
    fitting = max(1, PIECE_BYTES // (tokens * tokens * query.element_size()))
    some_heads, some_images = min(heads, fitting), max(1, fitting // heads)
    for image in range(0, images, some_images):
        for head in range(0, heads, some_heads):
            piece = slice(image, image + some_images), slice(head, head + some_heads)
            scores = torch.bmm(_matrices(query[piece]), _matrices(key[piece]).mT)
            if bias is not None:
                of_heads = bias[:, piece[1]]
                scores.view(-1, *of_heads.shape[1:]).add_(of_heads)
            torch.bmm(scores.softmax(-1), _matrices(value[piece]), out=_matrices(output[piece]))
    return output


def _matrices(part: torch.Tensor) -> torch.Tensor:
    """Return a view of `part` (images, heads, tokens, width): all images with all heads, or one image."""
    return part.view(-1, *part.shape[2:])


def _attend_in_pieces(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Run `attention` where possible, otherwise transformers' sdpa."""
    dtype, bias = kept_dtype(query), attention_mask
    possible = (
        dtype is not None
        and onednn.fuses(query.device, dtype)
        and not torch.is_grad_enabled()
        and not kwargs.get("dropout")
        and query.shape == key.shape
        and (bias is None or (bias.is_floating_point() and bias.shape == (1, *_scores_shape(query))))
    )
    if not possible:
        return AttentionInterface()["sdpa"](module, query, key, value, attention_mask, **kwargs)
    return attend_in(dtype, attention, query, key, value, bias, kwargs.get("scaling"))


def _scores_shape(query: torch.Tensor) -> tuple[int, int, int]:
    return query.shape[1], query.shape[2], query.shape[2]
