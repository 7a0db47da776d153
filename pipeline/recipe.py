"""The recipe: everything that decides what a run computes, one frozen and validated object. Reading recipes is config.py."""

from __future__ import annotations

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

    rank: int = Field(16, ge=0, le=10_000, description="0 = no adapter: everything is trained, or with head_only the head")
    alpha: float = Field(16, gt=0, description="the update is scaled by alpha / rank")
    dropout: float = Field(0.1, ge=0, lt=1, description="of what an adapter reads, in training")
    targets: tuple[Role, ...] = Field(("query", "key"), min_length=1, description="which linear layers, by role")
    also_train: tuple[Part, ...] = Field(
        (), description="parts trained whole, beside the head, with or (head_only) without an adapter; norms: LayerNorm and RMSNorm"
    )
    use_rslora: bool = Field(False, description="scaled by alpha / sqrt(rank) instead (Kalajdzievski 2023), for ranks above 16")
    variant: Literal["lora", "dora"] = Field("lora", description="dora: also trains each row's length (Liu et al. 2024); slower")
    init: Literal["default", "pissa", "pissa_niter_4", "olora"] = Field(
        "default",
        description="how an adapter begins; pissa (Meng et al. 2024; niter_4: approximately, sooner), olora: with the largest part of the "
        "frozen weights; such an adapter is saved with twice the rank",
    )
    b_lr_scale: float = Field(1, gt=0, description="rate of the B matrices as a multiple of A's; LoRA+ (Hayou et al. 2024) takes 16")


class Optimizer(Section):
    """What turns gradients into steps; what has no key here is torch's default (Adam and AdamW: betas 0.9, 0.999), momentum 0.9 for sgd."""

    name: Literal["adamw", "adam", "sgd"] = Field("adamw", description="sgd: with momentum 0.9")
    lr: float = Field(5e-5, gt=0, description="peak learning rate")
    head_lr: float | None = Field(None, gt=0, description="learning rate of the new head; null = lr")
    layer_decay: float = Field(
        1, gt=0, le=1, description="each block's rate as a share of the next one's: for full fine-tuning, 0.65 to 0.9"
    )
    weight_decay: float = Field(0.01, ge=0, description="not applied to biases, norms and other vectors")
    max_grad_norm: float = Field(0, ge=0, description="0 = no clipping")
    ema: float = Field(
        0,
        ge=0,
        lt=1,
        description="a moving mean of the trained weights is validated and saved; its decay a step, such as 0.99 (less in the first steps); 0 = off",
    )
    label_smoothing: float = Field(0, ge=0, lt=1, description="of the training loss alone")
    loss: Literal["auto", "focal", "asymmetric"] = Field(
        "auto",
        description="auto: cross-entropy, or squared error of numbers; focal: for classes and labels (Lin et al. 2017); "
        "asymmetric: for several labels an image (Ridnik et al. 2021)",
    )
    focal_gamma: float = Field(2, ge=0, description="focal: how much less the rows count that are predicted well; 0 = as auto")
    asymmetric_gamma_negative: float = Field(4, ge=0, description="asymmetric: the same for labels that an image lacks")
    asymmetric_gamma_positive: float = Field(0, ge=0, description="asymmetric: the same for labels that an image has")
    asymmetric_margin: float = Field(
        0.05, ge=0, lt=1, description="asymmetric: taken off the probability of labels that an image lacks; below it they count nothing"
    )
    logit_adjustment: float = Field(
        0,
        ge=0,
        description="tau: the training loss sees logits + tau * log(share of the class), so that rare classes are not given up; "
        "1 = for the mean over classes (Menon et al. 2021). One of several classes only",
    )


class Schedule(Section):
    """Learning rate over optimizer steps; `stepped_cosine` holds one value through each epoch."""

    name: Literal["linear", "cosine", "stepped_cosine", "constant"] = Field("linear", description="from lr to end_lr after the warm-up")
    warmup_ratio: float = Field(0.05, ge=0, lt=1, description="the share of all steps in which the rate rises from 0")
    end_lr: float = Field(0, ge=0, description="the rate of the last step")
    min_steps: int = Field(0, ge=0, description="at least so many optimizer steps: where rows are few, more epochs than `epochs`")


