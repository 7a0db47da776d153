"""Does test come from the same source as train? Train a classifier to distinguish them, and judge it out of
fold.

This is known as adversarial validation. The differences that it finds may be unimportant for the labels, and
another class mix in test shows too. So the numbers say how far a validation score can be trusted, but not
why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.competition.rows import Row
from pipeline.look.copies import Copies
from pipeline.look.image_facts import COLOUR_PX, ImageFacts
from pipeline.look.section import Grid, Section, Sheet, SmallImage, Strip
from pipeline.look.selection import Looked
from pipeline.wording import counted

FEWEST, FOLDS = 20, 5  # minimum of images of each part: with fewer an AUC means nothing; number of folds
MOST = 4_000  # maximum of images of each part for the classifier
SMALL_PX, SHOWN = 4, 12
SEED = 0
CHANCE = 2.0  # standard errors around 0.5 that count as chance


@dataclass(frozen=True)
class Told:
    """How well train and test are distinguished: out-of-fold AUC per kind of feature, and the test-likeness
    of train images.
    """

    aucs: dict[str, float]  # all, images, files
    error: float  # standard error of an AUC of 0.5 with this number of images
    train: tuple[Row, ...]
    likeness: np.ndarray  # (T,) out-of-fold probability of each training row to be a test image


def tell_apart(looked: Looked, sets: Sequence[Copies]) -> Told | None:
    """Fit and judge the classifier; None if a part has fewer than `FEWEST` images.

    Copies and images of one id share a fold.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from threadpoolctl import threadpool_limits

    rng = np.random.default_rng(SEED)
    parts = [looked.sound(looked.part(name)) for name in ("train", "test")]
    if min(map(len, parts)) < FEWEST:
        return None
    train, test = (
        [rows[place] for place in sorted(rng.permutation(len(rows))[:MOST].tolist())] for rows in parts
    )
    rows = [*train, *test]
    is_test = np.array([0] * len(train) + [1] * len(test))
    groups = _groups(rows, sets, len(train))
    if min(len(set(groups[is_test == part])) for part in (0, 1)) < FOLDS:
        return None
    features = {
        "images": np.stack([_of_pixels(one) for one in looked.facts_of(rows)]),
        "files": _of_files(looked.facts_of(rows)),
    }
    features["all"] = np.concatenate(list(features.values()), axis=1)
    folds = list(StratifiedGroupKFold(FOLDS, shuffle=True, random_state=SEED).split(rows, is_test, groups))
    aucs, likeness = {}, np.zeros(len(rows))
    for name in ("all", "images", "files"):
        model = HistGradientBoostingClassifier(
            max_iter=60, learning_rate=0.1, max_leaf_nodes=15, random_state=SEED
        )
        # on a busy machine several threads wait for each other: 30 s instead of 0.8 s
        with threadpool_limits(1):
            found = cross_val_predict(model, features[name], is_test, cv=folds, method="predict_proba")[:, 1]
        aucs[name] = float(roc_auc_score(is_test, found))
        likeness = found if name == "all" else likeness
    # of the Mann-Whitney statistic under chance
    error = float(np.sqrt((len(train) + len(test) + 1) / (12 * len(train) * len(test))))
    return Told(aucs, error, tuple(train), likeness[: len(train)])


