"""`make look`: what the page and the text say of a data folder, by the public command; planted copies, odd
images and labels are found.
"""

from __future__ import annotations

import errno
import inspect
import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import competitions
import numpy as np
import pandas as pd
import pytest
from browser import CHROMIUM, Browser
from competitions import Made
from PIL import Image

import train
from pipeline.competition.rows import Row
from pipeline.data.transforms import Preprocessing
from pipeline.errors import Interrupted, UserError
from pipeline.look import duplicates
from pipeline.look.copies import Copies
from pipeline.look.fact_store import FactStore
from pipeline.look.image_facts import ImageFacts, image_facts
from pipeline.look.model_input import _in_words
from pipeline.look.same_source import _groups, in_words
from pipeline.look.show import main
from pipeline.recipe import Recipe

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
    """Sixteen photos of two classes; 3 is a smaller copy of 1 with another label, 5 has the bytes of 4, test
    20 shows photo 2; 7 is black.
    """
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
    assert len(groups) == 16
    assert groups["1"] == groups["3"]
    assert groups["4"] == groups["5"]
    assert groups.nunique() == 14
    assert sorted(photos.rglob("*")) == before  # nothing is written into the data
    assert f"--set data.groups={tmp_path}/out/groups.csv" in text


def test_training_takes_the_groups(photos: Path, tmp_path: Path, tiny_backbone: Path) -> None:
    look(photos, tmp_path / "out")
    (photos / "train/7.png").unlink()
    photo(photos / "train/7.png", 7)
    groups = tmp_path / "out/groups.csv"
    flags = [*("--backbone", str(tiny_backbone)), *"--epochs 1 --batch-size 4 --accumulation-steps 1".split()]
    settings = ["--set", f"data.groups={groups}", "--set", "data.val_fraction=0.4"]
    assert train.main(["--data", str(photos), "--output", str(tmp_path / "run"), *flags, *settings]) == 0
    held = set(pd.read_csv(tmp_path / "run/val_predictions.csv", dtype=str)["id"])
    assert ("1" in held) == ("3" in held) and ("4" in held) == ("5" in held)


def test_a_changed_group_file_is_kept(photos: Path, tmp_path: Path) -> None:
    look(photos, tmp_path / "out")
    mine = "id,group\n1,mine\n"
    (tmp_path / "out/groups.csv").write_text(mine)
    look(photos, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").glob("groups*.csv") if path.read_text() == mine] != [
        "groups.csv"
    ]
    assert any(path.read_text() == mine for path in (tmp_path / "out").glob("groups*"))


def test_a_second_look_measures_no_image_again(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = look(photos, tmp_path / "out")
    from pipeline.look import measuring

    measured: list[Path] = []
    original = measuring.image_facts
    monkeypatch.setattr(
        measuring, "image_facts", lambda path, rule: measured.append(path) or original(path, rule)
    )
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


@pytest.mark.parametrize(
    ("auc", "word"), [(0.5, "chance"), (0.57, "nearly the same"), (0.7, "somewhat"), (0.95, "do not trust")]
)
def test_an_auc_is_said_in_words(auc: float, word: str) -> None:
    assert word in in_words(auc, 0.02)


def test_another_source_of_test_is_told(tmp_path: Path) -> None:
    made = competitions.label_table(tmp_path / "data", train=60, test=40)
    for path in (made.root).rglob("*"):
        if path.suffix in (".png", ".jpg") and "test" in path.parent.name:
            pixels = np.asarray(Image.open(path).convert("RGB")).astype(np.float32)
            Image.fromarray((pixels * 0.4).astype(np.uint8)).save(path)
    assert "do not trust the validation score" in " ".join(look(made.root, tmp_path / "out").split())


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
    for size in ("0", "inf", "nan"):
        with pytest.raises(UserError, match=f"--max-mb {size}"):
            main(["--data", str(photos), "--max-mb", size])


@pytest.mark.parametrize("name", ["facts.sqlite", "figures"])
def test_what_stands_in_the_way_is_named(photos: Path, tmp_path: Path, name: str) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "look.json").write_text("{}")
    (output / name).mkdir() if name == "facts.sqlite" else (output / name).touch()
    with pytest.raises(UserError, match=rf"{name}.* name another --output"):
        main(["--data", str(photos), "--output", str(output), "--no-cost"])


def test_a_damaged_image_is_named_and_a_sample_says_so(photos: Path, tmp_path: Path) -> None:
    (photos / "train/8.png").write_bytes(b"no image")
    assert "train/8.png" in look(photos, tmp_path / "out")
    assert "A sample: " in look(photos, tmp_path / "few", "--images", "10")


