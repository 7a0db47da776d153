"""`make attention`: draw attention maps: the same images through a pretrained model and runs, side by side.

python -m pipeline.report.attention  # images of the validation set, the run in finetuned_model/
python -m pipeline.report.attention --images a.jpg b.jpg --runs microsoft/beit-base-patch16-224 runs/a
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import UserError, raise_all, run_command
from pipeline.files import check_place
from pipeline.report.run_files import has_run, read_run_files

if TYPE_CHECKING:
    from PIL import Image

    from pipeline.models.attention_maps import AttentionMaps
    from pipeline.targets.target import Target

# of the validation set: half are the most confident right predictions, half the most confident mistakes
NUM_IMAGES = 6
WRONG = "wrong: "  # marks a wrongly predicted class
CELL_INCHES, WIDTH_INCHES, TITLE_INCHES = 1.75, 20, 0.8


@dataclass(frozen=True)
class Looked:
    """One model on one image: the prepared input, its attention maps, and the predicted class with
    probability as text.
    """

    image: Image.Image
    maps: AttentionMaps
    words: str
    predicted: str = ""  # the class itself


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.report.attention",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--images",
        metavar="FILE",
        nargs="+",
        type=Path,
        help="images (default: six of the run's validation set)",
    )
    parser.add_argument(
        "--runs",
        metavar="RUN",
        nargs="+",
        default=["finetuned_model"],
        help="run folders, or pretrained models (hub id or folder)",
    )
    parser.add_argument(
        "--format",
        action="append",
        choices=["svg", "pdf"],
        default=[],
        help="also write the figures as svg or pdf",
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        type=Path,
        help="folder for the figures (default: figures/ of the first run)",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Write attention.png and attention_heads.png; returns the exit code.

    Raises:
        UserError: there is no such run or image, or the architecture has no attention map.
    """
    args = parse(argv)
    first_run = next((Path(run) for run in args.runs if has_run(Path(run))), None)
    output = args.output or (first_run / "figures" if first_run else None)
    if output is None:
        raise UserError(
            f"none of {', '.join(args.runs)} is a run folder: set a folder for the figures with --output"
        )
    check_place(output / "attention.png", "set a folder for the figures with --output")
    images = args.images or validation_images(first_run)
    raise_all(
        [f"{path}: no such file" for path in images if not path.is_file()], "these images cannot be shown:"
    )
    looked = {run: look(run, images) for run in args.runs}
    titles = short_names(args.runs)
    from pipeline.report.figures import also_as

    truth = known_labels(first_run)
    labels = [truth.get(path.resolve()) for path in images]
    names = [caption(path.name, label) for path, label in zip(images, labels, strict=True)]
    marked = {
        titles[run]: [marked_mistake(cell, label) for cell, label in zip(rows, labels, strict=True)]
        for run, rows in looked.items()
    }
    with also_as(args.format):
        for path in draw(marked, names, output):
            print(path)
    if first_run and output == first_run / "figures":
        from pipeline.report.page import build_report

        print(build_report(first_run))
    return 0


