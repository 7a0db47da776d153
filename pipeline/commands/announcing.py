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
    from pipeline.training.estimate import check_disk, idle_share
    from pipeline.training.image_sizes import relative_cost
    from pipeline.training.optim import epochs_of
    from pipeline.training.sharding import is_shared_out

    recipe, task, processes = session.recipe, build.task, compute.processes
    _print_model(recipe, build)
    memory = _counted_memory(recipe, build, compute)
    micro_batch_size = _fitting_micro_batch(session, build, compute, memory)
    _print_steps(session, build, compute, schedule, memory, micro_batch_size)
    for line in _advice(session, build, schedule):
        print(f"  {line}")
    epochs = epochs_of(schedule)
    disk = check_disk(session.output, task.model, recipe, epochs)
    sizes = (
        f"{human_size(memory.total(micro_batch_size))} of memory counted, up to {human_size(disk)} on disk"
    )
    idle = idle_share(recipe.effective_batch_size, micro_batch_size, processes.count)
    if idle:
        print(
            f"  {idle:.0%} of the processes' time is idle: the micro-batches of a step are not a multiple of "
            f"{processes.count}"
        )
    if is_shared_out(recipe, processes):  # the model is not on the device yet, where it may not fit
        print(
            f"  on {compute.describe()}: each holds 1/{processes.count} of weights, gradients and optimizer "
            f"state (FSDP2); {sizes}"
        )
        return Forecast(micro_batch_size, 0.0, memory, None)
    timed = _timed(recipe, build, compute, micro_batch_size)
    trained = epochs * task.num_train * relative_cost(epochs, recipe.schedule.image_sizes)
    train_seconds = trained * timed.train_seconds / processes.count / (1 - idle)
    predicted = task.num_train + task.num_val if head_alone else epochs * task.num_val
    total = predicted * timed.predict_seconds / processes.count
    if not head_alone:
        total += train_seconds
    print(
        f"  on {compute.describe()}: about {human_time(total)}, {sizes}; first batch after "
        f"{timed.arrived - session.started:.1f} s"
    )
    return Forecast(micro_batch_size, processes.first_says(train_seconds), memory, timed.blocks)


def _print_model(recipe: Recipe, build: Build) -> None:
    task, counts = build.task, build.counts
    print(f"  {build.summary} for {len(task.class_names):,} {task.names_are}; {kind_of(recipe)}")
    saved = f" (saved: {2 * counts.adapter:,})" if recipe.lora.init != "default" else ""
    print(
        f"  parameters: {counts.model:,} in the model, {counts.trainable:,} trainable "
        f"({counts.trainable / counts.model:.2%}): adapter {counts.adapter:,}{saved}, head {counts.head:,}"
    )


def _counted_memory(recipe: Recipe, build: Build, compute: Compute) -> Memory:
    """Return the memory of a training step, with the gradients of the other processes."""
    from pipeline.training.gradients import is_exact
    from pipeline.training.sharding import is_shared_out

    processes = compute.processes
    memory = build.task.account(compute, recipe.optimizer.name)
    if processes.count == 1 or is_shared_out(recipe, processes):
        return memory
    if not is_exact(recipe.gradient_sum, build.counts.trainable):
        return memory
    # One copy to send and one from each process
    return replace(memory, gradients=memory.gradients * (processes.count + 2))


def _fitting_micro_batch(session: Session, build: Build, compute: Compute, memory: Memory) -> int:
    """Return the micro-batch size: the recipe's, or with `--batch-size auto` the largest one that fits.

    Raises:
        UserError: it does not fit in memory.
    """
    from pipeline.training.estimate import check_fits, device_memory, largest_micro_batch

    recipe, processes, micro_batch_size = session.recipe, compute.processes, session.recipe.batch_size
    if session.args.batch_size == "auto":
        most = _share(recipe, compute) if device_memory(compute.device) else micro_batch_size
        if session.resumed_run is not None:  # a resumed run keeps its size if it fits
            most = session.resumed_run.start.get("micro_batch_size") or most
        micro_batch_size = processes.least(largest_micro_batch(memory, compute.device, most))
    checkpointed = (
        None
        if recipe.activation_checkpointing
        else partial(build.task.account, compute, recipe.optimizer.name, checkpointed=True)
    )
    check_fits(memory, micro_batch_size, compute.device, checkpointed)
    return micro_batch_size


def _share(recipe: Recipe, compute: Compute) -> int:
    """Return the rows of a step that one process computes."""
    return max(recipe.effective_batch_size // compute.processes.count, 1)


def _print_steps(
    session: Session,
    build: Build,
    compute: Compute,
    schedule: dict[str, Any],
    memory: Memory,
    micro_batch_size: int,
) -> None:
    from pipeline.training.estimate import largest_micro_batch
    from pipeline.training.optim import epochs_of

    recipe, task = session.recipe, build.task
    print(
        f"  {schedule['total_steps']} optimizer steps ({schedule['steps_per_epoch']} per epoch) of "
        f"{recipe.effective_batch_size} {task.rows_are} ({micro_batch_size} at a time); {schedule['name']} "
        f"learning rate {schedule['lr']:.1e}, warm-up {schedule['warmup_steps']} steps"
    )
    if compute.device.type == "cuda" and session.resumed_run is None:
        fitting = largest_micro_batch(memory, compute.device, _share(recipe, compute))
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


def _advice(session: Session, build: Build, schedule: dict[str, Any]) -> list[str]:
    """Return warnings about settings that will do badly with these data."""
    from pipeline.training.advice import advise, mirrored_sides, moved_coordinates

    recipe, task = session.recipe, build.task
    kind = task.facts()["target"]["kind"]
    lines = advise(
        recipe,
        schedule,
        num_train=task.num_train,
        num_val=task.num_scored,
        num_classes=len(task.class_names),
        new_head=build.new_head,
        kind=kind,
        images_each=task.num_val / max(task.num_scored, 1),
        new_split=session.args.fold is None and session.resumed_run is None and not build.stated_split,
        num_pseudo=build.num_pseudo,
    )
    moved = moved_coordinates if kind == "continuous" else mirrored_sides
    return [*lines, *moved(recipe.augmentation, task.class_names)]


@dataclass(frozen=True)
class _Timed:
    """Seconds for a row, in training and in prediction. `arrived`: when the first batch was there, on the
    clock of `time.perf_counter`. `blocks`: as in `Forecast`.
    """

    train_seconds: float
    predict_seconds: float
    arrived: float
    blocks: BlockTimes | None


def _timed(recipe: Recipe, build: Build, compute: Compute, micro_batch_size: int) -> _Timed:
    """Time a micro-batch, or one block of the model where the form of attention is chosen by its time."""
    from pipeline.training.attending import time_blocks
    from pipeline.training.estimate import seconds_per_image

    task, blocks = build.task, None
    if recipe.attention == "auto" and task.one_shape:
        blocks = time_blocks(task, compute, micro_batch_size)
    if blocks is None:
        train_seconds, predict_seconds, arrived = seconds_per_image(task, compute, micro_batch_size)
    else:
        train_seconds, predict_seconds = blocks.fused / blocks.rows, blocks.forward / blocks.rows
        arrived = blocks.arrived
    return _Timed(train_seconds, predict_seconds, arrived, blocks)
