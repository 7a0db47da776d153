"""Low-rank adapters: attach by role, count, save, load across the renamed modules of transformers 5.9, merge. The only file that imports peft.

LoRA (Hu et al. 2021, arXiv:2106.09685) leaves the weight W of a linear layer frozen and learns W + (alpha / rank) * B A,
with A (rank, in) and B (out, rank); B starts at zero, so training starts from the pretrained model.
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
from pipeline.models.adapter_settings import read_settings
from pipeline.models.adapter_starts import convert, original_weights, originals, remember
from pipeline.models.backbones import head_name, tensor_problems
from pipeline.models.roles import EMBEDDINGS, also_trained, is_bias, is_norm, modules_of, role_of

try:
    from peft import LoraConfig, PeftModel, get_peft_model
    from peft.utils import set_peft_model_state_dict
except (ImportError, RuntimeError) as _error:  # absent, or of another time than transformers: merged weights, as in a kernel, need none
    _WITHOUT_PEFT: Exception | None = _error

    class PeftModel(nn.Module):
        """Stands in where peft is not at hand: no model is one."""
else:
    _WITHOUT_PEFT = None

SAFE = "adapter_model.safetensors"
OF_A_LAYER = r"lora_[AB]\.weight|lora_magnitude_vector|base_layer\.bias"  # what an adapter holds of one linear layer
MERGE_TOLERANCE = 1e-3  # largest logit difference, relative to the largest logit, that float32 rounding may explain


@dataclass(frozen=True)
class Counts:
    """Numbers of parameters: `model` without any adapter, `trainable`, and of the trainable ones `adapter` and `head`."""

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
    """`model` frozen but for new adapters on `roles`, its head, and the parts `also_train` names (saved with the adapter).

    An encoder has no head. PEFT copies and saves whole modules: with a class token all embeddings, whose other parameters stay frozen in the
    copy. Biases are trained where they are, and saved as PEFT's `bias: all` does. `use_rslora`: the update is scaled by alpha / sqrt(rank)
    (Kalajdzievski 2023, arXiv:2312.03732). `variant` dora: also the length of each row of the sum (Liu et al. 2024, arXiv:2402.09353).
    `init`: how A and B begin, see `pipeline.models.adapter_starts`.

    Raises:
        UserError: the architecture has no such layers or parts, see `pipeline.models.roles`; or peft is not at hand.
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
        if ".original_module." in name:  # what a copy stands for; peft's `bias: all` would train it for nothing
            weight.requires_grad_(False)
        elif any(f".{owner}.modules_to_save." in name for owner in owners):
            weight.requires_grad_(_plain_name(name) in trained or (with_biases and is_bias(name)))
    if variant == "dora":
        for name in names:  # whose lengths of rows are part of the model: held as exactly as they are saved
            adapted.get_submodule(f"base_model.model.{name}.base_layer").is_exact = True
    hit = sum(name.endswith("lora_A") for name, _ in adapted.named_modules())
    if hit != len(names):
        raise RuntimeError(f"peft adapted {hit} layers, expected {len(names)}")
    return adapted


def count_parameters(model: nn.Module, head: str | None = None) -> Counts:
    """Parameters of a plain or adapted model; the adapter's copy of the head is not counted as part of the model.

    `head` is the dotted name of the head where the model is not one classifier.
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
    """The weights of `model` under the names it has without an adapter: what `from_pretrained` loads. The head is the untrained original."""
    if not isinstance(model, PeftModel):
        return model.state_dict()
    plain = {}
    for name, tensor in model.get_base_model().state_dict().items():
        if ".lora_" not in name and ".modules_to_save." not in name:
            plain[name.replace(".base_layer.", ".").replace(".original_module.", ".")] = tensor
    return plain | {f"{_plain_name(name)}.weight": weight for name, weight in original_weights(model).items()}


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors` into `folder`, each whole or not at all; plain PEFT loads them."""
    with filling(folder) as temporary:
        base_name = model.peft_config["default"].base_model_name_or_path
        model.peft_config["default"].base_model_name_or_path = ""  # a path of the machine that trained means nothing elsewhere
        try:
            model.save_pretrained(temporary, save_embedding_layers=False)
        finally:
            model.peft_config["default"].base_model_name_or_path = base_name
        if model.peft_config["default"].bias != "none":
            _keep_once(temporary / SAFE)
        convert(model, temporary, SAFE)
        (temporary / "README.md").unlink(missing_ok=True)  # peft's form for a model card, not filled in


