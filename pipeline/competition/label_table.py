"""Read the labels of one table: its rows and their images. All problems of the rows are reported at once."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from pipeline.competition.id_styles import SEVERAL_EACH, without_suffix
from pipeline.competition.ids import ImageIndex, Match
from pipeline.competition.json_tables import SEVERAL
from pipeline.competition.label_columns import ZERO_ONE, is_number, split_column
from pipeline.competition.rows import STATED
from pipeline.competition.sources import Source
from pipeline.errors import raise_all
from pipeline.tables import Table
from pipeline.targets.evidence import LabelEvidence
from pipeline.targets.readings import several_labels
from pipeline.wording import capped, counted, numbered, quoted

Part = Literal["train", "val"]


@dataclass
class Labelled:
    """Labelled rows.

    Entry i of `ids`, `images` (paths in the data folder) and the evidence belong to one row.
    """

    ids: list[str] = field(default_factory=list)
    images: list[tuple[str, ...]] = field(default_factory=list)
    evidence: LabelEvidence | None = None
    source: str = ""  # for messages: `train.csv: image_id, label`
    notes: list[str] = field(default_factory=list)
    split: dict[str, Part] | None = None
    split_from: str = STATED
    found: Found | None = None  # the table that the labels come from

    @property
    def taken(self) -> set[str]:
        """All images with a label."""
        return {image for images in self.images for image in images}


@dataclass(frozen=True)
class Found:
    """A table with matched ids. `table` may be `source.table` in another form (long rows made wide)."""

    source: Source
    table: Table
    id_column: str
    match: Match

    @property
    def name(self) -> str:
        """Path of the table in the data folder."""
        return self.source.name

    def kept(self, rows: Sequence[int]) -> Found:
        """Return the table with these rows alone, and their images."""
        images = tuple(self.match.images[row] for row in rows)
        return replace(self, table=self.table.kept(rows), match=replace(self.match, images=images))


def without_test_rows(table: Table) -> tuple[Table, list[str], list[str]]:
    """Remove rows that the split column marks as test.

    Returns the table, the part of each row left, and notes.
    """
    name, parts = split_column(table)
    if name is None:
        return table, [], []
    keep = [row for row, part in enumerate(parts) if part != "test"]
    left = [parts[row] for row in keep]
    counts = {part: parts.count(part) for part in ("train", "val", "test")}
    says = [f"{counts['val']:,} validate"] if counts["val"] else []
    says += [f"{counts['test']:,} are test rows and do not train"] if counts["test"] else []
    notes = [f"by the column {name!r} {' and '.join(says)}"] if says else []
    return table.kept(keep), left, notes


def without_asked_rows(
    found: Found, name: str, parts: list[str], asked: Sequence[str], all_asked: bool, own_folder: bool
) -> tuple[Found, list[str], list[str]]:
    """Drop the rows of ids that are `asked` (by the sample submission) if all have one label (`?`, -1) that
    no other row has: they are to be predicted.

    `all_asked`: `asked` holds all ids of the sample. `own_folder`: the images to predict have a folder of
    their own, so that such rows have no image here. Returns the table, the parts of its rows, notes.
    """
    table = found.table
    ids = [without_suffix(cell.strip()) for cell in table.column(found.id_column)]
    labels = [cell.strip() for cell in table.column(name)]
    wanted = {without_suffix(text.strip()) for text in asked}
    held = {label for row_id, label in zip(ids, labels, strict=True) if row_id in wanted}
    if len(held) != 1 or not wanted <= set(ids):
        return found, parts, []
    mark = held.pop()
    marked = [row for row, label in enumerate(labels) if label == mark]
    if own_folder and any(found.match.images[row] for row in marked):
        return found, parts, []
    if not mark or len(set(labels)) < 3 or (all_asked and len(marked) > len(wanted)):
        return found, parts, []
    keep = [row for row, label in enumerate(labels) if label != mark]
    note = f"{counted(len(marked), 'row')} of ids to predict, marked {mark!r}, left out"
    return found.kept(keep), [parts[row] for row in keep] if parts else parts, [note]


SKIP_FLAG = "--set data.skip_bad_images=true"
PARTIAL_FLAG = "--set data.partial_labels=true"
# Texts that pandas and others write for a missing value
MISSING = frozenset(("nan", "na", "n/a", "#n/a", "<na>", "null", "none"))


def read_table(
    found: Found,
    names: Sequence[str],
    index: ImageIndex,
    parts: Sequence[str],
    empty_is_none: bool,
    skip_bad: bool = False,
    partial: bool = False,
) -> Labelled:
    """Read the rows of a table that have an image and a label; repeated rows count once.

    Rows with neither image nor label are left out with a note; with `skip_bad` also rows that lack one of
    them. `empty_is_none`: an empty cell is a valid answer (no label), not a missing label. `partial`: with
    several columns of numbers, a row with some of them has a label.

    Raises:
        UserError: rows without an image, with two images, or without a label; images with two labels. All are
            listed.
    """
    found, missing, unsure = _without_missing_texts(found, names)
    numbers = _are_numbers(found.table, names)
    partial = partial and numbers
    found, parts, skipped = _without_bare_rows(
        found, names, parts, empty_is_none and not missing, skip_bad, partial
    )
    table, match = found.table, found.match
    ids = [cell.strip() for cell in table.column(found.id_column)]
    columns = [table.column(name) for name in names]
    labels = list(zip(*([cell.strip() for cell in column] for column in columns), strict=True))
    many = match.style in SEVERAL_EACH
    advice = f"add the images, take these rows out, or train without them: {SKIP_FLAG}"
    problems = match.problems(ids, table.lines, index, advice, many) + (
        [] if empty_is_none and not missing else _no_label(table, names, labels, missing, numbers, partial)
    )
    rows: dict[tuple[str, ...], int] = {}
    repeated = 0
    conflicts: dict[int, list[int]] = {}
    for row, images in enumerate(match.images):
        if not images or (len(images) != 1 and not many):
            continue
        first = rows.setdefault(images, row)
        if first != row and labels[first] == labels[row]:
            repeated += 1
        elif first != row:
            conflicts.setdefault(first, [first]).append(row)
    twice = []
    for first, which in conflicts.items():
        where = numbered(table.lines[row] for row in which)
        values = quoted(", ".join(labels[row]) for row in which)
        twice.append(f"{where}: {ids[first]!r} ({match.images[first][0]}) has different labels: {values}")
    problems += capped(twice, "images have different labels")
    what = names[0] if len(names) == 1 else f"{len(names)} columns of labels"
    settle = "; if another column is the id, set it: --set data.id_column=NAME" if twice else ""
    raise_all(problems, f"{table.path} ({found.id_column}, {what}{settle}):")
    chosen = list(rows.values())
    kind: Literal["json", "table"] = "json" if found.source.is_json else "table"
    where = f"{found.name}, column {names[0]!r}" if len(names) == 1 else f"{found.name}, {what}"
    evidence, notes = _evidence(kind, where, names, [labels[row] for row in chosen])
    if partial:
        notes += _empty_cells([labels[row] for row in chosen])
    spaced = sum(cell != cell.strip() for column in columns for cell in column)
    if spaced:
        notes.append(f"spaces around {counted(spaced, 'label')} removed")
    if repeated:
        notes.append(f"{counted(repeated, 'repeated row')} with the same label counted once")
    labelled = Labelled(
        [ids[row] for row in chosen],
        [match.images[row] for row in chosen],
        evidence,
        f"{found.name}: {found.id_column}, {what}",
        [f"ids are {match.style.says}", *table.notes, *skipped, *unsure, *notes],
        found=found,
    )
    if "val" in parts:
        labelled.split = {ids[row]: "val" if parts[row] == "val" else "train" for row in chosen}
    return labelled


def _without_bare_rows(
    found: Found,
    names: Sequence[str],
    parts: Sequence[str],
    empty_is_none: bool,
    skip_bad: bool,
    partial: bool,
) -> tuple[Found, Sequence[str], list[str]]:
    """Drop rows with neither image nor label (`skip_bad`: rows that lack one).

    A row with an empty cell has no label; with `partial` only one whose cells are all empty. Returns table,
    parts of its rows, notes.
    """
    lacks_label = all if partial else any
    columns = [found.table.column(name) for name in names]
    imageless = [not images for images in found.match.images]
    unlabelled = [
        not empty_is_none and lacks_label(not cell.strip() for cell in row)
        for row in zip(*columns, strict=True)
    ]
    bad = [any(lacks) if skip_bad else all(lacks) for lacks in zip(imageless, unlabelled, strict=True)]
    keep = [row for row, is_bad in enumerate(bad) if not is_bad]
    if len(keep) == len(bad) or not keep:
        return found, parts, []
    lost = sum(is_bad and no_image for is_bad, no_image in zip(bad, imageless, strict=True))
    why = [f"{lost:,} without an image"] if lost else []
    why += [f"{len(bad) - len(keep) - lost:,} without a label"] if lost < len(bad) - len(keep) else []
    note = f"{counted(len(bad) - len(keep), 'row')} left out: {', '.join(why)}"
    return found.kept(keep), [parts[row] for row in keep] if parts else parts, [note]


def _without_missing_texts(found: Found, names: Sequence[str]) -> tuple[Found, dict[str, str], list[str]]:
    """Empty the cells of label columns that hold `nan`, `NA` or the like, where all others hold numbers.

    Returns the table, column -> such a text, and notes on such texts that are read as the name of a class.
    """
    missing, notes, table = {}, [], found.table
    for name in names:
        cells = table.column(name)
        texts = {cell for cell in set(cells) if cell.strip().casefold() in MISSING}
        if not texts:
            continue
        if all(is_number(part) for cell in set(cells) - texts for part in cell.split()):
            missing[name], place = min(texts), table.columns.index(name)
            emptied = (
                (*row[:place], "" if row[place] in texts else row[place], *row[place + 1 :])
                for row in table.cells
            )
            table = replace(table, cells=tuple(emptied))
        elif surely := {text for text in texts if text.strip().casefold() not in ("na", "none")}:
            where = numbered(line for line, cell in zip(table.lines, cells, strict=True) if cell in surely)
            notes.append(
                f"{where}: {min(surely)!r} is read as the name of a class; if it is no label, empty the cell"
            )
    return replace(found, table=table), missing, notes


def _are_numbers(table: Table, names: Sequence[str]) -> bool:
    """Return True for several columns whose filled cells are numbers, and not only 0 and 1."""
    filled = {cell.strip() for name in names for cell in table.column(name) if cell.strip()}
    return len(names) > 1 and all(map(is_number, filled)) and not filled <= ZERO_ONE


def _no_label(
    table: Table,
    names: Sequence[str],
    labels: Sequence[tuple[str, ...]],
    missing: Mapping[str, str],
    numbers: bool,
    partial: bool,
) -> list[str]:
    """Return a problem for each column with empty cells, and how to solve them.

    With `partial` only rows and columns in which every cell is empty are problems. `numbers`: there are
    several columns of numbers.
    """
    if partial:
        bare = [line for line, row in zip(table.lines, labels, strict=True) if not any(row)]
        problems = [f"{numbered(bare)}: no label in any of the {len(names)} columns"] if bare else []
        problems += capped(
            [
                f"the column {name!r} is empty"
                for name, cells in zip(names, zip(*labels, strict=True), strict=True)
                if not any(cells)
            ],
            "columns are empty",
        )
        return _with_advice(problems, f"fill in the cells, or train without these rows: {SKIP_FLAG}")
    problems, hint = [], ""
    for position, name in enumerate(names):
        empty = [line for line, row in zip(table.lines, labels, strict=True) if not row[position]]
        if empty:
            text = f", {missing[name]!r} among numbers" if name in missing else ""
            filled = [row[position] for row in labels if row[position]]
            if name in missing and len(names) == 1:
                hint = "; a class needs another name"
            elif several_labels(filled)[0] == "yes":
                hint = "; if such an image has none of the labels, write a word for that, such as none"
            problems.append(f"{numbered(empty)}: no label in column {name!r}{text}")
    some = f", or with the numbers that they have: {PARTIAL_FLAG}" if numbers else ""
    return _with_advice(
        capped(problems, "columns have empty cells"),
        f"fill in the cells, take the rows out, or train without these rows: {SKIP_FLAG}{some}{hint}",
    )


def _with_advice(problems: list[str], advice: str) -> list[str]:
    """Return the problems with the way out: behind a single one, else as the last line."""
    if len(problems) == 1:
        return [f"{problems[0]} ({advice})"]
    return [*problems, advice] if problems else []


def _empty_cells(labels: Sequence[tuple[str, ...]]) -> list[str]:
    """Return a note on the rows with some of several numbers."""
    rows, cells = sum(not all(row) for row in labels), sum(not cell for row in labels for cell in row)
    if not rows:
        return []
    return [
        f"{counted(rows, 'row')} with empty label cells ({cells:,} in all): they count neither in the loss "
        "nor in the score (data.partial_labels)"
    ]


def _evidence(
    kind: Literal["json", "table"], where: str, names: Sequence[str], labels: Sequence[tuple[str, ...]]
) -> tuple[LabelEvidence, list[str]]:
    if len(names) > 1:
        return LabelEvidence(kind, where, columns=tuple(names), cells=tuple(labels)), []
    texts = [row[0] for row in labels]
    if any(SEVERAL in text for text in texts):
        parts = [[part for part in text.split(SEVERAL) if part] for text in texts]
        every = sorted({part for found in parts for part in found})
        # labels contain spaces: one 0/1 column per label instead
        if any(re.search(r"\s", part) for part in every):
            cells = tuple(tuple("1" if name in found else "0" for name in every) for found in map(set, parts))
            return LabelEvidence(kind, where, columns=tuple(every), cells=cells), []
        texts = [" ".join(found) for found in parts]
    texts, notes = _one_number_each(texts)
    return LabelEvidence(kind, where, texts=tuple(texts), column=names[0]), notes


def _one_number_each(texts: list[str]) -> tuple[list[str], list[str]]:
    """Replace `1.0` by `1` if both occur: they are one label written in two ways.

    Returns the texts and notes.
    """
    known = set(texts)
    both = {
        text: short
        for text in known
        if (short := re.sub(r"(?<=\d)\.0+$", "", text)) != text and short in known
    }
    if not both:
        return texts, []
    shown = quoted(sorted(both))
    return [both.get(text, text) for text in texts], [
        f"{shown} taken as {quoted(sorted(both.values()))}: one label, written in two ways"
    ]
