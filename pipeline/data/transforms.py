"""Pictures to tensors: the preprocessing rule that is saved with the weights, and the augmentation of training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.functional import pil_modes_mapping

from pipeline.config import Augmentation
from pipeline.errors import UserError
from pipeline.files import read_json, write_json

FILE_NAME = "preprocessor_config.json"


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes the model's input. Resizing is Pillow's on 8-bit pixels: torchvision's differs by up to 2e-3 in the logits."""

    height: int
    width: int
    resample: int = Image.Resampling.BICUBIC
    resize_to: int | None = None  # shorter side before a centre crop to (height, width); None: stretch to it
    scale: float = 1 / 255
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    processor_type: str = "BeitImageProcessor"

    def resize(self, image: Image.Image) -> Image.Image:
        """The RGB picture at (height, width), as in evaluation."""
        if self.resize_to is None:
            return image.resize((self.width, self.height), self.resample)
        ratio = self.resize_to / min(image.size)
        wide, high = (max(round(side * ratio), 1) for side in image.size)
        image = image.resize((wide, high), self.resample)
        left, top = (wide - self.width) // 2, (high - self.height) // 2
        return image.crop((left, top, left + self.width, top + self.height))

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) uint8 -> float32, (pixels * scale - mean) / std, on the tensor's own device."""
        mean = torch.tensor(self.mean, device=pixels.device).view(3, 1, 1)
        std = torch.tensor(self.std, device=pixels.device).view(3, 1, 1)
        return pixels.float().mul_(self.scale).sub_(mean).div_(std)

    def at_size(self, image_size: int) -> Preprocessing:
        """The same rule for square inputs of `image_size` pixels."""
        resize_to = None if self.resize_to is None else round(self.resize_to * image_size / min(self.height, self.width))
        return replace(self, height=image_size, width=image_size, resize_to=resize_to)

    def save(self, folder: Path) -> None:
        """Write `preprocessor_config.json` as transformers' image processors read it."""
        crops = self.resize_to is not None
        size = {"shortest_edge": self.resize_to} if crops else {"height": self.height, "width": self.width}
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
        write_json(Path(folder) / FILE_NAME, values)


def read_preprocessing(path: Path, default_size: int) -> Preprocessing:
    """The rule in a `preprocessor_config.json` of any age (`feature_extractor_type` and bare sizes are 2022's spelling).

    Raises:
        UserError: the file is not JSON, or asks for a step this project does not have.
    """
    values = read_json(path)
    problems = []
    size, crop, resize_to = values.get("size", default_size), values.get("crop_size"), None
    if isinstance(size, dict) and "shortest_edge" in size:
        resize_to = int(size["shortest_edge"] / values.get("crop_pct", 1.0))
        height = width = size["shortest_edge"]
    else:
        height, width = _height_width(size)
    if values.get("do_center_crop") and crop is not None:
        resize_to = resize_to or min(height, width)
        height, width = _height_width(crop)
    if not values.get("do_resize", True):
        problems.append("do_resize: false (pictures of any size cannot be batched)")
    if problems:
        raise UserError(f"{path}: {'; '.join(problems)}")
    normalizes = values.get("do_normalize", True)
    scale = values.get("rescale_factor", 1 / 255) if values.get("do_rescale", True) else 1.0
    kind = values.get("image_processor_type") or values.get("feature_extractor_type", "").replace("FeatureExtractor", "ImageProcessor")
    return Preprocessing(
        height=height,
        width=width,
        resample=int(values.get("resample", Image.Resampling.BILINEAR)),
        resize_to=resize_to,
        scale=scale,
        mean=tuple(values.get("image_mean", (0.5,) * 3)) if normalizes else (0.0,) * 3,
        std=tuple(values.get("image_std", (0.5,) * 3)) if normalizes else (1.0,) * 3,
        processor_type=(kind or "BeitImageProcessor").removesuffix("Fast").removesuffix("Pil"),
    )


def to_tensor(image: Image.Image) -> torch.Tensor:
    """An RGB picture as (3, H, W) uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def augmenter(config: Augmentation, rule: Preprocessing) -> v2.Compose:
    """Training's picture -> picture transform at the rule's size, from torchvision; it draws from torch's default generator."""
    interpolation = _interpolation(rule.resample)
    steps: list[Any] = []
    if config.rotation_degrees:
        steps.append(v2.RandomRotation(config.rotation_degrees, InterpolationMode.BILINEAR, fill=0))
    if config.random_resized_crop:
        size = (rule.height, rule.width)
        steps.append(v2.RandomResizedCrop(size, config.crop_scale, config.crop_ratio, interpolation))
    else:
        steps.append(v2.Lambda(rule.resize))
    if config.horizontal_flip:
        steps.append(v2.RandomHorizontalFlip())
    return v2.Compose(steps)


def _interpolation(resample: int) -> InterpolationMode:
    return next(mode for mode, number in pil_modes_mapping.items() if number == resample)


def _height_width(size: int | dict[str, int] | list[int]) -> tuple[int, int]:
    if isinstance(size, dict):
        return int(size["height"]), int(size["width"])
    if isinstance(size, (list, tuple)):
        return int(size[0]), int(size[1])
    return int(size), int(size)
