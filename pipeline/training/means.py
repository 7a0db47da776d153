"""Means of weights: a moving mean over optimizer steps (EMA), the mean of the last epochs, and a soup of
the best epochs.

Each trainable weight is averaged separately, also an adapter's A and B (the product of two means is not the
mean of the products). What is validated is what is saved: `WeightMeans.in_place` puts the means into the
model for both. The means are part of the resume state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.models.backbones import tensor_problems
from pipeline.recipe import Recipe

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Means:
    """Which means a run uses: `ema` is the decay per step (0: none), `last` and `soup` are numbers of
    epochs (0: none).
    """

    ema: float = 0.0
    last: int = 0
    soup: int = 0

    @classmethod
    def of(cls, recipe: Recipe) -> Means:
        """Return the means that the recipe asks for."""
        rule, ema = recipe.checkpoint, recipe.optimizer.ema
        return cls(
            ema,
            rule.average_last if rule.keep == "average" else 0,
            rule.soup_of if rule.keep == "soup" else 0,
        )

    @property
    def copies(self) -> int:
        """Number of copies of the trainable weights that a state holds in addition to them."""
        return (self.ema > 0) + self.last + self.soup


@dataclass(frozen=True)
class Soup:
    """The `epochs` whose mean is kept, best first.

    Its `value` by the best metric, its `scores` and `logits` (num_val, O).
    """

    epochs: tuple[int, ...]
    value: float
    scores: dict[str, float]
    logits: np.ndarray


class WeightMeans:
    """The means of `trainable`, the trainable weights of a model by name.

    The moving mean is on the weights' device, the weights of whole epochs are on the CPU.
    """

    def __init__(self, means: Means, trainable: Mapping[str, torch.Tensor]) -> None:
        self.means, self.trainable = means, dict(trainable)
        self.ema = (
            {name: weight.detach().clone() for name, weight in self.trainable.items()} if means.ema else {}
        )
        self.epochs: dict[int, dict[str, Any]] = {}  # epoch -> weights, and for a soup also value and loss

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Update the moving mean after optimizer step number `step` (the first is 1).

        The decay is min(ema, (1 + step) / (10 + step)), so that the initial weights are soon forgotten (as
        TensorFlow's ExponentialMovingAverage with num_updates).
        """
        if self.ema:
            decay = min(self.means.ema, (1 + step) / (10 + step))
            torch._foreach_lerp_(
                list(self.ema.values()), [self.trainable[name].detach() for name in self.ema], 1 - decay
            )

    def before_validation(self, epoch: int) -> None:
        """Add the weights of `epoch`, which was just trained, to the mean of the last epochs."""
        if self.means.last:
            self.epochs[epoch] = {"weights": self._now()}
            self.epochs = {number: self.epochs[number] for number in sorted(self.epochs)[-self.means.last :]}

    def after_validation(self, epoch: int, value: float, loss: float, higher_is_better: bool) -> None:
        """Keep the weights of `epoch` for the soup if it is among the best so far.

        Of equal ones the lower loss is better.
        """
        if self.means.soup and math.isfinite(value):
            self.epochs[epoch] = {"weights": self._now(), "value": value, "loss": loss}
            self.epochs = {
                number: self.epochs[number] for number in self.best_first(higher_is_better)[: self.means.soup]
            }

    def best_first(self, higher_is_better: bool) -> list[int]:
        """Return the epochs kept for the soup, the best first."""
        sign = -1 if higher_is_better else 1
        return sorted(
            self.epochs,
            key=lambda number: (sign * self.epochs[number]["value"], self.epochs[number]["loss"], number),
        )

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the means into the model within the block, for validation and saving.

        Afterwards restore the trained weights. They are restored bit for bit.
        """
        if self.means.last and self.epochs:
            with exchanged(self.trainable, self.mean(list(self.epochs))):
                yield
        else:
            with exchanged(self.trainable, self.ema):
                yield

    def mean(self, epochs: Sequence[int]) -> Weights:
        """Return the mean of the weights of `epochs`, summed in float64 in the order of the epochs."""
        parts = [self.epochs[number]["weights"] for number in sorted(epochs)]
        return {
            name: (sum(part[name].double() for part in parts) / len(parts)).to(weight.dtype)
            for name, weight in parts[0].items()
        }

    def state(self) -> dict[str, Any]:
        """Return the means for the resume state."""
        return {"ema": self.ema, "epochs": self.epochs}

    def restore(self, state: dict[str, Any] | None) -> None:
        """Continue from `state`.

        Means that it lacks (added by `--resume changed`) start with the current weights.
        """
        state = state or {"ema": {}, "epochs": {}}
        for name, weight in self.ema.items():
            weight.copy_(state["ema"].get(name, self.trainable[name].detach()))
        if self.means.last:
            self.epochs = dict(sorted(state["epochs"].items())[-self.means.last :])
        elif self.means.soup:
            self.epochs = {number: kept for number, kept in state["epochs"].items() if "value" in kept}

    def problems(self, state: dict[str, Any] | None) -> list[str]:
        """Return the tensors in `state` that do not fit this model, as messages."""
        kept = [state["ema"], *(part["weights"] for part in state["epochs"].values())] if state else []
        return [
            f"mean of weights: {problem}"
            for weights in kept
            if weights
            for problem in tensor_problems(self.trainable, weights)
        ]

    def forget(self) -> None:
        """Drop the epochs of the soup, because other rows validate now and their values cannot be
        compared.
        """
        if self.means.soup:
            self.epochs = {}

    def _now(self) -> Weights:
        return {
            name: weight.detach().to("cpu", copy=True)
            for name, weight in (self.ema or self.trainable).items()
        }


@contextmanager
def exchanged(trainable: Mapping[str, torch.Tensor], others: Weights) -> Iterator[None]:
    """Within the block `trainable` has the values of `others`, which hold the original values meanwhile."""
    _exchange(trainable, others)
    try:
        yield
    finally:
        _exchange(trainable, others)


@torch.no_grad()
def _exchange(trainable: Mapping[str, torch.Tensor], others: Weights) -> None:
    for name, other in others.items():
        own = trainable[name].detach().clone()
        trainable[name].copy_(other)
        other.copy_(own)


def greedy_soup(
    means: WeightMeans,
    validate: Callable[[], tuple[np.ndarray, float, dict[str, float]]],
    higher_is_better: bool,
    best: float,
) -> Soup | None:
    """Return the greedy soup (Wortsman et al. 2022, arXiv:2203.05482, recipe 1) of the kept epochs.

    Starting with the best epoch, each next one joins the mean if the validation value does not become worse
    than the value so far (`best` at the start). None if only the best epoch is kept. `validate()` returns
    logits, value and scores of the current model. The model is unchanged afterwards.
    """
    order = means.best_first(higher_is_better)
    chosen, soup = order[:1], None
    for epoch in order[1:]:
        with exchanged(means.trainable, means.mean([*chosen, epoch])):
            logits, value, scores = validate()
        if value >= best if higher_is_better else value <= best:
            chosen, best = [*chosen, epoch], value
            soup = Soup(tuple(chosen), value, scores, logits)
    return soup
