"""What a plan says of itself before training, what a constant guess scores, and the warning of a run that is
no better.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from conftest import assert_says, make_competition
from sklearn import metrics
from sklearn.dummy import DummyClassifier

import train
from pipeline import files
from pipeline.commands import session
from pipeline.commands.planning import PLAN_RECIPE
from pipeline.config import load_recipe
from pipeline.recipe import Recipe
from pipeline.recipe_sections import Augmentation
from pipeline.report.page import build_report
from pipeline.targets.baseline import Baseline, constant_baseline
from pipeline.targets.target import Target, multiclass
from pipeline.training.advice import (
    LARGE_BACKBONE,
    LARGE_RECIPE,
    FloorWatch,
    Watch,
    advise,
    below_floor,
    mirrored_sides,
    moved_coordinates,
    no_better,
    way_of_head,
)
from pipeline.training.optim import plan_schedule

NAMES = ["apple", "lemon", "lime"]
TRAIN = ["apple"] * 6 + ["lemon"] * 3 + ["lime"]
VAL = ["apple", "lemon", "apple", "lime", "lemon"]


def lines(
    name: str = "beit-large-384-lora",
    num_train: int = 551,
    num_val: int = 29,
    num_classes: int = 24,
    new_head: bool = True,
    **keys,
) -> str:
    recipe = load_recipe(name, keys)
    return "\n".join(
        advise(
            recipe, plan_schedule(recipe, num_train), num_train, num_val, num_classes, new_head, "multiclass"
        )
    )


def test_the_default_on_580_photographs_says_what_is_too_little_and_what_did_better() -> None:
    text = lines()
    assert "225 optimizer steps" in text and "29 validation rows for 24 classes" in text
    assert f"{math.sqrt(0.25 / 29):.2f}" in text and "data.val_fraction=0.2 gives 116" in text
    assert "--recipe beit-large-384-lora-ours" in text
    assert "optimizer.head_lr=1e-2" in text
    assert "head_only=true" in text


@pytest.mark.parametrize(
    "plan",
    [
        {"name": "beit-large-384-lora-ours", "num_val": 500},
        {"num_train": 9_500, "num_val": 500, "num_classes": 200},  # what the recipe was made for
        {"num_val": 0, "new_head": False},
        {"name": "digits", "num_train": 1293, "num_val": 144, "num_classes": 10},
    ],
)
def test_a_plan_that_learns_says_nothing(plan: dict) -> None:
    assert lines(**plan) == ""


def test_the_recipe_that_is_named_for_the_default_is_the_one_that_a_plan_takes() -> None:
    """Its settings are those of lora-ours, by which the named accuracies were measured; another backbone is
    named with lora-ours itself.
    """
    assert LARGE_RECIPE == PLAN_RECIPE
    assert load_recipe(LARGE_RECIPE).backbone == load_recipe("beit-large-384-lora").backbone == LARGE_BACKBONE
    large, small = load_recipe(LARGE_RECIPE), load_recipe("lora-ours")
    for section in ("lora", "optimizer", "schedule", "augmentation", "effective_batch_size"):
        assert getattr(large, section) == getattr(small, section), section
    assert f"--recipe {LARGE_RECIPE}" in lines() and "lora-ours --backbone" not in lines()
    assert "--recipe lora-ours --backbone some/other" in lines(backbone="some/other")


@pytest.mark.parametrize(
    ("name", "keys", "count"),
    [
        ("beit-large-384-lora", {}, 4),
        ("beit-large-384-lora", {"lora.rank": 0, "shard": True}, 1),  # not with head_only
        ("beit-large-384-lora", {"optimizer.lr": 3e-3, "schedule.end_lr": 2e-3, "epochs": 1}, 3),
        ("easy-vqa", {"epochs": 1}, 0),  # its random text model must be trained
        ("vqa-bert-vit-lora-r8", {"epochs": 1, "lora.rank": 0, "freeze": "image"}, 0),
        ("glyphs", {"epochs": 1, "batch_size": 512}, 0),  # a head on random features learns nothing
    ],
)
def test_every_flag_that_is_named_is_one(name: str, keys: dict, count: int) -> None:
    """What stands in the advice is accepted by the command line and by the recipe at hand."""
    text = lines(name, **keys)
    flags = [
        line.strip().split("  ")[0].split() for line in text.splitlines() if line.strip().startswith("--")
    ]
    assert "too little training for a new head" in text
    assert len(flags) == count and ("better in our tests" in text) == (count > 0)
    for words in flags:
        args = train.parse(words)
        given = train_overrides(args)
        load_recipe(args.recipe, given) if args.recipe else load_recipe(name, keys | given)


def train_overrides(args) -> dict:
    from pipeline.config import parse_assignments

    given = {
        key: getattr(args, flag)
        for flag, key in session.RECIPE_FLAGS.items()
        if getattr(args, flag) is not None
    }
    return given | parse_assignments(args.set)


@pytest.mark.parametrize(("share", "named"), [(0.05, True), (0.2, False)])
def test_more_validation_rows_are_named_only_where_the_recipe_takes_fewer(share: float, named: bool) -> None:
    """Pseudo labels train too, so the rows of training say nothing about the share that validates."""
    text = lines(num_train=88, num_val=16, num_classes=5, **{"data.val_fraction": share})
    assert "16 validation rows" in text and ("data.val_fraction" in text) == named


@pytest.mark.parametrize(("folds", "named"), [([], True), (["--folds", "12"], False)])
def test_a_fold_names_no_share_of_validation_rows(
    tiny_backbone: Path, tmp_path: Path, folds: list[str], named: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_competition(tmp_path / "data", per_class=8)
    words = ["--data", str(data), "--backbone", str(tiny_backbone), "--output", str(tmp_path / "run"), *folds]
    assert train.main([*words, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "2 validation rows" in said and ("data.val_fraction" in said) == named


def test_the_way_of_the_head_is_the_sum_of_its_rates() -> None:
    recipe = load_recipe(
        "beit-large-384-lora",
        {"optimizer.head_lr": 5e-4, "schedule.name": "constant", "schedule.warmup_ratio": 0},
    )
    assert way_of_head(recipe, plan_schedule(recipe, 640)) == pytest.approx(10 * 25 * 5e-4)


# ---- constant guesses, against scikit-learn ----


def test_constant_guesses_are_scikit_learns() -> None:
    target = multiclass(NAMES)
    truth = target.encode(VAL)
    dummy = DummyClassifier(strategy="prior").fit(np.zeros((len(TRAIN), 1)), TRAIN)
    probs = dummy.predict_proba(np.zeros((len(VAL), 1)))
    most = dummy.predict(np.zeros((len(VAL), 1)))
    assert constant_baseline("accuracy", target, TRAIN, truth) == Baseline(
        metrics.accuracy_score(VAL, most), "always 'apple'"
    )
    assert constant_baseline("log_loss", target, TRAIN, truth).value == pytest.approx(
        metrics.log_loss(VAL, probs), abs=1e-6
    )
    assert constant_baseline("loss", target, TRAIN, truth).value == pytest.approx(
        metrics.log_loss(VAL, probs), abs=1e-6
    )
    assert constant_baseline("macro_f1", target, TRAIN, truth).value == pytest.approx(
        metrics.f1_score(VAL, most, average="macro")
    )
    assert constant_baseline("accuracy", target, TRAIN, truth[:0]) is None


def test_constant_guesses_of_other_targets() -> None:
    binary = Target("binary", ("cat", "dog"), positive=("dog",))
    truth = binary.encode(["dog", "cat", "cat"])
    assert constant_baseline("roc_auc", binary, ["dog", "cat"], truth).value == pytest.approx(0.5)
    numbers = Target("continuous", ("price",)).fitted(["1", "2", "6"])
    found = constant_baseline("rmse", numbers, ["1", "2", "6"], numbers.encode(["2", "4"]))
    assert found == Baseline(pytest.approx(math.sqrt((1 + 1) / 2)), "always the mean")
    grades = Target("ordinal", ("0", "1", "2"))
    assert constant_baseline(
        "qwk", grades, ["0", "0", "2", "2"], grades.encode(["0", "1", "2"])
    ).value == pytest.approx(0)
    # Not grade 1
    assert (
        constant_baseline(
            "accuracy", grades, ["0", "0", "0", "2", "2"], grades.encode(["0", "1", "2", "0"])
        ).value
        == 0.5
    )


@pytest.mark.parametrize(
    ("metric", "value"), [("qwk", 0.0), ("mcc", 0.0), ("balanced_accuracy", 1 / 3), ("accuracy", 0.4)]
)
def test_a_constant_guess_names_a_class_only_where_another_one_scores_less(metric: str, value: float) -> None:
    grades, truth = Target("ordinal", ("0", "1", "2")), ["0", "1", "2", "0", "1"]
    constants = {
        name: constant_baseline(metric, grades, [name], grades.encode(truth)) for name in grades.names
    }
    equal = len({round(one.value, 9) for one in constants.values()}) == 1
    assert equal is (metric != "accuracy") and constants["0"].value == pytest.approx(value)
    said = "always one grade, whichever" if equal else "always '0'"
    assert constants["0"].words == said
    kind = multiclass(grades.names)
    if equal and metric != "qwk":
        found = constant_baseline(metric, kind, ["0"], kind.encode(truth))
        assert found.words == "always one class, whichever"


def test_more_validation_rows_are_advised_only_of_labelled_rows_and_where_the_recipe_splits() -> None:
    recipe = load_recipe("lora-ours", {"data.val_fraction": 0.05})
    said = [recipe, plan_schedule(recipe, 1551), 1551, 29, 24, False, "multiclass"]
    assert "--set data.val_fraction=0.2 gives 316" in advise(*said)[0]
    assert "--set data.val_fraction=0.2 gives 116" in advise(*said, num_pseudo=1000)[0]
    assert "val_fraction" not in advise(*said, new_split=False)[0]


# ---- while it trains, and at the end ----


def test_the_watch_speaks_after_the_warm_up_and_half_way() -> None:
    watch = Watch(
        Baseline(0.1, "always 'apple'"), "val_accuracy", True, 100, {"warmup_steps": 10, "total_steps": 100}
    )
    history: list[dict] = []
    said = []
    for epoch in range(1, 11):
        history.append({"epoch": epoch, "step": 10 * epoch, "val_accuracy": 0.1 if epoch < 10 else 0.9})
        said.append(watch.warning(history))
    assert [number for number, text in enumerate(said, start=1) if text] == [2, 6]
    assert "val_accuracy 0.1000" in said[1] and "always 'apple' 0.1000" in said[1]
    assert "chance on" not in said[1]
    few = Watch(Baseline(0.5, "always 'a'"), "val_accuracy", True, 2, {"warmup_steps": 1, "total_steps": 4})
    told = few.warning([{"epoch": 1, "step": 2, "val_accuracy": 0.75}])
    assert_says(told, "by more than chance on 2 rows", "val_accuracy 0.7500", "0.5000")


def test_questions_below_their_floor_are_told_after_a_third_and_at_the_end_what_to_change() -> None:
    recipe = Recipe(task="vqa", backbone="any", text_backbone="any")
    floor = Baseline(0.5, "the most frequent answer to the same question")
    watch = FloorWatch(floor, "val_accuracy", recipe, {"total_steps": 90}, keep_last=False)
    history = [{"epoch": epoch, "step": 10 * epoch, "val_accuracy": 0.4} for epoch in range(1, 10)]
    said = [watch.warning(history[: epoch + 1]) for epoch in range(9)]
    assert [number for number, text in enumerate(said, start=1) if text] == [3, 9]
    assert "vqa-bert-vit-ours" in said[2]
    assert "head.text_pooling=mean" in said[2]
    assert "val_accuracy 0.4000" in said[2]
    good = FloorWatch(floor, "val_accuracy", recipe, {"total_steps": 90}, keep_last=False)
    assert not any(good.warning([*history[:2], {"step": step, "val_accuracy": 0.5}]) for step in (30, 90))
    falling = [*history[:2], {"step": 30, "val_accuracy": 0.6}, {"step": 90, "val_accuracy": 0.4}]
    told = {}
    for last in (False, True):
        watch = FloorWatch(floor, "val_accuracy", recipe, {"total_steps": 90}, keep_last=last)
        told[last] = [watch.warning(falling[:epochs]) for epochs in (3, 4)]
    assert told[False] == [None, None] and told[True][0] is None  # the epoch that is kept is above
    assert "val_accuracy 0.4000" in told[True][1]
    assert "checkpoint.keep=best" in told[True][1]
    assert "0.6000" in told[True][1]
    ours = load_recipe("vqa-bert-vit-ours")  # which follows all of this
    assert [line.split()[0] for line in below_floor(ours)] == ["--epochs"]


@pytest.mark.parametrize(
    ("best", "higher", "metric", "expected"),
    [
        (0.12, True, "val_accuracy", True),  # two more of a hundred are chance
        (0.20, True, "val_accuracy", False),
        (0.51, True, "val_roc_auc", False),
        (0.10, False, "val_rmse", True),
        (0.09, False, "val_rmse", False),
    ],
)
def test_no_better(best: float, higher: bool, metric: str, expected: bool) -> None:
    assert no_better(Baseline(0.5 if "auc" in metric else 0.1, ""), best, higher, metric, 100) is expected


def test_a_run_that_learns_nothing_says_so_and_the_baseline_stands_beside_the_score(
    tmp_path: Path, tiny_backbone: Path, capsys
) -> None:
    make_competition(tmp_path / "data", per_class=12)
    flags = [
        *("--data", str(tmp_path / "data"), "--output", str(tmp_path / "run")),
        *("--backbone", str(tiny_backbone), "--precision", "fp32"),
    ]
    flags += "--epochs 2 --batch-size 4 --accumulation-steps 1 --set data.val_fraction=0.25 --lr 1e-9".split()
    assert train.main(flags) == 0
    told = capsys.readouterr()
    record = files.read_json(tmp_path / "run" / "run.json")
    assert record["baseline"] == {"value": pytest.approx(1 / 3), "words": "always 'blue'"}
    if record["best"]["value"] <= 1 / 3 + math.sqrt(2 / 9 / 9):
        assert "WARNING: after" in told.err and "0.3333" in told.err
    assert "a new head" in told.out and "always 'blue': 0.3333" in told.out
    html = build_report(tmp_path / "run").read_text(encoding="utf-8")
    assert "always &#39;blue&#39;: 33.3%" in html


@pytest.mark.parametrize(
    ("names", "flip", "pair"),
    [
        (("Left eye", "right eye", "nose"), True, ("Left eye", "right eye")),
        (("left", "RIGHT"), True, ("left", "RIGHT")),
        (("left", "right"), False, None),
        (("left", "centre"), True, None),
        (("cleft", "bright"), True, None),
    ],
)
def test_classes_that_mirroring_changes_are_named(names, flip, pair) -> None:
    lines = mirrored_sides(Augmentation(horizontal_flip=flip), names)
    assert len(lines) == (pair is not None)
    assert pair is None or all(repr(name) in lines[0] for name in pair)


@pytest.mark.parametrize(
    ("names", "changes", "flags"),
    [
        (("nose_x", "nose_y"), {}, ("random_resized_crop=false", "horizontal_flip=false")),
        (("X", "Y"), {"random_resized_crop": False}, ("horizontal_flip=false",)),
        (("nose_x", "eye_y"), {}, ()),
        (("max", "may"), {}, ()),
        (("x", "y"), {"random_resized_crop": False, "horizontal_flip": False}, ()),
        (
            ("x", "y"),
            {"random_resized_crop": False, "horizontal_flip": False, "rotation_degrees": 5},
            ("rotation_degrees=0",),
        ),
    ],
)
def test_coordinates_that_do_not_move_with_the_image_are_named(names, changes, flags) -> None:
    lines = moved_coordinates(Augmentation(**changes), names)
    assert len(lines) == bool(flags)
    assert not flags or lines[0].endswith(" ".join(f"--set augmentation.{flag}" for flag in flags))