def test_the_cost_is_measured_with_a_backbone_here(photos: Path, tmp_path: Path, tiny_backbone: Path) -> None:
    assert (
        main(["--data", str(photos), "--output", str(tmp_path / "out"), "--backbone", str(tiny_backbone)])
        == 0
    )
    text = (tmp_path / "out/look.txt").read_text(encoding="utf-8")
    assert "an epoch" in text and "optimizer steps" in text
    assert json.loads((tmp_path / "out/look.json").read_text())["data"] == str(photos.resolve())


def test_a_copy_of_a_fine_texture_is_found_in_another_size(tmp_path: Path) -> None:
    """Decoded at a lower scale, a fine texture aliases in another way in each size: copies then looked like
    different images.
    """
    root = tmp_path / "data"
    for number in range(6):
        coarse = photo(tmp_path / "coarse.png", number).resize((400, 533), Image.Resampling.BICUBIC)
        grain = np.random.default_rng(100 + number).integers(0, 256, (178, 134), dtype=np.uint8)
        texture = Image.fromarray(grain).resize((400, 533), Image.Resampling.BICUBIC).convert("RGB")
        image = Image.blend(coarse, texture, 0.7)
        (root / f"train/{number % 2}").mkdir(parents=True, exist_ok=True)
        image.save(root / f"train/{number % 2}/{number}.jpg", quality=90)
        image.resize((280, 373)).save(root / f"train/{number % 2}/{number}-small.jpg", quality=70)
    look(root, tmp_path / "out")
    groups = pd.read_csv(tmp_path / "out/groups.csv", dtype=str)
    assert sorted(groups.groupby("group")["id"].apply(sorted)) == [
        [f"{number}", f"{number}-small"] for number in range(6)
    ]


