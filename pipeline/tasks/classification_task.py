"""Image classification as the engine trains it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.competition.corrections import corrected_score
from pipeline.competition.pseudo_labels import PseudoLabels
from pipeline.competition.rows import Corrections, Row
from pipeline.data.cache import ImageCache
from pipeline.data.dataset import ALL, ImageDataset, cut, epoch_order, make_loader, readable, resolve_workers
from pipeline.data.mixing import Mixing, mixing_of
from pipeline.data.policies import erase
from pipeline.data.sampling import balanced_order, trained_prior
from pipeline.data.transforms import Preprocessing
from pipeline.files import write_array
from pipeline.models.attention_functions import attend_by_products
from pipeline.models.backbones import head_name, save_backbone
from pipeline.models.compiled_blocks import compile_blocks, leave_uncompiled
from pipeline.models.half_weights import use_half_weights
from pipeline.models.lora import PeftModel, plain_state_dict, save_adapter
from pipeline.predictions import Predictions
from pipeline.recipe import Recipe
from pipeline.run_names import ADAPTER_DIR, VAL_COLUMNS, VAL_TABLE, VAL_VALUES
from pipeline.tables import guarded, write_table
from pipeline.targets.baseline import Baseline, constant_baseline
from pipeline.targets.measures import histograms
from pipeline.targets.metrics import all_metrics, find_metric, why_undefined
from pipeline.targets.target import Target
from pipeline.tasks.build import account_step, checkpoint_blocks, labelled_split, with_noise
from pipeline.tasks.image_classifier import ImageClassifier, in_order
from pipeline.training.compute import Batch, Compute
from pipeline.training.image_sizes import size_of_epoch
from pipeline.training.losses import training_loss, training_score
from pipeline.training.memory import Memory
from pipeline.training.optim import epochs_of, plan_schedule
from pipeline.training.resume import PSEUDO, SplitRow
from pipeline.training.sharding import is_shared_out, memory_of_a_part


class ClassificationTask:
    """Classification as the engine trains it: see `pipeline.training.predict.Task`.

    The target encodes the labels, and the metric scores the predictions.
    """

    rows_are = "images"
    one_shape = True

    def __init__(
        self,
        classifier: ImageClassifier,
        recipe: Recipe,
        target: Target,
        metric: str,
        train: list[Row],
        val: list[Row],
        cache: ImageCache | None = None,
        corrections: Corrections = Corrections(),  # noqa: B008 - frozen
        pseudo: PseudoLabels = PseudoLabels(),  # noqa: B008 - frozen
    ) -> None:
        """`train`: rows with their original labels; `corrections` are applied here.

        Validation rows keep their labels.
        """
        self.classifier, self.recipe, self.target, self.metric = classifier, recipe, target, metric
        self.corrections = corrections
        self.corrected = corrections.record(train, val) if corrections else None
        train = corrections.applied(train)
        self.class_names = target.names
        self.model, self.preprocessing = classifier.model, classifier.preprocessing
        # Prior, counts and baseline are computed from labelled rows only: pseudo-labelled test images must
        # not change the class frequencies.
        self.pseudo, self.labelled_rows = pseudo, train
        labelled = [row.label for row in train]
        train = [*train, *pseudo.rows]
        self.train_rows, self.val_rows = train, val
        # Scores count each id once, as the file and Kaggle do: it may have several images
        self.scored_rows = list({row.id: row for row in val}.values())
        self.val_truth = target.encode([row.label for row in self.scored_rows])
        paths = [row.path for row in train]
        labels = [row.label for row in train]
        self.encoded_labels = target.encode(labels)
        self.train_labels = _for_training(target, self.encoded_labels)
        self.epochs = epochs_of(plan_schedule(recipe, len(train))) if train else recipe.epochs
        self.train_sets = {  # by image size
            size: ImageDataset(
                paths,
                self.train_labels,
                preprocessing,
                recipe.augmentation,
                recipe.seed,
                cache,
                self._mixing(preprocessing),
            )
            for size, preprocessing in self._preprocessing_by_size().items()
        }
        self.train_set = self.train_sets[self.preprocessing.height]
        val_paths = [row.path for row in val]
        self.val_labels = _for_training(target, target.encode([row.label for row in val]))
        self.val_set = ImageDataset(val_paths, self.val_labels, self.preprocessing)
        self.num_train, self.num_val, self.num_outputs = len(train), len(val), target.num_outputs
        self.num_scored = len(self.scored_rows)
        self.loss_of = training_loss(
            target, recipe.optimizer, np.array(list(target.counts(labelled).values()))
        )
        self.train_score, self.score_of = training_score(target)
        self.undefined = why_undefined(metric, target, self.val_truth) if val else None
        self.best_metric = "val_loss" if self.undefined else f"val_{metric}"
        self.higher_is_better = not self.undefined and find_metric(metric).higher_is_better
        self.workers, self.val_workers = (
            resolve_workers(recipe.data.workers, files) for files in (paths, val_paths)
        )
        # Original weights of those in half precision, until they are saved
        self.originals: dict[str, torch.Tensor] = {}

    def to_device(self, compute: Compute, fresh: bool) -> None:
        """Move the model to its device; store frozen weights in half precision where that is allowed.

        `fresh`: a new run, whose frozen weights are not saved yet.

        Raises:
            UserError: activation checkpointing is set and the architecture has no blocks for it.
        """
        checkpoint_blocks(self.model, self.recipe)
        if compute.half is not None:
            loaded = plain_state_dict(self.model)
            use_half_weights(self.model, compute.half)
            if fresh or not isinstance(self.model, PeftModel):
                self.originals = {
                    name: loaded[name]
                    for name, weight in plain_state_dict(self.model).items()
                    if weight.dtype != loaded[name].dtype
                }
        # Else it may be larger than the device's memory
        if not is_shared_out(self.recipe, compute.processes):
            self.model.to(compute.device)

    def attend_by_products(self, on: bool) -> int:
        """Turn attention by batched matrix products in training on or off.

        Return 0 if the model cannot compute it so.
        """
        return attend_by_products(self.model, on)

    @property
    def head(self) -> nn.Module:
        """The last linear layer; with an adapter, its trained copy."""
        base = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        head = base.get_submodule(head_name(base))
        return head.modules_to_save["default"] if hasattr(head, "modules_to_save") else head

    def compile(self, rows: int | None) -> None:
        """Use torch.compile for training micro-batches of `rows`, with the same dropout masks.

        None turns it off.
        """
        leave_uncompiled(self.model)
        if rows is not None:
            compile_blocks(self.model, rows)

    def train_batches(
        self, epoch: int, start: int, micro_batch_size: int, group_size: int, share: tuple[int, int] = ALL
    ) -> Iterable[Batch]:
        """Yield the batches of `epoch` from row `start` of its order on.

        `share`: this process's part of them.
        """
        sizes = self.recipe.schedule.image_sizes
        dataset = self.train_sets[size_of_epoch(epoch, self.epochs, sizes)] if sizes else self.train_set
        loader = make_loader(
            dataset,
            cut(self.train_order(epoch), micro_batch_size, group_size, start, share),
            epoch,
            self.workers,
        )
        return readable(loader, dataset.paths)

    def _preprocessing_by_size(self) -> dict[int, Preprocessing]:
        """Return the preprocessing of each size of training images; the last one is that of validation."""
        return {size: self.preprocessing.at_size(size) for size in self.recipe.schedule.image_sizes[:-1]} | {
            self.preprocessing.height: self.preprocessing
        }

    def _mixing(self, preprocessing: Preprocessing) -> Mixing | None:
        return mixing_of(self.recipe, preprocessing, self.target.num_outputs, self.encoded_labels)

    def train_order(self, epoch: int) -> np.ndarray:
        """Return the order of the training rows in `epoch`: (num_train,) int64."""
        if self.recipe.data.sampling == "classes":
            return balanced_order(self.encoded_labels, self.recipe.seed, epoch)
        return epoch_order(self.num_train, self.recipe.seed, epoch)

    def plain_batches(self, batch_size: int, share: tuple[int, int] = ALL) -> Iterable[Batch]:
        """Yield the training rows in order, preprocessed as in validation.

        `share`: this process's part of them.
        """
        plain = ImageDataset(self.train_set.paths, self.train_labels, self.preprocessing)
        return readable(in_order(plain, batch_size, self.workers, share), plain.paths)

    def val_batches(self, batch_size: int, share: tuple[int, int] = ALL) -> Iterable[Batch]:
        """Yield the validation rows in order. `share`: this process's part of them."""
        return readable(in_order(self.val_set, batch_size, self.val_workers, share), self.val_set.paths)

    def loss(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the target's loss, the mean over the batch (scalar), and the logits (B, O)."""
        pixel_values = with_noise(
            self.preprocessing.normalize(batch["pixels"]), self.recipe.augmentation.noise
        )
        if self.recipe.augmentation.erasing:
            pixel_values = erase(pixel_values, batch["erased"])
        logits = self.classifier.forward(self.model, pixel_values)
        return self.loss_of(logits, batch["label"]), logits

    def score(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the sum of the training score over the batch, such as the number of right decisions
        (scalar).
        """
        return self.score_of(logits, batch["label"])

    def logits(self, batch: Batch) -> torch.Tensor:
        """Return logits (B, O), computed as in prediction."""
        return self.classifier.logits(batch)

    def scores(self, logits: np.ndarray) -> dict[str, float]:
        """Return every metric that is defined on the validation rows, including the competition's.

        Several images of an id are one prediction, as in the file.
        """
        ids, views = [row.id for row in self.val_rows], self.recipe.data.views
        values = Predictions.of_images(ids, logits, self.target, views).values
        scores = all_metrics(self.target, self.val_truth, values, None if self.undefined else self.metric)
        return scores | corrected_score(self.corrections, self.target, self.metric, self.scored_rows, values)

    def account(self, compute: Compute, optimizer_name: str, checkpointed: bool | None = None) -> Memory:
        """Return the memory of a training step in one process, computed from shapes only.

        `checkpointed`: activation checkpointing on or off; None: as in the recipe.
        """
        preprocessing = self.preprocessing

        def loss(forward: Callable[..., Any], pixel_values: torch.Tensor) -> torch.Tensor:
            with compute.autocast():
                logits = self.classifier.forward(forward, pixel_values)
                label = _for_training(self.target, self.target.encode([self.train_rows[0].label]))[0]
                return self.loss_of(
                    logits,
                    torch.as_tensor(label, device=logits.device).expand(len(pixel_values), *np.shape(label)),
                )

        pixels = torch.zeros(1, 3, preprocessing.height, preprocessing.width, device=compute.device)
        memory = account_step(self.model, loss, pixels, optimizer_name, self.recipe, checkpointed)
        shared_out = is_shared_out(self.recipe, compute.processes)
        return memory_of_a_part(memory, self.model, compute.processes.count) if shared_out else memory

    def save(self, output: Path, initial: bool = False) -> None:
        """Write the weights into run folder `output`: the adapter, or the whole model after full
        fine-tuning.

        `initial`: write the whole model, before training.
        """
        base = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        if initial or base is self.model:
            weights = plain_state_dict(self.model) | self.originals
            save_backbone(base, weights, self.preprocessing, output / f"model_{base.config.model_type}")
        if base is not self.model:
            self.originals = {}
        if not initial and base is not self.model:
            save_adapter(self.model, output / ADAPTER_DIR)

    def write_validation(self, output: Path, logits: np.ndarray) -> None:
        """Write val_predictions.csv (`VAL_COLUMNS`) and val_probs.npy (num_val,
        O) float32.

        Both have the same order. Text that a spreadsheet would run as a formula gets a leading apostrophe
        (`tables.restored` removes it).
        """
        values = self.target.activate(logits)
        cells = zip(self.val_rows, self.target.decode(values), self.target.confidence(values), strict=True)
        rows = [
            (
                *map(guarded, (row.id, str(row.path), row.label, predicted)),
                "" if sure is None else f"{sure:.6f}",
            )
            for row, predicted, sure in cells
        ]
        write_table(output / VAL_TABLE, VAL_COLUMNS, rows)
        write_array(output / VAL_VALUES, values)

    @property
    def names_are(self) -> str:
        """The word for `class_names` in messages."""
        return {"multilabel": "labels", "ordinal": "grades", "continuous": "numbers"}.get(
            self.target.kind, "classes"
        )

    def facts(self) -> dict[str, Any]:
        """Return the target, metric and prior for run.json, so that inference, score and submit need no
        flags.
        """
        prior = trained_prior(self.target.prior([row.label for row in self.labelled_rows]), self.recipe)
        metric = {"name": self.metric, "higher_is_better": find_metric(self.metric).higher_is_better}
        facts = {"target": self.target.record(), "metric": metric, "prior": [float(value) for value in prior]}
        facts |= {"corrections": self.corrected} if self.corrected else {}
        return facts | ({"pseudo_labels": self.pseudo.record} if self.pseudo.rows else {})

    def counts(self) -> dict[str, Any]:
        """Return the number of training and validation rows, and rows of each class or histograms of
        numbers.
        """
        labels = [row.label for row in self.labelled_rows]
        counts: dict[str, Any] = {
            "train": self.num_train,
            "val": self.num_val,
            "train_per_class": self.target.counts(labels),
        }
        if self.target.kind == "continuous":
            counts["train_histograms"] = histograms(self.target.names, self.target.encode(labels))
        return counts

    def baseline(self) -> Baseline | None:
        """Return the validation score of a constant prediction, by `best_metric`."""
        name = self.best_metric.removeprefix("val_")
        return constant_baseline(name, self.target, [row.label for row in self.labelled_rows], self.val_truth)

    def floor(self) -> Baseline | None:
        """Return None: there is no better baseline without the image."""
        return None

    def analyze(self, output: Path, compute: Compute) -> list[str]:
        """Return []: there is nothing to add to the metrics of the epochs."""
        return []

    def split_rows(self) -> list[SplitRow]:
        """Return every row of both parts in order, which a resumed run must find again."""
        # Its id may be that of a labelled row too
        pseudo = [(f"test image {row.id}", row.label, PSEUDO) for row in self.pseudo.rows]
        return [*labelled_split(self.labelled_rows, self.val_rows), *pseudo]


def _for_training(target: Target, encoded: np.ndarray) -> Sequence[Any]:
    """Return encoded labels as the loss takes them, one per row: an int for one class, else a float32
    tensor (O,).
    """
    if target.is_choice:
        return encoded.tolist()
    return list(torch.from_numpy(target.scaled(encoded) if target.kind == "continuous" else encoded))
