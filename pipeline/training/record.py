"""Write the files of a run during training, and print one line per epoch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pipeline.files import human_time, read_json_lines, write_json, write_json_lines
from pipeline.recipe import Recipe
from pipeline.run import environment, now
from pipeline.run_names import COPIES, COPY_NAME, KEPT, METRICS, RECORD, TIMING
from pipeline.run_record import FORMAT, NEWEST
from pipeline.training.means import Soup
from pipeline.training.optim import lr_at
from pipeline.training.position import EpochReport, Position
from pipeline.unfinished import write_kept

LINE = 79  # columns: some terminals wrap longer lines


class Recorder:
    """Writes a run's files. `save_model(folder)` and `write_validation(folder, logits)` are methods of the
    task.
    """

    def __init__(
        self,
        output: Path,
        recipe: Recipe,
        save_model: Callable[[Path], None],
        write_validation: Callable[[Path, np.ndarray], None],
        shown: tuple[str, str],
        keep: dict[str, Any] | None = None,
        epochs: int | None = None,
    ) -> None:
        """`shown`: the training and the validation metric in an epoch's line.

        `keep`: the rule for the kept epoch and its reason. `epochs`: the number of epochs, if it differs from
        the recipe's.
        """
        self.keep = keep or {}
        self.output, self.recipe, self.shown = output, recipe, shown
        self.save_model, self.write_validation = save_model, write_validation
        self.history: list[dict[str, Any]] = []
        self.timing: list[dict[str, Any]] = []
        self.epochs = epochs or recipe.epochs
        self._tensorboard: Any = None

    def resume(self, history: list[dict[str, Any]]) -> None:
        """Cut the files back to the saved state.

        The lines of later epochs will be written again, with the same values.
        """
        self.history = list(history)
        self.timing = read_json_lines(self.output / TIMING)[: len(history)]
        write_json_lines(self.output / METRICS, self.history)
        write_json_lines(self.output / TIMING, self.timing)

    def epoch(self, report: EpochReport) -> None:
        """Record one epoch: lines, TensorBoard, and if it is the best so far the model and validation
        predictions.
        """
        self.history.append(report.metrics)
        self.timing.append(report.timing)
        if report.is_best:
            self.save_model(self.output)
            if report.val_logits is not None:
                self.write_validation(self.output, report.val_logits)
            best = self.shown[1] if report.val_logits is not None else ""
            is_last = self.keep.get("rule") in NEWEST  # then the epoch is kept because it is the last
            write_kept(
                self.output, report.metrics["epoch"], "" if is_last else best, report.metrics.get(best)
            )
        if (
            self.recipe.checkpoint.keep_every
            and report.metrics["epoch"] % self.recipe.checkpoint.keep_every == 0
        ):
            self.save_model(self.output / COPIES / COPY_NAME.format(report.metrics["epoch"]))
        write_json_lines(self.output / METRICS, self.history)
        write_json_lines(self.output / TIMING, self.timing)
        self._log(report)
        tqdm.write(self._line(report))

    def soup(self, soup: Soup) -> None:
        """Save the mean of epochs that is in the model, with its validation predictions, instead of the
        best epoch.
        """
        self.save_model(self.output)
        self.write_validation(self.output, soup.logits)
        self.keep = {**self.keep, "soup": {"epochs": list(soup.epochs), "scores": soup.scores}}
        write_kept(self.output, soup.epochs[0], self.shown[1], soup.value)

    def stopped(self, position: Position, schedule: dict[str, Any]) -> bool:
        """Make sure that usable weights are saved: of the best epoch so far, or the current ones before
        the first epoch ends.

        Returns False if nothing was learnt yet: no step had a learning rate above 0.
        """
        if position.best_epoch:
            return True
        if not any(lr_at(step, schedule) for step in range(position.step)):
            return (self.output / KEPT).exists()
        self.save_model(self.output)
        write_kept(self.output, position.epoch + 1, row=position.row, step=position.step)
        return True

    def finish(self, position: Position, facts: dict[str, Any]) -> None:
        """Write run.json; it marks the run as complete."""
        if self._tensorboard is not None:
            self._tensorboard.close()
        best = {
            "epoch": position.best_epoch,
            "metric": facts.pop("best_metric"),
            "value": position.best_value,
            **self.keep,
        }
        record = {
            "format": FORMAT,
            "task": self.recipe.task,
            "name": self.recipe.name,
            "recipe": self.recipe.model_dump(mode="json"),
            **facts,
            "best": best,
            "last": self.history[-1],
            "seed": self.recipe.seed,
            **environment(),
            "finished": now(),
        }
        write_json(self.output / RECORD, record)

    def _log(self, report: EpochReport) -> None:
        if self._tensorboard is None:
            # A second to import, and not needed by --dry-run
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(self.output / "tensorboard", purge_step=report.metrics["epoch"])
        for name, value in {**report.metrics, **report.timing}.items():
            if name != "epoch":
                self._tensorboard.add_scalar(name, value, report.metrics["epoch"])
        self._tensorboard.flush()

    def _mark(self, report: EpochReport) -> str:
        """Return ` *` for the best epoch so far, if the best epoch is kept."""
        return " *" if report.is_best and self.keep.get("rule") not in NEWEST else "  "

    def _line(self, report: EpochReport) -> str:
        """Return the epoch's line, at most `LINE` columns.

        If names are long, less important parts are left out (metrics.jsonl has everything).
        """
        metrics, timing, epochs = report.metrics, report.timing, self.epochs
        trained, validated = self.shown
        score, validation = f"{trained.removeprefix('train_')} {metrics[trained]:.4f}", ""
        if report.val_logits is not None:
            own = ""
            if validated != "val_loss":
                own = f" {validated.removeprefix('val_')} {metrics[validated]:.4f}"
            validation = f"val loss {_short(metrics['val_loss'])}{own}{self._mark(report)}"
        left = np.median([line["seconds"] - line.get("preparing_seconds", 0) for line in self.timing]) * (
            epochs - metrics["epoch"]
        )
        time = (
            f"{human_time(left)} left"
            if metrics["epoch"] < epochs
            else f"{human_time(timing['seconds'])} per epoch"
        )
        parts = {
            "epoch": f"epoch {metrics['epoch']:>{len(str(epochs))}}/{epochs}",
            "loss": f"loss {_short(metrics['train_loss'])}",
            "score": score,
            "validation": validation,
            "speed": f"{timing['images_per_second']:.0f} img/s",
            "time": time,
        }
        for less in ("", "speed", "score", "time"):
            parts.pop(less, None)
            line = "  ".join(part for part in parts.values() if part)
            if len(line.rstrip()) <= LINE:
                break
        return line.rstrip()


def _short(loss: float) -> str:
    """Return a loss in about five characters: 3.134, 0.0071, 12.46, 1.2e+07."""
    return f"{loss:.3f}" if 0.01 <= abs(loss) < 10 else f"{loss:.4g}"
