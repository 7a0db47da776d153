"""Fine-tune a pretrained vision transformer (for visual question answering: with a text model) on a competition folder.

python train.py --epochs 25                                   # the default recipe on data/
python train.py --recipe vit-base-224 --data data/birds       # another one
python train.py --lora-rank 0 --set optimizer.lr=2e-5         # full fine-tuning, another rate
python train.py --resume                                      # go on after an interruption
python train.py --resume changed --lr 1e-5                    # ... at another rate
python train.py --folds 5 --output runs/folds                 # five models, and predictions of every row by the one that did not see it
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError, run_command
from pipeline.files import sweep
from pipeline.lock import holding_folder
from pipeline.unfinished import resume_command, started_with

if TYPE_CHECKING:  # torch and transformers take seconds to import: not before the flags are known to be right
    from collections.abc import Callable

    from pipeline.competition.rows import Competition
    from pipeline.config import Recipe
    from pipeline.targets.baseline import Baseline
    from pipeline.tasks.build import Build
    from pipeline.training.advice import Watch
    from pipeline.training.checkpoint import StateStore
    from pipeline.training.compute import Compute
    from pipeline.training.engine import Position
    from pipeline.training.record import Recorder
    from pipeline.training.resume import FormerRun

# Flag -> recipe key: these are short for --set KEY=VALUE.
RECIPE_FLAGS = {
    "backbone": "backbone",
    "epochs": "epochs",
    "batch_size": "batch_size",
    "accumulation_steps": "accumulation_steps",
    "lr": "optimizer.lr",
    "image_size": "image_size",
    "lora_rank": "lora.rank",
    "precision": "precision",
    "seed": "seed",
    "metric": "data.metric",
    "target": "data.target",
    "positive_class": "data.positive_class",
}


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line; flags that are not given are None."""
    parser = argparse.ArgumentParser(
        prog="train.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    run = parser.add_argument_group("the run")
    run.add_argument(
        "--recipe", metavar="NAME|FILE", help="what to train: a name from pipeline/recipes, or a .yaml file (default: beit-large-384-lora)"
    )
    run.add_argument("--data", metavar="DIR", help="the competition folder (default: data; with --resume the run's own)")
    run.add_argument("--output", metavar="DIR", default="finetuned_model", help="the run folder (default: finetuned_model)")
    run.add_argument(
        "--resume",
        nargs="?",
        const="exact",
        choices=["exact", "changed"],
        help="go on exactly where the run in --output stopped; changed: with another recipe or other data, as far as its weights fit",
    )
    run.add_argument("--metric", metavar="NAME", help="how the competition is scored: accuracy, roc_auc, log_loss, qwk, rmse, map_at_5 ...")
    run.add_argument(
        "--target",
        metavar="KIND",
        help="what a label means: multiclass, binary, multilabel, ordinal or continuous (default: the data tell)",
    )
    run.add_argument("--positive-class", metavar="NAME", help="the class whose probability is graded; several as A,B")
    run.add_argument("--folds", metavar="K", type=int, help="train K models, each validated on another K-th of the rows")
    run.add_argument("--fold", metavar="I", type=int, help="of --folds K only the I-th: the others elsewhere, --resume puts them together")
    run.add_argument(
        "--parallel", metavar="P", type=int, help="of --folds K so many at once, a card each (no card: the threads are shared)"
    )
    run.add_argument("--max-minutes", metavar="N", type=float, help="stop and save after N minutes (exit code 130)")
    run.add_argument("--dry-run", action="store_true", help="build everything, run two batches of training and validation, write nothing")
    recipe = parser.add_argument_group("recipe keys with a flag of their own")
    recipe.add_argument("--backbone", metavar="HUB_ID|DIR", help="pretrained model; image size and preprocessing come with it")
    recipe.add_argument("--epochs", metavar="N", type=int)
    recipe.add_argument("--batch-size", metavar="N|auto", help="images in memory at once; auto = the most that fit, same result")
    recipe.add_argument("--accumulation-steps", metavar="N", type=int, help="batches per optimizer step")
    recipe.add_argument("--lr", metavar="X", type=float, help="peak learning rate")
    recipe.add_argument("--image-size", metavar="N", type=int, help="pixels")
    recipe.add_argument("--lora-rank", metavar="N", type=int, help="0 = full fine-tuning")
    recipe.add_argument("--precision", choices=["auto", "fp32", "bf16", "fp16"])
    recipe.add_argument("--seed", metavar="N", type=int)
    recipe.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="any recipe key, such as lora.alpha=32; repeatable")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Train as the command line says; the exit code.

    Raises:
        UserError, Interrupted: see pipeline/errors.py; `run_command` turns them into a message and an exit code.
    """
    started = time.perf_counter()
    args = parse(argv)
    fill_in(args)
    command = shlex.join(["python", "train.py", *(sys.argv[1:] if argv is None else argv)])
    if any(value is not None for value in (args.folds, args.fold, args.parallel)):
        from pipeline.folds.training import Steps, train_folds

        words = sys.argv[1:] if argv is None else argv
        return train_folds(args, words, started, Steps(asked_recipe, read_data, train_one))
    return train_one(args, command, started)


def train_one(
    args: argparse.Namespace, command: str, started: float, recipe: Recipe | None = None, competition: Competition | None = None
) -> int:
    """One run from its flags to its page, or (`recipe`, `competition`) one fold as `pipeline.folds` decided on it; the exit code.

    Raises:
        UserError, Interrupted: as `main`.
    """
    with nullcontext() if args.dry_run else holding_folder(Path(args.output)):  # before anything in it is read
        session = open_session(args, command, started, recipe)
        if session is None:
            return 0
        build, compute = build_task(session, competition)
        return train(session, build, compute)


def fill_in(args: argparse.Namespace) -> None:
    """Give --data, and with --resume also --batch-size auto, the value that the run was started with, where the command line says nothing."""
    stored = started_with(Path(args.output)) if args.resume else {}
    args.data = args.data or stored.get("data") or "data"
    if args.batch_size is None and stored.get("batch_size") == "auto":
        args.batch_size = "auto"


@dataclass(frozen=True)
class Session:
    """What the command line asks for."""

    args: argparse.Namespace
    recipe: Recipe
    former: FormerRun | None  # the unfinished run that goes on
    output: Path
    command: str
    started: float  # on the clock of `time.perf_counter`


def open_session(args: argparse.Namespace, command: str, started: float, recipe: Recipe | None = None) -> Session | None:
    """The command line with its recipe (or the one given); None when there is nothing left to do.

    Raises:
        UserError: the recipe is wrong, or the output folder holds an unfinished run.
    """
    output = Path(args.output)
    if not args.dry_run:
        sweep(output)
    recipe, former = choose_recipe(args, output, recipe)
    return None if recipe is None else Session(args, recipe, former, output, command, started)


def read_data(args: argparse.Namespace, recipe: Recipe, former: FormerRun | None = None) -> Competition:
    """The training part of the competition as the recipe, competition.yaml or the resumed run read it; what was understood is printed.

    Raises:
        UserError: the data cannot be read in one way alone, or do not fit the recipe.
    """
    from pipeline.competition.facts import read_facts
    from pipeline.competition.groups import Grouping
    from pipeline.competition.layout import read_layout

    data, facts = recipe.data, read_facts(Path(args.data))
    competition = read_layout(
        Path(args.data),
        id_column=data.id_column or facts.id_column,
        label_column=data.label_column or facts.label_column,
        need="train",
        skip_bad_images=data.skip_bad_images,
        asked=former.asked() if former else facts.asked(data.metric, data.target, data.positive_class),
        grouped=Grouping(None if data.groups else data.group_column or facts.group_column, data.groups),
    )
    print("\n".join(f"  {note}" for note in competition.notes))
    if competition.form is not None and not competition.test:
        where = competition.form.path or args.data
        print(f"WARNING: the images that {where} asks for are not there: nothing can be predicted until they are", file=sys.stderr)
    if competition.folds and not args.folds:
        print(f"  note: {competition.folds_from} names folds, which only --folds takes")
    if recipe.task != competition.task:
        fix = "--recipe vqa-bert-vit-lora-r8" if competition.task == "vqa" else "a recipe without task: vqa, such as the default"
        raise UserError(
            f"{args.data} is for {competition.task}, and the recipe {recipe.name} for {recipe.task}: use {fix}, or another --data"
        )
    return competition


def build_task(session: Session, competition: Competition | None = None) -> tuple[Build, Compute]:
    """The competition read (unless it is given), the model built and placed; what was understood is printed.

    Raises:
        UserError: the data cannot be read in one way alone, do not fit the recipe, or the backbone cannot be loaded.
    """
    from pipeline.models.places import check_recipe

    args, recipe, former = session.args, session.recipe, session.former
    print(f"{recipe.name}: {recipe.task} with {recipe.backbones}")
    if former is None:  # a run that goes on has its own weights
        check_recipe(recipe)
    if competition is None:
        competition = read_data(args, recipe, former)

    from pipeline.tasks.registry import task_module  # torch and transformers: seconds, after everything that can be wrong without them
    from pipeline.training.compute import choose_compute

    if args.dry_run:  # which writes nothing
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"cache_gb": 0})})
    compute = choose_compute(recipe.precision)
    build = task_module(recipe.task).build(recipe, competition, former)
    if former is not None:
        former.check_rows(build.task.split_rows())
    print("\n".join(f"  {note}" for note in build.notes))
    build.task.place(compute, fresh=former is None)
    return build, compute


def asked_recipe(args: argparse.Namespace, stored: dict[str, Any] | None = None) -> Recipe:
    """The recipe that the flags ask for, on top of a `stored` one where it is given.

    Raises:
        UserError: the recipe is wrong.
    """
    from pipeline.config import DEFAULT_RECIPE, load_recipe, parse_assignments, validate_recipe
    from pipeline.naming import run_name

    overrides = {key: getattr(args, flag) for flag, key in RECIPE_FLAGS.items() if getattr(args, flag) is not None}
    if args.backbone and args.image_size is None:
        overrides["image_size"] = None  # the backbone's own
    if args.batch_size == "auto":  # the recipe's, in parts as large as `announce` finds room for
        del overrides["batch_size"]
    overrides |= parse_assignments(args.set)
    if stored is not None:
        return validate_recipe(stored, overrides, "--resume")
    recipe = load_recipe(args.recipe or DEFAULT_RECIPE, overrides)
    if "name" in overrides:
        return recipe
    return recipe.model_copy(update={"name": run_name(load_recipe(args.recipe or DEFAULT_RECIPE), recipe, args.data)})


def choose_recipe(args: argparse.Namespace, output: Path, given: Recipe | None = None) -> tuple[Recipe | None, FormerRun | None]:
    """The recipe to train (`given`, or what the flags say) and, when a run is resumed, what that run was. (None, None): there is nothing
    left to do.

    Raises:
        UserError: the folder holds an unfinished run and --resume is not given, or flags ask for another recipe than the run's.
    """
    from pipeline.config import validate_recipe
    from pipeline.folds.plan import read_start
    from pipeline.training.resume import FormerRun

    if read_start(output):
        raise UserError(f"{output} holds unfinished folds: go on with `{resume_command(output)}`, or use another --output")
    if args.resume and (output / "run.json").exists():
        print(f"the run in {output} is complete: nothing to resume")
        if not (output / "report.html").exists():  # killed in its last second
            from pipeline.report.page import build_report

            print(f"page: {build_report(output)}")
        return None, None
    former = FormerRun.read(output, accept_changes=args.resume == "changed")
    if former is not None and args.resume:
        stored = validate_recipe(former.start["recipe"], {}, where=str(output / "state"))
        wanted = given or asked_recipe(args, None if args.recipe else stored.model_dump(mode="json"))
        former.check_recipe(stored, wanted)
        return wanted.model_copy(update={"name": stored.name}), former
    if args.resume:
        print(f"no state in {output}: starting from the beginning")
    elif former is not None and not args.dry_run:
        raise UserError(f"{output} holds an unfinished run: go on with `{resume_command(output)}`, or use another --output")
    return given or asked_recipe(args), None


def train(session: Session, build: Build, compute: Compute) -> int:
    """Train what was built, from the start or from the state in the output folder; the exit code.

    Raises:
        UserError: it will not fit in memory or on the disk, `compile: true` cannot be had, or the loss became NaN or infinite.
        Interrupted: see `pipeline.training.engine.fit`.
    """
    from pipeline.training.advice import Watch
    from pipeline.training.checkpoint import seed_everything
    from pipeline.training.compilation import settle
    from pipeline.training.engine import fit
    from pipeline.training.estimate import dry_run
    from pipeline.training.keeping import keeping
    from pipeline.training.optim import build_optimizer, plan_schedule
    from pipeline.training.record import Recorder

    args, recipe, former, task = session.args, session.recipe, session.former, build.task
    schedule = plan_schedule(recipe, task.num_train)
    optimizer = build_optimizer(task.model.named_parameters(), recipe, build.head)
    micro_batch_size, expected_seconds = announce(session, build, compute, schedule)
    choice = recipe.compile if task.one_shape else False
    before = None if former is None else former.start.get("compiled", False)
    keep = keeping(recipe.checkpoint.keep, task.num_val)
    print(f"  the {'last' if keep.last else 'best'} epoch is kept: {keep.why}")
    compiled, note = settle(task, compute, choice, micro_batch_size, expected_seconds, before)
    if note is not None:
        print(f"  {note}")
    if args.dry_run:
        print("\n".join(dry_run(task, compute, micro_batch_size)))
        return 0

    recorder = Recorder(
        session.output, recipe, task.save, task.write_validation, (f"train_{task.train_score}", task.best_metric), keep.record()
    )
    baseline = task.baseline()
    start, store, state = begin(session, build, recorder, schedule, compiled, baseline)
    watch = Watch(baseline, task.best_metric, task.higher_is_better, task.num_val, schedule)
    seed_everything(recipe.seed + 2)  # from here on nothing depends on what was drawn while building
    last = fit(
        task,
        optimizer,
        schedule,
        compute,
        store,
        recorder_with_page(recorder, session.output, watch),
        epochs=recipe.epochs,
        micro_batch_size=micro_batch_size,
        max_grad_norm=recipe.optimizer.max_grad_norm,
        save_minutes=recipe.checkpoint.every_minutes,
        max_minutes=args.max_minutes,
        keep_last=keep.last,
        state=state,
        on_stop=partial(leave_usable, session, recorder, schedule),
    )
    finish(session, build, compute, recorder, last, baseline, {"schedule": schedule, "compiled": compiled, **start})
    return 0


def begin(
    session: Session, build: Build, recorder: Recorder, schedule: dict[str, Any], compiled: bool, baseline: Baseline | None
) -> tuple[dict[str, Any], StateStore, dict[str, Any] | None]:
    """Make the output folder one of this run: what it was started with, its states, and the state to go on from (None: from the beginning).

    Raises:
        UserError: a state that cannot be read.
    """
    from pipeline.files import set_aside
    from pipeline.report.thumbnails import store_samples
    from pipeline.run import run_entries
    from pipeline.training.checkpoint import StateStore
    from pipeline.training.resume import write_rows, write_start

    output, task, former = session.output, build.task, session.former
    store, state = StateStore(output / "state"), None
    if former is None:
        if moved := set_aside(run_entries(output), output / "earlier"):
            print(f"what was in {output} is kept in {moved}")
        write_rows(output, task.split_rows())  # first, for a folder with a state/ is never taken for a release
        task.save(output, initial=True)
        facts = {
            **task.facts(),
            "baseline": baseline and baseline.record(),
            "data": session.args.data,
            "batch_size": session.args.batch_size,
        }
        start = write_start(output, session.recipe, schedule, task.class_names, facts, session.command, compiled)
    else:
        start = former.go_on(session.recipe, schedule, task.split_rows(), session.command, session.args.data)
        state, damaged = store.load()
        print("\n".join(damaged), end="\n" if damaged else "")
        if state is None:
            print("no state was saved yet: starting from the beginning")
        else:
            recorder.resume(state["position"]["history"])
    if task.rows_are == "images":
        store_samples(output, task.train_rows, task.target)
    return {name: start[name] for name in ("command", "changes", "started")}, store, state


def recorder_with_page(recorder: Recorder, output: Path, watch: Watch) -> Callable[[Any], None]:
    """What is called after each epoch: its files, then the run's page; a warning where the run is no better than a constant guess."""
    from pipeline.report.page import LivePage

    live_page = LivePage(output)

    def on_epoch(report: Any) -> None:
        recorder.epoch(report)
        if warning := watch.warning(recorder.history):
            print(warning, file=sys.stderr)
        if problem := live_page.update():
            print(problem)

    return on_epoch


