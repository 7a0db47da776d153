"""What is let in: good images with damaged metadata are; what would take gigabytes, minutes or another
program is not.
"""

from __future__ import annotations

import io
import itertools
import os
import resource
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import assert_says
from PIL import Image, TiffImagePlugin

from pipeline.data import metadata, opening
from pipeline.data.images import BadImage, check, decode, find_bad, load_pixels
from pipeline.data.opening import decoded_bytes, opened

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")
PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8))


def saved(format: str, picture: Image.Image = PHOTO, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes, wrong: int = 0) -> bytes:
    """A chunk of a PNG; `wrong` is added to its checksum."""
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", (zlib.crc32(kind + content) + wrong) & 0xFFFFFFFF)
    )


def png_claiming(width: int, height: int, content: bytes = b"", colour: int = 2) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0))
    return metadata.PNG + head + chunk(b"IDAT", zlib.compress(content)) + chunk(b"IEND", b"")


DAMAGED_PNG = {
    "comment with a wrong checksum": chunk(b"tEXt", b"Comment\0hello", wrong=1),
    "unknown with a wrong checksum": chunk(b"quXx", b"abc", wrong=1),
    "comment of 3 MB": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(3_000_000))),
    "comments of 80 MB": b"".join(
        chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1_000_000))) for _ in range(80)
    ),
    "international text": chunk(b"iTXt", b"k\0\1\0\0\0garbage"),
    "EXIF that is none": chunk(b"eXIf", b"garbage of no kind"),
    "EXIF cut": chunk(b"eXIf", b"II*\0\x08\0\0\0\xff\xff"),
    "EXIF with a wrong checksum": chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\0", wrong=1),
    "EXIF as text": chunk(
        b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n 10\nzz not hexadecimal")
    ),
    "colour profile": chunk(b"iCCP", b"p"),
    "resolution": chunk(b"pHYs", b"\0"),
    "gamma": chunk(b"gAMA", b""),
    "rendering": chunk(b"sRGB", b""),
    "frames": chunk(b"acTL", b"\0"),
    "one colour transparent, cut": chunk(b"tRNS", b"\0"),
    # Libpng leaves it out too
    "one colour transparent, with a wrong checksum": chunk(b"tRNS", b"\0\1\0\2\0\3", wrong=1),
}


@pytest.mark.parametrize("late", [False, True], ids=["before the pixels", "after them"])
@pytest.mark.parametrize("name", DAMAGED_PNG)
def test_a_png_with_damaged_metadata_is_the_image_without_it(tmp_path: Path, name: str, late: bool) -> None:
    whole = saved("PNG")
    place = len(whole) - 12 if late else 33  # before IEND, or after IHDR
    (tmp_path / "a.png").write_bytes(whole[:place] + DAMAGED_PNG[name] + whole[place:])
    assert np.array_equal(np.asarray(decode(tmp_path / "a.png")), np.asarray(PHOTO))
    check(tmp_path / "a.png")


def test_a_good_orientation_beside_damaged_metadata_is_still_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = saved("PNG", exif=exif)
    (tmp_path / "a.png").write_bytes(whole[:33] + DAMAGED_PNG["comment with a wrong checksum"] + whole[33:])
    assert np.array_equal(np.asarray(decode(tmp_path / "a.png")), np.rot90(np.asarray(PHOTO), -1))


