"""Means of weights: over steps, over the last epochs, over the best: what is validated is what is saved, and
a resumed run is the same.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import make_competition
from test_resume import assert_same, flags, interrupt_after, resume

import train
from pipeline.errors import Interrupted
from pipeline.files import read_json
from pipeline.run import load_run
from pipeline.tasks.image_classifier import rebuild
from pipeline.training.means import Means, WeightMeans, exchanged, greedy_soup

EMA, AVERAGE = "optimizer.ema=0.9", "checkpoint.keep=average"


def test_the_moving_mean_by_hand() -> None:
    weight = torch.zeros(1)
    means = WeightMeans(Means(ema=0.3), {"w": weight})
    expected, now = 0.0, 0.0
    for step in range(1, 7):
        now = float(step)
        weight.fill_(now)
        means.after_step(step)
        decay = min(0.3, (1 + step) / (10 + step))  # the warm-up holds for two steps
        expected = decay * expected + (1 - decay) * now
    with means.in_place():
        assert weight.item() == pytest.approx(expected, rel=1e-6)
    assert weight.item() == now


def test_the_last_epochs_by_hand() -> None:
    weight = torch.zeros(2)
    means = WeightMeans(Means(last=2), {"w": weight})
    for epoch, value in enumerate((1.0, 2.0, 6.0), start=1):
        weight.fill_(value)
        means.before_validation(epoch)
        means.before_validation(epoch)  # validated again after a stop: an epoch counts once
    with means.in_place():
        assert weight.tolist() == [4.0, 4.0]
    assert weight.tolist() == [6.0, 6.0]


@pytest.mark.parametrize(("higher", "sign"), [(True, 1), (False, -1)])
def test_a_greedy_soup_by_hand(higher: bool, sign: int) -> None:
    """Values 3, 2, 2 and 1 of weights 0, 8, 4, 100; a mean scores 3 below 5, else 0: 0 and 4 are kept, 8
    would lead to 4, 100 is not asked.
    """
    weight = torch.zeros(1)
    means = WeightMeans(Means(soup=3), {"w": weight})
    for epoch, (value, at, loss) in enumerate(
        [(2, 8.0, 0.9), (1, 100.0, 0.1), (2, 4.0, 0.8), (3, 0.0, 0.7)], start=1
    ):
        weight.fill_(at)
        means.after_validation(epoch, sign * value, loss, higher)
    assert means.best_first(higher) == [4, 3, 1]
    seen = []

    def validate() -> tuple[np.ndarray, float, dict[str, float]]:
        seen.append(weight.item())
        value = sign * (3.0 if weight.item() < 3 else 0.0)
        return np.zeros((1, 1)), value, {"val_x": value}

    soup = greedy_soup(means, validate, higher, sign * 3.0)
    assert (soup.epochs, soup.value, seen) == ((4, 3), sign * 3.0, [2.0, 4.0])
    assert weight.item() == 0.0
    with exchanged(means.trainable, means.mean(soup.epochs)):
        assert weight.item() == 2.0


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_competition(tmp_path_factory.mktemp("means") / "data")


def told(data: Path, backbone: Path, output: Path, *keys: str) -> list[str]:
    return [*flags(data, backbone, output), *(word for key in keys for word in ("--set", key))]


@pytest.mark.parametrize(
    "keys",
    [
        pytest.param((EMA,), marks=pytest.mark.slow, id="ema"),
        pytest.param((EMA, AVERAGE, "checkpoint.average_last=2"), id="average"),
        pytest.param(("checkpoint.keep=soup",), id="soup"),
    ],
)
def test_a_resumed_run_is_the_same_and_what_is_scored_is_saved(
    data: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch, keys
) -> None:
    assert train.main(told(data, tiny_backbone, tmp_path / "whole", *keys)) == 0
    for place in (5, 17):
        with monkeypatch.context() as patched:
            interrupt_after(patched, place)
            with pytest.raises(Interrupted):
                train.main(told(data, tiny_backbone, tmp_path / f"at-{place}", *keys))
        assert resume(data, tmp_path / f"at-{place}") == 0
        assert_same(tmp_path / f"at-{place}", tmp_path / "whole")
    scored_as_saved(data, tmp_path / "whole")


def scored_as_saved(data: Path, run: Path) -> None:
    """The saved weights, read back by the public road, give the validation values that were written; so does
    the number in run.json.
    """
    classifier = rebuild(load_run(run), 3)
    lines = (run / "val_predictions.csv").read_text().splitlines()
    rows = [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]
    (batch,) = classifier.batches([SimpleNamespace(path=Path(row["path"])) for row in rows], len(rows))
    found = torch.softmax(classifier.logits(batch), -1).detach().numpy()
    np.testing.assert_allclose(found, np.load(run / "val_probs.npy"), atol=1e-5)
    best = read_json(run / "run.json")["best"]
    assert best["value"] == pytest.approx(np.mean([row["label"] == row["predicted"] for row in rows]))


def test_a_stop_while_the_soup_is_scored_names_the_next_command_and_resumes(
    data: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    def stopped_soup(*given):
        os.kill(os.getpid(), signal.SIGTERM)
        return greedy_soup(*given)

    words = told(data, tiny_backbone, tmp_path / "stopped", "checkpoint.keep=soup")
    with monkeypatch.context() as patched:
        patched.setattr("pipeline.training.engine.greedy_soup", stopped_soup)
        with pytest.raises(Interrupted):
            train.main(words)
    assert f"next: python inference.py --model {tmp_path / 'stopped'}" in capsys.readouterr().out
    assert resume(data, tmp_path / "stopped") == 0
    assert train.main(told(data, tiny_backbone, tmp_path / "whole", "checkpoint.keep=soup")) == 0
    assert_same(tmp_path / "stopped", tmp_path / "whole")
