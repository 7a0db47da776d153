"""Check that a backbone folder exists, before any slow import."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import UserError
from pipeline.recipe import Recipe


def looks_local(source: str) -> bool:
    """Return True for a folder (or a text that looks like one), False for a hub id."""
    return Path(source).exists() or source.startswith((".", "/", "~")) or source.count("/") > 1


def check_folder(source: str, key: str = "--backbone") -> None:
    """Check that `source` is a hub id, or a folder with a checkpoint.

    `key`: the setting by which the user can name another one.

    Raises:
        UserError: `source` looks like a folder but holds no checkpoint.
    """
    local = Path(source)
    if not looks_local(source) or (local / "config.json").is_file():
        return
    # model_lora/ has none
    inside = sorted(file.parent.name for file in local.glob("model_*/config.json")) if local.is_dir() else []
    hint = "expected a folder that `from_pretrained` can load, or a hub id such as owner/name"
    if inside:
        hint = f"did you mean {local / inside[0]}?"
    elif local.is_file() and (local.parent / "config.json").is_file():
        hint = f"did you mean its folder, {local.parent}?"
    if local.is_dir():
        what = "no config.json in this folder"
    elif local.is_file():
        what = "a file, but a folder is needed"
    else:
        what = "no such folder"
    raise UserError(f"{key} {source}: {what}; {hint}")


def check_recipe(recipe: Recipe) -> None:
    """Check the backbone folders of the recipe.

    Raises:
        UserError: a backbone looks like a folder but holds no checkpoint.
    """
    if recipe.architecture is None:
        check_folder(recipe.backbone)
    if recipe.text_backbone is not None:
        check_folder(recipe.text_backbone, "text_backbone")
