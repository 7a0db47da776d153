"""What is done of a kernel, in stages.json beside the bundle: so that each stage can be left and continued, and nothing is pushed twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.files import read_json, write_json

STAGES = "stages.json"


class Stages:
    """The stages of the kernel in `folder`: name -> what is known of it. Each `note` is on disk when it returns."""

    def __init__(self, folder: Path) -> None:
        """Raises:
        UserError: stages.json is damaged: what was pushed would not be known.
        """
        self.path = folder / STAGES
        self.values: dict[str, dict[str, Any]] = {}
        if self.path.exists():
            values = read_json(self.path)
            if not isinstance(values, dict) or not all(isinstance(value, dict) for value in values.values()):
                raise UserError(f"{self.path} is damaged: see on Kaggle what was pushed, then delete it")
            self.values = values

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
