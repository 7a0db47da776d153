import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from servers import Reply, play_drive, serving

from pipeline.errors import UserError
from pipeline.fetch import releases
from pipeline.fetch.release_file import read_release
from pipeline.fetch.releases import competition_entries, main
from pipeline.run import load_run

ROOT = Path(__file__).resolve().parents[1]
CONFIG = json.dumps({"model_type": "beit", "id2label": {"0": "cat", "1": "dog"}})


def weights(content):
    """The text of a safetensors file whose one tensor holds `content`."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [len(content)], "data_offsets": [0, len(content)]}})
    return len(header).to_bytes(8, "little").decode() + header + content


MODEL = {"model_beit/config.json": CONFIG, "model_beit/model.safetensors": weights("weights")}
MODEL |= {"model_lora/adapter_config.json": "{}", "model_lora/adapter_model.safetensors": weights("adapter")}
RUN = MODEL | {
    "model_beit/preprocessor_config.json": "{}",
    "run.json": json.dumps({"format": 1, "class_names": ["cat", "dog"]}),
    "metrics.jsonl": "{}\n",
    "figures/loss.png": "png",
}
DATA = {"data/train.csv": "id,label\n1,cat\n", "data/train/1.jpg": "jpg"}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty project folder, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path


def write_zip(path, members, folder=""):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(folder + name, content)
    return path


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def tree(folder):
    """Every file under `folder` with its content."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def texts(folder, *without):
    return {name: content.decode() for name, content in tree(folder).items() if not name.startswith(without)}


# release.yaml


def test_release_yaml_names_everything_and_is_relative_to_its_folder(place):
    folder = place / "finetuned_model"
    folder.mkdir()
    write_zip(folder / "r.zip", MODEL)
    (folder / "release.yaml").write_text(
        f"source: r.zip\nsha256: {digest(folder / 'r.zip').upper()}\nsize: "
        f"{(folder / 'r.zip').stat().st_size}\nname: v1\n"
        "mirrors: [https://host/r.zip, 1AbCdEfGhIjKlMnOpQrStUvWxYz012345]\n"
    )
    release = read_release(folder / "release.yaml")
    assert (release.source.kind, release.source.text) == ("file", str(folder / "r.zip"))
    assert release.sha256 == digest(folder / "r.zip")
    assert [mirror.kind for mirror in release.mirrors] == ["url", "drive"]
    assert main([]) == 0
    assert load_run(folder).backbone_dir.name == "model_beit"


