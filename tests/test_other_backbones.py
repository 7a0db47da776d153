"""Backbones beside the reports': DINOv2, ConvNeXt-V2, and timm's checkpoints. Tiny random ones, trained and
used by the public commands.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import colour_patch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    CLIPConfig,
    ConvNextV2Config,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    Dinov2Config,
    DINOv3ViTConfig,
    ResNetConfig,
    Siglip2Config,
    SiglipConfig,
    TimmWrapperConfig,
)

import inference
import train
from pipeline.errors import UserError
from pipeline.models.attention_functions import attend_by_products
from pipeline.models.backbones import (
    head_name,
    load_backbone,
    native_image_size,
    rebuild_backbone,
    save_backbone,
)
from pipeline.models.encoders import load_encoder, pooled
from pipeline.models.half_weights import checkpoint_layers
from pipeline.models.lora import attach, load_adapter, merge, save_adapter
from pipeline.models.roles import modules_of, train_parts
from pipeline.tasks.image_classifier import ImageClassifier
from pipeline.training.memory import Memory, account

NAMES = ("blue", "green", "red")
DINOV2 = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}
CONVNEXTV2 = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 2, 1], "image_size": 32}
CLIP = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
CLIP |= {"image_size": 32, "patch_size": 8}
TIMM_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}


def timm_config(architecture: str, **model_args: Any) -> TimmWrapperConfig:
    """A tiny architecture of timm, with the preprocessing of EVA-02's checkpoints."""
    pytest.importorskip("timm")
    rule = {"input_size": [3, 32, 32], "interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "squash"}
    return TimmWrapperConfig(
        architecture=architecture, model_args=model_args, num_labels=5, pretrained_cfg=rule
    )


CONFIGS = {
    "dinov2": lambda: Dinov2Config(**DINOV2, num_labels=5),
    "dinov2-giant": lambda: Dinov2Config(**DINOV2, use_swiglu_ffn=True, num_labels=5),
    "convnextv2": lambda: ConvNextV2Config(**CONVNEXTV2, num_labels=5),
    "siglip": lambda: SiglipConfig(
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
        }
        | {"image_size": 32, "patch_size": 8},
        num_labels=5,
    ),
    "clip": lambda: CLIPConfig(vision_config=CLIP, num_labels=5),
    "resnet": lambda: ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], num_labels=5),
    "timm-vit": lambda: timm_config("vit_tiny_patch16_224", **TIMM_VIT),
    "timm-eva02": lambda: timm_config("eva02_base_patch14_448", **TIMM_VIT),
    "timm-eva02-fused": lambda: timm_config("eva02_tiny_patch14_224", **TIMM_VIT),
    "timm-dinov3": lambda: timm_config("vit_small_patch16_dinov3", **TIMM_VIT),
    "timm-convnextv2": lambda: timm_config("convnextv2_base", dims=[8, 8, 16, 16], depths=[1, 1, 1, 1]),
    "timm-swin": lambda: timm_config(
        "swin_tiny_patch4_window7_224",
        img_size=32,
        embed_dim=8,
        depths=[1, 1],
        num_heads=[1, 2],
        window_size=4,
    ),
    "timm-aimv2": lambda: timm_config("aimv2_large_patch14_224", **TIMM_VIT),
    "timm-relpos": lambda: timm_config("vit_relpos_small_patch16_224", **TIMM_VIT),
    "timm-resnet": lambda: timm_config("resnet18", layers=[1, 1, 1, 1], channels=[8, 8, 16, 16]),
}


OF_2023 = {
    f"attention.{new}_proj": f"attention.attention.{old}"
    for new, old in (("q", "query"), ("k", "key"), ("v", "value"))
}
OF_2023 |= {"attention.o_proj": "attention.output.dense", "mlp.down_proj": "mlp.weights_out"}


def tiny(kind: str) -> nn.Module:
    torch.manual_seed(0)
    model = AutoModelForImageClassification.from_config(CONFIGS[kind]())
    for weight in model.parameters():
        if weight.ndim > 1:
            nn.init.normal_(weight, std=0.15)
    return model.eval()


