"""mixup (Zhang et al. 2018, arXiv:1710.09412) and CutMix (Yun et al. 2019, arXiv:1905.04899), drawn
separately for each row.

Usually the rows of a batch are mixed with each other, so a row's image depends on how rows are cut into
batches. Here a row's partner is drawn from all training rows. So micro-batch size, number of processes and
resuming do not change the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.data.sampling import rows_by_class
from pipeline.data.transforms import Preprocessing
from pipeline.recipe import Recipe
from pipeline.recipe_sections import Augmentation


@dataclass(frozen=True)
class Mix:
    """How a row is mixed: its partner row, its own share of the result (`weight`), and for CutMix the
    partner's box.
    """

    partner: int
    weight: float
    box: tuple[int, int, int, int] | None = None  # top, bottom, left, right in pixels


class Mixing:
    """Draws and applies mixup and CutMix, for images of `height` x `width` and labels of `num_outputs`.

    A partner is drawn in two steps: first one of `groups`, then one of its rows. There is one group of all
    rows, or one group per class.
    """

    def __init__(
        self, config: Augmentation, height: int, width: int, num_outputs: int, groups: Sequence[np.ndarray]
    ) -> None:
        self.mixup, self.cutmix = config.mixup, config.cutmix
        self.height, self.width, self.num_outputs = height, width, num_outputs
        self.groups = groups

    def draw(self, generator: np.random.Generator) -> Mix:
        """Return how one row is mixed. With both mixup and CutMix each is used for half of the rows."""
        group = self.groups[generator.integers(len(self.groups))]
        partner = int(group[generator.integers(len(group))])
        cuts = generator.random() < 0.5 if self.mixup and self.cutmix else self.cutmix > 0
        alpha = self.cutmix if cuts else self.mixup
        weight = float(generator.beta(alpha, alpha))
        return self._cut(partner, weight, generator) if cuts else Mix(partner, weight)

    def _cut(self, partner: int, weight: float, generator: np.random.Generator) -> Mix:
        """Draw a box with the area share 1 - weight around any pixel, clipped at the edges.

        The weight becomes the share of the row's own pixels that are left.
        """
        middle_x, middle_y = int(generator.integers(self.width)), int(generator.integers(self.height))
        half = 0.5 * (1 - weight) ** 0.5
        half_width, half_height = int(half * self.width), int(half * self.height)
        top, bottom = max(middle_y - half_height, 0), min(middle_y + half_height, self.height)
        left, right = max(middle_x - half_width, 0), min(middle_x + half_width, self.width)
        return Mix(
            partner,
            1 - (bottom - top) * (right - left) / (self.height * self.width),
            (top, bottom, left, right),
        )

    def pixels(self, own: torch.Tensor, partner: torch.Tensor, mix: Mix) -> torch.Tensor:
        """Return the mixed image, (3, H, W) uint8, of two images (3, H, W) uint8."""
        if mix.box is None:
            return (own.float() * mix.weight + partner.float() * (1 - mix.weight)).round_().to(torch.uint8)
        top, bottom, left, right = mix.box
        mixed = own.clone()
        mixed[:, top:bottom, left:right] = partner[:, top:bottom, left:right]
        return mixed

    def label(self, own: Any, partner: Any, mix: Mix) -> torch.Tensor:
        """Return the mixed label, (num_outputs,) float32: the share of each class or label.

        `own` and `partner`: a class number, or already (num_outputs,).
        """
        return self._shares(own) * mix.weight + self._shares(partner) * (1 - mix.weight)

    def _shares(self, label: Any) -> torch.Tensor:
        if isinstance(label, torch.Tensor):
            return label
        shares = torch.zeros(self.num_outputs)
        shares[label] = 1
        return shares


def mixing_of(
    recipe: Recipe, preprocessing: Preprocessing, num_outputs: int, labels: np.ndarray
) -> Mixing | None:
    """Return the `Mixing` of a recipe for training rows with these encoded `labels`.

    None if the recipe has none. In class-balanced epochs partners are balanced too.
    """
    config = recipe.augmentation
    if not config.mixup and not config.cutmix:
        return None
    groups = rows_by_class(labels) if recipe.data.sampling == "classes" else [np.arange(len(labels))]
    return Mixing(config, preprocessing.height, preprocessing.width, num_outputs, groups)
