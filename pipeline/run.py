"""The run folder: which files it holds, and reading what a run says of itself (format 1) or what a legacy release implies."""

from __future__ import annotations

import platform
import subprocess
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, raise_all
from pipeline.files import read_json, read_json_lines
from pipeline.targets.target import Target, multiclass
from pipeline.unfinished import START, read_kept, resume_command

FORMAT = 1
RECORD = "run.json"  # written last: its presence means that the run is complete
ADAPTER_DIR = "model_lora"
INSTALLING = ".installing"  # lies in a run folder while a release is moved in: until it is gone, nothing there counts
INSTALLED = "release.installed.json"  # what `make weights` installed there, and from where
HEAD_FILE = "head.safetensors"  # of a model with two backbones; otherwise the head is in the backbone's or the adapter's file
_FILES = (
    INSTALLING,
    INSTALLED,
    RECORD,
    "metrics.jsonl",
    "timing.jsonl",
    "val_predictions.csv",
    "val_probs.npy",
    "scores.json",
    "report.html",
    "thumbnails.jsonl",
    "floors.json",
    "folds.csv",
    "oof.csv",
    "oof.npy",
    HEAD_FILE,
)
_FOLDERS = ("figures", "tensorboard", "state", "checkpoints")
_PACKAGES = ("torch", "torchvision", "transformers", "peft", "timm", "accelerate", "safetensors", "numpy", "pillow", "simplejpeg")


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
        """What is predicted for an image that cannot be read, a value for each output; None where the run cannot tell."""
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


@dataclass(frozen=True)
class Run:
    """A finished run or a legacy release: where its weights are, and what it says of itself."""

    path: Path
    backbone_dir: Path  # model_<type>/, loadable by plain from_pretrained
    adapter_dir: Path | None  # model_lora/, loadable by plain PEFT; None after full fine-tuning
    class_names: tuple[str, ...] | None  # None when a legacy release has only LABEL_0..N
    record: RunRecord | None  # None for a legacy release
    text_dir: Path | None = None  # the text backbone's folder, with its tokenizer, where there is one
    unfinished: str | None = None  # of a run that was interrupted: which weights these are, in words

    @property
    def name(self) -> str:
        """The name in its recipe; `legacy release` where there is none."""
        return self.record.name if self.record else "legacy release"

    @property
    def task(self) -> str:
        """`classification` or `vqa`."""
        return self.record.task if self.record else "classification"

    @property
    def target(self) -> Target | None:
        """What its labels mean; None where a release names no classes.

        Raises:
            UserError: run.json holds a target that this version does not know.
        """
        if self.record:
            return self.record.target
        return multiclass(self.class_names) if self.class_names else None

    @property
    def metric(self) -> str:
        """What it is scored by."""
        return self.record.metric if self.record else "accuracy"


def load_run(path: Path) -> Run:
    """The run or release in folder `path`.

    Raises:
        UserError: there is none, it was stopped before any weights were kept or is not wholly installed, its run.json is of another format
            or damaged, its adapter is missing, or it holds more than one backbone.
    """
    path = Path(path)
    how = "`make weights` installs a release, `python train.py` makes one"
    if not path.is_dir():
        raise UserError(f"{path} does not exist: no model to load; {how}")
    if (path / INSTALLING).exists():
        raise UserError(
            f"{path} holds a release that was not wholly installed: `make weights` was interrupted. Run it again; "
            f"what was there before is kept in {path / 'earlier'}"
        )
    folders, text_dirs = backbone_dirs(path)
    if not folders and (record := read_record(path)) and record.kind != "run":
        members = list(record.values.get("members", {}))
        raise UserError(f"{path} is no single model but {record.kind} of {len(members)}: name one of them: {', '.join(members[:5])}")
    if not folders:
        raise UserError(f"{path} holds no model_<type> folder: no model to load; {how}")
    if len(folders) > 1 or len(text_dirs) > 1:
        names = ", ".join(folder.name for folder in (*folders, *text_dirs))
        raise UserError(f"{path} holds more than one backbone ({names}): keep one, or name another folder with --model")
    config = _read_object(folders[0] / "config.json")
    record, unfinished = _read_unfinished(path) if is_unfinished(path) else (read_record(path), None)
    adapter_dir = path / ADAPTER_DIR
    rank = _at(record.values, "recipe.lora.rank") if record else 0
    if rank and not adapter_dir.is_dir():
        raise UserError(
            f"{path} was trained with an adapter (lora.rank {rank}), and {adapter_dir} is missing: "
            "copy the whole folder again; without it the backbone alone would guess"
        )
    class_names = record.class_names if record else _names_from(config)
    text_dir = text_dirs[0] if text_dirs else None
    return Run(path, folders[0], adapter_dir if adapter_dir.is_dir() else None, class_names, record, text_dir, unfinished)


