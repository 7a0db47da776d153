"""`make report RUNS='a b'`: compare several runs in one self-contained page, with common plots and tables
side by side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.files import write_text
from pipeline.report import run_facts
from pipeline.report.confusion import MAX_LABELLED_CLASSES, confusion_figure
from pipeline.report.curves import RUN_LOOKS, RunCurve, compared_curves, curve_names, scheduled
from pipeline.report.label_section import label_scores
from pipeline.report.only_right import read_only_right
from pipeline.report.rendering import Drawn, embedded, render
from pipeline.report.run_files import RunFiles, read_run_files
from pipeline.report.validation import confusions
from pipeline.report.words import direction, higher_is_better, measured, metric_name, percent, sentence
from pipeline.targets.classes import per_class

PAGE = "comparison.html"
MARK = '<meta name="comparison"'  # in the head of every comparison page
SHOWN_CLASSES = 12  # classes with the largest differences of F1
Runs = dict[str, RunFiles]  # by their name on the page


def build_comparison(run_dirs: Sequence[Path], output: Path, images: bool = True) -> Path:
    """Write comparison.html and figures/*.png into `output`; returns the page's path.

    Without `images` it shows none of the data. A comparison of the same runs is replaced; one of other runs
    is moved to `output-2` (and so on). If `output` holds anything else, the page is written to `output-2`
    instead.

    Raises:
        UserError: a folder holds no run or is given twice, or there are more runs than distinct colours.
    """
    runs = _read(run_dirs, images)
    signature = hashlib.sha256(
        "\n".join(sorted(str(path.resolve()) for path in run_dirs)).encode()
    ).hexdigest()
    folder = _made_free(output, signature)
    drawn = _curves(runs, folder / "figures")
    results = _side_by_side(runs, _results)
    matrices = _confusions(runs, folder / "figures", drawn)
    page = render(
        "comparison.html.j2",
        signature=signature,
        runs=runs,
        apart=_apart(runs),
        results=[(_result_words(label), cells) for label, cells in results],
        best=[
            _best_cells(label, cells, len({files.target.kind for files in runs.values()}) > 1)
            for label, cells in results
        ],
        curves=_captions(runs, drawn),
        parameters=_side_by_side(runs, _parameters),
        differing=_recipe(runs, same=False),
        same=_recipe(runs, same=True),
        figures=embedded(drawn),
        matrices=[
            (name, f"confusion_{number}") for number, name in enumerate(runs, start=1) if name in matrices
        ],
        wide=any(10 < len(counts) <= MAX_LABELLED_CLASSES for _, counts in matrices.values()),
        classes=_class_f1(_f1_of_classes(runs, matrices)),
        labels=all(files.target.kind == "multilabel" for files in runs.values()),
        shown_classes=SHOWN_CLASSES,
        only=read_only_right(runs),
        rows_are=next(iter(runs.values())).rows_are,
        images=images,
        written=datetime.now().astimezone().isoformat(),
    )
    write_text(folder / PAGE, page)
    return folder / PAGE


def _apart(runs: Runs) -> list[str]:
    """Return sentences on why scores of these runs cannot be compared: other labels, other validation rows or
    solutions.
    """
    reasons = []
    if len({files.target.names for files in runs.values()}) > 1:
        counts = ", ".join(f"{name}: {len(files.target.names):,}" for name, files in runs.items())
        reasons.append(
            f"The runs are about different labels ({counts}), so none of their scores can be compared."
        )
    rows = {
        name: frozenset((row["id"], row["label"]) for row in files.predictions)
        for name, files in runs.items()
    }
    known = {name: ids for name, ids in rows.items() if ids}
    if len(set(known.values())) > 1:
        shared = len(frozenset.intersection(*known.values()))
        counts = ", ".join(f"{name}: {len(ids):,}" for name, ids in known.items())
        reasons.append(
            f"The validation rows differ ({counts}; {shared:,} are in all of them): validation scores may "
            "differ because of the rows."
        )
    graded = {name: files.scores.get("solution") for name, files in runs.items() if files.scores}
    if (
        len(
            {
                (files.scores.get("solution"), files.scores.get("rows"))
                for files in runs.values()
                if files.scores
            }
        )
        > 1
    ):
        reasons.append(
            "The test scores use different solutions: "
            f"{', '.join(f'{name}: {path}' for name, path in graded.items())}."
        )
    return reasons


def _read(run_dirs: Sequence[Path], images: bool) -> Runs:
    places = [path.resolve() for path in run_dirs]
    if twice := sorted(
        {str(path) for path, place in zip(run_dirs, places, strict=True) if places.count(place) > 1}
    ):
        raise UserError(f"{', '.join(twice)}: given twice; a comparison needs different runs")
    if len(run_dirs) > len(RUN_LOOKS):
        raise UserError(
            f"{len(run_dirs)} runs to compare, but one plot has at most {len(RUN_LOOKS)} distinct colours: "
            "compare fewer"
        )
    names = [place.name for place in places]
    return {
        name if names.count(name) == 1 else str(path): read_run_files(path, images)
        for path, name in zip(run_dirs, names, strict=True)
    }


def _made_free(output: Path, signature: str) -> Path:
    """Return `output`, after moving a comparison of other runs away; if it holds other files, `output-2` (and
    so on).
    """
    if not output.exists() or (output.is_dir() and _replaceable(output, signature)):
        return output
    numbered = (output.with_name(f"{output.name}-{number}") for number in count(2))
    if not (output.is_dir() and MARK in _page_text(output)):
        return next(
            place
            for place in numbered
            if not place.exists() or (place.is_dir() and _replaceable(place, signature))
        )
    beside = list(takewhile(Path.exists, numbered))
    aside = output.with_name(f"{output.name}-{len(beside) + 2}")
    same = next((place for place in beside if place.is_dir() and signature in _page_text(place)), None)
    output.rename(aside)
    print(f"the comparison of other runs in {output} was moved to {same or aside}", flush=True)
    if same:  # swap the two folders
        same.rename(output)
        aside.rename(same)
    return output


def _replaceable(folder: Path, signature: str) -> bool:
    return not any(folder.iterdir()) or signature in _page_text(folder)


def _page_text(folder: Path) -> str:
    page = folder / PAGE
    return page.read_text(encoding="utf-8", errors="replace") if page.is_file() else ""


def _curves(runs: Runs, folder: Path) -> Drawn:
    """Draw the training score, the loss, the competition's metric and the learning rate of all runs."""
    drawn: Drawn = {}
    for name in curve_names(list(runs.values())):
        curves = []
        for run, files in runs.items():
            epochs = [row["epoch"] for row in files.metrics]
            for key in ("train", "val"):
                values = [row.get(f"{key}_{name}") for row in files.metrics]
                if any(value is not None for value in values):
                    curves.append(RunCurve(run, epochs, values, dashed=key == "train"))
        if curves:
            path = folder / f"{name}.png"
            compared_curves(path, curves, name)
            drawn[name] = path, f"{sentence(metric_name(name))} of {_listed(runs)} over the epochs."
    rates = []
    for run, files in runs.items():
        steps, heights = scheduled(files.schedule)
        if steps:
            rates.append(
                RunCurve(
                    run, [(step + 1) / max(1, files.schedule["steps_per_epoch"]) for step in steps], heights
                )
            )
    if rates:
        compared_curves(folder / "learning_rate.png", rates, "lr")
        drawn["learning_rate"] = (
            folder / "learning_rate.png",
            f"Learning rate of {_listed(runs)} over the epochs.",
        )
    return drawn


def _listed(runs: Runs) -> str:
    return ", ".join(runs)


def _confusions(runs: Runs, folder: Path, drawn: Drawn) -> dict[str, tuple[list[str], np.ndarray]]:
    """Return class names and (C, C) counts of each run with validation predictions; adds their figures to
    `drawn`.
    """
    matrices = {}
    for number, (run, files) in enumerate(runs.items(), start=1):
        names, counts = confusions(files)
        if counts is None:
            continue
        path = folder / f"confusion_{number}.png"
        confusion_figure(path, counts, names)
        drawn[path.stem] = (
            path,
            f"Confusion matrix of {run}: {int(np.trace(counts)):,} of {int(counts.sum()):,} {files.checked} "
            f"{files.rows_are} are right.",
        )
        matrices[run] = names, counts
    return matrices


def _f1_of_classes(
    runs: Runs, matrices: dict[str, tuple[list[str], np.ndarray]]
) -> dict[str, dict[str, float]]:
    """Return the F1 of each class or label by run, for runs with validation predictions."""
    scores = {
        run: dict(zip(names, map(float, per_class(counts)["f1"]), strict=True))
        for run, (names, counts) in matrices.items()
    }
    for run, files in runs.items():
        if files.target.kind == "multilabel" and files.predictions:
            scores[run] = {row["name"]: row["f1"] or 0.0 for row in label_scores(files)}
    return scores


def _class_f1(scores: dict[str, dict[str, float]]) -> dict[str, Any] | None:
    """Return the F1 of each class in each run, largest differences first; None if the runs have different
    classes.
    """
    columns = list(scores.values())
    if len(columns) < 2 or any(set(column) != set(columns[0]) for column in columns):
        return None
    rows = [(name, [column[name] for column in columns]) for name in columns[0]]
    return {"runs": list(scores), "rows": sorted(rows, key=lambda row: min(row[1]) - max(row[1]))}


def _results(files: RunFiles) -> dict[str, Any]:
    """Return the rows of the results table.

    Rows of metrics have their key (val_loss, test_accuracy) as label, and numbers.
    """
    best = files.best
    rows: dict[str, Any] = (
        {"kept epoch": f"{files.kept_epoch['epoch']} of {len(files.metrics)}"} if files.kept_epoch else {}
    )
    metrics = (
        {key: value for key, value in files.kept_epoch.items() if key.startswith("val_")} if best else {}
    )
    if several := files.record.get("folds") or files.record.get("blend"):  # of all rows; there is no epoch
        metrics = {f"val_{key}": value for key, value in several["scores"].items() if value is not None}
    rows |= {key: metrics[key] for key, _ in run_facts.ordered(metrics, files)}
    tested = {f"test_{key}": value for key, value in files.scores.get("metrics", {}).items()}
    rows |= {key: tested[key] for key, _ in run_facts.ordered(tested, files)}
    counts = files.record.get("counts", {})
    rows |= {
        f"{words} {files.rows_are}": measured(counts[key])
        for key, words in (("train", "training"), ("val", "validation"))
        if counts.get(key)
    }
    return (
        rows
        | {label.lower(): value for label, value in run_facts.speed(files)}
        | {key: str(files.told[key]) for key in ("device", "precision") if files.told.get(key)}
    )


def _is_metric(label: str) -> bool:
    return label.startswith(("val_", "test_"))


def _result_words(label: str) -> str:
    """Return a row's name; for a metric where lower is better, with its direction."""
    if not _is_metric(label):
        return label
    part = "validation" if label.startswith("val_") else "test"
    return f"{part} {metric_name(label)}" + ("" if higher_is_better(label) else f" ({direction(label)})")


def _best_cells(label: str, cells: Sequence[Any], mixed: bool) -> list[bool]:
    """Return which runs are best by a metric; none if all are equal.

    Losses of `mixed` targets cannot be compared.
    """
    if mixed and label.endswith("_loss"):
        return [False] * len(cells)
    known = [cell for cell in cells if isinstance(cell, int | float)] if _is_metric(label) else []
    if len(set(known)) < 2:
        return [False] * len(cells)
    best = max(known) if higher_is_better(label) else min(known)
    return [cell == best for cell in cells]


def _captions(runs: Runs, drawn: Drawn) -> list[tuple[str, str]]:
    """Return the figures over epochs and their captions."""
    losses = {
        run_facts.LOSSES.get(files.target.kind, "mean cross-entropy in nats") for files in runs.values()
    }
    what = {"loss": f"Loss over the epochs: {', '.join(sorted(losses))}; validation solid, training dashed."}
    what["learning_rate"] = "Learning rate over the epochs, from the recipes."

    def way(name: str) -> str:
        return "" if "accuracy" in name else f" ({direction(name)})"

    def trained(name: str) -> bool:
        return any(f"train_{name}" in row for files in runs.values() for row in files.metrics)

    return [
        (
            name,
            what.get(name)
            or f"{sentence(metric_name(name))} over the epochs{way(name)}: validation "
            f"solid{', training dashed' if trained(name) else ''}.",
        )
        for name in (*curve_names(list(runs.values())), "learning_rate")
        if name in drawn
    ]


def _parameters(files: RunFiles) -> dict[str, str]:
    return {
        row["label"]: f"{row['count']:,} ({percent(row['share'])})" for row in run_facts.parameters(files)
    }


def _side_by_side(runs: Runs, rows_of: Callable[[RunFiles], dict[str, Any]]) -> list[tuple[str, list[Any]]]:
    """Return the rows of one table, one column per run; None if a run lacks a row."""
    columns = [rows_of(files) for files in runs.values()]
    return [
        (label, [column.get(label) for column in columns])
        for label in dict.fromkeys(key for column in columns for key in column)
    ]


def _recipe(runs: Runs, same: bool) -> list[tuple[str, list[Any]]]:
    """Return the settings that are equal in all runs, or those that differ."""
    rows = _side_by_side(runs, lambda files: dict(run_facts.flat(files.told.get("recipe", {}))))
    return [(key, values) for key, values in rows if all(value == values[0] for value in values) == same]
