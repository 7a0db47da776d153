"""Image classification: `build` for training.

`rebuild` for prediction comes from `image_classifier.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from pipeline.competition.corrections import describe_corrections
from pipeline.competition.pseudo_labels import read_pseudo_labels
from pipeline.competition.rows import Competition, Row
from pipeline.data.cache import ImageCache, open_cache
from pipeline.data.transforms import Preprocessing
from pipeline.errors import UserError
from pipeline.models.backbones import head_name, load_backbone
from pipeline.models.half_weights import cache_frozen_bias
from pipeline.models.lora import attach, count_parameters
from pipeline.models.roles import train_parts
from pipeline.recipe import Recipe
from pipeline.run import backbone_dirs
from pipeline.targets.target import Target
from pipeline.tasks.build import Build, decodable, with_intensity
from pipeline.tasks.classification_task import ClassificationTask
from pipeline.tasks.image_classifier import ImageClassifier, num_outputs_of, rebuild
from pipeline.tasks.parting import part_rows
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
    target, metric = competition.target, competition.metric
    check_suits(recipe, target)
    if resumed_run is not None:
        resumed_run.check_classes(target.names)
        target = Target.read(resumed_run.start["target"], str(resumed_run.output))
    own_weights = backbone_dirs(resumed_run.output)[0] if resumed_run is not None else []
    sizes = recipe.schedule.image_sizes
    if own_weights:
        backbone = load_backbone(
            str(own_weights[0]),
            target.output_names,
            recipe.image_size,
            drop_path=recipe.drop_path,
            other_sizes=sizes[:-1],
        )
    else:
        source = (
            recipe.backbone,
            target.output_names,
            recipe.image_size,
            recipe.random_weights,
            recipe.architecture,
        )
        backbone = load_backbone(*source, recipe.drop_path, other_sizes=sizes[:-1])
    train, val, how = part_rows(recipe, competition, competition.train, resumed_run)
    pseudo = read_pseudo_labels(
        recipe.data.pseudo_labels, recipe.data.pseudo_threshold, competition, {row.id for row in val}
    )
    rule, intensity_notes = with_intensity(backbone.preprocessing.resized(recipe.resize), train, resumed_run)
    backbone = replace(backbone, preprocessing=rule)
    cache = _cache(recipe, [*train, *pseudo.rows], rule)
    rows, notes = decodable(competition.train, recipe.data.skip_bad_images, cache)
    readable_rows, more = (
        decodable(pseudo.rows, recipe.data.skip_bad_images, cache) if pseudo.rows else ([], [])
    )
    if more:
        pseudo = replace(
            pseudo, rows=tuple(readable_rows), record=pseudo.record | {"rows": len(readable_rows)}
        )
        notes = [*notes, *more]
    left = target.counts([row.label for row in rows])
    if lost := [
        name
        for name, count in target.counts([row.label for row in competition.train]).items()
        if count and not left[name]
    ]:
        raise UserError(f"these classes have no image that can be decoded: {', '.join(sorted(lost))}")
    if len(rows) < len(competition.train):
        train, val, how = part_rows(recipe, competition, rows, resumed_run)
        cache = _cache(recipe, [*train, *pseudo.rows], rule)
    head = head_name(backbone.model)
    model: nn.Module = backbone.model
    if recipe.lora.rank:
        # So the adapter's random weights are the same with and without a new head
        seed_everything(recipe.seed + 1)
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
    task = ClassificationTask(classifier, recipe, target, metric, train, val, cache, corrections, pseudo)
    if not task.labelled_rows:
        raise UserError(
            f"data.exclude: all {len(train):,} training rows are excluded; nothing is left to train on"
        )
    if sizes:
        classifier.check_sizes(sizes)
    kept = [describe_sizes(task.epochs, sizes)] if sizes else []
    kept += [] if cache is None else [cache.describe()]
    kept += [describe_corrections(task.corrected)] if task.corrected else []
    kept += [pseudo.describe()] if pseudo.rows else []
    if task.undefined:
        kept.append(
            f"{metric} is not defined on the validation rows ({task.undefined}): the best epoch is the one "
            "with the lowest loss"
        )
    if task.train_set.mixing is not None:
        kept.append(
            f"train_{task.train_score} of a mixed image is the share of the label that is predicted right"
        )
    summary = (
        f"input {classifier.describe()}; {'new head' if backbone.new_head else 'head of the checkpoint'}"
    )
    return Build(
        task,
        count_parameters(model),
        head,
        summary,
        (*notes, *intensity_notes, how, *kept),
        backbone.new_head,
    )


def _cache(recipe: Recipe, train: Sequence[Row], rule: Preprocessing) -> ImageCache | None:
    return open_cache(recipe.data.cache_gb, [row.path for row in train], recipe.augmentation, rule)
