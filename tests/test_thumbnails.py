"""Which images may come into a page that is meant to be sent: those of the data folder the run was made
with.
"""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest
from conftest import colour_patch
from PIL import Image

from pipeline.competition.rows import Row
from pipeline.report.run_files import read_run_files
from pipeline.report.thumbnails import kept_images, rows_by_label, thumbnail
from pipeline.run_names import INSTALLED
from pipeline.targets.target import Target


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with its data, a run on it, and an image that is nobody's business."""
    colour_patch(tmp_path / "project/data/train/cat/1.png", (200, 50, 40), 1)
    colour_patch(tmp_path / "elsewhere/scans/2.png", (200, 50, 40), 2)
    colour_patch(tmp_path / "private/letter.png", (40, 50, 200), 3)
    (tmp_path / "project/data/linked").symlink_to(tmp_path / "elsewhere/scans")
    folder = tmp_path / "project/run"
    folder.mkdir()
    write(folder, data="data")
    monkeypatch.chdir(tmp_path / "project")
    return folder


def write(folder: Path, **values: object) -> None:
    (folder / "run.json").write_text(json.dumps({"format": 1, "class_names": ["cat", "dog"]} | values))


def shown(run: Path, path: str | Path) -> bool:
    row = {"path": str(path), "label": "cat"}
    (run / "thumbnails.jsonl").unlink(missing_ok=True)
    (found,) = kept_images(read_run_files(run), [row], "mistake")
    assert (
        "jpeg" in (run / "thumbnails.jsonl").read_text() if found else not (run / "thumbnails.jsonl").exists()
    )
    return found is not None


def test_images_of_the_data_folder_are_shown_however_they_are_named(run: Path) -> None:
    data = run.parent / "data"
    for path in (
        "data/train/cat/1.png",
        "train/cat/1.png",
        data / "train/cat/1.png",
        "data/linked/2.png",
        "data/x/../train/cat/1.png",
    ):
        assert shown(run, path), path


def test_no_other_image_on_the_disk_gets_into_the_page(run: Path, tmp_path: Path) -> None:
    private = tmp_path / "private/letter.png"
    for path in (private, "../private/letter.png", "data/../../private/letter.png", os.path.relpath(private)):
        assert not shown(run, path), path


@pytest.mark.parametrize("data", ["/", "~", "..", None, ""])
def test_a_data_folder_that_is_everything_counts_as_none(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(run, data=str(tmp_path) if data == "~" else data)
    assert not shown(run, tmp_path / "private/letter.png")


def test_what_a_release_says_of_paths_counts_nothing(run: Path, tmp_path: Path) -> None:
    write(run, data=str(tmp_path / "private"))
    (run / INSTALLED).write_text("{}")
    assert not shown(run, tmp_path / "private/letter.png")


def test_before_run_json_is_written_the_start_names_the_folder(run: Path) -> None:
    (run / "run.json").unlink()
    (run / "metrics.jsonl").write_text('{"epoch": 1}\n')
    (run / "state").mkdir()
    (run / "state/start.json").write_text(json.dumps({"recipe": {}, "data": "data"}))
    assert shown(run, "data/train/cat/1.png")


@pytest.mark.parametrize("name", ["long.gif", "long.jpg"])
def test_a_comment_in_a_file_does_not_get_into_the_page(tmp_path: Path, name: str) -> None:
    """A GIF may have a longer comment than a JPEG can hold: then saving the small image failed."""
    comment = b"nobody's business " * (10_000 if name.endswith("gif") else 100)
    Image.new("RGB", (40, 40), (200, 50, 40)).save(tmp_path / name, comment=comment)
    jpeg = base64.b64decode(thumbnail(tmp_path / name, 112) or "")
    assert jpeg.startswith(b"\xff\xd8") and b"business" not in jpeg


def test_rows_without_the_first_number_are_in_no_range() -> None:
    target = Target("continuous", ("x", "y"), separator="|")
    labels = ["|1", "5|1", "|2", "1|3", "9|1", "|1", "3|1", "2|2", "|4", "8|8"]
    groups = rows_by_label([Row(label, Path(label), label) for label in labels], target)
    assert [(name, [row.id for row in rows]) for name, rows in groups.items()] == [
        (f"{number:g} to {number:g}", [label])
        for number, label in ((1, "1|3"), (2, "2|2"), (3, "3|1"), (5, "5|1"), (8, "8|8"), (9, "9|1"))
    ]
