"""Record the stages of a kernel in stages.json beside the bundle, so that a stopped command continues and
nothing is pushed twice.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.files import write_json
from pipeline.shapes import ANYTHING, FLAG, TEXT, WHOLE, Each, read_shaped

STAGES = "stages.json"
_PUSHED = {**dict.fromkeys(("ref?", "of?", "settings?", "state?", "time?"), TEXT), "version?": WHOLE}
_SHAPE = {
    "names?": {"owner?": TEXT, "base?": TEXT},
    "views?": {"of": TEXT, "views": [TEXT], "lines": [TEXT]},
    "script?": Each(TEXT),
    "rehearsal?": {"of": Each(ANYTHING), "file": TEXT, "notes": [TEXT], "cost": ANYTHING},
    "dataset?": _PUSHED,
    "kernel?": _PUSHED,
    "kernels?": Each(FLAG),
}


class Stages:
    """The stages of the kernel in `folder`: name -> facts. Each `note` is on disk when it returns."""

    def __init__(self, folder: Path) -> None:
        """Read stages.json, if it is there.

        Raises:
            UserError: it is damaged, so it is unknown what was pushed.
        """
        self.path = folder / STAGES
        self.values: dict[str, dict[str, Any]] = {}
        if self.path.exists():
            self.values = read_shaped(self.path, _SHAPE, "check on Kaggle what was pushed, then delete it")

    def get(self, stage: str) -> dict[str, Any]:
        """Return the facts of a stage; empty if it has not begun."""
        return dict(self.values.get(stage) or {})

    def note(self, stage: str, **facts: Any) -> None:
        """Replace the facts of a stage."""
        self.values[stage] = facts
        write_json(self.path, self.values)

    def forget(self, stage: str) -> None:
        """Mark a stage as not begun."""
        if self.values.pop(stage, None) is not None:
            write_json(self.path, self.values)
