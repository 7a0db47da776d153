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


def main(argv: list[str] | None = None) -> int:
    """Score a predictions file, print the scores, and store them beside the run that made it."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.submission.score", description=main.__doc__)
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
    options = parser.parse_args(argv)
    origins = find_origins(options.predictions)
    origin = origins[0] if origins else None
    options.model = options.model or Path(origin.models[0] if origin else "finetuned_model")
    run = read_record(options.model)
    form, id_column = _form(run, options.data or _recorded_data(origin) or Path("data"))
    if are_answers(options.predictions, options.solution):
        scores = score_answers(
            options.predictions,
            options.solution,
            class_names=run.class_names if run else None,
            id_column=id_column,
        )
    else:
        known = (
            {"form": form, "target": run.target, "metric": run.metric} if run else {"id_column": id_column}
        )
        scores = score_predictions(options.predictions, options.solution, **known)
    print(
        f"{options.predictions} against {options.solution}: {counted(scores['rows'], 'row')}, {scores['of']}"
    )
    print(_table_text(scores))
    if scores["pooled"] and run and differs_by_column(run.metric):
        print(
            f"note: each row is one value, so these are scores of the rows of all labels together; the "
            f"validation {run.metric} of {options.model} is a mean over its labels"
        )
    if scores["unseen"]:
        near = nearest(scores["unseen"][0], run.class_names or () if run else ())
        print(
            f"note: labels of {options.solution} that the model does not know: "
            f"{quoted(scores['unseen'])}{near}"
        )
    if run is None or scores["foreign"]:
        why = (
            f"did not make these predictions (labels {quoted(scores['foreign'])})"
            if run
            else "holds no finished run"
        )
        print(f"the scores are not stored: {options.model} {why}; set the run with --model")
        return 0
    if made := _made_otherwise(origins, options.model):
        print(f"the scores are not stored: they are not those of {options.model}; made by {made.describe()}")
        return 0
    kept = {
        "predictions": str(options.predictions),
        "sha256": sha256(options.predictions),
        "solution": str(options.solution),
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "rows": scores["rows"],
        "metrics": scores["metrics"],
    }
    try:
        write_json(
            check_place(options.model / SCORES),
            kept | ({"parts": scores["parts"]} if scores["parts"] else {}),
        )
    except (UserError, OSError) as error:
        print(
            f"the scores are not stored: {error}\ncopy the run to a folder where you can write, and set it "
            "with --model"
        )
        return 0
    print(f"stored in {options.model / 'scores.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
