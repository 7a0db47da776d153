"""The models that predict together: open run, fold and blend folders as single models with weights, and
average them.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError, raise_all
from pipeline.folds.answer_lists import answers_differ
from pipeline.folds.assembly import other_members
from pipeline.folds.averaging import RANKS, average, by_ranks
from pipeline.folds.plan import fold_command, folds_command, full_command, read_start
from pipeline.predictions import Predictions
from pipeline.run import Run, load_run, model_dirs
from pipeline.run_names import RECORD
from pipeline.run_record import RunRecord, read_record
from pipeline.targets.target import Target
from pipeline.wording import counted, listed, quoted

if TYPE_CHECKING:
    from pipeline.competition.rows import Competition

DEEPEST = 8  # levels of blends within blends


@dataclass(frozen=True)
class Named:
    """A folder named on the command line, the name of its model, and its record (None: a release)."""

    path: Path
    name: str
    record: RunRecord | None


@dataclass(frozen=True)
class Leaf:
    """One model, and its weight in the average."""

    run: Run
    weight: float


@dataclass(frozen=True)
class Team:
    """Models that predict together.

    `leaves`: single models, whose weights sum to 1. `named`: the folders of the command line. `rule`:
    "probabilities" or "ranks", whichever is averaged.
    """

    leaves: tuple[Leaf, ...]
    named: tuple[Named, ...]
    rule: str

    @property
    def first(self) -> Run:
        """The first model; its settings decide how the data are read."""
        return self.leaves[0].run

    @property
    def record(self) -> RunRecord | None:
        """The record of the only folder; None where several folders were named, or for a release."""
        return self.named[0].record if len(self.named) == 1 else None

    @property
    def prior(self) -> list[float] | None:
        """The class frequencies that the probabilities assume, one value per output.

        None where no member knows them.
        """
        record = self.record or self.first.record
        return record.prior if record else None

    @property
    def temperature(self) -> float | None:
        """Temperature fitted on out-of-fold rows, which calibrates the probabilities.

        None where there is none.
        """
        found = self.record.values.get("temperature") if self.record else None
        return float(found) if found else None

    @property
    def mean_probabilities(self) -> list[float] | None:
        """Mean of the out-of-fold probabilities, one number per class; None where there is none."""
        return self.record.values.get("mean_probabilities") if self.record else None

    def describe(self) -> str:
        """Return one line: which models predict, and how they are combined."""
        names = " + ".join(f"{one.name} from {one.path}" for one in self.named)
        if len(self.leaves) == 1:
            return names
        why = " (the metric depends only on the order)" if self.rule == RANKS else ""
        weights = {round(leaf.weight, 6) for leaf in self.leaves}
        mean = "mean" if len(weights) == 1 else "weighted mean"
        return f"{names}: {counted(len(self.leaves), 'model')}, {mean} of their {self.rule}{why}"

    def members(self) -> dict[str, float]:
        """Return {folder of each model: weight}."""
        return {str(leaf.run.path): round(leaf.weight, 6) for leaf in self.leaves}


def gather(paths: Sequence[Path]) -> Team:
    """Open the models in the folders `paths`.

    Each folder has the same weight; a blend has its own weights inside.

    Raises:
        UserError: a folder is named twice or holds no model, a fold or member is missing or another one than
            was assembled, or the models predict different things (the differences are listed).
    """
    real = [Path(path).resolve() for path in paths]
    if twice := [str(path) for path, folder in zip(paths, real, strict=True) if real.count(folder) > 1]:
        raise UserError(f"--model names one folder twice ({listed(twice)}): name it once")
    named, leaves, rules = [], [], []
    for path in paths:
        record, found = _open(Path(path), 1 / len(paths), 0)
        if record and len(paths) > 1:
            refuse_ranks(Path(path), record)
        first = found[0].run
        named.append(Named(Path(path), record.name if record else first.name, record))
        leaves += found
        rules.append(_rule_of(record) if record else None)
    _check_alike(leaves)
    target, metric = leaves[0].run.target, leaves[0].run.metric
    rule = rules[0] if len(rules) == 1 and rules[0] else by_ranks(target, metric)
    return Team(tuple(leaves), tuple(named), rule)


def meet_over(team: Team, competition: Competition) -> None:
    """Compare the inputs of all processes that predict together. With one process it does nothing.

    Raises:
        UserError: the processes see different models or test images, or there are more processes than test
            images.
    """
    from pipeline.training.processes import current, meet

    count, rows = current().count, len(competition.test)
    if count == 1:
        return
    if count > max(rows, 1):
        raise UserError(
            f"{count} processes for {counted(rows, 'test image')}: --nproc-per-node {rows} at most"
        )
    files = [
        file
        for leaf in team.leaves
        for folder in model_dirs(leaf.run.path)
        for file in sorted(folder.rglob("*"))
    ]
    images = [(row.id, str(row.path.relative_to(competition.root))) for row in competition.test]
    meet({"models": repr([(file.name, file.stat().st_size) for file in files]), "test images": repr(images)})


def predict_together(team: Team, target: Target | None, predict: Callable[[Run], Predictions]) -> Predictions:
    """Return the average of `predict` over all models, called for one model after the other.

    For a single model it returns the result of `predict` unchanged.

    Raises:
        UserError: an error of `predict`, or outputs that differ.
    """
    if len(team.leaves) == 1:
        return predict(team.leaves[0].run)
    parts = []
    for number, leaf in enumerate(team.leaves, start=1):
        print(f"{number} of {len(team.leaves)}: {leaf.run.path} (weight {leaf.weight:.3g})")
        found = predict(leaf.run)
        parts.append(replace(found, logits=None))
    reference = target or parts[0].target
    return average(
        [in_order(part, reference) for part in parts], [leaf.weight for leaf in team.leaves], team.rule
    )


def in_order(predictions: Predictions, target: Target) -> Predictions:
    """Return the same predictions with their outputs in the order of `target`.

    Raises:
        UserError: the outputs are not the same.
    """
    mine, wanted = predictions.target.output_names, target.output_names
    if mine == wanted:
        return replace(predictions, target=target, logits=None)
    if set(mine) != set(wanted):
        raise UserError(
            f"predictions of different outputs cannot be averaged: {quoted(sorted(set(mine) ^ set(wanted)))}"
        )
    return Predictions(predictions.ids, predictions.values[:, [mine.index(name) for name in wanted]], target)


def _open(path: Path, weight: float, depth: int) -> tuple[RunRecord | None, list[Leaf]]:
    """Return the record of the folder, and its models."""
    if depth > DEEPEST:
        raise UserError(
            f"{path} is a blend that contains itself, or more than {DEEPEST} levels of blends: name the "
            "models themselves"
        )
    record = read_record(path) if path.is_dir() else None
    if record is None or record.kind == "run":
        refuse_unfinished(path)
        run = load_run(path)
        return run.record, [Leaf(run, weight)]
    refuse_other_members(path, record)
    if depth > 0:
        refuse_ranks(path, record)
    members = record.values["members"]
    total = sum(members.values())
    leaves = [
        leaf
        for name, share in members.items()
        for leaf in _open(path / name, weight * share / total, depth + 1)[1]
    ]
    first = leaves[0].run
    if first.target is not None and first.target.names != record.target.names:
        raise UserError(
            f"{path / RECORD}: prior and decision are in the order {quoted(record.target.names)}, but the "
            f"first model {first.path} predicts {quoted(first.target.names)}: blend again: "
            f"{record.values.get('command') or 'python -m pipeline.folds.blend'}"
        )
    return record, leaves


def refuse_other_members(path: Path, record: RunRecord) -> None:
    """Check that the folds or the blend in `path` still have the models that made their record.

    Raises:
        UserError: the record names none, a folder is missing, or a fold is another one than was assembled.
    """
    members = record.values.get("members")
    if not members or min(members.values()) < 0 or not sum(members.values()) > 0:
        raise UserError(
            f"{path / RECORD}: members should name folders with weights from 0, found {members!r:.200}: it "
            "was changed by hand or is damaged"
        )
    missing = [name for name in members if not (path / name / RECORD).exists()]
    if missing:
        raise UserError(
            "\n".join(
                [
                    f"{path} lacks {counted(len(missing), 'member')}: {quoted(missing)}",
                    *_how_made(record, missing),
                ]
            )
        )
    if record.kind == "folds" and (others := other_members(path, record)):
        command = folds_command(str(record.values.get("command") or ""), path)
        raise UserError(
            f"{path}: {listed(others)} changed since the folds were assembled (copied from another run, or "
            f"trained again): assemble them again with {command}"
        )


def refuse_ranks(path: Path, record: RunRecord) -> None:
    """Check that the models in `path` can be averaged with others, one by one.

    Raises:
        UserError: it is a blend that averages ranks; a mean of its members is another prediction.
    """
    if _rule_of(record) == RANKS:
        members = [str(path / name) for name in record.values.get("members") or ()]
        raise UserError(
            f"{path} is a blend that averages ranks, and such a blend cannot be averaged again: name its "
            f"members ({listed(members)}) instead of it"
        )


def _rule_of(record: RunRecord) -> str | None:
    """Return how a blend averages its members; None if the record is not of a blend."""
    return (record.values.get("blend") or {}).get("rule") if record.kind == "blend" else None


def refuse_unfinished(path: Path) -> None:
    """Check that `path` does not hold folds that are not put together.

    Raises:
        UserError: it does; the command that finishes them is named.
    """
    if not path.is_dir():
        return
    start, copied = read_start(path), sorted(folder.parent for folder in path.glob(f"fold-*/{RECORD}"))
    if start is None and copied and not (path / RECORD).exists() and not model_dirs(path):
        stored = [str(read_record(folder).values.get("command") or "") for folder in copied]
        command = folds_command(full_command(stored), path)
        raise UserError(
            f"{path} holds {listed([folder.name for folder in copied])}, not assembled yet: train what is "
            f"missing and assemble all with {command}"
        )
    numbers = range(1, start["folds"] + 1) if start else []
    missing = [number for number in numbers if not (path / f"fold-{number}" / RECORD).exists()]
    if start:
        what = (
            f"fold {', '.join(map(str, missing))} of {start['folds']} missing"
            if missing
            else "not assembled yet"
        )
        command = shlex.join(
            ["python", "train.py", "--folds", str(start["folds"]), "--resume", "--output", str(path)]
        )
        one = f" (for one fold only: --fold {missing[0]})" if missing else ""
        raise UserError(
            f"{path} holds unfinished folds, {what}: continue with {command}{one}, and the same --data"
        )


def _how_made(record: RunRecord, missing: Sequence[str]) -> list[str]:
    """Return the commands that train missing folds again."""
    if record.kind != "folds":
        return ["restore it, or blend again: python -m pipeline.folds.blend"]
    command, output = str(record.values.get("command") or "python train.py"), record.path.parent
    return [f"  {fold_command(command, int(name.removeprefix('fold-')), output)}" for name in missing]


def _check_alike(leaves: Sequence[Leaf]) -> None:
    """Raise where models of one team predict different things."""
    first, problems = leaves[0].run, []
    for leaf in leaves[1:]:
        run = leaf.run
        if run.task != first.task:
            problems.append(f"{run.path} is for {run.task}, {first.path} for {first.task}")
            continue
        mine, other = first.target, run.target
        if mine is None or other is None:
            problems += [
                f"{one.path} is a release that names no classes" for one in (first, run) if one.target is None
            ]
        elif mine.kind != other.kind:
            problems.append(f"{run.path} predicts {other.describe()}, {first.path} {mine.describe()}")
        elif set(mine.names) != set(other.names) and run.task == "vqa":
            problems.append(answers_differ(run, first))
        elif set(mine.names) != set(other.names):
            lacks = sorted(set(mine.names) - set(other.names))
            has = sorted(set(other.names) - set(mine.names))
            differ = [f"lacks {quoted(lacks)}"] if lacks else []
            differ += [f"has also {quoted(has)}"] if has else []
            problems.append(f"{run.path}, compared with {first.path}, {' and '.join(differ)}")
        elif run.metric != first.metric:
            problems.append(f"{run.path} was trained for {run.metric}, {first.path} for {first.metric}")
    raise_all(list(dict.fromkeys(problems)), "these models cannot be averaged:")


def made_by(team: Team, **more: Any) -> dict[str, Any]:
    """Return how predictions were made, for the record of a predictions file."""
    return {"members": team.members(), "average": team.rule if len(team.leaves) > 1 else None} | more