def known_record(path: Path) -> RunRecord | None:
    """What the run in folder `path` says of itself, finished or interrupted; None where it holds none.

    Raises:
        UserError: its files are damaged, or it was stopped before any weights were kept.
    """
    return _read_unfinished(Path(path))[0] if is_unfinished(path) else read_record(path)


def _read_unfinished(path: Path) -> tuple[RunRecord, str]:
    """What an interrupted run says of itself, and which weights lie in its folder."""
    if not (path / START).is_file():
        raise UserError(f"{path} holds an unfinished run that was stopped before it began: go on with `{resume_command(path)}`")
    values = read_values(path / START)
    recipe = values.get("recipe") or {}
    best, words = read_kept(path, recipe.get("epochs"))
    return RunRecord(path / START, values | {key: recipe[key] for key in ("task", "name", "seed") if key in recipe} | {"best": best}), words


def read_values(path: Path) -> dict[str, Any]:
    """The values of a run.json, each of the type that its readers rely on; which of them are there is theirs to see.

    Raises:
        UserError: it is missing, is no JSON object, or holds values of other types; each is named.
    """
    record = _read_object(path)
    problems = []
    for key, types in _TYPES.items():
        value = _at(record, key)
        if value is not None and (not isinstance(value, types) or isinstance(value, bool)):
            problems.append(f"{key}: expected {_IN_WORDS[types[-1]]}, found {value!r:.80}")
    names = record.get("class_names")
    if isinstance(names, list) and not (all(isinstance(name, str) for name in names) and len(set(names)) == len(names)):
        problems.append("class_names: expected different texts")
    per_class = _at(record, "counts.train_per_class")
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


def _at(record: Any, key: str) -> Any:
    """The value at a dotted key; None where there is none."""
    for part in key.split("."):
        record = record.get(part) if isinstance(record, dict) else None
    return record


def model_dirs(path: Path) -> list[Path]:
    """The `model_*` folders in `path`, by name."""
    return sorted(folder for folder in Path(path).glob("model_*") if folder.is_dir())


def backbone_dirs(path: Path) -> tuple[list[Path], list[Path]]:
    """The folders of image backbones in `path`, and those of text backbones: these hold a tokenizer. One or none of each, if all is well."""
    folders = [folder for folder in model_dirs(path) if folder.name != ADAPTER_DIR]
    texts = [folder for folder in folders if (folder / "tokenizer_config.json").exists()]
    return [folder for folder in folders if folder not in texts], texts


def run_entries(path: Path) -> list[Path]:
    """What belongs to the run in folder `path`: existing files and folders, nothing a user may have put beside them."""
    path = Path(path)
    kept = [file for ending in ("csv", "npy", "json") for file in sorted(path.glob(f"test*.{ending}")) if _is_kept(file)]
    folds = sorted(folder for folder in path.glob("fold-*") if (folder / RECORD).exists() or (folder / "state").is_dir())
    return [*model_dirs(path), *folds, *kept, *(path / name for name in (*_FILES, *_FOLDERS) if (path / name).exists())]


def _is_kept(file: Path) -> bool:
    """True for test predictions that inference.py keeps: test.npy, test-flip.npy; a file of that name alone may be somebody's own."""
    return all(file.with_suffix(ending).exists() for ending in (".csv", ".npy"))


def is_unfinished(path: Path) -> bool:
    """True when the folder holds a run that was started and has no run.json yet."""
    return (Path(path) / "state").is_dir() and not (Path(path) / RECORD).exists()


def environment() -> dict[str, Any]:
    """What a run records of where it was made: `versions`, `commit` (None outside a checkout)."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "absent"
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = None
    return {"versions": versions, "commit": commit}


def now() -> str:
    """The local time as ISO 8601 with its offset, to the second."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def _read_object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def _names_from(config: dict[str, Any]) -> tuple[str, ...] | None:
    """Class names by index from a config's id2label; None when they are only LABEL_0..N, which name nothing."""
    try:
        id2label = {int(index): str(name) for index, name in (config.get("id2label") or {}).items()}
    except (ValueError, AttributeError):  # not numbered, or no mapping: cannot name outputs
        return None
    if not id2label or sorted(id2label) != list(range(len(id2label))):
        return None
    names = tuple(id2label[index] for index in range(len(id2label)))
    return None if names == tuple(f"LABEL_{index}" for index in range(len(names))) else names
