"""Visual question answering as classification over the most frequent answers: `build` for training.

`rebuild` for prediction comes from `question_predictor.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pipeline.competition.questions import clean_answer, clean_question, prepare
from pipeline.competition.rows import Competition
from pipeline.data.tokenizer import QuestionTokenizer, build_tokenizer, load_tokenizer
from pipeline.errors import UserError
from pipeline.models.checkpoint_config import preprocessing_of
from pipeline.models.encoders import load_encoder, new_encoder
from pipeline.models.fusion import fuse
from pipeline.models.lora import count_parameters
from pipeline.models.roles import train_parts
from pipeline.recipe import Recipe
from pipeline.run import backbone_dirs
from pipeline.tasks.build import Build, decodable, with_intensity
from pipeline.tasks.frozen_features import computed_once
from pipeline.tasks.question_predictor import VqaPredictor, max_tokens_of, num_outputs_of, rebuild
from pipeline.tasks.question_task import VqaTask
from pipeline.training.checkpoint import seed_everything
from pipeline.training.resume import ResumedRun

__all__ = ["build", "num_outputs_of", "rebuild"]


def build(recipe: Recipe, competition: Competition, resumed_run: ResumedRun | None = None) -> Build:
    """Build the recipe's model for the competition's questions, which are prepared and split.

    `resumed_run`: its own weights are loaded, its rows keep their order and split, and its answers keep their
    numbers.

    Raises:
        UserError: undecodable images (unless skipped), an encoder that cannot be loaded, or LoRA targets that
            it does not have.
    """
    data = recipe.data
    prepared = prepare(
        competition.train,
        seed=recipe.seed,
        val_fraction=data.val_fraction,
        top_answers=data.top_answers,
        split_seed=data.split_seed,
        image_fraction=data.image_fraction,
        other_answers=data.other_answers,
        split_by=data.split_by,
        resumed_rows=resumed_run.rows if resumed_run else None,
        answers=resumed_run.start["class_names"] if resumed_run else (),
    )
    if resumed_run is not None:
        resumed_run.check_classes(prepared.class_names)
    rows, skipped = decodable([*prepared.train, *prepared.val], data.skip_bad_images)
    whole = {row.path for row in rows}
    train, val = (
        [(row, prepared.label_of(clean_answer(row.label or ""))) for row in part if row.path in whole]
        for part in (prepared.train, prepared.val)
    )
    if not train:
        raise UserError(
            f"no training question has an image that can be decoded: all {len(prepared.train):,} are left "
            "out (data.skip_bad_images)"
        )
    seed_everything(recipe.seed)
    text, tokenizer, image, preprocessing = _encoders(
        recipe, [clean_question(row.question or "") for row, _ in train], resumed_run
    )
    preprocessing, intensity_notes = with_intensity(preprocessing, [row for row, _ in train], resumed_run)
    seed_everything(recipe.seed + 1)  # so new weights are the same for random and loaded encoders
    lora = recipe.lora if recipe.lora.rank else None
    fused = fuse(
        text,
        image,
        tokenizer,
        preprocessing,
        len(prepared.class_names),
        recipe.head,
        lora,
        recipe.frozen_towers,
    )
    if recipe.head_only and recipe.lora.also_train:
        fused.model.requires_grad_(False).head.requires_grad_(True)
        for encoder in (fused.model.text, fused.model.image):
            train_parts(encoder, recipe.lora.also_train)
    predictor = VqaPredictor(fused, data.workers)
    task = VqaTask(predictor, recipe, prepared.class_names, train, val)
    once = computed_once(recipe)[1]
    notes = (*prepared.notes, *skipped, *intensity_notes, *tokenizer.notes(task.train_set.token_ids), *once)
    return Build(
        task,
        count_parameters(fused.model, head="head"),
        "head",
        f"input {predictor.describe()}; new {recipe.head.fusion} head",
        notes,
    )


def _encoders(
    recipe: Recipe, questions: Sequence[str], resumed_run: ResumedRun | None
) -> tuple[Any, QuestionTokenizer, Any, Any]:
    """Return text encoder, tokenizer, image encoder and preprocessing: of the resumed run, or as the
    recipe says.
    """
    images, texts = backbone_dirs(resumed_run.output) if resumed_run is not None else ([], [])
    text_source = str(texts[0]) if texts else recipe.text_backbone
    image_source = str(images[0]) if images else None if recipe.architecture else recipe.backbone
    wanted = recipe.data.max_question_tokens
    if text_source is None:
        tokenizer = build_tokenizer(questions, wanted)
        text = new_encoder(
            recipe.text_architecture or {}, vocab_size=len(tokenizer.tokenizer), pad_token_id=tokenizer.pad_id
        )
        tokenizer = replace(tokenizer, max_tokens=max_tokens_of(text, wanted))
    else:
        text = load_encoder(text_source, "text_backbone", recipe.random_weights and not texts)
        tokenizer = load_tokenizer(text_source, max_tokens_of(text, wanted))
    if len(tokenizer.tokenizer) > text.config.vocab_size:
        raise UserError(
            f"text_backbone {text_source}: its tokenizer has {len(tokenizer.tokenizer):,} tokens, "
            f"but the model has only {text.config.vocab_size:,}"
        )
    if image_source is None:
        image = new_encoder(recipe.architecture or {})
    else:
        image = load_encoder(image_source, "--backbone", recipe.random_weights and not images)
    return (
        text,
        tokenizer,
        image,
        preprocessing_of(image_source, image.config, recipe.image_size).resized(recipe.resize),
    )
