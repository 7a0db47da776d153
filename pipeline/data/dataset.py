"""Rows to batches. The result for a row depends only on (seed, epoch, row).

It does not depend on the number of workers, the batch size, or where a run was resumed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from pipeline.data.cache import ImageCache
from pipeline.data.crops import DecodedImage, decoded, random_crop
from pipeline.data.images import LostImage, load, load_pixels, lost_image_error, seen_size
from pipeline.data.loader import Loader
from pipeline.data.mixing import Mixing
from pipeline.data.opening import REDUCIBLE, BadImage, opened
from pipeline.data.policies import erased_box, policy
from pipeline.data.transforms import Preprocessing, augmenter, to_tensor
from pipeline.errors import system_refusal
from pipeline.open_files import IMAGE_TENSORS, workers_that_fit
from pipeline.ranks import local_world_size
from pipeline.recipe_sections import Augmentation

Key = tuple[int, int]  # (epoch, number): of a row, see ImageDataset
# Last number of the seed (seed, epoch, row, ...); 1: draws of a micro-batch; none: the crop
MIXING, POLICY, ERASING = 2, 3, 4
ALL = 0, 1  # the share of a single process: everything
SMALL_FILE = 8_000  # bytes: below this, sending pixels between processes takes longer than decoding
# Bytes of all files: below this, starting processes (a quarter of a second) takes longer than decoding
SMALL_SET = 10_000_000


class ImageDataset(Dataset):
    """`dataset[epoch, number]` -> `pixels` (3, H, W) uint8, `label` int, `row` int, `bad` bool.

    With erasing `erased` (4,) int64. If an epoch uses a row again, its number is row + len(dataset), then row
    + 2 len(dataset): each time the draws differ. With `augmentation`, the generators of random changes are
    seeded by (seed, epoch, number). With a `cache`, large JPEGs are decoded at one level that serves every
    crop, and stored; the pixels are the same whether or not they come from the cache. With `mixing`, another
    row is mixed in, and `label` is (O,) float32. For an image that cannot be decoded, pixels are zeros and
    `bad` is set, so that prediction can still fill its row; see `readable` for training.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        labels: Sequence[int] | None,
        preprocessing: Preprocessing,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        cache: ImageCache | None = None,
        mixing: Mixing | None = None,
    ) -> None:
        self.paths = [str(path) for path in paths]
        self.labels = labels
        self.preprocessing = preprocessing
        self.cache = cache
        self.augment = augmenter(augmentation, preprocessing) if augmentation else None
        self.crop = random_crop(augmentation, preprocessing)
        self.policy = policy(augmentation) if augmentation else None
        self.erasing = augmentation.erasing if augmentation else 0.0
        self.mixing = mixing
        self.seed = seed

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        epoch, number = key
        row = number % len(self)
        item: dict[str, Any] = {
            "label": 0 if self.labels is None else self.labels[row],
            "row": row,
            "bad": False,
        }
        if self.erasing:
            with _drawing(self._seed(epoch, number, ERASING)):
                item["erased"] = erased_box(self.erasing, self.preprocessing.height, self.preprocessing.width)
        mix = None
        if self.mixing is not None:
            mix = self.mixing.draw(np.random.default_rng((self.seed, epoch, number, MIXING)))
            item["label"] = self.mixing.label(item["label"], self.labels[mix.partner], mix)
        try:
            item["pixels"] = self._pixels(epoch, number)
            # The partner with its own augmentation in this epoch; `row` names the image that is read, for
            # errors
            if mix is not None:
                item["row"] = mix.partner
                item["pixels"] = self.mixing.pixels(item["pixels"], self._pixels(epoch, mix.partner), mix)
                item["row"] = row
        except BadImage:
            item |= {
                "pixels": torch.zeros(
                    3, self.preprocessing.height, self.preprocessing.width, dtype=torch.uint8
                ),
                "bad": True,
            }
        return item

    def _pixels(self, epoch: int, number: int) -> torch.Tensor:
        pixels = self._cut(epoch, number)
        if self.policy is None:
            return pixels
        with _drawing(self._seed(epoch, number, POLICY)):
            return to_tensor(self.policy(Image.fromarray(pixels.permute(1, 2, 0).numpy())))

    def _cut(self, epoch: int, number: int) -> torch.Tensor:
        """Return the row's image at the size of the model's input: resized, or with augmentation cropped,
        turned, mirrored.
        """
        path = self.paths[number % len(self)]
        if self.augment is None:
            with opened(path) as image:
                return to_tensor(
                    self.preprocessing.resize(load(image, intensity=self.preprocessing.intensity))
                )
        if self.crop is not None:
            return self._cropped(path, torch.Generator().manual_seed(self._seed(epoch, number)))
        if self.cache is not None:
            return self._augmented(_image(self.cache.image(path)), epoch, number)
        with opened(path) as image:
            return self._augmented(load(image, intensity=self.preprocessing.intensity), epoch, number)

    def _augmented(self, image: Image.Image, epoch: int, number: int) -> torch.Tensor:
        with _drawing(self._seed(epoch, number)):
            return to_tensor(self.augment(image))

    def _cropped(self, path: str, generator: torch.Generator) -> torch.Tensor:
        """Return a random crop. Without a cache a JPEG's crop is drawn first, because it decides the level
        of decoding.
        """
        if self.cache is not None:
            decoded_image = self.cache.image(path)
            return self.crop.cut(decoded_image, self.crop.draw(decoded_image.size, generator))
        with opened(path) as image:
            if image.format not in REDUCIBLE:
                decoded_image = decoded(load_pixels(image, intensity=self.preprocessing.intensity))
                return self.crop.cut(decoded_image, self.crop.draw(decoded_image.size, generator))
            size = seen_size(image)
            crop = self.crop.draw(size, generator)
            return self.crop.cut(decoded(load_pixels(image, self.crop.level(crop)), size), crop)

    def _seed(self, epoch: int, number: int, *draw: int) -> int:
        return (
            int(np.random.SeedSequence((self.seed, epoch, number, *draw)).generate_state(1, np.uint64)[0])
            >> 1
        )


