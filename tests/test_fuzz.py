"""Damage at random: whatever a file holds, a command does its work or says one clear thing; no other error
ever comes out.

A short share runs with the other tests. `make fuzz FUZZ=20000` runs that many cases of each kind and prints
what came of them.
"""

from __future__ import annotations

import io
import os
import random
import shutil
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import make_competition

from pipeline.competition.layout import read_layout
from pipeline.config import load_recipe
from pipeline.data.images import BadImage, decode
from pipeline.errors import UserError
from pipeline.fetch.archives import unpack_zip
from pipeline.fetch.release_file import read_release
from pipeline.forms.check import check_predictions
from pipeline.kaggle.cli import _read_submissions
from pipeline.kaggle.ledger import read_ledger
from pipeline.kaggle.reply import explain, read_reply
from pipeline.models.backbones import rebuild_backbone
from pipeline.models.lora import load_adapter
from pipeline.report.run_files import read_run_files
from pipeline.run import load_run
from pipeline.training.checkpoint import StateStore

CASES = int(os.environ.get("FUZZ", "0"))
TOKENS = [
    b"",
    b"\0",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b'"',
    b",",
    b";",
    b"\t",
    b"\r",
    b"\n",
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b"null",
    b"NaN",
    b"1e999",
]
TOKENS += [
    b"-1",
    b"../",
    b"=1+1",
    b"!!python/object/apply:os.system",
    b"&a [*a]",
    "é".encode(),
    b"\\u0000",
    b"true",
    b"9" * 400,
]


def damaged(data: bytes, draw: random.Random) -> bytes:
    """`data` with one to four faults: cut, flipped, removed, repeated, or with something foreign put in."""
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(data) + 1)
        upto = min(len(data), at + draw.choice([1, 2, 8, 64, 1000]))
        kind = draw.randrange(6)
        if kind == 0:
            data = data[:at]
        elif kind == 1 and at < len(data):
            data = data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :]
        elif kind == 2:
            data = data[:at] + data[upto:]
        elif kind == 3:
            data = data[:upto] + data[at:]
        elif kind == 4:
            data = data[:at] + draw.choice(TOKENS) + data[at:]
        else:
            data = data[:at] + draw.randbytes(upto - at) + data[upto:]
    return data


def survive(
    kind: str,
    count: int,
    original: bytes,
    place: Path,
    work: Callable[[], object],
    others: tuple[type[Exception], ...] = (),
) -> None:
    """Run `work` with `place` damaged in `count` ways; it must return or raise `UserError` (or one of
    `others`) with a message.
    """
    survive_all(kind, count, lambda draw: damaged(original, draw), place, work, others)


def survive_all(
    kind: str,
    count: int,
    make: Callable[[random.Random], bytes],
    place: Path,
    work: Callable[[], object],
    others: tuple[type[Exception], ...] = (),
    always_refused: bool = False,
    at_most: int = 10**9,
) -> None:
    """Run `work` with `count` contents of `place` that `make` gives; it must return or raise `UserError` (or
    one of `others`) with a message.

    `at_most`: cases where FUZZ asks for more, of what takes a second each.
    """
    came, draw = Counter(), random.Random(kind)
    for number in range(min(CASES, at_most) or count):
        data = make(draw)
        place.write_bytes(data)
        try:
            work()
            came["understood"] += 1
        except (UserError, *others) as error:
            assert str(error).strip(), f"{kind}, case {number}: an empty message"
            came["refused"] += 1
        except Exception as error:
            raise AssertionError(
                f"{kind}, case {number}: {type(error).__name__}: {error}\n{data[:2000]!r}"
            ) from error
    assert came["refused"], (
        f"{kind}: not one of {count} damaged files was refused: the damage reaches nothing"
    )
    assert not (always_refused and came["understood"]), f"{kind}: {came['understood']} were understood"
    print(
        f"{kind}: {sum(came.values()):,} cases, {came['understood']:,} understood, {came['refused']:,} "
        "refused"
    )


def test_tables_of_a_competition(tmp_path: Path) -> None:
    data = make_competition(tmp_path / "data")
    flat = tmp_path / "flat"
    (flat / "images").mkdir(parents=True)
    rows = []
    for path in sorted((data / "train").glob("*/*.png")):
        shutil.copy(path, flat / "images")
        rows.append(f"{path.stem},{path.parent.name}\n")
    shutil.copytree(data / "test", flat / "test")
    sample = (data / "sample_submission.csv").read_bytes()
    table = ("id,label\n" + "".join(rows)).encode()
    (flat / "train.csv").write_bytes(table)
    survive("sample_submission.csv", 60, sample, flat / "sample_submission.csv", lambda: read_layout(flat))
    (flat / "sample_submission.csv").write_bytes(sample)
    survive("train.csv", 60, table, flat / "train.csv", lambda: read_layout(flat))


