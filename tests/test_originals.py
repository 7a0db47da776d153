"""The hidden test set of a code competition is converted to images as `make data` converted the others."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import train
from pipeline.competition.layout import read_layout
from pipeline.errors import UserError
from pipeline.fetch import install, originals
from pipeline.fetch.containers import CONVERTED, read_converted
from pipeline.fetch.originals import ORIGINALS, as_images
from pipeline.fetch.pixels import save
from pipeline.fetch.staged_rows import is_for_training
from pipeline.kernel import make
from pipeline.tables import write_table
from tests.test_containers import ROOT, dicom, grey, names, pixels_of, png, put, record, sample

SIZE = 16
TRAIN = {f"a{number}": grey(number, SIZE) * 3.5 - 100 for number in range(8)}
TEST = {f"b{number}": grey(number + 40, SIZE) * 3.5 - 100 for number in range(3)}
# The first is a training image. The others are much brighter: they must not change its grey levels
HIDDEN = {"h0": TRAIN["a3"]} | {f"h{number}": TRAIN["a3"] * 9 for number in range(1, 5)}
Images = dict[str, np.ndarray]


def labels(root: Path) -> None:
    write_table(root / "train.csv", ["id", "label"], [(name, n % 2) for n, name in enumerate(TRAIN)])


def tables(root: Path, part: str, images: Images) -> None:
    columns = ["id", *(["label"] if part == "train" else []), *(f"pixel{n}" for n in range(SIZE * SIZE))]
    label = lambda number: [number % 2] if part == "train" else []  # noqa: E731
    rows = [[name, *label(number), *image.ravel()] for number, (name, image) in enumerate(images.items())]
    write_table(root / f"{part}.csv", columns, rows)


def parquet(root: Path, part: str, images: Images) -> None:
    pytest.importorskip("pyarrow")
    import pandas as pd

    frame = pd.DataFrame(
        [image.ravel() for image in images.values()], columns=[f"pixel_{n}" for n in range(SIZE * SIZE)]
    )
    frame.insert(0, "id", list(images))
    frame.to_parquet(root / f"{part}_image_data_0.parquet")
    labels(root)


def bands(root: Path, part: str, images: Images) -> None:
    """The test rows have their bands in another order: it means nothing in JSON."""
    keys = ("band_1", "band_2") if part == "train" else ("band_2", "band_1")
    rows = []
    for number, (name, image) in enumerate(images.items()):
        values = {"band_1": image.ravel().tolist(), "band_2": (image / 2).ravel().tolist()}
        label = {"label": number % 2} if part == "train" else {}
        rows.append({"id": name, **{key: values[key] for key in keys}, **label})
    put(root / f"{part}.json", json.dumps(rows))


def stacks(root: Path, part: str, images: Images) -> None:
    np.save(root / f"{part}.npy", np.stack(list(images.values())))
    np.save(root / f"{part}_ids.npy", np.array(list(images)))
    labels(root)


def array_files(root: Path, part: str, images: Images) -> None:
    for name, image in images.items():
        (root / part).mkdir(exist_ok=True)
        np.save(root / part / f"{name}.npy", image)
    labels(root)


def dicom_files(root: Path, part: str, images: Images) -> None:
    for name, image in images.items():
        dicom(root / part / f"{name}.dcm", np.maximum(image, 0).astype(np.uint16))
    labels(root)


def dicom_windows(root: Path, part: str, images: Images) -> None:
    for number, (name, image) in enumerate(images.items()):
        window = {"WindowCenter": 300 + 10 * number, "WindowWidth": 500}
        window = window if name != "h0" else {"WindowCenter": 330, "WindowWidth": 500}  # that of a3
        dicom(root / part / f"{name}.dcm", np.maximum(image, 0).astype(np.uint16), **window)
    labels(root)


def records(root: Path, part: str, images: Images) -> None:
    rows = [
        record({"id": name.encode(), "image": png(image.astype(np.uint8)), "class": 1})
        for name, image in images.items()
    ]
    put(root / part / "00.tfrec", b"".join(rows))
    labels(root)


def documents(root: Path, part: str, images: Images) -> None:
    bson = pytest.importorskip("bson")
    rows = [{"_id": name, "imgs": [png(image.astype(np.uint8))]} for name, image in images.items()]
    put(root / f"{part}.bson", b"".join(map(bson.encode, rows)))
    labels(root)


def datasets(root: Path, part: str, images: Images) -> None:
    """As ISIC 2024: a dataset of encoded bytes for each image."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(root / f"{part}-image.hdf5", "w") as file:
        for name, image in images.items():
            file[name] = np.void(png(image.astype(np.uint8)))
    labels(root)


