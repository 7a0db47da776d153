"""`make data`: a competition from Kaggle, remembered for `make submit`, or a public data set laid out as one, into the data folder."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path
from shlex import quote

from pipeline import files
from pipeline.competition.layout import read_layout
from pipeline.errors import Interrupted, UserError, raise_all, run_command
from pipeline.fetch import public_sets
from pipeline.fetch.archives import unpack_zip
from pipeline.kaggle import cli
from pipeline.kaggle.remembered import REMEMBERED, agreed, remembered_slug

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
OTHER_ARCHIVES = (".7z", ".rar", ".bz2", ".xz")
NESTED_LEVELS = 3


def main(argv: list[str] | None = None) -> int:
    """Fetch a competition or a public set into the data folder and say what was understood of it; the exit code.

    Raises:
        UserError: no token or no such competition or set, the server refused, or the folder holds a competition already.
    """
    parser = argparse.ArgumentParser(prog="python -m pipeline.fetch.install", description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--competition", metavar="SLUG", help="the last part of the competition's address on Kaggle")
    source.add_argument("--dataset", metavar="NAME", help=f"a public set: {', '.join(public_sets.SETS)}")
    parser.add_argument("--data", type=Path, metavar="DIR", help="where it goes (default: data, for a public set data/NAME)")
    parser.add_argument("--yes", action="store_true", help="also into a folder that holds other files")
    args = parser.parse_args(argv)
    if args.dataset is not None:
        install_set(args.dataset, args.data or Path("data") / args.dataset, yes=args.yes)
        return 0
    slug, data_dir = cli.clean_slug(args.competition), args.data or Path("data")
    raise_all([*cli.not_ready(), *_no_room(data_dir, slug, args.yes)], f"{slug} cannot be downloaded yet:")
    install(slug, data_dir)
    return 0


def install_set(name: str, data_dir: Path, yes: bool = False) -> None:
    """Make `data_dir` the competition folder of a public set, and print what was understood of it and what to do next.

    Nothing is changed when it is that already. What an interrupted call left in a hidden folder of `data_dir` is used by the next one.

    Raises:
        UserError: there is no such set, the folder holds something else, or the download failed; nothing was moved then.
        Interrupted: Ctrl-C.
    """
    public_set = public_sets.find(name)
    work_dir = data_dir / f".{name}.download"
    laid_out = work_dir / "laid_out"
    try:
        if _set_there(data_dir) != name:
            raise_all(_no_room(data_dir, name, yes), f"{name} cannot be downloaded yet:")
            print(f"{name}: {public_set.about}", flush=True)
            public_sets.download(public_set, work_dir)
            shutil.rmtree(laid_out, ignore_errors=True)
            public_sets.lay_out(name, work_dir, laid_out)
            _move_in(laid_out, data_dir)
            print(f"{name} is in {data_dir}")
        elif laid_out.exists():  # stopped while it was moved in; the record is the first file to be moved
            _move_in(laid_out, data_dir)
            print(f"{name} is in {data_dir}")
        else:
            print(f"{name} is in {data_dir} already")
    except KeyboardInterrupt:
        raise Interrupted("interrupted; the same command goes on from there") from None
    finally:
        if work_dir.is_dir() and not any(work_dir.iterdir()):
            work_dir.rmdir()
    shutil.rmtree(work_dir, ignore_errors=True)
    for note in read_layout(data_dir).notes:
        print(f"  {note}")
    for recipe in public_set.recipes:
        print(f"  python train.py --recipe {recipe} --data {quote(str(data_dir))}")
    print(f"  python inference.py --data {quote(str(data_dir))} && make score SOLUTION={quote(str(data_dir / public_sets.SOLUTION))}")


def _set_there(data_dir: Path) -> str | None:
    """The public set that `data_dir` holds; None when it holds none."""
    path = data_dir / public_sets.RECORD
    value = files.read_json(path) if path.is_file() else None
    return value.get("dataset") if isinstance(value, dict) else None


def install(slug: str, data_dir: Path) -> None:
    """Download a competition, unpack it, move it into `data_dir` and print what was understood of it.

    An unfinished download stays in a hidden folder of `data_dir`, where the next call resumes it.

    Raises:
        UserError: Kaggle refused, or an archive or a name in it is in the way; nothing was moved then.
        Interrupted: Ctrl-C while downloading.
    """
    work_dir = data_dir / f".{slug}.download"
    _download(slug, work_dir / "archive")
    shutil.rmtree(work_dir / "unpacked", ignore_errors=True)
    notes = _unpack(work_dir / "archive", work_dir / "unpacked")
    _move_in(work_dir / "unpacked", data_dir)
    files.write_json(data_dir / REMEMBERED, {"slug": slug})
    shutil.rmtree(work_dir)
    print(f"{slug} is in {data_dir}; `make submit` takes its name from {data_dir / REMEMBERED}")
    summary, problem = _understood(data_dir)
    for note in [*notes, *summary]:
        print(f"  {note}")
    if problem:
        print(f"Its files are not understood as an image classification competition yet: {problem}")


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


def _no_room(data_dir: Path, slug: str, yes: bool) -> list[str]:
    """Why nothing may be put into `data_dir`; empty when there is room."""
    elsewhere = f"name another folder: --data data_{slug}"
    if data_dir.exists() and not data_dir.is_dir():
        return [f"{data_dir} is a file; {elsewhere}"]
    found = _visible(data_dir)
    if not found:
        return []
    slug_there, set_there = remembered_slug(data_dir), _set_there(data_dir)
    if set_there or _understood(data_dir)[0] or (slug_there and found != [REMEMBERED]):
        holds = f"the set {set_there!r}" if set_there else f"the competition {slug_there!r}" if slug_there else "a competition"
        return [f"{data_dir} already holds {holds}; {elsewhere}"]
    if slug_there not in (None, slug):
        return [f"{data_dir / REMEMBERED} names another competition, {slug_there!r}: delete it, or {elsewhere}"]
    others = [name for name in found if name != REMEMBERED]
    if not others or yes or agreed(f"{data_dir} holds {_few(others)}. Put {slug} beside them? [y/N] "):
        return []
    return [f"{data_dir} holds other files ({_few(others)}): YES=1 (--yes) puts {slug} beside them, or {elsewhere}"]


def _visible(data_dir: Path) -> list[str]:
    """Names in the folder that are not hidden, not about the folder itself, and no public set in a folder of its own."""
    if not data_dir.is_dir():
        return []
    names = sorted(name for name in os.listdir(data_dir) if not name.startswith(".") and not name.upper().startswith("README"))
    return [name for name in names if not (data_dir / name / public_sets.RECORD).is_file()]


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _downloaded(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file() and path.suffix != ".kaggle-partial"]


def _received(folder: Path) -> int:
    return sum(path.stat().st_size for path in _downloaded(folder))


def _unpack(archive_dir: Path, target: Path) -> list[str]:
    """Unpack the download and the archives in it into `target`; returns a line about each that stays packed.

    Raises:
        UserError: the download is damaged or unsafe.
    """
    downloaded = _downloaded(archive_dir) if archive_dir.exists() else []
    if len(downloaded) != 1:
        raise UserError(
            f"the kaggle command should have left one file in {archive_dir}, there are {len(downloaded)}: delete it and try again"
        )
    archive = downloaded[0]
    if not _is_archive(archive):
        target.mkdir(parents=True)
        shutil.copy2(archive, target / archive.name)
        return []
    try:
        unpack_zip(archive, target)
    except UserError as error:
        raise UserError(f"{error}\nThe download stays there; delete {archive} to download it anew") from None
    packed: dict[Path, str] = {}
    for _ in range(NESTED_LEVELS):
        nested = [path for path in _all_files(target) if _is_archive(path) and path not in packed]
        if not nested:
            break
        packed |= {path: problem for path in nested if (problem := _unpack_nested(path))}
    notes = [f"{path.relative_to(target)} stays packed: {problem}" for path, problem in packed.items()]
    foreign = [
        str(path.relative_to(target)) for path in _all_files(target) if path.name.lower().endswith(OTHER_ARCHIVES) and path not in packed
    ]
    return notes + ([f"stays packed, unpack it with a tool for its kind: {_few(foreign)}"] if foreign else [])


def _is_archive(path: Path) -> bool:
    return path.name.lower().endswith(ARCHIVES)


def _all_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _unpack_nested(path: Path) -> str:
    """Replace an archive by what is in it: train.zip becomes train/, train.csv.zip becomes train.csv. Returns why it could not."""
    stem = path.name[: -max(len(suffix) for suffix in ARCHIVES if path.name.lower().endswith(suffix))]
    fresh = path.with_name(f".{path.name}.new")
    try:
        unpack_zip(path, fresh)
    except UserError as error:
        return " ".join(str(error).split())
    inside = list(fresh.iterdir()) if fresh.exists() else []
    # An archive that brings its own folder, or a single table, must not be wrapped into a second one.
    alone = inside[0] if len(inside) == 1 and (inside[0].name == stem or inside[0].is_file()) else None
    source, goal = (alone, path.with_name(alone.name)) if alone else (fresh, path.with_name(stem))
    if not inside or goal.exists():
        shutil.rmtree(fresh, ignore_errors=True)
        return f"{goal.name} is there already" if inside else "it is empty"
    source.rename(goal)
    shutil.rmtree(fresh, ignore_errors=True)
    path.unlink()
    return ""


def _move_in(unpacked: Path, data_dir: Path) -> None:
    """Move everything in `unpacked` into `data_dir`, or nothing when a name is taken."""
    if (unpacked / REMEMBERED).exists():
        (unpacked / REMEMBERED).rename(files.versioned(unpacked / REMEMBERED))
    entries = sorted(unpacked.iterdir())
    taken = [f"{data_dir / entry.name} is there already" for entry in entries if os.path.lexists(data_dir / entry.name)]
    raise_all(taken, f"the download stays in {unpacked}; move these away or name another folder with --data:")
    for entry in entries:
        entry.rename(data_dir / entry.name)


def _understood(data_dir: Path) -> tuple[tuple[str, ...], str]:
    """The layout's summary of `data_dir`, or no lines and the reason why it is not understood."""
    problem = ""
    for need in ("both", "train", "test"):
        try:
            return read_layout(data_dir, need=need).notes, ""
        except UserError as error:
            problem = problem or str(error)
    return (), problem


if __name__ == "__main__":
    sys.exit(run_command(main))
