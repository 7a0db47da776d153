"""`make look DATA=data`: write a page about a competition's data before any training, and the same facts as
text.

python -m pipeline.look.show --data data                      # look/data/look.html, look.txt, groups.csv, ...
python -m pipeline.look.show --data data --recipe digits --backbone finetuned_model/model_beit
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError, run_command
from pipeline.files import check_place, human_size, read_json, sweep, write_json, write_text
from pipeline.lock import holding_folder

if TYPE_CHECKING:
    from pipeline.competition.rows import Competition
    from pipeline.look.section import Section
    from pipeline.look.selection import Looked
    from pipeline.recipe import Recipe

FOLDER, RECORD, TEXT = Path("look"), "look.json", "look.txt"
MOST_MB = 15.0


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.look.show",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("data"),
        metavar="DIR",
        help="the competition folder (default: data)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="folder for the page (default: look/<name of the data folder>)",
    )
    parser.add_argument(
        "--recipe",
        metavar="NAME|FILE",
        help="recipe whose model input and cost are shown (default: beit-large-384-lora)",
    )
    parser.add_argument("--backbone", metavar="HUB_ID|DIR", help="backbone instead of the recipe's")
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="any recipe key, as for train.py; repeatable",
    )
    parser.add_argument("--metric", metavar="NAME", help="as for train.py")
    parser.add_argument("--target", metavar="KIND", help="as for train.py")
    parser.add_argument("--positive-class", metavar="NAME", help="as for train.py")
    parser.add_argument(
        "--images",
        type=int,
        metavar="N",
        help="maximum number of images; a sample if there are more (default: 30000)",
    )
    parser.add_argument(
        "--max-mb",
        type=float,
        default=MOST_MB,
        metavar="MB",
        help="maximum size of the page (default: %(default)g)",
    )
    parser.add_argument(
        "--no-images", action="store_true", help="write a page without images of the data, for sending"
    )
    parser.add_argument("--no-cost", action="store_true", help="do not measure the cost of training")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Look at the data and write the page; returns the exit code."""
    args = parse(argv)
    if args.images is not None and args.images < 2:
        raise UserError(f"--images {args.images}: expected at least 2")
    if not 0 < args.max_mb < float("inf"):
        raise UserError(f"--max-mb {args.max_mb:g}: expected a number of MB above 0")
    from pipeline.competition.layout import read_for_training

    recipe = _recipe(args)
    # Rows without an image or label are skipped and corrections are not applied: the page shows the data as
    # they are.
    competition = read_for_training(
        args.data, recipe.data, skip_bad_images=True, partial_labels=True, with_corrections=False
    )
    folder = _folder(args)
    for place in (folder / RECORD, folder / "figures" / "model_input.png"):
        check_place(place, "name another --output")
    with holding_folder(folder):
        sweep(folder)
        return _look(args, recipe, competition, folder)


def _recipe(args: argparse.Namespace) -> Recipe:
    from pipeline.config import DEFAULT_RECIPE, load_recipe, parse_assignments

    flags = {
        "backbone": args.backbone,
        "data.metric": args.metric,
        "data.target": args.target,
        "data.positive_class": args.positive_class,
    }
    overrides: dict[str, Any] = {key: value for key, value in flags.items() if value is not None}
    if args.backbone:
        overrides["image_size"] = None  # use the backbone's own
    return load_recipe(args.recipe or DEFAULT_RECIPE, overrides | parse_assignments(args.set))


def _folder(args: argparse.Namespace) -> Path:
    """Return the folder for the page: look/NAME, or the first of look/NAME-2, ... that is not about other
    data.

    Raises:
        UserError: --output names a folder with other files, or a folder in the data.
    """
    data = args.data.resolve()
    folder = args.output or FOLDER / (data.name or "data")
    if folder.resolve() == data or data in folder.resolve().parents:
        raise UserError(
            f"{folder} is inside the data folder, where nothing is written: name another --output"
        )
    if args.output:
        if folder.is_dir() and any(folder.iterdir()) and not (folder / RECORD).is_file():
            raise UserError(f"{folder} holds other files: name a new folder with --output")
        return folder
    candidate, number = folder, 2
    while candidate.exists() and _about(candidate) not in (str(data), None):
        candidate, number = folder.with_name(f"{folder.name}-{number}"), number + 1
    return candidate


def _about(folder: Path) -> str | None:
    """Return the data that a look folder is about; None if it is empty or unfinished, "" if it is unclear."""
    try:
        record = read_json(folder / RECORD)
    except (UserError, OSError):
        return None if folder.is_dir() and not any(folder.glob("*.html")) else ""
    return record.get("data") if isinstance(record, dict) else ""


