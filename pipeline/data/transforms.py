"""Images to tensors: the preprocessing, which is saved with the weights, and the augmentation of training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.functional import pil_modes_mapping

from pipeline.data.intensity import FILE_NAME, KEY, Intensity, read_record
from pipeline.errors import UserError, raise_all
from pipeline.files import read_json, write_json
from pipeline.recipe_sections import Augmentation

MAX_SIDE = 16_384  # pixels; no model takes larger images
KNOWN_STEPS = {
    "do_resize",
    "do_center_crop",
    "do_rescale",
    "do_normalize",
    "do_convert_rgb",
    "do_reduce_labels",
}  # the last concerns only masks
OWN_RESIZING = ("LevitImageProcessor", "PerceiverImageProcessor", "TextNetImageProcessor")
CROP_SHARE = {"ConvNextImageProcessor": 224 / 256, "PoolFormerImageProcessor": 0.9}  # their default crop_pct
BARE_SIZE_IS_SHORTER_SIDE = (*CROP_SHARE, "BitImageProcessor", "CLIPImageProcessor")
BICUBIC_BY_DEFAULT = ("BeitImageProcessor", "DeiTImageProcessor", *BARE_SIZE_IS_SHORTER_SIDE)


@dataclass(frozen=True)
class Preprocessing:
    """The preprocessing of an image for the model.

    Pillow resizes 8-bit pixels; with torchvision the logits would differ by up to 2e-3.
    """

    height: int
    width: int
    resample: int = Image.Resampling.BICUBIC
    # Shorter side, or (height, width), before a centre crop; None: no crop
    resize_to: int | tuple[int, int] | None = None
    scale: float = 1 / 255
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    processor_type: str = "BeitImageProcessor"
    # Black and white of images of more than 8 bits; None: the range of their type
    intensity: Intensity | None = None

    def resize(self, image: Image.Image) -> Image.Image:
        """Return the RGB image at (height, width), as in evaluation."""
        if self.resize_to is None:
            return image.resize((self.width, self.height), self.resample)
        if isinstance(self.resize_to, tuple):
            high, wide = self.resize_to
        else:  # rounded down, as transformers and torchvision do
            image = self._middle(image, self.resize_to)
            wide, high = (int(self.resize_to * side / min(image.size)) for side in image.size)
        image = image.resize((wide, high), self.resample)
        left, top = (wide - self.width) // 2, (high - self.height) // 2
        return image.crop((left, top, left + self.width, top + self.height))

    def _middle(self, image: Image.Image, shorter_side: int) -> Image.Image:
        """Return the image without the ends that the centre crop drops, if it is very long.

        With a shorter side of `shorter_side` pixels the whole of it could take gigabytes.
        """
        shorter = min(image.size)
        if max(image.size) * shorter_side <= MAX_SIDE * shorter:
            return image
        keep = shorter * (3 * max(self.height, self.width) // shorter_side + 3)
        left, top = (max(side - keep, 0) // 2 for side in image.size)
        return image.crop((left, top, image.width - left, image.height - top))

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return float32 (pixels * scale - mean) / std of (B, 3, H, W) uint8, on the tensor's own device."""
        # Without waiting: else a GPU would have nothing to do until the kernels of this batch come
        mean, std = (
            torch.tensor(values).view(3, 1, 1).to(pixels.device, non_blocking=True)
            for values in (self.mean, self.std)
        )
        return pixels.float().mul_(self.scale).sub_(mean).div_(std)

    def at_size(self, image_size: int) -> Preprocessing:
        """Return the same preprocessing for square inputs of `image_size` pixels."""
        scale, resize_to = image_size / min(self.height, self.width), self.resize_to
        if isinstance(resize_to, tuple):
            resize_to = (round(resize_to[0] * scale), round(resize_to[1] * scale))
        elif resize_to is not None:
            resize_to = round(resize_to * scale)
        return replace(self, height=image_size, width=image_size, resize_to=resize_to)

    def resized(self, how: str | None) -> Preprocessing:
        """Return the same preprocessing with another way of resizing.

        "square": the whole image is stretched. "crop": the shorter side is resized and the middle is kept, as
        torchvision's Resize(size) and CenterCrop(size) do, and the examples of transformers and PEFT. If an
        image is stretched and then cropped, the share that is cut off stays. None, or the same way: no
        change.
        """
        if how == "square" and self.resize_to is not None:  # processors of this type accept such a size
            return replace(self, resize_to=None, processor_type="ViTImageProcessor")
        if how == "crop" and not isinstance(self.resize_to, int):
            shorter = min(self.resize_to) if self.resize_to else max(self.height, self.width)
            return replace(self, resize_to=shorter, processor_type="BitImageProcessor")
        return self

    def save(self, folder: Path) -> None:
        """Write `preprocessor_config.json` in the form of transformers' image processors."""
        crops = self.resize_to is not None
        if isinstance(self.resize_to, int):
            size = {"shortest_edge": self.resize_to}
        else:
            size = dict(zip(("height", "width"), self.resize_to or (self.height, self.width), strict=True))
        values: dict[str, Any] = {
            "image_processor_type": self.processor_type,
            "do_resize": True,
            "size": size,
            "resample": int(self.resample),
            "do_center_crop": crops,
            "do_rescale": True,
            "rescale_factor": self.scale,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }
        if crops:
            values["crop_size"] = {"height": self.height, "width": self.width}
        if self.intensity is not None:
            values[KEY] = self.intensity.record()
        write_json(Path(folder) / FILE_NAME, values)


