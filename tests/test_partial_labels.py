"""Rows with some of several numbers: an empty cell counts neither in the loss nor in the score."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from competitions import image, table
from conftest import TINY_RUN, assert_says
from sklearn.linear_model import Ridge
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score
from torch.nn import functional as F

import inference
import train
from pipeline.cleaning import suspects
from pipeline.competition.layout import read_layout
from pipeline.errors import UserError
from pipeline.folds import blend
from pipeline.look import show
from pipeline.report import page
from pipeline.targets.metrics import all_metrics, evaluate, why_undefined
from pipeline.targets.target import Target
from pipeline.training.losses import loss_function, training_score
from pipeline.training.probe import fit_probe

POINTS = ("eye_x", "eye_y", "nose_x")
LABELS = ["1|10|5", "2||6", "|30|", "4|40|9"]
TARGET = Target("continuous", POINTS, separator="|").fitted(LABELS)
NAN = float("nan")
TRUTH = np.array([[1, 10, 5], [2, NAN, 6], [NAN, 30, NAN], [4, 40, 9]], dtype=np.float32)
VALUES = np.array([[1.5, 12, 5], [1, 99, 4], [99, 33, 99], [4, 35, 8]], dtype=np.float32)
PARTIAL = ("--set", "data.partial_labels=true")


def root_mean_squared_error(truth: np.ndarray, values: np.ndarray, multioutput="uniform_average") -> float:
    return np.sqrt(mean_squared_error(truth, values, multioutput="raw_values")).mean()


def scores_by_column(score) -> list[float]:
    known = [~np.isnan(column) for column in TRUTH.T]
    return [score(TRUTH[rows, n], VALUES[rows, n]) for n, rows in enumerate(known)]


def points(root: Path, train_rows: int = 24, test_rows: int = 6) -> Path:
    """Every third row lacks both numbers of the eye, row 5 the nose; sample and truth have all."""
    rows = []
    for number in range(train_rows + test_rows):
        kind = number % 6
        image(root / ("train" if number < train_rows else "test") / f"n{number:03d}.png", kind, 7)
        rows.append([f"n{number:03d}", 3.5 * kind, 40 - 2.5 * kind, 1.25 * kind])
    for row in rows[:train_rows:3]:
        row[1:3] = "", ""
    rows[5][3] = ""
    table(root / "train.csv", ("id", *POINTS), rows[:train_rows])
    table(
        root / "sample_submission.csv",
        ("id", *POINTS),
        [(row[0], 0.5, 0.5, 0.5) for row in rows[train_rows:]],
    )
    return root


def test_missing_numbers_are_nan_and_the_scale_is_that_of_the_others() -> None:
    assert np.array_equal(TARGET.encode(LABELS), TRUTH, equal_nan=True)
    frame = pd.DataFrame(TRUTH, dtype=np.float64)
    assert TARGET.center == pytest.approx(tuple(frame.mean()))
    assert TARGET.scale == pytest.approx(tuple(frame.std(ddof=0)))
    assert (TARGET.low, TARGET.high) == (tuple(frame.min()), tuple(frame.max()))
    assert TARGET.prior(LABELS) == pytest.approx(TARGET.center)
    assert sorted(TARGET.strata(LABELS)) == sorted(TARGET.strata(["1|0|0", "2|0|0", "9|0|0", "4|0|0"]))
    for label in ("||", "1|2", "1|x|3"):
        with pytest.raises(UserError, match="is not a number"):
            TARGET.encode([label])
    with pytest.raises(UserError, match="no training row has a number in 'eye_y'"):
        TARGET.fitted(["1||3", "2||4"])


@pytest.mark.parametrize(
    ("name", "score"),
    [("rmse", root_mean_squared_error), ("mae", mean_absolute_error), ("r2", r2_score)],
)
def test_metrics_are_means_over_columns_of_the_rows_that_have_a_number(name, score) -> None:
    assert evaluate(name, TARGET, TRUTH, VALUES) == pytest.approx(np.mean(scores_by_column(score)))
    whole = TRUTH[[0, 3]], VALUES[[0, 3]]
    assert evaluate(name, TARGET, *whole) == pytest.approx(score(*whole, multioutput="uniform_average"))


def test_a_column_without_numbers_does_not_count() -> None:
    rows = [1, 2]  # eye_x: one number, eye_y: one, nose_x: one
    assert evaluate("r2", TARGET, TRUTH[rows], VALUES[rows]) is None and why_undefined(
        "r2", TARGET, TRUTH[rows]
    )
    assert evaluate("mae", TARGET, TRUTH[[1]], VALUES[[1]]) == pytest.approx((1 + 2) / 2)


def test_the_loss_and_its_gradient_are_zero_for_a_missing_number() -> None:
    label = torch.from_numpy(TARGET.scaled(TRUTH))
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = loss_function(TARGET)
    loss(logits, label).backward()
    known = ~label.isnan()
    by_hand = ((logits - label)[known] ** 2).sum() / label.numel()
    assert loss(logits, label).item() == pytest.approx(by_hand.item())
    assert (logits.grad[~known] == 0).all()
    assert torch.allclose(logits.grad[known], (2 * (logits - label)[known] / label.numel()).detach())
    values = TARGET.activate(logits.detach().numpy())
    unclipped = all_metrics(TARGET, TRUTH, logits.detach().numpy() * TARGET.scale + TARGET.center)
    assert unclipped["loss"] == pytest.approx(by_hand.item(), rel=1e-5)
    rows = [np.nanmean(row) for row in np.abs(values - TRUTH)]
    name, distance = training_score(TARGET)
    assert name == "mae" and distance(logits.detach(), label).item() == pytest.approx(sum(rows), rel=1e-5)
    whole = torch.ones(4, 3)
    assert torch.equal(loss(logits, whole), F.mse_loss(logits, whole))


def test_the_probe_fits_each_number_on_its_own_rows() -> None:
    features = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    probe = fit_probe(TARGET, features, LABELS)
    exact = features.astype(np.float64)
    exact = (exact - exact.mean(axis=0)) / exact.std(axis=0)
    for column, rows in enumerate(~np.isnan(TRUTH).T):
        alone = Ridge().fit(exact[rows], TARGET.scaled(TRUTH)[rows, column].astype(np.float64))
        assert probe.logits(features)[:, column] == pytest.approx(alone.predict(exact), abs=1e-5)


def test_without_the_flag_both_ways_out_are_named(tmp_path: Path) -> None:
    points(tmp_path)
    with pytest.raises(UserError) as error:
        read_layout(tmp_path, need="train")
    assert_says(
        str(error.value),
        "rows 2, 5, 8, 11, 14 and 3 more: no label in column 'eye_x'",
        "row 7: no label in column 'nose_x'",
        "--set data.skip_bad_images=true",
        "--set data.partial_labels=true",
    )
    skipped = read_layout(tmp_path, need="train", skip_bad_images=True)
    assert len(skipped.train) == 15 and not any("||" in row.label for row in skipped.train)


def test_rows_with_some_numbers_are_read_and_counted(tmp_path: Path) -> None:
    points(tmp_path)
    found = read_layout(tmp_path, need="train", partial_labels=True)
    assert found.target.kind == "continuous" and len(found.train) == 24
    labels = {row.id: row.label for row in found.train}
    assert labels["n000"] == "||0.0" and labels["n005"] == "17.5|27.5|" and labels["n001"] == "3.5|37.5|1.25"
    assert any("9 rows with empty label cells (17 in all)" in note for note in found.notes)


def test_rows_and_columns_without_any_number_are_refused(tmp_path: Path) -> None:
    points(tmp_path)
    frame = pd.read_csv(tmp_path / "train.csv")
    frame.loc[3, list(POINTS)] = NAN
    frame.to_csv(tmp_path / "train.csv", index=False)
    with pytest.raises(UserError, match="row 5: no label in any of the 3 columns") as error:
        read_layout(tmp_path, need="train", partial_labels=True)
    assert "data.skip_bad_images" in str(error.value) and "data.partial_labels" not in str(error.value)
    both = read_layout(tmp_path, need="train", partial_labels=True, skip_bad_images=True)
    assert len(both.train) == 23
    frame.drop(index=3).assign(eye_y=NAN).to_csv(tmp_path / "train.csv", index=False)
    with pytest.raises(UserError, match="the column 'eye_y' is empty"):
        read_layout(tmp_path, need="train", partial_labels=True)


def test_an_empty_cell_among_zeros_and_ones_is_never_taken_for_unknown(tmp_path: Path) -> None:
    points(tmp_path)
    frame = pd.read_csv(tmp_path / "train.csv")
    frame[list(POINTS)] = (frame[list(POINTS)] > 10).astype(int).astype(object)
    frame.loc[3, "eye_x"] = ""
    frame.to_csv(tmp_path / "train.csv", index=False)
    with pytest.raises(UserError, match="row 5: no label in column 'eye_x'") as error:
        read_layout(tmp_path, need="train", partial_labels=True)
    assert "data.partial_labels" not in str(error.value)


def test_folds_suspects_a_blend_and_pages_of_partly_labelled_rows(
    tmp_path: Path, tiny_backbone: Path, capsys: pytest.CaptureFixture
) -> None:
    data = points(tmp_path / "data")
    words = ["--data", str(data), "--backbone", str(tiny_backbone), *TINY_RUN, *PARTIAL, "--epochs", "2"]
    words += ["--set", "augmentation.horizontal_flip=false"]
    runs = [str(tmp_path / name) for name in ("folds", "other")]
    assert train.main([*words, "--folds", "2", "--output", runs[0]]) == 0
    shown = capsys.readouterr().out
    assert_says(shown, "'eye_x' and 'eye_y'", "--set augmentation.random_resized_crop=false")
    assert train.main([*words, "--folds", "2", "--output", runs[1], "--lora-rank", "2"]) == 0
    truth = pd.read_csv(data / "train.csv").set_index("id")
    for run in map(Path, runs):
        record = json.loads((run / "run.json").read_text())
        oof = pd.read_csv(run / "oof.csv", dtype={"id": str})
        predicted = np.load(run / "oof.npy")
        assert len(oof) == 24 and np.isfinite(predicted).all()
        given = truth.loc[oof["id"]].to_numpy()
        known = ~np.isnan(given)
        each = [root_mean_squared_error(given[rows, n], predicted[rows, n]) for n, rows in enumerate(known.T)]
        assert record["folds"]["scores"]["rmse"] == pytest.approx(np.mean(each), rel=1e-5)
    assert blend.main(["--runs", *runs, "--output", str(tmp_path / "blend")]) == 0
    assert suspects.main(["--model", runs[0]]) == 0
    assert show.main(["--data", str(data), "--output", str(tmp_path / "look")]) == 0
    assert page.main(["--run", runs[0], "--run", runs[1], "--output", str(tmp_path / "both")]) == 0
    assert inference.main([*words[:2], "--model", runs[0], "--output", str(tmp_path / "p.csv")]) == 0
    written = pd.read_csv(tmp_path / "p.csv")
    assert list(written.columns) == ["id", *POINTS] and len(written) == 6 and written.notna().all().all()
