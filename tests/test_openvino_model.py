"""`inference.py --engine openvino`: equal predictions, and what cannot be computed by it."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import inference
from pipeline.errors import UserError
from pipeline.predictions import Predictions
from pipeline.run import load_run

pytest.importorskip("openvino")


def predict(run: Path, data: Path, output: Path, *flags: str) -> np.ndarray:
    """(N, C) probabilities of the test images, as kept in the run."""
    inference.main(
        [
            *("--model", str(run), "--data", str(data), "--output", str(output), "--batch-size", "4"),
            *("--precision", "fp32"),
            *flags,
        ]
    )
    return Predictions.load(run / "test", load_run(run).target).values


def test_it_predicts_as_torch_does_and_the_record_says_by_what(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run, data = tmp_path / "run", finished_run / "data"
    shutil.copytree(finished_run / "run", run)
    by_torch = predict(run, data, tmp_path / "torch.csv")
    capsys.readouterr()
    # The last batch is smaller than the others
    found = predict(run, data, tmp_path / "openvino.csv", "--engine", "openvino")
    printed = capsys.readouterr().out
    assert "by openvino" in printed and "same images, weights and packages" not in printed, (
        "torch's predictions are not taken for OpenVINO's"
    )
    assert np.abs(by_torch - found).max() < 1e-5 and np.ptp(by_torch) > 1e-3
    assert (tmp_path / "torch.csv").read_text() == (tmp_path / "openvino.csv").read_text()
    assert json.loads((run / "test.json").read_text())["made_with"]["engine"].startswith("openvino 20")
    predict(run, data, tmp_path / "again.csv", "--engine", "openvino")
    assert "same images, weights and packages" in capsys.readouterr().out


def test_in_half_precision_logits_do_not_tie(finished_run: Path, tmp_path: Path) -> None:
    run, data = tmp_path / "run", finished_run / "data"
    shutil.copytree(finished_run / "run", run)
    exact = predict(run, data, tmp_path / "torch.csv")
    rounded = predict(run, data, tmp_path / "half.csv", "--engine", "openvino", "--precision", "bf16")
    assert np.abs(exact - rounded).max() < 0.05
    assert len(np.unique(rounded)) == rounded.size


def test_what_it_cannot_do_is_one_message(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [
        *("--model", str(finished_run / "run"), "--data", str(finished_run / "data")),
        *("--output", str(tmp_path / "p.csv"), "--engine", "openvino"),
    ]
    with pytest.raises(UserError, match="fp16"):
        inference.main([*words, "--precision", "fp16"])
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UserError, match="pip install openvino"):
        inference.main(words)
    assert not (tmp_path / "p.csv").exists()