def hdf5_stacks(root: Path, part: str, images: Images) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(root / f"{part}.h5", "w") as file:
        file["x"], file["ids"] = np.stack(list(images.values())), [name.encode() for name in images]
    labels(root)


@pytest.fixture
def taken(tmp_path: Path) -> Callable[..., Path]:
    """`make data FROM=` of a download of that kind: the data folder."""

    def call(write: Callable[[Path, str, Images], None]) -> Path:
        download(tmp_path / "download", write, TEST)
        install.main(["--from", str(tmp_path / "download"), "--data", str(tmp_path / "data")])
        return tmp_path / "data"

    return call


def download(root: Path, write: Callable[[Path, str, Images], None], test: Images) -> Path:
    root.mkdir()
    write(root, "train", TRAIN)
    write(root, "test", test)
    sample(root, list(test))
    return root


KINDS = [
    *(tables, parquet, bands, stacks, array_files),
    *(dicom_files, dicom_windows, records, documents, datasets, hdf5_stacks),
]


@pytest.mark.parametrize("write", KINDS)
def test_hidden_images_get_the_grey_levels_of_training(write, tmp_path, taken) -> None:
    data = taken(write)
    hidden = download(tmp_path / "hidden", write, HIDDEN)
    before = {path: path.stat().st_mtime_ns for path in hidden.rglob("*")}
    images = as_images(hidden, read_converted(data))
    assert names(images / "test") == [f"{name}.png" for name in HIDDEN]
    assert (pixels_of(images / "test/h0.png") == pixels_of(data / "train/a3.png")).all()
    assert not (images / "train").exists(), "training images are not needed"
    assert [row.id for row in read_layout(images, need="test").test] == list(HIDDEN)
    assert {path: path.stat().st_mtime_ns for path in hidden.rglob("*")} == before


@pytest.mark.parametrize("write", KINDS)
def test_the_kept_originals_give_the_same_files_again(write, taken) -> None:
    data = taken(write)
    images = as_images(data / ORIGINALS, read_converted(data))
    for name in TEST:
        path = f"test/{name}.png"
        assert (images / path).read_bytes() == (data / path).read_bytes()
    assert (images / "sample_submission.csv").read_bytes() == (data / "sample_submission.csv").read_bytes()


@pytest.mark.parametrize("write", [tables, bands, stacks, array_files, dicom_files, hdf5_stacks, records])
def test_converted_images_have_at_most_the_size_asked_for(write, tmp_path, capsys) -> None:
    """Also the hidden ones. Encoded images are not changed."""
    download(tmp_path / "download", write, TEST)
    given = ["--from", str(tmp_path / "download"), "--data", str(tmp_path / "data"), "--longest", "10"]
    install.main(given)
    said = capsys.readouterr().out
    side = SIZE if write is records else 10
    assert ("at most 10 pixels" in said) == (write is not records)
    again = as_images(tmp_path / "data" / ORIGINALS, read_converted(tmp_path / "data"))
    for name in TEST:
        image = pixels_of(tmp_path / f"data/test/{name}.png")
        assert image.shape[:2] == (side, side)
        assert (again / f"test/{name}.png").read_bytes() == (tmp_path / f"data/test/{name}.png").read_bytes()


@pytest.mark.parametrize(
    ("shape", "size"), [((1, 30, 40), (15, 20)), ((3, 40, 7), (20, 4)), ((6, 40, 20), (60 * 2, 10))]
)
def test_a_reduced_image_keeps_its_proportions_and_its_mean(shape, size, tmp_path) -> None:
    smooth = np.add.outer(np.arange(shape[1]), np.arange(shape[2])) + 50
    planes = np.stack([smooth + 10 * channel for channel in range(shape[0])]).astype(np.uint8)
    save(planes, tmp_path / "a.png", longest=20)
    image = pixels_of(tmp_path / "a.png")
    assert image.shape[:2] == size and abs(image.mean() - planes.mean()) < 1
    save(planes, tmp_path / "as it is.png", longest=40)
    save(planes, tmp_path / "without limit.png")
    assert (tmp_path / "as it is.png").read_bytes() == (tmp_path / "without limit.png").read_bytes()


