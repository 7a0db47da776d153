"""Read a bundle on Kaggle: check its files, load its models, and read how they predict together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.competition.facts import CompetitionFacts
from pipeline.engines import TORCH
from pipeline.errors import UserError, raise_all
from pipeline.fetch.containers import Converted
from pipeline.files import read_json, sha256
from pipeline.folds.prior import ESTIMATE
from pipeline.folds.team import Leaf, Named, Team
from pipeline.run import load_run
from pipeline.run_record import RunRecord

MANIFEST = "bundle.json"  # in the bundle: members, competition facts, and size and digest of every other file
FORMAT = 2
MEMBERS = "members"


@dataclass(frozen=True)
class Carried:
    """The content of the bundle in `folder`.

    `prior`: a file, `estimate` or None; `decision`: auto or off; `engine`: one of `pipeline.engines`.
    `converted`: which test files `make data` converted to images; None: none.
    """

    folder: Path
    team: Team
    facts: CompetitionFacts
    views: tuple[str, ...]
    prior: str | None
    decision: str
    engine: str = TORCH
    converted: Converted | None = None


def check_bundle(bundle: Path) -> dict:
    """Check every file that bundle.json lists, and return its content.

    Raises:
        UserError: files are missing or damaged or have another size; missing folders are listed.
    """
    manifest = _manifest(bundle)
    problems, missing = [], []
    for name, known in manifest["files"].items():
        path = bundle / name
        if not path.is_file():
            missing.append(name)
        elif path.stat().st_size != known["bytes"]:
            problems.append(f"{name}: {path.stat().st_size:,} bytes, expected {known['bytes']:,}")
        elif sha256(path) != known["sha256"]:
            problems.append(f"{name}: its content has changed since the bundle was made")
    folders = sorted({name.split("/")[0] for name in missing if "/" in name})
    lost = [folder for folder in folders if not (bundle / folder).is_dir()]
    if lost:
        problems.insert(
            0,
            f"the folders {', '.join(lost)} are missing: the dataset was made without `-r zip`, which skips "
            "folders",
        )
    problems += [f"{name}: missing" for name in missing if name.split("/")[0] not in lost]
    raise_all(
        problems, f"the bundle in {bundle} is not complete; make it again (`make kernel`), push it again:"
    )
    return manifest


def open_bundle(bundle: Path) -> Carried:
    """Load the models of the bundle, without checking its files; see `check_bundle`.

    Raises:
        UserError: bundle.json has another format, or a model cannot be loaded.
    """
    manifest = _manifest(bundle)
    runs = [load_run(bundle / name) for name in manifest["members"]]
    leaves = tuple(Leaf(run, weight) for run, weight in zip(runs, manifest["weights"], strict=True))
    record = manifest["record"]  # of the single named folder (a run, folds or a blend); None for several
    named = tuple(Named(run.path, run.name, run.record) for run in runs)
    if record is not None:
        named = (Named(bundle, manifest["runs"][0], RunRecord(bundle / MANIFEST, record)),)
    facts = dict(manifest.get("facts") or {})
    facts = CompetitionFacts(**{**facts, "positive_class": tuple(facts.get("positive_class") or ())})
    prior = manifest["prior"]
    prior = prior if prior in (None, ESTIMATE) else str(bundle / prior)
    return Carried(
        bundle,
        Team(leaves, named, manifest["rule"]),
        facts,
        tuple(manifest["views"]),
        prior,
        manifest["decision"],
        manifest.get("engine", TORCH),
        Converted(**manifest["converted"]) if manifest.get("converted") else None,
    )


def _manifest(bundle: Path) -> dict:
    manifest = read_json(bundle / MANIFEST)
    if (
        not isinstance(manifest, dict)
        or manifest.get("format") != FORMAT
        or not isinstance(manifest.get("files"), dict)
    ):
        raise UserError(
            f"{bundle / MANIFEST}: expected a list of files in format {FORMAT}: make the bundle again, `make "
            "kernel`"
        )
    return manifest
