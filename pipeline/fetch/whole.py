"""Check that a release holds a complete model: its weights are there, not cut short, and nothing they need is
missing.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

from pipeline import files
from pipeline.errors import UserError
from pipeline.run import model_dirs
from pipeline.run_names import ADAPTER_DIR, HEAD_FILE, RECORD
from pipeline.run_record import read_values

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


def model_problems(folder: Path) -> list[str]:
    """Return why a release's folder is not a complete model, each with its path; empty if it is complete."""
    folder, problems = Path(folder), []
    backbones = [path for path in model_dirs(folder) if path.name != ADAPTER_DIR]
    for backbone in backbones:
        problems += _weight_problems(backbone, WEIGHTS)
    adapter_dir = folder / ADAPTER_DIR
    # A model with two backbones has one folder per adapter.
    adapters = []
    if adapter_dir.is_dir():
        adapters = [adapter_dir, *sorted(path for path in adapter_dir.glob("*") if path.is_dir())]
    adapters = [
        path
        for path in adapters
        if path != adapter_dir or not adapters[1:] or any(inner.is_file() for inner in path.iterdir())
    ]
    for adapter in adapters:
        if not (adapter / "adapter_config.json").is_file():
            problems.append(f"{adapter.relative_to(folder)}: no adapter_config.json")
        problems += _weight_problems(adapter, ADAPTER_WEIGHTS)
    if not (folder / RECORD).exists():
        return problems
    try:
        record = read_values(folder / RECORD)
    except UserError as error:
        return [*problems, str(error)]
    recipe = record.get("recipe") or {}
    if ((recipe.get("lora") or {}).get("rank") or 0) > 0 and not adapters:
        problems.append(
            f"{ADAPTER_DIR}: missing, but run.json says that the model was trained with an adapter"
        )
    if recipe.get("task") == "vqa" and not (folder / HEAD_FILE).exists():
        problems.append(f"{HEAD_FILE}: missing, but run.json says that the model answers questions")
    return problems + (_file_problems(folder / HEAD_FILE) if (folder / HEAD_FILE).exists() else [])


def _weight_problems(folder: Path, names: tuple[str, str]) -> list[str]:
    """Return what is wrong with the weights in `folder`: one file of `names`, or several files with an
    index.
    """
    for name in names:
        index = folder / f"{name}.index.json"
        if index.is_file():
            parts = _parts(index)
            if not parts:
                return [f"{folder.name}/{index.name}: lists no weight files"]
            missing = [
                f"{folder.name}/{part}: missing; {index.name} names it"
                for part in parts
                if not (folder / part).is_file()
            ]
            return missing or [problem for part in parts for problem in _file_problems(folder / part)]
        if (folder / name).is_file():
            return _file_problems(folder / name)
    return [f"{folder.name}: no weights ({' or '.join(names)})"]


def _parts(index: Path) -> list[str]:
    value = files.read_json(index)
    parts = value.get("weight_map") if isinstance(value, dict) else None
    names = set()
    if isinstance(parts, dict):
        names = {name for name in parts.values() if isinstance(name, str) and "/" not in name}
    return sorted(names)


def _file_problems(path: Path) -> list[str]:
    from safetensors import SafetensorError, safe_open

    name = f"{path.parent.name}/{path.name}"
    if path.suffix != ".safetensors":
        with open(path, "rb") as file:
            is_pickle = file.read(2) == b"\x80\x02"  # the format of torch before version 1.6
        return [] if is_pickle or zipfile.is_zipfile(path) else [f"{name}: is cut short, or not a torch file"]
    try:
        with safe_open(path, framework="numpy") as weights:
            return [] if weights.keys() else [f"{name}: holds no weights"]
    except (SafetensorError, OSError) as error:
        return [f"{name}: is cut short or damaged ({error})"]
