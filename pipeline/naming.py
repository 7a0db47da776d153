"""What a run is called where nobody named it: what was trained, how, and on which data."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.recipe import Recipe

PLAIN = "data"  # a data folder of this name says nothing


def run_name(base: Recipe, recipe: Recipe, data: str) -> str:
    """The name of a run of `recipe`, which came from `base` by flags: `base`'s own where backbone and method are, else what they are now."""
    name = base.name
    if (recipe.backbones, method(recipe)) != (base.backbones, method(base)):
        text = f" + {backbone_name(recipe.text_backbone)}" if recipe.text_backbone else ""
        name = f"{backbone_name(recipe.backbone)}{text}, {method(recipe)}"
    folder = Path(os.path.abspath(data)).name
    return name if folder in (PLAIN, name, "") else f"{name} on {folder}"


def method(recipe: Recipe) -> str:
    """How a recipe trains, in a few words: `LoRA r=16`, `the head alone`, `full fine-tuning`; also where its weights are random."""
    kind = f"LoRA r={recipe.lora.rank}" if recipe.lora.rank else "the head alone" if recipe.head_only else "full fine-tuning"
    kind += f", frozen {recipe.freeze}" if recipe.freeze else ""
    return f"{kind} from random weights" if recipe.random_weights else kind


def backbone_name(backbone: str) -> str:
    """What a backbone is called: of a hub id its last part, of a folder its name, of a run's own folder (model_beit) the run's."""
    path = Path(os.path.normpath(backbone))
    name = Path(os.path.abspath(path)).name if path.name in ("", ".", "..") else path.name
    above = Path(os.path.abspath(path)).parent.name
    return f"{above}/{name}" if name.startswith("model_") and above else name
