"""Choose how training steps are computed: the form of attention, and torch.compile or not."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipeline.commands.announcing import Forecast
from pipeline.commands.session import Session
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.tasks.build import Build
    from pipeline.training.compute import Compute


def choose_step_together(
    session: Session,
    build: Build,
    compute: Compute,
    schedule: dict[str, Any],
    forecast: Forecast,
) -> dict[str, Any]:
    """Return the choice of the first process (see `choose_step`), which the other processes follow.

    Raises:
        UserError: this process cannot do what the recipe asks for or what the first process chose.
    """
    processes, before = compute.processes, None if session.resumed_run is None else session.resumed_run.start
    if processes.count == 1:
        return choose_step(session, build, compute, schedule, forecast, before)
    step = None
    if processes.rank == 0:
        step = choose_step(session, build, compute, schedule, forecast, before)
    wanted = json.loads(processes.texts(json.dumps(step))[0])
    if step is None:
        step = choose_step(session, build, compute, schedule, forecast, wanted)
    problem = UserError("training steps cannot be compiled in every process: --set compile=false")
    processes.agree(None if step == wanted else problem)
    return step


def choose_step(
    session: Session,
    build: Build,
    compute: Compute,
    schedule: dict[str, Any],
    forecast: Forecast,
    before: dict[str, Any] | None,
) -> dict[str, Any]:
    """Choose and set how a training step is computed.

    Return `attention` (fused or products) and `compiled`, as in run.json. A resumed run keeps its earlier
    choice (`before`), because another form of the computation rounds differently.

    Raises:
        UserError: the recipe asks for a form that does not work here.
    """
    from pipeline.training.attending import choose_attention
    from pipeline.training.compilation import try_compile
    from pipeline.training.estimate import check_fits
    from pipeline.training.optim import epochs_of

    recipe, task = session.recipe, build.task
    if not task.one_shape:
        return {"attention": "fused", "compiled": False}

    micro_batch_size, train_seconds = forecast.micro_batch_size, forecast.train_seconds

    def check_memory(more: int | None) -> None:
        if more is None or recipe.activation_checkpointing:  # a block that is computed again stores nothing
            memory = task.account(compute, recipe.optimizer.name)
        else:
            memory = replace(forecast.memory, saved_fixed=forecast.memory.saved_fixed + more)
        check_fits(memory, micro_batch_size, compute.device)

    before = {} if before is None else {"attention": "fused", "compiled": False, **before}
    micro_batches = epochs_of(schedule) * task.num_train // micro_batch_size
    attention, note = choose_attention(
        task,
        compute,
        recipe.attention,
        forecast.blocks,
        micro_batches,
        train_seconds,
        before.get("attention"),
        check_memory,
    )
    # A graph is compiled for one size of image
    choice = False if recipe.schedule.image_sizes else recipe.compile
    compiled, other = try_compile(
        task, compute, choice, micro_batch_size, train_seconds, before.get("compiled")
    )
    print("".join(f"  {line}\n" for line in (note, other) if line), end="")
    return {"attention": attention, "compiled": compiled}