def test_predictions_and_the_ledger(tmp_path: Path) -> None:
    data = make_competition(tmp_path / "data")
    competition = read_layout(data)
    path, ledger = tmp_path / "predictions.csv", tmp_path / "submissions.csv"

    def check() -> None:
        if problems := check_predictions(path, competition.form, competition.target):
            raise UserError("\n".join(problems))

    survive("predictions.csv", 200, (data / "sample_submission.csv").read_bytes(), path, check)
    line = b"2026-01-01T00:00:00Z,birds," + b"0" * 64 + b',"a message, with a comma",0.5,0.6,,complete\n'
    header = b"time,competition,file_sha256,message,validation_score,public_score,private_score,status\n"
    survive("submissions.csv", 200, header + line * 3, ledger, lambda: read_ledger(ledger))


def test_recipes(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    original = (Path(__file__).parents[1] / "pipeline" / "recipes" / "digits.yaml").read_bytes()
    survive("recipe", 150, original, path, lambda: load_recipe(str(path)))


def test_release_yaml(tmp_path: Path) -> None:
    path = tmp_path / "release.yaml"
    original = (Path(__file__).parents[1] / "finetuned_model" / "release.yaml").read_bytes()
    survive("release.yaml", 150, original, path, lambda: read_release(path))


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_archives(tmp_path: Path, kind: str) -> None:
    whole, place, target = io.BytesIO(), tmp_path / f"a.{kind}", tmp_path / "inside" / "out"
    members = {
        "model_beit/config.json": b"{}" * 50,
        "data/train/a/1.png": os.urandom(300),
        "run.json": b'{"format": 1}',
    }
    if kind == "zip":
        with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(fileobj=whole, mode="w:gz") as archive:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    target.parent.mkdir()

    def work() -> None:
        try:
            unpack_zip(place, target)
        finally:
            shutil.rmtree(target, ignore_errors=True)
            assert {path.name for path in tmp_path.iterdir()} <= {place.name, "inside"}, (
                "something was written outside"
            )
            assert not list(target.parent.iterdir()), "something was left behind"

    survive(kind, 150, whole.getvalue(), place, work)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "tiff", "bmp"])
def test_images(tmp_path: Path, suffix: str) -> None:
    from PIL import Image

    path = tmp_path / f"a.{suffix}"
    Image.effect_noise((48, 32), 60).convert("RGB").save(path)
    survive(suffix, 60, path.read_bytes(), path, lambda: decode(path), (BadImage,))


@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl", "timing.jsonl", "val_predictions.csv"])
def test_files_of_a_run(finished_run: Path, tmp_path: Path, name: str) -> None:
    run = shutil.copytree(
        finished_run / "run",
        tmp_path / "run",
        ignore=shutil.ignore_patterns("tensorboard", "state", "model.safetensors"),
    )

    def work() -> None:
        load_run(run)
        files = read_run_files(run)
        assert isinstance(files.predictions, list)

    survive(name, 60, (run / name).read_bytes(), run / name, work)


@pytest.mark.parametrize(
    "name", ["model_beit/config.json", "model_beit/preprocessor_config.json", "model_beit/model.safetensors"]
)
def test_weights_of_a_backbone(finished_run: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(finished_run / "run" / "model_beit", tmp_path / "model_beit")
    place = folder / Path(name).name
    survive(name, 25, place.read_bytes(), place, lambda: rebuild_backbone(folder, 3))


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_weights_of_an_adapter(finished_run: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(finished_run / "run" / "model_lora", tmp_path / "model_lora")
    survive(
        name,
        25,
        (folder / name).read_bytes(),
        folder / name,
        lambda: load_adapter(rebuild_backbone(finished_run / "run" / "model_beit", 3).model, folder),
    )


@pytest.mark.parametrize("name", ["000001.pt", "000001.json"])
def test_resume_states(tmp_path: Path, name: str) -> None:
    """A digest is beside each state: all but the rarest damage is noticed, and none of it runs or crashes."""
    store = StateStore(tmp_path / "state")
    store.save({"weights": {"a": torch.arange(50.0)}, "step": 3, "nested": [1, 2.0, "x"]}, {"step": 3})
    survive(
        f"state/{name}", 100, (tmp_path / "state" / name).read_bytes(), tmp_path / "state" / name, store.load
    )


def test_what_the_kaggle_command_prints(tmp_path: Path) -> None:
    dashes = "-" * 15
    traffic = (
        f"{dashes}Request{dashes}\nPOST /x\n{'-' * 50}\n{dashes}Response{dashes}\n200 OK\nretry-after: 3\n\n"
    )
    traffic += '{"submissions": [{"ref": 7, "errorDescription": "no"}]}' + f"\n{'-' * 50}\n"
    table = (
        "ref,fileName,date,description,status,publicScore,privateScore\n7,predictions.csv,2026-01-01 "
        "10:00:00,hi,SubmissionStatus.ERROR,0.9,\n"
    )
    path = tmp_path / "answer"

    def work() -> None:
        reply = read_reply(1, path.read_bytes().decode("utf-8", "replace"), "403 Client Error: Forbidden")
        assert str(explain(reply, "birds"))
        _read_submissions(reply)

    survive("kaggle's answer", 200, (traffic + table).encode(), path, work)
