"""`make kernel`: make an offline Kaggle notebook from a run, folds or a blend: bundle, script, rehearsal;
with --push also the rest.

# stops after the rehearsal and prints the next commands
python -m pipeline.kernel.make --model runs/a --data data
python -m pipeline.kernel.make --model runs/a --data data --push     # ... dataset, kernel, submission, score
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.competition.facts import read_facts
from pipeline.competition.rows import Competition
from pipeline.engines import INT8
from pipeline.errors import UserError, raise_all, run_command
from pipeline.fetch.containers import CONVERTED, Converted, read_converted
from pipeline.files import check_place, sha256, write_json, write_text
from pipeline.folds.finishing import check_prior
from pipeline.folds.quantizing import quantize_team
from pipeline.folds.team import Team, gather
from pipeline.folds.views import AUTO, check_views, choose_views, parse_views, predict_sets
from pipeline.kaggle import cli
from pipeline.kaggle.remembered import remembered_slug
from pipeline.kernel.bundle import DATASET_METADATA, Bundle, Options, make_bundle, weights_digest
from pipeline.kernel.flags import parse_flags
from pipeline.kernel.rehearsal import cost_of, forecast, rehearse
from pipeline.kernel.script import Settings, check_edited, notebook_text, script_text
from pipeline.kernel.slugs import (
    KERNEL_METADATA,
    UNKNOWN_OWNER,
    Names,
    check_kernel,
    dataset_metadata,
    kernel_metadata,
    make_names,
)
from pipeline.kernel.stages import STAGES, Stages
from pipeline.lock import holding_file
from pipeline.shapes import read_object
from pipeline.submission.belonging import check_belongs
from pipeline.tasks.apply import check_engine, read_for

SUBMISSION = "submission.csv"


def main(argv: list[str] | None = None, *, sleep: Callable[[float], None] = time.sleep) -> int:
    """Make and rehearse a kernel; with --push send it, submit it and wait for its score.

    Returns the exit code.

    Raises:
        UserError: something is missing or wrong; finished stages are kept and not repeated.
        Interrupted: waiting for the run on Kaggle or its score was cut short.
    """
    args = parse_flags(argv, __doc__)
    team = gather(args.model)
    competition = read_for(team.first, args.data)
    check_belongs(team.first.target, competition, team.first.path)
    check_prior(team, args.prior)
    check_engine(team.first, args.engine)  # before the bundle is made
    converted = convertible(args.data)
    check_conversion(team, args.data, converted)
    slug = cli.clean_slug(args.competition) if args.competition else remembered_slug(args.data)
    if not slug:
        raise UserError(
            "the competition is not known: COMPETITION=<name> (--competition), the last part of its address "
            "on Kaggle"
        )
    folder = args.output or team.named[0].path / "kernel"
    check_place(folder / STAGES, "name a folder with --output")
    folder.mkdir(parents=True, exist_ok=True)
    with holding_file(folder / ".lock", f"another `make kernel` is running in {folder}"):
        stages = Stages(folder)
        names = _names(args, slug, team, stages)
        print(f"model      {team.describe()}")
        print(
            "".join(
                f"           note: {leaf.run.unfinished}\n" for leaf in team.leaves if leaf.run.unfinished
            ),
            end="",
        )
        if args.engine == INT8:
            quantize_team(team, args.data, competition, args.batch_size, args.precision)
        options = Options(_views(args, team, competition, stages), args.prior, args.decision, args.engine)
        bundle = make_bundle(
            team,
            folder / "dataset",
            read_facts(args.data),
            args.wheels,
            args.python,
            options,
            converted=converted,
        )
        print(f"bundle     {bundle.folder}, {bundle.describe()}", flush=True)
        if converted:
            print(f"           the kernel converts the hidden test set as here: {converted.describe()}")
        settings = _settings(args, slug, names, team, bundle, converted)
        code_file = write_kernel(folder, names, settings, args.notebook, args.accelerator, stages)
        write_json(bundle.folder / DATASET_METADATA, dataset_metadata(names))
        check_kernel(folder / "kernel", names, slug)
        print(
            f"script     {code_file}: limit {args.hours:g} h, accelerator {args.accelerator}, private, no "
            "internet",
            flush=True,
        )
        script = sha256(code_file)
        cost, converting = _rehearse(
            folder, code_file, script, bundle, names, settings, team, competition, options, stages
        )
        has_gpu = args.accelerator != "none"
        lines = forecast(cost, args.images, settings.hours, has_gpu, converting)
        print("\n".join(f"           {line}" for line in lines), flush=True)
        if not args.push:
            print(by_hand(folder, names, slug))
            return 0
        from pipeline.kernel.push import push

        push(folder, bundle, code_file, names, slug, team, stages, args, script, sleep)
    return 0


def convertible(data_dir: Path) -> Converted | None:
    """Return which test files `make data` converted to images and how, so that the kernel converts the hidden
    ones in the same way; None if it converted none.

    Raises:
        UserError: an older version of `make data` converted them and did not record how.
    """
    converted = read_converted(data_dir)
    if converted and converted.decided is None:
        raise UserError(
            f"{data_dir}: an older `make data` converted {converted.describe()} to images and did not record "
            "how. On Kaggle the hidden test set has the original form, and the kernel must convert it in the "
            "same way: run `make data` again into another folder (DATA=), and train on that"
        )
    return converted


def check_conversion(team: Team, data_dir: Path, converted: Converted | None) -> None:
    """Check that the images of `data_dir` were converted as those that the models were trained on.

    Raises:
        UserError: they were not, or it is not known: the kernel could give the hidden test set other grey
            levels than training.
    """
    here, problems = converted.digest() if converted else "", []
    for run in [leaf.run for leaf in team.leaves]:
        known = run.record.values.get("conversion") if run.record else None
        if known is None and converted:
            problems.append(f"{run.path} does not say how its training images were converted: train again")
        elif known is not None and known != here:
            problems.append(
                f"{run.path} was trained on images that were {'' if known else 'not '}converted, not as "
                f"{data_dir / CONVERTED} says: name the folder of its training (DATA=), copied whole with "
                "its hidden files, or train again"
            )
    raise_all(problems, f"{data_dir}: the kernel must convert the hidden test set as training's images were:")


def _names(args: argparse.Namespace, slug: str, team: Team, stages: Stages) -> Names:
    """Return the names.

    Owner: the signed-in account with --push; else the flag, KAGGLE_USERNAME, or the last one.
    """
    owner = args.owner or os.environ.get("KAGGLE_USERNAME") or stages.get("names").get("owner")
    if args.push:
        from pipeline.kernel.push import signed_in_owner

        owner = signed_in_owner(args.owner)
    names = make_names(
        owner or UNKNOWN_OWNER,
        slug,
        " ".join(one.name for one in team.named),
        args.name or stages.get("names").get("base"),
    )
    if names.owner != UNKNOWN_OWNER:
        stages.note("names", owner=names.owner, base=names.base)
    return names


def _views(args: argparse.Namespace, team: Team, competition: Competition, stages: Stages) -> tuple[str, ...]:
    """Return the views of --tta. The choice of `auto` is stored until the weights change.

    Raises:
        UserError: there is no such view, or a model must not use it.
    """
    asked = parse_views(args.tta)
    if asked != (AUTO,):
        check_views(asked, team)
        return asked
    known, of = stages.get("views"), weights_digest([leaf.run for leaf in team.leaves])
    if known.get("of") != of:
        found, lines = choose_views(
            asked,
            team,
            lambda run, rows, sets: predict_sets(
                run, competition, args.batch_size, args.precision, sets, rows, args.engine
            ),
        )
        known = {"of": of, "views": list(found), "lines": lines}
        stages.note("views", **known)
    print("\n".join(f"           {line}" for line in known["lines"]), flush=True)
    return tuple(known["views"])


def _settings(
    args: argparse.Namespace,
    slug: str,
    names: Names,
    team: Team,
    bundle: Bundle,
    converted: Converted | None,
) -> Settings:
    needs_timm = any(
        read_object(leaf.run.backbone_dir / "config.json").get("model_type") == "timm_wrapper"
        for leaf in team.leaves
    )
    run_names = tuple(one.name for one in team.named)
    return Settings(
        slug,
        names.dataset,
        run_names,
        bundle.digest,
        args.hours,
        args.batch_size,
        args.precision,
        needs_timm,
        tuple(args.wheels),
        tuple(converted.packages) if converted else (),
    )


def write_kernel(
    folder: Path, names: Names, settings: Settings, notebook: bool, accelerator: str, stages: Stages
) -> Path:
    """Write kernel/ in `folder`: the code file (returned) and kernel-metadata.json.

    Edited files are kept.

    Raises:
        UserError: --notebook without nbformat, or an edited code file for another bundle.
    """
    kernel_dir = folder / "kernel"
    path, other = kernel_dir / "kernel.py", kernel_dir / "kernel.ipynb"
    text = notebook_text(settings) if notebook else script_text(settings)
    if notebook:
        path, other = other, path
    written = stages.get("script")
    for file in (path, other):
        edited = file.exists() and sha256(file) != written.get(file.name)
        if edited and file == path:
            check_edited(path, settings)
            _say_kept(path)
            _write_metadata(path, names, settings, accelerator, stages)
            return path
        if file == other and file.exists() and not edited:
            other.unlink()  # not edited; an edited one is kept, and check_kernel reports it
    write_text(path, text)
    stages.note("script", **written | {path.name: sha256(path)})
    _write_metadata(path, names, settings, accelerator, stages)
    return path


def _write_metadata(
    code_file: Path, names: Names, settings: Settings, accelerator: str, stages: Stages
) -> None:
    """Write kernel-metadata.json beside `code_file`. An edited one is kept; `check_kernel` checks it."""
    path, written = code_file.with_name(KERNEL_METADATA), stages.get("script")
    # Earlier versions noted no digest of it
    if path.exists() and KERNEL_METADATA in written and sha256(path) != written[KERNEL_METADATA]:
        _say_kept(path)
        return
    write_json(path, kernel_metadata(names, settings.competition, code_file.name, accelerator))
    stages.note("script", **written | {KERNEL_METADATA: sha256(path)})


def _say_kept(path: Path) -> None:
    print(f"           {path} was edited and is kept; delete it and `make kernel` writes a new one")


def _rehearse(
    folder: Path,
    code_file: Path,
    script: str,
    bundle: Bundle,
    names: Names,
    settings: Settings,
    team: Team,
    competition: Competition,
    options: Options,
    stages: Stages,
) -> tuple[float, float]:
    """Rehearse the kernel, unless that was done with these files. Return the floating-point operations and
    the seconds of conversion for one row. `script`: the digest of the code file.

    Raises:
        UserError: the rehearsal failed, or the code file changed meanwhile.
    """
    sample = competition.form.path if competition.form else None
    key = {
        "bundle": bundle.digest,
        "script": script,
        "rows": len(competition.test),
        "sample": sha256(sample) if sample else "",
    }
    made = folder / "rehearsal" / SUBMISSION
    known = stages.get("rehearsal")
    if known.get("of") == key and made.is_file() and sha256(made) == known.get("file"):
        print(f"rehearsal  already done with these files: {known['notes'][-1]}")
    else:
        stages.forget("rehearsal")
        print("rehearsal  running ...", flush=True)
        done = rehearse(folder / "rehearsal", code_file, bundle, names, settings, team, competition, options)
        if sha256(code_file) != script:
            raise UserError(f"{code_file} was changed during the rehearsal: run the same command again")
        known = {
            "of": key,
            "file": sha256(done.file),
            "notes": list(done.notes),
            "cost": cost_of([leaf.run for leaf in team.leaves], competition, options.views),
            "converting": done.converting,
        }
        stages.note("rehearsal", **known)
        print("\n".join(f"           {note}" for note in done.notes), flush=True)
    return known["cost"], known.get("converting", 0.0)


def by_hand(folder: Path, names: Names, slug: str) -> str:
    """Return the three shell commands that continue after the rehearsal."""
    of_kernel = ("-k", names.kernel, "-v", "1", "-f", SUBMISSION, "-m", names.base)
    commands = [
        ["kaggle", "datasets", "create", "-p", str(folder / "dataset"), "-r", "zip", "-t"],
        ["kaggle", "kernels", "push", "-p", str(folder / "kernel")],
        ["kaggle", "competitions", "submit", slug, *of_kernel],
    ]
    notes = (
        "   # later: kaggle datasets version -p ... -m ... -r zip -t",
        "   # prints the version N",
        "   # -v N",
    )
    lines = [shlex.join(command) + note for command, note in zip(commands, notes, strict=True)]
    first = (
        "Nothing was pushed. Continue with PUSH=1 (--push), or by hand; wait for each command to complete:"
    )
    if names.owner == UNKNOWN_OWNER:
        lines.append(f"replace {UNKNOWN_OWNER} by your Kaggle name: --owner NAME writes it into the files")
    return "\n".join([first, *(f"  {line}" for line in lines)])


if __name__ == "__main__":
    sys.exit(run_command(main))
