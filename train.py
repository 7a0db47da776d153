"""Fine-tune a pretrained vision transformer (for visual question answering: with a text model) on a
competition folder.

python train.py --epochs 25                                   # the default recipe on data/
python train.py --recipe vit-base-224 --data data/birds       # another recipe
python train.py --lora-rank 0 --set optimizer.lr=2e-5         # full fine-tuning, another learning rate
python train.py --resume                                      # continue after an interruption
python train.py --resume changed --lr 1e-5                    # the same with another learning rate
torchrun --standalone --nproc-per-node 2 train.py --epochs 25 # two GPUs, one model
python train.py --folds 5 --output runs/folds                 # five models, each validated on other rows
python train.py --plan 9h                                     # write a recipe that fits into nine hours
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.commands.building import build_task, read_data
from pipeline.commands.fitting import train
from pipeline.commands.session import asked_recipe, fill_in, open_session
from pipeline.errors import UserError, run_command
from pipeline.lock import holding_folder
from pipeline.ranks import is_first, launcher

if TYPE_CHECKING:
    from pipeline.competition.rows import Competition
    from pipeline.recipe import Recipe


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the command line; flags that are not given are None."""
    parser = argparse.ArgumentParser(
        prog="train.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    run = parser.add_argument_group("the run")
    run.add_argument(
        "--recipe",
        metavar="NAME|FILE",
        help="what to train: a name from pipeline/recipes, or a .yaml file (default: beit-large-384-lora)",
    )
    run.add_argument(
        "--data",
        metavar="DIR",
        type=folder_name,
        help="the competition folder (default: data; with --resume the folder of the first start)",
    )
    run.add_argument(
        "--output",
        metavar="DIR",
        type=folder_name,
        default="finetuned_model",
        help="the run folder (default: finetuned_model)",
    )
    run.add_argument(
        "--resume",
        nargs="?",
        const="exact",
        choices=["exact", "changed"],
        help="continue the run in --output where it stopped; changed: with another recipe or other data, if "
        "the saved weights fit",
    )
    run.add_argument(
        "--metric",
        metavar="NAME",
        help="metric of the competition: accuracy, roc_auc, log_loss, qwk, rmse, map_at_5 ...",
    )
    run.add_argument(
        "--target",
        metavar="KIND",
        help="kind of label: multiclass, binary, multilabel, ordinal or continuous (default: from the data)",
    )
    run.add_argument(
        "--positive-class",
        metavar="NAME",
        help="binary: class whose probability is predicted and scored; several as A,B",
    )
    run.add_argument(
        "--folds",
        metavar="K",
        type=int,
        help="cross-validation: train K models, each validated on a different part of the rows",
    )
    run.add_argument(
        "--fold",
        metavar="I",
        type=int,
        help="with --folds K: train only fold I; train the others on other machines, then join them with "
        "--resume",
    )
    run.add_argument(
        "--parallel",
        metavar="P",
        type=int,
        help="with --folds K: train P folds at the same time, each on its own GPU (without a GPU they share "
        "the CPU threads)",
    )
    run.add_argument(
        "--plan",
        metavar="TIME",
        help="do not train; write a recipe file for what can be trained in TIME (9h, 90m, 2h30m) and print "
        "its command",
    )
    run.add_argument(
        "--max-minutes", metavar="N", type=minutes, help="stop and save after N minutes (exit code 130)"
    )
    run.add_argument(
        "--floor",
        action="store_true",
        help="also print the score of a linear probe on the features of the frozen backbone",
    )
    run.add_argument(
        "--dry-run",
        action="store_true",
        help="build the model, run two batches of training and of validation, write nothing",
    )
    recipe = parser.add_argument_group("recipe keys that have a flag")
    recipe.add_argument(
        "--backbone", metavar="HUB_ID|DIR", help="pretrained model; it also sets image size and preprocessing"
    )
    recipe.add_argument("--epochs", metavar="N", type=int)
    recipe.add_argument(
        "--batch-size",
        metavar="N|auto",
        help="images in memory at once; auto = as many as fit (an optimizer step keeps its number of rows)",
    )
    recipe.add_argument("--accumulation-steps", metavar="N", type=int, help="batches per optimizer step")
    recipe.add_argument("--lr", metavar="X", type=float, help="peak learning rate")
    recipe.add_argument("--image-size", metavar="N", type=int, help="pixels")
    recipe.add_argument("--lora-rank", metavar="N", type=int, help="0 = full fine-tuning")
    recipe.add_argument("--precision", choices=["auto", "fp32", "bf16", "fp16"])
    recipe.add_argument("--seed", metavar="N", type=int)
    recipe.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="any recipe key, such as lora.alpha=32; repeatable",
    )
    return parser.parse_args(argv)


def minutes(text: str) -> float:
    """Return the value of --max-minutes as a finite number of at least 0."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: expected a number of minutes, 0 or more")
    return value


def folder_name(text: str) -> str:
    """Return `text` if it is not empty.

    An unset shell variable gives an empty path, which would mean the current folder.
    """
    if not text.strip():
        raise argparse.ArgumentTypeError(
            "expected a folder, found an empty text (is a shell variable unset?)"
        )
    return text


def main(argv: list[str] | None = None) -> int:
    """Train as the command line says. Return the exit code.

    Raises:
        UserError, Interrupted: see pipeline/errors.py; `run_command` turns them into a message and an exit
        code.
    """
    started = time.perf_counter()
    args = parse(argv)
    fill_in(args)
    if args.data and Path(args.output).resolve() == Path(args.data).resolve():
        raise UserError(
            f"--output {args.output} is the competition folder, and files of a run there would be read as "
            "data: use another --output"
        )
    command = shlex.join([*launcher(), "train.py", *(sys.argv[1:] if argv is None else argv)])
    if args.plan is not None:
        from pipeline.commands.planning import plan

        return plan(args, read_data)
    if any(value is not None for value in (args.folds, args.fold, args.parallel)):
        from pipeline.folds.training import Steps, train_folds

        words = sys.argv[1:] if argv is None else argv
        return train_folds(args, words, started, Steps(asked_recipe, read_data, train_one))
    return train_one(args, command, started)


def train_one(
    args: argparse.Namespace,
    command: str,
    started: float,
    recipe: Recipe | None = None,
    competition: Competition | None = None,
) -> int:
    """Train one run, from flags to report page. Return the exit code.

    `recipe` and `competition` are given by `pipeline.folds` when the run is one fold.

    Raises:
        UserError, Interrupted: as `main`.
    """
    writes = is_first() and not args.dry_run
    with holding_folder(Path(args.output)) if writes else nullcontext():  # before anything in it is read
        session = open_session(args, command, started, recipe)
        if session is None:
            return 0
        build, compute = build_task(session, competition)
        return train(session, build, compute)


if __name__ == "__main__":
    sys.exit(run_command(main, by_several=True))
