"""The official accuracy: numbers worked out by hand, and the definition spelled out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.answers import answer_accuracy, normalize_answer
from pipeline.targets.metrics import vqa_accuracy, vqa_scores


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes.", "yes"),
        ("the red car", "red car"),
        ("two", "2"),
        ("none", "0"),
        ("eleven", "eleven"),
        ("3.5", "3.5"),
        ("1,000", "1000"),
        ("red, white", "red white"),  # a mark beside a space goes
        ("black-white", "black white"),  # between letters it becomes one
        ("dont know", "don't know"),
        ("couldnt've", "couldn't've"),
        ("y'alld've", "y'all'd've"),
        ("its", "its"),
        ("10:30", "10:30"),
        ("  An   apple ", "apple"),
        ("?", ""),
    ],
)
def test_normalized_as_officially(text: str, expected: str) -> None:
    assert normalize_answer(text) == expected


@pytest.mark.parametrize(
    ("agreeing", "accuracy"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0), (10, 1.0)]
)
def test_ten_annotators(agreeing: int, accuracy: float) -> None:
    """min(n / 3, 1), averaged over the ten choices of nine annotators: one who agrees is left out in n of the
    ten.
    """
    assert answer_accuracy("yes", ["yes"] * agreeing + ["no"] * (10 - agreeing)) == pytest.approx(accuracy)


@given(
    st.lists(st.sampled_from(["red", "a red", "blue", "2", "two"]), min_size=2, max_size=10),
    st.sampled_from(["red", "two"]),
)
def test_the_definition_spelled_out(answers: list[str], predicted: str) -> None:
    texts = [normalize_answer(answer) for answer in answers] if len(set(answers)) > 1 else answers
    own = normalize_answer(predicted) if len(set(answers)) > 1 else predicted
    subsets = [
        [text for place, text in enumerate(texts) if place != left_out] for left_out in range(len(texts))
    ]
    assert answer_accuracy(predicted, answers) == pytest.approx(
        np.mean([min(subset.count(own) / 3, 1) for subset in subsets])
    )


def test_texts_are_normalised_only_where_annotators_differ() -> None:
    assert answer_accuracy("the cat", ["cat"] * 10) == 0
    assert answer_accuracy("the cat", ["cat"] * 9 + ["dog"]) == 1


def test_scores_by_type() -> None:
    answers = [["yes"] * 10, ["2"] * 2 + ["3"] * 8, ["red"] * 10]
    assert vqa_accuracy(["yes", "2", "blue"], answers) == pytest.approx([1.0, 0.6, 0.0])
    assert vqa_scores(["yes", "2", "blue"], answers, ["yes/no", "number", "other"]) == pytest.approx(
        {
            "vqa_accuracy": 1.6 / 3,
            "vqa_accuracy_yes_no": 1.0,
            "vqa_accuracy_number": 0.6,
            "vqa_accuracy_other": 0.0,
        }
    )


def test_one_answer_a_question_has_no_official_accuracy() -> None:
    assert vqa_scores(["yes", "no"], [("yes",), ("no",)], [None, None]) == {}
    assert vqa_scores([], [], []) == {}