def test_every_mistake_in_release_yaml_is_named_at_once(place):
    (place / "release.yaml").write_text(
        "sorce: a.zip\nsha256: 12ab\nsize: 1 GB\nmirrors: https://host/r.zip\ncolour: red\n"
    )
    with pytest.raises(UserError) as caught:
        read_release(place / "release.yaml")
    text = str(caught.value)
    assert "unknown key `sorce`; did you mean `source`?" in text
    assert "unknown key `colour`; known are source, sha256" in text
    for part in (
        "`source` must be",
        "`sha256` must be 64 hex digits",
        "`size` must be a number of bytes; found '1 GB'",
        "`mirrors` must be a list",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("text", "message"), [("just words", "must hold keys and values"), ("a: [", "is not valid YAML")]
)
def test_a_release_yaml_that_is_no_mapping_is_refused(text, message, place):
    (place / "release.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_release(place / "release.yaml")


def test_without_release_yaml_one_message_names_every_way_on(place):
    with pytest.raises(
        UserError,
        match=r"finetuned_model/release.yaml does not exist.*make weights WEIGHTS=.*python train.py",
    ):
        main([])
    assert list(place.iterdir()) == []


def test_the_digest_belongs_to_a_source(place):
    with pytest.raises(UserError, match=r"--sha256 needs --weights"):
        main(["--sha256", "0" * 64])


# What is installed

EMPTY = (2).to_bytes(8, "little").decode() + "{}"
INDEX = {"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}
WITH_ADAPTER = {"format": 1, "class_names": ["cat", "dog"], "recipe": {"lora": {"rank": 16}}}


def without(name):
    """The release's files but one."""
    return {key: content for key, content in MODEL.items() if key != name}


@pytest.mark.parametrize("folder", ["", "finetuned_model/", "release-v1/", "v1/finetuned_model/"])
def test_a_release_is_installed_with_or_without_a_folder_around_it(folder, place, capsys):
    write_zip(place / "r.zip", RUN, folder)
    assert main(["--weights", "r.zip"]) == 0
    assert texts(place / "finetuned_model", "release.installed") == RUN
    assert sorted(path.name for path in place.iterdir()) == ["finetuned_model", "r.zip"]
    out = capsys.readouterr().out
    assert digest(place / "r.zip") in out
    assert "installed  figures, metrics.jsonl, model_beit, model_lora, run.json in finetuned_model" in out
    assert out.splitlines()[-1] == "next       python inference.py"
    assert len(out.splitlines()) <= 8


def test_other_folders_are_named_in_what_comes_next(place, capsys):
    write_zip(place / "r.zip", MODEL)
    main(["--weights", "r.zip", "--model", "other", "--data", "d"])
    assert capsys.readouterr().out.splitlines()[-1] == "next       python inference.py --model other --data d"
    assert texts(place / "other", "release.installed") == MODEL


def test_a_release_of_2023_keeps_its_pickles_for_the_strict_loader(place):
    fixture = Path(__file__).parent / "fixtures/legacy_beit/finetuned_model"
    write_zip(place / "r.zip", tree(fixture))
    main(["--weights", "r.zip"])
    installed = tree(place / "finetuned_model")
    del installed["release.installed.json"]
    assert installed == tree(fixture) and "model_beit/pytorch_model.bin" in installed


def test_code_and_strangers_are_left_out_and_said(place, capsys):
    strangers = {
        "train.py": "x",
        "model_beit/modeling.py": "x",
        "run.sh": "x",
        "state/x.bin": "x",
        "model_beit/weights.pkl": "x",
        "figures/a.exe": "x",
        "report.html": "<script>alert(1)</script>",
        "figures/loss.svg": "<svg onload='alert(1)'/>",
    }
    write_zip(place / "r.zip", MODEL | strangers, "top/")
    main(["--weights", "r.zip"])
    assert texts(place / "finetuned_model", "release.installed") == MODEL
    assert "left out   top/train.py, top/model_beit/modeling.py" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            {"weights/model.safetensors": "w", "notes.txt": "n"},
            "holds no model: no model_<type>/config.json.*notes.txt, weights/model.safetensors",
        ),
        ({"model_lora/config.json": "{}"}, "holds no model"),
        ({"model_beit/config.json": "not json"}, "config.json is not valid JSON"),
        ({"a/model_beit/config.json": "{}", "b/model_beit/config.json": "{}"}, "more than one model: a, b"),
        ({"../model_beit/config.json": "{}"}, "a path that leaves the folder"),
        (
            {"model_beit/config.json": CONFIG},
            r"no complete model(.|\n)*model_beit: no weights \(model.safetensors or pytorch_model.bin\)",
        ),
        (without("model_beit/model.safetensors"), "model_beit: no weights"),
        (without("model_lora/adapter_config.json"), "model_lora: no adapter_config.json"),
        (without("model_lora/adapter_model.safetensors"), "model_lora: no weights"),
        (
            MODEL | {"model_beit/model.safetensors": weights("weights")[:-2]},
            "model_beit/model.safetensors: is cut short or damaged",
        ),
        (
            MODEL | {"model_beit/model.safetensors": ""},
            "model_beit/model.safetensors: is cut short or damaged",
        ),
        (MODEL | {"model_beit/model.safetensors": EMPTY}, "model_beit/model.safetensors: holds no weights"),
        (
            without("model_beit/model.safetensors") | {"model_beit/pytorch_model.bin": "PK\3\4 half"},
            "pytorch_model.bin: is cut short",
        ),
        (
            without("model_beit/model.safetensors")
            | {"model_beit/model.safetensors.index.json": json.dumps(INDEX)},
            "model_beit/part-2.safetensors: missing; model.safetensors.index.json names it",
        ),
        (
            {
                "model_beit/config.json": CONFIG,
                "model_beit/model.safetensors": weights("weights"),
                "run.json": json.dumps(WITH_ADAPTER),
            },
            "model_lora: missing, but run.json says that the model was trained with an adapter",
        ),
        (RUN | {"run.json": json.dumps({"recipe": {"task": "vqa"}})}, "head.safetensors: missing"),
        (RUN | {"run.json": '{"class_names": 7}'}, "class_names: expected a list, found 7"),
    ],
)
def test_a_zip_that_is_no_release_changes_nothing(members, message, place):
    write_zip(place / "good.zip", RUN)
    main(["--weights", "good.zip"])
    before = tree(place / "finetuned_model")
    write_zip(place / "bad.zip", members)
    with pytest.raises(UserError, match=message):
        main(["--weights", "bad.zip"])
    assert tree(place / "finetuned_model") == before
    assert not (place / "finetuned_model/.download").exists()
    assert (place / "bad.zip").exists()


