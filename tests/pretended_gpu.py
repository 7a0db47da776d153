"""A pretended GPU: CPU tensors that know on which device they would lie, for machines without one.

Everything is computed on the CPU, so results are those of a run without a GPU. What changes is what a GPU
would refuse: an operation that mixes tensors of two devices, `.numpy()` of a tensor on the GPU. The branches
for CUDA (fp16 with a scaler, random states, freeing memory) are taken too. What would make the CPU wait for
the GPU is noted (`Gpu.waits`). Not pretended: kernels, streams, speed.

A tensor lies on the GPU if its storage was moved or made there. A torch function mode sees the calls that
name a device, a dispatch mode all others, the backward pass included. There `tensor.device` says cpu, so what
is made on `tensor.device` within the backward pass (activation checkpointing) cannot be pretended.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from pipeline.ranks import local_rank

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
NAME = "Pretended GPU"
# These may mix devices: copies, and an index on the CPU into a tensor on the GPU
COPIES = {"copy_", "_to_copy", "_foreach_copy_", "set_", "lift_fresh"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
# The CPU needs their result, or its size
READS = {"_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique2", "unique_dim", "bincount"}
# So much of memory that is not pinned is copied without waiting (CUDA's documentation)
STAGED_BYTES = 65_536
T, aten = torch.Tensor, torch.ops.aten


class Gpu:
    """The storages that lie on the pretended GPU.

    `waits`: where the CPU would have waited for all that the GPU has to do (code of this repository).
    """

    def __init__(self, number: int) -> None:
        self.device = torch.device("cuda", number)
        self.waits: list[str] = []
        # The weak reference keeps the address from being used again
        self.storages: dict[int, StorageWeakRef] = {}
        self.pinned: dict[int, StorageWeakRef] = {}  # on the CPU
        self.is_moving = False

    def holds(self, tensor: torch.Tensor) -> bool:
        """Return True if `tensor` lies on the GPU."""
        if tensor.device.type != "cpu" or isinstance(tensor, torch._subclasses.FakeTensor):
            return False
        return tensor.untyped_storage()._cdata in self.storages

    @property
    def held(self) -> int:
        """The bytes that lie on the GPU now."""
        storages = [
            torch.UntypedStorage._new_with_weak_ptr(weak.cdata) for weak in list(self.storages.values())
        ]
        return sum(storage.nbytes() for storage in storages if storage is not None)

    def take(self, tensor: torch.Tensor) -> None:
        """Note that `tensor` lies on the GPU."""
        if tensor.device.type != "cpu" or isinstance(tensor, torch._subclasses.FakeTensor):
            return
        storage = tensor.untyped_storage()
        self.storages[storage._cdata] = StorageWeakRef(storage)
        if len(self.storages) % 5000 == 0:
            self.storages = {at: weak for at, weak in self.storages.items() if not weak.expired()}

    def wait(self, what: str) -> None:
        """Note that the CPU waits for the GPU."""
        stack = traceback.extract_stack()
        # Clipping copies its factor to the device of the gradients, where it is
        if any(frame.filename.endswith("clip_grad.py") for frame in stack):
            return
        frames = [frame for frame in stack if frame.filename.startswith(f"{ROOT}/pipeline")]
        places = [f"{frame.filename.removeprefix(f'{ROOT}/')}:{frame.lineno}" for frame in frames[-1:]]
        self.waits.append(f"{what} in {', '.join(places)}")

    def move(self, tensor: torch.Tensor, device: torch.device | None, **how: Any) -> torch.Tensor:
        """Return what `tensor.to(device, **how)` returns; the same tensor if nothing changes."""
        there = self.holds(tensor)
        wanted = there if device is None else device.type == "cuda"
        self.is_moving = there != wanted
        try:
            how = {name: value for name, value in how.items() if value is not None}
            out = T.to(tensor, **how) if how else tensor
            if there != wanted and out.untyped_storage()._cdata == tensor.untyped_storage()._cdata:
                out = out.clone()
        finally:
            self.is_moving = False
        if wanted:
            self.take(out)
        return out


class Stream:
    """A stream, or an event, in which everything is done at once."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.device = CPU

    def wait_stream(self, *_: Any) -> None: ...
    def wait_event(self, *_: Any) -> None: ...
    def record(self, *_: Any) -> None: ...
    def wait(self, *_: Any) -> None: ...
    def synchronize(self) -> None: ...
    def record_event(self, *_: Any) -> Stream:
        return self


