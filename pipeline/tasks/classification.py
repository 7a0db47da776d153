"""Image classification: `build` for training and `rebuild` for prediction, side by side so that they cannot drift apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.competition.corrections import corrected_score, describe_corrections
from pipeline.competition.rows import Competition, Corrections, Row
from pipeline.data.cache import PictureCache, open_cache
from pipeline.data.dataset import ALL, ImageDataset, cut, epoch_order, make_loader, readable, resolve_workers
from pipeline.data.mixing import mixing_of
from pipeline.data.policies import erase
from pipeline.data.sampling import balanced_order, trained_prior
from pipeline.data.transforms import Preprocessing
from pipeline.errors import UserError
from pipeline.models.backbones import (
    Backbone,
    head_name,
    load_backbone,
    native_image_size,
    rebuild_backbone,
    save_backbone,
    takes_interpolation,
)
from pipeline.models.half_weights import attend_by_products, cache_frozen_bias, exact_head, use_half_weights
from pipeline.models.lora import (
    PeftModel,
    attach,
    count_parameters,
    head_classes,
    load_adapter,
    merge,
    plain_state_dict,
    save_adapter,
)
from pipeline.models.roles import train_parts
from pipeline.recipe import Recipe
from pipeline.run import Run, backbone_dirs
from pipeline.run_names import ADAPTER_DIR, VAL_TABLE, VAL_VALUES
from pipeline.shapes import read_object
from pipeline.tables import guarded, write_table
from pipeline.targets.baseline import Baseline, constant_baseline
from pipeline.targets.measures import histograms
from pipeline.targets.metrics import all_metrics, find_metric, why_undefined
from pipeline.targets.target import Target
from pipeline.tasks.build import (
    Build,
    account_step,
    checkpoint_blocks,
    decodable,
    labelled_split,
    with_intensity,
    with_noise,
    write_probs,
)
from pipeline.tasks.parting import part_rows
from pipeline.tasks.suited import check_suits
from pipeline.training.checkpoint import seed_everything
from pipeline.training.compute import Batch, Compute
from pipeline.training.losses import training_loss, training_score
from pipeline.training.memory import Memory
from pipeline.training.resume import ResumedRun, SplitRow


@dataclass
class ImageClassifier:
    """The model with its rule: batches of uint8 pixels in, logits out. Used alike in training, validation and prediction."""

    model: nn.Module
    rule: Preprocessing
    extra: dict[str, Any]  # forward arguments beside pixel_values

    @classmethod
    def of(cls, model: nn.Module, backbone: Backbone) -> ImageClassifier:
        """`model`, the backbone's own or an adapter around it, with the rule of `backbone`; at another image size positions are interpolated.

        The model's head is from then on computed in float32, see `exact_head`.
        """
        exact_head(model, head_name(backbone.model))
        other_size = native_image_size(backbone.model) != backbone.preprocessing.height
        extra = {"interpolate_pos_encoding": True} if other_size and takes_interpolation(backbone.model) else {}
        return cls(model, backbone.preprocessing, extra)

    def logits(self, batch: Batch) -> torch.Tensor:
        """(B, C) for `batch["pixels"]` (B, 3, H, W) uint8."""
        return self.forward(self.model, self.rule.normalize(batch["pixels"]))

    def forward(self, model: Callable[..., Any], pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, C) of `model` for normalised `pixel_values`."""
        return model(pixel_values=pixel_values, **self.extra).logits

    def describe(self) -> str:
        """The input in words."""
        return f"{self.rule.width} x {self.rule.height} px"

    def batches(self, rows: Sequence[Row], batch_size: int, share: tuple[int, int] = ALL) -> Iterable[Batch]:
        """Batches of the images of `rows`, in order, prepared as validation is; of several processes this one's `share`."""
        paths = [row.path for row in rows]
        return _in_order(ImageDataset(paths, None, self.rule), batch_size, resolve_workers("auto", paths), share)


