"""Questions and answers cleaned; images sampled; answers chosen; rows split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import assert_says
from hypothesis import given
from hypothesis import strategies as st

from pipeline.competition.questions import Prepared, clean_answer, clean_question, prepare
from pipeline.competition.rows import Row
from pipeline.errors import UserError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What's the color of the CAR?", "what is the color of the car"),
        ("They're here, aren't they?", "they are here are not they"),
        ("It\u2019s red", "it is red"),
        ("I can't; he won't!", "i cannot he will not"),
        ("Who'd've thought?", "who would have thought"),
        ("Where'd she go?", "where did she go"),
        ("Let's eat", "let us eat"),
        ("whats up", "what is up"),
        ("Isnt it?", "is not it"),
        ("The man's wearing a hat", "the man is wearing a hat"),
        ("The dog's on the bed", "the dog is on the bed"),
        ("What color is the guy's shirt?", "what color is the guy's shirt"),  # whose
        ("Where is the man's clothing?", "where is the man's clothing"),
        ("12 o'clock", "12 o'clock"),
        ("t-shirt / jeans", "t shirt jeans"),
        ("'yes'", "yes"),
        ("1,000 at 3.5% for $5 at 2:30", "1000 at 3.5% for $5 at 2:30"),
        ("-5 degrees", "-5 degrees"),
        ("(left) \u2014 right\u2026", "left right"),
        ("  many \t\n spaces ", "many spaces"),
        ("¿Qué color es?", "qué color es"),
        ("猫は何色ですか？", "猫は何色ですか"),
        ("क्या यह लाल है?", "क्या यह लाल है"),
        ("Je\u0301 vois", "jé vois"),
        ("\U0001f600?", "\U0001f600"),
        ("???", "???"),
    ],
)
def test_cleaned(text: str, expected: str) -> None:
    assert clean_question(text) == expected
    assert clean_answer(text) == expected


@given(st.text(max_size=30))
def test_cleaning_never_empties_a_text_and_settles(text: str) -> None:
    cleaned = clean_answer(text)
    assert bool(cleaned) == bool(text.strip())
    assert cleaned == " ".join(cleaned.split())


def asked(answers: Sequence[str], per_image: int = 2) -> list[Row]:
    """One row for each answer, so many in a row about one image."""
    return [
        Row(
            str(number),
            Path(f"{number // per_image}.jpg"),
            answer,
            f"what is number {number}?",
            image_id=str(number // per_image),
        )
        for number, answer in enumerate(answers)
    ]


def prepared(rows: Sequence[Row], **changes: Any) -> Prepared:
    return prepare(rows, **({"seed": 1, "val_fraction": 0.2, "top_answers": 1000} | changes))


def ids(rows: Sequence[Row]) -> list[str]:
    return [row.id for row in rows]


MANY = asked(["yes", "no", "Yes", "red"] * 25)


def test_answers_are_numbered_by_frequency_and_written_as_most_often() -> None:
    result = prepared(asked(["T-shirt", "t shirt", "T-shirt", "no", "no", "b", "a"]), val_fraction=0.0)
    assert result.class_names == ("T-shirt", "no", "a", "b")
    assert result.label_of(clean_answer("t  shirt.")) == 0
    assert result.label_of("never seen") == -1
    assert result.val == () and "100.00% of 7 training questions" in result.notes[0]


def test_the_split_is_by_image() -> None:
    result = prepared(MANY)
    assert (len(result.train), len(result.val)) == (80, 20)
    assert not {row.path for row in result.train} & {row.path for row in result.val}
    assert "no image is in both parts" in "\n".join(result.notes)


def test_by_question_a_line_says_that_it_leaks() -> None:
    result = prepared(MANY, split_by="question")
    shared = {row.path for row in result.train} & {row.path for row in result.val}
    leaking = sum(row.path in shared for row in result.val)
    assert len(result.val) == 20 and leaking > 0
    assert f"this leaks: {leaking} of them are about an image that also trains" in "\n".join(result.notes)


def test_drawn_by_seed_whatever_the_order_of_the_rows() -> None:
    first, again = prepared(MANY, image_fraction=0.5), prepared(MANY[::-1], image_fraction=0.5)
    assert sorted(ids(first.val)) == sorted(ids(again.val)) and sorted(ids(first.train)) == sorted(
        ids(again.train)
    )
    other = prepared(MANY, image_fraction=0.5, seed=2)
    assert sorted(ids(first.val)) != sorted(ids(other.val))


def test_a_quarter_of_the_images_with_all_their_questions() -> None:
    # 82 images, a quarter: 20.5, rounded as pandas' sample(frac=0.25) does
    rows = asked(["yes", "no"] * 82, per_image=2)
    result = prepared(rows, image_fraction=0.25)
    used = {row.path for row in (*result.train, *result.val)}
    assert len(used) == 20 and len(result.train) + len(result.val) == 40
    assert "sampled 20 of 82 images (seed 1): 40 of 164 questions" in result.notes[0]


def test_other_answers_count_as_wrong_or_are_dropped() -> None:
    rows = asked(["yes", "no", "yes", "red"] * 25, per_image=4)
    wrong = prepared(rows, top_answers=2)
    assert set(wrong.class_names) == {"yes", "no"}
    assert len(wrong.train) == 60 and len(wrong.val) == 20
    assert sum(wrong.label_of(clean_answer(row.label or "")) == -1 for row in wrong.val) == 5
    said = "\n".join(wrong.notes)
    assert_says(
        said, "2 most frequent of 3", "75.00% of 80 training questions", "5 of 20 validation answers", "wrong"
    )
    drop = prepared(rows, top_answers=2, other_answers="drop")
    assert len(drop.train) == 60 and len(drop.val) == 15
    assert all(drop.label_of(clean_answer(row.label or "")) >= 0 for row in drop.val)
    assert_says("\n".join(drop.notes), "75.00% of 100 questions", "dropped")


def test_answers_are_counted_on_training_rows_alone() -> None:
    result = prepared(MANY, top_answers=3)
    lonely = [
        *MANY,
        *(Row(f"x{number}", result.val[0].path, "only in validation", "?") for number in range(9)),
    ]
    assert "only in validation" not in prepared(lonely, top_answers=1000).class_names


def test_a_resumed_run_keeps_its_rows_and_answers() -> None:
    first = prepared(MANY, image_fraction=0.5, top_answers=2)
    resumed_rows = [
        (row.id, row.label or "", part)
        for part, rows in (("train", first.train), ("val", first.val))
        for row in rows
    ]
    more = [*MANY[::-1], *asked(["green"] * 300)[200:]]
    again = prepared(
        more, image_fraction=0.5, top_answers=2, resumed_rows=resumed_rows, answers=first.class_names
    )
    assert (again.train, again.val, again.class_names, again.indices) == (
        first.train,
        first.val,
        first.class_names,
        first.indices,
    )
    fewer = prepared(MANY[50:], resumed_rows=resumed_rows, answers=first.class_names)
    assert ids(fewer.train) == [row.id for row in first.train if int(row.id) >= 50]


def test_too_little_to_train_on() -> None:
    with pytest.raises(UserError, match=r"all .*'yes'"):
        prepared(asked(["yes"] * 9))
    with pytest.raises(UserError, match="no questions are left"):
        prepared([])
    # One image: it trains
    assert len(prepared(asked(["yes", "no", "yes"], per_image=3), val_fraction=0.5).val) == 0
