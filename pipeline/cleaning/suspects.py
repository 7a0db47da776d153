"""`make suspects`: find labels that look wrong, from a run of folds; write suspects.csv and a page to decide
about each.

python -m pipeline.cleaning.suspects --model runs/folds  # runs/folds/suspects/suspects.csv and suspects.html
# without nearest images: loads no model
python -m pipeline.cleaning.suspects --model runs/folds --neighbours 0
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.cleaning.confident import Suspect, find_suspects, need_cleanlab
from pipeline.cleaning.out_of_fold import OutOfFold, read_out_of_fold
from pipeline.cleaning.suspects_page import MAX_SHOWN, build_page, next_command
from pipeline.errors import run_command
from pipeline.files import check_place, human_size
from pipeline.run_names import DISAGREEMENT
from pipeline.tables import guarded, write_table
from pipeline.wording import counted

FOLDER, TABLE, SUSPECTS_PAGE = "suspects", "suspects.csv", "suspects.html"
COLUMNS = ("id", "given", "suggested", "score")


def main(argv: list[str] | None = None) -> int:
    """Write the table and the page of suspects into the run's folder; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.cleaning.suspects",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model",
        type=Path,
        default=Path("runs/folds"),
        metavar="DIR",
        help="a run of folds (default: %(default)s)",
    )
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="its competition folder (default: where it was trained)"
    )
    parser.add_argument(
        "--neighbours",
        type=int,
        default=5,
        metavar="N",
        help="nearest training images beside each suspect (default: %(default)s)",
    )
    parser.add_argument(
        "--no-images", action="store_true", help="write the page without images of the data, for sending"
    )
    args = parser.parse_args(argv)
    need_cleanlab()
    check_place(args.model / FOLDER / TABLE)
    oof = read_out_of_fold(args.model, args.data)
    suspects = find_suspects(oof.target, oof.labels, oof.values)
    table = write_suspects(oof, suspects)
    print(f"{counted(len(suspects), 'label')} of {len(oof.ids):,} look wrong: {table}")
    if oof.earlier:
        print(
            "the rows that these folds left out or relabelled are marked so on the page, and in its downloads"
        )
    for note in oof.notes:
        print(f"note: {note}")
    near = {}
    if args.neighbours > 0:
        from pipeline.cleaning.neighbours import look_around, write_disagreement  # torch: seconds

        near, disagreement = look_around(oof, [one.row for one in suspects[:MAX_SHOWN]], args.neighbours)
        write_disagreement(oof, disagreement)
    page = build_page(
        oof, suspects, near, args.model / FOLDER / SUSPECTS_PAGE, not args.no_images, args.data is not None
    )
    print(
        f"page: {page}, {human_size(page.stat().st_size)}: mark rows to exclude or relabel, download, "
        f"then\nnext: {next_command(oof)}"
    )
    if args.neighbours > 0:
        report = shlex.join(["python", "-m", "pipeline.report.page", "--run", str(args.model)])
        print(
            f"the disagreement of the folds on each image is in {args.model / DISAGREEMENT}; to sort the "
            f"run's page by it: {report}"
        )
    return 0


def write_suspects(oof: OutOfFold, suspects: Sequence[Suspect]) -> Path:
    """Write suspects.csv (id, given, suggested, score), the most suspicious first; returns its path."""
    path = oof.path / FOLDER / TABLE
    rows = [
        (*map(guarded, (oof.ids[one.row], one.given, one.suggested)), f"{one.score:.6f}") for one in suspects
    ]
    write_table(path, COLUMNS, rows)
    return path


if __name__ == "__main__":
    sys.exit(run_command(main))
