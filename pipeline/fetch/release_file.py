"""Which release `make weights` installs: that of `release.yaml`, or of the command line."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.errors import UserError, raise_all
from pipeline.fetch.addresses import Source, parse_source

MODEL_DIR = Path("finetuned_model")
RELEASE_FILE = "release.yaml"


@dataclass(frozen=True)
class Release:
    """A release from `release.yaml` or the command line: the source of its archive, and its expected digest
    and size.
    """

    source: Source
    sha256: str | None = None
    size: int | None = None  # bytes
    name: str | None = None
    mirrors: tuple[Source, ...] = ()


def read_release(path: Path) -> Release:
    """Read the release from the YAML file at `path`; relative paths in it start at its folder.

    Raises:
        UserError: the file is missing or not a mapping, or has unknown keys or wrong values; all problems are
            listed.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(
            f"there is no release: {path} does not exist. Give one: `make weights WEIGHTS=FILE.zip` (or a "
            f"Google Drive link, or an https address); or write {path} with the line `source: ...`; or train "
            "a model: `python train.py`"
        )
    values = files.read_yaml(path)
    if not isinstance(values, dict):
        raise UserError(
            f"{path} must hold keys and values, with at least `source: ...`; it holds {type(values).__name__}"
        )
    raise_all(_release_problems(values), f"{path}:")
    return Release(
        source=parse_source(values["source"], path.parent),
        sha256=values["sha256"].lower() if values.get("sha256") else None,
        size=values.get("size"),
        name=values.get("name"),
        mirrors=tuple(parse_source(mirror, path.parent) for mirror in values.get("mirrors") or ()),
    )


def _release_problems(values: dict[Any, Any]) -> list[str]:
    known = ("source", "sha256", "size", "name", "mirrors")
    problems = []
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"known are {', '.join(known)}"
            problems.append(f"unknown key `{key}`; {hint}")
    source, digest, size, mirrors = (values.get(key) for key in ("source", "sha256", "size", "mirrors"))
    if not isinstance(source, str) or not source.strip():
        problems.append(
            f"`source` must be a Google Drive id or link, an https address or a path; found {source!r}"
        )
    if digest is not None and not (isinstance(digest, str) and re.fullmatch(r"[0-9a-fA-F]{64}", digest)):
        problems.append(
            f"`sha256` must be 64 hex digits, in quotes if they are all figures; found {digest!r}"
        )
    if size is not None and not (type(size) is int and size > 0):
        problems.append(f"`size` must be a number of bytes; found {size!r}")
    if not isinstance(values.get("name") or "", str):
        problems.append(f"`name` must be a text; found {values['name']!r}")
    if mirrors is not None and not (
        isinstance(mirrors, list) and all(isinstance(mirror, str) for mirror in mirrors)
    ):
        problems.append(f"`mirrors` must be a list of sources; found {mirrors!r}")
    return problems


def choose_release(weights: str | None, sha256: str | None, model_dir: Path) -> Release:
    """Return the release of the command line, else that of `release.yaml`.

    If `weights` is the archive of `release.yaml`, the digest written there applies.

    Raises:
        UserError: `sha256` without `weights`, `weights` is not an archive, or release.yaml is needed but
            broken.
    """
    own_file = model_dir / RELEASE_FILE
    release_file = own_file if own_file.exists() else MODEL_DIR / RELEASE_FILE
    if not weights:
        if sha256:
            raise UserError(
                f"--sha256 needs --weights SOURCE; the digest of the release in {release_file} is written "
                "there"
            )
        return read_release(release_file)
    given = Release(parse_source(weights), sha256=sha256.lower() if sha256 else None)
    if sha256 or not release_file.exists():
        return given
    try:
        named = read_release(release_file)
    except UserError as error:
        print(f"note       {release_file} is not used: {error}")
        return given
    if given.source == named.source:
        return named
    if given.source.kind == "file" and named.sha256:
        if files.sha256(Path(given.source.text)) == named.sha256:
            return replace(given, sha256=named.sha256, name=named.name)
        print(f"note       {given.source.shown} is not the archive of {release_file}")
    return given
