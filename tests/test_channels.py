"""`make data CHANNELS=`: files of one channel each become one image; what is missing or odd is named."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.competition.layout import read_layout
from pipeline.errors import UserError
from pipeline.fetch import arrival, containers, install
from pipeline.fetch.originals import ORIGINALS, as_images
from pipeline.kaggle import cli
from pipeline.kaggle.remembered import remembered_slug

RGB = ("red", "green", "blue")
HPA = (*RGB, "yellow")
LEVELS = {"red": 10, "green": 90, "blue": 170, "yellow": 250}  # what each channel adds to the gradient
IDS = {"train": ["a-1", "b-2", "c.3"], "test": ["x", "y"]}


def plane(level: int, size: tuple[int, int] = (20, 16), dtype: type = np.uint8) -> np.ndarray:
    """A gradient of 0 to 4 (H, W) on a level of its own."""
    high, wide = size
    return (level + np.arange(high * wide).reshape(high, wide) % 5).astype(dtype)


def write(path: Path, values: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **options)
    return path


def tables(root: Path) -> None:
    (root / "train.csv").write_text("Id,Target\na-1,cat\nb-2,dog\nc.3,cat\n")
    (root / "sample_submission.csv").write_text("Id,Predicted\nx,cat\ny,cat\n")


def hpa(root: Path, name: str = "{id}_{channel}.png", channels: Sequence[str] = HPA) -> Path:
    for part, ids in IDS.items():
        for number, image_id in enumerate(ids):
            for channel in channels:
                file = root / part / name.format(id=image_id, channel=channel)
                write(file, plane(LEVELS[channel.lower()] + 5 * number))
    tables(root)
    return root


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def images(root: Path) -> list[str]:
    return sorted(
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path.suffix in (".png", ".jpg", ".tif") and ORIGINALS not in path.parts
    )


JOINED = sorted(f"{part}/{image_id}.png" for part, ids in IDS.items() for image_id in ids)


@pytest.fixture
def join(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`make data FROM=source CHANNELS=...` into `data`; what it printed. The source must be as it was."""

    def call(source: Path, channels: str = "red,green,blue", data: str = "data") -> str:
        def state() -> dict[str, tuple[int, int]]:
            files = [path for path in [source, *source.rglob("*")] if path.is_file()]
            return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}

        before = state()
        try:
            install.main(["--from", str(source), "--data", str(tmp_path / data), "--channels", channels])
        finally:
            assert state() == before, "the original was changed"
        return capsys.readouterr().out

    return call


def refused(join: Callable[..., str], source: Path, channels: str = "red,green,blue") -> str:
    with pytest.raises(UserError) as caught:
        join(source, channels)
    assert not (source.parent / "data").exists(), "something was left behind"
    return str(caught.value)


# ---- which files, and which plane ----


@pytest.mark.parametrize(
    "name", ["{id}_{channel}.png", "{id}-{channel}.png", "{id} {channel}.tif", "{id}/{channel}.png"]
)
def test_three_channels_become_one_image_in_their_order(tmp_path, join, name):
    said = join(hpa(tmp_path / "kaggle", name))
    assert images(tmp_path / "data") == JOINED
    for number, image_id in enumerate(IDS["train"]):
        pixels = pixels_of(tmp_path / f"data/train/{image_id}.png")
        assert pixels.shape == (20, 16, 3)
        for place, channel in enumerate(RGB):
            assert (pixels[..., place] == plane(LEVELS[channel] + 5 * number)).all(), channel
    assert "5 images from red, green, blue" in said and "yellow (5 files)" in said
    competition = read_layout(tmp_path / "data")
    assert len(competition.train) == 3 and len(competition.test) == 2
    assert not [path for path in (tmp_path / "data/train").iterdir() if path.is_dir()]


def test_the_order_of_the_names_decides_and_case_does_not(tmp_path, join):
    join(hpa(tmp_path / "kaggle", channels=[name.upper() for name in HPA]), "yellow, blue,red")
    pixels = pixels_of(tmp_path / "data/test/x.png")
    assert pixels[0, 0].tolist() == [250, 170, 10]


def test_two_channels_have_their_mean_as_blue_and_one_is_grey(tmp_path, join):
    assert "their mean blue" in join(hpa(tmp_path / "kaggle"), "red,blue", "two")
    assert pixels_of(tmp_path / "two/test/x.png")[0, :3].tolist() == [
        [10, 170, 90],
        [11, 171, 91],
        [12, 172, 92],
    ]
    assert "blue (5 files), green (5 files), yellow" in join(tmp_path / "kaggle", "red", "one")
    assert (pixels_of(tmp_path / "one/test/x.png") == plane(10)).all()


