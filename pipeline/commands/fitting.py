"""Train a built task: print the summary, train, write run.json and the report page, and print the next
command.
"""

from __future__ import annotations

import shlex
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.commands.announcing import announce
from pipeline.commands.probing import check_floor, features_once, find_floor, start_from_probe
from pipeline.commands.session import Session
from pipeline.commands.step_choice import choose_step_together
from pipeline.report.live_page import LivePage
from pipeline.run_names import PAGE
from pipeline.wording import listed

if TYPE_CHECKING:  # torch and transformers take seconds to import: not before the flags are known to be right
    from collections.abc import Callable, Sequence

    from pipeline.targets.baseline import Baseline
    from pipeline.tasks.build import Build
    from pipeline.training.advice import FloorWatch, Watch
    from pipeline.training.checkpoint import StateStore
    from pipeline.training.compute import Compute
    from pipeline.training.features import Features
    from pipeline.training.keeping import Keeping
    from pipeline.training.position import Position
    from pipeline.training.record import Recorder


@dataclass(frozen=True)
class Setup:
    """What is decided and printed before anything is written.

    `step`: how a training step is computed, as in run.json. `features`: those that the head alone is trained
    on, or None if each step runs the whole model. `shared_out`: each process holds a part of the weights.
    `baseline`: the validation score of a constant prediction.
    """

    schedule: dict[str, Any]
    micro_batch_size: int
    keep: Keeping
    features: Features | None
    shared_out: bool
    step: dict[str, Any]
    baseline: Baseline | None


def train(session: Session, build: Build, compute: Compute) -> int:
    """Train the built task, from the start or from the saved state in the output folder.

    Return the exit code.

    Raises:
        UserError: it does not fit in memory or on the disk, `compile: true` fails, or the loss became NaN or
            infinite.
        Interrupted: see `pipeline.training.engine.fit`.
    """
    import torch

    from pipeline.training.estimate import dry_run
    from pipeline.training.features import Features
    from pipeline.training.optim import epochs_of
    from pipeline.training.processes import ALONE, part
    from pipeline.training.record import Recorder
    from pipeline.training.sharding import shard

    recipe, task, processes = session.recipe, build.task, compute.processes
    check_floor(session, build)
    setup = set_up(session, build, compute)
    schedule, micro_batch_size, step = setup.schedule, setup.micro_batch_size, setup.step
    if session.args.dry_run:
        if setup.shared_out:
            compute = shard(task.model, compute)
        print("\n".join(dry_run(task, compute, micro_batch_size)))
        return 0

    recorder = Recorder(
        session.output,
        recipe,
        task.save,
        task.write_validation,
        (f"train_{task.train_score}", task.best_metric),
        setup.keep.record(),
        epochs_of(schedule),
    )
    baseline = setup.baseline
    facts = {**task.facts(), "baseline": baseline and baseline.record(), "micro_batch_size": micro_batch_size}
    frozen = setup.features or (Features(task, compute) if recipe.task == "classification" else None)
    if frozen and (floor := find_floor(session, build, compute, frozen, micro_batch_size)):
        facts["floor"] = floor
    if processes.rank == 0:
        start, store, state = begin(session, build, recorder, schedule, step, facts)
    else:
        start, store, state = begin_beside(session)
    processes.wait_for_all()  # before the first process writes a state
    if recipe.head.init == "probe" and state is None:
        start_from_probe(build, compute, frozen, micro_batch_size)
    if setup.shared_out:  # after the first process has saved the weights the run begins with
        compute = shard(task.model, compute)
    last = fit_task(session, build, compute, setup, recorder, store, state)
    part()
    if processes.rank == 0:
        ran = {"schedule": schedule, **step, "processes": processes.count, "threads": torch.get_num_threads()}
        ran |= start
        ran |= {"floor": facts["floor"]} if "floor" in facts else {}
        finish(session, build, replace(compute, processes=ALONE), recorder, last, baseline, ran)
    return 0


