"""Compare runs image by image: images that only one run gets right; for numbers, images where one run is
nearest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.report.run_files import RunFiles
from pipeline.report.thumbnails import found_images
from pipeline.report.validation import decided
from pipeline.report.words import brief, percent

SHOWN_EACH = 24
Key = tuple[str, str, str]  # id, file, label: identifies an image in several runs


def read_only_right(runs: Mapping[str, RunFiles]) -> dict[str, Any] | None:
    """Return for each run the images that only it gets right: `each` with `count` and `items`; `both`,
    `none`, `chance`.

    `chance` is for two runs only, and not for ids with several images: these are not independent. None if the
    runs differ in target, share no row, or one has no validation predictions.
    """
    kinds = {files.target.kind for files in runs.values()}
    if (
        len(kinds) > 1
        or len({files.target.names for files in runs.values()}) > 1
        or not all(files.predictions for files in runs.values())
    ):
        return None
    rows = {name: _keyed(files) for name, files in runs.items()}
    shared = [key for key in next(iter(rows.values())) if all(key in found for found in rows.values())]
    if not shared:
        return None
    try:
        if kinds == {"continuous"}:
            return _nearer(runs, rows, shared)
        right = {name: _right(files) for name, files in runs.items()}
    except UserError:  # labels of another target: reported on the pages of the runs
        return None
    table = np.array([[right[name][rows[name][key]] for name in runs] for key in shared])
    alone = {
        name: [key for key, line in zip(shared, table, strict=True) if line[column] and line.sum() == 1]
        for column, name in enumerate(runs)
    }
    counts = [len(keys) for keys in alone.values()]
    are_independent = len({row_id for row_id, *_ in shared}) == len(shared)  # not several images of one id
    return {
        "numbers": False,
        "shared": len(shared),
        "both": int(table.all(axis=1).sum()),
        "none": int((~table.any(axis=1)).sum()),
        "chance": _share(sign_test(*counts))
        if len(counts) == 2 and sum(counts) and are_independent
        else None,
        "each": [
            {"run": name, "count": len(keys), "items": _items(name, runs, rows, keys)}
            for name, keys in alone.items()
        ],
    }


def sign_test(one: int, other: int) -> float:
    """Return the p-value for the number of images that only one of two models gets right.

    It is the probability that two equally good models differ at least this much: McNemar's exact test, a
    two-sided binomial test with probability 0.5.
    """
    total, most = one + other, max(one, other)
    term = tail = math.comb(total, most)
    for count in range(most, total):  # each from the one before: comb() for each would take minutes
        term = term * (total - count) // (count + 1)
        tail += term
    return min(1.0, 2 * tail / 2**total)


def _share(value: float) -> str:
    return percent(value) if value >= 0.0005 else "less than 0.1%"


def _keyed(files: RunFiles) -> dict[Key, int]:
    return {
        (row["id"], Path(row["path"]).name, row["label"]): number
        for number, row in enumerate(files.predictions)
    }


def _right(files: RunFiles) -> list[bool]:
    if files.target.kind == "multilabel":
        truth, chosen = (
            files.target.encode([row[key] for row in files.predictions]) for key in ("label", "predicted")
        )
        return (truth == chosen).all(axis=1).tolist()
    return [row["label"] == row["predicted"] for row in decided(files)]


def _items(
    own: str, runs: Mapping[str, RunFiles], rows: Mapping[str, dict[Key, int]], keys: list[Key]
) -> list[dict[str, Any]]:
    """Return the images of `keys`, those first on which the other runs are most confident (and wrong)."""
    others = [name for name in runs if name != own]
    predicted = {name: decided(runs[name]) for name in runs}

    def sureness(key: Key) -> float:
        return sum(float(predicted[name][rows[name][key]]["confidence"] or 0) for name in others)

    shown = sorted(keys, key=sureness, reverse=True)[:SHOWN_EACH]
    images = _images(own, runs, rows, shown)
    return [
        {
            "title": predicted[own][rows[own][key]]["label"] or "no label",
            "text": "; ".join(
                _prediction(name, predicted[name][rows[name][key]], len(others) > 1) for name in others
            ),
            "file": key[1],
            "thumbnail": image,
        }
        for key, image in zip(shown, images, strict=True)
    ]


def _prediction(name: str, row: dict[str, str], several: bool) -> str:
    sure = f", {percent(float(row['confidence']))} sure" if row["confidence"] else ""
    return f"{name if several else 'the other'}: {row['predicted'] or 'no label'}{sure}"


def _nearer(
    runs: Mapping[str, RunFiles], rows: Mapping[str, dict[Key, int]], shared: list[Key]
) -> dict[str, Any]:
    errors = {}
    for name, files in runs.items():
        order = [rows[name][key] for key in shared]
        truth = files.target.encode([files.predictions[row]["label"] for row in order]).astype(np.float64)
        predicted = files.target.encode([files.predictions[row]["predicted"] for row in order])
        scale = np.array(next(iter(runs.values())).target.scale or 1.0)
        errors[name] = np.nanmean(np.abs((predicted - truth) / np.where(scale > 0, scale, 1)), axis=1)
    each = []
    for name in runs:
        gain = np.min([errors[other] for other in runs if other != name], axis=0) - errors[name]
        keys = [shared[row] for row in np.argsort(-gain, kind="stable").tolist() if gain[row] > 0]
        each.append(
            {"run": name, "count": len(keys), "items": _number_items(name, runs, rows, keys[:SHOWN_EACH])}
        )
    return {"numbers": True, "shared": len(shared), "both": 0, "none": 0, "chance": None, "each": each}


def _number_items(
    own: str, runs: Mapping[str, RunFiles], rows: Mapping[str, dict[Key, int]], keys: list[Key]
) -> list[dict[str, Any]]:
    def words(files: RunFiles, text: str) -> str:
        return ", ".join(brief(float(value)) for value in files.target.encode([text])[0])

    found = []
    for key, image in zip(keys, _images(own, runs, rows, keys), strict=True):
        text = "; ".join(
            f"{name}: {words(files, files.predictions[rows[name][key]]['predicted'])}"
            for name, files in runs.items()
        )
        found.append({"title": words(runs[own], key[2]), "text": text, "file": key[1], "thumbnail": image})
    return found


def _images(
    own: str, runs: Mapping[str, RunFiles], rows: Mapping[str, dict[Key, int]], keys: list[Key]
) -> list[str | None]:
    """Return the images; each run can only show images of its own data folder, so all runs are tried."""
    found: list[str | None] = [None] * len(keys)
    for name in (own, *(other for other in runs if other != own)):
        lost = [place for place, image in enumerate(found) if image is None]
        wanted = [runs[name].predictions[rows[name][keys[place]]] for place in lost]
        for place, image in zip(lost, found_images(runs[name], wanted, "browse"), strict=True):
            found[place] = image
    return found
