"""Read run.json, the record of a run, and the lines of metrics.jsonl."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, raise_all
from pipeline.files import read_json_lines
from pipeline.run_names import RECORD
from pipeline.shapes import (
    ANYTHING,
    COUNT,
    FLAG,
    MOMENT,
    NUMBER,
    NUMBER_OR_NONE,
    TEXT,
    WHOLE,
    Each,
    differences_from,
    read_shaped,
)
from pipeline.targets.target import Target, multiclass

FORMAT = 1
NEWEST = ("last", "average")  # rules that keep the newest weights, whatever their score
_SCORES = Each(NUMBER_OR_NONE)
_RECIPE = {
    "data?": Each(ANYTHING),
    "lora?": {"rank?": NUMBER, "targets?": [TEXT]},
    "backbone?": TEXT,
    "text_backbone?": TEXT,
    "task?": TEXT,
    "name?": TEXT,
    "epochs?": WHOLE,
}
_SCHEDULE = {
    **dict.fromkeys(("lr", "end_lr"), NUMBER),
    **dict.fromkeys(("warmup_steps", "total_steps", "steps_per_epoch", "effective_batch_size"), COUNT),
    "name": TEXT,
}
_CORRECTED = {"excluded": COUNT, "relabelled": COUNT}
# The structure of run.json: its readers rely on it. state/start.json holds a part of it, before run.json is
# written.
RUN_SHAPE = {
    **dict.fromkeys(
        (
            *("task?", "name?", "kind?", "precision?", "device?", "data?", "command?", "commit?"),
            *("attention?", "conversion?"),
        ),
        TEXT,
    ),
    **dict.fromkeys(("started?", "finished?"), MOMENT),
    **dict.fromkeys(("format?", "seed?", "processes?", "threads?"), WHOLE),
    "batch_size?": ANYTHING,
    "class_names?": [TEXT],
    "recipe?": _RECIPE,
    "target?": Each(ANYTHING),
    "metric?": {"name": TEXT, "higher_is_better?": FLAG},
    "prior?": [NUMBER],
    "temperature?": NUMBER,
    "mean_probabilities?": [NUMBER],
    "baseline?": {"value": NUMBER, "words": TEXT},
    "keep?": Each(TEXT),
    "schedule?": _SCHEDULE,
    "best?": {
        "epoch?": COUNT,
        "metric": TEXT,
        "value": NUMBER,
        "rule?": TEXT,
        "why?": TEXT,
        "soup?": {"epochs": [COUNT], "scores": _SCORES},
    },
    "last?": _SCORES,
    "versions?": Each(TEXT),
    "changes?": [{"time": MOMENT, "command": TEXT, "changed": [TEXT]}],
    "counts?": {
        **dict.fromkeys(("train?", "val?"), COUNT),
        **dict.fromkeys(("train_per_class?", "parameters?"), Each(COUNT)),
        "train_histograms?": Each({"edges": [NUMBER], "counts": [COUNT]}),
    },
    "members?": Each(NUMBER),
    "folds?": {
        "count": COUNT,
        "rows": COUNT,
        "metric": TEXT,
        "scores": _SCORES,
        "mean?": NUMBER,
        "deviation?": NUMBER,
        "each": [{"fold": COUNT, "rows": COUNT, "value?": NUMBER, "epoch?": COUNT, "scores?": _SCORES}],
        "notes?": [TEXT],
    },
    "blend?": {
        **dict.fromkeys(("rule", "way"), TEXT),
        "rows": COUNT,
        "scores": _SCORES,
        "refused?": Each({"with": NUMBER, "without": NUMBER}),
    },
    "decisions?": [
        {
            "kind": TEXT,
            "numbers": [NUMBER],
            "grades?": [NUMBER],
            "before": NUMBER_OR_NONE,
            "after": NUMBER_OR_NONE,
            "gain": NUMBER,
            "error": NUMBER,
            "used": FLAG,
        }
    ],
    "pseudo_labels?": Each(ANYTHING),
    "corrections?": {
        "files": Each({"file": TEXT}),
        "train": _CORRECTED,
        "val": _CORRECTED,
        "scores?": _SCORES,
    },
}
SCORES_SHAPE = {
    "metrics": _SCORES,
    **dict.fromkeys(("predictions?", "sha256?", "solution?"), TEXT),
    "time?": MOMENT,
    "rows?": COUNT,
    "parts?": Each(_SCORES),
}


@dataclass(frozen=True)
class RunRecord:
    """The record in run.json. Values that runs of earlier versions did not write have defaults."""

    path: Path  # of run.json
    values: dict[str, Any]

    @property
    def name(self) -> str:
        """The name of the run on pages and in ledgers."""
        return str(self.values.get("name") or self.path.parent.name)

    @property
    def kind(self) -> str:
        """`run` (one model), `folds` or `blend`."""
        return str(self.values.get("kind", "run"))

    @property
    def task(self) -> str:
        """`classification` or `vqa`."""
        return str(self.values.get("task", "classification"))

    @property
    def class_names(self) -> tuple[str, ...]:
        """Classes, grades, labels or answers, by index."""
        return tuple(self.values.get("class_names") or ())

    @property
    def target(self) -> Target:
        """The target. Runs of earlier versions predict one of several classes.

        Raises:
            UserError: run.json holds a target that this version does not know.
        """
        if "target" in self.values:
            return Target.read(self.values["target"], str(self.path))
        return multiclass(self.class_names)

    @property
    def metric(self) -> str:
        """The name of the metric."""
        return str((self.values.get("metric") or {}).get("name", "accuracy"))

    @property
    def best(self) -> dict[str, Any]:
        """`epoch`, `metric`, `value` of the epoch whose weights are kept; {} if not known."""
        best = self.values.get("best")
        return best if isinstance(best, dict) else {}

    @property
    def prior(self) -> list[float] | None:
        """The class frequencies that the model's probabilities assume, one value per output.

        None if not known. --prior starts from them, and an image that cannot be read gets them as its
        prediction.
        """
        if "prior" in self.values:
            return [float(value) for value in self.values["prior"]]
        counts = (self.values.get("counts") or {}).get("train_per_class") or {}
        total = sum(counts.values())
        return [counts.get(name, 0) / total for name in self.class_names] if total else None

    @property
    def data_settings(self) -> dict[str, Any]:
        """The recipe's section `data`."""
        return (self.values.get("recipe") or {}).get("data") or {}


