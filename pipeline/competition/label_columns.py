"""Find the label columns of a table, and the column that marks rows as train, validation or test."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pipeline.competition.folders import plain_name
from pipeline.competition.id_columns import column_called, is_id_name
from pipeline.competition.ids import ImageIndex, Match
from pipeline.competition.json_tables import CATEGORY, CATEGORY_ID
from pipeline.competition.spelling import as_whole, parts_of
from pipeline.errors import UserError
from pipeline.tables import Table
from pipeline.targets.readings import SEPARATORS, are_flags, split_parts
from pipeline.wording import counted, quoted


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


LABEL_NAMES = _words(
    "label labels class classes target targets category y labelname classname categoryname labelid classid "
    "categoryid labelgroup classlabel tag tags"
)
LABEL_FLAG = "--set data.label_column=NAME"
# added to a column's name: its value
VALUE_WORDS = ("mean", "value", "avg", "average", "target", "label", "true", "y")
FIRST = 5000  # rows of the sample submission that are read for its labels
SURE, LIKELY, POSSIBLE = 3, 2, 1  # strength of a choice of label columns
ZERO_ONE = frozenset(("0", "1", "0.0", "1.0"))
SPLIT_NAMES = tuple(
    "split set subset partition phase isvalid isvalidation isval istrain istraining istest usage".split()
)
FOLD_NAME = r"k?folds?(id|no|number|k)?\d*"
PART_OF_VALUE = {
    **dict.fromkeys(("train", "training", "trainval", "trn", "tr"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval"), "val"),
    **dict.fromkeys(
        ("test", "testing", "tst", "te", "publictest", "privatetest", "public", "private"), "test"
    ),
}
YES, NO = ("true", "1", "yes", "1.0"), ("false", "0", "no", "0.0")


@dataclass(frozen=True)
class Wanted:
    """The labels that the sample submission asks for. All fields are empty without a sample submission."""

    columns: tuple[str, ...] = ()  # without the id column
    ids: tuple[str, ...] = ()  # the first few thousand
    values: frozenset[str] = frozenset()  # of the first rows
    may_be_empty: bool = False
    # possible labels of the rows of a long sample, from other tables
    row_labels: tuple[frozenset[str], ...] = ()

    @property
    def numbers(self) -> bool:
        """True if every value is a number, or a list of numbers with spaces between them."""
        return bool(self.values) and all(is_number(part) for value in self.values for part in value.split())

    def suffixed(self, names: Sequence[str]) -> list[str]:
        """Return the `names` that end ids of the sample, as in `<image>_<label>`; empty if fewer than two
        do.
        """
        longest = max(map(len, names), default=0) + 1
        tails = [text[-longest:] for text in self.ids]
        endings = {tail[mark.end() :] for tail in tails for mark in re.finditer("[_ -]", tail)}
        found = [name for name in names if name in endings]
        return found if len(found) > 1 else []


@dataclass(frozen=True)
class Choice:
    """The chosen label columns and the strength of the choice. `names` empty: undecided."""

    names: tuple[str, ...]
    strength: int
    candidates: tuple[str, ...] = ()  # the possible columns, if undecided
    called: tuple[str, ...] = ()  # their names in the sample submission, if they differ


def is_number(text: str) -> bool:
    """Return True for a number as tables write it."""
    return re.fullmatch(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", text) is not None


def fold_column(table: Table) -> str | None:
    """Return the column with the fold of each row; None if there is none."""
    return next((name for name in table.columns if re.fullmatch(FOLD_NAME, plain_name(name))), None)


def split_column(table: Table) -> tuple[str | None, list[str]]:
    """Return the column that splits the rows, and the part ("train", "val", "test") of each row; (None, [])
    without one.

    The column is found by its name, else by its values.

    Raises:
        UserError: a column mixes known part names with unknown values.
    """
    for name in table.columns:
        plain = plain_name(name)
        if plain not in SPLIT_NAMES:
            continue
        cells = [cell.strip().lower() for cell in table.column(name)]
        kinds = set(cells)
        if kinds <= PART_OF_VALUE.keys():
            return name, [PART_OF_VALUE[cell] for cell in cells]
        if plain.startswith("is") and kinds <= {*YES, *NO}:
            yes, no = {"isv": ("val", "train"), "ist": ("train", "test")}[plain[:3]]
            if plain == "istest":
                yes, no = "test", "train"
            return name, [yes if cell in YES else no for cell in cells]
        known = kinds & PART_OF_VALUE.keys()
        if known:
            other = sorted(kinds - known)
            raise UserError(
                f"{table.path}: the column {name!r} marks rows as {quoted(sorted(known))} and as "
                f"{quoted(other)}; write train, valid or test there, or rename the column"
            )
    for name in table.columns:
        if _holds_parts(table, name):
            return name, [PART_OF_VALUE[cell.strip().lower()] for cell in table.column(name)]
    return None, []


def _holds_parts(table: Table, name: str) -> bool:
    """Return True for a column of part names only (`Training`, `Testing`), unless its name says that it is a
    label.
    """
    position = table.columns.index(name)
    if (
        plain_name(name) in LABEL_NAMES
        or not table.cells
        or table.cells[0][position].strip().lower() not in PART_OF_VALUE
    ):
        return False
    kinds = {row[position].strip().lower() for row in table.cells}
    return (
        kinds <= PART_OF_VALUE.keys()
        and "train" in (parts := {PART_OF_VALUE[kind] for kind in kinds})
        and len(parts) > 1
    )


def choose_labels(
    table: Table, id_name: str, match: Match, index: ImageIndex, wanted: Wanted, given: str | None
) -> Choice:
    """Choose the label columns of a table with the id column `id_name`; `given`: the user's choice.

    Raises:
        UserError: there is no column `given`.
    """
    if given:
        return Choice((column_called(table, given, LABEL_FLAG),), SURE)
    others = [name for name in table.columns if name != id_name and not _is_split(table, name)]
    if CATEGORY_ID in others and table.delimiter == "":  # JSON
        names = CATEGORY in others and not wanted.numbers
        return Choice((CATEGORY if names else CATEGORY_ID,), SURE)
    if sure := _asked_for(table, others, wanted):
        if len(sure) == 1 and (held := _held_elsewhere(table, sure[0], others, wanted)):
            return Choice((), 0, (sure[0], *held))
        return Choice(tuple(sure), SURE)
    if spelled := _spelled_otherwise(others, wanted.columns):
        return Choice(tuple(spelled), SURE, called=wanted.columns)
    if alike := _alike_called(others, wanted.columns):
        return Choice(tuple(alike), SURE, called=wanted.columns)
    named = [name for name in others if plain_name(name) in LABEL_NAMES]
    if len(named) == 1:
        held = _held_elsewhere(table, named[0], others, wanted)
        if not held:
            return Choice((named[0],), LIKELY)
        if len(held) == 1 and not wanted.numbers:  # texts are no chance
            return Choice((held[0],), LIKELY)
        return Choice((), 0, (named[0], *held))
    if len(named) > 1 and len(held := _holding(table, named, wanted)) == 1:
        return Choice((held[0],), LIKELY)
    if not named:
        binary = [name for name in others if _is_zero_one(table, name)]
        rest = [
            name for name in others if name not in binary and not _names_images(table, name, match, index)
        ]
        if len(binary) > 1 and not rest:
            return Choice(tuple(binary), LIKELY)
        plain = set(map(plain_name, wanted.columns))
        related = [name for name in others if _related(plain_name(name), plain)]
        singular = [name for name in related if f"{plain_name(name)}s" in plain]
        for found in (singular, related, _holding(table, others, wanted)):
            if len(found) == 1:
                return Choice((found[0],), LIKELY)
    candidates = named or _not_ids(table, match, index, others)
    return Choice(tuple(candidates), POSSIBLE) if len(candidates) == 1 else Choice((), 0, tuple(candidates))


def unclear(table: Table, choice: Choice, advice: str = "") -> UserError:
    """Build the error for a label column that cannot be chosen: several candidates, or none."""
    what = "it has no label column" if not choice.candidates else "the label may be in "
    what += ", ".join(
        f"{name!r} ({counted(len(set(table.column(name))), 'value')})" for name in choice.candidates[:8]
    )
    return UserError(
        f"{table.path}: {what}; its columns: {quoted(table.columns)}; {LABEL_FLAG} says which{advice}"
    )


def _asked_for(table: Table, others: Sequence[str], wanted: Wanted) -> list[str]:
    """Return the columns that the sample submission names, or that hold the values that it names."""
    if len(wanted.columns) > 1:
        if set(wanted.columns) <= set(others):
            return list(wanted.columns)
        names = set(wanted.columns)
        positions = {name: table.columns.index(name) for name in others}
        sample = table.cells[:200]
        maybe = [
            name
            for name, position in positions.items()
            if all(row[position].strip() in names for row in sample)
        ]
        held = [
            name
            for name in maybe
            if len(set(table.column(name))) > 1 and {cell.strip() for cell in table.column(name)} <= names
        ]
        return held[:1] or _holding_sets(table, others, names)
    if about := next((names for names in wanted.row_labels if names <= set(others)), None):
        return [name for name in others if name in about]
    if not wanted.columns:
        return []
    same = [name for name in others if name == wanted.columns[0]]
    same = same or [name for name in others if plain_name(name) == plain_name(wanted.columns[0])]
    if len(same) == 1:
        return same
    found = wanted.suffixed([name for name in others if _is_zero_one(table, name)])
    return found or wanted.suffixed([name for name in others if _is_number_column(table, name)])


def _spelled_otherwise(others: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """Return the columns that the sample submission writes in another way (`latitude`, `Latitude`)."""
    called = {plain_name(name): name for name in others}
    found = [called.get(plain_name(column), "") for column in wanted]
    return found if len(wanted) > 1 and all(found) and len(set(found)) == len(found) else []


def _is_split(table: Table, name: str) -> bool:
    plain = plain_name(name)
    return plain in SPLIT_NAMES or re.fullmatch(FOLD_NAME, plain) is not None or _holds_parts(table, name)


def _related(name: str, columns: Collection[str]) -> bool:
    """Return True if the plain name is a part of one of `columns` or holds one; three letters are too few."""
    return any(min(len(name), len(column)) > 3 and (name in column or column in name) for column in columns)


def _holding(table: Table, others: Sequence[str], wanted: Wanted) -> list[str]:
    """Return the columns that hold the sample submission's values, or most of the labels in its cells."""
    telling = {value for value in wanted.values if not is_number(value)}
    cells = {name: {cell.strip() for cell in table.column(name)} for name in others} if telling else {}
    if whole := [name for name in cells if telling <= cells[name]]:
        return whole
    parts = {part for value in telling for part in value.split()}
    written = {name: values | set(map(as_whole, values)) for name, values in cells.items()}
    return [name for name in cells if len(parts & written[name]) * 2 >= len(parts)]