@pytest.fixture
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    tiny(request.param).save_pretrained(folder)
    return folder


@torch.no_grad()
def logits(model: nn.Module, size: int = 32) -> torch.Tensor:
    return model.eval()(
        pixel_values=torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    ).logits


def small_competition(root: Path) -> Path:
    """Two classes and a wide test image, so that squashing and cropping differ."""
    for number, (name, colour) in enumerate({"blue": (40, 60, 200), "red": (200, 50, 40)}.items()):
        for index in range(6):
            colour_patch(
                root / "train" / name / f"{name}{index}.png", colour, 100 * number + index, size=(48, 40)
            )
    colour_patch(root / "test" / "a.png", (40, 60, 200), 7, size=(64, 40))
    colour_patch(root / "test" / "b.png", (200, 50, 40), 8, size=(40, 64))
    (root / "sample_submission.csv").write_text("id,blue,red\na,0.5,0.5\nb,0.5,0.5\n")
    return root


# ---- the whole road


TRAIN = "--epochs 1 --batch-size 4 --accumulation-steps 1 --lr 0.01 --precision fp32".split()
TRAIN += ["--set", "data.workers=0", "--set", "data.val_fraction=0.25", "--set", "optimizer.weight_decay=0"]
ROADS = {
    "dinov2-other-size": (
        "dinov2",
        ["--lora-rank", "2", "--image-size", "84", "--set", "lora.also_train=[patch_projection,class_token]"],
    ),
    "convnextv2-whole": ("convnextv2", ["--lora-rank", "0"]),
    "timm-vit-other-size": (
        "timm-vit",
        ["--lora-rank", "2", "--image-size", "48", "--set", "lora.targets=[qkv,fc2]"],
    ),
    "timm-dinov3-other-size": (
        "timm-dinov3",
        ["--lora-rank", "2", "--image-size", "48", "--set", "lora.targets=[qkv]"],
    ),
}


@pytest.mark.parametrize(
    ("saved", "flags"), [pytest.param(*road, id=name) for name, road in ROADS.items()], indirect=["saved"]
)
def test_train_then_predict(saved: Path, flags: list[str], tmp_path: Path) -> None:
    data, output = small_competition(tmp_path / "data"), tmp_path / "run"
    assert (
        train.main(["--data", str(data), "--backbone", str(saved), "--output", str(output), *TRAIN, *flags])
        == 0
    )
    predictions = tmp_path / "predictions.csv"
    command = [
        *("--model", str(output), "--data", str(data), "--output", str(predictions)),
        *("--precision", "fp32"),
    ]
    assert inference.main(command) == 0
    table = pd.read_csv(predictions).set_index("id")
    assert list(table.columns) == ["blue", "red"] and np.allclose(table.sum(axis=1), 1, atol=1e-4)

    if any("also_train" in flag for flag in flags):  # the state of a resumed run has to hold them
        state = torch.load(max((output / "state").glob("*.pt")), weights_only=True)
        assert sum(".embeddings.modules_to_save." in name for name in state["weights"]) == 3

    # The same from the files of the run by plain libraries: transformers, peft, and the saved processor.
    base = next(folder for folder in output.glob("model_*") if folder.name != "model_lora")
    model = AutoModelForImageClassification.from_pretrained(base)
    if (output / "model_lora").exists():
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, output / "model_lora")
    processor = AutoImageProcessor.from_pretrained(base, use_fast=False)
    pixels = processor(
        [Image.open(data / "test" / f"{name}.png") for name in table.index], return_tensors="pt"
    )["pixel_values"]
    with torch.no_grad():
        probs = model.eval()(pixel_values=pixels).logits.softmax(dim=1)
    # Its resizing may be torchvision's
    np.testing.assert_allclose(table.to_numpy(), probs.numpy(), atol=5e-3)


@pytest.mark.parametrize("kind", CONFIGS)
def test_attention_by_products_is_turned_on_and_off(kind: str) -> None:
    """Also where configs lie inside one another (SigLIP): what is set for the outer one is set inside too."""
    model = tiny(kind)

    def ways() -> list[str]:
        parts = (module for module in model.modules() if hasattr(module, "config"))
        return [part.config._attn_implementation for part in parts]

    before = ways()
    count = attend_by_products(model)
    assert (count > 0) == ("products" in ways()) == (kind in ("dinov2", "dinov2-giant", "siglip", "clip"))
    assert attend_by_products(model, on=False) == count and ways() == before