def leave_usable(session: Session, recorder: Recorder, schedule: dict[str, Any], position: Position) -> None:
    """Of a run that was interrupted: weights that can be used, its page, and what predicts with them."""
    from pipeline.report.page import LivePage

    if not recorder.stopped(position, schedule):
        print(f"nothing was learnt yet, after {position.step} optimizer steps: there are no weights to predict with")
        return
    page = session.output / "report.html"
    if problem := LivePage(session.output).update(at_once=True):
        print(problem)
    print(f"page: {page}\nnext: {next_command(session)}")


def next_command(session: Session) -> str:
    """The command that predicts with the run, to be pasted."""
    return shlex.join(["python", "inference.py", "--model", str(session.output), "--data", session.args.data])


def finish(
    session: Session,
    build: Build,
    compute: Compute,
    recorder: Recorder,
    last: Position,
    baseline: Baseline | None,
    started_with: dict[str, Any],
) -> None:
    """Write run.json and the page, and print what came out and what to do next.

    Raises:
        UserError: the page's files are damaged.
    """
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
    for line in task.examine(output, compute):
        print(f"  {line}")
    page = build_report(output)
    best = (
        f"{'last' if recorder.keep.get('rule') == 'last' else 'best'} epoch {last.best_epoch}: {task.best_metric} {last.best_value:.4f}"
        if task.num_val
        else "no validation rows: the last epoch is kept"
    )
    best += f" ({baseline.words}: {baseline.value:.4f})" if baseline else ""
    print(f"done. {best}\npage: {page}\nnext: {next_command(session)}")


