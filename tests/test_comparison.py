"""Several runs in one page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from runs import PER_EPOCH, Page, make_run, score

from pipeline.errors import UserError
from pipeline.report import comparison, figures
from pipeline.report.comparison import build_comparison
from pipeline.report.page import main


@pytest.fixture(autouse=True)
def coarse_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "DPI", 50)


@pytest.fixture
def curves(monkeypatch: pytest.MonkeyPatch) -> dict[str, list]:
    """The curves of each plot, drawn as well."""
    drawn, original = {}, comparison.compared_curves

    def spy(path: Path, lines: list, *args: object, **kwargs: object) -> None:
        drawn[path.stem] = lines
        original(path, lines, *args, **kwargs)

    monkeypatch.setattr(comparison, "compared_curves", spy)
    return drawn


def change_recipe(run_dir: Path, **recipe: object) -> Path:
    record = json.loads((run_dir / "run.json").read_text())
    record["recipe"] |= recipe
    (run_dir / "run.json").write_text(json.dumps(record))
    return run_dir


def test_curves_share_a_plot_and_tables_stand_side_by_side(tmp_path: Path, curves: dict[str, list]) -> None:
    one = make_run(tmp_path / "one", epochs=4, best=3)
    two = change_recipe(make_run(tmp_path / "two", epochs=2), image_size=224)
    score(two)
    page = Page(build_comparison([one, two], tmp_path / "both"))
    for expected in (
        "kept epoch 3 of 4 2 of 2",
        "validation accuracy 0.7500 0.7500",
        "test accuracy – 0.9150",
        "training time 4m04s 2m02s",
        "Adapter (LoRA) 1,572,864 (0.5%) 1,572,864 (0.5%)",
        "Settings that differ one two epochs 4 2 image_size – 224 Settings that are the same (7)",
        "largest difference first. class one two Avocado 0.750 0.750",
    ):
        assert expected in page.text
    assert [(curve.run, list(curve.x), curve.dashed) for curve in curves["accuracy"]] == [
        *(
            ("one", [1, 2, 3, 4], True),
            ("one", [1, 2, 3, 4], False),
            ("two", [1, 2], True),
            ("two", [1, 2], False),
        )
    ]
    assert curves["loss"][3].y == [1.5, 1.5]
    assert curves["learning_rate"][0].x[-1] == 4.0 and curves["learning_rate"][1].x[PER_EPOCH - 1] == 1.0
    names = {path.name for path in (tmp_path / "both" / "figures").iterdir()}
    assert names == {"accuracy.png", "loss.png", "learning_rate.png", "confusion_1.png", "confusion_2.png"}
    assert all(len(image["alt"] or "") > 20 for image in page.all("img")) and len(page.all("img")) == 5


def test_nothing_but_the_same_comparison_is_replaced(tmp_path: Path) -> None:
    one, two, three = (make_run(tmp_path / name, epochs=1) for name in ("one", "two", "three"))
    assert build_comparison([one, two], tmp_path / "both") == tmp_path / "both" / "comparison.html"
    assert build_comparison([two, one], tmp_path / "both") == tmp_path / "both" / "comparison.html"
    (tmp_path / "both" / "notes.txt").write_text("mine")
    # Which run stands beside `one` in which folder: the newest has the plain name
    pages = {"both": "three", "both-2": "two"}
    for others in (pages, {"both": "two", "both-2": "three"}, pages):
        newest = tmp_path / others["both"]
        assert build_comparison([one, newest], tmp_path / "both") == tmp_path / "both" / "comparison.html"
        for folder, name in others.items():
            title = Page(tmp_path / folder / "comparison.html").text.partition(":")[0]
            assert sorted(title.split(", ")) == ["one", name]
        assert (
            tmp_path / ("both" if others["both"] == "two" else "both-2") / "notes.txt"
        ).read_text() == "mine"
    assert sorted(path.name for path in tmp_path.glob("both*")) == ["both", "both-2"]
    build_comparison([two, three], tmp_path / "both")
    assert sorted(path.name for path in tmp_path.glob("both*")) == ["both", "both-2", "both-3"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "comparison.html").write_text("my notes")
    assert build_comparison([one, two], tmp_path / "mine").parent == tmp_path / "mine-2"
    assert (tmp_path / "mine" / "comparison.html").read_text() == "my notes"
    assert (
        build_comparison([one, two], tmp_path / "mine" / "comparison.html").parent
        == tmp_path / "mine" / "comparison.html-2"
    )


def test_runs_of_other_classes_or_without_validation(tmp_path: Path) -> None:
    one, two = make_run(tmp_path / "one"), make_run(tmp_path / "two", names=["cat", "dog"], validation=False)
    page = Page(build_comparison([one, two], tmp_path / "both"))
    assert "Left out: the runs have different classes, or no validation predictions." in page.text
    assert len(page.all("img")) == 4, "three plots and one matrix"


def test_runs_with_nothing_recorded_yet_have_a_page(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text('{"format": 1, "class_names": ["a", "b"]}')
    page = Page(build_comparison([tmp_path / "one", tmp_path / "two"], tmp_path / "both"))
    assert "No epoch is recorded yet" in page.text and "Bold" not in page.text


def test_runs_of_the_same_name_are_told_apart_by_their_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(Path("monday/run"), epochs=1)
    make_run(Path("tuesday/run"), epochs=1)
    assert main(["--run", "monday/run", "--run", "tuesday/run"]) == 0
    assert "monday/run · tuesday/run" in Page(Path("comparison/comparison.html")).text


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    one = make_run(tmp_path / "one", epochs=1)
    with pytest.raises(UserError, match=r"one, .*two/\.\./one: given twice"):
        build_comparison([one, tmp_path / "two" / ".." / "one"], tmp_path / "both")
    with pytest.raises(UserError, match=r"9 runs to compare.*at most 8"):
        build_comparison([tmp_path / str(number) for number in range(9)], tmp_path / "both")
    with pytest.raises(UserError, match="no run to report"):
        build_comparison([one, tmp_path / "absent"], tmp_path / "both")
    assert not (tmp_path / "both").exists()


def test_f1_of_classes_in_another_order(tmp_path: Path) -> None:
    runs = {
        run: make_run(tmp_path / run, names=names)
        for run, names in (("a", ["cat", "dog"]), ("b", ["dog", "cat"]))
    }
    lines = [
        f"{number},x.jpg,{label},{predicted},0.9"
        for number, (label, predicted) in enumerate([("cat", "dog"), ("dog", "dog")])
    ]
    (runs["b"] / "val_predictions.csv").write_text(
        "id,path,label,predicted,confidence\n" + "\n".join(lines) + "\n"
    )
    page = Page(build_comparison(list(runs.values()), tmp_path / "both"))
    assert "class a b cat 0.750 0.000 dog 0.750 0.667" in page.text


def test_other_labels_other_rows_and_other_solutions_are_said(tmp_path: Path) -> None:
    same = [make_run(tmp_path / "a"), make_run(tmp_path / "b")]
    assert "validation rows differ" not in Page(build_comparison(same, tmp_path / "same")).text
    other = make_run(tmp_path / "c", per_class=6)
    text = Page(build_comparison([same[0], other], tmp_path / "rows")).text
    assert "validation rows differ (a: 12, c: 18; 12 " in text and "different labels" not in text
    fruit = make_run(tmp_path / "d", names=["Apple", "Pear"])
    text = Page(build_comparison([same[0], fruit], tmp_path / "labels")).text
    assert "different labels (a: 3, d: 2)" in text
    for run in same:
        score(run)
    scores = json.loads((same[1] / "scores.json").read_text())
    (same[1] / "scores.json").write_text(json.dumps(scores | {"solution": "other.csv"}))
    assert (
        "different solutions: a: solution.csv, b: other.csv"
        in Page(build_comparison(same, tmp_path / "tests")).text
    )


def test_figures_also_as_vectors_for_a_write_up(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    assert main(["--run", str(run), "--format", "svg", "--format", "pdf"]) == 0
    pngs = sorted(path.stem for path in (run / "figures").glob("*.png"))
    for ending, start in (("svg", b"<?xml"), ("pdf", b"%PDF")):
        files = sorted((run / "figures").glob(f"*.{ending}"))
        assert pngs
        assert [path.stem for path in files] == pngs
        assert all(path.read_bytes().startswith(start) for path in files)
