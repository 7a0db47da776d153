"""Image classification: `build` for training.

`rebuild` for prediction comes from `image_classifier.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import nn

from pipeline.competition.corrections import describe_corrections
from pipeline.competition.pseudo_labels import PseudoLabels, read_pseudo_labels
from pipeline.competition.rows import Competition, Row
from pipeline.data.cache import ImageCache, open_cache
from pipeline.data.transforms import Preprocessing
from pipeline.errors import UserError
from pipeline.models.backbones import Backbone, head_name, load_backbone
from pipeline.models.half_weights import cache_frozen_bias
from pipeline.models.lora import attach, count_parameters
from pipeline.models.roles import train_parts
from pipeline.recipe import Recipe
from pipeline.run import backbone_dirs
from pipeline.targets.target import Target
from pipeline.tasks.build import Build, decodable, with_intensity
from pipeline.tasks.classification_task import ClassificationTask
from pipeline.tasks.image_classifier import ImageClassifier, num_outputs_of, rebuild
from pipeline.tasks.parting import has_stated_split, part_rows
from pipeline.tasks.suited import check_suits
from pipeline.training.checkpoint import seed_everything
from pipeline.training.image_sizes import describe_sizes
from pipeline.training.resume import ResumedRun

__all__ = ["build", "num_outputs_of", "rebuild"]


def build(recipe: Recipe, competition: Competition, resumed_run: ResumedRun | None = None) -> Build:
    """Build the recipe's model for the competition's rows, which are split and checked.

    `resumed_run`: its own weights are loaded, and its rows keep their order and split.

    Raises:
        UserError: undecodable images (unless skipped), a backbone that cannot be loaded, or LoRA targets that
            it does not have.
    """
    seed_everything(recipe.seed)
    target = competition.target
    check_suits(recipe, target)
    if resumed_run is not None:
        resumed_run.check_classes(target.names)
        target = Target.read(resumed_run.start["target"], str(resumed_run.output))
    backbone = _load(recipe, target, resumed_run)
    data = _read_data(recipe, competition, target, backbone.preprocessing, resumed_run)
    backbone = replace(backbone, preprocessing=data.preprocessing)
    head = head_name(backbone.model)
    model = _trained_parts(backbone.model, recipe, head)
    classifier = ImageClassifier.of(model, backbone)
    corrections = competition.corrections
    if resumed_run is None:
        target = target.fitted([row.label for row in corrections.applied(data.train)])
    rows = (data.train, data.val, data.cache, corrections, data.pseudo)
    task = ClassificationTask(classifier, recipe, target, competition.metric, *rows)
    if not task.labelled_rows:
        raise UserError(
            f"data.exclude: all {len(data.train):,} training rows are excluded; nothing is left to train on"
        )
    if recipe.schedule.image_sizes:
        classifier.check_sizes(recipe.schedule.image_sizes)
    kind_of_head = "new head" if backbone.new_head else "head of the checkpoint"
    summary = f"input {classifier.describe()}; {kind_of_head}"
    notes = (*data.notes, *_notes(task, data))
    return Build(
        task,
        count_parameters(model),
        head,
        summary,
        notes,
        backbone.new_head,
        stated_split=has_stated_split(recipe, competition),
        num_pseudo=len(data.pseudo.rows),
    )


def _load(recipe: Recipe, target: Target, resumed_run: ResumedRun | None) -> Backbone:
    """Return the recipe's backbone; its weights are those that the resumed run saved, if it did."""
    own_weights = backbone_dirs(resumed_run.output)[0] if resumed_run is not None else []
    options = {"drop_path": recipe.drop_path, "other_sizes": recipe.schedule.image_sizes[:-1]}
    if own_weights:
        return load_backbone(str(own_weights[0]), target.output_names, recipe.image_size, **options)
    options |= {"random_weights": recipe.random_weights, "architecture": recipe.architecture}
    return load_backbone(recipe.backbone, target.output_names, recipe.image_size, **options)


@dataclass(frozen=True)
class _Data:
    """The rows of both parts, all decodable, and how their images are read. `notes` are for the user."""

    train: list[Row]
    val: list[Row]
    pseudo: PseudoLabels
    preprocessing: Preprocessing
    cache: ImageCache | None
    notes: tuple[str, ...]