def test_a_wrong_digest_changes_nothing(place):
    write_zip(place / "r.zip", RUN)
    with pytest.raises(UserError, match=f"its sha256 is {digest(place / 'r.zip')}, expected {'0' * 64}"):
        main(["--weights", "r.zip", "--sha256", "0" * 64])
    assert not (place / "finetuned_model/model_beit").exists()


# What was there before


def test_a_finished_run_is_kept_under_earlier_and_the_rest_is_not_touched(place, capsys):
    folder = place / "finetuned_model"
    mine = {
        "model_vit/config.json": "{}",
        "run.json": "{}",
        "metrics.jsonl": "mine",
        "scores.json": "{}",
        "tensorboard/e": "x",
        "state/s": "x",
    }
    others = {
        "README.md": "ours",
        "release.yaml": "source: none.zip\n",
        "kept.zip": "zip",
        "digits/model_beit/config.json": "{}",
    }
    for name, content in (mine | others).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    write_zip(place / "r.zip", RUN | {"README.md": "theirs"})
    main(["--weights", "r.zip"])
    assert texts(folder, "release.installed", "earlier/") == RUN | others
    (earlier,) = (folder / "earlier").iterdir()
    assert texts(earlier) == mine
    assert (
        f" in finetuned_model/earlier/{earlier.name}: metrics.jsonl, model_vit, run.json"
        in capsys.readouterr().out
    )


def test_an_unfinished_run_is_refused_before_anything_is_fetched(place, monkeypatch):
    (place / "finetuned_model/state").mkdir(parents=True)
    write_zip(place / "r.zip", RUN)
    monkeypatch.setattr(releases, "fetch", lambda *args, **options: pytest.fail("nothing may be fetched"))
    with pytest.raises(
        UserError,
        match=r"unfinished run.*`python train.py --output finetuned_model --resume`.*--model OTHER_FOLDER",
    ):
        main(["--weights", "r.zip"])
    (place / "other/state").mkdir(parents=True)
    with pytest.raises(UserError, match=r"`python train.py --output other --resume`"):
        main(["--weights", "r.zip", "--model", "other"])


def test_the_same_release_twice_changes_nothing(place, capsys):
    write_zip(place / "r.zip", RUN)
    main(["--weights", "r.zip"])
    before = tree(place)
    capsys.readouterr()
    assert main(["--weights", "r.zip"]) == 0
    assert tree(place) == before
    assert "and intact; nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["changed", "missing", "added"])
def test_a_damaged_release_is_installed_again_and_the_damaged_one_kept(damage, place):
    write_zip(place / "r.zip", RUN)
    main(["--weights", "r.zip"])
    path = place / "finetuned_model/model_beit" / ("new.bin" if damage == "added" else "model.safetensors")
    path.unlink() if damage == "missing" else path.write_text("mine")
    main(["--weights", "r.zip"])
    assert texts(place / "finetuned_model", "release.installed", "earlier/") == RUN
    if damage != "missing":
        (earlier,) = (place / "finetuned_model/earlier").iterdir()
        assert (earlier / "model_beit" / path.name).read_text() == "mine"


def test_the_next_release_takes_the_place_of_the_former_one_readme_included(place):
    first = RUN | {"README.md": "first", "head.safetensors": weights("the 1st")}
    main(["--weights", str(write_zip(place / "1.zip", first))])
    main(["--weights", str(write_zip(place / "2.zip", MODEL | {"README.md": "second"}))])
    assert texts(place / "finetuned_model", "release.installed", "earlier/") == MODEL | {
        "README.md": "second"
    }
    (earlier,) = (place / "finetuned_model/earlier").iterdir()
    assert texts(earlier, "release.installed") == first
    assert json.loads((earlier / "release.installed.json").read_text())["sha256"] == digest(place / "1.zip")


# data/


