"""The recipe: all settings that decide what a run computes, in one frozen and validated object.

pipeline/config.py reads recipes from files and flags.
"""

from __future__ import annotations

import itertools
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Part = Literal["patch_projection", "class_token", "norms", "biases"]
Role = Literal["query", "key", "value", "qkv", "output", "gate", "fc1", "fc2"]

Tower = Literal["text", "image"]
ATTENTION_HEADS = 8  # of head.fusion cross_attention


class Section(BaseModel):
    """A group of recipe keys: unknown keys are refused, values never change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


LARGEST_SEED = 2**63 - 1  # of torch's generators


class Lora(Section):
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685). Rank 0 means full fine-tuning."""

    rank: int = Field(
        16,
        ge=0,
        le=10_000,
        description="0 = no adapter: full fine-tuning, or with head_only: true only the head",
    )
    alpha: float = Field(16, gt=0, description="scale of the adapter's update: alpha / rank")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout on the input of each adapter, in training")
    targets: tuple[Role, ...] = Field(
        ("query", "key"), min_length=1, description="linear layers that get an adapter, by role"
    )
    also_train: tuple[Part, ...] = Field(
        (),
        description="other parts of the backbone that are trained without low rank, with an adapter or with "
        "head_only; norms: LayerNorm and RMSNorm",
    )
    use_rslora: bool = Field(
        False, description="scale the update by alpha / sqrt(rank) (Kalajdzievski 2023); for ranks above 16"
    )
    variant: Literal["lora", "dora"] = Field(
        "lora", description="dora: also train the norm of each row (Liu et al. 2024); slower"
    )
    init: Literal["default", "pissa", "pissa_niter_4", "olora"] = Field(
        "default",
        description="start of the adapter: default: no change of the model; pissa (Meng et al. 2024) and "
        "olora: the largest part of the frozen weights, saved with twice the rank; "
        "pissa_niter_4: a faster approximation",
    )
    b_lr_scale: float = Field(
        1, gt=0, description="learning rate of B divided by that of A; LoRA+ (Hayou et al. 2024) uses 16"
    )


class Optimizer(Section):
    """Optimizer and training loss.

    Settings without a key are torch's defaults (Adam and AdamW: betas 0.9, 0.999); sgd has momentum 0.9.
    """

    name: Literal["adamw", "adam", "sgd"] = Field("adamw", description="sgd: with momentum 0.9")
    lr: float = Field(5e-5, gt=0, description="peak learning rate")
    head_lr: float | None = Field(None, gt=0, description="learning rate of the new head; null = lr")
    layer_decay: float = Field(
        1,
        gt=0,
        le=1,
        description="learning rate of a block divided by that of the next block; 0.65 to 0.9 for full "
        "fine-tuning; 1 = off",
    )
    weight_decay: float = Field(0.01, ge=0, description="not applied to biases, norms and other vectors")
    max_grad_norm: float = Field(0, ge=0, description="clip the gradient to this norm; 0 = no clipping")
    ema: float = Field(
        0,
        ge=0,
        lt=1,
        description="decay per step of a moving mean of the trained weights, such as 0.99 (lower in the "
        "first steps); the mean is validated and saved; 0 = off",
    )
    label_smoothing: float = Field(0, ge=0, lt=1, description="in the training loss only")
    loss: Literal["auto", "focal", "asymmetric"] = Field(
        "auto",
        description="auto: cross-entropy, or squared error for numbers; focal: for classes and labels (Lin "
        "et al. 2017); asymmetric: for several labels per image (Ridnik et al. 2021)",
    )
    focal_gamma: float = Field(
        2, ge=0, description="focal: a larger value gives well-predicted rows less weight; 0 = same as auto"
    )
    asymmetric_gamma_negative: float = Field(
        4, ge=0, description="asymmetric: focal_gamma for labels that an image does not have"
    )
    asymmetric_gamma_positive: float = Field(
        0, ge=0, description="asymmetric: focal_gamma for labels that an image has"
    )
    asymmetric_margin: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="asymmetric: subtracted from the probability of labels that an image does not have; a "
        "lower probability gives no loss",
    )
    logit_adjustment: float = Field(
        0,
        ge=0,
        description="tau: the training loss uses logits + tau * log(share of the class), which helps rare "
        "classes; 1 = optimal for the mean over classes (Menon et al. 2021). Only for target "
        "multiclass",
    )


