"""`make data FROM=`: archives at any depth, and images out of what is no image file; each kind with its
broken twin.
"""

from __future__ import annotations

import builtins
import gzip
import io
import json
import os
import random
import signal
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.competition.layout import read_layout
from pipeline.errors import EXIT_USER, Interrupted, UserError, run_command
from pipeline.fetch import (
    arrival,
    budget,
    containers,
    grey_range,
    install,
    originals,
    pixels,
    staging,
    tf_examples,
)
from pipeline.tables import load_table, write_table
from pipeline.targets.evidence import Asked

ROOT = Path(__file__).resolve().parents[1]


# ---- what a competition is made of ----


def grey(number: int, size: int = 28) -> np.ndarray:
    """A smooth image of its own, uint8 (size, size)."""
    rows, columns = np.mgrid[:size, :size]
    return (120 + 60 * np.sin(rows / 5 + number) + 60 * np.cos(columns / 7)).astype(np.uint8)


def png(array: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(array).save(data, "PNG")
    return data.getvalue()


def put(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def zipped(members: dict[str, bytes | str]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return data.getvalue()


def tarred(members: dict[str, bytes], mode: str = "w") -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return data.getvalue()


def seven_zip(members: dict[str, bytes], attributes: Sequence[int] = ()) -> bytes:
    """A 7z archive with stored members, as the format's description has it: names are not checked by any
    writer.
    """
    body = b"".join(members.values())
    names = b"\0" + b"".join(name.encode("utf-16-le") + b"\0\0" for name in members)

    def number(value: int) -> bytes:
        assert value < 1 << 14
        return bytes([value]) if value < 128 else bytes([0x80 | value >> 8, value & 255])

    sizes = (
        b"\x09" + b"".join(number(len(content)) for content in list(members.values())[:-1])
        if len(members) > 1
        else b""
    )
    crcs = b"".join(struct.pack("<I", zlib.crc32(content)) for content in members.values())
    pack = b"\x06\0\x01\x09" + number(len(body)) + b"\0"
    folder = b"\x07\x0b\x01\0\x01\x01\0\x0c" + number(len(body)) + b"\0"
    streams = b"\x08\x0d" + number(len(members)) + sizes + b"\x0a\x01" + crcs + b"\0"
    entries = b"\x05" + number(len(members)) + b"\x11" + number(len(names)) + names
    if attributes:
        values = b"".join(struct.pack("<I", value) for value in attributes)
        entries += b"\x15" + number(len(values) + 2) + b"\x01\0" + values
    header = b"\x01\x04" + pack + folder + streams + b"\0" + entries + b"\0\0"
    start = struct.pack("<QQI", len(body), len(header), zlib.crc32(header))
    return b"7z\xbc\xaf\x27\x1c\0\x04" + struct.pack("<I", zlib.crc32(start)) + start + body + header


def record(features: dict[str, bytes | int | float | list[int]]) -> bytes:
    """One record of a TFRecord file, as its documentation has it."""

    def varint(value: int) -> bytes:
        out = b""
        while value > 127:
            out, value = out + bytes([value & 127 | 128]), value >> 7
        return out + bytes([value])

    def message(field: int, content: bytes) -> bytes:
        return varint(field << 3 | 2) + varint(len(content)) + content

    entries = b""
    for name, value in features.items():
        if isinstance(value, bytes):
            feature = message(1, message(1, value))
        elif isinstance(value, int):
            feature = message(3, message(1, varint(value & (1 << 64) - 1)))
        elif isinstance(value, list):
            feature = message(3, message(1, b"".join(map(varint, value))))
        else:
            feature = message(2, message(1, struct.pack("<f", value)))
        entries += message(1, message(1, name.encode()) + message(2, feature))
    data = message(1, entries)
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", tf_examples.masked_crc32c(length)) + data + b"\0\0\0\0"


TRAIN_IDS, TEST_IDS = [f"a{number}" for number in range(8)], [f"b{number}" for number in range(4)]


def folder_competition(root: Path) -> dict[str, bytes]:
    """Images, tables and a sample submission; the files by their paths."""
    files = {f"train/{name}.png": png(grey(number)) for number, name in enumerate(TRAIN_IDS)}
    files |= {f"test/{name}.png": png(grey(number + 20)) for number, name in enumerate(TEST_IDS)}
    files["train.csv"] = (
        "id,label\n"
        + "".join(f"{name},{'cat' if number % 2 else 'dog'}\n" for number, name in enumerate(TRAIN_IDS))
    ).encode()
    files["sample_submission.csv"] = ("id,label\n" + "".join(f"{name},cat\n" for name in TEST_IDS)).encode()
    for name, content in files.items():
        put(root / name, content)
    return files


def sample(root: Path, ids: Sequence[object]) -> None:
    put(root / "sample_submission.csv", "id,label\n" + "".join(f"{name},0\n" for name in ids))


def digest(root: Path) -> dict[str, tuple[bytes, int, int]]:
    return {
        path.relative_to(root).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_mode)
        for path in root.rglob("*")
        if path.is_file()
    }


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.fixture
def take(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`make data FROM=source` into a new folder data; what it printed. The source must be as it was."""

    def call(source: Path) -> str:
        before = digest(source) if source.is_dir() else source.read_bytes()
        try:
            install.main(["--from", str(source), "--data", str(tmp_path / "data")])
        finally:
            assert (digest(source) if source.is_dir() else source.read_bytes()) == before, (
                "the original was changed"
            )
        hidden = {path.name for path in (tmp_path / "data").glob(".*")}
        assert hidden <= {containers.CONVERTED, originals.ORIGINALS}, "something hidden was left"
        return capsys.readouterr().out

    return call


def refused(take: Callable[..., str], source: Path) -> str:
    with pytest.raises(UserError) as caught:
        take(source)
    data = source.parent / "data"
    assert not data.exists() or not any(data.iterdir()), "something was left behind"
    return str(caught.value)


# ---- folders and archives ----


def test_two_commands_do_not_fill_one_folder_at_the_same_time(tmp_path, take):
    folder_competition(tmp_path / "kaggle")
    other = "import sys; from pathlib import Path; from pipeline.lock import holding_folder\n"
    other += "with holding_folder(Path(sys.argv[1])): print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", other, str(tmp_path / "data")]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        with pytest.raises(UserError) as refusal:
            install.main(["--from", str(tmp_path / "kaggle"), "--data", str(tmp_path / "data")])
        assert f"process {holder.pid}" in str(refusal.value) and "--data" in str(refusal.value)
        holder.communicate()
    take(tmp_path / "kaggle")


def test_a_class_that_is_a_link_to_another_folder_is_taken_over(tmp_path, take):
    folder_competition(tmp_path / "kaggle")
    for name in ("train/red/1.png", "pool/blue/2.png"):
        put(tmp_path / "kaggle" / name, png(grey(1)))
    (tmp_path / "kaggle/train/blue").symlink_to("../pool/blue")
    (tmp_path / "kaggle/train/loop").symlink_to("..")
    output = take(tmp_path / "kaggle")
    assert (tmp_path / "data/train/blue/2.png").is_file() and (tmp_path / "data/pool/blue/2.png").is_file()
    assert not (tmp_path / "data/train/loop").exists() and "train/loop" in output


def test_images_are_linked_and_tables_are_copies(tmp_path, take):
    files = folder_competition(tmp_path / "kaggle")
    output = take(tmp_path / "kaggle")
    assert names(tmp_path / "data") == sorted(files)
    assert os.path.samefile(tmp_path / "kaggle/train/a0.png", tmp_path / "data/train/a0.png")
    assert not os.path.samefile(tmp_path / "kaggle/train.csv", tmp_path / "data/train.csv")
    assert "train: 8 images, 2 classes" in output


def test_images_are_copied_where_they_cannot_be_linked(tmp_path, take, monkeypatch):
    files = folder_competition(tmp_path / "kaggle")

    def no_links(*args: object, **kwargs: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_links)
    take(tmp_path / "kaggle")
    assert {name: (tmp_path / "data" / name).read_bytes() for name in files} == files


def test_everything_packed_is_unpacked_at_any_depth(tmp_path, take):
    files = folder_competition(tmp_path / "plain")
    train = {name: content for name, content in files.items() if name.startswith("train/")}
    test = {
        name.removeprefix("test/"): content for name, content in files.items() if name.startswith("test/")
    }
    put(tmp_path / "kaggle/train.7z", seven_zip(train))
    inner = zipped({"test.tar.gz": tarred(test, "w:gz")})
    put(tmp_path / "kaggle/more.zip", zipped({"test.zip": inner}))
    put(tmp_path / "kaggle/train.csv.gz", gzip.compress(files["train.csv"]))
    put(
        tmp_path / "kaggle/sample_submission.csv.zip",
        zipped({"sample_submission.csv": files["sample_submission.csv"]}),
    )
    take(tmp_path / "kaggle")
    found = names(tmp_path / "data")
    assert {name for name in files if not name.startswith("test/")} <= set(found)
    assert [name for name in found if "/b" in name] == [f"more/test/{name}" for name in sorted(test)]
    assert not [name for name in found if name.endswith((".zip", ".7z", ".gz", ".tar"))]


def test_numbered_pieces_of_an_archive_are_joined(tmp_path, take):
    files = folder_competition(tmp_path / "plain")
    whole = zipped({name: content for name, content in files.items() if name.startswith("train/")})
    third = len(whole) // 3 + 1
    for number in range(3):
        put(tmp_path / f"kaggle/train.zip.00{number + 1}", whole[number * third : (number + 1) * third])
    put(tmp_path / "kaggle/train.csv", files["train.csv"])
    put(tmp_path / "kaggle/other.zip.002", b"a piece without the first")
    said = take(tmp_path / "kaggle")
    assert {name for name in files if name.startswith("train/")} <= set(names(tmp_path / "data"))
    assert (
        "train.zip joined from 3 pieces and unpacked" in said and not (tmp_path / "data/train.zip").exists()
    )
    assert "join them first" in said and (tmp_path / "data/other.zip.002").exists()
    assert (tmp_path / "kaggle/train.zip.001").stat().st_size == third  # the originals stay


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tgz", ".tar.bz2", ".tar.xz", ".7z"])
def test_an_archive_is_taken_as_its_content_without_the_folder_around_it(tmp_path, take, suffix):
    files = {
        f"competition-v2/{name}": content for name, content in folder_competition(tmp_path / "plain").items()
    }
    modes = {".tar": "w", ".tgz": "w:gz", ".tar.bz2": "w:bz2", ".tar.xz": "w:xz"}
    packed = (
        zipped(files)
        if suffix == ".zip"
        else seven_zip(files)
        if suffix == ".7z"
        else tarred(files, modes[suffix])
    )
    output = take(put(tmp_path / f"download{suffix}", packed))
    assert names(tmp_path / "data") == sorted(name.removeprefix("competition-v2/") for name in files)
    assert "in competition-v2/, which is left out" in output
    assert len(read_layout(tmp_path / "data").test) == 4


def test_a_tar_with_a_zip_near_its_end_is_taken_as_a_whole(tmp_path, take):
    files = folder_competition(tmp_path / "plain")
    test = {name: content for name, content in files.items() if name.startswith("test/")}
    first = {name: content for name, content in files.items() if name.startswith("train")}
    last = {"sample_submission.csv": files["sample_submission.csv"]}
    take(put(tmp_path / "download.tar", tarred(first | {"test.zip": zipped(test)} | last)))
    assert names(tmp_path / "data") == sorted(files)


def test_a_zip_behind_a_program_is_unpacked(tmp_path, take):
    files = folder_competition(tmp_path / "plain")
    take(put(tmp_path / "download.zip", b"#!/bin/sh\n" * 100 + zipped(files)))
    assert names(tmp_path / "data") == sorted(files)


def test_class_folders_alone_are_not_unwrapped(tmp_path, take):
    for number in range(4):
        put(tmp_path / f"kaggle/train/{'cat' if number % 2 else 'dog'}/{number}.png", png(grey(number)))
    take(tmp_path / "kaggle")
    assert all(name.startswith("train/") for name in names(tmp_path / "data"))


def test_an_archive_beside_its_folder_is_left_where_it_is(tmp_path, take):
    files = folder_competition(tmp_path / "kaggle")
    put(
        tmp_path / "kaggle/train.zip",
        zipped({name: content for name, content in files.items() if name.startswith("train/")}),
    )
    assert "train.zip not unpacked: train is there already" in take(tmp_path / "kaggle")
    assert names(tmp_path / "data") == sorted(files)


def test_the_only_file_of_an_archive_keeps_the_archives_name_as_its_folder(tmp_path, take):
    for part, count in (("train", 8), ("test", 4)):
        stacks = {"images": np.stack([grey(number) for number in range(count)])}
        labels = {"labels": np.arange(count) % 4} if part == "train" else {}
        data = io.BytesIO()
        np.savez(data, **stacks, **labels)
        put(tmp_path / f"kaggle/{part}.zip", zipped({"data.npz": data.getvalue()}))
    sample(tmp_path / "kaggle", range(4))
    take(tmp_path / "kaggle")
    competition = read_layout(tmp_path / "data", asked=Asked(metric="accuracy"))
    assert (len(competition.train), len(competition.test)) == (8, 4)


def test_a_class_archive_with_one_image_stays_a_class(tmp_path, take):
    for name, count in (("cat", 2), ("dog", 2), ("emu", 1)):
        images = {f"{name}{number}.png": png(grey(number)) for number in range(count)}
        put(tmp_path / f"kaggle/train/{name}.zip", zipped(images))
    take(tmp_path / "kaggle")
    assert [row.label for row in read_layout(tmp_path / "data", need="train").train] == [
        "cat",
        "cat",
        "dog",
        "dog",
        "emu",
    ]


def test_two_archives_with_a_table_of_one_name_are_both_unpacked(tmp_path, take):
    put(tmp_path / "kaggle/first.zip", zipped({"data.csv": "a,b\n1,2\n"}))
    put(tmp_path / "kaggle/second.zip", zipped({"data.csv": "a,b\n3,4\n"}))
    put(tmp_path / "kaggle/third.zip", zipped({"data.csv": "a,b\n1,2\n"}))
    said = take(tmp_path / "kaggle")
    assert names(tmp_path / "data") == ["data.csv", "second/data.csv"]
    assert (tmp_path / "data/second/data.csv").read_text() == "a,b\n3,4\n"
    assert "third.zip not unpacked: data.csv is there already" in said


def test_a_folder_with_spaces_that_lacks_what_its_archive_holds_is_named(tmp_path, take):
    images = {f"{number}.png": png(grey(number)) for number in range(3)}
    put(tmp_path / "kaggle/all my images.zip", zipped(images))
    put(tmp_path / "kaggle/all my images/0.png", images["0.png"])
    assert "'all my images'" in refused(take, tmp_path / "kaggle")


def test_a_folder_that_lacks_what_its_archive_holds_is_said(tmp_path, take):
    files = folder_competition(tmp_path / "kaggle")
    put(
        tmp_path / "kaggle/train.zip",
        zipped({name: content for name, content in files.items() if name.startswith("train/")}),
    )
    (tmp_path / "kaggle/train/a3.png").unlink()
    message = refused(take, tmp_path / "kaggle")
    assert "train.zip" in message and "1 file" in message and "a3.png" in message


@pytest.mark.parametrize(
    ("name", "packed", "words"),
    [
        ("a.7z", seven_zip({"/etc/evil.txt": b"x"}), "an absolute path"),
        ("a.7z", seven_zip({"../evil.txt": b"x"}), "leaves the folder"),
        ("a.7z", seven_zip({"evil": b"/etc/passwd"}, [0x8000 | (0o120777 << 16)]), "a link"),
        ("a.7z", seven_zip({"a.txt": b"x" * 50})[:60], "damaged"),
        ("a.zip", zipped({"../evil.txt": "x"}), "leaves the folder"),
        ("a.zip", zipped({"a.txt": "x"})[:40], "damaged"),
        ("a.csv.gz", gzip.compress(random.Random(0).randbytes(500), mtime=0)[:100], "damaged"),
        ("a.csv.xz", b"no xz", "damaged"),
    ],
    ids=["absolute", "outside", "link", "cut 7z", "outside zip", "cut zip", "cut gz", "no xz"],
)
@pytest.mark.parametrize("in_folder", [False, True])
def test_a_hostile_or_damaged_archive_moves_nothing(tmp_path, take, name, packed, words, in_folder):
    path = put(tmp_path / ("kaggle/" if in_folder else "") / name, packed)
    message = refused(take, tmp_path / "kaggle" if in_folder else path)
    assert name in message and words in message
    assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize("names_too", [False, True])
def test_an_encrypted_7z_is_said(tmp_path, take, names_too):
    py7zr = pytest.importorskip("py7zr")
    path = tmp_path / "locked.7z"
    with py7zr.SevenZipFile(path, "w", password="secret", header_encryption=names_too) as archive:
        archive.writestr("text", "a.txt")
    message = refused(take, path)
    assert "encrypted" in message and "download it again" not in message


def test_a_tar_with_a_link_is_refused(tmp_path, take):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        member = tarfile.TarInfo("train/a.png")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)
    assert "'train/a.png' is a link" in refused(take, put(tmp_path / "a.tar", data.getvalue()))


def bomb(levels: int) -> bytes:
    """A zip of ten copies of a zip of ten copies of ... 10 MB of zeros."""
    packed = zipped({"zeros": bytes(10 * 10**6)})
    for _ in range(levels):
        packed = zipped({f"{number}.zip": packed for number in range(10)})
    return packed


def nested(levels: int) -> bytes:
    packed = zipped({"a.txt": "x"})
    for number in range(levels):
        packed = zipped({f"{number}.zip": packed})
    return packed


@pytest.mark.parametrize(
    ("name", "packed", "words"),
    [
        ("a.zip", bomb(2), "64 MB"),
        ("a.csv.gz", gzip.compress(bytes(65 * 10**6)), "64 MB"),
        ("a.tar.gz", tarred({"zeros": bytes(65 * 10**6)}, "w:gz"), "64 MB"),
        ("a.zip", nested(12), "more than 8 levels"),
        (
            "a.zip",
            zipped(
                {f"{number}.zip": zipped({str(entry): "" for entry in range(600)}) for number in range(20)}
            ),
            "10,000 files",
        ),
    ],
    ids=["zips in zips", "gzip", "tar.gz", "levels", "files"],
)
def test_one_budget_for_an_archive_and_all_in_it(tmp_path, take, name, packed, words):
    begun = time.monotonic()
    assert words in refused(take, put(tmp_path / name, packed))
    assert time.monotonic() - begun < 20


def test_a_header_of_a_tar_is_bounded_before_it_is_read(tmp_path, take):
    name = tarfile.TarInfo("././@LongLink")
    name.type, name.size = tarfile.GNUTYPE_LONGNAME, 10**9
    assert "a name or header in it has 1.0 GB" in refused(
        take, put(tmp_path / "a.tar", name.tobuf(tarfile.GNU_FORMAT) + bytes(10_000))
    )


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, take, monkeypatch):
    path = put(tmp_path / "a.zip", zipped({"a.bin": os.urandom(5000)}))
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 100}))
    assert "100 B free" in refused(take, path)


def test_limits_count_all_levels_together():
    shared = budget.Budget("a.zip", packed_bytes=10**6)
    shared.spend(90 * 10**6, 10)
    with pytest.raises(budget.TooMuch, match=r"a\.zip"):
        shared.spend(11 * 10**6, 1)
    assert shared.bytes_left == 10 * 10**6


# ---- the command ----


def test_a_competition_in_the_data_folder_is_never_overwritten(tmp_path, take):
    folder_competition(tmp_path / "kaggle")
    take(tmp_path / "kaggle")
    (tmp_path / "data/train.csv").write_text("id,label\na0,mine\na1,yours\n")
    before = digest(tmp_path / "data")
    for more in ([], ["--yes"]):
        with pytest.raises(UserError, match="already holds a competition"):
            install.main(["--from", str(tmp_path / "kaggle"), "--data", str(tmp_path / "data"), *more])
    assert digest(tmp_path / "data") == before


@pytest.mark.parametrize("source", ["nowhere", "."])
def test_a_source_that_cannot_be_is_named(tmp_path, source, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_command(lambda: install.main(["--from", source])) == EXIT_USER
    assert not (tmp_path / "data").exists()


def test_an_archive_that_lies_in_the_data_folder(tmp_path):
    files = folder_competition(tmp_path / "plain")
    put(tmp_path / "data/the-slug.zip", zipped(files))
    assert (
        install.main(["--from", str(tmp_path / "data/the-slug.zip"), "--data", str(tmp_path / "data")]) == 0
    )
    assert names(tmp_path / "data") == sorted([*files, "the-slug.zip"])


def test_a_link_to_nothing_in_the_data_folder_is_named(tmp_path):
    put(tmp_path / "data/the-slug.zip", zipped(folder_competition(tmp_path / "plain")))
    (tmp_path / "data/broken").symlink_to(tmp_path / "nowhere")
    flags = ["--from", str(tmp_path / "data/the-slug.zip"), "--data", str(tmp_path / "data")]
    with pytest.raises(UserError, match="broken"):
        install.main(flags)
    assert install.main([*flags, "--yes"]) == 0


def test_make_takes_a_path_with_spaces(tmp_path):
    folder_competition(tmp_path / "my downloads")
    command = [
        "make",
        f"PYTHON={sys.executable}",
        "data",
        f"FROM={tmp_path}/my downloads",
        f"DATA={tmp_path}/my data",
    ]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0
    assert len(read_layout(tmp_path / "my data").train) == 8


def test_a_readme_of_theirs_comes_beside_ours(tmp_path, take):
    folder_competition(tmp_path / "kaggle")
    put(tmp_path / "kaggle/README.md", "theirs")
    put(tmp_path / "data/README.md", "ours")
    take(tmp_path / "kaggle")
    assert (tmp_path / "data/README.md").read_text() == "ours" and (
        tmp_path / "data/README-2.md"
    ).read_text() == "theirs"


def test_killed_between_two_moves_the_same_command_goes_on(tmp_path, take, monkeypatch):
    files = folder_competition(tmp_path / "kaggle")
    moved = []

    def stop(self: Path, goal: Path) -> Path:
        if goal.parent == tmp_path / "data":
            if len(moved) == 2:
                raise KeyboardInterrupt
            moved.append(goal.name)
        os.rename(self, goal)
        return goal

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", stop)
        with pytest.raises(Interrupted):
            install.main(["--from", str(tmp_path / "kaggle"), "--data", str(tmp_path / "data")])
    with pytest.raises(UserError, match=r"only a part of its competition.*pipeline\.fetch\.install --from"):
        read_layout(tmp_path / "data")
    folder_competition(tmp_path / "other")
    with pytest.raises(UserError, match="finish that first"):
        install.main(["--from", str(tmp_path / "other"), "--data", str(tmp_path / "data")])
    assert "train: 8 images" in take(tmp_path / "kaggle")
    assert names(tmp_path / "data") == sorted(files)


def test_interrupted_while_it_is_made_ready_nothing_is_left(tmp_path, take, monkeypatch):
    folder_competition(tmp_path / "kaggle")

    def stop(root: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(staging, "own_tables", stop)
        with pytest.raises(Interrupted):
            take(tmp_path / "kaggle")
    assert not (tmp_path / "data").exists()
    take(tmp_path / "kaggle")


def test_what_was_made_ready_is_used_when_a_taken_name_is_gone(tmp_path, take, monkeypatch):
    folder_competition(tmp_path / "kaggle")
    put(tmp_path / "kaggle/notes.txt", "theirs")
    put(tmp_path / "data/notes.txt", "mine")
    command = ["--from", str(tmp_path / "kaggle"), "--data", str(tmp_path / "data"), "--yes"]
    with pytest.raises(UserError, match=r"notes\.txt exists already"):
        install.main(command)
    assert names(tmp_path / "data" / ".from.download" / arrival.READY)
    (tmp_path / "data/notes.txt").unlink()
    monkeypatch.setattr(staging, "stage", lambda *args: pytest.fail("it was made ready again"))
    install.main(command)
    assert (tmp_path / "data/notes.txt").read_text() == "theirs"


def test_killed_at_any_time_the_same_command_finishes(tmp_path):
    for number in range(300):
        put(tmp_path / f"kaggle/train/{number}.png", png(grey(number)))
    for number in range(20):
        put(tmp_path / f"kaggle/{number:02d}.txt", "x")
    put(
        tmp_path / "kaggle/train.csv",
        "id,label\n" + "".join(f"{number},{number % 2}\n" for number in range(300)),
    )
    before = digest(tmp_path / "kaggle")
    command = [
        sys.executable,
        *("-m", "pipeline.fetch.install", "--from", str(tmp_path / "kaggle")),
        *("--data", str(tmp_path / "data")),
    ]
    begun = time.monotonic()
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0
    whole, takes = names(tmp_path / "data"), time.monotonic() - begun
    for moment in np.linspace(0.5, 1, 5):
        subprocess.run(["rm", "-r", str(tmp_path / "data")], check=True)
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(takes * moment)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if process.returncode == 0:
            continue
        again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        # Killed after the last move it is a competition that is there already, and whole.
        assert again.returncode == 0 or "already holds a competition" in again.stderr
        assert names(tmp_path / "data") == whole and digest(tmp_path / "kaggle") == before


# ---- pixels in tables ----


def digits(root: Path, *, train: int = 12, test: int = 5, images: Callable[[int], np.ndarray] = grey) -> None:
    columns = [f"pixel{number}" for number in range(images(0).size)]
    write_table(
        root / "train.csv",
        ["label", *columns],
        [[number % 3, *images(number).ravel()] for number in range(train)],
    )
    write_table(root / "test.csv", columns, [images(number + 50).ravel().tolist() for number in range(test)])


def test_pixel_columns_become_images_named_by_row(tmp_path, take):
    digits(tmp_path / "kaggle")
    put(
        tmp_path / "kaggle/sample_submission.csv",
        "ImageId,Label\n" + "".join(f"{number},0\n" for number in range(1, 6)),
    )
    output = take(tmp_path / "kaggle")
    assert (pixels_of(tmp_path / "data/train/1.png") == grey(0)).all() and (
        pixels_of(tmp_path / "data/test/5.png") == grey(54)
    ).all()
    assert load_table(tmp_path / "data/train.csv").columns == ("ImageId", "label")
    assert "28 x 28 pixels, grey" in output
    assert "row number, from 1" in output
    assert "grey levels from 0 to 255" in output
    competition = read_layout(tmp_path / "data")
    assert [row.id for row in competition.test] == ["1", "2", "3", "4", "5"] and len(competition.train) == 12
    # What `make kernel` must know
    converted = containers.read_converted(tmp_path / "data")
    assert converted and converted.describe() == "1 .csv (such as test.csv)" and not converted.packages


def test_rows_are_numbered_from_0_as_the_sample_does(tmp_path, take):
    digits(tmp_path / "kaggle")
    sample(tmp_path / "kaggle", range(5))
    take(tmp_path / "kaggle")
    assert (pixels_of(tmp_path / "data/test/0.png") == grey(50)).all()


def test_colour_pixels_are_told_by_their_count_and_their_order_by_neighbours(tmp_path, take):
    def colour(number: int) -> np.ndarray:
        return np.stack([grey(number, 16), 255 - grey(number, 16), grey(number + 9, 16) // 2])

    digits(tmp_path / "kaggle", images=colour)
    sample(tmp_path / "kaggle", range(5))
    take(tmp_path / "kaggle")
    assert (pixels_of(tmp_path / "data/train/3.png") == colour(3).transpose(1, 2, 0)).all()
    assert pixels.shape_of(
        768, np.stack([colour(number).transpose(1, 2, 0).ravel() for number in range(5)])
    ) == pixels.Shape(16, 16, "pixels")


def test_a_height_and_width_that_the_count_does_not_tell_is_found_or_named(tmp_path, take):
    oblong = np.stack([grey(number, 40)[:20].ravel() for number in range(10)])
    assert pixels.shape_of(800, oblong) == pixels.Shape(20, 40)
    noise = np.random.default_rng(0).integers(0, 256, (10, 800))
    assert pixels.shape_of(800, noise) is None
    write_table(
        tmp_path / "kaggle/train.csv",
        ["label", *(f"pixel{number}" for number in range(800))],
        [[0, *row] for row in noise.tolist()],
    )
    output = take(tmp_path / "kaggle")
    assert "train.csv: not turned into images: " in output and "800 numbers a row" in output


def test_pixels_in_one_cell(tmp_path, take):
    rows = [[number % 2, " ".join(map(str, grey(number, 48).ravel()))] for number in range(6)]
    write_table(tmp_path / "kaggle/train.csv", ["emotion", "pixels"], rows)
    write_table(tmp_path / "kaggle/test.csv", ["pixels"], [[row[1]] for row in rows[:3]])
    sample(tmp_path / "kaggle", [7, 8, 9])
    output = take(tmp_path / "kaggle")
    assert (pixels_of(tmp_path / "data/train/5.png") == grey(5, 48)).all()
    assert "row by row the ids of sample_submission.csv" in output
    assert (pixels_of(tmp_path / "data/test/9.png") == grey(2, 48)).all()


def test_ids_of_a_table_name_the_images_as_they_are_written(tmp_path, take):
    columns = [f"{row}x{column}" for row in range(1, 29) for column in range(1, 29)]
    write_table(
        tmp_path / "kaggle/train.csv",
        ["id", "label", *columns],
        [[f"00{number}", "NA", *grey(number).ravel()] for number in range(4)],
    )
    sample(tmp_path / "kaggle", ["x"])
    take(tmp_path / "kaggle")
    assert names(tmp_path / "data/train") == ["000.png", "001.png", "002.png", "003.png"]
    assert load_table(tmp_path / "data/train.csv").cells[0] == ("000", "NA")


def test_two_tables_of_a_part_keep_the_labels_of_both(tmp_path, take):
    digits(tmp_path / "kaggle")
    columns = [f"pixel{number}" for number in range(784)]
    write_table(
        tmp_path / "kaggle/train_extra.csv",
        ["label", *columns],
        [[9, *grey(number + 30).ravel()] for number in range(12)],
    )
    take(tmp_path / "kaggle")
    assert load_table(tmp_path / "data/train.csv").column("label")[:3] == ["0", "1", "2"]
    assert set(load_table(tmp_path / "data/train_extra.csv").column("label")) == {"9"}
    assert (pixels_of(tmp_path / "data/train_extra/0.png") == grey(30)).all() and (
        pixels_of(tmp_path / "data/train/0.png") == grey(0)
    ).all()


def test_two_tables_of_a_part_share_one_whatever_the_order_of_their_columns(tmp_path, take):
    pixel_names = [f"pixel{number}" for number in range(64)]
    for table, header in (("train_1", ["label", "id"]), ("train_2", ["id", "label"])):
        rows = []
        for number in range(6):
            cells = {"label": f"c{number % 2}", "id": f"{table}-{number}"}
            rows.append([*(cells[name] for name in header), *grey(number, 8).ravel().tolist()])
        (tmp_path / "kaggle").mkdir(exist_ok=True)
        write_table(tmp_path / f"kaggle/{table}.csv", [*header, *pixel_names], rows)
    take(tmp_path / "kaggle")
    assert {row.id: row.label for row in read_layout(tmp_path / "data", need="train").train} == {
        f"{table}-{number}": f"c{number % 2}" for table in ("train_1", "train_2") for number in range(6)
    }


def test_an_image_that_is_there_is_never_written_over(tmp_path, take):
    put(tmp_path / "kaggle/train/a1.png", png(grey(1)))
    columns = [f"pixel{number}" for number in range(784)]
    write_table(
        tmp_path / "kaggle/train.csv",
        ["id", *columns],
        [[name, *grey(number).ravel()] for number, name in enumerate(TRAIN_IDS)],
    )
    assert "train/a1.png" in refused(take, tmp_path / "kaggle")


def test_arrays_named_like_images_are_left_as_they_are(tmp_path, take):
    files = folder_competition(tmp_path / "kaggle")
    for name in TRAIN_IDS:
        put(tmp_path / f"kaggle/masks/{name}.npy", "")
        np.save(tmp_path / f"kaggle/masks/{name}.npy", grey(0) > 100)
    assert "8 NumPy files kept" in take(tmp_path / "kaggle")
    assert names(tmp_path / "data") == sorted([*files, *(f"masks/{name}.npy" for name in TRAIN_IDS)])


def test_an_array_that_would_fill_the_memory_is_not_loaded(tmp_path, take):
    folder_competition(tmp_path / "kaggle")
    np.savez_compressed(tmp_path / "kaggle/x_test.npz", data=np.zeros((70, 1000, 1000), np.uint8))
    assert "x_test.npz was not turned into images" in take(tmp_path / "kaggle")


def test_a_table_that_is_there_twice_is_taken_once(tmp_path, take):
    digits(tmp_path / "kaggle")
    put(tmp_path / "kaggle/train/train.csv", (tmp_path / "kaggle/train.csv").read_bytes())
    assert "train/train.csv left out: it is the same as train.csv" in take(tmp_path / "kaggle")
    assert len(names(tmp_path / "data/train")) == 12


def test_features_in_a_table_beside_images_are_no_pixels(tmp_path, take):
    files = folder_competition(tmp_path / "kaggle")
    columns = [f"{kind}{number}" for kind in ("margin", "shape") for number in range(1, 65)]
    rows = [[name, number % 2, *[0.1] * 128] for number, name in enumerate(TRAIN_IDS)]
    write_table(tmp_path / "kaggle/train.csv", ["id", "label", *columns], rows)
    take(tmp_path / "kaggle")
    assert names(tmp_path / "data") == sorted(files)
    assert len(load_table(tmp_path / "data/train.csv").columns) == 130


@pytest.mark.parametrize("cut", ["missing", "word", "too many"])
def test_ragged_rows_are_named(tmp_path, take, cut):
    digits(tmp_path / "kaggle")
    lines = (tmp_path / "kaggle/train.csv").read_text().splitlines()
    cells = lines[4].split(",")
    lines[4] = ",".join(
        cells[:-3] if cut == "missing" else [*cells[:-1], "dark"] if cut == "word" else [*cells, "1"]
    )
    put(tmp_path / "kaggle/train.csv", "\n".join(lines) + "\n")
    message = refused(take, tmp_path / "kaggle")
    assert "train.csv" in message and ("row 5" in message or "line 5" in message)


def test_cells_of_another_length_are_named(tmp_path, take):
    rows = [[0, " ".join(["7"] * (2304 - (number == 11)))] for number in range(12)]
    write_table(tmp_path / "kaggle/train.csv", ["emotion", "pixels"], rows)
    message = refused(take, tmp_path / "kaggle")
    assert "row 13" in message and "2,303" in message and "2,304" in message


# ---- bands in JSON ----


def bands(count: int, offset: int = 0) -> list[dict[str, object]]:
    rows = []
    for number in range(count):
        band = grey(number + offset, 75).astype(float) / 8 - 40
        angle: object = "na" if number == 0 else 40.25
        rows.append(
            {
                "id": f"{offset}_{number}",
                "band_1": band.ravel().tolist(),
                "band_2": (band - 5).ravel().tolist(),
                "inc_angle": angle,
                "is_iceberg": number % 2,
            }
        )
    return rows


def test_bands_become_channels_by_one_rule_for_the_set(tmp_path, take):
    put(tmp_path / "kaggle/train.json", json.dumps(bands(9)))
    put(
        tmp_path / "kaggle/test.json",
        json.dumps(
            [{key: value for key, value in row.items() if key != "is_iceberg"} for row in bands(4, 50)]
        ),
    )
    put(
        tmp_path / "kaggle/sample_submission.csv",
        "id,is_iceberg\n" + "".join(f"50_{number},0.5\n" for number in range(4)),
    )
    put(tmp_path / "kaggle/notes.json", json.dumps({"annotations": [{"bbox": [1, 2, 3, 4]}]}))
    output = take(tmp_path / "kaggle")
    image = pixels_of(tmp_path / "data/train/0_3.png").astype(int)
    assert image.shape == (75, 75, 3)
    assert (abs(image[..., 0] - image[..., 1]) <= 1).all()
    assert (abs(image[..., 2] - image[..., 0]) <= 1).all()
    everything = np.concatenate([np.ravel(row["band_1"]) for row in bands(9) + bands(4, 50)])
    low, high = np.percentile(everything, [0.5, 99.5])
    expected = np.clip((np.asarray(bands(9)[3]["band_1"]).reshape(75, 75) - low) / (high - low), 0, 1) * 255
    assert abs(expected - image[..., 0]).max() < 3  # the range is that of a sample of the values
    assert "two channels become red and green, their mean blue" in output and "0.5 to 99.5 %" in output
    table = load_table(tmp_path / "data/train.csv")
    assert table.columns == ("id", "inc_angle", "is_iceberg")
    assert table.cells[0][1] == "na"
    assert table.cells[1][1] == "40.25"
    assert (tmp_path / "data/notes.json").exists() and len(read_layout(tmp_path / "data").test) == 4


def test_bands_in_another_order_are_the_same_channels(tmp_path, take):
    rows = [{"id": name, "band_1": [200.0] * 64, "band_2": [10.0] * 64} for name in TRAIN_IDS]
    put(
        tmp_path / "kaggle/train.json",
        json.dumps([row | {"label": number} for number, row in enumerate(rows)]),
    )
    rows = [{"id": name, "band_2": [10.0] * 64, "band_1": [200.0] * 64} for name in TEST_IDS]
    put(tmp_path / "kaggle/test.json", json.dumps(rows))
    take(tmp_path / "kaggle")
    trained, tested = (pixels_of(tmp_path / f"data/{name}.png")[0, 0] for name in ("train/a0", "test/b0"))
    assert (trained == tested).all() and trained[0] != trained[1]


@pytest.mark.parametrize("damage", ["nan", "short", "text", "missing"])
def test_bands_that_are_not_whole_are_named(tmp_path, take, damage):
    rows = bands(6)
    values = {
        "nan": [float("nan"), *rows[4]["band_2"][1:]],
        "short": rows[4]["band_2"][1:],
        "text": ["x", *rows[4]["band_2"][1:]],
        "missing": None,
    }
    rows[4]["band_2"] = values[damage]
    put(tmp_path / "kaggle/train.json", json.dumps(rows))
    message = refused(take, tmp_path / "kaggle")
    assert "train.json" in message and "row 5" in message and "band_2" in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f'[{{"id": 1, "x": {"9" * 5000}}}]', "extra.json was not read"),
        (json.dumps([{"id": number, "x": [1, *["a"] * 80]} for number in range(5)]), ""),
        (json.dumps([{"id": number, "x": [[1] * 40, [2] * 39]} for number in range(5)]), ""),
        (json.dumps([{"id": number, "x": [10**400] * 64} for number in range(5)]), ""),
    ],
    ids=["a number of 5,000 digits", "texts after a number", "rows of two lengths", "beyond floats"],
)
def test_json_that_is_no_bands_of_numbers_stays(tmp_path, take, text, words):
    folder_competition(tmp_path / "kaggle")
    put(tmp_path / "kaggle/extra.json", text)
    assert words in take(tmp_path / "kaggle")
    assert (tmp_path / "data/extra.json").read_text() == text


def test_labels_in_a_list_of_json_are_labels_of_one_cell(tmp_path, take):
    chosen = [["cat"], ["dog"], ["cat", "dog"], ["emu", "cat"]] * 5
    rows = [row | {"labels": chosen[number]} for number, row in enumerate(bands(20))]
    put(tmp_path / "kaggle/train.json", json.dumps(rows))
    take(tmp_path / "kaggle")
    found = load_table(tmp_path / "data/train.csv").column("labels")
    assert found == [" ".join(labels) for labels in chosen]


def test_json_that_is_cut_short_is_refused(tmp_path, take):
    put(tmp_path / "kaggle/train.json", json.dumps(bands(40))[:-100_000])
    assert "cut short" in refused(take, tmp_path / "kaggle")


# ---- NumPy ----


def test_a_stack_with_labels(tmp_path, take):
    np.savez(
        put(tmp_path / "kaggle/x", "") and tmp_path / "kaggle/kmnist.npz",
        x_train=np.stack([grey(number) for number in range(10)]),
        y_train=np.arange(10) % 2,
        x_test=np.stack([grey(number + 40) for number in range(4)]),
    )
    sample(tmp_path / "kaggle", range(4))
    take(tmp_path / "kaggle")
    assert (pixels_of(tmp_path / "data/train/7.png") == grey(7)).all() and (
        pixels_of(tmp_path / "data/test/3.png") == grey(43)
    ).all()
    assert load_table(tmp_path / "data/train.csv").cells[3] == ("3", "1")


@pytest.mark.parametrize(
    "keys", [("Xtrain", "ytrain", "Xtest"), ("xtrain", "ytrain", "xtest"), ("trainX", "trainy", "testX")]
)
def test_the_part_of_a_stack_is_known_without_a_mark_after_x(tmp_path, take, keys):
    stacks = [np.stack([grey(number + start) for number in range(6)]) for start in (0, 40)]
    put(tmp_path / "kaggle/x", "")
    for key, array in zip(keys, (stacks[0], np.arange(6) % 3, stacks[1]), strict=True):
        np.save(tmp_path / f"kaggle/{key}.npy", array)
    take(tmp_path / "kaggle")
    competition = read_layout(tmp_path / "data")
    assert [row.label for row in competition.train] == [str(number % 3) for number in range(6)]
    assert [(pixels_of(row.path) == stacks[1][n]).all() for n, row in enumerate(competition.test)] == [
        True
    ] * 6


def test_a_stack_whose_ids_stand_in_a_table(tmp_path, take):
    put(
        tmp_path / "kaggle/train.csv",
        "id,label\n" + "".join(f"{name},{number % 2}\n" for number, name in enumerate(TRAIN_IDS)),
    )
    np.save(
        tmp_path / "kaggle/train.npy",
        np.stack([np.stack([grey(number, 20)] * 3, axis=-1) for number in range(8)]),
    )
    np.save(
        tmp_path / "kaggle/test.npy",
        np.stack([np.stack([grey(number, 20)] * 3, axis=-1) for number in range(4)]),
    )
    sample(tmp_path / "kaggle", TEST_IDS)
    take(tmp_path / "kaggle")
    assert names(tmp_path / "data/train") == [f"{name}.png" for name in TRAIN_IDS] and names(
        tmp_path / "data/test"
    ) == [f"{name}.png" for name in TEST_IDS]
    assert len(read_layout(tmp_path / "data", asked=Asked(metric="accuracy")).train) == 8


def test_one_array_an_image_stays_in_its_place(tmp_path, take):
    put(
        tmp_path / "kaggle/train.csv",
        "id,label\n" + "".join(f"{name},{number % 2}\n" for number, name in enumerate(TRAIN_IDS)),
    )
    for folder, ids in (("train", TRAIN_IDS), ("test", TEST_IDS)):
        for number, name in enumerate(ids):
            put(tmp_path / f"kaggle/{folder}/{name[0]}/{name}.npy", "")
            np.save(
                tmp_path / f"kaggle/{folder}/{name[0]}/{name}.npy",
                np.stack([grey(number, 30)[:20].astype(np.float16) - 100.5] * 6),
            )
    sample(tmp_path / "kaggle", TEST_IDS)
    output = take(tmp_path / "kaggle")
    assert pixels_of(tmp_path / "data/train/a/a0.png").shape == (120, 30)
    assert "6 channels lie one below the other" in output and output.count("% of its values") == 1
    assert not [name for name in names(tmp_path / "data") if name.endswith(".npy") and name[0] != "."]


def test_arrays_that_cannot_be_read_are_named_and_never_unpickled(tmp_path, take):
    folder_competition(tmp_path / "kaggle")
    np.save(tmp_path / "kaggle/objects.npy", np.asarray([{"a": 1}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "kaggle/more.npz", data=np.asarray([{"a": 1}], dtype=object))
    np.save(tmp_path / "kaggle/cut.npy", np.zeros((50, 50)))
    put(tmp_path / "kaggle/cut.npy", (tmp_path / "kaggle/cut.npy").read_bytes()[:500])
    output = take(tmp_path / "kaggle")
    assert "objects.npy was not turned into images: it holds pickled Python objects" in output
    assert "more.npz was not turned into images: it holds pickled Python objects" in output
    assert "cut.npy was not turned into images: it is damaged" in output


@pytest.mark.parametrize("kind", ["npz", "npy", "h5"])
def test_labels_of_several_values_are_refused_and_nothing_else_is_taken_for_them(tmp_path, take, kind):
    arrays = {"x": np.stack([grey(number) for number in range(20)]), "fold": np.arange(20) % 5}
    arrays["y"] = np.eye(3, dtype=np.int64)[np.arange(20) % 3]
    put(tmp_path / "kaggle/x", "")
    if kind == "h5":
        hdf5(tmp_path / "kaggle/train.h5", arrays)
    elif kind == "npz":
        np.savez(tmp_path / "kaggle/train.npz", **arrays)
    else:
        for name, array in arrays.items():
            np.save(tmp_path / f"kaggle/{name}_train.npy", array)
    message = refused(take, tmp_path / "kaggle")
    assert "y" in message and "3 values for each of 20 images" in message
    # As the message says
    write_table(
        tmp_path / "kaggle/train.csv", ["id", "a", "b", "c"], [[n, *row] for n, row in enumerate(arrays["y"])]
    )
    take(tmp_path / "kaggle")
    competition = read_layout(tmp_path / "data", need="train")
    assert [(row.id, row.label) for row in competition.train] == [(str(n), "abc"[n % 3]) for n in range(20)]


def test_labels_called_y_valid_are_no_ids_though_valid_ends_with_id(tmp_path, take):
    put(tmp_path / "kaggle/x", "")
    for part in ("train", "valid"):
        np.save(tmp_path / f"kaggle/x_{part}.npy", np.stack([grey(number) for number in range(6)]))
        np.save(tmp_path / f"kaggle/y_{part}.npy", np.arange(6) / 7)
    take(tmp_path / "kaggle")
    assert names(tmp_path / "data/val") == [f"{number}.png" for number in range(6)]
    assert load_table(tmp_path / "data/val.csv").columns == ("id", "label")


def test_arrays_that_are_not_used_are_named(tmp_path, take):
    put(tmp_path / "kaggle/x", "")
    stack = np.stack([grey(number) for number in range(20)])
    np.savez(tmp_path / "kaggle/train.npz", x=stack, y=np.arange(20) % 2, features=np.ones((20, 5)))
    assert "not used: features (20, 5)" in take(tmp_path / "kaggle")


@pytest.mark.parametrize("kind", ["U3", "S3", "complex64", "datetime64[D]", "timedelta64[s]"])
def test_an_array_of_other_values_than_numbers_is_kept(tmp_path, take, kind):
    folder_competition(tmp_path / "kaggle")
    np.save(tmp_path / "kaggle/extra.npy", np.ones((20, 20), "int64").astype(kind))
    assert "NumPy files without images, kept: extra.npy" in take(tmp_path / "kaggle")
    assert not (tmp_path / "data/extra.png").exists()


def test_a_stack_without_labels_is_refused(tmp_path, take):
    put(tmp_path / "kaggle/x.txt", "")
    np.save(tmp_path / "kaggle/x_train.npy", np.stack([grey(number) for number in range(10)]))
    message = refused(take, tmp_path / "kaggle")
    assert "x_train.npy holds 10 images" in message and "has 10 labels" in message


# ---- TFRecord ----


def flowers(root: Path, size: int, folder: str = "tfrecords-jpeg-{0}x{0}") -> None:
    for part, count in (("train", 6), ("val", 3), ("test", 4)):
        rows = [
            {
                "id": f"{part}{number}".encode(),
                "image": png(grey(number, size)),
                "class": number % 2,
                "weight": 0.5,
            }
            for number in range(count)
        ]
        rows = [row if part != "test" else {"id": row["id"], "image": row["image"]} for row in rows]
        put(root / folder.format(size) / part / f"00-{size}.tfrec", b"".join(map(record, rows)))


def test_records_of_the_largest_size_become_images_and_a_table(tmp_path, take):
    flowers(tmp_path / "kaggle", 16)
    flowers(tmp_path / "kaggle", 32)
    sample(tmp_path / "kaggle", [f"test{number}" for number in range(4)])
    output = take(tmp_path / "kaggle")
    assert names(tmp_path / "data") == sorted(
        [
            ".converted.json",
            ".originals/sample_submission.csv",
            *(f".originals/tfrecords-jpeg-{n}x{n}/test/00-{n}.tfrec" for n in (16, 32)),
            "sample_submission.csv",
            "train.csv",
            *(f"test/test{number}.png" for number in range(4)),
            *(f"train/train{number}.png" for number in range(6)),
            *(f"train/val{number}.png" for number in range(3)),
        ]
    )
    assert pixels_of(tmp_path / "data/train/val2.png").shape == (32, 32)
    table = load_table(tmp_path / "data/train.csv")
    assert sorted(table.columns) == ["class", "id", "weight"]
    assert table.column("class") == "0 1 0 1 0 1 0 1 0".split()
    assert "tfrecords-jpeg-32x32, not tfrecords-jpeg-16x16" in output and "validation part" in output
    assert len(read_layout(tmp_path / "data", asked=Asked(metric="accuracy")).train) == 9


@pytest.mark.parametrize("kind", ["json", "tfrec", "npz"])
def test_a_column_of_repeated_ids_stays_beside_the_names_of_the_images(tmp_path, take, kind):
    ids = [number // 2 for number in range(10)]
    labels = [number % 3 for number in range(10)]
    path = tmp_path / f"kaggle/train.{kind}"
    if kind == "json":
        rows = [
            row | {"id": one, "label": label} for row, one, label in zip(bands(10), ids, labels, strict=True)
        ]
        put(path, json.dumps(rows))
    elif kind == "tfrec":
        features = ({"id": one, "label": label} for one, label in zip(ids, labels, strict=True))
        put(path, b"".join(record({"image": png(grey(n))} | each) for n, each in enumerate(features)))
    else:
        put(path, "")
        np.savez(path, x=np.stack([grey(number) for number in range(10)]), id=ids, label=labels)
    take(tmp_path / "kaggle")
    table = load_table(tmp_path / "data/train.csv")
    assert table.column("image") == [str(number) for number in range(10)]
    assert table.column("id") == [str(one) for one in ids]
    assert table.column("label") == [str(label) for label in labels]


def test_rows_of_the_validation_part_keep_their_names_if_these_are_called_otherwise(tmp_path, take):
    for part, key in (("train", "image_name"), ("val", "file")):
        records = [
            record({"image": png(grey(n, 16)), key: f"{part}{n}".encode(), "label": n % 2}) for n in range(4)
        ]
        put(tmp_path / f"kaggle/{part}.tfrec", b"".join(records))
    take(tmp_path / "kaggle")
    assert {row.id: row.label for row in read_layout(tmp_path / "data", need="train").train} == {
        f"{part}{n}": str(n % 2) for part in ("train", "val") for n in range(4)
    }


def test_all_labels_of_a_record_are_in_its_row(tmp_path, take):
    """Also where the first row with several labels comes late."""
    labels = [[number % 3] for number in range(100)] + [[0, 2], [1, 2]] * 3
    records = [
        record(
            {"image": png(grey(number, 16)), "id": f"r{number}".encode(), "label": found, "x": [1, 2] * 50}
        )
        for number, found in enumerate(labels)
    ]
    said = take(put(tmp_path / "train.tfrec", b"".join(records)))
    table = load_table(tmp_path / "data/train.csv")
    assert table.columns == ("id", "label") and "too long for a cell: x" in said
    assert table.column("label") == [" ".join(map(str, found)) for found in labels]


def test_records_whose_images_are_there_are_left_aside(tmp_path, take):
    files = folder_competition(tmp_path / "kaggle")
    rows = [
        {"image": files[f"train/{name}.png"], "image_name": f"{name}.png".encode(), "target": 0}
        for name in TRAIN_IDS
    ]
    put(tmp_path / "kaggle/train_tfrecords/ld_train00-8.tfrec", b"".join(map(record, rows)))
    assert "train_tfrecords/ld_train00-8.tfrec not used: " in take(tmp_path / "kaggle")
    assert names(tmp_path / "data") == sorted(files)


def test_records_without_ids_are_numbered_in_the_order_of_their_files(tmp_path, take):
    for part, count in (("train", 1), ("val", 1), ("test", 12)):
        for number in range(count):
            rows = [{"image": png(grey(number)), "label": 1}]
            put(tmp_path / f"kaggle/{part}_{number}.tfrec", b"".join(map(record, rows)))
    sample(tmp_path / "kaggle", [f"b{number}" for number in range(12)])
    take(tmp_path / "kaggle")
    images = [pixels_of(tmp_path / f"data/test/b{number}.png") for number in range(12)]
    assert all((image == grey(number)).all() for number, image in enumerate(images))
    assert len(names(tmp_path / "data/train")) == 2


@pytest.mark.parametrize("damage", ["cut", "cut in a length", "length", "no image", "no example"])
def test_damaged_records_are_refused(tmp_path, take, damage):
    whole = b"".join(record({"id": f"{number}".encode(), "image": png(grey(number))}) for number in range(3))
    packed = {
        "cut": whole[:-20],
        "cut in a length": whole + b"\x05\0\0",
        "length": b"\xff" + whole[1:],
        "no image": record({"id": b"1", "image": b"raw"}),
        "no example": record({})[:12] + b"",
    }[damage]
    put(tmp_path / "kaggle/train.tfrec", packed)
    assert "train.tfrec" in refused(take, tmp_path / "kaggle")


def test_the_checksum_is_that_of_the_format():
    # RFC 3720, B.4: CRC32C of 32 bytes of zeros is 0x8A9136AA; TFRecord masks it.
    crc = 0x8A9136AA
    assert tf_examples.masked_crc32c(bytes(32)) == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


# ---- DICOM, BSON, parquet: optional packages ----


def dicom(path: Path, values: np.ndarray, **tags: object) -> None:
    pydicom = pytest.importorskip("pydicom")
    data = pydicom.dataset.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    data.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    data.SOPClassUID, data.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", "1.2.3"
    data.Rows, data.Columns = values.shape
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    for name, value in tags.items():
        setattr(data, name, value)
    data.PixelData = values.astype("<u2").tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)


def test_dicom_by_its_window_and_inverted_where_it_says_so(tmp_path, take):
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    window = {"WindowCenter": 40, "WindowWidth": 400, "RescaleSlope": 1, "RescaleIntercept": -1024}
    dicom(tmp_path / "kaggle/train/1/a.dcm", values, **window)
    dicom(tmp_path / "kaggle/train/1/b.dcm", values, PhotometricInterpretation="MONOCHROME1", **window)
    output = take(tmp_path / "kaggle")
    a = pixels_of(tmp_path / "data/train/1/a.png").ravel()
    b = pixels_of(tmp_path / "data/train/1/b.png").ravel()
    # PS3.3 C.11.2.1.2.1: black up to c - 0.5 - (w - 1) / 2, white from c - 0.5 + (w - 1) / 2 on, in
    # Hounsfield units (value - 1024).
    assert a[: 1024 + 40 - 200].max() == 0
    assert a[1024 + 40 + 199 :].min() == 255
    assert abs(int(a[1024 + 40]) - 128) <= 1
    assert (b == 255 - a).all() and "window" in output
    assert containers.read_converted(tmp_path / "data") is None  # no image of a test part


@pytest.mark.parametrize("bits", [8, 16])
def test_dicom_with_a_palette_has_its_colours(tmp_path, take, bits):
    rng, scale = np.random.default_rng(0), 257 if bits == 16 else 1
    colours = rng.integers(0, 256, (3, 256)).astype(np.uint16)
    palette = {
        f"{name}PaletteColorLookupTable{key}": value
        for name, levels in zip(("Red", "Green", "Blue"), colours, strict=True)
        for key, value in (
            ("Descriptor", [256, 0, bits]),
            ("Data", (levels * scale).astype(f"<u{bits // 8}").tobytes()),
        )
    }
    values = rng.integers(0, 256, (64, 48)).astype(np.uint16)
    dicom(tmp_path / "kaggle/train/1/a.dcm", values, PhotometricInterpretation="PALETTE COLOR", **palette)
    take(tmp_path / "kaggle")
    assert (pixels_of(tmp_path / "data/train/1/a.png") == colours[:, values].transpose(1, 2, 0)).all()


def test_dicom_named_by_its_uid_is_read(tmp_path, take):
    for name in ("1.2.840.10", "1.2.840.11"):
        dicom(tmp_path / f"kaggle/train/1/{name}", np.arange(4096, dtype=np.uint16).reshape(64, 64))
    put(tmp_path / "kaggle/train/1/1.2.840.12", b"no DICOM")
    take(tmp_path / "kaggle")
    assert names(tmp_path / "data/train/1") == ["1.2.840.10.png", "1.2.840.11.png", "1.2.840.12"]


def test_dicom_without_windows_has_one_range_for_the_set(tmp_path, take):
    dicom(
        tmp_path / "kaggle/train/dark.dcm", np.full((32, 32), 500, np.uint16) + np.arange(32, dtype=np.uint16)
    )
    dicom(
        tmp_path / "kaggle/train/bright", np.full((32, 32), 2000, np.uint16) + np.arange(32, dtype=np.uint16)
    )
    output = take(tmp_path / "kaggle")
    assert pixels_of(tmp_path / "data/train/dark.png").max() < 20
    assert pixels_of(tmp_path / "data/train/bright.png").min() > 230
    assert "one range for the whole set" in output


@pytest.mark.parametrize("without_window", [{}, {"WindowCenter": None, "WindowWidth": None}])
def test_one_dicom_without_a_window_gives_all_one_range(tmp_path, take, monkeypatch, without_window):
    monkeypatch.setattr("pipeline.fetch.dicom.SURVEYED", 2)
    values = np.arange(1024, dtype=np.uint16).reshape(32, 32)
    window = {"WindowCenter": 500, "WindowWidth": 1000}
    for number, name in enumerate("abcdef"):
        dicom(tmp_path / f"kaggle/test/{name}.dcm", values, **(without_window if number == 1 else window))
    output = take(tmp_path / "kaggle")
    assert names(tmp_path / "data/test") == [f"{name}.png" for name in "abcdef"]
    a, b = (pixels_of(tmp_path / f"data/test/{name}.png") for name in "ab")
    assert (a == b).all() and "one range for the whole set" in output


def test_damaged_dicom_is_named_and_all_damaged_is_refused(tmp_path, take):
    dicom(tmp_path / "kaggle/train/a.dcm", grey(1).astype(np.uint16))
    put(tmp_path / "kaggle/train/b.dcm", (tmp_path / "kaggle/train/a.dcm").read_bytes()[:-500])
    put(tmp_path / "bad/train/b.dcm", b"no dicom")
    assert "none of 1 DICOM file can be read" in refused(take, tmp_path / "bad")
    output = take(tmp_path / "kaggle")
    assert "1 DICOM file cannot be turned into images" in output
    assert "train/b.dcm" in output
    assert (tmp_path / "data/train/a.png").exists()


def without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Make every import of `package` fail."""
    real = builtins.__import__

    def refuse(name: str, *args: object, **kwargs: object) -> object:
        if name.partition(".")[0] == package:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", refuse)


@pytest.mark.parametrize(
    ("file", "package", "command"),
    [
        ("a.dcm", "pydicom", "pip install pydicom"),
        ("train.bson", "bson", "pip install pymongo"),
        ("train.h5", "h5py", "pip install h5py"),
        ("train.parquet", "pyarrow", "pip install pyarrow"),
        ("a.7z", "py7zr", "pip install -c constraints.txt py7zr"),
    ],
)
def test_a_missing_package_is_named_with_its_command(tmp_path, take, monkeypatch, file, package, command):
    put(tmp_path / "kaggle/train" / file, seven_zip({"a.txt": b"x"}))
    without(monkeypatch, package)
    assert command in refused(take, tmp_path / "kaggle")


def test_a_missing_package_is_named_before_anything_is_unpacked(tmp_path, take, monkeypatch):
    path = put(tmp_path / "a.zip", zipped({"train/1/1.dcm": b"x"}))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(staging, "stage", lambda *args: pytest.fail("it was unpacked"))
    assert "pip install pydicom" in refused(take, path)


def test_bson_with_several_images_a_document(tmp_path, take):
    bson = pytest.importorskip("bson")
    documents = [
        {
            "_id": number,
            "category_id": 10 + number % 2,
            "imgs": [{"picture": png(grey(number))}] * (1 + number % 2),
        }
        for number in range(6)
    ]
    put(tmp_path / "kaggle/train.bson", b"".join(map(bson.encode, documents)))
    put(tmp_path / "kaggle/train_example.bson", b"".join(map(bson.encode, documents[:2])))
    output = take(tmp_path / "kaggle")
    table = load_table(tmp_path / "data/train.csv")
    assert table.columns == ("image", "_id", "category_id") and table.cells[:3] == (
        ("0", "0", "10"),
        ("1_0", "1", "11"),
        ("1_1", "1", "11"),
    )
    assert len(names(tmp_path / "data/train")) == 9 and "train_example.bson left out" in output


def test_parquet_pixels(tmp_path, take):
    pytest.importorskip("pyarrow")
    import pandas as pd

    frame = pd.DataFrame(
        np.stack([grey(number, 40)[:20].ravel() for number in range(6)]),
        columns=[str(number) for number in range(800)],
    )
    frame.insert(0, "image_id", [f"Train_{number}" for number in range(6)])
    (tmp_path / "kaggle").mkdir()
    frame.to_parquet(tmp_path / "kaggle/train_image_data_0.parquet")
    take(tmp_path / "kaggle")
    assert (pixels_of(tmp_path / "data/train/Train_3.png") == grey(3, 40)[:20]).all()


@pytest.mark.parametrize("kind", ["pixels", "encoded"])
def test_parquet_that_is_damaged_in_later_rows_is_refused(tmp_path, take, kind):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pandas as pd

    if kind == "encoded":
        frame = pd.DataFrame({"image": [png(grey(number)) for number in range(60)], "label": list("ab" * 30)})
    else:
        columns = [f"pixel{number}" for number in range(64)]
        frame = pd.DataFrame(np.arange(300 * 64).reshape(300, 64) % 256, columns=columns)
    path = tmp_path / "kaggle/train.parquet"
    path.parent.mkdir()
    frame.to_parquet(path, row_group_size=len(frame) // 3)
    column = parquet.ParquetFile(path).metadata.row_group(1).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + 60] = bytes(255 - byte for byte in content[start : start + 60])
    path.write_bytes(content)
    message = refused(take, tmp_path / "kaggle")
    assert "train.parquet" in message and "damaged" in message


# ---- HDF5: an optional package too ----


def hdf5(path: Path, content: dict[str, object]) -> Path:
    """A new HDF5 file; `content`: path inside it -> value."""
    h5py = pytest.importorskip("h5py")
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, value in content.items():
            file[name] = value
    return path


def jpeg(number: int) -> bytes:
    data = io.BytesIO()
    Image.fromarray(grey(number)).save(data, "JPEG")
    return data.getvalue()


def isic(root: Path, stored: Callable[[bytes], object]) -> None:
    """Train images as files and in HDF5, test images in HDF5 alone, as in isic-2024-challenge."""
    for number, name in enumerate(TRAIN_IDS):
        put(root / f"train-image/image/{name}.jpg", jpeg(number))
    hdf5(root / "train-image.hdf5", {name: stored(jpeg(number)) for number, name in enumerate(TRAIN_IDS)})
    hdf5(
        root / "test-image.hdf5",
        {name: stored(jpeg(number + 40)) for number, name in enumerate(TEST_IDS)},
    )
    rows = "".join(f"{name},{number % 2}\n" for number, name in enumerate(TRAIN_IDS))
    put(root / "train-metadata.csv", f"isic_id,target\n{rows}")
    put(root / "test-metadata.csv", "isic_id,age\n" + "".join(f"{name},50\n" for name in TEST_IDS))
    put(root / "sample_submission.csv", "isic_id,target\n" + "".join(f"{name},0.3\n" for name in TEST_IDS))


def variable(data: bytes) -> np.ndarray:
    """A scalar of bytes of variable length, as h5py stores it."""
    h5py = pytest.importorskip("h5py")
    value = np.empty((), h5py.vlen_dtype(np.uint8))
    value[()] = np.frombuffer(data, np.uint8)
    return value


@pytest.mark.parametrize(
    "stored",
    [
        np.void,
        np.bytes_,
        lambda data: np.frombuffer(data, np.uint8),
        lambda data: np.array([np.void(data)]),
        variable,
    ],
    ids=["opaque", "text", "vector", "one of a vector", "variable length"],
)
def test_encoded_images_of_hdf5_are_not_changed_nor_counted_twice(tmp_path, take, stored):
    isic(tmp_path / "kaggle", stored)
    output = take(tmp_path / "kaggle")
    assert "train-image.hdf5 left out" in output and "8 images exist as files" in output
    for number, name in enumerate(TEST_IDS):
        assert (tmp_path / f"data/test/{name}.jpg").read_bytes() == jpeg(number + 40)
    assert not [name for name in names(tmp_path / "data") if name.endswith(".hdf5") and name[0] != "."]
    layout = read_layout(tmp_path / "data")
    assert len(layout.train) == 8 and [row.id for row in layout.test] == TEST_IDS
    converted = containers.read_converted(tmp_path / "data")
    assert converted and converted.files == {".hdf5": 1} and converted.packages == ["h5py"]


def test_training_images_of_hdf5_that_are_no_files_are_written(tmp_path, take):
    isic(tmp_path / "kaggle", np.void)
    for name in TRAIN_IDS[:6]:
        (tmp_path / f"kaggle/train-image/image/{name}.jpg").unlink()
    output = take(tmp_path / "kaggle")
    assert names(tmp_path / "data/train") == [f"{name}.jpg" for name in TRAIN_IDS[:6]]
    assert "2 images of it exist as files already" in output


def test_equal_ids_of_another_part_are_other_images(tmp_path, take):
    put(tmp_path / "kaggle/train/1.jpg", jpeg(1))
    hdf5(tmp_path / "kaggle/test.h5", {"1": np.void(jpeg(2))})
    take(tmp_path / "kaggle")
    assert (tmp_path / "data/test/1.jpg").read_bytes() == jpeg(2)


def colours(count: int, offset: int = 0, size: int = 24) -> np.ndarray:
    return np.stack([np.stack([grey(number + offset, size)] * 3, axis=-1) for number in range(count)])


def test_a_stack_and_its_labels_in_two_hdf5_files(tmp_path, take):
    h5py = pytest.importorskip("h5py")
    for part, count in (("train", 10), ("test", 4)):
        stem = f"camelyonpatch_level_2_split_{part}"
        hdf5(tmp_path / f"kaggle/{stem}_y.h5", {"y": (np.arange(count) % 2).reshape(count, 1, 1, 1)})
        with h5py.File(tmp_path / f"kaggle/{stem}_x.h5", "w") as file:
            file.create_dataset(
                "x", data=colours(count, len(part)), chunks=(3, 10, 24, 3), compression="gzip"
            )
    output = take(tmp_path / "kaggle")
    for number in range(10):
        assert (pixels_of(tmp_path / f"data/train/{number}.png") == colours(10, 5)[number]).all()
    assert (pixels_of(tmp_path / "data/test/3.png") == colours(4, 4)[3]).all()
    table = load_table(tmp_path / "data/train.csv")
    assert table.cells == tuple((str(number), str(number % 2)) for number in range(10))
    left = [name for name in names(tmp_path / "data") if name.endswith(".h5") and name[0] != "."]
    assert not left and "not used" not in output


@pytest.mark.parametrize(
    ("file", "keys"),
    [
        ("data.h5", ("X_train", "y_train", "X_test")),
        ("data.hdf5", ("train/images", "train/labels", "test/images")),
        ("cats.h5", ("train_set_x", "train_set_y", "test_set_x")),
    ],
)
def test_stacks_of_one_hdf5_file(tmp_path, take, file, keys):
    values = (colours(10), np.arange(10) % 2, colours(4, 40))
    classes = np.array([b"non-cat", b"cat"])
    hdf5(tmp_path / "kaggle" / file, {**dict(zip(keys, values, strict=True)), "list_classes": classes})
    sample(tmp_path / "kaggle", TEST_IDS)
    take(tmp_path / "kaggle")
    assert (pixels_of(tmp_path / "data/train/7.png") == colours(10)[7]).all()
    assert (pixels_of(tmp_path / "data/test/b3.png") == colours(4, 40)[3]).all()
    assert load_table(tmp_path / "data/train.csv").cells[3] == ("3", "1")


def test_two_hdf5_files_without_a_part_keep_their_own_labels(tmp_path, take):
    for name, first in (("a", 0), ("b", 5)):
        hdf5(tmp_path / f"kaggle/{name}.h5", {"images": colours(6), "labels": np.arange(6) + first})
    take(tmp_path / "kaggle")
    assert load_table(tmp_path / "data/a.csv").column("label") == ["0", "1", "2", "3", "4", "5"]
    assert load_table(tmp_path / "data/b.csv").column("label") == ["5", "6", "7", "8", "9", "10"]


def test_a_stack_of_encoded_images(tmp_path, take):
    h5py = pytest.importorskip("h5py")
    encoded = [jpeg(number) for number in range(6)]
    values = np.empty(6, h5py.vlen_dtype(np.uint8))
    for number, data in enumerate(encoded):
        values[number] = np.frombuffer(data, np.uint8)
    hdf5(tmp_path / "kaggle/train.h5", {"images": values, "labels": np.arange(6) % 3, "ids": TRAIN_IDS[:6]})
    hdf5(tmp_path / "kaggle/test.h5", {"images": np.array(encoded, f"S{max(map(len, encoded))}")})
    take(tmp_path / "kaggle")
    assert [(tmp_path / f"data/train/a{number}.jpg").read_bytes() for number in range(6)] == encoded
    assert [(tmp_path / f"data/test/{number}.jpg").read_bytes() for number in range(6)] == encoded
    assert load_table(tmp_path / "data/train.csv").cells[4] == ("a4", "1")


def test_a_stack_of_hdf5_without_labels_is_refused(tmp_path, take):
    hdf5(tmp_path / "kaggle/train.h5", {"x": colours(10)})
    message = refused(take, tmp_path / "kaggle")
    assert "train.h5/x holds 10 images" in message and "has 10 labels" in message


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 3), (3, 20, 30)], ids=str)
def test_an_array_for_each_image_by_one_rule(tmp_path, take, shape):
    arrays = {
        f"{part}/{name}": np.full(shape, 1000 + 10 * number, np.int16)
        for part, ids in (("train", TRAIN_IDS), ("test", TEST_IDS))
        for number, name in enumerate(ids)
    }
    hdf5(tmp_path / "kaggle/data.h5", arrays)
    output = take(tmp_path / "kaggle")
    assert names(tmp_path / "data/train") == [f"{name}.png" for name in TRAIN_IDS]
    assert names(tmp_path / "data/test") == [f"{name}.png" for name in TEST_IDS]
    image = pixels_of(tmp_path / "data/test/b2.png")
    assert image.shape[:2] == (20, 30) and (image == pixels_of(tmp_path / "data/train/a2.png")).all()
    assert "one range" in output


