"""`make data`: put a competition (from Kaggle, or downloaded by hand) or a public data set into the data
folder, as images.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.competition.facts import write_slug
from pipeline.competition.folders import unpack_command
from pipeline.errors import Interrupted, UserError, raise_all, run_command
from pipeline.fetch import arrival, containers, originals, public_sets, staging
from pipeline.fetch.data_folder import no_room, understood
from pipeline.fetch.pixels import SMALLEST_SIDE
from pipeline.fetch.set_install import install_set
from pipeline.kaggle import cli
from pipeline.kaggle.remembered import REMEMBERED
from pipeline.lock import holding_folder
from pipeline.shapes import TEXT, read_object, read_shaped
from pipeline.wording import nearest

READY_RECORD = "ready.json"  # in a work folder: the source of the prepared content, and lines to print
FROM_DIR = ".from.download"  # in the data folder: work folder for a download made by hand


def main(argv: list[str] | None = None) -> int:
    """Fetch a competition or a public set into the data folder and print how it is read.

    Returns the exit code.

    Raises:
        UserError: there is no token, or no such competition or set; the server refused; or the folder is in
            use.
    """
    parser = argparse.ArgumentParser(prog="python -m pipeline.fetch.install", description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--competition", metavar="SLUG", help="the last part of the competition's address on Kaggle"
    )
    source.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="PATH",
        help="a folder or archive that you downloaded; it is not changed",
    )
    source.add_argument("--dataset", metavar="NAME", help=f"a public set: {', '.join(public_sets.SETS)}")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="target folder (default: data, for a public set data/NAME)"
    )
    parser.add_argument(
        "--channels",
        metavar="NAMES",
        help="join files of one channel each into one image: red,green,blue joins ID_red.png, ID_green.png "
        "and ID_blue.png; one to three names",
    )
    parser.add_argument(
        "--longest",
        type=int,
        metavar="PIXELS",
        help="most pixels of the longer side of images that are converted (DICOM, arrays, ...) or joined; "
        "image files are not changed (default: any number)",
    )
    parser.add_argument("--yes", action="store_true", help="allow a folder that holds other files")
    args = parser.parse_args(argv)
    wishes = _wishes(args)
    data_dir = args.data or (Path("data") / args.dataset if args.dataset is not None else Path("data"))
    with holding_folder(data_dir, "name another folder with --data"):
        _install(args, data_dir, wishes)
    return 0


def _wishes(args: argparse.Namespace) -> containers.Wishes:
    for name, value in (("channels", args.channels), ("longest", args.longest)):
        if value is not None and args.dataset is not None:
            raise UserError(
                f"--{name} ({name.upper()}=) is for your download and for Kaggle's; {args.dataset} has "
                "colour images of its own size"
            )
    if args.longest is not None and args.longest < SMALLEST_SIDE:
        raise UserError(f"--longest {args.longest} (LONGEST=): expected at least {SMALLEST_SIDE} pixels")
    if args.channels is None:
        return containers.Wishes(longest=args.longest or 0)
    from pipeline.fetch import channels

    return containers.Wishes(tuple(channels.names_of(args.channels)), args.longest or 0)


def _install(args: argparse.Namespace, data_dir: Path, wishes: containers.Wishes) -> None:
    if args.dataset is not None:
        install_set(args.dataset, data_dir, yes=args.yes)
    elif args.source is not None:
        source = Path(os.path.expanduser(args.source))  # unlike Path's own, it keeps ~unknown as it is
        take(source, data_dir, yes=args.yes, wishes=wishes)
    else:
        slug = cli.clean_slug(args.competition)
        if not arrival.arriving(_work_dir(data_dir, slug)):
            raise_all(
                [*cli.not_ready(), *no_room(data_dir, slug, args.yes)], f"{slug} cannot be downloaded yet:"
            )
        install(slug, data_dir, wishes)


def take(
    source: Path,
    data_dir: Path,
    yes: bool = False,
    wishes: containers.Wishes = containers.Wishes(),  # noqa: B008 - frozen
) -> None:
    """Make `data_dir` a competition folder from a download (a folder, an archive or a file), which is not
    changed.

    Content that an earlier call prepared or began to move is used if `source` has not changed since.

    Raises:
        UserError: `source` does not exist, is damaged, unsafe or incomplete, or the folder is in use; nothing
            was moved.
        Interrupted: Ctrl-C.
    """
    _check_source(source, data_dir)
    work_dir = data_dir / FROM_DIR
    record, begun = arrival.fingerprint(source) | wishes.record(), arrival.arriving(work_dir)
    _check_begun(begun, record, data_dir)
    if not begun:
        raise_all(
            no_room(data_dir, source.name or str(source.resolve()), yes, besides=source),
            f"{source} cannot be put into {data_dir}:",
        )
        if not _is_ready(work_dir, record):
            _make_ready(source, work_dir, record, wishes)
    command = _command("from", str(source), data_dir, wishes)
    _arrive(work_dir, data_dir, {"source": record, "command": command})
    print(f"{source} is in {data_dir}; {source} was not changed")
    _tell(data_dir, work_dir)


def _check_source(source: Path, data_dir: Path) -> None:
    if not source.exists():
        siblings = [entry.name for entry in source.parent.iterdir()] if source.parent.is_dir() else []
        raise UserError(
            f"{source} does not exist{nearest(source.name, siblings)}; FROM= (--from) must be an existing "
            "folder or archive"
        )
    if not source.is_dir() and not source.is_file():
        raise UserError(
            f"{source} is a device or a pipe; FROM= (--from) must be an existing folder or archive"
        )
    if (source / containers.CONVERTED).is_file():
        raise UserError(
            f"{source} holds images that `make data` made from other files, and how is recorded in it only: "
            "FROM= (--from) must be the download itself"
        )
    folder, into = source.resolve(), data_dir.resolve()
    if folder == into or folder in into.parents:
        raise UserError(
            f"{source} cannot be prepared inside itself; name another folder, for example: "
            f"{unpack_command(source)}"
        )


def _check_begun(begun: dict[str, Any] | None, record: dict[str, Any], data_dir: Path) -> None:
    """Check that a move that was interrupted is that of this command."""
    keys = ("path", "slug", "channels", "longest")
    if begun and any(begun["source"].get(key) != record.get(key) for key in keys):
        source = begun["source"].get("path") or begun["source"].get("slug")
        raise UserError(f"{data_dir} holds a part of {source}; finish that first: {begun['command']}")


def _command(kind: str, value: str, data_dir: Path, wishes: containers.Wishes) -> str:
    words = ["python", "-m", "pipeline.fetch.install", f"--{kind}", value, "--data", str(data_dir)]
    return shlex.join([*words, *wishes.flags()])


def _is_ready(work_dir: Path, record: dict[str, Any]) -> bool:
    path = work_dir / READY_RECORD
    return (
        path.is_file() and (work_dir / arrival.READY).is_dir() and read_object(path).get("source") == record
    )


def _make_ready(source: Path, work_dir: Path, record: dict[str, Any], wishes: containers.Wishes) -> None:
    """Prepare the complete content in `work_dir`, with its record; after a failure or an interruption nothing
    is left.
    """
    made = [folder for folder in (work_dir, work_dir.parent) if not folder.exists()]
    unfinished, ready = work_dir / "unfinished", work_dir / arrival.READY
    for folder in (unfinished, ready):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        containers.check_extras(source)
        notes = staging.stage(source, unfinished)
        notes += [line] if (line := staging.unwrap(unfinished)) else []
        before = containers.stand(unfinished)
        originals.keep_originals(unfinished)
        done = containers.convert(unfinished, wishes=wishes)
        converted = containers.write_converted(unfinished, before, done)
        notes += done.notes
        notes += [line] if (line := originals.drop_originals(unfinished, converted)) else []
        staging.own_tables(unfinished)
        if not any(unfinished.iterdir()):
            raise UserError(f"{source} holds no file")
        files.write_json(work_dir / READY_RECORD, {"source": record, "notes": notes})
        unfinished.rename(ready)
    except BaseException as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        for folder in made:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted("interrupted, nothing was moved; the same command starts again") from None
        raise


def _arrive(work_dir: Path, data_dir: Path, note: dict[str, Any]) -> None:
    try:
        arrival.move_in(work_dir, data_dir, note)
    except KeyboardInterrupt:
        raise Interrupted("interrupted while moving files; the same command continues") from None


def _tell(data_dir: Path, work_dir: Path) -> None:
    """Print the notes of the preparation and how the folder is read now; removes the work folder."""
    record = work_dir / READY_RECORD
    notes = []
    if record.is_file():
        notes = read_shaped(record, {"notes?": [TEXT]}, "move its folder away").get("notes", [])
    arrival.done(work_dir)
    summary, problem = understood(data_dir)
    for note in [*notes, *summary]:
        print(f"  {note}")
    if problem:
        print(f"Its files cannot be read as an image classification competition yet: {problem}")


def install(
    slug: str,
    data_dir: Path,
    wishes: containers.Wishes = containers.Wishes(),  # noqa: B008 - frozen
) -> None:
    """Download a competition, unpack it, move it into `data_dir`, and print how it is read.

    A partial download stays in a hidden folder of `data_dir`; the next call resumes it.

    Raises:
        UserError: Kaggle refused, an archive is broken, or a name is taken; nothing was moved.
        Interrupted: Ctrl-C.
    """
    work_dir = _work_dir(data_dir, slug)
    record, begun = {"slug": slug} | wishes.record(), arrival.arriving(work_dir)
    _check_begun(begun, record, data_dir)
    if not begun and not _is_ready(work_dir, record):
        _download(slug, work_dir / "archive")
        archive = _one_archive(work_dir / "archive")
        try:
            _make_ready(archive, work_dir, record, wishes)
        except UserError as error:
            raise UserError(
                f"{error}\nThe download stays there; delete {archive} to download it again"
            ) from None
    if (work_dir / arrival.READY / REMEMBERED).exists() and not arrival.arriving(work_dir):
        theirs = work_dir / arrival.READY / REMEMBERED
        theirs.rename(files.versioned(theirs))
    command = _command("competition", slug, data_dir, wishes)
    _arrive(work_dir, data_dir, {"source": record, "command": command})
    write_slug(data_dir, slug)
    print(f"{slug} is in {data_dir}; `make submit` takes its name from {data_dir / REMEMBERED}")
    _tell(data_dir, work_dir)


def _work_dir(data_dir: Path, slug: str) -> Path:
    return data_dir / f".{slug}.download"


def _one_archive(folder: Path) -> Path:
    downloaded = _downloaded(folder) if folder.exists() else []
    if len(downloaded) != 1:
        raise UserError(
            f"the kaggle command should have left one file in {folder}, there are {len(downloaded)}: delete "
            "it and try again"
        )
    return downloaded[0]


def _download(slug: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    print(f"downloading {slug} from Kaggle ...", flush=True)
    line = cli.StatusLine()
    try:
        cli.download(slug, folder, tick=lambda: line.show(f"  {files.human_size(_received(folder))} so far"))
    except KeyboardInterrupt:
        raise Interrupted("interrupted; the same command resumes the download") from None
    finally:
        line.close()
        if not any(folder.iterdir()):
            folder.rmdir()
            folder.parent.rmdir()


def _downloaded(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file() and path.suffix != ".kaggle-partial"]


def _received(folder: Path) -> int:
    return sum(path.stat().st_size for path in _downloaded(folder))


if __name__ == "__main__":
    sys.exit(run_command(main))
