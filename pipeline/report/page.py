"""`make report`: write one self-contained HTML page and its figures from the files of a run folder, without
model and network.

python -m pipeline.report.page                              # finetuned_model/report.html
# several runs in one page: comparison/comparison.html
python -m pipeline.report.page --run runs/a --run runs/b
"""

from __future__ import annotations

import argparse
import shlex
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, run_command
from pipeline.files import check_place, human_size, versioned, write_text
from pipeline.kaggle.ledger import LEDGER
from pipeline.report import run_facts
from pipeline.report.browsing import read_browse
from pipeline.report.charts import class_counts_figure
from pipeline.report.comparison import build_comparison
from pipeline.report.curves import curve_names, draw_curves
from pipeline.report.decisions_section import read_decisions
from pipeline.report.figures import FORMATS, also_as
from pipeline.report.folds_section import read_folds
from pipeline.report.ledger_figure import read_submissions
from pipeline.report.number_section import read_number_counts
from pipeline.report.question_section import read_questions
from pipeline.report.rendering import SIZE_MARK, Drawn, embedded, render, script
from pipeline.report.run_files import RunFiles, has_run, read_run_files
from pipeline.report.thumbnails import samples
from pipeline.report.validation import read_validation
from pipeline.run_names import PAGE
from pipeline.submission.origin import find_origin

MAX_PAGE_BYTES = 16_000_000  # a larger page is written without the images to browse
OPEN_STRIPS, OPEN_TILES = 24, 60  # classes whose images are shown at once; others are collapsed


