"""Find equal images: files with equal bytes, and copies in another size, quality or brightness.

Copies are proposed by a perceptual hash and confirmed on pixels. Tested on 500 photographs of clothing and
groceries, each saved again in four ways (200 x 260 pixels at JPEG quality 60; 0.7 times the size at 70; 1.6
times at 80; half the size at 50): all 2,000 copies are found, and no set holds two different photographs.
Among 2,142 photographs without copies none is reported (`tests/benchmarks/copies.py`). Cropped, mirrored and
rotated copies are not found.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pipeline.files import sha256
from pipeline.look.fact_store import FactStore
from pipeline.look.image_facts import COLOUR_PX, ImageFacts

MAX_BITS = 10  # maximum of differing hash bits, of 64
LEAST_GREY = 0.985  # minimum correlation of two images at 64 x 64 pixels in grey
LEAST_COLOUR = 0.98  # and at 16 x 16 in colour: the same shoe in another colour is another image
LEAST_SPREAD = 4.0  # minimum standard deviation of the grey copy: a flatter image cannot be compared
BLOCK, PAIRS = 1024, 2048  # rows and pairs per step


@dataclass(frozen=True)
class Twins:
    """Two or more equal images, as positions in the searched list. `equal`: all files have the same bytes."""

    places: tuple[int, ...]
    equal: bool


def find_duplicates(facts: Sequence[ImageFacts], store: FactStore) -> list[Twins]:
    """Return every set of equal images, ordered by their first ones.

    A copy of a copy belongs to the same set.
    """
    joined = _Joined(len(facts))
    for places in _same_bytes(facts, store):
        for place in places[1:]:
            joined.join(places[0], place)
    exact = [joined.top(place) for place in range(len(facts))]
    for first, second in _near_pairs(facts, store, joined):
        joined.join(first, second)
    sets: dict[int, list[int]] = {}
    for place in range(len(facts)):
        sets.setdefault(joined.top(place), []).append(place)
    found = [
        Twins(tuple(places), len({exact[place] for place in places}) == 1)
        for places in sets.values()
        if len(places) > 1
    ]
    return sorted(found, key=lambda twins: twins.places[0])


class _Joined:
    """Disjoint sets that are merged (union-find)."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def top(self, place: int) -> int:
        while self._parent[place] != place:
            self._parent[place] = self._parent[self._parent[place]]
            place = self._parent[place]
        return place

    def join(self, first: int, second: int) -> None:
        first, second = sorted((self.top(first), self.top(second)))
        self._parent[second] = first


def _same_bytes(facts: Sequence[ImageFacts], store: FactStore) -> list[list[int]]:
    """Return positions of files with the same bytes. Only files of equal size are read."""
    sizes: dict[int, list[int]] = {}
    for place, one in enumerate(facts):
        sizes.setdefault(one.num_bytes, []).append(place)
    asked = [place for size, places in sizes.items() if size and len(places) > 1 for place in places]
    known = store.digests([facts[place].path for place in asked])
    new = [facts[place].path for place in asked if facts[place].path not in known]
    with ThreadPoolExecutor() as pool:
        digests = tqdm(
            pool.map(_digest, new), "comparing files", len(new), unit="img", leave=False, disable=not new
        )
        measured = {path: digest for path, digest in zip(new, digests, strict=True) if digest}
    store.add_digests(measured)
    known |= measured
    found: dict[str, list[int]] = {}
    for place in asked:
        if digest := known.get(facts[place].path):
            found.setdefault(digest, []).append(place)
    return [places for places in found.values() if len(places) > 1]


def _digest(path: str) -> str:
    try:
        return sha256(Path(path))
    except OSError:
        return ""


def _near_pairs(facts: Sequence[ImageFacts], store: FactStore, joined: _Joined) -> Iterator[tuple[int, int]]:
    """Yield pairs of copies that are not in one set of `joined` yet.

    The caller joins each pair before the next.
    """
    # The hashes of flat images are all alike: thousands of them would be millions of pairs. A standard
    # deviation is at most half of the range.
    places = np.array(
        [
            place
            for place, one in enumerate(facts)
            if one.hash and one.high - one.low >= 2 * LEAST_SPREAD and joined.top(place) == place
        ],
        dtype=np.int64,
    )
    for first, second in _alike_hashes(facts, places):
        for start in range(0, len(first), PAIRS):
            pairs = [
                (i, j)
                for i, j in zip(first[start : start + PAIRS], second[start : start + PAIRS], strict=True)
            ]
            pairs = [(i, j) for i, j in pairs if joined.top(i) != joined.top(j)]
            if pairs:
                same = _same_pixels([facts[i] for i, _ in pairs], [facts[j] for _, j in pairs], store)
                yield from (pair for pair, alike in zip(pairs, same.tolist(), strict=True) if alike)


def _alike_hashes(facts: Sequence[ImageFacts], places: np.ndarray) -> Iterator[tuple[list[int], list[int]]]:
    """Yield pairs of positions whose hashes differ in at most MAX_BITS, each pair once, one block of rows at
    a time.
    """
    if not len(places):
        return
    bits = np.unpackbits(
        np.frombuffer(b"".join(facts[place].hash for place in places), np.uint8).reshape(len(places), -1),
        axis=1,
    )
    signs = bits.astype(np.float32) * 2 - 1  # the product of two rows is 64 - 2 * (number of differing bits)
    least = signs.shape[1] - 2 * MAX_BITS
    for start in range(0, len(places), BLOCK):
        alike = signs[start : start + BLOCK] @ signs[start:].T >= least
        rows, columns = np.nonzero(np.triu(alike, k=1))
        yield places[start + rows].tolist(), places[start + columns].tolist()


def _same_pixels(first: Sequence[ImageFacts], second: Sequence[ImageFacts], store: FactStore) -> np.ndarray:
    """Return (P,) bool: which pairs are copies, by their grey and colour copies."""
    greys = [
        store.greys([one.path for one in side]).reshape(len(side), -1).astype(np.float32)
        for side in (first, second)
    ]
    shape = len(first), 3 * COLOUR_PX**2
    colours = [
        np.frombuffer(b"".join(one.colour for one in side), np.uint8).reshape(shape).astype(np.float32)
        for side in (first, second)
    ]
    spread = np.minimum(greys[0].std(axis=1), greys[1].std(axis=1))
    return (
        (spread >= LEAST_SPREAD)
        & (_correlation(*greys) >= LEAST_GREY)
        & (_correlation(*colours) >= LEAST_COLOUR)
    )


def _correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return (P,) float32 Pearson correlations of the rows of two (P, F) arrays; 0 for constant rows."""
    first, second = first - first.mean(axis=1, keepdims=True), second - second.mean(axis=1, keepdims=True)
    size = np.sqrt((first**2).sum(axis=1) * (second**2).sum(axis=1))
    return np.divide((first * second).sum(axis=1), size, out=np.zeros(len(first), np.float32), where=size > 0)
