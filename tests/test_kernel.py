"""`make kernel` without Kaggle: the bundle, the script, its metadata, the process it is rehearsed in, and
whole rehearsals.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import socket
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import competitions
import numpy as np
import pytest
import torch
from conftest import assert_says, make_competition
from safetensors.torch import load_file
from test_vqa import arguments, make_questions, recipe

import inference
import train
from pipeline.competition.facts import CompetitionFacts, read_facts
from pipeline.competition.layout import read_layout
from pipeline.data.dataset import cut
from pipeline.data.question_batches import image_order
from pipeline.errors import UserError
from pipeline.fetch.containers import CONVERTED, Converted, conversion_of
from pipeline.files import sha256
from pipeline.folds.team import gather
from pipeline.kernel import cards, sealed
from pipeline.kernel.answer import average_reached, predict_carried
from pipeline.kernel.bundle import Options, make_bundle
from pipeline.kernel.carried import Carried, check_bundle, open_bundle
from pipeline.kernel.make import main, write_kernel
from pipeline.kernel.pace import Pace, last_moment
from pipeline.kernel.placeholder import make_placeholder
from pipeline.kernel.rehearsal import cost_of, forecast
from pipeline.kernel.script import Settings, code_of, notebook_text, oldest_versions, script_text
from pipeline.kernel.slugs import Names, check_kernel, kernel_metadata, make_names, slug_of, title_of
from pipeline.kernel.stages import Stages
from pipeline.predictions import Predictions
from pipeline.run import load_run
from pipeline.submission.write import write_predictions
from pipeline.targets.target import multiclass
from pipeline.tasks.apply import predict, read_for

NAMES = Names("someone", "glyphs-digits")
SETTINGS = Settings("glyphs", NAMES.dataset, ("digits",), "0" * 64)
FEW = ["--epochs", "1", "--batch-size", "6", "--accumulation-steps", "1"]


@pytest.fixture(scope="module")
def bundled(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the bundle of the finished run in dataset/."""
    folder = tmp_path_factory.mktemp("bundled")
    make_bundle(
        gather([finished_run / "run"]), folder / "dataset", CompetitionFacts(slug="glyphs", metric="accuracy")
    )
    return folder


