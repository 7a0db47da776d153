"""`data.pseudo_labels`: test images that a first round of models is sure of become training rows.

They are training rows only. Validation rows stay labelled ones. A first-round model may label test images for
a run only if it did not train on any validation row of that run: otherwise its labels would carry what it
learnt from these rows, and the validation score would be too good. So fold k takes its labels from fold k of
a first round with the same folds, and a single run from a run with the same split. A run without validation
rows may take the mean of all models.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.competition.rows import Competition, Row, images_digest
from pipeline.errors import UserError, raise_all
from pipeline.files import sha256
from pipeline.predictions import Predictions
from pipeline.run_names import TEST_STEM, VAL_TABLE
from pipeline.run_record import RunRecord, read_record
from pipeline.shapes import read_object
from pipeline.tables import load_table, restored
from pipeline.targets.target import Target
from pipeline.wording import capped, counted, listed, nearest, quoted

if TYPE_CHECKING:
    import numpy as np

KEY = "data.pseudo_labels"


@dataclass(frozen=True)
class PseudoLabels:
    """Test images with the label of the first round, and what run.json keeps of them. Empty: none."""

    rows: tuple[Row, ...] = ()
    record: dict[str, Any] = field(default_factory=dict)

    def describe(self) -> str:
        """Return one line on where the rows come from."""
        found = self.record
        by = (
            f"predicted by {listed(found['models'])} with at least {found['threshold']:g}"
            if "models" in found
            else found["source"]
        )
        return f"pseudo labels: {counted(found['rows'], 'test image')} of {found['of']:,} also train, {by}"


def read_pseudo_labels(
    source: str | None, threshold: float, competition: Competition, val_ids: Collection[str]
) -> PseudoLabels:
    """Return the test images that are also trained on.

    `source`: the folder of a finished run or of folds, or a CSV file with the columns id and label.
    `val_ids`: validation rows of the run that is about to train.

    Raises:
        UserError: another competition, other classes, test images missing or changed, predictions not there,
            every model has trained on validation rows, or no image reaches the threshold.
    """
    if source is None:
        return PseudoLabels()
    if competition.target is None or not competition.test:
        raise UserError(
            f"{KEY} {source}: {competition.root} has no test images, which would get the labels; leave it out"
        )
    ids = list(dict.fromkeys(row.id for row in competition.test))
    if Path(source).is_dir():
        chosen, more = _by_models(Path(source), threshold, competition, val_ids)
    elif Path(source).is_file():
        chosen, more = _of_table(Path(source), competition.target, ids), {"sha256": sha256(Path(source))}
    else:
        raise UserError(
            f"{KEY}: {source} does not exist; expected the folder of a finished run, or a CSV file with the "
            "columns id and label"
        )
    rows = tuple(replace(row, label=chosen[row.id]) for row in competition.test if row.id in chosen)
    per_class = dict(sorted(Counter(chosen.values()).items()))
    return PseudoLabels(
        rows,
        {"source": source, "rows": len(rows), "of": len(competition.test), "per_class": per_class, **more},
    )


def _by_models(
    folder: Path, threshold: float, competition: Competition, val_ids: Collection[str]
) -> tuple[dict[str, str], dict[str, Any]]:
    """Return id -> label of the test images with a probability of at least `threshold`, and facts for
    run.json.
    """
    members = _members(folder)
    unseen = [member for member in members if set(val_ids) <= _validated(member)]
    if not unseen:
        all_rows = ", or train on all rows with --set data.val_fraction=0" if not competition.of_fold else ""
        raise UserError(
            f"{KEY} {folder}: every model there has trained on validation rows of this run, whose score "
            "would be too good. Use the same split or folds as in the first round (data.val_fraction, "
            f"data.split_seed or seed, --folds){all_rows}"
        )
    target, digest = competition.target, images_digest(competition.test)
    found = [_kept(member, target, digest, folder, competition.root) for member in unseen]
    values: np.ndarray = sum(found) / len(found)
    ids = list(dict.fromkeys(row.id for row in competition.test))
    sure, best = values.max(axis=1), values.argmax(axis=1)
    chosen = {row_id: target.names[best[row]] for row, row_id in enumerate(ids) if sure[row] >= threshold}
    if not chosen:
        raise UserError(
            f"{KEY} {folder}: no test image has a probability of at least {threshold:g}; the largest is "
            f"{sure.max():.4f}: lower data.pseudo_threshold, or leave both out"
        )
    return chosen, {"threshold": threshold, "models": [str(member) for member in unseen]}


def _members(folder: Path) -> list[Path]:
    """Return the folders of the single models."""
    record = read_record(folder)
    if record is None:
        raise UserError(f"{KEY} {folder}: no finished run there (run.json is missing)")
    if record.kind == "run":
        return [folder]
    if record.kind != "folds":
        raise UserError(
            f"{KEY} {folder}: a {record.kind} is not supported; name one run, or one run of folds"
        )
    return [folder / name for name in record.values["members"]]


def _validated(member: Path) -> set[str]:
    """Return the ids of the validation rows of a finished run: the rows that it has not trained on."""
    path = member / VAL_TABLE
    return {restored(cell) for cell in load_table(path).column("id")} if path.exists() else set()


def _kept(member: Path, target: Target, digest: str, folder: Path, root: Path) -> np.ndarray:
    """Return the kept test predictions of a run: (N, O) in the order of `target`."""
    record = read_record(member)
    if record is None:
        raise UserError(f"{KEY} {folder}: {member} holds no finished run")
    _check_target(record, target, member)
    again = shlex.join(["python", "inference.py", "--model", str(folder), "--data", str(root)])
    path = member / f"{TEST_STEM}.json"
    if not path.exists():
        raise UserError(
            f"{KEY} {folder}: {member} has no predictions of the test images; make them with: {again}"
        )
    if (read_object(path).get("made_with") or {}).get("images") != digest:
        raise UserError(
            f"{KEY} {folder}: {member} predicted other test images than those of {root}: another "
            f"competition, or images that were changed, added or removed since; predict again with: {again}"
        )
    predictions = Predictions.load(member / TEST_STEM, record.target)
    return predictions.values[:, [record.target.names.index(name) for name in target.names]]


def _check_target(record: RunRecord, target: Target, member: Path) -> None:
    found = record.target
    if found.kind != target.kind:
        raise UserError(
            f"{KEY}: {member} predicts {found.describe()}, and this competition has {target.describe()}"
        )
    lacks, more = sorted(set(target.names) - set(found.names)), sorted(set(found.names) - set(target.names))
    problems = [f"it lacks {quoted(lacks)}"] if lacks else []
    problems += [f"it has also {quoted(more)}"] if more else []
    raise_all(problems, f"{KEY}: {member} knows other classes than this competition:")


def _of_table(path: Path, target: Target, ids: Collection[str]) -> dict[str, str]:
    """Return id -> label from a CSV file. Every problem is reported at once."""
    table = load_table(path)
    if missing := [name for name in ("id", "label") if name not in table.columns]:
        raise UserError(
            f"{path} ({KEY}): no column {listed(missing)}; expected the columns id and label, found "
            f"{quoted(table.columns)}"
        )
    known, names, chosen, problems = set(ids), set(target.names), {}, []
    for line, cell, label in zip(table.lines, table.column("id"), table.column("label"), strict=True):
        row_id = cell if cell in known else restored(cell.strip())
        name = label if label in names else restored(label.strip())
        if row_id not in known:
            problems.append(
                f"{path}: row {line}: no test image has the id {row_id!r}{nearest(row_id, known)}"
            )
        elif name not in names:
            problems.append(f"{path}: row {line}: no class {name!r}{nearest(name, target.names)}")
        elif chosen.get(row_id, name) != name:
            problems.append(
                f"{path}: row {line}: {row_id!r} has the label {chosen[row_id]!r} in an earlier row, and "
                f"{name!r} here"
            )
        else:
            chosen[row_id] = name
    problems += [] if chosen or problems else [f"{path}: no rows"]
    raise_all(
        capped(problems, f"rows of {path} are wrong"), f"{KEY}: the labels do not fit these test images:"
    )
    return chosen
