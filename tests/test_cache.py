"""The cache of decoded images: never stale, never trusted when damaged, never larger than allowed, and never
of influence.
"""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest
import torch
from conftest import colour_patch
from test_crops import RULE, photo

import train
from pipeline.competition.layout import read_layout
from pipeline.config import load_recipe
from pipeline.data import cache as cache_module
from pipeline.data.cache import FACTS, HEADER_BYTES, MAGIC, SUFFIX, ImageCache, open_cache
from pipeline.data.dataset import ImageDataset, make_loader
from pipeline.data.images import check, find_bad
from pipeline.data.transforms import Preprocessing
from pipeline.errors import UserError
from pipeline.recipe_sections import Augmentation
from pipeline.tasks.classification import build


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    made = []
    for number, (name, size) in enumerate(
        [("a.jpg", (320, 240)), ("b.jpg", (200, 300)), ("c.png", (90, 100)), ("d.jpg", (40, 40))]
    ):
        made.append(tmp_path / name)
        photo(size, number).save(made[-1])
    return made


def opened(
    tmp_path: Path, paths: list[Path], limit: int = 10**9, config: Augmentation | None = None
) -> ImageDataset:
    """A dataset with a cache of its own session: what an earlier one has checked is not known."""
    config = config or Augmentation()
    return ImageDataset(
        paths, None, RULE, config, seed=1, cache=ImageCache(tmp_path / "cache", limit, paths, config, RULE)
    )


def rows(dataset: ImageDataset, epoch: int = 0, workers: int = 0) -> torch.Tensor:
    batches = [[row] for row in range(len(dataset))]
    return torch.cat([batch["pixels"] for batch in make_loader(dataset, batches, epoch, workers)])


def files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").glob(f"*{SUFFIX}"))


@pytest.mark.parametrize(
    "config", [Augmentation(), Augmentation(rotation_degrees=8), Augmentation(random_resized_crop=False)]
)
def test_cold_warm_full_and_shared_by_workers_give_the_same_pixels(
    tmp_path: Path, paths: list[Path], config: Augmentation
) -> None:
    no_room = [rows(opened(tmp_path, paths, 100, config), epoch) for epoch in (0, 1)]
    assert not files(tmp_path)
    dataset = opened(tmp_path, paths, config=config)
    # cold, by two processes
    assert torch.equal(rows(dataset, 0, workers=2), no_room[0]) and len(files(tmp_path)) == 4
    assert all(
        torch.equal(rows(dataset, epoch, workers), no_room[epoch]) for epoch in (0, 1) for workers in (0, 2)
    )
    assert torch.equal(rows(opened(tmp_path, paths, config=config), 1), no_room[1])
    assert not list((tmp_path / "cache").glob("*.part"))