class Augmentation(Section):
    """How training pictures are changed at random, anew in each epoch. Scale and ratio of the crop are those of torchvision's RandomResizedCrop."""

    random_resized_crop: bool = Field(True, description="false: the whole picture, resized as in prediction")
    crop_scale: tuple[float, float] = Field((0.08, 1.0), description="area of the crop as a share of the image")
    crop_ratio: tuple[float, float] = Field((3 / 4, 4 / 3), description="width / height of the crop")
    horizontal_flip: bool = Field(True, description="mirror half of the pictures, at random")
    rotation_degrees: float = Field(0, ge=0, le=180, description="turn by a random angle up to this, either way")
    policy: Literal["none", "rand_augment", "trivial_augment"] = Field(
        "none", description="torchvision's RandAugment or TrivialAugmentWide, with its own settings, after crop and flip"
    )
    noise: float = Field(0, ge=0, description="standard deviation of Gaussian noise, in units of the normalised image")
    erasing: float = Field(
        0, ge=0, le=1, description="probability of torchvision's RandomErasing: a box of the normalised image becomes 0, the last of all"
    )
    mixup: float = Field(
        0,
        ge=0,
        description="alpha of the Beta law by which an image and its label are mixed with another training image's; 0 = off. "
        "train_accuracy then counts of each mixed image the share that is the predicted class's",
    )
    cutmix: float = Field(
        0, ge=0, description="the same, with a box of the other image in this one; with mixup each for half of the images"
    )

    @property
    def in_use(self) -> list[str]:
        """The keys that are on; none: an image is the same in every epoch. What only says how (scale and ratio of a crop) does not count."""
        return [name for name, value in self if name not in ("crop_scale", "crop_ratio") and value not in (0, None, "none", "off")]

    @model_validator(mode="after")
    def _ranges_in_order(self) -> Augmentation:
        for name in ("crop_scale", "crop_ratio"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name}: expected 0 < low <= high, found {low}, {high}")
        if self.crop_scale[1] > 1:
            raise ValueError(f"crop_scale: a crop cannot be larger than the image, found {self.crop_scale[1]}")
        return self


class Head(Section):
    """Where the head starts; and what joins question and picture (VQA). Without an activation, `concat` is one linear map of both side by side.

    `product` multiplies their projections element by element: low-rank bilinear pooling (Kim et al. 2016, arXiv:1610.04325; there with tanh).
    `cross_attention`: the question attends to the picture's tokens, see `pipeline.models.fusion.CrossAttention`.
    """

    fusion: Literal["concat", "product", "cross_attention"] = Field(
        "concat", description="vqa: question and picture side by side, or multiplied, or the question attends to the picture's patches"
    )
    text_pooling: Literal["pooler", "class_token", "mean"] = Field(
        "pooler",
        description="vqa: which vector a question is: the pooler's (class token where there is none), the class token, the tokens' mean",
    )
    hidden_size: int = Field(128, ge=1, description="vqa: width between the two layers of the head")
    activation: Literal["none", "tanh", "relu", "gelu"] = Field("none", description="vqa: activation between the two layers of the head")
    dropout: float = Field(0, ge=0, lt=1, description="vqa: before the last layer")
    init: Literal["random", "probe"] = Field(
        "random",
        description="probe: the head starts as the best linear one on frozen features (Kumar et al. 2022), also where there was one",
    )

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Head:
        if self.fusion == "cross_attention" and self.hidden_size % ATTENTION_HEADS:
            raise ValueError(f"hidden_size: expected a multiple of {ATTENTION_HEADS} with cross_attention, found {self.hidden_size}")
        return self


