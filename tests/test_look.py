"""`make look`: what the page and the text say of a data folder, by the public command; planted copies, odd images and labels are found."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import competitions
import numpy as np
import pandas as pd
import pytest
from competitions import Made
from PIL import Image

import train
from pipeline.errors import UserError
from pipeline.look.same_source import in_words
from pipeline.look.show import main

KINDS = [
    function
    for _, function in inspect.getmembers(competitions, inspect.isfunction)
    if inspect.signature(function).return_annotation == "Made"
]
KINDS = [function for function in KINDS if not function.__name__.startswith("_")]


def look(data: Path, output: Path, *flags: str) -> str:
    """The text of a look without the cost of training."""
    assert main(["--data", str(data), "--output", str(output), "--no-cost", *flags]) == 0
    assert (output / "look.html").stat().st_size > 2000
    return (output / "look.txt").read_text(encoding="utf-8")


def photo(path: Path, seed: int, size: int = 96) -> Image.Image:
    """A smooth random image, which keeps its looks when it is made smaller or saved as JPEG."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    made = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save(path)
    return made


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Sixteen photos of two classes; 3 is a smaller copy of 1 with another label, 5 has the bytes of 4, test 20 shows photo 2; 7 is black."""
    root = tmp_path / "a set"
    shown = [photo(root / f"train/{number}.png", number) for number in range(1, 17)]
    shown[0].resize((64, 64)).save(root / "train/3.png")
    shutil.copy(root / "train/4.png", root / "train/5.png")
    Image.new("RGB", (96, 96)).save(root / "train/7.png")
    for number in range(20, 24):
        photo(root / f"test/{number}.jpg", number)
    shown[1].save(root / "test/20.jpg", quality=80)
    labels = pd.DataFrame({"id": range(1, 17), "label": ["cat", "dog"] * 8})
    labels.loc[labels["id"].isin([3, 5]), "label"] = "dog"
    labels.to_csv(root / "train.csv", index=False)
    pd.DataFrame({"id": range(20, 24), "label": "cat"}).to_csv(root / "sample_submission.csv", index=False)
    return root


def test_planted_copies_and_odd_images_are_found(photos: Path, tmp_path: Path) -> None:
    before = sorted(photos.rglob("*"))
    text = " ".join(look(photos, tmp_path / "out").split())
    assert "The same image with different labels: 1 set, 2 training images" in text
    assert "1 of 4 test images" in text and "7.png" in text
    groups = pd.read_csv(tmp_path / "out/groups.csv", dtype=str).set_index("id")["group"]
    assert len(groups) == 16 and groups["1"] == groups["3"] and groups["4"] == groups["5"] and groups.nunique() == 14
    assert sorted(photos.rglob("*")) == before  # nothing is written into the data
    assert f"--set data.groups={tmp_path}/out/groups.csv" in text


def test_training_takes_the_groups(photos: Path, tmp_path: Path, tiny_backbone: Path) -> None:
    look(photos, tmp_path / "out")
    (photos / "train/7.png").unlink()
    photo(photos / "train/7.png", 7)
    groups = tmp_path / "out/groups.csv"
    flags = ["--backbone", str(tiny_backbone), "--epochs", "1", "--batch-size", "4", "--accumulation-steps", "1"]
    settings = ["--set", f"data.groups={groups}", "--set", "data.val_fraction=0.4"]
    assert train.main(["--data", str(photos), "--output", str(tmp_path / "run"), *flags, *settings]) == 0
    held = set(pd.read_csv(tmp_path / "run/val_predictions.csv", dtype=str)["id"])
    assert ("1" in held) == ("3" in held) and ("4" in held) == ("5" in held)


def test_a_changed_group_file_is_kept(photos: Path, tmp_path: Path) -> None:
    look(photos, tmp_path / "out")
    mine = "id,group\n1,mine\n"
    (tmp_path / "out/groups.csv").write_text(mine)
    look(photos, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").glob("groups*.csv") if path.read_text() == mine] != ["groups.csv"]
    assert any(path.read_text() == mine for path in (tmp_path / "out").glob("groups*"))


def test_a_second_look_measures_no_image_again(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = look(photos, tmp_path / "out")
    from pipeline.look import measuring

    measured: list[Path] = []
    original = measuring.image_facts
    monkeypatch.setattr(measuring, "image_facts", lambda path, rule: measured.append(path) or original(path, rule))
    assert look(photos, tmp_path / "out") == first and not measured
    photo(photos / "train/9.png", 99)
    look(photos, tmp_path / "out")
    assert measured == [photos / "train/9.png"]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_of_competition_is_looked_at(kind: Callable[[Path], Made], tmp_path: Path) -> None:
    made = kind(tmp_path / "data")
    text = look(made.root, tmp_path / "out", *made.flags)
    assert "target" in text and "Duplicates" in text and "Odd images" in text


def test_the_page_without_images_holds_none(photos: Path, tmp_path: Path) -> None:
    look(photos, tmp_path / "with")
    look(photos, tmp_path / "without", "--no-images")
    pages = [(tmp_path / name / "look.html").read_text(encoding="utf-8") for name in ("with", "without")]
    assert [page.count("data:image/jpeg") > 0 for page in pages] == [True, False]


def test_a_page_keeps_below_its_limit(photos: Path, tmp_path: Path) -> None:
    look(photos, tmp_path / "whole")
    bare = look(photos, tmp_path / "bare", "--no-images") and (tmp_path / "bare/look.html").stat().st_size
    whole = (tmp_path / "whole/look.html").stat().st_size
    limit = (bare + whole) // 2
    look(photos, tmp_path / "out", "--max-mb", str(limit / 1e6))
    assert bare < (tmp_path / "out/look.html").stat().st_size <= limit
    with pytest.raises(UserError, match="--max-mb"):
        look(photos, tmp_path / "small", "--max-mb", "0.01")


@pytest.mark.parametrize(("auc", "word"), [(0.5, "chance"), (0.57, "nearly the same"), (0.7, "somewhat"), (0.95, "lie")])
def test_an_auc_is_said_in_words(auc: float, word: str) -> None:
    assert word in in_words(auc, 0.02)


def test_another_source_of_test_is_told(tmp_path: Path) -> None:
    made = competitions.label_table(tmp_path / "data", train=60, test=40)
    for path in (made.root).rglob("*"):
        if path.suffix in (".png", ".jpg") and "test" in path.parent.name:
            pixels = np.asarray(Image.open(path).convert("RGB")).astype(np.float32)
            Image.fromarray((pixels * 0.4).astype(np.uint8)).save(path)
    assert "expect the validation score to lie" in " ".join(look(made.root, tmp_path / "out").split())


def test_what_cannot_be_looked_at_is_one_message(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing is written"):
        main(["--data", str(photos), "--output", str(photos / "look"), "--no-cost"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other files"):
        main(["--data", str(photos), "--output", str(tmp_path / "mine"), "--no-cost"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty"):
        main(["--data", str(tmp_path / "empty"), "--output", str(tmp_path / "new"), "--no-cost"])
    with pytest.raises(UserError, match="--images 1"):
        main(["--data", str(photos), "--images", "1"])


def test_a_damaged_image_is_named_and_a_sample_says_so(photos: Path, tmp_path: Path) -> None:
    (photos / "train/8.png").write_bytes(b"no image")
    assert "train/8.png" in look(photos, tmp_path / "out")
    assert "A sample: " in look(photos, tmp_path / "few", "--images", "10")


def test_the_cost_is_measured_with_a_backbone_here(photos: Path, tmp_path: Path, tiny_backbone: Path) -> None:
    assert main(["--data", str(photos), "--output", str(tmp_path / "out"), "--backbone", str(tiny_backbone)]) == 0
    text = (tmp_path / "out/look.txt").read_text(encoding="utf-8")
    assert "an epoch" in text and "optimizer steps" in text
    assert json.loads((tmp_path / "out/look.json").read_text())["data"] == str(photos.resolve())
