"""Which tricks are for which labels, and runs that have all of them on."""

from __future__ import annotations

import json
import re
from pathlib import Path

import competitions
import pytest
from conftest import make_competition
from test_resume import assert_same, flags, interrupt_after, resume

import train
from pipeline.config import load_recipe
from pipeline.errors import Interrupted, UserError
from pipeline.recipe import Recipe
from pipeline.targets.target import Target, multiclass
from pipeline.tasks.suited import check_suits

TARGETS = {
    "multiclass": multiclass("abc"),
    "binary": Target("binary", ("no", "yes"), positive=("yes",)),
    "multilabel": Target("multilabel", ("a", "b", "c")),
    "ordinal": Target("ordinal", ("0", "1", "2")),
    "continuous": Target("continuous", ("x",)),
}
LABELS_OR_CLASSES = {"multiclass", "binary", "multilabel"}
SUITS = {
    "augmentation.policy=trivial_augment": set(TARGETS),
    "augmentation.erasing=0.2": set(TARGETS),
    "augmentation.mixup=0.2": LABELS_OR_CLASSES,
    "augmentation.cutmix=1": LABELS_OR_CLASSES,
    "data.sampling=classes": {"multiclass"},
    "optimizer.logit_adjustment=1": {"multiclass"},
    "optimizer.loss=focal": LABELS_OR_CLASSES,
    "optimizer.loss=asymmetric": {"multilabel"},
}


def words(*keys: str) -> list[str]:
    return [word for key in keys for word in ("--set", key)]


def with_key(key: str, **more: object) -> Recipe:
    name, value = key.split("=")
    return load_recipe("beit-large-384-lora", {name: float(value) if value[0].isdigit() else value, **more})


@pytest.mark.parametrize("key", SUITS)
def test_each_trick_is_for_some_labels(key: str) -> None:
    name, value = key.split("=")
    for kind, target in TARGETS.items():
        if kind in SUITS[key]:
            check_suits(with_key(key), target)
        else:
            with pytest.raises(
                UserError, match=rf"  - {name} {value}.*leave it out \(--set {name}=(0|rows|auto)\)"
            ):
                check_suits(with_key(key), target)


@pytest.mark.parametrize("key", [key for key in SUITS if "policy" not in key])
def test_questions_about_images_refuse_what_is_not_theirs(key: str) -> None:
    name, value = key.split("=")
    with pytest.raises(UserError, match=rf"{name} {value}.*: .*vqa"):
        with_key(key, task="vqa", text_backbone="b")
    with_key("augmentation.policy=rand_augment", task="vqa", text_backbone="b")


FOR_IMAGES = {"data.group_column": "patient", "data.groups": "g.csv", "data.cache_gb": 1, "data.views": "max"}
FOR_IMAGES |= {"data.metric": "log_loss", "data.target": "binary", "data.positive_class": ["a"]}
FOR_IMAGES |= {"data.partial_labels": True, "attention": "products"}
FOR_QUESTIONS = {"head.dropout": 0.5, "head.activation": "gelu", "head.hidden_size": 64}
FOR_QUESTIONS |= {"head.fusion": "product", "head.text_pooling": "mean", "data.image_fraction": 0.5}
FOR_QUESTIONS |= {"data.top_answers": 9, "data.other_answers": "drop", "data.split_by": "question"}
FOR_QUESTIONS |= {"data.group_by_image": True, "data.max_question_tokens": 9}


@pytest.mark.parametrize("key", [*FOR_IMAGES, *FOR_QUESTIONS])
def test_a_key_of_the_other_task_is_refused(key: str) -> None:
    """Such as dropout before the last layer, which only the head for questions has."""
    value = (FOR_IMAGES | FOR_QUESTIONS)[key]
    task = {"task": "vqa", "text_backbone": "b"}
    own, other = (task, {}) if key in FOR_QUESTIONS else ({}, task)
    load_recipe("beit-large-384-lora", {key: value, **own})
    with pytest.raises(UserError, match=rf"{re.escape(key)} .*not supported for"):
        load_recipe("beit-large-384-lora", {key: value, **other})


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"optimizer.focal_gamma": 1}, "optimizer.focal_gamma: needs optimizer.loss focal, found auto"),
        (
            {"optimizer.loss": "focal", "optimizer.asymmetric_margin": 0},
            "optimizer.asymmetric_margin: needs optimizer.loss asymmetric, found focal",
        ),
        (
            {"data.sampling": "classes", "optimizer.logit_adjustment": 1},
            "optimizer.logit_adjustment: expected 0, or data.sampling rows",
        ),
        (
            {"augmentation.erasing": 1.5},
            "augmentation.erasing: input should be less than or equal to 1, found 1.5",
        ),
    ],
)
def test_what_means_nothing_together_is_refused(changes: dict, named: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe("beit-large-384-lora", changes)
    assert named in str(caught.value)


def test_all_that_does_not_suit_is_one_message(tiny_backbone: Path, tmp_path: Path) -> None:
    competitions.grades(tmp_path / "data")
    arguments = [*flags(tmp_path / "data", tiny_backbone, tmp_path / "run"), "--metric", "qwk"]
    with pytest.raises(UserError) as caught:
        train.main(
            [*arguments, *words("augmentation.mixup=0.2", "data.sampling=classes", "optimizer.loss=focal")]
        )
    assert [line.split(":")[0] for line in str(caught.value).splitlines()[1:]] == [
        "  - augmentation.mixup 0.2",
        "  - data.sampling classes",
        "  - optimizer.loss focal",
    ]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_rare_classes_come_again_also_in_a_run_that_was_stopped(
    tiny_backbone: Path, tmp_path: Path, monkeypatch
) -> None:
    """`tests/test_processes.py` stops runs whose classes have equal rows, `tests/test_mixing.py` reads part
    of an epoch of unequal ones.
    """
    data = make_competition(tmp_path / "data")
    for number in range(3, 8):
        (data / "train" / "red" / f"red_{number}.png").unlink()
    every = words(
        "augmentation.policy=trivial_augment",
        "augmentation.erasing=0.5",
        "augmentation.mixup=0.4",
        "data.sampling=classes",
    )
    train.main([*flags(data, tiny_backbone, tmp_path / "whole"), *every])
    with monkeypatch.context() as patched:
        interrupt_after(patched, 9)
        with pytest.raises(Interrupted):
            train.main([*flags(data, tiny_backbone, tmp_path / "run"), *every])
    resume(data, tmp_path / "run")
    assert_same(tmp_path / "whole", tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["counts"]["train_per_class"] == {"blue": 6, "green": 6, "red": 2}
    assert record["prior"] == pytest.approx([1 / 3, 1 / 3, 1 / 3])


def test_several_labels_an_image_with_all_that_suits_them(
    tiny_backbone: Path, tmp_path: Path, capsys
) -> None:
    competitions.tags(tmp_path / "data", train=16, test=4)
    every = words(
        "augmentation.erasing=0.5",
        "augmentation.mixup=0.4",
        "augmentation.cutmix=1",
        "optimizer.loss=asymmetric",
    )
    assert (
        train.main([*flags(tmp_path / "data", tiny_backbone, tmp_path / "run"), *every, "--epochs", "1"]) == 0
    )
    assert "train_label_accuracy of a mixed image" in capsys.readouterr().out
    (line,) = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert 0 < line["train_label_accuracy"] < 1 and 0 < line["train_loss"] < 1
