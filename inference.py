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
    from pipeline.competition.rows import Competition


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

    from pipeline.files import sha256
    from pipeline.run import load_run
    from pipeline.submission.belonging import check_belongs
    from pipeline.submission.origin import record_origin
    from pipeline.submission.write import write_predictions, write_results_json
    from pipeline.tables import is_formula
    from pipeline.tasks.apply import predict, read_for
    from pipeline.wording import counted, quoted

    run = load_run(Path(args.model))
    competition = read_for(run, Path(args.data))
    compared = check_belongs(run.target, competition, run.path)
    notes = [*([run.unfinished] if run.unfinished else []), *competition.notes]
    print("\n".join([f"{run.name} from {run.path}", *(f"  {note}" for note in notes)]))
    predictions = predict(run, competition, args.batch_size, args.precision)
    output = Path(args.output)
    kept = copy_unsent(output)
    if output.suffix == ".json":  # the results file of the VQA challenge's own evaluation
        write_results_json(output, competition, predictions)
    else:
        write_predictions(output, competition.form, predictions)
        rows = counted(len(competition.form.row_ids), "row")
        print(f"{output}: {rows}, {competition.form.describe()}; {what_was_checked(competition, compared)}")
    record_origin(output, [run], args.data)
    if formulas := [text for text in (*competition.form.row_ids, *predictions.target.names) if is_formula(text)]:
        print(
            f"  note: a spreadsheet would run {quoted(formulas)} as a formula; Kaggle needs the text as it is: do not open the file in one"
        )
    if kept and sha256(kept) == sha256(output):
        kept.unlink()
    elif kept:
        print(f"the former {output.name} was never submitted and is kept as {kept}")
    return 0


def what_was_checked(competition: Competition, compared: str | None) -> str:
    """The end of the last line: what of the file is known to be the competition's. `compared`: what `check_belongs` found."""
    if competition.form.path is None:
        checked = "checked: an id for each test image (there is no sample submission to compare with)"
    else:
        checked = "checked: ids, order and columns are the competition's"
    if compared is None:
        return f"{checked}\n  not checked: whether this is a model of this competition; nothing in {competition.root} says its classes"
    return f"{checked}, {compared}"


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
