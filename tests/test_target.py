"""What a label means: texts to arrays, logits to predictions, predictions to texts, and back through
run.json.
"""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.special import expit
from scipy.special import softmax as scipy_softmax

from pipeline.errors import UserError
from pipeline.targets.target import KINDS, Target, multiclass

CLASSES = multiclass(["cat", "dog", "NA"])
GRADES = Target("ordinal", ("0", "1", "2", "3", "4"))
BINARY = Target("binary", ("Cover", "stego"), positive=("JMiPOD", "UERD"))
LABELS = Target("multilabel", ("a b", "c", "d"), separator="|", may_be_empty=True)
NUMBER = Target("continuous", ("Pawpularity",)).fitted(["10", "20", "60"])
NUMBERS = Target("continuous", ("x", "y"), separator=" ").fitted(["1 10", "3 10", "5 10"])
ALL = (CLASSES, GRADES, BINARY, LABELS, NUMBER, NUMBERS)

names = st.lists(
    st.text("abcdefg 0123.é鳥", min_size=1, max_size=6).map(str.strip).filter(bool),
    min_size=2,
    max_size=8,
    unique=True,
)
finite = st.floats(-1e4, 1e4, allow_nan=False, width=32)


@settings(max_examples=60, deadline=None)
@given(names, st.data())
def test_what_is_certain_decodes_to_the_label_it_encodes(names: list[str], data: st.DataObject) -> None:
    labels = data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=9))
    target = Target("multiclass", tuple(names))
    assert target.decode(np.eye(len(names), dtype=np.float32)[target.encode(labels)]) == labels
    numbers = data.draw(st.lists(st.integers(-99, 99), min_size=2, max_size=9, unique=True))
    grades = tuple(map(str, sorted(numbers)))
    assert tuple(Target("ordinal", grades).decode(np.eye(len(grades), dtype=np.float32))) == grades
    assume(not any("|" in name for name in names))
    several = Target("multilabel", tuple(names), separator="|", may_be_empty=True)
    sets = data.draw(st.lists(st.sets(st.sampled_from(names)), min_size=1, max_size=9))
    texts = ["|".join(name for name in names if name in chosen) for chosen in sets]
    assert several.decode(several.encode(texts)) == texts


@settings(max_examples=60, deadline=None)
@given(st.lists(finite, min_size=2, max_size=12))
def test_numbers_scale_to_deviation_one_and_come_back(values: list[float]) -> None:
    labels = [repr(value) for value in values]
    target = Target("continuous", ("n",)).fitted(labels)
    encoded = target.encode(labels)
    scaled = target.scaled(encoded)
    assert encoded.shape == scaled.shape == (len(values), 1)
    spread = np.std(encoded.astype(np.float64))
    if spread > 1e-3 * (1 + np.abs(encoded).max()):
        assert scaled.mean() == pytest.approx(0, abs=1e-3) and scaled.std() == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(target.activate(scaled), encoded, rtol=1e-3, atol=1e-3 * float(spread) + 1e-6)


@pytest.mark.parametrize("target", ALL, ids=lambda target: target.kind)
def test_a_target_survives_run_json(target: Target) -> None:
    assert Target.read(json.loads(json.dumps(target.record())), "run.json") == target


@pytest.mark.parametrize(
    "record", [None, [], {}, {"kind": "fuzzy", "names": ["a"]}, CLASSES.record() | {"colour": "red"}]
)
def test_a_damaged_record_names_its_file(record: object) -> None:
    with pytest.raises(UserError, match=r"runs/a/run\.json"):
        Target.read(record, "runs/a/run.json")


def test_outputs_of_every_kind() -> None:
    assert [target.num_outputs for target in ALL] == [3, 5, 1, 3, 1, 2]
    assert BINARY.output_names == ("stego",) and CLASSES.output_names == CLASSES.names
    assert [target.is_choice for target in ALL] == [True, True, False, False, False, False]
    assert {target.kind for target in ALL} == set(KINDS)
    assert all(target.describe() for target in ALL)


def test_labels_become_arrays_of_the_shapes_that_losses_take() -> None:
    assert CLASSES.encode(["NA", "cat"]).tolist() == [2, 0] and CLASSES.encode([]).dtype == np.int64
    assert BINARY.encode(["UERD", "Cover", "JMiPOD"]).tolist() == [[1], [0], [1]]
    assert LABELS.encode(["c | a b", "", "d|"]).tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    assert NUMBERS.encode(["1 2.5", "-3 4e1"]).tolist() == [[1, 2.5], [-3, 40]]
    assert {
        target.encode(texts).dtype for target, texts in ((BINARY, ["a"]), (LABELS, ["c"]), (NUMBER, ["1"]))
    } == {np.dtype("float32")}


