"""The random crop of training, drawn before the image is decoded: then no more is decoded and resized than the crop needs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from pipeline.data.images import LEVELS
from pipeline.data.transforms import Preprocessing, to_tensor
from pipeline.recipe import Augmentation

ATTEMPTS = 10  # at a crop that fits, as torchvision makes
TORCH_FILTERS = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic"}


class Picture(NamedTuple):
    """An image decoded at any level, in memory or in a file. `size`: its full (width, height) as seen; `shape`: (H, W) at that level."""

    size: tuple[int, int]
    shape: tuple[int, int]
    rows: Callable[[int, int], np.ndarray]  # (top, bottom) -> (bottom - top, W, 3) uint8; once, for then the file is closed


def decoded(pixels: np.ndarray, size: tuple[int, int] | None = None) -> Picture:
    """The image whose `pixels` (H, W, 3) uint8 are in memory; `size` where they are not all of it."""
    return Picture(size or pixels.shape[1::-1], pixels.shape[:2], lambda top, bottom: pixels[top:bottom])


@dataclass(frozen=True)
class Crop:
    """A part of an image, in pixels of its full size as seen, and whether it is mirrored."""

    left: int
    top: int
    width: int
    height: int
    mirrored: bool


class RandomCrop:
    """torchvision's RandomResizedCrop and RandomHorizontalFlip in two halves: `draw` needs a size only, `cut` a decoded image."""

    def __init__(self, config: Augmentation, rule: Preprocessing) -> None:
        self.config, self.rule = config, rule
        self.log_ratio = torch.log(torch.tensor(config.crop_ratio)).tolist()

    def draw(self, size: tuple[int, int], generator: torch.Generator) -> Crop:
        """A crop of an image of `size` (width, height).

        The same draws in the same order as `RandomResizedCrop.get_params` and `RandomHorizontalFlip` of torchvision make, float32 where
        theirs are: https://github.com/pytorch/vision/blob/main/torchvision/transforms/transforms.py
        """
        left, top, wide, high = self._box(size, generator)
        return Crop(left, top, wide, high, self.config.horizontal_flip and torch.rand(1, generator=generator).item() < 0.5)

    def _box(self, size: tuple[int, int], generator: torch.Generator) -> tuple[int, int, int, int]:
        width, height = size
        for _ in range(ATTEMPTS):
            area = width * height * torch.empty(1).uniform_(*self.config.crop_scale, generator=generator).item()
            ratio = torch.empty(1).uniform_(*self.log_ratio, generator=generator).exp_().item()
            wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < wide <= width and 0 < high <= height:
                top = torch.randint(0, height - high + 1, (1,), generator=generator).item()
                return torch.randint(0, width - wide + 1, (1,), generator=generator).item(), top, wide, high
        lowest, highest = self.config.crop_ratio  # none fits: the middle, as much as the ratios allow
        wide, high = width, height
        if width / height < lowest:
            high = round(width / lowest)
        elif width / height > highest:
            wide = round(height * highest)
        return (width - wide) // 2, (height - high) // 2, wide, high

    def level(self, crop: Crop) -> int:
        """How often an image may be halved and still hold the crop at no less than the rule's size."""
        return _halvings(min(crop.width / self.rule.width, crop.height / self.rule.height))

    def level_for_any(self, size: tuple[int, int]) -> int:
        """The same for the smallest crop that an image of `size` can get, taken as a square."""
        smallest = math.sqrt(self.config.crop_scale[0] * size[0] * size[1])
        return _halvings(smallest / max(self.rule.width, self.rule.height))

    def cut(self, picture: Picture, crop: Crop) -> torch.Tensor:
        """(3, H, W) uint8 at the rule's size: `crop` of a `picture` that has been decoded at any level.

        At a lower level the crop's edges are rounded to whole pixels of that level, so they move by half a pixel of the result at most.
        Images larger than the result go through torch's kernel: at most 1 of 255 from Pillow's, in a fifth of its time.
        """
        size, (high, wide) = picture.size, picture.shape
        left, right = (round(edge * wide / size[0]) for edge in (crop.left, crop.left + crop.width))
        top, bottom = (round(edge * high / size[1]) for edge in (crop.top, crop.top + crop.height))
        patch = picture.rows(top, bottom)[:, left:right]
        rule = self.rule
        if max(size) > max(rule.width, rule.height) and rule.resample in TORCH_FILTERS:
            pixels = torch.from_numpy(np.array(patch)[None]).permute(0, 3, 1, 2)  # copied by numpy, several times faster than by the kernel
            pixels = F.interpolate(pixels, (rule.height, rule.width), mode=TORCH_FILTERS[rule.resample], antialias=True)[0]
        else:  # a small image: Pillow's own filter, as in evaluation
            pixels = to_tensor(Image.fromarray(np.ascontiguousarray(patch)).resize((rule.width, rule.height), rule.resample))
        return pixels.flip(-1) if crop.mirrored else pixels


def random_crop(config: Augmentation | None, rule: Preprocessing) -> RandomCrop | None:
    """The crop of an augmentation that begins with one; None for another, which needs the whole image at its full size."""
    return RandomCrop(config, rule) if config and config.random_resized_crop and not config.rotation_degrees else None


def _halvings(spare: float) -> int:
    return min(max(int(spare), 1).bit_length(), LEVELS) - 1
