"""The recipe: all settings that decide what a run computes, in one frozen and validated object.

Its sections stand in pipeline/recipe_sections.py; pipeline/config.py reads recipes from files and flags.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline.recipe_sections import (
    LARGEST_SEED,
    Augmentation,
    Checkpoint,
    Data,
    Head,
    Lora,
    Optimizer,
    Schedule,
    Section,
    Tower,
)


class Recipe(Section):
    """All settings that decide what a run computes.

    Recipes are written and shown in the order of these fields.
    """

    name: str = Field("", description="name of the run on pages and in tables")
    task: Literal["classification", "vqa"] = Field(
        "classification", description="vqa: questions about images"
    )
    backbone: str = Field(min_length=1, description="hub id or folder")
    text_backbone: str | None = Field(
        None, min_length=1, description="vqa: hub id or folder of the text model"
    )
    random_weights: bool = Field(
        False, description="start from random weights; use only the architecture of the backbone"
    )
    architecture: dict[str, Any] | None = Field(
        None, description="transformers config of an image model; needs random_weights: true"
    )
    text_architecture: dict[str, Any] | None = Field(
        None,
        description="vqa: transformers config of a text model with random weights and its own vocabulary",
    )
    image_size: int | None = Field(
        None, ge=8, le=10_000, description="height and width in pixels; null = the backbone's own"
    )
    resize: Literal["square", "crop"] | None = Field(
        None,
        description="preprocessing in prediction: square: stretch the whole image; crop: resize the shorter "
        "side, then crop the centre; null = the backbone's own",
    )
    drop_path: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="probability of stochastic depth in training, if the backbone supports it; null = from "
        "the backbone's config",
    )
    epochs: int = Field(25, ge=1, le=1_000_000, description="passes over the training rows")
    batch_size: int = Field(
        8, ge=1, le=1_000_000, description="rows in memory at once (--batch-size also takes auto)"
    )
    accumulation_steps: int = Field(
        8,
        ge=1,
        le=1_000_000,
        description="batches per optimizer step; a step has batch_size x accumulation_steps rows",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 if the hardware supports it, else fp16 on CUDA, else fp32"
    )
    activation_checkpointing: bool = Field(
        False, description="compute the blocks again in the backward pass: less memory, slower, same results"
    )
    gradient_sum: Literal["auto", "exact", "reduced"] = Field(
        "auto",
        description="sum of gradients over several processes; exact: bit-identical to one process; "
        "reduced: equal up to rounding, faster for many trained parameters",
    )
    shard: bool = Field(
        False,
        description="full fine-tuning with torchrun: each process holds only a part of weights, gradients "
        "and optimizer state (FSDP2); equal up to rounding",
    )
    attention: Literal["auto", "fused", "products"] = Field(
        "auto",
        description="how training computes attention; auto: on a CPU in bf16 the faster one, else fused",
    )
    compile: bool | Literal["auto"] = Field(
        "auto",
        description="use torch.compile for training steps; auto: if a trial is faster, in long runs on a GPU "
        "or on a CPU in fp32",
    )
    seed: int = Field(
        42,
        ge=0,
        le=LARGEST_SEED,
        description="seed of new weights, order, crops and dropout; also of the split unless "
        "data.split_seed is set",
    )
    head_only: bool = Field(
        False, description="train only the head; the backbone does not change; needs lora.rank 0"
    )
    freeze: Tower | None = Field(None, description="vqa: do not train this backbone; train the other one")
    lora: Lora = Lora()
    head: Head = Head()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    augmentation: Augmentation = Augmentation()
    data: Data = Data()
    checkpoint: Checkpoint = Checkpoint()

    @property
    def backbones(self) -> str:
        """The backbones as text, for messages."""
        text = self.text_backbone or (
            self.text_architecture and f"a new {self.text_architecture.get('model_type')}"
        )
        return f"{self.backbone} + {text}" if text else self.backbone

    @property
    def effective_batch_size(self) -> int:
        """Images per optimizer step."""
        return self.batch_size * self.accumulation_steps

    @property
    def frozen_towers(self) -> tuple[Tower, ...]:
        """The backbones of vqa of which no weight is trained."""
        if self.head_only:
            return () if self.lora.also_train else ("text", "image")
        return (self.freeze,) if self.freeze else ()

    @model_validator(mode="before")
    @classmethod
    def _unchanged_images(cls, values: Any) -> Any:
        """Turn crop and flip off for vqa unless the recipe asks for them.

        A mirrored or cropped image can have another answer (left or right? how many?).
        """
        if (
            isinstance(values, dict)
            and values.get("task") == "vqa"
            and isinstance(values.get("augmentation", {}), dict)
        ):
            off = {"random_resized_crop": False, "horizontal_flip": False}
            values = values | {"augmentation": off | values.get("augmentation", {})}
        return values

    @model_validator(mode="before")
    @classmethod
    def _last_size_is_the_models(cls, values: Any) -> Any:
        """Where only `schedule.image_sizes` is given, its last size is `image_size`."""
        schedule = values.get("schedule") if isinstance(values, dict) else None
        sizes = (
            schedule.get("image_sizes")
            if isinstance(schedule, dict)
            else getattr(schedule, "image_sizes", None)
        )
        if isinstance(sizes, (list, tuple)) and sizes and values.get("image_size") is None:
            values = values | {"image_size": sizes[-1]}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.architecture is not None and not self.random_weights:
            raise ValueError(
                "architecture: needs random_weights: true, since it describes a model without weights"
            )
        if self.lora.also_train and not self.lora.rank and not self.head_only:
            raise ValueError(
                "lora.also_train: expected none with lora.rank 0 (full fine-tuning), which trains these "
                "parts already; or set head_only: true"
            )
        if self.head_only and self.lora.rank:
            raise ValueError(f"head_only: needs lora.rank 0, found {self.lora.rank}")
        if self.lora.init != "default" and (not self.lora.rank or self.lora.variant != "lora"):
            raise ValueError(
                f"lora.init: {self.lora.init} needs lora.rank above 0 and lora.variant lora, found "
                f"{self.lora.rank} and {self.lora.variant}"
            )
        if self.freeze and self.task != "vqa":
            raise ValueError(
                f"freeze: only vqa has two backbones, this recipe's task is {self.task}; head_only trains "
                "the head alone"
            )
        if self.freeze and self.head_only:
            raise ValueError("freeze: expected none with head_only, which trains neither backbone")
        if self.schedule.end_lr > self.optimizer.lr:
            raise ValueError(
                f"schedule.end_lr: {self.schedule.end_lr} is above optimizer.lr {self.optimizer.lr}"
            )
        if self.task == "vqa" and self.drop_path is not None:
            raise ValueError(f"drop_path: not supported for vqa; expected null, found {self.drop_path}")
        if self.task == "vqa" and self.compile is True:
            raise ValueError(
                "compile: expected auto or false for vqa: each length of question would be compiled again"
            )
        self._check_image_sizes()
        self._check_losses()
        self._check_text()
        if found := _unused(self):
            raise ValueError(f"{', '.join(found)}: not supported for {self.task}; remove these keys")
        if self.shard and (found := _beside_shard(self)):
            keys = ", ".join(key for key, _, _ in found)
            fix = " ".join(f"--set {key}={wanted}" for key, _, wanted in found)
            values = "; ".join(f"{key}: expected {wanted}, found {value}" for key, value, wanted in found)
            raise ValueError(
                f"shard: not supported with these values of {keys} ({values}): {fix}, or --set shard=false"
            )
        return self

    def _check_image_sizes(self) -> None:
        sizes = self.schedule.image_sizes
        if sizes and self.task == "vqa":
            raise ValueError(f"schedule.image_sizes: not supported for vqa; expected [], found {list(sizes)}")
        if sizes and sizes[-1] != self.image_size:
            raise ValueError(
                f"schedule.image_sizes: the last must be image_size {self.image_size}, found {list(sizes)}"
            )
        if sizes and self.compile is True:
            raise ValueError(
                "compile: expected auto or false with schedule.image_sizes: each image size would be "
                "compiled again"
            )

    def _check_losses(self) -> None:
        own, default = self.optimizer, Optimizer()
        for name in (
            "focal_gamma",
            "asymmetric_gamma_negative",
            "asymmetric_gamma_positive",
            "asymmetric_margin",
        ):
            loss = name.split("_")[0]
            if own.loss != loss and getattr(own, name) != getattr(default, name):
                raise ValueError(f"optimizer.{name}: needs optimizer.loss {loss}, found {own.loss}")
        if self.data.sampling == "classes" and own.logit_adjustment:
            raise ValueError(
                "optimizer.logit_adjustment: expected 0, or data.sampling rows: data.sampling classes "
                "already draws each class equally often, and both together would favour rare classes twice"
            )

    def _check_text(self) -> None:
        num_texts = sum(text is not None for text in (self.text_backbone, self.text_architecture))
        if self.task == "vqa" and self.head.init != "random":
            raise ValueError(
                f"head.init: expected random for vqa, found {self.head.init}: the head of vqa is not a "
                "linear layer on image features"
            )
        if self.task != "vqa" and num_texts:
            raise ValueError(f"text_backbone: only for task vqa, and this recipe's task is {self.task}")
        if self.task == "vqa" and num_texts != 1:
            raise ValueError(
                "text_backbone: vqa needs either this or text_architecture (a text model trained from "
                "random weights)"
            )
        if self.task == "vqa" and not {"norms", "biases"}.issuperset(self.lora.also_train):
            raise ValueError("lora.also_train: expected norms, biases or none for vqa")
        if self.text_architecture is not None and (self.lora.rank or self.head_only or self.freeze == "text"):
            raise ValueError(
                "lora.rank, head_only, freeze: expected 0, false and none or image with text_architecture: "
                "its random word vectors must be trained"
            )


def _beside_shard(recipe: Recipe) -> list[tuple[str, Any, str]]:
    """(key, its value, the value that is needed) for each key that stands in the way of shard."""
    keep, sizes = recipe.checkpoint.keep, list(recipe.schedule.image_sizes)
    rows = (
        ("task", recipe.task, "classification", recipe.task == "classification"),
        ("lora.rank", recipe.lora.rank, "0", not recipe.lora.rank),
        ("head_only", "true", "false", not recipe.head_only),
        ("precision", recipe.precision, "fp32", recipe.precision != "fp16"),
        ("gradient_sum", recipe.gradient_sum, "auto", recipe.gradient_sum != "exact"),
        ("attention", recipe.attention, "auto", recipe.attention != "products"),
        ("compile", "true", "false", recipe.compile is not True),
        ("head.init", recipe.head.init, "random", recipe.head.init == "random"),
        ("optimizer.ema", recipe.optimizer.ema, "0", not recipe.optimizer.ema),
        ("checkpoint.keep", keep, "auto", keep not in ("average", "soup")),
        ("schedule.image_sizes", sizes, "[]", not sizes),
    )
    return [(key, value, wanted) for key, value, wanted, fits in rows if not fits]


# By task, the keys of each section that it does not use
UNUSED = {
    "vqa": {
        "augmentation": ("erasing", "mixup", "cutmix"),
        "data": (
            *("metric", "target", "positive_class", "views", "group_column", "groups"),
            *("pseudo_labels", "sampling", "partial_labels", "cache_gb"),
        ),
        "optimizer": ("loss", "logit_adjustment"),
    },
    "classification": {
        "head": ("fusion", "text_pooling", "hidden_size", "activation", "dropout"),
        "data": (
            *("image_fraction", "top_answers", "other_answers", "split_by"),
            *("group_by_image", "max_question_tokens"),
        ),
    },
}


def _unused(recipe: Recipe) -> list[str]:
    """`key value` for each key that was set, and that the recipe's task does not use."""
    found = []
    for name, keys in UNUSED[recipe.task].items():
        section = getattr(recipe, name)
        default = type(section)()
        found += [
            f"{name}.{key} {getattr(section, key)}"
            for key in keys
            if getattr(section, key) != getattr(default, key)
        ]
    if recipe.task == "vqa" and recipe.attention == "products":
        found.append("attention products")
    return found
