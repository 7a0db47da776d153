"""Files that are whole or absent, and how a command ends."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.files import (
    filling,
    human_size,
    human_time,
    read_json,
    read_json_lines,
    replaceable,
    replacing,
    set_aside,
    sha256,
    sweep,
    versioned,
    write_json,
    write_json_lines,
    write_text,
)
from pipeline.shapes import NUMBER, differences_from


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_replacing_shows_the_new_file_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.bin"
    with replacing(path) as temporary:
        temporary.write_bytes(b"first")
        assert not path.exists() and temporary.parent == path.parent  # same disk: os.replace is atomic
    assert path.read_bytes() == b"first"
    with replacing(path) as temporary:
        temporary.write_bytes(b"second, longer")
        assert path.read_bytes() == b"first"
    assert path.read_bytes() == b"second, longer"
    assert names(path.parent) == ["a.bin"]


@pytest.mark.parametrize("error", [RuntimeError("disk full"), KeyboardInterrupt()])
def test_replacing_keeps_the_old_bytes_on_failure_and_leaves_nothing_behind(
    tmp_path: Path, error: BaseException
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")

    def write() -> None:
        with replacing(path) as temporary:
            temporary.write_bytes(b"half of the n")
            raise error

    with pytest.raises(type(error)):
        write()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.txt"]


def test_a_failed_replace_itself_leaves_no_temporary_file(tmp_path: Path) -> None:
    with pytest.raises(OSError), replacing(tmp_path / "a") as temporary:
        temporary.write_bytes(b"x")
        (tmp_path / "a").mkdir()  # in the meantime
    assert names(tmp_path) == ["a"]


@pytest.mark.skipif(os.name == "nt", reason="pipes and devices")
def test_a_folder_a_pipe_and_a_device_are_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    (tmp_path / "loop").symlink_to("loop")
    kinds = {"folder": "a folder", "pipe": "a pipe", "link": "a pipe", "loop": "not a file"}
    for path, kind in [
        *((tmp_path / name, kind) for name, kind in kinds.items()),
        (Path("/dev/null"), "a device"),
    ]:
        with pytest.raises(UserError, match=f"{path} is {kind}"):
            write_text(path, "x")
    assert names(tmp_path) == ["folder", "link", "loop", "pipe"]
    ends = os.pipe()
    with pytest.raises(UserError, match="is a pipe"):
        replaceable(Path(f"/dev/fd/{ends[1]}"))  # as /dev/stdout is: a link that leads to no path
    for end in ends:
        os.close(end)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode) and stat.S_ISCHR(
        Path("/dev/null").stat().st_mode
    )


def test_a_link_is_followed_and_stays(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.txt").write_text("old")
    (tmp_path / "a.txt").symlink_to("real/a.txt")
    (tmp_path / "new.txt").symlink_to("real/new.txt")  # leads to nothing yet
    write_text(tmp_path / "a.txt", "new")
    write_text(tmp_path / "new.txt", "new")
    assert (tmp_path / "a.txt").is_symlink() and (tmp_path / "new.txt").is_symlink()
    assert names(tmp_path / "real") == ["a.txt", "new.txt"]
    assert (tmp_path / "real" / "a.txt").read_text() == "new"


@pytest.mark.parametrize("name", ["n" * 254, "é" * 127])
def test_a_name_as_long_as_the_disk_allows_is_written(tmp_path: Path, name: str) -> None:
    write_text(tmp_path / name, "x")
    assert names(tmp_path) == [name]


def test_what_killed_writers_left_is_swept(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for path in (
        ".a.txt.12345678.part",
        ".b.txt.12345678.part",
        "state/.000001.pt.abc.part",
        "model_beit/.part-x/model.safetensors",
    ):
        (run / path).parent.mkdir(parents=True, exist_ok=True)
        (run / path).write_bytes(b"half")
    (run / ".download").mkdir()
    (run / ".download" / ".w.zip.12345678.part").write_bytes(b"goes on later")
    (run / "mine.part").write_bytes(b"a user's")
    write_text(run / "a.txt", "x")
    assert (run / ".a.txt.12345678.part").exists()  # perhaps of a living writer
    os.utime(run / ".a.txt.12345678.part", (1, 1))
    write_text(run / "a.txt", "y")
    assert not (run / ".a.txt.12345678.part").exists()
    sweep(run)
    left = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    assert left == {"a.txt", "mine.part", ".download/.w.zip.12345678.part"}


def test_a_filled_folder_gets_whole_files_that_are_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file is flushed before the first takes its place, and one that cannot be written leaves all as
    they were.
    """
    done: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda handle: done.append("flush"))
    original = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: done.append(f"rename {Path(b).name}") or original(a, b))
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "b.bin").write_text("old")
    with filling(tmp_path / "m") as temporary:
        (temporary / "b.bin").write_text("new")
        (temporary / "a.json").write_text("new")
    assert done == ["flush", "flush", "rename a.json", "rename b.bin", "flush"]
    with pytest.raises(ZeroDivisionError), filling(tmp_path / "m") as temporary:
        (temporary / "b.bin").write_text("half")
        1 / 0  # noqa: B018
    assert {path.name: path.read_text() for path in (tmp_path / "m").iterdir()} == {
        "a.json": "new",
        "b.bin": "new",
    }


