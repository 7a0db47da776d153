"""Compute the features of frozen backbones once per run instead of in every epoch, where they do not
change.

How the rows are cut into batches depends only on the rows, so a resumed run trains on the same bits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

import torch
from tqdm import tqdm

from pipeline.data.dataset import cut, make_loader, readable, resolve_workers
from pipeline.data.question_batches import QuestionDataset
from pipeline.models.fusion import FusionModel
from pipeline.recipe import Recipe
from pipeline.recipe_sections import Augmentation, Tower
from pipeline.training.compute import Compute

# Limit for each backbone and part (train, val): 1,100 images of 577 tokens of 768 numbers
FEATURE_BYTES = 2_000_000_000
IMAGES_AT_ONCE, QUESTIONS_AT_ONCE = 32, 256


def changes_images(augmentation: Augmentation) -> bool:
    """Return True where training images are changed at random (noise does not count)."""
    return any(name != "noise" for name in augmentation.in_use)


def computed_once(recipe: Recipe) -> tuple[tuple[Tower, ...], list[str]]:
    """Return the frozen backbones whose features are the same in every epoch, and notes for the user."""
    towers, notes = recipe.frozen_towers, []
    if "image" in towers and recipe.augmentation.in_use:
        towers = tuple(tower for tower in towers if tower != "image")
        notes.append(
            "the image backbone is frozen but computed in every epoch, because augmentation changes the "
            "images"
        )
    if towers:
        words = " and ".join({"text": "questions", "image": "images"}[tower] for tower in towers)
        notes.append(f"the features of {words} are computed once, because their backbones are frozen")
    return towers, notes


def question_features(model: FusionModel, dataset: QuestionDataset, compute: Compute) -> torch.Tensor | None:
    """Return the features of every question, (num_rows, D) float32; equal questions are computed once.

    None if they would take more than `FEATURE_BYTES`.
    """
    # Sorted by length: little padding
    unique = sorted({tuple(ids) for ids in dataset.token_ids}, key=lambda ids: (len(ids), ids))
    first_row = {tuple(ids): row for row, ids in reversed(list(enumerate(dataset.token_ids)))}

    def results() -> Iterator[torch.Tensor]:
        for start in range(0, len(unique), QUESTIONS_AT_ONCE):
            rows = [first_row[ids] for ids in unique[start : start + QUESTIONS_AT_ONCE]]
            batch = compute.move(dataset.tokens(rows))
            yield model.read(batch["input_ids"], batch["attention_mask"])

    features = _together(results(), len(unique), "features of the questions", compute)
    place = {ids: number for number, ids in enumerate(unique)}
    return None if features is None else features[[place[tuple(ids)] for ids in dataset.token_ids]]


def image_features(
    model: FusionModel,
    normalize: Callable[[torch.Tensor], torch.Tensor],
    dataset: QuestionDataset,
    workers: int | str,
    compute: Compute,
) -> torch.Tensor | None:
    """Return the result of `FusionModel.see` for each image, (num_images, ...) float32.

    None if they would take more than `FEATURE_BYTES`.

    Raises:
        LostImage: an image can no longer be decoded.
    """
    images = dataset.images
    order = cut(range(len(images)), IMAGES_AT_ONCE, IMAGES_AT_ONCE)
    loader = make_loader(images, order, 0, resolve_workers(workers, images.paths))
    batches = readable(loader, images.paths)
    results = (model.see(normalize(compute.move(batch)["pixels"])) for batch in batches)
    return _together(results, len(images), "features of the images", compute)


def _together(
    results: Iterator[torch.Tensor], count: int, title: str, compute: Compute
) -> torch.Tensor | None:
    """Return the (B, ...) `results` as one CPU tensor of `count` rows.

    None as soon as it would be too large.
    """
    features = None
    computing: deque[tuple[slice, Callable[[], torch.Tensor]]] = deque()
    done = 0
    with (
        torch.no_grad(),
        compute.autocast(),
        tqdm(total=count, desc=title, leave=False, dynamic_ncols=True) as bar,
    ):

        def read_back(as_many_as: int) -> None:
            while len(computing) > as_many_as:
                place, arriving = computing.popleft()
                features[place] = arriving()
                bar.update(place.stop - place.start)

        for result in results:
            if features is None and 4 * count * result[0].numel() > FEATURE_BYTES:
                return None
            if features is None:
                features = torch.empty(count, *result.shape[1:])
            computing.append((slice(done, done + len(result)), compute.bring(result)))
            done += len(result)
            read_back(1)  # all but the newest: the GPU computes it while the next one is prepared
        read_back(0)
    return features
