"""`make data`: a competition's files from Kaggle, unpacked into the data folder and remembered for `make submit`."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

from pipeline import files
from pipeline.competition import kaggle_cli
from pipeline.competition.archives import unpack_zip
from pipeline.competition.layout import read_layout
from pipeline.errors import Interrupted, UserError, raise_all, run_command

REMEMBERED = "competition.json"
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
OTHER_ARCHIVES = (".7z", ".rar", ".bz2", ".xz")
NESTED_LEVELS = 3


def main(argv: list[str] | None = None) -> int:
    """Fetch a competition into the data folder and say what was understood of it; the exit code.

    Raises:
        UserError: no token or competition, Kaggle refused, or the folder holds a competition already.
    """
    parser = argparse.ArgumentParser(prog="python -m pipeline.competition.datasets", description=__doc__)
    parser.add_argument("--competition", required=True, metavar="SLUG", help="the last part of the competition's address on Kaggle")
    parser.add_argument("--data", type=Path, default=Path("data"), metavar="DIR", help="where it goes (default: %(default)s)")
    parser.add_argument("--yes", action="store_true", help="also into a folder that holds other files")
    args = parser.parse_args(argv)
    slug = kaggle_cli.clean_slug(args.competition)
    raise_all([*kaggle_cli.not_ready(), *_no_room(args.data, slug, args.yes)], f"{slug} cannot be downloaded yet:")
    install(slug, args.data)
    return 0


def remembered_slug(data_dir: Path) -> str | None:
    """The competition that `make data` put into `data_dir`; None when it did not.

    Raises:
        UserError: what is remembered cannot be read.
    """
    path = Path(data_dir) / REMEMBERED
    if not path.exists():
        return None
    value = files.read_json(path)
    slug = value.get("slug") if isinstance(value, dict) else None
    if not isinstance(slug, str) or not slug:
        raise UserError(f'{path} should hold {{"slug": "<competition>"}}: repair or delete it')
    return kaggle_cli.clean_slug(slug)


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
    line = kaggle_cli.StatusLine()
    try:
        kaggle_cli.download(slug, folder, tick=lambda: line.show(f"  {files.human_size(_received(folder))} so far"))
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
    slug_there = remembered_slug(data_dir)
    if _understood(data_dir)[0] or (slug_there and found != [REMEMBERED]):
        holds = f"the competition {slug_there!r}" if slug_there else "a competition"
        return [f"{data_dir} already holds {holds}; {elsewhere}"]
    if slug_there not in (None, slug):
        return [f"{data_dir / REMEMBERED} names another competition, {slug_there!r}: delete it, or {elsewhere}"]
    others = [name for name in found if name != REMEMBERED]
    if not others or yes or agreed(f"{data_dir} holds {_few(others)}. Put {slug} beside them? [y/N] "):
        return []
    return [f"{data_dir} holds other files ({_few(others)}): YES=1 (--yes) puts {slug} beside them, or {elsewhere}"]


def _visible(data_dir: Path) -> list[str]:
    """Names in the folder that are not hidden and not about the folder itself."""
    if not data_dir.is_dir():
        return []
    return sorted(name for name in os.listdir(data_dir) if not name.startswith(".") and not name.upper().startswith("README"))


def agreed(question: str) -> bool:
    """Whether the user says yes on the terminal; without a terminal nobody does."""
    try:
        return sys.stdin.isatty() and input(question).strip().lower() in ("y", "yes")
    except EOFError:
        return False


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
