"""Two encoders under one head: exact counts, shared images, padding, strict files."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from torch import nn
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from pipeline.config import load_recipe
from pipeline.data.tokenizer import QuestionTokenizer, build_tokenizer, load_tokenizer
from pipeline.data.transforms import Preprocessing
from pipeline.errors import UserError
from pipeline.models.encoders import load_encoder, new_encoder, pooled
from pipeline.models.fusion import AnswerHead, VqaModel, fuse, load_fused, save_fused
from pipeline.models.lora import count_parameters
from pipeline.recipe_sections import Head, Lora

QUESTIONS = ["is it a red circle?", "what colour is the small shape in the image?", "is it blue?"]
RULE = Preprocessing(32, 32)
VIT = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
}
BERT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
}
SMALL_HEAD = Head(hidden_size=8)
LORA = Lora(rank=2, alpha=4, dropout=0.0, targets=("query", "value"))


def small(lora: Lora | None = None, head: Head = SMALL_HEAD, frozen: Sequence[str] = ()) -> VqaModel:
    """Random weights, the same at every call, the adapters' too; 5 answers."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer(QUESTIONS, 30)
    text = new_encoder({"model_type": "bert", **BERT}, vocab_size=len(tokenizer.tokenizer))
    fused = fuse(text, ViTModel(ViTConfig(**VIT)), tokenizer, RULE, 5, head, lora, frozen)
    for name, weight in fused.model.named_parameters():
        if ".lora_B" in name or weight.ndim > 1:
            nn.init.normal_(weight, std=0.2)
    fused.model.eval()
    return fused


def padded(fused: VqaModel, questions: list[str]) -> dict[str, torch.Tensor]:
    token_ids = fused.tokenizer.encode(questions)
    longest = max(map(len, token_ids))
    return {
        "input_ids": torch.tensor(
            [ids + [fused.tokenizer.pad_id] * (longest - len(ids)) for ids in token_ids]
        ),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in token_ids]),
    }


