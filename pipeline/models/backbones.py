"""Load pretrained classifiers: sources, strict loading with named exceptions, and a new head for new
classes.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedModel
from transformers.utils import requires_backends

from pipeline.data.transforms import Preprocessing
from pipeline.errors import UserError, raise_all
from pipeline.files import filling
from pipeline.models import timm_checkpoints
from pipeline.models.checkpoint_config import (
    check_classifier,
    load_config,
    native_size,
    preprocessing_of,
    unloadable,
)
from pipeline.models.model_size import check_size

# Weights that a classifier does not use: masked-image modelling, poolers, computed tables.
UNUSED_WEIGHTS = re.compile(
    r"(mask_token|pooler\.|relative_position_index|relative_coords_table|attn_mask|lm_head|decoder|decode_head|auxiliary_head)"
)


class Saved(Protocol):
    """What is saved beside weights: the preprocessing of images, or the tokenizer of questions."""

    def save(self, folder: Path) -> None: ...


@dataclass(frozen=True)
class Backbone:
    """A classifier with outputs for the wanted classes, its preprocessing, and whether its head is new."""

    model: PreTrainedModel
    preprocessing: Preprocessing
    new_head: bool


def load_backbone(
    source: str,
    class_names: Sequence[str],
    image_size: int | None = None,
    random_weights: bool = False,
    architecture: dict[str, Any] | None = None,
    drop_path: float | None = None,
    other_sizes: Sequence[int] = (),
) -> Backbone:
    """Return the classifier at `source` (hub id or folder) in float32 with one output per class.

    The head is kept when the checkpoint's classes are exactly `class_names`; otherwise it is new (drawn from
    torch's generator). A checkpoint whose other weights do not all fit, key by key, is refused. `drop_path`
    replaces the config's probability of stochastic depth (Huang et al. 2016, arXiv:1603.09382).
    `other_sizes`: image sizes at which it must run too.

    Raises:
        UserError: no such checkpoint, hub unreachable, unsafe or damaged weights, missing or unexpected
            weights, an `image_size` that the model cannot take, an architecture without stochastic depth.
    """
    if architecture is not None:
        config = AutoConfig.for_model(**architecture)
    else:
        config = load_config(source)
        check_classifier(source, config)
    same_classes = architecture is None and not random_weights and _names(config) == list(class_names)
    _relabel(config, class_names)
    preprocessing = preprocessing_of(source if architecture is None else None, config, image_size)
    if config.model_type == timm_checkpoints.MODEL_TYPE:
        _prepare_timm(source, config, [preprocessing.height, *other_sizes])
    if drop_path is not None:
        _set_drop_path(config, drop_path)
    if random_weights:
        check_size(source, config)
        model = AutoModelForImageClassification.from_config(config)
    else:
        model, has_head = _load_weights(source, config)
        same_classes = same_classes and has_head
    if not same_classes:
        reset_head(model)
    hold_statistics(model.float())
    return Backbone(model, preprocessing, not same_classes)


def load_pretrained(source: str) -> Backbone:
    """Return the classifier at `source` (hub id or folder) as it was published, with its own classes.

    Raises:
        UserError: as `load_backbone`.
    """
    return load_backbone(source, _names(load_config(source)))


def rebuild_backbone(folder: Path, num_classes: int) -> Backbone:
    """Return the classifier saved in `folder` with `num_classes` outputs, float32, eval mode.

    Its head may be missing or of another size (an adapter supplies it). `new_head` is then True; the caller
    must check that the adapter supplies the head.

    Raises:
        UserError: as `load_backbone`.
    """
    config = load_config(str(folder))
    if config.num_labels != num_classes:
        _relabel(config, [f"LABEL_{index}" for index in range(num_classes)])
    model, has_head = _load_weights(str(folder), config)
    return Backbone(model.float().eval(), preprocessing_of(str(folder), config, None), not has_head)


def save_backbone(
    model: PreTrainedModel, state_dict: dict[str, torch.Tensor], preprocessing: Saved, folder: Path
) -> None:
    """Write config.json, model.safetensors and the files of `preprocessing` into `folder`.

    Plain from_pretrained loads them. Each file is written completely or not at all.
    """
    if isinstance(preprocessing, Preprocessing) and model.config.model_type == timm_checkpoints.MODEL_TYPE:
        timm_checkpoints.store_size(model.config, preprocessing)
    with filling(folder) as temporary:
        dtype = next(iter(state_dict.values())).dtype  # save_pretrained may empty the dictionary
        model.save_pretrained(temporary, state_dict=state_dict)
        model.config.dtype = dtype  # dtype of the file, not of the model in memory
        model.config.save_pretrained(temporary)
        preprocessing.save(temporary)


def head_name(model: nn.Module) -> str:
    """Return the dotted name of the last linear layer, whose outputs are the logits.

    Raises:
        UserError: the model has no such layer under a known name.
    """
    candidates = ["classifier", "classifier.1", "head", "fc"]
    if hasattr(model, "timm_model"):  # timm's config names the head
        named = model.timm_model.pretrained_cfg["classifier"]
        candidates = [f"timm_model.{named}"] if isinstance(named, str) else []
    for name in candidates:
        try:
            module = model.get_submodule(name)
        except AttributeError:
            continue
        if isinstance(module, nn.Linear) or hasattr(module, "modules_to_save"):
            return name
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    raise UserError(
        f"{type(model).__name__}: no classification head with a known name, or two heads (distilled "
        f"checkpoints have them; use one that is not distilled); its last linear layers: "
        f"{', '.join(linear[-3:])}"
    )


def reset_head(model: PreTrainedModel) -> None:
    """Give the head new random weights: normal with the architecture's own standard deviation, zero bias.

    transformers does the same for a new head.
    """
    head = model.get_submodule(head_name(model))
    nn.init.normal_(head.weight, std=getattr(model.config, "initializer_range", 0.02))
    nn.init.zeros_(head.bias)


def hold_statistics(model: nn.Module) -> None:
    """Keep batch norms at the checkpoint's mean and variance, also in training.

    So the output for an image does not depend on the other images of its micro-batch, and adapters and resume
    states need no statistics.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
            module.train = lambda mode=True, module=module: module


