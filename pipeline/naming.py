"""Name a run from what was trained, how, and on which data, if the user did not name it."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.recipe import Recipe

PLAIN = "data"  # this name of a data folder carries no information


def run_name(base: Recipe, recipe: Recipe, data: str) -> str:
    """Return the name of a run of `recipe`, which was made from the recipe `base` by flags.

    It is the name of `base` if backbone and training method are unchanged, else a new one from both.
    """
    name = base.name
    if (recipe.backbones, method(recipe)) != (base.backbones, method(base)):
        text = f" + {backbone_name(recipe.text_backbone)}" if recipe.text_backbone else ""
        name = f"{backbone_name(recipe.backbone)}{text}, {method(recipe)}"
    folder = Path(os.path.abspath(data)).name
    return name if folder in (PLAIN, name, "") else f"{name} on {folder}"


def method(recipe: Recipe) -> str:
    """Return how a recipe trains: `LoRA r=16`, `the head alone`, `full fine-tuning`.

    With random weights it says so.
    """
    if recipe.lora.rank:
        kind = f"LoRA r={recipe.lora.rank}"
    elif recipe.head_only:
        kind = "the head alone"
    else:
        kind = "full fine-tuning"
    kind += f", frozen {recipe.freeze}" if recipe.freeze else ""
    return f"{kind} from random weights" if recipe.random_weights else kind


def backbone_name(backbone: str) -> str:
    """Return a short name of a backbone: the last part of a hub id, or a folder's name.

    For a backbone in a run's folder (model_beit) the name of the run comes first.
    """
    path = Path(os.path.normpath(backbone))
    name = Path(os.path.abspath(path)).name if path.name in ("", ".", "..") else path.name
    above = Path(os.path.abspath(path)).parent.name
    return f"{above}/{name}" if name.startswith("model_") and above else name