def _image(decoded_image: DecodedImage) -> Image.Image:
    return Image.fromarray(decoded_image.rows(0, decoded_image.shape[0]))


@contextmanager
def _drawing(seed: int) -> Iterator[None]:
    # torchvision draws from the global generator: seed it for this image, then restore it.
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)


def epoch_order(num_rows: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order of the rows in an epoch, (num_rows,) int64; different for every (seed, epoch)."""
    return np.random.default_rng((seed, epoch)).permutation(num_rows)


def cut_turns(
    num_rows: int, micro_batch_size: int, group_size: int, start: int = 0, processes: int = 1
) -> list[list[range]]:
    """Cut the positions `start` to `num_rows` into micro-batches that do not cross a multiple of
    `group_size`.

    A group is one optimizer step. Micro-batches that are computed at the same time form one turn: up to
    `processes` of them, all of one group; process r computes the r-th.
    """
    turns: list[list[range]] = []
    position = start
    while position < num_rows:
        end = min((position // group_size + 1) * group_size, num_rows)
        parts = [
            range(first, min(first + micro_batch_size, end))
            for first in range(position, end, micro_batch_size)
        ]
        turns += [parts[first : first + processes] for first in range(0, len(parts), processes)]
        position = end
    return turns


def cut(
    order: Sequence[int], micro_batch_size: int, group_size: int, start: int = 0, share: tuple[int, int] = ALL
) -> list[list[int]]:
    """Return micro-batches of rows from position `start` on, see `cut_turns`.

    `share`: (r, n) returns those of process r of n.
    """
    number, processes = share
    turns = cut_turns(len(order), micro_batch_size, group_size, start, processes)
    return [[int(order[position]) for position in turn[number]] for turn in turns if number < len(turn)]


def make_loader(
    dataset: ImageDataset, batches: Iterable[list[int]], epoch: int = 0, workers: int = 0
) -> Loader:
    """Return a loader of exactly `batches`, in that order.

    A batch holds `pixels` (B, 3, H, W) uint8, `label` (B,) int64, `row` (B,) int64, `bad` (B,) bool.
    """
    keys = [[(epoch, row) for row in batch] for batch in batches]
    return Loader(dataset, min(workers, len(keys)), IMAGE_TENSORS, batch_sampler=keys)


def readable(
    batches: Iterable[dict[str, torch.Tensor]], paths: Sequence[Path | str]
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield `batches`, and check that every image could be decoded. `paths`: the image of each row.

    For training and validation, whose images could all be decoded when the run started.

    Raises:
        LostImage: an image of a batch could not be decoded; otherwise it would count as a black image.
    """
    try:
        for batch in batches:
            if batch["bad"].any():
                raise lost_image_error([Path(paths[row]) for row in batch["row"][batch["bad"]].tolist()])
            yield batch
    except OSError as error:  # a failing drive or too many open files, also in a loader process
        refusal = system_refusal(error)
        if refusal is None:
            raise
        raise LostImage(refusal) from None


def resolve_workers(workers: int | str, paths: Sequence[Path]) -> int:
    """Return the number of decoding processes for `data.workers`.

    "auto": none where files are small or few (see `SMALL_FILE`), otherwise one per core up to 8. If several
    processes train on this machine, each gets its part of the cores.
    """
    if workers != "auto":
        return int(workers)
    sample = [Path(path) for path in paths[:: max(len(paths) // 32, 1)]]
    sizes = [path.stat().st_size for path in sample if path.exists()]
    average = sum(sizes) / len(sizes) if sizes else 0
    if average < SMALL_FILE or average * len(paths) < SMALL_SET:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return workers_that_fit(min(max(cores // local_world_size(), 1), 8))