def _holding_sets(table: Table, others: Sequence[str], names: set[str]) -> list[str]:
    """Return the column whose cells hold several labels each and every one of `names`; empty if several
    do.
    """
    found = []
    for name in others:
        cells = {cell.strip() for cell in table.column(name)}
        for mark in SEPARATORS:
            parts = [split_parts(cell, mark) for cell in cells if mark in cell]
            known = {part for several in parts for part in several} | cells
            if parts and names <= known:
                found.append(name)
                break
    return found if len(found) == 1 else []


def _held_elsewhere(table: Table, name: str, others: Sequence[str], wanted: Wanted) -> list[str]:
    """Return the other columns that hold the sample submission's values, where the column `name` holds none.

    Empty for a single number: it may be a placeholder.
    """
    if wanted.numbers and len(wanted.values) < 2:
        return []
    if parts_of(table.column(name)) & parts_of(wanted.values):
        return []
    rest = [other for other in others if other != name]
    if not wanted.numbers:
        return _holding(table, rest, wanted)
    return [other for other in rest if wanted.values <= {cell.strip() for cell in table.column(other)}]


def _alike_called(others: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """Return the columns named like the sample submission's, with one word added to all: `X4_mean` for `X4`.

    If several words are possible, the one that means the value itself is taken; without one, the result is
    empty.
    """
    found: dict[tuple[str, str], list[str]] = {}
    known = set(others) if len(wanted) > 1 else set()
    for name in others:
        if known and wanted[0] in name:
            before, _, behind = name.partition(wanted[0])
            called = [before + column + behind for column in wanted]
            if set(called) <= known:
                found[before, behind] = called
    if len(found) > 1:
        found = {words: names for words, names in found.items() if plain_name("".join(words)) in VALUE_WORDS}
    return next(iter(found.values())) if len(found) == 1 else []


def _is_number_column(table: Table, name: str) -> bool:
    return all(is_number(cell) for cell in table.column(name) if cell.strip())


def _is_zero_one(table: Table, name: str) -> bool:
    position = table.columns.index(name)
    if not are_flags(row[position] for row in table.cells[:50]):
        return False
    return are_flags({row[position] for row in table.cells})


def _names_images(table: Table, name: str, match: Match, index: ImageIndex) -> bool:
    return is_id_name(name) or index.match(table.column(name)[:50]).images == match.images[:50]


def _not_ids(table: Table, match: Match, index: ImageIndex, names: Sequence[str]) -> list[str]:
    """Return possible label columns: they do not name the same images as the ids.

    Columns with a repeated value are preferred.
    """
    candidates = [name for name in names if index.match(table.column(name)[:50]).images != match.images[:50]]
    return [name for name in candidates if len(set(table.column(name))) < len(table.cells)] or candidates
