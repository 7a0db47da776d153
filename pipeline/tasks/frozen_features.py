"""What frozen backbones make of images and questions: computed once for a run instead of in every epoch, where nothing changes it.

How the rows are cut into batches depends on the rows alone, so a resumed run trains on the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from tqdm import tqdm

from pipeline.data.dataset import cut, make_loader, readable, resolve_workers
from pipeline.data.question_batches import QuestionDataset
from pipeline.models.fusion import FusionModel
from pipeline.recipe import Augmentation, Recipe, Tower
from pipeline.training.compute import Compute

FEATURE_BYTES = 2_000_000_000  # kept in memory at most, of each backbone and part: 1,100 images as 577 tokens of 768 numbers
PICTURES_AT_ONCE, QUESTIONS_AT_ONCE = 32, 256


def changes_pictures(augmentation: Augmentation) -> bool:
    """Whether training images are changed at random, noise apart."""
    return any(name != "noise" for name in augmentation.in_use)


def computed_once(recipe: Recipe) -> tuple[tuple[Tower, ...], list[str]]:
    """The frozen backbones that see the same in every epoch, and a note for people on them and on the others."""
    towers, notes = recipe.frozen_towers, []
    if "image" in towers and recipe.augmentation.in_use:
        towers = tuple(tower for tower in towers if tower != "image")
        notes.append("the image backbone is frozen, and computed in every epoch all the same: augmentation changes the images")
    if towers:
        words = " and ".join({"text": "questions", "image": "pictures"}[tower] for tower in towers)
        notes.append(f"the features of {words} are computed once: their backbones are frozen")
    return towers, notes


def question_features(model: FusionModel, dataset: QuestionDataset, compute: Compute) -> torch.Tensor | None:
    """(num_rows, D) float32 of every question; equal ones are computed once. None: they would take more than `FEATURE_BYTES`."""
    unique = sorted({tuple(ids) for ids in dataset.token_ids}, key=lambda ids: (len(ids), ids))  # little padding
    first_row = {tuple(ids): row for row, ids in reversed(list(enumerate(dataset.token_ids)))}

    def results() -> Iterator[torch.Tensor]:
        for start in range(0, len(unique), QUESTIONS_AT_ONCE):
            rows = [first_row[ids] for ids in unique[start : start + QUESTIONS_AT_ONCE]]
            batch = compute.move(dataset.tokens(rows))
            yield model.read(batch["input_ids"], batch["attention_mask"])

    features = _together(results(), len(unique), "reading the questions once", compute)
    place = {ids: number for number, ids in enumerate(unique)}
    return None if features is None else features[[place[tuple(ids)] for ids in dataset.token_ids]]


def picture_features(
    model: FusionModel, normalize: Callable[[torch.Tensor], torch.Tensor], dataset: QuestionDataset, workers: int | str, compute: Compute
) -> torch.Tensor | None:
    """(num_pictures, ...) float32, what `FusionModel.see` gives of each image. None: they would take more than `FEATURE_BYTES`.

    Raises:
        LostImage: an image cannot be decoded any more.
    """
    images = dataset.images
    order = cut(range(len(images)), PICTURES_AT_ONCE, PICTURES_AT_ONCE)
    loader = make_loader(images, order, 0, resolve_workers(workers, images.paths))
    batches = readable(loader, images.paths)
    results = (model.see(normalize(compute.move(batch)["pixels"])) for batch in batches)
    return _together(results, len(images), "seeing the images once", compute)


def _together(results: Iterator[torch.Tensor], count: int, title: str, compute: Compute) -> torch.Tensor | None:
    """The (B, ...) `results` as one tensor of `count` rows on the CPU; None as soon as it is known to be too large."""
    features = None
    done = 0
    with torch.no_grad(), compute.autocast(), tqdm(total=count, desc=title, leave=False, dynamic_ncols=True) as bar:
        for result in results:
            if features is None and 4 * count * result[0].numel() > FEATURE_BYTES:
                return None
            if features is None:
                features = torch.empty(count, *result.shape[1:])
            features[done : done + len(result)] = result.float().cpu()
            done += len(result)
            bar.update(len(result))
    return features