@pytest.mark.parametrize("prefix", ["", "top/"])
def test_a_data_folder_is_installed_where_there_is_no_competition(prefix, place):
    (place / "data/digits/train/0").mkdir(parents=True)
    (place / "data/digits/train/0/a.png").write_text("png")
    (place / "data/README.md").write_text("ours")
    (place / "data/.gitignore").write_text("*")
    write_zip(place / "r.zip", RUN | DATA | {"data/evil.py": "x", "data/README.md": "theirs"}, prefix)
    main(["--weights", "r.zip"])
    assert texts(place / "data", "digits", "README", ".gitignore") == {
        "train.csv": "id,label\n1,cat\n",
        "train/1.jpg": "jpg",
    }
    assert (place / "data/digits/train/0/a.png").exists() and (place / "data/README.md").read_text() == "ours"


def test_a_data_folder_beside_the_model_folder_is_found(place):
    write_zip(place / "r.zip", {f"finetuned_model/{name}": content for name, content in MODEL.items()} | DATA)
    main(["--weights", "r.zip"])
    assert texts(place / "data") == {"train.csv": "id,label\n1,cat\n", "train/1.jpg": "jpg"}
    assert texts(place / "finetuned_model", "release.installed") == MODEL


@pytest.mark.parametrize(
    "mine", ["train/cat/1.jpg", "labels.csv", "photos/1.jpg", "TRAIN/train/1.jpg", "train.csv"]
)
def test_a_data_folder_is_not_installed_over_a_competition(mine, place, capsys):
    (place / "data" / mine).parent.mkdir(parents=True)
    (place / "data" / mine).write_text("mine")
    write_zip(place / "r.zip", RUN | DATA)
    main(["--weights", "r.zip"])
    assert texts(place / "data") == {mine: "mine"}
    assert f": data holds {mine.split('/')[0]}" in capsys.readouterr().out
    assert load_run(place / "finetuned_model").class_names == ("cat", "dog")


def test_a_name_that_would_be_replaced_counts_even_in_a_folder_of_its_own(place):
    (place / "digits/train").mkdir(parents=True)
    (place / "digits/train/a.png").write_text("png")
    (place / "empty").mkdir()
    assert competition_entries(place, ["train.csv"]) == []
    assert competition_entries(place, ["digits"]) == ["digits"]


# From the network


def test_a_release_from_drive_is_installed_and_not_fetched_twice(place, monkeypatch, capsys):
    import gdown  # noqa: F401

    monkeypatch.setattr(
        sys.modules["gdown.download"], "DEFAULT_COOKIES_FILE", str(place / "cookies.txt"), raising=False
    )
    body = write_zip(place / "r.zip", RUN).read_bytes()
    with serving() as server:
        play_drive(server, monkeypatch)
        server.replies["/uc"] = [
            Reply(
                body,
                headers={
                    "Content-Disposition": 'attachment; filename="r.zip"',
                    "Content-Type": "application/zip",
                },
            )
        ]
        link = "https://drive.google.com/file/d/1AbCdEfGhIjKlMnOpQrStUvWxYz012345/view?usp=sharing"
        main(["--weights", link])
        asked = len(server.seen)
        main(["--weights", link])
        assert len(server.seen) == asked > 0
    assert texts(place / "finetuned_model", "release.installed") == RUN
    assert "nothing to do" in capsys.readouterr().out


def test_a_mirror_is_asked_when_the_source_fails_and_no_part_of_the_other_stays(place, capsys):
    members = RUN | {
        "model_beit/model.safetensors": weights(
            "".join(random.Random(0).choices("0123456789abcdef", k=300_000))
        )
    }
    body = write_zip(place / "r.zip", members).read_bytes()
    folder, naps = place / "finetuned_model", []
    folder.mkdir()
    with serving() as server:
        server.replies["/cut.zip"] = [Reply(body, cut_at=200_000), Reply(b"", 404)]
        server.replies["/r.zip"] = [Reply(body)]
        text = (
            f"source: {server.url}/cut.zip\nsha256: {digest(place / 'r.zip')}\nmirrors: "
            f"['{server.url}/r.zip']\n"
        )
        (folder / "release.yaml").write_text(text)
        releases.install(read_release(folder / "release.yaml"), folder, place / "data", sleep=naps.append)
    out = capsys.readouterr().out
    assert "/cut.zip" in out and "sha256 " + digest(place / "r.zip") + " (as announced)" in out
    assert naps == [1.0]
    assert texts(folder, "release.") == members
    assert not (folder / ".download").exists()


