"""`make data COMPETITION=slug`, with the real `kaggle` command against a server on loopback."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from kaggle_server import SECRETS, KaggleServer, kaggle
from PIL import Image

from pipeline.competition.facts import read_facts, write_slug
from pipeline.errors import EXIT_INTERRUPTED, EXIT_USER, UserError, run_command
from pipeline.fetch import arrival, install, staging
from pipeline.kaggle import cli, submit
from pipeline.kaggle.remembered import remembered_slug


def image() -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (4, 4)).save(data, "PNG")
    return data.getvalue()


def zipped(members: dict[str, bytes | str]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return data.getvalue()


TRAIN = {"cat/1.png": image(), "cat/2.png": image(), "dog/3.png": image(), "dog/4.png": image()}
TEST = {"test/5.png": image(), "test/6.png": image()}
SAMPLE = "id,label\n5,cat\n6,cat\n"
# train.zip has no folder of its own, test.zip has one, and tables come zipped in two fashions.
NESTED = {
    "train.zip": zipped(TRAIN),
    "test.zip": zipped(TEST),
    "sample_submission.csv.zip": zipped({"sample_submission.csv": SAMPLE}),
    "extra.7z": b"7z",
    "extra.rar": b"Rar!",
}
PLAIN = {f"train/{name}": data for name, data in TRAIN.items()} | TEST | {"sample_submission.csv": SAMPLE}


@pytest.fixture
def data_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The empty data folder of a fresh copy of the project."""
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Path("data/README.md").write_text("Competitions go here.\n")
    return Path("data")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[KaggleServer]:
    if cli.find_command() is None:
        pytest.skip("the kaggle command is not installed")
    with kaggle(monkeypatch, tmp_path / "home") as running:
        yield running


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch):
    """Sets what the `kaggle` command leaves behind, without starting it."""
    monkeypatch.setattr(cli, "not_ready", list)

    def leave(content: bytes, name: str = "glyphs.zip") -> None:
        def download(slug: str, folder: Path, tick) -> None:
            (folder / name).write_bytes(content)

        monkeypatch.setattr(cli, "download", download)

    return leave


