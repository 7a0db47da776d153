"""Whether a model is one for this competition: what the data folder says of classes, beside what the model knows."""

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
    """What was compared, in words; None where the data folder says nothing of classes. `target`: what the model predicts.

    Labels of training images and class columns of the sample submission count, and where the training images are not there the label
    column of their table. Values of a label column in a sample are placeholders.

    Raises:
        UserError: the data folder holds labels that the model does not know, or asks for columns that it lacks; both sides are shown.
    """
    if target is None or competition.task == "vqa":  # of answers only the most frequent are classes: others prove nothing
        return None
    labels = sorted({row.label for row in competition.train if row.label}, key=natural_key)
    if not labels and target.kind != "continuous":
        labels = _labels_of_table(competition)
        if len(unknown_labels(target, labels)) * 2 <= len(labels):  # rows of few labels may have been left out of training
            labels = [label for label in labels if not unknown_labels(target, [label])]
    unknown = unknown_labels(target, labels)
    if unknown:
        shown = (
            f"{counted(len(unknown), 'label')} of {competition.root} are none of them: {quoted(unknown)}{nearest(unknown[0], target.names)}"
        )
        if len(unknown) == 1:
            shown = f"a label of {competition.root} is none of them: {unknown[0]!r}{nearest(unknown[0], target.names)}"
        raise UserError(
            f"{model} is a model for other labels than those of {competition.root}:\n"
            f"  - it knows {counted(len(target.names), 'class', 'classes')}: {quoted(target.names)}\n"
            f"  - {shown}\n"
            "name the model of this competition (--model), its data folder (--data), or train one: python train.py"
        )
    if labels and target.kind != "continuous":  # every number is known to a model of numbers
        return "its labels are the model's"
    form = competition.form
    if form is not None and form.path is not None:
        if form.kind == "rows":
            return "the labels in its rows are the model's"
        if form.kind in ("probabilities", "number") and len(form.value_columns) > 1:
            return "its columns are the model's"
    return None


def _labels_of_table(competition: Competition) -> list[str]:
    """The different labels of a table of training images that are not there, written as labels are; none where it cannot be told."""
    sources = read_sources(look(competition.root), skip=own_files(competition.root)).of_role("train")
    found = [source.table.column(name) for source in sources for name in source.table.columns if plain_name(name) in LABEL_NAMES]
    if len(found) != 1:
        return []
    return sorted({re.sub(r"(?<=\d)\.0$", "", cell.strip()) for cell in found[0]} - {""}, key=natural_key)


def unknown_labels(target: Target, labels: list[str]) -> list[str]:
    """Those of `labels`, texts as the data write them, that the target does not know."""
    if target.kind == "continuous":
        cells = [(label, label.split(target.separator) if target.num_outputs > 1 else [label]) for label in labels]
        return [label for label, parts in cells if len(parts) != target.num_outputs or not are_numbers(parts)]
    if target.kind == "multilabel":
        known = set(target.names)
        return list(dict.fromkeys(part for label in labels for part in target.parts(label) if part not in known))
    if target.kind == "binary":  # its negative side is written as one text
        return [label for label in labels if label not in target.positive and f", {label}, " not in f", {target.names[0]}, "]
    known = set(target.names)
    return [label for label in labels if label not in known]