def test_nested_too_deep_is_a_message(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[" * 200_000 + "]" * 200_000)
    with pytest.raises(UserError, match=r"a\.json is not valid JSON"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n' + '{"a":' * 200_000 + "\n")
    with pytest.raises(UserError, match="line 2 is not valid JSON"):
        read_json_lines(tmp_path / "a.jsonl")


def test_a_number_of_thousands_of_digits_is_a_message(tmp_path: Path) -> None:
    """Python refuses to read 5,000 digits, and 400 are more than a float can be."""
    (tmp_path / "a.json").write_text(f'{{"a": {"9" * 5_000}}}')
    with pytest.raises(UserError, match=r"a\.json is not valid JSON"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text(f'{{"a": {"9" * 400}}}')
    assert differences_from({"a": NUMBER}, read_json(tmp_path / "a.json"))[0].startswith(
        "a: expected a number"
    )


@pytest.mark.parametrize("row", ["7", '"epoch"', "[1]", "null"])
def test_a_line_that_is_no_object_is_named(tmp_path: Path, row: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(f'{{"epoch": 1}}\n{row}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl is damaged: line 2"):
        read_json_lines(tmp_path / "metrics.jsonl")


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_written_files_have_ordinary_permissions(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_text(tmp_path / "a.txt", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o644


def test_write_text_is_utf8_with_its_own_line_ends(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "Käse\r\nbrød\n")
    assert (tmp_path / "a.txt").read_bytes() == "Käse\r\nbrød\n".encode()


def test_json_round_trip_and_its_errors(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"name": "日本", "values": [1, 2.5, None]})
    assert read_json(path) == {"name": "日本", "values": [1, 2.5, None]}
    assert "日本" in path.read_text(encoding="utf-8") and path.read_bytes().endswith(b"\n")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"loss": float("nan")})
    assert read_json(path)["name"] == "日本"  # the refused value did not touch it
    with pytest.raises(UserError, match=r"gone\.json does not exist"):
        read_json(tmp_path / "gone.json")
    for broken in (b'{"a": 1,', b"\xff\xfe{}"):
        path.write_bytes(broken)
        with pytest.raises(UserError, match=r"a\.json is not valid JSON"):
            read_json(path)


def test_json_lines_round_trip_with_unusual_line_separators(tmp_path: Path) -> None:
    rows = [{"epoch": 1, "note": "a\u2028b\x85c\nd"}, {"epoch": 2, "note": ""}]
    write_json_lines(tmp_path / "a.jsonl", rows)
    assert read_json_lines(tmp_path / "a.jsonl") == rows
    assert read_json_lines(tmp_path / "none.jsonl") == []


def test_a_broken_json_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1}\n{"epoch": 2\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl is damaged: line 2"):
        read_json_lines(tmp_path / "metrics.jsonl")


def test_sha256_is_hashlibs(tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000
    (tmp_path / "a").write_bytes(data)
    assert sha256(tmp_path / "a") == hashlib.sha256(data).hexdigest()
    (tmp_path / "empty").touch()
    assert sha256(tmp_path / "empty") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_set_aside_moves_files_and_folders_and_loses_none(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("1")
    (tmp_path / "model_beit").mkdir()
    (tmp_path / "model_beit" / "config.json").write_text("2")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run.json").write_text("3")  # the same name from another folder
    paths = [
        tmp_path / "run.json",
        tmp_path / "model_beit",
        tmp_path / "gone",
        tmp_path / "other" / "run.json",
    ]
    target = set_aside(paths, tmp_path / "earlier")
    assert target is not None and target.parent == tmp_path / "earlier"
    assert names(target) == ["model_beit", "run-2.json", "run.json"]
    assert (target / "run.json").read_text() == "1" and (target / "run-2.json").read_text() == "3"
    assert (target / "model_beit" / "config.json").read_text() == "2"
    assert not (tmp_path / "run.json").exists() and not (tmp_path / "model_beit").exists()


def test_set_aside_twice_in_one_second_uses_two_folders(tmp_path: Path) -> None:
    targets = []
    for text in "ab":
        (tmp_path / "run.json").write_text(text)
        targets.append(set_aside([tmp_path / "run.json"], tmp_path / "earlier"))
    assert [(target / "run.json").read_text() for target in targets] == ["a", "b"]


def test_set_aside_of_nothing_makes_no_folder(tmp_path: Path) -> None:
    assert set_aside([tmp_path / "gone"], tmp_path / "earlier") is None
    assert names(tmp_path) == []


def test_set_aside_moves_a_broken_link_too(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    target = set_aside([tmp_path / "link"], tmp_path / "earlier")
    assert (target / "link").is_symlink() and not os.path.lexists(tmp_path / "link")


def test_versioned_finds_the_first_free_name(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    assert versioned(path) == path
    path.touch()
    assert versioned(path).name == "predictions-2.csv"
    (tmp_path / "predictions-2.csv").touch()
    (tmp_path / "predictions-3.csv").symlink_to("nowhere")
    assert versioned(path).name == "predictions-4.csv"


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (9_400, "9.4 kB"),
        (94_000, "94 kB"),
        (612_000_000, "612 MB"),
        (999_400, "999 kB"),
        (999_600, "1.0 MB"),
        (3_800_000_000, "3.8 GB"),
    ],
)
def test_human_size(size: int, text: str) -> None:
    assert human_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (9, "9 s"), (59.6, "1m00s"), (250, "4m10s"), (43_380, "12h03m")]
)
def test_human_time(seconds: float, text: str) -> None:
    assert human_time(seconds) == text
