"""Linear layers with bias and GELU in one pass, against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from pipeline.models import onednn
from pipeline.models.half_weights import use_half_weights
from tests.test_autograd import PIXELS, build, step, step_logits


@pytest.mark.parametrize("shape", [(3, 5, 32), (7, 32), (1, 2, 3, 32)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_the_bits_are_those_of_torch(shape: tuple[int, ...], has_bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(size, generator=generator).bfloat16() for size in (shape, (48, 32), (48,)))
    bias = bias if has_bias else None
    found = onednn.linear(x, weight, bias)
    assert torch.equal(found, F.linear(x, weight, bias)) and found.dtype == torch.bfloat16
    exact = F.gelu(F.linear(x.float(), weight.float(), None if bias is None else bias.float()))
    found = onednn.linear(x, weight, bias, gelu=True).float()
    assert (found - exact).abs().max() <= 2**-7 * exact.abs().max() and found.shape == exact.shape


def test_other_number_formats_are_torchs() -> None:
    x, weight = torch.randn(3, 8), torch.randn(4, 8)
    assert not any(onednn.fuses(x.device, dtype) for dtype in (torch.float32, torch.float16))
    assert torch.equal(onednn.linear(x, weight, None, gelu=True), F.gelu(F.linear(x, weight)))


@pytest.mark.parametrize("kind", ["beit", "vit", "dinov2", "swin"])
def test_gelu_is_fused_in_prediction_alone(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training step has the same bits without the fused operator; prediction is as near to float32."""
    fused: list[bool] = []
    own = onednn.linear
    monkeypatch.setattr(
        onednn, "linear", lambda x, w, b, gelu=False: fused.append(gelu) or own(x, w, b, gelu)
    )
    exact = build(kind, True).eval()
    model = build(kind, True).eval()
    use_half_weights(model, torch.bfloat16)
    with torch.no_grad():
        exact_logits, logits = exact(pixel_values=PIXELS).logits, step_logits(model).float()
        assert sum(fused) == (2 if onednn.fuses(PIXELS.device, torch.bfloat16) else 0)
    fused.clear()
    own_step = step(model.train())
    assert not any(fused)
    monkeypatch.setattr(onednn, "fuses", lambda *_: False)
    torchs_step = step(model)
    assert all(torch.equal(own_step[1][name], torchs_step[1][name]) for name in torchs_step[1])
    with torch.no_grad():
        torchs = step_logits(model.eval()).float()
    error = (torchs - exact_logits).abs().max()
    assert (logits - exact_logits).abs().max() <= 1.5 * error
    assert (logits - torchs).abs().max() <= 2 * error


def test_a_norm_is_computed_again_once_for_all_layers_that_read_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Query and key of the second block read its first norm. That of the first block needs no gradient, so
    its output is stored.
    """
    again: list[int] = []
    own = F.layer_norm
    monkeypatch.setattr(F, "layer_norm", lambda *args, **kwargs: again.append(1) or own(*args, **kwargs))
    model = build("vit", True)
    use_half_weights(model, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(pixel_values=PIXELS).logits.float().square().sum()
    again.clear()
    loss.backward()
    assert len(again) == 1
