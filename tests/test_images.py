"""Awkward image files: decoded as a person would see them, or refused with a reason."""

from __future__ import annotations

import io
import random
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data import images
from pipeline.data.images import LEVELS, BadImage, bad_images_error, decode, find_bad, load_pixels, opened

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning:PIL", "ignore:Image size:PIL.Image.DecompressionBombWarning"
)
RED, GREEN, BLUE, WHITE = (220, 40, 30), (30, 170, 60), (40, 60, 210), (255, 255, 255)


def halves(
    left: tuple[int, ...] = RED,
    right: tuple[int, ...] = BLUE,
    size: tuple[int, int] = (32, 16),
    mode: str = "RGB",
) -> Image.Image:
    """An image whose left half has one colour and whose right half another."""
    picture = Image.new(mode, size, left)
    picture.paste(right, (size[0] // 2, 0, *size))
    return picture


def close(
    image: Image.Image, position: tuple[int, int], colour: tuple[int, int, int], tolerance: int = 12
) -> bool:
    return all(abs(a - b) <= tolerance for a, b in zip(image.getpixel(position), colour, strict=True))


def assert_halves(
    image: Image.Image,
    left: tuple[int, int, int] = RED,
    right: tuple[int, int, int] = BLUE,
    tolerance: int = 12,
) -> None:
    assert image.mode == "RGB"
    width, height = image.size
    assert close(image, (width // 8, height // 2), left, tolerance), image.getpixel((width // 8, height // 2))
    assert close(image, (width * 7 // 8, height // 2), right, tolerance), image.getpixel(
        (width * 7 // 8, height // 2)
    )


@pytest.mark.parametrize(
    ("suffix", "options", "tolerance"),
    [
        ("png", {}, 0),
        ("bmp", {}, 0),
        ("tiff", {"compression": "tiff_lzw"}, 0),
        ("webp", {"lossless": True}, 0),
        ("webp", {"quality": 90}, 12),
        ("jpg", {"quality": 95}, 6),
        ("jpg", {"quality": 95, "progressive": True}, 6),
        ("gif", {}, 12),
    ],
)
def test_common_formats_keep_their_colours(
    tmp_path: Path, suffix: str, options: dict, tolerance: int
) -> None:
    halves().save(tmp_path / f"a.{suffix}", **options)
    image = decode(tmp_path / f"a.{suffix}")
    assert image.size == (32, 16)
    assert_halves(image, tolerance=tolerance)


def test_the_suffix_does_not_matter(tmp_path: Path) -> None:
    halves().save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    assert_halves(decode(tmp_path / "a.jpg"), tolerance=0)


def test_grey_one_bit_and_cmyk(tmp_path: Path) -> None:
    Image.new("L", (4, 4), 100).save(tmp_path / "grey.jpg")
    assert close(decode(tmp_path / "grey.jpg"), (1, 1), (100, 100, 100), 2)
    Image.new("1", (4, 4), 1).save(tmp_path / "bit.png")
    assert decode(tmp_path / "bit.png").getpixel((1, 1)) == WHITE
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # no cyan: red
    cmyk.save(tmp_path / "cmyk.jpg", quality=95)
    cmyk.save(tmp_path / "cmyk.tiff")
    for name in ("cmyk.jpg", "cmyk.tiff"):
        assert close(decode(tmp_path / name), (8, 8), (255, 0, 0), 6), name


def test_more_than_eight_bits_are_scaled_by_their_types_own_range(tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(0, 65535, 256), (4, 1))
    for name, values in {
        "png16.png": ramp.astype(np.uint16),
        "tiff16.tiff": ramp.astype(np.uint16),
        "int32.tiff": ramp.astype(np.int32),
        "float1.tiff": (ramp / 65535).astype(np.float32),
    }.items():
        Image.fromarray(values).save(tmp_path / name)
        pixels = np.asarray(decode(tmp_path / name))
        np.testing.assert_allclose(pixels[0, :, 0], np.arange(256), atol=1, err_msg=name)
        assert (pixels[..., 0] == pixels[..., 2]).all()


def test_transparency_is_over_white(tmp_path: Path) -> None:
    rgba = halves((*RED, 255), (*BLUE, 0), mode="RGBA")
    rgba.save(tmp_path / "rgba.png")
    rgba.save(tmp_path / "rgba.webp", lossless=True)
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    half.save(tmp_path / "half.png")
    palette = Image.new("P", (32, 16), 0)
    palette.putpalette([*RED, *BLUE])
    palette.paste(1, (16, 0, 32, 16))
    palette.save(tmp_path / "palette.png", transparency=1)
    palette.save(tmp_path / "palette.gif", transparency=1)
    halves().save(tmp_path / "key.png", transparency=BLUE)  # one colour declared transparent
    Image.new("LA", (4, 4), (0, 0)).save(tmp_path / "la.png")
    for name in ("rgba.png", "rgba.webp", "palette.png", "palette.gif", "key.png"):
        assert_halves(decode(tmp_path / name), RED, WHITE, tolerance=0)
    assert close(decode(tmp_path / "half.png"), (1, 1), (127, 127, 127), 1)
    assert decode(tmp_path / "la.png").getpixel((0, 0)) == WHITE


def test_a_palette_without_transparency_keeps_its_colours(tmp_path: Path) -> None:
    halves().convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "palette.png")
    assert_halves(decode(tmp_path / "palette.png"), tolerance=8)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_orientation_of_the_camera_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    # A corner each: red top left, green top right, blue bottom left
    upright = Image.new("RGB", (48, 32), WHITE)
    for colour, corner in ((RED, (0, 0)), (GREEN, (32, 0)), (BLUE, (0, 16))):
        upright.paste(colour, (*corner, corner[0] + 16, corner[1] + 16))
    flip = Image.Transpose  # how a camera would have stored it: the inverse of what the tag asks for
    stored = {
        2: flip.FLIP_LEFT_RIGHT,
        3: flip.ROTATE_180,
        4: flip.FLIP_TOP_BOTTOM,
        5: flip.TRANSPOSE,
        6: flip.ROTATE_90,
        7: flip.TRANSVERSE,
        8: flip.ROTATE_270,
    }
    picture = upright if orientation == 1 else upright.transpose(stored[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(tmp_path / f"a.{suffix}", exif=exif, quality=95)
    image = decode(tmp_path / f"a.{suffix}")
    assert image.size == (48, 32)
    for colour, position in ((RED, (8, 8)), (GREEN, (40, 8)), (BLUE, (8, 24)), (WHITE, (40, 24))):
        assert close(image, position, colour, 16), (orientation, position, image.getpixel(position))


def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    for suffix, options in (("gif", {}), ("webp", {"lossless": True}), ("png", {}), ("tiff", {})):
        frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], **options)
        assert close(decode(tmp_path / f"a.{suffix}"), (4, 4), RED), suffix


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_extreme_shapes(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, GREEN).save(tmp_path / "a.jpg", quality=95)
    for smallest in (None, 1):
        image = decode(tmp_path / "a.jpg", smallest)
        assert close(image, (0, 0), GREEN, 6) and (smallest or image.size == size)


def test_a_large_jpeg_can_be_decoded_small(tmp_path: Path) -> None:
    halves(size=(640, 320)).save(tmp_path / "a.jpg")
    image = decode(tmp_path / "a.jpg", smallest=50)
    assert image.size == (160, 80)  # a quarter: an eighth would be below 50
    assert_halves(image)
    assert decode(tmp_path / "a.jpg").size == (640, 320)


def damaged(folder: Path) -> dict[Path, str]:
    """Files that cannot be decoded, each with a part of the reason that should be given."""
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    photo.save(folder / "whole.jpg")
    photo.save(folder / "whole.png")
    files = {
        "truncated.jpg": ((folder / "whole.jpg").read_bytes()[:2000], "truncated"),
        "truncated.png": ((folder / "whole.png").read_bytes()[:3000], "truncated"),
        "cut_in_the_head.jpg": ((folder / "whole.jpg").read_bytes()[:30], ""),
        "empty.jpg": (b"", "empty file"),
        "text.jpg": (b"<!DOCTYPE html><html>Sign in</html>", "not an image"),
        "null.png": (bytes(500), "not an image"),
    }
    reasons = {}
    for name, (content, reason) in files.items():
        (folder / name).write_bytes(content)
        reasons[folder / name] = reason
    (folder / "folder.jpg").mkdir()
    return reasons | {folder / "gone.jpg": "no such file", folder / "folder.jpg": "Is a directory"}


def test_damaged_files_are_refused_with_a_reason_without_the_path(tmp_path: Path) -> None:
    for path, reason in damaged(tmp_path).items():
        for smallest in (None, 1):
            with pytest.raises(BadImage) as caught:
                decode(path, smallest)
            assert reason in str(caught.value) and str(caught.value), path.name
            assert str(tmp_path) not in str(caught.value)


def test_find_bad_finds_exactly_the_bad_ones(tmp_path: Path) -> None:
    reasons = damaged(tmp_path)
    good = []
    for number in range(5):
        halves().save(tmp_path / f"good{number}.jpg")
        good.append(tmp_path / f"good{number}.jpg")
    paths = [path for pair in zip(good, list(reasons)[:5], strict=True) for path in pair]
    bad = find_bad(paths)
    assert list(bad) == [1, 3, 5, 7, 9]
    assert all(reasons[paths[position]] in reason for position, reason in bad.items())
    assert find_bad([]) == {}


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    for side in (12_000, 60_000):  # Pillow warns of the first and refuses the second
        head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        content = (
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", head)
            + chunk(b"IDAT", zlib.compress(bytes(1000)))
            + chunk(b"IEND", b"")
        )
        (tmp_path / f"{side}.png").write_bytes(content)
        with pytest.raises(BadImage, match="more than 128,000,000 pixels"):
            decode(tmp_path / f"{side}.png")


def test_bombs_among_many_images_are_all_found_and_warnings_stay_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    for number in range(60):
        side = 50 if number % 2 else 20
        Image.new("RGB", (side, side)).save(tmp_path / f"{number}.png")
    before = list(warnings.filters)
    bad = find_bad([tmp_path / f"{number}.png" for number in range(60)])
    assert list(bad) == list(range(1, 60, 2))
    assert warnings.filters == before


def test_random_damage_never_escapes_as_another_error(tmp_path: Path) -> None:
    rng = random.Random(0)
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 24, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    path, refused = tmp_path / "damaged", 0
    for suffix in ("jpg", "png", "gif", "webp", "bmp", "avif", "dds", "ico", "tga"):
        if suffix == "avif" and ".avif" not in Image.registered_extensions():
            continue
        photo.save(
            tmp_path / f"a.{suffix}", **({"exif": exif} if suffix in ("jpg", "png", "webp", "avif") else {})
        )
        whole = (tmp_path / f"a.{suffix}").read_bytes()
        for _ in range(60):
            content = bytearray(whole[: rng.randrange(len(whole))] if rng.random() < 0.3 else whole)
            for _ in range(rng.choice([1, 3, 10]) if content else 0):
                content[rng.randrange(min(len(content), rng.choice([100, len(content)])))] = rng.randrange(
                    256
                )
            path.write_bytes(content)
            try:
                assert decode(path).mode == "RGB"
            except BadImage as bad:
                refused += 1
                assert str(bad)
    assert refused > 100


def test_the_error_lists_twenty_and_says_how_to_go_on() -> None:
    text = str(bad_images_error({Path(f"train/{number}.jpg"): "empty file" for number in range(23)}))
    assert (
        text.startswith("23 training images cannot be decoded") and "--set data.skip_bad_images=true" in text
    )
    assert f"  - {Path('train/19.jpg')}: empty file" in text
    assert "20.jpg" not in text
    assert text.endswith("... and 3 more")
    assert str(bad_images_error({Path("a.jpg"): "empty file"})).startswith("1 training image cannot")


def jpegs() -> dict[str, bytes]:
    """JPEGs of every kind that the two decoders could see differently."""
    rng = np.random.default_rng(0)

    def photo(width: int, height: int) -> Image.Image:
        small = rng.integers(0, 255, (height // 5 + 1, width // 5 + 1, 3), dtype=np.uint8)
        return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)

    made = {}

    def add(name: str, picture: Image.Image, format: str = "JPEG", **options: object) -> None:
        buffer = io.BytesIO()
        picture.save(buffer, format, **options)
        made[name] = buffer.getvalue()

    for size in ((1, 1), (7, 9), (15, 16), (16, 16), (17, 33), (101, 77), (300, 19), (40, 131)):
        for subsampling in (0, 1, 2):
            add(f"{size} {subsampling}", photo(*size), subsampling=subsampling)
    base = photo(131, 97)
    add("progressive", base, progressive=True)
    add("restart markers", base, restart_marker_blocks=2)
    add("optimized, best", base, quality=100, optimize=True)
    add("worst", base, quality=3)
    add("stored as RGB", base, keep_rgb=True)
    add("grey", base.convert("L"))
    add("cmyk", base.convert("CMYK"))
    add("several images", base, "MPO", save_all=True, append_images=[photo(131, 97)])
    for orientation in (0, 1, 3, 6, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        add(f"orientation {orientation}", base, exif=exif)
    for subsampling in ("440", "411", "422"):
        made[subsampling] = images.simplejpeg.encode_jpeg(np.asarray(base), 90, colorsubsampling=subsampling)
    return made


def outcome(path: Path, level: int) -> tuple[str, np.ndarray | None]:
    try:
        with opened(path) as image:
            return "whole", load_pixels(image, level)
    except BadImage:
        return "bad", None


def compare_roads(path: Path, level: int, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(images, "FAST_JPEG", False)
    expected, pixels = outcome(path, level)
    monkeypatch.setattr(images, "FAST_JPEG", True)
    found, fast = outcome(path, level)
    assert found == expected and (pixels is None or np.array_equal(fast, pixels))
    return found


needs_simplejpeg = pytest.mark.skipif(not images.FAST_JPEG, reason="simplejpeg is not installed")


@needs_simplejpeg
@pytest.mark.parametrize("level", range(LEVELS))
def test_both_decoders_give_the_same_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: int
) -> None:
    fast, decode_jpeg = [], images.simplejpeg.decode_jpeg
    monkeypatch.setattr(
        images.simplejpeg,
        "decode_jpeg",
        lambda *args, **options: fast.append(args) or decode_jpeg(*args, **options),
    )
    for name, content in jpegs().items():
        (tmp_path / "a.jpg").write_bytes(content)
        before = len(fast)
        assert compare_roads(tmp_path / "a.jpg", level, monkeypatch) == "whole"
        if name in ("grey", "cmyk", "orientation 3", "orientation 6"):
            assert len(fast) == before, name
        if name in ("progressive", "orientation 1", "several images") and level < 3:
            assert len(fast) == before + 1, name


@needs_simplejpeg
def test_both_decoders_find_the_same_files_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, path, found = random.Random(1), tmp_path / "a.jpg", []
    for content in jpegs().values():
        for _ in range(8):
            data = bytearray(content)
            if rng.random() < 0.4:
                del data[rng.randrange(len(data)) :]
            elif rng.random() < 0.3:  # its end, and what came after it
                data = data[: -rng.randrange(1, 4)] + bytes(rng.randrange(3))
            for _ in range(rng.choice([0, 1, 5])):
                data[rng.randrange(min(len(data), rng.choice([600, len(data)])))] = rng.randrange(256)
            path.write_bytes(data)
            found.append(compare_roads(path, rng.randrange(LEVELS), monkeypatch))
    assert min(found.count("bad"), found.count("whole")) > 50


def test_decoding_small_and_whole_images_keeps_what_the_file_says_of_its_colours(tmp_path: Path) -> None:
    halves(size=(64, 64)).save(tmp_path / "a.jpg", icc_profile=b"a profile")
    assert (
        decode(tmp_path / "a.jpg").info["icc_profile"]
        == decode(tmp_path / "a.jpg", smallest=20).info["icc_profile"]
        == b"a profile"
    )


def test_it_works_without_simplejpeg(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 64, 3), dtype=np.uint8)).save(
        tmp_path / "a.jpg"
    )
    code = """
import sys, zlib
sys.modules["simplejpeg"] = None
from pathlib import Path
from pipeline.data import images
pixels = images.decode(Path(sys.argv[1]), int(sys.argv[2]))
print(images.FAST_JPEG, images.DECODERS, zlib.crc32(pixels.tobytes()))
"""
    for smallest in (0, 30):
        command = [sys.executable, "-c", code, str(tmp_path / "a.jpg"), str(smallest)]
        printed = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
        ).stdout.split()
        assert printed[:2] == ["False", "Pillow"] and "simplejpeg" not in printed
        assert int(printed[-1]) == zlib.crc32(decode(tmp_path / "a.jpg", smallest).tobytes())
