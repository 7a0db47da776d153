"""Whether a model belongs to a competition, and which run made a predictions file."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import assert_says, colour_patch, make_competition

import inference
from pipeline import files
from pipeline.competition.layout import read_layout
from pipeline.errors import UserError
from pipeline.kaggle import cli, submit
from pipeline.submission.belonging import check_belongs, unknown_labels
from pipeline.submission.origin import MADE_BY, find_origin, find_origins, record_origin
from pipeline.targets.target import Target, multiclass

FRUIT = {"apple": (200, 40, 40), "lemon": (220, 210, 60), "lime": (90, 200, 60)}


def fruit(root: Path, train: bool = True, sample: str = "id,label\nf0,apple\nf1,apple\n") -> Path:
    for number in range(2):
        colour_patch(root / "test" / f"f{number}.png", FRUIT["apple"], number)
    for number, (name, colour) in enumerate(FRUIT.items() if train else ()):
        colour_patch(root / "train" / name / f"{name}.png", colour, 50 + number)
    if sample:
        (root / "sample_submission.csv").write_text(sample)
    return root


def predict(run: Path, data: Path, output: Path) -> Path:
    assert inference.main(["--model", str(run), "--data", str(data), "--output", str(output)]) == 0
    return output


def test_labels_that_the_model_does_not_know_are_an_error_that_shows_both(
    finished_run: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        predict(finished_run / "run", fruit(tmp_path / "fruit"), tmp_path / "p.csv")
    for name in ("'blue'", "'green'", "'red'", "'apple'", "'lemon'", "'lime'"):
        assert name in str(error.value)
    assert not (tmp_path / "p.csv").exists()


def test_one_label_too_many_is_enough(finished_run: Path, tmp_path: Path) -> None:
    data = make_competition(tmp_path / "data")
    colour_patch(data / "train" / "grey" / "g.png", (120, 120, 120), 1)
    with pytest.raises(UserError, match=r"(?s)3 classes.*'grey'"):
        predict(finished_run / "run", data, tmp_path / "p.csv")


def test_columns_of_the_sample_that_the_model_lacks_show_both(finished_run: Path, tmp_path: Path) -> None:
    data = fruit(tmp_path / "fruit", train=False, sample="id,apple,lemon,lime\nf0,0,0,0\nf1,0,0,0\n")
    with pytest.raises(UserError) as error:
        predict(finished_run / "run", data, tmp_path / "p.csv")
    for name in ("'blue'", "'green'", "'red'", "'apple'", "'lemon'", "'lime'"):
        assert name in str(error.value)


def test_where_nothing_can_be_compared_that_is_said(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predict(finished_run / "run", fruit(tmp_path / "fruit", train=False), tmp_path / "p.csv")
    assert "not checked: whether the model belongs to this competition" in capsys.readouterr().out
    predict(finished_run / "run", finished_run / "data", tmp_path / "q.csv")
    assert "not checked" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("target", "labels", "unknown"),
    [
        (multiclass(["a", "b"]), ["a", "c"], ["c"]),
        (Target("multilabel", ("x", "y")), ["x y", "z x", ""], ["z"]),
        (Target("binary", ("cat, dog", "fox"), positive=("fox",)), ["cat", "dog", "fox", "do"], ["do"]),
        (Target("binary", ("0", "1"), positive=("1",)), ["0", "1"], []),
        (Target("continuous", ("price",)), ["1", "2.5", "cheap"], ["cheap"]),
        (Target("continuous", ("x", "y"), separator="|"), ["1|2", "1"], ["1"]),
        (Target("ordinal", ("0", "1")), ["1", "2"], ["2"]),
    ],
)
def test_unknown_labels_by_target(target: Target, labels: list[str], unknown: list[str]) -> None:
    assert unknown_labels(target, labels) == unknown


def test_the_labels_of_a_table_count_where_its_images_are_not_there(
    finished_run: Path, tmp_path: Path, capsys
) -> None:
    data = fruit(tmp_path / "fruit", train=False)
    (data / "train.csv").write_text("id,label\n90,apple\n91,plum\n92,red\n")
    with pytest.raises(UserError, match=r"is a model for other labels(?s:.*)'apple', 'plum'"):
        predict(finished_run / "run", data, tmp_path / "p.csv")
    # Which was left out of training
    (data / "train.csv").write_text("id,label\n90,blue\n91,green\n92,red\n93,rare\n")
    predict(finished_run / "run", data, tmp_path / "p.csv")
    assert "its labels are the model's" in capsys.readouterr().out


def test_questions_are_not_compared(tmp_path: Path, finished_run: Path) -> None:
    """Of answers only the most frequent are classes."""
    competition = read_layout(fruit(tmp_path / "fruit"), need="test")
    from dataclasses import replace

    assert check_belongs(multiclass(["yes"]), replace(competition, task="vqa"), "run") is None


# ---- which run made a file ----


@pytest.fixture
def project(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with runs/a and predictions.csv that it made; Kaggle is never asked."""
    shutil.copytree(finished_run / "run", tmp_path / "runs" / "a")
    shutil.copytree(finished_run / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "not_ready", list)
    predict(Path("runs/a"), Path("data"), Path("predictions.csv"))
    return tmp_path


