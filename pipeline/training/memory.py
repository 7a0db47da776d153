"""Count the memory of a training step without running it: fake tensors have shapes and dtypes, but no
data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from inspect import getattr_static
from types import MethodType

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.func import functional_call

from pipeline.models.half_weights import checkpoint_layers

OPTIMIZER_STATES = {"adamw": 2, "adam": 2, "sgd": 1}  # float32 values per trainable parameter
Loss = Callable[[Callable[..., object], torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Memory:
    """Bytes of one training step.

    `saved_*`: tensors that the forward pass stores for the backward pass, and caches for all steps.
    `recomputed_per_image`: what the largest block adds while the backward pass computes it again. Outputs and
    scratch space are not included.
    """

    weights: int
    gradients: int
    optimizer: int
    saved_fixed: int
    saved_per_image: int
    recomputed_per_image: int = 0

    def total(self, micro_batch_size: int) -> int:
        """Return the bytes at the peak of a step: between forward and backward pass, or in a recomputed
        block.
        """
        per_image = self.saved_per_image + self.recomputed_per_image
        return (
            self.weights + self.gradients + self.optimizer + self.saved_fixed + per_image * micro_batch_size
        )


def account(model: nn.Module, loss: Loss, pixels: torch.Tensor, optimizer_name: str) -> Memory:
    """Return the memory of a training step of `model` on inputs like `pixels` (1, 3, H, W), on their
    device.

    Nothing is computed. `loss(forward, pixels)` must run the forward pass through `forward` and return the
    scalar loss. The model may be on the meta device.
    """
    trainable = sum(
        weight.numel() * weight.element_size() for weight in model.parameters() if weight.requires_grad
    )
    weights = sum(
        tensor.numel() * tensor.element_size() for tensor in [*model.parameters(), *model.buffers()]
    )
    shapes = _Shapes.of(model, pixels.device)
    one, two = (_saved_bytes(shapes, loss, pixels, size) for size in (1, 2))
    checkpointed = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    recomputed = 0
    if checkpointed:
        small, large = (_largest_block_bytes(shapes, checkpointed, loss, pixels, size) for size in (1, 2))
        recomputed = large - small
    states = OPTIMIZER_STATES[optimizer_name]
    return Memory(weights, trainable, states * trainable, max(2 * one - two, 0), two - one, recomputed)


@dataclass(frozen=True)
class _Shapes:
    """A model and fake copies of its weights and buffers, made under `mode`, by name."""

    model: nn.Module
    mode: FakeTensorMode
    fakes: dict[str, torch.Tensor]

    @staticmethod
    def of(model: nn.Module, device: torch.device) -> _Shapes:
        """Return `model` with fake copies on `device`."""
        named = {
            **dict(model.named_parameters(remove_duplicate=False)),
            **dict(model.named_buffers(remove_duplicate=False)),
        }
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fakes = {
                name: torch.empty_like(tensor, device=device).requires_grad_(tensor.requires_grad)
                for name, tensor in named.items()
            }
        return _Shapes(model, mode, fakes)


def _saved_bytes(shapes: _Shapes, loss: Loss, pixels: torch.Tensor, size: int) -> int:
    with _watching(shapes) as (held, forward):
        result = loss(forward, torch.zeros(size, *pixels.shape[1:], device=pixels.device))
        del result
    return sum(held.values())


def _largest_block_bytes(
    shapes: _Shapes, blocks: list[nn.Module], loss: Loss, pixels: torch.Tensor, size: int
) -> int:
    """Return what the most expensive of the checkpointed `blocks` stores when it runs without
    checkpointing.
    """
    before: list[int] = []
    own: list[int] = []
    hooks = []
    with _watching(shapes) as (held, forward):
        for block in blocks:
            hooks += [
                block.register_forward_pre_hook(lambda *_: before.append(sum(held.values()))),
                block.register_forward_hook(lambda *_: own.append(sum(held.values()) - before.pop())),
            ]
        checkpoint_layers(shapes.model, on=False)
        try:
            loss(forward, torch.zeros(size, *pixels.shape[1:], device=pixels.device))
        finally:
            for hook in hooks:
                hook.remove()
            checkpoint_layers(shapes.model)
    return max(own)


@contextmanager
def _watching(shapes: _Shapes) -> Iterator[tuple[dict[int, int], Callable[..., object]]]:
    """Yield {storage: bytes} of the tensors saved for the backward pass within the block, and the fake
    forward pass.

    The model's own tensors are left out.
    """
    model, mode, fakes = shapes.model, shapes.mode, shapes.fakes
    own = {_storage(tensor) for tensor in fakes.values()}
    held: dict[int, int] = {}
    kept_alive = []  # a freed storage's address could be used again, and two tensors would be counted as one

    def hold(tensor: torch.Tensor) -> torch.Tensor:
        if isinstance(tensor, FakeTensor) and _storage(tensor) not in own:
            held[_storage(tensor)] = tensor.untyped_storage().nbytes()
            kept_alive.append(tensor)
        return tensor

    def hold_output(_module: nn.Module, _args: object, output: torch.Tensor) -> None:
        hold(output)

    def forward(*args: object, **kwargs: object) -> object:
        return functional_call(model, fakes, args, kwargs)

    # A cached bias stays in memory even if the backward pass does not need it.
    cached = [module for module in model.modules() if getattr(module, "is_cached", False)]
    hooks = [module.register_forward_hook(hold_output) for module in cached]
    try:
        with (
            _fresh_position_index(model),
            mode,
            torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor),
        ):
            yield held, forward
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _fresh_position_index(model: nn.Module) -> Iterator[None]:
    """Cache BEiT's position index separately within the block.

    transformers keeps the first one for ever, and it would be a fake tensor.
    """
    name = "generate_relative_position_index"
    modules = [module for module in model.modules() if hasattr(getattr(module, name, None), "__wrapped__")]
    caches: dict[Callable[..., torch.Tensor], Callable[..., torch.Tensor]] = {}
    for module in modules:
        method = getattr_static(type(module), name)
        function = getattr(method, "__func__", method).__wrapped__
        cached = caches.setdefault(function, lru_cache(function))
        setattr(module, name, cached if isinstance(method, staticmethod) else MethodType(cached, module))
    try:
        yield
    finally:
        for module in modules:
            delattr(module, name)


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
