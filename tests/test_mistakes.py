"""Mistakes that a first user makes, and files that a run left and somebody changed: each is one message that
names the place.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from runs import Page

import train
from pipeline.config import load_recipe, parse_assignments
from pipeline.errors import UserError
from pipeline.experiments.grids import load_grid
from pipeline.fetch import install
from pipeline.folds.team import gather
from pipeline.kernel.stages import Stages
from pipeline.models.backbones import rebuild_backbone
from pipeline.report.attention import load
from pipeline.report.page import build_report
from pipeline.run import load_run
from pipeline.training.advice import way_of_head


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--max-minutes", "nan"], "--max-minutes: nan"),
        (["--max-minutes", "-1"], "--max-minutes: -1"),
        (["--output", ""], "argument --output: expected a folder"),
        (["--data", " "], "argument --data: expected a folder"),
    ],
)
def test_values_that_no_flag_may_have(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        train.main(words)
    assert caught.value.code == 2 and said in capsys.readouterr().err


def test_a_run_in_the_folder_of_the_competition_is_refused(competition: Path) -> None:
    with pytest.raises(UserError, match=r"--output .* is the competition"):
        train.main(["--data", str(competition), "--output", str(competition / "train" / "..")])
    assert not (competition / "state").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [("seed", 2**63), ("epochs", 10**9), ("lora.rank", 10**8), ("image_size", 10**6), ("batch_size", 10**9)],
)
def test_sizes_that_would_take_hours_or_all_memory_are_refused(key: str, value: int) -> None:
    with pytest.raises(UserError, match=f"{key}: input should be less than or equal to .*found {value}"):
        load_recipe("beit-large-384-lora", {key: value})


def test_the_rates_of_a_plan_of_a_billion_steps_are_summed_at_once() -> None:
    recipe = load_recipe("beit-large-384-lora", {"schedule.name": "linear"})
    plan = {
        "name": "linear",
        "lr": recipe.optimizer.lr,
        "end_lr": 0.0,
        "warmup_steps": 0,
        "total_steps": 10**9,
    }
    assert way_of_head(recipe, plan) == pytest.approx(recipe.optimizer.lr * 10**9 / 2, rel=1e-3)


def test_a_value_of_thousands_of_brackets_is_refused() -> None:
    with pytest.raises(UserError, match=r"--set lora.targets=\[\[.*too many levels"):
        parse_assignments(["lora.targets=" + "[" * 5000])


def test_a_device_is_no_download(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="/dev/zero is a device or a pipe"):
        install.take(Path("/dev/zero"), tmp_path / "data")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the file: expected keys with values"),
        ("rows: x\n", "rows: expected a list"),
        ("rows:\n- name: a\n  set: [1]\n", "rows.0.set: expected keys"),
    ],
)
def test_grids_of_another_form(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "g.yaml").write_text(text)
    with pytest.raises(UserError, match=said):
        load_grid(str(tmp_path / "g.yaml"))


@pytest.mark.parametrize(
    "members", [{"../run": 0}, {"../run": -1, "../other": 1}, {"../run": -1, "../other": 2}]
)
def test_weights_of_a_blend_that_are_none(
    finished_run: Path, tmp_path: Path, members: dict[str, float]
) -> None:
    record = json.loads((finished_run / "run" / "run.json").read_text())
    (tmp_path / "blend").mkdir()
    (tmp_path / "blend" / "run.json").write_text(json.dumps(record | {"kind": "blend", "members": members}))
    with pytest.raises(UserError, match=r"run\.json: members .*weights"):
        gather([tmp_path / "blend"])


@pytest.fixture
def changed(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, to be changed."""
    ignored = shutil.ignore_patterns("tensorboard", "state", "*.pt")
    return shutil.copytree(finished_run / "run", tmp_path / "run", ignore=ignored)


def test_a_prior_of_other_outputs(changed: Path) -> None:
    record = json.loads((changed / "run.json").read_text())
    (changed / "run.json").write_text(json.dumps(record | {"prior": [1.0]}))
    with pytest.raises(UserError, match=r"run\.json: prior: expected 3 .*found 1"):
        gather([changed])