def plan(*flags: str) -> submit.Plan:
    return submit.preflight(submit._parser().parse_args(["--competition", "colours", *flags]))


def test_submit_says_which_run_made_the_file_when_and_how_good_it_is(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = files.read_json(project / "runs/a/run.json")
    capsys.readouterr()
    made = plan()
    told = capsys.readouterr().out
    assert made.validation_score == f"{record['best']['value']:.6g}"
    assert record["name"] in made.message and f"val_accuracy {made.validation_score}" in made.message
    assert "runs/a" in told
    assert record["name"] in told
    assert f"val_accuracy {made.validation_score}" in told
    assert made.origin.time[:10] in told


def test_a_renamed_file_is_known_and_a_changed_one_is_not(project: Path) -> None:
    Path("predictions.csv").rename("mine.csv")
    assert find_origin(Path("mine.csv")).models == ("runs/a",)
    with Path("mine.csv").open("a") as file:
        file.write("\n")
    assert find_origin(Path("mine.csv")) is None
    # No score of a run that may have made another file
    assert plan("--predictions", "mine.csv").validation_score == ""
    (project / MADE_BY).write_bytes(b"\xff not json\n[]\n{}\n")
    assert find_origin(Path("mine.csv")) is None


def test_another_run_than_the_one_that_made_the_file_is_refused(project: Path) -> None:
    shutil.copytree("runs/a", "runs/b")
    with pytest.raises(UserError, match=r"(?s)runs/a.*not by --model runs/b"):
        plan("--model", "runs/b")


def test_a_file_for_other_classes_is_not_sent(project: Path) -> None:
    for folder in ("train", "test"):
        shutil.rmtree(project / "data" / folder)
    rows = (project / "data/sample_submission.csv").read_text()
    fruit(project / "data", sample=rows)
    for row in rows.splitlines()[1:]:
        colour_patch(project / "data/test" / f"{row.split(',')[0]}.png", FRUIT["lime"], 3)
    for number in range(2):
        (project / "data/test" / f"f{number}.png").unlink()
    for flags in ((), ("--model", "runs/a")):
        with pytest.raises(UserError, match=r"(?s)nothing was sent.*'blue'.*'apple'"):
            plan(*flags)
    (project / MADE_BY).unlink()  # nobody knows which run made it: the data folder's own labels count
    with pytest.raises(UserError, match=r"(?s)nothing was sent.*is no class"):
        plan()


def test_a_terminal_is_asked_before_anything_is_sent(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    made, asked = plan(), []
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or "n")
    capsys.readouterr()
    submit.submit(made)
    assert capsys.readouterr().out == "nothing was sent\n" and "colours" in asked[0]


def test_a_record_that_was_cut_off_costs_no_other_and_one_that_cannot_be_written_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A full disk leaves half a line, or none."""
    output, maker = tmp_path / "p.csv", SimpleNamespace(path=tmp_path, name="a", record=None)
    (tmp_path / MADE_BY).write_text('{"sha256": "12')
    output.write_text("id,label\n")
    record_origin(output, [maker], "data")
    assert find_origin(output).names == ("a",) and capsys.readouterr().out == ""
    with (tmp_path / MADE_BY).open("a") as file:  # written by hand: it names no run
        file.write(json.dumps({"sha256": files.sha256(output)}) + "\n")
    assert [origin.names for origin in find_origins(output)] == [("a",)]
    (tmp_path / MADE_BY).unlink()
    (tmp_path / MADE_BY).mkdir()  # cannot be opened as a file
    record_origin(output, [maker], "data")
    assert_says(capsys.readouterr().out, MADE_BY, "--model")
