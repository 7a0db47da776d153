"""Messages of a training loop that cannot go on: what happened, and the commands that continue the run.

`folder` is the folder of the run. The last good state is saved in all of these cases.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import first_line
from pipeline.unfinished import resume_command


def nan_loss(folder: Path, steps: tuple[int, int], lr: float, peak_lr: float) -> str:
    """The loss became NaN or infinite after the first and at or before the second of `steps`.

    `lr`: of the last step. `peak_lr`: of the schedule, which --lr sets; in the warm-up `lr` may be 0.
    """
    slower = resume_command(folder, "changed", "--lr", f"{peak_lr / 3:.0e}")
    return (
        f"the loss became NaN or infinite within steps [{steps[0]}, {steps[1]}] at learning rate {lr:.2e}; "
        "the last state is saved. Likely causes: the learning rate is too high, or half precision. "
        f"Continue with one of\n  {slower}\n  {_in_fp32(folder)}"
    )


def nan_logits(folder: Path, step: int) -> str:
    """Validation after `step` gave NaN or infinite logits."""
    return (
        f"validation after step {step} gave NaN or infinite logits; the last state is saved "
        f"(half precision?). Continue with: {_in_fp32(folder)}"
    )


def overflowing_gradients(folder: Path, step: int) -> str:
    """The gradients after `step` are infinite or NaN, also of a loss that is scaled down for fp16."""
    return (
        f"the gradients after step {step} overflow in fp16, however small the loss is scaled, so nothing is "
        f"learnt; the last state is saved. Continue with: {_in_fp32(folder)}"
    )


def _in_fp32(folder: Path) -> str:
    return resume_command(folder, "changed", "--precision", "fp32")


def one_image_too_large(device: str, error: Exception) -> str:
    """Even one image at a time needs too much memory."""
    advice = (
        "use --set activation_checkpointing=true, LoRA (--lora-rank 16), a smaller --image-size or a smaller "
        "--backbone"
    )
    return f"out of memory on {device} with one image at a time; {advice}: {first_line(error)}"


def smaller_micro_batch(folder: Path, device: str, rows: int, group: int) -> str:
    """Out of memory where processes share out the weights, so the micro-batch cannot be halved in the run.

    `rows`: images at a time. `group`: the effective batch size, which the command keeps.
    """
    smaller = max(size for size in range(1, rows // 2 + 1) if group % size == 0)
    flags = ("--batch-size", str(smaller), "--accumulation-steps", str(group // smaller))
    return (
        f"out of memory on {device} with {rows} images at a time; the last state is saved. Continue with: "
        f"{resume_command(folder, 'changed', *flags)}"
    )


def other_ended(folder: Path, why: str) -> str:
    """Another process ended without saying why; `why`: what this one knows."""
    return f"{why}; the last state is saved. Continue with: {resume_command(folder)}"


def stopped(folder: Path, reason: str, where: str) -> str:
    """The run was stopped on request."""
    return f"stopped ({reason}) in {where}; the state is saved. Continue with: {resume_command(folder)}"
