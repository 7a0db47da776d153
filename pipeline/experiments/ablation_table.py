"""Write the tables of a grid from the run folders of its trials: trials.csv, table.csv, table.md and two
figures.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from pipeline.experiments.grids import Grid, GridRow, Trial
from pipeline.experiments.trials import Bench, is_trained, note
from pipeline.files import human_time, write_text
from pipeline.report.run_files import read_run_files

COSTS = ("memory_gb", "seconds", "images_per_second", "trainable", "parameters")
TITLES = {
    "memory_gb": "peak memory (GB)",
    "seconds": "training time",
    "images_per_second": "images/s",
    "trainable": "trainable",
    "parameters": "parameters",
    "f1": "F1",
}


@dataclass(frozen=True)
class Measured:
    """Results of one row: name -> one value per finished trial, in the order of the seeds.

    `failed`: title -> message.
    """

    row: GridRow
    values: dict[str, list[float]]
    failed: dict[str, str]
    trials: int


def write_tables(grid: Grid, bench: Bench, figures: bool) -> list[Path]:
    """Write the results so far. Return the paths. `figures` need matplotlib and a second."""
    rows = [measure(row, grid, bench) for row in grid.rows]
    paths = [bench.output / name for name in ("trials.csv", "table.csv", "table.md")]
    write_text(paths[0], _csv(_trial_lines(grid, bench)))
    write_text(paths[1], _csv(_row_lines(rows, grid)))
    write_text(paths[2], markdown(rows, grid, bench))
    score = score_name(rows, grid)
    for cost in ("memory_gb", "seconds") if figures else ():
        drawn = [row for row in rows if row.values.get(score) and row.values.get(cost)]
        paths += [_figure(bench.output, drawn, score, cost)] if drawn else []
    return paths


def trial_values(trial: Trial, bench: Bench) -> dict[str, float]:
    """Return the measurements of one trial by name; {} if it is not trained yet.

    `val_*` are of the best epoch. `memory_gb` is the peak over all epochs (allocated on a GPU, resident on
    the CPU), `seconds` the time of all epochs with validation but without start-up, `images_per_second` the
    median over epochs; the three are missing if timing.jsonl is. `parameters` includes the adapter.
    """
    folder = bench.folder(trial)
    if not is_trained(folder):
        return {}
    files = read_run_files(folder)
    counts, timing = files.record["counts"]["parameters"], files.timing
    values = {
        name: value
        for name, value in files.kept_epoch.items()
        if name.startswith("val_") and isinstance(value, float)
    }
    values |= {f"test_{name}": value for name, value in files.scores.get("metrics", {}).items()}
    if timing:
        values["memory_gb"] = max(line["peak_memory_bytes"] for line in timing) / 1e9
        values["seconds"] = sum(line["seconds"] for line in timing)
        values["images_per_second"] = median(line["images_per_second"] for line in timing)
    return values | {"trainable": counts["trainable"], "parameters": counts["model"] + counts["adapter"]}


def measure(row: GridRow, grid: Grid, bench: Bench) -> Measured:
    """Return the row's values over its finished trials."""
    trials = [trial for trial in grid.trials if trial.row == row.name]
    values: dict[str, list[float]] = {}
    for trial in trials:
        for name, value in trial_values(trial, bench).items():
            values.setdefault(name, []).append(value)
    failed = {
        trial.title: message for trial in trials if (message := note(bench.folder(trial)).get("failed"))
    }
    return Measured(row, values, failed, len(trials))


def score_name(rows: Sequence[Measured], grid: Grid) -> str:
    """Return the column for comparing rows: the grid's first metric on test images if known, else on
    validation rows.
    """
    test = f"test_{grid.metrics[0]}"
    return test if any(test in row.values for row in rows) else f"val_{grid.metrics[0]}"


