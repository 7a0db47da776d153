"""Question answering: a text encoder and an image encoder, one vector of each joined, an answer out; saved as folders of their own.

With `concat` and no activation this is the plain form of Linear(Dq + Dv, hidden) and Linear(hidden, K), which is one linear map of question
and picture side by side: a picture adds the same to every answer whatever is asked, so "is it a circle?" and "is it a square?" cannot both
be right on a circle and on a square. `product` can: its hidden unit h is (a_h . question) * (b_h . picture).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from pipeline.data.tokenizer import QuestionTokenizer
from pipeline.data.transforms import Preprocessing
from pipeline.errors import UserError, raise_all
from pipeline.files import replacing
from pipeline.models.backbones import native_image_size, save_backbone, takes_interpolation, tensor_problems
from pipeline.models.encoders import pooled, width_of
from pipeline.models.lean import cache_frozen_bias, exact_head
from pipeline.models.lora import PeftModel, attach, load_adapter, merge, plain_state_dict, save_adapter
from pipeline.recipe import Head, Lora
from pipeline.run_names import ADAPTER_DIR, HEAD_FILE

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"none": nn.Identity, "tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU}


class AnswerHead(nn.Module):
    """(B, Dq) questions and (B, Dv) pictures to (B, K) logits."""

    def __init__(self, question_size: int, picture_size: int, num_answers: int, config: Head) -> None:
        super().__init__()
        if config.fusion == "concat":
            self.joint = nn.Linear(question_size + picture_size, config.hidden_size)
        else:
            self.question = nn.Linear(question_size, config.hidden_size)
            self.picture = nn.Linear(picture_size, config.hidden_size)
        self.activation = ACTIVATIONS[config.activation]()
        self.dropout = nn.Dropout(config.dropout)
        self.answer = nn.Linear(config.hidden_size, num_answers)

    def forward(self, question: torch.Tensor, picture: torch.Tensor) -> torch.Tensor:
        if hasattr(self, "joint"):
            hidden = self.activation(self.joint(torch.cat([question, picture], dim=1)))
        else:
            hidden = self.activation(self.question(question)) * self.activation(self.picture(picture))
        return self.answer(self.dropout(hidden))


class FusionModel(nn.Module):
    """Two encoders and a head. A picture is computed once for all questions of a batch about it; in training they share its dropout."""

    def __init__(self, text: nn.Module, image: nn.Module, head: AnswerHead, picture_size: int) -> None:
        super().__init__()
        self.text, self.image, self.head = text, image, head
        other_size = native_image_size(_base(image)) != picture_size
        exact_head(self, "head")
        self.image_options = {"interpolate_pos_encoding": True} if other_size and takes_interpolation(_base(image)) else {}

    def forward(
        self, pixel_values: torch.Tensor, image_index: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> torch.Tensor:
        """(B, K) logits of B questions (B, T) about I pictures (I, 3, H, W); image_index (B,) says which."""
        question = pooled(self.text(input_ids=input_ids, attention_mask=attention_mask))
        picture = pooled(self.image(pixel_values=pixel_values, **self.image_options))
        # As index_select; but its gradient on CUDA is summed in an order that varies, an embedding's in a fixed one.
        return self.head(question, F.embedding(image_index, picture))


@dataclass(frozen=True)
class Fused:
    """The model with what its two inputs need."""

    model: FusionModel
    rule: Preprocessing
    tokenizer: QuestionTokenizer

    def encoders(self) -> Iterator[tuple[str, nn.Module, QuestionTokenizer | Preprocessing]]:
        """Name on disk (the architecture's), encoder, and what is saved beside it."""
        for encoder, companion in ((self.model.text, self.tokenizer), (self.model.image, self.rule)):
            yield _base(encoder).config.model_type, encoder, companion


def fuse(
    text: nn.Module, image: nn.Module, tokenizer: QuestionTokenizer, rule: Preprocessing, num_answers: int, head: Head, lora: Lora | None
) -> Fused:
    """The encoders under a new head, fully trainable, or with `lora` frozen but for adapters on both and the head.

    Raises:
        UserError: an encoder has no such LoRA targets, or its config does not say how wide it is.
    """
    answer_head = AnswerHead(width_of(text, "text_backbone"), width_of(image, "--backbone"), num_answers, head)
    if lora is not None:
        options = {"has_head": False, "use_rslora": lora.use_rslora, "variant": lora.variant, "init": lora.init}
        text, image = (
            attach(encoder, lora.rank, lora.alpha, lora.dropout, lora.targets, lora.also_train, **options) for encoder in (text, image)
        )
        cache_frozen_bias(image)
    return Fused(FusionModel(text, image, answer_head, rule.height), rule, tokenizer)


def save_fused(fused: Fused, output: Path, *, base: bool, trained: bool) -> None:
    """Write into run folder `output`: with `base` the encoders themselves, with `trained` their adapters (where they have some) and the head."""
    for name, encoder, companion in fused.encoders():
        if base:
            save_backbone(_base(encoder), plain_state_dict(encoder), companion, output / f"model_{name}")
        if trained and isinstance(encoder, PeftModel):
            save_adapter(encoder, output / ADAPTER_DIR / name)
    if trained:
        with replacing(output / HEAD_FILE) as temporary:
            save_file({name: weight.contiguous() for name, weight in fused.model.head.state_dict().items()}, temporary)


def load_fused(
    text: nn.Module, image: nn.Module, tokenizer: QuestionTokenizer, rule: Preprocessing, num_answers: int, head: Head, folder: Path
) -> Fused:
    """The trained model of run folder `folder` on its own encoders: float32, adapters merged and checked, eval mode.

    Raises:
        UserError: an adapter or the head is missing, damaged, or does not fit tensor by tensor.
    """
    answer_head = AnswerHead(width_of(text, "text_backbone"), width_of(image, "--backbone"), num_answers, head)
    _load_head(answer_head, folder / HEAD_FILE)
    cache_frozen_bias(image.requires_grad_(False))
    if (folder / ADAPTER_DIR).is_dir():
        generator = torch.Generator().manual_seed(0)
        words = torch.randint(len(tokenizer.tokenizer), (1, 8), generator=generator)
        pixels = torch.randn(1, 3, rule.height, rule.width, generator=generator)
        options = FusionModel(text, image, answer_head, rule.height).image_options
        text = _merged(text, folder, lambda model: pooled(model(input_ids=words)))
        image = _merged(image, folder, lambda model: pooled(model(pixel_values=pixels, **options)))
    model = FusionModel(text, image, answer_head, rule.height).requires_grad_(False).eval()
    return Fused(model, rule, tokenizer)


def _merged(encoder: nn.Module, folder: Path, vector: Callable[[nn.Module], torch.Tensor]) -> nn.Module:
    return merge(load_adapter(encoder.eval(), folder / ADAPTER_DIR / encoder.config.model_type, has_head=False), vector)


def _load_head(head: AnswerHead, path: Path) -> None:
    if not path.exists():
        raise UserError(f"{path} is missing: without the head there are no answers; train again, or install the release again")
    try:
        tensors = load_file(path)
    except Exception as error:  # damage has many types; all mean the same to the user
        raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None
    raise_all(tensor_problems(head.state_dict(), tensors), f"the head in {path} does not fit:")
    head.load_state_dict(tensors)


def _base(encoder: Any) -> Any:
    return encoder.get_base_model() if isinstance(encoder, PeftModel) else encoder
