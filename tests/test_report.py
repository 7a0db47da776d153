"""The run's page and figures, from files written here: no model, no training."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shutil
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import assert_says
from PIL import Image
from runs import NAMES, PER_EPOCH, Page, make_run, score, write_lines

from pipeline.competition.layout import Row
from pipeline.errors import UserError
from pipeline.kaggle.remembered import REMEMBERED
from pipeline.report import attention, confusion, curves, figures, ledger_figure, thumbnails
from pipeline.report.charts import class_counts_figure
from pipeline.report.curves import RunCurve, compared_curves, epoch_curves
from pipeline.report.live_page import LivePage
from pipeline.report.page import build_report, main
from pipeline.report.question_section import answers_figure
from pipeline.report.run_facts import flat, interval
from pipeline.report.run_files import read_run_files
from pipeline.report.thumbnails import store_samples
from pipeline.report.words import measured, setting, short_number
from pipeline.training.optim import lr_at


@pytest.fixture(autouse=True)
def coarse_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of the resolution: most of the time of these tests is spent on pixels that nobody looks
    at.
    """
    monkeypatch.setattr(figures, "DPI", 50)


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Away from the project's folder, where a ledger of submissions may lie."""
    monkeypatch.chdir(tmp_path)


def draw(run_dir: Path) -> list[tuple[Path, str]]:
    return list(curves.draw_curves(read_run_files(run_dir)).values())


