"""Attention maps: right where the attention is known by construction, refused or replaced in words where
there is none.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from PIL import Image
from target_runs import NUMBER, make_target_run

from pipeline.errors import UserError
from pipeline.models.attention_maps import AttentionMaps, attention_maps, gradient_rollout, rollout
from pipeline.report import attention
from pipeline.targets.target import Target

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_labels": 3,
}
SHARPNESS = 3.0


def vit_that_looks_at(bright: bool) -> transformers.ViTForImageClassification:
    """A ViT whose every token, in every layer, attends by brightness: key = +1 or -1 for a white or black
    patch, 0 for the class token.

    Patches become +e0 (white) or -e0 (black), values and MLPs are switched off, so the tokens stay what they
    are through the layers.
    """
    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(
        transformers.ViTConfig(**SMALL, image_size=32, patch_size=8)
    ).eval()
    roles = {"query": ("q_proj", "query"), "key": ("k_proj", "key"), "value": ("v_proj", "value")}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "layernorm" not in name.lower() and "norm" not in name.lower():
                weight.zero_()
        projection = model.vit.embeddings.patch_embeddings.projection
        # A mean of zero survives the layer norms
        projection.weight[0], projection.weight[1] = 1 / 192, -1 / 192
        for name, module in model.named_modules():
            role = next((role for role, ends in roles.items() if name.endswith(ends)), None)
            if role == "query":
                module.bias[0], module.bias[8] = SHARPNESS, SHARPNESS  # one number in each of the two heads
            elif role == "key":
                module.weight[0, 0] = 1 if bright else -1
                module.weight[8, 0] = -1 if bright else 1  # the second head looks at the opposite
        model.classifier.bias[1] = 1.0
    return model


def board() -> torch.Tensor:
    """(1, 3, 32, 32): black (-1) with white (+1) patches at (1, 2) and (3, 0)."""
    picture = -torch.ones(1, 3, 32, 32)
    picture[..., 8:16, 16:24] = picture[..., 24:32, 0:8] = 1
    return picture


def expected_heads() -> np.ndarray:
    """Softmax over the class token (0) and 16 patches (+-a), by hand: layer norm makes +-1 in 2 of 16 numbers
    +-sqrt(8), heads are 8 wide.
    """
    white = np.zeros((4, 4), dtype=bool)
    white[1, 2] = white[3, 0] = True
    scores = np.where(white, 1.0, -1.0) * SHARPNESS * np.sqrt(8) / np.sqrt(8)
    heads = []
    for sign in (1, -1):
        weights = np.exp(sign * scores)
        heads.append(weights / (weights.sum() + 1))
    return np.array(heads)


def test_attention_known_by_construction() -> None:
    model = vit_that_looks_at(bright=True)
    maps = attention_maps(model, model, board())
    np.testing.assert_allclose(maps.heads, expected_heads(), rtol=1e-3)
    np.testing.assert_allclose(maps.mean, expected_heads().mean(axis=0), rtol=1e-3)
    assert maps.predicted == 1 and maps.reads_class_token
    other = vit_that_looks_at(bright=False)
    np.testing.assert_allclose(attention_maps(other, other, board()).heads, expected_heads()[::-1], rtol=1e-3)


def test_rollout_of_that_attention_by_hand() -> None:
    """Every token attends alike, so with A = 1 a^T each layer keeps half of what is there: row 0 of (A/2 +
    I/2)^2.
    """
    model = vit_that_looks_at(bright=True)
    patches = expected_heads().mean(axis=0).ravel()
    row = np.append(1 - patches.sum(), patches)
    once = 0.5 * np.outer(np.ones(17), row) + 0.5 * np.eye(17)
    np.testing.assert_allclose(
        attention_maps(model, model, board()).rollout.ravel(), (once @ once)[0, 1:], rtol=1e-3
    )


def test_rollout_and_relevance_of_small_matrices() -> None:
    first, second = torch.tensor([[[0.5, 0.5], [0.2, 0.8]]]), torch.tensor([[[1.0, 0.0], [0.4, 0.6]]])
    torch.testing.assert_close(rollout([first, second]), torch.tensor([[0.75, 0.25], [0.23, 0.77]]))
    relevance = gradient_rollout(
        [torch.tensor([[[0.0, 1.0], [-2.0, 0.0]]]), torch.tensor([[[0.0, 0.0], [3.0, 0.0]]])]
    )
    # The -2 lowered the logit and does not count
    torch.testing.assert_close(relevance, torch.tensor([[0.0, 1.0], [3.0, 3.0]]))


def test_gradient_shows_what_a_mean_pooled_model_reads() -> None:
    """Values switched on for white patches: only attention to them raises logit 2, although no class token is
    read.
    """
    torch.manual_seed(0)
    config = transformers.BeitConfig(
        **SMALL, image_size=32, patch_size=8, use_mean_pooling=True, layer_scale_init_value=1.0
    )
    model = transformers.BeitForImageClassification(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name:
                weight.zero_()
            if "lambda_1" in name:
                weight.fill_(1)
        embeddings = next(module for name, module in model.named_modules() if name.endswith("projection"))
        embeddings.weight[0], embeddings.weight[1] = 1 / 192, -1 / 192
        for name, module in model.named_modules():
            if name.endswith(("v_proj", "value", "o_proj", "attention.output.dense")):
                module.weight[0, 0] = 1
        model.classifier.weight[2, 0] = 1
        model.classifier.bias[2] = 5.0
    maps = attention_maps(model, model, board())
    assert maps.predicted == 2 and not maps.reads_class_token
    white = np.zeros((4, 4), dtype=bool)
    white[1, 2] = white[3, 0] = True
    assert maps.gradient[white].min() > 10 * maps.gradient[~white].max()
    assert maps.mean.std() < 1e-6  # while the class token itself looks everywhere alike


def tiny(kind: str) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    swin = {
        "image_size": 32,
        "patch_size": 2,
        "embed_dim": 8,
        "depths": [1, 1],
        "num_heads": [1, 2],
        "window_size": 4,
        "num_labels": 3,
    }
    configs = {
        "beit": lambda: transformers.BeitConfig(
            **SMALL, image_size=32, patch_size=8, use_relative_position_bias=True
        ),
        "vit": lambda: transformers.ViTConfig(**SMALL, image_size=32, patch_size=8),
        "dinov2": lambda: transformers.Dinov2Config(**SMALL, image_size=32, patch_size=8),
        "swin": lambda: transformers.SwinConfig(**swin),
        "swinv2": lambda: transformers.Swinv2Config(**swin),
        "convnextv2": lambda: transformers.ConvNextV2Config(
            hidden_sizes=[4, 8, 8, 8], depths=[1, 1, 1, 1], patch_size=2, num_labels=3
        ),
    }
    return (
        transformers.AutoModelForImageClassification.from_config(configs[kind]()).eval().requires_grad_(False)
    )


@pytest.mark.parametrize("kind", ["beit", "vit", "dinov2"])
def test_maps_of_frozen_models_leave_them_as_they_were(kind: str) -> None:
    model, pixels = tiny(kind), torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = model(pixels).logits
    maps = attention_maps(model, model, pixels)
    assert maps.heads.shape == (2, 4, 4) and maps.gradient.shape == (4, 4) and maps.gradient.max() > 0
    assert model.config._attn_implementation == "sdpa" and all(
        weight.grad is None for weight in model.parameters()
    )
    with torch.no_grad():
        assert torch.equal(model(pixels).logits, before)


@pytest.mark.parametrize(("kind", "shape"), [("swin", (8, 8)), ("swinv2", (8, 8)), ("convnextv2", (2, 2))])
def test_without_attention_over_the_image_it_is_grad_cam(kind: str, shape: tuple[int, int]) -> None:
    model = tiny(kind)
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    maps = attention_maps(model, model, pixels)
    assert maps.heads is None and maps.rollout is None
    assert maps.gradient.shape == shape and maps.gradient.min() >= 0


def of_timm(architecture: str, **model_args) -> transformers.PreTrainedModel:
    pytest.importorskip("timm")
    rule = {"input_size": [3, 32, 32]}
    config = transformers.TimmWrapperConfig(
        architecture=architecture, model_args=model_args, num_labels=3, pretrained_cfg=rule
    )
    torch.manual_seed(0)
    return transformers.AutoModelForImageClassification.from_config(config).eval()


TIMM_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}


NAMES = (
    *(("patch_embed.proj", "embeddings.patch_embeddings.projection"), ("cls_token", "embeddings.cls_token")),
    *(("pos_embed", "embeddings.position_embeddings"), ("blocks.", "layers."), ("norm1", "layernorm_before")),
    *(("norm2", "layernorm_after"), ("attn.proj", "attention.o_proj"), ("attn.", "attention.")),
)


def in_transformers(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of timm's ViT under transformers' names."""
    renamed = {}
    for name, weight in weights.items():
        for old, new in NAMES:
            name = name.replace(old, new)
        if name.startswith("norm."):
            name = f"layer{name}"
        name = name.replace("head.", "classifier.") if name.startswith("head.") else f"vit.{name}"
        if ".qkv." in name:
            parts = zip("qkv", weight.chunk(3), strict=True)
            renamed |= {name.replace("qkv", f"{role}_proj"): part for role, part in parts}
        else:
            renamed[name] = weight
    return renamed


