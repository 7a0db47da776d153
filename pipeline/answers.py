"""Compare answers to questions as the official VQA evaluation does.

visualqa.org/evaluation.html; VQAEval of github.com/GT-Vision-Lab/VQA
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
ARTICLES = ("a", "an", "the")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
# If one apostrophe of these words is missing, it is added. Words that would then be another word (its, well,
# ill, were) are not in the list.
CONTRACTED = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't "
    "he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've "
    "mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't "
    "shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's "
    "something'd something'd've something'll that's there'd there'd've there're there's they'd they'd've "
    "they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's "
    "where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've "
    "wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've"
)


def _without_one(text: str) -> list[str]:
    """Return the text without its first apostrophe, without its second, ..."""
    return [text[: found.start()] + text[found.end() :] for found in re.finditer("'", text)]


_WORDS = {number: str(value) for value, number in enumerate(NUMBERS)} | {"none": "0"}
# The last one is an error in the official table; it is kept so that scores agree.
_CONTRACTIONS = {variant: word for word in CONTRACTED.split() for variant in _without_one(word)} | {
    "somebody'd": "somebodyd"
}


@lru_cache(maxsize=100_000)  # few answers occur very often
def normalize_answer(text: str) -> str:
    """Return the answer as the official evaluation compares it.

    Lower case, no punctuation or articles, digits for numbers up to ten.
    """
    delete_all = re.search(r"\d,\d", text) is not None
    cleaned = text
    for mark in PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if beside_space or delete_all else " ")
    cleaned = re.sub(r"\.(?!\d)", "", cleaned)
    words = (_WORDS.get(word, word) for word in cleaned.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def answer_accuracy(predicted: str, answers: Sequence[str]) -> float:
    """Return the official accuracy of one prediction: min(n / 3, 1), where n annotators agree.

    It is averaged over leaving out each annotator once. As in the official code, texts are normalised only
    where the annotators differ. An empty `answers` gives 0.
    """
    predicted, *given = (re.sub(r"[\n\t]", " ", text).strip() for text in (predicted, *answers))
    if len(set(given)) > 1:
        predicted, *given = (normalize_answer(text) for text in (predicted, *given))
    total, agreeing = len(given), given.count(predicted)
    if not agreeing:
        return 0.0
    # Drop each annotator in turn: agreeing ones leave n-1 matches, the others leave n.
    return (agreeing * min((agreeing - 1) / 3, 1.0) + (total - agreeing) * min(agreeing / 3, 1.0)) / total
