"""The page of every kind of target, from run folders written here: what it says is computed again by
scikit-learn and by hand.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics as skm
from conftest import assert_says
from runs import Page
from target_runs import BINARY, GRADES, KINDS, LABELS, NUMBER, NUMBERS, Made, make_target_run

from pipeline.competition.layout import Row
from pipeline.errors import UserError
from pipeline.report import curves, figures
from pipeline.report.comparison import build_comparison
from pipeline.report.page import build_report
from pipeline.report.run_files import read_run_files
from pipeline.report.thumbnails import store_samples
from pipeline.report.words import higher_is_better, metric_name, metric_value
from pipeline.targets.metrics import METRICS
from pipeline.targets.target import Target


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Coarse figures, away from the project's folder and its ledger."""
    monkeypatch.setattr(figures, "DPI", 50)
    monkeypatch.chdir(tmp_path)


def page_of(made: Made) -> Page:
    return Page(build_report(made.path))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("finished", [True, False])
def test_the_headline_is_the_competitions_metric_at_its_best_epoch(
    tmp_path: Path, kind: str, finished: bool
) -> None:
    target, metric = KINDS[kind]
    made = make_target_run(tmp_path / "run", target, metric, finished=finished)
    values = [line[f"val_{metric}"] for line in made.epochs]
    best = int(np.argmax(values) if METRICS[metric].higher_is_better else np.argmin(values))
    assert 0 < best < len(values) - 1, "neither the first nor the last epoch, so that direction matters"
    page = page_of(made)
    assert (
        f"{metric_value(metric, values[best])} validation {METRICS[metric].words} epoch {best + 1} of 6 160 "
        "images" in page.text
    )
    assert ("160 images; lower is better" in page.text) == (not METRICS[metric].higher_is_better)
    assert "95% interval" not in page.text
    assert all(len(image["alt"] or "") > 20 for image in page.all("img"))
    assert re.search(
        rf"Validation at the best epoch \({best + 1}\) {re.escape(METRICS[metric].words)} {values[best]:.4f}",
        page.text,
    )


@pytest.mark.parametrize(
    "kind, score", [("binary", "accuracy"), ("ordinal", "accuracy"), ("multilabel", "label accuracy")]
)
def test_curves_are_the_training_score_the_loss_and_the_metric(tmp_path: Path, kind: str, score: str) -> None:
    target, metric = KINDS[kind]
    drawn = curves.draw_curves(read_run_files(make_target_run(tmp_path / "run", target, metric).path))
    assert list(drawn) == [score.replace(" ", "_"), "loss", metric, "learning_rate"]
    assert drawn[metric][1].startswith(
        metric_name(metric)[0].upper() + metric_name(metric)[1:] + " over 6 epochs: validation from"
    )
    assert "training from 50.0% to 50.0%" in drawn[score.replace(" ", "_")][1]


def test_a_metric_that_training_shows_is_drawn_once_and_its_direction_said(tmp_path: Path) -> None:
    made = make_target_run(tmp_path / "run", NUMBERS, "mae")
    drawn = curves.draw_curves(read_run_files(made.path))
    assert list(drawn) == ["mae", "loss", "learning_rate"]
    assert curves.axis_words("mae") == "mean absolute error\n(lower is better)"
    text = page_of(made).text
    assert_says(text, "Mean absolute error over the epochs", "lower is better")
    assert_says(text, "Loss over the epochs", "mean squared error", "deviation 1")


def test_axes_of_metrics() -> None:
    assert curves.axis_limits("rmse", np.array([3.0, 5.0]))[0] == 0
    low, high = curves.axis_limits("roc_auc", np.array([0.8, 0.9]))
    assert 0.75 < low < 0.8 and 0.9 < high < 0.95
    low, high = curves.axis_limits("mcc", np.array([-0.1, -0.1]))
    assert low < -0.1 < high
    assert curves.axis_limits("accuracy", np.array([0.2, 0.6])) == (0.0, 0.7)


