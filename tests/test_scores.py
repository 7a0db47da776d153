"""Answers scored against a table or VQA annotations; images are in test_submission.py."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support

from pipeline.competition.questions import clean_answer
from pipeline.competition.rows import Competition
from pipeline.errors import UserError
from pipeline.forms.form import SubmissionForm
from pipeline.predictions import Predictions
from pipeline.submission.answer_grading import score_answers
from pipeline.submission.grading import score_predictions
from pipeline.submission.score import main
from pipeline.submission.solution import Scores
from pipeline.submission.write import is_results_json, write_results_json
from pipeline.targets.target import multiclass

TRUTH = [
    (1, "yes", "yes/no"),
    (2, "T-shirt", "other"),
    (3, "red", "other"),
    (4, "2", "number"),
    (5, "green", "other"),
    (6, "no", "yes/no"),
]
SAID = ["yes", "t shirt", "blue", "2", "red", "yes"]


def annotations(path: Path, truth: Sequence[tuple[int, str, str]] = TRUTH, agreeing: int = 10) -> Path:
    """`agreeing` of ten annotators gave the agreed answer."""
    entries = [
        {
            "question_id": number,
            "multiple_choice_answer": answer,
            "answers": [
                {"answer": answer if who < agreeing else "else", "answer_id": who} for who in range(10)
            ],
            "answer_type": kind,
        }
        for number, answer, kind in truth
    ]
    path.write_text(json.dumps({"annotations": entries}))
    return path


def results(path: Path, said: Sequence[str] = SAID) -> Path:
    path.write_text(
        json.dumps([{"question_id": number, "answer": answer} for number, answer in enumerate(said, start=1)])
    )
    return path


def table(path: Path, answers: Sequence[str], usage: Sequence[str] = ()) -> Path:
    rows = [
        f"{number},{answer}" + (f",{usage[number - 1]}" if usage else "")
        for number, answer in enumerate(answers, start=1)
    ]
    path.write_text("\n".join(["question_id,answer" + (",Usage" if usage else ""), *rows]) + "\n")
    return path


def run_folder(root: Path, class_names: Sequence[str]) -> Path:
    root.mkdir()
    (root / "run.json").write_text(json.dumps({"format": 1, "class_names": list(class_names), "task": "vqa"}))
    return root


def test_weighted_averages_are_those_of_every_answer(tmp_path: Path) -> None:
    """Answers that are never predicted are one class here; scikit-learn, with a class for each, gives the
    same.
    """
    scores = score_answers(
        table(tmp_path / "p.csv", SAID), table(tmp_path / "s.csv", [answer for _, answer, _ in TRUTH])
    )
    truth, said = [clean_answer(answer) for _, answer, _ in TRUTH], [clean_answer(answer) for answer in SAID]
    precision, recall, f1, _ = precision_recall_fscore_support(
        truth, said, average="weighted", zero_division=0
    )
    assert scores["rows"] == 6
    assert scores["metrics"] == pytest.approx(
        {"accuracy": 3 / 6, "weighted_precision": precision, "weighted_recall": recall, "weighted_f1": f1}
    )


def test_the_official_accuracy_by_type(tmp_path: Path) -> None:
    given = score_answers(results(tmp_path / "p.json"), annotations(tmp_path / "s.json", agreeing=3))[
        "metrics"
    ]
    # Three of ten agree: 0.9. "t shirt" is "T-shirt" in both comparisons.
    assert given["accuracy"] == 3 / 6
    assert given["vqa_accuracy"] == pytest.approx(0.9 * 3 / 6)
    assert (
        given["vqa_accuracy_yes_no"],
        given["vqa_accuracy_number"],
        given["vqa_accuracy_other"],
    ) == pytest.approx((0.45, 0.9, 0.3))


def test_both_forms_of_predictions_score_alike(tmp_path: Path) -> None:
    solution = annotations(tmp_path / "s.json")
    assert score_answers(results(tmp_path / "p.json"), solution) == score_answers(
        table(tmp_path / "p.csv", SAID), solution
    )


def test_answers_and_labels_have_scores_of_one_shape(tmp_path: Path) -> None:
    path = table(tmp_path / "s.csv", [answer for _, answer, _ in TRUTH])
    answers = score_answers(table(tmp_path / "p.csv", SAID), path)
    assert answers.keys() == score_predictions(path, path).keys() == Scores.__annotations__.keys()
    assert answers["of"].endswith(" answers") and not answers["pooled"]


def test_public_and_private_parts(tmp_path: Path) -> None:
    solution = table(
        tmp_path / "s.csv",
        [answer for _, answer, _ in TRUTH],
        ["Public", "Public", "Private", "Private", "Ignored", "Ignored"],
    )
    scores = score_answers(table(tmp_path / "p.csv", SAID), solution)
    assert (scores["rows"], scores["metrics"]["accuracy"]) == (4, 0.75)
    assert {part: metrics["accuracy"] for part, metrics in scores["parts"].items()} == {
        "Public": 1.0,
        "Private": 0.5,
    }


def test_ids_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)1 id missing: '6'"):
        score_answers(results(tmp_path / "p.json", SAID[:5]), annotations(tmp_path / "s.json"))
    with pytest.raises(UserError, match=r"1 \w+ id, row 6: '6'"):
        score_answers(results(tmp_path / "p.json"), annotations(tmp_path / "s.json", TRUTH[:5]))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = run_folder(tmp_path / "model", ["yes", "no", "t shirt", "blue", "2", "red"])
    arguments = [
        "--predictions",
        str(results(tmp_path / "p.json")),
        "--solution",
        str(annotations(tmp_path / "s.json")),
    ]
    assert main([*arguments, "--model", str(model), "--data", str(tmp_path / "none")]) == 0
    printed = capsys.readouterr().out
    lines = [line.split() for line in printed.splitlines()]
    assert ["accuracy", "0.5000"] in lines and ["vqa_accuracy_number", "1.0000"] in lines
    assert "labels of" in printed and "'green'" in printed and "'T-shirt'" not in printed
    # Officially a unanimous answer is compared as it is written: "t shirt" is not "T-shirt".
    assert json.loads((model / "scores.json").read_text())["metrics"]["vqa_accuracy"] == pytest.approx(2 / 6)
    other = run_folder(tmp_path / "other", ["yes", "no"])
    assert main([*arguments, "--model", str(other), "--data", str(tmp_path / "none")]) == 0
    assert "the scores are not stored" in capsys.readouterr().out and not (other / "scores.json").exists()


def competition(root: Path, task: Any = "vqa") -> Competition:
    form = SubmissionForm("label", ("question_id", "answer"), "question_id", ("12", "7"), None)
    return Competition(root, (), (), None, None, form, (), task)


def test_the_official_results_file(tmp_path: Path) -> None:
    probs = np.array([[0.2, 0.8], [0.9, 0.1]], dtype=np.float32)
    predictions = Predictions(("12", "7"), probs, multiclass(["yes", "no"]))
    write_results_json(tmp_path / "r.json", competition(tmp_path), predictions)
    assert json.loads((tmp_path / "r.json").read_text()) == [
        {"question_id": 12, "answer": "no"},
        {"question_id": 7, "answer": "yes"},
    ]
    with pytest.raises(UserError, match=r"q\.json: .*name a \.csv file: --output predictions\.csv"):
        is_results_json(tmp_path / "q.json", competition(tmp_path, "classification"))
    assert not is_results_json(tmp_path / "q.csv", competition(tmp_path, "classification"))
    assert is_results_json(tmp_path / "q.json", competition(tmp_path))
    with pytest.raises(UserError, match="'7'"):
        write_results_json(
            tmp_path / "q.json", competition(tmp_path), Predictions(("12",), probs[:1], predictions.target)
        )
    assert not (tmp_path / "q.json").exists()
