"""Make the bundle: a folder with everything that prediction needs (code, merged weights, competition
facts).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.competition.facts import CompetitionFacts
from pipeline.engines import INT8, TORCH
from pipeline.errors import UserError, raise_all
from pipeline.fetch.containers import Converted
from pipeline.files import human_size, set_aside, sha256, write_json
from pipeline.folds.decisions import read_decision
from pipeline.folds.finishing import check_prior
from pipeline.folds.prior import ESTIMATE
from pipeline.folds.team import Team
from pipeline.folds.views import check_views
from pipeline.kernel.carried import FORMAT, MANIFEST, MEMBERS, check_bundle
from pipeline.run import Run, load_run
from pipeline.run_names import HEAD_FILE, RECORD, START
from pipeline.run_record import FORMAT as RUN_FORMAT
from pipeline.tasks.quantized import copy_quantized, required
from pipeline.wording import listed

PACKAGE = Path(__file__).resolve().parents[1]  # pipeline/
CODE_SUFFIX = ".py"  # only code, under 2 MB; recipes and page templates are not needed for prediction
DATASET_METADATA = "dataset-metadata.json"  # for the kaggle command; not part of the dataset
WHEELS = "wheels"
# For all private datasets of an account (second-hand: "over 100 GB" in Developing Kaggle Notebooks, Packt
# 2023; not checked on Kaggle's page).
LIMIT_BYTES = 100_000_000_000


@dataclass(frozen=True)
class Options:
    """Options of prediction, as flags of inference.py: `views`, `prior` (a file, `estimate` or None),
    `decision`, `engine`.
    """

    views: tuple[str, ...] = ()
    prior: str | None = None
    decision: str = "auto"
    engine: str = TORCH

    def flags(self) -> list[str]:
        """Return these options as flags of inference.py."""
        flags = ["--tta", ",".join(self.views)] if self.views else []
        if self.prior:
            flags += ["--prior", self.prior if self.prior == ESTIMATE else str(Path(self.prior).resolve())]
        engine = [] if self.engine == TORCH else ["--engine", self.engine]
        return [*flags, "--decision", self.decision, *engine]


@dataclass(frozen=True)
class Bundle:
    """A complete bundle. `digest`: SHA-256 of its bundle.json, which holds the digest of every other file."""

    folder: Path
    digest: str
    manifest: dict[str, Any]
    is_new: bool  # False: the existing bundle was made from the same files and is used

    @property
    def num_bytes(self) -> int:
        """Total size of the files in bytes."""
        return sum(known["bytes"] for known in self.manifest["files"].values())

    def describe(self) -> str:
        """Describe size and content in one line."""
        members = self.manifest["members"]
        what = [f"{len(members)} members" if len(members) > 1 else "one model", "float32", "adapters merged"]
        what += [f"views {'+'.join(self.manifest['views'])}"] if self.manifest["views"] else []
        what += ["another prior"] if self.manifest["prior"] else []
        return (
            f"{human_size(self.num_bytes)}: the code, "
            f"{', '.join(what)}{'' if self.is_new else ' (unchanged)'}"
        )


def make_bundle(
    team: Team,
    folder: Path,
    facts: CompetitionFacts,
    wheels: Sequence[str] = (),
    python: str = "",
    options: Options = Options(),
    limit: int = LIMIT_BYTES,
    converted: Converted | None = None,
) -> Bundle:
    """Write the bundle of a team into `folder`. An existing bundle made from the same files is kept.

    `wheels`: packages to ship, for that version of `python` ("3.11"). `converted`: which test files `make
    data` converted, and how.

    Raises:
        UserError: a model has no class names; weights are damaged; views or prior do not fit the models; the
            bundle exceeds `limit` bytes; wheels cannot be downloaded.
    """
    runs = [leaf.run for leaf in team.leaves]
    _check_named(runs)
    check_views(options.views, team)
    check_prior(team, options.prior)
    sources = _sources(runs)
    expected = sum(path.stat().st_size for path in sources)
    if expected > limit:
        raise UserError(
            f"a bundle of {listed([str(run.path) for run in runs])} would have about {human_size(expected)}, "
            f"but Kaggle allows {human_size(limit)}: use fewer members, or a smaller model"
        )
    together = _together(team, options)
    together["converted"] = asdict(converted) if converted else None
    if options.engine == INT8:
        together["quantized"] = [required(run)["files"] for run in runs]
    key = _key(runs, sources, facts, wheels, python, together)
    if (former := _former(folder)) and former["made_of"] == key:
        return Bundle(folder, sha256(folder / MANIFEST), former, is_new=False)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".part-", dir=folder.parent) as temporary:
        made = Path(temporary) / folder.name
        _copy_code(made / PACKAGE.name)
        names = [f"{MEMBERS}/{number}" for number in range(1, len(runs) + 1)]
        for run, name in zip(runs, names, strict=True):
            _save_member(run, made / name)
            if options.engine == INT8:
                copy_quantized(run, load_run(made / name))
        if options.prior not in (None, ESTIMATE):
            shutil.copyfile(options.prior, made / together["prior"])
        if wheels:
            _download_wheels(wheels, python, made / WHEELS)
        known = {name: value for name, value in asdict(facts).items() if value and name != "slug"}
        manifest = {
            "format": FORMAT,
            "members": names,
            "runs": [one.name for one in team.named],
            "facts": known,
            "made_of": key,
            **together,
        }
        manifest["files"] = {
            path.relative_to(made).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
            for path in sorted(made.rglob("*"))
            if path.is_file()
        }
        write_json(made / MANIFEST, manifest)
        if former:
            shutil.rmtree(folder)
        elif moved := set_aside([folder], folder.parent / "earlier"):
            print(f"{folder} was changed after it was made; the old content is kept in {moved}")
        os.replace(made, folder)
    bundle = Bundle(folder, sha256(folder / MANIFEST), manifest, is_new=True)
    if bundle.num_bytes > limit:
        raise UserError(
            f"{folder} has {human_size(bundle.num_bytes)}, but Kaggle allows {human_size(limit)}: use fewer "
            "members, or a smaller model"
        )
    return bundle


def _former(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of the bundle in `folder`; None if there is none, or if files were changed or
    added.
    """
    if not folder.is_dir():
        return None
    try:
        manifest = check_bundle(folder)
    except (UserError, KeyError, TypeError):
        return None
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    own = {*manifest["files"], MANIFEST, DATASET_METADATA}
    return manifest if present <= own and "made_of" in manifest and "members" in manifest else None


