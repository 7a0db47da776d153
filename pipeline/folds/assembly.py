"""Combine trained folds into one run of kind "folds": scores of the out-of-fold predictions, together and by
fold.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from pipeline.competition.corrections import corrected_score
from pipeline.competition.rows import Competition
from pipeline.errors import UserError, raise_all
from pipeline.files import read_array, write_array, write_json
from pipeline.folds.decisions import judge
from pipeline.folds.plan import Plan, fold_command
from pipeline.folds.prior import calibration
from pipeline.predictions import Predictions
from pipeline.recipe import Recipe
from pipeline.run import environment, now
from pipeline.run_names import OOF_TABLE, OOF_VALUES, RECORD, VAL_COLUMNS, VAL_TABLE, VAL_VALUES
from pipeline.run_record import FORMAT, RunRecord, read_record
from pipeline.tables import Table, guarded, load_table, restored, write_table
from pipeline.targets.measures import histograms
from pipeline.targets.metrics import all_metrics, find_metric
from pipeline.targets.target import Target
from pipeline.wording import counted, quoted

if TYPE_CHECKING:
    import numpy as np

_ASSEMBLE = (
    "restore it; or delete the run.json beside it and repeat the command of these folds (with "
    "--resume) or of the blend"
)
OOF_COLUMNS = ("id", "fold", "label", "predicted")


@dataclass(frozen=True)
class Held:
    """Validation predictions of one fold: `cells` are the rows of val_predictions.csv, `values` (M, O)
    float32.
    """

    record: RunRecord
    cells: list[list[str]]
    values: np.ndarray

    @property
    def ids(self) -> list[str]:
        """The id of each image."""
        return [row[0] for row in self.cells]


def read_held(folder: Path) -> Held:
    """Return the validation predictions of the run in `folder`.

    Raises:
        UserError: the run is not complete, or its files are damaged.
    """
    record = read_record(folder)
    if record is None:
        raise UserError(f"{folder} holds no finished run")
    table = load_table(folder / VAL_TABLE)
    if table.columns != VAL_COLUMNS:
        raise UserError(
            f"{table.path}: expected the columns {', '.join(VAL_COLUMNS)}, found {', '.join(table.columns)}"
        )
    cells = [list(map(restored, row)) for row in table.cells]
    return Held(record, cells, read_array(folder / VAL_VALUES, (len(cells), record.target.num_outputs)))


def read_oof_table(path: Path) -> Table:
    """Return oof.csv of the folder `path`: one row per id with id, fold (from 1), label, predicted.

    Raises:
        UserError: the file or a column is missing, an id occurs twice, or a fold is not a number.
    """
    table = load_table(path / OOF_TABLE)
    if missing := [name for name in OOF_COLUMNS[:3] if name not in table.columns]:
        raise UserError(
            f"{table.path}: no column {', '.join(missing)}; expected {', '.join(OOF_COLUMNS)}: {_ASSEMBLE}"
        )
    seen, problems = set(), []
    for line, row_id, fold in zip(table.lines, table.column("id"), table.column("fold"), strict=True):
        if not fold.isascii() or not fold.isdigit() or len(fold) > 6:
            problems.append(f"row {line}: fold: expected a number, found {fold!r:.80}")
        if row_id in seen:
            problems.append(f"row {line}: id {row_id!r:.80} occurs twice")
        seen.add(row_id)
    raise_all(problems, f"{table.path} was changed by hand or is damaged; {_ASSEMBLE}:")
    return table


def is_put_together(output: Path, record: RunRecord) -> bool:
    """Return True where all folds in `output` exist and their predictions equal the assembled ones."""
    members = record.values.get("members") or {}
    if not members or not all((output / name).is_file() for name in (OOF_TABLE, OOF_VALUES)):
        return False
    assembled, parts = _by_image(output), [_by_image(output / name) for name in members]
    return None not in parts and assembled == dict(pair for part in parts for pair in part.items())


def other_members(output: Path, record: RunRecord) -> list[str]:
    """Return the folds in `output` that were copied there from another run, or trained again, since the folds
    were assembled.

    They are compared by their validation predictions. Folds without them, as in a bundle, are not judged:
    prediction does not need them.
    """
    assembled = _by_image(output)
    if assembled is None:
        return []
    parts = {name: _by_image(output / name) for name in record.values.get("members") or {}}
    return [
        name for name, part in parts.items() if part is not None and not part.items() <= assembled.items()
    ]


def _by_image(folder: Path) -> dict[tuple[str, ...], bytes] | None:
    """Return the outputs of each row of the validation predictions in `folder`; None where they are missing
    or damaged.
    """
    try:
        held = read_held(folder)
    except (OSError, UserError):
        return None
    return {tuple(row): value.tobytes() for row, value in zip(held.cells, held.values, strict=True)}


def assemble(plan: Plan, recipe: Recipe, competition: Competition, command: str, data: str) -> int:
    """Write the files of complete folds and return the exit code.

    Writes oof.csv, oof.npy, val_predictions.csv, val_probs.npy, run.json and the page.

    Raises:
        UserError: a fold was trained on other data, or a file is damaged.
    """
    import numpy as np

    from pipeline.data.sampling import trained_prior
    from pipeline.report.page import build_report
    from pipeline.report.thumbnails import store_samples

    held = {number: read_held(plan.folder(number)) for number in range(1, plan.count + 1)}
    _check(plan, competition, held, recipe, command)
    target, metric = held[1].record.target, held[1].record.metric
    parts = [Predictions.of_values(one.ids, one.values, target, recipe.data.views) for one in held.values()]
    label_of = {row.id: row.label for row in competition.train}
    predicted = {name for part in parts for name in part.ids}
    # Without images that skip_bad_images left out
    ids = [row_id for row_id in plan.fold_of if row_id in predicted]
    oof = Predictions(
        tuple(name for part in parts for name in part.ids),
        np.concatenate([part.values for part in parts]),
        target,
    ).aligned(ids)
    truth = target.encode([label_of[row_id] for row_id in ids])
    folds = np.array([plan.fold_of[row_id] for row_id in ids])
    record = {
        "format": FORMAT,
        "kind": "folds",
        "task": recipe.task,
        "name": recipe.name,
        "recipe": recipe.model_dump(mode="json"),
        "class_names": list(target.names),
        "target": target.record(),
        "metric": {"name": metric, "higher_is_better": find_metric(metric).higher_is_better},
        "prior": [
            float(value)
            for value in trained_prior(target.prior([row.label for row in competition.train]), recipe)
        ],
        "counts": {"train": len(competition.train), "val": sum(len(one.cells) for one in held.values())},
        "members": {plan.folder(number).name: 1 / plan.count for number in held},
        "command": command,
        "data": data,
        "seed": recipe.seed,
        "folds": folds_record(target, metric, truth, oof.values, folds, plan, held),
        **_corrected(competition, target, metric, oof),
        **_pseudo(held),
        **_floor(held),
        **environment(),
        "finished": now(),
    }
    labels = [row.label for row in competition.train]
    record["counts"]["train_per_class"] = target.counts(labels)
    if target.kind == "continuous":
        record["counts"]["train_histograms"] = histograms(target.names, target.encode(labels))
    scores = record["folds"]["scores"]
    record |= calibration(target, truth, oof.values)
    record["decisions"] = decide(target, metric, truth, oof.values, folds)
    own = f"val_{metric}" if metric in scores else "val_loss"
    record["best"] = {"epoch": None, "metric": own, "value": scores[own.removeprefix("val_")]}
    write_oof(plan.output, oof, [label_of[row_id] for row_id in ids], folds.tolist())
    write_images(plan.output, competition, held)
    store_samples(plan.output, list(competition.train), target)
    write_json(plan.output / RECORD, record)
    page = build_report(plan.output)
    next_command = shlex.join(["python", "inference.py", "--model", str(plan.output), "--data", data])
    if floor := record.get("floor"):
        print(f"{floor['words']}: {floor['value']:.4f}")
    print(
        f"{describe(record['folds'], own.removeprefix('val_'))}\ndone. {plan.count} folds in "
        f"{plan.output}\npage: {page}\nnext: {next_command}"
    )
    return 0


def _floor(held: Mapping[int, Held]) -> dict[str, Any]:
    """Return the mean score of the folds' linear probes for run.json; {} unless every fold has one."""
    floors = [one.record.values.get("floor") for one in held.values()]
    if not all(floors):
        return {}
    values, seconds = [one["value"] for one in floors], sum(one["seconds"] for one in floors)
    return {
        "floor": {
            "value": mean(values),
            "seconds": seconds,
            "words": f"{floors[0]['words']}, mean of the folds",
        }
    }