def set_up(session: Session, build: Build, compute: Compute) -> Setup:
    """Print the summary of the run, and decide how it is trained.

    Raises:
        UserError: it does not fit in memory or on the disk, or `compile: true` fails.
    """
    from pipeline.training.keeping import keeping
    from pipeline.training.optim import plan_schedule
    from pipeline.training.sharding import is_shared_out

    recipe, task = session.recipe, build.task
    schedule = plan_schedule(recipe, task.num_train)
    features, why = features_once(session, build, compute)
    forecast = announce(session, build, compute, schedule, head_alone=features is not None)
    print(f"  {why}\n" if why else "", end="")
    keep = keeping(recipe.checkpoint.keep, task.num_scored, recipe.checkpoint.average_last)
    print(f"  {keep.words}: {keep.why}")
    shared_out = is_shared_out(recipe, compute.processes)
    if features is not None:
        step = {"attention": "fused", "compiled": False, "features": True}
    elif shared_out:
        step = {"attention": "fused", "compiled": False}
    else:
        step = choose_step_together(session, build, compute, schedule, forecast)
    return Setup(schedule, forecast.micro_batch_size, keep, features, shared_out, step, task.baseline())


def fit_task(
    session: Session,
    build: Build,
    compute: Compute,
    setup: Setup,
    recorder: Recorder,
    store: StateStore,
    state: dict[str, Any] | None,
) -> Position:
    """Train to the last epoch, from `state` or from the start; the first process writes files.

    Return the final position.

    Raises:
        UserError, Interrupted: as `pipeline.training.engine.fit`.
    """
    from pipeline.training.advice import FloorWatch, Watch
    from pipeline.training.engine import fit
    from pipeline.training.features import HeadTask
    from pipeline.training.means import Means
    from pipeline.training.optim import build_optimizer, epochs_of
    from pipeline.training.sharding import Turns

    args, recipe, task = session.args, session.recipe, build.task
    features, schedule = setup.features, setup.schedule
    if features:
        trained = HeadTask(task, features)
    elif setup.shared_out:
        trained = Turns(task, compute.processes)
    else:
        trained = task
    writing: dict[str, Callable[[Any], None]] = {}
    if compute.processes.rank == 0:
        watches = (
            Watch(setup.baseline, task.best_metric, task.higher_is_better, task.num_scored, schedule),
            FloorWatch(task.floor(), task.best_metric, recipe, schedule, setup.keep.last),
        )
        writing = {
            "on_epoch": recorder_with_page(recorder, session.output, watches),
            "on_soup": recorder.soup,
            "on_stop": partial(leave_usable, session, recorder, schedule),
        }
    optimizer = build_optimizer(task.model.named_parameters(), recipe, build.head)
    spent = (time.perf_counter() - session.started) / 60  # --max-minutes is for the whole command
    return fit(
        trained,
        optimizer,
        schedule,
        compute,
        store,
        epochs=epochs_of(schedule),
        micro_batch_size=setup.micro_batch_size,
        seed=recipe.seed,
        sums=recipe.gradient_sum,
        max_grad_norm=recipe.optimizer.max_grad_norm,
        save_minutes=recipe.checkpoint.every_minutes,
        max_minutes=None if args.max_minutes is None else max(args.max_minutes - spent, 0),
        keep_last=setup.keep.last,
        means=Means.of(recipe),
        state=state,
        prepare=features.ready if features else None,
        **writing,
    )


def begin(
    session: Session,
    build: Build,
    recorder: Recorder,
    schedule: dict[str, Any],
    step: dict[str, Any],
    facts: dict[str, Any],
) -> tuple[dict[str, Any], StateStore, dict[str, Any] | None]:
    """Prepare the output folder.

    Return (facts of the start, state store, saved state or None for a new run).

    Raises:
        UserError: no saved state can be read.
    """
    from pipeline.fetch.containers import conversion_of
    from pipeline.files import set_aside
    from pipeline.report.thumbnails import store_samples
    from pipeline.run import run_entries
    from pipeline.training.checkpoint import StateStore
    from pipeline.training.resume import write_rows, write_start

    output, task, resumed_run = session.output, build.task, session.resumed_run
    store, state = StateStore(output / "state"), None
    flags = {"data": session.args.data}
    if session.args.batch_size is not None:
        flags["batch_size"] = session.args.batch_size
    if resumed_run is None:
        if moved := set_aside(run_entries(output), output / "earlier"):
            print(f"the earlier files of {output} were moved to {moved}")
        write_rows(output, task.split_rows())  # first: a folder with a state/ is not taken for a release
        task.save(output, initial=True)
        facts = facts | flags | {"conversion": conversion_of(Path(session.args.data))}
        start = write_start(output, session.recipe, schedule, task.class_names, facts, session.command, step)
    else:
        state, damaged = store.load()  # first: changes are accepted only if a state can be read
        start = resumed_run.go_on(session.recipe, schedule, task.split_rows(), session.command, flags)
        print("\n".join(damaged), end="\n" if damaged else "")
        if state is None:
            print("no state was saved yet: starting from the beginning")
        else:
            recorder.resume(state["position"]["history"])
    if task.rows_are == "images":
        store_samples(output, task.labelled_rows, task.target)
    known = ("command", "changes", "started", "conversion")  # the last one not by earlier versions
    return {name: start[name] for name in known if name in start}, store, state


