"""Who is in which fold, and the files that say so: folds.csv (id, fold) and, until all folds are trained, state/folds.json."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.competition.fold_split import both_sides, find_units, make_folds, rare_labels, split_seed
from pipeline.competition.groups import take_folds
from pipeline.competition.rows import Competition
from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.recipe import Recipe
from pipeline.run import now
from pipeline.run_names import FOLDS_FILE, FOLDS_START, RECORD
from pipeline.shapes import ANYTHING, COUNT, TEXT, Each, read_shaped
from pipeline.tables import guarded, load_table, restored, write_table
from pipeline.unfinished import words_of
from pipeline.wording import counted, quoted

START_SHAPE = {"folds": COUNT, "parallel?": COUNT, "recipe": Each(ANYTHING), "command?": TEXT}


@dataclass(frozen=True)
class Plan:
    """The folds of a run: `fold_of` gives each labelled id, in the table's order, its fold from 1 to `count`."""

    output: Path
    count: int
    fold_of: Mapping[str, int]
    notes: tuple[str, ...] = ()

    def folder(self, number: int) -> Path:
        """The run folder of one fold, there or not."""
        return self.output / f"fold-{number}"

    def ids(self, number: int) -> list[str]:
        """The ids that validate in one fold, in the table's order."""
        return [row_id for row_id, fold in self.fold_of.items() if fold == number]

    def split(self, competition: Competition, number: int) -> Competition:
        """The competition with this fold for validation and the others for training."""
        parts = {row_id: "val" if fold == number else "train" for row_id, fold in self.fold_of.items()}
        return replace(competition, split=parts, split_from=f"fold {number} of {self.count}", groups=None)

    def done(self) -> list[int]:
        """The folds whose run is complete."""
        return [number for number in range(1, self.count + 1) if (self.folder(number) / RECORD).exists()]

    def begun(self) -> list[int]:
        """The folds whose run was started, complete or not."""
        return [number for number in range(1, self.count + 1) if has_run(self.folder(number))]

    def missing(self) -> list[int]:
        """The folds that are not complete."""
        return [number for number in range(1, self.count + 1) if number not in self.done()]

    def write(self, recipe: Recipe, command: str, parallel: int = 1) -> None:
        """Write folds.csv, and state/folds.json with what the run was started with; a run that goes on keeps its own.

        `parallel`: how many are trained at once; another number rounds differently, so it is part of the command that goes on.

        Raises:
            UserError: folds.csv is there and says something else.
        """
        path = self.output / FOLDS_FILE
        if path.exists():
            self._check(path)
        else:
            write_table(path, ("id", "fold"), [(guarded(row_id), str(fold)) for row_id, fold in self.fold_of.items()])
        if not (self.output / FOLDS_START).exists():
            start = {
                "folds": self.count,
                "parallel": parallel,
                "recipe": recipe.model_dump(mode="json"),
                "command": command,
                "started": now(),
            }
            write_json(self.output / FOLDS_START, start)

    def _check(self, path: Path) -> None:
        before = read_folds(path)
        other = [row_id for row_id in {**before, **self.fold_of} if before.get(row_id) != self.fold_of.get(row_id)]
        if other:
            raise UserError(
                f"{path} and the data do not agree on {counted(len(other), 'row')}: {quoted(other)}. The labels, the groups, the number of folds "
                "or the split seed have changed since this run was started: put them back, or use another --output"
            )


def has_run(folder: Path) -> bool:
    """True when a run was started in `folder`, complete or not."""
    return (folder / RECORD).exists() or (folder / "state").is_dir()


def read_folds(path: Path) -> dict[str, int]:
    """id -> fold, as `Plan.write` wrote them.

    Raises:
        UserError: the file is damaged.
    """
    table = load_table(path)
    try:
        return {restored(row_id): int(fold) for row_id, fold in zip(table.column("id"), table.column("fold"), strict=True)}
    except ValueError as error:
        raise UserError(f"{path}: expected the columns id and fold, each fold a number ({error}); use another --output") from None


def read_start(output: Path) -> dict[str, Any] | None:
    """What the folds in `output` were started with: `folds`, `parallel`, `recipe`, `command`, `started`; None where none were, or all are assembled.

    Raises:
        UserError: the file is damaged.
    """
    path = output / FOLDS_START
    if not path.exists() or (output / RECORD).exists():
        return None
    return read_shaped(path, START_SHAPE, "start the folds anew with another --output")


def fold_command(command: str, number: int, output: Path) -> str:
    """What trains fold `number` alone into `output`, from the `command` that trained all of them."""
    kept, skip = [], False
    for word in words_of(command) or ["python", "train.py"]:
        flag, _, value = word.partition("=")
        if skip and not word.startswith("-"):
            skip = False
        elif flag in ("--parallel", "--fold", "--output", "--resume"):
            skip = not value
        else:
            kept.append(word)
            skip = False
    return shlex.join([*kept, "--fold", str(number), "--output", str(output)])


def plan_folds(output: Path, competition: Competition, recipe: Recipe, count: int) -> Plan:
    """The folds of a competition: as its table or its folds.csv says, else made: stratified, whole groups, by the split seed.

    Raises:
        UserError: too few or too many folds, or stated ones that do not fit.
    """
    label_of = {row.id: row.label for row in competition.train}
    paths: dict[str, list[Path]] = {}
    for row in competition.train:
        paths.setdefault(row.id, []).append(row.path)
    units = find_units(list(label_of), paths, competition.groups)
    if competition.folds is None:
        folds, lines = make_folds(competition.target, list(label_of.values()), units, count, split_seed(recipe))
    else:
        folds = take_folds(list(label_of), competition.folds, competition.folds_from, count)
        lines = [f"{count} folds as {competition.folds_from} gives them"]
        lines += [warning for warning in [both_sides(list(label_of), units, folds)] if warning]
        lines += rare_labels(competition.target, list(label_of.values()), folds, count)
    return Plan(output, count, dict(zip(label_of, folds, strict=True)), tuple(lines))
