"""Which run made a predictions file: a line for each file in `.made-by.jsonl` beside it, found again by the file's digest.

The digest is of the content: a file that was renamed is still known, and one that was changed is not.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from pipeline.files import sha256
from pipeline.run import known_record, now
from pipeline.run_record import RunRecord

MADE_BY = ".made-by.jsonl"


@dataclass(frozen=True)
class Origin:
    """What inference wrote down of a predictions file."""

    sha256: str
    time: str  # ISO
    models: tuple[str, ...]  # folders, as they were named
    names: tuple[str, ...]  # of the runs
    metric: str = ""  # what the validation score is of; empty where there is none, or several models
    score: str = ""
    spread: str = ""  # of the score over folds: their standard deviation; empty for a single run
    commit: str = ""
    data: str = ""
    made: dict[str, Any] = field(default_factory=dict)  # single models with their weights, views and decisions

    @property
    def shown_score(self) -> str:
        """The score with its spread over folds: `0.8121 ± 0.0113`; of a single run the score alone."""
        return f"{self.score} ± {self.spread}" if self.spread else self.score

    def describe(self) -> str:
        """The run, its folder, when, and its validation score: `lora (runs/lora), predicted 2026-03-01 10:00, val_accuracy 0.91`."""
        runs = " + ".join(f"{name} ({model})" for name, model in zip(self.names, self.models, strict=True))
        moment = datetime.fromisoformat(self.time).strftime("%Y-%m-%d %H:%M")
        return ", ".join([runs, f"predicted {moment}", f"{self.metric} {self.shown_score}" if self.score else "no validation score"])


class Maker(Protocol):
    """A folder with what made a file: a run, folds, a blend, a release."""

    @property
    def path(self) -> Path: ...
    @property
    def name(self) -> str: ...
    @property
    def record(self) -> RunRecord | None: ...


def record_origin(output: Path, runs: Sequence[Maker], data: Path | str, made: dict[str, Any] | None = None) -> None:
    """Write down that `runs` made the predictions file `output`, and how (`made`). A folder that takes no more files is no reason to fail."""
    origin = Origin(
        sha256=sha256(output),
        time=now(),
        models=tuple(str(run.path) for run in runs),
        names=tuple(run.name for run in runs),
        data=str(data),
        made=made or {},
        **(_told(runs[0].record) if len(runs) == 1 and runs[0].record else {}),
    )
    with suppress(OSError), open(output.parent / MADE_BY, "a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(origin), ensure_ascii=False) + "\n")


def _told(record: RunRecord) -> dict[str, str]:
    """What a run says of its own score: `metric`, `score` and `spread`, as far as it has them, and its `commit`."""
    value, deviation = record.best.get("value"), (record.values.get("folds") or {}).get("deviation")
    told = {"commit": str(record.values.get("commit") or "")}
    if isinstance(value, int | float) and str(record.best.get("metric")).startswith("val_"):
        told |= {"metric": str(record.best["metric"]), "score": f"{value:.6g}"}
        told |= {"spread": f"{deviation:.2g}"} if isinstance(deviation, int | float) else {}
    return told


def find_origin(predictions: Path) -> Origin | None:
    """What is written down of the file with this content, the newest line of it; None for nothing. Lines that cannot be read are passed over."""
    path = predictions.parent / MADE_BY
    if not path.is_file() or not predictions.is_file():
        return None
    digest = sha256(predictions)
    for line in reversed(path.read_bytes().split(b"\n")):
        with suppress(ValueError, TypeError):
            values = json.loads(line)
            if isinstance(values, dict) and values.get("sha256") == digest:
                return _read(values)
    return None


def _read(values: dict[str, Any]) -> Origin:
    """Raises ValueError or TypeError for anything that `record_origin` did not write."""
    models, names = (tuple(str(item) for item in values[key]) for key in ("models", "names"))
    texts = {key: str(values.get(key) or "") for key in ("sha256", "time", "metric", "score", "spread", "commit", "data")}
    datetime.fromisoformat(texts["time"])
    if not models or len(models) != len(names):
        raise ValueError("another number of names than of folders")
    made = values.get("made")
    return Origin(models=models, names=names, **texts, made=made if isinstance(made, dict) else {})


def origin_of_run(predictions: Path, model: Path) -> Origin | None:
    """What the run in folder `model` says of itself, where a person names it as the maker of a file; None where it holds none.

    Raises:
        UserError: its files are damaged.
    """
    record = known_record(model)
    if record is None:
        return None
    moment = datetime.fromtimestamp(predictions.stat().st_mtime).astimezone().isoformat(timespec="seconds")
    return Origin(sha256=sha256(predictions), time=moment, models=(str(model),), names=(record.name,), **_told(record))