def _check_named(runs: Sequence[Run]) -> None:
    lacking = [run.path for run in runs if run.target is None]
    problems = [
        f"{path} has no class names, which a kernel needs: write them into id2label of its config.json"
        for path in lacking
    ]
    raise_all(problems, "no kernel was made:")


def _together(team: Team, options: Options) -> dict[str, Any]:
    """Return how the models predict together: weights, averaging rule, views, prior, and the record of the
    named folder.

    Raises:
        UserError: the stored decisions were edited or are damaged.
    """
    record = None
    if team.record:
        values = team.record.values
        record = {"kind": team.record.kind, "prior": team.record.prior}
        record |= {name: values.get(name) for name in ("temperature", "mean_probabilities")}
        record["decisions"] = [line for line in values.get("decisions") or [] if line.get("used")]
        read_decision(record, team.first.target)
        record = {name: value for name, value in record.items() if value is not None}
    file = options.prior not in (None, ESTIMATE)
    return {
        "weights": [leaf.weight for leaf in team.leaves],
        "engine": options.engine,
        "rule": team.rule,
        "record": record,
        "views": list(options.views),
        "prior": "prior" + "".join(Path(options.prior).suffixes) if file else options.prior,
        "prior_sha256": sha256(Path(options.prior)) if file else None,
        "decision": options.decision,
    }


def weights_digest(runs: Sequence[Run]) -> str:
    """Return one digest of all files of the runs that predictions depend on."""
    return hashlib.sha256("\n".join(sha256(path) for path in _sources(runs)).encode()).hexdigest()


