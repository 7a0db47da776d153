"""`make score`: score a predictions file against known labels; the scores are kept beside the run that made
the file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from pipeline.competition.layout import read_form
from pipeline.errors import UserError, run_command
from pipeline.files import check_place, sha256, write_json
from pipeline.forms.form import SubmissionForm
from pipeline.run_names import SCORES
from pipeline.run_record import RunRecord, read_record
from pipeline.submission.answer_grading import are_answers, score_answers
from pipeline.submission.grading import score_predictions
from pipeline.submission.origin import Origin, find_origins
from pipeline.submission.solution import Scores
from pipeline.targets.metrics import differs_by_column
from pipeline.wording import counted, nearest, quoted


def _table_text(scores: Scores) -> str:
    """Format the scores as a table: one row per metric, one column per part of the solution."""
    parts = {"all": scores["metrics"], **scores["parts"]}
    width = max(len(name) for name in scores["metrics"])
    lines = [" " * width + "".join(f"{part:>10}" for part in parts)] if scores["parts"] else []
    for name in scores["metrics"]:
        lines.append(
            f"{name:<{width}}"
            + "".join(
                f"{metrics[name]:>10.4f}" if name in metrics else f"{'-':>10}" for metrics in parts.values()
            )
        )
    return "\n".join(lines)


def _form(run: RunRecord | None, data_dir: Path) -> tuple[SubmissionForm | None, str | None]:
    """Return the form of the file and its id column, from the sample submission and the run; None where
    unknown.
    """
    if not data_dir.is_dir():
        return None, None
    target, metric = (run.target, run.metric) if run and run.task != "vqa" else (None, None)
    form = read_form(data_dir, target, metric)
    return form if target else None, form.id_column if form else None


def _recorded_data(origin: Origin | None) -> Path | None:
    """Return the competition folder that the file was made for; None if it is not known or not there."""
    folder = Path(origin.data) if origin and origin.data else None
    return folder if folder and folder.is_dir() else None


def _made_otherwise(origins: Sequence[Origin], model: Path) -> Origin | None:
    """Return what inference.py recorded if `model` did not make the file, or not alone; else None.

    A recorded folder that is gone may be `model` before it was moved.
    """
    for origin in origins:
        if len(origin.models) == 1:
            recorded = Path(origin.models[0])
            if recorded.resolve() == model.resolve() or not recorded.exists():
                return None
    return origins[0] if origins else None


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.submission.score", description=__doc__)
    parser.add_argument(
        "--solution",
        type=Path,
        required=True,
        metavar="FILE",
        help="CSV with ids and true labels (and Usage), or VQA annotations in JSON",
    )
    parser.add_argument(
        "--predictions",
        type=Path,
        default=Path("predictions.csv"),
        metavar="FILE",
        help="default: %(default)s",
    )
    parser.add_argument(
        "--model",
        type=Path,
        metavar="DIR",
        help="the run that made the predictions; default: the run that inference.py recorded, else "
        "finetuned_model",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="the competition's folder; default: the one that inference.py recorded, else data",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Score a predictions file, print the scores, and store them beside the run that made it."""
    options = parse(argv)
    origins = find_origins(options.predictions)
    origin = origins[0] if origins else None
    model = options.model or Path(origin.models[0] if origin else "finetuned_model")
    run = read_record(model)
    scores = _scores(options.predictions, options.solution, run, options.data or _recorded_data(origin))
    print(
        f"{options.predictions} against {options.solution}: {counted(scores['rows'], 'row')}, {scores['of']}"
    )
    print(_table_text(scores))
    for note in _notes(scores, run, model, options.solution):
        print(f"note: {note}")
    if run is None or scores["foreign"]:
        why = (
            f"did not make these predictions (labels {quoted(scores['foreign'])})"
            if run
            else "holds no finished run"
        )
        print(f"the scores are not stored: {model} {why}; set the run with --model")
        return 0
    if made := _made_otherwise(origins, model):
        print(f"the scores are not stored: they are not those of {model}; made by {made.describe()}")
        return 0
    print(_stored(scores, model, options.predictions, options.solution))
    return 0


def _scores(predictions: Path, solution: Path, run: RunRecord | None, data_dir: Path | None) -> Scores:
    """Return the scores of a predictions file. `data_dir`: the competition's folder; None: data/."""
    form, id_column = _form(run, data_dir or Path("data"))
    if are_answers(predictions, solution):
        class_names = run.class_names if run else None
        return score_answers(predictions, solution, class_names=class_names, id_column=id_column)
    if run is None:
        return score_predictions(predictions, solution, id_column=id_column)
    return score_predictions(predictions, solution, form=form, target=run.target, metric=run.metric)


def _notes(scores: Scores, run: RunRecord | None, model: Path, solution: Path) -> list[str]:
    """Return what may make these scores differ from those of the validation."""
    notes = []
    if scores["pooled"] and run and differs_by_column(run.metric):
        notes.append(
            "each row is one value, so these are scores of the rows of all labels together; the validation "
            f"{run.metric} of {model} is a mean over its labels"
        )
    if scores["unseen"]:
        near = nearest(scores["unseen"][0], run.class_names or () if run else ())
        notes.append(f"labels of {solution} that the model does not know: {quoted(scores['unseen'])}{near}")
    return notes


def _stored(scores: Scores, model: Path, predictions: Path, solution: Path) -> str:
    """Store the scores in the run's folder. Return what was done, as text."""
    kept = {
        "predictions": str(predictions),
        "sha256": sha256(predictions),
        "solution": str(solution),
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "rows": scores["rows"],
        "metrics": scores["metrics"],
    }
    if scores["parts"]:
        kept["parts"] = scores["parts"]
    try:
        write_json(check_place(model / SCORES), kept)
    except (UserError, OSError) as error:
        return (
            f"the scores are not stored: {error}\ncopy the run to a folder where you can write, and set it "
            "with --model"
        )
    return f"stored in {model / SCORES}"


if __name__ == "__main__":
    sys.exit(run_command(main))
