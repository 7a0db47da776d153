"""Adapters: attached by role, saved for plain PEFT, loaded across library versions, merged; parameter counts
of the reports.
"""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Malicious
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForImageClassification,
    BeitConfig,
    BeitForImageClassification,
    ConvNextConfig,
    SwinConfig,
    Swinv2Config,
    ViTConfig,
)

from pipeline.data.dataset import ImageDataset
from pipeline.errors import UserError
from pipeline.models.adapter_files import head_classes, rename_tensors
from pipeline.models.backbones import rebuild_backbone
from pipeline.models.lora import attach, count_parameters, load_adapter, merge, plain_state_dict, save_adapter
from pipeline.models.roles import modules_of, role_of

LEGACY = Path(__file__).parent / "fixtures" / "legacy_beit"
VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 32,
    "patch_size": 8,
}
SWIN = {
    "image_size": 32,
    "patch_size": 4,
    "embed_dim": 8,
    "depths": [1, 2],
    "num_heads": [1, 2],
    "window_size": 4,
}
CONFIGS: dict[str, Callable[[], Any]] = {
    "beit": lambda: BeitConfig(**VIT, use_relative_position_bias=True, num_labels=3),
    "vit": lambda: ViTConfig(**VIT, num_labels=3),
    "swin": lambda: SwinConfig(**SWIN, num_labels=3),
    "swinv2": lambda: Swinv2Config(**SWIN, num_labels=3),
}
EVERYWHERE = ("query", "key", "value", "output", "fc1", "fc2")  # what a plain transformer has
# transformers < 5.9: module path before its role, and the role's own names. SwinV2 still has them.
VIT_2023 = {
    "query": "attention.attention.query",
    "key": "attention.attention.key",
    "value": "attention.attention.value",
}
VIT_2023 |= {"output": "attention.output.dense", "fc1": "intermediate.dense", "fc2": "output.dense"}
SWIN_2023 = VIT_2023 | {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
}


def tiny(kind: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = AutoModelForImageClassification.from_config(CONFIGS[kind]())
    for weight in model.parameters():
        if weight.ndim > 1:
            nn.init.normal_(weight, std=0.15)
    return model.eval()


def adapted(
    kind: str, roles: tuple[str, ...] = ("query", "key"), trained: bool = True, **options: Any
) -> PeftModel:
    """A tiny model with an adapter; `trained`: its matrices are drawn, as training would have changed
    them.
    """
    model = attach(tiny(kind), **({"rank": 4, "alpha": 8, "dropout": 0.1} | options), roles=roles)
    if trained:
        for weight in model.parameters():
            if weight.requires_grad:
                nn.init.normal_(weight, std=0.3)
    return model.eval()


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    return model(pixel_values=torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))).logits


def assert_close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 5e-5) -> None:
    """`a` is `b` up to rounding: float32 logits of Swin are up to 1e-5 from float64, merged or not."""
    assert (a - b).abs().max().item() <= tolerance * max(1.0, b.abs().max().item())


# ---- parameter counts of the reports, on tensors without data


def beit_large(num_labels: int) -> nn.Module:
    """microsoft/beit-large-patch16-384 as its config.json has it."""
    return BeitForImageClassification(
        BeitConfig(
            hidden_size=1024,
            num_hidden_layers=24,
            num_attention_heads=16,
            intermediate_size=4096,
            image_size=384,
            patch_size=16,
            layer_scale_init_value=0.1,
            use_relative_position_bias=True,
            use_mean_pooling=True,
            num_labels=num_labels,
        )
    )


def test_report_0_beit_large_with_and_without_lora() -> None:
    with torch.device("meta"):
        model = beit_large(200)
        full = count_parameters(model)
        counts = count_parameters(attach(model, 16, 16, 0.1, ("query", "key")))
    assert vars(counts) == {
        "model": 304_178_888,
        "trainable": 1_777_864,
        "adapter": 1_572_864,
        "head": 205_000,
    }
    assert vars(full) == {"model": 304_178_888, "trainable": 304_178_888, "adapter": 0, "head": 205_000}