def _keep_once(path: Path) -> None:
    """With `bias: all` peft writes the bias of a copied module three times: the copy's own, as the module's, is what it loads."""
    tensors = load_file(path)
    kept = {name: tensor for name, tensor in tensors.items() if not _is_written_again(name)}
    save_file(kept, path, metadata={"format": "pt"})


def _is_written_again(name: str) -> bool:
    return ".original_module." in name or ".modules_to_save." in name


def head_classes(folder: Path) -> int:
    """The number of classes of the head saved in adapter `folder`.

    Raises:
        UserError: the adapter holds no head.
    """
    tensors = _read_tensors(Path(folder))
    modules = {name.removesuffix(".bias"): tensor for name, tensor in tensors.items() if ".lora_" not in name and name.endswith(".bias")}
    # The head is the one matrix beside the adapter that is not of the embeddings; trained norms and biases are vectors.
    matrices = {name.removesuffix(".weight") for name, tensor in tensors.items() if name.endswith(".weight") and tensor.ndim > 1}
    biases = [bias for name, bias in modules.items() if name in matrices and not re.search(EMBEDDINGS, name)]
    if len(biases) != 1:
        raise UserError(f"{folder}: expected one classification head beside the adapter (peft's modules_to_save), found {len(biases)}")
    return biases[0].numel()


def load_adapter(model: nn.Module, folder: Path, has_head: bool = True) -> PeftModel:
    """`model` with the adapter in `folder`, whatever library version wrote it; eval mode. An encoder's adapter has no head.

    Layers are matched by (numbers in the path, role), which the renaming of transformers 5.9 left alone.

    Raises:
        UserError: not a LoRA adapter, unsafe or damaged, its tensors do not fit this model one to one (each is named), or no peft is at hand.
    """
    _need_peft()
    folder = Path(folder)
    settings = read_settings(folder, LoraConfig().to_dict())
    tensors = _read_tensors(folder)
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) or is_norm(module)]
    renamed = rename_tensors(tensors, names, folder)
    if settings.bias != "none":
        renamed = {name: tensor for name, tensor in renamed.items() if not _is_written_again(name)}
    ranks = {tensor.shape[0] for name, tensor in renamed.items() if name.endswith(".lora_A.weight") and tensor.ndim == 2}
    if ranks and settings.rank not in ranks:  # before layers of that size are made
        raise UserError(f"{folder / 'adapter_config.json'}: r: {settings.rank}, but the tensors' rank is {min(ranks)}")
    adapted_names = sorted({_plain_name(name.split(".lora_")[0]) for name in renamed if ".lora_" in name})
    copied = [name for name in settings.modules_to_save if re.search(EMBEDDINGS, name) and _has_module(model, name)]
    copied += [name for name, module in model.named_modules() if is_norm(module) and f"base_model.model.{name}.weight" in renamed]
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
        re.sub(r"(?<=_magnitude_vector)\.default\.weight$|\.(default|modules_to_save\.default)(?=\.|$)", "", name): weight
        for name, weight in adapted.named_parameters()
        if ".lora_" in name or ".modules_to_save." in name or _is_saved_bias(name, settings.bias)
    }
    raise_all(tensor_problems(expected, renamed), f"the adapter in {folder} does not fit {type(model).__name__}:")
    set_peft_model_state_dict(adapted, renamed)
    return adapted.eval()


def _is_saved_bias(name: str, kind: str) -> bool:
    """Whether peft saves this bias beside the adapter; `kind` is its setting `bias`."""
    in_layer = name.endswith(".base_layer.bias")
    return in_layer if kind == "lora_only" else kind == "all" and is_bias(name) and ".original_module." not in name


