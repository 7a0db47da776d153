"""Attention maps: attention of the class token, attention rollout, and maps weighted by gradients of the
predicted class.

Training and prediction use fused attention, which never stores the (tokens, tokens) matrices. Only the one
pass here uses eager attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.errors import UserError
from pipeline.models.timm_checkpoints import MODEL_TYPE

MAX_SPECIAL_TOKENS = 8  # class, distillation and register tokens before the patches


@dataclass(frozen=True)
class AttentionMaps:
    """Maps of one image over its patches, (rows, columns) float32, not negative.

    heads: (heads, rows, columns), attention of the class token in the last layer; mean: their average.
    rollout: how much of each patch reaches the tokens that the head reads (the class token, or the average of
    the patches), through all layers. gradient: what raised the logit of `predicted`, by attention (Chefer et
    al.) or, without attention over the whole image, by Grad-CAM. The first three are None where no token
    attends to all patches.
    """

    heads: np.ndarray | None
    mean: np.ndarray | None
    rollout: np.ndarray | None
    gradient: np.ndarray
    reads_class_token: bool
    predicted: int  # position of the largest logit
    logits: np.ndarray  # (outputs,) float32


def attention_maps(
    model: nn.Module, forward: Callable[..., Any], pixel_values: torch.Tensor
) -> AttentionMaps:
    """Return the maps of one image.

    `pixel_values`: (1, 3, H, W) normalised. `forward(pixel_values=..., **flags)` calls `model` with its extra
    arguments.

    Raises:
        UserError: the architecture has neither attention over all patches nor a feature map.
    """
    model.eval()
    pixel_values = pixel_values.detach().requires_grad_(True)  # builds a graph even if all weights are frozen
    with torch.enable_grad():
        output, layers = (_timm_pass if _is_timm(model) else _pass)(model, forward, pixel_values)
        logits = output.logits[0].detach().float().cpu().numpy()
        predicted = int(logits.argmax())
        rows, columns = _grid(model, pixel_values)
        if not _sees_everything(layers, rows * columns):
            gradient = _grad_cam(model, output, output.logits[0, predicted])
            return AttentionMaps(None, None, None, gradient, False, predicted, logits)
        gradients = torch.autograd.grad(output.logits[0, predicted], layers)
    attentions = [layer[0].detach().float().cpu() for layer in layers]
    weighted = [
        gradient[0].float().cpu() * layer for gradient, layer in zip(gradients, attentions, strict=True)
    ]
    first_patch = attentions[0].shape[-1] - rows * columns

    def over_patches(tokens: torch.Tensor) -> np.ndarray:
        return tokens[..., first_patch:].reshape(*tokens.shape[:-1], rows, columns).numpy()

    heads = attentions[-1][:, 0]
    reading = _reading(model, attentions[0].shape[-1], first_patch)
    return AttentionMaps(
        heads=over_patches(heads),
        mean=over_patches(heads.mean(dim=0)),
        rollout=over_patches(reading @ rollout(attentions)),
        gradient=over_patches(reading @ gradient_rollout(weighted)),
        reads_class_token=bool(reading[0]),
        predicted=predicted,
        logits=logits,
    )


def _pass(
    model: nn.Module, forward: Callable[..., Any], pixel_values: torch.Tensor
) -> tuple[Any, list[torch.Tensor]]:
    """Return the output of one pass, and the attention of each layer: (1, heads, tokens, tokens)."""
    # Older ConvNeXts do not accept output_attentions
    attends = any("Attention" in type(module).__name__ for module in model.modules())
    flags = {"output_attentions": True} if attends else {}
    with _eager(model):
        output = forward(pixel_values=pixel_values, output_hidden_states=True, **flags)
    return output, [layer for layer in getattr(output, "attentions", None) or () if layer is not None]


def _timm_pass(
    model: nn.Module, forward: Callable[..., Any], pixel_values: torch.Tensor
) -> tuple[Any, list[torch.Tensor]]:
    """Return the same for timm's models, whose dropout module is given the attention if nothing is fused.

    Only where the head reads the class token or the average of the patches.
    """
    if getattr(model.timm_model, "global_pool", None) not in ("token", "avg"):
        raise _nothing_to_show(model)
    found: list[torch.Tensor] = []
    layers = [module for module in model.modules() if hasattr(module, "fused_attn")]
    fused = [layer.fused_attn for layer in layers]
    hooks = [
        layer.attn_drop.register_forward_pre_hook(lambda _module, given: found.append(given[0]))
        for layer in layers
    ]
    for layer in layers:
        layer.fused_attn = False
    try:
        return forward(pixel_values=pixel_values), found
    finally:
        for layer, hook, was in zip(layers, hooks, fused, strict=True):
            hook.remove()
            layer.fused_attn = was


def rollout(attentions: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return (tokens, tokens): how much of each input token reaches each output token.

    `attentions`: (heads, tokens, tokens) of each layer. Abnar and Zuidema 2020 (arXiv:2005.00928): average
    over heads, add half the residual connection, multiply over layers.
    """
    result = torch.eye(attentions[0].shape[-1])
    for layer in attentions:
        result = (0.5 * layer.mean(dim=0) + 0.5 * torch.eye(len(result))) @ result
    return result


