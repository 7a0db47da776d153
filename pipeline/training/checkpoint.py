"""The resume state of a run: written whole, verified when read, two generations kept, tensors and plain values only."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch

from pipeline.errors import UserError, raise_all
from pipeline.files import read_json, replacing, sha256, write_json
from pipeline.models.backbones import tensor_problems

GENERATIONS = 2
NUMBERED = "[0-9]" * 6


class StateStore:
    """Numbered states `state/NNNNNN.pt`, each with a `.json` that holds its digest and is written last: without it a state does not count."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def save(self, state: dict[str, Any], summary: dict[str, Any]) -> None:
        """Write `state` as the newest; `summary` (plain values, for people) goes beside it. Older ones than two generations are removed."""
        number = 1 + max((int(path.stem) for path in self.folder.glob(f"{NUMBERED}.json")), default=0)
        path = self.folder / f"{number:06d}.pt"
        with replacing(path) as temporary, temporary.open("wb") as file:  # torch hides "no space left" when it opens the file itself
            torch.save(state, file)
        write_json(path.with_suffix(".json"), {**summary, "sha256": sha256(path)})
        kept = {f"{number - back:06d}" for back in range(GENERATIONS)}
        for old in self.folder.glob(f"{NUMBERED}.*"):
            if old.stem not in kept:
                old.unlink(missing_ok=True)

    def load(self) -> tuple[dict[str, Any] | None, list[str]]:
        """The newest state that is intact (None when there is none), and a sentence for each damaged one that was passed over.

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
            except (OSError, RuntimeError, LookupError, TypeError, EOFError, UnpicklingError, UserError) as error:
                reason = (str(error) or type(error).__name__).splitlines()[0]
                damaged.append(f"{path} is damaged ({reason}): going back to the state before it")
        if damaged:
            raise UserError(
                f"every state in {self.folder} is damaged; start again without --resume into another --output:\n" + "\n".join(damaged)
            )
        return None, damaged


def check_fits(
    state: dict[str, Any], trainable: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer, others: Sequence[str] = ()
) -> None:
    """Nothing, when the tensors of `state` are those of `trainable` and `optimizer`, shape by shape: torch would stretch others in silence.

    `others`: problems that were found elsewhere.

    Raises:
        UserError: they are not; each is named.
    """
    problems = [*(f"weight {problem}" for problem in tensor_problems(trainable, state["weights"])), *others]
    for name, gradient in state["gradients"].items():
        if name not in trainable or gradient.shape != trainable[name].shape:
            problems.append(f"gradient {name}: shape {tuple(gradient.shape)} fits no weight of that name")
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for number, moments in state["optimizer"]["state"].items():
        shape = weights[number].shape if number < len(weights) else None
        for name, value in moments.items():
            if isinstance(value, torch.Tensor) and value.ndim and value.shape != shape:
                problems.append(f"optimizer's {name} of weight {number}: shape {tuple(value.shape)}, expected {shape and tuple(shape)}")
    raise_all(problems, "the saved state is not one of this model; start anew without --resume into another --output:")


def weights_digest(model: torch.nn.Module) -> str:
    """A digest of names, shapes and values of all weights, made in a moment also of a large model."""
    bits = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}
    sums = {
        name: [*weight.shape, int(weight.detach().contiguous().view(bits[weight.dtype]).sum(dtype=torch.int64))]
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
    """Seed what dropout, noise and the like of one micro-batch draw from; `row`: its first, counted in the epoch's order.

    So its draws depend neither on what ran before nor on which process computes it, and a saved state needs no generator.
    """
    number = int(np.random.SeedSequence((seed, epoch, row, 1)).generate_state(1, np.uint64)[0]) >> 1
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.default_generator.manual_seed(number)  # torch.manual_seed also queues a seed for each device not in use: 1 ms
    if device.type == "cuda":
        torch.cuda.manual_seed(number)
    elif device.type == "mps":
        torch.mps.manual_seed(number)
