"""The cache of decoded pictures: never stale, never trusted when damaged, never larger than allowed, and never of influence."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch
from conftest import picture
from test_crops import RULE, photo

import train
from pipeline.config import Augmentation
from pipeline.data import cache as cache_module
from pipeline.data.cache import HEADER, SUFFIX, PictureCache, open_cache
from pipeline.data.dataset import ImageDataset, make_loader
from pipeline.errors import UserError


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    made = []
    for number, (name, size) in enumerate([("a.jpg", (320, 240)), ("b.jpg", (200, 300)), ("c.png", (90, 100)), ("d.jpg", (40, 40))]):
        made.append(tmp_path / name)
        photo(size, number).save(made[-1])
    return made


def opened(tmp_path: Path, paths: list[Path], limit: int = 10**9, config: Augmentation | None = None) -> ImageDataset:
    """A dataset with a cache of its own session: what an earlier one has checked is not known."""
    cache = PictureCache(tmp_path / "cache", limit, [str(path) for path in paths])
    return ImageDataset(paths, None, RULE, config or Augmentation(), seed=1, cache=cache)


def rows(dataset: ImageDataset, epoch: int = 0, workers: int = 0) -> torch.Tensor:
    batches = [[row] for row in range(len(dataset))]
    return torch.cat([batch["pixels"] for batch in make_loader(dataset, batches, epoch, workers)])


def files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").glob(f"*{SUFFIX}"))


@pytest.mark.parametrize("config", [Augmentation(), Augmentation(rotation_degrees=8), Augmentation(random_resized_crop=False)])
def test_cold_warm_full_and_shared_by_workers_give_the_same_pixels(tmp_path: Path, paths: list[Path], config: Augmentation) -> None:
    no_room = [rows(opened(tmp_path, paths, 100, config), epoch) for epoch in (0, 1)]
    assert not files(tmp_path)
    dataset = opened(tmp_path, paths, config=config)
    assert torch.equal(rows(dataset, 0, workers=2), no_room[0]) and len(files(tmp_path)) == 4  # cold, by two processes
    assert all(torch.equal(rows(dataset, epoch, workers), no_room[epoch]) for epoch in (0, 1) for workers in (0, 2))
    assert torch.equal(rows(opened(tmp_path, paths, config=config), 1), no_room[1])
    assert not list((tmp_path / "cache").glob("*.part"))


def test_warm_rows_are_not_decoded(tmp_path: Path, paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    rows(opened(tmp_path, paths))
    monkeypatch.setattr("pipeline.data.dataset.load", lambda *_: pytest.fail("decoded again"))
    rows(opened(tmp_path, paths), epoch=3)


def test_a_changed_picture_is_never_served_stale(tmp_path: Path, paths: list[Path]) -> None:
    """Not even with its former size and time."""
    dataset = opened(tmp_path, paths)
    before, found = rows(dataset), paths[2].stat()
    photo((90, 100), 77).save(paths[2], compress_level=0)
    with open(paths[2], "ab") as file:
        file.truncate(max(found.st_size, paths[2].stat().st_size))
    os.utime(paths[2], ns=(found.st_atime_ns, found.st_mtime_ns))
    expected = rows(opened(tmp_path / "other", paths))
    after = rows(dataset)
    assert torch.equal(after, expected)
    assert not torch.equal(after[2], before[2]) and torch.equal(after[0], before[0])


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "zeros", "longer", "gone", "folder gone"])
def test_a_damaged_cache_is_rebuilt(tmp_path: Path, paths: list[Path], damage: str) -> None:
    expected = rows(opened(tmp_path, paths))
    for path in files(tmp_path):
        data = bytearray(path.read_bytes())
        if damage == "flip":
            data[HEADER.size + len(data) // 2] ^= 1
        path.write_bytes(
            {"cut": data[:-7], "empty": b"", "zeros": bytes(len(data)), "longer": data + b"x"}.get(damage, bytes(data))  # type: ignore[arg-type]
        )
        if "gone" in damage:
            path.unlink()
    if damage == "folder gone":
        dataset = opened(tmp_path, paths)
        (tmp_path / "cache").rmdir()  # while a run goes on
        assert torch.equal(rows(dataset), expected)
        return
    assert torch.equal(rows(opened(tmp_path, paths)), expected)
    assert len(files(tmp_path)) == 4
    fresh = opened(tmp_path, paths)
    assert all(fresh.cache.get(row, 0) is not None or fresh.cache.get(row, 1) is not None for row in range(4))


def test_it_stays_within_its_bound(tmp_path: Path, paths: list[Path]) -> None:
    limit = HEADER.size * 2 + 3 * (90 * 100 + 40 * 40)
    dataset = opened(tmp_path, paths, limit)
    for epoch in range(3):
        rows(dataset, epoch, workers=2)
    sizes = [path.stat().st_size for path in files(tmp_path)]
    assert len(sizes) == 2 and sum(sizes) == limit == dataset.cache.used.value


def test_a_picture_rebuilt_counts_once(tmp_path: Path, paths: list[Path]) -> None:
    dataset = opened(tmp_path, paths)
    rows(dataset)
    used = dataset.cache.used.value
    for path in files(tmp_path):
        path.write_bytes(bytes(reversed(path.read_bytes())))
    damaged = opened(tmp_path, paths)
    rows(damaged)
    assert damaged.cache.used.value == used == sum(path.stat().st_size for path in files(tmp_path))


def test_pictures_of_other_runs_make_room(tmp_path: Path, paths: list[Path]) -> None:
    rows(opened(tmp_path, paths))
    other = tmp_path / "other.png"
    picture(other, (9, 9, 9), 1, (90, 100))
    total = sum(path.stat().st_size for path in files(tmp_path))
    oldest = files(tmp_path)[1]
    os.utime(oldest, (1, 1))
    opened(tmp_path, [other], total + 10)
    left = files(tmp_path)
    assert oldest not in left and left and sum(path.stat().st_size for path in left) <= (total + 10) / 2
    assert len(files(tmp_path)) == len(left)
    opened(tmp_path, paths, 10)
    assert not files(tmp_path)  # its own too, where the limit was lowered


def test_what_killed_runs_left_is_removed_after_a_day(tmp_path: Path, paths: list[Path]) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / "old.part").write_bytes(b"x")
    (folder / "new.part").write_bytes(b"x")
    os.utime(folder / "old.part", (time.time() - 100_000,) * 2)
    opened(tmp_path, paths)
    assert [path.name for path in folder.iterdir()] == ["new.part"]


def test_a_full_disk_is_a_run_without_more_cache(tmp_path: Path, paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = rows(opened(tmp_path / "elsewhere", paths))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_module.os, "replace", full)
    assert torch.equal(rows(opened(tmp_path, paths)), expected)
    assert not any((tmp_path / "cache").iterdir())


def test_an_unusable_folder_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"data.cache_gb=2.*cannot be used .* set XDG_CACHE_HOME, or cache_gb to 0"):
        open_cache(2, [])
    assert open_cache(0, []) is None


def test_a_run_computes_the_same_with_a_cold_and_a_warm_cache(
    competition: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    flags = ["--data", str(competition), "--backbone", str(tiny_backbone), "--epochs", "2", "--batch-size", "8"]
    flags += ["--accumulation-steps", "1", "--set", "data.cache_gb=0.1", "--set", "data.val_fraction=0.25"]
    assert train.main([*flags, "--output", str(tmp_path / "dry"), "--dry-run"]) == 0
    assert not (tmp_path / "home" / "kaggle-image-pipeline").exists()
    for name in ("cold", "warm"):
        assert train.main([*flags, "--output", str(tmp_path / name)]) == 0
    printed = capsys.readouterr().out
    assert f"decoded pictures are kept in {tmp_path / 'home'}" in printed and "the first batch was there after" in printed
    assert len(list((tmp_path / "home").rglob(f"*{SUFFIX}"))) == 18
    assert (tmp_path / "cold" / "metrics.jsonl").read_bytes() == (tmp_path / "warm" / "metrics.jsonl").read_bytes()
