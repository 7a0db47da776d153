"""Image classification: `build` for training and `rebuild` for prediction, side by side so that they cannot drift apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.competition.layout import Competition, Row
from pipeline.competition.splits import kept_split, train_val_split
from pipeline.competition.tables import guarded, write_table
from pipeline.config import Recipe
from pipeline.data.dataset import ImageDataset, cut, epoch_order, make_loader, resolve_workers
from pipeline.data.images import bad_images_error, find_bad
from pipeline.data.transforms import Preprocessing
from pipeline.errors import UserError
from pipeline.files import read_json, replacing
from pipeline.metrics import classification_metrics, softmax
from pipeline.models.backbones import (
    Backbone,
    head_name,
    load_backbone,
    native_image_size,
    rebuild_backbone,
    save_backbone,
    takes_interpolation,
)
from pipeline.models.lean import cache_frozen_bias, checkpoint_layers, make_lean
from pipeline.models.lora import (
    Counts,
    PeftModel,
    attach,
    count_parameters,
    head_classes,
    load_adapter,
    merge,
    plain_state_dict,
    save_adapter,
)
from pipeline.run import ADAPTER_DIR, Run
from pipeline.training.checkpoint import seed_everything
from pipeline.training.compute import Batch, Compute
from pipeline.training.memory import Memory, account
from pipeline.training.resume import SplitRow


@dataclass
class ImageClassifier:
    """The model with its rule: batches of uint8 pixels in, logits out. Used alike in training, validation and prediction."""

    model: nn.Module
    rule: Preprocessing
    extra: dict[str, Any]  # forward arguments beside pixel_values

    @classmethod
    def of(cls, model: nn.Module, backbone: Backbone) -> ImageClassifier:
        other_size = native_image_size(backbone.model) != backbone.preprocessing.height
        extra = {"interpolate_pos_encoding": True} if other_size and takes_interpolation(backbone.model) else {}
        return cls(model, backbone.preprocessing, extra)

    def logits(self, batch: Batch) -> torch.Tensor:
        """(B, C) for `batch["pixels"]` (B, 3, H, W) uint8."""
        return self.forward(self.model, self.rule.normalize(batch["pixels"]))

    def forward(self, model: Callable[..., Any], pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, C) of `model` for normalised `pixel_values`."""
        return model(pixel_values=pixel_values, **self.extra).logits


