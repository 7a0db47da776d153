"""What a kernel does over there with its bundle: check it, load its members, predict, average. kernel.py calls it line by line."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.competition.facts import CompetitionFacts
from pipeline.competition.rows import Competition
from pipeline.errors import UserError, raise_all
from pipeline.files import read_json, sha256
from pipeline.folds.averaging import RANKS, average, ranks
from pipeline.folds.decisions import read_decision
from pipeline.folds.team import Leaf, Named, Team, in_order
from pipeline.kernel.pace import Pace
from pipeline.predictions import Predictions
from pipeline.run import load_run
from pipeline.tasks.apply import predict_until
from pipeline.wording import counted

MANIFEST = "bundle.json"  # in the bundle: its members, what is known of the competition, size and digest of every other file
FORMAT = 1
MEMBERS = "members"
Clock = Callable[[], float]


def check_bundle(bundle: Path) -> dict:
    """What bundle.json says, after every file that it lists was compared with it.

    Raises:
        UserError: files are missing, damaged or of another size; folders that were left out are named.
    """
    manifest = read_json(bundle / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or not isinstance(manifest.get("files"), dict):
        raise UserError(f"{bundle / MANIFEST}: expected a list of files in format {FORMAT}: make the bundle again, `make kernel`")
    problems, missing = [], []
    for name, known in manifest["files"].items():
        path = bundle / name
        if not path.is_file():
            missing.append(name)
        elif path.stat().st_size != known["bytes"]:
            problems.append(f"{name}: {path.stat().st_size:,} bytes, expected {known['bytes']:,}")
        elif sha256(path) != known["sha256"]:
            problems.append(f"{name}: other content than when the bundle was made")
    folders = sorted({name.split("/")[0] for name in missing if "/" in name})
    lost = [folder for folder in folders if not (bundle / folder).is_dir()]
    if lost:
        problems.insert(0, f"the folders {', '.join(lost)} are missing: the dataset was made without `-r zip`, which leaves folders out")
    problems += [f"{name}: missing" for name in missing if name.split("/")[0] not in lost]
    raise_all(problems, f"the bundle in {bundle} is not whole; make it again (`make kernel`), push it again:")
    return manifest


def load_team(bundle: Path, manifest: dict) -> Team:
    """The runs in a bundle, in their order, with their weights and what is averaged.

    Raises:
        UserError: one of them cannot be loaded.
    """
    runs = [load_run(bundle / name) for name in manifest["members"]]
    named = tuple(Named(run.path, run.name, run.record) for run in runs)
    return Team(tuple(Leaf(run, weight) for run, weight in zip(runs, manifest["weights"], strict=True)), named, manifest["rule"])


def known_facts(manifest: dict) -> CompetitionFacts:
    """What is known of the competition: competition.yaml of the machine where the bundle was made."""
    facts = dict(manifest.get("facts") or {})
    return CompetitionFacts(**{**facts, "positive_class": tuple(facts.get("positive_class") or ())})


def predict_team(
    team: Team,
    decisions: Sequence[dict],
    competition: Competition,
    batch_size: int,
    precision: str,
    until: float,
    clock: Clock = time.monotonic,
) -> tuple[Predictions, list[float]]:
    """What inference.py predicts with the same models, in the order of the form, and the rows a second of each model.

    `decisions`: as run.json keeps them. No batch is begun after `until` (of `clock`). Each model gets an equal share of the time that is
    left; an id is averaged over the models that reached it, and holds the class frequencies of training where none did.

    Raises:
        UserError: a model cannot be rebuilt, or no test image can be decoded.
    """
    found, rates, runs = [], [], [leaf.run for leaf in team.leaves]
    title = "questions" if competition.task == "vqa" else "images"
    for number, run in enumerate(runs):
        now = clock()
        share = (until - now) / (len(runs) - number)
        of = f" (model {number + 1} of {len(runs)})" if len(runs) > 1 else ""
        pace = Pace(len(competition.test), now + share, title + of, clock)
        found.append(predict_until(run, competition, batch_size, precision, pace))
        pace.done = len(competition.test) if not found[-1][1] else pace.done
        rates.append(pace.rate())
    predictions, unreached = average_reached(found, [leaf.weight for leaf in team.leaves], team.rule)
    if unreached:
        print(
            f"WARNING: {counted(len(unreached), 'id')} of {len(predictions.ids):,} were NOT PREDICTED, there was no time left: "
            "their rows hold the class frequencies of training. A larger batch, fewer members or a smaller model would reach them.",
            flush=True,
        )
    if decision := read_decision({"decisions": list(decisions)}, predictions.target):
        predictions = replace(predictions, values=decision.apply(predictions.target, predictions.values), logits=None)
    return predictions, rates


def average_reached(
    found: Sequence[tuple[Predictions, frozenset[str]]], weights: Sequence[float], rule: str
) -> tuple[Predictions, frozenset[str]]:
    """The weighted average of predictions, each with the ids it did not reach; and the ids that no model reached.

    An id is averaged over the models that reached it, each with its weight; ranks are those among the ids that a model reached. An id that
    none reached gets the average of what the models put there, which of ranks is the middle one.

    Raises:
        UserError: the models predict different ids or outputs.
    """
    import numpy as np

    if len(found) == 1:
        return found[0]
    target = found[0][0].target
    members = [in_order(predictions, target) for predictions, _ in found]
    mean = average(members, weights, rule)
    if not any(missed for _, missed in found):
        return mean, frozenset()
    reached = np.array([[name not in missed for name in mean.ids] for _, missed in found])  # (models, N)
    shares = reached * np.array(weights)[:, None]
    nobody = shares.sum(axis=0) == 0
    shares[:, nobody] = np.array(weights)[:, None]
    values = np.zeros(mean.values.shape, dtype=np.float64)
    for member, share, its in zip(members, shares, reached, strict=True):
        scale = np.array(member.aligned(mean.ids).values, dtype=np.float64)
        if rule == RANKS:
            scale[its], scale[~its] = ranks(scale[its]), 0.5
        values += scale * share[:, None]
    values = (values / shares.sum(axis=0)[:, None]).astype(np.float32)
    return replace(mean, values=values), frozenset(name for name, lost in zip(mean.ids, nobody, strict=True) if lost)
