"""Read a run of folds with its data: for every labelled row its label, its fold and its out-of-fold
prediction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.competition.corrections import CorrectionFiles
from pipeline.competition.folders import find_file
from pipeline.competition.layout import read_for_run
from pipeline.competition.rows import Competition, Corrections, Row
from pipeline.errors import UserError, raise_all
from pipeline.files import read_array, sha256
from pipeline.folds.assembly import read_oof_table
from pipeline.run_names import OOF_VALUES
from pipeline.run_record import RunRecord, read_record
from pipeline.tables import restored
from pipeline.targets.target import Target
from pipeline.wording import counted, listed, quoted

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class OutOfFold:
    """The rows of oof.csv and oof.npy: given `labels`, `folds` from 1, `values` (N, O) float32
    predictions. `earlier`: the corrections that the folds were trained with. `notes`: why some of them are
    not known any more.
    """

    path: Path
    record: RunRecord
    data_dir: Path
    ids: tuple[str, ...]
    labels: tuple[str, ...]
    folds: tuple[int, ...]
    values: np.ndarray
    images: Mapping[str, tuple[Row, ...]]  # id -> its images
    earlier: Corrections
    notes: tuple[str, ...]

    @property
    def target(self) -> Target:
        """The target of the labels."""
        return self.record.target

    @property
    def num_folds(self) -> int:
        """Number of folds, and of models."""
        return int(self.record.values["folds"]["count"])


def read_out_of_fold(path: Path, data_dir: Path | None = None) -> OutOfFold:
    """Read the out-of-fold predictions of the run in `path` and check them against the data (`data_dir`, else
    the run's).

    Raises:
        UserError: it is not a run of folds, its files are damaged, or the data have other rows or labels now.
    """
    record = read_record(path) if path.is_dir() else None
    if record is None or record.kind != "folds":
        raise UserError(_no_folds(path, record))
    data_dir = Path(data_dir or record.values.get("data") or "data")
    table = read_oof_table(path)
    ids, labels = (tuple(map(restored, table.column(name))) for name in ("id", "label"))
    folds = tuple(map(int, table.column("fold")))
    values = read_array(path / OOF_VALUES, (len(ids), record.target.num_outputs))
    files, notes = earlier_files(record, data_dir)
    competition = _competition(record, data_dir, files)
    images: dict[str, list[Row]] = {}
    for row in competition.train:
        images.setdefault(row.id, []).append(row)
    _check_same(table.path, data_dir, dict(zip(ids, labels, strict=True)), images)
    images_of = {row_id: tuple(rows) for row_id, rows in images.items()}
    earlier = competition.corrections
    return OutOfFold(path, record, data_dir, ids, labels, folds, values, images_of, earlier, notes)


def earlier_files(record: RunRecord, data_dir: Path) -> tuple[CorrectionFiles, tuple[str, ...]]:
    """Return the tables of corrections that the run was trained with, and a note for each that is lost.

    A table is lost if it is not there any more, or has changed.
    """
    found, notes = {}, []
    for what, entry in (record.values.get("corrections") or {}).get("files", {}).items():
        file = entry["file"]
        path = find_file(file, data_dir)
        if path and sha256(path) == entry.get("sha256"):
            found[what] = str(path)
        else:
            change = "has changed since" if path else "is not there any more"
            notes.append(
                f"these folds were trained with data.{what}={file}, which {change}: its rows are not marked; "
                "bring it back, or decide about them again"
            )
    return CorrectionFiles(**found), tuple(notes)


def _no_folds(path: Path, record: RunRecord | None) -> str:
    what = f"{path} holds no finished run" if record is None else f"{path} is a {record.kind}, not folds"
    return (
        f"{what}: a label must be judged by a model that did not train on it, so every row must be validated "
        "once: python train.py --folds 5 --output runs/folds, then --model runs/folds"
    )


def _competition(record: RunRecord, data_dir: Path, files: CorrectionFiles) -> Competition:
    settings = record.data_settings
    return read_for_run(
        data_dir,
        settings,
        record.target,
        record.metric,
        skip_bad_images=bool(settings.get("skip_bad_images")),
        partial_labels=bool(settings.get("partial_labels")),
        corrected=files,
    )


def _check_same(
    path: Path, data_dir: Path, label_of: dict[str, str], images: Mapping[str, Sequence[Row]]
) -> None:
    foreign = [row_id for row_id in label_of if row_id not in images]
    changed = [
        f"{row_id!r} from {label!r} to {images[row_id][0].label!r}"
        for row_id, label in label_of.items()
        if row_id in images and images[row_id][0].label != label
    ]
    problems = []
    if foreign:
        problems = [
            f"{counted(len(foreign), 'row')} of {len(label_of):,} are not in {data_dir}: {quoted(foreign)}"
        ]
    problems += [f"{counted(len(changed), 'label')} changed since: {listed(changed)}"] if changed else []
    raise_all(
        problems,
        f"{path} is not about the data in {data_dir}; set the right ones with --data DIR, or train the folds "
        "again:",
    )