class ClassificationTask:
    """What the engine trains: see `pipeline.training.predict.Task`. `train` and `val` are rows with their class indices."""

    best_metric = "val_accuracy"

    def __init__(self, classifier: ImageClassifier, recipe: Recipe, class_names: Sequence[str], train: list[Row], val: list[Row]) -> None:
        index = {name: number for number, name in enumerate(class_names)}
        self.classifier, self.recipe, self.class_names = classifier, recipe, tuple(class_names)
        self.model = classifier.model
        self.train_rows, self.val_rows = train, val
        self.val_labels = np.array([index[row.label] for row in val], dtype=np.int64)
        train_labels = [index[row.label] for row in train]
        paths = [row.path for row in train]
        self.train_set = ImageDataset(paths, train_labels, classifier.rule, recipe.augmentation, recipe.seed)
        self.val_set = ImageDataset([row.path for row in val], self.val_labels.tolist(), classifier.rule)
        self.num_train, self.num_val, self.num_classes = len(train), len(val), len(class_names)
        self.workers = resolve_workers(recipe.data.workers, paths)
        self.originals: dict[str, torch.Tensor] | None = None

    def place(self, compute: Compute, fresh: bool) -> None:
        """Move the model to where it is trained, held as lean as its precision allows; a `fresh` run can still save the weights as loaded.

        Raises:
            UserError: activation checkpointing is asked for and the architecture has no blocks for it.
        """
        if self.recipe.activation_checkpointing and not checkpoint_layers(self.model):
            raise UserError(f"activation_checkpointing: {type(self.model).__name__} has no blocks that can be computed again; leave it out")
        if compute.half is not None:
            loaded = plain_state_dict(self.model)
            self.originals = loaded if make_lean(self.model, compute.half) and fresh else None
        self.model.to(compute.device)

    def train_batches(self, epoch: int, start: int, micro_batch_size: int, group_size: int) -> Iterable[Batch]:
        """The batches of `epoch` from row `start` of its order on."""
        order = epoch_order(self.num_train, self.recipe.seed, epoch)
        return make_loader(self.train_set, cut(order, micro_batch_size, group_size, start), epoch, self.workers)

    def val_batches(self, batch_size: int) -> Iterable[Batch]:
        """The validation rows in order."""
        return _in_order(self.val_set, batch_size, self.workers)

    def loss(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean cross-entropy over the batch (scalar), and the logits (B, C)."""
        pixel_values = self.classifier.rule.normalize(batch["pixels"])
        if self.recipe.augmentation.noise:
            pixel_values = pixel_values + self.recipe.augmentation.noise * torch.randn_like(pixel_values)
        logits = self.classifier.forward(self.model, pixel_values)
        return F.cross_entropy(logits.float(), batch["label"], label_smoothing=self.recipe.optimizer.label_smoothing), logits

    def logits(self, batch: Batch) -> torch.Tensor:
        """(B, C), as in prediction."""
        return self.classifier.logits(batch)

    def scores(self, logits: np.ndarray) -> dict[str, float]:
        """Every metric of the validation rows."""
        return classification_metrics(self.val_labels, logits.argmax(axis=1), self.num_classes, softmax(logits))

    def account(self, compute: Compute, optimizer_name: str, checkpointed: bool | None = None) -> Memory:
        """The memory of a training step, counted on shapes alone; `checkpointed` instead of what the recipe says of it."""
        rule = self.classifier.rule
        self.model.train()

        def loss(forward: Callable[..., Any], pixel_values: torch.Tensor) -> torch.Tensor:
            with compute.autocast():
                logits = self.classifier.forward(forward, pixel_values)
                return F.cross_entropy(logits.float(), torch.zeros(len(pixel_values), dtype=torch.long, device=logits.device))

        pixels = torch.zeros(1, 3, rule.height, rule.width, device=compute.device)
        checkpoint_layers(self.model, self.recipe.activation_checkpointing if checkpointed is None else checkpointed)
        try:
            return account(self.model, loss, pixels, optimizer_name)
        finally:
            checkpoint_layers(self.model, self.recipe.activation_checkpointing)

    def save(self, output: Path, initial: bool = False) -> None:
        """Write the weights into run folder `output`: the adapter, or after full fine-tuning (and `initial`ly) the whole model."""
        base = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        if initial or base is self.model:
            weights = self.originals or plain_state_dict(self.model)
            save_backbone(base, weights, self.classifier.rule, output / f"model_{base.config.model_type}")
            self.originals = None
        if not initial and base is not self.model:
            save_adapter(self.model, output / ADAPTER_DIR)

    def write_validation(self, output: Path, logits: np.ndarray) -> None:
        """Write val_predictions.csv (id, path, label, predicted, confidence) and val_probs.npy (num_val, C) float32, in the same order.

        Text that a spreadsheet would run as a formula gets an apostrophe before it (`tables.restored` takes it away).
        """
        probs = softmax(logits)
        rows = [
            (*map(guarded, (row.id, str(row.path), row.label, self.class_names[best])), f"{probs[number, best]:.6f}")
            for number, (row, best) in enumerate(zip(self.val_rows, probs.argmax(axis=1), strict=True))
        ]
        write_table(output / "val_predictions.csv", ("id", "path", "label", "predicted", "confidence"), rows)
        with replacing(output / "val_probs.npy") as temporary, open(temporary, "wb") as file:
            np.save(file, probs.astype(np.float32))

    def split_rows(self) -> list[SplitRow]:
        """Every row in its order: what a run is started with, and resumed with."""
        return [(row.id, row.label, split) for split, rows in (("train", self.train_rows), ("val", self.val_rows)) for row in rows]


@dataclass(frozen=True)
class Build:
    """A task ready to train, and what a person wants to know before it does."""

    task: ClassificationTask
    backbone: Backbone
    counts: Counts
    head: str
    notes: tuple[str, ...]


def build(recipe: Recipe, competition: Competition, source: str | None = None, former: Sequence[SplitRow] | None = None) -> Build:
    """The recipe's model on the competition's rows, split and checked.

    A run being resumed gives the folder of its own weights as `source` and its rows as `former`: they stay in their order and split.

    Raises:
        UserError: undecodable images (unless skipped), a backbone that cannot be loaded or has no such LoRA targets.
    """
    rows, notes = _decodable(list(competition.train), recipe.data.skip_bad_images)
    if former is None:
        train, val, how = train_val_split([row.label for row in rows], recipe.data.val_fraction, recipe.seed)
    else:
        train, val, how = kept_split([row.id for row in rows], former)
    seed_everything(recipe.seed)
    if source is not None:
        backbone = load_backbone(source, competition.class_names, recipe.image_size)
    else:
        backbone = load_backbone(recipe.backbone, competition.class_names, recipe.image_size, recipe.random_weights, recipe.architecture)
    head = head_name(backbone.model)
    model: nn.Module = backbone.model
    if recipe.lora.rank:
        seed_everything(recipe.seed + 1)  # the adapter's draw does not depend on whether a head was drawn
        lora = recipe.lora
        model = attach(model, lora.rank, lora.alpha, lora.dropout, lora.targets, lora.also_train)
        cache_frozen_bias(model)
    elif recipe.head_only:
        model.requires_grad_(False).get_submodule(head).requires_grad_(True)
        cache_frozen_bias(model)
    classifier = ImageClassifier.of(model, backbone)
    task = ClassificationTask(classifier, recipe, competition.class_names, [rows[i] for i in train], [rows[i] for i in val])
    return Build(task, backbone, count_parameters(model), head, (*notes, how))


def rebuild(run: Run, class_names: Sequence[str]) -> ImageClassifier:
    """The classifier of a finished run or release: float32, adapter merged and checked, eval mode.

    Raises:
        UserError: weights that are missing, damaged, unsafe, or do not belong together.
    """
    backbone = rebuild_backbone(run.backbone_dir, len(class_names))
    cache_frozen_bias(backbone.model.requires_grad_(False))
    if run.adapter_dir is None:
        if backbone.new_head:
            raise UserError(
                f"{run.backbone_dir} has no trained head for {len(class_names)} classes, and {run.path} holds no adapter with one"
            )
        return ImageClassifier.of(backbone.model, backbone)
    adapted = load_adapter(backbone.model, run.adapter_dir)
    classifier = ImageClassifier.of(adapted, backbone)
    probe = torch.randn(1, 3, backbone.preprocessing.height, backbone.preprocessing.width, generator=torch.Generator().manual_seed(0))
    classifier.model = merge(adapted, lambda model: classifier.forward(model, probe)).eval()
    return classifier


def num_classes_of(run: Run) -> int:
    """How many classes the weights of a run or release distinguish, read from the weights' own files."""
    if run.adapter_dir is not None:
        return head_classes(run.adapter_dir)
    if run.class_names is not None:
        return len(run.class_names)
    return len(read_json(run.backbone_dir / "config.json").get("id2label", {}))


def prediction_batches(paths: Sequence[Path], rule: Preprocessing, batch_size: int, workers: int | str = "auto") -> Iterable[Batch]:
    """Batches of the pictures at `paths`, in order, prepared as validation is."""
    return _in_order(ImageDataset(paths, None, rule), batch_size, resolve_workers(workers, paths))


def train_counts(rows: Iterable[Row], class_names: Sequence[str]) -> dict[str, int]:
    """Images per class, in the order of `class_names`."""
    counted = Counter(row.label for row in rows)
    return {name: counted[name] for name in class_names}


def _in_order(dataset: ImageDataset, batch_size: int, workers: int) -> Iterable[Batch]:
    return make_loader(dataset, cut(range(len(dataset)), batch_size, batch_size), 0, workers)


def _decodable(rows: list[Row], skip: bool) -> tuple[list[Row], list[str]]:
    bad = find_bad([row.path for row in rows])
    if not bad:
        return rows, []
    if not skip:
        raise bad_images_error({rows[position].path: reason for position, reason in bad.items()})
    kept = [row for position, row in enumerate(rows) if position not in bad]
    lost = {row.label for row in rows} - {row.label for row in kept}
    if lost:
        raise UserError(f"without the images that cannot be decoded these classes have none: {', '.join(sorted(lost))}")
    first = next(iter(bad))
    return kept, [f"skipped {len(bad)} images that cannot be decoded, such as {rows[first].path}: {bad[first]}"]
