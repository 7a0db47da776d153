"""The run folder: which files it holds, and how to read a run's record (format 1) or a legacy release."""

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
    INT8_DIR,
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

PREPROCESSING = "preprocessor_config.json"  # in the folder of the backbone; training writes it
_FILES = (
    *(INSTALLING, INSTALLED, RECORD, METRICS, TIMING, VAL_TABLE, VAL_VALUES, SCORES, PAGE, THUMBNAILS),
    *(FLOORS, FOLDS_FILE, OOF_TABLE, OOF_VALUES, HEAD_FILE),
)
_FOLDERS = ("figures", "tensorboard", "state", COPIES, INT8_DIR)
_PACKAGES = tuple(
    "torch torchvision transformers peft timm accelerate safetensors numpy pillow simplejpeg".split()
)


@dataclass(frozen=True)
class Run:
    """A finished run or a legacy release: its weights and its record."""

    path: Path
    backbone_dir: Path  # model_<type>/, loadable by plain from_pretrained
    adapter_dir: Path | None  # model_lora/, loadable by plain PEFT; None after full fine-tuning
    class_names: tuple[str, ...] | None  # None when a legacy release has only LABEL_0..N
    record: RunRecord | None  # None for a legacy release
    text_dir: Path | None = None  # folder of the text backbone with its tokenizer, if there is one
    # Which weights these are, as text, for an interrupted run or for one epoch of a run
    unfinished: str | None = None

    @property
    def name(self) -> str:
        """The name in its recipe; `legacy release` if there is none."""
        return self.record.name if self.record else "legacy release"

    @property
    def task(self) -> str:
        """`classification` or `vqa`."""
        return self.record.task if self.record else "classification"

    @property
    def target(self) -> Target | None:
        """The target; None for a release that names no classes.

        Raises:
            UserError: run.json holds a target that this version does not know.
        """
        if self.record:
            return self.record.target
        return multiclass(self.class_names) if self.class_names else None

    @property
    def metric(self) -> str:
        """The name of the metric."""
        return self.record.metric if self.record else "accuracy"


def load_run(path: Path) -> Run:
    """Return the run or release in folder `path`.

    `path` may also be one epoch of a run that `checkpoint.keep_every` kept; backbone and record are then
    those of the run.

    Raises:
        UserError: there is no model; no weights were saved yet; a release is only partly installed; run.json
            has another format or is damaged; the adapter or the preprocessing is missing; there is more than
            one backbone.
    """
    path = Path(path)
    how = "`make weights` installs a release, `python train.py` makes one"
    if not path.is_dir():
        raise UserError(f"{path} does not exist: no model to load; {how}")
    if (path / INSTALLING).exists():
        raise UserError(
            f"{path} holds a release that was not completely installed: `make weights` was interrupted. Run "
            f"it again; the earlier files are kept in {path / 'earlier'}"
        )
    whole = _run_of_copy(path)
    folders, text_dirs = backbone_dirs(path)
    if whole is not None and not folders:
        folders, text_dirs = backbone_dirs(whole)
    if not folders and (record := read_record(path)) and record.kind != "run":
        members = list(record.values.get("members", {}))
        raise UserError(
            f"{path} is not a single model but {record.kind} of {len(members)}: name one of them: "
            f"{', '.join(members[:5])}"
        )
    if not folders and (path / ADAPTER_DIR).is_dir():
        raise UserError(
            f"{path} holds an adapter but no model_<type> folder (its backbone), which is in the folder of "
            "its run: leave the adapter where training wrote it, or copy model_<type>/ and run.json beside "
            "it"
        )
    if not folders:
        raise UserError(
            f"{path} holds no model_<type> folder: no model to load; {_how_to_arrange(path) or how}"
        )
    if len(folders) > 1 or len(text_dirs) > 1:
        names = ", ".join(folder.name for folder in (*folders, *text_dirs))
        raise UserError(
            f"{path} holds more than one backbone ({names}): keep one, or name another folder with --model"
        )
    config = read_object(folders[0] / "config.json")
    if whole is not None:
        record, unfinished = _read_copy(path, whole)
    else:
        record, unfinished = _read_unfinished(path) if is_unfinished(path) else (read_record(path), None)
    adapter_dir = path / ADAPTER_DIR
    rank = value_at(record.values, "recipe.lora.rank") if record else 0
    if rank and not adapter_dir.is_dir():
        raise UserError(
            f"{path} was trained with an adapter (lora.rank {rank}), but {adapter_dir} is missing: "
            "copy the whole folder again; the backbone without its adapter is not trained for these classes"
        )
    if record and not (folders[0] / PREPROCESSING).is_file():
        raise UserError(
            f"{folders[0] / PREPROCESSING} is missing: copy the whole folder again; without it images would "
            "not be read as in training"
        )
    class_names = record.class_names if record else _names_from(config)
    text_dir = text_dirs[0] if text_dirs else None
    return Run(
        path,
        folders[0],
        adapter_dir if adapter_dir.is_dir() else None,
        class_names,
        record,
        text_dir,
        unfinished,
    )


def _run_of_copy(path: Path) -> Path | None:
    """Return the run that keeps a copy of one epoch in `path`.

    None where `path` is not such a copy, or the run is missing.
    """
    folder = path.absolute().parent
    if folder.name == COPIES and ((folder.parent / RECORD).is_file() or is_unfinished(folder.parent)):
        return folder.parent
    return None


