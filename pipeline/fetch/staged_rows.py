"""Find the part (train, test, val) of converted files, name their rows, and write their tables."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.competition.folders import IMAGE_SUFFIXES, is_hidden, plain_name
from pipeline.errors import UserError, raise_all
from pipeline.fetch.grey_range import Rule, Survey, Watched
from pipeline.fetch.pixels import Shape, save, shape_of
from pipeline.files import versioned
from pipeline.tables import load_table, write_table
from pipeline.wording import capped, counted, listed

TABLES = (".csv", ".tsv")
BETWEEN = "\x1f"  # between the values of a cell that holds several, until the table is written
ID_NAMES = tuple("id imageid image imagename imgid idcode filename file fileid name index uuid guid".split())
# Also in Xtrain and trainy: x for images and y for labels
PARTS = re.compile(
    r"(?<![a-z])[xy]?(?:(train(?:ing)?)|(test(?:ing)?)|(val(?:id(?:ation)?)?|dev))[xy]?(?![a-z])"
)


def part_of(path: str) -> str:
    """Return `train`, `test` or `val` from the innermost part of a path that names one; else empty."""
    return next((found[-1] for piece in reversed(path.split("/")) if (found := _parts_in(piece))), "")


def is_for_training(path: str) -> bool:
    """Return True for a file of the training or the validation part.

    Folders decide, and the file's name only if they do not: below a folder of the test part every name is an
    id, which may hold `train` or `val` by chance. So may the name of any file, after a digit.
    """
    *folders, name = path.split("/")
    named = [set(found) for folder in folders if (found := _parts_in(folder))]
    if {"test"} in named:
        return False
    return any("test" not in parts for parts in named) or _parts_in(name, r"(?<!\d)")[-1:] in (
        ["train"],
        ["val"],
    )


def _parts_in(piece: str, before: str = "") -> list[str]:
    """Return the parts that a file or a folder names, in order; `before`: what must stand before each."""
    words = re.sub(r"([a-z])([A-Z])", r"\1_\2", piece).lower()
    found = re.finditer(before + PARTS.pattern, words)
    return [("train", "test", "val")[(match.lastindex or 1) - 1] for match in found]


@dataclass
class Staged:
    """A folder whose containers are turned into images.

    `sample`: the sample submission; `ids`: its ids, in order. `repeated`: what an earlier conversion of the
    same set decided from all its images, and this one repeats (`decide`); None: this is the first one.
    """

    root: Path
    repeated: Mapping[str, Any] | None = None
    longest: int = 0  # most pixels of the longer side of an image that is made here; 0: any number
    sample: Path | None = None
    id_column: str = "id"
    ids: list[str] = field(default_factory=list)
    image_names: set[str] = field(default_factory=set)  # names and stems of the existing image files
    # for the user: rules used, and files not turned into images
    notes: list[str] = field(default_factory=list)
    decided: dict[str, Any] = field(default_factory=dict)  # what this conversion decided
    packages: set[str] = field(default_factory=set)  # optional ones that it needed
    watched: dict[str, Watched] = field(default_factory=dict)  # rules of the earlier conversion, by name
    # tables that this code wrote: columns and rows
    written: dict[Path, tuple[list[str], list[list[str]]]] = field(default_factory=dict)
    _listing: list[Path] = field(default_factory=list)

    def files(self, suffixes: Sequence[str], gone: bool = False) -> list[Path]:
        """Return sorted files with one of these suffixes from the first listing that still exist (`gone`: no
        longer exist).
        """
        if not self._listing:
            self._listing += shown_files(self.root)
        endings = tuple(suffixes)
        return [
            path for path in self._listing if path.name.lower().endswith(endings) and path.is_file() != gone
        ]

    def shown(self, path: Path) -> str:
        """Return the path of a file for messages."""
        return path.relative_to(self.root).as_posix()

    def decide(self, name: str, find: Callable[[], Any]) -> Any:
        """Return the decision called `name`, a value of JSON: of the earlier conversion, else `find()`.

        It is made once; training files come first, because there may be only a few test images here.

        Raises:
            UserError: the earlier conversion had nothing to decide under this name.
        """
        if self.repeated is not None and name not in self.repeated:
            known = listed(sorted(self.repeated)) or "nothing"
            raise UserError(
                f"the set holds {name}, but `make data` converted other files (it decided about {known}): "
                "run `make data` on the newest download, then train again"
            )
        if name not in self.decided:
            self.decided[name] = find() if self.repeated is None else self.repeated[name]
        return self.decided[name]

    def rule(self, name: str, find: Callable[[], Rule]) -> Rule:
        """Return the grey range of the images called `name`; see `decide`."""
        rule = Rule.read(self.decide(name, lambda: asdict(find())))
        if self.repeated is None:
            return rule
        self.watched[name] = Watched(rule.low, rule.high, rule.says)
        return self.watched[name]

    def surveyed(self, name: str, where: str, images: Iterable[np.ndarray]) -> Rule:
        """Return the grey range of the images called `name`, found in `images` (C, H, W), which are read only
        for the first conversion; see `decide`. `where`: these images, for a note on missing values.
        """
        survey = Survey()

        def find() -> Rule:
            for planes in images:
                survey.add(planes)
            return survey.rule()

        rule = self.rule(name, find)
        if survey.num_without:
            self.notes.append(f"{where}: NaN and infinite values count as missing and are black")
        return rule

    def check_numbers(self) -> None:
        """Check that images of a repeated conversion hold numbers as those of the earlier one.

        Raises:
            UserError: most of them do not.
        """
        raise_all(
            [f"{name}: {problem}" for name, rule in self.watched.items() if (problem := rule.problem())],
            "the test images hold numbers of another kind than those that `make data` converted (another "
            "depth?): the same grey level would mean something else. Run `make data` on the newest download, "
            "then train again:",
        )

    def save(self, planes: np.ndarray, path: Path) -> None:
        """Write grey levels (C, H, W) uint8 to a new PNG file, reduced to `longest`.

        Raises:
            UserError: the file exists.
        """
        save(planes, path, self.longest)

    def shape(self, count: int, rows: np.ndarray) -> Shape | None:
        """Return `shape_of(count, rows)`, or what it was the first time; see `decide`."""

        def find() -> tuple[int, int, str] | None:
            found = shape_of(count, rows)
            return astuple(found) if found else None

        known = self.decide(f"images of {count:,} numbers", find)
        return Shape(*known) if known else None

    def has_images(self, names: Sequence[str]) -> bool:
        """Return True if nearly all of `names` are image files already."""
        there = sum(name in self.image_names for name in names)
        return bool(names) and there >= 0.9 * len(names)


def shown_files(root: Path) -> list[Path]:
    """Return the files below `root` that are not hidden, nor in a hidden folder, sorted."""
    return [
        path
        for path in sorted(root.rglob("*"))
        if path.is_file() and not any(map(is_hidden, path.relative_to(root).parts))
    ]


def staged(root: Path, repeated: Mapping[str, Any] | None = None, longest: int = 0) -> Staged:
    """Read the state of the folder `root` before anything in it is turned into images."""
    found = Staged(root, repeated, longest)
    for path in found.files(tuple(IMAGE_SUFFIXES)):
        found.image_names |= {path.name, path.stem}
    samples = [
        path
        for path in found.files(TABLES)
        if "sample" in plain_name(path.name) or "submission" in plain_name(path.name)
    ]
    for path in sorted(
        samples, key=lambda path: (len(path.parts), "sample" not in path.name.lower(), path.name)
    ):
        try:
            table = load_table(path)
        except UserError:
            continue  # reported when the layout is read
        found.sample, found.id_column, found.ids = path, table.columns[0], table.column(table.columns[0])
        break
    return found


def row_ids(stage: Staged, part: str, count: int) -> tuple[list[str], str]:
    """Return names for `count` rows without ids, and how they were made: the sample's ids, or numbers that
    start as its do.

    Ids that are numbered (`t_0`, `t_1`, `t_10`, ...) are given in the order of their numbers, others in the
    order of the sample.
    """
    # 0007 is a name, and not the number of a row
    numbers = {int(text) for text in stage.ids if re.fullmatch(r"0|[1-9][0-9]{0,17}", text)}
    first = min(numbers, default=0)
    consecutive = (
        len(numbers) == len(stage.ids) > 0
        and first in (0, 1)
        and numbers == set(range(first, first + len(numbers)))
    )
    if part == "test" and stage.sample and len(stage.ids) == count and not consecutive:
        if (ordered := _by_number(stage.ids)) is not None:
            return ordered, f"row by row the ids of {stage.sample.name}, by their numbers"
        return list(stage.ids), f"row by row the ids of {stage.sample.name}"
    first = first if consecutive else 0
    where = f", as in {stage.sample.name}" if stage.sample and consecutive else ""
    return [str(number) for number in range(first, first + count)], f"the row number, from {first}{where}"


@dataclass(frozen=True)
class NamedRows:
    """The rows of a table whose images become files: a name for each, and the table without its images, with
    the names in its first column.

    `how`: where the names come from, for messages. `folder`: below the root, for the images.
    """

    names: Sequence[str]
    how: str
    columns: Sequence[str]
    cells: Sequence[Sequence[str]]
    folder: str


def named_rows(
    stage: Staged, columns: Sequence[str], cells: Sequence[Sequence[str]], part: str, path: Path, shown: str
) -> NamedRows:
    """Name the rows of the table at `path` (in messages `shown`) by its column of ids; without one as
    `row_ids` does, in a new first column.

    Raises:
        UserError: names are repeated, or cannot be file names.
    """
    column, folder = id_column(stage, columns, cells, part), part or path.stem
    if column is None:
        names, how = row_ids(stage, part, len(cells))
        columns = [new_column(stage, columns), *columns]
        cells = [[name, *row] for name, row in zip(names, cells, strict=True)]
        if (stage.root / folder).exists():  # rows of another table may have the same row numbers
            folder = path.stem
    else:
        names, how = [row[column] for row in cells], f"column {columns[column]!r}"
        order = [column, *(other for other in range(len(columns)) if other != column)]
        columns, cells = [columns[each] for each in order], [[row[each] for each in order] for row in cells]
    check_names(names, shown)
    return NamedRows(names, how, columns, cells, folder)


def new_column(stage: Staged, columns: Sequence[str]) -> str:
    """Return the name of a new column of ids: that of the sample, if none of `columns` has it already."""
    return next(name for name in (stage.id_column, "image", "name of the image") if name not in columns)


def _by_number(ids: Sequence[str]) -> list[str] | None:
    """Return ids that differ only in a number, in its order; None for other ids, or numbers with gaps."""
    found = [re.fullmatch(r"(\D*)(\d+)(\D*)", text, re.ASCII) for text in ids]
    if not all(found) or len({(match[1], match[3]) for match in found}) > 1:
        return None
    by_number = {int(match[2]): match[0] for match in found}
    numbers = sorted(by_number)
    whole = len(numbers) == len(ids) and numbers == list(range(numbers[0], numbers[0] + len(ids)))
    return [by_number[number] for number in numbers] if whole else None


def id_column(
    stage: Staged, columns: Sequence[str], cells: Sequence[Sequence[str]], part: str = ""
) -> int | None:
    """Return the position of the column that names the rows; None if there is none.

    Its values are unique, and it has the sample's id name, or holds ids of the sample (see `are_sample_ids`),
    or has an id name: the first of these that a column fulfils.
    """
    by_rank: dict[int, int] = {}
    for position, name in enumerate(columns):
        values = [row[position] for row in cells]
        if len(set(values)) < len(values) or not all(values):
            continue
        if name == stage.id_column:
            rank = 0
        elif are_sample_ids(stage, part, values):
            rank = 1
        elif plain_name(name) in ID_NAMES:
            rank = 2
        else:
            continue
        by_rank.setdefault(rank, position)
    return by_rank[min(by_rank)] if by_rank else None


def are_sample_ids(stage: Staged, part: str, values: Sequence[str]) -> bool:
    """Return True if `values` are different ids of the sample submission, whatever their column is called.

    Not for training rows: their numbers may be those of the sample by chance.
    """
    return (
        part != "train"
        and len(values) > 0
        and len(set(values)) == len(values)
        and set(values) <= set(stage.ids)
    )


def cell_text(value: object) -> str:
    """Return a value of an array or a parquet table as the text of a cell.

    1.0 is written 1; a missing value (None, NaN) is empty. Several values have BETWEEN between them.
    """
    if value is None:
        return ""
    if isinstance(value, (list, tuple, np.ndarray)):
        return BETWEEN.join(cell_text(each) for each in value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, (np.floating, float)):
        if math.isnan(value):
            return ""
        if float(value).is_integer():
            return str(int(value))
    return str(value)


def check_names(names: Sequence[str], where: str) -> None:
    """Check that every name can be a file name of its own, without control characters.

    Raises:
        UserError: names are repeated, or cannot be file names.
    """
    bad = [
        repr(name)
        for name in names
        if not name
        or "/" in name
        or "\\" in name
        or name.startswith(".")
        or len(name) > 200
        or any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name)
    ]
    twice = []
    if len(set(names)) < len(names) and len(names) < 5000:
        twice = sorted({name for name in names if names.count(name) > 1})
    problems = capped(
        [f"{name} cannot be the name of an image file" for name in bad], "ids cannot be the name of a file"
    )
    problems += capped([f"the id {name!r} occurs several times" for name in twice], "ids occur several times")
    if len(set(names)) < len(names) and not twice:
        problems.append(f"{counted(len(names) - len(set(names)), 'id')} occur several times")
    raise_all(problems, f"{where}: the ids cannot name images:")


def write_rows(
    stage: Staged, part: str, stem: str, columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> str:
    """Write the table of a part (`train.csv`, `test.csv`; else `<stem>.csv`). Returns its name.

    The first column holds the ids. If a table with these ids exists already, nothing is written. Rows of
    several containers of a part share one table if they have the same columns, in any order, and other ids.
    """
    name = f"{part or stem}.csv"
    path = stage.root / name
    if path in stage.written:
        known, before = stage.written[path]
        alike = known[0] == columns[0] and sorted(known) == sorted(columns)
        if alike and not {row[0] for row in before} & {row[0] for row in rows}:
            order = [list(columns).index(column) for column in known]
            columns, rows = known, [*before, *([row[each] for each in order] for row in rows)]
        else:
            path = versioned(stage.root / f"{stem}.csv")
    elif path.exists():
        ids = {row[0] for row in rows}
        try:
            table = load_table(path)
            if any(len(ids & set(table.column(column))) >= 0.9 * len(ids) for column in table.columns):
                return f"{name}, which exists already"
        except UserError:
            pass
        path = versioned(path)
    write_table(path, columns, _with_separators(rows))
    stage.written[path] = list(columns), [list(row) for row in rows]
    return path.name


def _with_separators(rows: Sequence[Sequence[str]]) -> Iterator[list[str]]:
    """Yield the rows with a space between the values of a cell; with | where the values have spaces."""
    marks = [
        "|" if any(BETWEEN in cell for cell in cells) and any(" " in cell for cell in cells) else " "
        for cells in zip(*rows, strict=True)
    ]
    for row in rows:
        yield [cell.replace(BETWEEN, mark) for cell, mark in zip(row, marks, strict=True)]
