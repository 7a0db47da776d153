"""Question answering: join the vectors of a text encoder and an image encoder, and predict an answer.

Save and load both. `concat` without activation is Linear(Dq + Dv, hidden) and Linear(hidden, K), so one
linear map of question and image side by side. There an image adds the same to every answer for any question,
so "is it a circle?" and "is it a square?" cannot both be right on a circle and on a square. `product` can do
that: its hidden unit h is (a_h . question) * (b_h . image).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from pipeline.data.tokenizer import QuestionTokenizer
from pipeline.data.transforms import Preprocessing
from pipeline.errors import UserError, first_line, raise_all
from pipeline.files import replacing
from pipeline.models.backbones import native_image_size, save_backbone, takes_interpolation, tensor_problems
from pipeline.models.encoders import image_tokens, pooled, question_vector, width_of
from pipeline.models.half_weights import cache_frozen_bias, exact_head
from pipeline.models.lora import PeftModel, attach, load_adapter, merge, plain_state_dict, save_adapter
from pipeline.models.roles import architecture_name, reached_roles
from pipeline.recipe_sections import ATTENTION_HEADS, Head, Lora, Tower
from pipeline.run_names import ADAPTER_DIR, HEAD_FILE

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "none": nn.Identity,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
}


class CrossAttention(nn.Module):
    """Attention of each question to the image tokens: (B, Dq) and (B, P, Dv) to (B, hidden).

    One layer of multi-head attention (Vaswani et al. 2017, arXiv:1706.03762) with the question, one vector,
    as the query.
    """

    def __init__(self, question_dim: int, image_dim: int, hidden_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(image_dim)  # the last states of BEiT are not normalised
        self.query = nn.Linear(question_dim, hidden_size)
        self.key = nn.Linear(image_dim, hidden_size)
        self.value = nn.Linear(image_dim, hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)

    def forward(self, question: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Return (B, hidden), computed in float32 like the rest of the head.

        There is only one query. So instead of keys and values for all tokens, the query is multiplied back
        through the weights of key and norm, and the values are computed only for the weighted mean of the
        tokens. The result is the same for a small part of the cost. The norm's bias adds the same to all
        scores of a head, which softmax ignores.
        """
        heads, norm = (ATTENTION_HEADS, -1), self.norm
        with torch.autocast(tokens.device.type, enabled=False):
            tokens = F.layer_norm(tokens.to(norm.weight.dtype), norm.normalized_shape, eps=norm.eps)
            query = self.query(question.to(tokens.dtype)).unflatten(-1, heads)  # (B, heads, hidden / heads)
            # (heads, hidden / heads, Dv)
            to_key, to_value = (layer.weight.unflatten(0, heads) for layer in (self.key, self.value))
            token_query = torch.einsum("bhc,hcd->bhd", query, to_key) * norm.weight
            scores = token_query @ tokens.transpose(1, 2) + (query * self.key.bias.unflatten(0, heads)).sum(
                dim=-1, keepdim=True
            )
            share = (scores / query.shape[-1] ** 0.5).softmax(dim=-1)  # (B, heads, P)
            mean = share @ tokens * norm.weight + norm.bias
            return self.output(torch.einsum("bhd,hcd->bhc", mean, to_value).flatten(1) + self.value.bias)


