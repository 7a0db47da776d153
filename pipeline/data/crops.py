"""The random crop of training, drawn before the picture is decoded: then no more is decoded and resized than the crop needs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms import RandomResizedCrop

from pipeline.config import Augmentation
from pipeline.data.transforms import Preprocessing, to_tensor

LEVELS = 4  # a JPEG decoder can give a picture at 1, 1/2, 1/4 or 1/8 of its size: level 0 to 3
TORCH_FILTERS = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic"}


@dataclass(frozen=True)
class Crop:
    """A part of a picture, in pixels of its full size as seen, and whether it is mirrored."""

    left: int
    top: int
    width: int
    height: int
    mirrored: bool


class RandomCrop:
    """torchvision's RandomResizedCrop and RandomHorizontalFlip in two halves: `draw` needs a size only, `cut` a decoded picture."""

    def __init__(self, config: Augmentation, rule: Preprocessing) -> None:
        self.config, self.rule = config, rule

    def draw(self, size: tuple[int, int]) -> Crop:
        """A crop of a picture of `size` (width, height), from torch's default generator: the draws that torchvision's v2 makes."""
        width, height = size
        shape_only = torch.empty((3, height, width), device="meta")
        top, left, high, wide = RandomResizedCrop.get_params(shape_only, list(self.config.crop_scale), list(self.config.crop_ratio))
        return Crop(left, top, wide, high, self.config.horizontal_flip and bool(torch.rand(1) < 0.5))

    def level(self, crop: Crop) -> int:
        """How often a picture may be halved and still hold the crop at no less than the rule's size."""
        return _halvings(min(crop.width / self.rule.width, crop.height / self.rule.height))

    def level_for_any(self, size: tuple[int, int]) -> int:
        """The same for the smallest crop that a picture of `size` can get, taken as a square."""
        smallest = math.sqrt(self.config.crop_scale[0] * size[0] * size[1])
        return _halvings(smallest / max(self.rule.width, self.rule.height))

    def cut(self, picture: Image.Image | np.ndarray, size: tuple[int, int], crop: Crop) -> torch.Tensor:
        """(3, H, W) uint8 at the rule's size: `crop` of a `picture` that has been decoded at any level; its full size is `size`.

        At a lower level the crop's edges are rounded to whole pixels of that level, so they move by half a pixel of the result at most.
        Pictures larger than the result go through torch's kernel: at most 1 of 255 from Pillow's, in a fifth of its time.
        """
        wide, high = picture.size if isinstance(picture, Image.Image) else (picture.shape[1], picture.shape[0])
        left, right = (round(edge * wide / size[0]) for edge in (crop.left, crop.left + crop.width))
        top, bottom = (round(edge * high / size[1]) for edge in (crop.top, crop.top + crop.height))
        patch = (
            np.asarray(picture.crop((left, top, right, bottom))) if isinstance(picture, Image.Image) else picture[top:bottom, left:right]
        )
        rule = self.rule
        if max(size) > max(rule.width, rule.height) and rule.resample in TORCH_FILTERS:
            pixels = torch.from_numpy(patch if patch.flags.writeable else patch.copy()).permute(2, 0, 1)[None]
            pixels = F.interpolate(pixels, (rule.height, rule.width), mode=TORCH_FILTERS[rule.resample], antialias=True)[0]
        else:  # a small picture: Pillow's own filter, as in evaluation
            pixels = to_tensor(Image.fromarray(np.ascontiguousarray(patch)).resize((rule.width, rule.height), rule.resample))
        return pixels.flip(-1) if crop.mirrored else pixels


def _halvings(spare: float) -> int:
    return min(max(int(spare), 1).bit_length(), LEVELS) - 1