def _look(args: argparse.Namespace, recipe: Recipe, competition: Competition, folder: Path) -> int:
    from pipeline.data.intensity import find_intensity
    from pipeline.look.as_text import as_text
    from pipeline.look.cost import cost_section
    from pipeline.look.fact_store import FactStore
    from pipeline.look.look_page import Thumbnails, write_page
    from pipeline.look.measuring import measure
    from pipeline.look.selection import MOST_IMAGES, choose

    record = read_json(folder / RECORD) if (folder / RECORD).is_file() else {}
    record = {
        "data": str(args.data.resolve()),
        "groups": record.get("groups", "") if isinstance(record, dict) else "",
    }
    write_json(folder / RECORD, record)
    looked = choose(competition, args.images or MOST_IMAGES)
    if not looked.train and not looked.test:
        raise UserError(f"{args.data}: no images to look at")
    intensity, deep_notes = find_intensity([row.path for row in looked.train])
    store = FactStore(folder, intensity)
    try:
        looked.facts = measure(looked.paths, store, intensity)
        sections = _sections(args, recipe, looked, folder, store, intensity, deep_notes, record)
    finally:
        store.close()
    write_json(folder / RECORD, record)
    thumbnails = Thumbnails(intensity)

    def write() -> Path:
        """Write the text and the page from what is known so far; returns the page's path."""
        write_text(folder / TEXT, as_text(looked.competition.root.resolve().name, sections))
        page, note = write_page(
            folder,
            looked.competition.root.resolve().name,
            sections,
            thumbnails,
            int(args.max_mb * 1e6),
            not args.no_images,
        )
        if note:
            print(note, file=sys.stderr)
        return page

    page = write()  # before the cost, which takes longer: the page exists if the user stops that
    if not args.no_cost:
        print(
            f"measuring what {recipe.name or recipe.backbone} takes here (Ctrl-C: {page} exists without it)",
            file=sys.stderr,
        )
        sections.append(cost_section(looked, recipe, Path("finetuned_model")))
        page = write()
    print((folder / TEXT).read_text(encoding="utf-8"))
    print(
        f"{page}: {human_size(page.stat().st_size)}, a single file that can be sent; the same as text in "
        f"{folder / TEXT}"
    )
    return 0


def _sections(
    args: argparse.Namespace,
    recipe: Recipe,
    looked: Looked,
    folder: Path,
    store: Any,
    intensity: Any,
    deep_notes: list[str],
    record: dict[str, str],
) -> list[Section]:
    """Return every section except the cost."""
    from pipeline.look.contact_sheet import contact_section
    from pipeline.look.copies import copies_of, copies_section
    from pipeline.look.cost import input_preprocessing
    from pipeline.look.duplicates import find_duplicates
    from pipeline.look.group_file import grouped_ids, write_groups
    from pipeline.look.label_counts import label_section
    from pipeline.look.model_input import input_section
    from pipeline.look.odd_images import odd_section
    from pipeline.look.same_source import source_section, tell_apart
    from pipeline.look.sizes import size_section
    from pipeline.look.understood import recognised
    from pipeline.tables import write_table

    figures = folder / "figures"
    preprocessing, assumed = input_preprocessing(recipe)
    sound = [path for path in looked.paths if not looked.facts[path].problem]
    sets = copies_of(looked, sound, find_duplicates([looked.facts[path] for path in sound], store))
    groups_file = ""
    if looked.competition.task != "vqa" and any(len({row.id for row in copies.train}) > 1 for copies in sets):
        path, record["groups"] = write_groups(folder, grouped_ids(looked.competition, sets), record["groups"])
        groups_file = str(path)
    told = tell_apart(looked, sets)
    if told:
        rows = sorted(zip(told.train, told.likeness.tolist(), strict=True), key=lambda pair: -pair[1])
        write_table(
            folder / "test_like.csv",
            ("id", "image", "test_like"),
            ((row.id, looked.shown(row.path), f"{value:.4f}") for row, value in rows),
        )
    return [
        recognised(looked),
        contact_section(looked),
        label_section(looked.competition, figures),
        size_section(looked, figures, min(preprocessing.height, preprocessing.width)),
        input_section(looked, recipe, preprocessing, assumed, figures, intensity),
        odd_section(looked, intensity, deep_notes),
        copies_section(looked, sets, groups_file),
        source_section(looked, told),
    ]


if __name__ == "__main__":
    sys.exit(run_command(main))
