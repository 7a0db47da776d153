"""Small competitions and a small pretrained backbone, made on the spot."""

from __future__ import annotations

import gc
import os
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pipeline  # noqa: F401 - before torch is: waiting threads then sleep, as in every command

# Workers of pytest-xdist share the cores. Tiny models gain nothing from more threads than that, and threads
# that wait for a busy core cost most of the time. The processes that a test starts inherit it.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

STARTUP = Path(__file__).resolve().parent / "startup"
if os.environ.get("TEST_PRECISION"):  # here, and in every process that a test starts
    runpy.run_path(str(STARTUP / "sitecustomize.py"))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(STARTUP), os.environ.get("PYTHONPATH"))))

SHARED = Path(__file__).resolve().parents[2] / "shared"
# Flags of a tiny run: one batch of six images a step, the same on every machine
TINY_RUN = "--batch-size 6 --accumulation-steps 1 --lr 0.01 --precision fp32 --set data.workers=0".split()
COLOURS = {"blue": (40, 60, 200), "green": (30, 160, 60), "red": (200, 50, 40)}


# Files of a minute or so: started first, so that no worker is alone with one at the end
LONG_FILES = ("kernel", "resume", "folds", "processes", "competitions", "team", "interrupted", "open_files")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    names = [f"test_{name}.py" for name in LONG_FILES]
    items.sort(key=lambda item: names.index(item.path.name) if item.path.name in names else len(names))


# A garbage collection looks at every object. Those of pytest and of the imported modules stay to the end, so
# none needs to look at them: https://docs.python.org/3/library/gc.html#gc.freeze
def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # otherwise OpenVINO reports its objects as leaks when Python ends


# Files whose tests look into figures. In all others figures are white: drawing takes half of a tiny run.
LOOK_AT_FIGURES = ("ablation", "attention", "look", "pages", "report")


@pytest.fixture(autouse=True)
def _white_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.path.stem.removeprefix("test_") not in LOOK_AT_FIGURES:
        monkeypatch.setattr("matplotlib.backends.backend_agg.FigureCanvasAgg.print_png", _save_white)


def _save_white(canvas: object, path: Path) -> None:
    Image.new("RGB", canvas.get_width_height(), "white").save(path, format="PNG")


def colour_patch(
    path: Path, colour: tuple[int, int, int], seed: int, size: tuple[int, int] = (40, 36)
) -> None:
    """A noisy patch of one colour: classes that a tiny model learns in seconds."""
    noise = np.random.default_rng(seed).normal(0, 25, (size[1], size[0], 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).save(path)


def assert_says(text: str, *facts: str) -> None:
    """Check that `text` holds these facts (paths, columns, values, flags) in this order. Wording is free."""
    rest = text
    for fact in facts:
        _, found, rest = rest.partition(fact)
        assert found, f"{fact!r} does not follow in: {text}"


def make_competition(root: Path, per_class: int = 8, test: int = 5, sample: bool = True) -> Path:
    """train/<colour>/*.png, test/*.png, sample_submission.csv and the held-back solution.csv (beside the
    folder).
    """
    for number, (name, colour) in enumerate(COLOURS.items()):
        for index in range(per_class):
            colour_patch(root / "train" / name / f"{name}_{index}.png", colour, 1000 * number + index)
    names, rows = list(COLOURS), []
    for index in range(test):
        label = names[index % len(names)]
        colour_patch(root / "test" / f"t{index:03d}.png", COLOURS[label], 9000 + index)
        rows.append((f"t{index:03d}", label))
    if sample:
        order = sorted(rows, key=lambda row: row[0][::-1])  # not the order of the file names
        (root / "sample_submission.csv").write_text(
            "id,label\n" + "".join(f"{name},{names[0]}\n" for name, _ in order)
        )
    (root.parent / "solution.csv").write_text(
        "id,label\n" + "".join(f"{name},{label}\n" for name, label in rows)
    )
    return root


@pytest.fixture
def competition(tmp_path: Path) -> Path:
    return make_competition(tmp_path / "data")


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BEiT of 32 px with random weights and 5 unrelated classes, saved as transformers saves it."""
    import torch
    from transformers import BeitConfig, BeitForImageClassification

    torch.manual_seed(0)
    config = BeitConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        use_relative_position_bias=True,
        use_mean_pooling=True,
        num_labels=5,
    )
    folder = tmp_path_factory.mktemp("backbone") / "model_beit"
    model = BeitForImageClassification(config)
    for weight in model.parameters():  # the zero-initialised tables would hide mistakes
        torch.nn.init.normal_(weight, std=0.1) if weight.ndim > 1 else None
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path) -> Path:
    """A folder with a competition in data/ and a LoRA run of one epoch on it in run/. Many tests read it:
    whoever writes takes a copy.
    """
    import train

    root = tmp_path_factory.mktemp("finished")
    make_competition(root / "data")
    flags = [
        *("--data", str(root / "data"), "--backbone", str(tiny_backbone), "--output", str(root / "run")),
        *("--precision", "fp32"),
    ]
    train.main(
        [*flags, *"--epochs 1 --batch-size 6 --accumulation-steps 1 --set data.val_fraction=0.25".split()]
    )
    return root


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path) -> Path:
    """A competition in data/ and the undisturbed run on it in run/, trained with `test_resume.flags`."""
    from test_resume import flags

    import train

    root = tmp_path_factory.mktemp("whole")
    make_competition(root / "data")
    train.main(flags(root / "data", tiny_backbone, root / "run"))
    return root


@pytest.fixture(scope="session")
def two_folds(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path) -> Path:
    """A competition in data/ and a run of two folds in folds/, of one epoch. Whoever writes takes a copy."""
    import train

    root = tmp_path_factory.mktemp("two-folds")
    words = ["--data", str(make_competition(root / "data")), "--backbone", str(tiny_backbone)]
    words += ["--output", str(root / "folds"), "--folds", "2", "--epochs", "1", *TINY_RUN]
    assert train.main(words) == 0
    return root


@pytest.fixture
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("needs the folder of shared inputs")
    return SHARED


class Malicious:
    """Unpickled without care, it makes the file `target`."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.target,))