def test_a_metric_that_is_undefined_leaves_the_loss_and_says_why(tmp_path: Path) -> None:
    never = Target("binary", ("0", "1"), positive=("2",))  # no row is positive
    made = make_target_run(tmp_path / "run", never, "roc_auc")
    assert made.best["metric"] == "val_loss"
    page = page_of(made)
    assert "validation loss" in page.text
    assert "by the loss: ROC AUC is undefined: " in page.text
    assert "every row is '0'" in page.text
    assert "The area under the ROC curve is" not in page.text
    under_way = make_target_run(tmp_path / "under way", never, "roc_auc", finished=False)
    assert read_run_files(under_way.path).best == made.best


def test_two_classes_with_a_probability(tmp_path: Path) -> None:
    made = make_target_run(tmp_path / "run", BINARY, "roc_auc", rows=240)
    page = page_of(made)
    truth, said = made.truth[:, 0].astype(int), made.values[:, 0]
    right = int(((said >= 0.5) == truth).sum())
    assert re.search(
        rf"{right} of 240 validation images .*?\({right / 2.4:.1f}%\) if a probability of 0\.5 .*?“1”",
        page.text,
    )
    assert f"The area under the ROC curve is {skm.roc_auc_score(truth, said):.4f}" in page.text
    for threshold in (0.3, 0.7):
        positive = said >= threshold
        scores = [
            f"{score(truth, positive):.3f}" for score in (skm.precision_score, skm.recall_score, skm.f1_score)
        ]
        row = (
            f"{threshold} {positive.sum()} {100 * skm.accuracy_score(truth, positive):.1f}% "
            f"{' '.join(scores)}"
        )
        assert row in page.text
    assert re.search(
        rf"average .*? positive class .*?{100 * said.mean():.1f}%, .*?{100 * truth.mean():.1f}%", page.text
    )
    assert {"roc.png", "calibration.png", "confusion.png", "class_counts.png"} <= {
        path.name for path in (made.path / "figures").iterdir()
    }


def test_several_raw_labels_of_a_binary_target_are_its_positive_class(tmp_path: Path) -> None:
    stego = Target("binary", ("Cover", "stego"), positive=("1",))
    made = make_target_run(tmp_path / "run", stego, "roc_auc")
    lines = (made.path / "val_predictions.csv").read_text().splitlines()
    assert {line.split(",")[2] for line in lines[1:]} == {"0", "1"} and {
        line.split(",")[3] for line in lines[1:]
    } == {"Cover", "stego"}
    page = page_of(made)
    chosen = stego.chosen(made.values)
    hits = int((chosen == made.truth[:, 0]).sum())
    assert f"{hits} of 160 validation images are right" in page.text
    assert re.search(r"Each class .* 0 Cover \d+ \d+ .* 1 stego \d+ \d+", page.text)
    assert "Confusion matrix of 2 classes" in page.html


def test_grades_stand_in_their_order_and_far_mistakes_come_first(tmp_path: Path) -> None:
    words = Target("ordinal", ("none", "mild", "bad", "worse", "worst"))
    made = make_target_run(tmp_path / "run", words, "qwk", epochs=3)
    page = page_of(made)
    chosen, truth = words.chosen(made.values), made.truth
    far = np.abs(chosen - truth)
    assert f"{int((far <= 1).sum())} are at most one grade off" in page.text
    first = re.search(r"Largest mistakes, in grades (\w+) predicted as (\w+)", page.text)
    assert abs(words.names.index(first[1]) - words.names.index(first[2])) == far.max() > 1
    assert re.search(
        "Each grade No. grade .*" + ".*".join(f"{number} {name} " for number, name in enumerate(words.names)),
        page.text,
    )
    assert "Training images of each grade, in the order of the grades." in page.text
    assert "Classification · 5 grades, none to worst · beit-large-patch16-384" in page.text


