"""A model for questions about images with its preprocessing and tokenizer; rebuild it from a finished run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch.nn import functional as F

from pipeline.competition.questions import clean_question
from pipeline.competition.rows import Row
from pipeline.data.dataset import ALL, ImageDataset, cut, resolve_workers
from pipeline.data.question_batches import QuestionDataset, image_order, make_question_loader
from pipeline.data.tokenizer import load_tokenizer
from pipeline.data.transforms import Preprocessing
from pipeline.errors import UserError
from pipeline.models.checkpoint_config import preprocessing_of
from pipeline.models.encoders import load_encoder
from pipeline.models.fusion import FusionModel, VqaModel, load_fused
from pipeline.recipe import Recipe
from pipeline.recipe_sections import Augmentation, Head
from pipeline.run import Run
from pipeline.tasks.build import account_step
from pipeline.training.compute import Batch, Compute
from pipeline.training.memory import Memory

# Memory is counted with tensors that have no values. Before version 5 transformers reads the values of a mask
# (B, tokens), so there it gets a larger mask.
SHAPES_ARE_ENOUGH = int(transformers.__version__.split(".")[0]) >= 5


@dataclass
class VqaPredictor:
    """The model with its preprocessing and tokenizer: batches of questions and uint8 pixels in, logits
    out.

    Training and prediction both use it.
    """

    fused: VqaModel
    workers: int | str = "auto"

    @property
    def model(self) -> FusionModel:
        """Both encoders and the head."""
        return self.fused.model

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing of an image."""
        return self.fused.preprocessing

    def describe(self) -> str:
        """Return the input as text."""
        return f"{self.fused.preprocessing.width} x {self.fused.preprocessing.height} px and a question"

    def logits(self, batch: Batch) -> torch.Tensor:
        """Return logits (B, K) for a batch of `QuestionDataset`."""
        return self.forward(
            self.model, batch, self.preprocessing.normalize(batch["pixels"]) if "pixels" in batch else None
        )

    def forward(
        self, model: Callable[..., torch.Tensor], batch: Batch, pixel_values: torch.Tensor | None
    ) -> torch.Tensor:
        """Return logits (B, K) of `model` for `pixel_values` (I, 3, H, W) and the questions of `batch`.

        `pixel_values` are normalised. `batch` may hold features of images or questions instead.
        """
        given = {
            name: batch[name]
            for name in ("input_ids", "attention_mask", "question", "image")
            if name in batch
        }
        return model(pixel_values, batch["image_index"], **given)

    def dataset(
        self,
        rows: Sequence[Row],
        labels: Sequence[int] | None = None,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> QuestionDataset:
        """Return the questions of `rows` with their images, each image once.

        Questions are cleaned in the same way as in training.
        """
        paths = {path: number for number, path in enumerate(dict.fromkeys(row.path for row in rows))}
        images = ImageDataset(list(paths), None, self.fused.preprocessing, augmentation, seed)
        token_ids = self.fused.tokenizer.encode([clean_question(row.question or "") for row in rows])
        return QuestionDataset(
            images, [paths[row.path] for row in rows], token_ids, self.fused.tokenizer.pad_id, labels
        )

    def batches(self, rows: Sequence[Row], batch_size: int, share: tuple[int, int] = ALL) -> Iterable[Batch]:
        """Yield batches of the questions of `rows`, grouped by image, preprocessed as in validation."""
        return self.in_order(self.dataset(rows), batch_size, share)

    def in_order(
        self, dataset: QuestionDataset, batch_size: int, share: tuple[int, int] = ALL
    ) -> Iterable[Batch]:
        """Yield batches of all questions of `dataset`, image by image.

        `share`: this process's part of them.
        """
        batches = cut(image_order(dataset.image_of_row), batch_size, len(dataset), share=share)
        workers = resolve_workers(self.workers, dataset.images.paths) if dataset.image_features is None else 0
        return make_question_loader(dataset, batches, 0, workers)


def account_vqa(
    predictor: VqaPredictor,
    num_tokens: int,
    compute: Compute,
    optimizer_name: str,
    recipe: Recipe,
    checkpointed: bool | None = None,
) -> Memory:
    """Return the memory of a training step on questions of `num_tokens`, each with a separate image.

    Questions that share images take less.
    """
    preprocessing = predictor.fused.preprocessing

    def loss(forward: Callable[..., torch.Tensor], pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the loss (scalar) of one question for each image of `pixel_values` (I, 3, H, W)."""
        count, device = len(pixel_values), pixel_values.device
        ids = torch.zeros(count, num_tokens, dtype=torch.long, device=device)
        mask = torch.ones_like(ids)
        if not SHAPES_ARE_ENOUGH:
            mask = torch.ones(count, num_tokens, num_tokens, device=device)
        image_index = torch.zeros(count, dtype=torch.long, device=device)
        batch = {"image_index": image_index, "input_ids": ids, "attention_mask": mask}
        with compute.autocast():
            logits = predictor.forward(forward, batch, pixel_values)
            return F.cross_entropy(logits.float(), torch.zeros(count, dtype=torch.long, device=device))

    pixels = torch.zeros(1, 3, preprocessing.height, preprocessing.width, device=compute.device)
    return account_step(predictor.model, loss, pixels, optimizer_name, recipe, checkpointed)


def rebuild(run: Run, num_outputs: int) -> VqaPredictor:
    """Return the predictor of a finished run: float32, adapters merged and checked, eval mode.

    Raises:
        UserError: weights that are missing, damaged or unsafe, or that do not belong together.
    """
    if run.text_dir is None or run.record is None:
        raise UserError(
            f"{run.path}: a vqa run has a text backbone with its tokenizer and a run.json; this folder lacks "
            "one of them"
        )
    recipe = run.record.values["recipe"]
    text = load_encoder(str(run.text_dir), "text_backbone")
    image = load_encoder(str(run.backbone_dir), "--backbone")
    tokenizer = load_tokenizer(str(run.text_dir), max_tokens_of(text, recipe["data"]["max_question_tokens"]))
    preprocessing = preprocessing_of(str(run.backbone_dir), image.config, None)
    frozen = [recipe["freeze"]] if recipe.get("freeze") else []
    return VqaPredictor(
        load_fused(
            text, image, tokenizer, preprocessing, num_outputs, Head(**recipe["head"]), run.path, frozen
        )
    )


def num_outputs_of(run: Run) -> int:
    """Return the number of answers that a run names; loading checks that its head has as many outputs."""
    return len(run.class_names or ())


def max_tokens_of(text: Any, wanted: int) -> int:
    """Return `wanted`, or the largest number of tokens that the text encoder can take."""
    # RoBERTa numbers its positions from 2
    return min(wanted, getattr(text.config, "max_position_embeddings", wanted + 2) - 2)
