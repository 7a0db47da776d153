"""Thresholds, offsets, cut points, temperature, priors: what they gain on rows that they were not fitted on,
and that chance is not used.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import assert_says
from sklearn.metrics import cohen_kappa_score, f1_score, log_loss

from pipeline.errors import UserError
from pipeline.folds.assembly import decide
from pipeline.folds.decisions import Decision, judge, read_decision, serving
from pipeline.folds.finishing import finished
from pipeline.folds.prior import calibration, estimate, mean_probabilities, read_prior, reweighted, shift
from pipeline.predictions import Predictions
from pipeline.targets.metrics import METRICS, evaluate
from pipeline.targets.target import KINDS, Target, multiclass

PARTS = np.arange(600) % 5


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def labels_with_shy_model(rng: np.random.Generator) -> tuple[Target, np.ndarray, np.ndarray]:
    """Rare labels whose probabilities are all too low."""
    target = Target("multilabel", ("a", "b", "c"), may_be_empty=True)
    truth = (rng.random((600, 3)) < [0.3, 0.15, 0.08]).astype(np.float32)
    return target, truth, sigmoid(2.5 * truth - 3 + rng.normal(0, 1, truth.shape)).astype(np.float32)


def test_thresholds_gain_where_a_model_is_too_shy() -> None:
    target, truth, values = labels_with_shy_model(np.random.default_rng(0))
    judged = judge(target, "macro_f1", truth, values, PARTS)
    assert [one.decision.kind for one in judged] == ["thresholds"] and judged[0].used
    assert judged[0].before == pytest.approx(f1_score(truth, values >= 0.5, average="macro"))
    # Other rows: what was promised comes true
    fresh, more, unseen = labels_with_shy_model(np.random.default_rng(1))
    after = f1_score(more, judged[0].decision.apply(fresh, unseen) >= 0.5, average="macro")
    assert after == pytest.approx(judged[0].after, abs=0.05)
    assert after > f1_score(more, unseen >= 0.5, average="macro") + 0.1


@pytest.mark.parametrize(
    ("metric", "sharpness", "kinds"),
    [("samples_f2", 1, {"used", "another gains more"}), ("log_loss", 30, {"worse"})],
)
def test_what_is_said_of_a_decision_is_what_is_done(
    metric: str, sharpness: float, kinds: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Of two that gain only one is used; what a decision loses beyond chance is not called chance."""
    target, truth, values = labels_with_shy_model(np.random.default_rng(0))
    if metric == "log_loss":  # always right and sure: the temperature of softened labels makes it less sure
        target, truth = multiclass("abc"), np.arange(600) % 3
        values = target.activate(sharpness * np.eye(3)[truth])
    entries = decide(target, metric, truth, values, PARTS)
    lines = capsys.readouterr().out.splitlines()
    assert {"used" if entry["used"] else entry["why_not"] for entry in entries} == kinds
    for line, entry in zip(lines, entries, strict=True):
        assert line.strip().startswith(entry["kind"])
        assert line.endswith(", used" if entry["used"] else f"not used: {entry['why_not']}")


def test_a_threshold_decides_exactly_at_its_value() -> None:
    target = Target("multilabel", ("a", "b"), may_be_empty=True)
    values = np.array([[0.2, 0.7], [np.nextafter(np.float32(0.2), np.float32(0)), 0.71]], dtype=np.float32)
    moved = Decision("thresholds", (float(np.float32(0.2)), float(np.float32(0.7)))).apply(target, values)
    assert target.chosen(moved).tolist() == [[True, True], [False, True]]
    binary = Target("binary", ("no", "yes"), positive=("yes",))
    assert binary.chosen(
        Decision("thresholds", (0.3,)).apply(binary, np.array([[0.31], [0.29]]))
    ).tolist() == [1, 0]


@pytest.mark.parametrize("seed", range(3))
def test_chance_is_not_used(seed: int) -> None:
    rng = np.random.default_rng(seed)
    target = multiclass([f"c{number}" for number in range(8)])
    truth = rng.integers(0, 8, 120)
    values = target.activate(rng.normal(0, 1, (120, 8)) + 1.5 * np.eye(8)[truth])
    judged = judge(target, "macro_f1", truth, values, np.arange(120) % 5)
    in_sample = evaluate("macro_f1", target, truth, judged[0].decision.apply(target, values))
    assert in_sample > judged[0].before  # it looks like a gain on the rows it was fitted on
    assert not judged[0].used


