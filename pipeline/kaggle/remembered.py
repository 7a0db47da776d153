"""Which competition a data folder holds, as `make data` wrote it down; and asking on the terminal."""

from __future__ import annotations

import sys
from pathlib import Path

from pipeline import files
from pipeline.errors import UserError
from pipeline.kaggle import cli

REMEMBERED = "competition.json"


def remembered_slug(data_dir: Path) -> str | None:
    """The competition that `make data` put into `data_dir`; None when it did not.

    Raises:
        UserError: what is remembered cannot be read.
    """
    path = Path(data_dir) / REMEMBERED
    if not path.exists():
        return None
    value = files.read_json(path)
    slug = value.get("slug") if isinstance(value, dict) else None
    if not isinstance(slug, str) or not slug:
        raise UserError(f'{path} should hold {{"slug": "<competition>"}}: repair or delete it')
    return cli.clean_slug(slug)


def agreed(question: str) -> bool:
    """Whether the user says yes on the terminal; without a terminal nobody does."""
    try:
        return sys.stdin.isatty() and input(question).strip().lower() in ("y", "yes")
    except EOFError:
        return False
