"""Read the files of a run folder, finished or not."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError, raise_all
from pipeline.files import read_array, read_json_lines
from pipeline.run_names import (
    DISAGREEMENT,
    METRICS,
    RECORD,
    SCORES,
    START,
    THUMBNAILS,
    TIMING,
    VAL_COLUMNS,
    VAL_TABLE,
    VAL_VALUES,
)
from pipeline.run_record import NEWEST, SCORES_SHAPE, read_metrics, read_values
from pipeline.shapes import TEXT, Kind, differences_from, read_shaped
from pipeline.tables import load_table, restored
from pipeline.targets.metrics import Metric, find_metric
from pipeline.targets.target import Target, multiclass
from pipeline.wording import numbered

if TYPE_CHECKING:
    import numpy as np

# score counted during training; others: accuracy
TRAINING_SCORES = {"multilabel": "label_accuracy", "continuous": "mae"}
JPEG = Kind(
    "a JPEG in base64",
    lambda value: isinstance(value, str) and re.fullmatch("[A-Za-z0-9+/=]+", value) is not None,
)
THUMBNAIL = {"use": TEXT, "label": TEXT, "path": TEXT, "jpeg": JPEG}


@dataclass(frozen=True)
class RunFiles:
    """The content of a run folder; empty where a file is missing."""

    path: Path
    record: dict[str, Any]  # run.json
    metrics: list[dict[str, Any]]  # metrics.jsonl, one entry per epoch
    timing: list[dict[str, Any]]
    scores: dict[str, Any]
    start: dict[str, Any]  # state/start.json, which exists before run.json
    images: bool = True  # whether its page shows images of the data

    @property
    def rows_are(self) -> str:
        """The noun for rows: "images" or "questions"."""
        return "questions" if self.told.get("recipe", {}).get("task") == "vqa" else "images"

    @property
    def checked(self) -> str:
        """The kind of the scored rows: "out-of-fold" for a run of folds, else "validation"."""
        return "out-of-fold" if self.record.get("kind") == "folds" else "validation"

    @property
    def best(self) -> dict[str, Any] | None:
        """`epoch`, `metric` and `value` of the best epoch; None without validation.

        Before run.json exists, they are computed from metrics.jsonl.
        """
        if self.record:
            best = {"epoch": None, **(self.record.get("best") or {})}
            return best if str(best.get("metric")).startswith("val_") else None
        # The rule of the engine: the competition's metric, or the loss if that is undefined on the validation
        # rows.
        for key, sign in (
            (f"val_{self.metric.name}", 1 if self.metric.higher_is_better else -1),
            ("val_loss", -1),
        ):
            scored = [row for row in self.metrics if row.get(key) is not None]
            if scored and (self.told.get("keep") or {}).get("rule") in NEWEST:
                return {
                    "epoch": scored[-1]["epoch"],
                    "metric": key,
                    "value": scored[-1][key],
                    **self.told["keep"],
                }
            if scored:
                best = max(scored, key=lambda row: sign * row[key])  # the first of equal values
                return {"epoch": best["epoch"], "metric": key, "value": best[key]}
        return None

    @property
    def told(self) -> dict[str, Any]:
        """The run's record: run.json, or until that exists the settings in state/start.json."""
        if self.record or not self.start:
            return self.record
        recipe = self.start.get("recipe", {})
        return self.start | {key: recipe[key] for key in ("task", "name", "seed") if key in recipe}

    @cached_property
    def target(self) -> Target:
        """The target of the labels; multiclass if the run does not store one.

        Raises:
            UserError: the target in run.json is damaged.
        """
        record = self.told.get("target")
        if record is None:
            return multiclass(self.told.get("class_names") or ())
        return Target.read(record, str(self.path / RECORD))

    @cached_property
    def metric(self) -> Metric:
        """The competition's metric; accuracy if the run does not store one."""
        record = self.told.get("metric") or {"name": "accuracy"}
        try:
            return find_metric(record["name"])
        except UserError:  # from another version of this project: only name and direction are needed here
            name = str(record["name"])
            words, higher = name.replace("_", " "), bool(record.get("higher_is_better", True))
            return Metric(name, higher, "labels", (self.target.kind,), words, lambda *_: lambda *_: None)

    @property
    def training_score(self) -> str:
        """The name of the score counted during training: accuracy, label_accuracy or mae."""
        return TRAINING_SCORES.get(self.target.kind, "accuracy")

    @property
    def schedule(self) -> dict[str, Any] | None:
        """The learning rate schedule, from run.json or state/start.json; None if it is not recorded."""
        return self.told.get("schedule")

    @property
    def kept_epoch(self) -> dict[str, Any]:
        """The metrics of the epoch whose weights are kept: the best, else the last; empty without epochs.

        For a soup (a mean of several epochs' weights) its own scores are used.
        """
        best = self.best
        chosen = [row for row in self.metrics if best and row["epoch"] == best["epoch"]] or self.metrics[-1:]
        soup = (best or {}).get("soup") or {}
        return {**chosen[0], **soup.get("scores", {})} if chosen else {}

    @cached_property
    def thumbnails(self) -> list[dict[str, str]]:
        """The lines of thumbnails.jsonl: `use` (sample or mistake), `label`, `path`, `jpeg` (base64).

        Raises:
            UserError: thumbnails.jsonl is damaged.
        """
        return read_thumbnails(self.path)

    @cached_property
    def predictions(self) -> list[dict[str, str]]:
        """The rows of val_predictions.csv as text; empty without the file.

        Raises:
            UserError: the file is broken, or a column is missing.
        """
        path = self.path / VAL_TABLE
        if not path.exists():
            return []
        table = load_table(path)
        if missing := [column for column in VAL_COLUMNS if column not in table.columns]:
            raise UserError(
                f"{path} has no column {', '.join(missing)}; its columns should be {', '.join(VAL_COLUMNS)}"
            )
        rows = [dict(zip(table.columns, map(restored, row), strict=True)) for row in table.cells]
        one_of_several = self.target.is_choice or self.target.kind == "binary"
        bad = [
            line
            for line, row in zip(table.lines, rows, strict=True)
            if not (_is_share(row["confidence"]) if row["confidence"] else not one_of_several)
        ]
        if bad:
            or_empty = "" if one_of_several else ", or an empty cell"
            raise UserError(
                f"{path}: {numbered(bad)}: confidence: expected a number from 0 to 1{or_empty}; it is damaged"
            )
        return rows

    @property
    def ids_of_several(self) -> int | None:
        """The number of scored ids if some have several images, which the score counts once; else None."""
        ids = len({row["id"] for row in self.predictions})
        return ids if ids < len(self.predictions) else None

    @cached_property
    def values(self) -> np.ndarray | None:
        """(num_val, O) float32 predictions in the order of val_predictions.csv; None if missing or of another
        shape.

        Raises:
            UserError: val_probs.npy is damaged.
        """
        path = self.path / VAL_VALUES
        if not path.exists():
            return None
        values = read_array(path, None)
        return values if values.shape == (len(self.predictions), self.target.num_outputs) else None

    @cached_property
    def disagreement(self) -> dict[str, float]:
        """Id -> disagreement of the folds' models (disagreement.csv, from `make suspects`); empty without
        that file.

        Raises:
            UserError: the file is damaged.
        """
        path = self.path / DISAGREEMENT
        if not path.exists():
            return {}
        table = load_table(path)
        try:
            return {
                restored(row_id): float(value)
                for row_id, value in zip(table.column("id"), table.column("disagreement"), strict=True)
            }
        except ValueError as error:
            expected = "expected the columns id and disagreement, with a number in each row"
            raise UserError(
                f"{path} is damaged ({error}): {expected}; `make suspects` writes it again"
            ) from None

    @cached_property
    def truth(self) -> np.ndarray | None:
        """The validation labels as `target.encode` gives them; None without rows, or if a label is
        unknown.
        """
        labels = [row["label"] for row in self.predictions]
        try:
            return self.target.encode(labels) if labels else None
        except UserError:  # an answer that is not a class
            return None