class Data(Section):
    """Which rows there are, which of them validate, and how their pictures come to the model."""

    id_column: str | None = Field(None, description="of the table of labels, where several could be meant")
    label_column: str | None = Field(None, description="of the table of labels, where several could be the label")
    metric: str | None = Field(None, min_length=1, description="how the competition is scored; null = as competition.yaml or the data tell")
    target: Literal["multiclass", "binary", "multilabel", "ordinal", "continuous"] | None = Field(
        None, description="what a label means; null = as competition.yaml or the data tell"
    )
    positive_class: tuple[str, ...] = Field((), description="binary: the labels whose probability is graded")
    views: Literal["mean", "max"] = Field("mean", description="how predictions of several images of one id become one")
    val_fraction: float = Field(0.05, ge=0, le=0.9, description="the share of the labelled rows that validates, stratified by class")
    split_seed: int | None = Field(None, ge=0, le=LARGEST_SEED, description="of the split and of folds; null = seed")
    group_column: str | None = Field(None, min_length=1, description="rows with one value in this column of a table are never parted")
    groups: str | None = Field(None, min_length=1, description="the same from a file with the columns id and group")
    exclude: str | None = Field(None, min_length=1, description="a table with the column id: rows that do not train (they still validate)")
    relabel: str | None = Field(
        None, min_length=1, description="a table with the columns id and label: other labels to train on (validation keeps the given ones)"
    )
    sampling: Literal["rows", "classes"] = Field(
        "rows", description="what an epoch passes: every training row once; or as many rows, every class as often as the others"
    )
    skip_bad_images: bool = Field(
        False, description="train without rows that lack an image or a label, and images that cannot be decoded, instead of stopping"
    )
    workers: int | Literal["auto"] = Field(
        "auto", description="decoding processes; auto: one a core up to 8, none where files are small or few"
    )
    cache_gb: float = Field(0, ge=0, description="decoded training pictures kept in the user's cache folder, at most; 0 = none")
    image_fraction: float = Field(1, gt=0, le=1, description="vqa: the share of the images that is used, drawn by seed")
    top_answers: int = Field(1000, ge=2, description="vqa: how many answers, the most frequent of the training rows, are classes")
    other_answers: Literal["wrong", "drop"] = Field(
        "wrong", description="vqa: validation answers outside these count as wrong, or not at all"
    )
    split_by: Literal["image", "question"] = Field("image", description="vqa: by question lets a picture be in both parts")
    group_by_image: bool = Field(False, description="vqa: an epoch passes the questions of a picture together: less to compute")
    max_question_tokens: int = Field(64, ge=4, description="vqa: longer questions are cut")

    @model_validator(mode="after")
    def _one_kind_of_groups(self) -> Data:
        if self.group_column is not None and self.groups is not None:
            raise ValueError("groups: expected none beside group_column: one of the two says what belongs together")
        return self

    @field_validator("positive_class", mode="before")
    @classmethod
    def _as_texts(cls, value: Any) -> Any:
        """`JMiPOD,UERD`, `1` and `[1, 2]` are all lists of label texts."""
        parts = value.split(",") if isinstance(value, str) else value if isinstance(value, (list, tuple)) else [value]
        return () if value is None else tuple(str(part).strip() for part in parts)


class Checkpoint(Section):
    """What is saved during training beside the best model so far."""

    every_minutes: float = Field(10, gt=0, description="resume state at least this often, and after each epoch")
    keep: Literal["auto", "best", "last", "average", "soup"] = Field(
        "auto",
        description="the weights that stay; auto: the best epoch's, or the last one's where validation rows are too few to tell; "
        "average: the mean of the last epochs'; soup: the mean of those of the best epochs that raise the score (Wortsman et al. 2022)",
    )
    average_last: int = Field(5, ge=2, description="average: of how many epochs; each validation is of the mean up to its epoch")
    soup_of: int = Field(5, ge=2, description="soup: of how many best epochs at most")
    keep_every: int = Field(0, ge=0, description="keep a copy of the model every N epochs; 0 = only that one")


