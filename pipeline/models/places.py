"""Whether a backbone that is named as a folder is there: looked at before anything that takes seconds to import."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import UserError
from pipeline.recipe import Recipe


def looks_local(source: str) -> bool:
    """True for a folder (or what is meant to be one), False for a hub id."""
    return Path(source).exists() or source.startswith((".", "/", "~")) or source.count("/") > 1


def check_folder(source: str, key: str = "--backbone") -> None:
    """Raises:
    UserError: `source` is meant as a folder and holds no checkpoint; `key` is what a user changes to name another.
    """
    local = Path(source)
    if not looks_local(source) or (local / "config.json").is_file():
        return
    inside = sorted(file.parent.name for file in local.glob("model_*/config.json")) if local.is_dir() else []  # model_lora/ has none
    hint = "expected a folder that `from_pretrained` can load, or a hub id such as owner/name"
    if inside:
        hint = f"did you mean {local / inside[0]}?"
    elif local.is_file() and (local.parent / "config.json").is_file():
        hint = f"did you mean its folder, {local.parent}?"
    what = "no config.json in this folder" if local.is_dir() else "a file, and a folder is needed" if local.is_file() else "no such folder"
    raise UserError(f"{key} {source}: {what}; {hint}")


def check_recipe(recipe: Recipe) -> None:
    """Raises:
    UserError: a backbone of the recipe is meant as a folder and is none.
    """
    if recipe.architecture is None:
        check_folder(recipe.backbone)
    if recipe.text_backbone is not None:
        check_folder(recipe.text_backbone, "text_backbone")
