"""Single training steps and forward passes on one GPU: how long they take, how long Python takes to queue
their kernels, and which kernels take the time.

    TQDM_DISABLE=1 python -m tests.benchmarks.gpu_steps --size beit-large-384 --rows 32 8 --kernels

A step whose queueing takes as long as the step waits for Python, not for the GPU. `graphs` are CUDA graphs of
the compiled blocks, which train.py does not use: gradients that several micro-batches add up would lie in
memory that the next replay writes. `attention` times one block's attention with the kernels that torch has,
with and without BEiT's bias. Nothing else may run on the GPU.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

from pipeline.benchmarks.baselines import RANK, SIZES, TARGETS, Work, our_task, plain_optimizer, prepare
from pipeline.benchmarks.throughput import forward_flops, matrix_rate
from pipeline.models import compiled_blocks
from pipeline.models.half_weights import blocks_of
from pipeline.run import load_run
from pipeline.tasks.apply import ready
from pipeline.training.compute import Compute, choose_compute

Step = Callable[[], Any]
MORE: dict[str, dict[str, Any]] = {"compiled": {}, "graphs": {"triton.cudagraphs": True}}  # options
TIMED = 12


def main() -> int:
    """Measure and print each result as soon as it is known; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--size", choices=SIZES, default="small-224")
    parser.add_argument("--rows", type=int, nargs="+", default=[32, 8], help="images in a micro-batch")
    parser.add_argument("--kernels", action="store_true", help="also list the longest kernels of each")
    args = parser.parse_args()
    compute = choose_compute("auto")
    with tempfile.TemporaryDirectory() as folder:
        work = prepare(Path(folder), args.size, max(args.rows), max(args.rows), compute)
        rate, flops = matrix_rate(compute.device, compute.precision), forward_flops(work)
        print(f"{args.size}, {compute.describe()}, torch {torch.__version__}, {rate / 1e12:.1f} TFLOP/s")
        print("| what | ms | images/s | of the matrix rate | queued after, ms |\n|---|---|---|---|---|")
        for rows in args.rows:
            for name, passes, step in steps(work, compute, rows):
                whole, queued = timed(step, compute)
                share = passes * flops * rows / whole / rate
                print(
                    f"| {name}, {rows} images | {1e3 * whole:.1f} | {rows / whole:.1f} | {share:.0%} | "
                    f"{1e3 * queued:.1f} |",
                    flush=True,
                )
                if args.kernels:
                    list_kernels(step)
    if compute.device.type == "cuda":
        attention(work, max(args.rows))
    return 0


def steps(work: Work, compute: Compute, rows: int) -> Iterator[tuple[str, int, Step]]:
    """Yield the name, the number of passes and the function of each way to compute a micro-batch."""
    yield "prediction", 1, prediction(work, compute, rows, compiled=False)
    yield "prediction, compiled", 1, prediction(work, compute, rows, compiled=True)
    for dropout in (0.0, 0.1):
        words = ", dropout and drop path 0.1" if dropout else ""
        for way in (None, *MORE):
            yield f"training, {way or 'plain'}{words}", 2, training(work, compute, rows, way, dropout)


