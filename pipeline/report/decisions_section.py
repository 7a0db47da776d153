"""Page section for decisions: each decision rule that was tried, its gain on rows that the models did not
train on, and which is used.
"""

from __future__ import annotations

from typing import Any

from pipeline.report.run_files import RunFiles
from pipeline.report.words import metric_name, metric_value

SETS = {
    "thresholds": "the probability from which a label is predicted",
    "offsets": "a number added to the log-probability of each class",
    "cuts": "the limits between grades for the expected grade",
    "temperature": "a divisor of the log-probabilities",
    "count": "the minimum number of labels per image",
}


def read_decisions(files: RunFiles) -> dict[str, Any] | None:
    """Return `rows` of the decisions in run.json, the `numbers` of the one that is used, and the name of the
    `metric`.

    None if the run judged none: a single run, or one of an earlier version.
    """
    judged = files.record.get("decisions")
    if judged is None:
        return None
    name = files.metric.name

    def shown(value: float) -> str:
        return "–" if value is None else metric_value(name, value)

    rows = [
        {
            "kind": line["kind"],
            "sets": SETS.get(line["kind"], ""),
            "before": shown(line["before"]),
            "after": shown(line["after"]),
            "gain": f"{line['gain']:+.4f} ± {line['error']:.4f}",
            "used": bool(line["used"]),
            "why_not": line.get("why_not", "within chance"),
        }
        for line in judged
    ]
    used = next((line for line in judged if line["used"]), None)
    return {
        "metric": metric_name(name),
        "rows": rows,
        "used": used["kind"] if used else None,
        "numbers": _named(used, files) if used else [],
        "temperature": files.record.get("temperature"),
    }


def _named(line: dict[str, Any], files: RunFiles) -> list[tuple[str, float]]:
    """Return the numbers of a decision, each with its name."""
    kind, numbers, names = line["kind"], line["numbers"], files.target.output_names
    if kind == "cuts":
        return [
            (f"{low} | {high}", number) for low, high, number in zip(names, names[1:], numbers, strict=False)
        ]
    if len(numbers) == len(names):
        return list(zip(names, numbers, strict=True))
    return [(kind, number) for number in numbers]