@pytest.fixture(scope="module")
def decided_folds(two_folds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a competition in data/ and a run of two folds in folds/, whose record says that offsets
    are used.
    """
    root = shutil.copytree(two_folds, tmp_path_factory.mktemp("decided") / "copy")
    record = json.loads((root / "folds/run.json").read_text())
    gained = {"before": 0.5, "after": 0.6, "gain": 0.1, "error": 0.01}
    record["decisions"] = [{"kind": "offsets", "numbers": [9.0, 0.0, 0.0], "used": True, **gained}]
    (root / "folds/run.json").write_text(json.dumps(record))
    return root


# ---- the bundle ----


def test_a_bundle_holds_merged_float32_weights_and_predicts_alike(bundled: Path, finished_run: Path) -> None:
    check_bundle(bundled / "dataset")
    carried = open_bundle(bundled / "dataset")
    member = carried.team.first
    run = load_run(finished_run / "run")
    assert run.adapter_dir and member.adapter_dir is None
    assert {weight.dtype for weight in load_file(member.backbone_dir / "model.safetensors").values()} == {
        torch.float32
    }
    assert (member.target, member.metric, member.record.prior) == (run.target, run.metric, run.record.prior)
    competition = read_for(run, finished_run / "data")
    theirs, ours = (predict(one, competition, 2, "fp32")[0] for one in (member, run))
    assert theirs.ids == ours.ids
    np.testing.assert_array_equal(theirs.values, ours.values)
    assert carried.facts.metric == "accuracy"


def test_a_bundle_says_how_the_test_set_was_converted(finished_run: Path, tmp_path: Path) -> None:
    rule = {"low": [0.0], "high": [9.0], "says": "one range"}
    converted = Converted({".npy": 2}, ["test/a.npy"], {"grey levels of NumPy files": rule}, ["pydicom"])
    team = gather([finished_run / "run"])
    make_bundle(team, tmp_path / "dataset", CompetitionFacts(), converted=converted)
    assert open_bundle(tmp_path / "dataset").converted == converted
    assert not make_bundle(team, tmp_path / "dataset", CompetitionFacts(), converted=converted).is_new
    assert make_bundle(team, tmp_path / "dataset", CompetitionFacts()).is_new


def test_every_file_of_a_bundle_is_listed_with_its_digest(bundled: Path) -> None:
    folder = bundled / "dataset"
    files = check_bundle(folder)["files"]
    assert set(files) == {
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    } - {"bundle.json"}
    assert files["members/1/run.json"] == {
        "bytes": (folder / "members/1/run.json").stat().st_size,
        "sha256": sha256(folder / "members/1/run.json"),
    }
    assert "pipeline/tasks/apply.py" in files and not [
        name for name in files if "__pycache__" in name or name.endswith((".yaml", ".j2"))
    ]


def test_a_bundle_of_the_same_files_is_taken_and_another_is_made_anew(
    bundled: Path, finished_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(bundled / "dataset", tmp_path / "dataset")
    team, facts = gather([finished_run / "run"]), CompetitionFacts(slug="glyphs", metric="accuracy")
    # What the kaggle command reads is no change
    (tmp_path / "dataset/dataset-metadata.json").write_text("{}")
    again = make_bundle(team, tmp_path / "dataset", facts)
    assert not again.is_new and again.digest == sha256(bundled / "dataset/bundle.json")
    other = make_bundle(team, tmp_path / "dataset", replace(facts, metric="macro_f1"))
    assert other.is_new and other.digest != again.digest and not (tmp_path / "earlier").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset"]


def test_a_bundle_with_a_file_of_yours_is_set_aside(
    bundled: Path, finished_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(bundled / "dataset", tmp_path / "dataset")
    (tmp_path / "dataset/mine.txt").write_text("kept")
    made = make_bundle(
        gather([finished_run / "run"]), tmp_path / "dataset", CompetitionFacts(metric="accuracy")
    )
    assert made.is_new and [path.read_text() for path in (tmp_path / "earlier").rglob("mine.txt")] == ["kept"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: shutil.rmtree(folder / "members"), "the folders members are missing.*-r zip"),
        (lambda folder: (folder / "members/1/run.json").unlink(), "members/1/run.json: missing"),
        (
            lambda folder: (folder / "pipeline/files.py").write_text("pass"),
            r"pipeline/files.py: 4 bytes, expected [\d,]+",
        ),
        (
            lambda folder: _flip(folder / "members/1/model_beit/model.safetensors"),
            "model.safetensors: .*content",
        ),
        (lambda folder: (folder / "bundle.json").write_text("[]"), "expected a list of files"),
    ],
)
def test_a_damaged_bundle_is_one_message(damage, message: str, bundled: Path, tmp_path: Path) -> None:
    shutil.copytree(bundled / "dataset", tmp_path / "dataset")
    damage(tmp_path / "dataset")
    with pytest.raises(UserError, match=message):
        check_bundle(tmp_path / "dataset")


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_bundle_beyond_kaggles_limit_is_not_made(finished_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run would have about .* Kaggle allows 1.0 kB"):
        make_bundle(gather([finished_run / "run"]), tmp_path / "dataset", CompetitionFacts(), limit=1000)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one wheel, where pip looks instead of any index."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    with zipfile.ZipFile(folder / "shipped_here-1.4-py3-none-any.whl", "w") as wheel:
        info = "shipped_here-1.4.dist-info"
        wheel.writestr("shipped_here.py", "")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: shipped-here\nVersion: 1.4\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(
            f"{info}/RECORD", f"shipped_here.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n"
        )
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_wheels_are_shipped_and_found_by_the_script(finished_run: Path, tmp_path: Path, shelf: Path) -> None:
    """The script installs what is lacking beside the image's packages: here it then stops at the next thing
    that is missing.
    """
    team, wheels = gather([finished_run / "run"]), ("shipped-here>=1.2",)
    bundle = make_bundle(team, tmp_path / "input/bundle", CompetitionFacts(), wheels, "3.11")
    assert [name for name in bundle.manifest["files"] if name.startswith("wheels/")] == [
        "wheels/shipped_here-1.4-py3-none-any.whl"
    ]
    text = script_text(replace(SETTINGS, digest=bundle.digest, wheels=(*wheels, "other-package")))
    assert '"shipped-here": "1.2"' in text and '"other-package": "0"' in text
    (tmp_path / "kernel.py").write_text(text)
    for place in (tmp_path / "input/glyphs", tmp_path / "work"):
        place.mkdir()
    ended = sealed.run_sealed(tmp_path / "kernel.py", tmp_path / "work", tmp_path / "input", [])
    assert ended.code == 1 and "PACKAGES: other-package>=0 (missing)." in ended.output, ended.output
    # Nothing there becomes an output of the kernel
    assert not {path.name for path in (tmp_path / "work").iterdir()} - {"no-home"}


def test_a_wheel_that_is_not_to_be_had_is_one_message(
    finished_run: Path, tmp_path: Path, shelf: Path
) -> None:
    with pytest.raises(UserError, match=r"--wheels no-such-thing: .*Python 3\.11: ERROR"):
        make_bundle(
            gather([finished_run / "run"]),
            tmp_path / "dataset",
            CompetitionFacts(),
            ("no-such-thing",),
            "3.11",
        )
    assert not (tmp_path / "dataset").exists()


# ---- time ----


class Clock:
    """A clock that goes on by `step` seconds at each look."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def carried_by(*models: Path) -> Carried:
    """As if these models came with a bundle."""
    return Carried(models[0], gather(models), CompetitionFacts(), (), None, "auto")


def test_the_pace_forecasts_and_stops() -> None:
    said: list[str] = []
    pace = Pace(1000, until=100.0, clock=Clock(10.0), say=said.append)
    answers = [pace(done) for done in range(0, 320, 32)]
    assert answers == [True] * 9 + [False]
    assert (
        "32 of 1,000 images, 3.2 a second, 5m02s more needed, 1m20s left" in said[0] and "WARNING" in said[0]
    )
    assert said[-1].startswith("STOPPED: time is up after 288 of 1,000 images")
    assert last_moment(5.0, 9.0) == 5.0 + 9 * 3600 - 120 and last_moment(0.0, 0.01) == 36 - 1.8


def test_no_batch_is_begun_that_would_end_too_late() -> None:
    """A batch of minutes, as on a CPU, would run beyond Kaggle's limit."""
    times = iter([0.0, 40.0, 100.0, 130.0])
    pace = Pace(1000, until=180.0, clock=lambda: next(times), say=lambda _: None)
    # 130 + 60, the longest so far
    assert [pace(done) for done in (0, 32, 64, 96)] == [True, True, True, False]


def test_time_that_is_up_leaves_a_whole_file_with_class_frequencies(
    finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = load_run(finished_run / "run")
    competition = read_for(run, finished_run / "data")
    whole, _ = predict(run, competition, 2, "fp32")
    made = predict_carried(carried_by(run.path), competition, 2, "fp32", 4.5, 1, Clock(1.0)).predictions
    reached = (made.values == whole.values).all(axis=1)
    assert made.ids == whole.ids and reached.tolist() == [True, True, True, True, False]
    np.testing.assert_allclose(made.values[~reached], [run.record.prior])
    printed = capsys.readouterr().out
    assert "STOPPED: time is up after 4 of 5 images" in printed
    assert "WARNING: 1 id of 5 were NOT PREDICTED" in printed


def test_no_time_at_all_still_gives_every_id(finished_run: Path, tmp_path: Path) -> None:
    run = load_run(finished_run / "run")
    other = shutil.copytree(run.path, tmp_path / "other")
    competition = read_for(run, finished_run / "data")
    made = predict_carried(carried_by(run.path, other), competition, 2, "fp32", 0.0, 1, Clock(1.0))
    np.testing.assert_allclose(made.predictions.values, [run.record.prior] * 5, rtol=1e-6)
    assert len(made.rates) == 2


def test_an_unreadable_test_image_is_reported_once_for_all_models(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, data = load_run(finished_run / "run"), shutil.copytree(finished_run / "data", tmp_path / "data")
    other = shutil.copytree(run.path, tmp_path / "other")
    (data / "test/t001.png").write_bytes(b"")
    predict_carried(carried_by(run.path, other), read_for(run, data), 2, "fp32", float("inf"), 1)
    printed = capsys.readouterr().err
    assert printed.count("1 of 5 test images cannot be decoded") == printed.count("t001.png") == 1


@pytest.mark.slow
def test_a_hundred_thousand_images_without_time_still_make_a_whole_file(
    bundled: Path, tmp_path: Path
) -> None:
    """The sample and the folder are read, no batch is begun, every row is written and checked."""
    data = make_competition(tmp_path / "data", per_class=1, test=1)
    names = [f"h{number:06d}" for number in range(100_000)]
    for number, name in enumerate(names):
        if number % 30_000 == 0:  # a file takes 65,000 links on ext4
            first = shutil.copy(data / "test/t000.png", data / f"test/{name}.png")
        else:
            os.link(first, data / f"test/{name}.png")
    (data / "sample_submission.csv").write_text("id,label\n" + "".join(f"{name},blue\n" for name in names))
    carried = open_bundle(bundled / "dataset")
    competition = read_for(carried.team.first, data, carried.facts)
    made = predict_carried(carried, competition, 32, "fp32", 0.0, 1, Clock(1.0)).predictions
    write_predictions(tmp_path / "submission.csv", competition.form, made)
    lines = (tmp_path / "submission.csv").read_text().splitlines()
    assert [line.partition(",")[0] for line in lines] == ["id", *names]


def test_members_are_averaged_over_those_that_reached_an_id() -> None:
    target = multiclass(("a", "b"))
    one = Predictions(("x", "y", "z"), np.array([[1, 0], [0.5, 0.5], [0.5, 0.5]], dtype=np.float32), target)
    two = Predictions(("x", "y", "z"), np.array([[0, 1], [0.2, 0.8], [0.5, 0.5]], dtype=np.float32), target)
    mean, nobody = average_reached(
        [(one, frozenset({"y", "z"})), (two, frozenset({"z"}))], [0.5, 0.5], "probabilities"
    )
    np.testing.assert_allclose(mean.values, [[0.5, 0.5], [0.2, 0.8], [0.5, 0.5]])
    assert nobody == {"z"}


def test_weights_and_ranks_hold_for_members_that_were_stopped() -> None:
    target = multiclass(("a", "b"))
    one = Predictions(
        ("w", "x", "y", "z"),
        np.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5], [0.5, 0.5]], dtype=np.float32),
        target,
    )
    two = Predictions(
        ("w", "x", "y", "z"),
        np.array([[0.1, 0.9], [0.3, 0.7], [0.2, 0.8], [0.4, 0.6]], dtype=np.float32),
        target,
    )
    found = [(one, frozenset({"y", "z"})), (two, frozenset({"z"}))]
    mean, _ = average_reached(found, [0.25, 0.75], "probabilities")
    np.testing.assert_allclose(
        mean.values[:, 0], [0.25 * 0.9 + 0.75 * 0.1, 0.25 * 0.2 + 0.75 * 0.3, 0.2, 0.25 * 0.5 + 0.75 * 0.4]
    )
    by_rank, nobody = average_reached(found, [0.25, 0.75], "ranks")
    places = [0.25 * 1.5 / 2 + 0.75 * 0.5 / 3, 0.25 * 0.5 / 2 + 0.75 * 2.5 / 3, 1.5 / 3, 0.5]
    np.testing.assert_allclose(by_rank.values[:, 0], places, rtol=1e-6)
    assert nobody == {"z"}


