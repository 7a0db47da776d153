"""What the labels mean and which metric scores them, from flags, competition.yaml and the evidence on disk; two readings are an error."""

from __future__ import annotations

from pipeline.targets.evidence import Asked, Decision, LabelEvidence, SampleEvidence
from pipeline.targets.target import Target


def _natural(name: str):
    from pipeline.competition.folders import natural_key

    return natural_key(name)


def decide(labels: LabelEvidence, sample: SampleEvidence | None, asked: Asked = Asked()) -> Decision:  # noqa: B008 - frozen
    """A placeholder: one text is a class, several columns are several labels."""
    if labels.columns:
        if any(cell not in ("0", "1", "0.0", "1.0") for row in labels.cells for cell in row):
            return Decision(Target("continuous", labels.columns, separator=";"), "rmse", [";".join(row) for row in labels.cells], "numbers")
        texts = [";".join(name for name, cell in zip(labels.columns, row, strict=True) if cell[:1] == "1") for row in labels.cells]
        if all(text and ";" not in text for text in texts):
            return Decision(Target("multiclass", labels.columns), "log_loss", texts, "one-hot columns")
        return Decision(Target("multilabel", labels.columns, separator=";"), "roc_auc", texts, "several labels")
    names = tuple(sorted(set(labels.texts), key=_natural))
    return Decision(Target("multiclass", names), "accuracy", labels.texts, f"one of {len(names)} classes, accuracy")
