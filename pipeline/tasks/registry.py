"""The table of tasks: the module that builds (`train.py`) and rebuilds (`inference.py`) each of them."""

from __future__ import annotations

from types import ModuleType

from pipeline.errors import UserError
from pipeline.importing import quick_imports

with quick_imports():  # torch, transformers and peft: seconds
    from pipeline.tasks import classification, vqa

TASKS: dict[str, ModuleType] = {"classification": classification, "vqa": vqa}


def task_module(name: str) -> ModuleType:
    """Return the module with `build` and `rebuild` for a task.

    Raises:
        UserError: this version of the project does not know the task.
    """
    if name not in TASKS:
        raise UserError(
            f"task {name!r} is not one of {', '.join(TASKS)}: the run was made by another version of this "
            "project"
        )
    return TASKS[name]