def test_sites_and_wells_keep_the_rest_of_their_names(tmp_path, join):
    for site in (
        "train/HEPG2-01/Plate1/B02_s1",
        "train/HEPG2-01/Plate2/B02_s1",
        "test/U2OS-01/Plate1/C03_s2",
    ):
        for number in range(1, 7):
            write(tmp_path / f"kaggle/{site}_w{number}.png", plane(10 * number))
    (tmp_path / "kaggle/train.csv").write_text("id_code,sirna\n")
    said = join(tmp_path / "kaggle", "w1,w2,w3")
    assert images(tmp_path / "data") == [
        "test/U2OS-01/Plate1/C03_s2.png",
        "train/HEPG2-01/Plate1/B02_s1.png",
        "train/HEPG2-01/Plate2/B02_s1.png",
    ]
    assert pixels_of(tmp_path / "data/test/U2OS-01/Plate1/C03_s2.png")[0, 0].tolist() == [10, 20, 30]
    assert "w1 becomes red" in said and "w4 (3 files), w5 (3 files), w6 (3 files)" in said


def test_other_images_stay_where_they_are(tmp_path, join):
    hpa(tmp_path / "kaggle")
    write(tmp_path / "kaggle/extra/map.png", plane(5))
    join(tmp_path / "kaggle")
    assert images(tmp_path / "data") == ["extra/map.png", *JOINED]


# ---- where it comes from ----


def test_an_archive_and_an_installed_folder(tmp_path, join):
    hpa(tmp_path / "plain")
    with zipfile.ZipFile(tmp_path / "hpa.zip", "w") as archive:
        for path in sorted((tmp_path / "plain").rglob("*.*")):
            archive.write(path, f"hpa/{path.relative_to(tmp_path / 'plain')}")
    join(tmp_path / "hpa.zip", data="from-archive")
    install.main(["--from", str(tmp_path / "plain"), "--data", str(tmp_path / "installed")])
    join(tmp_path / "installed", data="again")
    for name in ("from-archive", "again"):
        assert images(tmp_path / name) == JOINED
        assert (pixels_of(tmp_path / name / "train/b-2.png")[..., 1] == plane(95)).all()


def test_what_make_kernel_has_to_know_is_recorded(tmp_path, join):
    join(hpa(tmp_path / "kaggle"))
    converted = containers.read_converted(tmp_path / "data")
    assert converted and converted.describe() == "8 .png (such as test/x_blue.png)"