def test_several_labels_have_a_row_each_and_no_confusion_matrix(tmp_path: Path) -> None:
    made = make_target_run(tmp_path / "run", LABELS, "samples_f2", epochs=3)
    page = page_of(made)
    truth, chosen = made.truth > 0.5, made.values >= 0.5
    counts = json.loads((made.path / "run.json").read_text())["counts"]["train_per_class"]
    for number, name in enumerate(LABELS.names[:5]):
        column = truth[:, number], chosen[:, number]
        scores = [
            f"{score(*column, zero_division=0):.3f}"
            for score in (skm.precision_score, skm.recall_score, skm.f1_score)
        ]
        auc = f"{skm.roc_auc_score(truth[:, number], made.values[:, number]):.3f}"
        assert (
            f"{number} {name} {counts[name]} {truth[:, number].sum()} {' '.join(scores)} {auc}" in page.text
        )
    whole = int((truth == chosen).all(axis=1).sum())
    right = (
        f"{100 * (truth == chosen).mean():.1f}% of all single decisions (image and label) are right; "
        f"{whole} of 160 validation images"
    )
    assert right in page.text
    assert "onfusion matrix" not in page.text and not (made.path / "figures" / "confusion.png").exists()
    assert f"from {min(counts.values())} ( rare ) to {max(counts.values())}" in page.text


def test_the_surest_wrong_decisions_say_which_label_was_missed_or_said(tmp_path: Path) -> None:
    made = make_target_run(tmp_path / "run", LABELS, "samples_f2", epochs=3, images=True)
    page = page_of(made)
    shown = page.text.split("Most confident wrong decisions")[1].split("At most three of each label")[0]
    wrong = [
        (
            made.values[row, label] if made.values[row, label] >= 0.5 else 1 - made.values[row, label],
            LABELS.names[label],
            row,
        )
        for row, label in np.argwhere((made.values >= 0.5) != (made.truth > 0.5))
    ]
    sure, label, row = max(wrong)
    said = made.values[row, LABELS.names.index(label)]
    verdict = "wrongly predicted" if said >= 0.5 else "true, but missed"
    assert shown.strip().startswith(f"{label} {verdict} ({100 * said:.1f}%) {row:04d}.png") and sure > 0.5
    alts = [
        image["alt"]
        for image in page.all("img")
        if (image["alt"] or "").endswith((", missed", ", wrongly predicted"))
    ]
    assert len(alts) > 3 and max(Counter(alt.rsplit(",", 1)[0] for alt in alts).values()) <= 3


def test_many_labels_show_the_weakest_and_fold_the_others(tmp_path: Path) -> None:
    many = Target(
        "multilabel", tuple(f"tag {number}" for number in range(120)), separator="|", may_be_empty=True
    )
    page = page_of(make_target_run(tmp_path / "run", many, "macro_f1", rows=60, epochs=2))
    assert "The 10 weakest labels by F1" in page.text and "All 120 labels" in page.text


def test_numbers_against_the_truth_and_against_the_training_mean(tmp_path: Path) -> None:
    made = make_target_run(tmp_path / "run", NUMBER, "rmse", images=True)
    page = page_of(made)
    truth, said = made.truth[:, 0].astype(float), made.values[:, 0].astype(float)
    rmse = skm.root_mean_squared_error(truth, said)
    mean = skm.root_mean_squared_error(truth, np.full(160, 38.0))
    median, r2 = np.median(np.abs(truth - said)), skm.r2_score(truth, said)
    row = f"{rmse:.4g} {skm.mean_absolute_error(truth, said):.4g} {median:.4g} {r2:.4f} {mean:.4g}"
    assert row in page.text
    worst = int(np.argmax(np.abs(truth - said)))
    largest = page.text.split("Largest errors")[1]
    assert largest.strip().startswith(f"{said[worst]:.4g} , true {truth[worst]:.4g} {worst:04d}.png")
    names = {path.name for path in (made.path / "figures").iterdir()}
    assert {"predicted_0.png", "residuals_0.png", "numbers_0.png"} <= names and not {
        "confusion.png",
        "calibration.png",
    } & names
    assert "Regression · a number" in page.text and "in the training images" in page.text
    assert sum((image["alt"] or "").startswith("true ") for image in page.all("img")) == 18