def source_section(looked: Looked, told: Told | None) -> Section:
    """Return the section on the source of the test images."""
    section = Section("Does test come from the same source as train?")
    if not looked.test:
        section.says.append("There are no test images.")
        return section
    if told is None:
        section.says.append(f"Too few images: {FEWEST} of each part are needed, and {FOLDS} ids.")
        return section
    auc = told.aucs["all"]
    section.says.append(
        f"A classifier distinguishes train from test images with an out-of-fold AUC of {auc:.3f} (0.5 is "
        f"guessing, 1 is perfect): {in_words(auc, told.error)}."
    )
    rows = [
        ("colours and a 4 x 4 image, size, bytes, format", f"{told.aucs['all']:.3f}"),
        ("colours and a 4 x 4 image alone", f"{told.aucs['images']:.3f}"),
        ("size, bytes, format alone", f"{told.aucs['files']:.3f}"),
    ]
    section.grids.append(Grid("Out-of-fold AUC by features", ("features", "AUC"), rows))
    if auc > 0.5 + CHANCE * told.error:
        by_file = told.aucs["files"] > told.aucs["images"] + 0.05
        section.says.append(
            "The files differ more than the images: see sizes, bytes and formats above."
            if by_file
            else "The images themselves differ; another class mix in test shows here too."
        )
        order = np.argsort(-told.likeness, kind="stable")[:SHOWN]
        images = [
            SmallImage(told.train[at].path, f"{looked.shown(told.train[at].path)}, {told.likeness[at]:.2f}")
            for at in order.tolist()
        ]
        strips = tuple(
            Strip(f"{told.likeness[at]:.2f}", (shown,), quiet=told.train[at].label or "")
            for at, shown in zip(order, images, strict=True)
        )
        section.sheets.append(Sheet("Training images that look most like test", strips, tiles=True))
        section.says.append(
            "test_like.csv beside this page holds this number for each training image; you could validate "
            "on the most test-like ones."
        )
    section.says.append(
        f"By chance alone it is 0.5 ± {told.error:.3f} ({counted(len(told.train), 'training image')} were "
        "used)."
    )
    return section


def in_words(auc: float, error: float) -> str:
    """Return what an AUC means for a validation score; `error`: its standard error under chance."""
    if auc <= 0.5 + CHANCE * error:
        return "no better than chance; test looks like train, and a random validation part represents it"
    if auc < 0.6:
        return "nearly the same; a random validation part should represent test"
    if auc < 0.75:
        return "somewhat different; expect the validation score to be a little too optimistic"
    if auc < 0.9:
        return (
            "different; the validation score will be too optimistic, and models should be compared with care"
        )
    return "another source; do not trust the validation score"


def _groups(rows: Sequence[Row], sets: Sequence[Copies], num_train: int) -> np.ndarray:
    """Return (N,) int64 group numbers: rows of one id (in one part), and training copies of one image, share
    a number.
    """
    copy_of: dict[str, str] = {}

    def first(row_id: str) -> str:
        while row_id in copy_of:
            row_id = copy_of[row_id]
        return row_id

    for copies in sets:  # an id with several images may be in several sets: then they are one group
        ids = list(dict.fromkeys(first(row.id) for row in copies.train))
        copy_of |= dict.fromkeys(ids[1:], ids[0])
    names = [
        ("train", first(row.id)) if place < num_train else ("test", row.id) for place, row in enumerate(rows)
    ]
    numbers: dict[tuple[str, str], int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names])


def _of_pixels(one: ImageFacts) -> np.ndarray:
    """Return moments of each colour (mean, deviation, skewness), darkest and brightest grey, flatness, and a
    4 x 4 image.
    """
    colour = np.frombuffer(one.colour, np.uint8).reshape(COLOUR_PX, COLOUR_PX, 3).astype(np.float32) / 255
    flat = colour.reshape(-1, 3)
    mean, deviation = flat.mean(axis=0), flat.std(axis=0)
    skewness = (((flat - mean) ** 3).mean(axis=0)) / np.maximum(deviation, 1e-3) ** 3
    step = COLOUR_PX // SMALL_PX
    small = colour.reshape(SMALL_PX, step, SMALL_PX, step, 3).mean(axis=(1, 3)).ravel()
    return np.concatenate([mean, deviation, skewness, [one.low / 255, one.high / 255, one.flat], small])


def _of_files(facts: Sequence[ImageFacts]) -> np.ndarray:
    """Return (N, F) float32: width, height, aspect, bytes, bytes per pixel, format and mode as one number,
    EXIF rotation.
    """
    kinds = sorted({(one.format, one.mode) for one in facts})
    rows = []
    for one in facts:
        pixels = one.width * one.height
        rows.append(
            [
                one.width,
                one.height,
                one.aspect,
                one.num_bytes,
                one.num_bytes / pixels,
                kinds.index((one.format, one.mode)),
                one.turned,
            ]
        )
    return np.array(rows, dtype=np.float32)