def test_maps_of_timms_vit_are_those_of_transformers_with_the_same_weights() -> None:
    ours = of_timm("vit_tiny_patch16_224", **TIMM_VIT, mlp_ratio=2)
    with torch.no_grad():
        for weight in ours.parameters():
            torch.nn.init.normal_(weight, std=0.3)
    theirs = tiny("vit")
    theirs.load_state_dict(in_transformers(ours.timm_model.state_dict()))
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    maps, expected = attention_maps(ours, ours, pixels), attention_maps(theirs, theirs, pixels)
    np.testing.assert_allclose(maps.logits, expected.logits, atol=1e-4)
    for name in ("heads", "mean", "rollout", "gradient"):
        np.testing.assert_allclose(getattr(maps, name), getattr(expected, name), rtol=1e-3, atol=1e-6)
    assert maps.reads_class_token and all(layer.attn.fused_attn for layer in ours.timm_model.blocks)


def test_dinov3_reads_its_patches_behind_five_other_tokens() -> None:
    model = of_timm("vit_small_patch16_dinov3", **TIMM_VIT)
    maps = attention_maps(model, model, torch.randn(1, 3, 32, 48))
    assert not maps.reads_class_token and maps.heads.shape == (2, 4, 6)
    assert 0 < maps.mean.sum() < 1  # the rest goes to the class token and four registers


