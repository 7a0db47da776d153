"""The evidence about labels, from the data folder and the user.

`pipeline.targets.decide` decides what it means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.targets.target import Target


@dataclass(frozen=True)
class LabelEvidence:
    """The labels of the training rows as they are written.

    Either `texts`, one per row, or `columns` with their `cells`, one tuple per row.
    """

    # Class folders; file names such as cat.0.jpg; a table; JSON
    source: Literal["folders", "names", "table", "json"]
    where: str  # for messages: `train.csv, column 'labels'`
    texts: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    cells: tuple[tuple[str, ...], ...] = ()
    column: str = ""  # the name of the one label column


@dataclass(frozen=True)
class SampleEvidence:
    """The sample submission without its ids.

    `labels`: where a row is one label of an image (`<id>_<label>`), the label of each row; otherwise empty.
    """

    where: str  # `sample_submission.csv`
    columns: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Asked:
    """Settings of the user or of competition.yaml. None and empty mean: not set."""

    metric: str | None = None
    kind: str | None = None
    positive_class: tuple[str, ...] = ()
    separator: str | None = None


@dataclass(frozen=True)
class Decision:
    """The target, its metric, and one label text for each row, as `target.encode` takes them."""

    target: Target
    metric: str
    labels: Sequence[str]
    says: str  # one line: what was decided, and from which evidence
    notes: tuple[str, ...] = ()
