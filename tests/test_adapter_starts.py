"""PiSSA and OLoRA: what is saved is an adapter of the unchanged backbone that plain PEFT loads, also after a
resume.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import make_competition
from peft import PeftModel
from safetensors.torch import load_file
from test_lora import (
    EVERYWHERE,
    assert_close,
    attach,
    load_adapter,
    logits,
    merge,
    plain_state_dict,
    save_adapter,
    tiny,
)
from test_resume import assert_same, flags, interrupt_after, resume

import train
from pipeline.errors import Interrupted, UserError
from pipeline.models.adapter_starts import put_starts, starts_of
from pipeline.recipe import Recipe


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora"])
def test_saved_on_the_unchanged_backbone(init: str, use_rslora: bool, tmp_path: Path) -> None:
    before = logits(tiny("vit"))
    model = attach(tiny("vit"), 4, 6, 0.1, EVERYWHERE, init=init, use_rslora=use_rslora).eval()
    assert_close(logits(model), before)  # training starts from the pretrained model
    assert not torch.equal(
        model.get_base_model().vit.layers[0].attention.q_proj.base_layer.weight,
        tiny("vit").vit.layers[0].attention.q_proj.weight,
    )
    plain, original = plain_state_dict(model), tiny("vit").state_dict()
    assert plain.keys() == original.keys() and all(
        torch.equal(plain[name], weight) for name, weight in original.items()
    )
    train_a_little(model)
    save_adapter(model, tmp_path)
    expected = logits(model)
    assert (expected - before).abs().max() > 0.01
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["init_lora_weights"], config["use_rslora"]) == (8, True, False)
    assert_close(logits(PeftModel.from_pretrained(tiny("vit"), tmp_path).eval()), expected)
    assert_close(logits(load_adapter(tiny("vit"), tmp_path)), expected)
    assert_close(logits(merge(load_adapter(tiny("vit"), tmp_path), logits)), expected)


def train_a_little(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.1)


def test_a_state_of_another_machine_brings_its_own_beginning() -> None:
    """Another SVD may have other signs: the frozen weights follow what the state says, and the model computes
    the same.
    """
    model = attach(tiny("vit"), 4, 8, 0.0, ("query",), init="pissa").eval()
    train_a_little(model)
    expected, starts = logits(model), starts_of(model)
    trained = {
        name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad
    }
    other = attach(tiny("vit"), 4, 8, 0.0, ("query",), init="olora").eval()
    put_starts(other, starts)
    other.load_state_dict(trained, strict=False)
    assert torch.equal(logits(other), expected)


def test_a_rank_above_the_layers_size_is_refused() -> None:
    with pytest.raises(UserError, match=r"lora\.rank up to 16.*found 20"):
        attach(tiny("vit"), 20, 8, 0.0, ("query",), init="pissa")


@pytest.mark.parametrize("lora", [{"rank": 4, "variant": "dora"}, {"rank": 0}])
def test_dora_and_no_adapter_are_refused(lora: dict) -> None:
    with pytest.raises(ValueError, match=r"lora\.init: pissa needs"):
        Recipe(backbone="x", lora={"init": "pissa", **lora})


def test_a_run_resumed_is_the_same(tiny_backbone: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    data = make_competition(tmp_path / "data")
    keys = ["--set", "lora.init=pissa", "--lora-rank", "4", "--epochs", "2"]
    assert train.main([*flags(data, tiny_backbone, tmp_path / "a"), *keys]) == 0
    assert "saved with rank 8 for the unchanged backbone" in capsys.readouterr().out
    with monkeypatch.context() as patched:
        interrupt_after(patched, 5)
        with pytest.raises(Interrupted):
            train.main([*flags(data, tiny_backbone, tmp_path / "b"), *keys])
    assert resume(data, tmp_path / "b") == 0
    assert_same(tmp_path / "a", tmp_path / "b")
    saved, original = (
        load_file(path / "model.safetensors") for path in (tmp_path / "a" / "model_beit", tiny_backbone)
    )
    assert all(
        torch.equal(saved[name], weight) for name, weight in original.items() if "classifier" not in name
    )