class Schedule(Section):
    """Learning rate over optimizer steps; `stepped_cosine` holds one value through each epoch."""

    name: Literal["linear", "cosine", "stepped_cosine", "constant"] = Field(
        "linear", description="curve from lr to end_lr after the warm-up"
    )
    warmup_ratio: float = Field(
        0.05, ge=0, lt=1, description="share of all steps in which the learning rate rises from 0 to lr"
    )
    end_lr: float = Field(0, ge=0, description="learning rate of the last step")
    min_steps: int = Field(
        0,
        ge=0,
        description="smallest number of optimizer steps; a small data set is trained for more epochs than "
        "`epochs`",
    )
    image_sizes: tuple[int, ...] = Field(
        (),
        description="sizes of training images in pixels, such as [112, 168, 224]: each for an equal share "
        "of whole epochs; the last is image_size, which validation and prediction use; [] = "
        "image_size in every epoch",
    )

    @field_validator("image_sizes")
    @classmethod
    def _rising(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if strange := [size for size in sizes if not 8 <= size <= 10_000]:
            raise ValueError(f"expected sizes from 8 to 10000, found {strange}")
        if len(sizes) == 1 or any(low >= high for low, high in itertools.pairwise(sizes)):
            raise ValueError(
                f"expected two or more sizes, each larger than the one before, found {list(sizes)}"
            )
        return sizes


class Augmentation(Section):
    """Random changes of training images, drawn again in each epoch.

    Scale and ratio of the crop have the meaning of torchvision's RandomResizedCrop.
    """

    random_resized_crop: bool = Field(
        True, description="train on a random crop; false: preprocess as in prediction"
    )
    crop_scale: tuple[float, float] = Field(
        (0.08, 1.0), description="area of the crop as a share of the image"
    )
    crop_ratio: tuple[float, float] = Field((3 / 4, 4 / 3), description="width / height of the crop")
    horizontal_flip: bool = Field(True, description="mirror half of the images, at random")
    rotation_degrees: float = Field(
        0, ge=0, le=180, description="largest angle of a random rotation, in both directions"
    )
    policy: Literal["none", "rand_augment", "trivial_augment"] = Field(
        "none",
        description="torchvision's RandAugment or TrivialAugmentWide, with its own settings, after crop and "
        "flip",
    )
    noise: float = Field(
        0, ge=0, description="standard deviation of Gaussian noise, in units of the normalised image"
    )
    erasing: float = Field(
        0,
        ge=0,
        le=1,
        description="probability of torchvision's RandomErasing: the last change sets a box of the "
        "normalised image to 0",
    )
    mixup: float = Field(
        0,
        ge=0,
        description="alpha of the Beta distribution for mixing an image and its label with another training "
        "image; 0 = off. train_accuracy then adds the share of the predicted class in each "
        "mixed image",
    )
    cutmix: float = Field(
        0,
        ge=0,
        description="as mixup, but a box of the image is replaced by the other image; with mixup too, each "
        "gets half of the images",
    )

    @property
    def in_use(self) -> list[str]:
        """Names of the changes that are on. Empty: an image is the same in every epoch.

        crop_scale and crop_ratio are left out, because they only say how to crop.
        """
        return [
            name
            for name, value in self
            if name not in ("crop_scale", "crop_ratio") and value not in (0, None, "none", "off")
        ]

    @model_validator(mode="after")
    def _ranges_in_order(self) -> Augmentation:
        for name in ("crop_scale", "crop_ratio"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name}: expected 0 < low <= high, found {low}, {high}")
        if self.crop_scale[1] > 1:
            raise ValueError(
                f"crop_scale: a crop cannot be larger than the image, found {self.crop_scale[1]}"
            )
        return self


class Head(Section):
    """The head: its first weights and, for VQA, how it joins question and image.

    `concat` joins both vectors; without an activation this is one linear map. `product` multiplies their
    projections element by element: low-rank bilinear pooling (Kim et al. 2016, arXiv:1610.04325, with tanh).
    `cross_attention`: the question attends to the image's tokens, see
    `pipeline.models.fusion.CrossAttention`.
    """

    fusion: Literal["concat", "product", "cross_attention"] = Field(
        "concat",
        description="vqa: concat: join the vectors of question and image; product: multiply them; "
        "cross_attention: the question attends to the image's patches",
    )
    text_pooling: Literal["pooler", "class_token", "mean"] = Field(
        "pooler",
        description="vqa: vector of the question: the pooler's output (class token if there is no pooler), "
        "the class token, or the mean of the tokens",
    )
    hidden_size: int = Field(128, ge=1, description="vqa: width between the two layers of the head")
    activation: Literal["none", "tanh", "relu", "gelu"] = Field(
        "none", description="vqa: activation between the two layers of the head"
    )
    dropout: float = Field(0, ge=0, lt=1, description="vqa: dropout before the last layer")
    init: Literal["random", "probe"] = Field(
        "random",
        description="probe: start from the best linear head on frozen features (Kumar et al. 2022), even if "
        "the backbone already has a head",
    )

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Head:
        if self.fusion == "cross_attention" and self.hidden_size % ATTENTION_HEADS:
            raise ValueError(
                f"hidden_size: expected a multiple of {ATTENTION_HEADS} with cross_attention, found "
                f"{self.hidden_size}"
            )
        return self


class Data(Section):
    """Rows, split, and how images are loaded."""

    id_column: str | None = Field(
        None, description="id column of the table of labels; set it when several columns could be the id"
    )
    label_column: str | None = Field(
        None,
        description="label column of the table of labels; set it when several columns could be the label",
    )
    metric: str | None = Field(
        None, min_length=1, description="metric of the competition; null = from competition.yaml or the data"
    )
    target: Literal["multiclass", "binary", "multilabel", "ordinal", "continuous"] | None = Field(
        None, description="kind of label; null = from competition.yaml or the data"
    )
    positive_class: tuple[str, ...] = Field(
        (), description="binary: labels whose probability is predicted and scored"
    )
    views: Literal["mean", "max"] = Field(
        "mean", description="how the predictions for several images of one id are combined"
    )
    val_fraction: float = Field(
        0.05, ge=0, le=0.9, description="share of the labelled rows used for validation, stratified by class"
    )
    split_seed: int | None = Field(
        None, ge=0, le=LARGEST_SEED, description="seed of the validation split and the folds; null = seed"
    )
    group_column: str | None = Field(
        None,
        min_length=1,
        description="column of a table; rows with the same value stay in the same part of the split",
    )
    groups: str | None = Field(
        None, min_length=1, description="as group_column, from a CSV file with the columns id and group"
    )
    exclude: str | None = Field(
        None,
        min_length=1,
        description="CSV file with the column id: rows not used for training (still used for validation)",
    )
    relabel: str | None = Field(
        None,
        min_length=1,
        description="CSV file with the columns id and label: new labels for training (validation keeps the "
        "old ones)",
    )
    pseudo_labels: str | None = Field(
        None,
        min_length=1,
        description="a finished run, or folds, whose predictions of test images (by inference.py) give more "
        "training rows; it must have the same split or folds, so that no validation row is "
        "known; or a CSV file with the columns id and label",
    )
    pseudo_threshold: float = Field(
        0.9,
        gt=0,
        le=1,
        description="smallest probability of a test image's class for pseudo_labels (not for a CSV file)",
    )
    sampling: Literal["rows", "classes"] = Field(
        "rows",
        description="rows: each training row once an epoch; classes: the same number of rows, drawn equally "
        "often from each class",
    )
    skip_bad_images: bool = Field(
        False,
        description="skip rows without image or label and images that cannot be decoded, instead of stopping",
    )
    workers: int | Literal["auto"] = Field(
        "auto",
        description="number of loader processes; auto: one per core, at most 8, and 0 for small or few files",
    )
    cache_gb: float = Field(
        0,
        ge=0,
        description="largest size in GB of the cache of decoded training images (in the user's cache "
        "folder); 0 = off",
    )
    image_fraction: float = Field(
        1, gt=0, le=1, description="vqa: share of the images that is used, drawn with seed"
    )
    top_answers: int = Field(
        1000, ge=2, description="vqa: number of classes: the most frequent answers of the training rows"
    )
    other_answers: Literal["wrong", "drop"] = Field(
        "wrong",
        description="vqa: validation rows whose answer is no class: wrong: count as wrong; drop: leave out",
    )
    split_by: Literal["image", "question"] = Field(
        "image", description="vqa: question: an image can be in both training and validation"
    )
    group_by_image: bool = Field(
        False, description="vqa: keep the questions of an image together in an epoch, which saves computation"
    )
    max_question_tokens: int = Field(64, ge=4, description="vqa: longer questions are cut to this length")

    @model_validator(mode="after")
    def _one_kind_of_groups(self) -> Data:
        if self.group_column is not None and self.groups is not None:
            raise ValueError("groups: expected none when group_column is set: use one of the two")
        return self

    @field_validator("positive_class", mode="before")
    @classmethod
    def _as_texts(cls, value: Any) -> Any:
        """The labels as a tuple of texts, from `JMiPOD,UERD`, `1` or `[1, 2]`."""
        parts = (
            value.split(",")
            if isinstance(value, str)
            else value
            if isinstance(value, (list, tuple))
            else [value]
        )
        return () if value is None else tuple(str(part).strip() for part in parts)


class Checkpoint(Section):
    """Which weights are kept, and how often the state for --resume is saved."""

    every_minutes: float = Field(
        10, gt=0, description="minutes between saves of the state for --resume (also saved after each epoch)"
    )
    keep: Literal["auto", "best", "last", "average", "soup"] = Field(
        "auto",
        description="weights of the finished run; auto: best epoch, or last epoch if there are too few "
        "validation rows to decide; average: mean of the last epochs; soup: mean of those among "
        "the best epochs that improve the score (Wortsman et al. 2022)",
    )
    average_last: int = Field(
        5, ge=2, description="average: number of epochs; each epoch validates the mean up to that epoch"
    )
    soup_of: int = Field(5, ge=2, description="soup: largest number of epochs that are tried")
    keep_every: int = Field(
        0, ge=0, description="also keep a copy of the model every N epochs; 0 = no copies"
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
        "auto", description="use torch.compile for training steps; auto: on a GPU, if a trial there is faster"
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
        if self.shard and (found := _beside_shard(self)):
            keys, fix = (
                ", ".join(key for key, _, _ in found),
                " ".join(f"--set {key}={wanted}" for key, _, wanted in found),
            )
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
        if self.task == "vqa" and (found := _for_classification(self)):
            raise ValueError(f"{', '.join(found)}: not supported for vqa; remove these keys")

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


def _for_classification(recipe: Recipe) -> list[str]:
    """`key value` for each key that is on and that only classification supports."""
    values = {
        "augmentation.erasing": recipe.augmentation.erasing,
        "augmentation.mixup": recipe.augmentation.mixup,
        "augmentation.cutmix": recipe.augmentation.cutmix,
        "data.sampling": recipe.data.sampling,
        "data.pseudo_labels": recipe.data.pseudo_labels,
        "optimizer.loss": recipe.optimizer.loss,
        "optimizer.logit_adjustment": recipe.optimizer.logit_adjustment,
    }
    return [f"{key} {value}" for key, value in values.items() if value not in (0, None, "rows", "auto")]
