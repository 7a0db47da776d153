"""`inference.py --engine openvino-int8`: made once, near torch, and what it refuses."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import inference
from pipeline.competition.facts import CompetitionFacts
from pipeline.errors import UserError
from pipeline.folds.quantizing import calibration_rows, described
from pipeline.folds.team import gather
from pipeline.kernel.answer import predict_carried
from pipeline.kernel.bundle import Options, make_bundle
from pipeline.kernel.carried import open_bundle
from pipeline.predictions import Predictions
from pipeline.run import load_run
from pipeline.tasks.apply import read_for
from pipeline.tasks.image_classifier import rebuild
from pipeline.tasks.quantized import keep_quantized


def words_of(run: Path, data: Path, output: Path) -> list[str]:
    flags = ["--batch-size", "4", "--precision", "fp32", "--engine", "openvino-int8"]
    return ["--model", str(run), "--data", str(data), "--output", str(output), *flags]


def test_made_once_and_near_torch(finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("nncf", reason="nncf makes the models in 8 bits: python -m pip install nncf")
    run, data = tmp_path / "run", finished_run / "data"
    shutil.copytree(finished_run / "run", run)
    inference.main(words_of(run, data, tmp_path / "torch.csv")[:-2])
    by_torch = Predictions.load(run / "test", load_run(run).target).values
    inference.main(words_of(run, data, tmp_path / "p.csv"))
    printed = capsys.readouterr().out
    made = json.loads((run / "openvino-int8" / "made_of.json").read_text())
    assert f"{made['validation']['int8']:.4f} in 8 bits" in printed and made["training_images"]["rows"] > 0
    by_int8 = Predictions.load(run / "test", load_run(run).target).values
    assert 0 < np.abs(by_torch - by_int8).max() < 0.05
    kept = json.loads((run / "test.json").read_text())["made_with"]
    assert kept["engine"].startswith("openvino-int8 20") and kept["quantized"] == made["files"]["model.bin"]
    assert kept["calibration"] == made["calibration"] and made["calibration"]["images"] > 0
    assert (
        json.loads((tmp_path / ".made-by.jsonl").read_text().splitlines()[-1])["made"]["engine"]
        == "openvino-int8"
    )
    before = (run / "openvino-int8" / "model.bin").stat().st_mtime_ns
    (run / "test.json").unlink()
    inference.main(words_of(run, data, tmp_path / "again.csv"))
    assert (run / "openvino-int8" / "model.bin").stat().st_mtime_ns == before
    assert (tmp_path / "again.csv").read_text() == (tmp_path / "p.csv").read_text()


def test_the_kept_model_predicts_and_is_shipped_without_nncf(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model in float32 stands for one in 8 bits. Its head says the last class: it predicts, not torch."""
    pytest.importorskip("openvino")
    from pipeline.models import int8_model
    from pipeline.models.int8_model import read_versions
    from pipeline.models.openvino_model import convert

    monkeypatch.setitem(sys.modules, "nncf", None)
    monkeypatch.setattr(int8_model, "is_slow_here", lambda: True)
    folder, data = tmp_path / "a run", finished_run / "data"
    shutil.copytree(finished_run / "run", folder)
    run = load_run(folder)
    classifier = rebuild(run, run.target.num_outputs)
    head = [weight for name, weight in classifier.model.named_parameters() if name.endswith("bias")][-1]
    head.data += torch.tensor([*[0.0] * (len(head) - 1), 50.0])
    converted = convert(
        classifier.model, classifier.extra, (classifier.preprocessing.height, classifier.preprocessing.width)
    )
    calibration = {"images": 1, "seed": 0, "of": "abc"}
    keep_quantized(
        run, converted, {"versions": {"nncf": "3"}, "calibration": calibration, "validation": None}
    )
    inference.main(words_of(folder, data, tmp_path / "p.csv"))
    assert "this CPU has neither AVX-512 nor VNNI" in capsys.readouterr().err
    found = Predictions.load(folder / "test", run.target).values
    assert (found[:, -1] > 0.99).all()
    kept = json.loads((folder / "test.json").read_text())["made_with"]
    assert kept["engine"].startswith("openvino-int8 20") and kept["calibration"] == calibration

    options = Options(engine="openvino-int8")
    bundle = make_bundle(gather([folder]), tmp_path / "dataset", CompetitionFacts(), options=options)
    answer = predict_carried(open_bundle(bundle.folder), read_for(run, data), 4, "fp32", float("inf"))
    assert np.array_equal(answer.predictions.values, found)

    (folder / "openvino-int8" / "model.bin").write_bytes(b"damaged")
    with pytest.raises(UserError, match="pip install nncf"):
        inference.main(words_of(folder, data, tmp_path / "p.csv"))
    with monkeypatch.context() as more, pytest.raises(UserError, match="pip install openvino nncf"):
        more.setitem(sys.modules, "openvino", None)
        read_versions()
    with pytest.raises(UserError, match=r"openvino-int8 .*--engine openvino-int8 --model '.*/a run'"):
        make_bundle(gather([folder]), tmp_path / "another", CompetitionFacts(), options=options)


def test_calibration_images_did_not_validate(finished_run: Path) -> None:
    run = load_run(finished_run / "run")
    validated = {
        line.split(",")[0] for line in (finished_run / "run/val_predictions.csv").read_text().splitlines()[1:]
    }
    rows = calibration_rows(run, Path("nowhere"))
    assert validated and rows and not validated & {row.id for row in rows}
    assert rows == calibration_rows(run, Path("nowhere"))


def test_without_training_images_nothing_is_made(finished_run: Path, tmp_path: Path) -> None:
    shutil.copytree(finished_run / "run", tmp_path / "run")
    record = json.loads((tmp_path / "run/run.json").read_text()) | {"data": str(tmp_path / "gone")}
    (tmp_path / "run/run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="needs its training images"):
        calibration_rows(load_run(tmp_path / "run"), tmp_path / "gone")


@pytest.mark.parametrize(("int8", "warned"), [(0.85, False), (0.79, True), (0.95, False)])
def test_a_loss_beyond_the_standard_error_is_a_warning(int8: float, warned: bool) -> None:
    found = {
        "metric": "accuracy",
        "stored": 0.9,
        "int8": int8,
        "error": 0.1,
        "rows": 20,
        "largest": 0.2,
        "equal": 0.9,
    }
    made = {"versions": {"nncf": "3.4"}, "calibration": {"images": 128}, "validation": found}
    assert bool(described(made)[1]) == warned
    lower = made | {"validation": found | {"metric": "log_loss", "stored": 0.9, "int8": 0.9 + (0.9 - int8)}}
    assert bool(described(lower)[1]) == warned
