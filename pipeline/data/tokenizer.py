"""Tokenize questions: with a pretrained model's tokenizer, or with one built from the training questions.

The latter is for a text model that is trained from random weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase, digits
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from pipeline.errors import UserError
from pipeline.wording import counted

SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
MAX_WORDS = 30_000  # about the size of BERT's vocabulary


@dataclass(frozen=True)
class QuestionTokenizer:
    """A tokenizer and its maximum length in tokens."""

    tokenizer: Any  # transformers' fast tokenizer
    max_tokens: int

    @property
    def pad_id(self) -> int:
        """The id of the padding token, which attention ignores."""
        return self.tokenizer.pad_token_id

    def encode(self, questions: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each question with special tokens, at most `max_tokens`; not padded."""
        if questions:
            return self.tokenizer(list(questions), truncation=True, max_length=self.max_tokens)["input_ids"]
        return []

    def notes(self, token_ids: Sequence[Sequence[int]]) -> list[str]:
        """Return notes for the user: how long the questions are, how many may have been cut, and a warning
        about unknown tokens.
        """
        full = sum(len(ids) >= self.max_tokens for ids in token_ids)  # cut, or just as long
        pieces = sum(len(ids) for ids in token_ids)
        unknown = sum(list(ids).count(self.tokenizer.unk_token_id) for ids in token_ids)
        notes = [
            f"questions: {max(map(len, token_ids), default=0)} tokens at most, {len(self.tokenizer):,} in "
            "the vocabulary"
        ]
        if full:
            notes.append(
                f"{counted(full, 'question')} with {self.max_tokens} tokens, the limit: longer ones are cut "
                "(data.max_question_tokens)"
            )
        if pieces and unknown / pieces > 0.05:
            notes.append(
                f"WARNING: {unknown / pieces:.0%} of the questions' tokens are unknown to the text model: "
                "was it made for this language?"
            )
        return notes

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files into `folder`; plain `AutoTokenizer.from_pretrained` loads it."""
        self.tokenizer.save_pretrained(folder)


def load_tokenizer(source: str, max_tokens: int) -> QuestionTokenizer:
    """Return the tokenizer at `source` (hub id or folder).

    Raises:
        UserError: there is none, or it cannot pad.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, use_fast=True, trust_remote_code=False)
    except Exception as error:  # many kinds, depending on format and version
        raise UserError(
            f"text_backbone {source}: its tokenizer cannot be loaded: {' '.join(str(error).split())[:200]}"
        ) from error
    if tokenizer.pad_token_id is None:
        raise UserError(
            f"text_backbone {source}: its tokenizer has no padding token; use an encoder such as "
            "google-bert/bert-base-uncased"
        )
    return QuestionTokenizer(tokenizer, max_tokens)


def build_tokenizer(questions: Sequence[str], max_tokens: int) -> QuestionTokenizer:
    """Return a BERT tokenizer (WordPiece, lower case) whose tokens are the words of `questions` and single
    letters.

    Words that are not in `questions` are split into letters.
    """
    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words = Counter(
        word for text in questions for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))
    )
    letters = sorted({*ascii_lowercase, *digits, *(letter for word in words for letter in word)})
    frequent = sorted(words, key=lambda word: (-words[word], word))[:MAX_WORDS]
    pieces = dict.fromkeys([*SPECIAL.values(), *letters, *(f"##{letter}" for letter in letters), *frequent])
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=SPECIAL["unk_token"]))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    ends = [(SPECIAL[name], vocabulary[SPECIAL[name]]) for name in ("cls_token", "sep_token")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return QuestionTokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL), max_tokens)
