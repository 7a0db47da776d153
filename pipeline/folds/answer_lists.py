"""Why two runs that answer questions know different answers, and the command that makes the lists equal."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from pipeline.folds.plan import without_place
from pipeline.run import Run
from pipeline.unfinished import words_of
from pipeline.wording import counted, quoted

# Of `data`: what decides the list of answers, beside the seed and the questions
DECIDING = ("image_fraction", "top_answers", "other_answers", "val_fraction", "split_by")
# Of other_answers: they are counted before the split, so neither split nor seed matters
BEFORE_SPLIT = "drop"


def answers_differ(run: Run, first: Run) -> str:
    """Return lines on the answers that only one of two runs knows, and the command that trains `run` with the
    answers of `first`.

    The runs know different answers; `target` of both is set.
    """
    mine, other = (list(one.target.names) for one in (run, first) if one.target)
    only = [
        f"{counted(len(names), 'answer')} of {len(known):,} only in {one.path} ({quoted(names)})"
        for one, known, names in (
            (run, mine, [name for name in mine if name not in set(other)]),
            (first, other, [name for name in other if name not in set(mine)]),
        )
        if names
    ]
    return f"{run.path} and {first.path} know different answers: {'; '.join(only)}\n    {_advice(run, first)}"


def _advice(run: Run, first: Run) -> str:
    mine, other = _recipe(run), _recipe(first)
    if not mine or not other:
        return (
            "a release does not say with which settings its answers were chosen: train both with one recipe "
            "and one --seed"
        )
    changed = _differing(mine, other)
    if list(changed) == ["seed"] and _without_seed(mine) == _without_seed(other):
        both = {"data.other_answers": BEFORE_SPLIT}
        return (
            "the seed chooses the training questions, and their answers are counted. Count before the split, "
            f"then it does not matter:\n      {_command(first, both)}\n      {_command(run, both)}"
        )
    if changed:
        there = ", ".join(f"{key} {value}" for key, (value, _) in changed.items())
        here = ", ".join(f"{key} {value}" for key, (_, value) in changed.items())
        wanted = {key: value for key, (_, value) in changed.items()}
        return (
            f"it was trained with {there}; {first.path} with {here}. Train it with the same:\n"
            f"      {_command(run, wanted)}"
        )
    data = str(first.record.values.get("data") or "") if first.record else ""
    return (
        f"their settings are the same, so the questions were others. Train it on those of {first.path}:\n"
        f"      {_command(run, {}, data)}"
    )


def _recipe(run: Run) -> dict[str, Any]:
    return (run.record.values.get("recipe") if run.record else None) or {}


def _differing(mine: dict[str, Any], other: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return recipe key -> its value in both recipes, for the keys that decide the answers and differ."""
    data = other.get("data") or {}
    keys = DECIDING[:3] if data.get("other_answers") == BEFORE_SPLIT else DECIDING
    found = {f"data.{key}": ((mine.get("data") or {}).get(key), data.get(key)) for key in keys}
    if keys == DECIDING or data.get("image_fraction", 1) != 1:
        found["seed"] = mine.get("seed"), other.get("seed")
    return {key: values for key, values in found.items() if values[0] != values[1]}


def _without_seed(recipe: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in recipe.items() if key not in ("seed", "name")}


def _command(run: Run, changed: dict[str, Any], data: str = "") -> str:
    """Return the command of the run, into another folder, with other values of recipe keys."""
    stored = str(run.record.values.get("command") or "") if run.record else ""
    words = without_place(stored) if words_of(stored) else ["python", "train.py"]
    words += ["--data", data] if data else []
    for key, value in changed.items():
        words += ["--seed", str(value)] if key == "seed" else ["--set", f"{key}={value}"]
    return shlex.join([*words, "--output", str(Path(f"{run.path}-same-answers"))])
