"""The demo's two competitions: what they hold, that they come out the same each time, and that nothing of a
user's is touched.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from pipeline import demo_data
from pipeline.competition.layout import read_layout
from pipeline.errors import UserError


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "digits"
    demo_data.lay_out_digits(folder)
    return folder


@pytest.fixture(scope="module")
def measured() -> np.ndarray:
    return demo_data.distance_fields(list(demo_data.glyph_classes().values()))


@pytest.fixture
def quick_glyphs(measured: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring the fonts takes seconds and always gives the same."""
    monkeypatch.setattr(demo_data, "distance_fields", lambda chars: measured)


def test_digits_read_as_a_competition(digits: Path) -> None:
    competition = read_layout(digits)
    assert competition.class_names == tuple("0123456789")
    assert len(competition.train) == 1437
    assert len(competition.test) == 360
    assert competition.form is not None
    assert competition.form.value_columns == ("label",)
    assert competition.form.kind == "label"
    assert {row.id for row in competition.test} == {path.stem for path in (digits / "test").iterdir()}


def test_digits_are_split_alike_and_none_is_lost(digits: Path) -> None:
    whole = load_digits()
    expected = Counter(picture.tobytes() for picture in demo_data.enlarge(whole.images / 16))
    found, shares = Counter(), {}
    solution = {row["id"]: row["label"] for row in read_csv(digits / "solution.csv")}
    held_back = Counter(solution.values())
    for path in [*digits.glob("train/*/*.png"), *digits.glob("test/*.png")]:
        with Image.open(path) as image:
            assert (image.mode, image.size) == ("L", (32, 32)), path
            found[np.asarray(image).tobytes()] += 1
    for label in "0123456789":
        shares[label] = held_back[label] / (
            held_back[label] + len(list((digits / "train" / label).iterdir()))
        )
    assert found == expected
    assert all(0.18 < share < 0.22 for share in shares.values()), shares


def test_solution_names_the_digit_that_is_in_the_image(digits: Path) -> None:
    whole = load_digits()
    label_of = {
        picture.tobytes(): str(label)
        for picture, label in zip(demo_data.enlarge(whole.images / 16), whole.target, strict=True)
    }
    rows = read_csv(digits / "solution.csv")
    assert len(rows) == 360
    for row in rows:
        with Image.open(digits / "test" / f"{row['id']}.png") as image:
            assert label_of[np.asarray(image).tobytes()] == row["label"], row


def test_sample_submission_gives_nothing_away(digits: Path) -> None:
    sample, solution = read_csv(digits / "sample_submission.csv"), read_csv(digits / "solution.csv")
    assert [row["id"] for row in sample] == [row["id"] for row in solution]
    assert {row["label"] for row in sample} == {"0"}
    in_order = [row["label"] for row in solution]
    repeats = sum(a == b for a, b in pairwise(in_order))
    assert repeats < 72, "neighbouring ids share a digit more often than chance"  # 36 expected


def test_digits_come_out_the_same(digits: Path, tmp_path: Path) -> None:
    demo_data.lay_out_digits(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(digits)


def test_enlarging_is_pillows_bicubic() -> None:
    coarse = np.random.default_rng(0).random((3, 8, 8)).astype(np.float32)
    for picture, small in zip(demo_data.enlarge(coarse), coarse, strict=True):
        pillow = np.asarray(Image.fromarray(small * 255).resize((32, 32), Image.Resampling.BICUBIC)).clip(
            0, 255
        )
        assert np.abs(picture - pillow).max() < 0.51
    assert set(np.unique(demo_data.enlarge(np.full((1, 8, 8), 0.2)))) == {51}


def test_a_folder_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    demo_data.lay_out_digits(tmp_path / "digits")
    (tmp_path / "digits" / "notes.txt").write_text("mine")
    (tmp_path / "digits" / "sample_submission.csv").write_text("id,label\nmine,7\n")
    before = contents(tmp_path / "digits")
    demo_data.lay_out_digits(tmp_path / "digits")
    assert contents(tmp_path / "digits") == before


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "digits").mkdir()
    demo_data.lay_out_digits(tmp_path / "digits")
    assert len(list((tmp_path / "digits" / "test").iterdir())) == 360


def test_a_folder_of_the_users_is_refused_and_kept(tmp_path: Path) -> None:
    photo = tmp_path / "data" / "train" / "cat" / "1.jpg"
    photo.parent.mkdir(parents=True)
    photo.write_bytes(b"a photo")
    for lay_out in (demo_data.lay_out_digits, demo_data.lay_out_glyphs):
        with pytest.raises(UserError, match="the demo did not make"):
            lay_out(tmp_path / "data")
    assert contents(tmp_path) == {os.path.join("data", "train", "cat", "1.jpg"): b"a photo"}


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("mine")
    with pytest.raises(UserError, match=r"is a file"):
        demo_data.lay_out_digits(tmp_path / "data")
    assert (tmp_path / "data").read_text() == "mine"


