"""Images of more than 8 bits: one range for a whole set, saved with the weights. A brighter scan stays
brighter than a darker one, for any bit depth.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import inference
import train
from pipeline.data.cache import ImageCache
from pipeline.data.dataset import ImageDataset
from pipeline.data.images import BadImage, decode
from pipeline.data.intensity import (
    FILE_NAME,
    KEY,
    OWN_RANGES,
    Intensity,
    deep_images_without_range,
    find_intensity,
    stored_intensity,
)
from pipeline.data.transforms import Preprocessing, read_preprocessing
from pipeline.errors import UserError
from pipeline.files import read_json, write_json
from pipeline.recipe_sections import Augmentation
from pipeline.report.thumbnails import thumbnail

LEVELS = (10, 60, 130, 200, 250)  # brightness of the scans of a set, of 255

# Suffix, and the values of an image (H, W) of brightness 0..255 in that type.
TYPES = {
    "12 bits in uint16": ("png", lambda grey: (grey * 16).astype(np.uint16)),
    "9 bits in uint16": ("tif", lambda grey: (grey * 2).astype(np.uint16)),
    "uint16": ("tif", lambda grey: (grey * 257).astype(np.uint16)),
    "int16 with an offset": ("tif", lambda grey: (grey * 16 - 1024).astype(np.int16)),
    "int32": ("tif", lambda grey: (grey * 1_000_000).astype(np.int32)),
    "float to 1": ("tif", lambda grey: (grey / 255).astype(np.float32)),
    "float to 1.02": ("tif", lambda grey: (grey / 250).astype(np.float32)),
    "float around 0": ("tif", lambda grey: (grey / 100 - 1.3).astype(np.float32)),
}


def scan(level: float, seed: int = 0, size: int = 24) -> np.ndarray:
    """(size, size) float64 of brightness 0..255: `level` and a little noise."""
    return np.clip(level + np.random.default_rng(seed).normal(0, 2, (size, size)), 0, 255)


def write_tiff(path: Path, values: np.ndarray) -> None:
    """A TIFF of one strip, written here: Pillow does not write int16 nor float64."""
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    high, wide = values.shape
    entries = [
        (256, 3, wide),
        (257, 3, high),
        (258, 3, 8 * values.itemsize),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 0),
        (277, 3, 1),
    ]
    entries += [(278, 3, high), (279, 4, values.nbytes), (339, 3, kind)]
    start = 8 + 2 + 12 * len(entries) + 4
    table = b"".join(
        np.array([tag, kind], "<u2").tobytes()
        + np.array([1, start if tag == 273 else value], "<u4").tobytes()
        for tag, kind, value in entries
    )
    path.write_bytes(
        b"II*\0\x08\0\0\0" + np.array(len(entries), "<u2").tobytes() + table + bytes(4) + values.tobytes()
    )


def write(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tiff(path, values) if path.suffix == ".tif" else Image.fromarray(values).save(path)
    return path


def means(paths: list[Path], rule: Intensity | None) -> list[float]:
    return [float(np.asarray(decode(path, intensity=rule)).mean()) for path in paths]


@pytest.mark.parametrize("kind", TYPES)
def test_dark_and_bright_scans_keep_their_order_and_their_distances(tmp_path: Path, kind: str) -> None:
    suffix, of_type = TYPES[kind]
    paths = [write(tmp_path / f"{level}.{suffix}", of_type(scan(level))) for level in LEVELS]
    rule, (note,) = find_intensity(paths)
    found = means(paths, rule)
    low, high = scan(LEVELS[0]).min(), scan(LEVELS[-1]).max()
    np.testing.assert_allclose(found, [(level - low) / (high - low) * 255 for level in LEVELS], atol=2)
    assert "from 5 of them" in note and "\n" not in note


def test_a_value_more_or_less_at_the_top_changes_nothing(tmp_path: Path) -> None:
    """Scaled each by its own maximum, the first of these was white and the second black; 1.02 made a float
    image black.
    """
    pair = [write(tmp_path / f"{top}.png", np.full((8, 8), top, np.uint16)) for top in (255, 256)]
    rest = [
        write(tmp_path / "dark.png", np.full((8, 8), 10, np.uint16)),
        write(tmp_path / "bright.png", np.full((8, 8), 4000, np.uint16)),
    ]
    rule, _ = find_intensity([*pair, *rest])
    assert rule == Intensity(integer=(10.0, 4000.0))
    assert abs(means(pair, rule)[0] - means(pair, rule)[1]) <= 1
    assert abs(means(pair, None)[0] - means(pair, None)[1]) <= 1
    floats = [write(tmp_path / f"{top}.tif", np.array([[0, 0.5, top]], np.float32)) for top in (1.0, 1.02)]
    one, other = (np.asarray(decode(path, intensity=find_intensity(floats)[0]))[0, 1, 0] for path in floats)
    assert one == other and 120 < one < 130


@pytest.mark.parametrize("hole", [np.nan, np.inf, -np.inf, -3.4028235e38, 1e35])
def test_what_is_no_data_is_black_and_ruins_nothing(tmp_path: Path, hole: float) -> None:
    values = (scan(100) / 255).astype(np.float32)
    whole = write(tmp_path / "whole.tif", values)
    values = values.copy()
    values[3, 4] = hole
    holed = write(tmp_path / "holed.tif", values)
    rule, _ = find_intensity([whole, holed])
    expected = np.asarray(decode(whole, intensity=rule)).copy()
    expected[3, 4] = 0
    assert np.array_equal(np.asarray(decode(holed, intensity=rule)), expected)
    assert decode(holed).getpixel((4, 3)) == (0, 0, 0)  # without a rule too


def test_a_hot_pixel_is_no_end_of_the_range(tmp_path: Path) -> None:
    values = (scan(100, size=200) * 4).astype(np.uint16)
    values[0, 0] = 65535
    rule, _ = find_intensity([write(tmp_path / "hot.tif", values)])
    assert 400 < rule.integer[1] < 500


def test_kinds_of_float_that_pillow_does_not_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadImage, match="not an image"):
        decode(write(tmp_path / "double.tif", scan(100)))


def test_images_without_any_range_get_their_types_own(tmp_path: Path) -> None:
    flat = write(tmp_path / "flat.png", np.full((8, 8), 32768, np.uint16))
    nothing = write(tmp_path / "nothing.tif", np.full((8, 8), np.nan, np.float32))
    assert find_intensity([flat, nothing])[0] == OWN_RANGES
    assert means([flat, nothing], None) == [128, 0]


def test_whole_numbers_and_floats_each_have_their_range(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{level}.png", (scan(level) * 16).astype(np.uint16)) for level in LEVELS]
    paths += [write(tmp_path / f"{level}.tif", (scan(level) / 255).astype(np.float32)) for level in LEVELS]
    rule, (note,) = find_intensity(paths)
    np.testing.assert_allclose(means(paths[:5], rule), means(paths[5:], rule), atol=1.5)
    assert "of floats" in note


def test_sets_of_eight_bits_have_no_rule_and_other_files_do_not_matter(tmp_path: Path) -> None:
    Image.new("L", (8, 8), 77).save(tmp_path / "grey.tif")
    Image.new("RGB", (8, 8)).save(tmp_path / "colour.png")
    (tmp_path / "text.png").write_text("no image")
    paths = [*tmp_path.iterdir(), tmp_path / "gone.png"]
    assert find_intensity(paths) == (None, []) and find_intensity([]) == (None, [])
    assert decode(tmp_path / "grey.tif", intensity=Intensity((0, 9), (0, 9))).getpixel((0, 0)) == (77, 77, 77)


def png16(path: Path, values: np.ndarray) -> Path:
    """A PNG of 16 bits a channel, (H, W, C) uint16 with C 2 (grey and alpha), 3 or 4; Pillow writes none."""
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    high, wide, channels = values.shape
    head = struct.pack(">IIBBBBB", wide, high, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )
    return path


def test_colour_and_alpha_of_16_bits_are_read_by_the_types_range(tmp_path: Path) -> None:
    colour = png16(tmp_path / "rgb.png", np.full((4, 4, 3), (65535, 32768, 300), np.uint16))
    assert decode(colour).getpixel((1, 1)) == (255, 128, 1)
    assert decode(png16(tmp_path / "rgba.png", np.full((4, 4, 4), (65535, 0, 0, 0), np.uint16))).getpixel(
        (0, 0)
    ) == (255, 255, 255)
    grey = np.full((4, 4, 2), (1000, 65535), np.uint16)
    grey[0, 0, 1] = 0  # transparent: white
    picture = decode(png16(tmp_path / "la.png", grey))
    assert picture.getpixel((0, 0)) == (255, 255, 255) and picture.getpixel((1, 1)) == (3, 3, 3)
    rule, (note,) = find_intensity([colour])
    assert rule is None and "65,535" in note and "1 of 1" in note


def test_a_transparent_value_of_16_bits_is_seen_as_white(tmp_path: Path) -> None:
    values = np.array([[0, 1000, 40_000]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png", transparency=1000)
    assert np.asarray(decode(tmp_path / "a.png"))[0, :, 0].tolist() == [0, 255, 156]


def test_the_rule_is_saved_with_the_weights_and_checked_when_read(tmp_path: Path) -> None:
    rule = Preprocessing(16, 16, intensity=Intensity((-1024.0, 3071.0), (0.25, 2.0)))
    folder = tmp_path / "run" / "model_beit"
    folder.mkdir(parents=True)
    rule.save(folder)
    assert read_preprocessing(folder / FILE_NAME, 1) == rule
    assert stored_intensity(tmp_path / "run") == rule.intensity
    values = read_json(folder / FILE_NAME)
    for wrong in (
        {},
        [],
        3,
        {"integer": [5, 5], "float": [0, 1]},
        {"integer": [0, 1, 2], "float": [0, 1]},
        {"integer": ["a", 1], "float": [0, 1]},
    ):
        write_json(folder / FILE_NAME, values | {KEY: wrong})
        with pytest.raises(UserError, match=f"{KEY}: .*integer"):
            read_preprocessing(folder / FILE_NAME, 1)
        assert stored_intensity(tmp_path / "run") is None
    Preprocessing(16, 16).save(folder)
    assert KEY not in read_json(folder / FILE_NAME) and stored_intensity(tmp_path / "run") is None
    assert stored_intensity(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    "augmentation",
    [
        None,
        Augmentation(),
        Augmentation(rotation_degrees=5),
        Augmentation(random_resized_crop=False, horizontal_flip=False),
    ],
)
def test_training_validation_cache_and_thumbnails_use_the_same_rule(
    tmp_path: Path, augmentation: Augmentation | None
) -> None:
    path = write(tmp_path / "a.png", np.full((40, 40), 1000, np.uint16))
    for intensity, white in ((Intensity((0, 1000)), True), (Intensity((0, 2000)), False), (None, False)):
        rule = Preprocessing(16, 16, intensity=intensity)
        found = [ImageDataset([path], None, rule, augmentation)[0, 0]["pixels"]]
        if augmentation is not None:
            for _ in range(2):  # a cold cache and a warm one, which other rules have used before
                cache = ImageCache(tmp_path / "cache", 10**8, [path], augmentation, rule)
                found.append(ImageDataset([path], None, rule, augmentation, cache=cache)[0, 0]["pixels"])
        assert [bool(pixels.max() == 255) for pixels in found] == [white] * len(found)
    assert thumbnail(path, 8, Intensity((0, 1000))) != thumbnail(path, 8, Intensity((0, 2000)))


def test_a_run_on_deep_scans_learns_their_brightness_and_predicts_by_its_own_rule(
    tmp_path: Path, tiny_backbone: Path, capsys
) -> None:
    """Scans of 12 bits that differ in nothing but brightness: scaled each by its own maximum they were all
    the same.
    """
    data, rng = tmp_path / "data", np.random.default_rng(0)

    def deep(path: Path, bright: bool) -> None:
        values = rng.integers(0, 600, (24, 24)) + (2500 if bright else 200)
        write(path, values.astype(np.uint16))

    for number in range(16):
        deep(data / "train" / ("bright" if number % 2 else "dark") / f"{number}.png", bool(number % 2))
    for number in range(6):
        deep(data / "test" / f"t{number}.png", bool(number % 2))
    flags = [
        *("--data", str(data), "--backbone", str(tiny_backbone), "--output", str(tmp_path / "run")),
        *("--epochs", "8", "--batch-size", "4"),
    ]
    flags += "--accumulation-steps 1 --lora-rank 0 --lr 0.003 --set data.val_fraction=0.25".split()
    assert train.main(flags) == 0
    assert "grey of more than 8 bits: " in capsys.readouterr().out
    stored = stored_intensity(tmp_path / "run")
    assert 200 <= stored.integer[0] < 260 and 3000 < stored.integer[1] < 3100
    assert stored.record() == read_json(tmp_path / "run" / "model_beit" / FILE_NAME)[KEY]
    output = tmp_path / "predictions.csv"
    inference.main(["--model", str(tmp_path / "run"), "--data", str(data), "--output", str(output)])
    assert "WARNING" not in capsys.readouterr().err
    table = pd.read_csv(output, dtype=str, keep_default_na=False).set_index("id")["label"]
    assert [table[f"t{number}"] for number in range(6)] == ["dark", "bright"] * 3
    assert json.loads((tmp_path / "run" / "run.json").read_text())["best"]["value"] == 1.0


def test_a_model_without_a_rule_says_what_it_does_with_deep_images(tmp_path: Path) -> None:
    deep, plain = write(tmp_path / "a.png", np.full((8, 8), 999, np.uint16)), tmp_path / "b.png"
    Image.new("RGB", (8, 8)).save(plain)
    assert "0 is black and 65,535 white" in deep_images_without_range([plain, deep], None)
    assert deep_images_without_range([plain], None) is None
    assert deep_images_without_range([deep], OWN_RANGES) is None


def test_transformers_reads_the_file_with_the_rule_in_it(tmp_path: Path) -> None:
    from transformers import AutoImageProcessor

    Preprocessing(32, 32, intensity=Intensity()).save(tmp_path)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))
    found = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")(picture, return_tensors="np")[
        "pixel_values"
    ]
    (tmp_path / "plain").mkdir()
    Preprocessing(32, 32).save(tmp_path / "plain")
    assert np.array_equal(
        found,
        AutoImageProcessor.from_pretrained(tmp_path / "plain", backend="pil")(picture, return_tensors="np")[
            "pixel_values"
        ],
    )