def test_groups_below_a_part_become_folders(tmp_path, take):
    images = {f"train/{'cat' if number % 2 else 'dog'}/i{number}": grey(number) for number in range(8)}
    hdf5(tmp_path / "kaggle/data.h5", images | {f"test/{name}": grey(9) for name in TEST_IDS})
    take(tmp_path / "kaggle")
    assert (pixels_of(tmp_path / "data/train/cat/i3.png") == grey(3)).all()
    assert read_layout(tmp_path / "data").class_names == ("cat", "dog")


@pytest.mark.parametrize(
    ("file", "images", "words"),
    [
        ("data.h5", ("train/cat/1", "train/dog/1"), ("'train/cat/1'", "'train/dog/1'")),
        ("train.h5", ("images/i1", "masks/i1"), ("'images/i1'", "'masks/i1'")),
        ("train.h5", ("test_a/i1", "test_b/i2"), ("'test_a'", "'train'")),
        ("train.h5", ("..1", "b2"), ("'..1'",)),
        ("train.h5", ("a\x1b[2J1", "b2"), (r"'a\x1b[2J1'",)),
    ],
    ids=["classes or not", "masks", "two parts", "hidden", "control characters"],
)
def test_unclear_groups_and_names_of_hdf5_are_refused(tmp_path, take, file, images, words):
    hdf5(tmp_path / "kaggle" / file, {name: grey(1) for name in images})
    message = refused(take, tmp_path / "kaggle")
    assert file in message and all(word in message for word in words) and "\x1b" not in message


