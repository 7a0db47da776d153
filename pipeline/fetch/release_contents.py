"""Sort the files of an unpacked release: its model, its competition, and what is not installed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pipeline import files
from pipeline.errors import UserError, raise_all
from pipeline.fetch.whole import model_problems
from pipeline.run_names import ADAPTER_DIR, RECORD

# Not the report page, which could run scripts: `make report` builds it
RUN_FILES = (
    *("run.json", "head.safetensors", "metrics.jsonl", "timing.jsonl"),
    *("val_predictions.csv", "val_probs.npy", "figures"),
)
# The file types of a model, its run files and a small competition. Other files, above all code, are left out;
# .svg and .html too, because both can hold scripts.
SUFFIXES = {
    *(".safetensors", ".bin", ".model", ".npy"),
    *(".json", ".jsonl", ".yaml", ".yml", ".csv", ".tsv", ".txt", ".md"),
    *(".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
}


@dataclass(frozen=True)
class Contents:
    """A sorted release: files for the model folder, its competition, and files that are not installed."""

    entries: tuple[Path, ...]
    data_dir: Path | None
    left_out: tuple[str, ...]  # paths inside the archive


def sort_contents(archive: Path, members: list[Path], unpacked_dir: Path) -> Contents:
    """Sort the unpacked release, with or without a folder around it.

    Files that are not installed are removed.

    Raises:
        UserError: there is no `model_<type>/config.json` or it is not JSON, there are several models, or the
            model is incomplete.
    """
    is_model = [
        path
        for path in members
        if path.match("model_*/config.json") and path.parent.name != ADAPTER_DIR and len(path.parts) <= 4
    ]
    roots = sorted({path.parent.parent for path in is_model}, key=lambda root: (len(root.parts), root))
    if not roots:
        found = ", ".join(sorted({"/".join(path.parts[:2]) for path in members})[:15]) or "nothing"
        raise UserError(
            f"{archive} holds no model: no model_<type>/config.json (such as model_beit/config.json) in it. "
            f"It holds: {found}"
        )
    if len(roots) > 1 and len(roots[0].parts) == len(roots[1].parts):
        raise UserError(
            f"{archive} holds more than one model: {', '.join(str(root) for root in roots)}. Give an archive "
            "with one of them"
        )
    root = roots[0]
    data_dir = next(
        (place / "data" for place in (root, root.parent) if (unpacked_dir / place / "data").is_dir()), None
    )
    entries, left_out = set(), []
    for path in members:
        name = path.relative_to(root).parts[0] if path.is_relative_to(root) else ""
        wanted = name.startswith("model_") or name in RUN_FILES or re.fullmatch(r"README(\.md|\.txt)?", name)
        in_data = data_dir and path.is_relative_to(data_dir)
        if (wanted or in_data) and (path.suffix.lower() in SUFFIXES or path.name in ("README", "LICENSE")):
            entries |= {root / name} if wanted else set()
        else:
            (unpacked_dir / path).unlink()
            left_out.append(path.as_posix())
    for path in is_model:
        if path.parent.parent == root:
            files.read_json(unpacked_dir / path)
    heading = (
        f"{archive} holds no complete model, so nothing was installed; ask its author, or download it again:"
    )
    raise_all(model_problems(unpacked_dir / root), heading)
    kept = tuple(
        unpacked_dir / entry for entry in sorted(entries, key=lambda entry: (entry.name == RECORD, entry))
    )
    return Contents(kept, unpacked_dir / data_dir if data_dir else None, tuple(left_out))