class Operations(TorchDispatchMode):
    """Refuses operations on tensors of two devices, and notes where results lie."""

    def __init__(self, gpu: Gpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        there = [self.gpu.holds(tensor) for tensor in given]
        name = func.overloadpacket.__name__
        if any(there) and not self.gpu.is_moving and name not in COPIES:
            first_only = name in INDEXING
            wrong = [
                tuple(tensor.shape)
                for number, (tensor, on_gpu) in enumerate(zip(given, there, strict=True))
                if not on_gpu and tensor.ndim and (not first_only or number == 0 or not _is_index(tensor))
            ]
            if wrong:
                raise RuntimeError(
                    "Expected all tensors to be on the same device, but found at least two devices, cuda:0 "
                    f"and cpu: {name} of {[tuple(tensor.shape) for tensor in given]}, on the cpu {wrong}"
                )
            if name in READS or (name in INDEXING and any(_is_mask(leaf) for leaf in given[1:])):
                self.gpu.wait(name)
            elif name == "copy_" and not all(there) and (*args, *kwargs.values())[2:3] != (True,):
                self.gpu.wait("a copy from or to the CPU")
        kwargs = dict(kwargs or {})
        made_there = getattr(kwargs.get("device"), "type", None) == "cuda"
        if made_there:  # in the backward pass, where the function mode sees nothing
            kwargs["device"] = CPU
        out = func(*args, **kwargs)
        if made_there or (any(there) and not self.gpu.is_moving):
            for result in tree_leaves(out):
                if isinstance(result, torch.Tensor) and all(result is not tensor for tensor in given):
                    self.gpu.take(result)
        return out


def _is_mask(tensor: torch.Tensor) -> bool:
    return tensor.dtype in (torch.bool, torch.uint8)


def _is_index(tensor: torch.Tensor) -> bool:
    return tensor.dtype in (torch.long, torch.int, torch.bool, torch.uint8)


class Calls(TorchFunctionMode):
    """Answers the calls that name or ask for a device."""

    def __init__(self, gpu: Gpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func == T.device.__get__:
            return self.gpu.device if self.gpu.holds(args[0]) else func(*args)
        if func == T.is_cuda.__get__:
            return self.gpu.holds(args[0])
        if func in (T.numpy, T.__array__) and self.gpu.holds(args[0]):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu()")
        if func in (T.cpu, T.tolist) and self.gpu.holds(args[0]):
            self.gpu.wait(func.__name__)
        if func is T.cpu:
            return self.gpu.move(args[0], CPU)
        if func is T.cuda:
            return self.gpu.move(args[0], self.gpu.device)
        if func is T.pin_memory:
            return self.pin(args[0])
        if func is T.is_pinned:
            return self.is_pinned(args[0])
        if func is T.to:
            return self.to(*args, **kwargs)
        device = kwargs.get("device")
        device = torch.device(device) if isinstance(device, str | int) else device
        if isinstance(device, torch.device) and device.type == "cuda":
            if func in (torch.tensor, torch.as_tensor) and not (
                isinstance(args[0], torch.Tensor) and self.gpu.holds(args[0])
            ):
                self.gpu.wait(func.__name__)
            kwargs["device"] = CPU
            return tree_map(lambda x: self.made(x, args), func(*args, **kwargs))
        out = func(*args, **kwargs)
        if getattr(func, "__name__", "").startswith("new_") and device is None and self.gpu.holds(args[0]):
            self.gpu.take(out)
        return out

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a copy of a tensor on the CPU that counts as pinned."""
        if self.gpu.holds(tensor):
            raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")
        pinned = tensor.clone()
        storage = pinned.untyped_storage()
        self.gpu.pinned[storage._cdata] = StorageWeakRef(storage)
        self.gpu.pinned = {at: weak for at, weak in self.gpu.pinned.items() if not weak.expired()}
        return pinned

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        """Return True if `pin` made the tensor's memory."""
        return tensor.untyped_storage()._cdata in self.gpu.pinned

    def made(self, out: Any, args: Any) -> Any:
        """Return the result of a call with a device of the GPU."""
        if not isinstance(out, torch.Tensor):
            return out
        given = [leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)]
        if any(out.untyped_storage()._cdata == tensor.untyped_storage()._cdata for tensor in given):
            return self.gpu.move(out, self.gpu.device)
        self.gpu.take(out)
        return out

    def to(self, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return what `tensor.to(...)` returns."""
        if args and isinstance(args[0], torch.Tensor):
            other = args[0]
            device = self.gpu.device if self.gpu.holds(other) else CPU
            return self.gpu.move(tensor, device, dtype=other.dtype)
        copy = kwargs.pop("copy", None)
        device, dtype, no_wait, layout = torch._C._nn._parse_to(*args, **kwargs)
        if device is not None and device.type not in ("cpu", "cuda"):
            return T.to(tensor, *args, **kwargs)
        if device is not None and self.gpu.holds(tensor) != (device.type == "cuda"):
            to_gpu = device.type == "cuda"
            if not no_wait:
                self.gpu.wait("to")
            elif to_gpu and tensor.nbytes > STAGED_BYTES and not self.is_pinned(tensor):
                self.gpu.wait("a copy from memory that is not pinned")
        return self.gpu.move(tensor, device, dtype=dtype, memory_format=layout, copy=copy)


def _on_cpu(make: Callable) -> Callable:
    """Return `make`, a class of torch.amp, with the CPU for the GPU."""

    def made(device_type: str, *args: Any, **kwargs: Any) -> Any:
        return make("cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    return made


@contextmanager
def pretended_gpu(
    capability: tuple[int, int] = (9, 0), free: int = 12_000_000_000, cards: int = 1
) -> Iterator[Gpu]:
    """Pretend `cards` GPUs of this compute capability (9.0: H100, 7.5: T4) with `free` bytes in this thread.

    Processes started by torchrun have one each, and exchange tensors by gloo, which NCCL would do.
    """
    gpu, cuda = Gpu(local_rank()), "torch.cuda."
    fork_rng = torch.random.fork_rng
    join = torch.distributed.init_process_group
    answers: dict[str, Any] = {
        cuda + "is_available": lambda: True,
        cuda + "device_count": lambda: cards,
        cuda + "current_device": lambda: gpu.device.index,
        cuda + "get_device_name": lambda *_: NAME,
        cuda + "get_device_capability": lambda *_: capability,
        cuda + "mem_get_info": lambda *_: (free, free),
        cuda + "max_memory_allocated": lambda *_: 1_000_000,
        cuda + "empty_cache": lambda: None,
        cuda + "synchronize": lambda *_: None,
        cuda + "set_device": lambda *_: None,
        cuda + "manual_seed": torch.manual_seed,
        cuda + "get_rng_state": lambda *_: torch.get_rng_state(),
        cuda + "set_rng_state": lambda state, *_: torch.set_rng_state(state),
        "torch.accelerator.current_accelerator": lambda *_, **__: None,
        cuda + "_lazy_init": lambda: None,
        cuda + "Stream": Stream,
        cuda + "Event": Stream,
        cuda + "current_stream": lambda *_: Stream(),
        cuda + "stream": lambda _: nullcontext(),
        "torch.distributed.init_process_group": lambda backend, **words: join("gloo", **words),
        "torch.random.fork_rng": lambda devices=(), **_: fork_rng(devices=[]),
        "torch.autocast": _on_cpu(torch.autocast),
        "torch.amp.autocast": _on_cpu(torch.amp.autocast),
        "torch.amp.GradScaler": _on_cpu(torch.amp.GradScaler),
    }
    with ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(patch(name, answer))
        stack.enter_context(Operations(gpu))
        stack.enter_context(Calls(gpu))
        yield gpu