@pytest.mark.parametrize(("rank", "trainable"), [(8, 443_906), (24, 1_328_642)])
def test_report_3_vit_base_ranks(rank: int, trainable: int) -> None:
    with torch.device("meta"):
        model = AutoModelForImageClassification.from_config(ViTConfig(num_labels=2))
        counts = count_parameters(attach(model, rank, rank, 0.1, ("query", "key", "value")))
    assert (counts.trainable, counts.head, counts.adapter) == (trainable, 1538, trainable - 1538)
    share = {8: 0.51, 24: 1.52}[rank]  # of everything that is in memory, as peft prints it
    assert round(100 * trainable / (counts.model + counts.trainable), 2) == share


# ---- attaching


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_role_is_one_layer_of_each_block(kind: str) -> None:
    model = tiny(kind)
    blocks = 3 if kind.startswith("swin") else 2
    found = {role: modules_of(model, [role]) for role in EVERYWHERE}
    for role, names in found.items():
        assert len(names) == blocks, (role, names)
        assert all(isinstance(model.get_submodule(name), nn.Linear) for name in names)
    assert len({name for names in found.values() for name in names}) == 6 * blocks
    fc1, fc2 = model.get_submodule(found["fc1"][0]), model.get_submodule(found["fc2"][0])
    assert fc1.in_features < fc1.out_features and fc2.in_features > fc2.out_features
    attention = [model.get_submodule(found[role][0]) for role in ("query", "key", "value", "output")]
    assert all(layer.in_features == layer.out_features for layer in attention)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("roles", [("query", "key"), ("value",), ("output",), ("fc2",), EVERYWHERE])
def test_attach_hits_the_roles_and_nothing_else(kind: str, roles: tuple[str, ...]) -> None:
    model = adapted(kind, roles, trained=False)
    hit = [
        name.removeprefix("base_model.model.").removesuffix(".lora_A")
        for name, _ in model.named_modules()
        if name.endswith(".lora_A")
    ]
    assert {role_of(name) for name in hit} == set(roles)
    assert len(hit) == len(roles) * (3 if kind.startswith("swin") else 2)
    trainable = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert all(".lora_" in name or "classifier.modules_to_save" in name for name in trainable)
    # B is zero: training starts from the pretrained model
    assert_close(logits(model), logits(tiny(kind)), 1e-6)


def test_layers_that_are_no_target_keep_their_names() -> None:
    assert (
        role_of("beit.layers.0.attention.q_proj")
        == role_of("beit.encoder.layer.0.attention.attention.query")
        == "query"
    )
    assert role_of("vit.encoder.layer.3.output.dense") == "fc2"
    assert role_of("vit.encoder.layer.3.attention.output.dense") == "output"
    assert role_of("classifier") is None and role_of("swin.encoder.layers.0.downsample.reduction") is None
    assert (
        role_of("vit.pooler.dense") is None and role_of("beit.embeddings.patch_embeddings.projection") is None
    )


def test_an_architecture_without_the_role_lists_its_layers() -> None:
    model = AutoModelForImageClassification.from_config(
        ConvNextConfig(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1])
    )
    with pytest.raises(UserError) as caught:
        modules_of(model, ("query", "key"))
    assert "ConvNextForImageClassification has no query, key layer" in str(caught.value)
    assert "its linear layers end in: classifier, pwconv1, pwconv2" in str(caught.value)


def test_counts_of_a_tiny_model_by_hand() -> None:
    model = tiny("vit")
    total = sum(weight.numel() for weight in model.parameters())
    assert vars(count_parameters(model)) == {
        "model": total,
        "trainable": total,
        "adapter": 0,
        "head": 16 * 3 + 3,
    }
    counts = count_parameters(attach(model, 4, 8, 0.0, ("query", "fc1")))
    adapter = 2 * (4 * (16 + 16) + 4 * (16 + 24))
    assert vars(counts) == {"model": total, "trainable": adapter + 51, "adapter": adapter, "head": 51}


