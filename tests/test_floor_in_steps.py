"""A floor in optimizer steps: few rows get more epochs than the recipe says, and the whole run counts them
so.
"""

from __future__ import annotations

from pathlib import Path

from conftest import assert_says

import train
from pipeline.files import read_json, read_json_lines


def test_a_run_goes_on_until_the_floor_and_says_how_many_epochs_there_are(
    competition: Path, tiny_backbone: Path, tmp_path: Path, capsys
) -> None:
    """24 rows, 18 of them for training: 3 steps of 6 an epoch, so 7 steps are 3 epochs."""
    flags = [
        *("--data", str(competition), "--backbone", str(tiny_backbone), "--output", str(tmp_path / "run")),
        *("--precision", "fp32"),
    ]
    more = ["data.val_fraction=0.25", "schedule.min_steps=7"]
    train.main(
        [
            *flags,
            *"--epochs 1 --batch-size 6 --accumulation-steps 1".split(),
            *(word for key in more for word in ("--set", key)),
        ]
    )
    assert [line["step"] for line in read_json_lines(tmp_path / "run" / "metrics.jsonl")] == [3, 6, 9]
    assert read_json(tmp_path / "run" / "run.json")["schedule"]["total_steps"] == 9
    out = capsys.readouterr().out
    assert "epoch 1/3" in out
    assert_says(out, "3 epochs instead of 1", "--set schedule.min_steps=0")
    assert ">epoch 3 of 3<" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