def test_offsets_help_rare_classes() -> None:
    rng = np.random.default_rng(0)
    target = multiclass(["often", "seldom", "rare"])
    truth = rng.choice(3, 600, p=[0.8, 0.13, 0.07])
    values = target.activate(rng.normal(0, 1, (600, 3)) + 1.2 * np.eye(3)[truth] + [2.5, 0.5, 0])
    judged = judge(target, "macro_f1", truth, values, PARTS)
    assert judged[0].used and judged[0].gain > 0.1
    offsets = judged[0].decision.numbers
    assert offsets[0] < offsets[1] and offsets[0] < offsets[2]


def test_cut_points_raise_kappa() -> None:
    rng = np.random.default_rng(0)
    target = Target("ordinal", ("0", "1", "2", "3"))
    truth = rng.integers(0, 4, 600)
    level = truth * 0.5 + rng.normal(0, 0.3, 600)  # everything is taken for a low grade
    values = target.activate(-3 * np.abs(np.arange(4) - level[:, None]))
    judged = judge(target, "qwk", truth, values, PARTS)
    assert judged[0].decision.kind == "cuts"
    assert judged[0].used
    assert list(judged[0].decision.numbers) == sorted(judged[0].decision.numbers)
    grades = target.chosen(judged[0].decision.apply(target, values))
    assert cohen_kappa_score(truth, grades, weights="quadratic") > judged[0].before + 0.1


def test_cut_points_lie_between_the_numbers_of_the_grades() -> None:
    rng = np.random.default_rng(0)
    target = Target("ordinal", ("0", "1", "2", "10"))
    truth = rng.integers(0, 4, 600)
    level = truth * 0.5 + rng.normal(0, 0.3, 600)
    values = target.activate(-3 * np.abs(np.arange(4) - level[:, None]))
    best = judge(target, "qwk", truth, values, PARTS)[0]
    entry = best.record(True)
    assert best.used and entry["grades"] == [0, 1, 2, 10] and max(entry["numbers"]) <= 10
    decision = read_decision({"decisions": [entry]}, target)
    numbers = target.grades[target.chosen(decision.apply(target, values))].astype(int)
    by_values = cohen_kappa_score(
        target.grades[truth].astype(int), numbers, labels=range(11), weights="quadratic"
    )
    assert by_values > best.before + 0.05, "the gain is one of Kaggle's kappa"
    del entry["grades"]  # an earlier version counted places
    with pytest.raises(UserError) as caught:
        read_decision({"decisions": [entry]}, target)
    assert_says(str(caught.value), "0, 1, 2, 10", "--decision off")
    even = Target("ordinal", ("1", "2", "3", "4"))
    assert read_decision({"decisions": [entry]}, even).kind == "cuts", "without a gap both are the same"


def test_temperature_mends_a_model_that_is_too_sure() -> None:
    rng = np.random.default_rng(0)
    target = multiclass("abc")
    logits = rng.normal(0, 1.5, (600, 3))
    exact = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    truth = np.array([rng.choice(3, p=row) for row in exact])
    judged = judge(target, "log_loss", truth, target.activate(3 * logits), PARTS)
    assert judged[0].used and judged[0].decision.numbers[0] == pytest.approx(3, rel=0.15)
    assert judged[0].gain == pytest.approx(judged[0].before - judged[0].after) and judged[
        0
    ].before > log_loss(truth, target.activate(logits))


def test_a_model_without_a_mistake_on_few_rows_is_not_made_certain() -> None:
    target, truth = multiclass("abc"), np.arange(24) % 3
    values = target.activate(np.eye(3)[truth])  # 0.58 for the truth, always right
    judged = judge(target, "log_loss", truth, values, np.arange(24) % 4)
    surest = judged[0].decision.apply(target, values).max()
    assert 0.9 < surest < 1 - 0.5 / 26  # softened truth: 1 - (2 / 3) / 26


def test_every_metric_of_every_target_has_a_decision_that_fits_or_none() -> None:
    for kind in KINDS:
        names = {"continuous": ("x",), "binary": ("n", "y")}.get(kind, ("0", "1", "2"))
        target = Target(kind, names, positive=("y",) if kind == "binary" else ())
        for metric in (name for name, known in METRICS.items() if kind in known.kinds):
            assert set(serving(target, metric)) <= {"thresholds", "offsets", "cuts", "temperature", "count"}
            if METRICS[metric].needs in ("ranks", "numbers") or metric == "roc_auc":
                assert serving(target, metric) == []


