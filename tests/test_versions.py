"""Runs travel across transformers 5.9, which renamed the modules of BEiT, ViT and Swin: trained on one side,
they predict the same on the other.

The oldest supported versions are installed by pip into a folder of the test's own, in front of the installed
ones on PYTHONPATH.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import make_competition
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
OLD_VERSIONS = {"transformers": "4.57.*", "peft": "0.17.*"}
OLD_PACKAGES = [
    *(f"{name}=={number}" for name, number in OLD_VERSIONS.items()),
    "tokenizers>=0.22,<=0.23.0",
    "huggingface_hub>=0.34,<1.0",
]
SECONDS = 300  # for everything after pip's 40
TOLERANCE = 1e-5

VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 32,
    "patch_size": 8,
}
SWIN = {
    "image_size": 32,
    "patch_size": 4,
    "embed_dim": 8,
    "depths": [1, 2],
    "num_heads": [1, 2],
    "window_size": 4,
}
DINOV2 = {name: value for name, value in VIT.items() if name != "intermediate_size"} | {"mlp_ratio": 2}
ARCHITECTURES = {
    "beit": VIT | {"use_relative_position_bias": True},
    "vit": VIT,
    "dinov2": DINOV2,
    "swin": SWIN,
}
TRAIN = "--epochs 3 --batch-size 6 --accumulation-steps 1 --lr 0.02 --lora-rank 4 --precision fp32".split()
TRAIN += [
    *"--set lora.targets=[query,key,value,output,fc1,fc2] --set data.workers=0".split(),
    *"--set data.val_fraction=0.25".split(),
]

# One process for many commands: importing the libraries takes longer than any of them.
DRIVER = """
import importlib, json, sys
for script, *arguments in json.loads(sys.argv[1]):
    if importlib.import_module(script).main(arguments) != 0:
        sys.exit(f"{script} {arguments} failed")
"""


def run_scripts(commands: list[list[str]], overlay: Path | None, seconds: float, folder: Path) -> None:
    """Run `[script, argument, ...]` one after the other in a process of its own, with `overlay` before the
    installed packages.
    """
    paths = [str(path) for path in (overlay, ROOT, os.environ.get("PYTHONPATH")) if path]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", DRIVER, json.dumps(commands)]
    done = subprocess.run(
        command, env=environment, cwd=folder, timeout=seconds, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


@pytest.fixture(scope="module")
def overlay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the oldest supported versions."""
    if tuple(int(number) for number in version("transformers").split(".")[:2]) < (5, 9):
        pytest.skip(f"transformers {version('transformers')} is itself from before the renaming")
    folder = tmp_path_factory.mktemp("overlay")
    pip = [
        sys.executable,
        *"-m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all:".split(),
    ]
    try:
        done = subprocess.run(
            [*pip, "--target", str(folder), *OLD_PACKAGES], timeout=40, capture_output=True, text=True
        )
    except subprocess.TimeoutExpired:
        pytest.skip("pip took longer than 40 s over the old versions")
    if done.returncode != 0:
        pytest.skip(f"pip has no old versions here: {(done.stderr.strip() or 'no message').splitlines()[-1]}")
    return folder


@pytest.fixture(scope="module")
def runs(overlay: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`<architecture>-<old|new>` run folders, and of each the `<run>-by-<old|new>.csv` of probabilities."""
    import torch
    from transformers import AutoConfig, AutoModelForImageClassification

    folder, started = tmp_path_factory.mktemp("runs"), time.monotonic()
    sample = make_competition(folder / "data") / "sample_submission.csv"
    ids = [line.split(",")[0] for line in sample.read_text().splitlines()[1:]]
    sample.write_text("id,blue,green,red\n" + "".join(f"{name},0.4,0.3,0.3\n" for name in ids))
    for kind, values in ARCHITECTURES.items():
        torch.manual_seed(0)
        model = AutoModelForImageClassification.from_config(AutoConfig.for_model(kind, **values))
        for weight in model.parameters():  # the zero-initialised tables would hide mistakes
            torch.nn.init.normal_(weight, std=0.15) if weight.ndim > 1 else None
        model.save_pretrained(folder / f"{kind}-base")

    def train(age: str) -> list[list[str]]:
        where = [(str(folder / f"{kind}-base"), str(folder / f"{kind}-{age}")) for kind in ARCHITECTURES]
        return [
            ["train", "--data", str(folder / "data"), "--backbone", base, "--output", output, *TRAIN]
            for base, output in where
        ]

    def predict(age: str, by: str) -> list[list[str]]:
        names = [f"{kind}-{age}" for kind in ARCHITECTURES]
        where = [
            ("--model", str(folder / name), "--output", str(folder / f"{name}-by-{by}.csv")) for name in names
        ]
        return [
            ["inference", "--data", str(folder / "data"), "--precision", "fp32", *flags] for flags in where
        ]

    def left() -> float:
        return SECONDS - (time.monotonic() - started)

    run_scripts([*train("new"), *predict("new", "new")], None, left(), folder)
    half = [
        [*words, "--output", f"{words[words.index('--output') + 1]}-half", "--precision", "bf16"]
        for words in train("old")
    ]
    run_scripts(
        [*train("old"), *half, *predict("old", "old"), *predict("new", "old")], overlay, left(), folder
    )
    run_scripts(predict("old", "new"), None, left(), folder)
    return folder


def logits_in(path: Path) -> np.ndarray:
    """(N, C) logits of a file of probabilities, up to the constant of each row that softmax drops."""
    table = pd.read_csv(path)
    logs = np.log(table[["blue", "green", "red"]].to_numpy())
    assert list(table.columns) == ["id", "blue", "green", "red"] and len(table) == 5
    return logs - logs.mean(axis=1, keepdims=True)


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize(("trained", "other"), [("old", "new"), ("new", "old")])
def test_a_run_predicts_the_same_logits_on_the_other_side(
    runs: Path, kind: str, trained: str, other: str
) -> None:
    own = logits_in(runs / f"{kind}-{trained}-by-{trained}.csv")
    assert np.ptp(own, axis=0).max() > 0.1  # images are told apart
    np.testing.assert_allclose(
        logits_in(runs / f"{kind}-{trained}-by-{other}.csv"), own, rtol=0, atol=TOLERANCE
    )


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_old_side_trains_in_half_precision(runs: Path, kind: str) -> None:
    losses = [
        [json.loads(line)["train_loss"] for line in (runs / name / "metrics.jsonl").read_text().splitlines()]
        for name in (f"{kind}-old", f"{kind}-old-half")
    ]
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=0.05)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_sides_are_what_they_say_and_name_their_adapters_layers_differently(
    runs: Path, kind: str
) -> None:
    written, names = {}, {}
    for age in ("old", "new"):
        written[age] = json.loads((runs / f"{kind}-{age}" / "run.json").read_text())["versions"]
        tensors = load_file(runs / f"{kind}-{age}" / "model_lora" / "adapter_model.safetensors")
        names[age] = {name for name in tensors if ".lora_" in name}
        assert all(tensor.any() for tensor in tensors.values())  # trained, every one
    for package, number in OLD_VERSIONS.items():
        assert written["old"][package].startswith(number.removesuffix("*"))
        assert written["new"][package] == version(package) != written["old"][package]
    assert len(names["old"]) == len(names["new"]) and names["old"] != names["new"]