def test_a_folder_with_images_missing_is_refused(tmp_path: Path) -> None:
    demo_data.lay_out_digits(tmp_path / "digits")
    next((tmp_path / "digits" / "test").iterdir()).unlink()
    with pytest.raises(UserError, match="has 1796 images where the demo made 1797"):
        demo_data.lay_out_digits(tmp_path / "digits")


def test_an_interruption_leaves_nothing_behind(
    tmp_path: Path, quick_glyphs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def interrupted(path: Path, picture: np.ndarray) -> None:
        calls.append(path)
        if len(calls) > 50:
            raise KeyboardInterrupt
        Image.fromarray(picture).save(path)

    monkeypatch.setattr(demo_data, "_save_png", interrupted)
    for lay_out in (demo_data.lay_out_digits, demo_data.lay_out_glyphs):
        calls.clear()
        with pytest.raises(KeyboardInterrupt):
            lay_out(tmp_path / "inside" / "data")
    assert list((tmp_path / "inside").iterdir()) == []


def test_glyphs_read_as_a_competition(tmp_path: Path, quick_glyphs: None) -> None:
    demo_data.lay_out_glyphs(tmp_path / "glyphs", per_class=3)
    competition = read_layout(tmp_path / "glyphs", need="train")
    assert set(competition.class_names) == set(demo_data.glyph_classes())
    assert Counter(row.label for row in competition.train) == dict.fromkeys(demo_data.glyph_classes(), 3)
    for row in competition.train:
        with Image.open(row.path) as image:
            assert (image.mode, image.size) == ("L", (32, 32))
            low, high = image.getextrema()
            assert high - low > 60, f"{row.path} is blank"


def test_class_folders_are_safe_where_case_does_not_count() -> None:
    classes = demo_data.glyph_classes()
    assert len({name.casefold() for name in classes}) == len(classes)
    assert all(name.isascii() and name.isidentifier() for name in classes)


def test_glyphs_follow_the_seed(tmp_path: Path, quick_glyphs: None) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        demo_data.lay_out_glyphs(tmp_path / name, per_class=2, seed=seed)
    pictures = {
        name: [data for path, data in contents(tmp_path / name).items() if path.endswith(".png")]
        for name in "abc"
    }
    assert pictures["a"] == pictures["b"]
    assert sum(a != c for a, c in zip(pictures["a"], pictures["c"], strict=True)) > 0.95 * len(pictures["a"])


def test_glyphs_of_another_size_are_refused(tmp_path: Path, quick_glyphs: None) -> None:
    demo_data.lay_out_glyphs(tmp_path / "glyphs", per_class=1)
    before = contents(tmp_path)
    demo_data.lay_out_glyphs(tmp_path / "glyphs", per_class=1)
    with pytest.raises(UserError, match=r"per_class 1 .*2"):
        demo_data.lay_out_glyphs(tmp_path / "glyphs", per_class=2)
    with pytest.raises(UserError, match=r"glyphs .*digits"):
        demo_data.lay_out_digits(tmp_path / "glyphs")
    assert contents(tmp_path) == before


def test_a_missing_font_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_data, "FONTS", ("DejaVuSans", "NoSuchFont"))
    with pytest.raises(UserError, match="has no NoSuchFont"):
        demo_data.distance_fields("a")


def test_distances_measure_the_drawn_letter(measured: np.ndarray) -> None:
    assert measured.shape == (len(demo_data.FONTS), 50, 64, 64)
    chars = list(demo_data.glyph_classes().values())
    sans = measured[demo_data.FONTS.index("DejaVuSans")]
    ring, bar = sans[chars.index("0")], sans[chars.index("l")]
    assert ring[32, 32] < -5, "a nought has a hole"
    assert bar[32, 32] > 1, "an l has none"
    for field in measured.reshape(-1, 64, 64):
        rows, columns = (np.flatnonzero((field > 0).any(axis)) for axis in (1, 0))
        assert 36 <= max(np.ptp(rows), np.ptp(columns)) + 1 <= 42


def test_images_differ_and_are_mostly_as_coarse_as_digits(measured: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    pictures = demo_data.draw(np.repeat(measured[:1, 10], 200, axis=0), rng)
    assert len({picture.tobytes() for picture in pictures}) == 200
    matches = [_is_enlarged(picture) for picture in pictures]
    assert 0.7 < np.mean(matches) < 0.9


def _is_enlarged(picture: np.ndarray) -> bool:
    """True when 8 x 8 values explain the image, which no sharply drawn letter allows."""
    weights = np.asarray(
        Image.fromarray(np.eye(8, dtype=np.float32)).resize((8, 32), Image.Resampling.BICUBIC)
    )
    inverse = np.linalg.pinv(weights)
    again = weights @ (inverse @ picture @ inverse.T) @ weights.T
    return float(np.abs(again - picture).mean()) < 3
