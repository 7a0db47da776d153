"""A run that was interrupted: weights that can be used, its page, and commands that can be pasted whatever
the folders are called.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import make_competition

import inference
import train
from pipeline import files
from pipeline.errors import Interrupted, UserError
from pipeline.run import load_run
from pipeline.unfinished import started_with

QUICK = tuple(
    "--precision fp32 --batch-size 6 --accumulation-steps 1 --lr 0.01 --set data.val_fraction=0.25".split()
)
LEARNS = ("--set", "schedule.warmup_ratio=0")  # already in its first step


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder whose name needs quoting, with a competition in it."""
    make_competition(tmp_path / "it's a $HOME & more" / "my data")
    return tmp_path / "it's a $HOME & more"


def start(place: Path, backbone: Path, *flags: str, minutes: str = "0") -> Path:
    """A run that was stopped at the first micro-batch after so many minutes."""
    output = place / "the run"
    with pytest.raises(Interrupted):
        train.main(
            [
                *("--data", str(place / "my data"), "--output", str(output), "--backbone", str(backbone)),
                *QUICK,
                *LEARNS,
                *flags,
                *("--max-minutes", minutes),
            ]
        )
    return output


def printed(text: str) -> list[str]:
    """The commands in an output: after `next:` or `with:`, or between backticks."""
    return [
        *re.findall(r"(?:next:|with:) (python .*)$", text, re.MULTILINE),
        *re.findall(r"`(python [^`]*)`", text),
    ]


def paste(command: str) -> int:
    """The exit code for a person who pastes the command into a shell: bash reads it, this process runs it."""
    words = subprocess.run(
        ["bash", "-c", f"python() {{ printf '%s\\0' \"$@\"; }}; {command}"], capture_output=True, text=True
    )
    assert words.returncode == 0 and not words.stderr
    script, *flags = words.stdout.removesuffix("\0").split("\0")
    return {"train.py": train.main, "inference.py": inference.main}[script](flags)


