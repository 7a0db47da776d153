"""Choose validation images to browse in a page, and what they can be filtered and sorted by.

An image has tokens to filter by (`true`: its class) and numbers to sort by (`loss`). The page's script uses
only these. Without JavaScript the images are in one collapsed list.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.files import human_size
from pipeline.report.confusion import MAX_LABELLED_CLASSES
from pipeline.report.run_files import RunFiles
from pipeline.report.thumbnails import kept_images
from pipeline.report.validation import confusions, decided
from pipeline.report.words import brief, percent
from pipeline.wording import counted

# per page: what a browser can show at once, and what an e-mail can hold
MAX_ITEMS, MAX_BYTES = 1200, 6_000_000
RIGHT_SHARE = 0.25  # share of correct images, if there are enough mistakes
STRIPS, STRIP_IMAGES = 10, 8
RANGE_PARTS = 6  # ranges of a number, with about equal counts
MAX_COLUMNS = 8  # number columns that can be chosen
TINY = 1e-12


@dataclass
class Item:
    """One image. `tokens`: by name, separated by spaces.

    `numbers`: by name, a number, or `key:number` for each key.

    `title` and `text` are shown below it.
    """

    row: int
    title: str
    text: str
    tokens: dict[str, str]
    numbers: dict[str, str] = field(default_factory=dict)
    wrong: bool = False
    order: float = 0.0  # sort key, highest (worst) first
    groups: tuple[str, ...] = ("",)  # kinds of mistake; the page takes the worst of each kind first
    file: str = ""
    question: str = ""
    thumbnail: str | None = None


def read_browse(files: RunFiles, budget: int = MAX_BYTES) -> dict[str, Any] | None:
    """Return the section of images to browse; None for an unfinished run, or without validation rows.

    `budget`: maximum bytes of images; 0: images are listed but not shown. The worst mistakes of every kind
    come first.

    Raises:
        UserError: val_predictions.csv holds labels that are not of the run's target.
    """
    if not files.record or not files.predictions:
        return None
    build = {"multilabel": _labels, "continuous": _numbers}.get(files.target.kind, _classes)
    items, section = build(files)
    for item in items:
        row = files.predictions[item.row]
        item.file, item.question = Path(row["path"]).name, row.get("question", "")
        if files.disagreement:
            item.numbers["apart"] = _number(files.disagreement.get(row["id"]))
    chosen = _chosen(items)
    if budget:
        images = kept_images(files, [files.predictions[item.row] for item in chosen], "browse", budget)
        chosen = chosen[: len(images)]
        for item, image in zip(chosen, images, strict=True):
            item.thumbnail = image
    size = sum(len(item.thumbnail or "") for item in chosen)
    if files.disagreement:
        section["sorts"].append(("apart", "disagreement of the folds, most first"))
    return section | {
        "items": chosen,
        "total": len(items),
        "wrong": sum(item.wrong for item in items),
        "size": human_size(size),
        "limit": human_size(budget),
        "strips": _strips(section.pop("pairs", []), chosen),
    }


def _chosen(items: Sequence[Item]) -> list[Item]:
    """Return at most `MAX_ITEMS`: the worst mistakes of each kind in turn, then correct ones of each kind."""
    wrong, right = ([item for item in items if item.wrong is kind] for kind in (True, False))
    room = max(MAX_ITEMS - len(right), round(MAX_ITEMS * (1 - RIGHT_SHARE)))
    taken = _in_turn(wrong)[:room]
    return taken + _in_turn(right)[: MAX_ITEMS - len(taken)]


def _in_turn(items: Sequence[Item]) -> list[Item]:
    """Return the worst item of each group, then the second of each, and so on; an item of several groups
    once.
    """
    groups: dict[str, list[Item]] = {}
    for item in sorted(items, key=lambda item: -item.order):
        for name in item.groups:
            groups.setdefault(name, []).append(item)
    largest_first = sorted(groups.values(), key=len, reverse=True)
    rounds = chain.from_iterable(zip_longest(*largest_first))
    return list({item.row: item for item in rounds if item is not None}.values())


# ---- one class or grade an image ----


def _classes(files: RunFiles) -> tuple[list[Item], dict[str, Any]]:
    rows, names = decided(files), confusions(files)[0]
    place = {name: number for number, name in enumerate(names)}
    loss = _class_losses(files, rows)
    graded = files.target.kind == "ordinal"
    noun = "grade" if graded else "class"
    items = []
    for number, row in enumerate(rows):
        true, predicted, sure = place[row["label"]], place[row["predicted"]], float(row["confidence"])
        wrong = true != predicted
        item = Item(
            number,
            row["label"],
            _verdict(row, wrong),
            {"true": str(true), "said": str(predicted), "is": "wrong" if wrong else "right"},
        )
        item.wrong, item.groups = wrong, (f"{true} {predicted}",)
        item.order = loss[number] if loss is not None else (sure if wrong else 1 - sure)
        item.numbers = {"sure": _number(sure)} | ({"loss": _number(loss[number])} if loss is not None else {})
        if graded:
            item.numbers["off"] = str(abs(true - predicted))
            item.order += len(names) * abs(true - predicted)
        items.append(item)
    sorts = [("loss", "loss, highest first")] if loss is not None else []
    sorts += [("sure", "confidence, highest first"), ("-sure", "confidence, lowest first")]
    sorts = [("off", "grades off, most first"), *sorts] if graded else sorts
    pairs = Counter(
        (row["label"], row["predicted"]) for row in rows if row["label"] != row["predicted"]
    ).most_common(STRIPS)
    support = Counter(row["label"] for row in rows)
    filters = [
        _filter("true", f"True {noun}", names, support),
        _filter("said", f"Predicted {noun}", names, Counter(row["predicted"] for row in rows)),
        _outcomes(("wrong", "mistakes"), ("right", "right ones")),
    ]
    section = {
        "noun": noun,
        "filters": filters,
        "sorts": sorts,
        "matrix": _matrix(files, noun) if len(names) <= MAX_LABELLED_CLASSES else None,
        "pairs": [
            {
                "label": label,
                "predicted": said,
                "count": count,
                "share": count / support[label],
                "set": f"true={place[label]} said={place[said]}",
            }
            for (label, said), count in pairs
        ],
    }
    return items, section


def _class_losses(files: RunFiles, rows: Sequence[dict[str, str]]) -> np.ndarray | None:
    """Return (N,) float64: -log of the probability of the true class; None if probabilities are not
    stored.
    """
    if files.values is None:
        return None
    if files.target.kind == "binary":
        positive = np.asarray(files.values[:, 0], dtype=np.float64)
        given = np.where([row["label"] == files.target.names[1] for row in rows], positive, 1 - positive)
    else:
        place = {name: number for number, name in enumerate(files.target.names)}
        given = np.array(
            [
                files.values[number, place[row["label"]]] if row["label"] in place else 0.0
                for number, row in enumerate(rows)
            ]
        )
    return -np.log(np.maximum(given, TINY))


def _verdict(row: dict[str, str], wrong: bool) -> str:
    sure = percent(float(row["confidence"]))
    return f"predicted as {row['predicted']}, {sure} sure" if wrong else f"right, {sure} sure"


def _matrix(files: RunFiles, noun: str) -> dict[str, Any]:
    """Return the confusion matrix as a table whose cells filter: `rows` of (class, cells).

    A cell has its `count`, its `share` of the row and the filter that it `set`s.
    """
    names, counts = confusions(files)
    lines = []
    for true, name in enumerate(names):
        total = int(counts[true].sum())
        cells = [
            {
                "count": int(count),
                "share": count / total if total else 0,
                "set": f"true={true} said={said}",
                "right": true == said,
            }
            for said, count in enumerate(counts[true].tolist())
        ]
        lines.append((name, cells))
    return {"names": names, "rows": lines, "noun": noun}


def _strips(pairs: Sequence[dict[str, Any]], items: Sequence[Item]) -> list[dict[str, Any]]:
    """Return the most confused pairs, each with its images on the page."""
    found = []
    for pair in pairs:
        true, said = (part.split("=")[1] for part in pair["set"].split())
        shown = [
            item
            for item in items
            if item.thumbnail and item.tokens["true"] == true and item.tokens["said"] == said
        ]
        found.append(pair | {"items": shown[:STRIP_IMAGES]})
    return [pair for pair in found if pair["items"]]


# ---- several labels an image ----


def _labels(files: RunFiles) -> tuple[list[Item], dict[str, Any]]:
    target, rows = files.target, files.predictions
    truth, chosen = (target.encode([row[key] for row in rows]) > 0.5 for key in ("label", "predicted"))
    values = None if files.values is None else np.asarray(files.values, dtype=np.float64)
    given = None if values is None else np.where(truth, values, 1 - values)
    items = []
    for number, row in enumerate(rows):
        outcomes = {
            "m": np.flatnonzero(truth[number] & ~chosen[number]),
            "s": np.flatnonzero(chosen[number] & ~truth[number]),
            "f": np.flatnonzero(truth[number] & chosen[number]),
        }
        marks = dict.fromkeys(
            token
            for mark, labels in outcomes.items()
            for label in labels
            for token in (f"{label}", mark, f"{label}{mark}")
        )
        item = Item(
            number,
            _listed(target.names, truth[number]),
            _missed_and_said(target.names, outcomes),
            {"marks": " ".join(marks)},
        )
        item.wrong = bool(len(outcomes["m"]) or len(outcomes["s"]))
        item.groups = tuple(
            f"{label}{mark}" for mark in ("ms" if item.wrong else "f") for label in outcomes[mark]
        ) or ("",)
        item.tokens["is"] = "wrong" if item.wrong else "right"
        sure = float(row["confidence"]) if row["confidence"] else 0.0
        item.numbers["sure"], item.order = _number(sure), sure
        if values is not None:
            item.order = float(-np.log(np.maximum(given[number], TINY)).mean())
            item.numbers["loss"] = _number(item.order)
            labels = np.flatnonzero(truth[number] | chosen[number])
            item.numbers["chance"] = " ".join(f"{label}:{values[number, label]:.4f}" for label in labels)
        items.append(item)
    support = Counter({name: int(truth[:, number].sum()) for number, name in enumerate(target.names)})
    both = ("m", "missed"), ("s", "predicted wrongly"), ("f", "found")
    sorts = []
    if values is not None:
        sorts = [
            ("loss", "loss, highest first"),
            ("chance", "probability of that label, highest first"),
            ("-chance", "probability of that label, lowest first"),
        ]
    sorts += [("sure", "confidence, highest first"), ("-sure", "confidence, lowest first")]
    label = _filter("marks", "Label", target.names, support) | {"key": True}
    filters = [
        label,
        {"name": "marks", "label": "and it is", "options": [("", "any"), *both]},
        _outcomes(("wrong", "with a mistake"), ("right", "all right")),
    ]
    return items, {"noun": "label", "filters": filters, "sorts": sorts, "matrix": None}


def _missed_and_said(names: Sequence[str], outcomes: dict[str, np.ndarray]) -> str:
    parts = [
        f"{word} {', '.join(names[label] for label in outcomes[mark])}"
        for mark, word in (("m", "missed"), ("s", "wrongly predicted"))
        if len(outcomes[mark])
    ]
    return "; ".join(parts) or "every label right"


def _listed(names: Sequence[str], has: np.ndarray) -> str:
    return ", ".join(names[label] for label in np.flatnonzero(has)) or "no label"


# ---- numbers ----


def _numbers(files: RunFiles) -> tuple[list[Item], dict[str, Any]]:
    target, rows = files.target, files.predictions
    names = target.names[:MAX_COLUMNS]
    truth = target.encode([row["label"] for row in rows]).astype(np.float64)[:, : len(names)]
    predicted_values = (
        files.values if files.values is not None else target.encode([row["predicted"] for row in rows])
    )[:, : len(names)]
    errors = np.asarray(predicted_values, dtype=np.float64) - truth
    scale = np.array((target.scale or (1.0,) * len(target.names))[: len(names)])
    scale = np.where(scale > 0, scale, 1.0)
    known = ~np.isnan(truth)  # of several numbers some may be missing
    points = np.linspace(0, 1, RANGE_PARTS + 1)[1:-1]
    cuts = [
        np.unique(np.quantile(column[has], points)) if has.any() else np.zeros(0)
        for column, has in zip(truth.T, known.T, strict=True)
    ]
    parts = np.stack(
        [np.searchsorted(cut, column, side="left") for cut, column in zip(cuts, truth.T, strict=True)], axis=1
    )
    several = len(names) > 1
    items = []
    for number in range(len(rows)):
        columns = np.flatnonzero(known[number]).tolist()
        pairs = [
            f"{f'{names[column]}: ' if several else ''}{brief(float(truth[number, column]))}"
            for column in columns
        ]
        predicted = ", ".join(
            brief(float(truth[number, column] + errors[number, column])) for column in columns
        )
        tokens = " ".join(f"{column} {column}p{parts[number, column]}" for column in columns)
        item = Item(number, ", ".join(pairs), f"predicted {predicted}", {"marks": tokens}, wrong=True)
        item.order = float(np.abs(errors[number] / scale)[columns].mean()) if columns else 0.0
        if known[number, 0]:
            item.groups = (str(parts[number, 0]),)
        item.numbers["error"] = " ".join(f"{column}:{_number(errors[number, column])}" for column in columns)
        items.append(item)
    column = {
        "name": "marks",
        "label": "Number",
        "options": [(str(number), name) for number, name in enumerate(names)],
        "key": True,
    }
    part = {
        "name": "marks",
        "label": "its true value",
        "options": [("", "any"), *(_ranks(parts[known]) if several else _ranges(truth[:, 0], parts[:, 0]))],
    }
    sorts = [
        ("|error", "error, largest first"),
        ("error", "predicted too high, most first"),
        ("-error", "predicted too low, most first"),
        ("-|error", "error, smallest first"),
    ]
    return items, {"noun": "number", "filters": [column, part], "sorts": sorts, "matrix": None}


def _ranks(parts: np.ndarray) -> list[tuple[str, str]]:
    """Return the ranges of several numbers: only their rank, because each number has its own."""
    return [
        (f"p{part}", f"part {part + 1} of {RANGE_PARTS}, from the smallest")
        for part in np.unique(parts).tolist()
    ]


def _ranges(truth: np.ndarray, parts: np.ndarray) -> list[tuple[str, str]]:
    """Return the ranges of a number, with their count of images."""
    found = []
    for part in np.unique(parts).tolist():
        inside = truth[parts == part]
        words = f"{brief(float(inside.min()))} to {brief(float(inside.max()))}"
        found.append((f"p{part}", f"{words} ({counted(len(inside), 'image')})"))
    return found


# ---- filters ----


def _filter(name: str, label: str, names: Sequence[str], counts: Counter[str]) -> dict[str, Any]:
    options = [
        (str(number), f"{text} ({counts[text]:,})") for number, text in enumerate(names) if counts[text]
    ]
    return {"name": name, "label": label, "options": [("", "any"), *options]}


def _outcomes(*kinds: tuple[str, str]) -> dict[str, Any]:
    return {"name": "is", "label": "Show", "options": [("", "all"), *kinds]}


def _number(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.5g}"
