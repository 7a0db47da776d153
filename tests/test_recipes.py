"""Every recipe that names a hub model has exactly the parameters it should have, counted on tensors without
data: a recipe cannot drift.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForImageClassification,
    BeitConfig,
    ConvNextV2Config,
    Dinov2Config,
    SwinConfig,
    Swinv2Config,
    TimmWrapperConfig,
    ViTConfig,
)

from pipeline.config import RECIPES_DIR, load_recipe, recipe_names
from pipeline.experiments.grids import load_grid
from pipeline.models.lora import attach, count_parameters
from pipeline.recipe import Recipe
from tests.benchmarks.recipe_tables import GRIDS, grid_file

BASE = {"depths": [2, 2, 18, 2], "embed_dim": 128, "num_heads": [4, 8, 16, 32]}
LARGE = {"depths": [2, 2, 18, 2], "embed_dim": 192, "num_heads": [6, 12, 24, 48]}
VIT_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
BEIT = {"use_relative_position_bias": True, "use_mean_pooling": True, "layer_scale_init_value": 0.1}
# What the config.json of each hub model says beyond the defaults of its class.
HUB_CONFIGS: dict[str, Callable[..., Any]] = {
    "microsoft/beit-large-patch16-384": lambda **k: BeitConfig(
        **VIT_LARGE, **BEIT, intermediate_size=4096, image_size=384, **k
    ),
    "microsoft/beit-base-patch16-224": lambda **k: BeitConfig(**BEIT, **k),
    "google/vit-base-patch16-224": lambda **k: ViTConfig(**k),
    "google/vit-base-patch16-224-in21k": lambda **k: ViTConfig(**k),
    "google/vit-base-patch16-384": lambda **k: ViTConfig(image_size=384, **k),
    "WinKawaks/vit-tiny-patch16-224": lambda **k: ViTConfig(
        hidden_size=192, num_attention_heads=3, intermediate_size=768, **k
    ),
    "microsoft/swin-base-patch4-window7-224": lambda **k: SwinConfig(**BASE, **k),
    "microsoft/swin-large-patch4-window12-384": lambda **k: SwinConfig(
        **LARGE, window_size=12, image_size=384, **k
    ),
    "microsoft/swinv2-base-patch4-window12-192-22k": lambda **k: Swinv2Config(
        **BASE, window_size=12, image_size=192, **k
    ),
    "microsoft/swinv2-large-patch4-window12to24-192to384-22kto1k-ft": lambda **k: Swinv2Config(
        **LARGE, window_size=24, image_size=384, pretrained_window_sizes=[12, 12, 12, 6], **k
    ),
    "facebook/dinov2-base": lambda **k: Dinov2Config(image_size=518, patch_size=14, **k),
    "facebook/dinov2-large": lambda **k: Dinov2Config(**VIT_LARGE, image_size=518, patch_size=14, **k),
    "facebook/convnextv2-base-22k-384": lambda **k: ConvNextV2Config(
        depths=[3, 3, 27, 3], hidden_sizes=[128, 256, 512, 1024], image_size=384, **k
    ),
    "timm/eva02_large_patch14_448.mim_m38m_ft_in22k_in1k": lambda **k: TimmWrapperConfig(
        architecture="eva02_large_patch14_448", **k
    ),
    "timm/vit_large_patch16_dinov3.lvd1689m": lambda **k: TimmWrapperConfig(
        architecture="vit_large_patch16_dinov3", **k
    ),
}
# Recipe: classes, parameters of the model, trainable ones. "report": printed there, or its number with the
# head exchanged. "timm": the sum over timm's own implementation of the same architecture, num_classes as
# here. "layers": added up from the paper's layer sizes.
EXPECTED = {
    "beit-large-384": (200, 304_178_888, 304_178_888),  # report 0
    "beit-large-384-lora": (200, 304_178_888, 1_777_864),  # report 0: 24 x 2 x 16 x (1024 + 1024) + 205,000
    # layers: 24 x (4 x 16 x 2,048 + 2 x 16 x 5,120) + 205,000
    "beit-large-384-lora-ours": (200, 304_178_888, 7_282_888),
    "vit-base-224": (200, 85_952_456, 85_952_456),  # timm vit_base_patch16_224
    "vit-base-384": (200, 86_244_296, 86_244_296),  # timm vit_base_patch16_384
    "swin-base-224": (200, 86_948_224, 86_948_224),  # timm swin_base_patch4_window7_224
    "swin-large-384": (200, 195_505_916, 195_505_916),  # timm swin_large_patch4_window12_384
    "swinv2-base-192": (200, 87_098_816, 87_098_816),  # timm swinv2_base_window12_192
    "swinv2-large-384": (200, 195_510_332, 195_510_332),  # timm swinv2_large_window12to24_192to384
    "vit-tiny-imagewoof": (10, 5_526_346, 5_526_346),  # report 1
    "vit-tiny-imagewoof-lora": (10, 5_526_346, 177_418),  # report 1: 27,648 + 147,648 + 192 + 1,930
    "beit-base-cifar10": (10, 85_769_674, 85_769_674),  # timm beit_base_patch16_224
    "beit-base-cifar10-baseline": (10, 85_769_674, 85_769_674),
    "beit-base-cifar100": (100, 85_838_884, 85_838_884),  # timm beit_base_patch16_224
    "beit-base-cifar100-baseline": (100, 85_838_884, 85_838_884),
    # Timm vit_base_patch16_224: the position table is that of 224 px
    "vit-base-128": (2, 85_800_194, 85_800_194),
    "vit-base-128-lora-r8": (2, 85_800_194, 443_906),  # report 3
    "vit-base-128-lora-r24": (2, 85_800_194, 1_328_642),  # report 3
    # Timm vit_base_patch14_dinov2 (86,579,712) + mask token 768 + head 307,400; layers
    "lora-ours": (200, 86_887_880, 2_961_608),
    # Timm vit_large_patch14_dinov2 (304,367,616) + mask token 1,024 + head 409,800
    "dinov2-large": (200, 304_778_440, 304_778_440),
    "dinov2-large-lora": (200, 304_778_440, 1_982_664),  # layers: 24 x 2 x 16 x (1024 + 1024) + 409,800
    "convnextv2-base-384": (200, 87_897_800, 87_897_800),  # timm convnextv2_base; layers
    # Layers: 24 x (12 x 1,024^2 + 12,288) + 787,456 (patches) + 5,120 (tokens) + 2,048 (norm) + 205,000
    "dinov3-large-lora": (200, 303_284_424, 1_777_864),  # layers: 24 x 16 x (1024 + 3072) + 205,000
    "eva02-large-448-lora": (200, 304_260_232, 1_777_864),  # layers: 24 x 2 x 16 x (1024 + 1024) + 205,000
}


def hub_recipes() -> list[str]:
    """Recipes of this task whose backbone is a hub id: owner/name."""
    recipes = {name: load_recipe(name) for name in recipe_names()}
    return [
        name
        for name, recipe in recipes.items()
        if recipe.task == "classification" and recipe.backbone.count("/") == 1
    ]


def count(recipe: Recipe, num_classes: int) -> tuple[int, int]:
    """(parameters of the model, trainable ones) that a run of `recipe` would have."""
    if recipe.backbone.startswith("timm/"):
        pytest.importorskip("timm")
    with torch.device("meta"):
        model = AutoModelForImageClassification.from_config(
            HUB_CONFIGS[recipe.backbone](num_labels=num_classes)
        )
        if recipe.lora.rank:
            lora = recipe.lora
            model = attach(model, lora.rank, lora.alpha, lora.dropout, lora.targets, lora.also_train)
        counts = count_parameters(model)
    return counts.model, counts.trainable


def test_every_recipe_that_names_a_hub_model_is_in_the_table() -> None:
    """A new one belongs into EXPECTED, with the source of its numbers."""
    assert set(hub_recipes()) == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_recipe_has_exactly_its_parameters(name: str) -> None:
    num_classes, model, trainable = EXPECTED[name]
    assert count(load_recipe(name), num_classes) == (model, trainable)


@pytest.mark.parametrize("name", EXPECTED)
def test_the_head_comment_names_a_source_and_quotes_these_numbers(name: str) -> None:
    lines = (RECIPES_DIR / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    comment = " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))
    assert "Source: " in comment and ("It gave: " in comment or "not run here" in comment)
    counts = {
        int(number.replace(",", ""))
        for number in re.findall(r"([\d,]{7,}) (?:trainable )?(?:parameters|trainable)", comment)
    }
    assert counts <= set(EXPECTED[name][1:]), counts


def test_numbers_that_the_reports_contradict_themselves_on_are_quoted_both() -> None:
    for name in ("vit-tiny-imagewoof", "vit-tiny-imagewoof-lora"):
        text = (RECIPES_DIR / f"{name}.yaml").read_text(encoding="utf-8")
        assert all(number in text for number in ("91.65", "91.45", "88.78", "90.12"))


@pytest.mark.parametrize(
    "grid", sorted(path.stem for path in GRIDS.glob("*.yaml") if "rows:" in path.read_text(encoding="utf-8"))
)
def test_every_row_of_a_benchmarks_grid_is_a_recipe(grid: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])  # where the benchmarks are started
    loaded = load_grid(grid_file(grid))
    assert len(loaded.trials) == len(loaded.rows) > 1 and {
        trial.recipe.image_size for trial in loaded.trials
    } <= {112, 168, 224}
