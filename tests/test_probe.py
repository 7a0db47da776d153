"""The linear probe: scikit-learn's own models by target, what it scores beside a run, and a head that starts
from it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from runs import Page
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multioutput import MultiOutputClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from target_runs import BINARY, GRADES, LABELS, NUMBERS

import train
from pipeline.errors import Interrupted, UserError
from pipeline.targets.target import multiclass
from pipeline.training import probe
from pipeline.training.probe import fit_probe

RNG = np.random.default_rng(0)
FEATURES = (RNG.normal(3, 2, (120, 7)) * np.arange(1, 8)).astype(np.float32)
NEW = (RNG.normal(3, 2, (50, 7)) * np.arange(1, 8)).astype(np.float32)
points = FEATURES[:, 0] + FEATURES[:, 1] - RNG.normal(0, 2, 120)
PLAIN = ["--set", "augmentation.random_resized_crop=false", "--set", "augmentation.horizontal_flip=false"]


def of_pipeline(model, truth: np.ndarray):
    return make_pipeline(StandardScaler(), model).fit(FEATURES.astype(float), truth)


@pytest.mark.parametrize("target", [multiclass(["a", "b", "c"]), GRADES], ids=["classes", "grades"])
def test_choices_are_logistic_regression(target) -> None:
    truth = np.digitize(points, np.quantile(points, np.linspace(0, 1, len(target.names) + 1)[1:-1]))
    found = fit_probe(target, FEATURES, [target.names[one] for one in truth])
    expected = of_pipeline(LogisticRegression(max_iter=1000), truth).predict_proba(NEW.astype(float))
    np.testing.assert_allclose(target.activate(found.logits(NEW)), expected, atol=1e-4)


def test_yes_or_no_and_several_labels_are_one_regression_each() -> None:
    truth = np.stack([points > np.quantile(points, share) for share in (0.3, 0.5, 0.7)], axis=1)
    expected = of_pipeline(MultiOutputClassifier(LogisticRegression(max_iter=1000)), truth).predict_proba(
        NEW.astype(float)
    )
    one = fit_probe(BINARY, FEATURES, ["1" if row else "0" for row in truth[:, 0]])
    np.testing.assert_allclose(BINARY.activate(one.logits(NEW))[:, 0], expected[0][:, 1], atol=1e-4)
    labels = [
        LABELS.separator.join(name for name, here in zip(LABELS.names, row, strict=False) if here)
        for row in truth
    ]
    several = fit_probe(LABELS, FEATURES, labels)
    values = LABELS.activate(several.logits(NEW))
    np.testing.assert_allclose(
        values[:, :3], np.stack([column[:, 1] for column in expected], axis=1), atol=1e-4
    )
    np.testing.assert_allclose(values[:, 3:], 0.5 / 121, atol=1e-6)  # labels that no row has


def test_numbers_are_ridge_regression() -> None:
    truth = np.stack([points, 500 - 3 * points], axis=1).round(2)
    target = NUMBERS.fitted([f"{x} {y}" for x, y in truth])
    found = target.activate(fit_probe(target, FEATURES, [f"{x} {y}" for x, y in truth]).logits(NEW))
    expected = of_pipeline(Ridge(), truth).predict(NEW.astype(float))
    np.testing.assert_allclose(found, np.clip(expected, target.low, target.high), rtol=1e-4, atol=0.02)


def test_a_class_without_rows_and_classes_of_two() -> None:
    target = multiclass(["a", "b", "c"])
    truth = (points > np.median(points)).astype(int)
    values = target.activate(
        fit_probe(target, FEATURES, [target.names[2 * one] for one in truth]).logits(NEW)
    )
    expected = of_pipeline(LogisticRegression(max_iter=1000), truth).predict_proba(NEW.astype(float))
    assert values[:, 1].max() < 0.01
    np.testing.assert_allclose(values[:, 2] / (values[:, 0] + values[:, 2]), expected[:, 1], atol=1e-4)
    assert target.activate(fit_probe(target, FEATURES, ["b"] * 120).logits(NEW))[:, 1].min() > 0.98


def flags(data: Path, backbone: Path, output: Path, *more: str) -> list[str]:
    recipe = "--epochs 2 --batch-size 6 --accumulation-steps 1 --precision fp32".split()
    recipe += ["--set", "data.val_fraction=0.25"]
    return ["--data", str(data), "--backbone", str(backbone), "--output", str(output), *recipe, *more]


def record(run: Path) -> dict:
    return json.loads((run / "run.json").read_text())


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path) -> Path:
    """A competition in data/; run/ has a floor, starts from the probe and hardly moves from it. seen.npz:
    what the probe was found on.
    """
    from conftest import make_competition

    root = make_competition(tmp_path_factory.mktemp("probe") / "data").parent
    original = probe.fit_probe

    def fit(target, features, labels):
        np.savez(root / "seen.npz", features=features, labels=labels)
        return original(target, features, labels)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe, "fit_probe", fit)
        train.main(
            flags(
                root / "data", tiny_backbone, root / "run", *"--floor --set head.init=probe --lr 1e-9".split()
            )
        )
    return root


def test_a_floor_stands_beside_the_score(begun: Path) -> None:
    """A run that starts from the probe and does not move scores what the probe does; the page says both."""
    floor, best = record(begun / "run")["floor"], record(begun / "run")["best"]
    assert floor["value"] == best["value"] and floor["seconds"] >= 0
    assert (
        f"linear probe on frozen features: {100 * floor['value']:.1f}%"
        in Page(begun / "run" / "report.html").text
    )


def test_the_head_starts_as_the_probe_and_is_saved_plainly(begun: Path) -> None:
    from safetensors.torch import load_file

    seen = np.load(begun / "seen.npz")
    target = multiclass(sorted(set(seen["labels"])))
    expected = fit_probe(target, seen["features"], list(seen["labels"]))
    saved = load_file(begun / "run/model_lora/adapter_model.safetensors")
    np.testing.assert_allclose(
        saved["base_model.model.classifier.weight"].numpy(), expected.weight, atol=1e-6
    )
    np.testing.assert_allclose(saved["base_model.model.classifier.bias"].numpy(), expected.bias, atol=1e-6)
    assert seen["features"].shape == (18, 32)


def test_a_run_from_a_probe_that_was_stopped_goes_on_bit_for_bit(
    begun: Path, tiny_backbone: Path, tmp_path: Path, capsys
) -> None:
    """The floor and the head are in what the run was started with: neither is computed again."""
    words = flags(
        begun / "data", tiny_backbone, tmp_path / "run", "--floor", "--set", "head.init=probe", "--lr", "1e-9"
    )
    with pytest.raises(Interrupted):
        train.main([*words, "--max-minutes", "0"])
    capsys.readouterr()
    train.main(["--data", str(begun / "data"), "--output", str(tmp_path / "run"), "--resume"])
    assert "starts as a linear probe" not in capsys.readouterr().out
    assert record(tmp_path / "run")["floor"]["value"] == record(begun / "run")["floor"]["value"]
    for name in ("metrics.jsonl", "model_lora/adapter_model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (begun / "run" / name).read_bytes(), name


def test_what_has_no_floor_says_so(begun: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no validation rows"):
        train.main(
            [*flags(begun / "data", tiny_backbone, tmp_path / "a", "--floor"), "--set", "data.val_fraction=0"]
        )
    with pytest.raises(UserError, match="expected random for vqa"):
        train.main(["--recipe", "easy-vqa", "--set", "head.init=probe", "--output", str(tmp_path / "b")])
    with pytest.raises(Interrupted):
        train.main(
            flags(begun / "data", tiny_backbone, tmp_path / "c", "--lora-rank", "0", "--max-minutes", "0")
        )
    with pytest.raises(UserError, match="its backbone was trained"):
        train.main(["--data", str(begun / "data"), "--output", str(tmp_path / "c"), "--resume", "--floor"])


@pytest.mark.slow
def test_two_processes_start_from_the_same_probe_and_train_the_head_on_features(
    begun: Path, tiny_backbone: Path
) -> None:
    from test_processes import in_one_thread, together

    steady = begun / "steady" / "model_beit"
    shutil.copytree(tiny_backbone, steady)
    config = json.loads((steady / "config.json").read_text())
    (steady / "config.json").write_text(json.dumps(config | {"drop_path_rate": 0.0}))
    more = [
        *"--lora-rank 0 --set head_only=true --set head.init=probe --floor".split(),
        *PLAIN,
        *("--batch-size", "2"),
    ]
    words = [flags(begun / "data", steady, begun / name, *more) for name in ("one", "two")]
    in_one_thread(train.main, words[0])
    code, out, err = together(2, [["train", *words[1]]])
    assert code == 0, out + err
    assert record(begun / "two")["features"] is True and record(begun / "two")["processes"] == 2
    for name in ("metrics.jsonl", "val_probs.npy", "model_beit/model.safetensors"):
        assert (begun / "one" / name).read_bytes() == (begun / "two" / name).read_bytes(), name


@pytest.mark.slow
def test_folds_have_the_mean_of_their_floors(begun: Path, tiny_backbone: Path) -> None:
    train.main(flags(begun / "data", tiny_backbone, begun / "folds", "--floor", "--folds", "2"))
    floors = [record(begun / "folds" / f"fold-{fold}")["floor"]["value"] for fold in (1, 2)]
    assert record(begun / "folds")["floor"]["value"] == pytest.approx(sum(floors) / 2)