def test_what_a_run_stores_is_read_back_or_refused() -> None:
    target = Target("multilabel", ("a", "b"))
    stored = {
        "decisions": [
            {"kind": "count", "numbers": [2.0], "used": False},
            {"kind": "thresholds", "numbers": [0.2, 0.7], "used": True},
        ]
    }
    assert read_decision(stored, target) == Decision("thresholds", (0.2, 0.7))
    assert read_decision({}, target) is None
    stored["decisions"][1]["numbers"] = [0.2]
    with pytest.raises(UserError, match="--decision off"):
        read_decision(stored, target)


# ---- priors ----


def skewed(
    rng: np.random.Generator, shares: list[float], rows: int = 400
) -> tuple[Target, np.ndarray, np.ndarray]:
    """A model trained on equal shares, and test rows with others."""
    target = multiclass("abcd")
    truth = rng.choice(4, rows, p=shares)
    # Bayes: calibrated
    return target, truth, target.activate(1.6 * (1.6 * np.eye(4)[truth] + rng.normal(0, 1, (rows, 4))))


def test_a_skewed_test_set_gains_and_an_even_one_loses_nothing() -> None:
    even, gains, costs = np.full(4, 0.25), [], []
    for seed in range(5):
        for shares, kept in (([0.7, 0.2, 0.07, 0.03], gains), ([0.25] * 4, costs)):
            target, truth, values = skewed(np.random.default_rng(seed), shares)
            before = Predictions(tuple(map(str, range(len(truth)))), values, target)
            # Half as sure: mended by its temperature
            shy = replace(before, values=target.activate(np.log(values) / 2))
            after, _ = shift(before, even.tolist(), "estimate", 1.0)
            assert (
                shift(shy, even.tolist(), "estimate", 0.5)[0].values.argmax(1) == after.values.argmax(1)
            ).all()
            kept.append(float((after.values.argmax(1) == truth).mean() - (values.argmax(1) == truth).mean()))
    assert np.mean(gains) >= 0.02 and np.mean(costs) >= -0.002


def test_few_images_of_many_classes_gain_where_it_is_known_how_sure_the_model_is() -> None:
    """The cuts of tests/benchmarks/shift_and_views.py, by a model of known truth: about 70 images, most of
    them of 4 of 24 classes.
    """
    target, even = multiclass([f"class {number:02d}" for number in range(24)]), [1 / 24] * 24
    gains: dict[tuple[str, bool], list[float]] = {}
    for seed in range(40):
        rng = np.random.default_rng(seed)
        truth = rng.integers(0, 24, 290)
        full, first = rng.choice(24, 4, replace=False), np.unique(truth, return_index=True)[1]
        for kind, rows in (
            ("skewed", np.union1d(first, np.flatnonzero(np.isin(truth, full)))),
            ("even", np.arange(145)),
        ):
            label = truth[rows]
            logits = 2.0 * (2.0 * np.eye(24)[label] + rng.normal(0, 1, (len(label), 24)))  # Bayes: calibrated
            plain = Predictions(tuple(map(str, rows)), target.activate(logits), target)
            for known in (True, False):
                after, _ = shift(plain, even, "estimate", 1.0 if known else None)
                gain = (after.values.argmax(1) == label).mean() - (plain.values.argmax(1) == label).mean()
                gains.setdefault((kind, known), []).append(float(gain))
    mean = {key: np.mean(values) for key, values in gains.items()}
    assert mean["skewed", True] >= 0.02 and mean["even", True] >= -0.002
    assert mean["even", False] >= -0.002 and mean["skewed", False] < mean["skewed", True]


