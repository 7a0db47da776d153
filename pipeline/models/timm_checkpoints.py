"""What is special about the configs of timm's checkpoints, which transformers wraps.

Timm itself is optional.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torchvision.transforms.functional import InterpolationMode, pil_modes_mapping

from pipeline.data.transforms import Preprocessing
from pipeline.errors import UserError, first_line

MODEL_TYPE = "timm_wrapper"


def preprocessing_in(config: Any) -> Preprocessing:
    """Return the preprocessing in the config's `pretrained_cfg`, as timm.data.create_transform reads it.

    A centre crop may lie one pixel off.

    Raises:
        UserError: it pads images (crop_mode `border`), which is not supported.
    """
    given = getattr(config, "pretrained_cfg", None) or {}
    _, height, width = given.get("input_size") or (3, 224, 224)
    share, mode = given.get("crop_pct") or 0.875, given.get("crop_mode") or "center"
    if mode == "border":
        raise UserError(
            f"{config.architecture}: crop_mode border (images are padded, not cropped) is not supported"
        )
    scaled = (math.floor(height / share), math.floor(width / share))
    resize_to = scaled if mode == "squash" else min(scaled)
    return Preprocessing(
        height,
        width,
        resample=pil_modes_mapping[InterpolationMode(given.get("interpolation") or "bicubic")],
        resize_to=None if resize_to == (height, width) else resize_to,
        mean=tuple(given.get("mean") or (0.485, 0.456, 0.406)),
        std=tuple(given.get("std") or (0.229, 0.224, 0.225)),
        processor_type="ViTImageProcessor" if resize_to == (height, width) else "BitImageProcessor",
    )


def store_size(config: Any, preprocessing: Preprocessing) -> None:
    """Write the image size of `preprocessing` into `config`, where transformers' AutoImageProcessor reads
    it.
    """
    size = [3, preprocessing.height, preprocessing.width]
    config.pretrained_cfg = (getattr(config, "pretrained_cfg", None) or {}) | {"input_size": size}


def take_sizes(config: Any, image_sizes: Sequence[int]) -> None:
    """Set up `config` for square inputs of each of `image_sizes` pixels.

    Its position tables keep the checkpoint's size.

    Raises:
        UserError: the architecture needs another size, or a size is not a multiple of its patches.
    """
    model_args = dict(config.model_args or {})
    # The second is a setting of timm's vision transformers
    tries = (model_args, model_args | {"dynamic_img_size": True})
    reasons: list[str | None] = []
    for image_size in image_sizes:
        reasons = [_refusal(config.architecture, arguments, image_size) for arguments in tries]
        if not all(reasons):
            tries = tuple(
                arguments for arguments, reason in zip(tries, reasons, strict=True) if reason is None
            )
            continue
        why = reasons[0] if "dynamic_img_size" in reasons[-1] else reasons[-1]
        raise UserError(
            f"--image-size {image_size}: timm's {config.architecture}, made for "
            f"{preprocessing_in(config).height} px, does not run at this size: {why}"
        )
    config.model_args = tries[0]


def set_drop_path(config: Any, rate: float) -> None:
    """Set the probability of stochastic depth in the arguments of timm's model.

    Raises:
        UserError: the architecture does not take it.
    """
    arguments = dict(config.model_args or {}) | {"drop_path_rate": rate}
    if reason := _refusal(config.architecture, arguments, preprocessing_in(config).height):
        raise UserError(
            f"drop_path: timm's {config.architecture} has no stochastic depth ({reason}); expected null: "
            "--set drop_path=null"
        )
    config.model_args = arguments


def _refusal(architecture: str, model_args: dict[str, Any], image_size: int) -> str | None:
    """Return why this model does not run with these arguments at `image_size`, tested on shapes only.

    None if it does.
    """
    import timm

    try:
        with torch.device("meta"), torch.no_grad():
            timm.create_model(architecture, pretrained=False, **model_args).eval()(
                torch.empty(1, 3, image_size, image_size)
            )
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:  # each architecture has its own
        return first_line(error)
    return None