def _read_data(
    recipe: Recipe,
    competition: Competition,
    target: Target,
    preprocessing: Preprocessing,
    resumed_run: ResumedRun | None,
) -> _Data:
    """Split the rows and check that their images can be decoded, which fills the cache.

    `preprocessing`: the backbone's preprocessing.
    """
    settings = recipe.data
    train, val, how = part_rows(recipe, competition, competition.train, resumed_run)
    preprocessing, intensity_notes = with_intensity(preprocessing.resized(recipe.resize), train, resumed_run)
    pseudo_of = partial(read_pseudo_labels, settings.pseudo_labels, settings.pseudo_threshold, competition)
    # Of all models: most mistakes show before the images are read, and which rows validate is not known yet
    pseudo = pseudo_of(())
    trained = [*train, *pseudo.rows]
    cache = _cache(recipe, trained, preprocessing)
    rows, notes = decodable(competition.train, settings.skip_bad_images, cache)
    _refuse_lost_classes(target, competition.train, rows)
    if len(rows) < len(competition.train):
        train, val, how = part_rows(recipe, competition, rows, resumed_run)
        preprocessing, intensity_notes = with_intensity(preprocessing, train, resumed_run)
    pseudo = pseudo_of({row.id for row in val})
    if trained != [*train, *pseudo.rows]:  # then the range of grey levels may differ too
        cache = _cache(recipe, [*train, *pseudo.rows], preprocessing)
    if pseudo.rows:
        readable, more = decodable(pseudo.rows, settings.skip_bad_images, cache)
        notes = [*notes, *more]
        if more:
            pseudo = replace(pseudo, rows=tuple(readable), record=pseudo.record | {"rows": len(readable)})
    return _Data(train, val, pseudo, preprocessing, cache, (*notes, *intensity_notes, how))


def _refuse_lost_classes(target: Target, every: Sequence[Row], decoded: Sequence[Row]) -> None:
    had = target.counts([row.label for row in every])
    left = target.counts([row.label for row in decoded])
    if lost := [name for name, count in had.items() if count and not left[name]]:
        raise UserError(f"these classes have no image that can be decoded: {', '.join(sorted(lost))}")


def _trained_parts(model: nn.Module, recipe: Recipe, head: str) -> nn.Module:
    """Return the model with an adapter, or with a frozen backbone, as the recipe says."""
    lora = recipe.lora
    if lora.rank:
        # So the adapter's random weights are the same with and without a new head
        seed_everything(recipe.seed + 1)
        options = {"use_rslora": lora.use_rslora, "variant": lora.variant, "init": lora.init}
        model = attach(model, lora.rank, lora.alpha, lora.dropout, lora.targets, lora.also_train, **options)
        cache_frozen_bias(model)
    elif recipe.head_only:
        model.requires_grad_(False).get_submodule(head).requires_grad_(True)
        train_parts(model, lora.also_train)
        cache_frozen_bias(model)
    return model


def _notes(task: ClassificationTask, data: _Data) -> list[str]:
    """Return lines on what the run does beyond the plain training of its rows."""
    sizes = task.recipe.schedule.image_sizes
    notes = [describe_sizes(task.epochs, sizes)] if sizes else []
    notes += [] if data.cache is None else [data.cache.describe()]
    notes += [describe_corrections(task.corrected)] if task.corrected else []
    notes += [data.pseudo.describe()] if data.pseudo.rows else []
    if task.undefined:
        notes.append(
            f"{task.metric} is not defined on the validation rows ({task.undefined}): the best epoch is the "
            "one with the lowest loss"
        )
    if task.train_set.mixing is not None:
        notes.append(
            f"train_{task.train_score} of a mixed image is the share of the label that is predicted right"
        )
    return notes


def _cache(recipe: Recipe, train: Sequence[Row], preprocessing: Preprocessing) -> ImageCache | None:
    return open_cache(recipe.data.cache_gb, [row.path for row in train], recipe.augmentation, preprocessing)