# ---- saving, and loading by others


@pytest.mark.parametrize("kind", CONFIGS)
def test_plain_transformers_and_plain_peft_load_what_was_saved(kind: str, tmp_path: Path) -> None:
    model = adapted(kind)
    base = model.get_base_model()
    base.save_pretrained(tmp_path / "base", state_dict=plain_state_dict(model))
    save_adapter(model, tmp_path / "model_lora")
    assert {path.name for path in (tmp_path / "model_lora").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    plain, info = AutoModelForImageClassification.from_pretrained(tmp_path / "base", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert_close(logits(plain), logits(tiny(kind)), 1e-6)  # the base is the untrained original
    loaded = PeftModel.from_pretrained(plain, tmp_path / "model_lora").eval()
    assert_close(logits(loaded), logits(model), 1e-6)
    assert_close(logits(load_adapter(tiny(kind), tmp_path / "model_lora")), logits(model), 1e-6)
    config = json.loads((tmp_path / "model_lora" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == ""  # a path of this machine means nothing elsewhere
    assert (config["r"], config["lora_alpha"], config["lora_dropout"], config["bias"]) == (4, 8, 0.1, "none")


def test_saving_again_replaces_and_keeps_the_model_as_it_was(tmp_path: Path) -> None:
    model = adapted("vit")
    save_adapter(model, tmp_path)
    first = load_file(tmp_path / "adapter_model.safetensors")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.mul_(2)
    save_adapter(model, tmp_path)
    second = load_file(tmp_path / "adapter_model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(second[name], first[name] * (2 if "lora_B" in name else 1)) for name in first)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_plain_models_state_dict_is_its_own() -> None:
    model = tiny("vit")
    assert plain_state_dict(model).keys() == model.state_dict().keys()
    assert plain_state_dict(adapted("vit")).keys() == model.state_dict().keys()


# ---- parts trained whole beside the adapter


PARTS = ("patch_projection", "class_token")


@pytest.mark.parametrize("kind", ["vit", "beit"])
def test_parts_trained_whole_are_trained_saved_loaded_and_merged(kind: str, tmp_path: Path) -> None:
    model = adapted(kind, ("query", "value"), also_train=PARTS)
    trained = {
        name for name, weight in model.named_parameters() if weight.requires_grad and ".lora_" not in name
    }
    prefix = f"base_model.model.{kind}.embeddings.modules_to_save.default."
    parts = {
        f"{prefix}{name}"
        for name in ("cls_token", "patch_embeddings.projection.weight", "patch_embeddings.projection.bias")
    }
    head = {f"base_model.model.classifier.modules_to_save.default.{name}" for name in ("weight", "bias")}
    assert trained == parts | head
    counts, by_hand = count_parameters(model), 2 * 2 * 4 * (16 + 16) + (3 * 8 * 8 * 16 + 16) + 16 + 51
    assert (counts.trainable, counts.adapter, counts.head) == (by_hand, 512, 51)
    assert counts.model == count_parameters(tiny(kind)).model

    save_adapter(model, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert head_classes(tmp_path) == 3
    plain = tiny(kind)
    plain.load_state_dict(plain_state_dict(model))  # what the run's own folder holds: the untrained original
    assert_close(logits(plain), logits(tiny(kind)), 1e-6)
    expected = logits(model)
    assert_close(logits(PeftModel.from_pretrained(plain, tmp_path).eval()), expected, 1e-6)
    loaded = load_adapter(tiny(kind), tmp_path)
    assert_close(logits(loaded), expected, 1e-6)
    merged = merge(loaded, logits)
    assert merged.state_dict().keys() == tiny(kind).state_dict().keys()
    assert_close(logits(merged), expected)
    token = f"{kind}.embeddings.cls_token"
    assert torch.equal(merged.state_dict()[token], dict(model.named_parameters())[f"{prefix}cls_token"])
    assert not torch.equal(merged.state_dict()[token], tiny(kind).state_dict()[token])


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    save_adapter(adapted("vit", also_train=PARTS), tmp_path)
    change(tmp_path, lambda tensors: tensors.pop("base_model.model.vit.embeddings.cls_token"))
    assert "base_model.model.vit.embeddings.cls_token: missing" in refusal(tmp_path)


def test_one_part_is_copied_without_the_other(tmp_path: Path) -> None:
    save_adapter(adapted("swin", also_train=("patch_projection",)), tmp_path)
    carried = {name for name in load_file(tmp_path / "adapter_model.safetensors") if "embeddings" in name}
    projection = "base_model.model.swin.embeddings.patch_embeddings.projection"
    assert carried == {f"{projection}.weight", f"{projection}.bias"}
    with pytest.raises(UserError, match="SwinForImageClassification has no class_token"):
        adapted("swin", also_train=("class_token",))


# ---- adapters of 2023


def old_name(kind: str, name: str) -> str:
    """Today's module name as transformers < 5.9 had it."""
    if kind == "swinv2":
        return name
    path = re.match(r"(beit|vit)\.layers\.(\d+)\.|(swin\.encoder\.layers\.\d+\.blocks\.\d+)\.", name)
    prefix = path[3] or f"{path[1]}.encoder.layer.{path[2]}"
    return f"{prefix}.{(SWIN_2023 if kind == 'swin' else VIT_2023)[role_of(name)]}"


def as_of_2023(kind: str, folder: Path, pickled: bool) -> None:
    """Rename the tensors of a saved adapter, and store it as peft 0.7 did."""
    tensors, prefix = {}, "base_model.model."
    for name, tensor in load_file(folder / "adapter_model.safetensors").items():
        module, dot, rest = name.removeprefix(prefix).partition(".lora_")
        tensors[prefix + (old_name(kind, module) if dot else module) + dot + rest] = tensor
    config = json.loads((folder / "adapter_config.json").read_text())
    config["target_modules"] = sorted(
        {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in tensors if ".lora_" in name}
    )
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter_model.safetensors").unlink()
    if pickled:
        torch.save(tensors, folder / "adapter_model.bin")
    else:
        save_file(tensors, folder / "adapter_model.safetensors")


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("roles", [("query", "value"), EVERYWHERE])
def test_an_adapter_under_the_names_of_2023_gives_the_same_logits(
    kind: str, roles: tuple[str, ...], tmp_path: Path
) -> None:
    model = adapted(kind, roles)
    save_adapter(model, tmp_path)
    as_of_2023(kind, tmp_path, pickled=kind != "swin")
    assert_close(logits(load_adapter(tiny(kind), tmp_path)), logits(model), 1e-6)
    if kind != "swinv2":
        with pytest.raises((ValueError, RuntimeError)):  # why this project renames
            PeftModel.from_pretrained(tiny(kind), tmp_path)


def test_todays_adapter_under_old_names_has_exactly_the_keys_of_the_2023_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = rebuild_backbone(LEGACY / "finetuned_model" / "model_beit", 10).model
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    save_adapter(attach(model, 16, 16, 0.1, ("query", "key")), tmp_path)
    today = load_file(tmp_path / "adapter_model.safetensors")
    stored = torch.load(LEGACY / "finetuned_model" / "model_lora" / "adapter_model.bin", weights_only=True)
    renamed = rename_tensors(today, [old_name("beit", name) for name in linear if role_of(name)])
    assert renamed.keys() == stored.keys() and today.keys() != stored.keys()
    assert {name: tensor.shape for name, tensor in renamed.items()} == {
        name: tensor.shape for name, tensor in stored.items()
    }


def test_the_release_of_2023_gives_the_logits_it_gave_then() -> None:
    """Made by transformers 4.36 and peft 0.7: pickled .bin files, old module names, old preprocessor keys."""
    expected = json.loads((LEGACY / "expected_logits.json").read_text())["logits"]
    backbone = rebuild_backbone(LEGACY / "finetuned_model" / "model_beit", 10)
    model = load_adapter(backbone.model, LEGACY / "finetuned_model" / "model_lora")
    assert head_classes(LEGACY / "finetuned_model" / "model_lora") == 10
    dataset = ImageDataset(
        [LEGACY / "data" / "test" / f"{name}.png" for name in expected], None, backbone.preprocessing
    )
    pixels = backbone.preprocessing.normalize(
        torch.stack([dataset[0, row]["pixels"] for row in range(len(expected))])
    )
    with torch.no_grad():
        found = model(pixel_values=pixels).logits
    golden = torch.tensor(list(expected.values()))
    assert (found - golden).abs().max() < 1e-5
    with torch.no_grad():
        merged = merge(model, lambda module: module(pixel_values=pixels).logits)(pixel_values=pixels).logits
    assert (merged - golden).abs().max() < 1e-5


# ---- what does not fit


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_adapter(adapted("vit"), tmp_path / "model_lora")
    return tmp_path / "model_lora"


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    edit(tensors)
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "adapter_model.safetensors"
    )


def change_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "adapter_config.json").read_text()) | values
    (folder / "adapter_config.json").write_text(json.dumps(config))


def refusal(folder: Path, kind: str = "vit") -> str:
    with pytest.raises(UserError) as caught:
        load_adapter(tiny(kind), folder)
    assert str(folder) in str(caught.value)
    return str(caught.value)


Q0 = "base_model.model.vit.layers.0.attention.q_proj.lora_A.weight"


def test_missing_extra_misshapen_and_nan_tensors_are_all_named(folder: Path) -> None:
    def damage(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[Q0]
        tensors["base_model.model.vit.layers.1.mlp.fc1.bias"] = torch.zeros(24)
        tensors[Q0.replace("layers.0", "layers.1")] = torch.zeros(4, 17)
        tensors[Q0.replace("q_proj", "k_proj")].fill_(float("nan"))

    change(folder, damage)
    text = refusal(folder)
    assert "does not fit ViTForImageClassification:" in text
    assert f"{Q0}: missing" in text
    assert "base_model.model.vit.layers.1.mlp.fc1.bias: unexpected" in text
    assert f"{Q0.replace('layers.0', 'layers.1')}: shape (4, 17), expected (4, 16)" in text
    assert f"{Q0.replace('q_proj', 'k_proj')}: holds NaN or infinity" in text


def test_a_head_of_another_class_count_is_named(folder: Path) -> None:
    def wider(tensors: dict[str, torch.Tensor]) -> None:
        tensors["base_model.model.classifier.weight"] = torch.zeros(7, 16)
        tensors["base_model.model.classifier.bias"] = torch.zeros(7)

    assert head_classes(folder) == 3
    change(folder, wider)
    assert head_classes(folder) == 7
    assert "base_model.model.classifier.weight: shape (7, 16), expected (3, 16)" in refusal(folder)
    change(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if "classifier" in name])
    assert "base_model.model.classifier.weight: missing" in refusal(folder)
    with pytest.raises(UserError, match=r"classification head"):
        head_classes(folder)


def test_layers_of_a_larger_model_are_named(folder: Path) -> None:
    change(folder, lambda tensors: tensors.update({Q0.replace("layers.0", "layers.7"): torch.zeros(4, 16)}))
    text = refusal(folder)
    assert "was made for another architecture:" in text
    assert "vit.layers.7.attention.q_proj: no such layer" in text


@pytest.mark.parametrize("keep", [0, 5, 200, -50])
def test_a_truncated_file_is_one_message(folder: Path, keep: int) -> None:
    content = (folder / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(content[:keep])
    assert "adapter_model.safetensors: cannot be read" in refusal(folder)
    with pytest.raises(UserError, match="cannot be read"):
        head_classes(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"peft_type": "IA3"}, "expected the settings of a LoRA adapter"),
        ({"alpha_pattern": {"query": 32}}, "alpha_pattern: {'query': 32} is a kind"),
        ({"use_dora": True, "rank_pattern": {"key": 2}}, "rank_pattern: {'key': 2} is a kind"),
        ({"layer_replication": [[0, 2]]}, "layer_replication: [[0, 2]] is a kind"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices: [3] is a kind"),
        ({"use_qalora": True}, "use_qalora: True is a kind"),
        ({"of_a_later_peft": 0.5}, "of_a_later_peft: 0.5 is a kind"),
        ({"bias": "some"}, "bias: expected none, all, lora_only, found 'some'"),
        ({"r": 0}, "r: expected a whole number from 1, found 0"),
        ({"r": -1, "lora_alpha": "8"}, "lora_alpha: expected a number above 0, found '8'"),
        ({"r": "8"}, "r: expected a whole number from 1, found '8'"),
        ({"r": True}, "r: expected a whole number from 1, found True"),
        ({"r": 8}, "r: 8, but the tensors' rank is 4"),
        ({"r": 10**9}, "r: 1000000000, but the tensors' rank is 4"),
        ({"lora_alpha": float("nan")}, "lora_alpha: expected a number above 0, found nan"),
        ({"lora_dropout": 1.5}, "lora_dropout: expected a number from 0 to below 1, found 1.5"),
        ({"use_rslora": "yes"}, "use_rslora: expected true or false, found 'yes'"),
        ({"modules_to_save": "classifier"}, "modules_to_save: expected a list of names, found 'classifier'"),
    ],
)
def test_settings_that_are_not_ours_are_refused(folder: Path, values: dict, message: str) -> None:
    change_config(folder, **values)
    assert message in refusal(folder)


def test_settings_that_are_damaged(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    text = refusal(folder)
    assert "r: missing" in text and "lora_alpha: missing" in text
    (folder / "adapter_config.json").write_text("[]")
    assert "expected the settings" in refusal(folder)
    (folder / "adapter_config.json").write_text("{")
    assert "is not valid JSON" in refusal(folder)
    (folder / "adapter_config.json").unlink()
    assert "does not exist" in refusal(folder)


def test_an_adapter_folder_without_tensors(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    assert "no adapter_model.safetensors (or .bin) beside adapter_config.json" in refusal(folder)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(
    folder: Path, tmp_path: Path, zipped: bool
) -> None:
    trap = tmp_path / "executed"
    (folder / "adapter_model.safetensors").unlink()
    bad = {"base_model.model.classifier.bias": Malicious(trap)}
    if zipped:
        torch.save(bad, folder / "adapter_model.bin")
    else:
        (folder / "adapter_model.bin").write_bytes(pickle.dumps(bad, protocol=2))
    assert "adapter_model.bin: it holds more than tensors and was not loaded (unsafe pickle)" in refusal(
        folder
    )
    with pytest.raises(UserError, match="unsafe pickle"):
        head_classes(folder)
    assert not trap.exists()


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}])
def test_a_pickle_of_something_else_is_refused(folder: Path, content: object) -> None:
    (folder / "adapter_model.safetensors").unlink()
    torch.save(content, folder / "adapter_model.bin")
    assert "adapter_model.bin: cannot be read" in refusal(folder)


# ---- merging


@pytest.mark.parametrize("kind", CONFIGS)
def test_merged_is_unmerged_and_not_the_base(kind: str, folder: Path) -> None:
    save_adapter(adapted(kind, EVERYWHERE), folder)
    expected = logits(load_adapter(tiny(kind), folder))
    merged = merge(load_adapter(tiny(kind), folder), logits)
    assert type(merged) is type(tiny(kind)) and merged.state_dict().keys() == tiny(kind).state_dict().keys()
    assert_close(logits(merged), expected)
    assert (logits(merged) - logits(tiny(kind))).abs().max() > 0.05


def test_an_adapter_that_changes_nothing_is_refused(folder: Path) -> None:
    change(folder, lambda tensors: [tensor.zero_() for name, tensor in tensors.items() if "lora_B" in name])
    with pytest.raises(UserError, match=r"adapter .*B matrices"):
        merge(load_adapter(tiny("vit"), folder), logits)


def test_a_merge_that_moves_the_logits_is_refused(folder: Path) -> None:
    model = load_adapter(tiny("vit"), folder)
    drifting = iter([torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 2.1]])])
    with pytest.raises(UserError, match=r"changes the logits by 5\.0e-02 of their size"):
        merge(model, lambda _model: next(drifting))
    with pytest.raises(UserError, match="the logits by nan"):
        merge(load_adapter(tiny("vit"), folder), lambda _model: torch.tensor([[float("nan")]]))


