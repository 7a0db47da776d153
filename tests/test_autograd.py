"""The functions that keep less, against torch's own; and whole models that keep less, against plain autocast
and against float32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    BeitConfig,
    BeitForImageClassification,
    ConvNextV2Config,
    ConvNextV2ForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    Swinv2Config,
    Swinv2ForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from pipeline.models.attention_functions import attend_by_products
from pipeline.models.autograd import (
    AdaptedLinear,
    BiasedAttention,
    Gelu,
    Linear,
    Norm,
    ProductAttention,
    source_of,
)
from pipeline.models.dropout import Dropout
from pipeline.models.half_weights import (
    cache_frozen_bias,
    checkpoint_layers,
    exact_head,
    hold_frozen,
    keep_less,
    use_half_weights,
)
from pipeline.models.lora import attach

FLAT = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "image_size": 32,
    "patch_size": 8,
}
WINDOWS = {
    "image_size": 32,
    "patch_size": 2,
    "embed_dim": 32,
    "depths": [1, 1],
    "num_heads": [2, 4],
    "window_size": 4,
}
PIXELS = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(6) % 5


def gradients(function: Callable[..., torch.Tensor], inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """The output, and the gradient of a fixed weighting of it for every input."""
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    torch.manual_seed(5)
    output = function(*leaves)
    weighting = torch.randn(output.shape, generator=torch.Generator().manual_seed(2))
    return [output, *torch.autograd.grad((output * weighting).sum(), leaves)]


def draw(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


FROZEN = draw((8, 8), (8,), (8,))[:2]  # weight and bias of the layer with an adapter


def block_that_stores_less(
    dropout: float,
    x: torch.Tensor,
    w: torch.Tensor,
    b: torch.Tensor,
    w1: torch.Tensor,
    b1: torch.Tensor,
    *rest: torch.Tensor,
):
    """Norm, a layer beside a frozen one with an adapter of rank 2, GELU, a layer without a bias: each reads
    what the one before can make again.
    """
    w2, a = rest
    kind = torch.float32
    x = Norm.apply(x, w, b, 1e-5, kind)
    adapted = AdaptedLinear.apply(x, *FROZEN, a[:2], a[2:].T, 0.5, dropout, kind, source_of(x))
    hidden = Gelu.apply(Linear.apply(x, w1, b1, kind, source_of(x)) + adapted)
    return Linear.apply(hidden, w2, None, kind, source_of(hidden))


def plain_block(
    dropout: float,
    x: torch.Tensor,
    w: torch.Tensor,
    b: torch.Tensor,
    w1: torch.Tensor,
    b1: torch.Tensor,
    *rest: torch.Tensor,
):
    w2, a = rest
    x = F.layer_norm(x, (8,), w, b, 1e-5)
    adapted = F.linear(x, *FROZEN) + F.linear(F.linear(Dropout(dropout)(x), a[:2]), a[2:].T) * 0.5
    return F.linear(F.gelu(F.linear(x, w1, b1) + adapted), w2)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_in_float32_the_gradients_are_torchs(dropout: float) -> None:
    inputs = draw((3, 5, 8), (8,), (8,), (8, 8), (8,), (4, 8), (4, 8))
    found, expected = (
        gradients(partial(block, dropout), inputs) for block in (block_that_stores_less, plain_block)
    )
    for own, torchs in zip(found, expected, strict=True):
        assert torch.allclose(own, torchs, atol=1e-5) and torchs.abs().max() > 0.1


def test_a_trained_bias_under_an_adapter_has_its_gradient() -> None:
    inputs = draw((3, 5, 8), (8,), (4, 8))
    own = gradients(
        lambda x, b, a: AdaptedLinear.apply(x, FROZEN[0], b, a[:2], a[2:].T, 0.5, 0.0, torch.float32, None),
        inputs,
    )
    plain = gradients(
        lambda x, b, a: F.linear(x, FROZEN[0], b) + F.linear(F.linear(x, a[:2]), a[2:].T) * 0.5, inputs
    )
    for found, expected in zip(own, plain, strict=True):
        assert torch.allclose(found, expected, atol=1e-5) and expected.abs().max() > 0.1


def test_attention_with_a_trained_bias() -> None:
    inputs = draw((3, 2, 7, 4), (3, 2, 7, 4), (3, 2, 7, 4), (1, 2, 7, 7))
    own = gradients(lambda q, k, v, bias: BiasedAttention.apply(q, k, v, bias, 0.3), inputs)
    torchs = gradients(
        lambda q, k, v, bias: F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=0.3), inputs
    )
    for found, expected in zip(own, torchs, strict=True):
        assert torch.allclose(found, expected, atol=1e-5) and expected.abs().max() > 0.1


@pytest.mark.parametrize("bias_shape", [None, (1, 2, 7, 7), (3, 1, 7, 7)])
def test_attention_by_products(bias_shape: tuple[int, ...] | None) -> None:
    inputs = draw((3, 2, 7, 4), (3, 2, 7, 4), (3, 2, 7, 4), *([bias_shape] if bias_shape else []))
    own = gradients(lambda q, k, v, bias=None: ProductAttention.apply(q, k, v, bias, 0.3), inputs)
    torchs = gradients(
        lambda q, k, v, bias=None: F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=0.3), inputs
    )
    for found, expected in zip(own, torchs, strict=True):
        assert torch.allclose(found, expected, atol=1e-5) and expected.abs().max() > 0.1


def build(kind: str, lora: bool, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    if kind == "beit":
        config = BeitConfig(**FLAT, num_labels=5, use_relative_position_bias=True, drop_path_rate=0.1)
        model: nn.Module = BeitForImageClassification(config)
    elif kind == "vit":
        model = ViTForImageClassification(ViTConfig(**FLAT, num_labels=5))
    elif kind == "dinov2":
        sizes = {name: value for name, value in FLAT.items() if name != "intermediate_size"}
        model = Dinov2ForImageClassification(Dinov2Config(**sizes, num_labels=5))
    elif kind == "convnext":
        model = ConvNextV2ForImageClassification(
            ConvNextV2Config(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, num_labels=5)
        )
    elif kind == "swin":
        model = SwinForImageClassification(SwinConfig(**WINDOWS, num_labels=5))
    else:
        model = Swinv2ForImageClassification(Swinv2Config(**WINDOWS, num_labels=5))
    for name, weight in model.named_parameters():
        if "bias_table" in name:
            nn.init.normal_(weight, std=0.3)
    if lora:
        model = attach(model, 4, 8, dropout, ("query", "key", "fc2"))
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(weight, std=0.1)
        cache_frozen_bias(model)
    return model.train()


def step(
    model: nn.Module, dtype: torch.dtype | None = torch.bfloat16
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits and gradients of one training step."""
    torch.manual_seed(3)
    model.zero_grad(set_to_none=True)
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        logits = model(pixel_values=PIXELS).logits
    F.cross_entropy(logits.float(), LABELS).backward()
    return logits.detach().float(), {
        name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None
    }


