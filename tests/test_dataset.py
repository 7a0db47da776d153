"""What a row yields depends on (seed, epoch, row) and on nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import colour_patch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.dataset import ImageDataset, cut, epoch_order, make_loader, readable, resolve_workers
from pipeline.data.images import LostImage
from pipeline.data.transforms import Preprocessing, to_tensor
from pipeline.recipe_sections import Augmentation

RULE = Preprocessing(16, 16)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    made = [folder / f"{number}.png" for number in range(7)]
    for number, path in enumerate(made):
        colour_patch(path, (30 * number, 200 - 20 * number, 90), number)
    return made


def rows_of(loader) -> dict[int, torch.Tensor]:
    return {
        int(row): pixels
        for batch in loader
        for row, pixels in zip(batch["row"], batch["pixels"], strict=True)
    }


def test_items_and_batches_have_the_promised_types(paths: list[Path]) -> None:
    dataset = ImageDataset(paths, [0, 1, 2, 0, 1, 2, 0], RULE)
    item = dataset[3, 5]
    assert item["pixels"].shape == (3, 16, 16) and item["pixels"].dtype == torch.uint8
    assert (item["label"], item["row"], item["bad"]) == (2, 5, False)
    assert len(dataset) == 7
    (batch,) = make_loader(dataset, [[4, 0, 2]])
    assert batch["pixels"].shape == (3, 3, 16, 16)
    assert batch["row"].tolist() == [4, 0, 2] and batch["row"].dtype == torch.int64
    assert batch["label"].tolist() == [1, 0, 2] and batch["label"].dtype == torch.int64
    assert batch["bad"].tolist() == [False] * 3 and batch["bad"].dtype == torch.bool
    assert ImageDataset(paths, None, RULE)[0, 1]["label"] == 0


def test_without_augmentation_a_row_is_the_resized_image(paths: list[Path]) -> None:
    from PIL import Image

    expected = to_tensor(RULE.resize(Image.open(paths[2]).convert("RGB")))
    for epoch in (0, 9):
        assert torch.equal(ImageDataset(paths, None, RULE, seed=epoch)[epoch, 2]["pixels"], expected)


def test_a_row_does_not_depend_on_workers_order_batches_or_global_generators(paths: list[Path]) -> None:
    dataset = ImageDataset(paths, None, RULE, Augmentation(rotation_degrees=10), seed=3)
    torch.manual_seed(0)
    expected = rows_of(make_loader(dataset, [[0, 1, 2, 3, 4, 5, 6]], epoch=2))
    for seed, batches, workers in (
        (1, [[6, 5], [4, 3, 2], [1, 0]], 0),
        (2, [[3], [1, 0], [2, 6], [5, 4]], 2),
    ):
        torch.manual_seed(seed)
        np.random.seed(seed)
        found = rows_of(make_loader(dataset, batches, epoch=2, workers=workers))
        assert all(torch.equal(found[row], expected[row]) for row in range(7))


def test_the_draw_differs_by_row_epoch_and_seed(paths: list[Path]) -> None:
    same = [paths[0], paths[0]]
    dataset = ImageDataset(same, None, RULE, Augmentation(), seed=3)
    views = [
        dataset[0, 0],
        dataset[0, 1],
        dataset[1, 0],
        ImageDataset(same, None, RULE, Augmentation(), seed=4)[0, 0],
    ]
    assert len({view["pixels"].numpy().tobytes() for view in views}) == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_leaves_torchs_generator_untouched(paths: list[Path], workers: int) -> None:
    """Otherwise a run resumed inside an epoch, which makes one loader more, would draw other dropout."""
    dataset = ImageDataset(paths, None, RULE, Augmentation(), seed=3)
    torch.manual_seed(5)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    assert len(rows_of(make_loader(dataset, [[0, 1], [2, 3]], workers=workers))) == 4
    assert torch.equal(torch.get_rng_state(), before)
    assert np.random.get_state()[1].tolist() == numpy_before


def test_undecodable_images_are_flagged_and_black(paths: list[Path], tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("not an image")
    dataset = ImageDataset(
        [paths[0], tmp_path / "text.jpg", tmp_path / "gone.jpg"], [0, 1, 2], RULE, Augmentation()
    )
    (batch,) = make_loader(dataset, [[0, 1, 2]])
    assert batch["bad"].tolist() == [False, True, True] and batch["label"].tolist() == [0, 1, 2]
    assert batch["pixels"][0].any() and not batch["pixels"][1:].any()


@pytest.mark.parametrize("workers", [0, 2])
def test_readable_stops_at_the_first_image_that_is_gone_and_names_it(
    paths: list[Path], tmp_path: Path, workers: int
) -> None:
    dataset = ImageDataset([paths[0], paths[1], tmp_path / "gone.jpg", tmp_path / "too.jpg"], None, RULE)
    batches = iter(readable(make_loader(dataset, [[1, 0], [3, 0, 2], [1]], workers=workers), dataset.paths))
    assert next(batches)["row"].tolist() == [1, 0]
    with pytest.raises(LostImage, match=r"too\.jpg .*1 more.*no such file.*--resume"):
        next(batches)


def test_an_empty_list_of_batches_is_an_empty_loader(paths: list[Path]) -> None:
    assert list(make_loader(ImageDataset(paths, None, RULE), [], workers=2)) == []


def test_epoch_order_is_a_permutation_of_its_own_for_each_seed_and_epoch() -> None:
    orders = {(seed, epoch): epoch_order(50, seed, epoch) for seed in (0, 1) for epoch in (0, 1, 2)}
    for (seed, epoch), order in orders.items():
        assert sorted(order.tolist()) == list(range(50))
        assert np.array_equal(order, epoch_order(50, seed, epoch))
    assert len({order.tobytes() for order in orders.values()}) == 6
    assert epoch_order(8, 42, 0).tolist() == np.random.default_rng((42, 0)).permutation(8).tolist()


def test_epoch_order_is_fixed_for_good() -> None:
    """A stored run can only be resumed if its order never changes: numpy promises PCG64's stream, not
    permutation's.
    """
    assert epoch_order(10, 42, 1).tolist() == [0, 8, 7, 4, 3, 1, 2, 9, 6, 5]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 70), st.integers(1, 20), st.integers(1, 20), st.integers(0, 80))
def test_cut_never_crosses_a_group_and_keeps_the_order(rows: int, micro: int, group: int, start: int) -> None:
    order = list(range(100, 100 + rows))
    batches = cut(order, micro, group, start)
    assert [row for batch in batches for row in batch] == order[start:]
    position = start
    for batch in batches:
        assert 1 <= len(batch) <= micro
        assert position // group == (position + len(batch) - 1) // group
        position += len(batch)


def test_cut_resumed_inside_an_epoch_goes_on_as_it_was() -> None:
    whole = cut(range(23), 4, 8)
    assert whole == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9, 10, 11],
        [12, 13, 14, 15],
        [16, 17, 18, 19],
        [20, 21, 22],
    ]
    assert cut(range(23), 4, 8, 12) == whole[3:]
    assert cut(np.array([5, 3, 1]), 2, 8) == [[5, 3], [1]]
    assert all(type(row) is int for batch in cut(np.array([5, 3, 1]), 2, 8) for row in batch)


def test_workers(paths: list[Path], tmp_path: Path) -> None:
    import os

    assert resolve_workers(3, paths) == 3 and resolve_workers(0, paths) == 0
    (tmp_path / "small.jpg").write_bytes(bytes(100))
    (tmp_path / "large.jpg").write_bytes(bytes(100_000))
    assert resolve_workers("auto", [tmp_path / "small.jpg"]) == 0
    assert 1 <= resolve_workers("auto", [tmp_path / "large.jpg"] * 100) <= min(os.cpu_count() or 1, 8)
    assert resolve_workers("auto", [tmp_path / "large.jpg"] * 99) == 0
    assert resolve_workers("auto", [tmp_path / "small.jpg"] * 200_000) == 0
    assert resolve_workers("auto", []) == 0 and resolve_workers("auto", [tmp_path / "gone.jpg"]) == 0
