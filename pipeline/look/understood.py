"""Describe how the data folder was read, from which evidence, and what looks odd about it."""

from __future__ import annotations

from pipeline.competition.rows import Competition
from pipeline.look.section import Grid, Section
from pipeline.look.selection import Looked
from pipeline.targets.metrics import find_metric
from pipeline.wording import counted, listed

IMBALANCE = 20  # ratio of the largest to the smallest class from which a sentence is shown


def recognised(looked: Looked) -> Section:
    """Return the section on how the folder was read."""
    competition = looked.competition
    section = Section("What was recognised", says=[_sentence(note) for note in competition.notes])
    section.grids.append(Grid("In short", ("", "value"), _in_short(competition), open=20, texts=2))
    odd = _odd(competition)
    section.says += [f"Odd: {line}" for line in odd] or ["Nothing about labels and tables looks odd."]
    if looked.sampled:
        section.says.append(looked.sampled)
    return section


def _sentence(note: str) -> str:
    return note[:1].upper() + note[1:] + ("" if note.endswith((".", ":")) else ".")


def _in_short(competition: Competition) -> list[tuple[str, str]]:
    train, test = (len({row.path for row in rows}) for rows in (competition.train, competition.test))
    ids = len({row.id for row in competition.train})
    rows = [("task", "questions about images" if competition.task == "vqa" else "images")]
    if competition.target:
        rows.append(("target", f"{competition.target.kind}: {competition.target.describe()}"))
    if competition.metric:
        rows.append(("metric", find_metric(competition.metric).words))
    rows.append(("training", counted(train, "image") + (f" of {counted(ids, 'id')}" if ids != train else "")))
    rows.append(("test", counted(test, "image") if test else "none found"))
    submission, grouped = "no sample submission", "none given"
    if form := competition.form:
        submission = form.describe() + (f", as {form.path.name}" if form.path else "")
    if groups := competition.groups:
        grouped = f"{counted(len(set(groups.values())), 'group')} of {counted(len(groups), 'id')}"
    rows += [("submission", submission), ("groups", grouped)]
    if competition.folds:
        rows.append(
            (
                "folds",
                f"{len(set(competition.folds.values())):,}, from {competition.folds_from}; used by --folds",
            )
        )
    if competition.split:
        rows.append(
            (
                "validation rows",
                f"{sum(part == 'val' for part in competition.split.values()):,}, {competition.split_from}",
            )
        )
    return rows


def _odd(competition: Competition) -> list[str]:
    target = competition.target
    lines = []
    if competition.form is not None and not competition.test:
        lines.append(
            f"the images of {competition.form.path or 'the sample submission'} are missing; nothing can be "
            "predicted"
        )
    if target is None or target.kind == "continuous" or not competition.train:
        return lines
    noun = {"multilabel": ("label", "labels"), "ordinal": ("grade", "grades")}.get(
        target.kind, ("class", "classes")
    )
    counts = target.counts([row.label or "" for row in competition.train])
    single = [name for name, count in counts.items() if count == 1]
    empty = [name for name, count in counts.items() if count == 0]
    if single:
        lines.append(
            f"{counted(len(single), *noun)} with a single image, which is never in validation: "
            f"{listed(single)}"
        )
    if empty:
        lines.append(f"{counted(len(empty), *noun)} without any image: {listed(empty)}")
    held = [count for count in counts.values() if count]
    if held and max(held) >= IMBALANCE * min(held) and len(held) > 1:
        most = max(counts, key=counts.__getitem__)
        least = min((name for name in counts if counts[name]), key=counts.__getitem__)
        lines.append(
            f"{most!r} has {counts[most]:,} images and {least!r} {counts[least]:,}: "
            f"{max(held) / min(held):.0f} times as many"
        )
    return lines
