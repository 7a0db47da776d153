"""The flags of `make kernel`."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from pipeline.engines import ON_CPU, add_flags
from pipeline.errors import UserError
from pipeline.folds.finishing import DECISIONS
from pipeline.kernel.slugs import ACCELERATORS

KAGGLE_PYTHON = "3.12"  # version in Kaggle's image: Kaggle/docker-python#1546, March 2026
OPENVINO_WHEELS = ("openvino>=2026.0", "openvino-telemetry")  # not in Kaggle's image


def parse_flags(argv: list[str] | None, description: str | None) -> argparse.Namespace:
    """Return the flags of `make kernel`, with the accelerator and the packages that the engine needs.

    Raises:
        UserError: a value is not allowed.
    """
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.kernel.make",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--model",
        type=Path,
        action="append",
        metavar="DIR",
        help="run, folds, blend or release; several are averaged (default: finetuned_model)",
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("data"),
        metavar="DIR",
        help="the competition folder (default: %(default)s)",
    )
    parser.add_argument("--competition", metavar="SLUG", help="default: the one that `make data` installed")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="folder for all results (default: kernel/ in the first run's folder)",
    )
    parser.add_argument(
        "--push", action="store_true", help="send it to Kaggle, run it there, submit it, wait for its score"
    )
    parser.add_argument("--notebook", action="store_true", help="kernel.ipynb instead of kernel.py")
    parser.add_argument(
        "--hours",
        type=float,
        default=9.0,
        metavar="N",
        help="the competition's time limit (default: %(default)g)",
    )
    parser.add_argument(
        "--batch-size", type=int, default=32, metavar="N", help="images per batch (default: %(default)s)"
    )
    parser.add_argument(
        "--tta",
        metavar="VIEWS|auto",
        help="average views of each image, as inference.py does: flip, crops, scale",
    )
    parser.add_argument(
        "--prior",
        metavar="FILE|estimate",
        help="class shares of the test set: from a file, or estimated on Kaggle",
    )
    parser.add_argument(
        "--decision", choices=DECISIONS, default="auto", help="as for inference.py (default: auto)"
    )
    add_flags(parser)  # the package of an engine is shipped
    parser.add_argument(
        "--accelerator",
        choices=ACCELERATORS,
        help="hardware (default: NvidiaTeslaT4, which means two T4; none for --engine openvino)",
    )
    parser.add_argument(
        "--images",
        type=int,
        default=10_000,
        metavar="N",
        help="number of hidden images for the time estimate (default: %(default)s)",
    )
    parser.add_argument(
        "--wheels", nargs="+", default=[], metavar="PACKAGE", help="packages to ship, such as 'timm>=1.0.22'"
    )
    parser.add_argument(
        "--python",
        default=KAGGLE_PYTHON,
        metavar="VERSION",
        help="Kaggle's Python, for --wheels (default: %(default)s)",
    )
    parser.add_argument(
        "--name", metavar="NAME", help="the kernel's name on Kaggle (default: made from competition and run)"
    )
    parser.add_argument("--owner", metavar="NAME", help="your name on Kaggle (default: as signed in)")
    parser.add_argument(
        "--message", metavar="TEXT", help="of the submission (default: run name, validation score, commit)"
    )
    parser.add_argument("--yes", action="store_true", help="submit without asking")
    parser.add_argument(
        "--poll-seconds",
        type=float,
        default=20.0,
        metavar="N",
        help="between two status requests (default: %(default)g)",
    )
    args = parser.parse_args(argv)
    args.model = args.model or [Path("finetuned_model")]
    by_openvino = args.engine in ON_CPU
    args.accelerator = args.accelerator or ("none" if by_openvino else "NvidiaTeslaT4")
    if by_openvino and not any(wheel.startswith("openvino") for wheel in args.wheels):
        args.wheels = [*args.wheels, *OPENVINO_WHEELS]
    for name in ("batch_size", "images"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)}: expected at least 1")
    if not 0 < args.hours <= 12:  # also NaN
        raise UserError(
            f"--hours {args.hours:g}: expected more than 0 and at most 12, Kaggle's longest session"
        )
    if not 0 <= args.poll_seconds < math.inf:
        raise UserError(f"--poll-seconds {args.poll_seconds:g}: expected a number from 0 upwards")
    return args
