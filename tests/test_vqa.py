"""Question answering through train.py and inference.py: what it learns, what it writes, interrupted and
resumed, bad images.
"""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import assert_says

import inference
import train
from pipeline.competition.rows import Row
from pipeline.config import load_recipe
from pipeline.errors import Interrupted, UserError
from pipeline.files import write_json
from pipeline.folds.team import gather
from pipeline.kernel.make import main as make_kernel

TEXT = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
# Few steps must do
TEXT |= {"initializer_range": 0.2, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SAME = (
    "metrics.jsonl",
    "val_predictions.csv",
    "val_probs.npy",
    "head.safetensors",
    "model_bert/model.safetensors",
    "model_beit/model.safetensors",
)


def ask(colour: str, names: list[str]) -> list[tuple[str, str, str]]:
    """(question, answer, answer type) about an image of one colour."""
    asked = [
        ("What's the colour of this image?", colour, "other"),
        ("how many images are there", "1", "number"),
    ]
    return asked + [(f"Is it {name}?", "yes" if name == colour else "no", "yes/no") for name in names]


def make_questions(root: Path, per_colour: int = 6, test: int = 3) -> Path:
    """VQA v2's files: images of one colour in train2014/ and, without annotations, val2014/."""
    from conftest import COLOURS, colour_patch

    names = list(COLOURS)
    for split, count in (("train2014", per_colour), ("val2014", test // 3 or 1)):
        questions, annotations = [], []
        for image in range(count * 3):
            colour = names[image % 3]
            colour_patch(
                root / split / f"COCO_{split}_{image:012d}.jpg",
                COLOURS[colour],
                image + 1000 * (split == "val2014"),
            )
            for question, answer, kind in ask(colour, names):
                number = len(questions)
                questions.append({"image_id": image, "question": question, "question_id": number})
                answers = [
                    {"answer_id": i + 1, "answer": answer, "answer_confidence": "yes"} for i in range(10)
                ]
                annotations.append(
                    {
                        "question_id": number,
                        "image_id": image,
                        "multiple_choice_answer": answer,
                        "answer_type": kind,
                        "answers": answers,
                    }
                )
        write_json(
            root / f"v2_OpenEnded_mscoco_{split}_questions.json",
            {"data_subtype": split, "questions": questions},
        )
        if split == "train2014":
            write_json(
                root / f"v2_mscoco_{split}_annotations.json",
                {"data_subtype": split, "annotations": annotations},
            )
    return root


def recipe(folder: Path, backbone: Path, **changes: str) -> Path:
    """A recipe that can learn these images: product head, full fine-tuning."""
    keys = {
        "task": "vqa",
        "backbone": str(backbone),
        "text_architecture": json.dumps(TEXT),
        "lora": "{rank: 0}",
        "head": "{fusion: product, hidden_size: 32, activation: none, dropout: 0.1}",
        "optimizer": "{lr: 0.01}",
        "schedule": "{warmup_ratio: 0.1}",
        "data": "{val_fraction: 0.34, group_by_image: true}",
        "precision": "fp32",
        "epochs": "10",
        "batch_size": "5",
        "accumulation_steps": "1",
    } | changes
    path = folder / "mine.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in keys.items()))
    return path


def arguments(root: Path, recipe_path: Path, output: Path, *more: str) -> list[str]:
    return ["--recipe", str(recipe_path), "--data", str(root / "data"), "--output", str(output), *more]


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path) -> Path:
    """data/ and run/: three colours, asked in five ways, learnt."""
    root = tmp_path_factory.mktemp("learnt")
    make_questions(root / "data")
    assert train.main(arguments(root, recipe(root, tiny_backbone), root / "run")) == 0
    return root


def test_the_split_has_its_own_seed(tmp_path: Path, tiny_backbone: Path) -> None:
    """Another training seed, the same validation questions."""
    make_questions(tmp_path / "data")
    path = recipe(tmp_path, tiny_backbone, epochs="1")
    held = []
    for seed, split_seed in ((1, 5), (2, 5), (2, 6)):
        output = tmp_path / f"run-{seed}-{split_seed}"
        seeds = ["--seed", str(seed), "--set", f"data.split_seed={split_seed}"]
        assert train.main(arguments(tmp_path, path, output, *seeds)) == 0
        held.append(set(pd.read_csv(output / "val_predictions.csv")["id"]))
    assert held[0] == held[1] != held[2]


def test_it_learns_what_neither_image_nor_question_alone_tells(learnt: Path) -> None:
    record = json.loads((learnt / "run" / "run.json").read_text())
    floors = json.loads((learnt / "run" / "floors.json").read_text())
    assert record["best"]["value"] == 1.0
    majority, question, shuffled = floors.values()
    assert majority < question < 0.85  # "no" is right for two colours of three, "1" always
    assert shuffled < question
    metrics = json.loads((learnt / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert {
        "val_weighted_f1",
        "val_weighted_recall",
        "val_weighted_precision",
        "val_loss",
        "val_vqa_accuracy",
    } <= metrics.keys()
    assert {"val_vqa_accuracy_yes_no", "val_vqa_accuracy_number", "val_vqa_accuracy_other"} <= metrics.keys()


def test_a_plan_for_questions_is_made_and_says_the_size_of_their_images(
    learnt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        train.main(["--plan", "9h", "--recipe", str(learnt / "mine.yaml"), "--data", str(learnt / "data")])
        == 0
    )
    assert "images of 32 px" in capsys.readouterr().out
    planned = load_recipe(str(tmp_path / "plan-data.yaml"))
    assert (planned.task, planned.image_size) == ("vqa", 32) and planned.epochs >= 10


def test_a_run_leaves_the_files_of_the_design(learnt: Path) -> None:
    run = learnt / "run"
    assert {path.name for path in run.iterdir()} == {
        *(
            "model_bert model_beit head.safetensors run.json metrics.jsonl timing.jsonl "
            "val_predictions.csv val_probs.npy"
        ).split(),
        *("floors.json", "thumbnails.jsonl", "report.html", "figures", "tensorboard", "state"),
    }
    table = pd.read_csv(run / "val_predictions.csv", dtype=str, keep_default_na=False)
    probs = np.load(run / "val_probs.npy")
    record = json.loads((run / "run.json").read_text())
    assert list(table.columns) == "id path label predicted confidence question answer_type".split()
    assert [record["class_names"][best] for best in probs.argmax(axis=1)] == list(table["predicted"])
    assert set(record["counts"]["train_per_class"]) == {"blue", "green", "red", "1", "yes", "no"}
    page = (run / "report.html").read_text()
    assert "30 validation questions" in page and "Right answers" in page and "is it" in page.lower()
    assert (run / "figures" / "answers.png").exists()


def test_predictions_are_answers_in_the_order_of_the_competition(learnt: Path, tmp_path: Path) -> None:
    output = tmp_path / "predictions.csv"
    flags = ["--model", str(learnt / "run"), "--data", str(learnt / "data"), "--output"]
    assert inference.main([*flags, str(output)]) == 0
    table = pd.read_csv(output, dtype=str, keep_default_na=False)
    questions = json.loads((learnt / "data" / "v2_OpenEnded_mscoco_val2014_questions.json").read_text())[
        "questions"
    ]
    assert list(table.columns) == ["question_id", "answer"] and list(table["question_id"]) == [
        str(row["question_id"]) for row in questions
    ]
    expected = [
        answer
        for image in range(3)
        for _, answer, _ in ask(["blue", "green", "red"][image], ["blue", "green", "red"])
    ]
    assert list(table["answer"]) == expected
    assert inference.main([*flags, str(tmp_path / "results.json"), "--batch-size", "2"]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results == [
        {"question_id": row["question_id"], "answer": answer}
        for row, answer in zip(questions, expected, strict=True)
    ]


@pytest.fixture(scope="module")
def undisturbed(learnt: Path, tiny_backbone: Path) -> Path:
    """A run of two epochs with dropout everywhere, accumulation and questions that share images; its recipe
    is mine.yaml beside it.
    """
    root = learnt / "undisturbed"
    root.mkdir()
    text = json.dumps(TEXT | {"hidden_dropout_prob": 0.1})
    path = recipe(
        root, tiny_backbone, epochs="2", batch_size="8", accumulation_steps="2", text_architecture=text
    )
    train.main(arguments(learnt, path, root / "run"))
    return root


@pytest.mark.parametrize("micro_batch", [1, 8])  # inside a group, in the next epoch
def test_interrupted_and_resumed_is_bit_identical(
    learnt: Path, undisturbed: Path, tmp_path: Path, monkeypatch, micro_batch: int
) -> None:
    from test_resume import interrupt_after

    with monkeypatch.context() as patched:
        interrupt_after(patched, micro_batch)
        with pytest.raises(Interrupted):
            train.main(arguments(learnt, undisturbed / "mine.yaml", tmp_path / "run"))
    assert train.main(["--data", str(learnt / "data"), "--output", str(tmp_path / "run"), "--resume"]) == 0
    for name in SAME:
        assert (tmp_path / "run" / name).read_bytes() == (undisturbed / "run" / name).read_bytes(), name


def test_another_answer_set_is_another_run(
    learnt: Path, undisturbed: Path, tmp_path: Path, monkeypatch
) -> None:
    from test_resume import interrupt_after

    with monkeypatch.context() as patched:
        interrupt_after(patched, 1)
        with pytest.raises(Interrupted):
            train.main(arguments(learnt, undisturbed / "mine.yaml", tmp_path / "run"))
    with pytest.raises(
        UserError, match=r"head\.fusion: product -> concat(?s:.*)data\.top_answers: 1000 -> 3"
    ):
        flags = ["--resume", "changed", "--set", "data.top_answers=3", "--set", "head.fusion=concat"]
        train.main(["--data", str(learnt / "data"), "--output", str(tmp_path / "run"), *flags])


def test_lora_on_both_encoders_from_folders(learnt: Path, tmp_path: Path, capsys) -> None:
    """What `--set text_backbone` and `--backbone` name may be runs of one's own; adapters for both, inference
    merges them.
    """
    encoders = {"backbone": learnt / "run" / "model_beit", "text_backbone": learnt / "run" / "model_bert"}
    path = recipe(
        tmp_path,
        encoders["backbone"],
        text_architecture="null",
        lora="{rank: 2, targets: [query, value]}",
        epochs="1",
    )
    output = tmp_path / "run"
    assert (
        train.main(arguments(learnt, path, output, "--set", f"text_backbone={encoders['text_backbone']}"))
        == 0
    )
    assert {path.name for path in (output / "model_lora").iterdir()} == {"bert", "beit"}
    # rank 2 x (in + out) on query and value: one layer of 16 and two of 32; a head of 16 -> 32, 32 -> 32, 32
    # -> 6
    assert "adapter 640, head 1,798" in capsys.readouterr().out
    command = [
        *("--model", str(output), "--data", str(learnt / "data")),
        *("--output", str(tmp_path / "predictions.csv")),
    ]
    assert inference.main(command) == 0


FROZEN = "{fusion: cross_attention, text_pooling: mean, activation: gelu, hidden_size: 16, dropout: 0.1}"


@pytest.mark.parametrize(
    "changes", [{"head_only": "true"}, {"freeze": "image"}], ids=["both frozen", "image frozen"]
)
def test_frozen_backbones_are_computed_once_and_a_resumed_run_is_bit_identical(
    learnt: Path, tmp_path: Path, monkeypatch, changes: dict[str, str]
) -> None:
    """An image is decoded once in training and validation together; after an interruption the same bits come
    out.
    """
    from test_resume import interrupt_after

    from pipeline.models.fusion import FusionModel

    path = recipe(
        tmp_path,
        learnt / "run" / "model_beit",
        text_architecture="null",
        text_backbone=str(learnt / "run" / "model_bert"),
        head=FROZEN,
        epochs="2",
        batch_size="8",
        **changes,
    )
    seen, original = [], FusionModel.see
    monkeypatch.setattr(
        FusionModel, "see", lambda model, pixels: seen.append(pixels.shape[0]) or original(model, pixels)
    )
    assert train.main(arguments(learnt, path, tmp_path / "whole")) == 0
    assert (seen.count(12), seen.count(6)) == (1, 1)  # the training images together, and those of validation
    monkeypatch.setattr(FusionModel, "see", original)
    with monkeypatch.context() as patched:
        interrupt_after(patched, 3)
        with pytest.raises(Interrupted):
            train.main(arguments(learnt, path, tmp_path / "run"))
    assert train.main(["--data", str(learnt / "data"), "--output", str(tmp_path / "run"), "--resume"]) == 0
    for name in SAME:
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    # Computed from kept features; inference computes from pixels
    probs = np.load(tmp_path / "whole" / "val_probs.npy")
    from pipeline.run import load_run
    from pipeline.tasks.question_predictor import rebuild

    answerer = rebuild(load_run(tmp_path / "whole"), 6)
    table = pd.read_csv(tmp_path / "whole" / "val_predictions.csv", dtype=str)
    rows = [
        Row(str(i), Path(path), None, question=question)
        for i, (path, question) in enumerate(zip(table["path"], table["question"], strict=True))
    ]
    batch = next(iter(answerer.batches(rows, len(rows))))
    again = torch.empty(len(rows), 6)
    again[batch["row"]] = answerer.logits(batch).softmax(dim=1)
    np.testing.assert_allclose(probs, again.numpy(), rtol=1e-4, atol=1e-5)


def test_an_answer_outside_the_kept_ones_is_wrong_and_said(
    learnt: Path, tiny_backbone: Path, tmp_path: Path, capsys
) -> None:
    path = recipe(
        tmp_path,
        tiny_backbone,
        epochs="1",
        optimizer="{lr: 1.0e-9}",
        data="{val_fraction: 0.34, top_answers: 2}",
    )
    assert train.main(arguments(learnt, path, tmp_path / "run")) == 0
    told = capsys.readouterr()
    assert "count as wrong" in told.out
    table = pd.read_csv(tmp_path / "run" / "val_predictions.csv", dtype=str)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert len(record["class_names"]) == 2 and set(table["label"]) == {
        "blue",
        "green",
        "red",
        "1",
        "yes",
        "no",
    }
    assert (table["label"] == table["predicted"]).mean() == pytest.approx(record["best"]["value"])
    floor = json.loads((tmp_path / "run" / "floors.json").read_text())[
        "the question alone: its most frequent training answer"
    ]
    below = (
        f"val_accuracy {record['best']['value']:.4f}, the most frequent answer to the same question "
        f"{floor:.4f}"
    )
    # With this learning rate nothing was learnt; a warning says so
    assert below in told.err and "--set head.text_pooling=mean" in told.err


def test_a_image_is_decoded_once_for_its_questions_and_padding_is_per_batch(
    learnt: Path, tiny_backbone: Path, monkeypatch
) -> None:
    from pipeline.competition.layout import read_layout
    from pipeline.config import load_recipe
    from pipeline.data import dataset
    from pipeline.tasks import vqa

    (learnt / "once").mkdir()
    built = vqa.build(
        load_recipe(str(recipe(learnt / "once", tiny_backbone))), read_layout(learnt / "data", need="train")
    )
    decoded, original = [], dataset.opened
    monkeypatch.setattr(dataset, "opened", lambda path: decoded.append(path) or original(path))
    batches = [list(built.task.train_batches(epoch, 0, 10, 20)) for epoch in (0, 1)]
    assert len(decoded) == len(set(decoded)) == 12  # also across epochs: small images stay in memory
    assert [len(batch["row"]) for batch in batches[0]] == [10] * 6
    assert all(len(batch["pixels"]) == 2 for batch in batches[0])  # ten questions about two images
    assert not torch.equal(batches[0][0]["row"], batches[1][0]["row"])
    assert sorted(torch.cat([batch["row"] for batch in batches[0]]).tolist()) == list(range(60))
    rest = list(built.task.train_batches(0, 30, 10, 20))
    # A resumed epoch sees the same batches
    assert all(torch.equal(rest[0][name], batches[0][3][name]) for name in rest[0])
    assert {batch["input_ids"].shape[1] for batch in built.task.val_batches(1)} == {5, 7, 9}


def test_the_counted_memory_is_what_a_real_step_keeps(learnt: Path) -> None:
    from test_memory import really_saved

    from pipeline.recipe import Recipe
    from pipeline.run import load_run
    from pipeline.tasks.question_predictor import account_vqa, rebuild
    from pipeline.training.compute import Compute

    answerer = rebuild(load_run(learnt / "run"), 6)
    answerer.model.requires_grad_(True)
    memory = account_vqa(answerer, 7, Compute(torch.device("cpu"), "fp32"), "adamw", Recipe(backbone="any"))

    def loss(model: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
        count = len(pixels)
        ids = torch.zeros(count, 7, dtype=torch.long)
        mask = torch.ones_like(ids)
        mask[0, 3:] = 0  # a batch without padding needs no mask at all
        logits = model(pixels, torch.arange(count), ids, mask)
        return torch.nn.functional.cross_entropy(logits, torch.zeros(count, dtype=torch.long))

    for count in (1, 4):
        counted = memory.saved_fixed + count * memory.saved_per_image
        assert counted == pytest.approx(really_saved(answerer.model, loss, count), rel=0.02)


def test_other_questions_about_the_same_images_are_answered_anew(learnt: Path, tmp_path: Path) -> None:
    shutil.copytree(learnt, tmp_path / "copy")
    data, output = tmp_path / "copy/data", tmp_path / "predictions.csv"
    flags = ["--model", str(tmp_path / "copy/run"), "--data", str(data), "--output", str(output)]
    assert inference.main(flags) == 0
    path = data / "v2_OpenEnded_mscoco_val2014_questions.json"
    asked = json.loads(path.read_text())
    for row in asked["questions"]:
        row["question"] = "how many images are there"
    write_json(path, asked)
    assert inference.main(flags) == 0
    assert set(pd.read_csv(output, dtype=str)["answer"]) == {"1"}


def test_a_bad_test_image_still_has_its_rows(learnt: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(learnt / "data", tmp_path / "data")
    (tmp_path / "data" / "val2014" / "COCO_val2014_000000000001.jpg").write_bytes(b"broken")
    output = tmp_path / "predictions.csv"
    arguments = ["--model", str(learnt / "run"), "--data", str(tmp_path / "data"), "--output", str(output)]
    assert inference.main(arguments) == 0
    assert "1 of 3 test images cannot be decoded" in capsys.readouterr().err
    assert len(pd.read_csv(output)) == 15


def test_without_a_training_image_that_can_be_decoded_nothing_is_trained(
    learnt: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    shutil.copytree(learnt / "data", tmp_path / "data")
    for image in (tmp_path / "data" / "train2014").iterdir():
        image.write_bytes(b"broken")
    data = "{val_fraction: 0.34, skip_bad_images: true}"
    with pytest.raises(UserError, match=r"(?s)no training question .* left out .*skip_bad_images"):
        train.main(arguments(tmp_path, recipe(tmp_path, tiny_backbone, data=data), tmp_path / "run"))


@pytest.mark.parametrize("views", ["flip", "crops"])
def test_views_of_questions_are_refused_for_what_they_are(learnt: Path, tmp_path: Path, views: str) -> None:
    """Leaving one view out would not help."""
    words = ["--model", str(learnt / "run"), "--data", str(learnt / "data"), "--tta", views]
    with pytest.raises(UserError) as caught:
        inference.main([*words, "--output", str(tmp_path / "p.csv")])
    assert_says(str(caught.value), "--tta", "question")
    assert "leave flip out" not in str(caught.value)


@pytest.mark.parametrize("engine", ["openvino", "openvino-int8"])
def test_a_kernel_of_questions_by_openvino_is_refused_before_anything_is_made(
    learnt: Path, tmp_path: Path, engine: str
) -> None:
    words = ["--model", str(learnt / "run"), "--data", str(learnt / "data"), "--competition", "colours"]
    with pytest.raises(UserError) as caught:
        make_kernel([*words, "--output", str(tmp_path / "kernel"), "--engine", engine])
    assert_says(str(caught.value), f"--engine {engine}", str(learnt / "run"))
    assert not (tmp_path / "kernel").exists()


def test_task_and_data_must_fit(learnt: Path, competition: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"is for vqa, .* for classification: use --recipe vqa-bert-vit-lora-r8"
    ):
        train.main(
            [
                *("--data", str(learnt / "data"), "--backbone", str(tiny_backbone)),
                *("--output", str(tmp_path / "run")),
            ]
        )
    with pytest.raises(UserError, match=r"is for classification, .* mine is for vqa"):
        train.main(
            [
                *("--recipe", str(learnt / "mine.yaml"), "--data", str(competition)),
                *("--output", str(tmp_path / "run")),
            ]
        )
    with pytest.raises(UserError, match=r"is for classification, .* was trained for vqa"):
        inference.main(
            ["--model", str(learnt / "run"), "--data", str(competition), "--output", str(tmp_path / "p.csv")]
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_architecture": "null"}, "text_backbone: .*text_architecture"),
        ({"text_backbone": "google-bert/bert-base-uncased"}, "text_backbone: .*text_architecture"),
        ({"lora": "{rank: 4}"}, "its random word vectors must be trained"),
        ({"freeze": "text"}, "its random word vectors must be trained"),
        (
            {"freeze": "image", "head_only": "true", "text_architecture": "null", "text_backbone": "any"},
            "freeze: expected none with head_only",
        ),
        ({"head": "{fusion: cross_attention, hidden_size: 30}"}, "expected a multiple of 8"),
        ({"task": "classification"}, "text_backbone: .*vqa.*classification"),
        ({"data": "{other_answers: ignore}"}, r"data\.other_answers"),
    ],
)
def test_recipes_that_cannot_work_are_refused(
    tiny_backbone: Path, tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    from pipeline.config import load_recipe

    with pytest.raises(UserError, match=message):
        load_recipe(str(recipe(tmp_path, tiny_backbone, **changes)))


def test_images_are_left_as_they_are_unless_a_recipe_asks(tiny_backbone: Path, tmp_path: Path) -> None:
    """Mirrored, "which side?" has another answer."""
    from pipeline.config import load_recipe

    path = str(recipe(tmp_path, tiny_backbone))
    assert not load_recipe(path).augmentation.horizontal_flip
    assert not load_recipe(path).augmentation.random_resized_crop
    assert load_recipe(path, {"augmentation.horizontal_flip": True}).augmentation.horizontal_flip


def test_runs_with_other_answers_name_them_and_the_command_that_makes_them_equal(
    learnt: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    changes = {"epochs": "1", "optimizer": "{lr: 1.0e-9}"}
    path = recipe(tmp_path, tiny_backbone, data="{val_fraction: 0.34, top_answers: 2}", **changes)
    assert train.main(arguments(learnt, path, tmp_path / "few", "--seed", "7")) == 0
    with pytest.raises(UserError) as caught:
        gather([learnt / "run", tmp_path / "few"])
    message = str(caught.value)
    known = json.loads((learnt / "run/run.json").read_text())["class_names"]
    assert f"answers of {len(known)} only in {learnt / 'run'} ('" in message
    assert "data.top_answers 2, seed 7" in message and "data.top_answers 1000, seed 42" in message
    command = shlex.split(message.splitlines()[-1])
    assert command[-2:] == ["--output", str(tmp_path / "few-same-answers")]
    assert command[:2] == ["python", "train.py"] and train.main(command[2:]) == 0
    assert len(gather([learnt / "run", tmp_path / "few-same-answers"]).leaves) == 2


def test_runs_with_other_answers_by_their_seed_count_them_before_the_split(
    learnt: Path, tmp_path: Path
) -> None:
    """Only the recorded list is changed: answers so rare that the seed decides are slow to make."""
    other = shutil.copytree(learnt / "run", tmp_path / "other")
    record = json.loads((other / "run.json").read_text())
    names = [*record["class_names"][:-1], "a rare one"]
    record["class_names"] = record["target"]["names"] = names
    write_json(other / "run.json", record | {"recipe": record["recipe"] | {"seed": 1}})
    with pytest.raises(UserError) as caught:
        gather([learnt / "run", other])
    first, second = str(caught.value).splitlines()[-2:]
    assert "'a rare one'" in str(caught.value) and "--set data.other_answers=drop" in first
    assert first.endswith(f"--output {learnt / 'run'}-same-answers") and second.endswith(
        f"--output {other}-same-answers"
    )
    write_json(other / "run.json", record)
    with pytest.raises(UserError, match=r"so the questions were others.*\n.*--data"):
        gather([learnt / "run", other])