@pytest.mark.parametrize("deep", [False, True])
def test_hidden_images_are_joined_as_those_here(tmp_path, join, deep):
    """x is the training image b-2; y is much brighter, which must not change the levels of x."""
    scale, suffix = (100, "tif") if deep else (1, "png")
    values = {image_id: 5 * n for n, image_id in enumerate([*IDS["train"], *IDS["test"]])}
    for root, shown in (("kaggle", values), ("hidden", values | {"x": values["b-2"], "y": 60})):
        for part, ids in IDS.items():
            for image_id in ids if (root, part) != ("hidden", "train") else ():
                for channel in RGB:
                    level = (LEVELS[channel] // 2 + shown[image_id]) * scale
                    file = tmp_path / root / part / f"{image_id}_{channel}.{suffix}"
                    write(file, plane(level, dtype=np.uint16 if deep else np.uint8))
        tables(tmp_path / root)
    join(tmp_path / "kaggle")
    converted = containers.read_converted(tmp_path / "data")
    hidden = as_images(tmp_path / "hidden", converted)
    assert images(hidden) == ["test/x.png", "test/y.png"]
    assert (pixels_of(hidden / "test/x.png") == pixels_of(tmp_path / "data/train/b-2.png")).all()
    again = as_images(tmp_path / "data" / ORIGINALS, converted)
    for name in ("test/x.png", "test/y.png"):
        assert (again / name).read_bytes() == (tmp_path / "data" / name).read_bytes()
    assert as_images(tmp_path / "data", converted) == tmp_path / "data"  # joined already: placeholder rows


@pytest.mark.parametrize("deep", [False, True])
def test_hidden_channels_of_another_depth_are_refused(tmp_path, join, deep):
    for root, is_deep in (("kaggle", deep), ("hidden", not deep)):
        for part, ids in IDS.items():
            for name in (f"{part}/{image_id}" for image_id in ids):
                for channel in RGB:
                    kind = np.uint16 if is_deep and channel == "green" else np.uint8
                    write(tmp_path / root / f"{name}_{channel}.png", plane(LEVELS[channel], dtype=kind))
        tables(tmp_path / root)
    join(tmp_path / "kaggle")
    with pytest.raises(UserError, match="another depth") as caught:
        as_images(tmp_path / "hidden", containers.read_converted(tmp_path / "data"))
    assert "green: test/x_green.png" in str(caught.value) and "red:" not in str(caught.value)


def test_hidden_ids_that_lack_a_channel_are_damaged_images(tmp_path, join, capsys):
    """x stays whole; y lacks a channel, z has one of another size, v a damaged one."""
    join(hpa(tmp_path / "kaggle"))
    hidden = hpa(tmp_path / "hidden")
    for name in "zv":
        for channel in RGB:
            write(hidden / f"test/{name}_{channel}.png", plane(9))
    (hidden / "test/y_green.png").unlink()
    write(hidden / "test/z_red.png", plane(3, (8, 9)))
    (hidden / "test/v_blue.png").write_bytes(b"no image")
    capsys.readouterr()
    joined = as_images(hidden, containers.read_converted(tmp_path / "data"))
    sizes = {name: (joined / f"test/{name}.png").stat().st_size for name in "xyzv"}
    assert sizes["x"] > 0 and not any(sizes[name] for name in "yzv")
    assert images(joined) == [f"test/{name}.png" for name in "vxyz"]
    said = capsys.readouterr().out
    assert "3 damaged images" in said and "test/y_blue.png: no green beside it" in said


def test_an_interrupted_move_is_continued_with_the_same_channels(tmp_path, join, monkeypatch):
    hpa(tmp_path / "kaggle")

    def killed(work_dir: Path) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(arrival, "done", killed)
        with pytest.raises(SystemExit):
            join(tmp_path / "kaggle")
    with pytest.raises(UserError, match="--channels red,green,blue"):
        join(tmp_path / "kaggle", "red,green,yellow")
    join(tmp_path / "kaggle")
    assert images(tmp_path / "data") == JOINED


# ---- the content of a file ----


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_an_rgb_file_of_one_channel_is_that_channel(tmp_path, join, suffix):
    shades = (np.add.outer(np.arange(64), np.arange(64)) + 60).astype(np.uint8)
    held = {"red": [0], "green": [0, 1, 2], "blue": [2], "yellow": [0, 1]}  # planes that hold the values
    for part, ids in IDS.items():
        for image_id in ids:
            for channel, places in held.items():
                values = np.zeros((64, 64, 3), np.uint8)
                values[..., places] = shades[..., None]
                write(tmp_path / f"kaggle/{part}/{image_id}_{channel}{suffix}", values)
    tables(tmp_path / "kaggle")
    join(tmp_path / "kaggle", "red,green,blue", "rgb")
    join(tmp_path / "kaggle", "yellow", "yellow")
    far = {".png": 0, ".jpg": 12}[suffix]
    pixels = pixels_of(tmp_path / "rgb/train/a-1.png").astype(int)
    assert abs(pixels - shades[..., None]).max() <= far
    assert abs(pixels_of(tmp_path / "yellow/train/a-1.png").astype(int) - shades).max() <= far


def test_files_with_colours_are_refused_by_name(tmp_path, join):
    hpa(tmp_path / "kaggle")
    photo = np.stack([plane(200), plane(120), plane(40)], axis=-1)
    mark = np.full((20, 16, 3), 240, np.uint8)
    mark[5:9, 5:9] = (200, 60, 60)  # small, and all around it is nearly white
    for name, pixels in (("train/b-2_green.png", photo), ("test/y_red.png", mark)):
        write(tmp_path / "kaggle" / name, pixels)
    message = refused(join, tmp_path / "kaggle")
    assert "train/b-2_green.png holds colours" in message and "test/y_red.png holds colours" in message


def test_more_than_8_bits_have_one_range_for_each_channel(tmp_path, join):
    tops = {"red": 1000, "green": 4000, "blue": 60000}
    for part, ids in IDS.items():
        for number, image_id in enumerate(ids):
            for channel, top in tops.items():
                values = np.linspace(0, top, 400).reshape(20, 20) / (2 if number else 1)  # others are darker
                write(tmp_path / f"kaggle/{part}/{image_id}_{channel}.tif", values.astype(np.uint16))
    tables(tmp_path / "kaggle")
    said = join(tmp_path / "kaggle")
    bright, dark = (pixels_of(tmp_path / f"data/train/{name}.png") for name in ("a-1", "b-2"))
    assert bright[0, 0].tolist() == [0, 0, 0] and bright[-1, -1].tolist() == [255, 255, 255]
    assert np.abs(dark[-1, -1].astype(int) - 128).max() <= 3  # half as bright in every channel
    assert "one range of each channel for the whole set" in said


def test_files_of_one_channel_in_two_depths_are_refused(tmp_path, join):
    hpa(tmp_path / "kaggle")
    write(tmp_path / "kaggle/test/y_green.png", plane(900, dtype=np.uint16))
    message = refused(join, tmp_path / "kaggle")
    assert "green: test/y_green.png has more than 8 bits" in message and "red:" not in message


# ---- what is missing or damaged ----


def test_ids_that_lack_a_channel_are_listed_with_what_would_do(tmp_path, join):
    hpa(tmp_path / "kaggle")
    for name in ("train/a-1_green", "test/y_green", "test/y_blue"):
        (tmp_path / f"kaggle/{name}.png").unlink()
    write(tmp_path / "kaggle/train/b-2.red.png", plane(1))
    write(tmp_path / "kaggle/train/c.3.jpg", plane(1))
    message = refused(join, tmp_path / "kaggle")
    assert "train/a-1 has no green" in message and "test/y has no green, blue" in message
    assert "CHANNELS=red)" in message
    assert "train/b-2 has 2 files for red" in message and "train/c.3.jpg exists already" in message


def test_a_channel_that_no_file_has_is_named_with_those_there_are(tmp_path, join):
    message = refused(join, hpa(tmp_path / "kaggle"), "red,grean,blue")
    assert "..._grean" in message and "'green'" in message and "yellow" in message
    assert "..._red" not in message


@pytest.mark.parametrize(
    ("channels", "words"),
    [
        ("red,green,blue,yellow", "at most three"),
        ("red,Red", "twice"),
        ("red,,blue", "last part"),
        ("", "last part"),
        ("_red", "last part"),
        ("a/red", "last part"),
    ],
)
def test_names_that_are_no_channels(tmp_path, join, channels, words):
    message = refused(join, hpa(tmp_path / "kaggle"), channels)
    assert f"CHANNELS={channels}" in message and words in message


def test_a_public_set_has_no_channels(tmp_path):
    with pytest.raises(UserError, match=r"CHANNELS=.*cifar10"):
        install.main(["--dataset", "cifar10", "--data", str(tmp_path / "d"), "--channels", "red,green,blue"])


def test_files_of_different_size_are_listed(tmp_path, join):
    hpa(tmp_path / "kaggle")
    for name in ("train/b-2", "test/x"):
        write(tmp_path / f"kaggle/{name}_blue.png", plane(3, (8, 9)))
    message = refused(join, tmp_path / "kaggle")
    assert "train/b-2: red 16 x 20, green 16 x 20, blue 9 x 8" in message and "test/x:" in message


def test_damaged_files_are_named_and_stay_damaged_images(tmp_path, join):
    hpa(tmp_path / "kaggle")
    cut = tmp_path / "kaggle/train/b-2_green.png"
    noise = np.random.default_rng(0).integers(0, 256, (20, 16)).astype(np.uint8)
    cut.write_bytes(write(cut, noise).read_bytes()[:200])
    (tmp_path / "kaggle/test/y_blue.png").write_bytes(b"")
    said = join(tmp_path / "kaggle")
    assert "3 images from red" in said and "2 damaged images" in said
    assert "train/b-2_green.png: " in said and "test/y_blue.png: empty file" in said
    assert images(tmp_path / "data") == JOINED  # train.py names them, inference.py predicts without them
    assert (tmp_path / "data/train/b-2.png").read_bytes() == cut.read_bytes()
    assert len(read_layout(tmp_path / "data").test) == 2


def test_without_one_image_that_can_be_decoded_nothing_is_installed(tmp_path, join):
    hpa(tmp_path / "kaggle")
    for path in (tmp_path / "kaggle").rglob("*_red.png"):
        path.write_bytes(b"no image")
    message = refused(join, tmp_path / "kaggle")
    assert "train/a-1_red.png: not an image" in message and "test/y_red.png" in message


def test_a_download_from_kaggle_is_joined_and_another_try_needs_no_other_download(tmp_path, monkeypatch):
    hpa(tmp_path / "plain")
    packed = Path(shutil.make_archive(str(tmp_path / "hpa"), "zip", tmp_path / "plain"))
    monkeypatch.setattr(cli, "not_ready", list)
    monkeypatch.setattr(cli, "download", lambda slug, folder, tick: shutil.copy2(packed, folder / "hpa.zip"))
    given = ["--competition", "hpa", "--data", str(tmp_path / "data"), "--channels"]
    with pytest.raises(UserError, match=r"no image is called \.\.\._rot"):
        install.main([*given, "rot,green,blue"])
    install.main([*given, "red,green,blue"])
    assert images(tmp_path / "data") == JOINED
    assert remembered_slug(tmp_path / "data") == "hpa"
