"""Which competition a data folder holds, as `make data` wrote it down; and asking on the terminal."""

from __future__ import annotations

import sys
from pathlib import Path

from pipeline.competition.facts import FACTS_FILE, OLD_FILE, read_facts
from pipeline.kaggle import cli

REMEMBERED = FACTS_FILE
MEMORIES = (REMEMBERED, OLD_FILE)  # what `make data` writes, and what its earlier versions wrote


def remembered_slug(data_dir: Path) -> str | None:
    """The competition that competition.yaml in `data_dir` names; None when there is none.

    Raises:
        UserError: what is remembered cannot be read.
    """
    slug = read_facts(Path(data_dir)).slug
    return cli.clean_slug(slug) if slug else None


def agreed(question: str) -> bool:
    """Whether the user says yes on the terminal; without a terminal nobody does."""
    try:
        return sys.stdin.isatty() and input(question).strip().lower() in ("y", "yes")
    except EOFError:
        return False
