"""Adapters that are initialised from the backbone's own weights: PiSSA (arXiv:2404.02948) and OLoRA
(arXiv:2406.01775).

A and B start as the largest part of a frozen weight W (by its singular values, or its QR decomposition), and
the frozen weight becomes W - scaling * B A. So the backbone in memory is changed. On disk it is not: an
adapter is saved for the original W, by PEFT's own conversion (A = [current A; initial A], B = [current B,
-initial B], twice the rank), which plain PEFT loads. The initial A and B are part of the resume state,
because another machine may compute others.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.errors import UserError


@dataclass(frozen=True)
class Start:
    """Initial state of one layer: `original` weight (out, in) of the backbone, A (rank, in), B (out,
    rank), on the CPU.
    """

    original: torch.Tensor
    a: torch.Tensor
    b: torch.Tensor


def originals(model: nn.Module, names: Sequence[str], rank: int, init: str) -> dict[str, torch.Tensor]:
    """Return copies of the weights of the layers `names`, taken before an adapter changes them.

    `model`: without an adapter. {} for `init` "default".

    Raises:
        UserError: a layer is too small for the rank.
    """
    if init == "default":
        return {}
    weights = {name: model.get_submodule(name).weight.detach().clone() for name in names}
    least = min(min(weight.shape) for weight in weights.values())
    if rank > least:
        raise UserError(
            f"lora.init {init}: needs lora.rank up to {least}, the smallest side of the layers, found {rank}"
        )
    return weights


def remember(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Store in each adapted layer of `model` its initial state. `weights`: the result of `originals`."""
    for name, original in weights.items():
        layer = model.get_submodule(f"base_model.model.{name}")
        _begin(
            layer,
            Start(
                original, *(part["default"].weight.detach().clone() for part in (layer.lora_A, layer.lora_B))
            ),
        )


def starts_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the initial A and B of the layers of `model`, by name; {} if the backbone is unchanged."""
    return {
        f"{name}.{part}": getattr(layer.adapter_start, part)
        for name, layer in _started(model)
        for part in ("a", "b")
    }


def put_starts(model: nn.Module, starts: Mapping[str, torch.Tensor]) -> None:
    """Set the initial A and B of the layers of `model`; the frozen weights are computed again from them."""
    for name, layer in list(_started(model)):
        if f"{name}.a" in starts:
            _begin(layer, Start(layer.adapter_start.original, starts[f"{name}.a"], starts[f"{name}.b"]))


def original_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the original backbone weights of the changed layers, by layer name."""
    return {name: layer.adapter_start.original for name, layer in _started(model)}


def convert(model: nn.Module, folder: Path, file: str) -> None:
    """Convert the adapter that PEFT wrote into `folder` (tensors in `file`) to one for the original
    backbone.

    Does nothing if the backbone is unchanged.
    """
    starts = starts_of(model)
    if not starts:
        return
    tensors = load_file(folder / file)
    for name, _ in _started(model):
        a, b = f"{name}.lora_A.weight", f"{name}.lora_B.weight"
        tensors[a] = torch.cat([tensors[a], starts[f"{name}.a"]], dim=0)
        tensors[b] = torch.cat([tensors[b], -starts[f"{name}.b"]], dim=1)
    save_file(tensors, folder / file, metadata={"format": "pt"})
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config = (
        config
        | doubled(config["r"], config["lora_alpha"], config.get("use_rslora", False))
        | {"init_lora_weights": True}
    )
    path.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


def doubled(rank: int, alpha: float, use_rslora: bool) -> dict[str, Any]:
    """Return settings of twice the rank with the same scale.

    rsLoRA, with the scale alpha / sqrt(rank), becomes plain LoRA with that scale.
    """
    return {
        "r": 2 * rank,
        "lora_alpha": 2 * rank * (alpha / rank**0.5) if use_rslora else 2 * alpha,
        "use_rslora": False,
    }


def _started(model: nn.Module) -> Iterator[tuple[str, Any]]:
    return ((name, module) for name, module in model.named_modules() if hasattr(module, "adapter_start"))


@torch.no_grad()
def _begin(layer: Any, start: Start) -> None:
    """Change the frozen weight. New and resumed runs compute it here, so both get the same bits."""
    layer.adapter_start = start
    layer.base_layer.weight.copy_(start.original - layer.scaling["default"] * (start.b @ start.a))
