"""Batches of questions with their images: each image of a batch once, questions padded to the longest of
the batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from pipeline.data.dataset import ImageDataset, epoch_order
from pipeline.data.loader import Loader
from pipeline.open_files import QUESTION_TENSORS

Key = tuple[int, list[int]]  # (epoch, rows)
KEPT_BYTES = 1_000_000_000  # decoded images that a decoding process keeps in memory between epochs


class QuestionDataset(Dataset):
    """`dataset[epoch, rows]` -> one batch of B questions about I images.

    pixels (I, 3, H, W) uint8, image_index (B,) int64 (the image of each question), input_ids and
    attention_mask (B, T) int64, label, row (B,) int64, bad (B,) bool. The random changes of an image depend
    on (seed, epoch, image), so all its questions see the same.

    images: each image once; image_of_row[row]: the image of a question; labels[row]: the class of its answer.
    If `image_features` (num_images, ...) are set, a batch holds image (I, ...) instead of pixels; if
    `question_features` (num_rows, D) are set, it holds question (B, D) instead of input_ids and
    attention_mask.
    """

    def __init__(
        self,
        images: ImageDataset,
        image_of_row: Sequence[int],
        token_ids: Sequence[Sequence[int]],
        pad_id: int,
        labels: Sequence[int] | None,
    ) -> None:
        self.images, self.image_of_row = images, np.asarray(image_of_row, dtype=np.int64)
        self.token_ids, self.pad_id = token_ids, pad_id
        self.labels = (
            np.zeros(len(token_ids), dtype=np.int64) if labels is None else np.asarray(labels, dtype=np.int64)
        )
        self._kept: dict[int, dict[str, Any]] = {}
        self.image_features: torch.Tensor | None = None
        self.question_features: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.token_ids)

    def __getitem__(self, key: Key) -> dict[str, torch.Tensor]:
        epoch, rows = key
        images, image_index = np.unique(self.image_of_row[rows], return_inverse=True)
        index = torch.from_numpy(image_index)
        batch = {
            "image_index": index,
            "label": torch.from_numpy(self.labels[rows]),
            "row": torch.tensor(rows),
        }
        if self.image_features is not None:
            batch |= {
                "image": self.image_features[images],
                "bad": torch.zeros(len(rows), dtype=torch.bool),
            }
        else:
            items = [self._item(epoch, int(image)) for image in images]
            bad = torch.tensor([item["bad"] for item in items])[index]
            batch |= {"pixels": torch.stack([item["pixels"] for item in items]), "bad": bad}
        return batch | (
            self.tokens(rows)
            if self.question_features is None
            else {"question": self.question_features[rows]}
        )

    def tokens(self, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        """Return input_ids and attention_mask (B, T) int64 of the questions `rows`, padded to the longest."""
        longest = max(len(self.token_ids[row]) for row in rows)
        input_ids = torch.full((len(rows), longest), self.pad_id)
        attention_mask = torch.zeros(len(rows), longest, dtype=torch.int64)
        for place, row in enumerate(rows):
            ids = self.token_ids[row]
            input_ids[place, : len(ids)] = torch.tensor(ids)
            attention_mask[place, : len(ids)] = 1
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def _item(self, epoch: int, image: int) -> dict[str, Any]:
        if image in self._kept:
            return self._kept[image]
        item = self.images[epoch, image]
        if self.images.augment is None and len(self._kept) * item["pixels"].nbytes < KEPT_BYTES:
            self._kept[image] = item
        return item


def question_order(image_of_row: Sequence[int], seed: int, epoch: int, group_by_image: bool) -> np.ndarray:
    """Return the order of the questions in an epoch, (num_rows,) int64; different for every (seed, epoch).

    With `group_by_image` the images are in random order, and the questions of an image stand together, also
    in random order.
    """
    order, image_of_row = epoch_order(len(image_of_row), seed, epoch), np.asarray(image_of_row)
    if not group_by_image or not len(order):
        return order
    place = np.random.default_rng((seed, epoch, 1)).permutation(image_of_row.max() + 1)
    return order[np.argsort(place[image_of_row[order]], kind="stable")]


def image_order(image_of_row: Sequence[int]) -> np.ndarray:
    """Return the rows sorted by image, (num_rows,) int64, for evaluation: each image is then computed once
    or twice.
    """
    return np.argsort(np.asarray(image_of_row), kind="stable")


def make_question_loader(
    dataset: QuestionDataset, batches: Iterable[list[int]], epoch: int = 0, workers: int = 0
) -> Loader:
    """Return a loader of exactly `batches` (lists of rows), in that order.

    See `QuestionDataset` for the contents.
    """
    keys = [(epoch, rows) for rows in batches]
    return Loader(dataset, min(workers, len(keys)), QUESTION_TENSORS, batch_size=None, sampler=keys)
