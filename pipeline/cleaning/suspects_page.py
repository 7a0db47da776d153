"""Write suspects.html: each suspect beside its nearest training images, with buttons to keep, exclude or
relabel it.

A person decides. The page's two downloads are files for train.py.
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
from pipeline.unfinished import words_of

if TYPE_CHECKING:
    from pipeline.cleaning.neighbours import Neighbour
    from pipeline.data.intensity import Intensity

MAX_SHOWN, MAX_BYTES = 400, 8_000_000  # suspects and bytes of images on a page; suspects.csv has all suspects
DROPPED = ("--output", "--fold", "--parallel", "--max-minutes")  # flags that the new command must not repeat
MAX_OPTIONS = 2000  # labels offered for completion


def build_page(
    oof: OutOfFold,
    suspects: Sequence[Suspect],
    near: Mapping[int, list[Neighbour]],
    page: Path,
    images: bool,
    data_named: bool,
) -> Path:
    """Write the page and return its path.

    `images`: show images; `data_named`: the user named the data folder.
    """
    shown = list(suspects[:MAX_SHOWN])
    page_images = PageImages(oof, images and (data_named or _own(oof)))
    cards = [_card(oof, suspect, near.get(suspect.row, []), page_images) for suspect in shown]
    target = oof.target
    options = sorted(set(oof.labels)) if target.kind == "binary" else list(target.names)
    html = render(
        "suspects.html.j2",
        name=oof.record.name,
        total=len(oof.ids),
        count=len(suspects),
        cards=cards,
        size=human_size(page_images.size),
        limit=human_size(MAX_BYTES),
        images=page_images.allowed,
        images_left=page_images.full,
        near=any(card["near"] for card in cards),
        options=[] if target.kind == "continuous" else options[:MAX_OPTIONS],
        strict=target.kind not in ("continuous", "multilabel") and len(options) <= MAX_OPTIONS,
        noun={"ordinal": "grade", "continuous": "number", "multilabel": "labels"}.get(target.kind, "label"),
        earlier=_earlier_beside(oof, {card["id"] for card in cards}),
        signature=hashlib.sha256(
            repr(
                [(oof.ids[one.row], one.given, one.suggested, _earlier(oof, one)) for one in suspects]
            ).encode()
        ).hexdigest()[:16],
        command=next_command(oof),
        script=script("suspects.js"),
        written=datetime.now().astimezone().isoformat(),
        page_size=SIZE_MARK,
    )
    write_text(page, html.replace(SIZE_MARK, human_size(len(html.encode()))))
    return page


def _earlier(oof: OutOfFold, suspect: Suspect) -> tuple[str, str]:
    """Return the mark and the new label that a suspect had when the folds were trained, else keep and the
    suggestion.
    """
    row_id = oof.ids[suspect.row]
    if row_id in oof.earlier.excluded:
        return "exclude", suspect.suggested
    if row_id in oof.earlier.relabelled:
        return "relabel", oof.earlier.relabelled[row_id]
    return "keep", suspect.suggested


def _earlier_beside(oof: OutOfFold, shown: set[str]) -> dict[str, list[str]]:
    """Return lines of exclude.csv and relabel.csv: rows that were corrected before and are not shown."""
    excluded = [row_id for row_id in oof.ids if row_id in oof.earlier.excluded - shown]
    relabelled = oof.earlier.relabelled
    others = [row_id for row_id in relabelled if row_id not in shown]
    return {
        "exclude": [csv_cell(row_id) for row_id in excluded],
        "relabel": [f"{csv_cell(row_id)},{csv_cell(relabelled[row_id])}" for row_id in others],
    }


def next_command(oof: OutOfFold) -> str:
    """Return the command that trains the folds again with corrected labels, into another folder."""
    command = words_of(str(oof.record.values.get("command") or ""))
    if command[:2] != ["python", "train.py"]:
        command = ["python", "train.py", "--folds", str(oof.num_folds)]
    kept, rest = command[:2], command[2:]
    while rest:
        word, rest = rest[0], rest[1:]
        flag, sign, value = word.partition("=")
        if flag in DROPPED or (
            flag == "--set" and (value or "".join(rest[:1])).startswith(("data.exclude=", "data.relabel="))
        ):
            rest = rest if sign else rest[1:]
        elif flag == "--resume":
            rest = rest[1:] if rest[:1] in (["exact"], ["changed"]) else rest
        else:
            kept.append(word)
    files = ["--set", "data.exclude=exclude.csv", "--set", "data.relabel=relabel.csv"]
    return shlex.join([*kept, "--output", f"{oof.path}-corrected", *files])


class PageImages:
    """Images for the page up to MAX_BYTES. `size`: bytes used; `full`: an image was left out."""

    def __init__(self, oof: OutOfFold, allowed: bool) -> None:
        self.allowed, self.size, self.full = allowed, 0, False
        self._intensity = _intensity(oof)
        self._made: dict[tuple[Path, int], str | None] = {}

    def of(self, path: Path, side_px: int) -> str | None:
        """Return a JPEG in base64; None if images are off, the page is full, or the image cannot be
        decoded.
        """
        if not self.allowed or self.full:
            return None
        if (path, side_px) not in self._made:
            self._made[path, side_px] = thumbnail(path, side_px, self._intensity)
        jpeg = self._made[path, side_px] or ""
        if self.size + len(jpeg) > MAX_BYTES:
            self.full = True
            return None
        self.size += len(jpeg)
        return jpeg or None


def _intensity(oof: OutOfFold) -> Intensity | None:
    from pipeline.data.intensity import stored_intensity

    return stored_intensity(oof.path / "fold-1")


def _own(oof: OutOfFold) -> bool:
    from pipeline.report.run_files import read_run_files

    return is_own(read_run_files(oof.path))


def _card(
    oof: OutOfFold, suspect: Suspect, near: Sequence[Neighbour], page_images: PageImages
) -> dict[str, Any]:
    row_id = oof.ids[suspect.row]
    image = oof.images[row_id][0]
    mark, label = _earlier(oof, suspect)
    return {
        "mark": mark,
        "label": label,
        "id": row_id,
        "cell": csv_cell(row_id),
        "given": suspect.given,
        "suggested": suspect.suggested,
        "score": suspect.score,
        "fold": oof.folds[suspect.row],
        "says": _says(oof, suspect),
        "file": image.path.name,
        "image": page_images.of(image.path, SMALL_PX),
        "near": [
            {
                "label": one.row.label,
                "likeness": one.likeness,
                "image": page_images.of(one.row.path, MARGIN_PX),
            }
            for one in near
        ],
    }


def csv_cell(text: str) -> str:
    """Return a cell as this project writes tables: guarded from spreadsheets, and in quotes if needed."""
    cell = guarded(text)
    return '"' + cell.replace('"', '""') + '"' if re.search('[,"\r\n]', cell) else cell


def _says(oof: OutOfFold, suspect: Suspect) -> str:
    """Describe the out-of-fold prediction for the given and the suggested label."""
    target, values = oof.target, oof.values[suspect.row]
    if target.kind == "continuous":
        return f"predicted {', '.join(brief(float(value)) for value in values)}"
    if target.kind == "binary":
        return f"probability of {target.names[1]}: {percent(float(values[0]))}"
    place = {name: number for number, name in enumerate(target.names)}
    if target.kind == "multilabel":
        differ = sorted(
            set(target.parts(suspect.given)) ^ set(target.parts(suspect.suggested)), key=place.__getitem__
        )
        return ", ".join(f"{name}: {percent(float(values[place[name]]))}" for name in differ)
    return ", ".join(
        f"{name}: {percent(float(values[place[name]]))}"
        for name in (suspect.given, suspect.suggested)
        if name in place
    )