# ---- loading and saving


@pytest.mark.parametrize("saved", CONFIGS, indirect=True)
def test_loaded_saved_and_loaded_again(saved: Path, tmp_path: Path) -> None:
    original = AutoModelForImageClassification.from_pretrained(saved)
    size = 56 if original.config.model_type == "dinov2" else 32
    own = [original.config.id2label[index] for index in range(5)]
    same = load_backbone(str(saved), own)
    assert not same.new_head and torch.equal(logits(same.model, size), logits(original, size))
    backbone = load_backbone(str(saved), NAMES)
    assert backbone.new_head and backbone.model.get_submodule(head_name(backbone.model)).out_features == 3
    save_backbone(backbone.model, backbone.model.state_dict(), backbone.preprocessing, tmp_path / "again")
    plain, info = AutoModelForImageClassification.from_pretrained(
        tmp_path / "again", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert list(plain.config.id2label.values()) == list(NAMES)
    assert torch.equal(logits(plain, size), logits(backbone.model, size))
    rebuilt = rebuild_backbone(tmp_path / "again", 3)
    assert not rebuilt.new_head and torch.equal(logits(rebuilt.model, size), logits(backbone.model, size))
    assert not load_backbone(str(tmp_path / "again"), NAMES).new_head  # the names are kept too
    assert load_backbone(str(tmp_path / "again"), NAMES[::-1]).new_head


@pytest.mark.parametrize("kind", ["dinov2", "dinov2-giant"])
def test_dinov2_as_it_lies_on_the_hub(kind: str, tmp_path: Path) -> None:
    """The encoder alone, its weights without a prefix and under the names of 2023; the giant's gate and fc1
    are one matrix there.
    """
    model = tiny(kind)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    hub = {
        name.removeprefix("dinov2."): tensor for name, tensor in tensors.items() if name.startswith("dinov2.")
    }
    for new, old in OF_2023.items():
        hub = {name.replace(new, old): tensor for name, tensor in hub.items()}
    for name in [name for name in hub if ".mlp.gate_proj." in name]:
        hub[name.replace("gate_proj", "weights_in")] = torch.cat(
            [hub.pop(name), hub.pop(name.replace("gate_proj", "up_proj"))]
        )
    save_file(hub, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = load_backbone(str(tmp_path), NAMES)
    assert loaded.new_head
    expected = model.state_dict()
    assert all(
        torch.equal(weight, expected[name])
        for name, weight in loaded.model.state_dict().items()
        if "classifier" not in name
    )


ROLES_OF = {
    "dinov2": ("query", "key", "value", "output", "fc1", "fc2"),
    "dinov2-giant": ("query", "value", "gate", "fc1", "fc2"),
    "convnextv2": ("fc1", "fc2"),
    "siglip": ("query", "key", "value", "output", "fc1", "fc2"),
    "timm-vit": ("qkv", "output", "fc1", "fc2"),
    "timm-eva02": ("query", "key", "value", "output", "gate", "fc1", "fc2"),
    "timm-eva02-fused": ("output", "fc1", "fc2"),
    "timm-dinov3": ("qkv", "output", "fc1", "fc2"),
    "timm-convnextv2": ("fc1", "fc2"),
    "timm-swin": ("qkv", "output", "fc1", "fc2"),
}


@pytest.mark.parametrize("kind", ROLES_OF)
def test_an_adapter_on_every_role_learns_and_merges(kind: str, tmp_path: Path) -> None:
    model, roles = tiny(kind), ROLES_OF[kind]
    size = 56 if kind.startswith("dinov2") else 32
    layers = modules_of(model, roles)
    assert len(layers) == len(roles) * {"convnextv2": 5, "timm-convnextv2": 4}.get(kind, 2)
    adapted = attach(model, 2, 4, 0.0, roles)
    adapted(pixel_values=torch.randn(2, 3, size, size)).logits.square().sum().backward()
    idle = [
        name for name, weight in adapted.named_parameters() if ".lora_B." in name and not weight.grad.any()
    ]
    # An adapter on a layer that the forward pass goes around would learn nothing, and nobody would know
    assert not idle
    for weight in adapted.parameters():
        if weight.requires_grad:
            nn.init.normal_(weight, std=0.3)
    save_adapter(adapted, tmp_path)
    expected = logits(adapted, size)
    loaded = load_adapter(tiny(kind), tmp_path)
    assert torch.equal(logits(loaded, size), expected)
    merged = merge(loaded, lambda module: logits(module, size))
    assert (logits(merged, size) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    ("kind", "roles", "message"),
    [
        (
            "convnextv2",
            ("query",),
            "ConvNextV2ForImageClassification has no query layer; it has fc1, fc2 (--set "
            "lora.targets=[fc1,fc2])",
        ),
        (
            "timm-vit",
            ("query", "value"),
            "VisionTransformer has no query, value layer; it has qkv, output, fc1, fc2 (--set",
        ),
        (
            "timm-eva02-fused",
            ("qkv",),
            "Eva uses only the weight of qkv, so an adapter would have no effect; it has output, fc1, fc2 "
            "(--set",
        ),
        (
            "resnet",
            ("fc1",),
            "has no fc1 layer; use full fine-tuning (--lora-rank 0); its linear layers end in: classifier.1",
        ),
    ],
)
def test_roles_an_architecture_does_not_have(kind: str, roles: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError) as caught:
        modules_of(tiny(kind), roles)
    assert message in str(caught.value)


SMALL = {"hidden_size": 384, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 6}
CANNOT_CLASSIFY = {
    "dinov3_vit": (DINOv3ViTConfig(**SMALL), "--backbone timm/vit_small_patch16_dinov3.lvd1689m"),
    "siglip2": (Siglip2Config(vision_config=SMALL), "google/siglip2-base-patch16-224"),
}


@pytest.mark.parametrize("kind", CANNOT_CLASSIFY)
def test_an_architecture_that_cannot_classify_images_names_another(kind: str, tmp_path: Path) -> None:
    config, other = CANNOT_CLASSIFY[kind]
    config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=rf"architecture {kind}\b.*{re.escape(other)}"):
        load_backbone(str(tmp_path), NAMES)


def test_a_checkpoint_with_two_heads_is_refused(tmp_path: Path) -> None:
    config = DeiTConfig(**SMALL, num_labels=5)
    DeiTForImageClassificationWithTeacher(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"two heads .*cls_classifier, distillation_classifier"):
        load_backbone(str(tmp_path), NAMES)


# ---- timm


def test_a_checkpoint_as_timm_puts_it_on_the_hub(tmp_path: Path) -> None:
    """No model_type, weights under timm's own names, the preprocessing in pretrained_cfg: compared with
    timm's model and timm's transform.
    """
    timm = pytest.importorskip("timm")
    model_args = {"img_size": 48, "patch_size": 16, "embed_dim": 24, "depth": 1, "num_heads": 3}
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=4, **model_args).eval()
    rule = {
        "input_size": [3, 48, 48],
        "interpolation": "bilinear",
        "crop_pct": 0.9,
        "crop_mode": "center",
        "classifier": "head",
    }
    rule |= {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.4, 0.3], "num_classes": 4}
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 4,
        "num_features": 24,
        "model_args": model_args,
        "pretrained_cfg": rule,
    }
    (tmp_path / "config.json").write_text(json.dumps(config | {"label_names": ["a", "b", "c", "d"]}))
    save_file(model.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    backbone = load_backbone(str(tmp_path), ("a", "b", "c", "d"))
    assert not backbone.new_head and native_image_size(backbone.model) == 48
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8))
    transform = timm.data.create_transform(
        **timm.data.resolve_data_config({}, pretrained_cfg=rule), is_training=False
    )
    ours = backbone.preprocessing.normalize(
        torch.from_numpy(np.array(backbone.preprocessing.resize(image))).permute(2, 0, 1)[None]
    )
    theirs = transform(image)[None]
    assert (ours - theirs).abs().max() < 1e-5
    with torch.no_grad():
        assert (backbone.model.eval()(pixel_values=ours).logits - model(theirs)).abs().max() < 1e-5