def test_a_model_that_prefers_some_classes_is_no_other_test_set() -> None:
    """Its mean probabilities of out-of-fold rows are what other frequencies are compared with."""
    target, even = multiclass([f"class {number:02d}" for number in range(24)]), [1 / 24] * 24
    gains: dict[str, list[float]] = {"with": [], "without": [], "skewed": []}
    for seed in range(10):
        rng = np.random.default_rng(seed)
        bias = rng.normal(0, 0.7, 24)

        def draw(label: np.ndarray, rng=rng, bias=bias) -> np.ndarray:
            return target.activate(
                2.0 * (2.0 * np.eye(24)[label] + rng.normal(0, 1, (len(label), 24))) + bias
            )

        mean = mean_probabilities(target, draw(rng.integers(0, 24, 290)), 1.0)
        assert sum(mean) == pytest.approx(1)
        for kind, label in (
            ("even", rng.integers(0, 24, 290)),
            ("skewed", rng.choice(24, 290, p=np.repeat([0.7 / 4, 0.3 / 20], [4, 20]))),
        ):
            plain = Predictions(tuple(map(str, range(290))), draw(label), target)

            def gain(mean: list[float] | None, plain=plain, label=label) -> float:
                after, _ = shift(plain, even, "estimate", 1.0, mean)
                return float(
                    (after.values.argmax(1) == label).mean() - (plain.values.argmax(1) == label).mean()
                )

            for name, given in (("with", mean), ("without", None)) if kind == "even" else (("skewed", mean),):
                gains[name].append(gain(given))
    found = {name: np.mean(values) for name, values in gains.items()}
    assert found["with"] >= -0.006 and found["without"] < found["with"] - 0.005 and found["skewed"] >= 0.02


def test_known_shares_are_bayes_rule() -> None:
    values = np.array([[0.5, 0.3, 0.2]])
    trained, shares = np.array([0.5, 0.25, 0.25]), np.array([0.1, 0.6, 0.3])
    expected = np.array([0.5 * 0.2, 0.3 * 2.4, 0.2 * 1.2])
    np.testing.assert_allclose(reweighted(values, trained, shares)[0], expected / expected.sum(), rtol=1e-6)
    np.testing.assert_allclose(estimate(np.tile([[0.5, 0.5]], (3, 1)), np.array([0.5, 0.5])), [0.5, 0.5])


def test_shares_from_a_file(tmp_path: Path) -> None:
    target, path = multiclass(["cat", "dog"]), tmp_path / "prior.csv"
    path.write_text("class,count\ndog,30\ncat,10\n")
    assert read_prior(path, target).tolist() == [0.25, 0.75]
    path.write_text("class,share\ncat,-1\nbird,0.5\n")
    with pytest.raises(UserError) as caught:
        read_prior(path, target)
    assert all(part in str(caught.value) for part in ("row 2: '-1'", "row 3: 'bird'", "no row for 'dog'"))
    path.write_text("name,share\ncat,1\n")
    with pytest.raises(UserError, match="expected the columns class and share"):
        read_prior(path, target)
    path.write_text("Class,Share\ncat,1e308\ndog,1e308\n")  # their sum is more than a float can hold
    assert read_prior(path, target).tolist() == [0.5, 0.5]
    for text, sum_ in (("share\ncat,0.9\ndog,0.9", "1.8"), ("share\ncat,4.5\ndog,0.5", "5")):
        path.write_text(f"class,{text}\n")
        with pytest.raises(UserError, match=rf"prior\.csv.*'share'.* {sum_}, expected 1 \(or 100"):
            read_prior(path, target)
    for text in ("share\ncat,0.66\ndog,0.33", "share\ncat,66.7\ndog,33.3", "count\ncat,5.0\ndog,2.5"):
        path.write_text(f"class,{text}\n")
        assert read_prior(path, target).tolist() == pytest.approx([2 / 3, 1 / 3], abs=0.002)
    with pytest.raises(UserError, match=r"--prior estimated: there is no such file[\s\S]*or write estimate"):
        read_prior(Path("estimated"), target)


def test_two_classes_and_refusals(tmp_path: Path) -> None:
    binary = Target("binary", ("no", "yes"), positive=("yes",))
    (tmp_path / "prior.csv").write_text("class,share\nno,0.9\nyes,0.1\n")
    found, _ = shift(
        Predictions(("a",), np.array([[0.5]], dtype=np.float32), binary), [0.5], str(tmp_path / "prior.csv")
    )
    assert found.values[0, 0] == pytest.approx(0.1)
    labels = Target("multilabel", ("a", "b"))
    with pytest.raises(UserError, match=r"--prior.*any of 2 labels"):
        shift(Predictions(("a",), np.array([[0.5, 0.1]], dtype=np.float32), labels), [0.5, 0.5], "estimate")
    with pytest.raises(UserError, match=r"--prior.*in training"):
        shift(Predictions(("a",), np.array([[0.5]], dtype=np.float32), binary), None, "estimate")