class AnswerHead(nn.Module):
    """The head: (B, Dq) questions and (B, Dv) images to (B, K) logits.

    For cross-attention (B, P, Dv) image tokens.
    """

    def __init__(self, question_dim: int, image_dim: int, num_answers: int, config: Head) -> None:
        super().__init__()
        self.config, self.image_dim, hidden = config, image_dim, config.hidden_size
        if config.fusion == "concat":
            self.joint = nn.Linear(question_dim + image_dim, hidden)
        elif config.fusion == "product":
            self.question = nn.Linear(question_dim, hidden)
            self.picture = nn.Linear(image_dim, hidden)  # its name in saved heads
        else:
            self.attention = CrossAttention(question_dim, image_dim, hidden)
            self.question = nn.Linear(question_dim, hidden)
            self.joint = nn.Linear(3 * hidden, hidden)
        self.activation = ACTIVATIONS[config.activation]()
        self.dropout = nn.Dropout(config.dropout)
        self.answer = nn.Linear(hidden, num_answers)

    def forward(self, question: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        if self.config.fusion == "concat":
            hidden = self.activation(self.joint(torch.cat([question, image], dim=1)))
        elif self.config.fusion == "product":
            hidden = self.activation(self.question(question)) * self.activation(self.picture(image))
        else:  # question and attention result, side by side and multiplied
            attended, query = self.attention(question, image), self.question(question)
            hidden = self.activation(self.joint(torch.cat([query, attended, query * attended], dim=1)))
        return self.answer(self.dropout(hidden))


class FusionModel(nn.Module):
    """Two encoders and a head. An image is computed once for all questions about it in a batch.

    In training these questions share the image's dropout mask.
    """

    def __init__(self, text: nn.Module, image: nn.Module, head: AnswerHead, image_pixels: int) -> None:
        super().__init__()
        self.text, self.image, self.head = text, image, head
        self.frozen: tuple[Tower, ...] = ()
        other_size = native_image_size(_base(image)) != image_pixels
        exact_head(self, "head")
        self.image_options = (
            {"interpolate_pos_encoding": True} if other_size and takes_interpolation(_base(image)) else {}
        )

    def freeze(self, towers: Iterable[Tower]) -> None:
        """Freeze these encoders: they are not trained and have no dropout."""
        self.frozen = tuple(towers)
        for tower in self.frozen:
            self.get_submodule(tower).requires_grad_(False).eval()
        if "image" in self.frozen:
            cache_frozen_bias(self.image)

    def train(self, mode: bool = True) -> FusionModel:
        """Set training mode as torch does, but keep frozen encoders in eval mode."""
        super().train(mode)
        for tower in self.frozen:
            self.get_submodule(tower).eval()
        return self

    def read(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return (B, Dq) vectors of B questions (B, T)."""
        output = self.text(input_ids=input_ids, attention_mask=attention_mask)
        return question_vector(output, attention_mask, self.head.config.text_pooling)

    def see(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return (I, Dv) vectors of I images (I, 3, H, W); for cross-attention (I, P, Dv) tokens."""
        output = self.image(pixel_values=pixel_values, **self.image_options)
        if self.head.config.fusion == "cross_attention":
            return image_tokens(output, self.head.image_dim)
        return pooled(output)

    def join(self, question: torch.Tensor, image: torch.Tensor, image_index: torch.Tensor) -> torch.Tensor:
        """Return (B, K) logits from the results of `read` and `see`.

        image_index (B,) is the image of each question.
        """
        # The same as index_select. But CUDA sums its gradient in varying order, and an embedding's in a fixed
        # order.
        own = F.embedding(image_index, image.flatten(1))
        return self.head(question, own.unflatten(1, image.shape[1:]) if image.ndim > 2 else own)

    def forward(
        self,
        pixel_values: torch.Tensor | None,
        image_index: torch.Tensor,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *,
        question: torch.Tensor | None = None,
        image: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return (B, K) logits of B questions (B, T) about I images (I, 3, H, W).

        image_index (B,) is the image of each question. Features that frozen encoders computed earlier are
        given as `question` and `image` instead.
        """
        question = self.read(input_ids, attention_mask) if question is None else question
        return self.join(question, self.see(pixel_values) if image is None else image, image_index)


@dataclass(frozen=True)
class VqaModel:
    """The model with its preprocessing and tokenizer."""

    model: FusionModel
    preprocessing: Preprocessing
    tokenizer: QuestionTokenizer

    def encoders(self) -> Iterator[tuple[str, nn.Module, QuestionTokenizer | Preprocessing]]:
        """Yield the architecture's name (used on disk), the encoder, and what is saved beside it."""
        for encoder, companion in ((self.model.text, self.tokenizer), (self.model.image, self.preprocessing)):
            yield _base(encoder).config.model_type, encoder, companion


def fuse(
    text: nn.Module,
    image: nn.Module,
    tokenizer: QuestionTokenizer,
    preprocessing: Preprocessing,
    num_answers: int,
    head: Head,
    lora: Lora | None,
    frozen: Sequence[Tower] = (),
) -> VqaModel:
    """Return the encoders with a new head.

    They are fully trainable; with `lora` only adapters on both and the head are trained. `frozen` encoders
    are not trained.

    Raises:
        UserError: an encoder does not have these LoRA targets, or its config does not state its width.
    """
    answer_head = AnswerHead(
        width_of(text, "text_backbone"), width_of(image, "--backbone"), num_answers, head
    )
    if lora is not None:
        shape = (lora.rank, lora.alpha, lora.dropout, lora.targets, lora.also_train)
        options = {"use_rslora": lora.use_rslora, "variant": lora.variant, "init": lora.init}
        if not frozen:
            _check_targets(text, image, lora.targets)
        if "text" not in frozen:
            text = attach(text, *shape, has_head=False, **options)
        if "image" not in frozen:
            image = attach(image, *shape, has_head=False, **options)
        if "image" not in frozen:  # `freeze` does it for frozen ones
            cache_frozen_bias(image)
    model = FusionModel(text, image, answer_head, preprocessing.height)
    model.freeze(frozen)
    return VqaModel(model, preprocessing, tokenizer)


def _check_targets(text: nn.Module, image: nn.Module, targets: Sequence[str]) -> None:
    """Refuse targets that only one encoder has: the message for one would name roles that the other lacks."""
    shared = [role for role in reached_roles(text) if role in reached_roles(image)]
    if shared and (lacking := [role for role in targets if role not in shared]):
        names = " and ".join(map(architecture_name, (text, image)))
        raise UserError(
            f"lora.targets: {names} do not both have {', '.join(lacking)}; both have {', '.join(shared)} "
            f"(--set lora.targets=[{','.join(shared)}])"
        )


def save_fused(fused: VqaModel, output: Path, *, base: bool, trained: bool) -> None:
    """Write the model into run folder `output`.

    `base`: write the encoders. `trained`: write their adapters (if they have some) and the head. A frozen
    encoder that is already there is not written again.
    """
    for tower, (name, encoder, companion) in zip(("text", "image"), fused.encoders(), strict=True):
        lies_there = (
            trained
            and tower in fused.model.frozen
            and (output / f"model_{name}" / "model.safetensors").exists()
        )
        if base and not lies_there:
            save_backbone(_base(encoder), plain_state_dict(encoder), companion, output / f"model_{name}")
        if trained and isinstance(encoder, PeftModel):
            save_adapter(encoder, output / ADAPTER_DIR / name)
    if trained:
        with replacing(output / HEAD_FILE) as temporary:
            save_file(
                {name: weight.contiguous() for name, weight in fused.model.head.state_dict().items()},
                temporary,
            )


def load_fused(
    text: nn.Module,
    image: nn.Module,
    tokenizer: QuestionTokenizer,
    preprocessing: Preprocessing,
    num_answers: int,
    head: Head,
    folder: Path,
    frozen: Sequence[Tower] = (),
) -> VqaModel:
    """Return the trained model of run folder `folder`: float32, adapters merged and checked, eval mode.

    Where there are adapters, each encoder has one, except those that were `frozen`.

    Raises:
        UserError: an adapter or the head is missing, damaged, or does not fit tensor by tensor.
    """
    answer_head = AnswerHead(
        width_of(text, "text_backbone"), width_of(image, "--backbone"), num_answers, head
    )
    _load_head(answer_head, folder / HEAD_FILE)
    cache_frozen_bias(image.requires_grad_(False))
    if (folder / ADAPTER_DIR).is_dir():
        generator = torch.Generator().manual_seed(0)
        words = torch.randint(len(tokenizer.tokenizer), (1, 8), generator=generator)
        pixels = torch.randn(1, 3, preprocessing.height, preprocessing.width, generator=generator)
        options = FusionModel(text, image, answer_head, preprocessing.height).image_options
        if "text" not in frozen:
            text = _merged(text, folder, lambda model: pooled(model(input_ids=words)))
        if "image" not in frozen:
            image = _merged(image, folder, lambda model: pooled(model(pixel_values=pixels, **options)))
    model = FusionModel(text, image, answer_head, preprocessing.height).requires_grad_(False).eval()
    return VqaModel(model, preprocessing, tokenizer)


def _merged(encoder: nn.Module, folder: Path, vector: Callable[[nn.Module], torch.Tensor]) -> nn.Module:
    return merge(
        load_adapter(encoder.eval(), folder / ADAPTER_DIR / encoder.config.model_type, has_head=False), vector
    )


def _load_head(head: AnswerHead, path: Path) -> None:
    if not path.exists():
        raise UserError(
            f"{path} is missing: it holds the head of the model; train again, or install the release again"
        )
    try:
        tensors = load_file(path)
    except Exception as error:  # damaged files raise many kinds of errors
        raise UserError(f"{path} cannot be read: {first_line(error)}") from None
    raise_all(tensor_problems(head.state_dict(), tensors), f"the head in {path} does not fit:")
    head.load_state_dict(tensors)


def _base(encoder: Any) -> Any:
    return encoder.get_base_model() if isinstance(encoder, PeftModel) else encoder
