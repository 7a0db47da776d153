"""`make data DATASET=name`, with archives of each set's own form on a server on loopback."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import make_competition
from PIL import Image
from servers import Reply, Server, serving

from pipeline.competition.layout import read_layout
from pipeline.errors import EXIT_INTERRUPTED, EXIT_USER, UserError, run_command
from pipeline.fetch import download, install, public_sets, set_layout
from pipeline.fetch.public_sets import SETS, Archive
from pipeline.submission import score

CIFAR_10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def tgz(members: dict[str, bytes]) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return data.getvalue()


def jpeg(seed: int) -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 7, 3), np.uint8)).save(data, "JPEG")
    return data.getvalue()


def records(count: int, num_classes: int, label_bytes: int, seed: int) -> bytes:
    """CIFAR's binary records; every class occurs."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 20, (count, label_bytes), np.uint8)
    labels[:, -1] = rng.permutation(np.arange(count) % num_classes)
    return np.hstack([labels, rng.integers(0, 256, (count, 3072), np.uint8)]).tobytes()


def cifar10() -> dict[str, bytes]:
    names = "\n".join(CIFAR_10) + "\n\n"
    batches = {f"data_batch_{number}.bin": records(20, 10, 1, number) for number in range(1, 6)} | {
        "test_batch.bin": records(20, 10, 1, 6)
    }
    return {
        f"cifar-10-batches-bin/{name}": data
        for name, data in ({"batches.meta.txt": names.encode()} | batches).items()
    }


def cifar100() -> dict[str, bytes]:
    names = "\n".join(f"class_{number}" for number in range(100)) + "\n"
    members = {
        "fine_label_names.txt": names.encode(),
        "train.bin": records(200, 100, 2, 1),
        "test.bin": records(100, 100, 2, 2),
    }
    return {f"cifar-100-binary/{name}": data for name, data in members.items()}


def fastai(folder: str, class_names: dict[str, str]) -> dict[str, bytes]:
    members = {f"{folder}/noisy.csv": b"path\n"}
    for seed, wordnet_id in enumerate(class_names):
        members |= {
            f"{folder}/train/{wordnet_id}/{wordnet_id}_{number}.JPEG": jpeg(10 * seed + number)
            for number in range(2)
        }
        members[f"{folder}/val/{wordnet_id}/ILSVRC2012_val_{seed:08d}.JPEG"] = jpeg(1000 + seed)
    return members


def pets() -> tuple[dict[str, bytes], dict[str, bytes]]:
    images = {"images/Abyssinian_100.mat": b"mat"}
    lists = {"trainval": "", "test": ""}
    for seed, breed in enumerate(("Abyssinian", "saint_bernard")):
        for number, split in enumerate(("trainval", "trainval", "test"), start=1):
            images[f"images/{breed}_{number}.jpg"] = jpeg(10 * seed + number)
            lists[split] += f"{breed}_{number} {seed + 1} 1 1\n"
    return images, {f"annotations/{split}.txt": text.encode() for split, text in lists.items()}


def birds() -> dict[str, bytes]:
    names = ("001.Black_footed_Albatross", "200.Common_Yellowthroat")
    paths = [f"{name}/{name.partition('.')[2]}_{number:04d}.jpg" for name in names for number in range(3)]
    listed = "".join(f"{number} {path}\n" for number, path in enumerate(paths, start=1))
    split = "".join(f"{number} {int(number % 3 > 0)}\n" for number in range(1, len(paths) + 1))
    members = {"attributes.txt": b"1 bill\n", "CUB_200_2011/images.txt": listed.encode()}
    members["CUB_200_2011/train_test_split.txt"] = split.encode()
    return members | {f"CUB_200_2011/images/{path}": jpeg(seed) for seed, path in enumerate(paths)}