def _defined(values: dict[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}


def _is_share(cell: str) -> bool:
    try:
        return 0 <= float(cell) <= 1
    except ValueError:
        return False


def has_run(run_dir: Path) -> bool:
    """Return True if the folder holds files of a run."""
    return any((Path(run_dir) / name).exists() for name in (RECORD, METRICS, START))


def read_run_files(run_dir: Path, images: bool = True) -> RunFiles:
    """Read the files of the run in `run_dir`, finished or not; `images`: the page may show images of its
    data.

    Raises:
        UserError: there is no run in that folder, or a file is damaged.
    """
    run_dir = Path(run_dir)
    if not has_run(run_dir):
        what = "holds neither run.json nor metrics.jsonl" if run_dir.is_dir() else "does not exist"
        near = sorted(str(found.parent) for found in run_dir.parent.glob("*/run.json"))[:5]
        beside = f" (beside it: {', '.join(near)})" if near else ""
        how = (
            "train a run with `python train.py`, or set its folder: `python -m pipeline.report.page --run "
            "DIR`"
        )
        raise UserError(f"{run_dir} {what}, so there is no run to report{beside}; {how}")
    record, start = (
        read_values(run_dir / name) if (run_dir / name).exists() else {} for name in (RECORD, START)
    )
    how = "remove it, `make score` writes it again"
    scores = read_shaped(run_dir / SCORES, SCORES_SHAPE, how) if (run_dir / SCORES).exists() else {}
    if scores:  # drop metrics that are undefined on these rows
        parts = {part: _defined(values) for part, values in scores.get("parts", {}).items()}
        scores |= {"metrics": _defined(scores["metrics"]), "parts": parts}
    return RunFiles(
        run_dir,
        record,
        read_metrics(run_dir / METRICS),
        read_metrics(run_dir / TIMING),
        scores,
        start,
        images,
    )


def read_thumbnails(run_dir: Path) -> list[dict[str, str]]:
    """Read the lines of thumbnails.jsonl in a run folder; empty without the file.

    Raises:
        UserError: lines are not JSON, or not as `THUMBNAIL`; all of them are listed.
    """
    path = run_dir / THUMBNAILS
    lines = read_json_lines(path)
    problems = [
        f"line {number}: {what}"
        for number, line in enumerate(lines, start=1)
        for what in differences_from(THUMBNAIL, line)
    ]
    raise_all(problems, f"{path} was changed by hand or is damaged; remove these lines, then try again:")
    return lines