def test_the_page_has_every_section(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", best=3)
    score(run_dir)
    assert build_report(run_dir) == run_dir / "report.html"
    page = Page(run_dir / "report.html")
    for expected in (
        "beit-large-384-lora: report",
        "Classification · beit-large-patch16-384",
        "75.0% validation accuracy epoch 3 of 4 12 images; 95% interval 47 to 91%",
        "91.5% test accuracy 240 rows",
        "3 classes · 60 training images · 12 validation images · 4 epochs · 4m04s · cpu, bf16",
        "Validation at the best epoch (3) accuracy 0.7500 macro F1 0.7000 loss 1.5000",
        "9 of 12 validation images are right (75.0%)",
        "Avocado Banana 1 25.0%",
        "Cabbage predicted as Avocado , 76.7% sure 2_0.jpg",
        "In the model, without adapter 304,178,888 99.49% Trainable 1,777,864 0.58% Adapter (LoRA) "
        "1,572,864 0.51% Head 205,000 0.07%",
        "Learning rate 5e-5",
        "LoRA targets query, key",
        "optimizer.head_lr –",
        "Images per optimizer step 64",
        "63 images of 3 classes: from 20 ( Avocado ) to 22 ( Cabbage ), median 21.",
        "Training time 4m04s Training images per second 45.2 Peak memory 812 MB",
        "python train.py --data 'my birds' && true",
        "Started 2026-01-31 09:15",
        "torch 2.9.0",
        "predictions.csv (SHA-256 abababababab…) against solution.csv, 2026-01-31 11:00.",
    ):
        assert expected in page.text
    assert {path.name for path in (run_dir / "figures").iterdir()} == {
        *("accuracy.png", "loss.png", "learning_rate.png", "confusion.png", "class_counts.png")
    }
    assert not list(run_dir.glob(".*")), "temporary files are left"


def test_the_page_needs_no_network_and_every_image_has_words(tmp_path: Path) -> None:
    page = Page(build_report(make_run(tmp_path / "run", per_class=40)))
    assert len(page.all("img")) == 6
    for _, attributes in page.tags:
        for name in ("src", "href", "action", "data", "srcset"):
            assert (attributes.get(name) or "data:").startswith("data:"), attributes
    assert not re.search(r"@import|url\(", page.html)
    assert not {"link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert page.all("script") == [{}], "one script of ours, in the page"
    assert "default-src 'none'" in next(
        meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"
    )
    assert all(len(image["alt"] or "") > 20 for image in page.all("img"))
    curve = next(image["alt"] for image in page.all("img") if "Accuracy over" in image["alt"])
    assert_says(curve, "4 epochs", "training from 50.0% to 50.0%", "validation from 25.0% to 75.0%")


def test_names_from_the_data_stay_text(tmp_path: Path) -> None:
    names = ['<script>alert("x")</script>', "a & b $x^2$ {{ 7 * 7 }}", "鳥"]
    run_dir = make_run(tmp_path / "run", names=names, paths=['data/"><img src=x onerror=alert(1)>.jpg'])
    page = Page(build_report(run_dir))
    assert page.html.count("<script") == 1 and len(page.all("script")) == 1
    assert html.escape(names[0], quote=False) in page.html.replace("&#34;", '"')
    assert names[0] in page.text and names[1] in page.text and names[2] in page.text
    assert not any("onerror" in attributes for _, attributes in page.tags)


def test_a_run_of_one_epoch_shows_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "DPI", 200)
    run_dir = make_run(tmp_path / "run", epochs=1)
    page = Page(build_report(run_dir))
    assert "Accuracy over 1 epoch: training 50.0%, validation 75.0%." in [
        image["alt"] for image in page.all("img")
    ]
    pixels = np.asarray(Image.open(run_dir / "figures" / "accuracy.png").convert("RGB")).reshape(-1, 3)
    for colour in (figures.TRAINING, figures.VALIDATION):
        rgb = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
        legend_only = 250
        assert (np.abs(pixels - np.array(rgb)).max(axis=1) < 8).sum() > legend_only


def test_a_run_without_validation(tmp_path: Path) -> None:
    page = Page(build_report(make_run(tmp_path / "run", validation=False)))
    assert "50.0% training accuracy epoch 4 on its own training images" in page.text
    assert (
        "No validation predictions (val_predictions.csv): this run held out no image (data.val_fraction)."
        in page.text
    )
    assert "best epoch" not in page.html
    assert "make score SOLUTION=solution.csv adds the test metrics" in page.text
    assert len(page.all("img")) == 4


def test_what_is_missing_is_one_quiet_line(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run")
    (run_dir / "timing.jsonl").unlink()
    (run_dir / "metrics.jsonl").unlink()
    page = Page(build_report(run_dir))
    assert "Not recorded (timing.jsonl)." in page.text
    assert "No epoch is recorded yet (metrics.jsonl)." in page.text
    assert "Left out: 12 validation images are too few" in page.text
    assert "75.0% validation accuracy epoch 4" in page.text


def test_what_training_counts_otherwise_stands_below_its_curves(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run")
    record = json.loads((run_dir / "run.json").read_text())
    assert "mixed" not in Page(build_report(run_dir)).text
    record["recipe"]["augmentation"] = {"mixup": 0.2, "cutmix": 0}
    record["recipe"]["optimizer"] |= {"loss": "focal", "logit_adjustment": 1}
    (run_dir / "run.json").write_text(json.dumps(record))
    text = Page(build_report(run_dir)).text
    assert "Training mixes pairs of images" in text
    assert_says(text, "focal loss", "logits adjusted", "mixed images")


def test_an_unfinished_run_has_figures_and_a_page(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", best=2)
    (run_dir / "run.json").unlink()
    (run_dir / "val_predictions.csv").unlink()
    begun = time.process_time()
    written = [path for path, _ in draw(run_dir)]
    # It is called after every epoch; well under a second on a machine that is not shared
    assert time.process_time() - begun < 3
    assert [path.name for path in written] == ["accuracy.png", "loss.png", "learning_rate.png"]
    assert all(Image.open(path).size == (260, 175) for path in written)
    assert not (run_dir / "report.html").exists()
    page = Page(build_report(run_dir))
    assert "This run is not finished" in page.text and "75.0% validation accuracy epoch 2 of 4" in page.text
    assert "there are none yet" in page.text
    assert "Learning rate recorded at the end of each epoch." in page.text
    assert "How it was made More is shown once run.json exists" in page.text


def test_an_unfinished_run_shows_the_whole_schedule_it_was_started_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = make_run(tmp_path / "run", epochs=2)
    schedule = json.loads((run_dir / "run.json").read_text())["schedule"] | {"total_steps": 10 * PER_EPOCH}
    (run_dir / "state").mkdir()
    (run_dir / "state" / "start.json").write_text(
        json.dumps({"recipe": {"epochs": 10}, "schedule": schedule})
    )
    drawn = []
    monkeypatch.setattr(curves, "learning_rate_curve", lambda _path, *values: drawn.append(values))
    draw(run_dir)  # run.json, where it is, has the last word
    (run_dir / "run.json").unlink()
    draw(run_dir)
    (finished, *_), (steps, rates, ends, dots) = drawn
    assert finished == list(range(2 * PER_EPOCH))
    assert steps == list(range(10 * PER_EPOCH)) and rates == [lr_at(step, schedule) for step in steps]
    assert ends == {1: 8, 2: 17} and [step for step, _ in dots] == [8, 17]
    monkeypatch.undo()
    page = Page(build_report(run_dir))
    assert "epoch 2 of 10" in page.text
    alternative = next(image["alt"] for image in page.all("img") if "Learning rate" in image["alt"])
    assert_says(alternative, "90 optimizer steps", "5e-5")


def test_two_classes(tmp_path: Path) -> None:
    page = Page(build_report(make_run(tmp_path / "run", names=["cat", "dog"])))
    assert (
        "Each class No. class training images validation images precision recall F1 0 cat 20 4 0.750 0.750 "
        "0.750 1 dog 21 4" in page.text
    )
    alternative = next(image["alt"] for image in page.all("img") if "Confusion matrix" in image["alt"])
    assert_says(alternative, "2 classes", "2 of 8 validation images", "cat was predicted as dog")


def test_a_thousand_classes(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", names=[f"bird {number}" for number in range(1000)], per_class=2)
    path = build_report(run_dir)
    page = Page(path)
    assert "The 10 weakest classes by F1" in page.text and "All 1,000 classes" in page.text
    assert "Each cell shows the largest share among 4 x 4 classes." in page.text
    assert "999 bird 999 1,019 2" in page.text
    mistakes, browsed = page.text.split("Browse the images")
    assert mistakes.count("predicted as bird") == 18
    assert "This page holds 1,200 of 2,000 validation images" in browsed
    assert browsed.count("predicted as bird") == 900
    assert "Choose by true and predicted class" not in browsed, (
        "a thousand columns are no table to click into"
    )
    assert path.stat().st_size < 3e6


def test_calibration_over_enough_predictions(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", names=["cat", "dog"], per_class=50)
    page = Page(build_report(run_dir))
    # 50 at 0.5 and 50 at 0.7, of each 49 right: ECE is (|0.98 - 0.5| + |0.98 - 0.7|) / 2
    assert_says(page.text, "confidence of the model is 60.0%", "98.0%", "calibration error is 0.3800")
    assert (run_dir / "figures" / "calibration.png").exists()


def test_mistakes_show_their_image_where_it_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    good, broken = Path("data/a b.png"), Path("data/broken.jpg")
    Path("data").mkdir()
    Image.new("RGBA", (900, 300), (200, 30, 30, 255)).save(good)
    broken.write_bytes(b"\xff\xd8\xff not an image")
    page = Page(build_report(make_run(tmp_path / "run", paths=[str(good), str(broken), "data/gone.jpg"])))
    thumbnails = [image for image in page.all("img") if (image["src"] or "").startswith("data:image/jpeg")]
    mistake, strip, *browsed = [image["alt"] for image in thumbnails]
    assert (mistake, strip) == ("Avocado, predicted as Banana", "Avocado, predicted as Banana, 1")
    assert browsed == ["Avocado: predicted as Banana, 50.0% sure", *["Avocado: right, 50.0% sure"] * 3], (
        "the images of that path"
    )
    assert len(thumbnails[0]["src"] or "") < 20_000
    assert "gone.jpg" in page.text and "broken.jpg" in page.text and str(tmp_path) not in page.text


def test_a_label_that_is_no_class_counts_as_a_mistake(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run")
    with open(run_dir / "val_predictions.csv", "a") as file:
        file.write("extra,x.jpg,an answer outside,Banana,0.99\n")
    page = Page(build_report(run_dir))
    assert "9 of 13 validation images are right" in page.text
    assert "3 an answer outside – 1 – 0.000 0.000" in page.text


@pytest.mark.parametrize("make", [False, True])
def test_a_folder_without_a_run_names_the_command(tmp_path: Path, make: bool) -> None:
    make_run(tmp_path / "other")
    if make:
        (tmp_path / "run").mkdir()
    with pytest.raises(UserError) as caught:
        main(["--run", str(tmp_path / "run")])
    message = str(caught.value)
    assert ("holds neither run.json nor metrics.jsonl" if make else "does not exist") in message
    assert "python train.py" in message and "python -m pipeline.report.page --run DIR" in message
    assert str(tmp_path / "other") in message
    assert not list(tmp_path.glob("run/*"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as caught:
        main(["--run", str(tmp_path / "file")])
    assert "cp -r" not in str(caught.value) and "no run to report" in str(caught.value)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run")
    with open(run_dir / "timing.jsonl", "a") as file:
        file.write('{"epoch": 5, "sec')
    with pytest.raises(UserError, match=r"timing\.jsonl is damaged"):
        build_report(run_dir)
    (run_dir / "timing.jsonl").unlink()
    (run_dir / "val_predictions.csv").write_text("id,label,predicted\n1,a,b\n")
    with pytest.raises(UserError, match=r"val_predictions\.csv .*path, confidence.* id, path"):
        build_report(run_dir)
    assert not (run_dir / "report.html").exists()


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("schedule", "total_steps"), 0),
        (("counts", "parameters"), {"trainable": 5}),
        (("counts", "train_per_class"), {"a": 0}),
    ],
)
def test_odd_values_in_run_json_do_not_end_the_page(
    tmp_path: Path, place: tuple[str, str], value: object
) -> None:
    run_dir = make_run(tmp_path / "run")
    record = json.loads((run_dir / "run.json").read_text())
    record[place[0]][place[1]] = value
    (run_dir / "run.json").write_text(json.dumps(record))
    assert build_report(run_dir).is_file()


def test_a_class_without_a_confidence_is_named_with_its_row(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run")
    table = run_dir / "val_predictions.csv"
    lines = table.read_text().splitlines()
    lines[3] = lines[3].rpartition(",")[0] + ","
    table.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match="row 4: confidence: expected a number from 0 to 1"):
        build_report(run_dir)


def test_a_failed_page_leaves_the_former_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = make_run(tmp_path / "run")
    before = build_report(run_dir).read_bytes()

    def full_disk(_descriptor: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("pipeline.files.os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        build_report(run_dir)
    assert (run_dir / "report.html").read_bytes() == before
    assert not list(run_dir.rglob(".*"))


def test_if_present_is_quiet_without_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--run", str(tmp_path), "--if-present"]) == 0
    assert capsys.readouterr().out == f"{tmp_path} holds no run: no page to write\n"
    run_dir = make_run(tmp_path / "run", epochs=1)
    assert main(["--run", str(run_dir), "--if-present"]) == 0
    assert (run_dir / "report.html").exists()


def test_public_and_private_scores_stand_side_by_side(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", validation=False)
    score(run_dir)
    scores = json.loads((run_dir / "scores.json").read_text())
    scores["parts"] = {
        "Public": {"macro_f1": 0.9, "accuracy": 0.93},
        "Private": {"macro_f1": 0.8, "accuracy": 0.9},
    }
    (run_dir / "scores.json").write_text(json.dumps(scores))
    page = Page(build_report(run_dir))
    assert "all rows Public Private macro F1 0.8612 0.9000 0.8000 accuracy 0.9150 0.9300 0.9000" in page.text


def test_the_command_prints_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = make_run(tmp_path / "run")
    assert main(["--run", str(run_dir)]) == 0
    assert capsys.readouterr().out.startswith(f"{run_dir / 'report.html'}: ")
    with pytest.raises(UserError, match="--output elsewhere: only for a comparison"):
        main(["--run", str(run_dir), "--output", "elsewhere"])


@pytest.mark.parametrize("name", ["linear", "cosine", "stepped_cosine", "constant"])
def test_the_learning_rate_is_followed_step_by_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    run_dir = make_run(tmp_path / "run")
    record = json.loads((run_dir / "run.json").read_text())
    record["schedule"]["name"] = name
    (run_dir / "run.json").write_text(json.dumps(record))
    seen = {}
    monkeypatch.setattr(
        curves,
        "learning_rate_curve",
        lambda _path, steps, rates, ends, dots: seen.update(steps=steps, rates=rates, ends=ends, dots=dots),
    )
    draw(run_dir)
    assert seen["steps"] == list(range(4 * PER_EPOCH))
    assert seen["rates"] == [lr_at(step, record["schedule"]) for step in range(4 * PER_EPOCH)]
    assert seen["ends"] == {1: 8, 2: 17, 3: 26, 4: 35}
    if name == "linear":  # what the run recorded lies on the line
        assert all(
            rate == pytest.approx(dict(zip(seen["steps"], seen["rates"], strict=True))[step])
            for step, rate in seen["dots"]
        )


def test_a_long_schedule_is_sampled_with_both_sides_of_every_epoch() -> None:
    schedule = {
        "name": "stepped_cosine",
        "lr": 1e-4,
        "end_lr": 1e-6,
        "warmup_steps": 0,
        "total_steps": 23_430,
        "steps_per_epoch": 1562,
    }
    steps, _ = curves.scheduled(schedule)
    assert len(steps) < 2000 and steps[0] == 0 and steps[-1] == 23_429
    assert {1561, 1562, 3123, 3124} <= set(steps)


def test_confusion_cells_of_a_heat_map_keep_single_mistakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = np.diag(np.full(1000, 10))
    counts[3, 998] = 1
    drawn = []
    monkeypatch.setattr("matplotlib.axes.Axes.imshow", spy(drawn, figures.Axes.imshow))
    confusion.confusion_figure(tmp_path / "confusion.png", counts, [str(number) for number in range(1000)])
    cells = drawn[0]
    assert cells.shape == (250, 250)
    assert cells[0, 249] == pytest.approx(1 / 11) and np.isnan(cells[100, 0])


def spy(seen: list, original):
    def wrapper(self, values, *args, **kwargs):
        seen.append(values)
        return original(self, values, *args, **kwargs)

    return wrapper


def test_names_on_a_figure_are_short_and_drawable() -> None:
    assert figures.drawable("a  very long name of a rare bird", 4) == "a very long name of a r…"
    assert figures.drawable("\U000f0000", 4) == "class 4"  # a private letter that no font has
    long = "a very long name of a rare bird"
    assert figures.drawable_names([f"{long} A", "bird", f"{long} B"]) == [
        "a very long name… (0)",
        "bird",
        "a very long name… (2)",
    ]


def test_dollars_in_names_are_no_formulas(tmp_path: Path) -> None:
    """Two dollar signs begin and end a formula in matplotlib, which refuses unknown words in it."""
    name = r"$\foo$"
    for drawn in (
        lambda path: epoch_curves(path, [1], {"validation": [0.5]}, "accuracy", (1, name)),
        lambda path: compared_curves(path, [RunCurve(name, [1], [0.5])], "accuracy"),
        lambda path: answers_figure(path, [(name, 3)]),
        lambda path: class_counts_figure(path, [name, "b"], [1, 100], logarithmic=True),
        lambda path: attention._grid(path, [(name, [(Image.new("RGB", (8, 8)), None, name)])], name),
    ):
        drawn(tmp_path / "drawn.png")
        (tmp_path / "drawn.png").unlink()


def test_axes_start_where_a_reader_expects() -> None:
    assert curves._share_limits(np.array([0.2, 0.6])) == (0.0, 0.7)
    low, high = curves._share_limits(np.array([0.91, 0.985, np.nan]))
    assert low == pytest.approx(0.85) and 1.0 <= high < 1.01
    assert curves._loss_limits(np.array([np.nan]))[0] == 0.0


def test_numbers_as_people_write_them() -> None:
    assert [measured(value) for value in (304178888, 0.94123, 4.8e-5, 0.0, None)] == [
        "304,178,888",
        "0.9412",
        "4.8e-5",
        "0.0000",
        "–",
    ]
    assert [setting(value) for value in (5e-5, 16.0, True, None, [0.08, 1.0], "adamw", 2048)] == [
        "5e-5",
        "16",
        "yes",
        "–",
        "0.08, 1",
        "adamw",
        "2048",
    ]
    assert flat({"lora": {"rank": 8}, "architecture": {}, "seed": 1}) == [
        ("lora.rank", 8),
        ("architecture", {}),
        ("seed", 1),
    ]


@pytest.mark.parametrize(
    "value, text",
    [
        (5e-5, "5e-5"),
        (2.5e-4, "2.5e-4"),
        (0.0008, "8e-4"),
        (0.05, "0.05"),
        (0.0, "0"),
        (1.3333333, "1.33333"),
        (16.0, "16"),
    ],
)
def test_short_numbers(value: float, text: str) -> None:
    assert short_number(value) == text


def test_the_interval_is_wilsons() -> None:
    assert interval(27 / 29, 29) == pytest.approx((0.7804, 0.9809), abs=1e-3)
    assert interval(1.0, 29)[1] == 1.0


def test_the_best_epoch_is_the_first_of_equals(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run")
    (run_dir / "run.json").unlink()
    write_lines(
        run_dir / "metrics.jsonl",
        [{"epoch": epoch, "step": epoch, "lr": 1e-4, "val_accuracy": 0.5} for epoch in (1, 2, 3)],
    )
    assert read_run_files(run_dir).best == {"epoch": 1, "metric": "val_accuracy", "value": 0.5}


def rows_of(folder: Path, names: list[str], per_class: int) -> list[Row]:
    """Training rows with images of one grey a class, a step lighter from image to image."""
    rows = []
    for number, name in enumerate(names):
        for image in range(per_class):
            path = folder / f"{number}_{image}.png"
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (300, 200), (number, 10 * image, 0)).save(path)
            rows.append(Row(f"{number}_{image}", path, name))
    return rows


def test_training_images_stay_on_the_page_when_the_data_is_gone(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "train", NAMES, per_class=9)
    run_dir = make_run(tmp_path / "run", paths=[str(row.path) for row in rows[::9]])
    rows[0].path.write_bytes(b"damaged")
    store_samples(run_dir, rows, NAMES)
    build_report(run_dir)  # which also keeps the images of the mistakes
    shutil.rmtree(tmp_path / "train")
    page = Page(build_report(run_dir))
    alts = [image["alt"] for image in page.all("img")]
    assert [alts.count(f"Avocado, training image {number}") for number in (1, 5, 6)] == [1, 1, 0], (
        "one of six is damaged"
    )
    assert sum("Cabbage, training image" in alt for alt in alts) == 6
    assert {"Banana, predicted as Cabbage", "Cabbage, predicted as Avocado"} <= set(alts)
    kept = [json.loads(line) for line in (run_dir / "thumbnails.jsonl").read_text().splitlines()]
    kept = [line for line in kept if line["use"] != "browse"]
    assert [Path(line["path"]).name for line in kept if line["label"] == "Banana"] == [
        *("1_0.png", "1_1.png", "1_3.png", "1_4.png", "1_6.png", "1_7.png", "1_0.png")
    ]
    with Image.open(io.BytesIO(base64.b64decode(kept[-1]["jpeg"]))) as image:
        assert image.size == (224, 149)


@pytest.mark.parametrize("num_classes, shown, each", [(60, 60, 6), (61, 61, 1), (1000, 334, 1)])
def test_many_classes_have_few_images_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_classes: int, shown: int, each: int
) -> None:
    monkeypatch.setattr(thumbnails, "thumbnail", lambda path, *_: path.name)
    names = [f"bird {number}" for number in range(num_classes)]
    store_samples(
        tmp_path,
        [Row(f"{name} {image}", Path(f"{name} {image}"), name) for image in range(8) for name in names],
        names,
    )
    kept = [json.loads(line)["label"] for line in (tmp_path / "thumbnails.jsonl").read_text().splitlines()]
    assert len(set(kept)) == shown and set(Counter(kept).values()) == {each}


def test_images_beyond_the_first_classes_are_folded(tmp_path: Path) -> None:
    names = [f"bird {number}" for number in range(70)]
    run_dir = make_run(tmp_path / "run", names=names)
    store_samples(run_dir, rows_of(tmp_path / "train", names, per_class=1), names)
    page = Page(build_report(run_dir))
    assert "10 more classes" in page.text
    assert sum((image["alt"] or "").endswith(", a training image") for image in page.all("img")) == 70


def test_attention_figures_have_a_section(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run")
    assert "Attention" not in Page(build_report(run_dir)).text
    Image.new("RGB", (40, 20)).save(run_dir / "figures" / "attention.png")
    page = Page(build_report(run_dir))
    assert "Attention Attention maps over the images." in page.text and len(page.all("img")) == 6


def write_ledger(path: Path, *lines: str) -> Path:
    columns = "time,competition,file_sha256,message,validation_score,public_score,private_score,status"
    path.write_text("\n".join([columns, *lines]) + "\n")
    return path


def test_submissions_stand_against_their_validation_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = make_run(tmp_path / "run")
    ledger = write_ledger(
        tmp_path / "ledger.csv",
        "2026-01-01T10:00:00+00:00,fish,a,another competition,0.1,0.2,,complete",
        "2026-01-02T10:00:00+00:00,birds,b,first,0.7,0.69,0.68,complete",
        "2026-01-03T10:00:00+00:00,birds,c,<b>second</b>,0.75,0.71,,complete",
        "2026-01-04T10:00:00+00:00,birds,d,third,0.8,,,pending",
    )
    drawn = []
    monkeypatch.setattr(
        ledger_figure, "submissions_figure", spy_figure(drawn, ledger_figure.submissions_figure)
    )
    page = Page(build_report(run_dir, ledger))
    assert drawn == [([(1, 0.7, 0.69), (2, 0.75, 0.71)], [2])], "the run's own validation score is 0.75"
    assert (
        "1 2026-01-02 10:00 first 0.7 0.69 0.68 2 2026-01-03 10:00 <b>second</b> 0.75 0.71 – 3 2026-01-04 "
        "10:00 third 0.8 pending –" in page.text
    )
    assert "another competition" not in page.text
    assert (run_dir / "figures" / "submissions.png").exists()


def spy_figure(seen: list, original):
    def wrapper(path, points, own, *words):
        seen.append((points, own))
        return original(path, points, own, *words)

    return wrapper


def test_one_submission_is_a_table_and_a_damaged_ledger_a_line(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run")
    ledger = write_ledger(
        tmp_path / "ledger.csv", "2026-01-02T10:00:00+00:00,birds,b,first,0.75,0.69,,complete"
    )
    assert "first 0.75 0.69 –" in Page(build_report(run_dir, ledger)).text
    assert not (run_dir / "figures" / "submissions.png").exists()
    ledger.write_text("time\n1\n")
    assert f"Left out: {ledger} is not a readable ledger" in Page(build_report(run_dir, ledger)).text


def test_submissions_of_other_runs_show_where_their_competition_is_in_the_data_folder(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run")
    ledger = write_ledger(
        tmp_path / "ledger.csv", "2026-01-02T10:00:00+00:00,birds,b,first,0.7,0.69,,complete"
    )
    assert "Submissions" not in Page(build_report(run_dir, ledger)).text
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / REMEMBERED).write_text('{"slug": "birds"}')
    assert "first 0.7 0.69 –" in Page(build_report(run_dir, ledger)).text


def test_a_mistaken_answer_shows_its_question(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run")
    with open(run_dir / "val_predictions.csv", newline="") as file:
        header, *lines = file.read().splitlines()
    text = [f"{header},question", *(f"{line},what <i>is</i> it?" for line in lines)]
    (run_dir / "val_predictions.csv").write_text("\n".join(text) + "\n")
    record = json.loads((run_dir / "run.json").read_text())
    record["recipe"]["task"] = "vqa"
    (run_dir / "run.json").write_text(json.dumps(record))
    page = Page(build_report(run_dir))
    assert "60 training questions · 12 validation questions" in page.text
    assert "“ what <i>is</i> it? ”" in page.text
    assert "63 questions of 3 classes" in page.text and "Training images by class" not in page.text
    assert not (run_dir / "figures" / "class_counts.png").exists(), "the answers have their own figure"


def test_curves_follow_every_epoch_and_the_page_in_a_twentieth_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    written, drawn = [], []

    def build(_run_dir: Path) -> None:
        written.append(clock[0])
        clock[0] += 2.0

    def draw(_run_dir: Path) -> None:
        drawn.append(clock[0])
        clock[0] += 0.5

    monkeypatch.setattr("pipeline.report.live_page.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("pipeline.report.page.build_report", build)
    monkeypatch.setattr("pipeline.report.run_files.read_run_files", lambda run_dir: run_dir)
    monkeypatch.setattr("pipeline.report.curves.draw_curves", draw)
    live = LivePage(tmp_path)
    for _ in range(200):
        clock[0] += 1.0
        assert live.update() is None
    assert drawn[0] == 10.0 and len(drawn) > 10 and 0.5 * len(drawn) <= 0.05 * clock[0]
    assert 30.0 <= written[0] < 32.0 and len(written) > 3 and 2.0 * len(written) <= 0.05 * clock[0]
    written.clear()
    for _ in range(5):
        clock[0] += 100.0
        live.update()
    assert len(written) == 5, "epochs of minutes have their page at once"


def test_a_page_that_fails_does_not_end_a_training_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("pipeline.report.live_page.time.monotonic", lambda: clock[0])
    live = LivePage(tmp_path / "gone")
    clock[0] = 100.0
    assert "training continues" in (live.update() or "")
