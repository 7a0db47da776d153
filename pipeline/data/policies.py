"""torchvision's augmentation policies, applied before the image is normalised, and random erasing, applied
afterwards.

Both draw from torch's default generator, which the caller seeds.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from pipeline.recipe_sections import Augmentation

POLICIES = {"rand_augment": v2.RandAugment, "trivial_augment": v2.TrivialAugmentWide}


def policy(config: Augmentation) -> Callable[[Image.Image], Image.Image] | None:
    """Return torchvision's RandAugment (two changes of magnitude 9 of 30) or TrivialAugmentWide (one of
    any magnitude).

    None: no policy. They work on Pillow images: Pillow's filters give the same bytes with any number of
    threads, torch's means over an image do not.
    """
    if config.policy == "none":
        return None
    return POLICIES[config.policy](interpolation=InterpolationMode.BILINEAR)


def erased_box(probability: float, height: int, width: int) -> torch.Tensor:
    """Return top, left, height and width of the box to erase, (4,) int64.

    A height of 0 if nothing is erased. Scale and ratio of the box are torchvision's: 0.02 to 0.33 of the
    area, 0.3 to 3.3.
    """
    if torch.rand(1) >= probability:
        return torch.zeros(4, dtype=torch.int64)
    drawn = v2.RandomErasing().make_params([torch.empty(3, height, width, device="meta")])
    if drawn["v"] is None:  # none of ten random boxes fits
        return torch.zeros(4, dtype=torch.int64)
    return torch.tensor([drawn[side] for side in ("i", "j", "h", "w")])


def erase(pixel_values: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Return normalised `pixel_values` (B, 3, H, W) with 0 (the mean) inside the `boxes` (B, 4) of
    `erased_box`.

    Works on the tensors' own device.
    """
    top, left, height, width = boxes[:, :, None, None, None].unbind(1)
    rows = torch.arange(pixel_values.shape[2], device=boxes.device).view(-1, 1)
    columns = torch.arange(pixel_values.shape[3], device=boxes.device)
    inside = (rows >= top) & (rows < top + height) & (columns >= left) & (columns < left + width)
    return pixel_values.masked_fill(inside, 0)