@pytest.mark.parametrize(
    ("content", "attributes", "words"),
    [
        ({"dense_1/kernel": np.zeros((3, 3, 64, 64))}, {"keras_version": "2.4"}, "Keras"),
        ({"a/block0_values": np.zeros((50, 40))}, {"pandas_type": "frame"}, "pandas"),
        ({"image": np.zeros((40, 40)), "mask": np.zeros((40, 40))}, {}, "image (40, 40)"),
        ({"features": np.zeros((40, 512))}, {}, "features (40, 512)"),
        ({"names": np.array([b"a", b"b"])}, {}, "names (2,)"),
    ],
    ids=["keras", "pandas", "one image", "features", "texts"],
)
def test_hdf5_without_images_is_kept_and_named(tmp_path, take, content, attributes, words):
    h5py = pytest.importorskip("h5py")
    folder_competition(tmp_path / "kaggle")
    with h5py.File(hdf5(tmp_path / "kaggle/more.h5", content), "a") as file:
        file.attrs.update(attributes)
    output = take(tmp_path / "kaggle")
    line = next(line for line in output.splitlines() if line.startswith("  more.h5"))
    assert words in line and (tmp_path / "data/more.h5").exists()


def test_what_leads_out_of_an_hdf5_file_is_refused(tmp_path, take):
    h5py = pytest.importorskip("h5py")
    other = hdf5(tmp_path / "other.h5", {"secret": np.void(jpeg(1)), "x": colours(4)})
    (tmp_path / "raw.bin").write_bytes(bytes(100 * 100))
    virtual = h5py.VirtualLayout((4, 24, 24, 3), np.uint8)
    virtual[:] = h5py.VirtualSource(str(other), "x", shape=(4, 24, 24, 3))
    for kind in ("link", "raw", "virtual"):
        path = hdf5(tmp_path / kind / "kaggle/test.h5", {"a1": np.void(jpeg(1))})
        with h5py.File(path, "a") as file:
            if kind == "link":
                file["b/i2"] = h5py.ExternalLink(str(other), "secret")
            elif kind == "raw":
                outside = [(str(tmp_path / "raw.bin"), 0, 10_000)]
                file.create_dataset("b/i2", (100, 100), np.uint8, external=outside)
            else:
                file.create_virtual_dataset("b/i2", virtual)
        message = refused(take, path.parent)
        assert "test.h5/b/i2" in message and "another file" in message, kind