def test_damage_to_what_holds_the_pixels_is_still_refused(tmp_path: Path) -> None:
    whole = bytearray(saved("PNG"))
    for place in (20, len(whole) - 40):  # in IHDR, in IDAT
        broken = whole.copy()
        broken[place] ^= 0xFF
        (tmp_path / "a.png").write_bytes(broken)
        with pytest.raises(BadImage):
            decode(tmp_path / "a.png")


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate"])
def test_a_tiff_whose_comments_cannot_be_read_is_the_image_without_them(
    tmp_path: Path, kind: str, compression: str | None
) -> None:
    """Pillow stops at the first tag that it cannot read: without its later ones a float image was read as
    whole numbers.
    """
    rng = np.random.default_rng(1)
    values = {
        "uint8": np.asarray(PHOTO),
        "uint16": rng.integers(0, 60_000, (40, 50)).astype(np.uint16),
        "float32": rng.random((40, 50)).astype(np.float32),
    }[kind]
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[270] = "a long description of it"
    tags[305] = "some software"
    tags[700] = b"x" * 100
    tags[34675] = b"profile" * 9
    if compression and kind != "float32":
        tags[317] = 2  # differences to the left neighbour
    whole = saved("TIFF", Image.fromarray(values), compression=compression, tiffinfo=tags)
    (tmp_path / "a.tif").write_bytes(whole)
    expected, tried = np.asarray(decode(tmp_path / "a.tif")), 0
    (start,) = struct.unpack_from("<L", whole, 4)
    for number in range(struct.unpack_from("<H", whole, start)[0]):
        place = start + 2 + 12 * number
        tag, type_, count, offset = struct.unpack_from("<HHLL", whole, place)
        if tag in metadata.TIFF_DECODING:
            continue
        for entry in (
            (tag, type_, count, 10**9),
            (tag, type_, 2 * 10**9, offset),
            (tag, 99, count, offset),
            (tag, 5, count, offset),
        ):
            (tmp_path / "b.tif").write_bytes(
                whole[:place] + struct.pack("<HHLL", *entry) + whole[place + 12 :]
            )
            assert np.array_equal(np.asarray(decode(tmp_path / "b.tif")), expected), entry
            tried += 1
    assert tried == 16


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("lossless", [True, False])
def test_a_webp_with_a_damaged_chunk_of_metadata_is_the_image_without_it(
    tmp_path: Path, mode: str, lossless: bool
) -> None:
    picture = PHOTO.convert(mode)
    if mode == "RGBA":
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    whole = saved(
        "WEBP",
        picture,
        lossless=lossless,
        exif=b"Exif\0\0garbage of no kind",
        xmp=b"<x>" * 5,
        icc_profile=b"abc" * 20,
    )
    (tmp_path / "a.webp").write_bytes(whole)
    expected, place, tried = np.asarray(decode(tmp_path / "a.webp")), 12, 0
    while place < len(whole):
        name, length = whole[place : place + 4], struct.unpack_from("<L", whole, place + 4)[0]
        for wrong in (1, 3 * length, 2**31) if name in (b"ICCP", b"EXIF", b"XMP ") else ():
            (tmp_path / "b.webp").write_bytes(
                whole[: place + 4] + struct.pack("<L", wrong) + whole[place + 8 :]
            )
            assert np.array_equal(np.asarray(decode(tmp_path / "b.webp")), expected), (name, wrong)
            tried += 1
        place += 8 + length + length % 2
    assert tried == 9


def refusal(path: Path) -> str:
    """Why the image is refused, by every road alike, quickly and in little memory."""
    started, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def pixels(path: Path) -> None:
        with opened(path) as image:
            load_pixels(image)

    texts = set()
    for road in (decode, check, pixels):
        with pytest.raises(BadImage) as caught:
            road(path)
        texts.add(str(caught.value))
    assert time.process_time() - started < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB
    (text,) = texts
    assert find_bad([path]) == {0: text}
    return text


@pytest.mark.parametrize("colour", [0, 2, 4, 6])
def test_a_small_file_that_claims_128_megapixels_is_refused_before_any_memory_is_taken(
    tmp_path: Path, colour: int
) -> None:
    (tmp_path / "a.png").write_bytes(png_claiming(11_300, 11_300, colour=colour))
    assert (tmp_path / "a.png").stat().st_size < 80
    assert refusal(tmp_path / "a.png").endswith("bytes cannot hold 11,300 x 11,300 pixels")
    head = saved("JPEG", Image.new("RGB", (16, 16)))
    place = head.index(b"\xff\xc0") + 5
    (tmp_path / "a.jpg").write_bytes(head[:place] + struct.pack(">HH", 11_300, 11_300) + head[place + 4 :])
    assert "cannot hold" in refusal(tmp_path / "a.jpg")


