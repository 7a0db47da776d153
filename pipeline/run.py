"""The run folder: which files it holds, and reading what a run says of itself (format 1) or what a legacy release implies."""

from __future__ import annotations

import platform
import shlex
import subprocess
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.run_names import (
    ADAPTER_DIR,
    COPIES,
    COPY_NAME,
    FLOORS,
    FOLDS_FILE,
    HEAD_FILE,
    INSTALLED,
    INSTALLING,
    METRICS,
    OOF_TABLE,
    OOF_VALUES,
    PAGE,
    RECORD,
    SCORES,
    START,
    THUMBNAILS,
    TIMING,
    VAL_TABLE,
    VAL_VALUES,
)
from pipeline.run_record import RunRecord, read_metrics, read_record, read_values, value_at
from pipeline.shapes import read_object
from pipeline.targets.target import Target, multiclass
from pipeline.unfinished import planned_epochs, read_kept, resume_command

_FILES = (
    INSTALLING,
    INSTALLED,
    RECORD,
    METRICS,
    TIMING,
    VAL_TABLE,
    VAL_VALUES,
    SCORES,
    PAGE,
    THUMBNAILS,
    FLOORS,
    FOLDS_FILE,
    OOF_TABLE,
    OOF_VALUES,
    HEAD_FILE,
)
_FOLDERS = ("figures", "tensorboard", "state", COPIES)
_PACKAGES = ("torch", "torchvision", "transformers", "peft", "timm", "accelerate", "safetensors", "numpy", "pillow", "simplejpeg")


@dataclass(frozen=True)
class Run:
    """A finished run or a legacy release: where its weights are, and what it says of itself."""

    path: Path
    backbone_dir: Path  # model_<type>/, loadable by plain from_pretrained
    adapter_dir: Path | None  # model_lora/, loadable by plain PEFT; None after full fine-tuning
    class_names: tuple[str, ...] | None  # None when a legacy release has only LABEL_0..N
    record: RunRecord | None  # None for a legacy release
    text_dir: Path | None = None  # the text backbone's folder, with its tokenizer, where there is one
    unfinished: str | None = None  # which weights these are, in words: of a run that was interrupted, or of one of its epochs

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
    """The run or release in folder `path`; or of a run one epoch, which `checkpoint.keep_every` kept: its base and record are the run's.

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
    whole = _run_of_copy(path)
    folders, text_dirs = backbone_dirs(path)
    if whole is not None and not folders:
        folders, text_dirs = backbone_dirs(whole)
    if not folders and (record := read_record(path)) and record.kind != "run":
        members = list(record.values.get("members", {}))
        raise UserError(f"{path} is no single model but {record.kind} of {len(members)}: name one of them: {', '.join(members[:5])}")
    if not folders and (path / ADAPTER_DIR).is_dir():
        raise UserError(
            f"{path} holds an adapter and no model_<type> folder, the model that it changes, which lies in the folder of its run: "
            "leave it where training wrote it, or copy model_<type>/ and run.json beside it"
        )
    if not folders:
        raise UserError(f"{path} holds no model_<type> folder: no model to load; {_how_to_arrange(path) or how}")
    if len(folders) > 1 or len(text_dirs) > 1:
        names = ", ".join(folder.name for folder in (*folders, *text_dirs))
        raise UserError(f"{path} holds more than one backbone ({names}): keep one, or name another folder with --model")
    config = read_object(folders[0] / "config.json")
    if whole is not None:
        record, unfinished = _read_copy(path, whole)
    else:
        record, unfinished = _read_unfinished(path) if is_unfinished(path) else (read_record(path), None)
    adapter_dir = path / ADAPTER_DIR
    rank = value_at(record.values, "recipe.lora.rank") if record else 0
    if rank and not adapter_dir.is_dir():
        raise UserError(
            f"{path} was trained with an adapter (lora.rank {rank}), and {adapter_dir} is missing: "
            "copy the whole folder again; without it the backbone alone would guess"
        )
    class_names = record.class_names if record else _names_from(config)
    text_dir = text_dirs[0] if text_dirs else None
    return Run(path, folders[0], adapter_dir if adapter_dir.is_dir() else None, class_names, record, text_dir, unfinished)


def _run_of_copy(path: Path) -> Path | None:
    """The run that keeps the model of one epoch in `path`; None where `path` is no such copy, or the run is not there."""
    folder = path.absolute().parent
    return folder.parent if folder.name == COPIES and ((folder.parent / RECORD).is_file() or is_unfinished(folder.parent)) else None


def _read_copy(path: Path, whole: Path) -> tuple[RunRecord, str]:
    """What the run in `whole` says of itself, with the validation score of the epoch in `path`; and in words which epoch that is."""
    record = known_record(whole)
    metric = str(record.best.get("metric") or "epoch")
    line = next((line for line in read_metrics(whole / METRICS) if COPY_NAME.format(line["epoch"]) == path.name), {})
    score = {"epoch": line["epoch"], "metric": metric, "value": line.get(metric, line["epoch"])} if line else {}
    shown = f" ({metric} {line[metric]:.4f})" if isinstance(line.get(metric), float) else ""
    words = f"the weights of epoch {line.get('epoch', path.name)}{shown} of the run in {whole}, whose frozen base they need"
    return RunRecord(record.path, record.values | {"best": score}), words


def _how_to_arrange(path: Path) -> str:
    """The commands that make a folder as transformers' Trainer or PEFT saves it one that is read here; empty where it is none."""
    goal, name = f"runs/{path.resolve().name}-arranged", shlex.quote(str(path))
    where = f"mkdir -p {shlex.quote(goal)} && cp -r {name} {shlex.quote(goal)}"
    if (path / "adapter_config.json").is_file():
        return (
            f"it is an adapter as PEFT saves it: {where}/{ADAPTER_DIR}, then the model that it was trained on beside it, as model_<type>/, "
            f"then --model {shlex.quote(goal)}"
        )
    if (path / "config.json").is_file():
        kind = str(read_object(path / "config.json").get("model_type") or "<type>")
        return f"it is a checkpoint as transformers saves it: {where}/model_{kind}, then --model {shlex.quote(goal)}"
    return ""


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
    best, words = read_kept(path, planned_epochs(values))
    return RunRecord(path / START, values | {key: recipe[key] for key in ("task", "name", "seed") if key in recipe} | {"best": best}), words


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
