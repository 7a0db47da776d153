"""run.json: what a run says of itself, typed; and the lines of metrics.jsonl."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, raise_all
from pipeline.files import read_json, read_json_lines
from pipeline.run_names import RECORD
from pipeline.targets.target import Target, multiclass

FORMAT = 1
_NUMBER = (int, float)
# What run.json holds where it holds it (dotted keys); whoever reads it relies on these.
_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("recipe", "recipe.data", "recipe.lora", "counts", "counts.train_per_class", "counts.parameters"), (dict,)),
    **dict.fromkeys(("schedule", "best", "last", "versions", "target", "metric"), (dict,)),
    **dict.fromkeys(("task", "name", "precision", "device", "data", "command", "started", "finished", "commit"), (str,)),
    **dict.fromkeys(("best.metric", "metric.name"), (str,)),
    **dict.fromkeys(("class_names", "changes"), (list,)),
    **dict.fromkeys(("format", "seed", "best.epoch"), (int,)),
    **dict.fromkeys(("best.value", "recipe.lora.rank"), _NUMBER),
}
_IN_WORDS = {dict: "an object", list: "a list", str: "a text", int: "a whole number", float: "a number"}


@dataclass(frozen=True)
class RunRecord:
    """run.json: what a finished run says of itself. What a run of an earlier version did not write yet has a value all the same."""

    path: Path  # of run.json
    values: dict[str, Any]

    @property
    def name(self) -> str:
        """What pages and ledgers call the run."""
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
        """What its labels mean. Runs of earlier versions tell one of several classes.

        Raises:
            UserError: run.json holds a target that this version does not know.
        """
        if "target" in self.values:
            return Target.read(self.values["target"], str(self.path))
        return multiclass(self.class_names)

    @property
    def metric(self) -> str:
        """What it is scored by."""
        return str((self.values.get("metric") or {}).get("name", "accuracy"))

    @property
    def best(self) -> dict[str, Any]:
        """`epoch`, `metric`, `value` of the epoch whose weights are kept; empty where the run cannot tell."""
        best = self.values.get("best")
        return best if isinstance(best, dict) else {}

    @property
    def prior(self) -> list[float] | None:
        """The shares that the model's probabilities stand for, a value for each output, which --prior starts from and an image that cannot be
        read is given; None where the run cannot tell."""
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
    """The record of the run in folder `path`; None where it holds no finished run.

    Raises:
        UserError: run.json is damaged, or was written in another format.
    """
    file = Path(path) / RECORD
    if not file.exists():
        return None
    values = read_values(file)
    if values.get("format") != FORMAT:
        raise UserError(f"{file}: format {values.get('format')!r}, expected {FORMAT}: written by another version of this project")
    if not isinstance(values.get("class_names"), list) or not values["class_names"]:
        raise UserError(f"{file}: names no classes (class_names): it was changed by hand or is damaged; `make weights` or train again")
    return RunRecord(file, values)


def read_values(path: Path) -> dict[str, Any]:
    """The values of a run.json, each of the type that its readers rely on; which of them are there is theirs to see.

    Raises:
        UserError: it is missing, is no JSON object, or holds values of other types; each is named.
    """
    record = read_object(path)
    problems = []
    for key, types in _TYPES.items():
        value = value_at(record, key)
        if value is not None and (not isinstance(value, types) or isinstance(value, bool)):
            problems.append(f"{key}: expected {_IN_WORDS[types[-1]]}, found {value!r:.80}")
    names = record.get("class_names")
    if isinstance(names, list) and not (all(isinstance(name, str) for name in names) and len(set(names)) == len(names)):
        problems.append("class_names: expected different texts")
    per_class = value_at(record, "counts.train_per_class")
    if isinstance(per_class, dict) and not all(type(count) in _NUMBER for count in per_class.values()):
        problems.append("counts.train_per_class: expected a number for each class")
    raise_all(problems, f"{path} was changed by hand or is damaged; `make weights` or train again:")
    return record


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl (or timing.jsonl): `epoch`, and numbers by name; empty when there is no such file.

    Raises:
        UserError: a line is not JSON, has no epoch, or a value is no number.
    """
    rows, problems = read_json_lines(path), []
    for number, row in enumerate(rows, start=1):
        if type(row.get("epoch")) is not int:
            problems.append(f"line {number}: epoch: expected a whole number, found {row.get('epoch')!r:.80}")
        problems += [
            f"line {number}: {name}: expected a number, found {value!r:.80}"
            for name, value in row.items()
            if name != "epoch" and value is not None and type(value) not in _NUMBER
        ]
    raise_all(problems, f"{path} was changed by hand or is damaged; remove these lines, then try again:")
    return rows


def value_at(record: Any, key: str) -> Any:
    """The value at a dotted key; None where there is none."""
    for part in key.split("."):
        record = record.get(part) if isinstance(record, dict) else None
    return record


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        UserError: it is missing, or holds something else.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value
