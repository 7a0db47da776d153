import math
from collections import Counter

import pytest
from conftest import assert_says
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split

from pipeline.competition.splits import train_val_split
from pipeline.errors import UserError


def classes(**counts):
    return [name for name, count in counts.items() for _ in range(count)]


def test_stratified():
    labels = classes(cat=80, dog=20)
    train, val, how = train_val_split(labels, 0.1, 42)
    assert sorted(train + val) == list(range(100))
    assert Counter(labels[row] for row in val) == {"cat": 8, "dog": 2}
    assert_says(how, "10 of 100", "stratified", "seed 42")


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.integers(2, 40), min_size=2, max_size=12),
    st.floats(0.02, 0.95),
    st.integers(0, 2**32 - 1),
    st.randoms(use_true_random=False),
)
def test_the_rows_are_those_of_scikit_learn(counts, fraction, seed, random):
    labels = [f"c{number}" for number, count in enumerate(counts) for _ in range(count)]
    random.shuffle(labels)
    _, val, how = train_val_split(labels, fraction, seed)
    assume(len(val) >= len(counts) and "stratified" in how)
    num_val = min(math.ceil(len(labels) * fraction - 1e-9), len(labels) - len(counts))
    kept, held_out = train_test_split(
        range(len(labels)), test_size=num_val, stratify=labels, random_state=seed
    )
    emptied = set(labels) - {labels[row] for row in kept}
    assert val == sorted(set(held_out) - {labels.index(label) for label in emptied})


def test_the_hold_out_is_rounded_up():
    labels = classes(**{f"c{n}": 25 for n in range(24)})[:580]
    train, val, _ = train_val_split(labels, 0.05, 42)
    assert (len(train), len(val)) == (551, 29)


def test_a_hold_out_smaller_than_the_classes_takes_one_row_of_some():
    labels = classes(**{f"c{n}": 10 for n in range(24)})
    train, val, how = train_val_split(labels, 0.05, 42)
    assert len(val) == 12
    assert set(Counter(labels[row] for row in val).values()) == {1}
    assert len({labels[row] for row in train}) == 24
    assert_says(how, "12 of 240", "fewer than the 24 classes", "12 classes", "seed 42")
    assert train_val_split(labels, 0.05, 43)[1] != val


def test_classes_with_one_row_are_never_held_out():
    labels = [*classes(cat=10, dog=10), "rare", "odd"]
    for fraction in (0.05, 0.1, 0.5, 0.9):
        train, _, how = train_val_split(labels, fraction, 1)
        assert {20, 21} <= set(train)
        assert how.endswith("; 2 classes with a single image only in training")


def test_nothing_to_hold_out():
    assert train_val_split(["a", "b", "a"], 0, 1) == (
        [0, 1, 2],
        [],
        "validation: 0 of 3 labelled images, all rows train",
    )
    assert train_val_split(["a", "b"], 0.5, 1) == (
        [0, 1],
        [],
        "validation: 0 of 2 labelled images, no class has a row to spare",
    )


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.5, float("nan")])
def test_a_fraction_out_of_range(fraction):
    with pytest.raises(UserError, match=rf"data\.val_fraction is {fraction}: .* from 0 .* 1"):
        train_val_split(["a", "b"], fraction, 1)


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 12), min_size=1, max_size=8),
    fraction=st.floats(0, 0.99),
    seed=st.integers(0, 5),
    shuffle=st.randoms(use_true_random=False),
)
def test_every_class_keeps_a_training_row(counts, fraction, seed, shuffle):
    labels = [f"class {n}" for n, count in enumerate(counts) for _ in range(count)]
    shuffle.shuffle(labels)
    train, val, how = train_val_split(labels, fraction, seed)
    assert sorted(train + val) == list(range(len(labels)))
    assert (train, val) == (sorted(train), sorted(val))
    assert {labels[row] for row in train} == set(labels)
    assert f"validation: {len(val)} of {len(labels)} labelled image" in how
    assert train_val_split(labels, fraction, seed) == (train, val, how)
    if len(val) < sum(count > 1 for count in counts):
        assert set(Counter(labels[row] for row in val).values()) <= {1}