@pytest.mark.parametrize("architecture", ["resnet18", "vit_base_patch16_siglip_224", "convnext_atto"])
def test_a_model_that_shows_nothing_is_refused_in_words(architecture: str) -> None:
    model = of_timm(architecture, **(TIMM_VIT if "vit" in architecture else {}))
    with pytest.raises(UserError, match="Maps work for BEiT, ViT"):
        attention_maps(model, model, torch.zeros(1, 3, 32, 32))


def test_the_command_draws_validation_images_and_shows_them_on_the_page(
    finished_run: Path, tmp_path: Path, capsys
) -> None:
    run = shutil.copytree(finished_run / "run", tmp_path / "run")
    assert attention.main(["--runs", str(run)]) == 0
    figures = run / "figures"
    printed = capsys.readouterr().out.split()
    assert printed == [
        str(figures / "attention.png"),
        str(figures / "attention_heads.png"),
        str(run / "report.html"),
    ]
    for name in ("attention.png", "attention_heads.png"):
        with Image.open(figures / name) as picture:
            assert np.array(picture.convert("L")).std() > 10


def test_several_models_side_by_side(finished_run: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    pictures = [str(path) for path in sorted((finished_run / "data" / "test").iterdir())[:2]]
    arguments = [
        "--images",
        *pictures,
        *("--runs", str(tiny_backbone), str(finished_run / "run"), "--output", str(tmp_path)),
    ]
    assert attention.main(arguments) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "attention.png",
        "attention_heads_1.png",
        "attention_heads_2.png",
    ]
    with Image.open(tmp_path / "attention.png") as picture:
        assert picture.width > 2 * picture.height  # 1 + 2 x 3 columns, 2 rows


