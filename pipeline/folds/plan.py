"""Which row is in which fold, and the files that store it: folds.csv and state/folds.json.

folds.csv has the columns id and fold. state/folds.json holds the settings of the run; it is used until all
folds are trained.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
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
    """The folds of a run. `fold_of` maps each labelled id, in the table's order, to its fold (1 to
    `count`).
    """

    output: Path
    count: int
    fold_of: Mapping[str, int]
    notes: tuple[str, ...] = ()

    def folder(self, number: int) -> Path:
        """Return the run folder of one fold; it may not exist yet."""
        return self.output / f"fold-{number}"

    def ids(self, number: int) -> list[str]:
        """Return the validation ids of one fold, in the table's order."""
        return [row_id for row_id, fold in self.fold_of.items() if fold == number]

    def split(self, competition: Competition, number: int) -> Competition:
        """Return the competition split for one fold: this fold validates, the others train."""
        parts = {row_id: "val" if fold == number else "train" for row_id, fold in self.fold_of.items()}
        where = f"fold {number} of {self.count}"
        return replace(competition, split=parts, split_from=where, of_fold=True, groups=None)

    def done(self) -> list[int]:
        """Return the numbers of the folds whose run is complete."""
        return [number for number in range(1, self.count + 1) if (self.folder(number) / RECORD).exists()]

    def begun(self) -> list[int]:
        """Return the numbers of the folds whose run was started, complete or not."""
        return [number for number in range(1, self.count + 1) if has_run(self.folder(number))]

    def missing(self) -> list[int]:
        """Return the numbers of the folds that are not complete."""
        return [number for number in range(1, self.count + 1) if number not in self.done()]

    def write(self, recipe: Recipe, command: str, parallel: int = 1) -> None:
        """Write folds.csv and state/folds.json. A resumed run keeps the state/folds.json that it has.

        `parallel`: how many folds are trained at once. Another number rounds differently, so it is stored for
        `--resume`.

        Raises:
            UserError: folds.csv exists and assigns other folds.
        """
        path = self.output / FOLDS_FILE
        if path.exists():
            self._check(path)
        else:
            write_table(
                path, ("id", "fold"), [(guarded(row_id), str(fold)) for row_id, fold in self.fold_of.items()]
            )
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
        other = [
            row_id for row_id in {**before, **self.fold_of} if before.get(row_id) != self.fold_of.get(row_id)
        ]
        if other:
            raise UserError(
                f"{path} and the data do not agree on {counted(len(other), 'row')}: {quoted(other)}. The "
                "labels, the groups, the number of folds or the split seed have changed since this run was "
                "started: restore them, or use another --output"
            )


def has_run(folder: Path) -> bool:
    """Return True when a run was started in `folder`, complete or not."""
    return (folder / RECORD).exists() or (folder / "state").is_dir()


def read_folds(path: Path) -> dict[str, int]:
    """Return {id: fold} from the folds.csv that `Plan.write` wrote.

    Raises:
        UserError: the file is damaged.
    """
    table = load_table(path)
    try:
        return {
            restored(row_id): int(fold)
            for row_id, fold in zip(table.column("id"), table.column("fold"), strict=True)
        }
    except ValueError as error:
        raise UserError(
            f"{path}: expected the columns id and fold, each fold a number ({error}); use another --output"
        ) from None


def read_start(output: Path) -> dict[str, Any] | None:
    """Return the settings that the unfinished folds in `output` were started with.

    Keys: `folds`, `parallel`, `recipe`, `command`, `started`. None where no folds were started, or all are
    finished and assembled.

    Raises:
        UserError: the file is damaged.
    """
    path = output / FOLDS_START
    if not path.exists() or (output / RECORD).exists():
        return None
    return read_shaped(path, START_SHAPE, "start the folds again with another --output")


def fold_command(command: str, number: int, output: Path) -> str:
    """Return the command that trains only fold `number` into `output`, made from the `command` for all
    folds.
    """
    return shlex.join([*without_place(command), "--fold", str(number), "--output", str(output)])


def folds_command(command: str, output: Path) -> str:
    """Return the command that trains the missing folds in `output` and assembles all, made from the `command`
    of one fold.
    """
    return shlex.join([*without_place(command), "--resume", "--output", str(output)])


def full_command(commands: Iterable[str]) -> str:
    """Return the first of stored `commands` without --resume: only such a command surely names the recipe."""
    commands = list(commands)
    return next((one for one in commands if "--resume" not in words_of(one)), next(iter(commands), ""))


def original_command(stored: str, output: Path) -> str:
    """Return the command for all folds, made from the `stored` one that started the folds in `output`.

    A command that resumes them may take the recipe from the folder, so it would not train a fold again.
    """
    if not {"--fold", "--resume"} & set(words_of(stored)):
        return stored
    return shlex.join([*without_place(stored), "--output", str(output)])


def without_place(command: str) -> list[str]:
    """Return the words of a stored `command` without the flags that say which fold, where, and --resume.

    An unknown command is `python train.py --folds K`.
    """
    kept, skip = [], False
    for word in words_of(command) or ["python", "train.py", "--folds", "K"]:
        flag, _, value = word.partition("=")
        if skip and not word.startswith("-"):
            skip = False
        elif flag in ("--parallel", "--fold", "--output", "--resume"):
            skip = not value
        else:
            kept.append(word)
            skip = False
    return kept


def plan_folds(output: Path, competition: Competition, recipe: Recipe, count: int) -> Plan:
    """Return the folds of a competition.

    They come from the label table or the competition's folds.csv if one of them states folds. Otherwise they
    are made: stratified, with whole groups, from the split seed.

    Raises:
        UserError: too few or too many folds, or the stated folds do not fit.
    """
    label_of = {row.id: row.label for row in competition.train}
    paths: dict[str, list[Path]] = {}
    for row in competition.train:
        paths.setdefault(row.id, []).append(row.path)
    units = find_units(list(label_of), paths, competition.groups)
    if competition.folds is None:
        folds, lines = make_folds(
            competition.target, list(label_of.values()), units, count, split_seed(recipe)
        )
    else:
        folds = take_folds(list(label_of), competition.folds, competition.folds_from, count)
        lines = [f"{count} folds from {competition.folds_from}"]
        lines += [warning for warning in [both_sides(list(label_of), units, folds)] if warning]
        lines += rare_labels(competition.target, list(label_of.values()), folds, count)
    return Plan(output, count, dict(zip(label_of, folds, strict=True)), tuple(lines))
