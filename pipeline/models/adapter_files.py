"""The tensors of a saved adapter: read safely, and renamed for the installed library version."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

from pipeline.errors import UserError, first_line, raise_all
from pipeline.models.roles import EMBEDDINGS, role_of

SAFE = "adapter_model.safetensors"
# An adapter's tensors for one linear layer
OF_A_LAYER = r"lora_[AB]\.weight|lora_magnitude_vector|base_layer\.bias"


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Return the adapter's tensors in `folder` by name, from safetensors or else the .bin file.

    Raises:
        UserError: there is no such file, it is damaged, or it holds more than tensors.
    """
    safe, pickled = folder / SAFE, folder / "adapter_model.bin"
    if not safe.exists() and not pickled.exists():
        raise UserError(f"{folder}: no adapter_model.safetensors (or .bin) beside adapter_config.json")
    try:
        tensors = (
            load_file(safe) if safe.exists() else torch.load(pickled, map_location="cpu", weights_only=True)
        )
        if not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
            raise TypeError("it holds more than tensors by name")
        return tensors
    except Exception as error:  # damaged files raise many kinds of errors
        path = safe if safe.exists() else pickled
        unsafe = "Weights only load failed" in str(error)
        reason = (
            "it holds more than tensors and was not loaded (unsafe pickle)"
            if unsafe
            else f"cannot be read: {first_line(error)}"
        )
        raise UserError(f"{path}: {reason}; ask its author for safetensors, or download it again") from None


def head_classes(folder: Path) -> int:
    """Return the number of classes of the head saved in adapter `folder`.

    Raises:
        UserError: the adapter holds no head.
    """
    tensors = read_tensors(Path(folder))
    modules = {
        name.removesuffix(".bias"): tensor
        for name, tensor in tensors.items()
        if ".lora_" not in name and name.endswith(".bias")
    }
    # The head is the only matrix outside adapter and embeddings; trained norms and biases are vectors.
    matrices = {
        name.removesuffix(".weight")
        for name, tensor in tensors.items()
        if name.endswith(".weight") and tensor.ndim > 1
    }
    biases = [bias for name, bias in modules.items() if name in matrices and not re.search(EMBEDDINGS, name)]
    if len(biases) != 1:
        raise UserError(
            f"{folder}: expected one classification head beside the adapter (peft's modules_to_save), found "
            f"{len(biases)}"
        )
    return biases[0].numel()


def rename_tensors(
    tensors: dict[str, torch.Tensor], module_names: Sequence[str], folder: Path | str = "adapter"
) -> dict[str, torch.Tensor]:
    """Return adapter tensors under the module names of this library version.

    `module_names`: the model's linear layers and norms.

    Raises:
        UserError: a tensor belongs to no layer of the model.
    """
    by_place = {_place(name): name for name in module_names if _place(name)[0]}
    known = set(module_names)
    renamed, problems = {}, []
    for name, tensor in tensors.items():
        match = re.fullmatch(rf"base_model\.model\.(.+)\.({OF_A_LAYER})", name) or re.fullmatch(
            r"base_model\.model\.(.+)\.(weight|bias)", name
        )
        if match is None or match[1] in known:
            renamed[name] = tensor
        elif _place(match[1])[0] and _place(match[1]) in by_place:
            renamed[f"base_model.model.{by_place[_place(match[1])]}.{match[2]}"] = tensor
        elif match[2] in ("weight", "bias"):  # embeddings and heads are not in a block
            renamed[name] = tensor
        else:
            problems.append(f"{match[1]}: no such layer")
    raise_all(sorted(set(problems)), f"{folder} was made for another architecture:")
    return renamed


def is_written_again(name: str) -> bool:
    """Return True for a tensor that peft writes a second time, with `bias: all`, for a copied module."""
    return ".original_module." in name or ".modules_to_save." in name


def _place(module_name: str) -> tuple[tuple[str, ...], str]:
    """Return the block numbers and the layer's role (for a norm its own name)."""
    return tuple(re.findall(r"(?<=\.)\d+(?=\.)", module_name)), role_of(module_name) or module_name.rsplit(
        ".", 1
    )[-1]
