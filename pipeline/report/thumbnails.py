"""Small pictures kept in the run folder, thumbnails.jsonl, so that its page can be rebuilt when the data is gone."""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from pipeline.data.images import load
from pipeline.data.intensity import Intensity, stored_intensity
from pipeline.data.opening import BadImage, opened
from pipeline.files import read_json_lines, write_json_lines
from pipeline.report.run_files import THUMBNAILS, RunFiles

if TYPE_CHECKING:
    from pipeline.competition.layout import Row

# A line is about 5 kB (measured on photographs): at most 2 MB. Beyond 60 classes one picture each, beyond 360 of every second class.
MAX_SAMPLES, SAMPLES_PER_CLASS = 360, 6
SAMPLE_PX, MISTAKE_PX = 112, 224


def store_samples(run_dir: Path, rows: Sequence[Row], class_names: Sequence[str]) -> None:
    """Keep thumbnails of training images, some of each class: always the same ones, evenly spaced over the class's rows."""
    by_class: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_class[row.label].append(row)
    shown = class_names[:: -(-len(class_names) // MAX_SAMPLES)]
    count = SAMPLES_PER_CLASS if len(shown) * SAMPLES_PER_CLASS <= MAX_SAMPLES else 1
    chosen = [row for name in shown for row in _spread(by_class[name], count)]
    intensity = stored_intensity(run_dir)
    with ThreadPoolExecutor() as pool:
        jpegs = pool.map(lambda row: thumbnail(row.path, SAMPLE_PX, intensity), chosen)
        lines = [
            {"use": "sample", "label": row.label, "path": str(row.path), "jpeg": jpeg} for row, jpeg in zip(chosen, jpegs, strict=True)
        ]
    write_json_lines(run_dir / THUMBNAILS, [line for line in lines if line["jpeg"]])


def samples(files: RunFiles) -> list[dict[str, Any]]:
    """For each class with samples, in the order they were stored: `name` and `pictures` (JPEG in base64)."""
    by_class: dict[str, list[str]] = {}
    for line in files.thumbnails:
        if line["use"] == "sample":
            by_class.setdefault(line["label"], []).append(line["jpeg"])
    return [{"name": name, "pictures": pictures} for name, pictures in by_class.items()]


def kept_pictures(files: RunFiles, rows: Sequence[dict[str, str]], use: str) -> list[str | None]:
    """A JPEG in base64 for each row of predictions: as kept for this `use`, else from the file, and then kept; None when the file is gone."""
    stored = read_json_lines(files.path / THUMBNAILS)
    kept = {line["path"]: line["jpeg"] for line in stored if line["use"] == use}
    intensity = stored_intensity(files.path)
    pictures = [kept.get(row["path"]) or _from_data(files, row["path"], intensity) for row in rows]
    lines = [line for line in stored if line["use"] != use]
    lines += [
        {"use": use, "label": row["label"], "path": row["path"], "jpeg": jpeg} for row, jpeg in zip(rows, pictures, strict=True) if jpeg
    ]
    if lines != stored:
        write_json_lines(files.path / THUMBNAILS, lines)
    return pictures


def thumbnail(path: Path, side_px: int, intensity: Intensity | None = None) -> str | None:
    """A small JPEG of an image, in base64; None when it cannot be decoded."""
    try:
        with opened(path) as file:
            image = load(file, side_px, intensity)
            image.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
    except BadImage:
        return None
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=75, optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _from_data(files: RunFiles, written_path: str, intensity: Intensity | None) -> str | None:
    candidates = [Path(written_path), Path(files.record.get("data") or ".") / written_path, files.path.resolve().parent / written_path]
    path = next((candidate for candidate in candidates if candidate.is_file()), None)
    return path and thumbnail(path, MISTAKE_PX, intensity)


def _spread(rows: Sequence[Row], count: int) -> list[Row]:
    """`count` rows (or all, where there are fewer), evenly spaced."""
    return [rows[len(rows) * number // count] for number in range(count)] if len(rows) > count else list(rows)