def summary(grid: Grid, bench: Bench, trial: Trial | None = None) -> str:
    """Return one line for `trial`, or the table as aligned text."""
    rows = [measure(row, grid, bench) for row in grid.rows]
    score = score_name(rows, grid)
    if trial is not None:
        values = trial_values(trial, bench)
        if score in values:
            took = f" in {human_time(values['seconds'])} of training" if "seconds" in values else ""
            return f"{_title(score)} {values[score]:.4f}{took}"
        return "no score"
    cells = [
        (row.row.name, _spread(row.values.get(score, [])), _cell("seconds", row.values.get("seconds", [])))
        for row in rows
    ]
    cells.insert(0, ("", _title(score), "training time"))
    widths = [max(len(line[column]) for line in cells) for column in range(3)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def markdown(rows: Sequence[Measured], grid: Grid, bench: Bench) -> str:
    """Return the table for a README or a report, with the conditions of the measurement."""
    scores = [name for name in _score_columns(grid) if any(name in row.values for row in rows)]
    reported = any(_reported(row.row) for row in rows)
    head = [
        grid.name,
        *map(_title, scores),
        *(TITLES[name] for name in COSTS),
        *(["reported"] if reported else []),
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [row.row.name, *(_spread(row.values.get(name, [])) for name in scores)]
        cells += [_cell(name, row.values.get(name, [])) for name in COSTS]
        cells += [_reported(row.row) or "–"] if reported else []
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    notes = [f"- {title}: {message}" for row in rows for title, message in row.failed.items()]
    return "\n".join(
        [*lines, "", *_conditions(grid, bench), *(["", "Failed trials:", *notes] if notes else []), ""]
    )


def _conditions(grid: Grid, bench: Bench) -> list[str]:
    trained = [bench.folder(trial) for trial in grid.trials if is_trained(bench.folder(trial))]
    seeds = ", ".join(str(seed) for seed in dict.fromkeys(trial.seed for trial in grid.trials))
    lines = [
        f"Mean ± standard deviation (number of seeds); seeds {seeds}, each with its own validation split; "
        "val: best epoch."
    ]
    backbones = {Path(trial.recipe.backbone).name for trial in grid.trials}
    if trained:
        record = read_run_files(trained[0]).record
        counts, versions = record["counts"], record["versions"]
        lines.append(
            f"{counts['train']} training and {counts['val']} validation images of "
            f"{bench.data.resolve().name}, "
            f"{f'backbone {backbones.pop()}, ' if len(backbones) == 1 else ''}{record['device']}, "
            f"{record['precision']}, torch {versions['torch']}, transformers {versions['transformers']}."
        )
    if any(_reported(row) for row in grid.rows):
        lines.append("Reported: by the source of the row, with its own backbone, data and machine.")
    return lines


def _score_columns(grid: Grid) -> list[str]:
    return [f"{part}_{metric}" for part in ("test", "val") for metric in grid.metrics]


def _row_lines(rows: Sequence[Measured], grid: Grid) -> list[dict[str, Any]]:
    lines = []
    for row in rows:
        line: dict[str, Any] = {
            "row": row.row.name,
            "trials": row.trials,
            "finished": len(row.values.get("parameters", [])),
        }
        for name in (*_score_columns(grid), *COSTS):
            values = row.values.get(name, [])
            line[name] = mean(values) if values else ""
            line[f"{name}_sd"] = stdev(values) if len(values) > 1 else ""
        line |= {
            f"reported_{name}": "" if value is None else value
            for name, value in row.row.reported.model_dump().items()
        }
        lines.append(
            line | {"failed": "; ".join(f"{title}: {message}" for title, message in row.failed.items())}
        )
    return lines


def _trial_lines(grid: Grid, bench: Bench) -> list[dict[str, Any]]:
    values = [trial_values(trial, bench) for trial in grid.trials]
    names = list(dict.fromkeys(name for measured in values for name in measured))
    return [
        {"row": trial.row, "seed": trial.seed, "folder": trial.folder_name}
        | {name: measured.get(name, "") for name in names}
        | {"failed": note(bench.folder(trial)).get("failed", "")}
        for trial, measured in zip(grid.trials, values, strict=True)
    ]


def _csv(lines: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, lines[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _title(name: str) -> str:
    return name.replace("_", " ").replace("f1", "F1")


def _spread(values: Sequence[float]) -> str:
    """Return `0.6523 ± 0.0121 (3)`; a dash for no values."""
    if not values:
        return "–"
    return (
        f"{mean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "") + f" ({len(values)})"
    )


def _cell(name: str, values: Sequence[float]) -> str:
    if not values:
        return "–"
    return _amount(name, mean(values))


def _amount(name: str, value: float | str) -> str:
    if isinstance(value, str):
        return value
    if name == "seconds":
        return human_time(value)
    if name in ("trainable", "parameters"):
        return f"{value:,.0f}"
    if name == "memory_gb":
        return f"{value:.2f}"
    if name == "images_per_second":
        return f"{value:.0f}"
    return f"{value:.4g}"


def _reported(row: GridRow) -> str:
    """Return the reported values as text: score 0.915, 12h03m, 3.8 GB."""
    given = {name: value for name, value in row.reported.model_dump().items() if value is not None}
    words = {
        "seconds": "{}",
        "memory_gb": "{} GB",
        "trainable": "{} trainable",
        "parameters": "{} parameters",
        "f1": "F1 {}",
    }
    texts = {name: _amount("" if name == "memory_gb" else name, value) for name, value in given.items()}
    return ", ".join(words.get(name, f"{name} {{}}").format(text) for name, text in texts.items())


def _figure(output: Path, drawn: Sequence[Measured], score: str, cost: str) -> Path:
    """Draw score over cost, one point per row with bars of one standard deviation. Return the path."""
    from matplotlib.ticker import PercentFormatter

    from pipeline.report.figures import INK, TRAINING, VALIDATION, new_axes

    unit, scale = ("minutes of training", 60) if cost == "seconds" else ("peak memory (GB)", 1)
    path = output / f"score_{'time' if cost == 'seconds' else 'memory'}.png"
    markers, colours = "osD^vP*XhE", (TRAINING, VALIDATION, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", INK)
    with new_axes(path, (7.0, 3.8)) as axes:
        for number, row in enumerate(drawn):
            y, x = row.values[score], [value / scale for value in row.values[cost]]
            bars = {"yerr": stdev(y) if len(y) > 1 else None, "xerr": stdev(x) if len(x) > 1 else None}
            look = {
                "color": colours[number % len(colours)],
                "marker": markers[number % 9],
                "markersize": 7,
                "elinewidth": 1,
                "capsize": 2,
            }
            axes.errorbar(mean(x), mean(y), **bars, **look, linestyle="", label=row.row.name)
        highest = (
            max(
                mean(row.values[cost]) + (stdev(row.values[cost]) if len(row.values[cost]) > 1 else 0)
                for row in drawn
            )
            / scale
        )
        axes.set_xlim(0, highest * 1.08 if math.isfinite(highest) and highest > 0 else 1)
        if score.endswith(("accuracy", "f1", "precision", "recall")):
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel(unit)
        axes.set_ylabel(_title(score))
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9.5)
    return path
