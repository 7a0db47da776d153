"""Record which run made a predictions file, and find it again.

Each file has a line in `.made-by.jsonl` beside it, with the SHA-256 of its content. A renamed file is still
found; a changed file is not.
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
    """The record of a predictions file, written by inference."""

    sha256: str
    time: str  # ISO
    models: tuple[str, ...]  # run folders, as given
    names: tuple[str, ...]  # run names
    metric: str = ""  # metric of the validation score; empty without a score, or for several models
    score: str = ""
    spread: str = ""  # standard deviation of the score over folds; empty for a single run
    commit: str = ""
    data: str = ""
    # the single models with their weights, views and decisions
    made: dict[str, Any] = field(default_factory=dict)

    @property
    def shown_score(self) -> str:
        """The score with its spread over folds, `0.8121 ± 0.0113`; without folds the score alone."""
        return f"{self.score} ± {self.spread}" if self.spread else self.score

    def describe(self) -> str:
        """Describe run, folder, time and score: `lora (runs/lora), predicted 2026-03-01 10:00, val_accuracy
        0.91`.
        """
        runs = " + ".join(f"{name} ({model})" for name, model in zip(self.names, self.models, strict=True))
        moment = datetime.fromisoformat(self.time).strftime("%Y-%m-%d %H:%M")
        return ", ".join(
            [
                runs,
                f"predicted {moment}",
                f"{self.metric} {self.shown_score}" if self.score else "no validation score",
            ]
        )


class Maker(Protocol):
    """A folder that can make predictions: a run, folds, a blend, a release."""

    @property
    def path(self) -> Path: ...
    @property
    def name(self) -> str: ...
    @property
    def record(self) -> RunRecord | None: ...


def record_origin(
    output: Path, runs: Sequence[Maker], data: Path | str, made: dict[str, Any] | None = None
) -> None:
    """Record that `runs` made the predictions file `output`, and how (`made`).

    A folder that cannot be written is not an error, only a note.
    """
    origin = Origin(
        sha256=sha256(output),
        time=now(),
        models=tuple(str(run.path) for run in runs),
        names=tuple(run.name for run in runs),
        data=str(data),
        made=made or {},
        **(_score_of(runs[0].record) if len(runs) == 1 and runs[0].record else {}),
    )
    line = json.dumps(asdict(origin), ensure_ascii=False) + "\n"
    path = output.parent / MADE_BY
    try:
        if path.is_file() and not path.read_bytes().endswith(b"\n"):  # cut off: the disk was full
            line = f"\n{line}"
        with open(path, "a", encoding="utf-8") as file:
            file.write(line)
    except OSError as error:
        print(
            f"  note: {path} cannot be written ({error.strerror or error}), so `make submit` cannot name the "
            "run: name it with MODEL= (--model)"
        )


def _score_of(record: RunRecord) -> dict[str, str]:
    """Return `metric`, `score` and `spread` of a run, where it has them, and its `commit`."""
    value, deviation = record.best.get("value"), (record.values.get("folds") or {}).get("deviation")
    values = {"commit": str(record.values.get("commit") or "")}
    if isinstance(value, int | float) and str(record.best.get("metric")).startswith("val_"):
        values |= {"metric": str(record.best["metric"]), "score": f"{value:.6g}"}
        values |= {"spread": f"{deviation:.2g}"} if isinstance(deviation, int | float) else {}
    return values


def find_origins(predictions: Path) -> list[Origin]:
    """Return every record of the file's content, the newest first. Unreadable lines are skipped."""
    path = predictions.parent / MADE_BY
    if not path.is_file() or not predictions.is_file():
        return []
    digest, found = sha256(predictions), []
    for line in reversed(path.read_bytes().split(b"\n")):
        with suppress(ValueError, TypeError, KeyError):
            values = json.loads(line)
            if isinstance(values, dict) and values.get("sha256") == digest:
                found.append(_read(values))
    return found


def find_origin(predictions: Path) -> Origin | None:
    """Return the newest record of the file's content; None without one."""
    return next(iter(find_origins(predictions)), None)


def _read(values: dict[str, Any]) -> Origin:
    """Return one record.

    Raises:
        ValueError, TypeError, KeyError: `record_origin` did not write it.
    """
    models, names = (tuple(str(item) for item in values[key]) for key in ("models", "names"))
    texts = {
        key: str(values.get(key) or "")
        for key in ("sha256", "time", "metric", "score", "spread", "commit", "data")
    }
    datetime.fromisoformat(texts["time"])
    if not models or len(models) != len(names):
        raise ValueError("the numbers of names and folders differ")
    made = values.get("made")
    return Origin(models=models, names=names, **texts, made=made if isinstance(made, dict) else {})


def origin_of_run(predictions: Path, model: Path) -> Origin | None:
    """Build the origin of a file from the run in folder `model`, which the user named; None if it holds no
    run.

    Raises:
        UserError: its files are damaged.
    """
    record = known_record(model)
    if record is None:
        return None
    moment = datetime.fromtimestamp(predictions.stat().st_mtime).astimezone().isoformat(timespec="seconds")
    return Origin(
        sha256=sha256(predictions),
        time=moment,
        models=(str(model),),
        names=(record.name,),
        **_score_of(record),
    )
