"""Dropout with cheap masks: as many zeros as asked for, everywhere; the rest scaled; torch's generator alone
decides.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.models.backbones import load_backbone
from pipeline.models.dropout import Dropout, drop
from pipeline.models.lora import attach


@pytest.mark.parametrize("dropout", [0.05, 0.1, 0.5, 0.9])
def test_each_number_is_dropped_with_the_probability(dropout: float) -> None:
    torch.manual_seed(0)
    rows = 40_000
    _, mask = drop(torch.ones(rows, 4), dropout)
    error = (dropout * (1 - dropout) / rows) ** 0.5
    assert (1 - mask.float().mean(0) - dropout).abs().max() < 4 * error  # each of four numbers of one draw
    together = (~mask[:, 0] & ~mask[:, 1]).float().mean().item()  # independent of its neighbour
    assert abs(together - dropout**2) < 4 * (dropout**2 * (1 - dropout**2) / rows) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1,), (3, 7), (2, 5, 4)])
def test_the_rest_is_scaled_as_by_torch_and_so_is_the_gradient(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    torch.manual_seed(1)
    x = torch.randn(shape).to(dtype).requires_grad_()
    dropped, mask = drop(x, 0.25)
    expected = torch.where(mask, x.detach() * torch.tensor(1 / 0.75), 0).to(dtype)
    assert mask.dtype == torch.bool and mask.shape == x.shape and torch.equal(dropped, expected)
    dropped.sum().backward()
    assert torch.equal(x.grad, torch.where(mask, torch.tensor(1 / 0.75), 0).to(dtype))


def test_torchs_generator_alone_decides() -> None:
    x = torch.ones(1000)
    torch.manual_seed(7)
    first = drop(x, 0.1)[1]
    second = drop(x, 0.1)[1]
    torch.manual_seed(7)
    assert torch.equal(drop(x, 0.1)[1], first) and not torch.equal(first, second)


def test_adapters_use_it_in_training_alone(tiny_backbone) -> None:
    backbone = load_backbone(str(tiny_backbone), ["a", "b"])
    model = attach(backbone.model, 2, 2, 0.2, ["query", "key"])
    layers = [module for module in model.modules() if isinstance(module, Dropout)]
    config = backbone.model.config
    assert len(layers) == 2 * config.num_hidden_layers
    assert not any(type(module) is nn.Dropout and module.p == 0.2 for module in model.modules())
    x = torch.randn(4, 8)
    assert (layers[0].train()(x) == 0).any() and layers[0].eval()(x) is x
