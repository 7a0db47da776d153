"""BEiT against timm's own implementation, and the cached position bias against the one that is rebuilt every
time.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import BeitConfig, BeitForImageClassification

from pipeline.models.half_weights import cache_frozen_bias
from pipeline.models.lora import attach, merge

DEPTH = 2


def tiny(**options: object) -> BeitForImageClassification:
    """A BEiT of 32 px, patch 8, whose every weight matters."""
    torch.manual_seed(0)
    settings = {
        "hidden_size": 48,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "image_size": 32,
        "patch_size": 8,
        "layer_norm_eps": 1e-6,
        "layer_scale_init_value": 0.1,
        "use_relative_position_bias": True,
        "use_mean_pooling": True,
        "use_mask_token": False,
        "num_labels": 5,
    }
    model = BeitForImageClassification(BeitConfig(**(settings | options)))
    for weight in model.parameters():
        nn.init.normal_(weight, mean=1.0 if weight.ndim == 1 else 0.0, std=0.2)
    return model.eval()


def pixels(size: int = 32, count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return model(pixel_values=images).logits


def timm_state(model: BeitForImageClassification) -> dict[str, torch.Tensor]:
    """The weights under timm's names, where query, key and value are one matrix and the key has no bias."""
    own, named = model.state_dict(), {}
    for ending in ("weight", "bias"):
        named[f"patch_embed.proj.{ending}"] = own[f"beit.embeddings.patch_embeddings.projection.{ending}"]
        named[f"fc_norm.{ending}"] = own[f"beit.pooler.layernorm.{ending}"]
        named[f"head.{ending}"] = own[f"classifier.{ending}"]
    named["cls_token"] = own["beit.embeddings.cls_token"]
    for layer in range(DEPTH):
        here, there = f"beit.layers.{layer}", f"blocks.{layer}"
        for ending in ("weight", "bias"):
            named[f"{there}.norm1.{ending}"] = own[f"{here}.layernorm_before.{ending}"]
            named[f"{there}.norm2.{ending}"] = own[f"{here}.layernorm_after.{ending}"]
            named[f"{there}.attn.proj.{ending}"] = own[f"{here}.attention.o_proj.{ending}"]
            named[f"{there}.mlp.fc1.{ending}"] = own[f"{here}.mlp.fc1.{ending}"]
            named[f"{there}.mlp.fc2.{ending}"] = own[f"{here}.mlp.fc2.{ending}"]
        named[f"{there}.attn.qkv.weight"] = torch.cat(
            [own[f"{here}.attention.{part}_proj.weight"] for part in "qkv"]
        )
        named[f"{there}.attn.q_bias"] = own[f"{here}.attention.q_proj.bias"]
        named[f"{there}.attn.v_bias"] = own[f"{here}.attention.v_proj.bias"]
        named[f"{there}.gamma_1"] = own[f"{here}.lambda_1"]
        named[f"{there}.gamma_2"] = own[f"{here}.lambda_2"]
        table = next(
            name for name in own if name.startswith(here) and name.endswith("relative_position_bias_table")
        )
        named[f"{there}.attn.relative_position_bias_table"] = own[table]
    return named


@pytest.mark.parametrize("cached", [False, True])
def test_logits_are_timms(cached: bool) -> None:
    timm_beit = pytest.importorskip("timm.models.beit")
    model = tiny()
    other = timm_beit.Beit(
        img_size=32,
        patch_size=8,
        num_classes=5,
        embed_dim=48,
        depth=DEPTH,
        num_heads=4,
        mlp_ratio=2,
        init_values=0.1,
        use_abs_pos_emb=False,
        use_rel_pos_bias=True,
    ).eval()
    other.load_state_dict(timm_state(model))  # strict: every weight of either is the other's
    if cached:
        assert cache_frozen_bias(model.requires_grad_(False)) == DEPTH
    with torch.no_grad():
        expected = other(pixels())
    for _ in range(2):  # the second time from the cache
        found = logits(model, pixels())
        assert (found - expected).abs().max() <= 1e-5 * max(1, expected.abs().max())
    with torch.no_grad():
        other.blocks[0].attn.relative_position_bias_table.zero_()
        assert (other(pixels()) - expected).abs().max() > 1e-3  # the table matters


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("shared", [False, True])
def test_cached_and_rebuilt_bias_give_equal_bits(attention: str, shared: bool) -> None:
    where = {
        "use_relative_position_bias": not shared,
        "use_shared_relative_position_bias": shared,
        "attn_implementation": attention,
    }
    plain, cached = tiny(**where), tiny(**where)
    assert cache_frozen_bias(cached.requires_grad_(False)) == (1 if shared else DEPTH)
    for size in (32, 32, 48, 32):  # another input size makes the bias anew, and back
        assert torch.equal(logits(cached, pixels(size)), logits(plain, pixels(size))), size
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(logits(cached, pixels()), logits(plain, pixels()))
    assert torch.equal(logits(cached, pixels()), logits(plain, pixels()))