def training(work: Work, compute: Compute, rows: int, way: str | None, dropout: float) -> Step:
    """Return a whole optimizer step of LoRA; `way`: None, or of `MORE`."""
    torch.compiler.reset()
    lora = {"rank": RANK, "alpha": RANK, "dropout": dropout, "targets": list(TARGETS)}
    task = our_task(work, lora=lora, drop_path=dropout)
    optimizer = plain_optimizer(task.model)
    batch = compute.move(
        {"pixels": work.pixels[:rows], "label": work.labels[:rows], "row": work.labels[:rows]}
    )
    task.model.train()

    def step() -> None:
        if way == "graphs":
            torch.compiler.cudagraph_mark_step_begin()
        with compute.autocast():
            loss, _ = task.loss(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()  # fills the cache of the position bias, which compiled blocks read
    if way is not None:
        with patch.object(compiled_blocks, "OPTIONS", compiled_blocks.OPTIONS | MORE[way]):
            task.compile(rows)
    return step


def prediction(work: Work, compute: Compute, rows: int, compiled: bool) -> Step:
    """Return a forward pass as inference.py computes it, or with compiled blocks."""
    torch.compiler.reset()
    classifier = ready(load_run(work.model_dir.parent), len(work.labels.unique()), compute)
    batch = compute.move({"pixels": work.pixels[:rows], "row": work.labels[:rows]})
    if compiled:
        for block in blocks_of(classifier.model):
            block.compile(fullgraph=True, dynamic=False)

    @torch.no_grad()
    def step() -> None:
        with compute.autocast():
            classifier.logits(batch)

    return step


def timed(step: Step, compute: Compute) -> tuple[float, float]:
    """Return the seconds of a step among others, and how long one takes to be queued on an idle GPU."""
    for _ in range(5):
        step()
    _wait(compute)
    queued = []
    for _ in range(3):
        started = time.perf_counter()
        step()
        queued.append(time.perf_counter() - started)
        _wait(compute)
    started = time.perf_counter()
    for _ in range(TIMED):
        step()
    _wait(compute)
    return (time.perf_counter() - started) / TIMED, statistics.median(queued)


def list_kernels(step: Step, count: int = 20) -> None:
    """Print the kernels of a step that take the most time."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        step()
        torch.cuda.synchronize()
    kernels = [event for event in profiler.key_averages() if event.device_type.name == "CUDA"]
    print(f"    kernels: {sum(event.self_device_time_total for event in kernels) / 1e3:.1f} ms")
    for event in sorted(kernels, key=lambda event: -event.self_device_time_total)[:count]:
        print(f"    {event.self_device_time_total / 1e3:7.2f} ms x{event.count:4d} {event.key[:120]}")


def attention(work: Work, rows: int) -> None:
    """Print the milliseconds of one block's attention, forward and with the backward pass."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(work.model_dir)
    heads, tokens = config.num_attention_heads, (work.image_size // config.patch_size) ** 2 + 1
    shape = (rows, tokens, heads, config.hidden_size // heads)
    q, k, v, grad = (
        torch.randn(shape, device="cuda", dtype=torch.bfloat16).transpose(1, 2).requires_grad_()
        for _ in range(4)
    )
    width = -(-tokens // 8) * 8  # as `pipeline.models.half_weights` aligns the rows
    bias = torch.randn(1, heads, tokens, width, device="cuda", dtype=torch.bfloat16)[..., :tokens]
    flex = torch.compile(flex_attention, dynamic=False)

    def fused(kind: SDPBackend, mask: torch.Tensor | None) -> torch.Tensor:
        with sdpa_kernel(kind):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    ways = {
        "cuDNN with bias": partial(fused, SDPBackend.CUDNN_ATTENTION, bias),
        "efficient with bias": partial(fused, SDPBackend.EFFICIENT_ATTENTION, bias),
        "flex with bias": lambda: flex(q, k, v, score_mod=lambda s, _, h, i, j: s + bias[0, h, i, j]),
        "cuDNN, no bias": partial(fused, SDPBackend.CUDNN_ATTENTION, None),
        "flash, no bias": partial(fused, SDPBackend.FLASH_ATTENTION, None),
        "flex, no bias": lambda: flex(q, k, v),
    }
    compute = Compute(torch.device("cuda"), "bf16")
    print("| attention of one block | forward, ms | with backward, ms |\n|---|---|---|")
    for name, way in ways.items():
        with torch.no_grad():
            forward, _ = timed(way, compute)
        both, _ = timed(lambda way=way: torch.autograd.grad(way(), (q, k, v), grad), compute)
        print(f"| {name} | {1e3 * forward:.2f} | {1e3 * both:.2f} |", flush=True)


def _wait(compute: Compute) -> None:
    if compute.device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    sys.exit(main())
