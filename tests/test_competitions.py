"""Small competitions of every kind, from what somebody downloaded to a grade: make data FROM=, train,
inference, scikit-learn.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import competitions
import numpy as np
import pandas as pd
import pytest
from competitions import Made
from sklearn import metrics
from sklearn.preprocessing import MultiLabelBinarizer

import inference
import train
from pipeline.fetch import install
from pipeline.submission import score

LEARN = tuple(
    "--lora-rank 0 --lr 3e-3 --epochs 10 --batch-size 8 --accumulation-steps 1 --precision fp32".split()
)
PLAIN = (
    "augmentation.random_resized_crop=false",
    "data.workers=0",
    "data.val_fraction=0.1",
    "optimizer.head_lr=0.01",
)


def grade(metric: str, made: Made, path: Path) -> tuple[float, float]:
    """The score of a predictions file and that of a constant one, both turned so that higher is better;
    computed by scikit-learn.
    """
    found = pd.read_csv(path, dtype=str, keep_default_na=False)
    assert tuple(found.columns) == made.columns
    assert list(found[made.columns[0]]) == list(made.answers)
    truth = pd.DataFrame(made.answers.values(), columns=made.columns[1:])
    cells = found[list(made.columns[1:])]
    if metric in ("roc_auc", "log_loss", "pf1", "rmse"):
        predicted, true = cells.astype(float).to_numpy(), truth.astype(float).to_numpy()
        assert len(np.unique(predicted)) > 4, "a probability or number is graded, and labels were written"
        if metric == "rmse":
            return -metrics.root_mean_squared_error(true, predicted), -float(true.std())
        assert ((predicted >= 0) & (predicted <= 1)).all()
        if metric == "roc_auc":
            return float(
                np.mean(
                    [
                        metrics.roc_auc_score(true[:, column], predicted[:, column])
                        for column in range(true.shape[1])
                    ]
                )
            ), 0.5
        if metric == "pf1":
            return float(2 * (predicted * true).sum() / (predicted.sum() + true.sum())), float(true.mean())
        if true.shape[1] > 1:
            uniform = np.full(true.shape, 1 / true.shape[1])
            return -metrics.log_loss(true.argmax(axis=1), predicted), -metrics.log_loss(
                true.argmax(axis=1), uniform
            )
        share = np.full(len(true), true.mean())
        return -metrics.log_loss(true[:, 0], predicted[:, 0]), -metrics.log_loss(true[:, 0], share)
    guesses, labels = cells.iloc[:, 0].tolist(), truth.iloc[:, 0].tolist()
    most = Counter(labels).most_common(5)
    if metric == "map_at_5":
        assert all(len(set(guess.split())) == 5 for guess in guesses)
        always = [" ".join(name for name, _ in most)] * len(labels)
        ours, floor = (
            [
                1 / (guess.split().index(label) + 1) if label in guess.split() else 0
                for guess, label in zip(rows, labels, strict=True)
            ]
            for rows in (guesses, always)
        )
        return float(np.mean(ours)), float(np.mean(floor))
    if metric == "samples_f2" or any(" " in label for label in labels):
        binarizer = MultiLabelBinarizer().fit([label.split() for label in labels])
        true, predicted = (
            binarizer.transform([text.split() for text in texts]) for texts in (labels, guesses)
        )
        constant = np.ones_like(true)
        beta, average = (2, "samples") if metric == "samples_f2" else (1, "macro")
        return tuple(
            metrics.fbeta_score(true, rows, beta=beta, average=average, zero_division=0)
            for rows in (predicted, constant)
        )
    constant = [most[0][0]] * len(labels)
    if metric == "qwk":
        return metrics.cohen_kappa_score(
            [int(x) for x in labels], [int(x) for x in guesses], weights="quadratic"
        ), 0.0
    function = {
        "accuracy": metrics.accuracy_score,
        "macro_f1": lambda true, rows: metrics.f1_score(true, rows, average="macro"),
    }[metric]
    return function(labels, guesses), function(labels, constant)


@pytest.mark.parametrize("kind", competitions.KINDS)
def test_from_a_download_to_a_grade(
    kind: str, tmp_path: Path, tiny_backbone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = competitions.KINDS[kind](tmp_path / "download")
    metric = made.flags[1]
    data, run, file = (str(tmp_path / name) for name in ("data", "run", "predictions.csv"))
    assert install.main(["--from", str(tmp_path / "download"), "--data", data]) == 0
    flags = [*LEARN, *(word for key in PLAIN for word in ("--set", key)), *made.flags]
    assert train.main(["--data", data, "--output", run, "--backbone", str(tiny_backbone), *flags]) == 0
    assert inference.main(["--data", data, "--model", run, "--output", file]) == 0
    found, constant = grade(metric, made, Path(file))
    assert found > constant
    # make score agrees with scikit-learn, and needs no flags
    pd.DataFrame([(name, *cells) for name, cells in made.answers.items()], columns=made.columns).to_csv(
        tmp_path / "truth.csv", index=False
    )
    capsys.readouterr()
    # Run and data folder are those that inference.py recorded
    assert score.main(["--solution", str(tmp_path / "truth.csv"), "--predictions", file]) == 0
    printed = dict(
        line.split()[:2] for line in capsys.readouterr().out.splitlines() if len(line.split()) == 2
    )
    assert float(printed[metric]) == pytest.approx(abs(found), abs=6e-5)
