"""Read a grid file: rows of recipe overrides, each trained with several seeds, and the reported results of
each row.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator

from pipeline.config import RECIPES_DIR, load_recipe, problem_of
from pipeline.errors import UserError, raise_all
from pipeline.files import read_yaml
from pipeline.recipe import Recipe
from pipeline.recipe_sections import Section
from pipeline.targets.metrics import find_metric

GRIDS_DIR = RECIPES_DIR / "grids"
BESIDE_METRICS = (
    "macro_precision",
    "macro_recall",
    "weighted_precision",
    "weighted_recall",
)  # for one class per image; not in the table of metrics


class Reported(Section):
    """Results from the source of a row, on its own data and machine.

    Text where the source gives more than one number, or where it says what was counted.
    """

    score: float | str | None = Field(
        None, description="score that the source ranks by, such as a public score"
    )
    accuracy: float | str | None = None
    precision: float | str | None = None
    recall: float | str | None = None
    f1: float | str | None = None
    memory_gb: float | str | None = None
    seconds: float | str | None = None
    trainable: int | None = None
    parameters: int | None = None


class GridRow(Section):
    """Overrides of a recipe, with a name. `set` is as `--set` of train.py."""

    name: str = Field(min_length=1)
    recipe: str | None = Field(None, description="null = the grid's recipe")
    set: dict[str, Any] = Field({})
    reported: Reported = Reported()


class GridFile(Section):
    """The contents of the file.

    `set` holds overrides for every row; a row's own overrides come after them.
    """

    recipe: str | None = None
    seeds: tuple[int, ...] = Field((42,), min_length=1)
    metrics: tuple[str, ...] = Field(
        ("accuracy",),
        min_length=1,
        description="columns of scores; the competition's metric always comes first",
    )
    set: dict[str, Any] = Field({})
    rows: tuple[GridRow, ...] = Field(min_length=1)

    @field_validator("metrics")
    @classmethod
    def _known(cls, metrics: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name if name in BESIDE_METRICS else find_metric(name).name for name in metrics)


@dataclass(frozen=True)
class Trial:
    """One row with one seed: one run of train.py."""

    row: str
    seed: int
    recipe: Recipe

    @property
    def title(self) -> str:
        """The name of the trial in messages."""
        return f"{self.row}, seed {self.seed}"

    @property
    def folder_name(self) -> str:
        """The name of its run folder, inside the folder of the grid."""
        return f"{slug(self.row)}_seed{self.seed}"


@dataclass(frozen=True)
class Grid:
    """A grid with validated recipes.

    `trials` are in the order to run them: all rows with the first seed, then with the next.
    """

    name: str
    metrics: tuple[str, ...]  # the first one is the score
    rows: tuple[GridRow, ...]
    trials: tuple[Trial, ...]


def grid_names() -> list[str]:
    """Return the names of the grids that come with the project, sorted."""
    return sorted(path.stem for path in GRIDS_DIR.glob("*.yaml"))


def load_grid(
    name_or_file: str,
    backbone: str | None = None,
    overrides: dict[str, Any] | None = None,
    seeds: Sequence[int] | None = None,
) -> Grid:
    """Return the grid `name_or_file` (a name, or the path of a YAML file), with a validated recipe for
    every row.

    `backbone` and `overrides` (dotted keys) apply to all rows, after their own values. As in train.py, a
    backbone sets its own image size unless the grid or `overrides` set one. `seeds` replace those of the
    grid.

    Raises:
        UserError: there is no such grid, or rows are not valid recipes; lists the problems of all rows.
    """
    path = (
        Path(name_or_file) if name_or_file.endswith((".yaml", ".yml")) else GRIDS_DIR / f"{name_or_file}.yaml"
    )
    file = _read(path, name_or_file)
    names = Counter(slug(row.name) for row in file.rows)
    problems = [
        f"row {row.name!r}: another row has this name" for row in file.rows if names[slug(row.name)] > 1
    ]
    problems += [
        f"row {row.name!r}: no recipe, and the grid has none either"
        for row in file.rows
        if not (row.recipe or file.recipe)
    ]
    if len(set(seeds or file.seeds)) != len(seeds or file.seeds):
        problems.append(
            f"seeds: expected different numbers, found {', '.join(map(str, seeds or file.seeds))}"
        )
    raise_all(problems, f"{path} is not a valid grid:")
    trials = []
    for seed in seeds or file.seeds:
        for row in file.rows:
            own_size: dict[str, Any] = {"image_size": None} if backbone else {}
            values = (
                own_size
                | file.set
                | row.set
                | ({"backbone": backbone} if backbone else {})
                | (overrides or {})
            )
            values |= {"seed": seed, "name": f"{path.stem}: {row.name}, seed {seed}"}
            try:
                trials.append(Trial(row.name, seed, load_recipe(row.recipe or file.recipe or "", values)))
            except UserError as error:
                lines = [line.strip(" -") for line in str(error).splitlines()]
                problems.append(f"row {row.name!r}: {'; '.join(lines)}")
    raise_all(dict.fromkeys(problems), f"{path}: rows that are not valid recipes:")
    return Grid(path.stem, file.metrics, file.rows, tuple(trials))


def slug(name: str) -> str:
    """Return a row's name for a folder: lower case, with one dash for other characters than letters and
    digits.
    """
    return re.sub(r"[^\w.+]+", "-", name.lower()).strip("-")


def _read(path: Path, given: str) -> GridFile:
    if not path.is_file():
        near = difflib.get_close_matches(given, grid_names(), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(
            f"--grid {given}: no such grid{hint}\ngrids: {', '.join(grid_names())} (or the path of a .yaml "
            "file)"
        )
    try:
        return GridFile.model_validate(read_yaml(path))
    except ValidationError as error:
        problems = [
            _problem(item)
            for item in error.errors()
            if item["type"] != "too_short" or item["input"] in ((), [])
        ]
        raise_all(problems, f"{path} is not a valid grid:")
        raise  # raise_all raises: pydantic reports at least one problem


def _problem(item: dict[str, Any]) -> str:
    """Return the problem as for a recipe, with the row number in the key."""
    names = tuple(map(str, item["loc"]))
    if item["type"] == "value_error":
        return f"{'.'.join(names)}: {item['ctx']['error']}"
    return problem_of(item | {"loc": names})
