"""What is done of a kernel, in stages.json beside the bundle: so that each stage can be left and continued, and nothing is pushed twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.files import write_json
from pipeline.shapes import ANYTHING, FLAG, TEXT, WHOLE, Each, read_shaped

STAGES = "stages.json"
_PUSHED = {**dict.fromkeys(("ref?", "of?", "state?", "time?"), TEXT), "version?": WHOLE}
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
    """The stages of the kernel in `folder`: name -> what is known of it. Each `note` is on disk when it returns."""

    def __init__(self, folder: Path) -> None:
        """Raises:
        UserError: stages.json is damaged: what was pushed would not be known.
        """
        self.path = folder / STAGES
        self.values: dict[str, dict[str, Any]] = {}
        if self.path.exists():
            self.values = read_shaped(self.path, _SHAPE, "see on Kaggle what was pushed, then delete it")

    def get(self, stage: str) -> dict[str, Any]:
        """What is known of a stage; empty where it was not begun."""
        return dict(self.values.get(stage) or {})

    def note(self, stage: str, **facts: Any) -> None:
        """Write down `facts` in the place of what was known of a stage."""
        self.values[stage] = facts
        write_json(self.path, self.values)

    def forget(self, stage: str) -> None:
        """Take a stage as not begun."""
        if self.values.pop(stage, None) is not None:
            write_json(self.path, self.values)