def test_several_numbers_have_a_section_each_and_small_scales_count(tmp_path: Path) -> None:
    made = make_target_run(tmp_path / "run", NUMBERS, "mae")
    page = page_of(made)
    error = np.abs(made.values - made.truth) / np.array(NUMBERS.scale)
    worst = int(error.mean(axis=1).argmax())
    assert page.text.split("Largest errors")[1].split(".png")[0].split()[-1] == f"{worst:04d}"
    assert {"predicted_0", "predicted_1"} <= {
        Path(path).stem for path in map(str, (made.path / "figures").iterdir())
    }


def test_numbers_of_training_that_were_not_kept_are_those_of_validation(tmp_path: Path) -> None:
    made = make_target_run(tmp_path / "run", NUMBER, "rmse")
    record = json.loads((made.path / "run.json").read_text())
    del record["counts"]["train_histograms"]
    (made.path / "run.json").write_text(json.dumps(record))
    assert "Distribution of Pawpularity in the validation images" in page_of(made).text


def test_a_histogram_that_was_changed_by_hand_is_left_out(tmp_path: Path) -> None:
    made = make_target_run(tmp_path / "run", NUMBER, "rmse")
    record = json.loads((made.path / "run.json").read_text())
    record["counts"]["train_histograms"] = {"Pawpularity": {"edges": [0, 1], "counts": [1, 2]}}
    (made.path / "run.json").write_text(json.dumps(record))
    assert "The numbers of the training images are not stored." in Page(build_report(made.path)).text


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_without_its_array_of_predictions_still_has_a_page(tmp_path: Path, kind: str) -> None:
    made = make_target_run(tmp_path / "run", *KINDS[kind])
    (made.path / "val_probs.npy").unlink()
    page = page_of(made)
    assert "Validation at the best epoch" in page.text
    np.save(made.path / "val_probs.npy", np.zeros((3, 2), dtype=np.float32))  # of another run
    assert page_of(made).text.split("Page written")[0] == page.text.split("Page written")[0]


def test_labels_that_the_target_does_not_know_are_refused_where_a_row_a_label_is_needed(
    tmp_path: Path,
) -> None:
    made = make_target_run(tmp_path / "run", LABELS, "samples_f2")
    with open(made.path / "val_predictions.csv", "a") as file:
        file.write("x,x.jpg,swamp,clear,0.5\n")
    with pytest.raises(UserError, match="swamp"):
        build_report(made.path)


def test_samples_lie_under_each_label_grade_and_part_of_the_range(tmp_path: Path) -> None:
    def kept(target: Target, labels: list[str]) -> dict[str, list[str]]:
        made = make_target_run(
            tmp_path / target.kind,
            target,
            "accuracy" if target.kind != "continuous" else "rmse",
            rows=4,
            images=True,
        )
        rows = [
            Row(str(row), tmp_path / "images" / f"{row:04d}.png", label) for row, label in enumerate(labels)
        ]
        store_samples(made.path, rows, target)
        found: dict[str, list[str]] = {}
        for line in map(json.loads, (made.path / "thumbnails.jsonl").read_text().splitlines()):
            found.setdefault(line["label"], []).append(Path(line["path"]).stem[-1])
        return found

    assert kept(LABELS, ["clear + river", "clear", "", "river"]) == {"clear": ["0", "1"], "river": ["0", "3"]}
    assert list(kept(GRADES, ["4", "0", "4", "1"]).items()) == [("0", ["1"]), ("1", ["3"]), ("4", ["0", "2"])]
    assert kept(BINARY, ["0", "1", "1", "0"]) == {"0": ["0", "3"], "1": ["1", "2"]}
    numbers = kept(NUMBER, ["50", "1", "99.5", "20"])
    assert list(numbers.values()) == [["1"], ["3"], ["0"], ["2"]] and next(iter(numbers)) == "1 to 1"


