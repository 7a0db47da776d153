"""Load pretrained encoders without a head, and reduce their output to one vector per question or image."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from pipeline.errors import UserError, raise_all
from pipeline.models.backbones import UNUSED_WEIGHTS, hold_statistics, nan_problems, own_memory
from pipeline.models.checkpoint_config import load_config, unloadable

# Heads of pretraining tasks, which a checkpoint may hold beside its encoder.
HEADS = re.compile(
    r"^(timm_model\.)?(classifier|cls_classifier|distillation_classifier|head|fc|cls|lm_head|vocab_\w+"
    r"|qa_outputs|pre_classifier)\."
)


def load_encoder(source: str, key: str, random_weights: bool = False) -> PreTrainedModel:
    """Return the encoder at `source` (hub id or folder) in float32.

    `key`: the recipe key that names it in messages. A checkpoint without weights for its pooler (a ViT
    fine-tuned on classes, RoBERTa) is used without one: see `pooled`.

    Raises:
        UserError: no such checkpoint, hub unreachable, unsafe or damaged weights, missing or unexpected
            weights.
    """
    config = load_config(source, key)
    if random_weights:
        return AutoModel.from_config(config).float()
    try:
        model, info = AutoModel.from_pretrained(
            source, config=config, output_loading_info=True, trust_remote_code=False
        )
    # transformers, safetensors and torch raise different kinds; the weights cannot be used
    except Exception as error:
        raise unloadable(source, error, key) from error
    if any(name.startswith("pooler.") for name in info["missing_keys"]):
        model.pooler = None
    problems = [
        f"{name}: missing" for name in sorted(info["missing_keys"]) if not UNUSED_WEIGHTS.search(name)
    ]
    problems += [
        f"{name}: unexpected"
        for name in sorted(info["unexpected_keys"])
        if not UNUSED_WEIGHTS.search(name) and not HEADS.match(name)
    ]
    problems += nan_problems(model.named_parameters())
    raise_all(problems, f"the weights in {source} do not fit {type(model).__name__}:")
    hold_statistics(model)
    own_memory(model)
    return model.float()


def new_encoder(architecture: dict[str, Any], **values: Any) -> PreTrainedModel:
    """Return an encoder with random weights, float32.

    `architecture`: its config (`model_type` and values that differ from the defaults); `values` are added to
    it.

    Raises:
        UserError: the model type is not known, or a value does not fit.
    """
    try:
        return AutoModel.from_config(AutoConfig.for_model(**{**architecture, **values})).float()
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f"architecture {architecture}: {' '.join(str(error).split())[:300]}") from None


def pooled(output: Any) -> torch.Tensor:
    """Return (B, D) of an encoder's output: the pooler's vector, or the last state of the first token
    ([CLS]).
    """
    vector = getattr(output, "pooler_output", None)
    return output.last_hidden_state[:, 0] if vector is None else vector.flatten(1)


def question_vector(output: Any, attention_mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """Return (B, D) of a text encoder's output, pooled as `head.text_pooling` says.

    `attention_mask`: (B, T) int64, 0 for padding; or (B, T, T), for each token what it sees.
    """
    if pooling == "pooler":
        return pooled(output)
    states = output.last_hidden_state
    if pooling == "class_token":
        return states[:, 0]
    is_token = (attention_mask[:, 0] if attention_mask.ndim == 3 else attention_mask).unsqueeze(2)
    is_token = is_token.to(states.dtype)
    return (states * is_token).sum(dim=1) / is_token.sum(dim=1)


def image_tokens(output: Any, width: int) -> torch.Tensor:
    """Return (I, P, D) tokens of an image encoder's output: its last states, or the positions of a feature
    map.

    The last states include the class token if there is one.

    Raises:
        UserError: a token does not have `width` numbers, the width of the encoder's vector.
    """
    states = output.last_hidden_state
    if states.ndim == 4:  # (I, D, height, width): a convolutional network
        states = states.flatten(2).transpose(1, 2)
    if states.ndim != 3 or states.shape[2] != width:
        raise UserError(
            f"head.fusion: cross_attention needs tokens of {width} numbers, but --backbone gives "
            f"{tuple(states.shape[1:])} for an image; use a ViT, BEiT, DINOv2 or Swin, or --set "
            "head.fusion=concat"
        )
    return states


def width_of(encoder: nn.Module, key: str) -> int:
    """Return D, the width of the encoder's `pooled` vector.

    Raises:
        UserError: the architecture's config does not state it.
    """
    width = getattr(encoder.config, "hidden_size", None) or getattr(
        getattr(encoder, "timm_model", None), "num_features", None
    )
    if width is None:
        raise UserError(
            f"{key}: {type(encoder).__name__} is not a single encoder with a hidden_size; use a BERT for "
            "text, a ViT, BEiT or Swin for images"
        )
    return int(width)
