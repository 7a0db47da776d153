"""Read labels that stand in several columns: zeros and ones, or numbers."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.errors import UserError
from pipeline.targets.decision_case import Case, Read, contradiction
from pipeline.targets.readings import (
    FEW_NUMBERS,
    SEPARATORS,
    are_flags,
    are_fractions_of_one,
    are_numbers,
    are_shares,
    comma_advice,
    has_fraction,
    is_true,
    mark_between,
    number,
)
from pipeline.targets.target import Target
from pipeline.wording import counted, listed, quoted

TELLING_ROWS = 10  # in fewer rows a number may be 0 or 1 by chance


def of_columns(case: Case) -> Read:
    """Read labels in several columns: zeros and ones, or numbers.

    Raises:
        UserError: a cell is not a number, two readings remain, or a flag contradicts the data.
    """
    labels = case.labels
    if case.asked.positive_class:
        named = ",".join(case.asked.positive_class)
        raise UserError(
            f"--positive-class {named}: it is for labels in one column, but {labels.where} holds "
            f"{counted(len(labels.columns), 'column')} ({listed(labels.columns)}): leave it out, or name one "
            "column: --set data.label_column=NAME"
        )
    cells = [cell for row in labels.cells for cell in row if cell.strip()]  # of several numbers some may miss
    columns = counted(len(labels.columns), "column")
    if not are_numbers(cells) and not are_flags(cells):
        bad = next(cell for cell in cells if number(cell) is None)
        other = "; if only one column is the label: --set data.label_column=NAME"
        raise UserError(
            f"{labels.where}: {columns} ({listed(labels.columns)}) hold {bad!r} where 0, 1 or a number is "
            f"expected{comma_advice([bad]) or other}"
        )
    if not are_flags(cells) or not any(
        case.may_be(kind) for kind in ("multiclass", "multilabel", "ordinal", "binary")
    ):
        return _numbers_in_columns(case, cells)
    chosen = [
        [name for name, cell in zip(labels.columns, row, strict=True) if is_true(cell)]
        for row in labels.cells
    ]
    one_each = all(len(names) == 1 for names in chosen)
    if one_each and case.may_be("multiclass"):
        return (
            Target("multiclass", labels.columns),
            [names[0] for names in chosen],
            f"one of {columns} is 1 in every row",
            [],
        )
    if not case.may_be("multilabel"):
        raise UserError(
            f"{labels.where}: {columns} of 0 and 1 where not every row has exactly one 1 are several labels "
            f"per image; {contradiction(case)}"
        )
    separator = _separator_for(labels.columns, case)
    target = Target(
        "multilabel", labels.columns, separator=separator, may_be_empty=any(not names for names in chosen)
    )
    return target, [separator.join(names) for names in chosen], f"{columns} of 0 and 1", []


def _numbers_in_columns(case: Case, cells: Sequence[str]) -> Read:
    labels = case.labels
    if are_shares(cells) and case.is_open:
        raise case.ambiguous(
            f"{counted(len(labels.columns), 'column')} of numbers between 0 and 1",
            "numbers, scored by their distance: --metric rmse (or mae, r2)",
            "shares of labels: training on them is not supported; round them to 0 and 1 in the table, then "
            "--target multilabel",
        )
    whole = not has_fraction(cells)
    sample_cells = [cell for row in (case.sample.cells if case.sample else ()) for cell in row]
    values = sorted(set(cells), key=float)
    if case.is_open and whole and len(values) <= FEW_NUMBERS and are_fractions_of_one(sample_cells):
        shown = next(cell for cell in sample_cells if has_fraction([cell]))
        other = quoted([value for value in values if not are_flags([value])])
        raise case.ambiguous(
            f"{counted(len(labels.columns), 'column')} ({listed(labels.columns)}) of {quoted(values)}, and "
            f"the sample holds {shown}: probabilities or numbers",
            f"a probability of each label is scored: write 0 or 1 in the table in place of {other} (not "
            "known: as the competition's page says), then --metric roc_auc or log_loss",
            "numbers are scored by their distance: --metric rmse (or mae, r2)",
        )
    flags = [
        name
        for name, column in zip(labels.columns, zip(*labels.cells, strict=True), strict=True)
        if are_flags(cell for cell in column if cell.strip()) and len({*column, ""}) > 2
    ]
    if case.is_open and flags and len(labels.cells) >= TELLING_ROWS:
        rest = [name for name in labels.columns if name not in flags]
        raise case.ambiguous(
            f"{listed(flags)} {'holds' if len(flags) == 1 else 'hold'} only 0 and 1, beside numbers in "
            f"{listed(rest)}: a class and a number are different questions",
            "all are numbers, scored by their distance: --metric rmse (or mae, r2)",
            "one is a class or a probability: train one column at a time: --set data.label_column=NAME and a "
            "sample submission with only that column",
        )
    if case.is_open and whole and not has_fraction(sample_cells):
        raise case.ambiguous(
            f"{counted(len(labels.columns), 'column')} of whole numbers ({listed(labels.columns)})",
            "numbers (counts, sizes), scored by their distance: --metric rmse (or mae, r2)",
            "the number of a class in each column: several classes per image are not supported; train one "
            "column at a time: --set data.label_column=NAME and a sample submission with only that column",
        )
    if not case.may_be("continuous"):
        found = next(cell for cell in cells if not are_flags([cell]))
        raise UserError(
            f"{labels.where}: {found!r} where 0 or 1 is expected: write 0 or 1 in the table; or "
            f"{contradiction(case)}"
        )
    separator = "|"
    return (
        Target("continuous", labels.columns, separator=separator),
        [separator.join(row) for row in labels.cells],
        f"{counted(len(labels.columns), 'column')} of numbers",
        [],
    )


def _separator_for(names: Sequence[str], case: Case) -> str:
    """Return the separator of a file with all labels in one cell: the one that was set, else the sample's.

    Without such a file it is a space or another mark that no name contains, and is only used inside.

    Raises:
        UserError: the sample has one column, but no cell shows the mark between labels.
    """
    if case.asked.separator is not None:
        return case.asked.separator
    if case.sample is not None and case.one_column and not case.needs("probabilities"):
        if mark := mark_between(case.sample_cells, names):
            return mark
        column, shown = case.sample.columns[0], quoted(dict.fromkeys(case.sample_cells))
        raise case.ambiguous(
            f"several labels per image ({listed(names)}), but the one column {column!r} of the sample "
            f"submission holds {shown or 'nothing'}: no cell shows how several labels are written",
            "all labels in one cell: write two of them with the mark between them into a cell of the sample, "
            'or separator: " " into competition.yaml',
            "only one of these columns is scored: --set data.label_column=NAME",
        )
    return next(mark for mark in (*SEPARATORS, "/", "\t", "\n") if not any(mark in name for name in names))
