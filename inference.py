"""Predict a competition's test images with a trained model or an installed release.

python inference.py                                           # finetuned_model/ + data/ -> predictions.csv
python inference.py --model finetuned_model/digits --data data/digits --output data/digits/predictions.csv
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UserError, run_command

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from pipeline.competition.layout import Competition
    from pipeline.run import Run
    from pipeline.tasks.build import Predictor


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="inference.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", metavar="DIR", default="finetuned_model", help="run or release folder (default: finetuned_model)")
    parser.add_argument("--data", metavar="DIR", default="data", help="the competition folder (default: data)")
    parser.add_argument(
        "--output",
        metavar="FILE",
        default="predictions.csv",
        help="the file to write (default: predictions.csv; vqa: a name that ends in .json gives the challenge's results file)",
    )
    parser.add_argument("--batch-size", metavar="N", type=int, default=32, help="images at once (default: 32)")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16", "fp16"], default="auto", help="number format (default: auto)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Write a checked predictions file; the exit code.

    Raises:
        UserError: no model, no test images, or predictions that do not fit the competition; see pipeline/errors.py.
    """
    args = parse(argv)
    if args.batch_size < 1:
        raise UserError(f"--batch-size {args.batch_size}: expected at least 1")

    from pipeline.competition.layout import read_layout
    from pipeline.files import sha256
    from pipeline.run import load_run
    from pipeline.submission.write import write_predictions, write_results_json
    from pipeline.tables import is_formula
    from pipeline.wording import quoted

    run = load_run(Path(args.model))
    competition = read_layout(Path(args.data), need="test", **columns_of(run))
    print("\n".join([f"{run.name} from {run.path}", *(f"  {note}" for note in competition.notes)]))
    task = (run.record or {}).get("task", "classification")
    if task != competition.task:
        raise UserError(f"{args.data} is for {competition.task}, and {run.path} was trained for {task}: name another --model or --data")
    class_names, probs = predict(run, competition, args.batch_size, args.precision)
    output = Path(args.output)
    kept = copy_unsent(output)
    if output.suffix == ".json":  # the results file of the VQA challenge's own evaluation
        write_results_json(output, competition, class_names, probs)
    else:
        write_predictions(output, competition.submission, class_names, probs)
    print(f"{output}: {len(probs)} rows, checked: ids, order and columns are the competition's")
    if formulas := [text for text in (*competition.submission.ids, *class_names) if is_formula(text)]:
        print(
            f"  note: a spreadsheet would run {quoted(formulas)} as a formula; Kaggle needs the text as it is: do not open the file in one"
        )
    if kept and sha256(kept) == sha256(output):
        kept.unlink()
    elif kept:
        print(f"the former {output.name} was never submitted and is kept as {kept}")
    return 0


def columns_of(run: Run) -> dict[str, str | None]:
    """The column names the run was trained with; empty for a legacy release."""
    data = (run.record or {}).get("recipe", {}).get("data", {})
    return {name: data.get(name) for name in ("id_column", "label_column")}


def predict(run: Run, competition: Competition, batch_size: int, precision: str) -> tuple[tuple[str, ...], np.ndarray]:
    """Class names and (N, C) float64 probabilities of the test rows, in their order.

    Raises:
        UserError: the model cannot be rebuilt, or not one test image can be decoded.
    """
    import numpy as np

    from pipeline.data.intensity import deep_images_without_rule
    from pipeline.models.lean import make_lean
    from pipeline.targets.metrics import softmax
    from pipeline.tasks.registry import task_module
    from pipeline.training.compute import choose_compute
    from pipeline.training.predict import predict_logits

    compute = choose_compute(precision)
    task = task_module((run.record or {}).get("task", "classification"))
    class_names = name_classes(run, competition, task.num_classes_of(run))
    predictor: Predictor = task.rebuild(run, class_names)
    if compute.half is not None:
        make_lean(predictor.model, compute.half)
    predictor.model.to(compute.device)
    print(f"  {len(class_names)} classes, {predictor.describe()}, {compute.describe()}")
    if warning := deep_images_without_rule([row.path for row in competition.test], predictor.rule.intensity):
        print(f"WARNING: {warning}", file=sys.stderr)

    bad: list[int] = []

    def batches() -> Iterator[dict]:
        for batch in predictor.batches(competition.test, batch_size):
            bad.extend(batch["row"][batch["bad"]].tolist())
            yield batch

    rows = len(competition.test)
    result = predict_logits(predictor.model, predictor.logits, batches(), rows, len(class_names), compute, "predicting")
    probs = softmax(result)
    if bad:
        per_class = (run.record or {}).get("counts", {}).get("train_per_class", {})
        prior = np.array([per_class.get(name, 0) for name in class_names], dtype=np.float64) + 1e-9
        probs[bad] = prior / prior.sum()
        report_bad(list(dict.fromkeys(competition.test[row].path for row in sorted(bad))), len({row.path for row in competition.test}))
    return class_names, probs


def name_classes(run: Run, competition: Competition, num_classes: int) -> tuple[str, ...]:
    """The class names by index: the run's own, or for a release that has none the competition's, if their number fits.

    Raises:
        UserError: the names cannot be known; a file of LABEL_7 would be scored as nothing but wrong.
    """
    if run.class_names is not None and len(run.class_names) == num_classes:
        return run.class_names
    names = tuple(sorted(competition.class_names))  # as torchvision's ImageFolder and datasets' imagefolder number them
    if len(names) == num_classes:
        print(f"  the release names no classes: taking the {num_classes} of {competition.root}, in sorted order")
        return names
    raise UserError(
        f"{run.path}: the release tells {num_classes} classes apart and names them only LABEL_0..LABEL_{num_classes - 1}, and {competition.root} "
        f"has {len(names)} class names. Put the training images (train/<class>/) or a sample_submission with one column per class "
        f"into {competition.root}, or write the names into id2label of {run.backbone_dir / 'config.json'}"
    )


def report_bad(paths: list[Path], total: int) -> None:
    """Say loudly which test images could not be decoded.

    Raises:
        UserError: none could.
    """
    if len(paths) == total:
        raise UserError(f"none of the {total} test images can be decoded, such as {paths[0]}")
    print(
        f"WARNING: {len(paths)} of {total} test images cannot be decoded; their rows hold the class frequencies of training:",
        file=sys.stderr,
    )
    for path in paths[:20]:
        print(f"  {path}", file=sys.stderr)


def copy_unsent(output: Path) -> Path | None:
    """Copy an existing predictions file that was never submitted and say where to; None when there is nothing to keep.

    Raises:
        UserError: submissions.csv cannot be read, so nobody knows what was submitted.
    """
    import shutil

    from pipeline.files import sha256, versioned
    from pipeline.kaggle.ledger import ledger_digests

    if not output.exists() or sha256(output) in ledger_digests(Path("submissions.csv")):
        return None
    kept = versioned(output.with_name(f"{output.stem}-former{output.suffix}"))
    shutil.copy2(output, kept)
    return kept


if __name__ == "__main__":
    sys.exit(run_command(main))