def read_preprocessing(path: Path, default_size: int) -> Preprocessing:
    """Return the preprocessing in a `preprocessor_config.json` of any version.

    `feature_extractor_type` and sizes as plain numbers are the form of 2022.

    Raises:
        UserError: the file is not JSON, or has a step that is not supported.
    """
    values = read_json(path)
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected keys and values, found {type(values).__name__}")
    values = {name: value for name, value in values.items() if value is not None}
    raise_all(_impossible_values(values), f"{path} cannot be used:")
    kind = values.get("image_processor_type") or values.get("feature_extractor_type") or "BeitImageProcessor"
    kind = kind.replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast").removesuffix("Pil")
    if problems := _unknown_steps(values, kind):
        raise UserError(f"{path}: {'; '.join(problems)}")
    height, width, resize_to = _geometry(values, kind, default_size)
    default_resample = Image.Resampling.BICUBIC if kind in BICUBIC_BY_DEFAULT else Image.Resampling.BILINEAR
    normalizes = values.get("do_normalize", True)
    scale = values.get("rescale_factor", 1 / 255) if values.get("do_rescale", True) else 1.0
    if kind in CROP_SHARE:  # will be saved with its computed sizes, as a processor without crop_pct
        kind = "BitImageProcessor" if resize_to else "ViTImageProcessor"
    return Preprocessing(
        height=height,
        width=width,
        resample=int(values.get("resample", default_resample)),
        resize_to=resize_to,
        scale=scale,
        mean=tuple(values.get("image_mean", (0.5,) * 3)) if normalizes else (0.0,) * 3,
        std=tuple(values.get("image_std", (0.5,) * 3)) if normalizes else (1.0,) * 3,
        processor_type=kind,
        intensity=read_record(values[KEY]) if KEY in values else None,
    )