def read_record(path: Path) -> RunRecord | None:
    """Return the record of the run in folder `path`; None if it holds no finished run.

    Raises:
        UserError: run.json is damaged, or has another format.
    """
    file = Path(path) / RECORD
    if not file.exists():
        return None
    values = read_values(file)
    if values.get("format") != FORMAT:
        raise UserError(
            f"{file}: format {values.get('format')!r}, expected {FORMAT}: written by another version of this "
            "project"
        )
    if not isinstance(values.get("class_names"), list) or not values["class_names"]:
        raise UserError(
            f"{file}: names no classes (class_names): it was changed by hand or is damaged; `make weights` "
            "or train again"
        )
    record = RunRecord(file, values)
    prior, outputs = values.get("prior"), record.target.num_outputs
    if prior is not None and len(prior) != outputs:
        raise UserError(
            f"{file}: prior: expected {outputs} numbers, one for each output, found {len(prior)}: changed by "
            "hand, or damaged"
        )
    return record


def read_values(path: Path) -> dict[str, Any]:
    """Return the values of a run.json or start.json, without keys that hold null. Keys may be missing.

    Raises:
        UserError: it is missing, not a JSON object, or has values of the wrong kind; each is listed.
    """
    record = read_shaped(path, RUN_SHAPE, "`make weights` or train again")
    names = record.get("class_names") or []
    if len(set(names)) < len(names):
        raise UserError(f"{path} was changed by hand or is damaged: class_names: expected different texts")
    return record


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics.jsonl (or timing.jsonl): `epoch`, and numbers by name.

    [] when there is no such file.

    Raises:
        UserError: a line is not JSON, has no epoch, or a value is not a number.
    """
    rows, problems = read_json_lines(path), []
    for number, row in enumerate(rows, start=1):
        if type(row.get("epoch")) is not int:
            problems.append(f"line {number}: epoch: expected a whole number, found {row.get('epoch')!r:.80}")
        problems += [f"line {number}: {line}" for line in differences_from(_SCORES, {**row, "epoch": None})]
    raise_all(problems, f"{path} was changed by hand or is damaged; remove these lines, then try again:")
    return rows


def value_at(record: Any, key: str) -> Any:
    """Return the value at a dotted key; None if there is none."""
    for part in key.split("."):
        record = record.get(part) if isinstance(record, dict) else None
    return record