@pytest.mark.parametrize("architecture", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3"])
def test_a_timm_checkpoint_without_a_head(architecture: str, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model(architecture, num_classes=0, **TIMM_VIT)
    rule = {"input_size": [3, 32, 32], "crop_pct": 1.0, "num_classes": 0}
    config = {
        "architecture": architecture,
        "num_classes": 0,
        "model_args": TIMM_VIT,
        "pretrained_cfg": rule,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    backbone = load_backbone(str(tmp_path), NAMES)
    assert backbone.new_head and logits(backbone.model).shape == (2, 3)
    loaded = backbone.model.timm_model.state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("saved", ["timm-vit", "timm-eva02", "timm-swin", "timm-convnextv2"], indirect=True)
def test_a_timm_classifier_without_its_head_is_an_encoder(saved: Path) -> None:
    """As image backbone of questions; compared with timm's own features."""
    inner = AutoModelForImageClassification.from_pretrained(saved).eval().timm_model
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = inner.forward_head(inner.forward_features(pixels), pre_logits=True)
        found = pooled(load_encoder(str(saved), "--backbone").eval()(pixel_values=pixels))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("saved", ["timm-vit", "timm-eva02", "timm-swin", "timm-convnextv2"], indirect=True)
def test_timm_at_another_size_keeps_its_table(saved: Path) -> None:
    native, wider = load_backbone(str(saved), NAMES), load_backbone(str(saved), NAMES, image_size=48)
    assert wider.preprocessing.height == 48 and logits(wider.model, 48).shape == (2, 3)
    weights = wider.model.state_dict()
    assert all(
        torch.equal(weights[name], weight)
        for name, weight in native.model.state_dict().items()
        if ".head." not in name
    )


@pytest.mark.parametrize(
    ("saved", "size", "reason"),
    [("timm-relpos", 64, "doesn't match model"), ("timm-vit", 50, "should be divisible by patch size")],
    indirect=["saved"],
)
def test_a_size_that_a_timm_model_does_not_take(saved: Path, size: int, reason: str) -> None:
    with pytest.raises(
        UserError,
        match=f"--image-size {size}: timm's .*, made for 32 px, does not run at this size: .*{reason}",
    ):
        load_backbone(str(saved), NAMES, image_size=size)


@pytest.mark.parametrize("saved", ["clip", "siglip"], indirect=True)
def test_an_image_text_model_at_another_size(saved: Path) -> None:
    """CLIP's classifier passes `interpolate_pos_encoding` on, without naming it."""
    backbone = load_backbone(str(saved), NAMES, image_size=48)
    classifier = ImageClassifier.of(backbone.model.eval(), backbone)
    pixels = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = backbone.model(pixel_values=pixels, interpolate_pos_encoding=True).logits
        assert torch.equal(classifier.forward(classifier.model, pixels), expected)


@pytest.mark.parametrize("saved", ["timm-vit", "timm-dinov3", "timm-swin", "timm-convnextv2"], indirect=True)
def test_activation_checkpointing_in_timm_changes_no_bit_and_needs_less(saved: Path) -> None:
    model = load_backbone(str(saved), NAMES, drop_path=0.3).model.train()
    pixels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        torch.manual_seed(0)
        model(pixels).logits.square().sum().backward()
        return [weight.grad.clone() for weight in model.parameters()]

    def counted() -> Memory:
        loss = lambda forward, given: forward(given).logits.sum()  # noqa: E731
        return account(model, loss, pixels[:1], "adamw")

    plain, memory = gradients(), counted()
    assert checkpoint_layers(model) >= 2
    assert all(map(torch.equal, gradients(), plain))
    less = counted()
    assert less.saved_per_image < memory.saved_per_image and less.recomputed_per_image > 0
    assert less.total(8) < memory.total(8)
    checkpoint_layers(model, on=False)
    assert counted() == memory


@pytest.mark.parametrize("saved", ["timm-vit", "timm-dinov3"], indirect=True)
def test_stochastic_depth_in_timm_counts_in_training_alone(saved: Path) -> None:
    pixels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        plain, dropping = (load_backbone(str(saved), NAMES, drop_path=rate).model for rate in (0.0, 0.9))
        dropping.load_state_dict(plain.state_dict())
        assert torch.equal(plain.train()(pixels).logits, plain.eval()(pixels).logits)
        assert torch.equal(plain(pixels).logits, dropping.eval()(pixels).logits)
        assert not torch.equal(plain(pixels).logits, dropping.train()(pixels).logits)


def test_a_timm_model_without_stochastic_depth() -> None:
    pytest.importorskip("timm")
    densenet = {"model_type": "timm_wrapper", "architecture": "densenet121"}
    with pytest.raises(UserError, match=r"drop_path: timm's densenet121 .*--set drop_path=null"):
        load_backbone("none", NAMES, None, True, densenet, drop_path=0.1)


@pytest.mark.parametrize("saved", ["timm-vit"], indirect=True)
def test_without_timm_the_message_says_what_to_install(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.utils import import_utils

    _, text = import_utils.BACKENDS_MAPPING["timm"]
    monkeypatch.setitem(import_utils.BACKENDS_MAPPING, "timm", (lambda: False, text))
    for random_weights in (False, True):
        with pytest.raises(UserError) as caught:
            load_backbone(str(saved), NAMES, random_weights=random_weights)
        assert "requires the timm library" in str(caught.value)
        assert "`python -m pip install -c constraints.txt timm` installs it" in str(caught.value)


def test_timm_keeps_its_class_token_where_no_adapter_can_save_it() -> None:
    with pytest.raises(UserError, match=r"VisionTransformer .*class_token.*PEFT"):
        attach(tiny("timm-vit"), 2, 4, 0.0, ("qkv",), ("class_token",))
    adapted = attach(tiny("timm-vit"), 2, 4, 0.0, ("qkv",), ("patch_projection",))
    assert (
        sum(
            ".modules_to_save." in name and "patch_embed.proj" in name
            for name, _ in adapted.named_parameters()
        )
        == 2
    )


def test_norms_of_timms_own_kind_are_trained_saved_and_merged(tmp_path: Path) -> None:
    """AIMv2 has RMS norms, whose class timm calls RmsNorm."""
    model = tiny("timm-aimv2")
    norms = {name for name, module in model.named_modules() if type(module).__name__ == "RmsNorm"}
    assert len(norms) == 6  # two in each block, one after the patches, one after the blocks
    adapted = attach(model, 2, 4, 0.0, ("qkv",), ("norms",))
    copies = [
        weight
        for name, weight in adapted.named_parameters()
        if weight.requires_grad and ".modules_to_save." in name and ".head." not in name
    ]
    assert len(copies) == len(norms)
    for weight in adapted.parameters():
        if weight.requires_grad:
            nn.init.normal_(weight, std=0.3)
    expected = logits(adapted)
    save_adapter(adapted, tmp_path)
    merged = merge(load_adapter(tiny("timm-aimv2"), tmp_path), logits)
    assert (logits(merged) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("kind", ["timm-eva02-fused", "timm-vit", "siglip"])
def test_every_bias_is_trained_without_an_adapter(kind: str) -> None:
    """timm's fused EVA-02 keeps two biases of its attention as parameters, SigLIP's pooling one."""
    model = tiny(kind).requires_grad_(False)
    train_parts(model, ("biases",))
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if name.endswith("bias")}


# ---- batch norms


@pytest.mark.parametrize("saved", ["resnet", "timm-resnet"], indirect=True)
def test_batch_norms_keep_the_checkpoints_statistics(saved: Path) -> None:
    model = load_backbone(str(saved), NAMES).model
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.train()
    pictures = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    together = model(pixel_values=pictures).logits
    alone = torch.cat([model(pixel_values=one[None]).logits for one in pictures])
    # What an image yields does not depend on its micro-batch
    assert torch.allclose(together, alone, atol=1e-5)
    assert before and all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    together.sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())
