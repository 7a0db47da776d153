import io
import random
import stat
import tarfile
import zipfile

import pytest

from pipeline.errors import UserError
from pipeline.fetch import archives
from pipeline.fetch.addresses import Source, parse_source
from pipeline.fetch.archives import unpack_zip

DRIVE_ID = "1AbCdEfGhIjKlMnOpQrStUvWxYz012345"


# Sources


@pytest.mark.parametrize(
    "text",
    [
        DRIVE_ID,
        f"https://drive.google.com/file/d/{DRIVE_ID}/view?usp=sharing",
        f"https://drive.google.com/file/u/0/d/{DRIVE_ID}/view",
        f"https://drive.google.com/uc?id={DRIVE_ID}&export=download",
        f"https://drive.google.com/open?id={DRIVE_ID}",
        f"https://drive.usercontent.google.com/download?id={DRIVE_ID}&confirm=t",
    ],
)
def test_every_form_of_a_drive_file_gives_its_id(text):
    assert parse_source(text) == Source("drive", DRIVE_ID)


def test_a_file_on_this_disk_wins_over_everything_else(tmp_path):
    (tmp_path / DRIVE_ID).write_bytes(b"")
    assert parse_source(DRIVE_ID, tmp_path) == Source("file", str(tmp_path / DRIVE_ID))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "https://drive.google.com/drive/folders/1AbCdEfGhIjKlMnOpQrStUvWxYz012345",
            "Google Drive folder; give the link of one file",
        ),
        ("https://drive.google.com/file/", "https://drive.google.com/file/ has no .*file/d/FILE_ID/view"),
        ("ftp://host/file.zip", "ftp:// is not supported; give an https address"),
        ("https:///file.zip", "https:///file.zip has no host"),
        ("https://[host/file.zip", r"https://\[host/file.zip is not .*; give a full one"),
        (
            "wieghts.zip",
            r"'wieghts.zip' is not a file \(is it .*weights.zip\?\); give a path, a Google Drive id",
        ),
        (".", "is a folder; give the archive file itself"),
        ("~nobody-of-this-name/file.zip", "'~nobody-of-this-name/file.zip' is not a file"),
    ],
)
def test_other_sources_are_refused_with_what_to_give(text, message, tmp_path):
    (tmp_path / "weights.zip").write_bytes(b"")
    with pytest.raises(UserError, match=message):
        parse_source(text, tmp_path)


def test_a_shown_address_holds_no_credentials():
    assert parse_source("https://me:secret@host/a.zip?token=secret").shown == "https://host/a.zip?..."


@pytest.mark.parametrize(
    "text",
    [
        "https://me:secret@/a.zip",
        "https://me:secret@[host/a.zip",
        "https://me:secret@a\u2100b/a.zip",
        "ftp://me:secret@host/a.zip",
    ],
)
def test_a_refused_address_is_shown_without_credentials(text, tmp_path):
    with pytest.raises(UserError) as caught:
        parse_source(text, tmp_path)
    assert "secret" not in str(caught.value)


# Unpacking