# ---- the script ----


def test_two_cards_are_estimated_to_take_half_the_time() -> None:
    """26e12 operations a second, an assumption: 26e9 an image are 1,000 images a second on one card."""
    lines = forecast(26e9, 3_600_000, 0.75)
    assert "ESTIMATE for 3,600,000 hidden rows at 26 GFLOP each" in lines[0]
    assert lines[1].startswith("  one T4 (26 TFLOP/s): 1h00m, beyond the limit of 0.75 h")
    assert forecast(1e9, 10, 9.0)[1] == "  one T4 (26 TFLOP/s): under 1 s"
    assert lines[2] == "  two T4 (52 TFLOP/s): 30m00s" and lines[3].startswith(
        "  4 CPU cores (0.1 TFLOP/s): "
    )
    assert forecast(1e9, 1_000, 9.0, has_gpu=False)[1:] == ["  4 CPU cores (0.1 TFLOP/s): 10 s"]
    assert "images: at most 8m20s" in forecast(1e9, 1_000, 9.0, converting=0.5)[-1]


def test_views_count_in_the_cost(finished_run: Path) -> None:
    run = load_run(finished_run / "run")
    competition = read_for(run, finished_run / "data")
    one = cost_of([run], competition)
    assert one > 0 and cost_of([run, run], competition, ("flip", "crops")) == pytest.approx(
        20 * one, rel=0.05
    )


def test_the_script_is_python_that_names_what_it_was_made_for() -> None:
    text = script_text(replace(SETTINGS, hours=7.5, batch_size=8, runs=("odd\n# name",)))
    values = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.parse(text).body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id.isupper()
        and node.lineno < 16
    }
    assert values["HOURS"] == 7.5
    assert values["BATCH_SIZE"] == 8
    assert values["COMPETITION"] == "glyphs"
    assert values["BUNDLE"] == "0" * 64
    assert values["NEEDS"]["torch"] == "2.6" and "peft" not in values["NEEDS"]
    assert "@" not in text.replace("@@", "") and "plt" not in text


def test_needs_are_those_of_requirements_txt() -> None:
    assert oldest_versions(needs_timm=True)["timm"] == "1.0.22" and "timm" not in oldest_versions(
        needs_timm=False
    )