def installed(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


FLAGS = ["--competition", "glyphs"]
UNPACKED = [
    "README.md",
    "competition.yaml",
    "sample_submission.csv",
    "test/5.png",
    "test/6.png",
    *(f"train/{name}" for name in TRAIN),
]


def test_download_unpacks_everything_and_is_remembered(server, data_dir, capfd):
    server.archive = zipped(NESTED)
    assert install.main(["--competition", "https://www.kaggle.com/competitions/glyphs/data"]) == 0
    assert server.asked("DownloadDataFiles") == [{"competitionName": "glyphs"}]
    assert installed(data_dir) == sorted([*UNPACKED, "extra.7z", "extra.rar"])
    assert remembered_slug(data_dir) == "glyphs"
    output = "".join(capfd.readouterr())
    assert re.search("stays packed, .*: extra.rar", output) and "extra.7z stays packed: " in output
    assert "train: 4 images, 2 classes" in output and "cannot be read" not in output
    assert not [secret for secret in SECRETS if secret in output]

    (data_dir.parent / "predictions.csv").write_text("id,label\n5,cat\n6,dog\n")
    assert submit.preflight(submit._parser().parse_args([])).competition == "glyphs"


def test_refusal_leaves_nothing_behind(server, data_dir, capfd):
    server.refuse("DownloadDataFiles", 403, "You must accept this competition's rules")
    assert run_command(lambda: install.main(FLAGS)) == EXIT_USER
    assert "https://www.kaggle.com/competitions/glyphs/rules" in capfd.readouterr().err
    assert sorted(path.name for path in data_dir.iterdir()) == ["README.md"]


def test_another_competition_is_never_touched(archive, data_dir):
    archive(zipped(PLAIN))
    install.main(FLAGS)
    before = installed(data_dir)
    with pytest.raises(UserError, match=r"data .*'glyphs'.*--data data_digits"):
        install.main(["--competition", "digits", "--yes"])
    (data_dir / "competition.yaml").unlink()
    with pytest.raises(UserError, match="data already holds a competition"):
        install.main(["--competition", "digits", "--yes"])
    assert installed(data_dir) == [name for name in before if name != "competition.yaml"]
    assert install.main(["--competition", "digits", "--data", "data_digits"]) == 0


def test_other_files_are_asked_about(archive, data_dir):
    archive(zipped(PLAIN))
    (data_dir / "notes.txt").write_text("mine")
    with pytest.raises(
        UserError, match=r"data holds other files \(notes.txt\): YES=1 \(--yes\) puts glyphs beside them"
    ):
        install.main(FLAGS)
    assert install.main([*FLAGS, "--yes"]) == 0
    assert (data_dir / "notes.txt").read_text() == "mine" and (data_dir / "train").is_dir()


def test_a_taken_name_moves_nothing_and_keeps_the_download(archive, data_dir):
    archive(zipped(PLAIN | {"notes.txt": "theirs"}))
    (data_dir / "notes.txt").write_text("mine")
    with pytest.raises(
        UserError, match=r"(?s)the download stays in .*unpacked; move these away.*notes.txt exists already"
    ):
        install.main([*FLAGS, "--yes"])
    assert (data_dir / "notes.txt").read_text() == "mine" and not (data_dir / "train").exists()
    (data_dir / "notes.txt").unlink()
    install.main(FLAGS)
    assert (data_dir / "notes.txt").read_text() == "theirs"


@pytest.mark.parametrize(
    ("name", "text"),
    [("competition.yaml", "slug: {}\nmetric: roc_auc\n"), ("competition.json", '{{"slug": "{}"}}')],
)
def test_name_remembered_by_hand_is_no_competition(archive, data_dir, name, text):
    archive(zipped(PLAIN))
    (data_dir / name).write_text(text.format("digits"))
    with pytest.raises(UserError, match=rf"data/{name} names another competition, 'digits'"):
        install.main(FLAGS)
    (data_dir / name).write_text(text.format("glyphs"))
    assert install.main(FLAGS) == 0
    assert (data_dir / name).read_text() == text.format("glyphs") and remembered_slug(data_dir) == "glyphs"


def test_what_a_person_wrote_of_the_competition_stays(archive, data_dir):
    archive(zipped(PLAIN))
    (data_dir / "competition.yaml").write_text("# from its page\nmetric: f1_macro\n")
    assert install.main(FLAGS) == 0
    facts = read_facts(data_dir)
    assert (facts.slug, facts.metric) == ("glyphs", "f1_macro")
    assert "# from its page" in (data_dir / "competition.yaml").read_text()


def test_not_understood_is_said_and_kept(archive, data_dir, capsys):
    archive(zipped({"sounds.bin": b"\0", "competition.yaml": "theirs: 1\n"}))
    assert install.main(FLAGS) == 0
    assert "cannot be read as an image classification competition yet" in capsys.readouterr().out
    assert installed(data_dir) == ["README.md", "competition-2.yaml", "competition.yaml", "sounds.bin"]
    assert (data_dir / "competition-2.yaml").read_text() == "theirs: 1\n" and remembered_slug(
        data_dir
    ) == "glyphs"


def test_damaged_nested_archive_stays_packed(archive, data_dir, capsys):
    archive(zipped(PLAIN | {"extra.zip": b"no zip", "test.zip": zipped(TEST)}))
    assert install.main(FLAGS) == 0
    assert (data_dir / "extra.zip").read_bytes() == b"no zip" and (data_dir / "test.zip").exists()
    output = capsys.readouterr().out
    assert "extra.zip stays packed: " in output and "test.zip stays packed: test is there already" in output


@pytest.mark.parametrize("content", [b"<html>sign in</html>", zipped({"../outside.txt": "x"})])
def test_damaged_or_unsafe_download_is_kept_out(archive, data_dir, content):
    archive(content)
    with pytest.raises(UserError, match=r"delete data/\.glyphs\.download/archive/glyphs\.zip"):
        install.main(FLAGS)
    assert sorted(path.name for path in data_dir.iterdir()) == [".glyphs.download", "README.md"]
    assert not list(Path().rglob("outside.txt"))


def test_download_of_a_single_table(archive, data_dir):
    archive(b"id,label\n1,cat\n", "glyphs.csv")
    assert install.main(FLAGS) == 0
    assert installed(data_dir) == ["README.md", "competition.yaml", "glyphs.csv"]


def test_ctrl_c_keeps_the_part_for_the_next_time(monkeypatch, archive, data_dir, capsys):
    def stop(slug: str, folder: Path, tick) -> None:
        (folder / "glyphs.zip").write_bytes(b"PK")
        tick()
        raise KeyboardInterrupt

    archive(b"")
    monkeypatch.setattr(cli, "download", stop)
    assert run_command(lambda: install.main(FLAGS)) == EXIT_INTERRUPTED
    printed = capsys.readouterr()
    assert "2 B so far" in printed.out and "the same command resumes" in printed.err
    assert (data_dir / ".glyphs.download/archive/glyphs.zip").exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [("competition.json", text) for text in ("{}", "[]", "no json", '{"slug": ""}')]
    + [
        ("competition.yaml", text)
        for text in ("[]", "slug: [a]", "slug: {", "slugg: glyphs", "slug: &a glyphs\nmetric: *a")
    ],
)
def test_broken_memory_is_named(data_dir, name, text):
    (data_dir / name).write_text(text)
    with pytest.raises(UserError, match=re.escape(name)):
        remembered_slug(data_dir)


@pytest.mark.parametrize("slug", ["glyphs", "007", "1e5", "on", "null"])
def test_any_name_is_remembered_as_it_is(data_dir, slug):
    write_slug(data_dir, "another")
    write_slug(data_dir, slug)
    assert remembered_slug(data_dir) == slug
    write_slug(data_dir / "new", slug)
    assert remembered_slug(data_dir / "new") == slug


def test_everything_missing_is_listed_at_once(monkeypatch, data_dir):
    monkeypatch.setattr(cli, "not_ready", lambda: ["no Kaggle token: here is how"])
    (data_dir / "notes.txt").write_text("mine")
    with pytest.raises(
        UserError, match=r"(?s)glyphs cannot be downloaded yet:.*no Kaggle token.*other files \(notes\.txt\)"
    ):
        install.main(FLAGS)


def test_an_empty_work_folder_of_a_command_killed_in_its_last_moment_goes(tmp_path: Path) -> None:
    (tmp_path / ".from.download").mkdir()
    assert arrival.arriving(tmp_path / ".from.download") is None and not list(tmp_path.iterdir())


def test_what_a_killed_command_left_while_it_unwrapped_is_in_nobodys_way(tmp_path: Path) -> None:
    for name in ("unfinished/all/train/a/1.png", "unfinished.wrapping/train/a/1.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    assert "all/" in staging.unwrap(tmp_path / "unfinished")
    assert [path.name for path in (tmp_path / "unfinished").iterdir()] == ["train"] and not (
        tmp_path / "unfinished.wrapping"
    ).exists()
