"""Losses and training scores against torch's and numpy's own, written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from pipeline.recipe_sections import Optimizer
from pipeline.targets.metrics import all_metrics
from pipeline.targets.target import Target, multiclass
from pipeline.training.losses import loss_function, training_loss, training_score

GRADES = Target("ordinal", ("0", "1", "2", "3", "4"))
BINARY = Target("binary", ("not cat", "cat"), positive=("cat",))
LABELS = Target("multilabel", ("a", "b", "c"), may_be_empty=True)
NUMBERS = Target(
    "continuous", ("x", "y"), center=(10.0, 0.0), scale=(2.0, 0.5), low=(0.0, -1.0), high=(14.0, 1.0)
)


def draw(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (
        torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows * columns)).mul(3).to(dtype)
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_class_is_the_cross_entropy_it_was_bit_for_bit(smoothing: float, dtype: torch.dtype) -> None:
    logits, label = draw(7, 5, dtype), torch.tensor([0, 1, 2, 3, 4, 0, 1])
    expected = F.cross_entropy(logits.float(), label, label_smoothing=smoothing)
    for target in (multiclass("abcde"), GRADES):
        assert torch.equal(loss_function(target, smoothing)(logits, label), expected)
    assert expected.dtype == torch.float32


def test_soft_targets_of_one_class() -> None:
    logits, label = draw(4, 3), torch.tensor([0, 2, 1, 1])
    loss = loss_function(multiclass("abc"))
    assert loss(logits, F.one_hot(label, 3).float()).item() == pytest.approx(
        loss(logits, label).item(), rel=1e-6
    )
    mixed = torch.full((4, 3), 1 / 3)
    assert loss(logits, mixed).item() == pytest.approx(-logits.log_softmax(1).mean().item(), rel=1e-6)


def test_binary_cross_entropy_is_the_mean_over_rows_and_labels_and_smoothed_towards_a_half() -> None:
    logits = torch.tensor([[0.0, 2.0, -1.0], [3.0, -3.0, 0.5]])
    label = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    for smoothing in (0.0, 0.2):
        goal = np.where(label > 0.5, 1 - smoothing / 2, smoothing / 2)
        p = 1 / (1 + np.exp(-logits.double().numpy()))
        expected = -(goal * np.log(p) + (1 - goal) * np.log(1 - p)).mean()
        assert loss_function(LABELS, smoothing)(logits, label).item() == pytest.approx(expected, rel=1e-6)
    one = loss_function(BINARY)(torch.tensor([[200.0]]), torch.tensor([[0.0]]))
    assert one.item() == pytest.approx(200.0), "computed on logits: no overflow, no clipping"
    assert loss_function(BINARY)(torch.tensor([[0.0]]), torch.tensor([[0.3]])).item() == pytest.approx(
        math.log(2)
    ), "soft targets"


def test_numbers_have_the_squared_error_of_what_is_scaled() -> None:
    logits = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.bfloat16)
    label = torch.tensor([[0.0, 0.0], [0.0, -1.0]])
    loss = loss_function(NUMBERS, label_smoothing=0.3)(logits, label)
    assert loss.item() == 10 / 4 and loss.dtype == torch.float32


def test_gradients_reach_the_logits_of_every_kind() -> None:
    for target, label in (
        (multiclass("abc"), torch.tensor([0, 2])),
        (LABELS, torch.ones(2, 3)),
        (BINARY, torch.ones(2, 1)),
        (NUMBERS, torch.ones(2, 2)),
    ):
        logits = torch.zeros(2, target.num_outputs, requires_grad=True)
        loss_function(target, 0.1)(logits, label).backward()
        assert (logits.grad != 0).any()


def test_training_accuracy_is_the_argmax_count_it_was() -> None:
    logits, label = draw(50, 6, torch.bfloat16), torch.arange(50) % 6
    name, score = training_score(multiclass("abcdef"))
    assert name == "accuracy"
    count = score(logits, label)
    assert torch.equal(count, (logits.detach().argmax(dim=1) == label).sum()) and count.dtype == torch.int64
    assert score(logits, F.one_hot(label, 6).float()) == count


@pytest.mark.parametrize(
    "target, label",
    [
        (BINARY, torch.arange(40).reshape(40, 1).remainder(2).float()),
        (LABELS, torch.arange(120).reshape(40, 3).remainder(5).lt(2).float()),
        (GRADES, torch.arange(40) % 5),
    ],
)
def test_training_counts_what_validation_counts(target: Target, label: torch.Tensor) -> None:
    logits = draw(40, target.num_outputs)
    name, score = training_score(target)
    validation = all_metrics(target, label.numpy(), target.activate(logits.numpy()))
    assert score(logits, label).item() / 40 == pytest.approx(validation[name], abs=1e-12)
    assert 0 < validation[name] < 1


def test_the_distance_of_numbers_is_in_the_datas_units_and_range() -> None:
    truth = np.array([[9.0, 0.25], [14.0, -1.0]], dtype=np.float32)
    logits = torch.tensor([[0.5, 0.5], [30.0, -2.0]])  # 11 and 0.25; 70, kept to 14, and -1
    name, score = training_score(NUMBERS)
    total = score(logits, torch.from_numpy(NUMBERS.scaled(truth)))
    assert name == "mae" and total.dtype == torch.float64
    assert total.item() == pytest.approx(((11 - 9) + 0) / 2 + 0, abs=1e-6)
    assert total.item() / 2 == pytest.approx(
        all_metrics(NUMBERS, truth, NUMBERS.activate(logits.numpy()))["mae"], abs=1e-6
    )


def test_sums_over_parts_of_a_batch_add_up() -> None:
    logits, label = draw(30, 3), torch.arange(90).reshape(30, 3).remainder(2).float()
    _, score = training_score(LABELS)
    parts = sum(score(logits[start : start + 7], label[start : start + 7]) for start in range(0, 30, 7))
    assert parts.item() == pytest.approx(score(logits, label).item(), abs=1e-12)


CHOICE = torch.tensor([0, 2, 1, 1, 0])


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_the_focal_loss_of_labels_is_torchvisions(gamma: float) -> None:
    logits, label = draw(5, 3), torch.arange(15).reshape(5, 3).remainder(2).float()
    for target, columns in ((LABELS, 3), (BINARY, 1)):
        loss = training_loss(target, Optimizer(loss="focal", focal_gamma=gamma), np.ones(columns))
        expected = sigmoid_focal_loss(
            logits[:, :columns], label[:, :columns], alpha=-1, gamma=gamma, reduction="mean"
        )
        assert loss(logits[:, :columns], label[:, :columns]).item() == pytest.approx(
            expected.item(), rel=1e-5
        )


def test_the_focal_loss_of_classes_is_the_formula_and_linear_in_the_label() -> None:
    logits, target = draw(5, 3), multiclass("abc")
    p = logits.double().softmax(dim=1).numpy()
    right = p[np.arange(5), CHOICE.numpy()]
    loss = training_loss(target, Optimizer(loss="focal", focal_gamma=1.5), np.ones(3))
    assert loss(logits, CHOICE).item() == pytest.approx(
        -((1 - right) ** 1.5 * np.log(right)).mean(), rel=1e-5
    )
    mixed = 0.3 * F.one_hot(CHOICE, 3) + 0.7 * F.one_hot(CHOICE.flip(0), 3)
    parts = 0.3 * loss(logits, CHOICE) + 0.7 * loss(logits, CHOICE.flip(0))
    assert loss(logits, mixed.float()).item() == pytest.approx(parts.item(), rel=1e-5)
    smooth = training_loss(target, Optimizer(loss="focal", focal_gamma=0, label_smoothing=0.1), np.ones(3))
    assert smooth(logits, CHOICE).item() == pytest.approx(
        F.cross_entropy(logits, CHOICE, label_smoothing=0.1).item(), rel=1e-5
    )


@pytest.mark.parametrize(
    "negative, positive, margin", [(4.0, 0.0, 0.05), (4.0, 1.0, 0.05), (2.0, 2.0, 0.0), (0.0, 0.0, 0.0)]
)
def test_the_asymmetric_loss_is_the_formula(negative: float, positive: float, margin: float) -> None:
    logits, label = draw(6, 3), torch.arange(18).reshape(6, 3).remainder(2).float()
    p, y = logits.double().sigmoid().numpy(), label.numpy()
    lowered = np.maximum(p - margin, 0)
    formula = y * (1 - p) ** positive * np.log(p) + (1 - y) * lowered**negative * np.log(1 - lowered)
    keys = {
        "asymmetric_gamma_negative": negative,
        "asymmetric_gamma_positive": positive,
        "asymmetric_margin": margin,
    }
    loss = training_loss(LABELS, Optimizer(loss="asymmetric", **keys), np.ones(3))
    assert loss(logits, label).item() == pytest.approx(-formula.mean(), rel=1e-4)


def test_the_asymmetric_loss_is_timms() -> None:
    timm = pytest.importorskip("timm.loss")
    logits, label = draw(6, 3), torch.arange(18).reshape(6, 3).remainder(2).float()
    loss = training_loss(LABELS, Optimizer(loss="asymmetric", asymmetric_gamma_positive=1), np.ones(3))
    # A sum over labels
    theirs = timm.AsymmetricLossMultiLabel(gamma_neg=4, gamma_pos=1, clip=0.05)(logits, label)
    assert loss(logits, label).item() * label.shape[1] == pytest.approx(theirs.item(), rel=1e-4)


@pytest.mark.parametrize(
    "config",
    [{"loss": "focal", "focal_gamma": 0.5}, {"loss": "asymmetric", "asymmetric_gamma_negative": 0.5}],
)
def test_hard_rows_have_finite_slopes_where_a_model_is_sure(config: dict) -> None:
    """(1 - p) ** 0.5 has none at p = 1."""
    for target, label in (
        (multiclass("abc"), torch.tensor([0, 1])),
        (LABELS, torch.tensor([[1.0, 0, 0], [0, 1, 1]])),
    ):
        if target is not LABELS and config["loss"] == "asymmetric":
            continue
        logits = torch.tensor([[200.0, -200.0, -200.0], [200.0, -200.0, -200.0]], requires_grad=True)
        loss = training_loss(target, Optimizer(**config), np.ones(3))(logits, label)
        loss.backward()
        assert loss.isfinite() and logits.grad.isfinite().all() and (logits.grad[1] != 0).any()


def test_logit_adjustment_adds_tau_times_the_log_of_the_share() -> None:
    logits, target, rows = draw(5, 3), multiclass("abc"), np.array([90, 10, 0])
    loss = training_loss(target, Optimizer(logit_adjustment=0.7), rows)
    # No training row counts as one
    added = torch.tensor([0.7 * math.log(share / 101) for share in (90, 10, 1)])
    assert loss(logits, CHOICE).item() == pytest.approx(
        F.cross_entropy(logits + added, CHOICE).item(), rel=1e-6
    )
    same = training_loss(target, Optimizer(), rows)
    assert torch.equal(same(logits, CHOICE), F.cross_entropy(logits, CHOICE))


def test_mixed_rows_are_right_in_part() -> None:
    logits, label = draw(40, 3), torch.arange(40) % 3
    shares = 0.75 * F.one_hot(label, 3) + 0.25 * F.one_hot((label + 1) % 3, 3)
    predicted = logits.argmax(dim=1)
    parts = 0.75 * (predicted == label).sum() + 0.25 * (predicted == (label + 1) % 3).sum()
    _, score = training_score(multiclass("abc"))
    assert score(logits, shares.float()).item() == pytest.approx(parts.item())
    _, score = training_score(BINARY)
    assert score(torch.tensor([[1.0], [-1.0]]), torch.tensor([[0.75], [0.75]])).item() == 0.75 + 0.25
    _, score = training_score(LABELS)
    assert score(torch.tensor([[1.0, -1.0, 1.0]]), torch.tensor([[1.0, 0.25, 0.5]])).item() == pytest.approx(
        (1 + 0.75 + 0.5) / 3
    )