def test_when_nothing_gives_the_file_every_failure_and_the_way_by_hand_are_named(place):
    (place / "finetuned_model").mkdir()
    with serving() as server:
        text = f"source: {server.url}/gone.zip?token=secret\nmirrors: ['{server.url}/also_gone.zip']\n"
        (place / "finetuned_model/release.yaml").write_text(text)
        with pytest.raises(UserError) as caught:
            main([])
    text = str(caught.value)
    assert (
        "/gone.zip?... answers 404" in text and "/also_gone.zip answers 404" in text and "secret" not in text
    )
    assert "make weights WEIGHTS=/path/to/file.zip" in text and "mirrors: [https://...]" in text


def test_a_bad_download_is_fetched_anew_next_time(place):
    (place / "finetuned_model").mkdir()
    bad = write_zip(place / "bad.zip", {"notes.txt": "x"}).read_bytes()
    good = write_zip(place / "r.zip", RUN).read_bytes()
    with serving() as server:
        server.replies["/r.zip"] = [Reply(bad), Reply(good)]
        with pytest.raises(UserError, match=r"holds no model"):
            main(["--weights", f"{server.url}/r.zip"])
        main(["--weights", f"{server.url}/r.zip"])
    assert texts(place / "finetuned_model", "release.installed") == RUN


def test_the_file_of_release_yaml_brought_by_hand_is_recognised(place, capsys):
    (place / "finetuned_model").mkdir()
    write_zip(place / "r.zip", RUN)
    write_zip(place / "other.zip", MODEL)
    (place / "finetuned_model/release.yaml").write_text(
        f"source: https://host.invalid/r.zip\nsha256: {digest(place / 'r.zip')}\nname: v1\n"
    )
    main(["--weights", "r.zip"])
    out = capsys.readouterr().out
    assert "release    v1" in out and "(as announced)" in out
    assert main([]) == 0  # nothing is asked of the network
    main(["--weights", "other.zip"])
    assert "other.zip is not the archive of finetuned_model/release.yaml" in capsys.readouterr().out


def test_an_interrupted_install_leaves_the_former_model(place, monkeypatch):
    main(["--weights", str(write_zip(place / "1.zip", RUN))])
    before = tree(place / "finetuned_model")
    monkeypatch.setattr(releases, "sort_contents", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        main(["--weights", str(write_zip(place / "2.zip", MODEL))])
    assert tree(place / "finetuned_model") == before
    monkeypatch.undo()
    monkeypatch.chdir(place)
    main(["--weights", "2.zip"])
    assert texts(place / "finetuned_model", "release.installed", "earlier/") == MODEL


KILLED = """
import os, sys
from pathlib import Path
from pipeline import files
from pipeline.fetch import releases
left = int(sys.argv[1])
def counted(original):
    def call(*arguments):
        global left
        left -= 1
        if left < 0:
            os._exit(9)
        return original(*arguments)
    return call
Path.rename = counted(Path.rename)
files.shutil.move = counted(files.shutil.move)
os.replace = counted(os.replace)
releases.main(["--weights", "2.zip"])
"""


def test_killed_between_any_two_renames_nothing_half_installed_is_taken_for_a_model(place):
    """The old model, or a refusal that says what to do; the same command then installs the whole of the new
    one.
    """
    second = {
        "model_vit/config.json": CONFIG,
        "model_vit/model.safetensors": weights("second."),
        "metrics.jsonl": "{}\n",
    }
    second |= {name: content for name, content in MODEL.items() if name.startswith("model_lora")}
    main(["--weights", str(write_zip(place / "1.zip", MODEL))])
    write_zip(place / "2.zip", second)
    before = tree(place / "finetuned_model")
    shutil.copytree(place / "finetuned_model", place / "kept")
    refused = 0
    for step in range(30):
        shutil.rmtree(place / "finetuned_model")
        shutil.copytree(place / "kept", place / "finetuned_model")
        command = [sys.executable, "-c", KILLED, str(step)]
        code = subprocess.run(
            command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL
        ).returncode
        if code == 0:
            break
        assert code == 9
        try:
            load_run(place / "finetuned_model")
            left = {
                name: content
                for name, content in tree(place / "finetuned_model").items()
                if not name.startswith(".")
            }
            assert left == before or load_run(place / "finetuned_model").backbone_dir.name == "model_vit"
        except UserError as error:
            refused += 1
            assert "`make weights` was interrupted" in str(error)
        main(["--weights", "2.zip"])
        assert texts(place / "finetuned_model", "release.installed", "earlier/") == second
        load_run(place / "finetuned_model")
    assert code == 0 and refused >= 5