def to_tensor(image: Image.Image) -> torch.Tensor:
    """Return an RGB image as (3, H, W) uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def augmenter(config: Augmentation, preprocessing: Preprocessing) -> v2.Compose:
    """Return the training transform, image -> image at the size of the model's input.

    It is torchvision's and draws from torch's default generator.
    """
    interpolation = _interpolation(preprocessing.resample)
    steps: list[Any] = []
    if config.rotation_degrees:
        steps.append(v2.RandomRotation(config.rotation_degrees, InterpolationMode.BILINEAR, fill=0))
    if config.random_resized_crop:
        size = (preprocessing.height, preprocessing.width)
        steps.append(v2.RandomResizedCrop(size, config.crop_scale, config.crop_ratio, interpolation))
    else:
        steps.append(v2.Lambda(preprocessing.resize))
    if config.horizontal_flip:
        steps.append(v2.RandomHorizontalFlip())
    return v2.Compose(steps)


def _interpolation(resample: int) -> InterpolationMode:
    return next(mode for mode, number in pil_modes_mapping.items() if number == resample)


def _impossible_values(values: dict[str, Any]) -> list[str]:
    def is_number(value: Any) -> bool:
        # NaN is not
        return isinstance(value, (int, float)) and not isinstance(value, bool) and -1e9 < value < 1e9

    def is_size(value: Any, named: tuple[set[str], ...]) -> bool:
        """Return True for a side in pixels, a list of two, or sides by name: one of the sets in `named`."""
        if isinstance(value, dict):
            sides = list(value.values())
        elif isinstance(value, list):
            sides = list(value)
        else:
            sides = [value]
        complete = (
            value.keys() in named
            if isinstance(value, dict)
            else len(sides) == (2 if isinstance(value, list) else 1)
        )
        return complete and all(is_number(side) and 1 <= side <= MAX_SIDE for side in sides)

    def is_triple(value: Any) -> bool:
        return isinstance(value, list) and len(value) == 3 and all(is_number(item) for item in value)

    problems = []
    both = {"height", "width"}
    for name, named in (("size", (both, {"shortest_edge"})), ("crop_size", (both,))):
        if name in values and not is_size(values[name], named):
            problems.append(
                f"{name}: {values[name]!r}; expected pixels, such as 224 or {{'height': 224, 'width': 224}}"
            )
    for name in ("image_mean", "image_std"):
        if name in values and not (
            is_triple(values[name]) and (name == "image_mean" or min(values[name]) > 0)
        ):
            problems.append(
                f"{name}: {values[name]!r}; expected three "
                f"numbers{', each above 0' if name == 'image_std' else ''}"
            )
    for name in ("rescale_factor", "crop_pct"):
        if name in values and not (is_number(values[name]) and values[name] > 0):
            problems.append(f"{name}: {values[name]!r}; expected a number above 0")
    for name in ("image_processor_type", "feature_extractor_type"):
        if name in values and not isinstance(values[name], str):
            problems.append(f"{name}: {values[name]!r}; expected the name of an image processor")
    if KEY in values and read_record(values[KEY]) is None:
        problems.append(
            f"{KEY}: {values[KEY]!r}; expected {Intensity().record()}: the values of black and white, the "
            "lower first"
        )
    return problems


def _unknown_steps(values: dict[str, Any], kind: str) -> list[str]:
    problems = [
        f"{name}: true is not supported"
        for name in sorted(values)
        if values[name] is True and _changes_pixels(name)
    ]
    if not values.get("do_resize", True):
        problems.append("do_resize: false (images of any size cannot be batched)")
    if values.get("resample", 0) not in pil_modes_mapping.values():
        problems.append(
            f"resample: {values['resample']} is not one of Pillow's filters "
            f"({sorted(pil_modes_mapping.values())})"
        )
    if kind in OWN_RESIZING:
        problems.append(f"{kind} resizes in its own way, which is not supported")
    return problems


def _changes_pixels(name: str) -> bool:
    return (name.startswith("do_") and name not in KNOWN_STEPS) or name in ("rescale_offset", "include_top")


def _geometry(
    values: dict[str, Any], kind: str, default_size: int
) -> tuple[int, int, int | tuple[int, int] | None]:
    """Return height and width of the result, and `Preprocessing.resize_to`."""
    size = values.get("size", default_size)
    crop = values.get("crop_size") if values.get("do_center_crop") else None
    if isinstance(size, dict):
        shorter = size.get("shortest_edge")
    else:
        shorter = size if kind in BARE_SIZE_IS_SHORTER_SIDE else None
    if shorter is None:
        stretched = _height_width(size)
        return (*stretched, None) if crop is None else (*_height_width(crop), stretched)
    if kind == "ConvNextImageProcessor" and shorter >= 384:
        return shorter, shorter, None  # from this size on it stretches
    height, width = (shorter, shorter) if crop is None else _height_width(crop)
    return height, width, int(shorter / (values.get("crop_pct") or CROP_SHARE.get(kind, 1.0)))


def _height_width(size: int | dict[str, int] | list[int]) -> tuple[int, int]:
    if isinstance(size, dict):
        return int(size["height"]), int(size["width"])
    if isinstance(size, (list, tuple)):
        return int(size[0]), int(size[1])
    return int(size), int(size)