def test_second_names_inside_an_hdf5_file_are_left_out(tmp_path, take):
    h5py = pytest.importorskip("h5py")
    path = hdf5(tmp_path / "kaggle/test.h5", {"a1": np.void(jpeg(1)), "b2": np.void(jpeg(2))})
    with h5py.File(path, "a") as file:
        file["c3"], file["circle/d"] = h5py.SoftLink("/a1"), file["/"]
    assert "2 second names" in take(tmp_path / "kaggle")
    assert names(tmp_path / "data/test") == ["a1.jpg", "b2.jpg"]


def test_an_hdf5_file_that_declares_too_much_is_not_read(tmp_path, take):
    h5py = pytest.importorskip("h5py")
    folder_competition(tmp_path / "kaggle")
    for name, shape, chunks in (("many", (10**8, 100, 100), (1, 100, 100)), ("large", (10**5, 10**5), None)):
        with h5py.File(tmp_path / f"kaggle/test_{name}.h5", "w") as file:
            file.create_dataset("x" if chunks else "a1", shape, np.uint8, chunks=chunks)
    output = take(tmp_path / "kaggle")
    for shown in ("'x' has the shape (100000000, 100, 100)", "'a1' has the shape (100000, 100000)"):
        assert shown in output


def test_a_bomb_in_a_chunk_of_hdf5_is_refused(tmp_path, take, monkeypatch):
    h5py = pytest.importorskip("h5py")
    monkeypatch.setattr("pipeline.fetch.hdf5_contents.SMALL_CHUNK", 1000)
    path = hdf5(tmp_path / "kaggle/test.h5", {})
    with h5py.File(path, "a") as file:
        images = file.create_dataset("x", (4, 24, 24), np.uint8, chunks=(4, 24, 24), compression="gzip")
        images.id.write_direct_chunk((0, 0, 0), zlib.compress(bytes(5_000_000)))
    message = refused(take, tmp_path / "kaggle")
    assert "test.h5/x" in message and "2,304" in message and "bomb" in message


