"""The embedded example: the released weights predict the digits, and (slow) the whole `make demo` from a
fresh checkout.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

import inference
from pipeline import demo, demo_data
from pipeline.fetch import releases
from pipeline.files import sha256

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The tracked files, as a clone has them."""
    names = (
        subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
        .stdout.decode()
        .split("\0")
    )
    for name in filter(None, names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_make_weights_then_inference_on_a_fresh_checkout(
    checkout: Path, tmp_path_factory, monkeypatch, capsys
) -> None:
    """The user's first command: the embedded release and its images are installed, and predicted as well as
    the README says.
    """
    monkeypatch.chdir(checkout)
    assert releases.main([]) == 0
    assert inference.main([]) == 0
    predictions = pd.read_csv("predictions.csv", dtype=str)
    digits = tmp_path_factory.mktemp("digits") / "digits"
    demo_data.lay_out_digits(digits)
    solution = pd.read_csv(digits / "solution.csv", dtype=str)
    assert list(predictions["id"]) == list(solution["id"])
    assert (predictions["label"] == solution["label"]).mean() >= 0.97
    assert not Path("data/solution.csv").exists()
    before = sha256(Path("predictions.csv"))
    assert releases.main([]) == 0 and "already" in capsys.readouterr().out
    assert inference.main(["--batch-size", "7"]) == 0 and sha256(Path("predictions.csv")) == before


def test_the_release_is_the_one_that_release_yaml_announces() -> None:
    named = yaml.safe_load((ROOT / "finetuned_model" / "release.yaml").read_text(encoding="utf-8"))
    archive = ROOT / "finetuned_model" / named["source"]
    assert (sha256(archive), archive.stat().st_size) == (named["sha256"], named["size"])


def test_the_base_of_a_damaged_release_is_not_unpacked(checkout: Path, monkeypatch) -> None:
    monkeypatch.chdir(checkout)
    whole = demo.RELEASE.read_bytes()
    demo.RELEASE.write_bytes(whole[:-1] + b"?")
    with pytest.raises(demo.UserError, match=r"is damaged.*git checkout"):
        demo.unpack_base()
    demo.RELEASE.write_bytes(whole)
    demo.unpack_base()
    assert sorted(path.name for path in demo.BASE.iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]


@pytest.mark.slow
def test_the_whole_demo_reaches_the_score_and_touches_nothing_else(checkout: Path) -> None:
    (checkout / "predictions.csv").write_text("mine\n")
    before = {path.relative_to(checkout) for path in checkout.rglob("*")}
    result = subprocess.run(
        [sys.executable, "-m", "pipeline.demo"], cwd=checkout, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    accuracy = float(re.search(r"^test accuracy ([\d.]+) in", result.stdout, re.MULTILINE)[1])
    assert accuracy >= 0.97
    made = {path.relative_to(checkout) for path in checkout.rglob("*")} - before
    homes = ("data/digits", "finetuned_model/digits", "finetuned_model/glyphs")
    assert not {
        path for path in made if "__pycache__" not in path.parts and not path.as_posix().startswith(homes)
    }
    assert (checkout / "predictions.csv").read_text() == "mine\n"
    scores = json.loads((checkout / "finetuned_model" / "digits" / "scores.json").read_text())
    assert scores["metrics"]["accuracy"] == pytest.approx(accuracy, abs=1e-4)
    page = (checkout / "finetuned_model" / "digits" / "report.html").read_text(encoding="utf-8")
    assert f"{accuracy:.1%}" in page
