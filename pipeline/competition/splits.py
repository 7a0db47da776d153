"""Split the labelled images into training and validation."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pipeline.competition.rows import IMAGE, STATED
from pipeline.errors import UserError
from pipeline.wording import counted

if TYPE_CHECKING:
    import numpy as np


def train_val_split(
    labels: Sequence[str], val_fraction: float, seed: int, what: str = IMAGE
) -> tuple[list[int], list[int], str]:
    """Return sorted indices of the training rows and of the validation rows, and one sentence that describes
    the split.

    The split is stratified by class. Every class keeps a training row, so a class with one row is never held
    out. If the hold-out is smaller than the number of classes, it takes one row from each of some classes,
    drawn with `seed`. `what`: the noun for a row.

    Raises:
        UserError: `val_fraction` is not in [0, 1).
    """
    if not 0 <= val_fraction < 1:
        raise UserError(
            f"data.val_fraction is {val_fraction!r}: expected a number from 0 (inclusive) to 1 (exclusive)"
        )
    rows_of: dict[str, list[int]] = {}
    for row, label in enumerate(labels):
        rows_of.setdefault(label, []).append(row)
    several = {label: rows for label, rows in sorted(rows_of.items()) if len(rows) > 1}
    wanted = math.ceil(len(labels) * val_fraction - 1e-9)
    # With more validation rows some class would lose its last training row.
    num_val = min(wanted, sum(len(rows) - 1 for rows in several.values()))
    if num_val == 0:
        return (
            list(range(len(labels))),
            [],
            _says(
                labels,
                0,
                "all rows train" if not wanted else "no class has a row to spare",
                rows_of,
                several,
                what,
            ),
        )
    if num_val < len(several):
        chosen = random.Random(seed)
        val = [chosen.choice(several[label]) for label in chosen.sample(list(several), num_val)]
        how = (
            f"fewer than the {len(rows_of)} classes, so one row from each of "
            f"{counted(num_val, 'class', 'classes')} (seed {seed})"
        )
    else:
        val = _stratified(several, num_val, seed)
        how = f"stratified by class (seed {seed})"
    held_out = set(val)
    train = [row for row in range(len(labels)) if row not in held_out]
    return train, sorted(val), _says(labels, len(val), how, rows_of, several, what)


def kept_split(
    ids: Sequence[str], resumed_rows: Sequence[tuple[str, str, str]], what: str = IMAGE
) -> tuple[list[int], list[int], str]:
    """Return the split of a resumed run, in the form of `train_val_split`.

    `resumed_rows`: rows (id, label, train or val) of the run, which keep part and order. New rows are
    appended to training. `what`: the noun for an id.
    """
    row_of = {row_id: row for row, row_id in enumerate(ids)}
    train, val = (
        [row_of[row_id] for row_id, _, split in resumed_rows if split == wanted and row_id in row_of]
        for wanted in ("train", "val")
    )
    known = {row_id for row_id, _, _ in resumed_rows}
    train += [row for row, row_id in enumerate(ids) if row_id not in known]
    return (
        train,
        val,
        f"validation: {len(val):,} of {counted(len(ids), what)}, as when the run was started",
    )


def stated_split(
    ids: Sequence[str],
    stated: Mapping[str, str],
    where: str = STATED,
    what: str = IMAGE,
) -> tuple[list[int], list[int], str]:
    """Return a given split, in the form of `train_val_split`. `stated`: id -> train or val.

    `where`: its source, in words. `what`: the noun for an id.
    """
    train = [number for number, name in enumerate(ids) if stated.get(name) != "val"]
    val = [number for number, name in enumerate(ids) if stated.get(name) == "val"]
    return train, val, f"validation: {len(val):,} of {counted(len(ids), what)}, {where}"


def _stratified(rows_of: dict[str, list[int]], num_val: int, seed: int) -> list[int]:
    """Return the rows that scikit-learn's `train_test_split` holds out with `stratify` and this seed.

    Its own code is not used: importing it takes a sixth of the time before the first batch. See
    https://scikit-learn.org/stable/modules/generated/sklearn.model_selection.StratifiedShuffleSplit.html
    """
    import numpy as np

    labels, draw = sorted(rows_of), np.random.RandomState(seed)
    counts = np.array([len(rows_of[label]) for label in labels])
    in_train = _shares(counts, counts.sum() - num_val, draw)
    in_val = _shares(counts - in_train, num_val, draw)
    val: list[int] = []
    for label, num_train, num in zip(labels, in_train, in_val, strict=True):
        rows = draw.permutation(rows_of[label]).tolist()
        # A large hold-out may take all rows of a small class: its first row returns to training
        returned = {rows_of[label][0]} if num_train == 0 else set()
        val += [row for row in rows[num_train : num_train + num] if row not in returned]
    return val


def _shares(counts: np.ndarray, total: int, draw: np.random.RandomState) -> np.ndarray:
    """Return how many of `total` rows each class gets, by its share of `counts`, (classes,).

    Rounded by the largest remainder; `draw` decides between equal ones.
    """
    import numpy as np

    exact = counts / counts.sum() * total
    shares = np.floor(exact)
    remainders, missing = exact - shares, int(total - shares.sum())
    for remainder in np.unique(remainders)[::-1]:
        if missing == 0:
            break
        (alike,) = np.where(remainders == remainder)
        chosen = draw.choice(alike, size=min(len(alike), missing), replace=False)
        shares[chosen] += 1
        missing -= len(chosen)
    return shares.astype(int)


def _says(
    labels: Sequence[str],
    num_val: int,
    how: str,
    rows_of: dict[str, list[int]],
    several: dict[str, list[int]],
    what: str,
) -> str:
    sentence = f"validation: {num_val:,} of {counted(len(labels), what)}, {how}"
    single = len(rows_of) - len(several)
    if single and num_val:
        sentence += (
            f"; {counted(single, 'class', 'classes')} with a single {what.split()[-1]} only in training"
        )
    return sentence