def test_packages_that_convert_are_recorded(taken) -> None:
    converted = read_converted(taken(dicom_files))
    assert converted and converted.packages == ["pydicom"]


def test_a_damaged_hidden_file_becomes_an_image_that_cannot_be_read(tmp_path, taken) -> None:
    data = taken(dicom_files)
    hidden = download(tmp_path / "hidden", dicom_files, HIDDEN)
    (hidden / "test/h2.dcm").write_bytes((hidden / "test/h2.dcm").read_bytes()[:-500])
    images = as_images(hidden, read_converted(data))
    assert (images / "test/h2.png").stat().st_size == 0
    assert [row.id for row in read_layout(images, need="test").test] == list(HIDDEN)


def test_hidden_dicom_files_without_a_window_get_the_usual_one(tmp_path, taken, capsys) -> None:
    """The windows here have centres from 300 to 370 and a width of 500; h0 has that of a3."""
    data = taken(dicom_windows)
    hidden = download(tmp_path / "hidden", dicom_windows, HIDDEN)
    dicom(hidden / "test/h1.dcm", np.maximum(TRAIN["a3"], 0).astype(np.uint16))
    capsys.readouterr()
    images = as_images(hidden, read_converted(data))
    found = [pixels_of(images / f"test/h{number}.png").astype(int) for number in (0, 1)]
    assert "1 file without a window: the usual one of the set" in capsys.readouterr().out
    assert np.abs(found[0] - found[1]).max() <= 8 and found[1].std() > 20


def test_a_test_set_of_images_is_used_as_it_is(tmp_path, taken) -> None:
    data = taken(dicom_files)
    hidden = tmp_path / "hidden"
    for name, image in HIDDEN.items():
        put(hidden / f"test/{name}.png", png(image.astype(np.uint8)))
    assert as_images(hidden, read_converted(data)) == hidden
    assert as_images(hidden, None) == hidden


def test_files_of_another_kind_than_here_are_refused(tmp_path, taken) -> None:
    data = taken(dicom_files)
    with pytest.raises(UserError, match=r"NumPy files.*windows of DICOM files"):
        as_images(download(tmp_path / "hidden", array_files, HIDDEN), read_converted(data))


@pytest.mark.parametrize("write", [tables, stacks, array_files])
@pytest.mark.parametrize(("here", "there"), [(1, 200), (1 / 255, 1), (200, 1)])
def test_numbers_of_another_depth_are_refused(write, here, there, tmp_path, monkeypatch) -> None:
    for name, scale in (("download", here), ("hidden", there)):
        images = {f"{name}{number}": grey(number, SIZE).astype(float) * scale for number in range(9)}
        monkeypatch.setattr(sys.modules[__name__], "TRAIN", images)
        download(tmp_path / name, write, {f"t{key}": image for key, image in images.items()})
    install.main(["--from", str(tmp_path / "download"), "--data", str(tmp_path / "data")])
    converted = read_converted(tmp_path / "data")
    as_images(tmp_path / "data" / ORIGINALS, converted)
    with pytest.raises(UserError, match=r"another depth(?s:.*)grey levels of .*: 9 of 9 images"):
        as_images(tmp_path / "hidden", converted)