@pytest.mark.parametrize("damage", ["cut", "no HDF5", "a filter that is missing", "bytes of a chunk"])
def test_a_damaged_hdf5_file_is_refused(tmp_path, take, damage):
    h5py = pytest.importorskip("h5py")
    path = hdf5(tmp_path / "kaggle/a/test.h5", {})
    sample(tmp_path / "kaggle", TEST_IDS)
    with h5py.File(path, "w") as file:
        if damage == "a filter that is missing":
            plist, space = h5py.h5p.create(h5py.h5p.DATASET_CREATE), h5py.h5s.create_simple((24, 24))
            plist.set_chunk((24, 24))
            plist.set_filter(32_123, h5py.h5z.FLAG_OPTIONAL)
            h5py.h5d.create(file.id, b"a1", h5py.h5t.NATIVE_UINT8, space, dcpl=plist)
        else:
            images = file.create_dataset("x", data=colours(10), chunks=(10, 24, 24, 3), compression="gzip")
            if damage == "bytes of a chunk":
                images.id.write_direct_chunk((0, 0, 0, 0), b"no zlib stream")
    if damage in ("cut", "no HDF5"):
        path.write_bytes(path.read_bytes()[:-200] if damage == "cut" else b"version https://git-lfs")
    message = refused(take, tmp_path / "kaggle")
    assert "a/test.h5" in message and "run the command again" in message