def test_as_small_as_honest_files_get_they_are_let_in(tmp_path: Path) -> None:
    for name, mode, options in (
        ("a.png", "L", {"compress_level": 9}),
        ("a.png", "1", {}),
        ("a.png", "RGBA", {}),
        ("a.gif", "P", {}),
        ("a.jpg", "L", {"quality": 1, "optimize": True}),
        ("a.jpg", "RGB", {"quality": 1, "progressive": True}),
        ("a.tif", "1", {"compression": "group4"}),
        ("a.tif", "L", {"compression": "tiff_lzw"}),
        ("a.webp", "RGB", {"lossless": True}),
        ("a.bmp", "1", {}),
        ("a.tga", "RGB", {"compression": "tga_rle"}),
    ):
        Image.new(mode, (4000, 3000)).save(tmp_path / name, **options)
        assert decode(tmp_path / name).size == (4000, 3000), (name, mode)


def test_what_decoding_takes_depends_on_the_mode_and_the_format(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(saved("PNG"))
    (tmp_path / "a.jpg").write_bytes(saved("JPEG", progressive=True))
    (tmp_path / "rgba.webp").write_bytes(saved("WEBP", PHOTO.convert("RGBA")))
    found = []
    for name in ("a.png", "a.jpg", "rgba.webp"):
        with opened(tmp_path / name) as image:
            found.append(decoded_bytes(image) / (40 * 50))
    assert found == [7, 13, 15]


def test_modes_and_formats_that_would_take_too_much_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "MAX_DECODED_BYTES", 10 * 40 * 50)
    (tmp_path / "rgb.png").write_bytes(saved("PNG"))
    (tmp_path / "rgba.png").write_bytes(saved("PNG", PHOTO.convert("RGBA")))
    (tmp_path / "progressive.jpg").write_bytes(saved("JPEG", progressive=True))
    decode(tmp_path / "rgb.png")
    assert_says(refusal(tmp_path / "rgba.png"), "50 x 40", "22 kB", "20 kB")
    assert "would need 26 kB" in refusal(tmp_path / "progressive.jpg")


def test_large_images_are_decoded_one_at_a_time_also_by_several_processes(tmp_path: Path) -> None:
    """Four processes, each with a block of 0.4 s in which the image is open: one after the other, or at once
    when it is small.
    """
    PHOTO.save(tmp_path / "a.png")
    code = """
import sys, time
from pipeline.data import opening
opening.LARGE_BYTES = int(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
with opening.opened(sys.argv[1]):
    began = time.monotonic()
    time.sleep(0.4)
    print(began, time.monotonic())
"""
    for large, alone in ((0, True), (10**9, False)):
        command = [sys.executable, "-c", code, str(tmp_path / "a.png"), str(large)]
        pipes = {
            "stdin": subprocess.PIPE,
            "stdout": subprocess.PIPE,
            "text": True,
            "cwd": Path(__file__).parents[1],
        }
        processes = [subprocess.Popen(command, **pipes) for _ in range(4)]
        assert [process.stdout.readline() for process in processes] == ["ready\n"] * 4
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        times = sorted(tuple(map(float, process.communicate()[0].split())) for process in processes)
        overlaps = sum(began < ended for (_, ended), (began, _) in itertools.pairwise(times))
        assert (overlaps == 0) is alone, times