def _read_copy(path: Path, whole: Path) -> tuple[RunRecord, str]:
    """Return the record of the run in `whole` with the validation score of the epoch in `path`, and that
    epoch as text.
    """
    record = known_record(whole)
    metric = str(record.best.get("metric") or "epoch")
    line = next(
        (line for line in read_metrics(whole / METRICS) if COPY_NAME.format(line["epoch"]) == path.name), {}
    )
    score = (
        {"epoch": line["epoch"], "metric": metric, "value": line.get(metric, line["epoch"])} if line else {}
    )
    shown = f" ({metric} {line[metric]:.4f})" if isinstance(line.get(metric), float) else ""
    words = (
        f"the weights of epoch {line.get('epoch', path.name)}{shown} of the run in {whole}; they need "
        "its backbone"
    )
    return RunRecord(record.path, record.values | {"best": score}), words


def _how_to_arrange(path: Path) -> str:
    """Return the commands that turn a folder of transformers' Trainer or PEFT into a run folder.

    "" for other folders.
    """
    goal, name = f"runs/{path.resolve().name}-arranged", shlex.quote(str(path))
    where = f"mkdir -p {shlex.quote(goal)} && cp -r {name} {shlex.quote(goal)}"
    if (path / "adapter_config.json").is_file():
        return (
            f"it is an adapter saved by PEFT: {where}/{ADAPTER_DIR}, then put the model that it was trained "
            f"on beside it, as model_<type>/, then --model {shlex.quote(goal)}"
        )
    if (path / "config.json").is_file():
        kind = str(read_object(path / "config.json").get("model_type") or "<type>")
        return (
            f"it is a checkpoint saved by transformers: {where}/model_{kind}, then --model "
            f"{shlex.quote(goal)}"
        )
    return ""


def known_record(path: Path) -> RunRecord | None:
    """Return the record of the run in folder `path`, finished or interrupted; None if there is none.

    Raises:
        UserError: its files are damaged, or it was stopped before any weights were saved.
    """
    return _read_unfinished(Path(path))[0] if is_unfinished(path) else read_record(path)


def _read_unfinished(path: Path) -> tuple[RunRecord, str]:
    """Return the record of an interrupted run, and which weights are in its folder."""
    if not (path / START).is_file():
        raise UserError(
            f"{path} holds an unfinished run that was stopped before it began: continue with "
            f"`{resume_command(path)}`"
        )
    values = read_values(path / START)
    recipe = values.get("recipe") or {}
    best, words = read_kept(path, planned_epochs(values))
    return RunRecord(
        path / START,
        values | {key: recipe[key] for key in ("task", "name", "seed") if key in recipe} | {"best": best},
    ), words


def model_dirs(path: Path) -> list[Path]:
    """Return the `model_*` folders in `path`, sorted by name."""
    return sorted(folder for folder in Path(path).glob("model_*") if folder.is_dir())


def backbone_dirs(path: Path) -> tuple[list[Path], list[Path]]:
    """Return the folders of image backbones in `path`, and those of text backbones, which hold a
    tokenizer.

    Normally there is one or none of each.
    """
    folders = [folder for folder in model_dirs(path) if folder.name != ADAPTER_DIR]
    texts = [folder for folder in folders if (folder / "tokenizer_config.json").exists()]
    return [folder for folder in folders if folder not in texts], texts


def run_entries(path: Path) -> list[Path]:
    """Return the existing files and folders that belong to the run in `path`, and no others that a user
    put there.
    """
    path = Path(path)
    kept = [
        file
        for ending in ("csv", "npy", "json")
        for file in sorted(path.glob(f"test*.{ending}"))
        if _is_kept(file)
    ]
    folds = sorted(
        folder for folder in path.glob("fold-*") if (folder / RECORD).exists() or (folder / "state").is_dir()
    )
    return [
        *model_dirs(path),
        *folds,
        *kept,
        *(path / name for name in (*_FILES, *_FOLDERS) if (path / name).exists()),
    ]


def _is_kept(file: Path) -> bool:
    """Return True for test predictions kept by inference.py: test.npy with test.csv, test-flip.npy with
    test-flip.csv.

    A single file with such a name may be the user's own.
    """
    return all(file.with_suffix(ending).exists() for ending in (".csv", ".npy"))


def is_unfinished(path: Path) -> bool:
    """Return True when the folder holds a run that was started and has no run.json yet."""
    return (Path(path) / "state").is_dir() and not (Path(path) / RECORD).exists()


def environment() -> dict[str, Any]:
    """Return what a run records about its environment: `versions`, `commit` (None outside a checkout)."""
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
    """Return the local time as ISO 8601 with its offset, to the second."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def _names_from(config: dict[str, Any]) -> tuple[str, ...] | None:
    """Return class names by index from a config's id2label; None when they are only LABEL_0..N."""
    try:
        id2label = {int(index): str(name) for index, name in (config.get("id2label") or {}).items()}
    except (ValueError, AttributeError):  # not numbered, or not a mapping
        return None
    if not id2label or sorted(id2label) != list(range(len(id2label))):
        return None
    names = tuple(id2label[index] for index in range(len(id2label)))
    return None if names == tuple(f"LABEL_{index}" for index in range(len(names))) else names