def same_bits(one: tuple, other: tuple) -> bool:
    return torch.equal(one[0], other[0]) and all(
        torch.equal(one[1][name], other[1][name]) for name in one[1] | other[1]
    )


def distance(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Length of the difference of all gradients, as a share of their length."""
    assert found.keys() == expected.keys()
    flat = [torch.cat([grads[name].flatten() for name in sorted(grads)]) for grads in (found, expected)]
    return ((flat[0] - flat[1]).norm() / flat[1].norm()).item()


KINDS = [(kind, lora) for kind in ("beit", "vit", "dinov2", "swin", "swinv2") for lora in (True, False)]


@pytest.mark.parametrize(("kind", "lora"), KINDS)
def test_a_step_that_stores_less_equals_autocasts_and_is_as_near_to_float32(kind: str, lora: bool) -> None:
    """Logits and gradients are as far from float32's as autocast's own are, give or take a fifth.

    Logits within two steps of bfloat16 (2^-7) of the largest of autocast's; four with adapters, which round
    once where autocast rounds thrice.
    """
    exact, autocast = step(build(kind, lora), None), step(build(kind, lora))
    model = build(kind, lora)
    if lora:
        assert hold_frozen(model, torch.bfloat16) > 10
        assert same_bits(step(model), autocast)  # held in bfloat16 is what autocast makes of them
    keep_less(model)
    logits, grads = step(model)
    assert (logits - autocast[0]).abs().max() <= (2**-6 if lora else 2**-7) * autocast[0].abs().max()
    assert (logits - exact[0]).abs().max() <= 1.2 * (autocast[0] - exact[0]).abs().max()
    assert distance(grads, exact[1]) <= 1.2 * distance(autocast[1], exact[1]) + 1e-3
    assert distance(grads, autocast[1]) < 0.03


# Whose attention is of another form
@pytest.mark.parametrize(("kind", "lora"), [case for case in KINDS if case[0] != "swinv2"])
def test_a_step_by_products_is_as_near_to_float32_and_prediction_stays(kind: str, lora: bool) -> None:
    exact, autocast, model = step(build(kind, lora), None), step(build(kind, lora)), build(kind, lora)
    use_half_weights(model, torch.bfloat16)
    fused = step(model)
    with torch.no_grad():
        predicted = step_logits(model)
        assert attend_by_products(model) == 1
        assert torch.equal(step_logits(model), predicted)
    logits, grads = step(model)
    assert not same_bits((logits, grads), fused)  # the products are in use
    assert distance(grads, exact[1]) <= 1.3 * distance(autocast[1], exact[1]) + 1e-3
    assert (logits - exact[0]).abs().max() <= 1.5 * (autocast[0] - exact[0]).abs().max()
    assert "products" not in str(model.config.to_dict())
    assert attend_by_products(model, on=False) == 1 and same_bits(step(model), fused)


def step_logits(model: nn.Module) -> torch.Tensor:
    torch.manual_seed(3)
    with torch.autocast("cpu", torch.bfloat16):
        return model(pixel_values=PIXELS).logits


@pytest.mark.parametrize("kind", ["beit", "dinov2"])
@pytest.mark.parametrize(
    "options", [{"also_train": ("norms", "biases")}, {"variant": "dora"}], ids=["norms and biases", "dora"]
)
def test_a_step_of_other_adapters_that_stores_less_equals_autocasts(kind: str, options: dict) -> None:
    """As above; norms and biases that are trained have gradients, and DoRA's layers keep the exact weights
    that lengths are taken of.
    """

    def adapted() -> nn.Module:
        model = attach(build(kind, lora=False), 4, 8, 0.0, ("query", "key", "fc2"), **options)
        torch.manual_seed(6)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(weight, std=0.1)
        return model.train()

    exact, autocast, model = step(adapted(), None), step(adapted()), adapted()
    use_half_weights(model, torch.bfloat16)
    logits, grads = step(model)
    assert (logits - exact[0]).abs().max() <= 1.2 * (autocast[0] - exact[0]).abs().max() + 2**-8 * exact[
        0
    ].abs().max()
    assert distance(grads, exact[1]) <= 1.2 * distance(autocast[1], exact[1]) + 1e-3
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert grads.keys() == trained and (len([name for name in trained if "norm" in name]) > 3) == (
        "also_train" in options
    )


def test_where_norms_alone_are_trained_the_first_one_has_no_gradient_of_its_input() -> None:
    model = build("dinov2", lora=False).requires_grad_(False).train()
    norms = [
        weight
        for module in model.modules()
        if isinstance(module, nn.LayerNorm)
        for weight in module.parameters()
    ]
    for weight in norms:
        weight.requires_grad_(True)
    use_half_weights(model, torch.bfloat16)
    logits, grads = step(model)
    assert logits.isfinite().all()
    assert len(grads) == len(norms)
    assert all(grad.abs().sum() > 0 for grad in grads.values())


@pytest.mark.parametrize(("kind", "lora"), KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, None])
def test_checkpointed_and_plain_are_equal_bits(kind: str, lora: bool, dtype: torch.dtype | None) -> None:
    """With LoRA's dropout and BEiT's stochastic depth, in half precision as in float32."""
    steps = []
    for checkpointed in (False, True):
        model = build(kind, lora, dropout=0.1)
        if dtype is not None:
            use_half_weights(model, dtype)
        if checkpointed:
            assert checkpoint_layers(model) == 2
        steps.append(step(model, dtype))
    assert same_bits(*steps)
    model = build(kind, lora, dropout=0.1)
    torch.manual_seed(4)
    # The dropout does something
    assert not lora or not torch.equal(model(pixel_values=PIXELS).logits, steps[0][0])


@pytest.mark.parametrize(("kind", "lora"), KINDS)
def test_without_autocast_nothing_changes(kind: str, lora: bool) -> None:
    stores_less = build(kind, lora, dropout=0.1)
    keep_less(stores_less)
    assert same_bits(step(stores_less, None), step(build(kind, lora, dropout=0.1), None))


@pytest.mark.parametrize("lora", [True, False])
def test_the_head_is_computed_in_float32(lora: bool) -> None:
    model = build("beit", lora)
    exact_head(model, "classifier")
    if not lora:
        # As in prediction: frozen weights are stored in half precision
        model.requires_grad_(False)
    use_half_weights(model, torch.bfloat16)
    head = model.get_base_model().classifier.modules_to_save["default"] if lora else model.classifier
    inputs = []
    head.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(pixel_values=PIXELS).logits
    assert logits.dtype == head.weight.dtype == torch.float32
    assert torch.equal(logits, F.linear(inputs[0].float(), head.weight, head.bias))
    assert not torch.equal(logits, logits.bfloat16().float())


def test_two_backward_passes_of_one_graph() -> None:
    model = build("vit", True)
    use_half_weights(model, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(pixel_values=PIXELS).logits.float().square().sum()
    loss.backward(retain_graph=True)
    once = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    loss.backward()
    assert all(
        torch.equal(weight.grad, 2 * once[name])
        for name, weight in model.named_parameters()
        if weight.grad is not None
    )


def test_bfloat16_predicts_what_float32_does() -> None:
    """Logits of a deeper random model within 1 % of the largest; equal labels wherever the two best are
    further apart than that.
    """
    torch.manual_seed(0)
    config = BeitConfig(
        **(FLAT | {"hidden_size": 192, "num_hidden_layers": 12}),
        num_labels=50,
        use_relative_position_bias=True,
    )
    model = BeitForImageClassification(config).eval().requires_grad_(False)
    for weight in model.parameters():
        nn.init.normal_(weight, mean=1.0 if weight.ndim == 1 else 0.0, std=0.05)
    images = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    cache_frozen_bias(model)
    with torch.no_grad():
        exact = model(pixel_values=images).logits
        use_half_weights(model, torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16):
            found = model(pixel_values=images).logits.float()
    tolerance = 0.01 * exact.abs().max()
    assert (found - exact).abs().max() <= tolerance
    best_two = exact.topk(2).values
    clear = best_two[:, 0] - best_two[:, 1] > 2 * tolerance
    assert clear.sum() >= 16 and torch.equal(found.argmax(1)[clear], exact.argmax(1)[clear])
