"""Print the summary of a run before its first step: parameters, steps, warnings, memory, disk and time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.commands.session import Session

if TYPE_CHECKING:  # torch and transformers take seconds to import: not before the flags are known to be right
    from pipeline.recipe import Recipe
    from pipeline.tasks.build import Build
    from pipeline.training.attending import BlockTimes
    from pipeline.training.compute import Compute
    from pipeline.training.memory import Memory


@dataclass(frozen=True)
class Forecast:
    """What a run will need. `train_seconds` are those of training over all epochs, 0 if nothing was timed
    because the weights are sharded. `blocks`: None where a whole micro-batch was timed instead.
    """

    micro_batch_size: int
    train_seconds: float
    memory: Memory
    blocks: BlockTimes | None


def kind_of(recipe: Recipe) -> str:
    """Return the training method as text, such as `LoRA rank 16 on query + key`."""
    lora = recipe.lora
    name = "DoRA" if lora.variant == "dora" else "rsLoRA" if lora.use_rslora else "LoRA"
    kind = f"{name} rank {lora.rank} on {' + '.join(lora.targets)}" if lora.rank else "full fine-tuning"
    kind = "only the head" if recipe.head_only else kind
    if lora.init != "default":
        kind += f", initialised by {lora.init} and saved with rank {2 * lora.rank} for the unchanged backbone"
    kind += f", {recipe.freeze} backbone frozen" if recipe.freeze else ""
    kind += f", also {' + '.join(lora.also_train)}" if lora.also_train else ""
    return kind + (
        f", moving mean of the weights (decay {recipe.optimizer.ema:g} per step)"
        if recipe.optimizer.ema
        else ""
    )


def announce(
    session: Session, build: Build, compute: Compute, schedule: dict[str, Any], head_alone: bool = False
) -> Forecast:
    """Print the summary of the run, and return its numbers.

    `head_alone`: only the head is trained on features computed once, so each image passes the backbone once.

    Raises:
        UserError: the run does not fit in memory or on the disk.
    """
    from pipeline.files import human_size, human_time
    from pipeline.training.advice import advise, mirrored_sides, moved_coordinates
    from pipeline.training.attending import time_blocks
    from pipeline.training.estimate import (
        check_disk,
        check_fits,
        device_memory,
        idle_share,
        largest_micro_batch,
        seconds_per_image,
    )
    from pipeline.training.gradients import is_exact
    from pipeline.training.image_sizes import relative_cost
    from pipeline.training.optim import epochs_of
    from pipeline.training.sharding import is_shared_out

    args, recipe, output = session.args, session.recipe, session.output
    task, counts = build.task, build.counts
    print(f"  {build.summary} for {len(task.class_names):,} {task.names_are}; {kind_of(recipe)}")
    saved = f" (saved: {2 * counts.adapter:,})" if recipe.lora.init != "default" else ""
    print(
        f"  parameters: {counts.model:,} in the model, {counts.trainable:,} trainable "
        f"({counts.trainable / counts.model:.2%}): adapter {counts.adapter:,}{saved}, head {counts.head:,}"
    )
    processes, shared_out = compute.processes, is_shared_out(recipe, compute.processes)
    memory = task.account(compute, recipe.optimizer.name)
    if processes.count > 1 and not shared_out and is_exact(recipe.gradient_sum, counts.trainable):
        # One copy to send and one from each process
        memory = replace(memory, gradients=memory.gradients * (processes.count + 2))
    micro_batch_size, share = recipe.batch_size, max(recipe.effective_batch_size // processes.count, 1)
    if args.batch_size == "auto":
        most = share if device_memory(compute.device) else micro_batch_size
        if session.resumed_run is not None:  # a resumed run keeps its size if it fits
            most = session.resumed_run.start.get("micro_batch_size") or most
        micro_batch_size = processes.least(largest_micro_batch(memory, compute.device, most))
    checkpointed = (
        None
        if recipe.activation_checkpointing
        else partial(task.account, compute, recipe.optimizer.name, checkpointed=True)
    )
    check_fits(memory, micro_batch_size, compute.device, checkpointed)
    print(
        f"  {schedule['total_steps']} optimizer steps ({schedule['steps_per_epoch']} per epoch) of "
        f"{recipe.effective_batch_size} {task.rows_are} ({micro_batch_size} at a time); {schedule['name']} "
        f"learning rate {schedule['lr']:.1e}, warm-up {schedule['warmup_steps']} steps"
    )
    if compute.device.type == "cuda" and session.resumed_run is None:
        fitting = largest_micro_batch(memory, compute.device, share)
        if fitting >= 2 * micro_batch_size:
            print(
                f"  {fitting} {task.rows_are} fit in memory at a time: with --batch-size auto steps stay the "
                "same, and a fast GPU waits less for Python"
            )
    if (epochs := epochs_of(schedule)) > recipe.epochs:
        print(
            f"  {epochs} epochs instead of {recipe.epochs}, because schedule.min_steps is "
            f"{recipe.schedule.min_steps}; for {recipe.epochs}: --set schedule.min_steps=0"
        )
    classes = len(task.class_names)
    target = task.facts()["target"]
    lines = advise(
        recipe,
        schedule,
        num_train=task.num_train,
        num_val=task.num_scored,
        num_classes=classes,
        new_head=build.new_head,
        kind=target["kind"],
        images_each=task.num_val / max(task.num_scored, 1),
        new_split=args.fold is None and session.resumed_run is None and not build.stated_split,
        num_pseudo=build.num_pseudo,
    )
    moved = moved_coordinates if target["kind"] == "continuous" else mirrored_sides
    lines += moved(recipe.augmentation, task.class_names)
    for line in lines:
        print(f"  {line}")
    disk = check_disk(output, task.model, recipe, epochs)
    sizes = (
        f"{human_size(memory.total(micro_batch_size))} of memory counted, up to {human_size(disk)} on disk"
    )
    idle = idle_share(recipe.effective_batch_size, micro_batch_size, processes.count)
    if idle:
        print(
            f"  {idle:.0%} of the processes' time is idle: the micro-batches of a step are not a multiple of "
            f"{processes.count}"
        )
    if shared_out:  # the model is not on the device yet, where it may not fit: nothing is timed
        print(
            f"  on {compute.describe()}: each holds 1/{processes.count} of weights, gradients and optimizer "
            f"state (FSDP2); {sizes}"
        )
        return Forecast(micro_batch_size, 0.0, memory, None)
    times_blocks = recipe.attention == "auto" and task.one_shape
    blocks = time_blocks(task, compute, micro_batch_size) if times_blocks else None
    if blocks is None:
        train_seconds, predict_seconds, arrived = seconds_per_image(task, compute, micro_batch_size)
    else:
        train_seconds, predict_seconds = blocks.fused / blocks.rows, blocks.forward / blocks.rows
        arrived = blocks.arrived
    train_seconds = train_seconds / processes.count / (1 - idle)
    predict_seconds = predict_seconds / processes.count
    train_seconds *= relative_cost(epochs, recipe.schedule.image_sizes)
    total = epochs * (task.num_train * train_seconds + task.num_val * predict_seconds)
    if head_alone:
        total = (task.num_train + task.num_val) * predict_seconds
    print(
        f"  on {compute.describe()}: about {human_time(total)}, {sizes}; first batch after "
        f"{arrived - session.started:.1f} s"
    )
    train_seconds = processes.first_says(epochs * task.num_train * train_seconds)
    return Forecast(micro_batch_size, train_seconds, memory, blocks)
