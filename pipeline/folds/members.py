"""The members of a blend: runs with predictions of rows that their models did not see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UserError, raise_all
from pipeline.files import read_array
from pipeline.folds.assembly import (
    read_held,
    read_oof_table,
)
from pipeline.folds.team import in_order, refuse_other_members, refuse_ranks, refuse_unfinished
from pipeline.predictions import Predictions
from pipeline.run_names import OOF_TABLE, OOF_VALUES, VAL_TABLE
from pipeline.run_record import RunRecord, read_record
from pipeline.tables import restored
from pipeline.targets.target import Target
from pipeline.wording import counted, quoted

if TYPE_CHECKING:
    import numpy as np

FEWEST_ROWS = 20


@dataclass(frozen=True)
class Member:
    """A run, folds or blend with predictions of rows that its models did not see.

    `labels`: the label of each id. `folds`: the fold of each id, if it has folds.
    """

    path: Path
    record: RunRecord
    unseen: Predictions
    labels: dict[str, str]
    folds: dict[str, str]


def read_member(path: Path) -> Member:
    """Return a run with its predictions of rows that its models did not see.

    Raises:
        UserError: it is not finished, has no validation rows, or lacks one of its models.
    """
    record = read_record(path) if path.is_dir() else None
    if record is None:
        refuse_unfinished(path)
        what = "holds no finished run" if path.is_dir() else "does not exist"
        raise UserError(
            f"{path} {what}: a blend needs trained runs (python train.py) with validation rows or folds"
        )
    if record.task == "vqa":
        raise UserError(f"{path} answers questions: only runs on images with labels can be blended")
    refuse_ranks(path, record)
    target = record.target
    if record.kind == "run":
        if not (path / VAL_TABLE).exists():
            why = "so its weight in a blend cannot be found"
            raise UserError(
                f"{path} has no validation rows, {why}: train it with data.val_fraction, or --folds"
            )
        held = read_held(path)
        views = str(record.data_settings.get("views", "mean"))
        found = Predictions.of_values(held.ids, held.values, target, views)
        return Member(path, record, found, {row[0]: row[2] for row in held.cells}, {})
    refuse_other_members(path, record)
    if not (path / OOF_TABLE).is_file():
        again = (
            "python train.py --folds K --resume writes it again" if record.kind == "folds" else "blend again"
        )
        raise UserError(
            f"{path} lacks {OOF_TABLE} (predictions of rows that its models did not see): restore it, or "
            f"{again}"
        )
    table = read_oof_table(path)
    ids, labels, folds = ([restored(cell) for cell in table.column(name)] for name in ("id", "label", "fold"))
    found = Predictions(tuple(ids), read_array(path / OOF_VALUES, (len(ids), target.num_outputs)), target)
    return Member(
        path, record, found, dict(zip(ids, labels, strict=True)), dict(zip(ids, folds, strict=True))
    )


def check_alike(members: Sequence[Member]) -> None:
    """Check that the members were trained for the same classes, metric and labels.

    Raises:
        UserError: they were not; all differences are listed.
    """
    first, problems = members[0], []
    for other in members[1:]:
        mine, theirs = first.record.target, other.record.target
        if mine.kind != theirs.kind:
            problems.append(
                f"{other.path} predicts {theirs.describe()}, {first.path} predicts {mine.describe()}"
            )
        elif differ := sorted(set(mine.names) ^ set(theirs.names)):
            what = f"classes differ: {quoted(differ)}"
            problems.append(f"{other.path}, compared with {first.path}: {what}")
        elif other.record.metric != first.record.metric:
            problems.append(
                f"{other.path} was trained for {other.record.metric}, {first.path} for {first.record.metric}"
            )
        elif other.folds and first.folds and not first.labels.keys() & other.labels.keys():
            these = ", ".join(
                f"{member.path} has {quoted(list(member.labels)[:2])}" for member in (first, other)
            )
            problems.append(
                f"their out-of-fold rows have no id in common ({these}): they were trained on different data"
            )
        else:
            both = [
                row_id
                for row_id in first.labels
                if row_id in other.labels and first.labels[row_id] != other.labels[row_id]
            ]
            if both:
                problems.append(
                    f"{other.path} and {first.path} were trained with different labels for "
                    f"{counted(len(both), 'row')}: {quoted(both)}"
                )
    raise_all(problems, "these runs are not of one competition:")


def common_rows(members: Sequence[Member]) -> list[str]:
    """Return the ids that no member was trained on, in the order of the first member.

    Raises:
        UserError: there are too few.
    """
    ids = [row_id for row_id in members[0].unseen.ids if all(row_id in member.labels for member in members)]
    if len(ids) < FEWEST_ROWS:
        each = "\n".join(f"  - {member.path}: {counted(len(member.labels), 'row')}" for member in members)
        raise UserError(
            f"only {counted(len(ids), 'row')} were held out by all members; weights need "
            f"{FEWEST_ROWS}:\n{each}\n"
            "train them with --folds, which holds out every row once, or with the same data.split_seed and "
            "data.val_fraction"
        )
    print(
        f"{counted(len(ids), 'row')} that no model saw: "
        + ", ".join(f"{member.path} {len(member.labels):,}" for member in members)
    )
    return ids


def stacked(members: Sequence[Member], ids: Sequence[str], target: Target) -> np.ndarray:
    """Return the members' predictions of `ids` as (M, N, O) float32."""
    import numpy as np

    return np.stack([in_order(member.unseen, target).aligned(ids).values for member in members])