def test_a_place_of_variable_values_without_a_size_is_refused(tmp_path, take):
    # HDF5 itself goes round without end in it, where no Ctrl-C stops it.
    path = hdf5(tmp_path / "kaggle/test.h5", {"a1": variable(jpeg(1))})
    data = bytearray(path.read_bytes())
    first = data.index(b"GCOL") + 16
    free = first + 16 + -(-len(jpeg(1)) // 8) * 8
    assert data[free : free + 2] == bytes(2) and any(data[free + 8 : free + 16])
    data[free + 8 : free + 16] = bytes(8)
    path.write_bytes(data)
    message = refused(take, tmp_path / "kaggle")
    assert "test.h5 is damaged" in message and f"byte {free:,}" in message


# ---- ids in another order than the sample's ----


BACKWARDS = TEST_IDS[::-1]  # the sample's order; the rows of the test set are in the order of TEST_IDS


def right_images(folder: Path) -> bool:
    """Whether each test id has the image that stands beside it in the container."""
    return all(
        (pixels_of(folder / f"{name}.png") == grey(number + 40)).all() for number, name in enumerate(TEST_IDS)
    )


def test_a_column_with_the_samples_ids_names_pixel_rows_whatever_it_is_called(tmp_path, take):
    header = ",".join(f"pixel{number}" for number in range(784))
    rows = [
        f"{number},{name}," + ",".join(map(str, grey(number + 40).ravel()))
        for number, name in enumerate(TEST_IDS)
    ]
    put(tmp_path / "kaggle/test.csv", "\n".join([f"index,photo,{header}", *rows]) + "\n")
    sample(tmp_path / "kaggle", BACKWARDS)
    take(tmp_path / "kaggle")
    assert right_images(tmp_path / "data/test")


@pytest.mark.parametrize("key", ["ids_test", "photo_test"])
def test_an_array_with_the_samples_ids_names_a_stack_whatever_it_is_called(tmp_path, take, key):
    put(tmp_path / "kaggle/x", "")
    stack = np.stack([grey(number + 40) for number in range(4)])
    np.savez(tmp_path / "kaggle/all.npz", **{"x_test": stack, key: np.asarray(TEST_IDS)})
    sample(tmp_path / "kaggle", BACKWARDS)
    take(tmp_path / "kaggle")
    assert right_images(tmp_path / "data/test")


def test_rows_without_ids_get_the_samples_ids_with_their_zeros(tmp_path, take):
    digits(tmp_path / "kaggle", test=4)
    sample(tmp_path / "kaggle", ["0002", "0001", "0004", "0003"])
    take(tmp_path / "kaggle")
    assert names(tmp_path / "data/test") == [f"000{number}.png" for number in range(1, 5)]
    competition = read_layout(tmp_path / "data", need="test", asked=Asked(metric="accuracy"))
    assert [(row.id, row.path.stem) for row in competition.test] == [
        (name, name) for name in ("0002", "0001", "0004", "0003")
    ]


def test_rows_without_ids_get_numbered_ids_by_their_numbers(tmp_path, take):
    put(tmp_path / "kaggle/x", "")
    np.savez(tmp_path / "kaggle/all.npz", x_test=np.stack([grey(number) for number in range(12)]))
    sample(tmp_path / "kaggle", sorted(f"t_{number}.png" for number in range(3, 15)))
    take(tmp_path / "kaggle")
    images = [pixels_of(tmp_path / f"data/test/t_{number + 3}.png.png") for number in range(12)]
    assert all((image == grey(number)).all() for number, image in enumerate(images))
    assert [row.id for row in read_layout(tmp_path / "data", need="test").test][:2] == [
        "t_10.png",
        "t_11.png",
    ]


def test_a_table_with_the_samples_ids_names_a_stack_whatever_they_are_called(tmp_path, take):
    put(tmp_path / "kaggle/test.csv", "photo,site\n" + "".join(f"{name},x\n" for name in TEST_IDS))
    np.savez(tmp_path / "kaggle/test.npz", images=np.stack([grey(number + 40) for number in range(4)]))
    sample(tmp_path / "kaggle", BACKWARDS)
    take(tmp_path / "kaggle")
    assert right_images(tmp_path / "data/test")


@pytest.mark.parametrize("index", ["image_id", "photo", None])
def test_ids_in_the_index_of_a_parquet_table_name_its_rows(tmp_path, take, index):
    pytest.importorskip("pyarrow")
    import pandas as pd

    pixel_rows = np.stack([grey(number + 40).ravel() for number in range(4)])
    frame = pd.DataFrame(pixel_rows, columns=[f"pixel{number}" for number in range(784)])
    frame.insert(0, "label", [1.0, 0.0, None, 2.5])
    frame.index = pd.Index(TEST_IDS, name=index)
    (tmp_path / "kaggle").mkdir()
    frame.to_parquet(tmp_path / "kaggle/test.parquet")
    sample(tmp_path / "kaggle", BACKWARDS)
    take(tmp_path / "kaggle")
    assert right_images(tmp_path / "data/test")
    assert load_table(tmp_path / "data/test.csv").column("label") == ["1", "0", "", "2.5"]


# ---- one rule ----


@pytest.mark.parametrize(
    ("values", "words", "expected"),
    [
        ([[0, 255], [7, 9]], "from 0 to 255", [0, 255, 7, 9]),
        ([[0.0, 1.0], [0.5, 0.2]], "1 white", [0, 255, 128, 51]),
        ([[0, 65535], [0, 32768]], "one range", [0, 255, 0, 128]),
        ([[-40.0, 0.0], [float("nan"), -20.0]], "one range", [0, 255, 0, 128]),
    ],
)
def test_one_rule_for_a_set(values, words, expected):
    survey = grey_range.Survey()
    images = [np.asarray(image)[None, None] for image in values]
    for image in images:
        survey.add(image)
    rule = survey.rule()
    found = np.concatenate([rule.apply(image).ravel() for image in images])
    assert words in rule.says and abs(found.astype(int) - expected).max() <= 2
