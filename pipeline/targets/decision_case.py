"""The evidence for one decision about labels: the labels, the sample submission, and the user's settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.errors import UserError
from pipeline.targets.evidence import Asked, LabelEvidence, SampleEvidence
from pipeline.targets.metrics import Metric
from pipeline.targets.target import Target

Read = tuple[Target, Sequence[str], str, list[str]]  # target, one label text per row, evidence as text, notes


@dataclass(frozen=True)
class Case:
    """All evidence for the decision."""

    labels: LabelEvidence
    sample: SampleEvidence | None
    asked: Asked
    metric: Metric | None

    @property
    def one_column(self) -> bool:
        """True where the sample submission has one value column (or there is none), and a row is about a
        whole image.
        """
        return self.sample is None or (len(self.sample.columns) == 1 and not self.sample.labels)

    @property
    def sample_cells(self) -> list[str]:
        """The filled cells of the one value column of the sample submission."""
        if self.sample is None or len(self.sample.columns) != 1:
            return []
        return [row[0].strip() for row in self.sample.cells if row[0].strip()]

    @property
    def is_open(self) -> bool:
        """True where the user named neither metric nor kind."""
        return self.metric is None and self.asked.kind is None

    def needs(self, *what: str) -> bool:
        """Return True where the metric is known and needs one of these."""
        return self.metric is not None and self.metric.needs in what

    def may_be(self, kind: str) -> bool:
        """Return True where neither the flag nor the metric excludes this kind."""
        return self.asked.kind in (None, kind) and (self.metric is None or kind in self.metric.kinds)

    def ambiguous(self, what: str, *readings: str) -> UserError:
        """Return the error that shows every reading with the flag for it."""
        lines = [f"{self.labels.where}: {what}; choose one:", *(f"  - {reading}" for reading in readings)]
        return UserError("\n".join(lines))


def contradiction(case: Case) -> str:
    """Return the end of an error message: which flags contradict the data."""
    flags = [
        f"--metric {case.metric.name}" if case.metric else "",
        f"--target {case.asked.kind}" if case.asked.kind else "",
    ]
    return f"that contradicts {' and '.join(flag for flag in flags if flag)}: name another one"