FORMS = {
    "cifar10": (cifar10(),),
    "cifar100": (cifar100(),),
    "imagewoof": (fastai("imagewoof2", public_sets.WOOF),),
    "imagenette-160": (fastai("imagenette2-160", public_sets.NETTE),),
    "pets": pets(),
    "cub200": (birds(),),
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(set_layout, "fetch", partial(download.fetch, sleep=lambda wait_s: None))
    with serving() as running:
        yield running


@pytest.fixture
def publish(server: Server, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[bytes]]:
    """Serves archives under the names of a set's own; the set's digests become theirs."""

    def serve(name: str, *members: dict[str, bytes]) -> list[bytes]:
        bodies, archives = [tgz(part) for part in members or FORMS[name]], []
        for archive, body in zip(SETS[name].archives, bodies, strict=True):
            server.replies[f"/{archive.name}"] = [Reply(body)]
            archives.append(
                Archive(f"{server.url}/{archive.name}", len(body), hashlib.sha256(body).hexdigest())
            )
        monkeypatch.setitem(SETS, name, replace(SETS[name], archives=tuple(archives)))
        return bodies

    return serve


def fetch(name: str, *flags: str) -> int:
    """The command's exit code; the set goes into data/ unless `flags` name another folder."""
    return run_command(lambda: install.main(["--dataset", name, "--data", "data", *flags]))


def rows(path: str | Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def everything(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize("name", FORMS)
def test_a_set_becomes_a_competition_whose_solution_scores_one(publish, capsys, name):
    publish(name)
    assert fetch(name) == 0
    data_dir = Path("data")
    competition = read_layout(data_dir)
    record = json.loads((data_dir / "dataset.json").read_text())
    # ours, and no data
    assert not any("splits.csv" in note or "dataset.json" in note for note in competition.notes)
    assert record["dataset"] == name and record["images"] == {
        "train": len(competition.train),
        "test": len(competition.test),
    }
    assert sorted(path.name for path in data_dir.iterdir()) == sorted(
        ["dataset.json", "sample_submission.csv", "solution.csv", "splits.csv", "test", "train"]
    )
    solution = {row["id"]: row["label"] for row in rows("data/solution.csv")}
    assert list(competition.form.ids) == list(solution) and set(solution.values()) <= set(
        competition.class_names
    )
    assert {row.id for row in (*competition.train, *competition.test)} == {
        row["id"] for row in rows("data/splits.csv")
    }

    Path("predictions.csv").write_bytes(Path("data/solution.csv").read_bytes())
    capsys.readouterr()
    assert score.main(["--solution", "data/solution.csv"]) == 0
    assert "accuracy" in (printed := capsys.readouterr().out)
    assert all(
        line.endswith("1.0000") for line in printed.splitlines() if line.startswith(("accuracy", "f1"))
    )


def test_cifar_pixels_and_labels_are_the_records_own(publish):
    publish("cifar10")
    assert fetch("cifar10") == 0
    labels = {row["id"]: row["label"] for row in rows("data/solution.csv")}
    labels |= {path.stem: path.parent.name for path in Path("data/train").rglob("*.png")}
    members = {Path(name).name: data for name, data in FORMS["cifar10"][0].items()}
    assert len(labels) == 120
    for row in rows("data/splits.csv"):
        batch, _, number = row["original"].partition("#")
        record = members[batch][3073 * int(number) : 3073 * (int(number) + 1)]
        assert labels[row["id"]] == CIFAR_10[record[0]]
        path = (
            Path("data/test" if row["split"] == "test" else f"data/train/{labels[row['id']]}")
            / f"{row['id']}.png"
        )
        pixels = np.asarray(Image.open(path))
        # Row y, column x: its red value is byte 32 y + x of the record's pixels, green and blue follow 1,024
        # and 2,048 later.
        assert list(pixels[3, 5]) == [record[1 + plane * 1024 + 32 * 3 + 5] for plane in range(3)]
        assert pixels.transpose(2, 0, 1).tobytes() == record[1:]


def test_cifar100_has_its_fine_classes(publish):
    publish("cifar100")
    fetch("cifar100")
    members = FORMS["cifar100"][0]
    first = members["cifar-100-binary/train.bin"][:2]
    assert Path(f"data/train/class_{first[1]}/train_00001.png").is_file() and first[0] != first[1]


def test_photographs_stay_as_they_are_and_their_ids_say_nothing(publish):
    publish("imagewoof")
    fetch("imagewoof")
    assert {path.name for path in Path("data/train").iterdir()} == set(public_sets.WOOF.values())
    splits = rows("data/splits.csv")
    assert {row["split"] for row in splits} == {"train", "val"}
    of_test = [row for row in splits if row["split"] == "val"]
    for row in of_test:
        assert (
            Path(f"data/test/{row['id']}.jpeg").read_bytes()
            == FORMS["imagewoof"][0][f"imagewoof2/{row['original']}"]
        )
    assert [row["id"] for row in of_test] == [f"test_{number:05d}" for number in range(1, 11)]
    assert [row["original"] for row in of_test] != sorted(row["original"] for row in of_test)


def test_class_names_of_lists(publish):
    publish("cub200")
    publish("pets")
    assert fetch("cub200", "--data", "birds") == fetch("pets", "--data", "pets") == 0
    assert read_layout("birds").class_names == ("Black_footed_Albatross", "Common_Yellowthroat")
    assert read_layout("pets").class_names == ("Abyssinian", "saint_bernard")
    assert len(read_layout("birds").train) == 4 and len(read_layout("birds").test) == 2


def test_the_same_archives_give_the_same_folder_and_a_second_call_changes_nothing(server, publish, capsys):
    publish("imagewoof")
    fetch("imagewoof")
    fetch("imagewoof", "--data", "again")
    before, requests = everything(Path("data")), len(server.seen)
    assert before == everything(Path("again"))
    capsys.readouterr()
    assert fetch("imagewoof") == 0
    printed = capsys.readouterr().out
    assert "imagewoof is in data already" in printed
    assert "python train.py --recipe vit-tiny-imagewoof --data data\n" in printed
    assert everything(Path("data")) == before and len(server.seen) == requests


def test_a_cut_download_is_continued_by_the_next_call(server, publish):
    (body,) = publish("cifar10")
    server.replies["/cifar-10-binary.tar.gz"] = [Reply(body, cut_at=100_000), Reply(b"", 503)]
    assert fetch("cifar10") == EXIT_USER
    assert [path.name for path in Path("data").iterdir()] == [".cifar10.download"]
    server.replies["/cifar-10-binary.tar.gz"] = [Reply(body)]
    assert fetch("cifar10") == 0
    assert "range" in server.seen[-1][1]
    assert len(read_layout("data").train) == 100 and not Path("data/.cifar10.download").exists()


def test_an_archive_announced_as_gzip_transfer_stays_an_archive(server, publish):
    (body,) = publish("cifar10")
    server.replies["/cifar-10-binary.tar.gz"] = [
        Reply(body, headers={"Content-Encoding": "x-gzip"}, cut_at=100_000)
    ]
    server.replies["/cifar-10-binary.tar.gz"] += [Reply(body, headers={"Content-Encoding": "x-gzip"})]
    assert fetch("cifar10") == 0
    assert "range" in server.seen[-1][1]


@pytest.mark.parametrize("change", ["content", "length"])
def test_another_file_than_the_published_one_is_discarded(server, publish, capsys, change):
    (body,) = publish("cifar10")
    wrong = body[:-9] + bytes(9) if change == "content" else body + b"more"
    server.replies["/cifar-10-binary.tar.gz"] = [Reply(wrong)]
    assert fetch("cifar10") == EXIT_USER
    said = capsys.readouterr().err
    assert ("its sha256 is" if change == "content" else f"expected {len(body)}") in said
    assert "copy at data/.cifar10.download/cifar-10-binary.tar.gz" in said
    assert not Path("data").exists()


def test_a_copy_from_elsewhere_is_checked_and_used(server, publish, capsys):
    (body,) = publish("cifar10")
    copy = Path("data/.cifar10.download/cifar-10-binary.tar.gz")
    copy.parent.mkdir(parents=True)
    copy.write_bytes(body[:-1])
    assert fetch("cifar10") == EXIT_USER
    assert f"{copy} is not the expected file" in capsys.readouterr().err and copy.exists()
    copy.write_bytes(body)
    assert fetch("cifar10") == 0
    assert server.seen == []


@pytest.mark.parametrize("member", ["../outside.txt", "/tmp/outside.txt", "imagewoof2\\..\\outside.txt"])
def test_a_hostile_name_in_the_archive_puts_nothing_anywhere(publish, capsys, member):
    publish("imagewoof", FORMS["imagewoof"][0] | {member: b"x"})
    assert fetch("imagewoof") == EXIT_USER
    assert "was not unpacked" in capsys.readouterr().err
    assert [path.name for path in Path("data").iterdir()] == [".imagewoof.download"]
    assert not list(Path().rglob("*outside*"))


@pytest.mark.parametrize(
    ("name", "member", "content"),
    [
        ("cifar10", "cifar-10-batches-bin/test_batch.bin", b"short"),
        ("cifar10", "cifar-10-batches-bin/batches.meta.txt", b"one two"),
        ("imagewoof", "imagewoof2/val/n02086240/ILSVRC2012_val_00000000.JPEG", None),
    ],
)
def test_an_archive_of_another_form_is_refused_in_words(publish, capsys, name, member, content):
    members = {key: data for key, data in FORMS[name][0].items() if key != member}
    publish(name, members if content is None else members | {member: content})
    assert fetch(name) == EXIT_USER
    assert f"do not have the layout of {name}: " in capsys.readouterr().err
    assert not (Path("data") / "train").exists()


def test_what_the_folder_holds_is_never_touched(server, publish, capsys):
    publish("pets")
    publish("cub200")
    fetch("pets")
    before = everything(Path("data"))
    assert fetch("cub200", "--yes") == EXIT_USER
    assert (
        "data already holds the set 'pets'; name another folder: --data data_cub200"
        in capsys.readouterr().err
    )
    assert everything(Path("data")) == before

    Path("other").mkdir()
    Path("other/notes.txt").write_text("mine")
    assert fetch("cub200", "--data", "other") == EXIT_USER
    assert "other holds other files (notes.txt)" in capsys.readouterr().err
    assert fetch("cub200", "--data", "other", "--yes") == 0
    assert Path("other/notes.txt").read_text() == "mine"


def test_a_set_has_a_folder_of_its_own_beside_a_competition(publish, monkeypatch, capsys):
    publish("pets")
    publish("cub200")
    assert install.main(["--dataset", "pets"]) == 0
    assert (
        "python inference.py --data data/pets && make score SOLUTION=data/pets/solution.csv"
        in capsys.readouterr().out
    )
    make_competition(Path("unpacked/data"))
    monkeypatch.setattr(install.cli, "not_ready", list)
    monkeypatch.setattr(install, "_download", lambda slug, folder: None)
    monkeypatch.setattr(install, "_one_archive", lambda folder: Path("unpacked/data"))
    assert install.main(["--competition", "colours"]) == 0
    assert install.main(["--dataset", "cub200"]) == 0
    competition = read_layout("data")
    assert competition.class_names == ("blue", "green", "red") and len(competition.test) == 5
    assert len(read_layout("data/pets").train) == len(read_layout("data/cub200").train) == 4


def test_an_interrupted_move_is_finished_by_the_next_call(publish, monkeypatch, capsys):
    publish("pets")
    fetch("pets", "--data", "whole")
    move, moved = Path.rename, []

    def stop_at_the_third(path: Path, target: Path) -> Path:
        if path.parent.name == "laid_out":
            moved.append(path.name)
            if len(moved) == 3:
                raise KeyboardInterrupt
        return move(path, target)

    monkeypatch.setattr(Path, "rename", stop_at_the_third)
    assert fetch("pets") == EXIT_INTERRUPTED
    assert "the same command continues" in capsys.readouterr().err
    monkeypatch.setattr(Path, "rename", move)
    assert fetch("pets") == 0
    assert everything(Path("data")) == everything(Path("whole"))


def test_the_disk_is_looked_at_before_the_first_byte(server, publish, monkeypatch, capsys):
    publish("pets")
    monkeypatch.setattr(
        "pipeline.fetch.archives.shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1000})
    )
    assert fetch("pets") == EXIT_USER
    assert "data/.pets.download has 1.0 kB free" in capsys.readouterr().err
    assert server.seen == []


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(
        UserError, match=r"'cifar-10' is not known \(nearest: 'cifar10'\); .*: cifar10, cifar100, imagewoof"
    ):
        install.main(["--dataset", "cifar-10"])
    with pytest.raises(SystemExit):
        install.main(["--dataset", "pets", "--competition", "dogs"])


def test_every_set_has_a_whole_record_and_its_recipes_exist():
    from pipeline.config import recipe_names

    for name, public_set in SETS.items():
        assert set(public_set.recipes) <= set(recipe_names()), name
        for archive in public_set.archives:
            assert archive.url.startswith("https://") and archive.name.endswith("gz"), name
            assert len(archive.sha256) == 64 and archive.size > 10**6, name
    digests = [archive.sha256 for public_set in SETS.values() for archive in public_set.archives]
    assert len(set(digests)) == len(digests)
