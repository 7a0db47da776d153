"""Predictions: several images of one id, aligned by id, averaged, saved and loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.folds.averaging import average
from pipeline.predictions import Predictions
from pipeline.targets.target import Target, multiclass

LABELS = Target("multilabel", ("a", "b"))
CLASSES = multiclass(["a", "b"])


def test_several_images_of_an_id_are_averaged() -> None:
    values = np.array([[0.2, 0.4], [0.6, 0.8], [0.5, 0.5]], dtype=np.float32)
    found = Predictions.of_values(["x", "y", "x"], values, LABELS)
    assert found.ids == ("x", "y")
    assert found.values == pytest.approx(np.array([[0.35, 0.45], [0.6, 0.8]]))
    largest = Predictions.of_values(["x", "y", "x"], values, LABELS, "max")
    assert largest.values == pytest.approx(np.array([[0.5, 0.5], [0.6, 0.8]]))


def test_an_image_that_could_not_be_read_counts_only_where_there_is_no_other() -> None:
    values = np.array([[0.1, 0.9], [0.5, 0.5], [0.5, 0.5]], dtype=np.float32)
    found = Predictions.of_values(["x", "x", "y"], values, CLASSES, trusted=np.array([0]))
    assert found.values == pytest.approx(np.array([[0.1, 0.9], [0.5, 0.5]]))


def test_the_largest_of_several_classes_still_sums_to_one() -> None:
    values = np.array([[0.9, 0.1], [0.3, 0.7]], dtype=np.float32)
    assert Predictions.of_values(["x", "x"], values, CLASSES, "max").values.sum() == pytest.approx(1)


def test_aligned_by_id_and_refused_where_one_is_missing() -> None:
    found = Predictions.of_images(["x", "y"], np.array([[0.0, 9.0], [9.0, 0.0]], dtype=np.float32), CLASSES)
    turned = found.aligned(["y", "x"])
    assert turned.values[:, 0].round().tolist() == [1, 0] and turned.logits[0].tolist() == [9, 0]
    with pytest.raises(UserError, match="'z'"):
        found.aligned(["x", "z"])


def test_saved_and_loaded_keeps_ids_as_text(tmp_path: Path) -> None:
    saved = Predictions(
        ("0012", "NA", "1\r2"), np.array([[0.1, 0.9], [0.2, 0.8], [0.3, 0.7]], dtype=np.float32), CLASSES
    )
    saved.save(tmp_path / "test")
    loaded = Predictions.load(tmp_path / "test", CLASSES)
    assert loaded.ids == saved.ids and (loaded.values == saved.values).all()
    assert list(saved.frame()["id"]) == ["0012", "NA", "1\r2"]


@pytest.mark.parametrize("damage", ["csv", "npy", "rows"])
def test_damaged_files_are_named(tmp_path: Path, damage: str) -> None:
    Predictions(("x", "y"), np.full((2, 2), 0.5, dtype=np.float32), CLASSES).save(tmp_path / "test")
    if damage == "csv":
        (tmp_path / "test.csv").unlink()
    elif damage == "npy":
        (tmp_path / "test.npy").write_bytes(b"nonsense")
    else:
        (tmp_path / "test.csv").write_text("id\nx\n")
    with pytest.raises(UserError, match=str(tmp_path / "test")):
        Predictions.load(tmp_path / "test", CLASSES)


def test_the_mean_joins_by_id_and_refuses_other_outputs() -> None:
    first = Predictions(("x", "y"), np.array([[1, 0], [0, 1]], dtype=np.float32), CLASSES)
    second = Predictions(("y", "x"), np.array([[0.5, 0.5], [0.5, 0.5]], dtype=np.float32), CLASSES)
    assert average([first, second], [1, 1]).values == pytest.approx(np.array([[0.75, 0.25], [0.25, 0.75]]))
    with pytest.raises(UserError, match="'c'"):
        average(
            [first, Predictions(("x", "y"), np.ones((2, 2), dtype=np.float32) / 2, multiclass(["a", "c"]))],
            [1, 1],
        )
