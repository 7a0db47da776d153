"""Fine-tune a pretrained vision transformer (for visual question answering: with a text model) on a competition folder.

python train.py --epochs 25                                   # the default recipe on data/
python train.py --recipe vit-base-224 --data data/birds       # another one
python train.py --lora-rank 0 --set optimizer.lr=2e-5         # full fine-tuning, another rate
python train.py --resume                                      # go on after an interruption
python train.py --resume changed --lr 1e-5                    # ... at another rate
torchrun --standalone --nproc-per-node 2 train.py --epochs 25  # two cards, one model
python train.py --folds 5 --output runs/folds                 # five models, and predictions of every row by the one that did not see it
python train.py --plan 9h                                     # what to train in nine hours, as a recipe file and a command
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
    """The command line; flags that are not given are None."""
    parser = argparse.ArgumentParser(
        prog="train.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    run = parser.add_argument_group("the run")
    run.add_argument(
        "--recipe", metavar="NAME|FILE", help="what to train: a name from pipeline/recipes, or a .yaml file (default: beit-large-384-lora)"
    )
    run.add_argument("--data", metavar="DIR", type=folder_name, help="the competition folder (default: data; with --resume the run's own)")
    run.add_argument(
        "--output", metavar="DIR", type=folder_name, default="finetuned_model", help="the run folder (default: finetuned_model)"
    )
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
    run.add_argument(
        "--plan",
        metavar="TIME",
        help="train nothing: say what to train in TIME (9h, 90m, 2h30m), write it as a recipe file, print the command",
    )
    run.add_argument("--max-minutes", metavar="N", type=minutes, help="stop and save after N minutes (exit code 130)")
    run.add_argument(
        "--floor", action="store_true", help="print beside the score what a linear probe on the frozen backbone's features scores"
    )
    run.add_argument("--dry-run", action="store_true", help="build everything, run two batches of training and validation, write nothing")
    recipe = parser.add_argument_group("recipe keys with a flag of their own")
    recipe.add_argument("--backbone", metavar="HUB_ID|DIR", help="pretrained model; image size and preprocessing come with it")
    recipe.add_argument("--epochs", metavar="N", type=int)
    recipe.add_argument("--batch-size", metavar="N|auto", help="images in memory at once; auto = the most that fit, the same rows a step")
    recipe.add_argument("--accumulation-steps", metavar="N", type=int, help="batches per optimizer step")
    recipe.add_argument("--lr", metavar="X", type=float, help="peak learning rate")
    recipe.add_argument("--image-size", metavar="N", type=int, help="pixels")
    recipe.add_argument("--lora-rank", metavar="N", type=int, help="0 = full fine-tuning")
    recipe.add_argument("--precision", choices=["auto", "fp32", "bf16", "fp16"])
    recipe.add_argument("--seed", metavar="N", type=int)
    recipe.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="any recipe key, such as lora.alpha=32; repeatable")
    return parser.parse_args(argv)


def minutes(text: str) -> float:
    """The value of --max-minutes: from 0, and no infinity."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of minutes from 0")
    return value


def folder_name(text: str) -> str:
    """A path that is not empty: an unset variable of the shell would otherwise mean this folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("a folder is needed, found nothing (is a variable of the shell unset?)")
    return text


def main(argv: list[str] | None = None) -> int:
    """Train as the command line says; the exit code.

    Raises:
        UserError, Interrupted: see pipeline/errors.py; `run_command` turns them into a message and an exit code.
    """
    started = time.perf_counter()
    args = parse(argv)
    fill_in(args)
    if args.data and Path(args.output).resolve() == Path(args.data).resolve():
        raise UserError(f"--output {args.output} is the competition's folder: a run there would be read as data; name another --output")
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
    args: argparse.Namespace, command: str, started: float, recipe: Recipe | None = None, competition: Competition | None = None
) -> int:
    """One run from its flags to its page, or (`recipe`, `competition`) one fold as `pipeline.folds` decided on it; the exit code.

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
