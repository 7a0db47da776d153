"""Split labelled rows of images into training and validation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.competition.fold_split import both_sides, find_units, grouped_split, split_seed
from pipeline.competition.rows import ID, IMAGE, Competition, Row
from pipeline.competition.splits import kept_split, stated_split, train_val_split
from pipeline.recipe import Recipe
from pipeline.training.resume import PSEUDO, ResumedRun


def expected_rows(recipe: Recipe, competition: Competition) -> tuple[int, int]:
    """Return about how many labelled rows of a new run train, and how many validate: as the data state it,
    else by data.val_fraction.
    """
    total = len(competition.train)
    if has_stated_split(recipe, competition):
        val = sum(competition.split.get(row.id) == "val" for row in competition.train)
    else:
        val = round(total * recipe.data.val_fraction)
    return total - val, val


def has_stated_split(recipe: Recipe, competition: Competition) -> bool:
    """Return True if the data or a fold say which rows validate.

    With data.val_fraction 0 all rows train, whatever the data say.
    """
    return competition.split is not None and (competition.of_fold or recipe.data.val_fraction > 0)


def part_rows(
    recipe: Recipe, competition: Competition, rows: Sequence[Row], resumed_run: ResumedRun | None
) -> tuple[list[Row], list[Row], str]:
    """Return the training rows, the validation rows, and how they were split.

    Images of one id stay together, and the sentence counts ids where an id has several.
    """
    label_of = {row.id: row.label for row in rows}
    ids = list(label_of)
    what = IMAGE if len(ids) == len(rows) else ID
    if resumed_run is not None:
        train, val, how = kept_split(
            ids, list({row[0]: row for row in resumed_run.rows if row[2] != PSEUDO}.values()), what
        )
    else:
        train, val, how = _new_split(recipe, competition, label_of, rows, what)
    rows_of: dict[str, list[Row]] = {}
    for row in rows:
        rows_of.setdefault(row.id, []).append(row)
    return (
        [row for number in train for row in rows_of[ids[number]]],
        [row for number in val for row in rows_of[ids[number]]],
        how,
    )


def _new_split(
    recipe: Recipe, competition: Competition, label_of: dict[str, str], rows: Sequence[Row], what: str
) -> tuple[list[int], list[int], str]:
    """Return the split of a new run in the form of `train_val_split`: stated in the data, by groups, or
    stratified.
    """
    ids, labels, seed = list(label_of), list(label_of.values()), split_seed(recipe)
    paths: dict[str, list[Path]] = {}
    for row in rows:
        paths.setdefault(row.id, []).append(row.path)
    units = find_units(ids, paths, competition.groups)
    if has_stated_split(recipe, competition):
        train, val, how = stated_split(ids, competition.split, competition.split_from, what)
        held = set(val)
        warning = both_sides(ids, units, [row in held for row in range(len(ids))]) if units.bind else None
        return train, val, f"{how}; {warning}" if warning else how
    if units.bind and recipe.data.val_fraction:
        return grouped_split(competition.target, labels, units, recipe.data.val_fraction, seed, what)
    return train_val_split(competition.target.strata(labels), recipe.data.val_fraction, seed, what)