@pytest.mark.parametrize("flags", [("--epochs", "3"), ("--epochs", "3", "--lora-rank", "0")])
def test_before_the_first_epoch_has_ended_the_weights_of_the_moment_predict(
    place: Path, tiny_backbone: Path, flags: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from safetensors.torch import load_file

    output = start(place, tiny_backbone, *flags)
    told = capsys.readouterr().out
    assert "next: python inference.py" in told
    assert (output / "report.html").exists()
    assert not (output / "run.json").exists()
    run = load_run(output)
    assert "row 6" in run.unfinished and run.record.best == {}
    # the weights are those of the state
    state = torch.load(max((output / "state").glob("*.pt")), weights_only=True)["weights"]
    folder = run.adapter_dir or run.backbone_dir
    saved = load_file(next(folder.glob("*.safetensors")))
    heads = [name for name in state if "classifier" in name and name.endswith("weight")]
    kept = next(value for name, value in saved.items() if name.endswith("classifier.weight"))
    np.testing.assert_array_equal(kept.numpy(), state[heads[-1]].float().numpy())
    command = ["--model", str(output), "--data", str(place / "my data"), "--output", str(place / "p.csv")]
    assert inference.main(command) == 0
    assert "row 6" in capsys.readouterr().out
    # and going on gives what a run without interruption gives
    assert train.main(["--output", str(output), "--resume"]) == 0
    whole = place / "whole"
    arguments = [
        *("--data", str(place / "my data"), "--output", str(whole)),
        *("--backbone", str(tiny_backbone)),
        *QUICK,
        *LEARNS,
        *flags,
    ]
    assert train.main(arguments) == 0
    assert (output / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert load_run(output).unfinished is None


def test_later_the_best_epoch_so_far_predicts(
    place: Path, tiny_backbone: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = start(place, tiny_backbone, "--epochs", "3", "--set", "checkpoint.keep=best")
    from pipeline.training import engine

    monkeypatch.setattr(engine._Loop, "finish_epoch", _stopping(engine._Loop.finish_epoch))
    with pytest.raises(Interrupted):
        train.main(["--output", str(output), "--resume"])
    run, lines = load_run(output), files.read_json_lines(output / "metrics.jsonl")
    assert len(lines) == 1 and "best epoch so far, 1 of 3" in run.unfinished
    assert run.record.best == {"epoch": 1, "metric": "val_accuracy", "value": lines[0]["val_accuracy"]}
    capsys.readouterr()
    arguments = ["--model", str(output), "--data", str(place / "my data"), "--output", str(place / "p.csv")]
    assert inference.main(arguments) == 0
    assert "best epoch so far" in capsys.readouterr().out
    assert inference.main([*arguments, "--tta", "scale"]) == 0
    assert "views scale: gain on validation rows not known" in capsys.readouterr().out
    assert inference.main([*arguments, "--tta", "auto"]) == 0
    assert "not finished, so no view is used" in capsys.readouterr().out


def _stopping(finish):
    def finish_and_stop(loop):
        report = finish(loop)
        loop.request_stop("SIGTERM", False)
        return report

    return finish_and_stop


def test_before_anything_was_learnt_there_is_nothing_to_predict_with(
    place: Path, tiny_backbone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = start(place, tiny_backbone, "--epochs", "3", "--set", "schedule.warmup_ratio=0.5")
    told = capsys.readouterr().out
    assert "nothing was learnt in" in told and "next:" not in told
    with pytest.raises(UserError, match="before any weights were saved"):
        load_run(output)


def test_killed_before_anything_was_kept_is_said_with_the_command(place: Path, tiny_backbone: Path) -> None:
    output = start(place, tiny_backbone, "--epochs", "2")
    (output / "state" / "kept.json").unlink()
    with pytest.raises(UserError, match="before any weights were saved") as error:
        load_run(output)
    assert printed(str(error.value)) == [
        shlex.join(["python", "train.py", "--output", str(output), "--resume"])
    ]


def test_every_printed_command_can_be_pasted(
    place: Path, tiny_backbone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Folders with spaces, a quote, a dollar and an ampersand; whatever was printed runs as it stands."""
    output = place / "the run"
    flags = [
        *("--data", str(place / "my data"), "--output", str(output), "--backbone", str(tiny_backbone)),
        *QUICK,
        *LEARNS,
        *("--epochs", "1"),
    ]
    with pytest.raises(Interrupted) as stopped:
        train.main([*flags, "--max-minutes", "0"])
    told = capsys.readouterr().out
    (predict,), (go_on,) = printed(told), printed(str(stopped.value))
    with pytest.raises(UserError) as refused:
        train.main(flags)
    assert printed(str(refused.value)) == [go_on]
    with pytest.raises(UserError) as refused:
        train.main([*flags, "--resume", "--seed", "9"])
    assert printed(str(refused.value)) == []
    with pytest.raises(UserError) as refused:
        train.main([*flags, "--resume", "--lr", "0.5"])
    assert printed(str(refused.value)) == [go_on]
    assert paste(f"{predict} --output {shlex.quote(str(place / 'p.csv'))}") == 0
    assert go_on in printed(capsys.readouterr().out)
    assert paste(go_on) == 0
    (then,) = printed(capsys.readouterr().out)
    assert paste(f"{then} --output {shlex.quote(str(place / 'q.csv'))}") == 0
    assert (place / "p.csv").exists() and (place / "q.csv").exists()


def test_resume_alone_takes_the_data_of_the_run(place: Path, tiny_backbone: Path) -> None:
    output = start(place, tiny_backbone, "--epochs", "1", "--batch-size", "auto")
    assert started_with(output) == {"data": str(place / "my data"), "batch_size": "auto"}
    path = output / "state" / "start.json"
    stored = files.read_json(path)
    files.write_json(path, {key: value for key, value in stored.items() if key not in ("data", "batch_size")})
    # Earlier versions wrote down the command alone
    assert started_with(output)["data"] == str(place / "my data")
    (place / "my data").rename(place / "moved")
    assert train.main(["--output", str(output), "--resume", "--data", str(place / "moved")]) == 0
    assert started_with(output)["data"] == str(place / "moved")
