"""Count images per class, grade or label, and labels that occur together; describe numbers, and questions and
answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.competition.rows import Competition, Row
from pipeline.look.drawing import together_figure
from pipeline.look.section import Figure, Grid, Section
from pipeline.report.charts import MAX_BARS, class_counts_figure, number_counts_figure
from pipeline.report.words import brief
from pipeline.targets.measures import histograms
from pipeline.targets.target import Target
from pipeline.wording import counted

MAX_NUMBERS = 4  # number columns with a histogram
MAX_TOGETHER = 24  # labels in the figure of co-occurrence: the most frequent ones
MAX_PAIRS = 30
LOG_RATIO = 30  # ratio of the largest to the smallest class from which the scale is logarithmic
NOUNS = {"multilabel": ("label", "labels"), "ordinal": ("grade", "grades")}


def label_section(competition: Competition, figures: Path) -> Section:
    """Return the section on labels, over all rows; figures are drawn into the folder `figures`."""
    if competition.task == "vqa":
        return _questions(competition.train)
    target, rows = competition.target, _one_an_id(competition.train)
    assert target is not None  # training rows have labels
    if target.kind == "continuous":
        return _numbers(target, rows, figures)
    return _classes(target, rows, figures)


def _one_an_id(rows: Sequence[Row]) -> list[Row]:
    """Return one row per id: a label belongs to an id, which may have several images."""
    return list({row.id: row for row in rows}.values())


def _classes(target: Target, rows: Sequence[Row], figures: Path) -> Section:
    noun = NOUNS.get(target.kind, ("class", "classes"))
    labels = [row.label or "" for row in rows]
    counts = target.counts(labels)
    section = Section(f"Images of each {noun[0]}")
    if not counts:
        return section
    order = list(counts) if target.kind == "ordinal" else sorted(counts, key=lambda name: -counts[name])
    held = sorted(count for count in counts.values() if count)
    most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
    section.says.append(
        f"{counted(len(rows), 'labelled id')}, {counted(len(counts), *noun)}: from {counts[least]:,} "
        f"({least}) to {counts[most]:,} ({most}), median {float(np.median(list(counts.values()))):g}."
    )
    if target.kind in ("multiclass", "ordinal") and len(counts) > 10:
        tenth = sum(sorted(counts.values(), reverse=True)[: -(-len(counts) // 10)])
        section.says.append(
            f"The largest tenth of the {noun[1]} holds {tenth / max(len(rows), 1):.0%} of these ids."
        )
    logarithmic = bool(held) and held[-1] >= LOG_RATIO * held[0]
    path = figures / "class_counts.png"
    class_counts_figure(
        path,
        list(counts),
        list(counts.values()),
        noun[1],
        ordered=target.kind == "ordinal",
        logarithmic=logarithmic,
    )
    caption = (
        "Training images of each "
        f"{noun[0]}{', in the order of the grades' if target.kind == 'ordinal' else ', most first'}."
    )
    if logarithmic:
        caption += (
            f" The scale is logarithmic: the largest {noun[0]} has {held[-1] / held[0]:.0f} times as "
            "many as the smallest."
        )
    section.figures.append(Figure(path, f"Bars: {caption}", caption))
    shares = [(name, counts[name], f"{counts[name] / len(rows):.2%}") for name in order]
    named = len(counts) <= MAX_BARS  # then the figure shows the same
    section.grids.append(
        Grid(f"Every {noun[0]}", (noun[0], "images", "share"), shares, open=0 if named else 20)
    )
    if target.kind == "multilabel":
        _together(target, labels, section, figures)
    return section


def _together(target: Target, labels: Sequence[str], section: Section, figures: Path) -> None:
    """Describe co-occurrence: labels per image, pairs of labels, and a figure of the most frequent labels."""
    encoded = target.encode(labels)
    held = encoded.sum(axis=1).astype(int)
    section.says.append(
        f"An image has {held.mean():.2f} labels on average, {held.max()} at most; "
        f"{counted(int((held == 0).sum()), 'image')} {'has' if (held == 0).sum() == 1 else 'have'} none."
    )
    together = (encoded.T @ encoded).astype(np.int64)  # (L, L): the diagonal counts the label itself
    totals = np.diag(together)
    first, second = np.triu_indices(len(totals), 1)
    chance = totals[first] * totals[second] / max(len(labels), 1)
    order = np.argsort(-together[first, second], kind="stable")[:MAX_PAIRS]
    rows = [
        (
            target.names[first[at]],
            target.names[second[at]],
            int(together[first[at], second[at]]),
            f"{_ratio(together[first[at], second[at]], chance[at])}",
        )
        for at in order
        if together[first[at], second[at]]
    ]
    if rows:
        section.grids.append(
            Grid(
                "Labels that occur together",
                ("label", "with", "images", "times chance"),
                rows,
                open=12,
                texts=2,
            )
        )
    never = int(((together[first, second] == 0) & (chance >= 5)).sum())
    if never:
        section.says.append(
            f"{counted(never, 'pair')} of labels never occur together, though chance alone would give five "
            "images or more."
        )
    shown = np.argsort(-totals, kind="stable")[:MAX_TOGETHER]
    shown = shown[totals[shown] > 0]
    if len(shown) > 2:
        path = figures / "together.png"
        share = together[np.ix_(shown, shown)] / totals[shown][:, None]
        together_figure(path, share, [target.names[number] for number in shown])
        says = "Of the images with the label of a row, the percentage that also have the label of a column"
        section.figures.append(
            Figure(path, f"Matrix: {says}.", f"{says}; the {len(shown)} most frequent labels.", "wide large")
        )


def _ratio(count: int, chance: float) -> str:
    return f"{count / chance:.1f}" if chance else "–"


def _numbers(target: Target, rows: Sequence[Row], figures: Path) -> Section:
    section = Section("The numbers" if len(target.names) > 1 else f"Distribution of {target.names[0]}")
    values = target.encode([row.label or "" for row in rows]).astype(np.float64)
    quantiles = np.nanpercentile(values, [0, 5, 50, 95, 100], axis=0)
    grid: list[tuple[Any, ...]] = []
    for number, name in enumerate(target.names):
        column = values[~np.isnan(values[:, number]), number]
        grid.append(
            (
                name,
                *map(brief, quantiles[:, number]),
                brief(column.mean()),
                brief(column.std()),
                len(np.unique(column)),
            )
        )
    heads = ("number", "least", "5 %", "median", "95 %", "largest", "mean", "deviation", "different values")
    section.says.append(
        f"{counted(len(rows), 'labelled id')}; always answering the mean gives an RMSE of "
        f"{_listed_deviations(target, values)}."
    )
    section.grids.append(Grid("The numbers of training", heads, grid))
    for name, histogram in list(histograms(target.names, values).items())[:MAX_NUMBERS]:
        path = figures / f"numbers_{target.names.index(name)}.png"
        number_counts_figure(path, histogram["edges"], histogram["counts"], name)
        says = f"Distribution of {name} in the training images."
        section.figures.append(Figure(path, f"Histogram: {says}", says))
    return section


def _listed_deviations(target: Target, values: np.ndarray) -> str:
    deviations = np.nanstd(values, axis=0)
    if len(deviations) == 1:
        return brief(float(deviations[0]))
    shown = [f"{brief(float(one))} ({name})" for name, one in zip(target.names, deviations, strict=True)]
    return ", ".join(shown[:MAX_NUMBERS]) + (" and so on" if len(shown) > MAX_NUMBERS else "")


def _questions(rows: Sequence[Row]) -> Section:
    """Return the section on questions.

    They have no classes yet: the most frequent answers become classes (`data.top_answers`).
    """
    section = Section("Questions and answers")
    answers = Counter(row.label or "" for row in rows)
    images = Counter(row.path for row in rows)
    section.says.append(
        f"{counted(len(rows), 'question')} about {counted(len(images), 'image')} "
        f"({len(rows) / max(len(images), 1):.1f} an image), {counted(len(answers), 'different answer')}; "
        f"always answering {answers.most_common(1)[0][0]!r} is right for "
        f"{answers.most_common(1)[0][1] / max(len(rows), 1):.1%}."
    )
    thousand = sum(count for _, count in answers.most_common(1000))
    section.says.append(
        f"The 1,000 most frequent answers cover {thousand / max(len(rows), 1):.1%} of the questions."
    )
    shares = [(answer, count, f"{count / len(rows):.2%}") for answer, count in answers.most_common(60)]
    section.grids.append(Grid("The most frequent answers", ("answer", "questions", "share"), shares))
    begins = Counter(" ".join((row.question or "").lower().split()[:2]) for row in rows)
    section.grids.append(Grid("How questions begin", ("words", "questions"), begins.most_common(30), open=12))
    return section