@pytest.mark.parametrize(("scans", "side", "let_in"), [(40, 60, True), (300, 60, False), (60, 6000, False)])
def test_progressive_jpegs_of_hundreds_of_scans_are_refused(
    tmp_path: Path, scans: int, side: int, let_in: bool
) -> None:
    whole = saved("JPEG", Image.new("RGB", (side, side), (90, 20, 200)), progressive=True)
    again = whole[whole.rindex(b"\xff\xda") : -2]
    for name, rest in (("a.jpg", b""), ("turned.jpg", b"x")):  # the second goes through Pillow
        exif = Image.Exif()
        exif[0x0112] = 6
        start = (
            saved("JPEG", Image.new("RGB", (side, side), (90, 20, 200)), progressive=True, exif=exif)
            if rest
            else whole
        )
        (tmp_path / name).write_bytes(start[:-2] + again * scans + b"\xff\xd9")
        if let_in:
            decode(tmp_path / name)
        else:
            assert "scans, which would take minutes" in refusal(tmp_path / name)


def test_a_jpeg_whose_components_have_scans_of_their_own_is_counted_too(tmp_path: Path) -> None:
    """Sequential, and libjpeg reads on to the end of the file: as many scans as there are."""
    whole = saved("JPEG", Image.new("RGB", (64, 64), (90, 20, 200)), subsampling=0)
    place = whole.index(b"\xff\xda")
    one = b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" + whole[place + 14 : -2]
    (tmp_path / "a.jpg").write_bytes(whole[:place] + one * 150 + b"\xff\xd9")
    assert "150 scans" in refusal(tmp_path / "a.jpg")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_files_of_gigabytes_are_refused_by_their_size(tmp_path: Path, suffix: str) -> None:
    with open(tmp_path / f"a.{suffix}", "wb") as file:
        file.write(saved({"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper())))
        file.truncate(6_000_000_000)
    assert_says(refusal(tmp_path / f"a.{suffix}"), "6.0 GB", "1.1 GB")
    os.truncate(tmp_path / f"a.{suffix}", 1_000_000_000)
    if suffix in ("jpg", "webp"):
        assert_says(refusal(tmp_path / f"a.{suffix}"), "1.0 GB", "PNG, TIFF or BMP")
    else:
        assert decode(tmp_path / f"a.{suffix}").size == PHOTO.size


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    assert refusal(tmp_path / "a.jpg") == "not a file"


def test_postscript_and_its_like_are_no_images_whatever_their_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("started"))
    bitmap = b"#define a_width 8\n#define a_height 1\nstatic unsigned char a_bits[] = {0x01};\n"
    for name, content in {
        "a.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\nshowpage\n",
        "a.png": saved("EPS"),
        "a.tif": b"%PDF-1.4\n",
        "a.gif": bitmap,
        # Openjpeg aborts the process on some damaged files
        "a.jpeg": saved("JPEG2000") if "JPEG2000" in Image.SAVE else bitmap,
        "a.bmp": b"SIMPLE  =                    T" + b" " * 2850,
    }.items():
        (tmp_path / name).write_bytes(content)
        assert refusal(tmp_path / name) == "not an image", name


def test_transparency_is_put_over_white_in_bands_as_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(2)
    rgba = Image.fromarray(rng.integers(0, 255, (70, 30, 4), dtype=np.uint8))
    palette = PHOTO.quantize(8)
    for name, picture, options in (
        ("rgba.png", rgba, {}),
        ("la.png", rgba.convert("LA"), {}),
        ("palette.png", palette, {"transparency": 3}),
        ("palette2.png", palette, {"transparency": bytes(range(0, 256, 32))}),
        ("key.png", PHOTO, {"transparency": PHOTO.getpixel((3, 3))}),
        (
            "deep.png",
            Image.fromarray(rng.integers(0, 60_000, (70, 30)).astype(np.uint16)),
            {"transparency": 7},
        ),
    ):
        picture.save(tmp_path / name, **options)
        monkeypatch.setattr("pipeline.data.images.BAND_PIXELS", 4_000_000)
        whole = np.asarray(decode(tmp_path / name))
        monkeypatch.setattr("pipeline.data.images.BAND_PIXELS", 170)
        assert np.array_equal(np.asarray(decode(tmp_path / name)), whole), name
