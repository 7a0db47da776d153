"""The config of a checkpoint, its preprocessing and its image size; why a checkpoint cannot be loaded."""

from __future__ import annotations

import inspect
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import transformers
from huggingface_hub import constants
from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, AutoConfig, PretrainedConfig
from transformers.utils import cached_file

from pipeline.data.transforms import FILE_NAME, Preprocessing, read_preprocessing
from pipeline.errors import UserError, raise_all
from pipeline.models import timm_checkpoints
from pipeline.models.config_bounds import config_problems
from pipeline.models.places import check_folder, looks_local

# backbones.py reads the load report and prints what matters itself.
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
huggingface_hub.logging.set_verbosity_error()  # otherwise each of its five retries prints a line

HUB_SECONDS = 10  # the hub counts as unreachable if it does not answer within this time

# Preprocessing of published checkpoints that have no preprocessor_config.json (transformers' class defaults;
# timm's pretrained_cfg).
_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "resample": 3}
DEFAULT_PREPROCESSING: dict[str, dict[str, Any]] = {
    "beit": {"processor_type": "BeitImageProcessor", "resample": 2},
    "vit": {"processor_type": "ViTImageProcessor", "resample": 2},
    "swin": {"processor_type": "ViTImageProcessor", **_IMAGENET},
    "swinv2": {"processor_type": "ViTImageProcessor", **_IMAGENET},
    "dinov2": {"processor_type": "BitImageProcessor", **_IMAGENET},
    "dinov2_with_registers": {"processor_type": "BitImageProcessor", **_IMAGENET},
    "convnext": {"processor_type": "ViTImageProcessor", **_IMAGENET},
    "convnextv2": {"processor_type": "ViTImageProcessor", **_IMAGENET},
}


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


def preprocessing_of(source: str | None, config: Any, image_size: int | None) -> Preprocessing:
    """Return the preprocessing of a checkpoint, or of its architecture (`source` None: no checkpoint).

    It is changed to `image_size` if that is given.

    Raises:
        UserError: the preprocessing file is not JSON, or has a step that is not supported.
    """
    native = native_size(config) or image_size or 224
    path = None
    if source is not None and (Path(source) / FILE_NAME).is_file():
        path = Path(source) / FILE_NAME
    elif source is not None and not Path(source).is_dir():
        try:
            path = Path(cached_file(source, FILE_NAME))
        except OSError:  # many checkpoints have no such file: use the architecture's preprocessing
            path = None
    if path is not None:
        preprocessing = read_preprocessing(path, native)
    elif config.model_type == timm_checkpoints.MODEL_TYPE:
        preprocessing = timm_checkpoints.preprocessing_in(config)
    else:
        preprocessing = Preprocessing(native, native, **DEFAULT_PREPROCESSING.get(config.model_type, {}))
    if image_size and (preprocessing.height, preprocessing.width) != (image_size, image_size):
        return preprocessing.at_size(image_size)
    return preprocessing


# Hidden size -> timm's name for this DINOv3
DINOV3_SIZES = {384: "small", 768: "base", 1024: "large", 1280: "huge_plus", 4096: "7b"}


def check_classifier(source: str, config: Any) -> None:
    """Refuse the checkpoint at `source` if its architecture cannot classify images here.

    Raises:
        UserError: transformers has no classifier of this architecture, or it does not take whole images.
    """
    found = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING.get(type(config), None)
    if found is None:
        other = "use another checkpoint"
        if config.model_type.startswith("dinov3"):
            other = dinov3_in_timm(DINOV3_SIZES.get(getattr(config, "hidden_size", 0), "large"))
        raise UserError(
            f"--backbone {source}: transformers {transformers.__version__} has no image classifier of the "
            f"architecture {config.model_type}; {other}"
        )
    takes = inspect.signature((found[0] if isinstance(found, tuple) else found).forward).parameters
    if "pixel_values" not in takes or "pixel_attention_mask" in takes:
        raise UserError(
            f"--backbone {source}: the architecture {config.model_type} does not take images of one size; "
            "use another checkpoint, such as google/siglip2-base-patch16-224 (not naflex)"
        )


def dinov3_in_timm(size: str) -> str:
    """Return how to use DINOv3, which transformers cannot classify with."""
    return (
        f"timm has DINOv3's weights: --backbone timm/vit_{size}_patch16_dinov3.lvd1689m --set "
        "lora.targets=[qkv] (`python -m pip install -c constraints.txt timm`)"
    )


def native_size(config: Any) -> int | None:
    """Return the image size in pixels in a checkpoint's config; None if it does not say."""
    if config.model_type == timm_checkpoints.MODEL_TYPE:
        return timm_checkpoints.preprocessing_in(config).height
    # CLIP and SigLIP have two encoders
    size = getattr(getattr(config, "vision_config", config), "image_size", None)
    return int(size[0] if isinstance(size, (list, tuple)) else size) if size else None


def unloadable(source: str, error: Exception, key: str = "--backbone") -> UserError:
    """Return the error message for a library's `error` on loading the checkpoint at `source`."""
    text = re.sub(r"\s+", " ", str(error)).strip()
    if any(isinstance(cause, pickle.UnpicklingError) for cause in _chain(error)):
        return UserError(
            f"{source}: the .bin file holds more than tensors and was not loaded (unsafe pickle): ask its "
            "author for safetensors"
        )
    if isinstance(error, ImportError):  # timm is missing, or a package of the architecture
        install = ""
        if "requires the timm library" in text:
            install = "; `python -m pip install -c constraints.txt timm` installs it"
        return UserError(f"{key} {source}: {text.split(' You can ')[0][:300].rstrip('.')}{install}")
    if Path(source).is_dir():
        return UserError(f"{source}: cannot be loaded: {text[:300]}")
    first_sentence = re.split(r"(?<=\.)\s", text)[0]
    return UserError(
        f"{key} {source}: not in this machine's cache, and not loaded from the Hugging Face hub: "
        f"{first_sentence[:200]}\n"
        "Check the name and the connection (HF_TOKEN for gated models), or use a folder on disk: --backbone "
        "finetuned_model/model_beit"
        + (f"\nNote: {dinov3_in_timm('large')}" if source.startswith("facebook/dinov3") else "")
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error and its causes: transformers < 5 wraps torch's refusal of a pickle in two other
    errors.
    """
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