@pytest.mark.parametrize("names_of_files", [("train", "test"), ("b_train", "a_test"), ("a_train", "b_test")])
def test_training_decides_the_order_of_numbers(names_of_files, tmp_path) -> None:
    """Colours lie pixel by pixel; the one test image here is black and does not tell."""

    def write(root: Path, test: Images) -> Path:
        root.mkdir()
        for part, name in zip((TRAIN, test), names_of_files, strict=True):
            columns = [
                "id",
                *(["label"] if part is TRAIN else []),
                *(f"pixel{n}" for n in range(SIZE**2 * 3)),
            ]
            rows = []
            for number, (key, image) in enumerate(part.items()):
                pixels = np.stack([image, image / 2, image / 4], axis=2).clip(0, 255).astype(int)
                rows.append([key, *([number % 2] if part is TRAIN else []), *pixels.ravel()])
            write_table(root / f"{name}.csv", columns, rows)
        sample(root, list(test))
        return root

    write(tmp_path / "download", {"b0": np.zeros((SIZE, SIZE))})
    install.main(["--from", str(tmp_path / "download"), "--data", str(tmp_path / "data")])
    hidden = write(tmp_path / "hidden", HIDDEN)
    images = as_images(hidden, read_converted(tmp_path / "data"))
    assert (pixels_of(images / "test/h0.png") == pixels_of(tmp_path / "data/train/a3.png")).all()


@pytest.mark.parametrize("name", ["band_3", "a_band"])
def test_other_bands_than_here_are_refused(name, tmp_path, taken) -> None:
    data = taken(bands)
    hidden = download(tmp_path / "hidden", bands, HIDDEN)
    text = (hidden / "test.json").read_text()
    (hidden / "test.json").write_text(text.replace("band_1", name))
    with pytest.raises(UserError, match=rf"test.json: band_2, {name}"):
        as_images(hidden, read_converted(data))


def test_large_originals_are_not_kept(taken, monkeypatch, capsys) -> None:
    monkeypatch.setattr(originals, "MOST_BYTES", 1000)
    data = taken(dicom_files)
    assert not (data / ORIGINALS).exists() and (data / CONVERTED).exists()
    assert "will not rehearse their conversion" in capsys.readouterr().out


def test_records_of_an_earlier_download_are_never_taken_for_those_of_another(tmp_path, taken) -> None:
    data = taken(dicom_files)
    for path in data.iterdir():
        if not path.name.startswith("."):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    other = tmp_path / "other"
    put(other / "train/x/a.png", png(grey(1)))
    with pytest.raises(UserError, match=rf"{CONVERTED}, {ORIGINALS} of an earlier download.*rm -r "):
        install.main(["--from", str(other), "--data", str(data)])
    assert not (data / "train").exists()


def test_without_hard_links_no_originals_are_kept(taken, monkeypatch, capsys) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    data = taken(dicom_files)
    assert not (data / ORIGINALS).exists() and read_converted(data)
    assert "will not rehearse their conversion" in capsys.readouterr().out


def test_a_download_of_images_keeps_no_originals(tmp_path, taken) -> None:
    def files(root: Path, part: str, images: Images) -> None:
        for name, image in images.items():
            put(root / part / f"{name}.png", png(image.astype(np.uint8)))
        labels(root)

    data = taken(files)
    assert not (data / ORIGINALS).exists() and not (data / CONVERTED).exists()


@pytest.mark.parametrize(
    ("path", "training"),
    [
        *[
            (f"{name}/{file}", True)
            for name in ("train", "stage_1_train_images")
            for file in ("a.dcm", "test1.dcm")
        ],
        *[("train.csv", True), ("x_train.npy", True), ("data/val.parquet", True), ("train/dev7/1.dcm", True)],
        *[("train_and_test/train/a.dcm", True), ("train_and_test/test/a.dcm", False), ("test.csv", False)],
        *[("test/train_1.dcm", False), ("test/4val9.dcm", False), ("stage_2_test_images/dev7/1.dcm", False)],
        *[("images/4val9.dcm", False), ("images/a.dcm", False), ("training_data/test/a.dcm", False)],
    ],
)
def test_what_is_of_the_training_part(path: str, training: bool) -> None:
    assert is_for_training(path) == training


def test_hidden_ids_may_hold_names_of_parts(tmp_path, taken) -> None:
    data = taken(dicom_files)
    ids = ["train_7", "4val9", "xDev3"]
    hidden = download(tmp_path / "hidden", dicom_files, dict.fromkeys(ids, TRAIN["a3"]))
    images = as_images(hidden, read_converted(data))
    assert [row.id for row in read_layout(images, need="test").test] == ids


def layered_files(root: Path, part: str, images: Images) -> None:
    """Arrays (6, H, W): a few of them alone could be stacks of six images."""
    array_files(root, part, {name: np.stack([image] * 6) for name, image in images.items()})


