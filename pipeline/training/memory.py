"""What a training step holds in memory, counted without running it: fake tensors carry shapes and dtypes, and no data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.func import functional_call

OPTIMIZER_STATES = {"adamw": 2, "adam": 2, "sgd": 1}  # float32 numbers kept for each trainable one


@dataclass(frozen=True)
class Memory:
    """Bytes of one training step. `saved` is what the forward pass keeps for the backward pass; outputs and scratch space come on top."""

    weights: int
    gradients: int
    optimizer: int
    saved_fixed: int
    saved_per_image: int

    def total(self, micro_batch_size: int) -> int:
        """Bytes at the end of the forward pass, where a training step is at its largest."""
        return self.weights + self.gradients + self.optimizer + self.saved_fixed + self.saved_per_image * micro_batch_size


def account(
    model: nn.Module,
    loss: Callable[[Callable[..., object], torch.Tensor], torch.Tensor],
    pixels: torch.Tensor,
    optimizer_name: str,
) -> Memory:
    """The memory of a training step of `model` on inputs shaped like `pixels` (1, 3, H, W); but for one real forward pass nothing is computed.

    `loss(forward, pixels)` must run the forward pass through `forward` and return the scalar loss.
    """
    # BEiT keeps the position index of its first forward for good: let that be a real one, before a fake one can get in.
    was_training = model.training
    with torch.no_grad():
        loss(model.eval(), pixels)  # eval: dropout would draw, and batch norms would learn, from a picture of zeros
    model.train(was_training)
    trainable = sum(weight.numel() * weight.element_size() for weight in model.parameters() if weight.requires_grad)
    weights = sum(tensor.numel() * tensor.element_size() for tensor in [*model.parameters(), *model.buffers()])
    one, two = (_saved_bytes(model, loss, pixels, size) for size in (1, 2))
    states = OPTIMIZER_STATES[optimizer_name]
    return Memory(weights, trainable, states * trainable, max(2 * one - two, 0), two - one)


def _saved_bytes(model: nn.Module, loss: Callable[..., torch.Tensor], pixels: torch.Tensor, size: int) -> int:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    named = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}
    fakes = {name: mode.from_tensor(tensor) for name, tensor in named.items()}
    own = {_storage(tensor) for tensor in fakes.values()}

    def forward(*args: object, **kwargs: object) -> object:
        return functional_call(model, fakes, args, kwargs)

    with mode, _watching(own) as held:
        result = loss(forward, torch.zeros(size, *pixels.shape[1:], device=pixels.device))
        del result
    return sum(held.values())


@contextmanager
def _watching(own: set[int]) -> Iterator[dict[int, int]]:
    """Storage -> bytes of every tensor saved for backward inside the block, except the model's own."""
    held: dict[int, int] = {}
    kept_alive = []  # a freed storage's address would be counted once for two tensors

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if isinstance(tensor, FakeTensor) and _storage(tensor) not in own:
            held[_storage(tensor)] = tensor.untyped_storage().nbytes()
            kept_alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield held


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
