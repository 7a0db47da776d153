"""Tables with many rows, names and images: what is found, without work or memory for each pair of them."""

from pathlib import Path

from pipeline.competition.class_folders import class_folders
from pipeline.competition.folder_columns import in_folders
from pipeline.competition.folders import DataFolder, Scan
from pipeline.competition.id_columns import find_ids
from pipeline.competition.ids import ImageIndex
from pipeline.competition.label_columns import Wanted
from pipeline.competition.parts import Parts
from pipeline.tables import Table


def folder_of(images):
    scans = {"": Scan(), "train": Scan(images=images)}
    return DataFolder(
        Path("data"), (), (), (), scans, Parts.read({name: scan.images for name, scan in scans.items()})
    )


def table_of(columns, rows):
    return Table(Path("data/train.csv"), columns, tuple(rows), tuple(range(2, len(rows) + 2)), ",", False)


def test_rows_of_one_id_share_the_images_that_it_may_mean():
    videos, frames = 300, 100  # 30,000 rows of 300 images each: 9 million paths
    folder = folder_of([f"train/v{video}/f{n}.png" for video in range(videos) for n in range(frames)])
    index = ImageIndex(folder, folder.of_part("train"))
    table = table_of(("video", "frame"), [(f"v{v}", f"f{n}") for v in range(videos) for n in range(frames)])
    cells = table.column("frame")
    match = index.match(cells)
    assert len({id(images) for images in match.images}) == len(match.different) == frames
    problems = match.problems(cells, table.lines, index, "")
    assert "or 295 more" in problems[0] and "29995 more" in problems[-1]
    assert len("".join(problems)) < 2000
    found = in_folders(table, "frame", match, index)
    assert found is not None and found[1] == "video"
    assert found[0].cells[101] == ("v1", "v1/f1")


def test_a_cell_of_ten_thousand_folders_is_no_path():
    index = ImageIndex(folder_of([]), ["train/1.png"])
    table = table_of(("a", "b"), [("a/" * 10_000 + "1.png", "x")])
    find_ids(table, index, groups=True)
    assert len(index._keys) < 20


def test_ends_of_ids_are_labels_behind_any_of_three_separators():
    wanted = Wanted(("label",), ("7_cat", "7-big dog", "7 fish", "7bird"))
    assert wanted.suffixed(["cat", "dog", "big dog", "fish", "bird", "7"]) == [
        "cat",
        "dog",
        "big dog",
        "fish",
    ]


def test_a_folder_with_the_names_of_others_is_no_class_but_one_that_holds_its_own_name_is():
    images = [f"train/{name}/{n}.png" for name in ("cat", "dog") for n in range(3)]
    copy = [f"train/more/{name}/{n}.png" for name in ("cat", "dog") for n in range(3)]
    own = [f"train/more/{name}/{n}.png" for name in ("cat", "more") for n in range(3)]
    assert list(class_folders(folder_of([*images, *copy]))[0].groups) == ["cat", "dog"]
    assert list(class_folders(folder_of([*images, *own]))[0].groups) == ["cat", "dog", "more"]