def random_images(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_the_reports_counts() -> None:
    """196,197,224 for 1,000 answers; with rank 64, 2,359,296 in each encoder: 111,841,536 and 88,748,544
    (without: 109,482,240, 86,389,248).
    """

    def counted(name: str) -> tuple[nn.Module, list[int]]:
        recipe = load_recipe(name)
        lora = recipe.lora if recipe.lora.rank else None
        with torch.device("meta"):
            model = fuse(
                BertModel(BertConfig()),
                ViTModel(ViTConfig()),
                None,
                Preprocessing(224, 224),
                1000,
                recipe.head,
                lora,
            ).model
        return model, [
            sum(weight.numel() for weight in encoder.parameters()) for encoder in (model.text, model.image)
        ]

    model, encoders = counted("vqa-bert-vit")
    assert encoders == [109_482_240, 86_389_248]
    assert sum(weight.numel() for weight in model.parameters() if weight.requires_grad) == 196_197_224
    model, encoders = counted("vqa-bert-vit-lora-r64")
    assert encoders == [111_841_536, 88_748_544]
    counts = count_parameters(model, head="head")
    assert (counts.model, counts.adapter, counts.head) == (196_197_224, 2 * 2_359_296, 325_736)
    # The report's own 2.4050 % leaves the head out
    assert counts.trainable == counts.adapter + counts.head == 5_044_328
    model, _ = counted("vqa-bert-vit-lora-r8")
    counts = count_parameters(model, head="head")
    assert (counts.adapter, counts.trainable) == (2 * 294_912, 915_560)


@pytest.mark.parametrize(
    ("head", "meets"),
    [(Head(), False), (Head(fusion="product", activation="tanh"), True), (Head(activation="gelu"), True)],
)
def test_the_plain_head_adds_and_the_product_lets_question_and_image_meet(head: Head, meets: bool) -> None:
    """What a change of image does to the logits depends on the question, or not at all."""
    torch.manual_seed(0)
    model = AnswerHead(6, 7, 4, head).double()
    questions, looks = torch.randn(2, 6, dtype=torch.float64), torch.randn(2, 7, dtype=torch.float64)
    effect = [
        model(questions[i : i + 1], looks[:1]) - model(questions[i : i + 1], looks[1:]) for i in range(2)
    ]
    assert torch.allclose(*effect, atol=1e-12) is not meets


def test_cross_attention_takes_of_each_image_what_its_question_asks_for() -> None:
    """The weights are torch's own multi-head attention; what an image adds depends on the question."""
    torch.manual_seed(0)
    head = AnswerHead(6, 7, 4, Head(fusion="cross_attention", hidden_size=16)).double()
    questions, tokens = torch.randn(3, 6, dtype=torch.float64), torch.randn(3, 5, 7, dtype=torch.float64)
    own, other = head.attention, nn.MultiheadAttention(16, 8, batch_first=True, dtype=torch.float64)
    identity, zero = torch.eye(16, dtype=torch.float64), torch.zeros(48, dtype=torch.float64)
    other.load_state_dict(
        {
            "in_proj_weight": torch.cat([identity] * 3),
            "in_proj_bias": zero,
            "out_proj.weight": own.output.weight,
            "out_proj.bias": own.output.bias,
        }
    )
    nn.init.normal_(own.norm.weight)
    nn.init.normal_(own.norm.bias)
    normed = own.norm(tokens)
    expected, _ = other(own.query(questions).unsqueeze(1), own.key(normed), own.value(normed))
    torch.testing.assert_close(own(questions, tokens), expected.squeeze(1))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(own(questions, tokens), expected.squeeze(1))
    effect = [
        head(questions[i : i + 1], tokens[:1]) - head(questions[i : i + 1], tokens[1:2]) for i in range(2)
    ]
    assert not torch.allclose(*effect, atol=1e-3)


@pytest.mark.parametrize("pooling", ["class_token", "mean"])
def test_a_question_is_one_vector_whatever_it_is_padded_to(pooling: str) -> None:
    head = Head(hidden_size=8, text_pooling=pooling)
    fused = small(head=head)
    inputs = padded(fused, QUESTIONS)
    states = fused.model.text(**padded(fused, QUESTIONS[:1])).last_hidden_state[0]
    expected = states[0] if pooling == "class_token" else states.mean(dim=0)
    torch.testing.assert_close(fused.model.read(**inputs)[0], expected, rtol=1e-4, atol=1e-5)


def test_one_backbone_may_stay_while_the_other_is_adapted(tmp_path: Path) -> None:
    """The frozen one has no adapter, no gradient and no dropout; loaded again, with attention to the patches,
    it answers the same.
    """
    head = Head(hidden_size=8, fusion="cross_attention", text_pooling="mean", activation="gelu")
    fused = small(LORA, head, frozen=["image"])
    fused.model.train()
    assert fused.model.text.training and not any(module.training for module in fused.model.image.modules())
    assert not any(weight.requires_grad for weight in fused.model.image.parameters())
    fused.model.eval()
    save_fused(fused, tmp_path, base=True, trained=True)
    assert [path.name for path in (tmp_path / "model_lora").iterdir()] == ["bert"]
    loaded, batch = load(tmp_path, head, ["image"]), (random_images(3), torch.arange(3))
    torch.testing.assert_close(
        loaded.model(*batch, **padded(loaded, QUESTIONS)),
        fused.model(*batch, **padded(fused, QUESTIONS)),
        rtol=1e-4,
        atol=1e-5,
    )
    with pytest.raises(UserError, match=r"model_lora.vit"):
        load(tmp_path, head)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_a_shared_image_is_computed_once_and_nothing_else_changes(lora: Lora | None, monkeypatch) -> None:
    fused = small(lora)
    inputs, looks, index = padded(fused, QUESTIONS), random_images(2), torch.tensor([1, 0, 1])

    def passed(
        pixel_values: torch.Tensor, image_index: torch.Tensor
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        fused.model.zero_grad()
        logits = fused.model(pixel_values, image_index, **inputs)
        logits.square().sum().backward()
        return logits.detach(), [
            weight.grad.clone() for weight in fused.model.parameters() if weight.grad is not None
        ]

    once, again = passed(looks, index), passed(looks[index], torch.arange(3))
    torch.testing.assert_close(once[0], again[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(once[1], again[1], rtol=1e-4, atol=1e-5)
    seen, original = [], fused.model.image.forward
    monkeypatch.setattr(
        fused.model.image,
        "forward",
        lambda **named: seen.append(len(named["pixel_values"])) or original(**named),
    )
    fused.model(looks, index, **inputs)
    assert seen == [2]


def test_padding_does_not_change_an_answer() -> None:
    fused = small()
    together = fused.model(random_images(1), torch.zeros(3, dtype=torch.long), **padded(fused, QUESTIONS))
    alone = [
        fused.model(random_images(1), torch.zeros(1, dtype=torch.long), **padded(fused, [question]))
        for question in QUESTIONS
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-6)


def load(folder: Path, head: Head = SMALL_HEAD, frozen: Sequence[str] = ()) -> VqaModel:
    text = load_encoder(str(folder / "model_bert"), "text_backbone")
    image = load_encoder(str(folder / "model_vit"), "--backbone")
    return load_fused(
        text, image, load_tokenizer(str(folder / "model_bert"), 30), RULE, 5, head, folder, frozen
    )


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_saved_and_loaded_it_answers_the_same(lora: Lora | None, tmp_path: Path) -> None:
    fused = small(lora)
    save_fused(fused, tmp_path, base=True, trained=True)
    names = {"model_bert", "model_vit", "head.safetensors"} | ({"model_lora"} if lora else set())
    assert {path.name for path in tmp_path.iterdir()} == names
    loaded = load(tmp_path)
    assert loaded.tokenizer.encode(QUESTIONS) == fused.tokenizer.encode(QUESTIONS)
    batch = (random_images(3), torch.arange(3))
    torch.testing.assert_close(
        loaded.model(*batch, **padded(loaded, QUESTIONS)),
        fused.model(*batch, **padded(fused, QUESTIONS)),
        rtol=1e-4,
        atol=1e-5,
    )


def test_plain_transformers_and_plain_peft_load_each_encoder(tmp_path: Path) -> None:
    from peft import PeftModel

    fused = small(LORA)
    save_fused(fused, tmp_path, base=True, trained=True)
    text = PeftModel.from_pretrained(
        AutoModel.from_pretrained(tmp_path / "model_bert"), tmp_path / "model_lora" / "bert"
    ).eval()
    image = PeftModel.from_pretrained(
        AutoModel.from_pretrained(tmp_path / "model_vit"), tmp_path / "model_lora" / "vit"
    ).eval()
    inputs = AutoTokenizer.from_pretrained(tmp_path / "model_bert")(
        QUESTIONS, padding=True, return_tensors="pt"
    )
    own = padded(fused, QUESTIONS)
    assert torch.equal(inputs["input_ids"], own["input_ids"])
    torch.testing.assert_close(text(**own).pooler_output, fused.model.text(**own).pooler_output)
    torch.testing.assert_close(
        image(pixel_values=random_images(2)).pooler_output,
        fused.model.image(pixel_values=random_images(2)).pooler_output,
    )


def test_what_does_not_belong_together_is_one_message(tmp_path: Path) -> None:
    save_fused(small(LORA), tmp_path / "good", base=True, trained=True)

    def broken(name: str) -> Path:
        return shutil.copytree(tmp_path / "good", tmp_path / name)

    (broken("headless") / "head.safetensors").unlink()
    with pytest.raises(UserError, match=r"head\.safetensors is missing"):
        load(tmp_path / "headless")
    with pytest.raises(UserError, match=r"joint\.weight: shape \(8, 40\), expected \(16, 40\)"):
        load(tmp_path / "good", Head(hidden_size=16))
    with pytest.raises(UserError, match=r"picture\.weight: missing(?s:.*)joint\.weight: unexpected"):
        load(tmp_path / "good", Head(hidden_size=8, fusion="product"))
    (broken("damaged") / "head.safetensors").write_bytes(b"12345678")
    with pytest.raises(UserError, match=r"head\.safetensors cannot be read"):
        load(tmp_path / "damaged")
    shutil.rmtree(broken("half") / "model_lora" / "vit")
    with pytest.raises(UserError, match=r"model_lora.vit"):
        load(tmp_path / "half")
    weights = broken("thin") / "model_bert" / "model.safetensors"
    tensors = load_file(weights)
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"encoder\.layer\.1\.output\.dense\.weight: missing"):
        load(tmp_path / "thin")


def test_a_checkpoint_without_a_pooler_gives_its_first_token(tmp_path: Path) -> None:
    """As google/vit-base-patch16-224, fine-tuned on classes: a pooler drawn at random and frozen under LoRA
    would be noise.
    """
    torch.manual_seed(0)
    classifier = ViTForImageClassification(ViTConfig(**VIT, num_labels=3)).eval()
    classifier.save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path), "--backbone").eval()
    assert encoder.pooler is None
    vector = pooled(encoder(pixel_values=random_images(2)))
    torch.testing.assert_close(
        classifier.classifier(vector), classifier(pixel_values=random_images(2)).logits
    )


def test_targets_that_only_one_encoder_has_name_what_both_have() -> None:
    """timm has one layer for query, key and value, BERT three: a command for one would fail at the other."""
    pytest.importorskip("timm")
    text = new_encoder(BERT | {"model_type": "bert"}, vocab_size=20)
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3}
    image = new_encoder(
        {"model_type": "timm_wrapper", "architecture": "vit_tiny_patch16_224", "model_args": size}
    )
    for targets in (("query",), ("qkv",)):
        with pytest.raises(UserError, match=r"--set lora.targets=\[output,fc1,fc2\]"):
            fuse(text, image, None, RULE, 3, SMALL_HEAD, LORA.model_copy(update={"targets": targets}))
    both = LORA.model_copy(update={"targets": ("output", "fc1", "fc2")})
    assert len(list(fuse(text, image, None, RULE, 3, SMALL_HEAD, both).model.parameters())) > 0


