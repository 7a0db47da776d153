"""Read a person's corrections of wrong labels: ids to exclude from training and new labels, each from a
table.

Corrections apply to training rows only. A validation row keeps its given label; otherwise the score would
rise just because hard rows are missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.competition.folders import DataFolder, named_file
from pipeline.competition.ids import ImageIndex
from pipeline.competition.label_table import Labelled
from pipeline.competition.rows import Corrections, Row
from pipeline.errors import UserError, raise_all
from pipeline.files import sha256
from pipeline.tables import Table, load_table, restored
from pipeline.targets.metrics import evaluate, why_undefined
from pipeline.targets.target import Target
from pipeline.wording import capped, counted, listed, nearest, numbered, quoted

if TYPE_CHECKING:
    import numpy as np

EXCLUDE, RELABEL = "exclude", "relabel"
COLUMNS = {EXCLUDE: ("id",), RELABEL: ("id", "label")}
OWN_NAMES = ("exclude.csv", "relabel.csv", "suspects.csv")  # in a data folder; these are not label tables


@dataclass(frozen=True)
class CorrectionFiles:
    """The correction tables: `exclude` with the column id, `relabel` with the columns id and label.

    None: not given.
    """

    exclude: str | None = None
    relabel: str | None = None

    @property
    def named(self) -> dict[str, str]:
        """The files that are given: "exclude" or "relabel" -> path."""
        return {
            what: file
            for what, file in ((EXCLUDE, self.exclude), (RELABEL, self.relabel))
            if file is not None
        }


def read_corrections(
    folder: DataFolder, labelled: Labelled, labels: Sequence[str], target: Target, asked: CorrectionFiles
) -> Corrections:
    """Read the corrections of the labelled rows. `labels`: the rows' labels as texts that `target` takes.

    Raises:
        UserError: a file or column is missing; an id or class is unknown; an id has two new labels or is also
            excluded; a class would lose all rows. All problems are listed.
    """
    if not asked.named:
        return Corrections()
    tables = {what: _load(folder.root, what, file) for what, file in asked.named.items()}
    found, problems = {}, []
    for what, table in tables.items():
        found[what], wrong = _rows_of(table, labelled, folder)
        problems += wrong
    excluded = {row_id for row_ids in found.get(EXCLUDE, []) for row_id in row_ids}
    relabelled: dict[str, str] = {}
    if RELABEL in tables:
        relabelled, wrong = _new_labels(tables[RELABEL], found[RELABEL], labels, target)
        problems += wrong
        both = sorted(excluded & set(relabelled))
        if both:
            problems.append(
                f"{counted(len(both), 'id')} in both files: {quoted(both)}; an id is excluded or gets "
                "another label, not both"
            )
    problems += [] if problems else _emptied(labelled, labels, target, excluded, relabelled)
    raise_all(problems, "the corrections do not fit these data:")
    files = {
        what: {"file": asked.named[what], "sha256": sha256(table.path)} for what, table in tables.items()
    }
    return Corrections(frozenset(excluded), relabelled, files)


def corrected_score(
    corrections: Corrections, target: Target, metric: str, rows: Sequence[Row], values: np.ndarray
) -> dict[str, float]:
    """Score (N, O) float predictions of validation `rows` by the corrected labels: {"corrected_<metric>":
    score}.

    Excluded rows are left out. This score is reported beside the score by the given labels and never replaces
    it. Empty without corrections, or if the metric is undefined on these rows.
    """
    if not corrections:
        return {}
    kept = [number for number, row in enumerate(rows) if row.id not in corrections.excluded]
    truth = target.encode([row.label for row in corrections.applied(rows)])
    if not kept or why_undefined(metric, target, truth) is not None:
        return {}
    value = evaluate(metric, target, truth, values[kept])
    return {} if value is None else {f"corrected_{metric}": value}


def describe_corrections(record: dict[str, Any]) -> str:
    """Return one line that describes the corrections in a run's record."""
    train, val = record["train"], record["val"]
    line = (
        f"labels corrected: {counted(train['excluded'], 'training row')} left out, "
        f"{train['relabelled']:,} with another label"
    )
    touched = val["excluded"] + val["relabelled"]
    if touched:
        return f"{line}; {counted(touched, 'validation row')} in these files keep their given label"
    return line


