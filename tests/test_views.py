"""Views of test images: what they show, their mean, and that a run which was never mirrored is not
mirrored.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import inference
from pipeline.competition.rows import Row
from pipeline.errors import UserError
from pipeline.folds.team import gather
from pipeline.folds.views import averaged_logits, check_views, choose_views, gains, make_views, parse_views
from pipeline.predictions import Predictions
from pipeline.run import Run
from pipeline.submission.origin import find_origin
from pipeline.targets.target import Target, multiclass
from pipeline.tasks import classification


def test_what_is_asked_for() -> None:
    assert parse_views(None) == ()
    assert parse_views("scale,flip") == ("flip", "scale")
    assert parse_views("auto") == ("auto",)
    with pytest.raises(UserError, match=r"'flipp'.*'flip'"):
        parse_views("flipp")


def test_views_show_what_they_are_called() -> None:
    pixels = torch.zeros(1, 3, 32, 48, dtype=torch.uint8)
    pixels[..., :16, :24] = 200  # the upper left quarter
    plain, mirrored = make_views(pixels, ["flip"])
    assert torch.equal(plain, pixels) and torch.equal(mirrored, pixels.flip(-1))
    corners = make_views(pixels, ["crops"])[1:]
    # The corner that is bright shows more of it, the opposite one less
    shares = [(view > 100).float().mean().item() for view in corners]
    assert len(corners) == 4
    assert shares[0] > 0.3 > 0.25 > shares[3] > 0.1
    assert shares[1] == pytest.approx(shares[2], abs=0.02)
    assert all(
        view.shape == pixels.shape and view.dtype == torch.uint8
        for view in make_views(pixels, ["flip", "crops", "scale"])
    )
    assert len(make_views(pixels, ["flip", "crops", "scale"])) == 12


@pytest.mark.parametrize(
    "target",
    [multiclass("abc"), Target("multilabel", ("a", "b", "c")), Target("continuous", ("a", "b", "c"))],
)
def test_probabilities_are_averaged(target: Target) -> None:
    def logits(batch: dict) -> torch.Tensor:
        return batch["pixels"][:, :, 0, 0].float() / 40

    pixels = torch.randint(
        0, 255, (5, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    found = averaged_logits(logits, target, ["flip"])({"pixels": pixels})
    each = [logits({"pixels": pixels}).numpy(), logits({"pixels": pixels.flip(-1)}).numpy()]
    if target.kind == "continuous":
        np.testing.assert_allclose(found, np.mean(each, axis=0), rtol=1e-6)
    else:
        np.testing.assert_allclose(
            target.activate(found.numpy()), np.mean([target.activate(one) for one in each], axis=0), atol=1e-6
        )


class OnApple(torch.Tensor):
    """A tensor on Apple's GPU, which has no float64."""

    device = torch.device("mps")

    def double(self) -> torch.Tensor:
        raise TypeError("Cannot convert a MPS Tensor to float64")

    def cpu(self) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)


def test_views_are_averaged_on_the_cpu_where_the_gpu_has_no_float64() -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    pixels = {"pixels": torch.zeros(4, 3, 8, 8, dtype=torch.uint8)}
    there, here = (
        averaged_logits(lambda _, found=found: found, multiclass("abc"), ["flip"])(pixels)
        for found in (logits.as_subclass(OnApple), logits)
    )
    assert torch.equal(there, here)


@pytest.mark.parametrize(
    ("gain", "used"),
    [
        ({"flip": 0.01, "crops": 0.02, "scale": -0.01, "flip+crops": 0.03}, ("flip", "crops")),
        ({"flip": 0.01, "crops": 0.02, "scale": -0.01, "flip+crops": -0.04}, ("crops",)),
        ({"flip": 0.01, "crops": 0.0, "scale": 0.0}, ("flip",)),
        ({"flip": 0.0, "crops": 0.0, "scale": -0.01}, ()),
    ],
)
def test_views_that_gain_alone_are_used_together_only_where_that_gains_too(
    gain: dict[str, float], used: tuple[str, ...], finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def looked_up(
        _team: object, candidates: list[tuple[str, ...]], _predict: object
    ) -> dict[tuple[str, ...], float]:
        return {views: gain["+".join(views)] for views in candidates}

    monkeypatch.setattr("pipeline.folds.views.gains", looked_up)
    found, lines = choose_views(("auto",), gather([finished_run / "run"]), None)
    assert found == used and len(lines) == len(gain) + 1
    assert lines[-1] == f"views used: {', '.join(used) or 'none'}"


def test_gains_of_models_with_their_classes_in_another_order(finished_run: Path, tmp_path: Path) -> None:
    """Each model's rows are scored in the order of the first, so the same predictions gain nothing."""
    one, other = (shutil.copytree(finished_run / "run", tmp_path / name) for name in ("one", "other"))
    record = json.loads((other / "run.json").read_text())
    names = record["class_names"][::-1]
    record["class_names"] = record["target"]["names"] = names
    (other / "run.json").write_text(json.dumps(record))
    np.save(other / "val_probs.npy", np.load(other / "val_probs.npy")[:, ::-1])

    def predict(run: Run, rows: Sequence[Row], sets: Sequence[tuple[str, ...]]) -> list[Predictions]:
        values = np.load(run.path / "val_probs.npy")
        return [Predictions(tuple(row.id for row in rows), values, run.target) for _ in sets]

    found = gains(gather([one, other]), [("crops",)], predict)
    assert found == {("crops",): 0.0}
    alone = gains(gather([other]), [("crops",)], predict)
    assert alone == {("crops",): 0.0}


def test_from_the_command_line(
    finished_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built, rebuild = [], classification.rebuild
    monkeypatch.setattr(
        classification, "rebuild", lambda run, outputs: built.append(run.path) or rebuild(run, outputs)
    )
    run, output = shutil.copytree(finished_run / "run", tmp_path / "run"), tmp_path / "predictions.csv"
    for kept in run.glob("test*.*"):  # another test may have predicted with the shared run
        kept.unlink()
    words = [
        *("--data", str(finished_run / "data"), "--model", str(run), "--output", str(output)),
        *("--precision", "fp32"),
    ]
    assert inference.main([*words, "--tta", "flip,scale"]) == 0
    assert "gain on validation rows" in capsys.readouterr().out and find_origin(output).made["views"] == [
        "flip",
        "scale",
    ]
    assert (run / "test-flip-scale.npy").exists() and not (run / "test.npy").exists()
    built.clear()
    assert inference.main([*words, "--tta", "auto"]) == 0
    said = capsys.readouterr().out
    together = any(line.strip().startswith("views ") and "+" in line for line in said.splitlines())
    predicted_before = "predicted before" in said
    # Once for all single views, once for the gaining ones together, once for the test images
    assert len(built) == 1 + together + (not predicted_before)
    assert all(f"view {name}: gain" in said for name in ("flip", "crops", "scale")) and "views used: " in said
    assert len([line for line in said.splitlines() if " px, " in line]) == 1, "the model is described once"
    assert len(pd.read_csv(output)) == 5
    record = json.loads((run / "run.json").read_text())
    record["recipe"]["augmentation"]["horizontal_flip"] = False
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="trained without mirrored images"):
        check_views(("flip",), gather([run]))
    assert inference.main([*words, "--tta", "auto"]) == 0
    assert "view flip" not in capsys.readouterr().out
