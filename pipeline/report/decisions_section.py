"""What the page says of decisions: each that was tried on rows that the models did not see, what it gained there, and which is used."""

from __future__ import annotations

from typing import Any

from pipeline.report.run_files import RunFiles
from pipeline.report.words import metric_name, metric_value

SETS = {
    "thresholds": "from which probability a label is written",
    "offsets": "what is added to the logarithm of each class's probability",
    "cuts": "where the expected grade passes from one grade to the next",
    "temperature": "what logarithms of probabilities are divided by",
    "count": "how many labels an image is given at least",
}


def read_decisions(files: RunFiles) -> dict[str, Any] | None:
    """`rows` of the decisions that run.json holds, `numbers` of the one that is used, by name, and the `metric` in words.

    None where the run judged none: an ordinary run, or one of an earlier version.
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
    """The numbers of a decision with what each is for."""
    kind, numbers, names = line["kind"], line["numbers"], files.target.output_names
    if kind == "cuts":
        return [(f"{low} | {high}", number) for low, high, number in zip(names, names[1:], numbers, strict=False)]
    if len(numbers) == len(names):
        return list(zip(names, numbers, strict=True))
    return [(kind, number) for number in numbers]
