"""Page section for question answering: examples with images, baselines, and the most frequent answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.report.figures import TRAINING, drawable, new_axes
from pipeline.report.rendering import Drawn
from pipeline.report.run_files import RunFiles
from pipeline.report.thumbnails import kept_images
from pipeline.run_names import FLOORS
from pipeline.shapes import NUMBER, Each, read_shaped

SHOWN_EACH, SHOWN_ANSWERS, SHOWN_BARS = 9, 3, 20


def read_questions(files: RunFiles, drawn: Drawn) -> dict[str, Any] | None:
    """Return `right` and `wrong` examples and baselines (`floors`); None for a run without questions.

    The figure of the answers is added to `drawn`.
    """
    rows = files.predictions
    if not rows or "question" not in rows[0]:
        return None
    counts = files.record.get("counts", {}).get("train_per_class") or {}
    if counts:
        path = files.path / "figures" / "answers.png"
        shown = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:SHOWN_BARS]
        answers_figure(path, shown)
        share = sum(count for _, count in shown) / sum(counts.values())
        drawn["answers"] = (
            path,
            f"The {len(shown)} most frequent training answers, from {shown[0][0]}; together {share:.0%} of "
            "the questions.",
        )
    floors = files.path / FLOORS
    names = files.record.get("class_names", [])
    probs = files.values if names else None
    chosen = {"right": _surest(rows, True), "wrong": _surest(rows, False)}
    shown = [number for numbers in chosen.values() for number in numbers]
    images = dict(zip(shown, kept_images(files, [rows[number] for number in shown], "question"), strict=True))
    examples = {
        name: [
            _example(rows[number], probs[number] if probs is not None else None, names, images[number])
            for number in numbers
        ]
        for name, numbers in chosen.items()
    }
    return {
        "floors": read_shaped(floors, Each(NUMBER), "remove it, then try again") if floors.exists() else {},
        **examples,
    }


def answers_figure(path: Path, counts: Sequence[tuple[str, int]]) -> None:
    """Draw bars with the number of training questions per answer, in the given order."""
    with new_axes(path, (6.4, 0.6 + 0.24 * len(counts))) as axes:
        places = range(len(counts))
        axes.barh(places, [count for _, count in counts], color=TRAINING, height=0.72)
        axes.set_yticks(places, [drawable(answer, number) for number, (answer, _) in enumerate(counts)])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("training questions")


def _surest(rows: Sequence[dict[str, str]], right: bool) -> list[int]:
    """Return indices of the most confident right or wrong rows; each true answer comes once before any comes
    twice.
    """
    chosen = [number for number, row in enumerate(rows) if (row["label"] == row["predicted"]) is right]
    chosen.sort(key=lambda number: -float(rows[number]["confidence"]))
    seen: dict[str, int] = {}
    rounds = {}
    for number in chosen:
        label = rows[number]["label"]
        rounds[number] = seen[label] = seen.get(label, -1) + 1
    return sorted(chosen, key=lambda number: rounds[number])[:SHOWN_EACH]


def _example(
    row: dict[str, str], probs: np.ndarray | None, names: Sequence[str], image: str | None
) -> dict[str, Any]:
    answers = [(row["predicted"], float(row["confidence"]))]
    if probs is not None:
        answers = [
            (names[index], float(probs[index])) for index in np.argsort(-probs, kind="stable")[:SHOWN_ANSWERS]
        ]
    return {"question": row["question"], "label": row["label"], "answers": answers, "thumbnail": image}
