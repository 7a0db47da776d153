"""Pretrained encoders without a head: strict loading, and one vector for a whole question or image."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from pipeline.errors import UserError, raise_all
from pipeline.models.backbones import UNUSED_WEIGHTS, hold_statistics, load_config, own_memory, unloadable

# What a checkpoint may hold beside its encoder: the heads of what it was pretrained on.
HEADS = re.compile(r"^(classifier|cls_classifier|distillation_classifier|head|fc|cls|lm_head|vocab_\w+|qa_outputs|pre_classifier)\.")


def load_encoder(source: str, key: str, random_weights: bool = False) -> PreTrainedModel:
    """The encoder at `source` (hub id or folder) in float32; `key` is the recipe key that names it in messages.

    A checkpoint that brings no weights for its pooler (ViT fine-tuned on classes, RoBERTa) is used without one: see `pooled`.

    Raises:
        UserError: no such checkpoint, hub out of reach, unsafe or damaged weights, missing or unexpected ones.
    """
    config = load_config(source, key)
    if random_weights:
        return AutoModel.from_config(config).float()
    try:
        model, info = AutoModel.from_pretrained(source, config=config, output_loading_info=True, trust_remote_code=False)
    except Exception as error:  # transformers, safetensors and torch each have their own kinds; all mean these weights cannot be used
        raise unloadable(source, error, key) from error
    if any(name.startswith("pooler.") for name in info["missing_keys"]):
        model.pooler = None
    problems = [f"{name}: missing" for name in sorted(info["missing_keys"]) if not UNUSED_WEIGHTS.search(name)]
    problems += [
        f"{name}: unexpected" for name in sorted(info["unexpected_keys"]) if not UNUSED_WEIGHTS.search(name) and not HEADS.match(name)
    ]
    problems += [f"{name}: holds NaN or infinity" for name, weight in model.named_parameters() if not torch.isfinite(weight).all()]
    raise_all(problems, f"the weights in {source} do not fit {type(model).__name__}:")
    hold_statistics(model)
    own_memory(model)
    return model.float()


def new_encoder(architecture: dict[str, Any], **values: Any) -> PreTrainedModel:
    """An encoder with random weights, float32: `architecture` is its config (`model_type` and what differs from its defaults), `values` come on top.

    Raises:
        UserError: there is no such model type, or a value is not one it can be built with.
    """
    try:
        return AutoModel.from_config(AutoConfig.for_model(**{**architecture, **values})).float()
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f"architecture {architecture}: {' '.join(str(error).split())[:300]}") from None


def pooled(output: Any) -> torch.Tensor:
    """(B, D) of an encoder's output: its pooler's, or the last state of its first token ([CLS]) where it has none."""
    vector = getattr(output, "pooler_output", None)
    return output.last_hidden_state[:, 0] if vector is None else vector.flatten(1)


def question_vector(output: Any, attention_mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """(B, D) of a text encoder's output as `head.text_pooling` says; `attention_mask` (B, T) int64 is 0 where a question is padded."""
    if pooling == "pooler":
        return pooled(output)
    states = output.last_hidden_state
    if pooling == "class_token":
        return states[:, 0]
    is_token = attention_mask.unsqueeze(2).to(states.dtype)
    return (states * is_token).sum(dim=1) / is_token.sum(dim=1)


def picture_tokens(output: Any, width: int) -> torch.Tensor:
    """(I, P, D) of an image encoder's output: its last states, with class token where it has one, or the places of a feature map.

    Raises:
        UserError: they are not `width` wide, as the encoder's own vector is.
    """
    states = output.last_hidden_state
    if states.ndim == 4:  # (I, D, height, width): a convolutional network
        states = states.flatten(2).transpose(1, 2)
    if states.ndim != 3 or states.shape[2] != width:
        raise UserError(
            f"head.fusion: cross_attention needs tokens of {width} numbers, and --backbone gives {tuple(states.shape[1:])} for an image; "
            "take a ViT, BEiT, DINOv2 or Swin, or --set head.fusion=concat"
        )
    return states


def width_of(encoder: nn.Module, key: str) -> int:
    """D of `pooled`.

    Raises:
        UserError: the architecture's config does not say.
    """
    width = getattr(encoder.config, "hidden_size", None) or getattr(getattr(encoder, "timm_model", None), "num_features", None)
    if width is None:
        raise UserError(
            f"{key}: {type(encoder).__name__} is no single encoder with a hidden_size; take a BERT for text, a ViT, BEiT or Swin for images"
        )
    return int(width)
