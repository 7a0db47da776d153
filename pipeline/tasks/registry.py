"""The one table of tasks: what `train.py` builds and `inference.py` rebuilds."""

from __future__ import annotations

from types import ModuleType

from pipeline.errors import UserError
from pipeline.tasks import classification, vqa

TASKS: dict[str, ModuleType] = {"classification": classification, "vqa": vqa}


def task_module(name: str) -> ModuleType:
    """The module with `build` and `rebuild` for a task.

    Raises:
        UserError: this version of the project has no such task.
    """
    if name not in TASKS:
        raise UserError(f"task {name!r} is not one of {', '.join(TASKS)}: the run was made by another version of this project")
    return TASKS[name]
