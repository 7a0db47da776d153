"""`make blend`: find weights of several runs on rows that none of their models saw, and write a blend that
predicts like a run.

python -m pipeline.folds.blend --runs runs/a runs/b runs/folds              # runs/blend
python -m pipeline.folds.blend --runs runs/folds runs/other --output runs/both
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError, run_command
from pipeline.files import set_aside, write_array, write_json
from pipeline.folds.assembly import decide, write_oof
from pipeline.folds.members import Member, check_alike, common_rows, read_member, stacked
from pipeline.folds.prior import calibration
from pipeline.folds.team import in_order
from pipeline.folds.weights import WAYS, Choice, Scale, nested, select, unseen, ways
from pipeline.lock import holding_folder
from pipeline.predictions import Predictions
from pipeline.run import environment, now, run_entries
from pipeline.run_names import RECORD, VAL_COLUMNS, VAL_TABLE, VAL_VALUES
from pipeline.run_record import FORMAT
from pipeline.tables import guarded, load_table, restored, write_table
from pipeline.targets.metrics import all_metrics, find_metric, why_undefined
from pipeline.targets.target import Target

if TYPE_CHECKING:
    import numpy as np

PARTS = 5
# A part is judged by weights that are fitted on the other rows, so no part may hold nearly all of them
LARGEST_PART = 0.75


def main(argv: list[str] | None = None) -> int:
    """Find the weights, write the blend, and return the exit code.

    Raises:
        UserError: fewer than two members, members of different competitions, or too few common rows.
    """
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.folds.blend",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--runs",
        type=Path,
        nargs="+",
        required=True,
        metavar="DIR",
        help="runs, folds or blends of one competition",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("runs/blend"), metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="seed of the parts that judge the weights (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    folders = [path.resolve() for path in args.runs]
    if len(folders) < 2 or len(set(folders)) < len(folders):
        raise UserError(
            f"--runs {' '.join(map(str, args.runs))}: a blend needs at least two different runs, each named "
            "once"
        )
    if args.output.resolve() in folders:
        raise UserError(f"--output {args.output} is one of the members: name another folder")
    members = [read_member(path) for path in args.runs]
    target, metric = members[0].record.target, members[0].record.metric
    check_alike(members)
    ids = common_rows(members)
    labels = [members[0].labels[row_id] for row_id in ids]
    truth = target.encode(labels)
    if reason := why_undefined(metric, target, truth):
        raise UserError(
            f"the blend cannot be judged: {reason} (the {len(ids)} rows that all members validated)"
        )
    scale = Scale(target, metric, truth)
    values = stacked(members, ids, target)
    parts = _parts(members, ids, target, labels, args.seed)
    choice, refused, blended = _choose(scale, values, parts, members, args.seed)
    if sum(weight > 0 for weight in choice.weights) < 2:
        best = str(members[choice.weights.index(max(choice.weights))].path)
        print(
            f"no blend is better than {best} alone: nothing is written\nnext: "
            f"{shlex.join(['python', 'inference.py', '--model', best])}"
        )
        return 0
    with holding_folder(args.output):
        if moved := set_aside(run_entries(args.output), args.output / "earlier"):
            print(f"the earlier files of {args.output} are kept in {moved}")
        _write(args, members, choice, refused, Predictions(tuple(ids), blended, target), labels, parts)
    next_command = shlex.join(["python", "inference.py", "--model", str(args.output)])
    print(f"blend in {args.output}\nnext: {next_command}")
    return 0


def _parts(
    members: Sequence[Member], ids: Sequence[str], target: Target, labels: Sequence[str], seed: int
) -> np.ndarray:
    """Return (N,) the part of each row: rows of one part are judged together.

    The parts are the folds of the first member that has folds, so groups stay whole. They are stratified if
    there is none, or if nearly all rows are in one fold (a member is one of the folds alone).
    """
    import numpy as np

    from pipeline.competition.fold_split import Units, make_folds

    for member in members:
        if member.folds:
            names = sorted(set(member.folds.values()))
            parts = np.array([names.index(member.folds[row_id]) for row_id in ids])
            if np.bincount(parts).max() <= LARGEST_PART * len(ids):
                return parts
    return np.array(make_folds(target, labels, Units(tuple(range(len(ids))), 0, ()), PARTS, seed)[0])


def _choose(
    scale: Scale, values: np.ndarray, parts: np.ndarray, members: Sequence[Member], seed: int
) -> tuple[Choice, list[tuple[int, float, float]], np.ndarray]:
    """Return the choice on all rows, the refused members, and (N, O) predictions by choices that did not see
    the rows.

    A blend that scores no more on such rows than the best member alone gives way to that member. Prints every
    score.
    """
    import numpy as np

    sign = 1 if find_metric(scale.metric).higher_is_better else -1
    for member, one in zip(members, values, strict=True):
        print(f"  {sign * scale(one):.4f}  {member.path}")
    by_way = unseen(scale, values, np.arange(len(parts)), parts)
    for way, (score, _) in by_way.items():
        print(f"  {sign * score:.4f}  {way}, on rows that its weights were not fitted on")
    blended = nested(scale, values, parts, seed)
    choice, refused = select(scale, values, np.arange(len(parts)), seed)
    for place, with_it, without in refused:
        print(
            f"  refused: {members[place].path} does not raise {scale.metric} ({sign * with_it:.4f} with it, "
            f"{sign * without:.4f} without)"
        )
    shares = ", ".join(
        f"{member.path} {weight:.3f}"
        for member, weight in zip(members, choice.weights, strict=True)
        if weight
    )
    print(
        f"chosen: {choice.way} ({shares}); {scale.metric} {sign * scale(blended):.4f} on rows that this "
        "choice did not see"
    )
    alone = by_way[WAYS[0]][0]
    if sum(weight > 0 for weight in choice.weights) > 1 and scale(blended) <= alone:
        print(
            f"  the best member alone has {sign * alone:.4f} on such rows: the blend is not better, and one "
            "model is less work, so it is preferred"
        )
        choice = ways(scale, values, np.arange(len(parts)))[0]
    return choice, refused, blended


def _write(
    args: argparse.Namespace,
    members: Sequence[Member],
    choice: Choice,
    refused: Sequence[tuple[int, float, float]],
    blended: Predictions,
    labels: Sequence[str],
    parts: np.ndarray,
) -> None:
    from pipeline.report.page import build_report

    # Of the first member that predicts: prior, decision and outputs are in the order of its classes, as are
    # the predictions of the blend
    used = [(member, weight) for member, weight in zip(members, choice.weights, strict=True) if weight]
    lead = used[0][0]
    output, first, target = args.output, lead.record, lead.record.target
    blended = in_order(blended, target)
    truth = target.encode(labels)
    scores = all_metrics(target, truth, blended.values, first.metric)
    write_oof(output, blended, labels, (parts - parts.min() + 1).tolist())
    _write_rows(output, lead, blended, labels)
    decisions = []
    if choice.rule != "ranks":
        decisions = decide(target, first.metric, truth, blended.values, parts)
    flags = [*map(str, args.runs), "--output", str(output)]
    command = shlex.join([*"python -m pipeline.folds.blend --runs".split(), *flags])
    record: dict[str, Any] = {
        "format": FORMAT,
        "kind": "blend",
        "task": first.task,
        "name": " + ".join(member.record.name for member, _ in used),
        "recipe": {"data": first.data_settings},
        "class_names": list(target.names),
        "target": target.record(),
        "metric": {"name": first.metric, "higher_is_better": find_metric(first.metric).higher_is_better},
        "prior": first.prior,
        "members": {os.path.relpath(member.path, output): weight for member, weight in used},
        "blend": {
            "rule": choice.rule,
            "way": choice.way,
            "rows": len(labels),
            "scores": scores,
            "refused": {
                str(members[place].path): {"with": with_it, "without": without}
                for place, with_it, without in refused
            },
        },
        "counts": {"val": len(labels)},
        "best": {"epoch": None, "metric": f"val_{first.metric}", "value": scores[first.metric]},
        **calibration(target, truth, blended.values),
        "decisions": decisions,
        "command": command,
        "data": first.values.get("data"),
        "seed": args.seed,
        **environment(),
        "finished": now(),
    }
    write_json(output / RECORD, record)
    print(f"page: {build_report(output)}")


def _write_rows(output: Path, first: Member, blended: Predictions, labels: Sequence[str]) -> None:
    """Write val_predictions.csv and val_probs.npy for the page: one row per id, with one image of it."""
    table = load_table(first.path / VAL_TABLE)
    image_of = {restored(row[0]): restored(row[1]) for row in reversed(table.cells)}
    target = blended.target
    rows = zip(
        blended.ids, labels, target.decode(blended.values), target.confidence(blended.values), strict=True
    )
    cells = [
        (
            *map(guarded, (row_id, image_of.get(row_id, ""), label, said)),
            "" if sure is None else f"{sure:.6f}",
        )
        for row_id, label, said, sure in rows
    ]
    write_table(output / VAL_TABLE, VAL_COLUMNS, cells)
    write_array(output / VAL_VALUES, blended.values)


if __name__ == "__main__":
    sys.exit(run_command(main))