class Recipe(Section):
    """Everything that decides what a run computes. Field order is the order in which recipes are written and shown."""

    name: str = Field("", description="what pages and ledgers call the run")
    task: Literal["classification", "vqa"] = Field("classification", description="vqa: questions about images")
    backbone: str = Field(min_length=1, description="hub id or folder")
    text_backbone: str | None = Field(None, min_length=1, description="vqa: hub id or folder of what reads the questions")
    random_weights: bool = Field(False, description="use the backbones' architecture only")
    architecture: dict[str, Any] | None = Field(None, description="config of a model trained from nothing, with random_weights")
    text_architecture: dict[str, Any] | None = Field(None, description="vqa: config of a text model trained from nothing, vocabulary too")
    image_size: int | None = Field(None, ge=8, le=10_000, description="pixels; null = the backbone's own")
    resize: Literal["square", "crop"] | None = Field(
        None,
        description="how prediction sees an image: square: whole, stretched; crop: its middle, after its shorter side is resized; null = as "
        "the backbone says",
    )
    drop_path: float | None = Field(
        None, ge=0, lt=1, description="rate of stochastic depth in training, where the backbone has it; null = as its config says"
    )
    epochs: int = Field(25, ge=1, le=1_000_000, description="how often every training row is seen")
    batch_size: int = Field(8, ge=1, le=1_000_000, description="rows in memory at once (the flag --batch-size also knows auto)")
    accumulation_steps: int = Field(8, ge=1, le=1_000_000, description="batches of an optimizer step: its rows are the product of both")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 where the hardware has it, else fp16 on CUDA"
    )
    activation_checkpointing: bool = Field(False, description="compute the blocks again in the backward pass: less memory, equal results")
    gradient_sum: Literal["auto", "exact", "reduced"] = Field(
        "auto", description="of several processes: exact: the bits of one; reduced: equal to rounding, for many trained numbers"
    )
    attention: Literal["auto", "fused", "products"] = Field(
        "auto", description="how training computes attention; auto: what is faster, tried on a CPU in bf16"
    )
    compile: bool | Literal["auto"] = Field(
        "auto", description="training steps by torch.compile; auto: on a GPU, where it was tried and pays"
    )
    seed: int = Field(
        42, ge=0, le=LARGEST_SEED, description="of new weights, order, crops and dropout, and of the split unless data.split_seed is set"
    )
    head_only: bool = Field(False, description="with lora.rank 0: train the head alone, the backbone stays as it is")
    freeze: Tower | None = Field(None, description="vqa: this backbone stays as it is, while the other one is trained")
    lora: Lora = Lora()
    head: Head = Head()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    augmentation: Augmentation = Augmentation()
    data: Data = Data()
    checkpoint: Checkpoint = Checkpoint()

    @property
    def backbones(self) -> str:
        """What it starts from, in words."""
        text = self.text_backbone or (self.text_architecture and f"a new {self.text_architecture.get('model_type')}")
        return f"{self.backbone} + {text}" if text else self.backbone

    @property
    def effective_batch_size(self) -> int:
        """Images per optimizer step."""
        return self.batch_size * self.accumulation_steps

    @property
    def frozen_towers(self) -> tuple[Tower, ...]:
        """Which backbones of vqa stay exactly as they are: no weight of theirs is trained."""
        if self.head_only:
            return () if self.lora.also_train else ("text", "image")
        return (self.freeze,) if self.freeze else ()

    @model_validator(mode="before")
    @classmethod
    def _pictures_as_they_are(cls, values: Any) -> Any:
        """A mirrored or cropped picture has other answers (left or right? how many?): vqa augments only where a recipe asks for it."""
        if isinstance(values, dict) and values.get("task") == "vqa" and isinstance(values.get("augmentation", {}), dict):
            off = {"random_resized_crop": False, "horizontal_flip": False}
            values = values | {"augmentation": off | values.get("augmentation", {})}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.architecture is not None and not self.random_weights:
            raise ValueError("architecture: needs random_weights: true, since it describes a model without weights")
        if self.lora.also_train and not self.lora.rank and not self.head_only:
            raise ValueError("lora.also_train: with lora.rank 0 everything is trained already, unless head_only is true")
        if self.head_only and self.lora.rank:
            raise ValueError(f"head_only: needs lora.rank 0, found {self.lora.rank}")
        if self.lora.init != "default" and (not self.lora.rank or self.lora.variant != "lora"):
            raise ValueError(
                f"lora.init: {self.lora.init} needs lora.rank above 0 and lora.variant lora, found {self.lora.rank} and {self.lora.variant}"
            )
        if self.freeze and self.task != "vqa":
            raise ValueError(f"freeze: only vqa has two backbones, this recipe's task is {self.task}; head_only trains the head alone")
        if self.freeze and self.head_only:
            raise ValueError("freeze: expected none with head_only, under which both backbones stay as they are")
        if self.schedule.end_lr > self.optimizer.lr:
            raise ValueError(f"schedule.end_lr: {self.schedule.end_lr} is above optimizer.lr {self.optimizer.lr}")
        if self.task == "vqa" and self.drop_path is not None:
            raise ValueError(f"drop_path: vqa takes its backbones as they are; expected null, found {self.drop_path}")
        if self.task == "vqa" and self.compile is True:
            raise ValueError("compile: questions differ in length, and every length would be compiled anew; expected auto or false")
        self._check_losses()
        self._check_text()
        return self

    def _check_losses(self) -> None:
        own, default = self.optimizer, Optimizer()
        for name in ("focal_gamma", "asymmetric_gamma_negative", "asymmetric_gamma_positive", "asymmetric_margin"):
            loss = name.split("_")[0]
            if own.loss != loss and getattr(own, name) != getattr(default, name):
                raise ValueError(f"optimizer.{name}: needs optimizer.loss {loss}, found {own.loss}")
        if self.data.sampling == "classes" and own.logit_adjustment:
            raise ValueError(
                "optimizer.logit_adjustment: with data.sampling classes they are equally frequent already, and rare ones would be "
                "favoured twice; expected 0, or data.sampling rows"
            )
        if self.task == "vqa" and (found := _for_classification(self)):
            raise ValueError(f"{', '.join(found)}: not for questions about images; leave them out")

    def _check_text(self) -> None:
        num_texts = sum(text is not None for text in (self.text_backbone, self.text_architecture))
        if self.task == "vqa" and self.head.init != "random":
            raise ValueError(
                f"head.init: expected random for vqa, whose head is no linear one on features of images; found {self.head.init}"
            )
        if self.task != "vqa" and num_texts:
            raise ValueError(f"text_backbone: only task vqa reads questions, this recipe's is {self.task}")
        if self.task == "vqa" and num_texts != 1:
            raise ValueError("text_backbone: vqa needs this, or text_architecture (a text model trained from nothing), and not both")
        if self.task == "vqa" and not {"norms", "biases"}.issuperset(self.lora.also_train):
            raise ValueError("lora.also_train: expected norms, biases or none for vqa, whose adapters hold no other parts")
        if self.text_architecture is not None and (self.lora.rank or self.head_only or self.freeze == "text"):
            raise ValueError(
                "lora.rank, head_only, freeze: expected 0, false and none or image with text_architecture: "
                "its random word vectors must be trained"
            )


def _for_classification(recipe: Recipe) -> list[str]:
    """The keys and values of a recipe that only classification knows and that are on."""
    values = {
        "augmentation.erasing": recipe.augmentation.erasing,
        "augmentation.mixup": recipe.augmentation.mixup,
        "augmentation.cutmix": recipe.augmentation.cutmix,
        "data.sampling": recipe.data.sampling,
        "optimizer.loss": recipe.optimizer.loss,
        "optimizer.logit_adjustment": recipe.optimizer.logit_adjustment,
    }
    return [f"{key} {value}" for key, value in values.items() if value not in (0, "rows", "auto")]
