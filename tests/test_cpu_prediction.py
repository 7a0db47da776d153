"""Prediction in bfloat16 on a CPU: packed weights and attention in pieces, against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from pipeline.models import cpu_prediction, onednn
from pipeline.models.cpu_prediction import attend_in_pieces, attention, pack_frozen
from pipeline.models.half_weights import use_half_weights
from tests.test_autograd import PIXELS, build, step_logits

CAN_FUSE = onednn.fuses(PIXELS.device, torch.bfloat16)
needs_operator = pytest.mark.skipif(not CAN_FUSE, reason="this CPU has no instructions for oneDNN's bfloat16")
IMAGES, HEADS, TOKENS, WIDTH = 5, 3, 17, 8
ONE = 2 * TOKENS * TOKENS  # bytes of the scores of one head


# Less than a head, a head, two of three heads, one image, two of five images, everything
@pytest.mark.parametrize("most", [1, ONE, 2 * ONE, HEADS * ONE, 2 * HEADS * ONE, 10**9])
@pytest.mark.parametrize("has_bias", [True, False])
def test_pieces_are_attention(most: int, has_bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_prediction, "PIECE_BYTES", most)
    torch.manual_seed(0)
    # As transformers gives them: views of (images, tokens, heads, width); the rows of a bias are padded
    q, k, v = (torch.randn(IMAGES, TOKENS, HEADS, WIDTH).transpose(1, 2).bfloat16() for _ in range(3))
    bias = torch.randn(1, HEADS, TOKENS, 24).bfloat16()[..., :TOKENS] if has_bias else None
    before = [part.clone() for part in (q, k, v)]
    found = attention(q, k, v, bias, 0.3)
    exact = F.scaled_dot_product_attention(
        q.float(), k.float(), v.float(), None if bias is None else bias.float(), scale=0.3
    )
    assert found.shape == exact.shape and found.dtype == torch.bfloat16
    assert (found.float() - exact).abs().max() <= 2**-6 * exact.abs().max()
    assert all(torch.equal(old, new) for old, new in zip(before, (q, k, v), strict=True))


@needs_operator
@pytest.mark.parametrize("rows", [3, 65, 400])
def test_packed_weights_give_the_same_bits(rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(size, generator=generator).bfloat16() for size in ((rows, 96), (64, 96), (64,))
    )
    for gelu in (True, False):
        plain = onednn.linear(x, weight, bias, gelu)
        assert torch.equal(onednn.linear(x, onednn.packed(weight), bias, gelu), plain)


@needs_operator
@pytest.mark.parametrize("kind", ["beit", "vit", "dinov2", "swin"])
def test_models_predict_as_near_to_float32(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where gradients are computed, nothing changes."""
    attended: list[tuple[int, ...]] = []
    own = cpu_prediction.attention
    monkeypatch.setattr(
        cpu_prediction, "attention", lambda q, *rest: attended.append(tuple(q.shape)) or own(q, *rest)
    )
    exact, plain, quick = (build(kind, True).eval().requires_grad_(False) for _ in range(3))
    for model in (plain, quick):
        use_half_weights(model, torch.bfloat16)
    layers, configs = pack_frozen(quick), attend_in_pieces(quick)
    assert layers > 0
    with torch.no_grad():
        wanted = exact(pixel_values=PIXELS).logits
        error = (step_logits(plain).float() - wanted).abs().max()
        assert not attended
        rounding = 2**-7 * wanted.abs().max()
        assert (step_logits(quick).float() - wanted).abs().max() <= 2 * max(error, rounding)
    assert attended and configs > 0
    attended.clear()
    assert torch.equal(step_logits(quick), step_logits(plain)) and not attended
