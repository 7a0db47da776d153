"""Pseudo labels: test images of a first round also train; no validation row is known through them; the same
rows after a stop.
"""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY_RUN, colour_patch
from test_resume import interrupt_after, resume

import inference
import train
from pipeline.competition.pseudo_labels import PseudoLabels, read_pseudo_labels
from pipeline.competition.rows import Competition
from pipeline.config import load_recipe
from pipeline.errors import Interrupted, UserError
from pipeline.files import read_json
from pipeline.folds.plan import read_folds
from pipeline.report.page import build_report
from pipeline.tables import load_table

FLAGS = ["--epochs", "1", *TINY_RUN]


@pytest.fixture(scope="module")
def first(two_folds: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Data with five test images, and two folds that predicted them."""
    root = shutil.copytree(two_folds, tmp_path_factory.mktemp("pseudo") / "copy")
    predict(root / "data", root / "folds", root)
    return root / "data", root / "folds"


def predict(data: Path, model: Path, folder: Path) -> None:
    inference.main(
        [
            *("--model", str(model), "--data", str(data), "--output", str(folder / "predictions.csv")),
            *("--precision", "fp32"),
        ]
    )


def read(data: Path) -> Competition:
    from pipeline.competition.layout import read_for_training

    return read_for_training(data, load_recipe("lora-ours").data, skip_bad_images=False)


def taken(first: tuple[Path, Path], fold: int | None = None, threshold: float = 0.1) -> PseudoLabels:
    data, folder = first
    val = [row_id for row_id, number in read_folds(folder / "folds.csv").items() if number == fold]
    return read_pseudo_labels(str(folder), threshold, read(data), val)


def test_the_labels_are_those_of_the_models_that_saw_no_validation_row(first: tuple[Path, Path]) -> None:
    _, folder = first
    values = [np.load(folder / f"fold-{number}" / "test.npy") for number in (1, 2)]
    names = read_json(folder / "run.json")["class_names"]
    for fold, mean in ((1, values[0]), (2, values[1]), (None, (values[0] + values[1]) / 2)):
        threshold = float(np.sort(mean.max(axis=1))[2])  # three of five are as sure
        found = taken(first, fold, threshold)
        sure = mean.max(axis=1) >= threshold
        assert [row.label for row in found.rows] == [names[number] for number in mean.argmax(axis=1)[sure]]
        assert (
            found.record["rows"] == 3 and found.record["of"] == 5 and found.record["threshold"] == threshold
        )
        members = (1, 2) if fold is None else (fold,)
        assert found.record["models"] == [str(folder / f"fold-{number}") for number in members]
    assert all(row.path.parent.name == "test" for row in found.rows)


def test_models_that_have_all_seen_validation_rows_are_refused(first: tuple[Path, Path]) -> None:
    data, folder = first
    of = read_folds(folder / "folds.csv")
    both = [next(row_id for row_id, number in of.items() if number == fold) for fold in (1, 2)]
    with pytest.raises(
        UserError, match=r"every model there has trained on validation rows.*data.val_fraction=0"
    ):
        read_pseudo_labels(str(folder), 0.1, read(data), both)


def test_what_does_not_fit_is_refused(first: tuple[Path, Path], tmp_path: Path) -> None:
    data, folder = first
    with pytest.raises(
        UserError, match=r"no test image has a probability of at least 1; the largest is 0\.\d+"
    ):
        taken(first, threshold=1)
    changed = tmp_path / "data"
    shutil.copytree(data, changed)
    colour_patch(next(iter(sorted((changed / "test").iterdir()))), (1, 2, 3), 9)
    with pytest.raises(
        UserError, match=r"predicted other test images than those of .*python inference.py --model"
    ):
        taken((changed, folder))
    shutil.rmtree(changed / "test")
    with pytest.raises(UserError, match="has no test images"):
        taken((changed, folder))
    shutil.rmtree(changed)
    shutil.copytree(data, changed)
    (changed / "train/red").rename(changed / "train/rot")
    with pytest.raises(UserError, match=r"knows other classes(?s:.*)lacks 'rot'(?s:.*)has also 'red'"):
        taken((changed, folder))
    copy = tmp_path / "first"
    shutil.copytree(folder, copy)
    (copy / "fold-1/test.json").unlink()
    with pytest.raises(
        UserError, match=r"fold-1 has no predictions of the test images; make them with: python inference.py"
    ):
        taken((data, copy), 1)
    assert taken((data, copy), 2).rows  # the other fold is not asked
    with pytest.raises(
        UserError, match="does not exist; expected the folder of a finished run, or a CSV file"
    ):
        read_pseudo_labels(str(tmp_path / "gone"), 0.9, read(data), [])


def test_a_table_names_every_problem_at_once(first: tuple[Path, Path], tmp_path: Path) -> None:
    competition = read(first[0])
    ids = [row.id for row in competition.test]
    path = tmp_path / "labels.csv"

    def write(*rows: tuple[str, str]) -> Path:
        with open(path, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("id", "label"), *rows])
        return path

    found = read_pseudo_labels(str(write((ids[0], "red"), (ids[3], "blue"))), 0.9, competition, ["any"])
    assert [(row.id, row.label) for row in found.rows] == [(ids[0], "red"), (ids[3], "blue")]
    assert found.record["per_class"] == {"blue": 1, "red": 1} and found.record["source"] == str(path)
    with pytest.raises(UserError) as caught:
        read_pseudo_labels(
            str(write(("nobody", "red"), (ids[0], "rde"), (ids[1], "red"), (ids[1], "blue"))),
            0.9,
            competition,
            [],
        )
    text = str(caught.value)
    assert "row 2: no test image has the id 'nobody'" in text
    assert "row 3: no class 'rde'" in text
    assert "row 5: " in text


def test_the_second_round_trains_on_them_and_validates_on_labelled_rows(
    first, tmp_path: Path, tiny_backbone: Path, monkeypatch
) -> None:
    """A fold, then the same one stopped in its epoch; its rows, what is known of the classes, and the
    page.
    """
    data, folder = first
    keys = [
        *("--set", f"data.pseudo_labels={folder}"),
        *"--set data.pseudo_threshold=0.1 --folds 2 --fold 2".split(),
    ]
    flags = ["--data", str(data), "--backbone", str(tiny_backbone), *FLAGS, *keys]
    train.main([*flags, "--output", str(tmp_path / "whole")])
    run = tmp_path / "whole/fold-2"
    record = read_json(run / "run.json")
    plain = read_json(folder / "fold-2/run.json")
    assert record["counts"]["train"] == plain["counts"]["train"] + 5
    assert record["counts"]["val"] == plain["counts"]["val"]
    assert record["prior"] == plain["prior"]
    assert record["counts"]["train_per_class"] == plain["counts"]["train_per_class"]
    assert record["pseudo_labels"]["rows"] == 5 and record["pseudo_labels"]["models"] == [
        str(folder / "fold-2")
    ]
    with open(run / "val_predictions.csv", newline="", encoding="utf-8") as file:
        validated = [row["id"] for row in csv.DictReader(file)]
    with open(folder / "fold-2/val_predictions.csv", newline="", encoding="utf-8") as file:
        assert validated == [row["id"] for row in csv.DictReader(file)]
    assert "pseudo labels" in build_report(run).read_text(encoding="utf-8")
    with monkeypatch.context() as patched:
        interrupt_after(patched, 1)
        with pytest.raises(Interrupted):
            train.main([*flags, "--output", str(tmp_path / "stopped")])
    train.main([*flags, "--output", str(tmp_path / "stopped"), "--resume"])
    for name in ("metrics.jsonl", "val_probs.npy", "model_lora/adapter_model.safetensors"):
        assert (run / name).read_bytes() == (tmp_path / "stopped/fold-2" / name).read_bytes(), name


def test_a_resumed_run_takes_the_same_rows_or_refuses(
    first, tmp_path: Path, tiny_backbone: Path, monkeypatch
) -> None:
    data, _ = first
    ids = [row.id for row in read(data).test]
    path = tmp_path / "labels.csv"
    path.write_text(f"id,label\n{ids[0]},red\n{ids[1]},blue\n")
    flags = [
        *("--data", str(data), "--backbone", str(tiny_backbone)),
        *FLAGS,
        *("--set", f"data.pseudo_labels={path}"),
    ]
    with monkeypatch.context() as patched:
        interrupt_after(patched, 1)
        with pytest.raises(Interrupted):
            train.main([*flags, "--output", str(tmp_path / "run")])
    path.write_text(f"id,label\n{ids[0]},red\n{ids[1]},red\n")
    with pytest.raises(UserError, match=f"'test image {ids[1]}' from 'blue' to 'red'"):
        resume(data, tmp_path / "run")
    path.write_text(f"id,label\n{ids[0]},red\n{ids[1]},blue\n")
    resume(data, tmp_path / "run")
    assert read_json(tmp_path / "run/run.json")["pseudo_labels"]["rows"] == 2


def test_an_image_that_is_skipped_moves_the_split_before_the_models_are_chosen(
    first: tuple[Path, Path], tiny_backbone: Path, tmp_path: Path
) -> None:
    """The second round validates the rows of the first one, as they are split without that image."""
    data = shutil.copytree(first[0], tmp_path / "data")
    sorted((data / "train").rglob("*.png"))[0].write_bytes(b"damaged")
    words = ["--data", str(data), "--backbone", str(tiny_backbone), *FLAGS, "--set", "data.val_fraction=0.25"]
    words += ["--set", "data.skip_bad_images=true"]
    train.main([*words, "--output", str(tmp_path / "a")])
    predict(data, tmp_path / "a", tmp_path)
    more = ["--set", f"data.pseudo_labels={tmp_path / 'a'}", "--set", "data.pseudo_threshold=0.1"]
    train.main([*words, *more, "--output", str(tmp_path / "b")])
    one, other = (load_table(tmp_path / run / "val_predictions.csv").column("id") for run in "ab")
    assert one == other
    assert read_json(tmp_path / "b/run.json")["pseudo_labels"]["models"] == [str(tmp_path / "a")]
