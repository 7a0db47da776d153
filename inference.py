"""Predict a competition's test images with a trained model or an installed release.

python inference.py                                           # finetuned_model/ + data/ -> predictions.csv
python inference.py --model finetuned_model/digits --data data/digits --output data/digits/predictions.csv
python inference.py --model runs/folds                        # the mean of its models
python inference.py --model runs/a runs/b runs/folds  # the mean of several runs, also of different backbones
# images divided between two GPUs, same result
torchrun --standalone --nproc-per-node 2 inference.py --model runs/a
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.engines import INT8, add_flags
from pipeline.errors import UserError, run_command
from pipeline.ranks import is_first

if TYPE_CHECKING:
    from pipeline.competition.rows import Competition
    from pipeline.folds.kept import Kept
    from pipeline.predictions import Predictions
    from pipeline.run import Run


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        prog="inference.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--model",
        metavar="DIR",
        nargs="+",
        default=["finetuned_model"],
        help="run, folds, blend or release folder; several are averaged with equal weights (default: "
        "finetuned_model)",
    )
    parser.add_argument(
        "--data", metavar="DIR", default="data", help="the competition folder (default: data)"
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        default="predictions.csv",
        help="the file to write (default: predictions.csv; vqa: a name ending in .json writes the results "
        "file of the VQA challenge)",
    )
    parser.add_argument(
        "--batch-size", metavar="N", type=int, default=32, help="images at once (default: 32)"
    )
    parser.add_argument(
        "--tta",
        metavar="VIEWS|auto",
        help="average the predictions of several views of each image: flip, crops, scale, or several as "
        "flip,scale",
    )
    parser.add_argument(
        "--decision",
        choices=["auto", "off"],
        default="auto",
        help="auto: use the thresholds or class weights with which a run of folds scored better (default)",
    )
    parser.add_argument(
        "--prior",
        metavar="FILE|estimate",
        help="correct for the class shares of the test set: a CSV file (columns class, share), or estimate "
        "them from the predictions",
    )
    add_flags(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Write a checked predictions file. Return the exit code.

    Raises:
        UserError: no model, no test images, or predictions that do not fit the competition; see
            pipeline/errors.py.
    """
    args = parse(argv)
    if args.batch_size < 1:
        raise UserError(f"--batch-size {args.batch_size}: expected 1 or more")

    from pipeline.files import check_place
    from pipeline.folds.finishing import check_prior, finished
    from pipeline.folds.kept import Kept
    from pipeline.folds.team import gather, made_by, meet_over, predict_together
    from pipeline.folds.views import choose_views, parse_views, predict_sets
    from pipeline.submission.belonging import check_belongs
    from pipeline.submission.origin import record_origin
    from pipeline.submission.write import is_results_json, write_predictions, write_results_json
    from pipeline.tables import is_formula
    from pipeline.tasks.apply import read_for
    from pipeline.training.compute import choose_compute
    from pipeline.training.processes import get_in_touch, part
    from pipeline.wording import counted, quoted

    get_in_touch()
    output = check_place(Path(args.output), "name a file with --output")
    team = gather([Path(model) for model in args.model])
    check_prior(team, args.prior)
    competition = read_for(team.first, Path(args.data))
    sample = competition.form.path if competition.form else None
    if sample is not None and output.resolve() == sample.resolve():
        raise UserError(
            f"--output {output} is the sample submission, which says what to predict: name another file"
        )
    as_json = is_results_json(output, competition)
    # All models have the same labels
    compared = check_belongs(team.first.target, competition, team.first.path)
    notes = [*(leaf.run.unfinished for leaf in team.leaves if leaf.run.unfinished), *competition.notes]
    print("\n".join([team.describe(), *(f"  {note}" for note in notes)]))
    meet_over(team, competition)
    if args.engine == INT8:
        from pipeline.folds.quantizing import quantize_team

        quantize_team(team, Path(args.data), competition, args.batch_size, args.precision)
    views, lines = choose_views(
        parse_views(args.tta),
        team,
        lambda run, rows, sets: predict_sets(
            run, competition, args.batch_size, args.precision, sets, rows, args.engine
        ),
    )
    print("".join(f"  {line}\n" for line in lines), end="")
    kept_before = Kept(
        competition.test,
        choose_compute(args.precision, args.engine).precision,
        args.batch_size,
        views,
        args.engine,
    )
    reported: set[Path] = set()
    predictions = predict_together(
        team,
        team.first.target,
        lambda run: predict_once(run, competition, args.batch_size, args.precision, kept_before, reported),
    )
    part()
    if not is_first():
        return 0
    predictions, decided = finished(team, predictions, args.prior, args.decision)
    with keeping_unsent(output):
        if as_json:
            write_results_json(output, competition, predictions)
        else:
            write_predictions(output, competition.form, predictions)
    if as_json:
        print(f"{output}: {counted(len(competition.form.ids), 'answer')}")
    else:
        rows = counted(len(competition.form.row_ids), "row")
        print(f"{output}: {rows}, {competition.form.describe()}; {what_was_checked(competition, compared)}")
    record_origin(
        output, team.named, args.data, made_by(team, views=list(views), engine=args.engine, **decided)
    )
    texts = () if as_json else (*competition.form.row_ids, *predictions.target.names)
    if formulas := list(filter(is_formula, texts)):
        print(
            f"  note: a spreadsheet would run {quoted(formulas)} as a formula; do not open the file in one, "
            "because Kaggle needs the text unchanged"
        )
    return 0


