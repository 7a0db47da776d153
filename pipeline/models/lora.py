"""Low-rank adapters: attach by role, count, save, load, merge. The only file that imports peft.

LoRA (Hu et al. 2021, arXiv:2106.09685) freezes the weight W of a linear layer and learns W + (alpha / rank) *
B A, with A (rank, in) and B (out, rank). B starts at zero, so training starts from the pretrained model.
Adapters load although transformers 5.9 renamed the modules.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.errors import UserError, raise_all
from pipeline.files import filling
from pipeline.models.adapter_files import SAFE, is_written_again, read_tensors, rename_tensors
from pipeline.models.adapter_settings import read_settings
from pipeline.models.adapter_starts import convert, original_weights, originals, remember
from pipeline.models.backbones import head_name, tensor_problems
from pipeline.models.dropout import Dropout
from pipeline.models.roles import EMBEDDINGS, also_trained, is_bias, is_norm, modules_of

try:
    from peft import LoraConfig, PeftModel, get_peft_model
    from peft.utils import set_peft_model_state_dict
except (
    ImportError,
    RuntimeError,
    # missing, or of a version that does not fit transformers; merged weights (as in a kernel) do not need it
) as _error:
    _WITHOUT_PEFT: Exception | None = _error

    class PeftModel(nn.Module):
        """Placeholder where peft is not available: no model is an instance of it."""
else:
    _WITHOUT_PEFT = None

MERGE_TOLERANCE = 1e-3  # largest difference of logits by float32 rounding, relative to the largest logit


@dataclass(frozen=True)
class Counts:
    """Numbers of parameters: `model` without adapters, `trainable`, and the trainable ones in `adapter`
    and `head`.
    """

    model: int
    trainable: int
    adapter: int
    head: int


def attach(
    model: nn.Module,
    rank: int,
    alpha: float,
    dropout: float,
    roles: Sequence[str],
    also_train: Sequence[str] = (),
    has_head: bool = True,
    use_rslora: bool = False,
    variant: str = "lora",
    init: str = "default",
) -> PeftModel:
    """Return `model` frozen, with trainable adapters on `roles`, head, and the parts in `also_train`.

    These parts are saved with the adapter. PEFT copies and saves whole modules: with a class token all
    embeddings, whose other parameters stay frozen in the copy. Biases are trained in place, and saved as
    PEFT's `bias: all` does. `has_head`: False for an encoder. `use_rslora`: the update is scaled by alpha /
    sqrt(rank) (Kalajdzievski 2023, arXiv:2312.03732). `variant` dora: the norms of the rows are trained too
    (Liu et al. 2024, arXiv:2402.09353). `init`: the initial A and B, see `pipeline.models.adapter_starts`.

    Raises:
        UserError: the architecture does not have these layers or parts, see `pipeline.models.roles`; or peft
            is not available.
    """
    _need_peft()
    names = modules_of(model, roles)
    trained, owners = also_trained(model, also_train)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        bias="all" if "biases" in also_train else "none",
        target_modules=_short(names, model),
        modules_to_save=[*owners, *([head_name(model)] if has_head else [])] or None,
        use_rslora=use_rslora,
        use_dora=variant == "dora",
        init_lora_weights=True if init == "default" else init,
    )
    weights = originals(model, names, rank, init)
    adapted = _adapted(model, config)
    remember(adapted, weights)
    with_biases = "biases" in also_train
    for name, weight in adapted.named_parameters():
        if ".original_module." in name:  # replaced by its copy, so peft's `bias: all` must not train it
            weight.requires_grad_(False)
        elif any(f".{owner}.modules_to_save." in name for owner in owners):
            weight.requires_grad_(_plain_name(name) in trained or (with_biases and is_bias(name)))
    if variant == "dora":
        for name in names:  # the norms of their rows are part of the model, so they stay in float32 as saved
            adapted.get_submodule(f"base_model.model.{name}.base_layer").is_exact = True
    for module in list(adapted.modules()):
        for name, part in list(getattr(module, "lora_dropout", {}).items()):
            if type(part) is nn.Dropout:
                module.lora_dropout[name] = Dropout(part.p)
    hit = sum(name.endswith("lora_A") for name, _ in adapted.named_modules())
    if hit != len(names):
        raise RuntimeError(f"peft adapted {hit} layers, expected {len(names)}")
    return adapted


def count_parameters(model: nn.Module, head: str | None = None) -> Counts:
    """Return the numbers of parameters of a model with or without an adapter.

    The adapter's copy of the head is not counted in `model`. `head`: the dotted name of the head if the model
    is not one classifier.
    """
    total = trainable = adapter = in_head = 0
    head_prefix = f".{head or head_name(model.get_base_model() if isinstance(model, PeftModel) else model)}."
    for name, weight in model.named_parameters():
        is_adapter, is_copy = ".lora_" in name, ".modules_to_save." in name
        total += 0 if is_adapter or is_copy else weight.numel()
        if weight.requires_grad:
            trainable += weight.numel()
            adapter += weight.numel() if is_adapter else 0
            in_head += weight.numel() if head_prefix in f".{name}" and not is_adapter else 0
    return Counts(total, trainable, adapter, in_head)


def plain_state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights of `model` under their names without an adapter, as `from_pretrained` loads them.

    The head is the untrained original.
    """
    if not isinstance(model, PeftModel):
        return model.state_dict()
    plain = {}
    for name, tensor in model.get_base_model().state_dict().items():
        if ".lora_" not in name and ".modules_to_save." not in name:
            plain[name.replace(".base_layer.", ".").replace(".original_module.", ".")] = tensor
    return plain | {f"{_plain_name(name)}.weight": weight for name, weight in original_weights(model).items()}


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors` into `folder`; plain PEFT loads them.

    Each file is written completely or not at all.
    """
    with filling(folder) as temporary:
        base_name = model.peft_config["default"].base_model_name_or_path
        # A path of this machine is useless on another one
        model.peft_config["default"].base_model_name_or_path = ""
        try:
            model.save_pretrained(temporary, save_embedding_layers=False)
        finally:
            model.peft_config["default"].base_model_name_or_path = base_name
        if model.peft_config["default"].bias != "none":
            _keep_once(temporary / SAFE)
        convert(model, temporary, SAFE)
        (temporary / "README.md").unlink(missing_ok=True)  # peft's empty template of a model card


def _keep_once(path: Path) -> None:
    """Remove repeated tensors: with `bias: all` peft writes the bias of a copied module three times.

    peft loads the one that has the name of the module itself.
    """
    tensors = load_file(path)
    kept = {name: tensor for name, tensor in tensors.items() if not is_written_again(name)}
    save_file(kept, path, metadata={"format": "pt"})


def load_adapter(model: nn.Module, folder: Path, has_head: bool = True) -> PeftModel:
    """Return `model` with the adapter in `folder`, from any library version; eval mode.

    `has_head`: False for an encoder's adapter. Layers are matched by (numbers in the path, role), which the
    renaming in transformers 5.9 did not change.

    Raises:
        UserError: not a LoRA adapter, unsafe or damaged, tensors that do not fit this model (lists each), or
            peft is not available.
    """
    _need_peft()
    folder = Path(folder)
    settings = read_settings(folder, LoraConfig().to_dict())
    tensors = read_tensors(folder)
    names = [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear) or is_norm(module)
    ]
    renamed = rename_tensors(tensors, names, folder)
    if settings.bias != "none":
        renamed = {name: tensor for name, tensor in renamed.items() if not is_written_again(name)}
    ranks = {
        tensor.shape[0]
        for name, tensor in renamed.items()
        if name.endswith(".lora_A.weight") and tensor.ndim == 2
    }
    if ranks and settings.rank not in ranks:  # checked before layers of that size are built
        raise UserError(
            f"{folder / 'adapter_config.json'}: r: {settings.rank}, but the tensors' rank is {min(ranks)}"
        )
    adapted_names = sorted({_plain_name(name.split(".lora_")[0]) for name in renamed if ".lora_" in name})
    copied = [
        name for name in settings.modules_to_save if re.search(EMBEDDINGS, name) and _has_module(model, name)
    ]
    copied += [
        name
        for name, module in model.named_modules()
        if is_norm(module) and f"base_model.model.{name}.weight" in renamed
    ]
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        use_rslora=settings.use_rslora,
        use_dora=settings.use_dora,
        bias=settings.bias,
        init_lora_weights=settings.init_lora_weights,
        target_modules=_short(adapted_names, model),
        modules_to_save=[*copied, *([head_name(model)] if has_head else [])] or None,
        inference_mode=True,
    )
    adapted = _adapted(model, config)
    expected = {
        re.sub(
            r"(?<=_magnitude_vector)\.default\.weight$|\.(default|modules_to_save\.default)(?=\.|$)", "", name
        ): weight
        for name, weight in adapted.named_parameters()
        if ".lora_" in name or ".modules_to_save." in name or _is_saved_bias(name, settings.bias)
    }
    raise_all(
        tensor_problems(expected, renamed), f"the adapter in {folder} does not fit {type(model).__name__}:"
    )
    set_peft_model_state_dict(adapted, renamed)
    return adapted.eval()


def _is_saved_bias(name: str, kind: str) -> bool:
    """Return True if peft saves this bias with the adapter. `kind`: its setting `bias`."""
    in_layer = name.endswith(".base_layer.bias")
    if kind == "lora_only":
        return in_layer
    return kind == "all" and is_bias(name) and ".original_module." not in name


@torch.no_grad()
def merge(model: PeftModel, logits: Callable[[nn.Module], torch.Tensor]) -> nn.Module:
    """Return the model without an adapter, whose update is added to the weights.

    The result is checked on one input. `logits(model)` runs the input through a model.

    Raises:
        UserError: the adapter's update is zero everywhere, or merging changes a logit by more than
            `MERGE_TOLERANCE`.
    """
    updates = [weight for name, weight in model.named_parameters() if ".lora_B." in name]
    if not any(weight.any() for weight in updates):
        raise UserError(
            "the adapter changes nothing: all its B matrices are zero. It was saved untrained; train again, "
            "or use another release"
        )
    adapted = logits(model)
    merged_model = model.merge_and_unload(safe_merge=True)
    merged = logits(merged_model)
    difference = ((merged - adapted).abs().max() / adapted.abs().max()).item()
    if not difference <= MERGE_TOLERANCE:
        raise UserError(
            f"merging the adapter changes the logits by {difference:.1e} of their size, more than "
            f"{MERGE_TOLERANCE:.0e}: adapter and backbone do not belong together"
        )
    return merged_model


def _need_peft() -> None:
    if _WITHOUT_PEFT is not None:
        raise UserError(
            f"adapters need the package peft, which cannot be used here ({_WITHOUT_PEFT}): python -m pip "
            "install peft"
        )


def _adapted(model: nn.Module, config: LoraConfig) -> PeftModel:
    with warnings.catch_warnings():
        # Peft uses a name that version 6 of transformers will remove
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(model, config)


def _plain_name(name: str) -> str:
    """Return the name of a parameter or module in the model without an adapter."""
    return name.removeprefix("base_model.model.").replace(".modules_to_save.default", "")


def _has_module(model: nn.Module, name: str) -> bool:
    return any(name == other for other, _ in model.named_modules())


def _short(names: Sequence[str], model: nn.Module) -> list[str]:
    """Return module endings that select exactly `names`, or the full names where endings would select
    more.

    Endings are how adapter configs are usually written.
    """
    endings = sorted({name.rsplit(".", 1)[-1] for name in names})
    selected = {name for name, _ in model.named_modules() if name.rsplit(".", 1)[-1] in endings}
    return endings if selected == set(names) else sorted(names)