def test_rslora_scales_as_it_was_saved(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        tiny("vit"),
        LoraConfig(
            r=4, lora_alpha=8, use_rslora=True, target_modules=["q_proj"], modules_to_save=["classifier"]
        ),
    )
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.3)
    model.save_pretrained(tmp_path)
    assert_close(logits(load_adapter(tiny("vit"), tmp_path)), logits(model.eval()), 1e-6)


def test_a_folder_of_a_released_run_can_be_copied_anywhere(tmp_path: Path) -> None:
    shutil.copytree(LEGACY / "finetuned_model", tmp_path / "elsewhere")
    model = rebuild_backbone(tmp_path / "elsewhere" / "model_beit", 10).model
    assert isinstance(load_adapter(model, tmp_path / "elsewhere" / "model_lora"), PeftModel)


# ---- adapters whose initialisation changes the base, made and evaluated by plain PEFT


def made_by_peft(folder: Path, start: Any) -> PeftModel:
    """An adapter that PEFT alone attached, "trained" and saved."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["q_proj", "v_proj"],
        modules_to_save=["classifier"],
        init_lora_weights=start,
    )
    model = get_peft_model(tiny("vit"), config)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data += 0.2 * torch.randn(weight.shape)
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize("start", [True, False, "gaussian", "orthogonal", "eva", "pissa", "olora"])
def test_whatever_an_adapter_started_from_its_logits_are_plain_pefts(start: Any, tmp_path: Path) -> None:
    trained = logits(made_by_peft(tmp_path / "adapter", start))
    golden = logits(PeftModel.from_pretrained(tiny("vit"), tmp_path / "adapter").eval())
    assert (
        json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["init_lora_weights"] == start
    )
    assert_close(golden, trained)
    ours = load_adapter(tiny("vit"), tmp_path / "adapter")
    assert_close(logits(ours), golden)
    assert_close(logits(merge(ours, logits)), golden)
    assert (golden - logits(tiny("vit"))).abs().max() > 0.05


@pytest.mark.parametrize(
    "start", ["pissa_niter_4", "corda", "loftq", "lora_ga", "mica", "of_a_later_peft", 7, ["pissa"]]
)
def test_a_start_that_cannot_be_repeated_is_refused_with_what_settles_it(start: Any, folder: Path) -> None:
    change_config(folder, init_lora_weights=start)
    text = refusal(folder)
    assert f"init_lora_weights: {start!r}" in text
    assert "model.merge_and_unload().save_pretrained('model_TYPE')" in text


def test_what_settles_it_gives_the_same_logits(tmp_path: Path) -> None:
    model = made_by_peft(tmp_path / "adapter", "pissa_niter_4")
    trained = logits(model)
    model.merge_and_unload().save_pretrained(tmp_path / "model_vit")
    rebuilt = rebuild_backbone(tmp_path / "model_vit", 3)
    assert not rebuilt.new_head
    assert_close(logits(rebuilt.model), trained)


# ---- norms, biases, and other kinds of LoRA


BESIDES = [("norms",), ("biases",), ("norms", "biases"), ("norms", "biases", "class_token")]


@pytest.mark.parametrize("also_train", BESIDES, ids="+".join)
@pytest.mark.parametrize("kind", ["vit", "beit"])
def test_trained_norms_and_biases_are_saved_loaded_and_merged(
    kind: str, also_train: tuple[str, ...], tmp_path: Path
) -> None:
    model = adapted(kind, EVERYWHERE, also_train=also_train)
    plain_names = {
        re.sub(r"^base_model\.model\.|\.base_layer|\.modules_to_save\.default", "", name): weight
        for name, weight in model.named_parameters()
        if weight.requires_grad and ".lora_" not in name
    }
    wanted = {name for name, _ in tiny(kind).named_parameters() if name.startswith("classifier.")}
    for name, module in tiny(kind).named_modules():
        for inner, _ in module.named_parameters(recurse=False):
            is_wanted = ("norms" in also_train and isinstance(module, nn.LayerNorm)) or (
                "biases" in also_train and inner == "bias"
            )
            wanted |= {f"{name}.{inner}"} if is_wanted else set()
    wanted |= {f"{kind}.embeddings.cls_token"} if "class_token" in also_train else set()
    assert plain_names.keys() == wanted
    save_adapter(model, tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert not [name for name in saved if "original_module" in name or "modules_to_save" in name]
    assert head_classes(tmp_path) == 3
    plain = tiny(kind)
    # What the run's own folder holds: it is saved before training
    plain.load_state_dict(tiny(kind).state_dict())
    expected = logits(model)
    assert_close(logits(PeftModel.from_pretrained(plain, tmp_path).eval()), expected, 1e-6)
    loaded = load_adapter(tiny(kind), tmp_path)
    assert_close(logits(loaded), expected, 1e-6)
    assert_close(logits(merge(loaded, logits)), expected)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_an_adapter_with_biases_made_by_peft_alone(bias: str, tmp_path: Path) -> None:
    """Its file holds the biases of the original head and of copied norms too."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    config = LoraConfig(
        r=4,
        bias=bias,
        target_modules=["q_proj", "v_proj"],
        modules_to_save=["classifier", "layernorm_before"],
    )
    model = get_peft_model(tiny("vit"), config)
    for weight in model.parameters():
        if weight.requires_grad:
            nn.init.normal_(weight, std=0.3)
    model.eval().save_pretrained(tmp_path)
    expected = logits(PeftModel.from_pretrained(tiny("vit"), tmp_path).eval())
    assert_close(expected, logits(model), 1e-6)
    assert_close(logits(load_adapter(tiny("vit"), tmp_path)), expected, 1e-6)


@pytest.mark.parametrize(
    "options",
    [{"use_rslora": True}, {"variant": "dora"}, {"variant": "dora", "also_train": ("norms", "biases")}],
)
@pytest.mark.parametrize("kind", CONFIGS)
def test_other_kinds_of_lora_load_everywhere(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    model = adapted(kind, EVERYWHERE, **options)
    save_adapter(model, tmp_path)
    expected = logits(model)
    assert_close(logits(PeftModel.from_pretrained(tiny(kind), tmp_path).eval()), expected, 1e-6)
    assert_close(logits(load_adapter(tiny(kind), tmp_path)), expected, 1e-6)
    assert_close(logits(merge(load_adapter(tiny(kind), tmp_path), logits)), expected)


def test_rslora_scales_by_the_root_of_the_rank() -> None:
    layers = [
        module
        for module in adapted("vit", use_rslora=True).modules()
        if hasattr(module, "lora_A") and module.lora_A
    ]
    assert {module.scaling["default"] for module in layers} == {8 / 4**0.5}
