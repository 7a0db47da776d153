"""Read adapter_config.json: every key that changes an adapter's outputs must be known, or have PEFT's
default, or is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, raise_all
from pipeline.files import read_json

# Origin and task, and the adapted layers. The tensors' names show the layers too, and each of them is
# checked.
DESCRIPTION = tuple(
    "peft_type peft_version auto_mapping base_model_name_or_path revision task_type inference_mode".split()
)
PLACES = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save")
# Settings of training that do not change the result. `megatron_core` needs `megatron_config` to have an
# effect.
TRAINING = ("lora_dropout", "eva_config", "megatron_core")
DECIDING = ("r", "lora_alpha", "use_rslora", "use_dora", "bias", "init_lora_weights")
KNOWN = (*DESCRIPTION, *PLACES, *TRAINING, *DECIDING)

BIASES = ("none", "all", "lora_only")

# The initial values of A and B do not matter after training, unless the initialisation also changed the
# backbone's weights. PEFT repeats that change whenever it loads such an adapter. The two that depend only on
# the weights are repeated here too.
FORGOTTEN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
REPEATED_STARTS = ("pissa", "olora")
# PEFT's own conversion (path_initial_model_for_weight_conversion) is not suggested: it leaves out the trained
# head.
CONVERSION = "model.merge_and_unload().save_pretrained('model_TYPE')"


@dataclass(frozen=True)
class AdapterSettings:
    """The settings that change an adapter's outputs.

    `init_lora_weights` is PEFT's: "pissa" and "olora" change the backbone.
    """

    rank: int
    alpha: float
    dropout: float
    use_rslora: bool
    init_lora_weights: bool | str
    modules_to_save: tuple[str, ...]
    use_dora: bool = False
    bias: str = "none"  # none, all or lora_only: the biases that the adapter holds


def read_settings(folder: Path, defaults: Mapping[str, Any]) -> AdapterSettings:
    """Return the settings in `folder`/adapter_config.json. `defaults`: PEFT's value of each missing key.

    Raises:
        UserError: not a LoRA adapter, or settings that give the tensors a meaning not supported here; lists
            each key.
    """
    path = Path(folder) / "adapter_config.json"
    values = read_json(path)
    if not isinstance(values, dict) or values.get("peft_type") != "LORA":
        raise UserError(f"{path}: expected the settings of a LoRA adapter (peft_type: LORA)")
    raise_all([*_value_problems(values), *_foreign_keys(values, defaults)], f"{path}:")
    start = values.get("init_lora_weights")
    return AdapterSettings(
        values["r"],
        values["lora_alpha"],
        values.get("lora_dropout") or 0.0,
        bool(values.get("use_rslora")),
        start if start in REPEATED_STARTS else True,
        tuple(values.get("modules_to_save") or ()),
        bool(values.get("use_dora")),
        values.get("bias", "none"),
    )


def _value_problems(values: dict[str, Any]) -> list[str]:
    """Return the problems of the values of known keys."""
    problems = [f"{key}: missing" for key in ("r", "lora_alpha") if key not in values]
    rank, alpha, dropout = values.get("r", 1), values.get("lora_alpha", 1), values.get("lora_dropout") or 0
    if type(rank) is not int or rank < 1:
        problems.append(f"r: expected a whole number from 1, found {rank!r}")
    if not _is_number(alpha) or alpha <= 0:
        problems.append(f"lora_alpha: expected a number above 0, found {alpha!r}")
    if not _is_number(dropout) or not 0 <= dropout < 1:
        problems.append(f"lora_dropout: expected a number from 0 to below 1, found {dropout!r}")
    for key in ("use_rslora", "use_dora"):
        if values.get(key) not in (True, False, None):
            problems.append(f"{key}: expected true or false, found {values[key]!r}")
    if values.get("bias", "none") not in BIASES:
        problems.append(f"bias: expected {', '.join(BIASES)}, found {values['bias']!r}")
    saved = values.get("modules_to_save") or []
    if not isinstance(saved, list) or not all(isinstance(name, str) for name in saved):
        problems.append(f"modules_to_save: expected a list of names, found {saved!r}")
    return problems + _start_problems(values.get("init_lora_weights"))


def _start_problems(start: Any) -> list[str]:
    if isinstance(start, bool | str | None) and start in (*FORGOTTEN_STARTS, *REPEATED_STARTS):
        return []
    return [
        f"init_lora_weights: {start!r} may also change the backbone's weights, and the adapter does not hold "
        f"what is needed to repeat that; where it was trained, {CONVERSION} writes the whole model, which "
        "needs no adapter"
    ]


def _foreign_keys(values: dict[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    """Return the keys that may change the meaning of the tensors: unknown here, and not at PEFT's default.

    A key that PEFT does not know either must be empty.
    """
    foreign = []
    for key, value in values.items():
        default = defaults.get(key)
        if key not in KNOWN and value != default and not (_is_empty(value) and _is_empty(default)):
            foreign.append(f"{key}: {value!r:.200} is a kind of LoRA that this project does not support")
    return foreign


def _is_empty(value: Any) -> bool:
    return value is None or value is False or value in ({}, [], "")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