def test_the_file_of_a_kept_image_is_not_opened_again(
    tmp_path: Path, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [rows(opened(tmp_path, paths), epoch) for epoch in (0, 3)]
    monkeypatch.setattr("pipeline.data.cache.opened", lambda *_: pytest.fail("opened again"))
    assert all(
        torch.equal(rows(opened(tmp_path, paths), epoch), pixels)
        for epoch, pixels in zip((0, 3), expected, strict=True)
    )


def test_a_crop_reads_its_own_rows(tmp_path: Path, paths: list[Path]) -> None:
    cache = opened(tmp_path, paths).cache
    whole = cache.image(paths[0]).rows(0, 240)
    kept = cache.image(paths[0])
    assert kept.size == (320, 240) and kept.shape == (240, 320)
    assert (kept.rows(31, 77) == whole[31:77]).all()


def test_what_the_check_decodes_is_kept_for_the_first_epoch(
    tmp_path: Path, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One decoding for both, on several threads; none in the next run; and the pixels are those of a run that
    found nothing kept.
    """
    expected = rows(opened(tmp_path / "elsewhere", paths))
    loaded, load_pixels = [], cache_module.load_pixels
    monkeypatch.setattr(
        cache_module,
        "load_pixels",
        lambda image, *how: loaded.append(image.filename) or load_pixels(image, *how),
    )
    monkeypatch.setattr(cache_module, "load", lambda *_, **__: pytest.fail("decoded, and not kept"))
    for run in range(2):
        dataset = opened(tmp_path, paths)
        assert find_bad(paths, dataset.cache.check) == {}
        assert torch.equal(rows(dataset), expected) and len(loaded) == 4, run
    assert dataset.cache.used.value == sum(path.stat().st_size for path in files(tmp_path))


def test_the_check_keeps_the_images_of_the_run_alone_and_what_there_is_room_for(
    tmp_path: Path, paths: list[Path]
) -> None:
    cache = opened(tmp_path, paths[1:], limit=3 * (90 * 100 + 40 * 40) + 100).cache  # not for b.jpg
    assert find_bad(paths, cache.check) == {}
    assert sorted(path.stat().st_size for path in files(tmp_path)) == [
        HEADER_BYTES + 3 * 40 * 40,
        HEADER_BYTES + 3 * 90 * 100,
    ]


@pytest.mark.parametrize("room", [0, 10**9])
def test_the_check_finds_the_same_files_bad_with_a_cache(
    tmp_path: Path, paths: list[Path], room: int
) -> None:
    for number, path in enumerate(paths):
        data = path.read_bytes()
        (tmp_path / f"cut{number}{path.suffix}").write_bytes(data[: len(data) * 2 // 3])
    (tmp_path / "text.jpg").write_text("not an image")
    every = [*paths, *sorted(tmp_path.glob("cut*")), tmp_path / "text.jpg", tmp_path / "gone.jpg"]
    cache = ImageCache(tmp_path / "cache", room, every, Augmentation(), RULE)
    bad = find_bad(every, cache.check)
    assert list(bad) == list(range(4, 10)) and bad == find_bad(every, check)


def test_a_image_kept_for_other_crops_is_another_one(tmp_path: Path) -> None:
    """Two recipes share the folder: each finds its own level, and the pixels it would have without the
    other.
    """
    path = tmp_path / "a.jpg"
    photo((900, 700)).save(path)
    small = Preprocessing(32, 32, resample=2)

    def dataset(folder: str, rule: Preprocessing) -> ImageDataset:
        return ImageDataset(
            [path],
            None,
            rule,
            Augmentation(),
            cache=ImageCache(tmp_path / folder, 10**9, [path], Augmentation(), rule),
        )

    alone = [rows(dataset(name, rule)) for name, rule in (("one", RULE), ("other", small))]
    for _ in range(2):
        assert all(
            torch.equal(rows(dataset("cache", rule)), pixels)
            for rule, pixels in zip((RULE, small), alone, strict=True)
        )
    assert [path.name.split(".")[1] for path in files(tmp_path)] == ["1", "2"]


def test_damage_anywhere_in_a_header_is_noticed(tmp_path: Path, paths: list[Path]) -> None:
    """The size it names decides where crops are drawn."""
    expected = rows(opened(tmp_path, paths[:1]))
    (kept,) = files(tmp_path)
    whole = kept.read_bytes()
    assert whole.startswith(MAGIC) and len(whole) == FACTS.size + 4 + 3 * 320 * 240
    for place in range(HEADER_BYTES):
        kept.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert torch.equal(rows(opened(tmp_path, paths[:1])), expected), place
        assert kept.read_bytes() == whole


def test_files_that_no_version_asks_for_go_when_room_is_needed(tmp_path: Path, paths: list[Path]) -> None:
    (tmp_path / "cache").mkdir()
    former = tmp_path / "cache" / f"{'0' * 32}.0{SUFFIX}"
    former.write_bytes(b"pixels 1" + bytes(100_000))
    opened(tmp_path, paths, limit=10**6)
    assert former.exists()
    opened(tmp_path, paths, limit=10**5)
    assert not former.exists()


def test_a_changed_image_is_never_served_stale(tmp_path: Path, paths: list[Path]) -> None:
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
def test_a_damaged_cache_is_rebuilt(
    tmp_path: Path, paths: list[Path], damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = rows(opened(tmp_path, paths))
    for path in files(tmp_path):
        data = bytearray(path.read_bytes())
        if damage == "flip":
            data[HEADER_BYTES + len(data) // 2] ^= 1
        path.write_bytes(
            {"cut": data[:-7], "empty": b"", "zeros": bytes(len(data)), "longer": data + b"x"}.get(
                damage, bytes(data)
            )  # type: ignore[arg-type]
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
    monkeypatch.setattr("pipeline.data.cache.opened", lambda *_: pytest.fail("opened again"))
    assert torch.equal(rows(opened(tmp_path, paths)), expected)


def test_it_stays_within_its_bound(tmp_path: Path, paths: list[Path]) -> None:
    limit = HEADER_BYTES * 2 + 3 * (90 * 100 + 40 * 40)
    dataset = opened(tmp_path, paths, limit)
    for epoch in range(3):
        rows(dataset, epoch, workers=2)
    sizes = [path.stat().st_size for path in files(tmp_path)]
    assert len(sizes) == 2 and sum(sizes) == limit == dataset.cache.used.value


def test_a_image_rebuilt_counts_once(tmp_path: Path, paths: list[Path]) -> None:
    dataset = opened(tmp_path, paths)
    rows(dataset)
    used = dataset.cache.used.value
    for path in files(tmp_path):
        path.write_bytes(bytes(reversed(path.read_bytes())))
    damaged = opened(tmp_path, paths)
    rows(damaged)
    assert damaged.cache.used.value == used == sum(path.stat().st_size for path in files(tmp_path))


def test_images_of_other_runs_make_room(tmp_path: Path, paths: list[Path]) -> None:
    rows(opened(tmp_path, paths))
    other = tmp_path / "other.png"
    colour_patch(other, (9, 9, 9), 1, (90, 100))
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


def test_a_full_disk_is_a_run_without_more_cache(
    tmp_path: Path, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = rows(opened(tmp_path / "elsewhere", paths))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_module.os, "replace", full)
    assert torch.equal(rows(opened(tmp_path, paths)), expected)
    assert not any((tmp_path / "cache").iterdir())


def test_a_damaged_file_on_a_read_only_disk_is_decoded_again(
    tmp_path: Path, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = rows(opened(tmp_path, paths))
    for path in files(tmp_path):
        path.write_bytes(b"damaged")
    dataset = opened(tmp_path, paths)

    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(cache_module.os, "unlink", read_only)
    monkeypatch.setattr(cache_module.tempfile, "mkstemp", read_only)
    assert torch.equal(rows(dataset), expected)


def test_an_unusable_folder_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(
        UserError, match=r"data.cache_gb=2.*cannot be used .* set XDG_CACHE_HOME, or cache_gb to 0"
    ):
        open_cache(2, [], Augmentation(), RULE)
    assert open_cache(0, [], Augmentation(), RULE) is None


def test_a_run_that_leaves_bad_images_out_keeps_those_it_trains_on(
    competition: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    (competition / "train" / "red" / "bad.png").write_text("not an image")
    changes = {
        "backbone": str(tiny_backbone),
        "image_size": None,
        "data.val_fraction": 0.25,
        "data.cache_gb": 0.1,
    }
    recipe = load_recipe("beit-large-384-lora", changes | {"data.skip_bad_images": True})
    built = build(recipe, read_layout(competition, need="train"))
    assert built.task.num_train == 18 and any("skipped 1 images" in note for note in built.notes)
    assert set(built.task.train_set.cache.paths) == {
        str(path.absolute()) for path in map(Path, built.task.train_set.paths)
    }


def test_a_run_computes_the_same_with_a_cold_and_a_warm_cache(
    competition: Path,
    tiny_backbone: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    flags = [
        *("--data", str(competition), "--backbone", str(tiny_backbone), "--epochs", "2"),
        *("--batch-size", "8"),
    ]
    flags += ["--accumulation-steps", "1", "--set", "data.cache_gb=0.1", "--set", "data.val_fraction=0.25"]
    decoded, load_pixels = [], cache_module.load_pixels
    monkeypatch.setattr(
        cache_module, "load_pixels", lambda image, *how: decoded.append(how[0]) or load_pixels(image, *how)
    )
    assert train.main([*flags, "--output", str(tmp_path / "dry"), "--dry-run"]) == 0
    assert not (tmp_path / "home" / "kaggle-image-pipeline").exists()
    for name in ("cold", "warm"):
        assert train.main([*flags, "--output", str(tmp_path / name)]) == 0
        assert len(decoded) == 18  # by the check of the first run: the training images, each once
    printed = capsys.readouterr().out
    assert f"decoded images are cached in {tmp_path / 'home'}" in printed and "first batch after" in printed
    assert len(list((tmp_path / "home").rglob(f"*{SUFFIX}"))) == 18
    assert (tmp_path / "cold" / "metrics.jsonl").read_bytes() == (
        tmp_path / "warm" / "metrics.jsonl"
    ).read_bytes()


def test_a_file_that_another_run_renames_meanwhile_is_not_counted(
    tmp_path: Path, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs side by side share the folder: a `.part` file is listed, and gone when it is looked at."""

    class Gone:
        path = str(tmp_path / "x.part")

        def is_file(self) -> bool:
            raise FileNotFoundError(self.path)

    class Listing(list):
        def __enter__(self) -> list:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr("pipeline.data.cache.os.scandir", lambda folder: Listing([Gone()]))
    assert ImageCache(tmp_path, 10**9, paths, Augmentation(), RULE).used.value == 0