class ClassificationTask:
    """What the engine trains: see `pipeline.training.predict.Task`. What labels mean is the target's, how they are scored the metric's."""

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
        cache: PictureCache | None = None,
        corrections: Corrections = Corrections(),  # noqa: B008 - frozen
    ) -> None:
        """`train`: as labels were given; the `corrections` are made here. Validation rows keep their labels."""
        self.classifier, self.recipe, self.target, self.metric = classifier, recipe, target, metric
        self.corrections, self.corrected = corrections, corrections.record(train, val) if corrections else None
        train = corrections.applied(train)
        self.class_names = target.names
        self.model, self.rule = classifier.model, classifier.rule
        self.train_rows, self.val_rows = train, val
        self.val_truth = target.encode([row.label for row in val])
        paths = [row.path for row in train]
        labels = [row.label for row in train]
        self.encoded_labels = target.encode(labels)
        mixing = mixing_of(recipe, self.rule, target.num_outputs, self.encoded_labels)
        self.train_labels = _for_training(target, self.encoded_labels)
        self.train_set = ImageDataset(paths, self.train_labels, self.rule, recipe.augmentation, recipe.seed, cache, mixing)
        val_paths, self.val_labels = [row.path for row in val], _for_training(target, self.val_truth)
        self.val_set = ImageDataset(val_paths, self.val_labels, self.rule)
        self.num_train, self.num_val, self.num_outputs = len(train), len(val), target.num_outputs
        self.loss_of = training_loss(target, recipe.optimizer, np.array(list(target.counts(labels).values())))
        self.train_score, self.score_of = training_score(target)
        self.undefined = why_undefined(metric, target, self.val_truth) if val else None
        self.best_metric = "val_loss" if self.undefined else f"val_{metric}"
        self.higher_is_better = not self.undefined and find_metric(metric).higher_is_better
        self.workers, self.val_workers = (resolve_workers(recipe.data.workers, files) for files in (paths, val_paths))
        self.compiled: tuple[int, Callable[..., Any]] | None = None  # (rows, the model): what micro-batches of so many rows run through
        self.originals: dict[str, torch.Tensor] = {}  # what is held in half precision as it was loaded, as long as it may be saved

    def to_device(self, compute: Compute, fresh: bool) -> None:
        """Move the model to its device; frozen weights become half precision where that is allowed. A `fresh` run has yet to save its frozen weights.

        Raises:
            UserError: activation checkpointing is asked for and the architecture has no blocks for it.
        """
        checkpoint_blocks(self.model, self.recipe)
        if compute.half is not None:
            loaded = plain_state_dict(self.model)
            use_half_weights(self.model, compute.half)
            if fresh or not isinstance(self.model, PeftModel):
                self.originals = {
                    name: loaded[name] for name, weight in plain_state_dict(self.model).items() if weight.dtype != loaded[name].dtype
                }
        self.model.to(compute.device)

    def attend_by_products(self, on: bool) -> int:
        """Compute attention in training by batched products, or no longer; 0 where nothing in the model can."""
        return attend_by_products(self.model, on)

    @property
    def head(self) -> nn.Module:
        """The last linear layer; of a model with an adapter the copy of it that is trained."""
        base = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        head = base.get_submodule(head_name(base))
        return head.modules_to_save["default"] if hasattr(head, "modules_to_save") else head

    def compile(self, rows: int | None) -> None:
        """Run training on micro-batches of `rows` through torch.compile, with the same draws of dropout; None: no longer."""
        if rows is None:
            self.compiled = None
        else:
            self.compiled = rows, torch.compile(self.model, fullgraph=True, dynamic=False, options={"fallback_random": True})

    def train_batches(
        self, epoch: int, start: int, micro_batch_size: int, group_size: int, share: tuple[int, int] = ALL
    ) -> Iterable[Batch]:
        """The batches of `epoch` from row `start` of its order on; of several processes this one's `share`."""
        loader = make_loader(self.train_set, cut(self.train_order(epoch), micro_batch_size, group_size, start, share), epoch, self.workers)
        return readable(loader, self.train_set.paths)

    def train_order(self, epoch: int) -> np.ndarray:
        """(num_train,) int64: the training rows in the order of `epoch`."""
        if self.recipe.data.sampling == "classes":
            return balanced_order(self.encoded_labels, self.recipe.seed, epoch)
        return epoch_order(self.num_train, self.recipe.seed, epoch)

    def plain_batches(self, batch_size: int, share: tuple[int, int] = ALL) -> Iterable[Batch]:
        """The training rows in order, prepared as validation is; of several processes this one's `share`."""
        plain = ImageDataset(self.train_set.paths, self.train_labels, self.rule)
        return readable(_in_order(plain, batch_size, self.workers, share), plain.paths)

    def val_batches(self, batch_size: int, share: tuple[int, int] = ALL) -> Iterable[Batch]:
        """The validation rows in order; of several processes this one's `share`."""
        return readable(_in_order(self.val_set, batch_size, self.val_workers, share), self.val_set.paths)

    def loss(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The target's loss, a mean over the batch (scalar), and the logits (B, O)."""
        pixel_values = with_noise(self.rule.normalize(batch["pixels"]), self.recipe.augmentation.noise)
        if self.recipe.augmentation.erasing:
            pixel_values = erase(pixel_values, batch["erased"])
        whole = self.compiled is not None and len(pixel_values) == self.compiled[0]
        logits = self.classifier.forward(self.compiled[1] if whole else self.model, pixel_values)
        return self.loss_of(logits, batch["label"]), logits

    def score(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The sum over the batch of what training counts, such as right answers (scalar)."""
        return self.score_of(logits, batch["label"])

    def logits(self, batch: Batch) -> torch.Tensor:
        """(B, O), as in prediction."""
        return self.classifier.logits(batch)

    def scores(self, logits: np.ndarray) -> dict[str, float]:
        """Every metric of the validation rows that is defined on them, the competition's among them."""
        values = self.target.activate(logits)
        scores = all_metrics(self.target, self.val_truth, values, None if self.undefined else self.metric)
        return scores | corrected_score(self.corrections, self.target, self.metric, self.val_rows, values)

    def account(self, compute: Compute, optimizer_name: str, checkpointed: bool | None = None) -> Memory:
        """The memory of a training step, counted on shapes alone; `checkpointed` instead of what the recipe says of it."""
        rule = self.rule

        def loss(forward: Callable[..., Any], pixel_values: torch.Tensor) -> torch.Tensor:
            with compute.autocast():
                logits = self.classifier.forward(forward, pixel_values)
                label = _for_training(self.target, self.target.encode([self.train_rows[0].label]))[0]
                return self.loss_of(logits, torch.as_tensor(label, device=logits.device).expand(len(pixel_values), *np.shape(label)))

        pixels = torch.zeros(1, 3, rule.height, rule.width, device=compute.device)
        return account_step(self.model, loss, pixels, optimizer_name, self.recipe, checkpointed)

    def save(self, output: Path, initial: bool = False) -> None:
        """Write the weights into run folder `output`: the adapter, or after full fine-tuning (and `initial`ly) the whole model."""
        base = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        if initial or base is self.model:
            weights = plain_state_dict(self.model) | self.originals
            save_backbone(base, weights, self.rule, output / f"model_{base.config.model_type}")
        if base is not self.model:
            self.originals = {}
        if not initial and base is not self.model:
            save_adapter(self.model, output / ADAPTER_DIR)

    def write_validation(self, output: Path, logits: np.ndarray) -> None:
        """Write val_predictions.csv (id, path, label, predicted, confidence) and val_probs.npy (num_val, O) float32, in the same order.

        Text that a spreadsheet would run as a formula gets an apostrophe before it (`tables.restored` takes it away).
        """
        values = self.target.activate(logits)
        cells = zip(self.val_rows, self.target.decode(values), self.target.confidence(values), strict=True)
        rows = [
            (*map(guarded, (row.id, str(row.path), row.label, predicted)), "" if sure is None else f"{sure:.6f}")
            for row, predicted, sure in cells
        ]
        write_table(output / VAL_TABLE, ("id", "path", "label", "predicted", "confidence"), rows)
        write_probs(output / VAL_VALUES, values)

    @property
    def names_are(self) -> str:
        """What `class_names` are, in messages."""
        return {"multilabel": "labels", "ordinal": "grades", "continuous": "numbers"}.get(self.target.kind, "classes")

    def facts(self) -> dict[str, Any]:
        """What run.json keeps of the target: with it inference, score and submit need no flags."""
        prior = trained_prior(self.target.prior([row.label for row in self.train_rows]), self.recipe)
        metric = {"name": self.metric, "higher_is_better": find_metric(self.metric).higher_is_better}
        facts = {"target": self.target.record(), "metric": metric, "prior": [float(value) for value in prior]}
        return facts | ({"corrections": self.corrected} if self.corrected else {})

    def counts(self) -> dict[str, Any]:
        """How many rows train and validate, and what their labels are: rows of each class, or histograms of numbers."""
        labels = [row.label for row in self.train_rows]
        counts: dict[str, Any] = {"train": self.num_train, "val": self.num_val, "train_per_class": self.target.counts(labels)}
        if self.target.kind == "continuous":
            counts["train_histograms"] = histograms(self.target.names, self.target.encode(labels))
        return counts

    def baseline(self) -> Baseline | None:
        """What a constant guess scores on the validation rows by `best_metric`."""
        name = self.best_metric.removeprefix("val_")
        return constant_baseline(name, self.target, [row.label for row in self.train_rows], self.val_truth)

    def floor(self) -> Baseline | None:
        """Nothing is known of a row but its image."""
        return None

    def analyze(self, output: Path, compute: Compute) -> list[str]:
        """Nothing to add to the metrics of the epochs."""
        return []

    def split_rows(self) -> list[SplitRow]:
        """Every row in its order: what a run is started with, and resumed with."""
        return labelled_split(self.train_rows, self.val_rows)


def build(recipe: Recipe, competition: Competition, resumed_run: ResumedRun | None = None) -> Build:
    """The recipe's model on the competition's rows, split and checked.

    A run being resumed, `resumed_run`, gives its own weights, and its rows stay in their order and split.

    Raises:
        UserError: undecodable images (unless skipped), a backbone that cannot be loaded or has no such LoRA targets.
    """
    seed_everything(recipe.seed)
    target, metric = competition.target, competition.metric
    check_suits(recipe, target)
    if resumed_run is not None:
        resumed_run.check_classes(target.names)
        target = Target.read(resumed_run.start["target"], str(resumed_run.output))
    own_weights = backbone_dirs(resumed_run.output)[0] if resumed_run is not None else []
    if own_weights:
        backbone = load_backbone(str(own_weights[0]), target.output_names, recipe.image_size, drop_path=recipe.drop_path)
    else:
        backbone = load_backbone(
            recipe.backbone, target.output_names, recipe.image_size, recipe.random_weights, recipe.architecture, recipe.drop_path
        )
    train, val, how = part_rows(recipe, competition, competition.train, resumed_run)
    rule, intensity_notes = with_intensity(backbone.preprocessing.resized(recipe.resize), train, resumed_run)
    backbone = replace(backbone, preprocessing=rule)
    cache = _cache(recipe, train, rule)
    rows, notes = decodable(competition.train, recipe.data.skip_bad_images, cache)
    left = target.counts([row.label for row in rows])
    if lost := [name for name, count in target.counts([row.label for row in competition.train]).items() if count and not left[name]]:
        raise UserError(f"without the images that cannot be decoded these classes have none: {', '.join(sorted(lost))}")
    if len(rows) < len(competition.train):
        train, val, how = part_rows(recipe, competition, rows, resumed_run)
        cache = _cache(recipe, train, rule)
    head = head_name(backbone.model)
    model: nn.Module = backbone.model
    if recipe.lora.rank:
        seed_everything(recipe.seed + 1)  # the adapter's draw does not depend on whether a head was drawn
        lora = recipe.lora
        options = {"use_rslora": lora.use_rslora, "variant": lora.variant, "init": lora.init}
        model = attach(model, lora.rank, lora.alpha, lora.dropout, lora.targets, lora.also_train, **options)
        cache_frozen_bias(model)
    elif recipe.head_only:
        model.requires_grad_(False).get_submodule(head).requires_grad_(True)
        train_parts(model, recipe.lora.also_train)
        cache_frozen_bias(model)
    classifier = ImageClassifier.of(model, backbone)
    corrections = competition.corrections
    target = target if resumed_run else target.fitted([row.label for row in corrections.applied(train)])
    task = ClassificationTask(classifier, recipe, target, metric, train, val, cache, corrections)
    if not task.train_rows:
        raise UserError(f"data.exclude: all {len(train):,} training rows are excluded; nothing is left to train on")
    kept = [] if cache is None else [cache.describe()]
    kept += [describe_corrections(task.corrected)] if task.corrected else []
    if task.undefined:
        kept.append(f"{metric} is not defined on the validation rows ({task.undefined}): the best epoch goes by their loss")
    if task.train_set.mixing is not None:
        kept.append(f"train_{task.train_score} counts of each mixed image the share of its label that is predicted right")
    summary = f"input {classifier.describe()}; {'new head' if backbone.new_head else 'head of the checkpoint'}"
    return Build(task, count_parameters(model), head, summary, (*notes, *intensity_notes, how, *kept), backbone.new_head)


def rebuild(run: Run, num_outputs: int) -> ImageClassifier:
    """The classifier of a finished run or release: float32, adapter merged and checked, eval mode.

    Raises:
        UserError: weights that are missing, damaged, unsafe, or do not belong together.
    """
    backbone = rebuild_backbone(run.backbone_dir, num_outputs)
    cache_frozen_bias(backbone.model.requires_grad_(False))
    if run.adapter_dir is None:
        if backbone.new_head:
            raise UserError(f"{run.backbone_dir} has no trained head for {num_outputs} outputs, and {run.path} holds no adapter with one")
        return ImageClassifier.of(backbone.model, backbone)
    adapted = load_adapter(backbone.model, run.adapter_dir)
    classifier = ImageClassifier.of(adapted, backbone)
    probe = torch.randn(1, 3, backbone.preprocessing.height, backbone.preprocessing.width, generator=torch.Generator().manual_seed(0))
    classifier.model = merge(adapted, lambda model: classifier.forward(model, probe)).eval()
    return classifier


def num_outputs_of(run: Run) -> int:
    """How many outputs the weights of a run or release have, read from the weights' own files.

    Raises:
        UserError: the files are damaged, or the adapter holds no head.
    """
    if run.adapter_dir is not None:
        return head_classes(run.adapter_dir)
    if run.target is not None:
        return run.target.num_outputs
    if run.class_names is not None:
        return len(run.class_names)
    names = read_object(run.backbone_dir / "config.json").get("id2label")
    return len(names) if isinstance(names, dict) else 0


def _for_training(target: Target, encoded: np.ndarray) -> Sequence[Any]:
    """Encoded labels as the loss takes them, one a row: an int for one class, else a float32 tensor (O,)."""
    if target.is_choice:
        return encoded.tolist()
    return list(torch.from_numpy(target.scaled(encoded) if target.kind == "continuous" else encoded))


def _cache(recipe: Recipe, train: Sequence[Row], rule: Preprocessing) -> PictureCache | None:
    return open_cache(recipe.data.cache_gb, [row.path for row in train], recipe.augmentation, rule)


def _in_order(dataset: ImageDataset, batch_size: int, workers: int, share: tuple[int, int]) -> Iterable[Batch]:
    return make_loader(dataset, cut(range(len(dataset)), batch_size, len(dataset), share=share), 0, workers)
