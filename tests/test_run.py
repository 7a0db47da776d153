"""The run folder: what loads, and what each damaged or unfinished one says."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from pipeline import run
from pipeline.errors import UserError
from pipeline.run import environment, is_unfinished, load_run, model_dirs, now, run_entries
from pipeline.run_record import read_metrics

RECORD = {"format": 1, "name": "mine", "class_names": ["cat", "dog"]}


def make(
    folder: Path,
    id2label: dict | None = None,
    record: dict | None = None,
    adapter: bool = True,
    model: str = "beit",
) -> Path:
    (folder / f"model_{model}").mkdir(parents=True)
    config = {"model_type": model, **({} if id2label is None else {"id2label": id2label})}
    (folder / f"model_{model}" / "config.json").write_text(json.dumps(config))
    if adapter:
        (folder / "model_lora").mkdir()
    if record is not None:
        (folder / "run.json").write_text(json.dumps(record))
        (folder / f"model_{model}" / "preprocessor_config.json").write_text("{}")
    return folder


def test_a_finished_run(tmp_path: Path) -> None:
    loaded = load_run(make(tmp_path / "run", {"0": "x", "1": "y"}, RECORD, model="swinv2"))
    assert loaded.backbone_dir == tmp_path / "run" / "model_swinv2"
    assert loaded.adapter_dir == tmp_path / "run" / "model_lora"
    assert loaded.class_names == ("cat", "dog") and loaded.name == "mine" and loaded.record.values == RECORD
    assert load_run(make(tmp_path / "full", record=RECORD, adapter=False)).adapter_dir is None


def test_a_legacy_release_takes_its_names_from_the_config_in_index_order(tmp_path: Path) -> None:
    names = {str(index): f"class {index}" for index in (10, 2, 0, 1, 3, 4, 5, 6, 7, 8, 9)}
    loaded = load_run(make(tmp_path / "run", names))
    assert loaded.class_names == tuple(f"class {index}" for index in range(11)) and loaded.record is None
    assert loaded.name == "legacy release"


@pytest.mark.parametrize(
    "id2label", [None, {}, {"0": "LABEL_0", "1": "LABEL_1"}, {"0": "a", "2": "b"}, {"cat": "a"}]
)
def test_names_that_name_nothing_are_none(tmp_path: Path, id2label: dict | None) -> None:
    assert load_run(make(tmp_path / "run", id2label)).class_names is None


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: None, r"run does not exist: no model to load; `make weights` installs"),
        (lambda folder: folder.mkdir(), r"no model_<type> folder"),
        (lambda folder: (folder / "model_lora").mkdir(parents=True), r"no model_<type> folder"),
        (
            lambda folder: (make(folder), (folder / "model_vit").mkdir()),
            r"more than one backbone \(model_beit, model_vit\)",
        ),
        (
            lambda folder: (make(folder), (folder / "state").mkdir()),
            r"stopped before it began: .*`python train.py --output .*run --resume`",
        ),
        (lambda folder: (make(folder), (folder / ".installing").touch()), r"`make weights` was interrupted"),
        (
            lambda folder: make(folder, record=RECORD | {"recipe": {"lora": {"rank": 16}}}, adapter=False),
            r"trained with an adapter \(lora.rank 16\), .*model_lora is missing",
        ),
        (
            lambda folder: (make(folder, record=RECORD) / "model_beit/preprocessor_config.json").unlink(),
            r"model_beit/preprocessor_config\.json is missing",
        ),
        (lambda folder: make(folder, record={"format": 2}), r"run\.json: format 2, expected 1"),
        (lambda folder: make(folder, record={"format": 1}), r"run\.json: names no classes"),
        (
            lambda folder: (make(folder), (folder / "run.json").write_text("[]")),
            r"run\.json was changed by hand or is damaged;.*\n.*expected an object, found \[\]",
        ),
        (
            lambda folder: (make(folder), (folder / "run.json").write_text("{")),
            r"run\.json is not valid JSON",
        ),
        (
            lambda folder: (make(folder) / "model_beit" / "config.json").unlink(),
            r"config\.json does not exist",
        ),
        (
            lambda folder: (make(folder) / "model_beit" / "config.json").write_text("{,"),
            r"config\.json is not valid JSON",
        ),
    ],
)
def test_what_cannot_be_loaded_says_why(tmp_path: Path, prepare, message: str) -> None:
    prepare(tmp_path / "run")
    with pytest.raises(UserError, match=message):
        load_run(tmp_path / "run")


def test_a_state_beside_run_json_is_no_unfinished_run(tmp_path: Path) -> None:
    folder = make(tmp_path / "run", record=RECORD)
    (folder / "state").mkdir()
    assert not is_unfinished(folder) and load_run(folder).name == "mine"
    (folder / "run.json").unlink()
    assert is_unfinished(folder)


def test_entries_of_a_run_leave_out_what_a_user_put_there(tmp_path: Path) -> None:
    folder = make(tmp_path / "run", record=RECORD)
    for name in ("notes.txt", "metrics.jsonl", "model_notes.txt", "release.yaml"):
        (folder / name).touch()
    for name in ("figures", "earlier", "state"):
        (folder / name).mkdir()
    assert {path.name for path in run_entries(folder)} == {
        "model_beit",
        "model_lora",
        "run.json",
        "metrics.jsonl",
        "figures",
        "state",
    }
    assert [path.name for path in model_dirs(folder)] == ["model_beit", "model_lora"]


def test_environment_names_versions_and_survives_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy

    found = environment()
    assert found["versions"]["numpy"] == numpy.__version__ and found["versions"]["python"].startswith("3.")

    def no_git(*_args: object, **_kwargs: object) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", no_git)
    assert environment()["commit"] is None
    monkeypatch.setattr(run, "_PACKAGES", ("no-such-package",))
    assert environment()["versions"]["no-such-package"] == "absent"


def test_now_has_an_offset() -> None:
    from datetime import datetime

    assert datetime.fromisoformat(now()).utcoffset() is not None


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("class_names", "cat", "class_names: expected a list, found 'cat'"),
        ("class_names", [1, 2], r"class_names\[0\]: expected a text, found 1"),
        ("class_names", ["cat", "cat"], "class_names: expected different texts"),
        ("name", 7, "name: expected a text, found 7"),
        ("task", [], r"task: expected a text, found \[\]"),
        ("recipe", [], r"recipe: expected an object, found \[\]"),
        ("recipe", {"data": 3}, "recipe.data: expected an object, found 3"),
        ("counts", {"train_per_class": {"cat": "8"}}, "counts.train_per_class.cat: expected a whole number"),
        ("best", {"epoch": "1"}, "best.epoch: expected a whole number from 0, found '1'"),
        ("best", {"value": "0.5"}, "best.value: expected a number, found '0.5'"),
        ("format", True, "format: expected a whole number, found True"),
        ("metric", {}, "metric.name: missing"),
        ("schedule", {"name": "linear"}, "schedule.total_steps: missing"),
        ("finished", "yesterday", "finished: expected a date and time, found 'yesterday'"),
        ("members", ["fold-1"], "members: expected an object"),
        ("prior", [0.5, None], r"prior\[1\]: expected a number, found None"),
        ("decisions", [{"kind": "cuts"}], r"decisions\[0\].numbers: missing"),
        (
            "blend",
            {"way": "greedy", "rule": "ranks", "rows": 3, "scores": {}, "refused": [1]},
            "blend.refused: expected an object",
        ),
        ("counts", {"parameters": {"model": "many"}}, "counts.parameters.model: expected a whole number"),
    ],
)
def test_values_of_other_types_are_named(tmp_path: Path, key: str, value: object, message: str) -> None:
    folder = make(tmp_path / "run", record=RECORD | {key: value})
    with pytest.raises(UserError, match=message) as caught:
        load_run(folder)
    assert str(folder / "run.json") in str(caught.value)


@pytest.mark.parametrize("id2label", [["a", "b"], 7, "ab"])
def test_an_id2label_that_is_no_mapping_names_nothing(tmp_path: Path, id2label: object) -> None:
    assert load_run(make(tmp_path / "run", id2label)).class_names is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"val_loss": 0.5}', "line 2: epoch: expected a whole number, found None"),
        ('{"epoch": "2"}', "line 2: epoch: expected a whole number, found '2'"),
        ('{"epoch": 2, "val_loss": "0.5"}', "line 2: val_loss: expected a number, found '0.5'"),
        ('{"epoch": 2, "val_loss": [1]}', r"line 2: val_loss: expected a number, found \[1\]"),
    ],
)
def test_metrics_of_other_types_are_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1, "val_loss": null}\n' + line + "\n")
    with pytest.raises(UserError, match=message):
        read_metrics(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (["multiclass"], "target: expected an object"),
        ({"kind": "multiclass"}, "target.names: missing"),
        ({"kind": "multiclass", "names": ["cat", 2]}, r"target.names\[1\]: expected a text, found 2"),
        ({"kind": "multiclass", "names": ["cat", "cat"]}, "target.names: expected different names"),
        ({"kind": "ordinal", "names": ["0", "2", "1"]}, "target.names: expected grades, lowest first"),
        ({"kind": "binary", "names": ["no", "yes", "perhaps"]}, "found 3 names"),
        ({"kind": "binary", "names": ["no", "yes"], "positive": "yes"}, "target.positive: expected a list"),
        (
            {"kind": "continuous", "names": ["x"], "center": [0, 1]},
            "target.center: expected 1 numbers, found 2",
        ),
        ({"kind": "continuous", "names": ["x"], "scale": [0]}, "target.scale: expected numbers above 0"),
        ({"kind": "continuous", "names": ["x"]}, "target.low: expected 1 numbers, found 0"),
    ],
)
def test_a_target_of_other_values_is_named(tmp_path: Path, target: object, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_run(make(tmp_path / "run", record=RECORD | {"target": target})).target.describe()
    assert str(tmp_path / "run" / "run.json") in str(caught.value)