def test_captions_name_the_true_class_and_mark_mistakes(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands in the figure, read back from its SVG."""
    run = shutil.copytree(finished_run / "run", tmp_path / "run")
    rows = pd.read_csv(run / "val_predictions.csv", dtype=str)
    monkeypatch.setitem(mpl.rcParams, "svg.fonttype", "none")  # texts stay texts
    assert attention.main(["--runs", str(run), "--images", *rows["path"], "--format", "svg"]) == 0
    svg = (run / "figures" / "attention.svg").read_text()
    assert (run / "figures" / "attention_heads.svg").exists()
    for row in rows.itertuples():
        assert f"is {row.label}" in svg
    wrong = sum(row.label != row.predicted for row in rows.itertuples())
    assert svg.count(">wrong: ") == 3 * wrong  # in each of the three maps
    unknown = tmp_path / "unknown.png"
    shutil.copy(next((finished_run / "data" / "test").iterdir()), unknown)
    attention.main(
        ["--runs", str(run), "--images", str(unknown), "--output", str(tmp_path / "out"), "--format", "svg"]
    )
    svg = (tmp_path / "out" / "attention.svg").read_text()
    assert "unknown.png" in svg and ">is " not in svg and "wrong: " not in svg


@pytest.mark.parametrize(
    ("target", "logits", "expected"),
    [
        (None, (0.0, math.log(3)), ("b 75%", "b")),
        (Target("binary", ("cat", "dog"), positive=("dog",)), (-math.log(3),), ("cat 75%", "cat")),
        (Target("binary", ("cat", "dog"), positive=("dog",)), (math.log(4),), ("dog 80%", "dog")),
        (Target("multilabel", ("a", "b")), (math.log(4), math.log(3)), ("a 80%", "a")),
        # The most probable grade is 0; the expected one is 0.8, and 1 is nearest
        (Target("ordinal", ("0", "1", "2")), tuple(map(math.log, (0.5, 0.2, 0.3))), ("1 20%", "1")),
        (NUMBER, (0.5,), ("48", "48")),
    ],
    ids=["classes", "no", "yes", "labels", "grades", "a number"],
)
def test_a_prediction_is_named_as_the_run_means_it(target, logits, expected) -> None:
    values = np.array(logits, dtype=np.float32)
    maps = AttentionMaps(None, None, None, np.zeros((2, 2)), False, int(values.argmax()), values)
    assert attention.in_words(maps, ("a", "b"), target) == expected


def test_images_of_a_run_of_numbers_are_the_best_and_the_worst(tmp_path: Path) -> None:
    made = make_target_run(tmp_path / "run", NUMBER, "rmse")
    chosen = [path.name for path in attention.validation_images(tmp_path / "run")]
    rows = pd.read_csv(tmp_path / "run/val_predictions.csv")
    order = (rows["label"] - rows["predicted"]).abs().argsort(kind="stable")
    paths = [Path(path).name for path in rows["path"]]
    assert chosen == [paths[place] for place in [*order[:3], *order[-3:]]] and made.target is NUMBER


def test_mistakes_are_one_message(finished_run: Path, tmp_path: Path) -> None:
    run = finished_run / "run"
    with pytest.raises(UserError, match=r"missing\.jpg: no such file"):
        attention.main(["--runs", str(run), "--images", str(tmp_path / "missing.jpg")])
    with pytest.raises(UserError, match=r"is a run folder: .*--output"):
        attention.main(["--runs", str(tmp_path)])
    (tmp_path / "no.jpg").write_text("text")
    with pytest.raises(UserError, match=r"no\.jpg: not an image"):
        attention.main(["--runs", str(run), "--images", str(tmp_path / "no.jpg")])
    other = shutil.copytree(run, tmp_path / "vqa")
    record = json.loads((other / "run.json").read_text()) | {"task": "vqa"}
    (other / "run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="this run's task is vqa"):
        attention.main(["--runs", str(other)])
