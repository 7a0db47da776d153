"""The image size of each epoch where `schedule.image_sizes` trains on small images first."""

from __future__ import annotations

from collections.abc import Sequence

LARGEST = 1_000_000  # a number that no epoch of a run has: images of the last size, for what is measured


def size_of_epoch(epoch: int, epochs: int, sizes: Sequence[int]) -> int:
    """Return the image size of `epoch`, the first being 0: each of `sizes` has an equal share of whole
    epochs.

    What is left over goes to the later sizes. With fewer epochs than sizes the first sizes are not used.
    Behind the last epoch it is the last size.
    """
    left = max(epochs - 1 - epoch, 0)
    return sizes[len(sizes) - 1 - left * len(sizes) // epochs]


def relative_cost(epochs: int, sizes: Sequence[int]) -> float:
    """Return the cost of all epochs as a share of what they cost at the last size.

    Cost is taken as proportional to the pixels of an image. Attention costs more than that, and a GPU is used
    less well by small images. Without sizes: 1.
    """
    if not sizes:
        return 1.0
    return sum((size_of_epoch(epoch, epochs, sizes) / sizes[-1]) ** 2 for epoch in range(epochs)) / epochs


def describe_sizes(epochs: int, sizes: Sequence[int]) -> str:
    """Return one line: which size in which epochs."""
    used = [size_of_epoch(epoch, epochs, sizes) for epoch in range(epochs)]
    parts = []
    for size in dict.fromkeys(used):
        first, last = used.index(size) + 1, epochs - used[::-1].index(size)
        parts.append(
            f"{size} px in epoch {first}" if first == last else f"{size} px in epochs {first} to {last}"
        )
    return f"training images: {', '.join(parts)}; validation and prediction at {sizes[-1]} px"