def test_the_notebook_holds_the_same_code_and_two_cells_to_look(tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    text = notebook_text(SETTINGS)
    assert text == notebook_text(SETTINGS)
    (tmp_path / "kernel.ipynb").write_text(text)
    nbformat.validate(nbformat.read(tmp_path / "kernel.ipynb", as_version=4))
    code = code_of(tmp_path / "kernel.ipynb")
    assert "plt.subplots" in code and "predictions.frame().head" in code
    lines = set(code.splitlines())
    assert not [
        line
        for line in script_text(SETTINGS).splitlines()[4:]
        if line and not line.startswith("# %%") and line not in lines
    ]


def test_an_edited_script_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stages = Stages(tmp_path)
    path = write_kernel(tmp_path, NAMES, SETTINGS, False, "none", stages)
    again = write_kernel(tmp_path, NAMES, replace(SETTINGS, hours=3.0), False, "none", stages)
    assert path == again and "HOURS = 3.0" in path.read_text()
    path.write_text("# mine\n")
    write_kernel(tmp_path, NAMES, SETTINGS, False, "none", Stages(tmp_path))
    assert path.read_text() == "# mine\n" and "was edited and is kept" in capsys.readouterr().out


def test_edited_metadata_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stages = Stages(tmp_path)
    path = write_kernel(tmp_path, NAMES, SETTINGS, False, "none", stages).with_name("kernel-metadata.json")
    write_kernel(tmp_path, NAMES, SETTINGS, False, "NvidiaL4", stages)
    values = json.loads(path.read_text())
    assert values["machine_shape"] == "NvidiaL4" and "was edited" not in capsys.readouterr().out
    values["dataset_sources"].append("someone/more")
    path.write_text(json.dumps(values))
    write_kernel(tmp_path, NAMES, replace(SETTINGS, hours=3.0), False, "none", Stages(tmp_path))
    assert json.loads(path.read_text()) == values
    assert f"{path} was edited and is kept" in capsys.readouterr().out
    path.unlink()
    write_kernel(tmp_path, NAMES, SETTINGS, False, "none", Stages(tmp_path))
    assert "machine_shape" not in json.loads(path.read_text())


def test_an_edited_script_of_an_earlier_bundle_says_which_line_to_change(tmp_path: Path) -> None:
    stages, newer = Stages(tmp_path), replace(SETTINGS, digest="1" * 64)
    path = write_kernel(tmp_path, NAMES, SETTINGS, False, "none", stages)
    path.write_text(path.read_text().replace("BATCH_SIZE = 32", "BATCH_SIZE = 8"))
    with pytest.raises(UserError, match=r"kernel\.py was edited .* earlier bundle(.|\n)*BUNDLE = \"1{64}\""):
        write_kernel(tmp_path, NAMES, newer, False, "none", stages)
    path.write_text(path.read_text().replace("0" * 64, "1" * 64))
    assert write_kernel(tmp_path, NAMES, newer, False, "none", stages) == path
    assert "BATCH_SIZE = 8" in path.read_text()


def test_another_form_takes_the_place_of_ours(tmp_path: Path) -> None:
    pytest.importorskip("nbformat")
    stages = Stages(tmp_path)
    write_kernel(tmp_path, NAMES, SETTINGS, False, "none", stages)
    path = write_kernel(tmp_path, NAMES, SETTINGS, True, "none", stages)
    assert sorted(file.name for file in path.parent.iterdir()) == ["kernel-metadata.json", "kernel.ipynb"]
    assert check_kernel(path.parent, NAMES, "glyphs")["kernel_type"] == "notebook"


# ---- metadata ----


def test_what_is_pushed_is_private_without_internet_and_titles_resolve_to_slugs() -> None:
    values = kernel_metadata(NAMES, "glyphs", "kernel.py", "NvidiaTeslaT4")
    assert (values["enable_internet"], values["is_private"], values["machine_shape"]) == (
        False,
        True,
        "NvidiaTeslaT4",
    )
    assert values["dataset_sources"] == ["someone/glyphs-digits-bundle"] and values[
        "competition_sources"
    ] == ["glyphs"]
    slugify = pytest.importorskip("slugify").slugify  # what the kaggle command itself compares with
    long = make_names("someone", "a-competition-with-a-very-long-name-2026", "Größe: beit_large/384 lora")
    for reference in (NAMES.kernel, NAMES.dataset, long.kernel, long.dataset):
        assert slugify(title_of(reference)) == reference.partition("/")[2]
        assert 6 <= len(title_of(reference)) <= 50


def test_slugs_are_made_as_kaggle_makes_them() -> None:
    slugify = pytest.importorskip("slugify").slugify
    for text in ("A  b", "x_y/z", "--a--", "Über 3.5", "a.b,c"):
        assert slug_of(text) == slugify(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values.pop("enable_internet"), "enable_internet: expected false, found no value"),
        (
            lambda values: values.update(enable_internet="true"),
            "enable_internet: expected false, found 'true'",
        ),
        (lambda values: values.update(is_private=False), "is_private: expected true"),
        (lambda values: values.update(title="Other"), "title 'Other' .*'other'"),
        (
            lambda values: values.update(id="stranger/glyphs-digits"),
            "id: expected 'someone/glyphs-digits', found 'stranger/glyphs-digits'",
        ),
        (
            lambda values: values.update(dataset_sources=[]),
            r"dataset_sources: 'someone/glyphs-digits-bundle' is not in \[\]",
        ),
        (
            lambda values: values.update(competition_sources=["other"]),
            r"competition_sources: 'glyphs' is not in \['other'\]",
        ),
        (lambda values: values.update(kernel_type="notebook"), "kernel_type: expected 'script'"),
        (lambda values: values.update(code_file="gone.py"), "code_file: 'gone.py' is not in"),
    ],
)
def test_what_would_go_wrong_in_silence_is_refused(change, message: str, tmp_path: Path) -> None:
    write_kernel(tmp_path, NAMES, SETTINGS, False, "none", Stages(tmp_path))
    path = tmp_path / "kernel/kernel-metadata.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=message):
        check_kernel(path.parent, NAMES, "glyphs")


def test_a_second_code_file_would_be_left_behind(tmp_path: Path) -> None:
    write_kernel(tmp_path, NAMES, SETTINGS, False, "none", Stages(tmp_path))
    (tmp_path / "kernel/helpers.py").write_text("")
    with pytest.raises(UserError, match=r"only kernel.py is pushed, without 'helpers.py'"):
        check_kernel(tmp_path / "kernel", NAMES, "glyphs")


# ---- where it is rehearsed ----


