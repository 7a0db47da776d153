"""Assign labelled rows to folds, or to training and validation in whole groups. A group is never split.

Both are stratified as well as the groups allow. Single labels, and numbers by their deciles, use scikit-learn
(StratifiedKFold, StratifiedGroupKFold). Several labels per image, and cases that scikit-learn refuses, use
iterative stratification (Sechidis, Tsoumakas, Vlahavas 2011, "On the Stratification of Multi-Label Data",
algorithm 1) on groups.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.competition.rows import IMAGE
from pipeline.errors import UserError
from pipeline.files import sha256
from pipeline.recipe import Recipe
from pipeline.targets.target import Target
from pipeline.wording import counted, listed, quoted

if TYPE_CHECKING:
    import numpy as np
    from scipy.sparse import csr_array

# scikit-learn counts every class in every unit, in an array of floats: with more cells than this, of 400 MB,
# iterative stratification, which stores only what a unit has
MOST_CELLS = 50_000_000


@dataclass(frozen=True)
class Units:
    """Sets of rows that are never split. `of[i]`: the unit of row i.

    `groups`: number of requested groups (0: none).

    `alike`: lines for the user on rows with equal files.
    """

    of: tuple[int, ...]
    groups: int
    alike: tuple[str, ...]

    @property
    def count(self) -> int:
        """Number of units."""
        return max(self.of, default=-1) + 1

    @property
    def bind(self) -> bool:
        """True if some unit has several rows."""
        return self.count < len(self.of)


def split_seed(recipe: Recipe) -> int:
    """Return `data.split_seed` if it is set, else the training seed."""
    return recipe.seed if recipe.data.split_seed is None else recipe.data.split_seed


def find_units(
    ids: Sequence[str], paths: Mapping[str, Sequence[Path]], groups: Mapping[str, str] | None
) -> Units:
    """Find the units of `ids`: rows of one group, or with byte-identical files, form one.

    `paths`: the images of each id.
    """
    first: dict[str, int] = {}
    parent = list(range(len(ids)))

    def top(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for row, row_id in enumerate(ids):
        if groups is not None:
            parent[top(row)] = top(first.setdefault(groups[row_id], row))
    twins = _same_files([(path, row) for row, row_id in enumerate(ids) for path in paths[row_id]])
    joined = 0
    for rows in twins:
        for row in rows[1:]:
            if top(row) != top(rows[0]):
                joined += 1
                parent[top(row)] = top(rows[0])
    numbers: dict[int, int] = {}
    of = tuple(numbers.setdefault(top(row), len(numbers)) for row in range(len(ids)))
    says = []
    if joined:
        shown = listed(f"{ids[rows[0]]!r} and {ids[rows[1]]!r}" for rows in twins)
        held = sum(len(rows) for rows in twins)
        says = [f"{counted(held, 'row')} with the same file as another ({shown}) stay together"]
    return Units(of, len(first), tuple(says))


def _same_files(files: Sequence[tuple[Path, int]]) -> list[list[int]]:
    """Return lists of two or more rows with byte-identical files. Only files of equal size are read."""
    sizes: dict[int, list[tuple[Path, int]]] = {}
    for path, row in files:
        sizes.setdefault(path.stat().st_size, []).append((path, row))
    found: dict[str, list[int]] = {}
    for size, alike in sizes.items():
        if size and len(alike) > 1:
            for path, row in alike:
                found.setdefault(sha256(path), []).append(row)
    rows = [list(dict.fromkeys(rows)) for rows in found.values()]
    return [several for several in rows if len(several) > 1]


def make_folds(
    target: Target, labels: Sequence[str], units: Units, count: int, seed: int
) -> tuple[list[int], list[str]]:
    """Return the fold of each row, from 1 to `count`, and lines that describe the folds.

    Raises:
        UserError: fewer than 2 folds, or more than there are rows or groups.
    """
    import numpy as np

    what = "group" if units.bind else "labelled row"
    if count < 2:
        raise UserError(
            f"--folds {count}: at least 2 are needed (each model is validated on one fold and trained on the "
            "others)"
        )
    if count > units.count:
        raise UserError(
            f"--folds {count}: there are only {counted(units.count, what)}, and a fold needs one: use at "
            f"most {units.count}"
        )
    strata = target.strata(labels)
    counts = _label_counts(target, labels, strata)
    folds = _shared_out(target, strata, counts, np.array(units.of), units.bind, count, seed)
    lines = [
        f"{count} folds of {_sizes(folds, count)} rows, {_how(target)} (split seed {seed})",
        *units.alike,
    ]
    if units.groups:
        alone = _shared_out(target, strata, counts, np.arange(len(labels)), False, count, seed)
        cost, free = (_unevenness(counts, found, count) for found in (folds, alone))
        lines.append(
            f"{counted(units.groups, 'group')}, none in two folds: the share of a label in a fold differs by "
            f"at most {100 * cost:.1f} points from its share in all rows (without groups {100 * free:.1f})"
        )
    lines += rare_labels(target, labels, folds, count)
    return folds.tolist(), lines


def grouped_split(
    target: Target,
    labels: Sequence[str],
    units: Units,
    val_fraction: float,
    seed: int,
    what: str = IMAGE,
) -> tuple[list[int], list[int], str]:
    """Split whole units. `what`: the noun for a row.

    Returns sorted indices of the training rows and of the validation rows, and a sentence.

    Every class keeps at least one training row, where possible.
    """
    import numpy as np

    counts = _label_counts(target, labels, target.strata(labels))
    of = np.array(units.of)
    parts = _iteratively(counts, of, [1 - val_fraction, val_fraction], seed)
    sizes, by_label = np.bincount(of), counts.tocsc()
    for label in range(counts.shape[1]):  # a label without a training row gets its smallest unit back
        rows = by_label.indices[by_label.indptr[label] : by_label.indptr[label + 1]]
        if len(rows) and (parts[rows] == 1).all():
            parts[of == min(set(of[rows].tolist()), key=lambda unit: (int(sizes[unit]), unit))] = 0
    val = np.flatnonzero(parts == 1).tolist()
    says = f"validation: {len(val):,} of {counted(len(labels), what)}"
    if units.groups:
        chosen = len(set(of[val].tolist()))
        off = _unevenness(counts, parts + 1, 2)
        says += (
            f", {counted(chosen, 'whole group')} of {units.groups:,} (seed {seed}); label shares differ "
            f"by at most {100 * off:.1f} points"
        )
    else:
        says += f", stratified (seed {seed})"
    return np.flatnonzero(parts == 0).tolist(), val, "; ".join([says, *units.alike])


def _how(target: Target) -> str:
    return {"multilabel": "stratified by every label", "continuous": "by tenths of the number"}.get(
        target.kind, "stratified by class"
    )


def _sizes(folds: np.ndarray, count: int) -> str:
    sizes = sorted({int((folds == number).sum()) for number in range(1, count + 1)})
    return f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"


def _label_counts(target: Target, labels: Sequence[str], strata: Sequence[str]) -> csr_array:
    """Return (N, L) int64: 1 where row n has label l, or is in stratum l. Zeros are not stored."""
    import numpy as np
    from scipy.sparse import csr_array

    if target.kind == "multilabel":
        return csr_array(target.encode(labels)).astype(np.int64)
    place = {name: number for number, name in enumerate(sorted(set(strata)))}
    columns, ones = [place[name] for name in strata], np.ones(len(labels), dtype=np.int64)
    return csr_array((ones, (np.arange(len(labels)), columns)), shape=(len(labels), len(place)))


def _shared_out(
    target: Target,
    strata: Sequence[str],
    counts: csr_array,
    of: np.ndarray,
    bind: bool,
    count: int,
    seed: int,
) -> np.ndarray:
    """Return (N,) int64 fold numbers from 1."""
    import numpy as np
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    # otherwise scikit-learn refuses
    fits = target.kind != "multilabel" and max(Counter(strata).values()) >= count
    if fits and not (bind and (int(of.max()) + 1) * counts.shape[1] > MOST_CELLS):
        splitter = (StratifiedGroupKFold if bind else StratifiedKFold)(
            count, shuffle=True, random_state=seed % 2**32
        )
        folds = np.zeros(len(of), dtype=np.int64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # classes with fewer rows than folds: reported by `rare_labels`
            for number, (_, rows) in enumerate(
                splitter.split(np.zeros(len(of)), np.array(strata), of if bind else None), start=1
            ):
                folds[rows] = number
        if all((folds == number).any() for number in range(1, count + 1)):
            return folds
    return _iteratively(counts, of, [1 / count] * count, seed) + 1


def _iteratively(counts: csr_array, of: np.ndarray, shares: Sequence[float], seed: int) -> np.ndarray:
    """Return (N,) int64: the part of each row, from 0, by iterative stratification.

    The label with the fewest rows left comes first, its largest units first. A unit goes to the part that
    lacks most rows of that label, then most rows overall; ties are drawn with `seed`. A part that would stay
    empty gets one unit.
    """
    import numpy as np
    from scipy.sparse import csr_array

    num_units, parts = int(of.max()) + 1, len(shares)
    sizes = np.bincount(of, minlength=num_units)
    ones = np.ones(len(of), dtype=np.int64)
    held = csr_array((ones, (of, np.arange(len(of)))), shape=(num_units, len(of))) @ counts  # (units, L)
    by_label = held.tocsc()
    left = counts.sum(axis=0)
    wanted_rows = np.array(shares) * len(of)
    wanted = np.outer(shares, left)
    chosen = np.full(num_units, -1, dtype=np.int64)
    order = np.random.default_rng(seed).permutation(num_units)
    place = order.argsort()
    ties = np.random.default_rng([seed, 1])

    def give(unit: int, part: int) -> None:
        chosen[unit] = part
        own = slice(held.indptr[unit], held.indptr[unit + 1])
        labels, numbers = held.indices[own], held.data[own]
        wanted[part, labels] -= numbers
        wanted_rows[part] -= sizes[unit]
        left[labels] -= numbers

    def best(values: np.ndarray) -> int:
        top = np.flatnonzero(np.isclose(values, values.max()))
        if len(top) > 1:
            rows = wanted_rows[top]
            top = top[np.isclose(rows, rows.max())]
        return int(top[0] if len(top) == 1 else ties.choice(top))

    while (left > 0).any():
        label = int(np.where(left > 0, left, np.iinfo(np.int64).max).argmin())
        own = slice(by_label.indptr[label], by_label.indptr[label + 1])
        units, numbers = by_label.indices[own], by_label.data[own]
        largest_first = units[np.lexsort((place[units], -numbers))]
        for unit in largest_first[chosen[largest_first] < 0].tolist():
            give(unit, best(wanted[:, label]))
    for unit in order.tolist():  # units without any label
        if chosen[unit] < 0:
            give(unit, best(wanted_rows))
    for part in range(parts):
        if not (chosen == part).any() and (np.bincount(chosen, minlength=parts) > 1).any():
            fullest = int(np.bincount(chosen, minlength=parts).argmax())
            candidates = np.flatnonzero(chosen == fullest)
            chosen[candidates[sizes[candidates].argmin()]] = part
    return chosen[of]


def _unevenness(counts: csr_array, folds: np.ndarray, count: int) -> float:
    """Return the largest difference between a label's share in a fold and its share in all rows, from 0 to
    1.
    """
    import numpy as np

    whole = counts.sum(axis=0) / len(folds)
    rows_of = [np.flatnonzero(folds == number) for number in range(1, count + 1)]
    shares = [counts[rows].sum(axis=0) / len(rows) for rows in rows_of if len(rows)]
    return max((float(np.abs(share - whole).max()) for share in shares), default=0.0)


def rare_labels(target: Target, labels: Sequence[str], folds: Sequence[int], count: int) -> list[str]:
    """Return a line on labels with fewer rows than folds, or with all rows in one fold; empty for numbers."""
    import numpy as np

    if target.kind == "continuous":
        return []
    folds = np.asarray(folds)
    encoded = target.encode(labels)
    if target.is_choice:
        has = (encoded == place for place in range(len(target.names)))
    else:
        has = (column > 0.5 for column in encoded.T)
    rare = []
    for name, rows in zip(target.names if target.is_choice else target.output_names, has, strict=True):
        where = sorted(set(folds[rows].tolist()))
        if 0 < rows.sum() < count or len(where) == 1:
            alone = ", whose model is trained without it" if len(where) == 1 else ""
            rare.append(
                f"{name!r} ({counted(int(rows.sum()), 'row')}: validated in fold "
                f"{listed(map(str, where))}{alone})"
            )
    if not rare:
        return []
    noun = {"ordinal": ("grade", "grades"), "multilabel": ("label", "labels")}.get(
        target.kind, ("class", "classes")
    )
    more = f" and {len(rare) - 5} more" if len(rare) > 5 else ""
    return [
        f"{counted(len(rare), *noun)} with fewer rows than folds or all rows in one: "
        f"{'; '.join(rare[:5])}{more}"
    ]


def both_sides(ids: Sequence[str], units: Units, parts: Sequence[object]) -> str | None:
    """Return a warning if a given split separates rows of one unit; else None."""
    seen: dict[int, set[object]] = {}
    for unit, part in zip(units.of, parts, strict=True):
        seen.setdefault(unit, set()).add(part)
    parted = {unit for unit, found in seen.items() if len(found) > 1}
    if not parted:
        return None
    rows = [ids[row] for row, unit in enumerate(units.of) if unit in parted]
    what = "groups (or rows with the same file)" if units.groups else "sets of rows with the same file"
    return (
        f"WARNING: the split separates {len(parted):,} {what}, such as {quoted(rows[:2])}: their "
        "validation score is too optimistic"
    )
