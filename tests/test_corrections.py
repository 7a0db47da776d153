"""data.exclude and data.relabel: training rows alone change; validation and out-of-fold scores stay over all
rows and given labels.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import make_competition
from runs import Page

import train
from pipeline.competition.corrections import CorrectionFiles
from pipeline.competition.layout import read_layout
from pipeline.competition.rows import Competition
from pipeline.errors import UserError
from pipeline.files import read_json, read_json_lines, sha256
from pipeline.report.page import build_report
from pipeline.targets.evidence import Asked

FLAGS = "--epochs 2 --batch-size 6 --accumulation-steps 1 --lr 0.01 --precision fp32".split()
NOTHING_ASKED, TAGS = Asked(), Asked("macro_f1", "multilabel")
TEXT = {"dtype": str, "keep_default_na": False}


def arguments(data: Path, backbone: Path, output: Path, *more: str) -> list[str]:
    keys = ["--set", "data.workers=0", "--set", "checkpoint.keep=last"]
    return ["--data", str(data), "--backbone", str(backbone), "--output", str(output), *FLAGS, *keys, *more]


def write(path: Path, *rows: tuple[str, ...]) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    make_competition(tmp_path / "data", per_class=6)
    return tmp_path / "data"


def read(
    data: Path, exclude: Path | None = None, relabel: Path | None = None, asked: Asked = NOTHING_ASKED
) -> Competition:
    files = CorrectionFiles(*(None if path is None else str(path) for path in (exclude, relabel)))
    return read_layout(data, need="train", corrected=files, asked=asked)


# ---- reading the files ----


def test_ids_may_be_written_as_the_data_or_as_files_are_named(data: Path, tmp_path: Path) -> None:
    rows = read(data).train
    ids = [row.id for row in rows]
    paths = write(tmp_path / "p.csv", ("id",), *((str(row.path.relative_to(data)),) for row in rows[:3]))
    assert read(data, paths).corrections.excluded == set(ids[:3])
    exclude = write(
        tmp_path / "e.csv", ("id", "more"), (ids[0], "x"), (rows[1].path.name, ""), (rows[2].path.name, "")
    )
    relabel = write(tmp_path / "r.csv", ("id", "label"), (ids[3], rows[-1].label))
    found = read(data, exclude, relabel).corrections
    assert found.excluded == set(ids[:3]) and found.relabelled == {ids[3]: rows[-1].label}
    assert found.files == {
        "exclude": {"file": str(exclude), "sha256": sha256(exclude)},
        "relabel": {"file": str(relabel), "sha256": sha256(relabel)},
    }
    assert [row.id for row in found.applied(rows)] == ids[3:] and found.applied(rows)[0].label == rows[
        -1
    ].label
    assert found.touched(rows) == {"excluded": 3, "relabelled": 1}


def test_files_that_lie_in_the_data_folder_are_found_there_and_are_no_labels(data: Path) -> None:
    rows = read(data).train
    write(data / "exclude.csv", ("id",), (rows[0].id,))
    write(data / "relabel.csv", ("id", "label"), (rows[1].id, rows[-1].label))
    plain = read(data)
    assert plain.train == rows and not plain.corrections
    assert read(data, Path("exclude.csv"), Path("relabel.csv")).corrections.excluded == {rows[0].id}


def test_every_problem_of_both_files_is_said_at_once(data: Path, tmp_path: Path) -> None:
    rows = read(data).train
    one, two, label, other = rows[0].id, rows[1].id, rows[0].label, rows[-1].label
    exclude = write(tmp_path / "e.csv", ("id",), (one,), ("nobody",))
    relabel = write(
        tmp_path / "r.csv",
        ("id", "label"),
        (one, other),
        (two, label[:-1]),
        (rows[2].id, other),
        (rows[2].id, label),
    )
    with pytest.raises(UserError) as caught:
        read(data, exclude, relabel)
    text = str(caught.value)
    assert f"{exclude}: row 3: no labelled id 'nobody'" in text
    assert f"{relabel}: row 3: no class {label[:-1]!r} (nearest: {label!r})" in text
    assert f"{relabel}: rows 4, 5: {rows[2].id!r} gets the label {other!r} and the label {label!r}" in text
    assert f"1 id in both files: {one!r}" in text


@pytest.mark.parametrize(
    "cells, words",
    [
        ([("id",), ("a9",), ("b9",)], r"e\.csv: none of its 2 ids .*'a9'.*another data set"),
        ([("image",), ("x",)], r"no column id; expected a table with the column id, found 'image'"),
    ],
)
def test_a_file_of_another_data_set_or_without_its_column(
    data: Path, tmp_path: Path, cells: list, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        read(data, write(tmp_path / "e.csv", *cells))


def test_a_file_that_is_not_there_names_both_places(data: Path) -> None:
    with pytest.raises(UserError, match=r"data\.relabel: gone\.csv .*data/gone\.csv.* id and label"):
        read(data, None, Path("gone.csv"))


def test_a_class_that_would_keep_no_row_is_refused(data: Path, tmp_path: Path) -> None:
    rows = read(data).train
    mine = [row.id for row in rows if row.label == rows[0].label]
    with pytest.raises(UserError, match=f"1 class would .*: {rows[0].label!r}"):
        read(data, write(tmp_path / "e.csv", ("id",), *((row_id,) for row_id in mine)))
    with pytest.raises(UserError, match="every labelled row is excluded"):
        read(data, write(tmp_path / "e.csv", ("id",), *((row.id,) for row in rows)))


def test_several_labels_and_numbers_are_checked_part_by_part(tmp_path: Path) -> None:
    from conftest import colour_patch

    for number in range(12):
        colour_patch(tmp_path / f"data/train/{number}.png", (20 * number, 90, 30), number)
    table = [
        ("id", "tags"),
        *((str(number), "red blue" if number % 2 else "blue green") for number in range(12)),
    ]
    write(tmp_path / "data/train.csv", *table)
    good = write(tmp_path / "r.csv", ("id", "label"), ("3", "green red"))
    assert read(tmp_path / "data", None, good, TAGS).corrections.relabelled == {"3": "green red"}
    with pytest.raises(UserError, match=r"no label 'grene' \(nearest: 'green'\)"):
        read(tmp_path / "data", None, write(tmp_path / "r.csv", ("id", "label"), ("3", "grene red")), TAGS)
    write(
        tmp_path / "data/train.csv",
        ("id", "weight"),
        *((str(number), f"{number + 0.25}") for number in range(12)),
    )
    number = write(tmp_path / "r.csv", ("id", "label"), ("3", "1.5"))
    assert read(tmp_path / "data", None, number, Asked("rmse", "continuous")).corrections.relabelled == {
        "3": "1.5"
    }
    with pytest.raises(UserError, match="row 2: 'heavy'"):
        heavy = write(tmp_path / "r.csv", ("id", "label"), ("3", "heavy"))
        read(tmp_path / "data", None, heavy, Asked("rmse", "continuous"))


# ---- training with them ----


@pytest.fixture
def corrected(data: Path, tmp_path: Path) -> tuple[Path, Path, list]:
    """Two rows of each class to exclude and one of the first class to be called by the last; the rows."""
    rows = list(read(data).train)
    by_class: dict[str, list[str]] = {}
    for row in rows:
        by_class.setdefault(row.label, []).append(row.id)
    exclude = write(
        tmp_path / "exclude.csv", ("id",), *((row_id,) for ids in by_class.values() for row_id in ids[:2])
    )
    relabel = write(tmp_path / "relabel.csv", ("id", "label"), (by_class[rows[0].label][2], rows[-1].label))
    return exclude, relabel, rows


def test_training_rows_change_and_validation_rows_stay(
    data: Path, tiny_backbone: Path, tmp_path: Path, corrected: tuple
) -> None:
    exclude, relabel, rows = corrected
    split = ["--set", "data.val_fraction=0.4"]
    assert train.main(arguments(data, tiny_backbone, tmp_path / "plain", *split)) == 0
    keys = ["--set", f"data.exclude={exclude}", "--set", f"data.relabel={relabel}"]
    assert train.main(arguments(data, tiny_backbone, tmp_path / "run", *split, *keys)) == 0
    plain, run = (pd.read_csv(tmp_path / name / "val_predictions.csv", **TEXT) for name in ("plain", "run"))
    assert list(run.id) == list(plain.id) and list(run.label) == list(plain.label)
    record, before = read_json(tmp_path / "run/run.json"), read_json(tmp_path / "plain/run.json")
    out = set(pd.read_csv(exclude, **TEXT).id)
    other = dict(pd.read_csv(relabel, **TEXT).itertuples(index=False))
    held = set(run.id)
    assert record["corrections"]["train"] == {
        "excluded": len(out - held),
        "relabelled": len(set(other) - held),
    }
    assert record["corrections"]["val"] == {"excluded": len(out & held), "relabelled": len(set(other) & held)}
    assert record["corrections"]["files"]["exclude"] == {"file": str(exclude), "sha256": sha256(exclude)}
    assert record["counts"]["train"] == before["counts"]["train"] - len(out - held)
    assert len(out & held)
    assert len(out - held)
    expected = dict.fromkeys(record["class_names"], 0)
    for row in rows:
        if row.id not in held and row.id not in out:
            expected[other.get(row.id, row.label)] += 1
    assert record["counts"]["train_per_class"] == expected
    last = read_json_lines(tmp_path / "run/metrics.jsonl")[-1]
    kept = run[~run.id.isin(out)]
    truth = [other.get(row_id, label) for row_id, label in zip(kept.id, kept.label, strict=True)]
    assert last["val_accuracy"] == pytest.approx(np.mean(run.label == run.predicted))
    assert last["val_corrected_accuracy"] == pytest.approx(np.mean(np.array(truth) == kept.predicted))
    text = Page(build_report(tmp_path / "run")).text
    assert f"{len(out - held)} training images left out" in text and "corrected accuracy" in text


def test_folds_score_every_row_and_say_the_corrected_score(
    data: Path, tiny_backbone: Path, tmp_path: Path, corrected: tuple
) -> None:
    exclude, relabel, rows = corrected
    keys = ["--set", f"data.exclude={exclude}", "--set", f"data.relabel={relabel}", "--folds", "2"]
    assert train.main(arguments(data, tiny_backbone, tmp_path / "run", *keys)) == 0
    oof, record = pd.read_csv(tmp_path / "run/oof.csv", **TEXT), read_json(tmp_path / "run/run.json")
    assert list(oof.id) == [row.id for row in rows] and list(oof.label) == [row.label for row in rows]
    assert record["folds"]["scores"]["accuracy"] == pytest.approx(np.mean(oof.label == oof.predicted))
    out = set(pd.read_csv(exclude, **TEXT).id)
    other = dict(pd.read_csv(relabel, **TEXT).itertuples(index=False))
    kept = oof[~oof.id.isin(out)]
    truth = [other.get(row_id, label) for row_id, label in zip(kept.id, kept.label, strict=True)]
    assert record["corrections"]["scores"]["corrected_accuracy"] == pytest.approx(
        np.mean(np.array(truth) == kept.predicted)
    )
    assert record["corrections"]["train"] == {"excluded": len(out), "relabelled": 1}
    for fold in (1, 2):
        found = read_json(tmp_path / f"run/fold-{fold}/run.json")["corrections"]
        assert found["train"]["excluded"] + found["val"]["excluded"] == len(out)
    text = Page(tmp_path / "run/report.html").text
    assert f"{len(out)} images left out" in text and "corrected accuracy" in text


def test_a_stopped_run_goes_on_with_the_same_rows(
    data: Path, tiny_backbone: Path, tmp_path: Path, corrected: tuple
) -> None:
    from pipeline.errors import Interrupted

    exclude, _, _ = corrected
    words = arguments(
        data,
        tiny_backbone,
        tmp_path / "run",
        *("--set", "data.val_fraction=0.4", "--set", f"data.exclude={exclude}"),
    )
    with pytest.raises(Interrupted):
        train.main([*words, "--max-minutes", "0"])
    assert train.main([*words, "--resume"]) == 0
    assert (
        train.main(arguments(data, tiny_backbone, tmp_path / "whole", *words[words.index("--set", 20) :]))
        == 0
    )
    for name in ("val_probs.npy", "metrics.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_file_that_changed_is_noticed_on_resume(
    data: Path, tiny_backbone: Path, tmp_path: Path, corrected: tuple
) -> None:
    from pipeline.errors import Interrupted

    exclude, _, rows = corrected
    words = arguments(
        data,
        tiny_backbone,
        tmp_path / "run",
        *("--set", "data.val_fraction=0", "--set", f"data.exclude={exclude}"),
    )
    with pytest.raises(Interrupted):
        train.main([*words, "--max-minutes", "0"])
    write(exclude, ("id",), (rows[0].id,))
    with pytest.raises(UserError, match=r"5 rows new, for training"):
        train.main([*words, "--resume"])