def validation_images(run: Path | None) -> list[Path]:
    """Return validation images of the run: the most confident right predictions and mistakes, one per class.

    For numbers: those with the smallest and the largest errors.

    Raises:
        UserError: the run stored no validation predictions.
    """
    files = read_run_files(run) if run else None
    rows = files.predictions if files else []
    if not rows:
        raise UserError(
            f"{run or 'no run folder'}: no validation images to choose from; set images with --images "
            "(IMAGES='a.jpg b.jpg')"
        )
    if files and files.target.kind == "continuous":
        given, predicted = (files.target.encode([row[key] for row in rows]) for key in ("label", "predicted"))
        order = np.nanmean(np.abs(given - predicted), axis=1).argsort(kind="stable").tolist()
        half = NUM_IMAGES // 2
        return [Path(rows[place]["path"]) for place in (order[:half] + order[half:][-half:])]
    rows.sort(key=lambda row: -float(row["confidence"]))
    surest: dict[bool, dict[str, Path]] = {True: {}, False: {}}  # right or wrong -> one image of each class
    for row in rows:
        surest[row["label"] == row["predicted"]].setdefault(row["label"], Path(row["path"]))
    mistakes = list(surest[False].values())[: NUM_IMAGES // 2]
    return list(surest[True].values())[: NUM_IMAGES - len(mistakes)] + mistakes


def known_labels(run: Path | None) -> dict[Path, str]:
    """Return path -> label of the run's validation images; empty without a run, or for several labels or
    numbers.

    Raises:
        UserError: its validation predictions are damaged.
    """
    files = read_run_files(run) if run else None
    if files is None or files.target.kind not in ("multiclass", "ordinal"):
        return {}
    return {Path(row["path"]).resolve(): row["label"] for row in files.predictions}


def caption(name: str, label: str | None) -> str:
    """Return the text below an image: its file name, and its class if that is known and can be drawn."""
    from pipeline.report.figures import drawable

    shown = None if label is None else drawable(label, -1)
    return name if shown is None or shown == "class -1" else f"{name}\nis {shown}"


def marked_mistake(cell: Looked, label: str | None) -> Looked:
    """Return the cell, with a mark in its text if the prediction differs from the known `label`."""
    return cell if label is None or cell.predicted == label else replace(cell, words=f"{WRONG}{cell.words}")


def look(run: str, images: Sequence[Path]) -> list[Looked]:
    """Compute attention maps and predictions of the model of `run` for each image.

    Raises:
        UserError: the model cannot be loaded, an image cannot be decoded, or the architecture has no
            attention map.
    """
    import torch
    from tqdm import tqdm

    from pipeline.data.images import BadImage, decode
    from pipeline.models.attention_maps import attention_maps

    classifier, class_names, target = load(run)
    preprocessing, results = classifier.preprocessing, []
    forward = partial(classifier.model, **classifier.extra)
    for path in tqdm(images, desc=f"attention of {run}", unit="img", leave=False):
        try:
            image = preprocessing.resize(decode(path, intensity=preprocessing.intensity))
        except BadImage as error:
            raise UserError(f"{path}: {error}") from None
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
        maps = attention_maps(classifier.model, forward, preprocessing.normalize(pixels))
        words, predicted = in_words(maps, class_names, target)
        results.append(Looked(image, maps, words, predicted))
    return results


def in_words(maps: AttentionMaps, class_names: Sequence[str], target: Target | None) -> tuple[str, str]:
    """Return the prediction as text, with its probability, and the predicted class (or number) itself.

    Several labels: the most probable one. `target` None: the classes of a pretrained model.
    """
    from pipeline.report.figures import drawable
    from pipeline.targets.target import multiclass

    target = target or multiclass(class_names)
    values = target.activate(maps.logits[None])
    if target.kind == "continuous":
        return (text := target.decode(values)[0]), text
    place = maps.predicted if target.kind == "multilabel" else int(target.chosen(values)[0])
    if target.kind == "binary":
        probability = values[0, 0] if place else 1 - values[0, 0]
    else:
        probability = values[0, place]
    name = target.names[place]
    return f"{drawable(name, place)} {probability:.0%}", name


def load(run: str) -> tuple[Any, Sequence[str], Target | None]:
    """Load the classifier of a run folder or of a pretrained model, its class names, and the run's target.

    Raises:
        UserError: it cannot be loaded, or the run has another task than image classification.
    """
    from pipeline.models.backbones import load_pretrained
    from pipeline.run import load_run, model_dirs
    from pipeline.run_record import read_record
    from pipeline.tasks.image_classifier import ImageClassifier, num_outputs_of, rebuild

    if not read_record(Path(run)) and not model_dirs(Path(run)):
        backbone = load_pretrained(run)
        names = [str(name) for _, name in sorted(backbone.model.config.id2label.items())]
        return ImageClassifier.of(backbone.model.eval().requires_grad_(False), backbone), names, None
    found = load_run(Path(run))  # folds and blends are refused: they are several models
    if (task := found.task) != "classification":
        raise UserError(f"{run}: attention maps are for image classification, this run's task is {task}")
    num_outputs = num_outputs_of(found)
    names = (
        found.target.output_names if found.target else [f"LABEL_{number}" for number in range(num_outputs)]
    )
    return rebuild(found, num_outputs), names, found.target


def draw(looked: dict[str, list[Looked]], names: Sequence[str], output: Path) -> list[Path]:
    """Draw the maps of every model beside each image, and the heads of the last layer, into `output`; returns
    the paths.
    """
    inputs = (
        "input",
        [(cell.image, None, name) for cell, name in zip(next(iter(looked.values())), names, strict=True)],
    )
    columns, paths = [inputs], [output / "attention.png"]
    for number, (title, cells) in enumerate(looked.items(), start=1):
        maps = cells[0].maps
        if maps.heads is None:
            kinds = {"Grad-CAM (attends\nwithin windows)": "gradient"}
        else:
            token = "class token" if maps.reads_class_token else "class token (not\nread by the head)"
            kinds = {token: "mean", "rollout": "rollout", "attention × gradient": "gradient"}
            heads = [
                (f"head {head + 1}", [(cell.image, cell.maps.heads[head], "") for cell in cells])
                for head in range(len(maps.heads))
            ]
            paths.append(output / f"attention_heads{f'_{number}' if len(looked) > 1 else ''}.png")
            _grid(
                paths[-1],
                [inputs, *heads],
                f"{title}: what the class token attends to in the last layer, by head",
            )
        for kind, attribute in kinds.items():
            columns.append(
                (
                    f"{title}\n{kind}",
                    [(cell.image, getattr(cell.maps, attribute), cell.words) for cell in cells],
                )
            )
    _grid(paths[0], columns)
    return paths


def short_names(runs: Sequence[str]) -> dict[str, str]:
    """Return a unique title for each run: its last path component, or the whole path if that is not
    unique.
    """
    names = {
        run: Path(run).parent.name if Path(run).name.startswith("model_") else Path(run).name or run
        for run in runs
    }
    return {run: name if list(names.values()).count(name) == 1 else run for run, name in names.items()}


def _grid(
    path: Path,
    columns: Sequence[tuple[str, list[tuple[Image.Image, np.ndarray | None, str]]]],
    title: str = "",
) -> None:
    """Draw one row per image, one column per kind of map; each map is scaled to its own maximum and laid over
    the image.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from pipeline.report.figures import DPI, STYLE, VALIDATION, fonts, save

    rows, inches = len(columns[0][1]), min(CELL_INCHES, WIDTH_INCHES / len(columns))
    with matplotlib.rc_context({**STYLE, "font.family": fonts()[0], "axes.grid": False}):
        figure = Figure(
            figsize=(inches * len(columns), (inches + 0.25) * rows + TITLE_INCHES),
            dpi=DPI,
            facecolor="white",
            layout="constrained",
        )
        canvas = FigureCanvasAgg(figure)
        figure.suptitle(title, fontsize=11)
        all_axes = figure.subplots(rows, len(columns), squeeze=False)
        for column, (heading, cells) in enumerate(columns):
            all_axes[0, column].set_title(heading, fontsize=10)
            for row, (image, weights, words) in enumerate(cells):
                axes = all_axes[row, column]
                axes.imshow(image)
                if weights is not None:
                    extent = (-0.5, image.width - 0.5, image.height - 0.5, -0.5)
                    axes.imshow(
                        weights, cmap="inferno", alpha=0.65, interpolation="bilinear", extent=extent, vmin=0
                    )
                axes.set_xlabel(
                    words, fontsize=9.5, **({"color": VALIDATION} if words.startswith(WRONG) else {})
                )
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
        save(canvas, path)


if __name__ == "__main__":
    sys.exit(run_command(main))