def test_public_scores_are_better_where_they_are_lower(tmp_path: Path) -> None:
    made = make_target_run(tmp_path / "run", NUMBER, "rmse")
    columns = "time,competition,file_sha256,message,validation_score,public_score,private_score,status"
    rows = [
        f"2026-01-0{day}T10:00:00+00:00,paws,{day},m,{score:.6g},{score + 1},,complete"
        for day, score in ((1, 30), (2, 8), (3, 9))
    ]
    rows.append(f"2026-01-04T10:00:00+00:00,paws,4,m,{made.best['value']:.6g},17.5,,complete")
    (tmp_path / "ledger.csv").write_text("\n".join([columns, *rows]) + "\n")
    page = Page(build_report(made.path, tmp_path / "ledger.csv"))
    assert "For both, lower is better." in page.text
    assert "Bold: the best public score, lower is better." in page.text
    assert re.findall(r"<td><strong>([^<]*)</strong></td>", page.html) == ["9"]


def test_a_comparison_marks_the_best_by_direction(tmp_path: Path) -> None:
    one, two = (
        make_target_run(tmp_path / name, NUMBER, "rmse", epochs=epochs)
        for name, epochs in (("one", 6), ("two", 3))
    )
    page = Page(build_comparison([one.path, two.path], tmp_path / "both"))
    rmse = [made.best["value"] for made in (one, two)]
    assert rmse[0] < rmse[1]
    assert f"validation RMSE (lower is better) {rmse[0]:.4f} {rmse[1]:.4f}" in page.text
    assert f"<td><strong>{rmse[0]:.4f}</strong></td><td>{rmse[1]:.4f}</td>" in page.html
    r2 = [
        next(line["val_r2"] for line in made.epochs if line["epoch"] == made.best["epoch"])
        for made in (one, two)
    ]
    assert r2[0] > r2[1] and f"<td><strong>{r2[0]:.4f}</strong></td><td>{r2[1]:.4f}</td>" in page.html
    assert {path.stem for path in (tmp_path / "both" / "figures").iterdir()} == {
        "mae",
        "loss",
        "rmse",
        "learning_rate",
    }
    assert "RMSE over the epochs (lower is better): validation solid." in page.text


def test_a_comparison_of_several_labels_has_their_f1(tmp_path: Path) -> None:
    made = [
        make_target_run(tmp_path / name, LABELS, "samples_f2", epochs=epochs)
        for name, epochs in (("one", 6), ("two", 3))
    ]
    page = Page(build_comparison([run.path for run in made], tmp_path / "both"))
    scores = [skm.f1_score(run.truth > 0.5, run.values >= 0.5, average=None, zero_division=0) for run in made]
    assert "F1 of each label Validation F1, labels with the largest difference first." in page.text
    for number, name in enumerate(LABELS.names):
        assert f"{name} {scores[0][number]:.3f} {scores[1][number]:.3f}" in page.text


def test_runs_of_different_targets_can_stand_side_by_side(tmp_path: Path) -> None:
    one = make_target_run(tmp_path / "one", NUMBER, "rmse", epochs=2)
    two = make_target_run(tmp_path / "two", GRADES, "qwk", epochs=2)
    page = Page(build_comparison([one.path, two.path], tmp_path / "both"))
    assert re.search(r"validation quadratic weighted kappa – \d\.\d+", page.text)
    assert "<td><strong>" not in page.html, "each metric has one run"


def test_words_and_values_of_metrics() -> None:
    assert [
        metric_name(name)
        for name in ("val_qwk", "map_at_3", "val_label_accuracy", "test_roc_auc", "val_macro_precision", "lr")
    ] == [
        *(
            "quadratic weighted kappa",
            "MAP@3",
            "label accuracy",
            "ROC AUC",
            "macro precision",
            "learning rate",
        )
    ]
    shown = {
        "val_accuracy": "94.1%",
        "val_macro_f1": "94.1%",
        "val_roc_auc": "0.9412",
        "val_average_precision": "0.9412",
        "val_pf1": "0.9412",
    }
    assert {key: metric_value(key, 0.9412) for key in shown} == shown
    assert [metric_value("rmse", value) for value in (21.978, 0.51234, 12345.6, 3.0)] == [
        "21.98",
        "0.5123",
        "12,346",
        "3.000",
    ]
    assert not any(map(higher_is_better, ("val_loss", "train_loss", "val_log_loss", "rmse", "test_mae")))
    assert all(
        map(higher_is_better, ("val_accuracy", "macro_recall", "vqa_accuracy_number", "map_at_10", "r2"))
    )
