"""Find layers of a backbone by their role, so LoRA targets have the same names in every architecture and
library version.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from pipeline.errors import UserError

_ATTENTION = r"(attention|self_attn|attn)"
# Role -> module names inside a numbered block. Before 5.9 transformers named the layers of BEiT, ViT, DINOv2
# and Swin as it still names those of SwinV2 and BERT. timm's EVA-02 and transformers' DINOv2-giant have a
# gated MLP: act(gate(x)) * fc1(x). ConvNeXt has an MLP and no attention.
ROLES = {
    "query": rf"{_ATTENTION}\.(q_proj|(attention\.|self\.)?query)",
    "key": rf"{_ATTENTION}\.(k_proj|(attention\.|self\.)?key)",
    "value": rf"{_ATTENTION}\.(v_proj|(attention\.|self\.)?value)",
    "qkv": rf"{_ATTENTION}\.qkv",
    "output": rf"{_ATTENTION}\.(o_proj|out_proj|proj|output\.dense)",
    "gate": r"mlp\.(gate_proj|fc1_g)",
    "fc1": r"(mlp\.(fc1|fc1_x|up_proj)|pwconv1|intermediate\.dense)",
    "fc2": r"(mlp\.(fc2|down_proj|weights_out)|pwconv2|output\.dense)",
}
PATCH_PROJECTION = r"(^|\.)(patch_embeddings\.projection|patch_embeddings?|patch_embed\.proj)$"
EMBEDDINGS = rf"(^|\.)embeddings$|{PATCH_PROJECTION}"  # the modules that an adapter may carry beside the head
BARE_BIAS = r"\.(q_bias|v_bias|in_proj_bias)$"  # parameters of an attention without a layer of their own
CLASS_TOKEN = r"(^|\.)(cls_token|class_embedding)$"


def role_of(module_name: str) -> str | None:
    """Return the role of a linear layer by its dotted name, or None."""
    return next(
        (role for role, pattern in ROLES.items() if re.search(rf"(^|\.)\d+\.{pattern}$", module_name)), None
    )


def modules_of(model: nn.Module, roles: Sequence[str]) -> list[str]:
    """Return the dotted names of the linear layers that have one of `roles`.

    Raises:
        UserError: no layer of this architecture has the role, or an adapter cannot reach it; the message
            lists the roles there are.
    """
    found, reached = _layers_by_role(model), reached_roles(model)
    has = (
        f"it has {', '.join(reached)} (--set lora.targets=[{','.join(reached)}])"
        if reached
        else "use full fine-tuning (--lora-rank 0)"
    )
    if missing := [role for role in roles if not found[role]]:
        endings = sorted({re.sub(r"^.*\.\d+\.", "", name) for name in _linear_layers(model)})
        raise UserError(
            f"lora.targets: {architecture_name(model)} has no {', '.join(missing)} layer; {has}; "
            f"its linear layers end in: {', '.join(endings)}"
        )
    if bypassed := [role for role in roles if role not in reached]:
        raise UserError(
            f"lora.targets: {architecture_name(model)} uses only the weight of {', '.join(bypassed)}, so an "
            f"adapter would have no effect; {has}"
        )
    return [name for role in roles for name in found[role]]


def reached_roles(model: nn.Module) -> list[str]:
    """Return the roles that an adapter on `model` can have."""
    return [
        role
        for role, names in _layers_by_role(model).items()
        if names and not any(_is_bypassed(model, name) for name in names)
    ]


def _linear_layers(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def _layers_by_role(model: nn.Module) -> dict[str, list[str]]:
    linear = _linear_layers(model)
    return {role: [name for name in linear if role_of(name) == role] for role in ROLES}


def also_trained(model: nn.Module, parts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the parameters of `parts` by dotted name, and the smallest modules that hold them.

    PEFT trains and saves copies of whole modules, never a single parameter: with a class token the embeddings
    around it. Biases are left out, because PEFT trains them in place.

    Raises:
        UserError: the architecture has no such part, or no module that holds it without the blocks.
    """
    parameters, owners = [], []
    for part in parts:
        if part == "biases":
            continue
        if part == "norms":
            norms = norms_of(model)
            if not norms:
                raise UserError(f"lora.also_train: {architecture_name(model)} has no layer norms")
            owners += norms
            parameters += [
                f"{norm}.{name}" for norm in norms for name, _ in model.get_submodule(norm).named_parameters()
            ]
            continue
        if part == "patch_projection":
            found = [
                name
                for name, module in model.named_modules()
                if isinstance(module, nn.Conv2d) and re.search(PATCH_PROJECTION, name)
            ]
        else:
            found = [
                name.rpartition(".")[0]
                for name, _ in model.named_parameters()
                if re.search(CLASS_TOKEN, name)
            ]
        if len(found) != 1:
            raise UserError(f"lora.also_train: {architecture_name(model)} has no {part} with a known name")
        owner = model.get_submodule(found[0])
        if any(role_of(f"{found[0]}.{name}") for name, _ in owner.named_modules()):
            raise UserError(
                f"lora.also_train: {architecture_name(model)} has its {part} in one module with its blocks, "
                "so PEFT cannot save it"
            )
        owners.append(found[0])
        names = [name for name, _ in owner.named_parameters()]
        parameters += [
            f"{found[0]}.{name}"
            for name in names
            if part == "patch_projection" or re.search(CLASS_TOKEN, name)
        ]
    return parameters, [name for name in owners if not any(name.startswith(f"{other}.") for other in owners)]


def train_parts(model: nn.Module, parts: Sequence[str]) -> None:
    """Make `parts` of a frozen `model` without an adapter trainable.

    Only norms is LayerNorm tuning; only biases is BitFit, also those that timm's attention names `q_bias` and
    `v_bias` (an adapter leaves these frozen, because PEFT does not save them).

    Raises:
        UserError: as `also_trained`.
    """
    wanted = set(also_trained(model, parts)[0])
    for name, weight in model.named_parameters():
        if name in wanted or ("biases" in parts and (is_bias(name) or re.search(BARE_BIAS, name))):
            weight.requires_grad_(True)


def is_bias(name: str) -> bool:
    """Return True if a parameter is the bias of a layer; tables of position biases are not."""
    return name.rsplit(".", 1)[-1] == "bias"


def norms_of(model: nn.Module) -> list[str]:
    """Return the dotted names of the layer norms (LayerNorm, RMSNorm), in the order of the model."""
    return [name for name, module in model.named_modules() if is_norm(module)]


def is_norm(module: nn.Module) -> bool:
    """Return True for a layer norm of any library that has trainable parameters."""
    named_so = re.search(r"(LayerNorm|RMSNorm|RmsNorm)(2d)?(Fp32)?$", type(module).__name__)  # timm: RmsNorm
    return (isinstance(module, nn.LayerNorm) or named_so is not None) and any(
        True for _ in module.parameters(recurse=False)
    )


def architecture_name(model: nn.Module) -> str:
    """Return the class name of the model; for a timm model in transformers' wrapper the inner one."""
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    return type(getattr(model, "timm_model", model)).__name__


def _is_bypassed(model: nn.Module, name: str) -> bool:
    """Return True for layers that are never called, so adapters on them have no effect.

    timm's BEiT, SwinV2 and fused EVA call `F.linear(x, self.qkv.weight, ...)` with their own biases.
    """
    attention = model.get_submodule(name.rpartition(".")[0])
    return (
        name.endswith(".qkv")
        and getattr(attention, "q_bias", None) is not None
        and not getattr(attention, "qkv_bias_separate", False)
    )