def _load(root: Path, what: str, file: str) -> Table:
    """Load one correction table; the path is as given or in the data folder."""
    expected = f"a table with the {'columns' if what == RELABEL else 'column'} {' and '.join(COLUMNS[what])}"
    path = named_file(f"data.{what}", file, root, expected)
    table = load_table(path)
    if missing := [name for name in COLUMNS[what] if name not in table.columns]:
        raise UserError(
            f"{path} (data.{what}): no column {listed(missing)}; expected {expected}, found "
            f"{quoted(table.columns)}"
        )
    return table


def _rows_of(table: Table, labelled: Labelled, folder: DataFolder) -> tuple[list[tuple[str, ...]], list[str]]:
    """Return the labelled ids of each row of a table, and the problems.

    Ids may also be written in another form: with an extension, or as a path.
    """
    known = set(labelled.ids)
    cells = [cell.strip() for cell in table.column("id")]
    texts = [cell if cell in known else restored(cell) for cell in cells]
    found = [(text,) if text in known else () for text in texts]
    strange = [text for text, ids in zip(texts, found, strict=True) if not ids]
    if strange:
        id_of = {
            image: row_id
            for row_id, images in zip(labelled.ids, labelled.images, strict=True)
            for image in images
        }
        match = ImageIndex(folder, folder.of_part("train", "val", "")).match(strange)
        meant = iter(
            tuple(dict.fromkeys(id_of[image] for image in images if image in id_of))
            for images in match.images
        )
        found = [ids or next(meant) for ids in found]
    lost = [number for number, ids in enumerate(found) if not ids]
    if lost and len(lost) == len(cells):
        return found, [
            f"{table.path}: none of its {counted(len(cells), 'id')} is a labelled id of {folder.root}, such "
            f"as {texts[0]!r} (ids there: {quoted(labelled.ids[:3])}): this file belongs to another data set"
        ]
    problems = [
        f"{table.path}: row {table.lines[row]}: no labelled id {texts[row]!r}{nearest(texts[row], known)}"
        for row in lost
    ]
    return found, capped(problems, f"ids in {table.path} are unknown")


def _new_labels(
    table: Table, ids: Sequence[tuple[str, ...]], labels: Sequence[str], target: Target
) -> tuple[dict[str, str], list[str]]:
    """Return id -> new label, and the problems."""
    chosen: dict[str, str] = {}
    lines: dict[str, int] = {}
    twice, unknown = [], []
    known = set(labels)
    for row_ids, cell, line in zip(ids, table.column("label"), table.lines, strict=True):
        label = cell if cell in known else restored(cell.strip())
        if problem := _unknown(label, known, target):
            unknown.append(f"{table.path}: row {line}: {problem}")
            continue
        for row_id in row_ids:
            if chosen.get(row_id, label) != label:
                rows = numbered([lines[row_id], line])
                twice.append(
                    f"{table.path}: {rows}: {row_id!r} gets the label {chosen[row_id]!r} and the label "
                    f"{label!r}"
                )
            chosen[row_id], lines[row_id] = label, line
    return chosen, [*capped(unknown, "labels are unknown"), *capped(twice, "ids get two labels")]


def _unknown(label: str, known: set[str], target: Target) -> str | None:
    """Return why a label cannot be trained on; None if it can."""
    if target.kind == "binary":
        return None if label in known else f"no row has the label {label!r}; expected {quoted(sorted(known))}"
    if target.kind == "continuous":
        try:
            target.encode([label])
        except UserError:
            return f"{label!r} is no number"
        return None
    parts = target.parts(label) if target.kind == "multilabel" else [label]
    strange = [part for part in parts if part not in target.names]
    if not strange:
        return None
    noun = {"ordinal": "grade", "multilabel": "label"}.get(target.kind, "class")
    return f"no {noun} {strange[0]!r}{nearest(strange[0], target.names)}; there are {listed(target.names)}"


def _emptied(
    labelled: Labelled, labels: Sequence[str], target: Target, excluded: set[str], relabelled: dict[str, str]
) -> list[str]:
    """Return a problem if classes that had rows would have none."""
    left = [
        relabelled.get(row_id, label)
        for row_id, label in zip(labelled.ids, labels, strict=True)
        if row_id not in excluded
    ]
    if not left:
        return ["every labelled row is excluded: no row is left for training"]
    before, after = target.counts(labels), target.counts(left)
    lost = [name for name, count in before.items() if count and not after[name]]
    return [f"{counted(len(lost), 'class', 'classes')} would lose all rows: {quoted(lost)}"] if lost else []