def test_a_confidence_and_a_disagreement_that_are_no_numbers(changed: Path) -> None:
    (changed / "disagreement.csv").write_text("id,x\n1,2\n")
    with pytest.raises(UserError, match=r"disagreement\.csv is damaged"):
        build_report(changed)
    (changed / "disagreement.csv").unlink()
    lines = (changed / "val_predictions.csv").read_text().splitlines()
    lines[2] = lines[2].rpartition(",")[0] + ",sure"
    (changed / "val_predictions.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=r"val_predictions\.csv: row 3: confidence"):
        build_report(changed)


def test_an_array_that_is_none_or_claims_more_than_there_is(changed: Path) -> None:
    head = b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999, 3), }".ljust(117) + b"\n"
    np.save(changed / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    for content in (
        b"\x93NUMPY\x01\x00v\x00" + head,
        (changed / "objects.npy").read_bytes(),
        b"",
        b"PK\x03\x04",
    ):
        (changed / "val_probs.npy").write_bytes(content)
        with pytest.raises(UserError, match=r"val_probs\.npy is damaged"):
            build_report(changed)


def test_attention_of_folds_names_the_models_in_it(finished_run: Path, tmp_path: Path) -> None:
    record = json.loads((finished_run / "run" / "run.json").read_text())
    (tmp_path / "run.json").write_text(
        json.dumps(record | {"kind": "folds", "members": {"fold-1": 0.5, "fold-2": 0.5}})
    )
    with pytest.raises(UserError, match="folds of 2: name one of them: fold-1, fold-2"):
        load(str(tmp_path))


def test_a_note_of_what_was_pushed_that_was_changed(tmp_path: Path) -> None:
    (tmp_path / "stages.json").write_text('{"names": {"base": [1]}, "kernel": {"version": "2"}}')
    with pytest.raises(
        UserError, match=r"(?s)names\.base: expected a text.*kernel\.version: expected a whole number"
    ):
        Stages(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"hidden_size": 100_000, "intermediate_size": 100_000, "num_hidden_layers": 1000},
            "weights, .* in float32; this machine has",
        ),
        (
            {"intermediate_size": 99_999, "num_hidden_layers": 20},
            "needs .* weights, but its weight files have",
        ),
        ({"image_size": 99_992}, "needs .* weights"),
    ],
)
def test_a_config_of_a_few_bytes_that_asks_for_gigabytes(
    changed: Path, change: dict[str, int], said: str
) -> None:
    """Each size alone is one that some model has; together, or beside so small a file of weights, they are
    none.
    """
    path = changed / "model_beit" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=said):
        rebuild_backbone(changed / "model_beit", 3)


def test_a_metric_that_is_undefined_on_a_part_of_the_test_rows_still_has_a_page(changed: Path) -> None:
    scores = {
        "metrics": {"accuracy": 0.5, "roc_auc": None, "mcc": 0.25},
        "parts": {"private": {"accuracy": 0.75, "mcc": None}},
    }
    (changed / "scores.json").write_text(json.dumps(scores))
    text = Page(build_report(changed)).text
    assert "0.75" in text and "\u2013" in text and "50" in text


def test_the_folder_that_a_trainer_or_peft_wrote_is_told_how_to_be_arranged(
    finished_run: Path, tmp_path: Path, monkeypatch
) -> None:
    """The commands of the message make folders that load."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished_run / "run" / "model_beit", "my checkpoint")
    shutil.copytree(finished_run / "run" / "model_lora", "adapter")
    with pytest.raises(UserError, match="checkpoint saved by transformers") as caught:
        load_run(Path("my checkpoint"))
    command, model = str(caught.value).partition("transformers: ")[2].split(", then --model ")
    subprocess.run(command, shell=True, check=True)
    assert load_run(Path(shlex.split(model)[0])).backbone_dir.name == "model_beit"
    with pytest.raises(UserError, match=r"adapter saved by PEFT: mkdir -p .* && cp -r adapter .*/model_lora"):
        load_run(Path("adapter"))
