"""Load pretrained classifiers: sources, strict loading with named exceptions, and a new head for new
classes.
"""

from __future__ import annotations

import inspect
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import huggingface_hub
import torch
import transformers
from huggingface_hub import constants
from torch import nn
from transformers import AutoConfig, AutoModelForImageClassification, PretrainedConfig, PreTrainedModel
from transformers.utils import cached_file, requires_backends

from pipeline.data.transforms import FILE_NAME, Preprocessing, read_preprocessing
from pipeline.errors import UserError, raise_all
from pipeline.files import filling
from pipeline.models import timm_checkpoints
from pipeline.models.config_bounds import config_problems
from pipeline.models.model_size import check_size
from pipeline.models.places import check_folder, looks_local

# This module reads the load report and prints what matters itself.
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
huggingface_hub.logging.set_verbosity_error()  # otherwise each of its five retries prints a line

HUB_SECONDS = 10  # the hub counts as unreachable if it does not answer within this time

# Weights that a classifier does not use: masked-image modelling, poolers, computed tables.
UNUSED_WEIGHTS = re.compile(
    r"(mask_token|pooler\.|relative_position_index|relative_coords_table|attn_mask|lm_head|decoder|decode_head|auxiliary_head)"
)

# Preprocessing of published checkpoints that have no preprocessor_config.json (transformers' class defaults;
# timm's pretrained_cfg).
_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "resample": 3}
DEFAULT_RULES: dict[str, dict[str, Any]] = {
    "beit": {"processor_type": "BeitImageProcessor", "resample": 2},
    "vit": {"processor_type": "ViTImageProcessor", "resample": 2},
    "swin": {"processor_type": "ViTImageProcessor", **_IMAGENET},
    "swinv2": {"processor_type": "ViTImageProcessor", **_IMAGENET},
    "dinov2": {"processor_type": "BitImageProcessor", **_IMAGENET},
    "dinov2_with_registers": {"processor_type": "BitImageProcessor", **_IMAGENET},
    "convnext": {"processor_type": "ViTImageProcessor", **_IMAGENET},
    "convnextv2": {"processor_type": "ViTImageProcessor", **_IMAGENET},
}


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
    replaces the config's rate of stochastic depth (Huang et al. 2016, arXiv:1603.09382). `other_sizes`: image
    sizes at which it must run too.

    Raises:
        UserError: no such checkpoint, hub unreachable, unsafe or damaged weights, missing or unexpected
            weights, an `image_size` that the model cannot take, an architecture without stochastic depth.
    """
    if architecture is not None:
        config = AutoConfig.for_model(**architecture)
    else:
        config = load_config(source)
    if drop_path is not None:
        _set_drop_path(config, drop_path)
    same_classes = architecture is None and not random_weights and _names(config) == list(class_names)
    _relabel(config, class_names)
    rule = preprocessing_of(source if architecture is None else None, config, image_size)
    if config.model_type == timm_checkpoints.MODEL_TYPE:
        _prepare_timm(source, config, [rule.height, *other_sizes])
    if random_weights:
        check_size(source, config)
        model = AutoModelForImageClassification.from_config(config)
    else:
        model, has_head = _load_weights(source, config)
        same_classes = same_classes and has_head
    if not same_classes:
        reset_head(model)
    hold_statistics(model.float())
    return Backbone(model, rule, not same_classes)


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
    model: PreTrainedModel, state_dict: dict[str, torch.Tensor], rule: Saved, folder: Path
) -> None:
    """Write config.json, model.safetensors and the files of `rule` into `folder`.

    Plain from_pretrained loads them. Each file is written completely or not at all.
    """
    with filling(folder) as temporary:
        dtype = next(iter(state_dict.values())).dtype  # save_pretrained may empty the dictionary
        model.save_pretrained(temporary, state_dict=state_dict)
        model.config.dtype = dtype  # dtype of the file, not of the model in memory
        model.config.save_pretrained(temporary)
        rule.save(temporary)


def head_name(model: nn.Module) -> str:
    """Return the dotted name of the last linear layer, whose outputs are the logits.

    Raises:
        UserError: the model has no such layer under a known name.
    """
    candidates = ["classifier", "classifier.1", "head", "fc"]
    if hasattr(model, "timm_model"):  # timm's config names the head; two heads (a tuple) are not supported
        candidates = [f"timm_model.{model.timm_model.pretrained_cfg['classifier']}"]
    for name in candidates:
        try:
            module = model.get_submodule(name)
        except AttributeError:
            continue
        if isinstance(module, nn.Linear) or hasattr(module, "modules_to_save"):
            return name
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    raise UserError(
        f"{type(model).__name__}: no classification head with a known name; its last linear layers: "
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
        elif not torch.isfinite(found[name]).all():
            problems.append(f"{name}: holds NaN or infinity")
    return problems


def own_memory(model: nn.Module) -> None:
    """Move loaded weights to aligned memory.

    The rounding of matrix products depends on alignment, and a resumed run loads its weights from another
    file.
    """
    for weight in model.parameters():
        weight.data = weight.data.clone()


def takes_interpolation(model: nn.Module) -> bool:
    """Return True when `forward` can interpolate position embeddings for another image size."""
    return "interpolate_pos_encoding" in inspect.signature(model.forward).parameters


def native_image_size(model: PreTrainedModel) -> int | None:
    """Return the image size in pixels that the checkpoint was trained on.

    None when its config does not say.
    """
    return _native_size(model.config)


def load_config(source: str, key: str = "--backbone") -> Any:
    """Return the config of the checkpoint at `source` (hub id or folder).

    `key`: the setting by which the user can name another checkpoint.

    Raises:
        UserError: no such folder, the hub does not have it, or its values are refused.
    """
    check_folder(source, key)
    if not looks_local(source):
        _leave_out_silent_hub()
    try:
        values, _ = PretrainedConfig.get_config_dict(source)
    except Exception as error:  # as below
        raise unloadable(source, error, key) from None
    raise_all(config_problems(values), f"{key} {source}: its config.json cannot be used:")
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # a damaged config.json raises many kinds of errors; timm may be missing
        raise unloadable(source, error, key) from None


def _leave_out_silent_hub() -> None:
    """Use only this machine's cache when the hub does not answer: its client would retry each file for
    over a minute.
    """
    if constants.HF_HUB_OFFLINE:
        return
    try:
        huggingface_hub.get_session().head(constants.ENDPOINT, timeout=HUB_SECONDS)
    except Exception as error:  # of requests or httpx, depending on the version
        constants.HF_HUB_OFFLINE = True
        print(f"  {constants.ENDPOINT} does not answer ({type(error).__name__}): using the cached copy")


def _prepare_timm(source: str, config: Any, image_sizes: Sequence[int]) -> None:
    try:
        requires_backends("this checkpoint", ["timm"])
    except ImportError as error:
        raise unloadable(source, error) from None
    if any(size != _native_size(config) for size in image_sizes):
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
    problems += [
        f"{name}: holds NaN or infinity"
        for name, weight in model.named_parameters()
        if not torch.isfinite(weight).all()
    ]
    raise_all(problems, f"the weights in {source} do not fit {type(model).__name__}:")
    own_memory(model)
    return model, not any(key.startswith(head) for key in names["missing_keys"] | names["mismatched_keys"])


def unloadable(source: str, error: Exception, key: str = "--backbone") -> UserError:
    """Return the error message for a library's `error` on loading the checkpoint at `source`."""
    text = re.sub(r"\s+", " ", str(error)).strip()
    if any(isinstance(cause, pickle.UnpicklingError) for cause in _chain(error)):
        return UserError(
            f"{source}: the .bin file holds more than tensors and was not loaded (unsafe pickle): ask its "
            "author for safetensors"
        )
    if isinstance(error, ImportError):  # timm is missing, or a package of the architecture
        install = (
            "; `python -m pip install -c constraints.txt timm` installs it"
            if "requires the timm library" in text
            else ""
        )
        return UserError(f"{key} {source}: {text.split(' You can ')[0][:300].rstrip('.')}{install}")
    if Path(source).is_dir():
        return UserError(f"{source}: cannot be loaded: {text[:300]}")
    first_sentence = re.split(r"(?<=\.)\s", text)[0]
    return UserError(
        f"{key} {source}: not in this machine's cache, and not loaded from the Hugging Face hub: "
        f"{first_sentence[:200]}\n"
        "Check the name and the connection (HF_TOKEN for gated models), or use a folder on disk: --backbone "
        "finetuned_model/model_beit"
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error and its causes: transformers < 5 wraps torch's refusal of a pickle in two other
    errors.
    """
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def preprocessing_of(source: str | None, config: Any, image_size: int | None) -> Preprocessing:
    """Return the preprocessing of a checkpoint, or of its architecture (`source` None: no checkpoint).

    It is changed to `image_size` if that is given.

    Raises:
        UserError: the preprocessing file is not JSON, or has a step that is not supported.
    """
    native = _native_size(config) or image_size or 224
    path = None
    if source is not None and (Path(source) / FILE_NAME).is_file():
        path = Path(source) / FILE_NAME
    elif source is not None and not Path(source).is_dir():
        try:
            path = Path(cached_file(source, FILE_NAME))
        except OSError:  # many checkpoints have no such file: use the architecture's preprocessing
            path = None
    if path is not None:
        rule = read_preprocessing(path, native)
    elif config.model_type == timm_checkpoints.MODEL_TYPE:
        rule = timm_checkpoints.rule_of(config)
    else:
        rule = Preprocessing(native, native, **DEFAULT_RULES.get(config.model_type, {}))
    return (
        rule.at_size(image_size)
        if image_size and (rule.height, rule.width) != (image_size, image_size)
        else rule
    )


def _native_size(config: Any) -> int | None:
    if config.model_type == timm_checkpoints.MODEL_TYPE:
        return timm_checkpoints.rule_of(config).height
    # CLIP and SigLIP have two encoders
    size = getattr(getattr(config, "vision_config", config), "image_size", None)
    return int(size[0] if isinstance(size, (list, tuple)) else size) if size else None


def _set_drop_path(config: Any, rate: float) -> None:
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
