"""Keep test predictions in the run folder, so that the same images are not predicted again.

test.npy holds the predictions, test.csv the ids, test.json the images, weights and settings that made them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.competition.rows import Row, images_digest
from pipeline.engines import INT8, TORCH
from pipeline.errors import UserError
from pipeline.files import sha256, write_json
from pipeline.predictions import Predictions
from pipeline.run import Run, environment, model_dirs, now
from pipeline.run_names import HEAD_FILE, TEST_STEM
from pipeline.shapes import read_object
from pipeline.targets.target import Target

# Another version of these may change pixels or logits
DECIDING = ("torch", "transformers", "peft", "timm", "pillow", "simplejpeg")
# And another version of this code
PACKAGE = Path(__file__).resolve().parents[1]
CODE = ("data", "models", "tasks", "training", "targets/target.py", "folds/views.py", "predictions.py")


class Kept:
    """The kept test predictions of some runs, for one set of images.

    `precision`, `views`, `batch_size` and `engine` must be equal too: sums over batches of another size
    differ in their last digits.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        precision: str,
        batch_size: int,
        views: Sequence[str] = (),
        engine: str = TORCH,
    ) -> None:
        self.images = images_digest(rows)
        self.questions = _questions_digest(rows)
        self.precision = precision
        self.batch_size = batch_size
        self.views = list(views)
        self.engine = engine
        self.stem = "-".join([TEST_STEM, *views])
        # A backbone file that several folds share is read once
        self._weights: dict[tuple[int, int, int], str] = {}

    def load(self, run: Run, target: Target) -> Predictions | None:
        """Return the run's earlier predictions of these images.

        None where there are none, or weights, settings, packages or this code have changed.
        """
        path = run.path / f"{self.stem}.json"
        if run.record is None or not path.exists():
            return None
        with suppress(UserError, OSError):
            if read_object(path).get("made_with") == self._made_with(run):
                return Predictions.load(run.path / self.stem, target)
        return None

    def save(self, run: Run, predictions: Predictions) -> str | None:
        """Keep predictions in the run's folder.

        Return a message if that fails, or if the user has a file of this name there; a release or unfinished
        run keeps none.
        """
        if run.record is None or run.unfinished:
            return None
        path = run.path / f"{self.stem}.json"
        if own := _of_the_user(path):
            return f"test predictions are not kept, because they would replace {own}: move it away"
        try:
            path.unlink(missing_ok=True)  # kept predictions are invalid until this file is written again
            predictions.save(run.path / self.stem)
            write_json(path, {"made_with": self._made_with(run), "made": now()})
        except UserError as error:
            return f"test predictions are not kept in {run.path}: {error}"
        except OSError as error:
            return f"test predictions are not kept in {run.path}: {error.strerror or error}"
        return None

    def _by(self, run: Run) -> dict[str, Any]:
        """Return name and version of the engine, if not torch; in 8 bits also weights and calibration."""
        if self.engine == TORCH:
            return {}
        from pipeline.models.openvino_model import openvino_version

        by: dict[str, Any] = {"engine": f"{self.engine} {openvino_version()}"}
        if self.engine == INT8:
            from pipeline.tasks.quantized import required

            made = required(run)
            by |= {"quantized": made["files"]["model.bin"], "calibration": made["calibration"]}
        return by

    def _made_with(self, run: Run) -> dict[str, Any]:
        versions = environment()["versions"]
        return {
            "images": self.images,
            **({"questions": self.questions} if self.questions else {}),
            "weights": self._weights_of(run),
            "precision": self.precision,
            "batch_size": self.batch_size,
            "views": self.views,
            **self._by(run),
            "versions": {name: versions.get(name) for name in DECIDING},
            "code": _code_digest(),
        }

    def _weights_of(self, run: Run) -> str:
        """Return a digest of every file of the model: weights, preprocessing, settings."""
        found = []
        for file in sorted(
            file for folder in model_dirs(run.path) for file in folder.rglob("*") if file.is_file()
        ):
            status = os.stat(file)
            key = (status.st_dev, status.st_ino, status.st_mtime_ns)
            if key not in self._weights:
                self._weights[key] = sha256(file)
            found.append((str(file.relative_to(run.path)), self._weights[key]))
        head = run.path / HEAD_FILE
        found += [("head", sha256(head))] if head.exists() else []
        return hashlib.sha256(repr(found).encode()).hexdigest()


def _code_digest() -> str:
    """Return a digest of the code of this project that pixels and logits depend on."""
    files = [
        file
        for name in CODE
        for file in ([PACKAGE / name] if name.endswith(".py") else sorted((PACKAGE / name).glob("*.py")))
    ]
    return hashlib.sha256(repr([(file.name, sha256(file)) for file in files]).encode()).hexdigest()


def _of_the_user(path: Path) -> Path | None:
    """Return a file with the name of a kept one that was not written here; None if there is none.

    `path`: the .json of kept predictions. Where a kill left none, their .csv and .npy are both there.
    """
    if path.exists():
        with suppress(UserError, OSError):
            if "made_with" in read_object(path):
                return None
        return path
    beside = [file for ending in (".csv", ".npy") if (file := path.with_suffix(ending)).exists()]
    return beside[0] if len(beside) == 1 else None


def _questions_digest(rows: Sequence[Row]) -> str:
    """Return a digest of the questions of `rows`; "" if they have none."""
    questions = [row.question for row in rows]
    return hashlib.sha256(repr(questions).encode()).hexdigest() if any(questions) else ""