def test_the_vocabulary_is_the_training_questions_and_survives_the_disk(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(QUESTIONS, 30)
    ids = tokenizer.encode([*QUESTIONS, "is it a zebra, 漢?"])
    assert all(tokenizer.tokenizer.unk_token_id not in question for question in ids[:3])
    words = tokenizer.tokenizer.convert_ids_to_tokens(ids[3])
    assert words == "[CLS] is it a z ##e ##b ##r ##a [UNK] [UNK] ? [SEP]".split()
    tokenizer.save(tmp_path)
    assert load_tokenizer(str(tmp_path), 30).encode(QUESTIONS) == ids[:3]
    whole = tokenizer.encode(QUESTIONS[:1])
    as_long = build_tokenizer(QUESTIONS, len(whole[0]))
    assert as_long.encode(QUESTIONS[:1]) == whole, "not cut"
    assert as_long.notes(whole)[1].startswith(f"1 question with {len(whole[0])} tokens, the limit")
    assert build_tokenizer(QUESTIONS[::-1], 30).tokenizer.get_vocab() == tokenizer.tokenizer.get_vocab()
    assert [len(question) for question in load_tokenizer(str(tmp_path), 6).encode(QUESTIONS)] == [6, 6, 6]


def test_a_vocabulary_that_knows_no_word_is_said() -> None:
    """transformers 5.23 reads `BertTokenizerFast(vocab_file=...)` as the five special tokens, without an
    error.
    """
    special = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}
    empty = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordPiece(special, unk_token="[UNK]")),
        unk_token="[UNK]",
        pad_token="[PAD]",
    )
    tokenizer = QuestionTokenizer(empty, 30)
    assert "100% of the questions' tokens are unknown" in tokenizer.notes(tokenizer.encode(QUESTIONS))[-1]


def test_no_tokenizer_or_encoder_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"text_backbone .*: no such folder"):
        load_encoder(str(tmp_path / "none"), "text_backbone")
    with pytest.raises(UserError, match="its tokenizer cannot be loaded"):
        load_tokenizer(str(tmp_path), 30)
    with pytest.raises(UserError, match="architecture"):
        new_encoder({"model_type": "bret"})