def gradient_rollout(weighted: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the (tokens, tokens) relevance without its identity part.

    `weighted`: attention times gradient, (heads, tokens, tokens) of each layer. Chefer, Gur and Wolf 2021
    (arXiv:2103.15679): keep only positive values, average over heads, add up over layers.
    """
    identity = torch.eye(weighted[0].shape[-1])
    result = identity
    for layer in weighted:
        result = result + layer.clamp(min=0).mean(dim=0) @ result
    return result - identity


def _reading(model: nn.Module, tokens: int, first_patch: int) -> torch.Tensor:
    """Return (tokens,): the weight of each last token in the head's input.

    BEiT may average the patches; DINOv2 uses the class token and the average together.
    """
    patches = torch.zeros(tokens)
    patches[first_patch:] = 1 / (tokens - first_patch)
    first = torch.zeros(tokens)
    first[0] = 1
    if _is_timm(model):
        return patches if model.timm_model.global_pool == "avg" else first
    if model.config.model_type.startswith("dinov2"):
        return (first + patches) / 2
    return patches if getattr(model.config, "use_mean_pooling", False) else first


def _sees_everything(layers: Sequence[torch.Tensor], patches: int) -> bool:
    """Return True when every layer is (1, heads, tokens, tokens) over all patches plus a few special
    tokens.

    That is false for attention within windows.
    """
    tokens = {layer.shape[-1] for layer in layers}
    square = all(
        layer.ndim == 4 and layer.shape[0] == 1 and layer.shape[-1] == layer.shape[-2] for layer in layers
    )
    return (
        bool(layers) and square and len(tokens) == 1 and patches < min(tokens) <= patches + MAX_SPECIAL_TOKENS
    )


def _grad_cam(model: nn.Module, output: Any, logit: torch.Tensor) -> np.ndarray:
    """Return Grad-CAM as (rows, columns): the last feature map, weighted by its mean gradients.

    Selvaraju et al. 2017, arXiv:1610.02391.
    """
    states = getattr(output, "hidden_states", None) or ()
    shaped = getattr(output, "reshaped_hidden_states", None) or [None] * len(states)
    # The last feature map that the logit depends on: (1, channels, rows, columns), or (1, tokens, channels)
    # with a reshaped copy that gives its rows and columns.
    for features, copy in reversed(list(zip(states, shaped, strict=True))):
        if features.ndim != 4 and copy is None:
            continue
        (gradient,) = torch.autograd.grad(logit, features, retain_graph=True, allow_unused=True)
        if gradient is None:
            continue
        rows, columns = (features if copy is None else copy).shape[-2:]
        if features.ndim == 4:
            features, gradient = features.flatten(2).transpose(1, 2), gradient.flatten(2).transpose(1, 2)
        relevance = (features * gradient.mean(dim=1, keepdim=True)).sum(dim=2).clamp(min=0)
        return relevance.reshape(rows, columns).detach().float().cpu().numpy()
    raise _nothing_to_show(model)


def _is_timm(model: nn.Module) -> bool:
    return model.config.model_type == MODEL_TYPE


def _nothing_to_show(model: nn.Module) -> UserError:
    return UserError(
        f"{type(model).__name__} has neither attention over the whole image nor a feature map, so no map can "
        "be drawn. Maps work for BEiT, ViT, DeiT, DINOv2 and timm's vision transformers (attention), and for "
        "transformers' Swin, SwinV2 and ConvNeXt (Grad-CAM)"
    )


def _grid(model: nn.Module, pixel_values: torch.Tensor) -> tuple[int, int]:
    """Return rows and columns of patches; (0, 0) where the model has no patches of one size."""
    patches = getattr(model.timm_model, "patch_embed", None) if _is_timm(model) else model.config
    size = getattr(patches, "patch_size", None)
    if size is None:
        return 0, 0
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return pixel_values.shape[-2] // height, pixel_values.shape[-1] // width


@contextmanager
def _eager(model: nn.Module) -> Iterator[None]:
    """Use eager attention within the block, and the previous implementation afterwards."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
