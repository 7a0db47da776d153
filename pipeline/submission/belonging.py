"""Check that a model belongs to a competition: compare the model's classes with those of the data folder."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.competition.facts import own_files
from pipeline.competition.folders import look, plain_name
from pipeline.competition.label_columns import LABEL_NAMES
from pipeline.competition.rows import Competition
from pipeline.competition.sources import read_sources
from pipeline.errors import UserError
from pipeline.targets.readings import are_numbers
from pipeline.targets.target import Target
from pipeline.wording import counted, natural_key, nearest, quoted


def check_belongs(target: Target | None, competition: Competition, model: Path | str) -> str | None:
    """Return what was compared, for messages; None if the data folder does not tell its classes.

    Compared are the labels of training images, class columns of the sample submission and, without training
    images, the label column of their table. Label values in a sample are placeholders and not compared.
    `target`: the model's target.

    Raises:
        UserError: the data has labels or columns that the model does not know; the message lists both sides.
    """
    # only frequent answers are classes: other answers prove nothing
    if target is None or competition.task == "vqa":
        return None
    labels = sorted({row.label for row in competition.train if row.label}, key=natural_key)
    if not labels and target.kind != "continuous":
        labels = _labels_of_table(competition)
        # training may have left out rows with rare labels
        if len(unknown_labels(target, labels)) * 2 <= len(labels):
            labels = [label for label in labels if not unknown_labels(target, [label])]
    unknown = unknown_labels(target, labels)
    if unknown:
        shown = (
            f"{counted(len(unknown), 'label')} of {competition.root} are none of them: "
            f"{quoted(unknown)}{nearest(unknown[0], target.names)}"
        )
        if len(unknown) == 1:
            shown = (
                f"a label of {competition.root} is none of them: "
                f"{unknown[0]!r}{nearest(unknown[0], target.names)}"
            )
        raise UserError(
            f"{model} is a model for other labels than {competition.root} has:\n"
            f"  - it knows {counted(len(target.names), 'class', 'classes')}: {quoted(target.names)}\n"
            f"  - {shown}\n"
            "set the model of this competition (--model), set its data folder (--data), or train a model: "
            "python train.py"
        )
    if labels and target.kind != "continuous":  # a regression model knows every number
        return "its labels are the model's"
    form = competition.form
    if form is not None and form.path is not None:
        if form.kind == "rows":
            return "the labels in its rows are the model's"
        if form.kind in ("probabilities", "number") and len(form.value_columns) > 1:
            return "its columns are the model's"
    return None


def _labels_of_table(competition: Competition) -> list[str]:
    """Return the labels in the table of missing training images; empty if its label column is unclear."""
    sources = read_sources(look(competition.root), skip=own_files(competition.root)).of_role("train")
    found = [
        source.table.column(name)
        for source in sources
        for name in source.table.columns
        if plain_name(name) in LABEL_NAMES
    ]
    if len(found) != 1:
        return []
    return sorted({re.sub(r"(?<=\d)\.0$", "", cell.strip()) for cell in found[0]} - {""}, key=natural_key)


def unknown_labels(target: Target, labels: list[str]) -> list[str]:
    """Return the `labels` that the target does not know."""
    if target.kind == "continuous":
        cells = [
            (label, label.split(target.separator) if target.num_outputs > 1 else [label]) for label in labels
        ]
        return [label for label, parts in cells if len(parts) != target.num_outputs or not are_numbers(parts)]
    if target.kind == "multilabel":
        known = set(target.names)
        return list(
            dict.fromkeys(part for label in labels for part in target.parts(label) if part not in known)
        )
    if target.kind == "binary":  # the names of all negative classes are one text, joined by ", "
        return [
            label
            for label in labels
            if label not in target.positive and f", {label}, " not in f", {target.names[0]}, "
        ]
    known = set(target.names)
    return [label for label in labels if label not in known]