@pytest.mark.parametrize("namespaces", [True, False])
def test_a_sealed_process_has_no_network_no_home_and_no_tokens(
    namespaces: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if namespaces and not sealed.isolates():
        pytest.skip("this system does not allow namespaces")
    if not namespaces:
        monkeypatch.setattr(sealed, "isolates", lambda: ())
    monkeypatch.setenv("KAGGLE_KEY", "0123456789abcdef")
    script = tmp_path / "script.py"
    script.write_text(
        "import json, os, pathlib, socket\n"
        "def tried(function):\n"
        "    try: function(); return 'done'\n"
        "    except OSError as error: return type(error).__name__\n"
        "port = {}\n"
        "port = int(os.environ['PORT'])\n"
        "print(json.dumps({'connect': tried(lambda: socket.create_connection(('127.0.0.1', port), 2)),\n"
        "  'home': pathlib.Path.home().exists(), 'key': os.environ.get('KAGGLE_KEY'), 'input': "
        "os.environ['KERNEL_INPUT'],\n"
        "  'write': tried(lambda: (pathlib.Path(os.environ['KERNEL_INPUT']) / 'x').touch()), 'cwd': "
        "os.getcwd()}))\n"
    )
    (tmp_path / "input").mkdir()
    (tmp_path / "work").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("PORT", str(server.getsockname()[1]))
        ended = sealed.run_sealed(script, tmp_path / "work", tmp_path / "input", [tmp_path / "input"])
    assert ended.code == 0, ended.output
    told = json.loads(ended.output)
    assert told["connect"] != "done" and not told["home"] and told["key"] is None
    assert told["cwd"] == str(tmp_path / "work") and told["input"] == str(tmp_path / "input")
    assert told["write"] == ("OSError" if namespaces else "done")


@pytest.mark.parametrize("kind", ["channels", "long_rows", "names_tell", "one_hot", "views_by_table"])
def test_a_placeholder_competition_is_read_as_three_ids(kind: str, tmp_path: Path) -> None:
    made = competitions.KINDS[kind](tmp_path / "data")
    metric = made.flags[1]
    facts = read_facts(tmp_path / "data").asked(metric, None, made.flags[3:4] if len(made.flags) > 2 else ())
    competition = read_layout(tmp_path / "data", asked=facts)
    make_placeholder(competition, tmp_path / "few")
    few = read_layout(tmp_path / "few", need="test", known=(competition.target, competition.metric))
    assert few.form.ids == competition.form.ids[:3]
    wanted = [
        (row.id, row.path.relative_to(tmp_path / "data"))
        for row in competition.test
        if row.id in set(few.form.ids)
    ]
    assert [(row.id, row.path.relative_to(tmp_path / "few")) for row in few.test] == wanted


# ---- whole rehearsals ----


def test_a_rehearsed_kernel_writes_what_inference_writes(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KAGGLE_USERNAME", raising=False)
    flags = [
        *("--model", str(finished_run / "run"), "--data", str(finished_run / "data")),
        *("--output", str(tmp_path / "kernel")),
    ]
    flags += ["--competition", "glyphs", "--batch-size", "2", "--precision", "fp32"]
    assert main(flags) == 0
    printed = capsys.readouterr().out
    assert "byte for byte" in printed and "ESTIMATE for 10,000 hidden rows" in printed
    commands = [line.strip() for line in printed.splitlines() if line.strip().startswith("kaggle ")]
    assert len(commands) == 3 and "-r zip" in commands[0] and "-v 1 -f submission.csv" in commands[2]
    made = tmp_path / "kernel/rehearsal/submission.csv"
    assert made.read_bytes() == (tmp_path / "kernel/rehearsal/reference.csv").read_bytes()
    assert len((tmp_path / "kernel/rehearsal/placeholder/work/submission.csv").read_text().splitlines()) == 4
    assert main(flags) == 0
    assert "already done with these files" in capsys.readouterr().out


RUN_CELLS = """
import json, pathlib
names = {"__name__": "__main__"}
for cell in json.loads(pathlib.Path("kernel.ipynb").read_text(encoding="utf-8"))["cells"]:
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
print("titles", [axis.get_title() for axis in names["axes"]])
"""


def test_the_notebooks_cells_predict_another_test_set_without_peft(
    bundled: Path, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One by one in a fresh process, on a hidden test set: other ids, another number, one image damaged; in
    the newer of the two layouts.
    """
    pytest.importorskip("nbformat")
    hidden, work = tmp_path / "input/competitions/glyphs", tmp_path / "work"
    make_competition(hidden, per_class=1, test=7)
    for number, path in enumerate(sorted((hidden / "test").iterdir())):
        path.rename(path.with_name(f"hidden_{number}.png"))
    (hidden / "test/hidden_0.png").write_bytes(b"no image")
    (hidden / "sample_submission.csv").write_text(
        "id,label\n" + "".join(f"hidden_{number},blue\n" for number in range(7))
    )
    place = tmp_path / "input/datasets/someone"
    place.mkdir(parents=True)
    (place / "glyphs-digits-bundle").symlink_to(bundled / "dataset")
    work.mkdir()
    digest = sha256(bundled / "dataset/bundle.json")
    (work / "kernel.ipynb").write_text(
        notebook_text(replace(SETTINGS, digest=digest, batch_size=2, precision="fp32"))
    )
    (tmp_path / "run_cells.py").write_text(RUN_CELLS)
    (tmp_path / "without").mkdir()
    (tmp_path / "without/peft.py").write_text("raise ImportError('no peft here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "without"))
    ended = sealed.run_sealed(tmp_path / "run_cells.py", work, tmp_path / "input", [])
    assert ended.code == 0, ended.output
    assert "'hidden_0: BadImage', 'hidden_1'" in ended.output.splitlines()[-1]
    monkeypatch.undo()
    flags = [
        *("--model", str(finished_run / "run"), "--data", str(hidden)),
        *("--output", str(tmp_path / "predictions.csv")),
    ]
    assert inference.main([*flags, "--batch-size", "2", "--precision", "fp32"]) == 0
    assert (work / "submission.csv").read_bytes() == (tmp_path / "predictions.csv").read_bytes()


def test_options_of_inference_travel(
    decided_folds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, prior = decided_folds / "data", tmp_path / "my.prior.csv"
    prior.write_text("class,share\nblue,0.001\ngreen,0.001\nred,0.998\n")
    given = [
        *("--model", str(decided_folds / "folds"), "--data", str(data)),
        *("--output", str(tmp_path / "predictions.csv")),
    ]
    flags = ["--tta", "flip,scale", "--prior", str(prior), "--decision", "off"]
    assert inference.main([*given, *flags, "--batch-size", "2", "--precision", "fp32"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "prior (" in line)
    team, options = gather([decided_folds / "folds"]), Options(("flip", "scale"), str(prior), "off")
    assert options.flags() == flags
    bundle = make_bundle(team, tmp_path / "dataset", CompetitionFacts(), options=options)
    assert "prior.prior.csv" in bundle.manifest["files"]
    assert "views flip+scale, another prior" in bundle.describe()
    prior.write_text("class,share\nblue,1\ngreen,1\nred,1\n")
    # The file is another one now
    assert make_bundle(team, tmp_path / "dataset", CompetitionFacts(), options=options).is_new
    prior.write_text("class,share\nblue,0.001\ngreen,0.001\nred,0.998\n")
    make_bundle(team, tmp_path / "dataset", CompetitionFacts(), options=options)
    prior.unlink()
    carried, competition = open_bundle(tmp_path / "dataset"), read_for(team.first, data)
    write_predictions(
        tmp_path / "submission.csv",
        competition.form,
        predict_carried(carried, competition, 2, "fp32", float("inf")).predictions,
    )
    assert (tmp_path / "submission.csv").read_bytes() == (tmp_path / "predictions.csv").read_bytes()
    assert line.partition("): ")[2] in capsys.readouterr().out


# ---- several cards ----


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_two_processes_give_the_same_bits(
    decided_folds: Path, tmp_path: Path, one_thread: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two processes of one thread each stand for two cards."""
    bundle = make_bundle(
        gather([decided_folds / "folds"]),
        tmp_path / "dataset",
        CompetitionFacts(),
        options=Options(("flip",)),
    )
    carried = open_bundle(bundle.folder)
    competition = read_for(carried.team.first, decided_folds / "data")
    alone = predict_carried(carried, competition, 2, "fp32", float("inf"), 1)
    capsys.readouterr()
    both = predict_carried(carried, competition, 2, "fp32", time.monotonic() + 3600, 2)
    printed = capsys.readouterr().out
    assert both.predictions.ids == alone.predictions.ids
    np.testing.assert_array_equal(both.predictions.values, alone.predictions.values)
    assert "part 1 of 2 | " in printed and "part 2 of 2 | " in printed and "WARNING" not in printed
    assert len(both.rates) == 2 and both.memory > 0


def test_processes_that_fail_leave_it_to_one(
    bundled: Path, finished_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise UserError("part 2 of 2 ended with exit code 1: out of memory")

    monkeypatch.setattr(cards, "run_children", failing)
    carried = open_bundle(bundled / "dataset")
    competition = read_for(carried.team.first, finished_run / "data")
    made = predict_carried(carried, competition, 2, "fp32", float("inf"), 2).predictions
    np.testing.assert_array_equal(
        made.values, predict(load_run(finished_run / "run"), competition, 2, "fp32")[0].values
    )
    assert "out of memory\nWARNING: predicting in 2 processes failed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("num_rows", "batch_size", "parts"), [(7, 2, 2), (64, 32, 2), (33, 32, 2), (100, 7, 3)]
)
def test_shares_hold_the_batches_of_a_single_process(num_rows: int, batch_size: int, parts: int) -> None:
    paths = [f"{number * 5 % 9}.jpg" for number in range(num_rows)]
    by_picture = image_order([paths.index(path) for path in paths]).tolist()
    for order in (list(range(num_rows)), by_picture):  # of images with labels, of questions
        whole = [order[start : start + batch_size] for start in range(0, num_rows, batch_size)]
        found = [
            batch for part in range(parts) for batch in cut(order, batch_size, num_rows, share=(part, parts))
        ]
        assert sorted(found) == sorted(whole)
    assert [paths[number] for number in by_picture] == sorted(paths, key=paths.index)


def test_the_script_says_what_is_missing_before_it_loads_anything(bundled: Path, tmp_path: Path) -> None:
    digest = sha256(bundled / "dataset/bundle.json")
    (tmp_path / "work").mkdir()
    place = tmp_path / "input"
    (place / "a").mkdir(parents=True)

    def said(settings: Settings, edit=lambda text: text) -> str:
        (tmp_path / "kernel.py").write_text(edit(script_text(settings)))
        ended = sealed.run_sealed(tmp_path / "kernel.py", tmp_path / "work", place, [])
        assert ended.code == 1 and "Traceback" not in ended.output
        return ended.output.splitlines()[-1]

    right = replace(SETTINGS, digest=digest)
    assert said(right).startswith("NOT MOUNTED: the dataset someone/glyphs-digits-bundle. Under")
    (place / "bundle").symlink_to(bundled / "dataset")
    assert said(SETTINGS).startswith("ANOTHER VERSION of the bundle is mounted at")
    assert said(right).startswith("NOT MOUNTED: the competition glyphs")
    (place / "glyphs").mkdir()
    text = said(right, lambda text: text.replace('"torch": "2.6"', '"torch": "99.1", "absent-package": "1"'))
    assert "torch>=99.1 (found 2." in text and "absent-package>=1 (missing)" in text and "WHEELS=" in text
    (place / "bundle").unlink()
    (place / "bundle").mkdir()
    shutil.copyfile(bundled / "dataset/bundle.json", place / "bundle/bundle.json")
    assert "made without `-r zip`" in said(right)


def rehearsed(models: list[Path], data: Path, output: Path, *more: str) -> Path:
    flags = [word for model in models for word in ("--model", str(model))]
    assert main([*flags, "--data", str(data), "--output", str(output), "--competition", "glyphs", *more]) == 0
    return output / "rehearsal/submission.csv"


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["one_hot", "names_tell", "channels", "long_rows", "numbers", "best_five", "tags"]
)
def test_rehearsal_of_many_kinds(kind: str, tmp_path: Path, tiny_backbone: Path) -> None:
    made = competitions.KINDS[kind](tmp_path / "data")
    flags = [
        *("--data", str(tmp_path / "data"), "--backbone", str(tiny_backbone)),
        *("--output", str(tmp_path / "run")),
        *FEW,
        *made.flags,
    ]
    assert train.main(flags) == 0
    file = rehearsed([tmp_path / "run"], tmp_path / "data", tmp_path / "kernel")
    assert len(file.read_text().splitlines()) == len(made.answers) + 1


@pytest.mark.slow
def test_rehearsal_of_several_members_as_a_notebook(
    finished_run: Path, tmp_path: Path, tiny_backbone: Path
) -> None:
    pytest.importorskip("nbformat")
    flags = [
        *("--data", str(finished_run / "data"), "--backbone", str(tiny_backbone)),
        *("--output", str(tmp_path / "other")),
        *FEW,
    ]
    assert train.main([*flags, "--seed", "7", "--lora-rank", "0"]) == 0
    file = rehearsed(
        [finished_run / "run", tmp_path / "other"], finished_run / "data", tmp_path / "kernel", "--notebook"
    )
    assert len(file.read_text().splitlines()) == 6


def test_a_kernel_of_folds_averages_and_decides_as_inference_does(
    decided_folds: Path, tmp_path: Path
) -> None:
    team = gather([decided_folds / "folds"])
    bundle = make_bundle(team, tmp_path / "dataset", CompetitionFacts())
    assert (bundle.manifest["weights"], bundle.manifest["rule"]) == ([0.5, 0.5], "probabilities")
    competition = read_for(team.first, decided_folds / "data")
    carried = open_bundle(bundle.folder)
    answer = predict_carried(carried, competition, 2, "fp32", float("inf"))
    assert len(answer.rates) == 2 and set(answer.predictions.values.argmax(axis=1)) == {0}
    output = tmp_path / "predictions.csv"
    flags = [
        *("--model", str(decided_folds / "folds"), "--data", str(decided_folds / "data")),
        *("--output", str(output)),
    ]
    assert inference.main([*flags, "--batch-size", "2", "--precision", "fp32"]) == 0
    write_predictions(tmp_path / "submission.csv", competition.form, answer.predictions)
    assert (tmp_path / "submission.csv").read_bytes() == output.read_bytes()
    plain = predict_carried(
        replace(carried, decision="off"), competition, 2, "fp32", float("inf")
    ).predictions
    each = [predict(leaf.run, competition, 2, "fp32")[0].values for leaf in team.leaves]
    np.testing.assert_allclose(plain.values, np.mean(each, axis=0), rtol=1e-6)


WAYS = {  # of training, and the views to predict with
    "pissa": (["lora.init=pissa", "lora.use_rslora=true"], ()),
    "olora": (["lora.init=olora", "lora.targets=[query,key,value,output,fc1,fc2]"], ("flip",)),
    "dora": (["lora.variant=dora", "lora.also_train=[norms,biases]"], ()),
    "average": (["checkpoint.keep=average"], ()),
    "soup": (["checkpoint.keep=soup", "optimizer.ema=0.9"], ()),
    "crop": (["resize=crop"], ("flip", "crops", "scale")),
    "probe": (["lora.rank=0", "head_only=true", "head.init=probe"], ("crops",)),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_training_predicts_alike_over_there(
    way: str, tmp_path: Path, tiny_backbone: Path
) -> None:
    """Probabilities, digit for digit."""
    made, (keys, views) = competitions.KINDS["one_hot"](tmp_path / "data"), WAYS[way]
    flags = [
        *("--data", str(tmp_path / "data"), "--backbone", str(tiny_backbone)),
        *("--output", str(tmp_path / "run"), "--precision", "fp32"),
    ]
    few = ["--epochs", "3", "--batch-size", "6", "--accumulation-steps", "1", "--lr", "1e-2"]
    assert train.main([*flags, *few, *made.flags, *(word for key in keys for word in ("--set", key))]) == 0
    options = Options(views)
    given = [
        *("--model", str(tmp_path / "run"), "--data", str(tmp_path / "data")),
        *("--output", str(tmp_path / "predictions.csv")),
    ]
    assert inference.main([*given, "--batch-size", "2", "--precision", "fp32", *options.flags()]) == 0
    bundle = make_bundle(
        gather([tmp_path / "run"]), tmp_path / "dataset", read_facts(tmp_path / "data"), options=options
    )
    carried = open_bundle(bundle.folder)
    competition = read_for(carried.team.first, tmp_path / "data", carried.facts)
    answer = predict_carried(carried, competition, 2, "fp32", float("inf"))
    write_predictions(tmp_path / "submission.csv", competition.form, answer.predictions)
    assert (tmp_path / "submission.csv").read_bytes() == (tmp_path / "predictions.csv").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    "head",
    [
        "{fusion: cross_attention, text_pooling: mean}",
        "{fusion: product, text_pooling: class_token}",
        "{fusion: concat}",
    ],
)
def test_every_head_for_questions_predicts_alike_over_there(
    head: str, tmp_path: Path, tiny_backbone: Path
) -> None:
    """On frozen backbones, whose features training kept: probabilities to the bit."""
    make_questions(tmp_path / "data")
    frozen = {
        "lora": "{rank: 0}",
        "head_only": "true",
        "epochs": "2",
        "head": head,
        "checkpoint": "{keep: average}",
    }
    assert (
        train.main(arguments(tmp_path, recipe(tmp_path, tiny_backbone, epochs="1"), tmp_path / "words")) == 0
    )
    words = {"text_architecture": "null", "text_backbone": str(tmp_path / "words/model_bert")}
    assert (
        train.main(arguments(tmp_path, recipe(tmp_path, tiny_backbone, **words, **frozen), tmp_path / "run"))
        == 0
    )
    carried = open_bundle(
        make_bundle(gather([tmp_path / "run"]), tmp_path / "dataset", CompetitionFacts()).folder
    )
    competition = read_for(carried.team.first, tmp_path / "data", carried.facts)
    there = predict_carried(carried, competition, 2, "fp32", float("inf")).predictions
    here = predict(load_run(tmp_path / "run"), competition, 2, "fp32")[0]
    assert there.ids == here.ids
    np.testing.assert_array_equal(there.values, here.values)


@pytest.mark.slow
def test_a_kernel_computes_by_openvino_what_inference_does(finished_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    team, data = gather([finished_run / "run"]), finished_run / "data"
    bundle = make_bundle(team, tmp_path / "dataset", CompetitionFacts(), options=Options(engine="openvino"))
    answer = predict_carried(open_bundle(bundle.folder), read_for(team.first, data), 2, "fp32", float("inf"))
    shutil.copytree(finished_run / "run", tmp_path / "run")
    flags = [
        *("--model", str(tmp_path / "run"), "--data", str(data), "--output", str(tmp_path / "p.csv")),
        *("--batch-size", "2"),
    ]
    assert inference.main([*flags, "--precision", "fp32", "--engine", "openvino"]) == 0
    kept = Predictions.load(tmp_path / "run" / "test", team.first.target)
    assert np.array_equal(kept.values, answer.predictions.values)


@pytest.mark.slow
def test_rehearsal_of_folds(decided_folds: Path, tmp_path: Path) -> None:
    file = rehearsed([decided_folds / "folds"], decided_folds / "data", tmp_path / "kernel")
    assert len({line.split(",")[1] for line in file.read_text().splitlines()[1:]}) == 1


@pytest.mark.slow
def test_rehearsal_with_views_that_are_chosen_once(
    decided_folds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--tta auto` finds views that gain; a second call takes them as they were found, and the rehearsal as
    it was.
    """
    flags = ("--tta", "auto", "--prior", "estimate", "--decision", "off")
    rehearsed([decided_folds / "folds"], decided_folds / "data", tmp_path / "kernel", *flags)
    first = capsys.readouterr().out
    chosen = json.loads((tmp_path / "kernel/stages.json").read_text())["views"]
    manifest = json.loads((tmp_path / "kernel/dataset/bundle.json").read_text())
    assert (manifest["views"], manifest["prior"], manifest["decision"]) == (
        chosen["views"],
        "estimate",
        "off",
    )
    assert f"views used: {', '.join(chosen['views']) or 'none'}" in first
    assert "prior (estimate)" in (tmp_path / "kernel/rehearsal/log.txt").read_text()
    rehearsed([decided_folds / "folds"], decided_folds / "data", tmp_path / "kernel", *flags)
    assert "already done with these files" in capsys.readouterr().out


@pytest.mark.slow
def test_rehearsal_of_questions(tmp_path: Path, tiny_backbone: Path) -> None:
    make_questions(tmp_path / "data")
    assert (
        train.main(arguments(tmp_path, recipe(tmp_path, tiny_backbone, epochs="1"), tmp_path / "words")) == 0
    )
    known_words = {
        "text_architecture": "null",
        "text_backbone": str(tmp_path / "words/model_bert"),
        "lora": "{rank: 2}",
        "epochs": "1",
    }
    assert (
        train.main(arguments(tmp_path, recipe(tmp_path, tiny_backbone, **known_words), tmp_path / "run")) == 0
    )
    file = rehearsed([tmp_path / "run"], tmp_path / "data", tmp_path / "kernel")
    assert len(file.read_text().splitlines()) == 16
    assert len((tmp_path / "kernel/rehearsal/placeholder/work/submission.csv").read_text().splitlines()) == 4


@pytest.mark.slow
def test_rehearsal_of_an_unfinished_run_says_so(
    tmp_path: Path, finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished_run / "run", tmp_path / "run")
    (tmp_path / "run/run.json").unlink()
    (tmp_path / "run/state/kept.json").write_text('{"epoch": 1, "metric": "val_accuracy", "value": 0.5}')
    rehearsed([tmp_path / "run"], finished_run / "data", tmp_path / "kernel")
    assert_says(capsys.readouterr().out, "unfinished", "best epoch so far, 1 of 1")


def test_an_edited_script_that_predicts_otherwise_is_not_pushed(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file of the rehearsal must be inference.py's. Here neither is computed: what is compared is."""
    from pipeline.kernel import rehearsal

    def run(script: Path, work: Path, input_dir: Path, read_only: list[Path]) -> sealed.Ended:
        (work / "submission.csv").write_text("id,label\nt000,red\n")
        return sealed.Ended(0, "took 1 s, peak memory 5 MB, rows a second 3\n")

    monkeypatch.setattr(rehearsal, "run_sealed", run)
    monkeypatch.setattr(
        rehearsal,
        "_reference",
        lambda runs, competition, output, *_: output.write_text("id,label\nt000,blue\n"),
    )
    flags = [
        *("--model", str(finished_run / "run"), "--data", str(finished_run / "data")),
        *("--output", str(tmp_path / "kernel")),
    ]
    with pytest.raises(
        UserError, match=r"differs from inference.py's.*1 lines, first line 2: 't000,red' and 't000,blue'"
    ):
        main([*flags, "--competition", "glyphs"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--hours", "0"], "--hours 0: expected more than 0"),
        (["--hours", "nan"], "--hours nan"),
        (["--hours", "13"], "at most 12"),
        (["--batch-size", "0"], "--batch-size 0: expected at least 1"),
        (["--name", "Bad Name"], "--name Bad Name: expected 6 to 43 small letters.*'bad-name'"),
        (["--competition", "two words"], "'two words' is .*competitions/<name>"),
        (["--tta", "flipp"], "--tta flipp: 'flipp' .* \\(nearest: 'flip'\\)"),
        (["--prior", "gone.csv"], "gone.csv"),
        (["--output", __file__], "test_kernel.py is a file, .* --output"),
    ],
)
def test_bad_flags_are_one_message(
    flags: list[str], message: str, finished_run: Path, tmp_path: Path
) -> None:
    given = [
        *("--model", str(finished_run / "run"), "--data", str(finished_run / "data")),
        *("--output", str(tmp_path / "kernel")),
    ]
    competition = [] if "--competition" in flags else ["--competition", "glyphs"]
    with pytest.raises(UserError, match=message):
        main([*given, *competition, *flags])


def test_images_that_an_older_make_data_made_are_refused(finished_run: Path, tmp_path: Path) -> None:
    data = shutil.copytree(finished_run / "data", tmp_path / "data")
    (data / CONVERTED).write_text('{"files": {".csv": 1, ".dcm": 2}, "examples": ["test.csv"]}')
    given = ["--model", str(finished_run / "run"), "--data", str(data), "--output", str(tmp_path / "kernel")]
    with pytest.raises(UserError, match=r"1 .csv, 2 .dcm \(such as test.csv\)[\s\S]*`make data` again"):
        main([*given, "--competition", "glyphs"])
    assert not (tmp_path / "kernel").exists()


@pytest.mark.parametrize(
    ("trained_on", "here", "message"),
    [
        ({"grey levels": 1}, {"grey levels": 2}, "run was trained on images that were converted"),
        ({"grey levels": 1}, None, "run was trained on images that were converted"),
        (None, {"grey levels": 1}, "run was trained on images that were not converted"),
        ("unknown", {"grey levels": 1}, "run does not say"),
    ],
)
def test_a_kernel_never_repeats_another_conversion_than_that_of_training(
    trained_on, here, message: str, finished_run: Path, tmp_path: Path
) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(finished_run / "data", data)
    shutil.copytree(finished_run / "run", run)
    record = json.loads((run / "run.json").read_text())
    assert record["conversion"] == ""

    def note(decided: dict[str, int] | None) -> None:
        (data / CONVERTED).unlink(missing_ok=True)
        if decided is not None:
            noted = {"files": {".npy": 1}, "examples": ["test/a.npy"], "packages": [], "decided": decided}
            (data / CONVERTED).write_text(json.dumps(noted))

    if trained_on == "unknown":  # by an earlier version
        del record["conversion"]
    else:
        note(trained_on)
        record["conversion"] = conversion_of(data)
    (run / "run.json").write_text(json.dumps(record))
    note(here)
    given = ["--model", str(run), "--data", str(data), "--output", str(tmp_path / "kernel")]
    with pytest.raises(UserError, match=message):
        main([*given, "--competition", "glyphs"])
    assert not (tmp_path / "kernel").exists()


def test_a_competition_that_nobody_named_is_asked_for(finished_run: Path, tmp_path: Path) -> None:
    given = [
        *("--model", str(finished_run / "run"), "--data", str(finished_run / "data")),
        *("--output", str(tmp_path / "kernel")),
    ]
    with pytest.raises(UserError, match="the competition is not known: COMPETITION=<name>"):
        main(given)


def test_a_run_without_weights_yet_is_one_message(finished_run: Path, tmp_path: Path) -> None:
    shutil.copytree(finished_run / "run", tmp_path / "run")
    (tmp_path / "run/run.json").unlink()
    (tmp_path / "run/state/kept.json").unlink()
    with pytest.raises(UserError, match="before any weights were saved"):
        main(
            [
                *("--model", str(tmp_path / "run"), "--data", str(finished_run / "data")),
                *("--competition", "glyphs"),
            ]
        )
