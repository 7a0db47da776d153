"""The resume state of a run: written completely or not at all, verified when read, two generations, only
tensors and plain values.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch

from pipeline.errors import UserError, first_line, raise_all
from pipeline.files import read_json, replacing, sha256, write_json
from pipeline.models.backbones import tensor_problems

GENERATIONS = 2
NUMBERED = "[0-9]" * 6


class StateStore:
    """Numbered states `state/NNNNNN.pt`, each with a `.json` that holds its digest.

    The `.json` is written last; a state without it is ignored.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def save(self, state: dict[str, Any], summary: dict[str, Any]) -> None:
        """Write `state` as the newest, with `summary` (plain values for people) beside it, and delete all
        but two generations.
        """
        number = 1 + max((int(path.stem) for path in self.folder.glob(f"{NUMBERED}.json")), default=0)
        path = self.folder / f"{number:06d}.pt"
        # If torch opens the file itself, it hides "no space left"
        with replacing(path) as temporary, temporary.open("wb") as file:
            torch.save(state, file)
        write_json(path.with_suffix(".json"), {**summary, "sha256": sha256(path)})
        kept = {f"{number - back:06d}" for back in range(GENERATIONS)}
        for old in self.folder.glob(f"{NUMBERED}.*"):
            if old.stem not in kept:
                old.unlink(missing_ok=True)

    def load(self) -> tuple[dict[str, Any] | None, list[str]]:
        """Return the newest intact state (None when there is none), and a message for each damaged one.

        Raises:
            UserError: there are states and all of them are damaged.
        """
        damaged = []
        for note in sorted(self.folder.glob(f"{NUMBERED}.json"), reverse=True):
            path = note.with_suffix(".pt")
            try:
                if sha256(path) != read_json(note)["sha256"]:
                    raise UserError("its digest does not match")
                return torch.load(path, map_location="cpu", weights_only=True), damaged
            except (
                OSError,
                RuntimeError,
                LookupError,
                TypeError,
                EOFError,
                UnpicklingError,
                UserError,
            ) as error:
                damaged.append(f"{path} is damaged ({first_line(error)}): using the state before it")
        if damaged:
            raise UserError(
                f"every state in {self.folder} is damaged; start again without --resume and with another "
                "--output:\n" + "\n".join(damaged)
            )
        return None, damaged


def check_fits(
    state: dict[str, Any],
    trainable: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    others: Sequence[str] = (),
) -> None:
    """Check that the tensors of `state` have the shapes of `trainable` and `optimizer`.

    Torch would broadcast others silently. `others`: problems that were found elsewhere.

    Raises:
        UserError: they do not fit; lists each.
    """
    problems = [*(f"weight {problem}" for problem in tensor_problems(trainable, state["weights"])), *others]
    for name, gradient in state["gradients"].items():
        if name not in trainable or gradient.shape != trainable[name].shape:
            problems.append(
                f"gradient {name}: shape {tuple(gradient.shape)} does not fit a weight of that name"
            )
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for number, moments in state["optimizer"]["state"].items():
        shape = weights[number].shape if number < len(weights) else None
        for name, value in moments.items():
            if isinstance(value, torch.Tensor) and value.ndim and value.shape != shape:
                problems.append(
                    f"optimizer's {name} of weight {number}: shape {tuple(value.shape)}, expected "
                    f"{shape and tuple(shape)}"
                )
    raise_all(
        problems,
        "the saved state does not fit this model; start again without --resume and with another --output:",
    )


def weights_digest(model: torch.nn.Module) -> str:
    """Return a digest of names, shapes and values of all weights; fast also for large models."""
    bits = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}
    sums = {
        name: [
            *weight.shape,
            int(weight.detach().contiguous().view(bits[weight.dtype]).sum(dtype=torch.int64)),
        ]
        for name, weight in model.named_parameters()
        if weight.dtype in bits
    }
    return hashlib.sha256(repr(sums).encode()).hexdigest()


def seed_everything(seed: int) -> None:
    """Seed the generators of python, numpy, torch and every GPU."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seed_micro_batch(device: torch.device, seed: int, epoch: int, row: int) -> None:
    """Seed the generators for dropout, noise and so on of one micro-batch.

    `row`: its first row in the epoch's order. So its random draws depend neither on earlier computation nor
    on the process, and a saved state needs no generator.
    """
    number = int(np.random.SeedSequence((seed, epoch, row, 1)).generate_state(1, np.uint64)[0]) >> 1
    random.seed(number)
    np.random.seed(number % 2**32)
    # torch.manual_seed would also queue a seed for every unused device, which takes 1 ms
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.manual_seed(number)
    elif device.type == "mps":
        torch.mps.manual_seed(number)
