"""Weights of a blend: what forward selection finds, what it refuses, and that its numbers hold on rows it did
not see.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.folds.blend import _choose
from pipeline.folds.weights import Scale, greedy, nested, select, unseen, ways
from pipeline.targets.metrics import evaluate
from pipeline.targets.target import Target, multiclass


def team(seed: int, skills: list[float], rows: int = 400, classes: int = 4) -> tuple[Scale, np.ndarray]:
    """Members of different skill whose errors are their own."""
    rng = np.random.default_rng(seed)
    target = multiclass([f"c{number}" for number in range(classes)])
    truth = rng.integers(0, classes, rows)
    members = [
        target.activate(skill * np.eye(classes)[truth] + rng.normal(0, 1, (rows, classes)))
        for skill in skills
    ]
    return Scale(target, "accuracy", truth), np.stack(members)


def test_members_of_equal_skill_share_and_the_blend_beats_each() -> None:
    scale, members = team(0, [1.2, 1.2, 1.2])
    choice, refused = select(scale, members, np.arange(400), 0)
    assert not refused and min(choice.weights) > 0.1
    assert (
        scale(nested(scale, members, np.arange(400) % 5, 0)) > max(scale(member) for member in members) + 0.03
    )


def test_a_member_that_knows_nothing_is_refused_and_said() -> None:
    scale, members = team(1, [1.5, 1.5, 0.0])
    choice, refused = select(scale, members, np.arange(400), 0)
    assert [place for place, _, _ in refused] == [2] and choice.weights[2] == 0
    (_, with_it, without) = refused[0]
    assert without >= with_it


def test_greedy_weights_are_how_often_a_member_was_added() -> None:
    scale, members = team(2, [1.5, 1.4, 0.3])
    scale = Scale(scale.target, "log_loss", scale.truth)
    weights = greedy(scale, members, np.arange(400))
    assert sum(weights) == 1 and weights[0] > weights[2]
    alone = greedy(scale, members[:1], np.arange(400))
    assert alone == (1.0,)


def test_rows_without_a_defined_metric_give_equal_weights() -> None:
    target = Target("binary", ("no", "yes"), positive=("yes",))
    members = np.array([[[0.2], [0.4]], [[0.6], [0.1]]], dtype=np.float32)
    one_class = Scale(target, "roc_auc", target.encode(["no", "no"]))
    assert greedy(one_class, members, np.arange(2)) == (0.5, 0.5)


@pytest.mark.parametrize(("seed", "said"), [(17, True), (0, False)])
def test_a_blend_that_is_not_better_than_its_best_member_gives_way_to_it(
    seed: int, said: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second run is the first with little noise (said), or another of the same skill."""
    scale, members = team(seed, [1.3, 1.3])
    if said:
        scale, members = team(seed, [1.3])
        noise = np.random.default_rng(seed).normal(0, 0.05, members[0].shape)
        members = np.stack([members[0], scale.target.activate(np.log(members[0]) + noise)])
    runs = [SimpleNamespace(path=name) for name in ("runs/a", "runs/b")]
    choice, _, blended = _choose(scale, members, np.arange(400) % 5, runs, 0)
    alone = unseen(scale, members, np.arange(400), np.arange(400) % 5)["best alone"][0]
    assert (min(choice.weights) == 0) is said and (scale(blended) <= alone) is said
    text = capsys.readouterr().out
    assert (f"the best member alone has {alone:.4f} on such rows: the blend is not better" in text) is said


def test_numbers_are_of_rows_that_the_choice_did_not_see() -> None:
    """With members of pure noise the best on the seen rows is luck: the nested number stays at chance."""
    rng = np.random.default_rng(0)
    target = multiclass(["a", "b"])
    truth = rng.integers(0, 2, 100)
    members = np.stack([target.activate(rng.normal(0, 1, (100, 2))) for _ in range(25)])
    scale, parts = Scale(target, "accuracy", truth), np.arange(100) % 5
    seen = scale(
        next(choice for choice in ways(scale, members, np.arange(100)) if choice.way == "greedy").blend(
            members
        )
    )
    assert seen > 0.6 and unseen(scale, members, np.arange(100), parts)["greedy"][0] < seen - 0.08


def test_on_fresh_rows_it_is_hardly_ever_below_the_plain_mean() -> None:
    losses = []
    for seed in range(20):
        scale, members = team(seed, [1.3, 1.0, 0.9, 0.4], rows=800)
        rows = np.arange(400)
        choice, _ = select(scale, members, rows, seed)
        fresh = np.arange(400, 800)
        losses.append(scale(choice.blend(members)[fresh], fresh) - scale(members.mean(axis=0)[fresh], fresh))
    assert np.mean(losses) > -0.002 and min(losses) > -0.05


def test_ranks_are_tried_only_where_they_say_something() -> None:
    rng = np.random.default_rng(0)
    binary = Target("binary", ("n", "y"), positive=("y",))
    truth = (rng.random((300, 1)) < 0.3).astype(np.float32)
    logits = [1.5 * truth + rng.normal(0, 1, truth.shape) for _ in range(2)]
    # One shouts, one whispers
    members = np.stack([binary.activate(8 * logits[0]), binary.activate(0.05 * logits[1])])
    scale = Scale(binary, "roc_auc", truth)
    found = unseen(scale, members, np.arange(300), np.arange(300) % 5)
    assert found["rank mean"][0] > found["plain mean"][0]
    choice, _ = select(scale, members, np.arange(300), 0)
    assert evaluate("roc_auc", binary, truth, choice.blend(members)) >= evaluate(
        "roc_auc", binary, truth, members[0]
    )
    # Of probabilities, and of what lies above one half: ranks are spread evenly
    for metric in ("log_loss", "pf1", "accuracy"):
        assert "rank mean" not in [
            choice.way for choice in ways(Scale(binary, metric, truth), members, np.arange(300))
        ]
    scale, members = team(0, [1.0, 1.0])
    assert "rank mean" not in [choice.way for choice in ways(scale, members, np.arange(400))]
