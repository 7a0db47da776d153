"""Time that the rows of a grid take on one GPU, computed from the cost of the model: nothing is run.

    python -m tests.benchmarks.grid_time --grid tests/benchmarks/grids/peft.yaml --images 5994 --tflops 65

The operations of one image's forward pass are counted by torch. Training takes as long as two such passes
with an adapter, where no gradients of frozen weights are computed, three in full fine-tuning, and one where
the head alone is trained. `--tflops` is the card's matrix rate in half precision as its maker states it (T4:
65, RTX 3060: 51, A100: 312, H100: 989). `--share` is the part of it that training reaches: 0.25, near what
was measured for a BEiT-large on an H100 (README.md). Not counted: start, validation, prediction, pages, and
waiting for images where decoding is slower than training.
"""

from __future__ import annotations

import argparse
import sys
from functools import cache

from pipeline.benchmarks.throughput import count_flops
from pipeline.config import parse_assignments
from pipeline.errors import run_command
from pipeline.experiments.grids import load_grid
from pipeline.files import human_time
from pipeline.recipe import Recipe
from pipeline.training.image_sizes import relative_cost


def main() -> int:
    """Print the time of every row with one seed, and of the whole grid; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--grid", required=True, help="as of make ablation: a name, or a .yaml file")
    parser.add_argument("--backbone", help="of every row: hub id or folder")
    parser.add_argument("--images", type=int, required=True, help="training images")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument(
        "--tflops", type=float, required=True, help="the card's matrix rate, in 10^12 a second"
    )
    parser.add_argument("--share", type=float, default=0.25, help="the part of it that training reaches")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of every row")
    args = parser.parse_args()
    trials = load_grid(args.grid, args.backbone, parse_assignments(args.set), [0]).trials
    rate, total = args.tflops * 1e12 * args.share, 0.0
    for trial in trials:
        seconds = args.images * operations(trial.recipe) / rate
        total += seconds
        print(f"{human_time(seconds):>12}  {trial.row}")
    print(
        f"computed for {args.images:,} training images, {args.tflops:g} TFLOP/s at {args.share:.0%}: "
        f"{human_time(total)} a seed, {human_time(args.seeds * total)} for {args.seeds} seeds of "
        f"{len(trials)} rows"
    )
    return 0


def operations(recipe: Recipe) -> float:
    """Floating-point operations of all epochs, for one training image."""
    if recipe.head_only and not recipe.lora.also_train:
        passes = 1
    else:
        passes = 2 if recipe.lora.rank or recipe.head_only else 3
    cost = relative_cost(recipe.epochs, recipe.schedule.image_sizes)
    return passes * recipe.epochs * cost * forward_operations(recipe.backbone, recipe.image_size)


@cache
def forward_operations(backbone: str, size: int) -> int:
    """Operations of the forward pass of one image of `size` x `size` px; no weights are loaded."""
    from transformers import AutoConfig, AutoModelForImageClassification

    config = AutoConfig.from_pretrained(backbone)
    config.image_size = size
    model = AutoModelForImageClassification.from_config(config, attn_implementation="eager")
    return count_flops(model.eval(), size)


if __name__ == "__main__":
    sys.exit(run_command(main))
