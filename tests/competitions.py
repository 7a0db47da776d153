"""Small competitions of every kind, as they lie on disk: images whose colour tells the class, tables, JSON, a
sample submission.

Each function writes one into a folder and returns what a grader would hold. Tests of reading use them, and
tests from `make data` to a grade.
"""

from __future__ import annotations

import colorsys
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 24


@dataclass(frozen=True)
class Made:
    """A competition in `root`. `answers`: row id of the sample -> its true cells; `flags`: what the
    competition's page says, for train.py.
    """

    root: Path
    columns: tuple[str, ...]  # of the sample submission, the id first
    answers: dict[str, tuple[str, ...]]
    flags: tuple[str, ...] = ()


def image(path: Path, kinds: int | Sequence[int], num_kinds: int, seed: int = 0) -> None:
    """A noisy image: one kind is its colour; several kinds are coloured cells."""
    rng = np.random.default_rng([seed, *str(path.name).encode()])
    pixels = rng.normal(110, 20, (SIZE, SIZE, 3))
    several = [kinds] if isinstance(kinds, int) else list(kinds)
    per_side = int(np.ceil(np.sqrt(num_kinds)))
    cell = SIZE // per_side
    for kind in several:
        colour = np.array(colorsys.hsv_to_rgb(kind / num_kinds, 0.9, 0.9)) * 255
        if isinstance(kinds, int):
            pixels[3:-3, 3:-3] = colour + rng.normal(0, 15, (SIZE - 6, SIZE - 6, 3))
        else:
            row, column = divmod(kind, per_side)
            pixels[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell] = colour
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


def table(path: Path, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A CSV file; no cell needs quotes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(",".join(map(str, row)) for row in (columns, *rows)) + "\n", encoding="utf-8")


