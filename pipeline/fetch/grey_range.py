"""Find one range for a whole set of numbers that become grey levels; images are never scaled one by one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

PERCENTILES = (0.5, 99.5)
VALUES_AN_IMAGE = 512  # values of an image in the sample
BEYOND, FLAT, FEWEST_STRANGE = 0.05, 2, 8  # share of numbers; grey levels; images: see Watched
SAMPLED_IMAGES = 4096  # above this, half of the sample is dropped and only every second image is added


@dataclass(frozen=True)
class Rule:
    """Linear scaling: in channel c `low[c]` becomes 0 and `high[c]` 255; values outside are clipped.

    One entry: all channels.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    says: str

    @staticmethod
    def read(values: Mapping[str, Any]) -> Rule:
        """Return the rule that was stored as `asdict(rule)` in JSON."""
        return Rule(tuple(values["low"]), tuple(values["high"]), values["says"])

    def apply(self, planes: np.ndarray) -> np.ndarray:
        """Return grey levels (C, H, W) uint8 of numbers (C, H, W). NaN becomes 0; infinity is clipped."""
        count = planes.shape[0]
        low, high = (
            np.asarray(ends if len(ends) == count else ends[:1] * count, np.float64)[:, None, None]
            for ends in (self.low, self.high)
        )
        scaled = (planes.astype(np.float64) - low) * (255 / (high - low))
        return np.nan_to_num(np.clip(np.rint(scaled), 0, 255), nan=0).astype(np.uint8)


@dataclass(frozen=True)
class Watched(Rule):
    """A rule that is applied to other images of the set than it was found for.

    `strange`: for each image, whether its numbers seem to be of another kind: they go far beyond a range that
    held all numbers, or they differ and yet become one grey level.
    """

    strange: list[bool] = field(default_factory=list, compare=False)

    def apply(self, planes: np.ndarray) -> np.ndarray:
        """Return grey levels as `Rule.apply`, and note whether the numbers are strange."""
        levels = super().apply(planes)
        if self.low == (0,) and self.high in ((1,), (255,)):
            self.strange.append(bool((planes > self.high[0]).mean() > BEYOND))
        else:
            known = planes[np.isfinite(planes)] if np.ptp(levels) <= FLAT else planes[:0]
            self.strange.append(bool(known.size and known.min() < known.max()))
        return levels

    def problem(self) -> str:
        """Return what is strange about most of the images; empty if they are not, or are few."""
        count = sum(self.strange)
        if count < FEWEST_STRANGE or 2 * count <= len(self.strange):
            return ""
        return f"{count:,} of {len(self.strange):,} images, where training had: {self.says}"


class Survey:
    """Collects the range of the numbers in a set of images, and a sample of them, per channel."""

    def __init__(self) -> None:
        self._low: np.ndarray | None = None
        self._high: np.ndarray | None = None
        self._whole = True
        self._samples: list[np.ndarray] = []
        self._seen, self._step = 0, 1
        self.num_without = 0  # images with NaN or infinite values

    def add(self, planes: np.ndarray) -> None:
        """Add one image (C, H, W).

        If the numbers of channels differ between images, all channels are treated as one.
        """
        flat = planes.reshape(planes.shape[0], -1)
        if self._low is not None and len(self._low) != len(flat):
            flat = flat.reshape(1, -1)
            self._low, self._high = self._low.min(keepdims=True), self._high.max(keepdims=True)
            self._samples = [sample.reshape(1, -1) for sample in self._samples]
        if flat.dtype.kind == "f":
            flat = flat.astype(np.float64)
            finite = np.isfinite(flat)
            if not finite.all():
                self.num_without += 1
                flat = np.where(finite, flat, np.nan)
            if not finite.any(axis=1).all():
                return
            self._whole = self._whole and bool((np.mod(flat[finite], 1) == 0).all())
        low, high = np.nanmin(flat, axis=1), np.nanmax(flat, axis=1)
        self._low = low if self._low is None else np.minimum(self._low, low)
        self._high = high if self._high is None else np.maximum(self._high, high)
        if self._seen % self._step == 0:
            self._samples.append(flat[:, :: max(1, flat.shape[1] // VALUES_AN_IMAGE)].astype(np.float32))
            if len(self._samples) > SAMPLED_IMAGES:
                self._samples, self._step = self._samples[::2], self._step * 2
        self._seen += 1

    def rule(self, by_channel: bool = True) -> Rule:
        """Return the scaling rule of the set. Whole numbers from 0 to 255 are grey levels already."""
        if self._low is None or self._high is None:
            return Rule((0,), (255,), "no numbers were found")
        low, high = float(self._low.min()), float(self._high.max())
        if low >= 0 and high <= 1:
            return Rule((0,), (1,), "0 becomes black and 1 white")
        if low >= 0 and high <= 255 and (self._whole or high > 200):
            return Rule((0,), (255,), "values are grey levels from 0 to 255 and are not changed")
        width = min(sample.shape[1] for sample in self._samples)
        values = np.concatenate([sample[:, :width] for sample in self._samples], axis=1)
        values = values if by_channel else values.reshape(1, -1)
        ends = np.nanpercentile(values, PERCENTILES, axis=1)
        lows, highs = ends[0].tolist(), ends[1].tolist()
        highs = [end if end > start else start + 1 for start, end in zip(lows, highs, strict=True)]
        ranges = ", ".join(f"{start:.4g} to {end:.4g}" for start, end in zip(lows, highs, strict=True))
        each = " of each channel" if len(lows) > 1 else ""
        return Rule(
            tuple(lows),
            tuple(highs),
            f"one range{each} for the whole set, {PERCENTILES[0]} to {PERCENTILES[1]} % of its values: "
            f"{ranges}",
        )