def main(argv: list[str] | None = None) -> int:
    """Write the page of one run into its folder, or a page that compares several runs."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.report.page",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--run",
        type=Path,
        action="append",
        metavar="DIR",
        help="run folder (default: finetuned_model); several are compared in one page",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="folder for a comparison of several runs (default: comparison)",
    )
    parser.add_argument(
        "--if-present",
        action="store_true",
        help="do nothing if that folder holds no run or cannot be written",
    )
    parser.add_argument(
        "--of",
        type=Path,
        metavar="FILE",
        help="the run that made this predictions file, as inference.py recorded it",
    )
    parser.add_argument(
        "--format", action="append", choices=FORMATS, default=[], help="also write the figures as svg or pdf"
    )
    parser.add_argument(
        "--no-images", action="store_true", help="write the page without images of the data, for sending"
    )
    args = parser.parse_args(argv)
    origin = find_origin(args.of) if args.of and not args.run else None
    runs = args.run or [Path(origin.models[0] if origin else "finetuned_model")]
    if args.output and len(runs) == 1:
        raise UserError(
            f"--output {args.output}: only for a comparison (--run several times); the page of one run is "
            f"written into its folder, {runs[0]}"
        )
    if args.if_present and not has_run(runs[0]):
        print(f"{runs[0]} holds no run: no page to write")
        return 0
    if len(runs) == 1 and has_run(runs[0]) and (problem := _read_only(runs[0])):
        if not args.if_present:
            raise UserError(problem)
        print(f"no page: {problem}")
        return 0
    with also_as(args.format):
        images = not args.no_images
        page = (
            build_report(runs[0], images=images)
            if len(runs) == 1
            else build_comparison(runs, args.output or Path("comparison"), images)
        )
    size = page.stat().st_size
    print(
        f"{page}: {human_size(size)}, a single file that can be "
        f"sent{'' if images else '; it holds no image of the data'}"
    )
    if size > MAX_PAGE_BYTES and images:
        print(f"that is more than {human_size(MAX_PAGE_BYTES)}; --no-images makes it smaller")
    return 0


def _read_only(run_dir: Path) -> str | None:
    """Return why a run's page cannot be written into its folder, and the command that helps; None if it
    can.
    """
    try:
        check_place(run_dir / "figures" / "loss.png")
        check_place(run_dir / PAGE)
    except UserError as error:
        copy = versioned(Path(run_dir.resolve().name))
        commands = (
            ["cp", "-r", str(run_dir), str(copy)],
            ["python", "-m", "pipeline.report.page", "--run", str(copy)],
        )
        return f"{error}; copy the run first: {' && '.join(map(shlex.join, commands))}"
    return None


def build_report(run_dir: Path, ledger: Path = LEDGER, images: bool = True) -> Path:
    """Write `figures/*.png` and `report.html` in `run_dir`; returns the page's path.

    Missing records are left out.

    Without `images` the page shows none of the data. A page above `MAX_PAGE_BYTES` has no images to browse.

    Raises:
        UserError: the folder is missing, holds no run, or a file in it is damaged.
    """
    files = read_run_files(run_dir, images)
    drawn = draw_curves(files)
    folds = read_folds(files, drawn)
    validation = read_validation(files, drawn)
    questions = read_questions(files, drawn)
    classes = run_facts.class_counts(files)
    if classes and not questions:  # answers have their own figure
        _draw_class_counts(files, classes["by_class"], drawn)
    numbers = read_number_counts(files, drawn) if files.target.kind == "continuous" else []
    submissions = read_submissions(files, ledger, drawn)
    attention = _attention(files, drawn)
    values = {
        "name": files.told.get("name") or files.path.resolve().name,
        "record": files.told,
        "finished": bool(files.record),
        "schedule": files.schedule,
        "headlines": run_facts.headlines(files),
        "facts": run_facts.summary(files),
        "figures": embedded(drawn),
        "best": files.best,
        "kind": run_facts.kind(files),
        "target": files.target,
        "curves": run_facts.curve_captions(files, curve_names([files])),
        "best_metrics": run_facts.metrics(
            {key: value for key, value in files.kept_epoch.items() if key.startswith("val_")}, files
        ),
        "epochs": run_facts.epoch_table(files),
        "folds": folds,
        "decisions": read_decisions(files),
        "validation": validation,
        "ids": files.ids_of_several,
        "questions": questions,
        "rows_are": files.rows_are,
        "checked": files.checked,
        "classes": classes,
        "corrections": run_facts.corrections(files),
        "numbers": numbers,
        "samples": _samples(files),
        "attention": attention,
        "submissions": submissions,
        "test_metrics": run_facts.metrics(files.scores.get("metrics", {}), files),
        "test_parts": {
            part: dict(run_facts.metrics(metrics, files))
            for part, metrics in files.scores.get("parts", {}).items()
        },
        "scores": files.scores,
        "parameters": run_facts.parameters(files),
        "settings": run_facts.settings(files),
        "every_setting": run_facts.flat(files.told.get("recipe", {})),
        "speed": run_facts.speed(files),
        "origin": run_facts.origin(files),
        "images": images,
        "script": script("browse.js"),
        "written": datetime.now().astimezone().isoformat(),
        "size": SIZE_MARK,
    }
    html = render("page.html.j2", **values, browse=read_browse(files), too_large=False)
    if len(html) > MAX_PAGE_BYTES and images:
        html = render("page.html.j2", **values, browse=read_browse(files, budget=0), too_large=True)
    page = files.path / PAGE
    write_text(page, html.replace(SIZE_MARK, human_size(len(html.encode()))))
    return page


def _draw_class_counts(files: RunFiles, counts: dict[str, int], drawn: Drawn) -> None:
    path, kind = files.path / "figures" / "class_counts.png", files.target.kind
    noun = {"ordinal": "grades", "multilabel": "labels"}.get(kind, "classes")
    class_counts_figure(path, list(counts), list(counts.values()), noun, ordered=kind == "ordinal")
    drawn["class_counts"] = (
        path,
        f"Training images of {len(counts):,} {noun}: from {min(counts.values()):,} to "
        f"{max(counts.values()):,}.",
    )


def _samples(files: RunFiles) -> dict[str, Any]:
    """Return training images by class: strips of several images per class, or tiles of one image each."""
    counts = files.record.get("counts", {}).get("train_per_class", {})
    rows = [row | {"count": counts.get(row["name"])} for row in samples(files)]
    strips = any(len(row["images"]) > 1 for row in rows)
    return {"rows": rows, "strips": strips, "open": OPEN_STRIPS if strips else OPEN_TILES}


def _attention(files: RunFiles, drawn: Drawn) -> list[str]:
    """Return the names of the attention figures in the run's folder; they are added to `drawn`."""
    # they show images of the data
    paths = sorted((files.path / "figures").glob("attention*.png")) if files.images else []
    for path in paths:
        what = "Heads of the last layer, each over the image." if "heads" in path.stem else None
        drawn[path.stem] = (path, what or "Attention maps over the images.")
    return [path.stem for path in paths]


if __name__ == "__main__":
    sys.exit(run_command(main))
