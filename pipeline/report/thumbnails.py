"""Store small images in the run folder (thumbnails.jsonl), so that its page can be rebuilt when the data is
gone.
"""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from pipeline.data.images import load
from pipeline.data.intensity import Intensity, stored_intensity
from pipeline.data.opening import BadImage, opened
from pipeline.files import write_json_lines
from pipeline.report.run_files import RunFiles, read_thumbnails
from pipeline.run_names import INSTALLED, THUMBNAILS
from pipeline.targets.target import Target, multiclass

if TYPE_CHECKING:
    from pipeline.competition.rows import Row

# A line has about 5 kB (measured on photographs): at most 2 MB. With more than 60 classes one image each;
# with more than 360 not every class.
MAX_SAMPLES, SAMPLES_PER_CLASS = 360, 6
SMALL_PX, LARGE_PX, MARGIN_PX = 112, 224, 72
LARGE_USES = ("mistake", "question")  # few per page
NUMBER_GROUPS = 6


def store_samples(run_dir: Path, rows: Sequence[Row], target: Target | Sequence[str]) -> None:
    """Store thumbnails of training images for each class, evenly spaced over its rows, so that they are
    always the same.

    `target`: the target of the labels, or class names. An image is stored under each of its labels, under its
    grade, or under the range that its number is in.
    """
    by_class = rows_by_label(rows, target if isinstance(target, Target) else multiclass(target))
    names = list(by_class)
    shown = names[:: -(-len(names) // MAX_SAMPLES)] if names else []
    count = SAMPLES_PER_CLASS if len(shown) * SAMPLES_PER_CLASS <= MAX_SAMPLES else 1
    chosen = [(name, row) for name in shown for row in _spread(by_class[name], count)]
    intensity = stored_intensity(run_dir)
    with ThreadPoolExecutor() as pool:
        jpegs = pool.map(lambda pair: thumbnail(pair[1].path, SMALL_PX, intensity), chosen)
        lines = [
            {"use": "sample", "label": name, "path": str(row.path), "jpeg": jpeg}
            for (name, row), jpeg in zip(chosen, jpegs, strict=True)
        ]
    write_json_lines(run_dir / THUMBNAILS, [line for line in lines if line["jpeg"]])


def rows_by_label(rows: Sequence[Row], target: Target) -> dict[str, list[Row]]:
    """Return the rows of each class, grade or label, in order; numbers in `NUMBER_GROUPS` ranges with about
    equal counts, without rows that lack the first number.
    """
    if target.kind == "continuous":
        numbers = target.encode([row.label for row in rows])[:, 0].tolist()
        known = [place for place, number in enumerate(numbers) if not math.isnan(number)]
        known.sort(key=numbers.__getitem__)
        cuts = [len(known) * part // NUMBER_GROUPS for part in range(NUMBER_GROUPS + 1)]
        groups: dict[str, list[Row]] = {}
        for part in (known[low:high] for low, high in pairwise(cuts) if high > low):
            name = f"{numbers[part[0]]:g} to {numbers[part[-1]]:g}"
            groups.setdefault(name, []).extend(rows[place] for place in part)
        return groups
    by_class: dict[str, list[Row]] = {name: [] for name in target.names}
    for row in rows:
        if target.kind == "binary":
            names = [target.names[row.label in target.positive]]
        else:
            names = target.parts(row.label) if target.kind == "multilabel" else [row.label]
        for name in names:
            by_class[name].append(row)
    return by_class


def samples(files: RunFiles) -> list[dict[str, Any]]:
    """Return `name` and `images` (JPEG in base64) for each class with samples, in stored order."""
    by_class: dict[str, list[str]] = {}
    for line in files.thumbnails if files.images else []:
        if line["use"] == "sample":
            by_class.setdefault(line["label"], []).append(line["jpeg"])
    return [{"name": name, "images": images} for name, images in by_class.items()]


def kept_images(
    files: RunFiles, rows: Sequence[dict[str, str]], use: str, budget: int | None = None
) -> list[str | None]:
    """Return a JPEG in base64 for each row of predictions: a stored one for this `use`, else from the file,
    then stored.

    None if the file is gone, or if the page shows no images. With a `budget` in bytes, only the first rows
    that fit.
    """
    if not files.images:
        return [None] * len(rows)
    stored = read_thumbnails(files.path)
    images = _within(found_images(files, rows, use, stored), budget)
    lines = [line for line in stored if line["use"] != use]
    lines += [
        {"use": use, "label": row["label"], "path": row["path"], "jpeg": jpeg}
        for row, jpeg in zip(rows, images, strict=False)
        if jpeg
    ]
    if lines != stored:
        write_json_lines(files.path / THUMBNAILS, lines)
    return images


def found_images(
    files: RunFiles, rows: Sequence[dict[str, str]], use: str, stored: Sequence[dict[str, str]] | None = None
) -> list[str | None]:
    """Return the images as `kept_images` does, without storing; `stored`: the lines of thumbnails.jsonl, if
    already read.
    """
    if not files.images:
        return [None] * len(rows)
    kept = {
        line["path"]: line["jpeg"]
        for line in (files.thumbnails if stored is None else stored)
        if line["use"] == use
    }
    intensity, side = stored_intensity(files.path), LARGE_PX if use in LARGE_USES else SMALL_PX
    with ThreadPoolExecutor() as pool:
        return list(
            pool.map(
                lambda row: kept.get(row["path"]) or _from_data(files, row["path"], intensity, side), rows
            )
        )


def _within(images: Sequence[str | None], budget: int | None) -> list[str | None]:
    """Return the first images that fit into `budget` bytes."""
    room = math.inf if budget is None else budget
    for count, image in enumerate(images):
        room -= len(image or "")
        if room < 0:
            return list(images[:count])
    return list(images)


def thumbnail(path: Path, side_px: int, intensity: Intensity | None = None) -> str | None:
    """Return a small JPEG of an image in base64; None if it cannot be decoded."""
    try:
        with opened(path) as file:
            image = load(file, side_px, intensity)
            image.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
    except BadImage:
        return None
    image.info = {}  # a comment in the file would go into the page, and above 64 kB no JPEG can hold it
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=75, optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _from_data(files: RunFiles, written_path: str, intensity: Intensity | None, side_px: int) -> str | None:
    """Return an image from the run's own data folder only: pages are sent to others, and tables may be
    forged.
    """
    base = files.path.resolve().parent
    roots = [os.path.abspath(place / files.told["data"]) for place in (Path(), base)] if is_own(files) else []
    candidates = [Path(written_path), *(Path(root) / written_path for root in roots), base / written_path]
    # links are not followed: links in the data folder are the user's own
    for candidate in map(os.path.abspath, candidates):
        if any(Path(candidate).is_relative_to(root) for root in roots) and os.path.isfile(candidate):
            return thumbnail(Path(candidate), side_px, intensity)
    return None


def is_own(files: RunFiles) -> bool:
    """Return True for a run made on this machine with a data folder that is not the whole disk or home.

    Paths in a downloaded release are not trusted.
    """
    if (files.path / INSTALLED).exists() or not files.told.get("data"):
        return False
    return Path(files.told["data"]).resolve() not in (Path.home().resolve(), *Path.home().resolve().parents)


def _spread(rows: Sequence[Row], count: int) -> list[Row]:
    """Return `count` evenly spaced rows, or all if there are fewer."""
    return [rows[len(rows) * number // count] for number in range(count)] if len(rows) > count else list(rows)
