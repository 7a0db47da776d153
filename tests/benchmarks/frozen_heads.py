"""What small_questions compares with: the question alone, and logistic regression on frozen features, both on
the training rows of a run.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

BY_COUNT = "the question alone: most frequent answer to the same words"
BAG_OF_WORDS = "the question alone: logistic regression on a bag of words"
FROZEN_WORDS = "the question alone: logistic regression on its features"
QUESTION_ALONE = (BY_COUNT, BAG_OF_WORDS, FROZEN_WORDS)
PICTURES = ("class token", "class token and mean patch")
WAYS = ("side by side", "multiplied", "side by side and multiplied")
HEADS = tuple(f"logistic regression, {way}, {picture}" for picture in PICTURES for way in WAYS)
PENALTIES = (0.01, 0.1, 1, 10)  # C of scikit-learn; chosen on the validation rows
MAX_ITERATIONS = 300

# name, accuracy on validation and held-back rows, seconds, trained parameters
Found = tuple[str, float, float, float, int]
Parts = tuple[np.ndarray, np.ndarray, np.ndarray]  # of training, validation and held-back rows


def simple_heads(recipe_file: Path, laid_out: Path, solution: Mapping[str, str]) -> list[Found]:
    """Each of `QUESTION_ALONE` and `HEADS` on the competition `laid_out`; rows, split and frozen features are
    those of a run of the recipe.

    Without scikit-learn only the count of answers is left, and a line says so.
    """
    from pipeline.competition.layout import read_layout
    from pipeline.config import load_recipe
    from pipeline.tasks import vqa
    from pipeline.training.compute import choose_compute

    frozen = {
        "head_only": True,
        "lora.rank": 0,
        "head.fusion": "cross_attention",
        "head.text_pooling": "mean",
        "head.hidden_size": 8,
    }
    recipe = load_recipe(str(recipe_file), frozen)
    competition = read_layout(laid_out)
    task = vqa.build(recipe, competition).task
    held = [row for row in competition.test if row.id in solution]
    number = {name: index for index, name in enumerate(task.class_names)}
    labels = task.train_labels, task.val_labels, np.array([number.get(solution[row.id], -1) for row in held])
    asked = tuple([row.question or "" for row in rows] for rows in (task.train_rows, task.val_rows, held))
    found = [(BY_COUNT, *_by_count(asked, labels), 0.0, 0)]
    try:
        from sklearn.feature_extraction.text import CountVectorizer
    except ImportError:
        print("scikit-learn is not installed: rows of logistic regression are left out", file=sys.stderr)
        return found
    bag = CountVectorizer(token_pattern=r"\w+", ngram_range=(1, 2)).fit(asked[0])
    found.append(
        _fitted(
            BAG_OF_WORDS, lambda part: bag.transform(asked[part]).toarray().astype(np.float32), labels, 0.0
        )
    )
    begun = time.monotonic()
    compute = choose_compute(recipe.precision)
    task.to_device(compute, fresh=True)
    task.model.eval()
    features = [
        _features(task, dataset, compute)
        for dataset in (task.train_set, task.val_set, task.predictor.dataset(held))
    ]
    seconds = time.monotonic() - begun
    found.append(_fitted(FROZEN_WORDS, lambda part: features[part][0], labels, seconds))
    for name, join in _joined():
        found.append(_fitted(name, lambda part, join=join: join(*features[part]), labels, seconds))
    return found


def _features(task: object, dataset: object, compute: object) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N, Dq) of every question, (N, Dv) of its image's class token, and of the mean of its patches;
    float32.
    """
    from pipeline.tasks.frozen_features import image_features, question_features

    question = question_features(task.model, dataset, compute)
    tokens = image_features(task.model, task.preprocessing.normalize, dataset, 0, compute)
    if question is None or tokens is None:
        raise MemoryError("too many images: their tokens do not fit into what a run keeps")
    pictures = tokens[:, 0], tokens[:, 1:].mean(dim=1)
    return question.numpy(), *(picture[dataset.image_of_row].numpy() for picture in pictures)


def _joined() -> Iterator[tuple[str, Callable[..., np.ndarray]]]:
    """The name of each of `HEADS`, and how it joins question, class token and mean patch."""
    for picture in PICTURES:
        for way in WAYS:

            def join(
                question: np.ndarray,
                first: np.ndarray,
                mean: np.ndarray,
                picture: str = picture,
                way: str = way,
            ) -> np.ndarray:
                seen = [first] if picture == PICTURES[0] else [first, mean]
                beside = [question, *seen] if way != WAYS[1] else []
                times = [_scaled(question) * _scaled(one) for one in seen] if way != WAYS[0] else []
                return np.concatenate([*beside, *times], axis=1)

            yield f"logistic regression, {way}, {picture}", join


def _scaled(features: np.ndarray) -> np.ndarray:
    """Rows of length one, so that neither part decides the size of a product."""
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def _by_count(asked: tuple[list[str], ...], labels: Parts) -> tuple[float, float]:
    """Validation and held-back accuracy of the most frequent training answer to the same words; of new words
    of all answers.
    """
    counts: dict[str, np.ndarray] = {}
    for question, label in zip(asked[0], labels[0].tolist(), strict=True):
        counts.setdefault(question, np.zeros(labels[0].max() + 1))[label] += 1
    usual = int(np.bincount(labels[0]).argmax())
    answers = {question: int(count.argmax()) for question, count in counts.items()}
    val, held = (
        float(
            np.mean(
                [
                    answers.get(question, usual) == label
                    for question, label in zip(asked[part], labels[part], strict=True)
                ]
            )
        )
        for part in (1, 2)
    )
    return val, held


def _fitted(name: str, features: Callable[[int], np.ndarray], labels: Parts, seconds: float) -> Found:
    """Logistic regression on standardised features, its penalty chosen on the validation rows."""
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    begun = time.monotonic()
    train, val, held = (features(part) for part in range(3))
    mean, deviation = train.mean(axis=0), train.std(axis=0)
    deviation[deviation < 1e-6] = 1
    train, val, held = ((part - mean) / deviation for part in (train, val, held))
    best = (-1.0, 0.0, 0)
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore")  # a fit that has not quite converged is a head all the same
        for penalty in PENALTIES:
            fit = LogisticRegression(C=penalty, max_iter=MAX_ITERATIONS).fit(train, labels[0])
            scores = tuple(
                float(np.mean(fit.predict(part) == label))
                for part, label in ((val, labels[1]), (held, labels[2]))
            )
            best = max(best, (*scores, fit.coef_.size + fit.intercept_.size), key=lambda one: one[0])
    return name, best[0], best[1], seconds + time.monotonic() - begun, best[2]