def _pseudo(held: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the `pseudo_labels` entry of run.json: the number of test images that trained, in each fold; {}
    where there are none.
    """
    found = [one.record.values.get("pseudo_labels") or {} for one in held.values()]
    if not any(found):
        return {}
    first = next(filter(None, found))
    shared = {key: first[key] for key in ("source", "threshold", "of") if key in first}
    return {"pseudo_labels": shared | {"rows": ", ".join(str(one.get("rows", 0)) for one in found)}}


def _corrected(competition: Competition, target: Target, metric: str, oof: Predictions) -> dict[str, Any]:
    """Return the `corrections` entry of run.json: corrected rows of all folds, and the out-of-fold score with
    them.

    {} where there are no corrections.
    """
    corrections = competition.corrections
    if not corrections:
        return {}
    rows = list({row.id: row for row in competition.train}.values())
    row_of = {row.id: row for row in rows}
    scores = corrected_score(corrections, target, metric, [row_of[row_id] for row_id in oof.ids], oof.values)
    return {"corrections": corrections.record(rows, rows) | {"scores": scores}}


def decide(
    target: Target, metric: str, truth: np.ndarray, values: np.ndarray, parts: np.ndarray
) -> list[dict[str, Any]]:
    """Return the `decisions` entries of run.json: each decision that serves the metric, with its nested gain.

    The best one is marked as used if its gain is more than chance.
    """
    judged = judge(target, metric, truth, values, parts)
    chosen = [number == 0 and one.used for number, one in enumerate(judged)]
    for one, used in zip(judged, chosen, strict=True):
        print(f"  {one.describe(metric, used)}")
    return [one.record(used) for one, used in zip(judged, chosen, strict=True)]


def describe(folds: dict[str, Any], metric: str) -> str:
    """Return one line: the score of all out-of-fold rows, with mean and standard deviation over folds."""
    line = f"out-of-fold {metric} {folds['scores'][metric]:.4f} on {folds['rows']:,} rows"
    if folds.get("mean") is not None:
        line += f"; over {folds['count']} folds {folds['mean']:.4f}" + (
            f" ± {folds['deviation']:.4f}" if folds["deviation"] is not None else ""
        )
    return line


def folds_record(
    target: Target,
    metric: str,
    truth: np.ndarray,
    values: np.ndarray,
    folds: np.ndarray,
    plan: Plan,
    held: dict[int, Held],
) -> dict[str, Any]:
    """Return the `folds` entry of run.json: scores of all out-of-fold rows and of each fold.

    It also holds mean and standard deviation of the metric over folds.
    """
    scores = all_metrics(target, truth, values, metric)
    own = metric if metric in scores else "loss"
    each = []
    for number, one in held.items():
        rows = folds == number
        best = one.record.values.get("best") or {}
        found = all_metrics(target, truth[rows], values[rows], metric)
        each.append(
            {
                "fold": number,
                "rows": int(rows.sum()),
                "value": found.get(own),
                "epoch": best.get("epoch"),
                "scores": found,
            }
        )
    known = [line["value"] for line in each if line["value"] is not None]
    return {
        "count": plan.count,
        "rows": len(truth),
        "metric": own,
        "scores": scores,
        "mean": mean(known) if known else None,
        "deviation": stdev(known) if len(known) > 1 else None,
        "each": each,
        "notes": list(plan.notes),
    }


def write_oof(output: Path, oof: Predictions, labels: Sequence[str], folds: Sequence[int]) -> None:
    """Write oof.npy (N, O) float32 and oof.csv (id, fold, label, predicted) with the same rows.

    Each file is written completely or not at all.
    """
    write_array(output / OOF_VALUES, oof.values)
    rows = zip(oof.ids, folds, labels, oof.target.decode(oof.values), strict=True)
    cells = [
        (guarded(row_id), str(fold), guarded(label), guarded(predicted))
        for row_id, fold, label, predicted in rows
    ]
    write_table(output / OOF_TABLE, OOF_COLUMNS, cells)


def write_images(output: Path, competition: Competition, held: dict[int, Held]) -> None:
    """Write val_predictions.csv and val_probs.npy of every image, in the table's order, for the page."""
    import numpy as np

    place = {(row.id, str(row.path)): number for number, row in enumerate(competition.train)}
    cells = [row for one in held.values() for row in one.cells]
    values = np.concatenate([one.values for one in held.values()])
    order = sorted(range(len(cells)), key=lambda row: place.get((cells[row][0], cells[row][1]), len(place)))
    write_table(
        output / VAL_TABLE,
        VAL_COLUMNS,
        [[*map(guarded, cells[row][:4]), cells[row][4]] for row in order],
    )
    write_array(output / VAL_VALUES, values[order])


def _check(plan: Plan, competition: Competition, held: dict[int, Held], recipe: Recipe, command: str) -> None:
    """Raise if a fold validated other rows than folds.csv assigns to it, or knows other classes."""
    problems = []
    known = {row.id for row in competition.train}
    names = competition.target.names
    for number, one in held.items():
        again = fold_command(command, number, plan.output)
        mine, found = set(plan.ids(number)), set(one.ids)
        gone = [] if recipe.data.skip_bad_images else sorted(mine - found)
        if foreign := sorted(found - mine):
            what = "of other data" if not set(foreign) <= known else "that belong to other folds"
            problems.append(
                f"fold {number} validated {counted(len(foreign), 'row')} {what}: {quoted(foreign)}; train it "
                f"again: {again}"
            )
        elif gone:
            problems.append(
                f"fold {number} did not validate {counted(len(gone), 'row')}: {quoted(gone)}; train it "
                f"again: {again}"
            )
        if set(one.record.class_names) != set(names):
            differ = sorted(set(one.record.class_names) ^ set(names))
            problems.append(f"fold {number} knows other classes: {quoted(differ)}")
    raise_all(problems, f"not all folds in {plan.output} were trained on these data:")
