"""Policies, erasing, mixup, CutMix and balanced epochs: torchvision's results, drawn for each row by
itself.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import colour_patch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from pipeline.data.dataset import ERASING, POLICY, ImageDataset, cut, make_loader
from pipeline.data.mixing import Mix, Mixing, mixing_of
from pipeline.data.policies import erase, erased_box, policy
from pipeline.data.sampling import balanced_order, trained_prior
from pipeline.data.transforms import Preprocessing, to_tensor
from pipeline.recipe import Recipe
from pipeline.recipe_sections import Augmentation

RULE = Preprocessing(24, 20)
LABELS = [0, 0, 0, 0, 0, 1, 2, 2]
ALL = Augmentation(policy="trivial_augment", erasing=0.5, mixup=0.4, cutmix=1.0)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    made = [folder / f"{number}.png" for number in range(len(LABELS))]
    for number, path in enumerate(made):
        colour_patch(path, (30 * number, 200 - 20 * number, 90), number)
    return made


def dataset(paths: list[Path], config: Augmentation = ALL, sampling: str = "classes") -> ImageDataset:
    recipe = Recipe(backbone="any", augmentation=config.model_dump(), data={"sampling": sampling})
    return ImageDataset(paths, LABELS, RULE, config, 3, None, mixing_of(recipe, RULE, 3, np.array(LABELS)))


def epoch_of(
    data: ImageDataset, order: np.ndarray, micro: int, start: int, workers: int
) -> dict[str, torch.Tensor]:
    batches = list(make_loader(data, cut(order, micro, 6, start), 2, workers))
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def test_what_an_epoch_passes_depends_on_no_micro_batch_start_or_worker(paths: list[Path]) -> None:
    order = balanced_order(LABELS, 3, 2)
    whole = epoch_of(dataset(paths), order, 6, 0, 0)
    assert whole["row"].tolist() == [number % 8 for number in order.tolist()] and order.max() >= 8, (
        "rare rows come again"
    )
    assert whole["label"].shape == (8, 3) and torch.allclose(whole["label"].sum(dim=1), torch.ones(8))
    for micro, start, workers in ((1, 0, 0), (4, 3, 2)):
        part = epoch_of(dataset(paths), order, micro, start, workers)
        for name, values in part.items():
            assert torch.equal(values, whole[name][start:]), name


def test_a_row_that_comes_again_has_other_draws(paths: list[Path]) -> None:
    data = dataset(paths, Augmentation())
    once, again = data[0, 5], data[0, 13]
    assert once["row"] == again["row"] == 5
    assert once["label"] == again["label"]
    assert not torch.equal(once["pixels"], again["pixels"])


@pytest.mark.parametrize(
    "name, own", [("rand_augment", v2.RandAugment), ("trivial_augment", v2.TrivialAugmentWide)]
)
def test_a_policy_is_torchvisions_seeded_by_the_row(paths: list[Path], name: str, own: type) -> None:
    plain = ImageDataset(paths, LABELS, RULE, Augmentation(), 3)
    data = ImageDataset(paths, LABELS, RULE, Augmentation(policy=name), 3)
    before, changed = torch.get_rng_state(), 0
    for row in range(8):
        torch.manual_seed(
            int(np.random.SeedSequence((3, 1, row, POLICY)).generate_state(1, np.uint64)[0]) >> 1
        )
        cropped = Image.fromarray(plain[1, row]["pixels"].permute(1, 2, 0).numpy())
        expected = to_tensor(own(interpolation=InterpolationMode.BILINEAR)(cropped))
        state = torch.get_rng_state()
        assert torch.equal(data[1, row]["pixels"], expected)
        assert torch.equal(torch.get_rng_state(), state), "the generator is given back as it was"
        changed += not torch.equal(expected, plain[1, row]["pixels"])
    torch.set_rng_state(before)
    assert changed >= 6 and policy(Augmentation()) is None


def test_erasing_is_torchvisions_on_the_normalised_image(paths: list[Path]) -> None:
    data = ImageDataset(paths, LABELS, RULE, Augmentation(erasing=0.7), 3)
    rows = [data[0, row] for row in range(8)]
    values = RULE.normalize(torch.stack([row["pixels"] for row in rows]))
    found = erase(values, torch.stack([row["erased"] for row in rows]))
    for row in range(8):
        torch.manual_seed(
            int(np.random.SeedSequence((3, 0, row, ERASING)).generate_state(1, np.uint64)[0]) >> 1
        )
        assert torch.equal(found[row], v2.RandomErasing(p=0.7)(values[row])), row
    assert 0 < (found == values).flatten(1).all(dim=1).sum() < 8
    assert erased_box(0.0, 24, 20).tolist() == [0, 0, 0, 0]
    assert "erased" not in dataset(paths, Augmentation())[0, 0]


def test_mixup_and_cutmix_make_of_two_rows_what_torchvision_does() -> None:
    generator = np.random.default_rng(0)
    own, partner = (
        torch.from_numpy(generator.integers(0, 256, (3, 24, 20), dtype=np.uint8)) for _ in range(2)
    )
    mixing = Mixing(ALL, 24, 20, 3, [np.arange(8)])
    # Torchvision mixes a row with the one before it in the batch
    labels, batch = torch.tensor([1, 2]), torch.stack([own, partner])
    box, kept = (3, 11, 5, 17), 1 - 8 * 12 / (24 * 20)
    cases = [
        (v2.CutMix(num_classes=3), Mix(1, kept, box), {"box": (5, 3, 17, 11), "lam_adjusted": kept}),
        (v2.MixUp(num_classes=3), Mix(1, 0.3141), {"lam": 0.3141}),
    ]
    for transform, mix, more in cases:
        parameters = {"labels": labels, "batch_size": 2, **more}
        expected = transform.transform(batch.double(), parameters)[0].round().to(torch.uint8)
        assert torch.equal(mixing.pixels(own, partner, mix), expected)
        assert torch.allclose(mixing.label(1, 2, mix), transform.transform(labels, parameters)[0].float())
    multi_hot = mixing.label(torch.tensor([1.0, 1.0, 0.0]), torch.tensor([0.0, 1.0, 1.0]), Mix(1, 0.25))
    assert multi_hot.tolist() == [0.25, 1.0, 0.75]


def test_weights_partners_and_boxes_follow_their_laws() -> None:
    groups = [np.arange(5), np.array([5]), np.array([6, 7])]
    mixing = Mixing(Augmentation(mixup=0.4, cutmix=1.0), 224, 224, 3, groups)
    mixes = [mixing.draw(np.random.default_rng((0, 0, row, 2))) for row in range(4000)]
    cuts, blends = ([mix.weight for mix in mixes if (mix.box is not None) == cut] for cut in (True, False))
    assert len(cuts) == pytest.approx(2000, abs=120) and np.mean(blends) == pytest.approx(0.5, abs=0.03)
    assert np.var(blends) == pytest.approx(0.25 / (2 * 0.4 + 1), abs=0.01)  # the variance of a Beta law
    drawn = v2.CutMix(alpha=1.0, num_classes=3)
    torch.manual_seed(0)
    theirs = [drawn.make_params([torch.empty(2, 3, 224, 224)])["lam_adjusted"] for _ in range(2000)]
    assert np.mean(cuts) == pytest.approx(np.mean(theirs), abs=0.03) and np.std(cuts) == pytest.approx(
        np.std(theirs), abs=0.03
    )
    partners = Counter(mix.partner for mix in mixes)
    assert sorted(partners) == list(range(8)) and partners[5] == pytest.approx(4000 / 3, abs=120)
    for mix in mixes:
        if mix.box is not None:
            top, bottom, left, right = mix.box
            assert mix.weight == 1 - (bottom - top) * (right - left) / 224**2 and 0 <= mix.weight <= 1


def test_a_partner_that_is_lost_is_the_one_named(paths: list[Path], tmp_path: Path) -> None:
    """In the message, which takes the path of `row`."""
    lost = dataset([*paths[:6], tmp_path / "gone.png", paths[7]], Augmentation(mixup=1.0), "rows")
    items = [lost[0, row] for row in range(8)]
    partners = [lost.mixing.draw(np.random.default_rng((3, 0, row, 2))).partner for row in range(8)]
    assert [item["bad"] for item in items] == [6 in (row, partner) for row, partner in enumerate(partners)]
    assert {item["row"] for item in items if item["bad"]} == {6} and len(
        {item["label"].shape for item in items}
    ) == 1
    assert partners.count(6) == 2 and all(item["row"] in (row, 6) for row, item in enumerate(items))


@pytest.mark.parametrize("counts", [(50, 10, 3), (4, 4, 4), (1, 1, 98), (7, 0, 3)])
def test_balanced_epochs_pass_every_class_as_often(counts: tuple[int, ...]) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    total, present = sum(counts), sum(count > 0 for count in counts)
    orders = [balanced_order(labels, 7, epoch) for epoch in range(3)]
    for order in orders:
        rows = order % total
        assert len(order) == len(set(order.tolist())) == total and order.min() >= 0
        passed = Counter(labels[rows].tolist())
        assert len(passed) == present and max(passed.values()) - min(passed.values()) <= 1
        times = Counter(rows.tolist())
        for label, count in enumerate(counts):
            own = [times[row] for row in np.flatnonzero(labels == label).tolist()]
            assert not count or max(own) - min(own) <= 1, "each of its rows as often as the others"
    assert not np.array_equal(orders[0], orders[1]) and np.array_equal(
        orders[2], balanced_order(labels, 7, 2)
    )


def test_a_balanced_order_is_fixed_for_good() -> None:
    assert balanced_order(LABELS, 42, 1).tolist() == [21, 3, 6, 1, 5, 2, 13, 7]


def test_the_shares_that_probabilities_stand_for() -> None:
    shares = np.array([0.5, 0.4, 0.1, 0.0], dtype=np.float32)

    def under(sampling: str = "rows", tau: float = 0) -> list[float]:
        recipe = Recipe(backbone="any", data={"sampling": sampling}, optimizer={"logit_adjustment": tau})
        return trained_prior(shares, recipe).tolist()

    assert under() == shares.tolist()
    assert under("classes") == under(tau=1) == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])
    half = np.sqrt([0.5, 0.4, 0.1, 0])
    assert under(tau=0.5) == pytest.approx((half / half.sum()).tolist())
