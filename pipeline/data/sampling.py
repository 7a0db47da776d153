"""Class-balanced epochs, and the class frequencies that a model is trained with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.recipe import Recipe

DRAW = 2  # (seed, epoch, 2): 1 is the order of images in `question_batches`


def rows_by_class(labels: Sequence[int] | np.ndarray) -> list[np.ndarray]:
    """Return the row numbers of each class that has rows, in the order of the classes."""
    labels = np.asarray(labels)
    return [np.flatnonzero(labels == label) for label in np.unique(labels)]


def balanced_order(labels: Sequence[int] | np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Return the rows of a class-balanced epoch, (N,) int64, with as many rows as `labels` has.

    All classes have equal numbers of rows, up to one. A small class is used completely, then again in another
    order; from a large class a random part is drawn. A repeated row has the number row + N, then row + 2 N:
    see `ImageDataset`. The draw differs for every (seed, epoch).
    """
    generator, count = np.random.default_rng((seed, epoch, DRAW)), len(labels)
    groups = rows_by_class(labels)
    parts = np.full(len(groups), count // len(groups))
    parts[generator.permutation(len(groups))[: count % len(groups)]] += 1
    numbers = []
    for rows, part in zip(groups, parts.tolist(), strict=True):
        passes = [generator.permutation(rows) + turn * count for turn in range(-(-part // len(rows)))]
        numbers.append(np.concatenate([*passes, np.empty(0, dtype=np.int64)])[:part])
    return generator.permutation(np.concatenate(numbers))


def trained_prior(shares: np.ndarray, recipe: Recipe) -> np.ndarray:
    """Return the class frequencies that the model's probabilities assume, (O,) float32.

    `shares`: of its training rows. Class-balanced epochs: equal frequencies. Logit adjustment: shares ** (1 -
    tau), which are equal at tau 1 (Menon et al. 2021, section 4).
    """
    if recipe.data.sampling == "classes":
        known = shares > 0
        return (known / known.sum()).astype(np.float32)
    if not recipe.optimizer.logit_adjustment:
        return shares
    left = np.where(
        shares > 0,
        np.clip(shares, 1e-12, None).astype(np.float64) ** (1 - recipe.optimizer.logit_adjustment),
        0,
    )
    return (left / left.sum()).astype(np.float32)