@pytest.mark.parametrize(
    "target, label",
    [
        (CLASSES, "bird"),
        (GRADES, "5"),
        (LABELS, "c|e"),
        (NUMBER, "ten"),
        (NUMBER, ""),
        (NUMBERS, "1"),
        (NUMBERS, "1 2 3"),
    ],
)
def test_a_label_that_cannot_be_is_refused_and_shown(target: Target, label: str) -> None:
    good = {
        "multiclass": "cat",
        "ordinal": "1",
        "multilabel": "c",
        "continuous": " ".join(["1"] * target.num_outputs),
    }[target.kind]
    with pytest.raises(UserError) as caught:
        target.encode([good, label])
    assert repr(label.split("|")[-1]) in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.1, 1.0, 50.0, 1e4]))
def test_activations_are_scipys_and_never_overflow(seed: int, spread: float) -> None:
    logits = np.random.default_rng(seed).normal(0, spread, (5, 3)).astype(np.float32)
    with np.errstate(over="raise", invalid="raise"):
        one, several = CLASSES.activate(logits), LABELS.activate(logits)
    assert one.dtype == several.dtype == np.float32
    np.testing.assert_allclose(one, scipy_softmax(logits.astype(np.float64), axis=1), atol=1e-6)
    np.testing.assert_allclose(several, expit(logits.astype(np.float64)), atol=1e-6)
    np.testing.assert_allclose(one.sum(axis=1), 1, atol=1e-6)


def test_numbers_stay_within_the_range_of_training() -> None:
    assert NUMBER.activate(np.array([[1e6], [-1e6], [0.0]]))[:, 0].tolist() == [60, 10, 30]
    assert NUMBERS.activate(np.array([[0.0, 5.0]])).tolist() == [[3, 10]], (
        "a column that never varies stays what it was"
    )
    assert NUMBERS.scale[1] == 1.0


def test_the_grade_is_the_nearest_to_the_expected_one() -> None:
    probabilities = np.array(
        [[0.45, 0.0, 0.0, 0.15, 0.4], [0.0, 0.5, 0.5, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 1]]
    )
    assert GRADES.chosen(probabilities).tolist() == [2, 2, 0, 4]
    assert GRADES.decode(probabilities) == ["2", "2", "0", "4"]


def test_the_expected_grade_counts_the_numbers_of_the_grades() -> None:
    gap = Target("ordinal", ("1", "2", "3", "11"))
    assert gap.grades.tolist() == [0, 1, 2, 10] and gap.half_way.tolist() == [0.5, 1.5, 6]
    probabilities = np.array([[0.5, 0, 0, 0.5], [0.3, 0, 0, 0.7], [0.4, 0, 0.3, 0.3], [0.9, 0.1, 0, 0]])
    assert gap.expected_grade(probabilities).tolist() == pytest.approx([5, 7, 3.6, 0.1])
    assert gap.decode(probabilities) == ["3", "11", "3", "1"]


def test_decisions_of_the_other_kinds() -> None:
    assert BINARY.decode(np.array([[0.5], [0.49]])) == ["stego", "Cover"]
    values = np.array([[0.9, 0.6, 0.1], [0.1, 0.3, 0.2]])
    assert LABELS.decode(values) == ["a b|c", ""]
    never_empty = Target("multilabel", LABELS.names, separator="|")
    assert never_empty.decode(values) == ["a b|c", "c"], "the most probable label where none is probable"
    assert NUMBERS.decode(np.array([[1.5, 1234567.0]])) == ["1.5 1234567"]


def test_priors_are_the_frequencies_of_training() -> None:
    assert CLASSES.prior(["cat", "cat", "dog", "NA"]).tolist() == [0.5, 0.25, 0.25]
    assert BINARY.prior(["UERD", "Cover", "Cover", "Cover"]).tolist() == [0.25]
    assert LABELS.prior(["a b|c", "c"]).tolist() == [0.5, 1, 0]
    assert NUMBERS.prior(["1 2", "3 4"]).tolist() == [2, 3]
    for target, labels in ((CLASSES, ["cat"]), (LABELS, ["c"])):
        assert target.prior(labels).dtype == np.float32 and target.prior(labels).shape == (
            target.num_outputs,
        )


def test_strata_of_a_split() -> None:
    assert CLASSES.strata(["cat", "NA"]) == ["cat", "NA"]
    assert BINARY.strata(["UERD", "JMiPOD", "Cover"]) == ["stego", "stego", "Cover"]
    assert LABELS.strata(["a b|c", "c", "c|d", "", "a b"]) == ["a b", "c", "d", "", "a b"], (
        "the rarest label of a row"
    )
    tenths = NUMBER.strata([str(value) for value in reversed(range(200))])
    assert (
        Counter(tenths) == {str(place): 20 for place in range(10)} and tenths[0] == "9" and tenths[-1] == "0"
    )


def test_counts_stand_in_the_order_of_names() -> None:
    assert list(CLASSES.counts(["dog", "dog", "NA"]).items()) == [("cat", 0), ("dog", 2), ("NA", 1)]
    assert list(BINARY.counts(["UERD", "Cover", "Cover"]).items()) == [("Cover", 2), ("stego", 1)]
    assert LABELS.counts(["a b|c", "c", ""]) == {"a b": 1, "c": 2, "d": 0}
    assert NUMBER.counts(["1", "2"]) == {}