def announce(session: Session, build: Build, compute: Compute, schedule: dict[str, Any]) -> tuple[int, float]:
    """Print what is about to happen and what it will need; the micro-batch size, and the seconds that training on all epochs will take.

    Raises:
        UserError: it will not fit in memory or on the disk.
    """
    from pipeline.files import human_size, human_time
    from pipeline.training.advice import advise
    from pipeline.training.estimate import check_disk, check_fits, largest_micro_batch, seconds_per_image
    from pipeline.training.memory import OPTIMIZER_STATES

    args, recipe, output = session.args, session.recipe, session.output
    task, counts = build.task, build.counts
    kind = f"LoRA rank {recipe.lora.rank} on {' + '.join(recipe.lora.targets)}" if recipe.lora.rank else "full fine-tuning"
    kind = "the head alone" if recipe.head_only else kind
    if recipe.lora.rank and recipe.lora.also_train:
        kind += f", also {' + '.join(recipe.lora.also_train)}"
    print(f"  {build.summary} for {len(task.class_names):,} {task.names_are}; {kind}")
    print(
        f"  parameters: {counts.model:,} in the model, {counts.trainable:,} trainable ({counts.trainable / counts.model:.2%}): "
        f"adapter {counts.adapter:,}, head {counts.head:,}"
    )
    memory = task.account(compute, recipe.optimizer.name)
    micro_batch_size = recipe.batch_size
    if args.batch_size == "auto":
        micro_batch_size = largest_micro_batch(memory, compute.device, recipe.effective_batch_size)
    checkpointed = None if recipe.activation_checkpointing else partial(task.account, compute, recipe.optimizer.name, checkpointed=True)
    check_fits(memory, micro_batch_size, compute.device, checkpointed)
    print(
        f"  {schedule['total_steps']} optimizer steps ({schedule['steps_per_epoch']} an epoch) of {recipe.effective_batch_size} {task.rows_are} "
        f"({micro_batch_size} at a time); {schedule['name']} rate {schedule['lr']:.1e}, warm-up {schedule['warmup_steps']} steps"
    )
    classes = len(task.class_names)
    if lines := advise(recipe, schedule, task.num_train, task.num_val, classes, build.new_head, task.facts()["target"]["kind"]):
        print("\n".join(f"  {line}" for line in lines))
    disk = check_disk(output, task.model, OPTIMIZER_STATES[recipe.optimizer.name], whole_model_again=not recipe.lora.rank)
    train_seconds, predict_seconds, arrived = seconds_per_image(task, compute, micro_batch_size)
    total = recipe.epochs * (task.num_train * train_seconds + task.num_val * predict_seconds)
    sizes = f"{human_size(memory.total(micro_batch_size))} of memory counted, up to {human_size(disk)} on disk"
    print(
        f"  on {compute.describe()}: about {human_time(total)}, {sizes}; the first batch was there after {arrived - session.started:.1f} s"
    )
    return micro_batch_size, recipe.epochs * task.num_train * train_seconds


if __name__ == "__main__":
    sys.exit(run_command(main))
