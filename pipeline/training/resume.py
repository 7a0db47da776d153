"""Resume a run: what it was started with, what has changed since, and whether it may continue.

`--resume` continues exactly, or refuses with a list of differences. `--resume changed` continues with these
differences if the saved weights and optimizer fit them. A run keeps its rows and their split: a validation
row is never trained on.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config import differences, validate_recipe
from pipeline.errors import UserError, raise_all
from pipeline.files import write_json
from pipeline.recipe import Recipe
from pipeline.run import now
from pipeline.run_names import RECORD, START
from pipeline.run_record import RunRecord, read_values
from pipeline.tables import load_table, write_table
from pipeline.targets.evidence import Asked
from pipeline.targets.target import Target
from pipeline.unfinished import resume_command
from pipeline.wording import counted, listed, quoted

ROWS_FILE, ROW_COLUMNS = "rows.csv", ("id", "label", "split")
NEEDED = ("recipe", "schedule", "class_names", "target", "metric")
PSEUDO = "pseudo"  # third cell of a test image that is also trained on
SplitRow = tuple[str, str, str]  # id, label, "train" or "val"
# The weights do not depend on these.
DECIDE_NOTHING = (
    "activation_checkpointing",
    "data.workers",
    "checkpoint.every_minutes",
    "checkpoint.keep_every",
)
# With another value of these a saved weight, optimizer moment or split would not fit.
FIXED = (
    *"task backbone text_backbone random_weights architecture text_architecture head_only image_size".split(),
    *("resize", "seed", "freeze"),
    *"lora.rank lora.alpha lora.targets lora.also_train lora.use_rslora lora.variant lora.init".split(),
    # Weights of one learning rate are one group, and saved moments are matched to weights by their order
    *("optimizer.name", "optimizer.layer_decay", "lora.b_lr_scale"),
    *("head.fusion", "head.text_pooling", "head.hidden_size", "head.activation", "head.dropout"),
    *("data.metric", "data.target", "data.positive_class"),
    *("data.split_seed", "data.group_column", "data.groups"),
    *("data.val_fraction", "data.image_fraction", "data.top_answers", "data.other_answers", "data.split_by"),
)


def deciding_differences(old: Recipe, new: Recipe) -> dict[str, str]:
    """Return `old -> new` for every key that differs and that the weights depend on."""
    return {key: change for key, change in differences(old, new).items() if key not in DECIDE_NOTHING}


def refuse_changes(output: Path, record: RunRecord, asked: Callable[[dict[str, Any]], Recipe]) -> None:
    """Check that the complete run (or folds) in `output`, with this record, has the recipe that is asked for,
    as nothing would be trained. `asked`: returns that recipe from the stored one.

    Raises:
        UserError: it was trained with another recipe; the differences are listed.
    """
    values = record.values.get("recipe") if record.kind != "blend" else None
    if values is None:
        return
    try:
        stored = validate_recipe(values, {}, where=str(output / RECORD))
    except UserError:  # of another version: it cannot be compared
        return
    raise_all(
        [f"{key}: {change}" for key, change in deciding_differences(stored, asked(values)).items()],
        f"the run in {output} is complete, and was trained with another recipe; a complete run cannot be "
        "continued: train with these settings in another --output, or leave them out:",
    )


def write_rows(output: Path, rows: Sequence[SplitRow]) -> None:
    """Write the rows of a run.

    This creates its `state/` folder, so `output` is no longer taken for a release.
    """
    write_table(output / "state" / ROWS_FILE, ROW_COLUMNS, rows)


def write_start(
    output: Path,
    recipe: Recipe,
    schedule: dict[str, Any],
    class_names: Sequence[str],
    facts: dict[str, Any],
    command: str,
    step: dict[str, Any],
) -> dict[str, Any]:
    """Write state/start.json, which makes the run resumable. Return its values.

    `facts`: target and metric, from the task. `step`: how a training step is computed, which a resumed run
    keeps.
    """
    start = {
        "recipe": recipe.model_dump(mode="json"),
        "schedule": schedule,
        "class_names": list(class_names),
        **facts,
        "command": command,
        **step,
        "started": now(),
        "changes": [],
    }
    write_json(output / START, start)
    return start


def rows_digest(rows: Sequence[SplitRow]) -> str:
    """Return a digest of rows, labels and split in their order, to which a position inside an epoch
    refers.
    """
    return hashlib.sha256(repr(list(rows)).encode()).hexdigest()


@dataclass
class ResumedRun:
    """The unfinished run in `output` that is to be continued. `changes`: accepted differences."""

    output: Path
    start: dict[str, Any]
    rows: list[SplitRow]
    accept_changes: bool
    changes: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, output: Path, accept_changes: bool) -> ResumedRun | None:
        """Return the unfinished run in `output`; None when none was started there, or it is complete.

        Raises:
            UserError: its files are damaged.
        """
        path = output / START
        if not path.exists() or (output / RECORD).exists():
            return None
        table = load_table(output / "state" / ROWS_FILE)
        if missing := [name for name in ROW_COLUMNS if name not in table.columns]:
            raise UserError(
                f"{table.path} has no column {', '.join(missing)}: it is damaged; start again with another "
                "--output"
            )
        rows = list(zip(*(table.column(name) for name in ROW_COLUMNS), strict=True))
        start, how = read_values(path), "start again with another --output"
        missing = [f"{key}: missing" for key in NEEDED if key not in start]
        raise_all(missing, f"{path} was changed by hand or is damaged; {how}:")
        return cls(output, start, rows, accept_changes)

    def asked(self) -> Asked:
        """Return the label settings that the run was started with.

        Raises:
            UserError: the stored target is damaged.
        """
        target = Target.read(self.start["target"], str(self.output / START))
        separator = target.separator if target.kind == "multilabel" else None
        return Asked(self.start["metric"]["name"], target.kind, target.positive, separator)

    def check_recipe(self, stored: Recipe, wanted: Recipe) -> None:
        """Check the recipe against the stored one.

        Raises:
            UserError: it differs and differences are not accepted, or the saved state does not fit it.
        """
        changed = deciding_differences(stored, wanted)
        heading = f"the run in {self.output} was started with another recipe"
        misfits = [f"{key}: {values}" for key, values in changed.items() if key in FIXED]
        raise_all(
            misfits,
            f"{heading}, and its weights do not fit this one; resume it without these flags, or use another "
            "--output:",
        )
        self._accept(
            [f"{key}: {values}" for key, values in changed.items()],
            f"{heading}; resume it without these flags (`{resume_command(self.output)}`), use another "
            "--output, or continue with them from the current weights (this command with --resume changed):",
        )

    def check_classes(self, class_names: Sequence[str]) -> None:
        """Check that the classes are those of the head.

        Raises:
            UserError: they are not.
        """
        before, after = self.start["class_names"], list(class_names)
        problems = [f"{name!r} is gone" for name in before if name not in after]
        problems += [f"{name!r} is new" for name in after if name not in before]
        heading = f"have changed since the run in {self.output} was started"
        raise_all(problems, f"the classes {heading}; restore them, or start again with another --output:")

    def check_rows(self, rows: Sequence[SplitRow]) -> None:
        """Check that rows and labels are those of the run.

        Raises:
            UserError: they differ and differences are not accepted.
        """
        heading = f"have changed since the run in {self.output} was started"
        old, new = ({row_id: label for row_id, label, _ in side} for side in (self.rows, rows))
        images, images_now = (Counter(row_id for row_id, _, _ in side) for side in (self.rows, rows))
        gone, added = [name for name in old if name not in new], [name for name in new if name not in old]
        relabelled = [
            f"{name!r} from {label!r} to {new[name]!r}"
            for name, label in old.items()
            if new.get(name, label) != label
        ]
        lines = [f"{counted(len(gone), 'row')} gone: {quoted(gone)}"] if gone else []
        lines += [f"{counted(len(added), 'row')} new, for training: {quoted(added)}"] if added else []
        lines += [f"{counted(len(relabelled), 'label')} changed: {listed(relabelled)}"] if relabelled else []
        other = [
            f"{name!r} from {images[name]} to {images_now[name]}"
            for name in old
            if name in new and images_now[name] != images[name]
        ]
        lines += [f"{counted(len(other), 'id')} with more or fewer images: {listed(other)}"] if other else []
        self._accept(
            lines,
            f"the images or labels {heading}: it cannot continue exactly. Restore the data, start again with "
            "another --output, or continue from the current weights "
            f"(`{resume_command(self.output, 'changed')}`):",
        )

    def go_on(
        self,
        recipe: Recipe,
        schedule: dict[str, Any],
        rows: Sequence[SplitRow],
        command: str,
        flags: dict[str, Any],
    ) -> dict[str, Any]:
        """Store and print the accepted changes; run.json will list each with its time.

        Return the values of start.json. `flags`: those that are not in the recipe (`data`, `batch_size`), as
        the next --resume uses them.
        """
        if not self.changes:
            if any(self.start.get(name) != value for name, value in flags.items()):
                self.start = self.start | flags
                write_json(self.output / START, self.start)
            return self.start
        print("continuing with these accepted changes:\n" + "\n".join(f"  - {line}" for line in self.changes))
        change = {"time": now(), "command": command, "changed": self.changes}
        changes = [*self.start.get("changes", []), change]
        start = self.start | {
            "recipe": recipe.model_dump(mode="json"),
            "schedule": schedule,
            "changes": changes,
            **flags,
        }
        write_json(self.output / START, start)
        write_rows(self.output, rows)  # last: if this fails, the next start asks about the new rows again
        return start

    def _accept(self, lines: list[str], heading: str) -> None:
        if not self.accept_changes:
            raise_all(lines, heading)
        self.changes += lines