def _kinds(count: int, num_kinds: int) -> list[int]:
    return [
        (number * 7 + number // num_kinds) % num_kinds if num_kinds % 7 else number % num_kinds
        for number in range(count)
    ]


def _sample(root: Path, made: Made, fill: Sequence[object], name: str = "sample_submission.csv") -> Made:
    table(root / name, made.columns, [(row_id, *fill) for row_id in made.answers])
    return made


# ---- one label ----


def label_table(root: Path, train: int = 24, test: int = 9) -> Made:
    """train.csv with numbers of classes, flat folders, label 0..2 graded by accuracy."""
    kinds, answers = _kinds(train, 3), {}
    for number, kind in enumerate(kinds):
        image(root / f"train_images/{number + 100}.png", kind, 3)
    for number, kind in enumerate(_kinds(test, 3)):
        image(root / f"test_images/{number + 900}.png", kind, 3)
        answers[f"{number + 900}.png"] = (str(kind),)
    table(
        root / "train.csv",
        ("image_id", "label"),
        [(f"{number + 100}.png", kind) for number, kind in enumerate(kinds)],
    )
    return _sample(root, Made(root, ("image_id", "label"), answers, ("--metric", "accuracy")), [2])


def coco_json(root: Path, train: int = 24, test: int = 8) -> Made:
    """Labels only in COCO-like JSON; category numbers are asked for; flat train/ and test/; detections in
    another JSON.
    """
    categories = [{"id": number, "name": f"animal {number}"} for number in (0, 2, 24, 96)]
    images, marks, answers, test_images = [], [], {}, []
    for number, kind in enumerate(_kinds(train, 4)):
        image(root / f"train/a-{number}.jpg", kind, 4)
        images.append({"id": f"a-{number}", "file_name": f"a-{number}.jpg", "location": number % 3})
        marks.append(
            {"id": f"m{number}", "image_id": f"a-{number}", "category_id": categories[kind]["id"], "count": 1}
        )
    for number, kind in enumerate(_kinds(test, 4)):
        image(root / f"test/t-{number}.jpg", kind, 4)
        test_images.append({"id": f"t-{number}", "file_name": f"t-{number}.jpg", "location": 9})
        answers[f"t-{number}"] = (str(categories[kind]["id"]),)
    written = {"images": images, "annotations": marks, "categories": categories, "info": {}}
    (root / "wild_train_annotations.json").write_text(json.dumps(written))
    (root / "wild_test_information.json").write_text(
        json.dumps({"images": test_images, "categories": categories})
    )
    found = [
        {"id": entry["id"], "detections": [{"bbox": [0, 0, 1, 1], "conf": 0.9}]}
        for entry in (*images, *test_images)
    ]
    (root / "wild_detections.json").write_text(json.dumps({"images": found}))
    return _sample(root, Made(root, ("Id", "Category"), answers, ("--metric", "accuracy")), [442])


def shards_and_json(root: Path, train: int = 24, test: int = 8) -> Made:
    """All below one folder; images in shard folders; labels and the names of test images in metadata.json of
    each part.
    """
    numbers, images, marks, test_images, answers = (0, 3, 105, 212), [], [], [], {}
    for number, kind in enumerate(_kinds(train, 4)):
        category = numbers[kind]
        file = f"images/{category // 100:03d}/{category % 100:02d}/{400 + number}.jpg"
        image(root / "plants" / "train" / file, kind, 4)
        images.append({"id": 400 + number, "file_name": file})
        marks.append({"id": number, "image_id": 400 + number, "category_id": category})
    for number, kind in enumerate(_kinds(test, 4)):
        file = f"images/000/scan-{test - number}.jpg"
        image(root / "plants" / "test" / file, kind, 4)
        test_images.append({"id": str(number), "file_name": file})
        answers[str(number)] = (str(numbers[kind]),)
    categories = [{"id": number, "name": f"species {number}", "family": "f"} for number in numbers]
    (root / "plants/train/metadata.json").write_text(
        json.dumps({"images": images, "annotations": marks, "categories": categories})
    )
    (root / "plants/test/metadata.json").write_text(json.dumps({"images": test_images}))
    return _sample(root, Made(root, ("Id", "Predicted"), answers, ("--metric", "macro_f1")), [0])


# ---- probabilities ----


def names_tell(root: Path, train: int = 24, test: int = 8) -> Made:
    """The class is in the file name, no table; one probability, of dog."""
    for number in range(train):
        kind = number % 2
        image(root / f"train/{('cat', 'dog')[kind]}.{number // 2}.jpg", kind, 2)
    answers = {}
    for number, kind in enumerate(_kinds(test, 2), start=1):
        image(root / f"test/{number}.jpg", kind, 2)
        answers[str(number)] = (str(kind),)
    return _sample(
        root, Made(root, ("id", "label"), answers, ("--metric", "log_loss", "--positive-class", "dog")), [0.5]
    )


def several_roots(root: Path, train: int = 24, test: int = 8) -> Made:
    """Folders Cover, JMiPOD, UERD beside Test/ hold the same file names; one probability, of anything
    hidden.
    """
    folders = ("Cover", "JMiPOD", "UERD")
    for number in range(train // 3):
        for kind, name in enumerate(folders):
            image(root / f"{name}/{number + 1:05d}.jpg", kind, 3)
    answers = {}
    for number, kind in enumerate(_kinds(test, 2), start=1):
        image(root / f"Test/{number:04d}.jpg", kind * (1 + number % 2), 3)
        answers[f"{number:04d}.jpg"] = (str(kind),)
    flags = ("--metric", "roc_auc", "--positive-class", "JMiPOD,UERD")
    return _sample(root, Made(root, ("Id", "Label"), answers, flags), [0])


def nested_root(root: Path, train: int = 24, test: int = 9) -> Made:
    """Class folders below imgs/train, a table one level higher that names the driver; a probability a
    class.
    """
    rows, answers = [], {}
    for number, kind in enumerate(_kinds(train, 3)):
        image(root / f"imgs/train/c{kind}/img_{number}.jpg", kind, 3)
        rows.append((f"p{number % 4:03d}", f"c{kind}", f"img_{number}.jpg"))
    for number, kind in enumerate(_kinds(test, 3), start=train):
        image(root / f"imgs/test/img_{number}.jpg", kind, 3)
        answers[f"img_{number}.jpg"] = tuple(str(int(kind == other)) for other in range(3))
    table(root / "driver_imgs_list.csv", ("subject", "classname", "img"), rows)
    return _sample(root, Made(root, ("img", "c0", "c1", "c2"), answers, ("--metric", "log_loss")), [0.33] * 3)


def one_hot(root: Path, train: int = 24, test: int = 9) -> Made:
    """Labels one-hot in three columns, one images/ for both parts, test.csv."""
    names, rows, answers = ("healthy", "rust", "scab"), [], {}
    for number, kind in enumerate(_kinds(train, 3)):
        image(root / f"images/Train_{number}.jpg", kind, 3)
        rows.append((f"Train_{number}", *(int(kind == other) for other in range(3))))
    for number, kind in enumerate(_kinds(test, 3)):
        image(root / f"images/Test_{number}.jpg", kind, 3)
        answers[f"Test_{number}"] = tuple(str(int(kind == other)) for other in range(3))
    table(root / "train.csv", ("image_id", *names), rows)
    table(root / "test.csv", ("image_id",), [(name,) for name in answers])
    return _sample(root, Made(root, ("image_id", *names), answers, ("--metric", "roc_auc")), [0.25] * 3)


def views_by_table(root: Path, patients: int = 8, test: int = 4) -> Made:
    """Two views of each side of a patient; prediction ids lead to images through test.csv; train.csv has
    other 0/1 columns.
    """
    rows, test_rows, answers = [], [], {}
    for patient in range(100, 100 + patients + test):
        for side in "LR":
            cancer = int((patient + (side == "R")) % 2)
            for view in ("CC", "MLO"):
                file = 5000 + 10 * patient + 2 * (side == "R") + (view == "MLO")
                part = "train" if patient < 100 + patients else "test"
                image(root / f"{part}_images/{patient}/{file}.png", cancer, 2)
                if part == "train":
                    rows.append((1, patient, file, side, view, 50.0, cancer, cancer, 0, False))
                else:
                    test_rows.append((1, patient, file, side, view, 50.0, 0, f"{patient}_{side}"))
                    answers[f"{patient}_{side}"] = (str(cancer),)
    shared = ("site_id", "patient_id", "image_id", "laterality", "view", "age")
    table(root / "train.csv", (*shared, "cancer", "biopsy", "implant", "difficult_negative_case"), rows)
    table(root / "test.csv", (*shared, "implant", "prediction_id"), test_rows)
    return _sample(root, Made(root, ("prediction_id", "cancer"), answers, ("--metric", "pf1")), [0.3])


# ---- an order, a number, the best five ----


def grades(root: Path, train: int = 25, test: int = 10) -> Made:
    """Grades 0 to 4, graded by quadratic weighted kappa."""
    rows, answers = [], {}
    for number, kind in enumerate(_kinds(train, 5)):
        image(root / f"train_images/g{number:02d}.png", kind, 7)
        rows.append((f"g{number:02d}", kind))
    for number, kind in enumerate(_kinds(test, 5)):
        image(root / f"test_images/h{number:02d}.png", kind, 7)
        answers[f"h{number:02d}"] = (str(kind),)
    table(root / "train.csv", ("id_code", "diagnosis"), rows)
    table(root / "test.csv", ("id_code",), [(name,) for name in answers])
    return _sample(root, Made(root, ("id_code", "diagnosis"), answers, ("--metric", "qwk")), [0])


def numbers(root: Path, train: int = 30, test: int = 10) -> Made:
    """A number from 1 to 100 beside 0/1 columns about the photo."""
    rows, answers = [], {}
    for number in range(train + test):
        score = 1 + number * 37 % 100
        part = "train" if number < train else "test"
        image(root / f"{part}/n{number:03d}.jpg", score * 7 // 101, 9)
        rows.append((f"n{number:03d}", number % 2, number % 3 % 2, score))
        if part == "test":
            answers[f"n{number:03d}"] = (str(score),)
    table(root / "train.csv", ("Id", "Eyes", "Blur", "Score"), rows[:train])
    table(root / "test.csv", ("Id", "Eyes", "Blur"), [row[:3] for row in rows[train:]])
    made = Made(root, ("Id", "Score"), answers, ("--metric", "rmse"))
    table(
        root / "sample_submission.csv",
        made.columns,
        [(name, 20.5 + number) for number, name in enumerate(answers)],
    )
    return made


def best_five(root: Path, train: int = 30, test: int = 10) -> Made:
    """The column Id is the label; five guesses in a cell."""
    whales = ["new_whale", *(f"w_{number}" for number in range(10, 17))]
    rows, answers = [], {}
    for number, kind in enumerate(_kinds(train, 8)):
        image(root / f"train/{number:04x}.jpg", kind, 8)
        rows.append((f"{number:04x}.jpg", whales[kind]))
    for number, kind in enumerate(_kinds(test, 8)):
        image(root / f"test/{number + 999:04x}.jpg", kind, 8)
        answers[f"{number + 999:04x}.jpg"] = (whales[kind],)
    table(root / "train.csv", ("Image", "Id"), rows)
    return _sample(
        root, Made(root, ("Image", "Id"), answers, ("--metric", "map_at_5")), [" ".join(whales[:5])]
    )


# ---- several labels an image ----


def _sets(count: int) -> list[list[int]]:
    return [
        [kind for kind in range(4) if (number * 5 + 3) >> kind & 1] or [number % 4] for number in range(count)
    ]


def tags(root: Path, train: int = 32, test: int = 10) -> Made:
    """Tags in one cell; train_v2.csv, sample_submission_v2.csv; two test folders that the sample needs
    both.
    """
    names, rows, answers = ("clear", "haze", "road", "water"), [], {}
    for number, kinds in enumerate(_sets(train)):
        image(root / f"train-jpg/train_{number}.jpg", kinds, 4)
        rows.append((f"train_{number}", " ".join(names[kind] for kind in kinds)))
    for number, kinds in enumerate(_sets(test)):
        folder, name = (
            ("test-jpg", f"test_{number}") if number < test - 3 else ("test-jpg-additional", f"file_{number}")
        )
        image(root / folder / f"{name}.jpg", kinds, 4)
        answers[name] = (" ".join(names[kind] for kind in kinds),)
    table(root / "train_v2.csv", ("image_name", "tags"), rows)
    made = Made(root, ("image_name", "tags"), answers, ("--metric", "samples_f2"))
    return _sample(root, made, ["clear road"], "sample_submission_v2.csv")


def label_columns(root: Path, train: int = 32, test: int = 10) -> Made:
    """Labels in 0/1 columns of which the sample asks for some; ids with dots; another table marks single
    images.
    """
    names, rows, answers = ("ETT - Normal", "NGT - Normal", "CVC - Normal", "Swan Present"), [], {}
    for number, kinds in enumerate(_sets(train + test)):
        part, study = ("train" if number < train else "test"), f"1.2.826.0.{10000 + number}"
        image(root / part / f"{study}.jpg", kinds, 4)
        marks = [int(kind in kinds) for kind in range(4)]
        if part == "train":
            rows.append((study, *marks, f"p{number % 6}"))
        else:
            answers[study] = tuple(map(str, marks[:3]))
    table(root / "train.csv", ("StudyInstanceUID", *names, "PatientID"), rows)
    table(
        root / "train_annotations.csv",
        ("StudyInstanceUID", "label", "data"),
        [(row[0], names[0], "[]") for row in rows[:4]],
    )
    return _sample(
        root, Made(root, ("StudyInstanceUID", *names[:3]), answers, ("--metric", "roc_auc")), [0] * 3
    )


def long_rows(root: Path, train: int = 16, test: int = 5, with_table: bool = True) -> Made:
    """Three slices a study in a folder of its own; labels wide in train.csv, rows <study>_<label> in the
    sample.
    """
    names, rows, answers, test_rows = ("patient_overall", "C1", "C2", "C3"), [], {}, []
    studies = [f"1.2.826.{1000 + number}" for number in range(train + test)]
    marks = {
        study: [int(kind in kinds) for kind in range(4)]
        for study, kinds in zip(studies, _sets(train + test), strict=True)
    }
    for number, study in enumerate(studies):
        part = "train" if number < train else "test"
        for piece in range(1, 4):
            image(
                root / f"{part}_images/{study}/{piece}.png",
                [kind for kind in range(4) if marks[study][kind]],
                4,
            )
    rows = [(study, *marks[study]) for study in studies[:train]]
    for position, name in enumerate(names):
        for study in studies[train:]:
            answers[f"{study}_{name}"] = (str(marks[study][position]),)
            test_rows.append((study, name, f"{study}_{name}"))
    table(root / "train.csv", ("StudyInstanceUID", *names), rows)
    table(
        root / "train_bounding_boxes.csv",
        ("StudyInstanceUID", "x", "y", "slice_number"),
        [(studies[0], 1.0, 2.0, 1)],
    )
    if with_table:
        table(root / "test.csv", ("StudyInstanceUID", "prediction_type", "row_id"), test_rows)
    return _sample(root, Made(root, ("row_id", "fractured"), answers, ("--metric", "log_loss")), [0.5])


def channels(root: Path, train: int = 16, test: int = 6) -> Made:
    """Each id is three files, one a channel; several numbers in a cell under `Target`, asked for as
    `Predicted`.
    """
    rows, answers = [], {}
    for number, kinds in enumerate(_sets(train + test)):
        part, name = ("train" if number < train else "test"), f"bbba-{number:03d}"
        for channel in ("red", "green", "blue"):
            image(root / part / f"{name}_{channel}.png", kinds, 4)
        target = " ".join(map(str, kinds))
        if part == "train":
            rows.append((name, target))
        else:
            answers[name] = (target,)
    table(root / "train.csv", ("Id", "Target"), rows)
    return _sample(root, Made(root, ("Id", "Predicted"), answers, ("--metric", "macro_f1")), ["0 1"])


KINDS = {
    function.__name__: function
    for function in (
        *(
            label_table,
            coco_json,
            shards_and_json,
            names_tell,
            several_roots,
            nested_root,
            one_hot,
            views_by_table,
        ),
        *(grades, numbers, best_five, tags, label_columns, long_rows, channels),
    )
}
