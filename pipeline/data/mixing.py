"""mixup (Zhang et al. 2018, arXiv:1710.09412) and CutMix (Yun et al. 2019, arXiv:1905.04899), drawn for each row by itself.

The usual way mixes the rows of a batch with each other; a row's image then depends on how the rows are cut into batches. Here a row's
partner is drawn from all training rows, so that neither micro-batch nor process nor resume changes what is mixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.data.sampling import rows_by_class
from pipeline.data.transforms import Preprocessing
from pipeline.recipe import Augmentation, Recipe


@dataclass(frozen=True)
class Mix:
    """How a row is mixed: with which row, what share of the result is its own, and, for CutMix, which box is the partner's."""

    partner: int
    weight: float
    box: tuple[int, int, int, int] | None = None  # top, bottom, left, right in pixels


class Mixing:
    """What an augmentation mixes, for images of `height` x `width` and labels of `num_outputs`.

    A partner is drawn in two steps, first one of `groups`, then one of its rows: one group of all rows, or a group for each class.
    """

    def __init__(self, config: Augmentation, height: int, width: int, num_outputs: int, groups: Sequence[np.ndarray]) -> None:
        self.mixup, self.cutmix = config.mixup, config.cutmix
        self.height, self.width, self.num_outputs = height, width, num_outputs
        self.groups = groups

    def draw(self, generator: np.random.Generator) -> Mix:
        """How one row is mixed; where both are on, each of them for half of the rows."""
        group = self.groups[generator.integers(len(self.groups))]
        partner = int(group[generator.integers(len(group))])
        cuts = generator.random() < 0.5 if self.mixup and self.cutmix else self.cutmix > 0
        alpha = self.cutmix if cuts else self.mixup
        weight = float(generator.beta(alpha, alpha))
        return self._cut(partner, weight, generator) if cuts else Mix(partner, weight)

    def _cut(self, partner: int, weight: float, generator: np.random.Generator) -> Mix:
        """A box of the share 1 - weight around any pixel, cut at the edges; the weight is then what is left of the row's own pixels."""
        middle_x, middle_y = int(generator.integers(self.width)), int(generator.integers(self.height))
        half = 0.5 * (1 - weight) ** 0.5
        half_width, half_height = int(half * self.width), int(half * self.height)
        top, bottom = max(middle_y - half_height, 0), min(middle_y + half_height, self.height)
        left, right = max(middle_x - half_width, 0), min(middle_x + half_width, self.width)
        return Mix(partner, 1 - (bottom - top) * (right - left) / (self.height * self.width), (top, bottom, left, right))

    def pixels(self, own: torch.Tensor, partner: torch.Tensor, mix: Mix) -> torch.Tensor:
        """(3, H, W) uint8 of two images (3, H, W) uint8."""
        if mix.box is None:
            return (own.float() * mix.weight + partner.float() * (1 - mix.weight)).round_().to(torch.uint8)
        top, bottom, left, right = mix.box
        mixed = own.clone()
        mixed[:, top:bottom, left:right] = partner[:, top:bottom, left:right]
        return mixed

    def label(self, own: Any, partner: Any, mix: Mix) -> torch.Tensor:
        """(num_outputs,) float32: the share of each class, or of each label's yes. Labels: a class number, or (num_outputs,) already."""
        return self._shares(own) * mix.weight + self._shares(partner) * (1 - mix.weight)

    def _shares(self, label: Any) -> torch.Tensor:
        if isinstance(label, torch.Tensor):
            return label
        shares = torch.zeros(self.num_outputs)
        shares[label] = 1
        return shares


def mixing_of(recipe: Recipe, rule: Preprocessing, num_outputs: int, labels: np.ndarray) -> Mixing | None:
    """What a recipe mixes of training rows with these encoded `labels`; None: nothing. In balanced epochs partners are balanced too."""
    config = recipe.augmentation
    if not config.mixup and not config.cutmix:
        return None
    groups = rows_by_class(labels) if recipe.data.sampling == "classes" else [np.arange(len(labels))]
    return Mixing(config, rule.height, rule.width, num_outputs, groups)
