"""Visual question answering as the engine trains it, and its baselines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from pipeline.competition.questions import clean_question
from pipeline.competition.rows import Row
from pipeline.data.dataset import ALL, cut, readable, resolve_workers
from pipeline.data.question_batches import QuestionDataset, make_question_loader, question_order
from pipeline.files import write_array, write_json
from pipeline.models.fusion import save_fused
from pipeline.models.half_weights import keep_less
from pipeline.recipe import Recipe
from pipeline.recipe_sections import Tower
from pipeline.run import load_run
from pipeline.run_names import FLOORS, VAL_COLUMNS, VAL_TABLE, VAL_VALUES
from pipeline.tables import guarded, write_table
from pipeline.targets.baseline import Baseline
from pipeline.targets.metrics import classification_metrics, softmax, vqa_scores
from pipeline.targets.target import multiclass
from pipeline.tasks.build import checkpoint_blocks, count_classes, labelled_split, with_noise
from pipeline.tasks.frozen_features import changes_images, computed_once, image_features, question_features
from pipeline.tasks.question_predictor import VqaPredictor, account_vqa, rebuild
from pipeline.training.compute import Batch, Compute
from pipeline.training.memory import Memory
from pipeline.training.predict import predict_logits
from pipeline.training.resume import SplitRow

QUESTION_COLUMNS = (*VAL_COLUMNS, "question", "answer_type")

Labelled = tuple[Row, int]


class VqaTask:
    """Questions about images as the engine trains them: see `pipeline.training.predict.Task`.

    `train` and `val` are rows with the numbers of their answers, -1 for an answer outside the K. Dropout of
    the image is drawn once for each image of a micro-batch, and padding reaches to its longest question. So
    another micro-batch size changes the dropout masks; without dropout only rounding changes.
    """

    best_metric, higher_is_better, train_score = "val_accuracy", True, "accuracy"
    rows_are, names_are = "questions", "answers"
    one_shape = False

    def __init__(
        self,
        predictor: VqaPredictor,
        recipe: Recipe,
        class_names: Sequence[str],
        train: Sequence[Labelled],
        val: Sequence[Labelled],
    ) -> None:
        self.predictor, self.recipe, self.class_names = predictor, recipe, tuple(class_names)
        self.model, self.preprocessing = predictor.model, predictor.preprocessing
        self.train_rows, self.val_rows = [row for row, _ in train], [row for row, _ in val]
        self.train_labels, self.val_labels = (
            np.array([label for _, label in rows], dtype=np.int64) for rows in (train, val)
        )
        augmentation = recipe.augmentation if changes_images(recipe.augmentation) else None
        self.train_set = predictor.dataset(
            self.train_rows, self.train_labels.tolist(), augmentation, recipe.seed
        )
        self.val_set = predictor.dataset(self.val_rows, self.val_labels.tolist())
        self.num_train = len(self.train_rows)
        self.num_val = self.num_scored = len(self.val_rows)
        self.num_outputs = len(self.class_names)
        self.compute: Compute | None = None  # set by `to_device`
        # Backbones whose features are computed when the first batch of the part is read.
        self.to_compute: dict[str, Sequence[Tower]] = {
            "train": computed_once(recipe)[0],
            "val": recipe.frozen_towers,
        }

    def train_batches(
        self, epoch: int, start: int, micro_batch_size: int, group_size: int, share: tuple[int, int] = ALL
    ) -> Iterable[Batch]:
        """Yield the batches of `epoch` from row `start` of its order on.

        `share`: this process's part of them.
        """
        dataset, recipe = self._with_features("train"), self.recipe
        order = question_order(dataset.image_of_row, recipe.seed, epoch, recipe.data.group_by_image)
        workers = 0
        if dataset.image_features is None:
            workers = resolve_workers(recipe.data.workers, dataset.images.paths)
        loader = make_question_loader(
            dataset, cut(order, micro_batch_size, group_size, start, share), epoch, workers
        )
        return readable(loader, [row.path for row in self.train_rows])

    def val_batches(self, batch_size: int, share: tuple[int, int] = ALL) -> Iterable[Batch]:
        """Yield the validation questions, image by image. `share`: this process's part of them."""
        batches = self.predictor.in_order(self._with_features("val"), batch_size, share)
        return readable(batches, [row.path for row in self.val_rows])

    def loss(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean cross-entropy over the batch (scalar), and the logits (B, K)."""
        pixel_values = None
        if "pixels" in batch:
            pixel_values = with_noise(
                self.preprocessing.normalize(batch["pixels"]), self.recipe.augmentation.noise
            )
        logits = self.predictor.forward(self.model, batch, pixel_values)
        return F.cross_entropy(
            logits.float(), batch["label"], label_smoothing=self.recipe.optimizer.label_smoothing
        ), logits

    def score(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return how many questions of the batch are answered right (scalar)."""
        return (logits.argmax(dim=1) == batch["label"]).sum()

    def logits(self, batch: Batch) -> torch.Tensor:
        """Return logits (B, K), computed as in prediction."""
        return self.predictor.logits(batch)

    def scores(self, logits: np.ndarray) -> dict[str, float]:
        """Return every metric of the validation rows.

        A question whose answer is outside the K counts as wrong; the loss is over the other questions.
        """
        predicted, known = logits.argmax(axis=1), self.val_labels >= 0
        # An additional class that is never predicted
        labels = np.where(known, self.val_labels, self.num_outputs)
        scores = classification_metrics(labels, predicted, self.num_outputs + 1)
        if known.any():
            own = classification_metrics(
                self.val_labels[known], predicted[known], self.num_outputs, softmax(logits[known])
            )
            scores["loss"] = own["loss"]
        answers, types = [row.answers for row in self.val_rows], [row.answer_type for row in self.val_rows]
        return scores | vqa_scores([self.class_names[index] for index in predicted], answers, types)

    def to_device(self, compute: Compute, fresh: bool) -> None:
        """Move the model to its device.

        In half precision fewer activations are kept for the backward pass. The weights stay float32, because
        they are saved so.

        Raises:
            UserError: activation checkpointing is set and the encoders have no blocks for it.
        """
        checkpoint_blocks(self.model, self.recipe)
        if compute.half is not None:
            keep_less(self.model)
        self.model.to(compute.device)
        self.compute = compute

    def _with_features(self, part: str) -> QuestionDataset:
        """Return the questions of `part` (train, val).

        The first call computes the features of frozen backbones.
        """
        dataset, model = self.train_set if part == "train" else self.val_set, self.model
        if self.compute is None:
            return dataset
        towers = self.to_compute.pop(part, ())
        if "text" in towers:
            dataset.question_features = question_features(model, dataset, self.compute)
        if "image" in towers:
            normalize, workers = self.preprocessing.normalize, self.recipe.data.workers
            dataset.image_features = image_features(model, normalize, dataset, workers, self.compute)
        return dataset

    def account(self, compute: Compute, optimizer_name: str, checkpointed: bool | None = None) -> Memory:
        """Return the memory of a training step, computed from shapes only.

        It assumes the longest question, and a separate image for each question.
        """
        longest = max(map(len, self.train_set.token_ids))
        return account_vqa(self.predictor, longest, compute, optimizer_name, self.recipe, checkpointed)

    def save(self, output: Path, initial: bool = False) -> None:
        """Write the weights into run folder `output`: adapters and head, or both encoders after full
        fine-tuning.

        `initial`: write both encoders, before training.
        """
        save_fused(
            self.predictor.fused, output, base=initial or not self.recipe.lora.rank, trained=not initial
        )

    def write_validation(self, output: Path, logits: np.ndarray) -> None:
        """Write val_predictions.csv (`QUESTION_COLUMNS`) and val_probs.npy (num_val, K) float32, in the
        same order.

        Cells are written as in classification.
        """
        probs = softmax(logits)
        rows = []
        for row, label, prob in zip(self.val_rows, self.val_labels, probs, strict=True):
            best = prob.argmax()
            written = self.class_names[label] if label >= 0 else row.label
            before = (row.id, str(row.path), written, self.class_names[best])
            after = (row.question, row.answer_type or "")
            rows.append((*map(guarded, before), f"{prob[best]:.6f}", *map(guarded, after)))
        write_table(output / VAL_TABLE, QUESTION_COLUMNS, rows)
        write_array(output / VAL_VALUES, probs)

    def counts(self) -> dict[str, Any]:
        """Return the number of training and validation questions, and training questions of each answer."""
        per_answer = count_classes((self.class_names[label] for label in self.train_labels), self.class_names)
        return {"train": self.num_train, "val": self.num_val, "train_per_class": per_answer}

    def facts(self) -> dict[str, Any]:
        """Return the target, metric and prior for run.json: one of the answers, scored by accuracy."""
        counts = np.bincount(self.train_labels, minlength=self.num_outputs).astype(np.float64)
        metric = {"name": "accuracy", "higher_is_better": True}
        return {
            "target": multiclass(self.class_names).record(),
            "metric": metric,
            "prior": (counts / counts.sum()).tolist(),
        }

    def split_rows(self) -> list[SplitRow]:
        """Return every row of both parts in order, which a resumed run must find again."""
        return labelled_split(self.train_rows, self.val_rows)

    def baseline(self) -> Baseline | None:
        """Return the validation accuracy of always giving the most frequent answer."""
        if self.num_val:
            return Baseline(float(np.mean(self.val_labels == 0)), f"always {self.class_names[0]!r}")
        return None

    def floor(self) -> Baseline | None:
        """Return the validation accuracy of the question alone: its most frequent answer in training."""
        if self.num_val:
            return Baseline(self._question_floor, "the most frequent answer to the same question")
        return None

    def analyze(self, output: Path, compute: Compute) -> list[str]:
        """Return three baselines as lines (majority answer, question only, shuffled images); two where all
        questions are about one image.

        Write them to floors.json.
        """
        if not self.num_val:
            return []
        floors = {
            "always the most frequent answer": self.baseline().value,
            "the question alone: its most frequent training answer": self.floor().value,
        }
        if len({row.path for row in self.val_rows}) > 1:
            name = "this model, each question with another validation image"
            floors[name] = self._shuffled_accuracy(output, compute)
        write_json(output / FLOORS, floors)
        return [f"validation accuracy of {name}: {value:.4f}" for name, value in floors.items()]

    @cached_property
    def _question_floor(self) -> float:
        """Accuracy of the most frequent training answer to the same wording.

        New wordings get the majority answer.
        """
        train, val = (
            [clean_question(row.question or "") for row in rows] for rows in (self.train_rows, self.val_rows)
        )
        counts_of: dict[str, Counter[int]] = {}
        for question, label in zip(train, self.train_labels.tolist(), strict=True):
            counts_of.setdefault(question, Counter())[label] += 1
        answers = {
            question: min(counts, key=lambda label: (-counts[label], label))
            for question, counts in counts_of.items()
        }
        return float(np.mean(self.val_labels == [answers.get(question, 0) for question in val]))

    def _shuffled_accuracy(self, output: Path, compute: Compute) -> float:
        """Return the accuracy of the finished run with shuffled images: no image stays with its questions.

        The run is loaded from its folder.
        """
        predictor = rebuild(load_run(output), self.num_outputs)
        predictor.model.to(compute.device)
        paths = list(dict.fromkeys(row.path for row in self.val_rows))
        order = np.random.default_rng(self.recipe.seed).permutation(len(paths))
        other = {paths[own]: paths[next_one] for own, next_one in zip(order, np.roll(order, 1), strict=True)}
        batches = predictor.batches(
            [replace(row, path=other[row.path]) for row in self.val_rows], 2 * self.recipe.batch_size
        )
        logits = predict_logits(
            predictor.model,
            predictor.logits,
            batches,
            self.num_val,
            self.num_outputs,
            compute,
            "shuffled images",
            leave=False,
        )
        return float(np.mean(self.val_labels == logits.argmax(axis=1)))
