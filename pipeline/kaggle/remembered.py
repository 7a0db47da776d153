"""Read which competition a data folder holds, as `make data` recorded it; ask the user on the terminal."""

from __future__ import annotations

import sys
from pathlib import Path

from pipeline.competition.facts import FACTS_FILE, OLD_FILE, read_facts
from pipeline.kaggle import cli

REMEMBERED = FACTS_FILE
MEMORIES = (REMEMBERED, OLD_FILE)  # written by `make data`, and by its earlier versions


def remembered_slug(data_dir: Path) -> str | None:
    """Return the competition in competition.yaml of `data_dir`; None without one.

    Raises:
        UserError: the file cannot be read, or its slug is not a competition name.
    """
    slug = read_facts(Path(data_dir)).slug
    return cli.clean_slug(slug) if slug else None


def agreed(question: str) -> bool:
    """Return True if the user answers yes on the terminal; False without a terminal."""
    try:
        return sys.stdin.isatty() and input(question).strip().lower() in ("y", "yes")
    except EOFError:
        return False