def begin_beside(session: Session) -> tuple[dict[str, Any], StateStore, dict[str, Any] | None]:
    """Return the same as `begin`, for a process that is not the first. It writes nothing."""
    from pipeline.training.checkpoint import StateStore

    store = StateStore(session.output / "state")
    return {}, store, None if session.resumed_run is None else store.load()[0]


def recorder_with_page(
    recorder: Recorder, output: Path, watches: Sequence[Watch | FloorWatch]
) -> Callable[[Any], None]:
    """Return the function called after each epoch.

    It writes the epoch's files and the page, and prints warnings. After the last epoch `finish` writes the
    page.
    """
    live_page = LivePage(output)

    def on_epoch(report: Any) -> None:
        recorder.epoch(report)
        for warning in filter(None, [watch.warning(recorder.history) for watch in watches]):
            print(warning, file=sys.stderr)
        if report.metrics["epoch"] < recorder.epochs and (problem := live_page.update()):
            print(problem)

    return on_epoch


def leave_usable(session: Session, recorder: Recorder, schedule: dict[str, Any], position: Position) -> None:
    """Save usable weights and the page of an interrupted run, and print the command that predicts with
    them.
    """
    if not recorder.stopped(position, schedule):
        print(f"no weights for prediction: nothing was learnt in {position.step} optimizer steps")
        return
    page = session.output / PAGE
    if problem := LivePage(session.output).update(at_once=True):
        print(problem)
    print(f"page: {page}{and_next(session)}")


def and_next(session: Session) -> str:
    """Return a line with the command that predicts with the run.

    "" for a fold, because prediction uses all folds together.
    """
    if session.args.fold:
        return ""
    return "\nnext: " + shlex.join(
        ["python", "inference.py", "--model", str(session.output), "--data", session.args.data]
    )


def finish(
    session: Session,
    build: Build,
    compute: Compute,
    recorder: Recorder,
    last: Position,
    baseline: Baseline | None,
    started_with: dict[str, Any],
) -> None:
    """Write run.json and the page, and print the result and the next command.

    Raises:
        UserError: the page's files are damaged.
    """
    from pipeline.files import human_time
    from pipeline.report.page import build_report

    task, output = build.task, session.output
    facts = {
        "class_names": list(task.class_names),
        **task.facts(),
        "counts": {**task.counts(), "parameters": vars(build.counts)},
        "best_metric": task.best_metric if task.num_val else "epoch",
        "baseline": baseline and baseline.record(),
        "precision": compute.precision,
        "device": compute.device_name(),
        "data": session.args.data,
        **started_with,
    }
    recorder.finish(last, facts)
    for line in task.analyze(output, compute):
        print(f"  {line}")
    page = build_report(output)
    best = (
        f"{kept_words(recorder.keep, last.best_epoch)}: {task.best_metric} {last.best_value:.4f}"
        if task.num_val
        else f"no validation rows: {kept_words(recorder.keep, last.best_epoch)} is kept"
    )
    beside = [f"constant guess {baseline.words}: {baseline.value:.4f}"] if baseline else []
    if floor := started_with.get("floor"):
        beside.append(f"{floor['words']}: {floor['value']:.4f} in {human_time(floor['seconds'])}")
    best += f" ({'; '.join(beside)})" if beside else ""
    print(f"done. {best}\npage: {page}{and_next(session)}")


def kept_words(keep: dict[str, Any], epoch: int) -> str:
    """Return the weights that a finished run kept, as text."""
    if soup := keep.get("soup"):
        return f"mean of the weights of epochs {listed(map(str, sorted(soup['epochs'])))}"
    if keep.get("rule") == "average":
        return f"mean of the weights up to epoch {epoch}"
    return f"{'last' if keep.get('rule') == 'last' else 'best'} epoch {epoch}"
