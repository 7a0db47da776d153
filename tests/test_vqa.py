"""Question answering through train.py and inference.py: what it learns, what it writes, interrupted and resumed, bad pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import inference
import train
from pipeline.errors import Interrupted
from pipeline.files import write_json

TEXT = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
TEXT |= {"initializer_range": 0.2, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # few steps must do
SAME = (
    "metrics.jsonl",
    "val_predictions.csv",
    "val_probs.npy",
    "head.safetensors",
    "model_bert/model.safetensors",
    "model_beit/model.safetensors",
)


def ask(colour: str, names: list[str]) -> list[tuple[str, str, str]]:
    """(question, answer, answer type) about a picture of one colour."""
    asked = [("What's the colour of this picture?", colour, "other"), ("how many pictures are there", "1", "number")]
    return asked + [(f"Is it {name}?", "yes" if name == colour else "no", "yes/no") for name in names]


def make_questions(root: Path, per_colour: int = 6, test: int = 3) -> Path:
    """VQA v2's files: pictures of one colour in train2014/ and, without annotations, val2014/."""
    from conftest import COLOURS, picture

    names = list(COLOURS)
    for split, count in (("train2014", per_colour), ("val2014", test // 3 or 1)):
        questions, annotations = [], []
        for image in range(count * 3):
            colour = names[image % 3]
            picture(root / split / f"COCO_{split}_{image:012d}.jpg", COLOURS[colour], image + 1000 * (split == "val2014"))
            for question, answer, kind in ask(colour, names):
                number = len(questions)
                questions.append({"image_id": image, "question": question, "question_id": number})
                answers = [{"answer_id": i + 1, "answer": answer, "answer_confidence": "yes"} for i in range(10)]
                annotations.append(
                    {"question_id": number, "image_id": image, "multiple_choice_answer": answer, "answer_type": kind, "answers": answers}
                )
        write_json(root / f"v2_OpenEnded_mscoco_{split}_questions.json", {"data_subtype": split, "questions": questions})
        if split == "train2014":
            write_json(root / f"v2_mscoco_{split}_annotations.json", {"data_subtype": split, "annotations": annotations})
    return root


def recipe(folder: Path, backbone: Path, **changes: str) -> Path:
    """A recipe that these pictures can be learnt with: product head, everything trained."""
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
        "epochs": "12",
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


def test_it_learns_what_neither_picture_nor_question_alone_tells(learnt: Path) -> None:
    record = json.loads((learnt / "run" / "run.json").read_text())
    floors = json.loads((learnt / "run" / "floors.json").read_text())
    assert record["best"]["value"] == 1.0
    majority, question, shuffled = floors.values()
    assert majority < question < 0.85  # "no" is right for two colours of three, "1" always
    assert shuffled < question
    metrics = json.loads((learnt / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"val_weighted_f1", "val_weighted_recall", "val_weighted_precision", "val_loss", "val_vqa_accuracy"} <= metrics.keys()
    assert {"val_vqa_accuracy_yes_no", "val_vqa_accuracy_number", "val_vqa_accuracy_other"} <= metrics.keys()


def test_a_run_leaves_the_files_of_the_design(learnt: Path) -> None:
    run = learnt / "run"
    assert {path.name for path in run.iterdir()} == {
        *(
            "model_bert",
            "model_beit",
            "head.safetensors",
            "run.json",
            "metrics.jsonl",
            "timing.jsonl",
            "val_predictions.csv",
            "val_probs.npy",
        ),
        *("floors.json", "report.html", "figures", "tensorboard", "state"),
    }
    table, probs = pd.read_csv(run / "val_predictions.csv", dtype=str, keep_default_na=False), np.load(run / "val_probs.npy")
    record = json.loads((run / "run.json").read_text())
    assert list(table.columns) == ["id", "path", "label", "predicted", "confidence", "question", "answer_type"]
    assert [record["class_names"][best] for best in probs.argmax(axis=1)] == list(table["predicted"])
    assert set(record["counts"]["train_per_class"]) == {"blue", "green", "red", "1", "yes", "no"}
    page = (run / "report.html").read_text()
    assert (
        "Answered as the annotators did" in page
        and "Is it" in page
        and "answers.png" in {path.name for path in (run / "figures").iterdir()}
    )


def test_predictions_are_answers_in_the_order_of_the_competition(learnt: Path, tmp_path: Path) -> None:
    output = tmp_path / "predictions.csv"
    flags = ["--model", str(learnt / "run"), "--data", str(learnt / "data"), "--output"]
    assert inference.main([*flags, str(output)]) == 0
    table = pd.read_csv(output, dtype=str, keep_default_na=False)
    questions = json.loads((learnt / "data" / "v2_OpenEnded_mscoco_val2014_questions.json").read_text())["questions"]
    assert list(table.columns) == ["question_id", "answer"] and list(table["question_id"]) == [str(row["question_id"]) for row in questions]
    expected = [answer for image in range(3) for _, answer, _ in ask(["blue", "green", "red"][image], ["blue", "green", "red"])]
    assert list(table["answer"]) == expected
    assert inference.main([*flags, str(tmp_path / "results.json"), "--batch-size", "2"]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results == [{"question_id": row["question_id"], "answer": answer} for row, answer in zip(questions, expected, strict=True)]


@pytest.mark.parametrize("micro_batch", [1, 4, 8])  # inside a group, between groups, in the next epoch
def test_interrupted_and_resumed_is_bit_identical(learnt: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch, micro_batch: int) -> None:
    from test_resume import interrupt_after

    path = recipe(tmp_path, tiny_backbone, epochs="2", batch_size="8", accumulation_steps="2")
    train.main(arguments(learnt, path, tmp_path / "whole"))
    with monkeypatch.context() as patched:
        interrupt_after(patched, micro_batch)
        with pytest.raises(Interrupted):
            train.main(arguments(learnt, path, tmp_path / "run"))
    assert train.main(["--data", str(learnt / "data"), "--output", str(tmp_path / "run"), "--resume"]) == 0
    for name in SAME:
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