def test_the_bias_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.beit.modeling_beit import BeitRelativePositionBias

    calls = []
    forward = BeitRelativePositionBias.forward
    monkeypatch.setattr(
        BeitRelativePositionBias,
        "forward",
        lambda self, *args, **kwargs: calls.append(1) or forward(self, *args, **kwargs),
    )
    model = tiny()
    cache_frozen_bias(model.requires_grad_(False))
    for _ in range(3):
        logits(model, pixels())
    assert len(calls) == DEPTH


def test_a_table_that_is_trained_is_left_alone() -> None:
    model = tiny()
    assert cache_frozen_bias(model) == 0
    before = logits(model, pixels())
    model(pixel_values=pixels()).logits.sum().backward()
    table = next(
        weight for name, weight in model.named_parameters() if name.endswith("relative_position_bias_table")
    )
    with torch.no_grad():
        table -= 10 * table.grad
    assert not torch.equal(logits(model, pixels()), before)


def test_new_weights_in_a_frozen_table_are_seen() -> None:
    model = tiny()
    cache_frozen_bias(model.requires_grad_(False))
    before = logits(model, pixels())
    state = model.state_dict()
    tables = {
        name: torch.zeros_like(tensor)
        for name, tensor in state.items()
        if name.endswith("relative_position_bias_table")
    }
    model.load_state_dict(state | tables)
    plain = tiny()
    plain.load_state_dict(state | tables)
    assert torch.equal(logits(model, pixels()), logits(plain, pixels())) and not torch.equal(
        logits(model, pixels()), before
    )


def test_number_formats_do_not_mix() -> None:
    model, plain = tiny(), tiny()
    cache_frozen_bias(model.requires_grad_(False))
    logits(model, pixels())
    assert torch.equal(
        logits(model.bfloat16(), pixels().bfloat16()), logits(plain.bfloat16(), pixels().bfloat16())
    )


def test_training_with_lora_has_the_same_gradients() -> None:
    """A bias made in validation, under no_grad, is used in training afterwards."""
    gradients = []
    for cached in (False, True):
        model = attach(tiny(), 4, 8, 0.0, ("query", "key"))
        torch.manual_seed(3)
        for name, weight in model.named_parameters():
            if "lora_" in name:
                nn.init.normal_(weight, std=0.1)
        if cached:
            assert cache_frozen_bias(model) == DEPTH
        logits(model.eval(), pixels())
        model(pixel_values=pixels()).logits.square().sum().backward()
        gradients.append(
            {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}
        )
    assert len(gradients[0]) == 4 * DEPTH + 2
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0 and torch.equal(gradient, gradients[1][name]), name


def test_a_merged_model_keeps_its_cache() -> None:
    model = attach(tiny(), 4, 8, 0.0, ("query", "key"))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.1)
    cache_frozen_bias(model)
    expected = logits(model.eval(), pixels())
    merged = merge(model, lambda module: logits(module, pixels()))
    assert (logits(merged, pixels()) - expected).abs().max() < 1e-4


def test_other_architectures_have_nothing_to_cache() -> None:
    assert cache_frozen_bias(nn.Sequential(nn.Linear(2, 2))) == 0
