"""Labels that the sample submission calls otherwise (`3` for `rose`), translated by a table of both names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from pipeline.competition.folders import plain_name
from pipeline.competition.label_columns import LABEL_NAMES
from pipeline.competition.sources import Source, headerless
from pipeline.competition.spelling import parts_of
from pipeline.tables import Table
from pipeline.targets.evidence import LabelEvidence
from pipeline.targets.readings import are_numbers

# Ends of a column name
NUMBER_NAMES = ("id", "index", "idx", "number", "num", "no", "code", "label", "class")


def translated(
    evidence: LabelEvidence, asked: Iterable[str], sources: Sequence[Source], numbers: bool
) -> tuple[LabelEvidence, str]:
    """Call the labels as `asked` does (the sample submission, or a model's names), with a note.

    A table of classes is needed: a row for each class, every label in one column, every name that is asked in
    another. Labels stay as they are (note "") if one of them is asked, if no table or several tables that
    disagree translate them, and numbers are never made other numbers. `numbers`: names may become numbers.
    """
    names = {text.strip() for text in evidence.texts or evidence.columns}
    wanted = {text.strip() for text in asked if text.strip()}
    if not names or not wanted or (parts_of(names) & parts_of(wanted)):
        return evidence, ""
    if are_numbers(wanted) and (not numbers or are_numbers(names) or len(names) < 3):
        return evidence, ""  # of two classes a number may be a probability
    found: dict[tuple[tuple[str, str], ...], str] = {}
    for source in sources:
        table = headerless(source.table) if names & set(source.table.columns) else source.table
        for new, columns in _translations(table, names, wanted):
            found.setdefault(tuple(sorted(new.items())), f"{source.name} ({columns})")
    if len(found) != 1:
        return evidence, ""
    pairs, where = next(iter(found.items()))
    new = dict(pairs)
    note = f"labels are called as in the sample submission: {pairs[0][0]!r} is {pairs[0][1]!r}, by {where}"
    texts, columns = (
        tuple(new[text.strip()] for text in each) for each in (evidence.texts, evidence.columns)
    )
    return replace(evidence, texts=texts, columns=columns), note


def _translations(table: Table, names: set[str], wanted: set[str]) -> Iterable[tuple[dict[str, str], str]]:
    """Yield what a table makes of `names`, and the columns, for each two columns that name classes."""
    if len(table.cells) < len(names):
        return
    columns = {name: [cell.strip() for cell in table.column(name)] for name in table.columns}
    each = {name: set(cells) for name, cells in columns.items() if len(set(cells)) == len(cells)}
    for one in (name for name, cells in each.items() if names <= cells):
        for other in (name for name, cells in each.items() if name != one and _all_in(wanted, cells)):
            if are_numbers(each[other]) and not _numbers_classes(other, each[other]):
                continue  # a count of images, say
            new = dict(zip(columns[one], columns[other], strict=True))
            yield {name: new[name] for name in names}, f"{one} -> {other}"


def _all_in(wanted: set[str], cells: set[str]) -> bool:
    """Return True if each of `wanted` is one of the cells, or several with spaces between them."""
    return wanted <= cells or all(set(text.split()) <= cells for text in wanted)


def _numbers_classes(column: str, cells: set[str]) -> bool:
    plain = plain_name(column)
    counted = any(cells == {str(start + place) for place in range(len(cells))} for start in (0, 1))
    return counted or plain in LABEL_NAMES or plain.endswith(NUMBER_NAMES)
