"""Loading pretrained classifiers: what fits is loaded exactly, what does not is named, nothing from a file is
executed.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Malicious
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    Swinv2Config,
    ViTConfig,
)

from pipeline.data.transforms import FILE_NAME, Preprocessing
from pipeline.errors import UserError
from pipeline.models.backbones import (
    head_name,
    load_backbone,
    native_image_size,
    rebuild_backbone,
    reset_head,
    save_backbone,
    takes_interpolation,
)
from pipeline.models.checkpoint_config import DEFAULT_PREPROCESSING

NAMES = ("blue", "green", "red")
OWN_NAMES = tuple(f"LABEL_{index}" for index in range(5))  # what the tiny backbone was saved with


@pytest.fixture
def folder(tiny_backbone: Path, tmp_path: Path) -> Path:
    """A copy of the tiny backbone that a test may damage."""
    return Path(shutil.copytree(tiny_backbone, tmp_path / "model_beit"))


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def change_weights(folder: Path, change) -> None:
    tensors = weights_of(folder)
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


@torch.no_grad()
def logits(model: torch.nn.Module, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return model.eval()(pixel_values=torch.randn(2, 3, 32, 32, generator=generator)).logits


def test_the_same_classes_keep_the_head_and_the_logits(tiny_backbone: Path) -> None:
    backbone = load_backbone(str(tiny_backbone), OWN_NAMES)
    plain = AutoModelForImageClassification.from_pretrained(tiny_backbone)
    assert not backbone.new_head
    assert torch.equal(logits(backbone.model), logits(plain))


def test_other_classes_get_a_seeded_new_head_and_keep_the_rest(tiny_backbone: Path) -> None:
    heads = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        backbone = load_backbone(str(tiny_backbone), NAMES)
        heads.append(backbone.model.classifier.weight)
        assert backbone.new_head and backbone.model.classifier.bias.tolist() == [0, 0, 0]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    assert heads[0].shape == (3, 32) and 0.015 < heads[0].std() < 0.025
    assert backbone.model.config.id2label == {0: "blue", 1: "green", 2: "red"}
    assert backbone.model.config.label2id["red"] == 2
    stored = AutoModelForImageClassification.from_pretrained(tiny_backbone).state_dict()
    loaded = backbone.model.state_dict()
    assert loaded.keys() == stored.keys()
    assert all(
        torch.equal(loaded[name], stored[name]) for name in stored if not name.startswith("classifier.")
    )
    assert all(weight.dtype == torch.float32 for weight in backbone.model.parameters())


def test_weights_do_not_stay_at_the_addresses_their_file_gives_them(folder: Path) -> None:
    """Matrix products round by alignment, and a resumed run loads the same weights from another file than the
    run did.
    """
    tensors = weights_of(folder)
    for padding in range(0, 64, 8):
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt", "padding": "." * padding})
        model = load_backbone(str(folder), NAMES).model
        assert {weight.data_ptr() % 64 for weight in model.parameters()} == {0}


def test_the_same_number_of_other_classes_is_a_new_head_too(tiny_backbone: Path) -> None:
    names = (*NAMES, "pink", "grey")
    backbone = load_backbone(str(tiny_backbone), names)
    assert backbone.new_head
    assert not torch.equal(backbone.model.classifier.weight, weights_of(tiny_backbone)["classifier.weight"])
    reordered = load_backbone(str(tiny_backbone), OWN_NAMES[::-1])
    assert reordered.new_head  # the old rows would answer for other classes


def test_a_checkpoint_without_a_head_gets_a_new_one_and_says_so(folder: Path) -> None:
    change_weights(
        folder,
        lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith("classifier.")],
    )
    assert load_backbone(str(folder), OWN_NAMES).new_head
    assert load_backbone(str(folder), NAMES).new_head


def test_rebuild_says_when_the_head_is_not_the_saved_one(folder: Path) -> None:
    rebuilt = rebuild_backbone(folder, 5)
    assert not rebuilt.new_head and not rebuilt.model.training
    assert torch.equal(logits(rebuilt.model), logits(AutoModelForImageClassification.from_pretrained(folder)))
    wider = rebuild_backbone(folder, 7)
    assert wider.new_head and wider.model.config.num_labels == 7 and logits(wider.model).shape == (2, 7)
    change_weights(folder, lambda tensors: tensors.pop("classifier.bias"))
    assert rebuild_backbone(folder, 5).new_head


def test_half_precision_checkpoints_become_float32(folder: Path) -> None:
    change_weights(
        folder, lambda tensors: tensors.update({name: tensor.half() for name, tensor in tensors.items()})
    )
    change_config(folder, dtype="float16")
    model = load_backbone(str(folder), OWN_NAMES).model
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_missing_unexpected_misshapen_and_nan_weights_are_all_named(folder: Path) -> None:
    def damage(tensors: dict[str, torch.Tensor]) -> None:
        query = next(name for name in tensors if "layer.0" in name and "query.weight" in name)
        tensors["something.else"] = torch.zeros(1)
        del tensors[query]
        key = next(name for name in tensors if "layer.1" in name and "key.weight" in name)
        tensors[key] = torch.zeros(3, 3)
        norm = next(name for name in tensors if "layer.1" in name and "layernorm_after.weight" in name)
        tensors[norm] = torch.full_like(tensors[norm], float("nan"))

    change_weights(folder, damage)
    for load in (lambda: load_backbone(str(folder), NAMES), lambda: rebuild_backbone(folder, 5)):
        with pytest.raises(UserError) as caught:
            load()
        text = str(caught.value)
        assert text.startswith(f"the weights in {folder} do not fit BeitForImageClassification:")
        assert "q_proj.weight: missing" in text and "something.else: unexpected" in text
        assert (
            "k_proj.weight: another shape" in text and "layernorm_after.weight: holds NaN or infinity" in text
        )


def test_weights_that_classifiers_do_not_use_are_no_problem(folder: Path) -> None:
    change_weights(
        folder,
        lambda tensors: tensors.update(
            {"lm_head.weight": torch.zeros(8, 32), "lm_head.bias": torch.zeros(8)}
        ),
    )
    assert load_backbone(str(folder), NAMES).new_head


def test_truncated_and_absent_weights(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(UserError, match=r"model_beit: cannot be loaded: "):
        load_backbone(str(folder), NAMES)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model_beit: cannot be loaded: .*no file named"):
        load_backbone(str(folder), NAMES)


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(folder: Path, tmp_path: Path) -> None:
    trap = tmp_path / "executed"
    pickle.loads(pickle.dumps(Malicious(trap)))
    assert trap.exists()  # the trap works
    trap.unlink()
    (folder / "model.safetensors").unlink()
    torch.save({"classifier.weight": Malicious(trap)}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"\.bin .*unsafe pickle"):
        load_backbone(str(folder), NAMES)
    (folder / "pytorch_model.bin").write_bytes(
        pickle.dumps({"classifier.weight": Malicious(trap)}, protocol=2)
    )
    with pytest.raises(UserError):
        load_backbone(str(folder), NAMES)
    assert not trap.exists()


def test_a_plain_pickled_checkpoint_loads(folder: Path, tiny_backbone: Path) -> None:
    torch.save(weights_of(folder), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert torch.equal(
        logits(load_backbone(str(folder), OWN_NAMES).model),
        logits(load_backbone(str(tiny_backbone), OWN_NAMES).model),
    )


@pytest.mark.parametrize("model_type", ["beit", "home-made"])
def test_code_that_comes_with_a_model_is_never_executed(
    folder: Path, tmp_path: Path, model_type: str
) -> None:
    trap = tmp_path / "executed"
    (folder / "evil.py").write_text(
        f"from pathlib import Path\nPath({str(trap)!r}).touch()\nclass C: pass\nclass M: pass\n"
    )
    auto_map = {
        "AutoConfig": "evil.C",
        "AutoModelForImageClassification": "evil.M",
        "AutoImageProcessor": "evil.C",
    }
    change_config(folder, auto_map=auto_map, model_type=model_type)
    if model_type == "beit":
        assert not load_backbone(str(folder), OWN_NAMES).new_head
    else:
        with pytest.raises(UserError, match="cannot be loaded"):
            load_backbone(str(folder), OWN_NAMES)
    assert not trap.exists()


def test_places_that_are_no_model(tiny_backbone: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "model_lora").mkdir(parents=True)
    (run / "model_lora" / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"run: no config\.json in this folder; expected a folder that"):
        load_backbone(str(run), NAMES)
    shutil.copytree(tiny_backbone, run / "model_vit")  # sorts after model_lora
    with pytest.raises(UserError) as caught:
        load_backbone(str(run), NAMES)
    assert f"did you mean {run / 'model_vit'}?" in str(caught.value)
    with pytest.raises(UserError, match=r"--backbone \./nothing/here: no such folder"):
        load_backbone("./nothing/here", NAMES)
    (run / "model_vit" / "config.json").write_text("{not json")
    with pytest.raises(UserError, match=r"model_vit: cannot be loaded: .*config"):
        load_backbone(str(run / "model_vit"), NAMES)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No network, and an empty hub cache, whose folder is returned."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_hub_id_out_of_reach_is_one_message_at_once(offline: Path) -> None:
    started = time.monotonic()
    with pytest.raises(UserError) as caught:
        load_backbone("nobody/no-such-model", NAMES)
    assert time.monotonic() - started < 20  # retries with pauses would take longer
    text = str(caught.value)
    assert text.startswith("--backbone nobody/no-such-model: not in this machine's cache")
    assert "use a folder on disk" in text
    assert len(text.splitlines()) == 2


def test_a_hub_id_in_the_cache_needs_no_network_and_brings_its_rule(
    offline: Path, tiny_backbone: Path
) -> None:
    commit = "0123456789012345678901234567890123456789"
    entry = offline / "models--someone--tiny"
    shutil.copytree(tiny_backbone, entry / "snapshots" / commit)
    Preprocessing(32, 32, mean=(0.1, 0.2, 0.3)).save(entry / "snapshots" / commit)
    (entry / "refs").mkdir()
    (entry / "refs" / "main").write_text(commit)
    backbone = load_backbone("someone/tiny", OWN_NAMES)
    assert backbone.preprocessing.mean == (0.1, 0.2, 0.3) and not backbone.new_head
    (entry / "snapshots" / commit / FILE_NAME).unlink()
    assert load_backbone("someone/tiny", OWN_NAMES).preprocessing == Preprocessing(32, 32, resample=2)


def test_the_rule_without_a_file_is_the_architectures(tiny_backbone: Path) -> None:
    assert load_backbone(str(tiny_backbone), NAMES).preprocessing == Preprocessing(32, 32, resample=2)
    assert load_backbone(str(tiny_backbone), NAMES, image_size=64).preprocessing == Preprocessing(
        64, 64, resample=2
    )
    assert set(DEFAULT_PREPROCESSING) >= {"beit", "vit", "swin", "swinv2"}


def test_save_and_load_again_with_plain_transformers(tiny_backbone: Path, tmp_path: Path) -> None:
    backbone = load_backbone(str(tiny_backbone), NAMES)
    for _ in range(2):  # over an older one too
        save_backbone(
            backbone.model, backbone.model.state_dict(), backbone.preprocessing, tmp_path / "model_beit"
        )
    assert {path.name for path in (tmp_path / "model_beit").iterdir()} == {
        "config.json",
        "model.safetensors",
        FILE_NAME,
    }
    plain, info = AutoModelForImageClassification.from_pretrained(
        tmp_path / "model_beit", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert plain.config.id2label == dict(enumerate(NAMES))
    assert torch.equal(logits(plain), logits(backbone.model))
    assert not load_backbone(str(tmp_path / "model_beit"), NAMES).new_head


def test_random_weights_use_only_the_architecture(tiny_backbone: Path) -> None:
    torch.manual_seed(0)
    first = load_backbone(str(tiny_backbone), NAMES, random_weights=True)
    torch.manual_seed(0)
    again = load_backbone(str(tiny_backbone), NAMES, random_weights=True)
    assert first.new_head and torch.equal(logits(first.model), logits(again.model))
    stored = weights_of(tiny_backbone)
    name = next(name for name in stored if "patch_embeddings" in name and name.endswith("weight"))
    assert not torch.equal(first.model.state_dict()[name], stored[name])


def test_a_model_from_an_architecture_in_the_recipe() -> None:
    architecture = {
        "model_type": "vit",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    backbone = load_backbone("none", NAMES, None, True, architecture | {"image_size": 24, "patch_size": 8})
    assert type(backbone.model).__name__ == "ViTForImageClassification"
    assert backbone.preprocessing == Preprocessing(24, 24, resample=2, processor_type="ViTImageProcessor")
    assert backbone.new_head and native_image_size(backbone.model) == 24


def test_names_of_heads_and_interpolation() -> None:
    tiny = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "image_size": 32,
        "patch_size": 8,
    }
    swin = {
        "image_size": 32,
        "patch_size": 4,
        "embed_dim": 8,
        "depths": [1, 1],
        "num_heads": [1, 2],
        "window_size": 4,
    }
    models = [
        AutoModelForImageClassification.from_config(ViTConfig(**tiny, num_labels=3)),
        SwinForImageClassification(SwinConfig(**swin, num_labels=3)),
        AutoModelForImageClassification.from_config(Swinv2Config(**swin, num_labels=3)),
    ]
    for model in models:
        head = model.get_submodule(head_name(model))
        assert head.out_features == 3 and takes_interpolation(model)
        reset_head(model)
        assert head.bias.tolist() == [0, 0, 0] and head.weight.std() < 0.05
    headless = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    with pytest.raises(UserError, match=r"Sequential: .*head.*: 0, 1"):
        head_name(headless)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="POSIX")
def test_nothing_is_printed_by_the_libraries(tiny_backbone: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_backbone(str(tiny_backbone), NAMES)
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err == ""


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"num_hidden_layers": 10_000_000}, "num_hidden_layers: 10,000,000"),
        ({"vision_config": {"hidden_size": 10**9}}, "hidden_size: 1,000,000,000"),
        ({"_attn_implementation": "somebody/kernel"}, "'somebody/kernel'"),
        ({"attn_implementation": "https://example.org/attention"}, "attn_implementation"),
    ],
)
def test_a_config_that_asks_for_too_much_is_refused_before_it_is_built(
    tiny_backbone: Path, tmp_path: Path, changes: dict, shown: str
) -> None:
    folder = tmp_path / "model_beit"
    shutil.copytree(tiny_backbone, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UserError, match=re.escape(shown)) as caught:
        load_backbone(str(folder), ["a", "b"], None)
    assert str(folder) in str(caught.value)


def test_drop_path_replaces_the_configs_rate_and_counts_in_training_alone(
    tiny_backbone: Path, tmp_path: Path
) -> None:
    pixels = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    plain, dropping = (
        load_backbone(str(tiny_backbone), OWN_NAMES, drop_path=rate).model for rate in (0.0, 0.9)
    )
    with torch.no_grad():
        torch.testing.assert_close(
            dropping.eval()(pixels).logits, plain.eval()(pixels).logits, rtol=0, atol=0
        )
        assert not torch.equal(dropping.train()(pixels).logits, plain.train()(pixels).logits)
    ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32
    ).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="drop_path: vit"):
        load_backbone(str(tmp_path), NAMES, random_weights=True, drop_path=0.1)