def test_stopped_by_ctrl_c_the_same_command_goes_on(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.look import measuring

    original, measured = measuring.image_facts, []

    def until_the_seventh(path: Path, rule: object) -> object:
        measured.append(path)
        if len(measured) == 7:
            raise KeyboardInterrupt
        return original(path, rule)

    monkeypatch.setattr(measuring, "AT_ONCE", 3)
    monkeypatch.setattr(measuring, "image_facts", until_the_seventh)
    with pytest.raises(Interrupted, match="6 of 20 images"):
        look(photos, tmp_path / "out")
    again: list[Path] = []
    monkeypatch.setattr(
        measuring, "image_facts", lambda path, rule: again.append(path) or original(path, rule)
    )
    look(photos, tmp_path / "out")
    assert len(again) == 14 and not set(again) & set(measured[:6])


def test_an_image_that_a_failing_drive_does_not_give_is_named(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had no facts at all, which ended the command with a KeyError."""
    from pipeline.look import image_facts

    original = image_facts.opened

    def failing(path: Path) -> object:
        if Path(path).name == "9.png":
            raise OSError(errno.EIO, "Input/output error", str(path))
        return original(path)

    monkeypatch.setattr(image_facts, "opened", failing)
    looked = look(photos, tmp_path / "out")
    assert "train/9.png  Input/output error" in looked and "1 image cannot be decoded" in looked


def test_a_full_disk_is_one_message(tmp_path: Path) -> None:
    store = FactStore(tmp_path, None)
    pages = store._database.execute("pragma page_count").fetchone()[0]
    store._database.execute(f"pragma max_page_count = {pages}")
    with pytest.raises(UserError, match="cannot be written"):
        store.add([ImageFacts(f"{number}.png", 1, grey=bytes(4096)) for number in range(9)])
    store.close()


def test_flat_images_are_not_compared_pair_by_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """2,000 black images of different bytes took two minutes, 30,000 would take hours."""
    monkeypatch.setattr(duplicates, "_colours", lambda *_: pytest.fail("flat images were compared"))
    flat = [ImageFacts(f"{number}.png", number + 1, low=0, high=7, hash=b"\xff" * 8) for number in range(50)]
    store = FactStore(tmp_path, None)
    assert duplicates.find_duplicates(flat, store) == []
    store.close()


def test_the_frames_of_a_camera_are_compared_in_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3,000 frames took a minute, pair by pair; the sets are those of comparing every pair."""
    random, many = np.random.default_rng(0), 60
    scenes = random.integers(40, 216, (2, 64, 64, 3))
    facts, store = [], FactStore(tmp_path, None)
    for number in range(many):
        noise = random.integers(-8 * (number % 4), 8 * (number % 4) + 1, (64, 64, 3)) * 5 * (number % 7 == 0)
        frame = np.clip(scenes[number % 2] + noise + random.integers(-3, 4, (64, 64, 3)), 0, 255)
        file = tmp_path / f"{number:02}.png"
        Image.fromarray(frame.astype(np.uint8)).save(file)
        facts.append(image_facts(file))
    store.add(facts)
    monkeypatch.setattr(duplicates, "BLOCK", 7)
    found = duplicates.find_duplicates(facts, store)
    store.close()
    bits = np.unpackbits(np.array([list(one.hash) for one in facts], np.uint8), axis=1).astype(int)
    greys, colours = ([list(getattr(one, name)) for one in facts] for name in ("grey", "colour"))
    alike = (bits[:, None] != bits).sum(axis=2) <= 10
    alike &= (np.corrcoef(greys) >= 0.985) & (np.corrcoef(colours) >= 0.98)
    reached = np.linalg.matrix_power(alike.astype(float), many) > 0
    sets = {tuple(np.flatnonzero(row).tolist()) for row in reached}
    assert {twins.places for twins in found} == {places for places in sets if len(places) > 1}
    assert 2 <= len(found) < len(sets) and max(len(twins.places) for twins in found) > 7


def test_facts_that_another_command_writes_are_not_deleted(tmp_path: Path) -> None:
    FactStore(tmp_path, None).close()
    other = sqlite3.connect(tmp_path / "facts.sqlite")
    other.execute("begin exclusive")
    with pytest.raises(UserError, match=r"facts\.sqlite is used by another command"):
        FactStore(tmp_path, None, seconds=0.1)
    other.rollback()
    other.close()
    assert (tmp_path / "facts.sqlite").exists()


@pytest.mark.parametrize(
    ("resize_to", "said"), [(None, "to 32%"), (256, "to 51%"), ((256, 256), "to 36%"), (1000, "enlarged 2.0")]
)
def test_the_scale_of_a_crop_is_that_of_its_resize(resize_to: object, said: str) -> None:
    """The share of the image that a crop shows is no scale: 224 of 256 pixels was told as 32 percent."""
    rule = Preprocessing(224, 224, resize_to=resize_to)
    assert said in _in_words((1000, 500), rule, Recipe(backbone="any"))


def test_likely_groups_are_named_and_not_used(photos: Path, tmp_path: Path) -> None:
    table = pd.read_csv(photos / "train.csv")
    table["PatientID"] = [f"p{row // 4}" for row in range(len(table))]
    table.to_csv(photos / "train.csv", index=False)
    text = " ".join(look(photos, tmp_path / "out").split())
    assert "--set data.group_column=PatientID" in text and "none given" in text


@pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium to open the page in")
@pytest.mark.parametrize("width, dark", [(390, False), (1280, True)])
def test_the_page_fits_and_asks_for_nothing(photos: Path, tmp_path: Path, width: int, dark: bool) -> None:
    (photos / "train.csv").write_text((photos / "train.csv").read_text().replace("cat", "<b>" + "cat" * 30))
    sample = photos / "sample_submission.csv"
    sample.write_text(sample.read_text().replace("cat", "dog"))
    look(photos, tmp_path / "out")
    page = tmp_path / "out/look.html"
    with Browser(tmp_path / "profile") as browser:
        browser.open(page, width=width, dark=dark)
        browser.run("document.querySelectorAll('details').forEach(details => { details.open = true })")
        assert browser.run("document.documentElement.scrollWidth") <= width
        assert (
            browser.run("[...document.images].filter(image => !image.complete || !image.naturalWidth).length")
            == 0
        )
        assert browser.run("document.images.length") > 20
        assert browser.run("document.scripts.length") == 0
        assert browser.run("document.querySelectorAll('main b').length") == 0
        assert [address for address in browser.requests if not address.startswith("data:")] == [
            page.resolve().as_uri()
        ]
        assert browser.complaints == []


def test_an_id_in_two_sets_of_copies_joins_them() -> None:
    a, b, c, d = (Row(name, Path(f"{name}.png"), "x") for name in "abcd")
    sets = [Copies((a, b), (), True), Copies((c, d), (), True), Copies((b, c), (), False)]
    assert len(set(_groups([a, b, c, d], sets, 4))) == 1
    assert len(set(_groups([a, b, c, d], sets[:2], 4))) == 2