def _sources(runs: Sequence[Run]) -> list[Path]:
    """Return the files of the runs that a bundle depends on."""
    found = []
    for run in runs:
        for folder in (run.backbone_dir, run.adapter_dir, run.text_dir):
            found += sorted(path for path in folder.rglob("*") if path.is_file()) if folder else []
        own = [
            *(run.path / name for name in (RECORD, HEAD_FILE, START)),
            *([run.record.path] if run.record else []),
        ]
        found += [path for path in dict.fromkeys(own) if path.is_file()]
    return found


def _key(
    runs: Sequence[Run],
    sources: Sequence[Path],
    facts: CompetitionFacts,
    wheels: Sequence[str],
    python: str,
    together: dict[str, Any],
) -> str:
    """Return one digest of everything that the bundle is made from."""
    parts = [f"{path.name} {sha256(path)}" for path in (*sources, *_code())]
    parts += [
        json.dumps([asdict(facts), together], sort_keys=True),
        *(run.task for run in runs),
        *wheels,
        python if wheels else "",
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _code() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob(f"*{CODE_SUFFIX}") if "__pycache__" not in path.parts)


def _copy_code(target: Path) -> None:
    for path in _code():
        copy = target / path.relative_to(PACKAGE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


def _save_member(run: Run, folder: Path) -> None:
    """Write a run as a run without adapter: merged float32 weights, and the run.json that prediction
    reads.
    """
    from pipeline.models.backbones import save_backbone
    from pipeline.models.fusion import save_fused
    from pipeline.tasks.registry import task_module

    task = task_module(run.task)
    outputs = task.num_outputs_of(run)
    if run.target is None or run.target.num_outputs != outputs:
        raise UserError(
            f"{run.path}: its weights have {outputs} outputs, but it has {len(run.class_names or ())} class "
            "names: train again"
        )
    predictor = task.rebuild(run, outputs)
    folder.mkdir(parents=True)
    if run.task == "vqa":
        save_fused(predictor.fused, folder, base=True, trained=True)
    else:
        save_backbone(
            predictor.model,
            predictor.model.state_dict(),
            predictor.preprocessing,
            folder / run.backbone_dir.name,
        )
    write_json(folder / RECORD, _record(run))


def _record(run: Run) -> dict[str, Any]:
    """Return run.json of a member: the run's record without its path and its adapter."""
    values = dict(run.record.values) if run.record else {}
    kept = tuple("task name class_names target metric best counts commit versions recipe prior seed".split())
    record = {"format": RUN_FORMAT, **{name: values[name] for name in kept if values.get(name) is not None}}
    record |= {
        "task": run.task,
        "name": run.name,
        "class_names": list(run.class_names or run.target.output_names),
    }
    record |= {"target": run.target.record()}
    record.setdefault("metric", {"name": run.metric})
    if run.record and run.record.prior:
        record["prior"] = run.record.prior
    recipe = dict(record.get("recipe") or {})
    lora = dict(recipe.get("lora") or {})
    record["recipe"] = recipe | {"lora": lora | {"rank": 0}}
    record["merged"] = {"rank": lora.get("rank", 0)}
    return record


def _download_wheels(wheels: Sequence[str], python: str, folder: Path) -> None:
    """Download the wheels of some packages for Kaggle's Linux and the given Python, without their
    dependencies.

    Raises:
        UserError: pip cannot download one of them.
    """
    command = [
        sys.executable,
        *"-m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all:".split(),
    ]
    for platform in ("manylinux2014_x86_64", "manylinux_2_28_x86_64", "linux_x86_64", "any"):
        command += ["--platform", platform]
    command += ["--python-version", python, "--dest", str(folder), *wheels]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        errors = [
            line for line in done.stderr.splitlines() if line.startswith("ERROR")
        ] or done.stderr.splitlines()[-1:]
        raise UserError(
            f"--wheels {' '.join(wheels)}: pip could not download them for Python {python}: "
            f"{' '.join(errors)[:400]}"
        )
