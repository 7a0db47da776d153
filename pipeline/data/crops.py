"""The random crop of training.

It is drawn before the image is decoded, so that only what the crop needs is decoded and resized.
"""

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
from pipeline.recipe_sections import Augmentation

ATTEMPTS = 10  # tries to find a crop that fits, as in torchvision
TORCH_FILTERS = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic"}


class DecodedImage(NamedTuple):
    """An image decoded at some level, in memory or in a file.

    `size`: its full (width, height) as seen; `shape`: (H, W) of the decoded pixels.
    """

    size: tuple[int, int]
    shape: tuple[int, int]
    # (top, bottom) -> (bottom - top, W, 3) uint8; may be called once, because it closes the file
    rows: Callable[[int, int], np.ndarray]


def decoded(pixels: np.ndarray, size: tuple[int, int] | None = None) -> DecodedImage:
    """Return the image with `pixels` (H, W, 3) uint8 in memory.

    `size`: its full size, if they are reduced.
    """
    return DecodedImage(size or pixels.shape[1::-1], pixels.shape[:2], lambda top, bottom: pixels[top:bottom])


@dataclass(frozen=True)
class Crop:
    """A part of an image, in pixels of its full size as seen, and whether it is mirrored."""

    left: int
    top: int
    width: int
    height: int
    mirrored: bool


class RandomCrop:
    """torchvision's RandomResizedCrop and RandomHorizontalFlip in two steps.

    `draw` needs only the size of the image, `cut` needs a decoded image.
    """

    def __init__(self, config: Augmentation, preprocessing: Preprocessing) -> None:
        self.config, self.preprocessing = config, preprocessing
        self.log_ratio = torch.log(torch.tensor(config.crop_ratio)).tolist()

    def draw(self, size: tuple[int, int], generator: torch.Generator) -> Crop:
        """Return a random crop of an image of `size` (width, height).

        It makes the same draws in the same order as `RandomResizedCrop.get_params` and `RandomHorizontalFlip`
        of torchvision, in float32 where they use it:
        https://github.com/pytorch/vision/blob/main/torchvision/transforms/transforms.py
        """
        left, top, wide, high = self._box(size, generator)
        return Crop(
            left,
            top,
            wide,
            high,
            self.config.horizontal_flip and torch.rand(1, generator=generator).item() < 0.5,
        )

    def _box(self, size: tuple[int, int], generator: torch.Generator) -> tuple[int, int, int, int]:
        width, height = size
        for _ in range(ATTEMPTS):
            area = (
                width * height * torch.empty(1).uniform_(*self.config.crop_scale, generator=generator).item()
            )
            ratio = torch.empty(1).uniform_(*self.log_ratio, generator=generator).exp_().item()
            wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < wide <= width and 0 < high <= height:
                top = torch.randint(0, height - high + 1, (1,), generator=generator).item()
                return torch.randint(0, width - wide + 1, (1,), generator=generator).item(), top, wide, high
        # None fits: the largest part in the middle that the ratios allow
        lowest, highest = self.config.crop_ratio
        wide, high = width, height
        if width / height < lowest:
            high = round(width / lowest)
        elif width / height > highest:
            wide = round(height * highest)
        return (width - wide) // 2, (height - high) // 2, wide, high

    def level(self, crop: Crop) -> int:
        """Return how often an image may be halved so that the crop is still at least as large as the
        model's input.
        """
        return _halvings(min(crop.width / self.preprocessing.width, crop.height / self.preprocessing.height))

    def level_for_any(self, size: tuple[int, int]) -> int:
        """Return the same for the smallest crop that an image of `size` can get, assumed to be a square."""
        smallest = math.sqrt(self.config.crop_scale[0] * size[0] * size[1])
        return _halvings(smallest / max(self.preprocessing.width, self.preprocessing.height))

    def cut(self, image: DecodedImage, crop: Crop) -> torch.Tensor:
        """Return `crop` of an `image` that was decoded at any level: (3, H, W) uint8 at the size of the
        model's input.

        At a lower level the edges of the crop are rounded to whole pixels of that level, so they move by at
        most half a pixel of the result. Images larger than the result are resized by torch, which differs
        from Pillow by at most 1 of 255 and needs a fifth of the time.
        """
        size, (high, wide) = image.size, image.shape
        left, right = (round(edge * wide / size[0]) for edge in (crop.left, crop.left + crop.width))
        top, bottom = (round(edge * high / size[1]) for edge in (crop.top, crop.top + crop.height))
        patch = image.rows(top, bottom)[:, left:right]
        preprocessing = self.preprocessing
        if (
            max(size) > max(preprocessing.width, preprocessing.height)
            and preprocessing.resample in TORCH_FILTERS
        ):
            # Numpy copies several times faster than torch's resize
            pixels = torch.from_numpy(np.array(patch)[None]).permute(0, 3, 1, 2)
            pixels = F.interpolate(
                pixels,
                (preprocessing.height, preprocessing.width),
                mode=TORCH_FILTERS[preprocessing.resample],
                antialias=True,
            )[0]
        else:  # a small image: Pillow's filter, as in evaluation
            pixels = to_tensor(
                Image.fromarray(np.ascontiguousarray(patch)).resize(
                    (preprocessing.width, preprocessing.height), preprocessing.resample
                )
            )
        return pixels.flip(-1) if crop.mirrored else pixels


def random_crop(config: Augmentation | None, preprocessing: Preprocessing) -> RandomCrop | None:
    """Return the crop of an augmentation that starts with one.

    None for other augmentations, which need the whole image at its full size.
    """
    if config and config.random_resized_crop and not config.rotation_degrees:
        return RandomCrop(config, preprocessing)
    return None


def _halvings(spare: float) -> int:
    return min(max(int(spare), 1).bit_length(), LEVELS) - 1
