"""Lines that fit: an epoch's in 80 columns, the recipe's keys in 100."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.config import describe_keys, known_keys, load_recipe, recipe_names
from pipeline.training.position import EpochReport
from pipeline.training.record import Recorder

LONG = "partial_auc_80tpr"


@pytest.mark.parametrize(
    ("trained", "validated", "epochs", "loss", "speed", "seconds"),
    [
        ("accuracy", "accuracy", 25, 3.0720, 27.4, 17.0),
        ("accuracy", "log_loss", 25, 3.0720, 1270.0, 4000.0),
        ("label_accuracy", LONG, 1000, 12345.678, 12345.6, 40000.0),
        ("mae", "rmse", 100, 0.000071, 0.4, 360000.0),
        ("accuracy", None, 25, 3.0720, 27.4, 17.0),
    ],
)
def test_no_epoch_line_wraps_at_80_columns(
    tmp_path: Path,
    capsys,
    trained: str,
    validated: str | None,
    epochs: int,
    loss: float,
    speed: float,
    seconds: float,
) -> None:
    recipe = load_recipe("beit-large-384-lora", {"epochs": epochs})
    recorder = Recorder(
        tmp_path,
        recipe,
        lambda folder: None,
        lambda folder, logits: None,
        (f"train_{trained}", f"val_{validated}"),
    )
    for epoch in (1, epochs):
        metrics = {"epoch": epoch, "step": epoch, "lr": 5e-5, "train_loss": loss, f"train_{trained}": 0.4321}
        metrics |= {"val_loss": loss / 2, f"val_{validated}": 0.1234} if validated else {}
        timing = {"epoch": epoch, "seconds": seconds, "images_per_second": speed, "peak_memory_bytes": 1}
        recorder.epoch(EpochReport(metrics, timing, np.zeros((1, 1)) if validated else None, is_best=True))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert len(lines) == 2
    for line, epoch in zip(lines, (1, epochs), strict=True):
        assert len(line) < 80 and f"{epoch}/{epochs}" in line
        assert validated is None or f"{validated} 0.1234 *" in line


@pytest.mark.parametrize("name", recipe_names())
def test_the_keys_of_every_recipe_fit_100_columns(name: str) -> None:
    lines = describe_keys(load_recipe(name)).splitlines()
    assert max(map(len, lines)) <= 100
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == list(known_keys())