@pytest.mark.parametrize("asked", ["file", "estimate"])
def test_a_prior_and_the_temperature_calibrate_once(tmp_path: Path, asked: str) -> None:
    rng, target = np.random.default_rng(0), multiclass("abc")

    def too_sure(rows: int, shares: list[float]) -> tuple[np.ndarray, np.ndarray]:
        truth = rng.choice(3, rows, p=shares)
        return truth, target.activate(4.5 * (1.5 * np.eye(3)[truth] + rng.normal(0, 1, (rows, 3))))

    truth, values = too_sure(3000, [1 / 3] * 3)
    record = calibration(target, truth, values)
    judged = judge(target, "log_loss", truth, values, np.arange(3000) % 5)
    record["decisions"] = [one.record(one.used) for one in judged]
    team = SimpleNamespace(
        **{name: record[name] for name in ("temperature", "mean_probabilities")},
        record=SimpleNamespace(values=record),
        prior=[1 / 3] * 3,
        rule="probabilities",
        leaves=(1, 2),
        first=SimpleNamespace(target=target),
        named=[SimpleNamespace(path="runs/folds")],
    )
    truth, values = too_sure(3000, [0.7, 0.2, 0.1])
    raw = Predictions(tuple(map(str, range(3000))), values, target)
    prior = tmp_path / "prior.csv"
    prior.write_text("class,share\na,0.7\nb,0.2\nc,0.1\n")
    prior = "estimate" if asked == "estimate" else str(prior)
    plain, done = finished(team, raw, None, "auto")
    assert done == {"decision": "temperature"}
    both, done = finished(team, raw, prior, "auto")
    assert done == {"prior": prior}
    np.testing.assert_array_equal(both.values, finished(team, raw, prior, "off")[0].values)
    assert log_loss(truth, both.values) < log_loss(truth, plain.values) - 0.1 < log_loss(truth, values)


@pytest.mark.parametrize("kind", ["offsets", "thresholds"])
def test_a_decision_and_a_prior_use_the_same_numbers(tmp_path: Path, kind: str) -> None:
    """A prior that changes nothing but calibrates leaves every decision as it was fitted."""
    rng = np.random.default_rng(0)
    names = ("a", "b", "c") if kind == "offsets" else ("no", "yes")
    target = multiclass(names) if kind == "offsets" else Target("binary", names, positive=("yes",))
    truth = rng.choice(len(names), 3000, p=[0.8, 0.15, 0.05][: len(names)] if len(names) == 3 else [0.9, 0.1])
    logits = 4.5 * (1.5 * np.eye(3)[truth] + rng.normal(0, 1, (3000, 3)) + [1, 0, -0.5])
    if kind == "thresholds":
        truth, logits = truth[:, None].astype(np.float32), logits[:, 1:2] - 5
    values = target.activate(logits)
    record = calibration(target, truth, values)
    assert record["temperature"] > 2
    best = judge(target, "macro_f1", truth, values, np.arange(3000) % 5)[0]
    assert best.decision.kind == kind and best.used
    record["decisions"] = [best.record(True)]
    team = SimpleNamespace(
        **{name: record[name] for name in ("temperature", "mean_probabilities")},
        record=SimpleNamespace(values=record),
        prior=target.prior([names[int(row)] for row in truth.reshape(-1)]).tolist(),
        rule="probabilities",
        leaves=(1, 2),
        first=SimpleNamespace(target=target),
        named=[SimpleNamespace(path="runs/folds")],
    )
    raw = Predictions(tuple(map(str, range(3000))), values, target)
    shares = "".join(
        f"{name},{share}\n" for name, share in zip(names, record["mean_probabilities"], strict=True)
    )
    (tmp_path / "same.csv").write_text("class,share\n" + shares)
    plain, both = (finished(team, raw, prior, "auto") for prior in (None, str(tmp_path / "same.csv")))
    assert both[1] == {"prior": str(tmp_path / "same.csv"), "decision": kind}
    chosen = [target.chosen(one.values) for one, _ in (plain, both)]
    assert (chosen[0] != target.chosen(values)).mean() > 0.003, "the decision changes something"
    assert (chosen[0] != chosen[1]).mean() < 0.001
