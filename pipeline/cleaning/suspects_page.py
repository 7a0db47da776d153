"""suspects.html: each suspect beside the training images nearest to it, to be kept, left out or given another label.

A person decides; the page's two downloads are what train.py takes.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cleaning.confident import Suspect
from pipeline.cleaning.out_of_fold import OutOfFold
from pipeline.files import human_size, write_text
from pipeline.report.rendering import SIZE_MARK, render, script
from pipeline.report.thumbnails import MARGIN_PX, SMALL_PX, is_own, thumbnail
from pipeline.report.words import brief, percent
from pipeline.tables import guarded

if TYPE_CHECKING:
    from pipeline.cleaning.neighbours import Neighbour
    from pipeline.data.intensity import Intensity

MAX_SHOWN, MAX_BYTES = 400, 8_000_000  # suspects in a page, and bytes of images; all suspects are in suspects.csv
DROPPED = ("--output", "--fold", "--parallel", "--max-minutes")  # of the command that the folds were trained by
MAX_OPTIONS = 2000  # labels that are offered while one is typed


def build_page(
    oof: OutOfFold, suspects: Sequence[Suspect], near: Mapping[int, list[Neighbour]], page: Path, images: bool, data_named: bool
) -> Path:
    """Write the page; its path. `images`: with images; `data_named`: the person named the data folder, so its images may be shown."""
    shown = list(suspects[:MAX_SHOWN])
    pictures = Pictures(oof, images and (data_named or _own(oof)))
    cards = [_card(oof, suspect, near.get(suspect.row, []), pictures) for suspect in shown]
    target = oof.target
    options = sorted(set(oof.labels)) if target.kind == "binary" else list(target.names)
    html = render(
        "suspects.html.j2",
        name=oof.record.name,
        total=len(oof.ids),
        count=len(suspects),
        cards=cards,
        size=human_size(pictures.size),
        limit=human_size(MAX_BYTES),
        images=pictures.allowed,
        pictures_left=pictures.full,
        near=any(card["near"] for card in cards),
        options=[] if target.kind == "continuous" else options[:MAX_OPTIONS],
        strict=target.kind not in ("continuous", "multilabel") and len(options) <= MAX_OPTIONS,
        noun={"ordinal": "grade", "continuous": "number", "multilabel": "labels"}.get(target.kind, "label"),
        signature=hashlib.sha256(repr([(oof.ids[one.row], one.given, one.suggested) for one in suspects]).encode()).hexdigest()[:16],
        command=next_command(oof),
        script=script("suspects.js"),
        written=datetime.now().astimezone().isoformat(),
        page_size=SIZE_MARK,
    )
    write_text(page, html.replace(SIZE_MARK, human_size(len(html.encode()))))
    return page


def next_command(oof: OutOfFold) -> str:
    """The command that trains the folds again on corrected labels, into another folder."""
    words = shlex.split(str(oof.record.values.get("command") or ""))
    if words[:2] != ["python", "train.py"]:
        words = ["python", "train.py", "--folds", str(oof.num_folds)]
    kept, rest = words[:2], words[2:]
    while rest:
        word, rest = rest[0], rest[1:]
        flag, sign, value = word.partition("=")
        if flag in DROPPED or (flag == "--set" and (value or "".join(rest[:1])).startswith(("data.exclude=", "data.relabel="))):
            rest = rest if sign else rest[1:]
        elif flag == "--resume":
            rest = rest[1:] if rest[:1] in (["exact"], ["changed"]) else rest
        else:
            kept.append(word)
    files = ["--set", "data.exclude=exclude.csv", "--set", "data.relabel=relabel.csv"]
    return shlex.join([*kept, "--output", f"{oof.path}-corrected", *files])


class Pictures:
    """Images for the page until their bytes are used up: `size` of them, `full` once one found no room."""

    def __init__(self, oof: OutOfFold, allowed: bool) -> None:
        self.allowed, self.size, self.full = allowed, 0, False
        self._intensity = _intensity(oof)
        self._made: dict[tuple[Path, int], str | None] = {}

    def of(self, path: Path, side_px: int) -> str | None:
        """A JPEG in base64; None where no image is to be shown, or none can be."""
        if not self.allowed or self.full:
            return None
        if (path, side_px) not in self._made:
            self._made[path, side_px] = thumbnail(path, side_px, self._intensity)
        picture = self._made[path, side_px] or ""
        if self.size + len(picture) > MAX_BYTES:
            self.full = True
            return None
        self.size += len(picture)
        return picture or None


def _intensity(oof: OutOfFold) -> Intensity | None:
    from pipeline.data.intensity import stored_intensity

    return stored_intensity(oof.path / "fold-1")


def _own(oof: OutOfFold) -> bool:
    from pipeline.report.run_files import read_run_files

    return is_own(read_run_files(oof.path))


def _card(oof: OutOfFold, suspect: Suspect, near: Sequence[Neighbour], pictures: Pictures) -> dict[str, Any]:
    row_id = oof.ids[suspect.row]
    image = oof.images[row_id][0]
    return {
        "id": row_id,
        "cell": csv_cell(row_id),
        "given": suspect.given,
        "suggested": suspect.suggested,
        "score": suspect.score,
        "fold": oof.folds[suspect.row],
        "says": _says(oof, suspect),
        "file": image.path.name,
        "picture": pictures.of(image.path, SMALL_PX),
        "near": [{"label": one.row.label, "likeness": one.likeness, "picture": pictures.of(one.row.path, MARGIN_PX)} for one in near],
    }


def csv_cell(text: str) -> str:
    """A cell as the tables of this project are written: guarded from spreadsheets, and in quotes where it needs them."""
    cell = guarded(text)
    return '"' + cell.replace('"', '""') + '"' if re.search('[,"\r\n]', cell) else cell


def _says(oof: OutOfFold, suspect: Suspect) -> str:
    """What the model that did not see the row says of the given and of the suggested label."""
    target, values = oof.target, oof.values[suspect.row]
    if target.kind == "continuous":
        return f"predicted {', '.join(brief(float(value)) for value in values)}"
    if target.kind == "binary":
        return f"probability of {target.names[1]}: {percent(float(values[0]))}"
    place = {name: number for number, name in enumerate(target.names)}
    if target.kind == "multilabel":
        differ = sorted(set(target.parts(suspect.given)) ^ set(target.parts(suspect.suggested)), key=place.__getitem__)
        return ", ".join(f"{name}: {percent(float(values[place[name]]))}" for name in differ)
    return ", ".join(f"{name}: {percent(float(values[place[name]]))}" for name in (suspect.given, suspect.suggested) if name in place)
