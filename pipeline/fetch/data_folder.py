"""What lies in a data folder: is there room for another competition, and how is it read."""

from __future__ import annotations

import os
from pathlib import Path
from shlex import quote

from pipeline import files
from pipeline.competition.facts import SET_RECORD
from pipeline.competition.layout import read_layout
from pipeline.errors import UserError
from pipeline.fetch import containers, originals
from pipeline.kaggle.remembered import MEMORIES, agreed, remembered_slug
from pipeline.wording import listed


def no_room(data_dir: Path, slug: str, yes: bool, besides: Path | None = None) -> list[str]:
    """Return why nothing may be put into `data_dir`; empty if it is free.

    The archive `besides` may be in it.
    """
    elsewhere = f"name another folder: --data {quote('data_' + slug)}"
    if data_dir.exists() and not data_dir.is_dir():
        return [f"{data_dir} is a file; {elsewhere}"]
    found = [
        name
        for name in _visible(data_dir)
        if besides is None or not besides.is_file() or not _are_same(data_dir / name, besides)
    ]
    if not found:
        return _records_left(data_dir)
    slug_there, set_there = remembered_slug(data_dir), public_set_in(data_dir)
    memory = next((name for name in MEMORIES if name in found), None)
    others = [name for name in found if name not in MEMORIES]
    if set_there or understood(data_dir)[0] or (slug_there and others):
        if set_there:
            holds = f"the set {set_there!r}"
        elif slug_there:
            holds = f"the competition {slug_there!r}"
        else:
            holds = "a competition"
        return [f"{data_dir} already holds {holds}; {elsewhere}"]
    if slug_there not in (None, slug):
        return [f"{data_dir / memory} names another competition, {slug_there!r}: delete it, or {elsewhere}"]
    if left := _records_left(data_dir):
        return left
    if not others or yes or agreed(f"{data_dir} holds {_few(others)}. Put {slug} beside them? [y/N] "):
        return []
    return [
        f"{data_dir} holds other files ({_few(others)}): YES=1 (--yes) puts {slug} beside them, or "
        f"{elsewhere}"
    ]


def _are_same(path: Path, besides: Path) -> bool:
    """Return True if both are one file; a link to nothing is none."""
    return path.exists() and os.path.samefile(path, besides)


def _records_left(data_dir: Path) -> list[str]:
    """Return why hidden records forbid to put another competition into `data_dir`; empty without any."""
    names = [name for name in (containers.CONVERTED, originals.ORIGINALS) if os.path.lexists(data_dir / name)]
    paths = " ".join(quote(str(data_dir / name)) for name in names)
    told = f"{data_dir} holds {listed(names)} of an earlier download, which is not there: rm -r {paths}"
    return [told] if names else []


def _visible(data_dir: Path) -> list[str]:
    """Return names in the folder that count as content: not hidden, no README, and not a public set in its
    own folder.
    """
    if not data_dir.is_dir():
        return []
    names = sorted(
        name
        for name in os.listdir(data_dir)
        if not name.startswith(".") and not name.upper().startswith("README")
    )
    return [name for name in names if not (data_dir / name / SET_RECORD).is_file()]


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def public_set_in(data_dir: Path) -> str | None:
    """Return the public set in `data_dir`; None if it holds none."""
    path = data_dir / SET_RECORD
    value = files.read_json(path) if path.is_file() else None
    return value.get("dataset") if isinstance(value, dict) else None


def understood(data_dir: Path) -> tuple[tuple[str, ...], str]:
    """Return the layout's notes on `data_dir`; or no notes and the reason why it cannot be read."""
    problem = ""
    for need in ("both", "train", "test"):
        try:
            return read_layout(data_dir, need=need).notes, ""
        except UserError as error:
            problem = problem or str(error)
    return (), problem
