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
BLOCK = 1024  # images that are compared with as many at a time


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
    for places, others in _near_pairs(facts, store, joined):
        for first, second in _linked(places, others):
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


def _near_pairs(
    facts: Sequence[ImageFacts], store: FactStore, joined: _Joined
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the positions of copies: the first ones and the second ones of many pairs, (P,) int64 each.

    Blocks of images are compared by products of matrices: the frames of one camera are millions of pairs with
    alike hashes.
    """
    # The hashes of flat images are all alike. A standard deviation is at most half of the range.
    places = np.array(
        [
            place
            for place, one in enumerate(facts)
            if one.hash and one.high - one.low >= 2 * LEAST_SPREAD and joined.top(place) == place
        ],
        dtype=np.int64,
    )
    if not len(places):
        return
    bits = np.unpackbits(
        np.frombuffer(b"".join(facts[place].hash for place in places), np.uint8).reshape(len(places), -1),
        axis=1,
    )
    signs = bits.astype(np.float32) * 2 - 1  # the product of two rows is 64 - 2 * (number of differing bits)
    least = signs.shape[1] - 2 * MAX_BITS
    starts = range(0, len(places), BLOCK)
    tiles = [(row, column) for row in starts for column in starts if column >= row]
    for row, column in tqdm(tiles, "comparing images", unit="block", leave=False, delay=2):
        alike = signs[row : row + BLOCK] @ signs[column : column + BLOCK].T >= least
        if row == column:
            alike = np.triu(alike, k=1)
        sides = places[row : row + BLOCK], places[column : column + BLOCK]
        for measured, limit in ((_colours, LEAST_COLOUR), (_greys, LEAST_GREY)):
            kept = alike.any(axis=1), alike.any(axis=0)
            sides = sides[0][kept[0]], sides[1][kept[1]]
            alike = alike[np.ix_(*kept)]
            if alike.size:
                first, second = (measured([facts[place] for place in side], store) for side in sides)
                alike &= first @ second.T >= limit
        first, second = np.nonzero(alike)
        if len(first):
            yield sides[0][first], sides[1][second]


def _linked(first: np.ndarray, second: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield few of these pairs, or pairs of their members, that join the same sets as all of them."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    places, nodes = np.unique(np.concatenate([first, second]), return_inverse=True)
    edges = np.ones(len(first), dtype=bool), (nodes[: len(first)], nodes[len(first) :])
    _, sets = connected_components(coo_array(edges, shape=(len(places), len(places))), directed=False)
    _, tops = np.unique(sets, return_index=True)  # the first member of each set
    yield from zip(places[tops[sets]].tolist(), places.tolist(), strict=True)


def _colours(facts: Sequence[ImageFacts], _store: FactStore) -> np.ndarray:
    """Return (N, F) float32: the small colour copies, of mean 0 and length 1."""
    rows = np.frombuffer(b"".join(one.colour for one in facts), np.uint8)
    return _unit(rows.reshape(len(facts), 3 * COLOUR_PX**2))


def _greys(facts: Sequence[ImageFacts], store: FactStore) -> np.ndarray:
    """Return the same of the grey copies; zeros for images that are too flat to be compared."""
    rows = store.greys([one.path for one in facts]).reshape(len(facts), -1).astype(np.float32)
    return _unit(np.where(rows.std(axis=1, keepdims=True) >= LEAST_SPREAD, rows, 0))


def _unit(rows: np.ndarray) -> np.ndarray:
    """Return the rows less their mean, of length 1: their products are Pearson correlations, 0 for constant
    rows.
    """
    rows = rows.astype(np.float32)
    rows -= rows.mean(axis=1, keepdims=True)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)