def what_was_checked(competition: Competition, compared: str | None) -> str:
    """Return the end of the last line: which checks the file passed.

    `compared`: the result of `check_belongs`.
    """
    if competition.form.path is None:
        checked = "checked: an id for each test image (there is no sample submission to compare with)"
    else:
        checked = "checked: ids, order and columns are the competition's"
    if compared is None:
        return (
            f"{checked}\n  not checked: whether the model belongs to this competition; {competition.root} "
            "has no list of classes"
        )
    return f"{checked}, {compared}"


def predict_once(
    run: Run, competition: Competition, batch_size: int, precision: str, kept: Kept, reported: set[Path]
) -> Predictions:
    """Return the run's predictions, read from its folder if it predicted these images before.

    Otherwise they are computed and kept there. Images that cannot be decoded are printed once for all runs:
    they are added to `reported`.

    Raises:
        UserError: the model cannot be rebuilt, or no test image can be decoded.
    """
    from pipeline.training.processes import current

    found = kept.load(run, run.target) if run.target is not None else None
    if current().least(int(found is not None)):
        print(f"  read from {run.path}: predicted before with the same images, weights and packages")
        return found
    from pipeline.folds.views import predict_views
    from pipeline.tasks.apply import report_bad

    predictions, bad = predict_views(run, competition, batch_size, precision, kept.views, engine=kept.engine)
    if is_first():
        report_bad(
            [path for path in bad if path not in reported], len({row.path for row in competition.test})
        )
    reported.update(bad)
    if not bad and is_first() and (problem := kept.save(run, predictions)):
        print(f"  note: {problem}")
    return predictions


@contextmanager
def keeping_unsent(output: Path) -> Iterator[None]:
    """Keep a copy of a predictions file that was never submitted, if the block writes another, and say so.

    Raises:
        UserError: submissions.csv cannot be read, so it is unknown what was submitted.
    """
    import shutil

    from pipeline.files import replacing, sha256, versioned
    from pipeline.kaggle.ledger import ledger_digests

    if not output.exists() or sha256(output) in ledger_digests(Path("submissions.csv")):
        yield
        return
    kept = versioned(output.with_name(f"{output.stem}-former{output.suffix}"))
    with replacing(kept) as temporary:
        shutil.copy2(output, temporary)
    try:
        yield
    finally:
        if same := output.exists() and sha256(kept) == sha256(output):  # written again, or not at all
            kept.unlink()
    if not same:
        print(f"the earlier {output.name} was never submitted; it is kept as {kept}")


if __name__ == "__main__":
    sys.exit(run_command(main, by_several=True))