def rename_tensors(
    tensors: dict[str, torch.Tensor], module_names: Sequence[str], folder: Path | str = "adapter"
) -> dict[str, torch.Tensor]:
    """Adapter tensors under the names of another library version's modules (`module_names`, the model's linear layers and norms).

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
        elif match[2] in ("weight", "bias"):  # embeddings and heads, which are in no block
            renamed[name] = tensor
        else:
            problems.append(f"{match[1]}: no such layer")
    raise_all(sorted(set(problems)), f"{folder} was made for another architecture:")
    return renamed


@torch.no_grad()
def merge(model: PeftModel, logits: Callable[[nn.Module], torch.Tensor]) -> nn.Module:
    """The plain model with the adapter folded into its weights, checked on one input: merged = adapted, and the adapter is not idle.

    `logits(model)` runs the input through a model.

    Raises:
        UserError: the adapter's update is zero everywhere, or merging moves a logit by more than `MERGE_TOLERANCE`.
    """
    updates = [weight for name, weight in model.named_parameters() if ".lora_B." in name]
    if not any(weight.any() for weight in updates):
        raise UserError(
            "the adapter changes nothing: all its B matrices are zero. It was saved untrained; train again, or use another release"
        )
    adapted = logits(model)
    merged_model = model.merge_and_unload(safe_merge=True)
    merged = logits(merged_model)
    difference = ((merged - adapted).abs().max() / adapted.abs().max()).item()
    if not difference <= MERGE_TOLERANCE:
        raise UserError(
            f"merging the adapter moves the logits by {difference:.1e} of their size, more than {MERGE_TOLERANCE:.0e}: "
            "adapter and backbone do not belong together"
        )
    return merged_model


def _need_peft() -> None:
    if _WITHOUT_PEFT is not None:
        raise UserError(f"adapters need the package peft, which cannot be used here ({_WITHOUT_PEFT}): python -m pip install peft")


def _adapted(model: nn.Module, config: LoraConfig) -> PeftModel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by a name that its version 6 will drop
        return get_peft_model(model, config)


def _plain_name(name: str) -> str:
    """A parameter's or module's name in the model without an adapter."""
    return name.removeprefix("base_model.model.").replace(".modules_to_save.default", "")


def _has_module(model: nn.Module, name: str) -> bool:
    return any(name == other for other, _ in model.named_modules())


def _place(module_name: str) -> tuple[tuple[str, ...], str]:
    """Which block, and which layer of it: the role of a linear one, the own name of a norm."""
    return tuple(re.findall(r"(?<=\.)\d+(?=\.)", module_name)), role_of(module_name) or module_name.rsplit(".", 1)[-1]


def _short(names: Sequence[str], model: nn.Module) -> list[str]:
    """Module endings that select exactly `names` (as adapter configs are written by hand), or the full names where endings would hit more."""
    endings = sorted({name.rsplit(".", 1)[-1] for name in names})
    selected = {name for name, _ in model.named_modules() if name.rsplit(".", 1)[-1] in endings}
    return endings if selected == set(names) else sorted(names)


def _read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    safe, pickled = folder / SAFE, folder / "adapter_model.bin"
    if not safe.exists() and not pickled.exists():
        raise UserError(f"{folder}: no adapter_model.safetensors (or .bin) beside adapter_config.json")
    try:
        tensors = load_file(safe) if safe.exists() else torch.load(pickled, map_location="cpu", weights_only=True)
        if not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
            raise TypeError("it holds more than tensors by name")
        return tensors
    except Exception as error:  # safetensors and pickle damage have many types; all mean the same to the user
        path = safe if safe.exists() else pickled
        unsafe = "Weights only load failed" in str(error)
        reason = (
            "it holds more than tensors and was not loaded (unsafe pickle)" if unsafe else f"cannot be read: {str(error).splitlines()[0]}"
        )
        raise UserError(f"{path}: {reason}; ask its author for safetensors, or download it again") from None