def write_zip(path, members):
    """A zip of (name or ZipInfo, content) pairs, duplicates and all."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def special(name, mode):
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


def test_a_zip_is_unpacked_without_what_macos_adds(tmp_path):
    path = write_zip(
        tmp_path / "a.zip", [("m/", ""), ("m/a.txt", "1"), ("__MACOSX/m/._a.txt", "x"), ("m/.DS_Store", "x")]
    )
    assert [str(found) for found in unpack_zip(path, tmp_path / "new/out")] == ["m/a.txt"]
    assert (tmp_path / "new/out/m/a.txt").read_text() == "1"
    assert [found.name for found in (tmp_path / "new/out/m").iterdir()] == ["a.txt"]


@pytest.mark.parametrize(
    ("written", "read"),
    [("train/café/ü 日.png".encode(), "train/café/ü 日.png"), ("é.png".encode("cp437"), "é.png")],
    ids=["utf-8", "cp437"],
)
def test_names_that_are_not_marked_as_utf_8(tmp_path, monkeypatch, written, read):
    monkeypatch.setattr(zipfile.ZipInfo, "_encodeFilenameFlags", lambda entry: (written, entry.flag_bits))
    path = write_zip(tmp_path / "a.zip", [("a", b"x")])
    monkeypatch.undo()
    assert [str(found) for found in unpack_zip(path, tmp_path / "out")] == [read]
    assert (tmp_path / "out" / read).read_bytes() == b"x"


def test_a_tar_gz_is_unpacked(tmp_path):
    (tmp_path / "a.txt").write_text("1")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "a.txt", "./m/a.txt")
    unpack_zip(tmp_path / "a.tar.gz", tmp_path / "out")
    assert (tmp_path / "out/m/a.txt").read_text() == "1"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../evil.txt", "a path that leaves the folder"),
        ("m/../../evil.txt", "a path that leaves the folder"),
        ("/evil.txt", "an absolute path or a drive"),
        ("C:/evil.txt", "an absolute path or a drive"),
        ("C:evil.txt", "an absolute path or a drive"),
        ("..\\evil.txt", "a backslash in the name"),
        ("m\\a.txt", "a backslash in the name"),
        ("a\nb.txt", "a control character in the name"),
        (special("m/link", stat.S_IFLNK | 0o777), "'m/link' is a link"),
        (special("m/device", stat.S_IFCHR | 0o666), "'m/device' is a device"),
        ("good.txt", "'good.txt' occurs twice"),
    ],
)
def test_a_hostile_member_is_named_and_nothing_is_written(name, message, tmp_path):
    with pytest.warns(UserWarning) if name == "good.txt" else pytest.MonkeyPatch.context():
        path = write_zip(tmp_path / "a.zip", [("good.txt", "1"), (name, "/etc/passwd")])
    with pytest.raises(UserError, match=r"a.zip was not unpacked:\n.*" + message):
        unpack_zip(path, tmp_path / "in/out")
    assert not (tmp_path / "in").exists()
    assert sorted(found.name for found in tmp_path.iterdir()) == ["a.zip"]


def test_all_problems_are_named_at_once(tmp_path):
    path = write_zip(tmp_path / "a.zip", [("../a", "1"), ("/b", "1"), (special("c", stat.S_IFLNK), "1")])
    with pytest.raises(UserError) as caught:
        unpack_zip(path, tmp_path / "out")
    assert len(str(caught.value).splitlines()) == 4


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_a_tar_has_no_links_and_devices_either(kind, tmp_path):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("m/thing")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(UserError, match=r"'m/thing' is a (link|device)"):
        unpack_zip(tmp_path / "a.tar.gz", tmp_path / "out")


def test_an_encrypted_member_is_refused(tmp_path):
    path = write_zip(tmp_path / "a.zip", [("a.txt", "1")])
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"'a.txt' is an encrypted file"):
        unpack_zip(path, tmp_path / "out")


def test_a_bomb_is_refused_by_its_ratio(tmp_path):
    path = write_zip(tmp_path / "a.zip", [("zeros", bytes(65 * 10**6))])
    with pytest.raises(UserError, match=r"65 MB.* 64 MB"):
        unpack_zip(path, tmp_path / "out")


def test_a_bomb_that_lies_about_its_size_leaves_nothing(tmp_path):
    path = write_zip(tmp_path / "a.zip", [("zeros", bytes(10**6))])
    data = path.read_bytes().replace((10**6).to_bytes(4, "little"), (1000).to_bytes(4, "little"))
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"damaged"):
        unpack_zip(path, tmp_path / "out", max_bytes=2000)
    assert not (tmp_path / "out").exists()


def test_bytes_are_counted_as_they_come(tmp_path, monkeypatch):
    path = write_zip(tmp_path / "a.zip", [("a", bytes(5000))])
    monkeypatch.setattr(archives, "_member_problems", lambda *args: [])
    with pytest.raises(UserError, match=r"'a' unpacks to more than"):
        unpack_zip(path, tmp_path / "out", max_bytes=2000)
    assert not (tmp_path / "out").exists()


def test_members_are_bounded(tmp_path):
    path = write_zip(tmp_path / "a.zip", [(str(number), "") for number in range(4)])
    with pytest.raises(UserError, match=r"more than 3 members"):
        unpack_zip(path, tmp_path / "out", max_members=3)
    assert len(unpack_zip(path, tmp_path / "out", max_members=4)) == 4


@pytest.mark.parametrize("members", [[("a", "1"), ("a/b", "2")], [("a/b", "1"), ("a", "2")]])
def test_a_file_that_is_also_a_folder_is_refused(members, tmp_path):
    with pytest.raises(UserError, match=r"collides with an earlier member"):
        unpack_zip(write_zip(tmp_path / "a.zip", members), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_damaged_archive_leaves_nothing(kind, tmp_path):
    (tmp_path / "a.bin").write_bytes(random.Random(0).randbytes(300_000))
    path = tmp_path / f"a.{kind}"
    if kind == "zip":
        body = write_zip(path, [("a.bin", (tmp_path / "a.bin").read_bytes())]).read_bytes()
        path.write_bytes(body[:1000] + b"\0" * 100 + body[1100:])
    else:
        with tarfile.open(path, "w:gz") as archive:
            archive.add(tmp_path / "a.bin", "a.bin")
        path.write_bytes(path.read_bytes()[:-50_000])
    with pytest.raises(UserError, match=r"damaged"):
        unpack_zip(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["between two members", "in a header", "another header"])
def test_a_tar_that_does_not_end_with_zeros_is_refused(damage, tmp_path):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for number in range(4):
            info = tarfile.TarInfo(f"train/{number}.png")
            info.size = 700
            archive.addfile(info, io.BytesIO(bytes(700)))
    third = 2 * (512 + 1024)
    content = bytearray(data.getvalue())
    if damage == "another header":
        content[third + 150] ^= 1  # in its checksum
    else:
        del content[third + (100 if damage == "in a header" else 0) :]
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(UserError, match="cut short or damaged"):
        unpack_zip(tmp_path / "a.tar", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_in_it_is_not_unpacked_into(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"is not empty"):
        unpack_zip(write_zip(tmp_path / "a.zip", [("a", "1")]), tmp_path / "out")
    assert (tmp_path / "out/mine.txt").read_text() == "mine"


def test_a_disk_without_room_is_said_before_the_first_byte(tmp_path, monkeypatch):
    path = write_zip(tmp_path / "a.zip", [("a", bytes(5000))])
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 100}))
    with pytest.raises(UserError, match=r"100 B free.* 5(\.0)? kB"):
        unpack_zip(path, tmp_path / "out")
