"""How well `make look` finds copies: photographs are saved again in four sizes and qualities, then searched.

    python -m tests.benchmarks.copies --photos COMPETITIONS/clothing COMPETITIONS/produce

The photographs should differ from each other. First they are searched as they are: a set of equal ones that
is reported is a false alarm, or a real copy to look at, so its names are printed. Then COUNT of them, evenly
spaced, are searched together with their copies.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from pipeline.errors import UserError, run_command
from pipeline.look.duplicates import Twins, find_duplicates
from pipeline.look.fact_store import FactStore
from pipeline.look.measuring import measure

# The size (pixels, or times that of the photograph) and the JPEG quality of each copy
COPIES: list[tuple[tuple[int, int] | float, int]] = [((200, 260), 60), (0.7, 70), (1.6, 80), (0.5, 50)]


def main() -> int:
    """Print what was found; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--photos", type=Path, nargs="+", required=True, help="folders with .jpg files")
    parser.add_argument("--count", type=int, default=500, help="how many are copied (default: %(default)s)")
    args = parser.parse_args()
    photos = sorted(path for folder in args.photos for path in folder.rglob("*.jpg"))
    if len(photos) < args.count:
        raise UserError(f"--photos: expected {args.count:,} .jpg files or more, found {len(photos):,}")
    with tempfile.TemporaryDirectory() as folder:
        alike = search(photos, Path(folder) / "photos")
        print(f"{len(photos):,} photographs: {len(alike)} sets of copies reported")
        for twins in alike:
            print("  " + ", ".join(str(photos[place]) for place in twins.places))
        chosen = [photos[place * len(photos) // args.count] for place in range(args.count)]
        copies = [copy for number, photo in enumerate(chosen) for copy in saved_again(photo, folder, number)]
        found = search([*chosen, *copies], Path(folder) / "copies")
    # A copy belongs to the photograph with its number
    numbers = [*range(len(chosen)), *(place // len(COPIES) for place in range(len(copies)))]
    of_sets = [{numbers[place] for place in twins.places} for twins in found]
    with_original = sum(
        sum(place >= len(chosen) and numbers[place] in twins.places for place in twins.places)
        for twins in found
    )
    print(f"{len(chosen):,} of them with {len(copies):,} copies: {with_original:,} copies found")
    print(f"sets that hold different photographs: {sum(len(members) > 1 for members in of_sets)}")
    return 0


def search(paths: Sequence[Path], work: Path) -> list[Twins]:
    """Return the sets of equal images among `paths`, as positions."""
    store = FactStore(work, None)
    facts = measure(paths, store, None)
    return find_duplicates([facts[path] for path in paths], store)


def saved_again(photo: Path, folder: str, number: int) -> list[Path]:
    """Save `photo` in each way of `COPIES`; the files."""
    paths = []
    with Image.open(photo) as opened:
        image = opened.convert("RGB")
    for way, (size, quality) in enumerate(COPIES):
        if not isinstance(size, tuple):
            size = (round(size * image.width), round(size * image.height))
        paths.append(Path(folder) / f"{number}-{way}.jpg")
        image.resize(size).save(paths[-1], quality=quality)
    return paths


if __name__ == "__main__":
    sys.exit(run_command(main))