def one_archive(root: Path, part: str, images: Images) -> None:
    """Training and test images in one file, the labels of the former in another one."""
    parts = {f"x_{part}": np.stack(list(images.values()))}
    if part == "test":
        parts |= {"x_train": np.stack(list(TRAIN.values())), "test_ids": np.array(list(images))}
        np.savez(root / "images.npz", **parts)
    np.save(root / "train_labels.npy", np.arange(len(TRAIN)) % 2)


def one_hdf5(root: Path, part: str, images: Images) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(root / "images.h5", "a") as file:
        file[f"x_{part}"] = np.stack(list(images.values()))
        file[f"y_{part}"] = np.arange(len(images)) % 2


def groups_of_hdf5(root: Path, part: str, images: Images) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(root / "images.h5", "a") as file:
        for name, image in images.items():
            file[f"{part}/{name}"] = image
    labels(root)


def table_without_part(root: Path, part: str, images: Images) -> None:
    tables(root, part, images)
    if part == "test":
        (root / "test.csv").rename(root / "unlabelled.csv")


@pytest.mark.parametrize(
    ("write", "folder"),
    [
        *((write, "test") for write in (layered_files, one_archive, one_hdf5, groups_of_hdf5)),
        (table_without_part, "unlabelled"),
    ],
)
@pytest.mark.parametrize("count", [1, 3])
def test_the_test_part_is_read_without_the_training_part_as_with_it(
    write, folder, count, tmp_path, taken
) -> None:
    data = taken(write)
    hidden = dict(list(HIDDEN.items())[:count])
    images = as_images(download(tmp_path / "hidden", write, hidden), read_converted(data))
    assert names(images / folder) == [f"{name}.png" for name in hidden]
    if write not in (one_archive, one_hdf5):  # there training images have numbers as names
        assert (pixels_of(images / folder / "h0.png") == pixels_of(data / "train/a3.png")).all()


def test_a_test_part_without_any_image_is_refused(tmp_path, taken) -> None:
    data = taken(dicom_files)
    hidden = tmp_path / "hidden"
    put(hidden / "test/a.svs", b"slide")
    with pytest.raises(UserError, match=r"(?s)no image.*\.svs.*1 \.svs not turned into images"):
        as_images(hidden, read_converted(data))


def test_converted_images_are_removed_when_the_process_ends(tmp_path, taken, monkeypatch) -> None:
    data = taken(dicom_files)
    (tmp_path / "temporary").mkdir()
    code = (
        "import sys, pathlib; from pipeline.fetch import containers, originals; "
        "data = pathlib.Path(sys.argv[1]); "
        "print(originals.as_images(data / originals.ORIGINALS, containers.read_converted(data)))"
    )
    given = {"env": os.environ | {"TMPDIR": str(tmp_path / "temporary")}, "cwd": ROOT}
    done = subprocess.run([sys.executable, "-c", code, str(data)], capture_output=True, text=True, **given)
    assert str(tmp_path / "temporary/images-") in done.stdout
    assert names(tmp_path / "temporary") == []


@pytest.mark.slow
@pytest.mark.parametrize("write", [dicom_files, bands])
def test_a_kernel_converts_the_hidden_test_set(write, tmp_path, taken, tiny_backbone, capsys) -> None:
    """The rehearsal has the test set in its original form; its file must be that of inference.py."""
    data, run = taken(write), tmp_path / "run"
    few = ["--epochs", "1", "--batch-size", "4", "--accumulation-steps", "1"]
    given = ["--data", str(data), "--backbone", str(tiny_backbone), "--output", str(run)]
    assert train.main([*given, *few, "--metric", "accuracy"]) == 0
    given = ["--model", str(run), "--data", str(data), "--output", str(tmp_path / "kernel")]
    assert make.main([*given, "--competition", "glyphs", "--batch-size", "2"]) == 0
    printed = capsys.readouterr().out
    converted = 3 if write is dicom_files else 1
    assert re.search(rf"original form, as on Kaggle: {converted} files? converted in \d", printed)
    needs = re.search(r"^NEEDS = (.+)$", (tmp_path / "kernel/kernel/kernel.py").read_text(), re.MULTILINE)
    assert needs and ('"pydicom": "3.0"' in needs[1]) == (write is dicom_files)