def tensor_problems(expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> list[str]:
    """Return the differences between the tensors `found` in a file and the `expected` ones.

    Differences are missing or unexpected tensors, another shape, and NaN or infinity.
    """
    problems = [f"{name}: missing" for name in sorted(expected.keys() - found.keys())]
    problems += [f"{name}: unexpected" for name in sorted(found.keys() - expected.keys())]
    for name in sorted(expected.keys() & found.keys()):
        if expected[name].shape != found[name].shape:
            problems.append(
                f"{name}: shape {tuple(found[name].shape)}, expected {tuple(expected[name].shape)}"
            )
        else:
            problems += nan_problems([(name, found[name])])
    return problems


def nan_problems(tensors: Iterable[tuple[str, torch.Tensor]]) -> list[str]:
    """Name the tensors that hold NaN or infinity. One pass, without a second tensor in memory."""
    return [
        f"{name}: holds NaN or infinity"
        for name, tensor in tensors
        if tensor.numel() and not all(value.isfinite() for value in tensor.aminmax())  # NaN wins in both
    ]


def own_memory(model: nn.Module) -> None:
    """Move loaded weights to aligned memory.

    The rounding of matrix products depends on alignment, and a resumed run loads its weights from another
    file.
    """
    for weight in model.parameters():
        weight.data = weight.data.clone()


def takes_interpolation(model: nn.Module) -> bool:
    """Return True when `forward` can interpolate position embeddings for another image size.

    CLIP's passes it on to its vision model, without naming it.
    """
    known = inspect.signature(model.forward).parameters
    inner = getattr(model, "vision_model", None) if "kwargs" in known else None
    return "interpolate_pos_encoding" in known or (inner is not None and takes_interpolation(inner))


def native_image_size(model: PreTrainedModel) -> int | None:
    """Return the image size in pixels that the checkpoint was trained on.

    None when its config does not say.
    """
    return native_size(model.config)


def _prepare_timm(source: str, config: Any, image_sizes: Sequence[int]) -> None:
    try:
        requires_backends("this checkpoint", ["timm"])
    except ImportError as error:
        raise unloadable(source, error) from None
    if any(size != native_size(config) for size in image_sizes):
        timm_checkpoints.take_sizes(config, image_sizes)


def _load_weights(source: str, config: Any) -> tuple[PreTrainedModel, bool]:
    """Return the model, and whether the checkpoint has a head that fits it."""
    check_size(source, config)
    try:
        model, info = AutoModelForImageClassification.from_pretrained(
            source,
            config=config,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            trust_remote_code=False,
        )
    # transformers, safetensors and torch raise different kinds; the weights cannot be used
    except Exception as error:
        raise unloadable(source, error) from error
    head = head_name(model) + "."
    names = {
        key: {item if isinstance(item, str) else item[0] for item in info[key]}
        for key in ("missing_keys", "unexpected_keys", "mismatched_keys")
    }
    problems = [
        f"{key}: missing"
        for key in sorted(names["missing_keys"])
        if not key.startswith(head) and not UNUSED_WEIGHTS.search(key)
    ]
    problems += [
        f"{key}: unexpected"
        for key in sorted(names["unexpected_keys"])
        if not key.startswith(head) and not UNUSED_WEIGHTS.search(key)
    ]
    problems += [
        f"{key}: another shape" for key in sorted(names["mismatched_keys"]) if not key.startswith(head)
    ]
    problems += nan_problems(model.named_parameters())
    raise_all(problems, f"the weights in {source} do not fit {type(model).__name__}:")
    own_memory(model)
    return model, not any(key.startswith(head) for key in names["missing_keys"] | names["mismatched_keys"])


def _set_drop_path(config: Any, rate: float) -> None:
    if config.model_type == timm_checkpoints.MODEL_TYPE:
        timm_checkpoints.set_drop_path(config, rate)
        return
    if not hasattr(config, "drop_path_rate"):
        raise UserError(
            f"drop_path: {config.model_type} has no stochastic depth; expected null: --set drop_path=null"
        )
    config.drop_path_rate = rate


def _relabel(config: Any, class_names: Sequence[str]) -> None:
    config.id2label = dict(enumerate(class_names))
    config.label2id = {name: index for index, name in enumerate(class_names)}
    if config.model_type == timm_checkpoints.MODEL_TYPE:
        config.label_names = list(class_names)  # saved under this name by timm's config


def _names(config: Any) -> list[str]:
    return [str(config.id2label[index]) for index in sorted(config.id2label)]
