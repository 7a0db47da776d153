"""Check a submission before anything is sent to Kaggle: token, competition, predictions file, and the run
that made it.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.competition.facts import read_facts
from pipeline.competition.layout import read_layout
from pipeline.errors import UserError, raise_all
from pipeline.forms.check import check_predictions
from pipeline.kaggle import cli
from pipeline.kaggle.ledger import LEDGER, read_ledger
from pipeline.kaggle.remembered import remembered_slug
from pipeline.kaggle.token import find_credentials, scrub
from pipeline.run import known_record
from pipeline.submission.belonging import check_belongs
from pipeline.submission.origin import Origin, find_origin, origin_of_run


@dataclass(frozen=True)
class Plan:
    """A submission that passed all checks."""

    competition: str
    file: Path
    sha256: str
    message: str
    validation_score: str
    origin: Origin | None = None  # the run that made the file; None: unknown
    send: Callable[..., cli.Upload] | None = None  # called with `tick` instead of uploading the file
    again: str = "`make submit` again"  # command that shows the score later


def preflight(args: argparse.Namespace) -> Plan:
    """Check everything that can be checked before sending, and print the plan.

    Raises:
        UserError: lists everything that is missing or wrong.
    """
    problems = cli.not_ready()
    digest = files.sha256(args.predictions) if args.predictions.is_file() else ""
    origin = _attempt(lambda: _origin(args), problems)
    remembered = _attempt(lambda: remembered_slug(args.data), problems)
    slug = _attempt(lambda: cli.clean_slug(args.competition), problems) if args.competition else remembered
    if not slug and not args.competition:
        problems.append(
            "the competition is not known: COMPETITION=<name> (--competition), the last part of its address "
            "on Kaggle"
        )
    notes: list[str] = []
    problems += _file_problems(args.predictions, args.data, Path(origin.models[0]) if origin else None, notes)
    _attempt(lambda: read_ledger(LEDGER), problems)
    if not os.access(LEDGER.resolve().parent, os.W_OK):
        problems.append(
            f"{LEDGER} cannot be written in {Path.cwd()}: run this in a folder where you can write"
        )
    raise_all(problems, "nothing was sent to Kaggle:")
    if files.sha256(args.predictions) != digest:  # what was checked, and who made it, is of another content
        raise UserError(
            f"{args.predictions} was changed while it was checked; nothing was sent: run the command again"
        )
    message = " ".join(scrub(args.message or default_message(origin, args.predictions)).split())
    plan = Plan(
        slug,
        args.predictions,
        digest,
        message,
        origin.score if origin else "",
        origin,
    )
    if remembered and remembered != plan.competition:
        notes.append(f"note: {args.data} holds {remembered!r}; the file was checked against that competition")
    _announce(plan, notes)
    return plan


def _attempt(step: Callable[[], Any], problems: list[str]) -> Any:
    try:
        return step()
    except UserError as error:
        problems.append(str(error))
        return None


def _origin(args: argparse.Namespace) -> Origin | None:
    """Return the run that made the file: as inference.py recorded it, else the run of --model."""
    written = find_origin(args.predictions)
    if args.model is None or not args.predictions.is_file():
        return written
    if written and args.model.resolve() not in [Path(model).resolve() for model in written.models]:
        raise UserError(
            f"{args.predictions} was made by {written.describe()}, not by --model {args.model}: leave out "
            "--model"
        )
    return written or origin_of_run(args.predictions, args.model)


def _file_problems(path: Path, data_dir: Path, model_dir: Path | None, notes: list[str]) -> list[str]:
    """Return the problems of the file; checks that are not possible are added to `notes`.

    `model_dir`: the run that made the file; None if unknown, then only the data folder is used for the
    checks.
    """
    if not path.is_file():
        return [
            f"{path} does not exist: python inference.py writes it (or name another file with --predictions)"
        ]
    try:
        run = known_record(model_dir) if model_dir else None
        target = run.target if run else None
    except UserError as error:
        return [str(error)]
    known = (target, run.metric) if run and run.task != "vqa" else None
    try:
        asked = read_facts(data_dir).asked(None, None, ())
        competition = read_layout(data_dir, need="test", known=known, asked=asked, test_images=False)
        compared = check_belongs(known[0], competition, model_dir) if known else None
    except UserError as error:
        shown = str(error).replace("\n", "\n    ")
        return [f"{path} does not fit the competition folder {data_dir} (--data): {shown}"]
    if known and compared is None:
        notes.append(
            f"not checked: whether the model belongs to this competition, because {data_dir} has no list of "
            "classes"
        )
    if competition.form is None:
        return [f"{path} cannot be checked: {data_dir} has neither test images nor a sample submission"]
    return [
        f"{path}: {problem}"
        for problem in check_predictions(path, competition.form, run.target if run else competition.target)
    ]


def default_message(origin: Origin | None, path: Path) -> str:
    """Build the message from run name, validation score and commit, where they are known."""
    if origin is None:
        return path.name
    parts = [" + ".join(origin.names), *([f"{origin.metric} {origin.score}"] if origin.score else [])]
    return ", ".join([*parts, f"commit {origin.commit}"] if origin.commit else parts)


def _announce(plan: Plan, notes: list[str]) -> None:
    print(f"competition  {plan.competition}")
    print(f"file         {plan.file} ({files.human_size(plan.file.stat().st_size)}, checked)")
    for note in notes:
        print(f"             {note}")
    unknown = (
        f"unknown: inference.py has no record of {plan.file.name} with this content (set the run with "
        "--model)"
    )
    print(f"made by      {plan.origin.describe() if plan.origin else unknown}")
    print(f"message      {plan.message}")
    print(f"token        {find_credentials().kind}", flush=True)
