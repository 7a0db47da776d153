"""The sections of a recipe (`lora.rank`, `optimizer.lr`, ...): each key with its default, range and meaning.

pipeline/recipe.py joins them to a whole recipe and holds the rules between their keys.
"""

from __future__ import annotations

import itertools
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

Part = Literal["patch_projection", "class_token", "norms", "biases"]
Role = Literal["query", "key", "value", "qkv", "output", "gate", "fc1", "fc2"]
Tower = Literal["text", "image"]

LARGEST_SEED = 2**63 - 1  # of torch's generators
ATTENTION_HEADS = 8  # of head.fusion cross_attention


class Section(BaseModel):
    """A group of recipe keys: unknown keys are refused, values never change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_flag_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false for a number: pydantic would read them as 1 and 0."""
        kinds = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and {int, float} & {kinds, *get_args(kinds)}:
            raise ValueError(f"expected a number, found {value}")
        return value


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
        "head_only; norms: LayerNorm and RMSNorm; biases: with an adapter not timm's q_bias and v_bias",
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
    label_smoothing: float = Field(0, ge=0, lt=1, description="in the training loss only; not for numbers")
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
    end_lr: float = Field(
        0,
        ge=0,
        description="learning rate that the curve reaches after the last step (stepped_cosine: in the last "
        "epoch); constant does not use it",
    )
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
            if name not in ("crop_scale", "crop_ratio") and value not in (0, "none")
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
        0.05,
        ge=0,
        le=0.9,
        description="share of the labelled rows used for validation, stratified by class; if the data name "
        "validation rows (a split column, class folders in valid/), these are used instead; 0 = all rows "
        "train",
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
    partial_labels: bool = Field(
        False,
        description="with several columns of numbers: use rows in which some are empty; an empty cell counts "
        "neither in the loss nor in the score",
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

    @field_validator("workers")
    @classmethod
    def _not_negative(cls, workers: int | str) -> int | str:
        if workers != "auto" and int(workers) < 0:
            raise ValueError(f"expected auto or a number from 0, found {workers}")
        return workers

    @model_validator(mode="after")
    def _one_kind_of_groups(self) -> Data:
        if self.group_column is not None and self.groups is not None:
            raise ValueError("groups: expected none when group_column is set: use one of the two")
        return self

    @field_validator("positive_class", mode="before")
    @classmethod
    def _as_texts(cls, value: Any) -> Any:
        """The labels as a tuple of texts, from `JMiPOD,UERD`, `1` or `[1, 2]`."""
        if isinstance(value, str):
            parts = value.split(",")
        elif isinstance(value, (list, tuple)):
            parts = value
        else:
            parts = [value]
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
