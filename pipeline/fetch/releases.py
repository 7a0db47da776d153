"""`make weights`: fetch and check the released weights, and install them in the model folder without losing
anything there.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.errors import UserError, run_command
from pipeline.fetch.archives import unpack_zip
from pipeline.fetch.download import fetch
from pipeline.fetch.release_contents import Contents, sort_contents
from pipeline.fetch.release_file import MODEL_DIR, RELEASE_FILE, Release, choose_release
from pipeline.lock import holding_folder
from pipeline.run import is_unfinished, model_dirs, now, run_entries
from pipeline.run_names import HEAD_FILE, INSTALLED, INSTALLING, RECORD
from pipeline.unfinished import resume_command

WORK_DIR = ".download"


def install(
    release: Release, model_dir: Path, data_dir: Path, *, cookies: Path | None = None, **fetch_options: Any
) -> bool:
    """Install the release in `model_dir`, printing each step. Returns False if it was installed already.

    Earlier content of `model_dir` moves to `earlier/`. A `data/` in the release goes to `data_dir` unless
    that already holds a competition.

    Raises:
        UserError: `model_dir` holds an unfinished run, or the release cannot be fetched or holds no model.
            Nothing is changed then.
    """
    model_dir, data_dir = Path(model_dir), Path(data_dir)
    with holding_folder(model_dir, "use another --model"):
        files.sweep(model_dir)
        return _install(release, model_dir, data_dir, cookies=cookies, **fetch_options)


def _install(release: Release, model_dir: Path, data_dir: Path, **fetch_options: Any) -> bool:
    if is_unfinished(model_dir):
        raise UserError(
            f"{model_dir} holds an unfinished run (state/ without run.json). Finish it: "
            f"`{resume_command(model_dir)}`; or install elsewhere: `python -m pipeline.fetch.releases "
            "--model OTHER_FOLDER`"
        )
    print(f"release    {release.name or release.source.shown}")
    installed = _installed(model_dir)
    digest = release.sha256 or (
        files.sha256(Path(release.source.text)) if release.source.kind == "file" else None
    )
    same = installed.get("sha256") == digest if digest else installed.get("source_key") == release.source.key
    if (
        installed
        and same
        and installed["weights"] == _weights(model_dir)
        and not (model_dir / INSTALLING).exists()
    ):
        print(f"installed  already, on {installed['installed']}, and intact; nothing to do")
        return False

    work_dir = model_dir / WORK_DIR
    try:
        archive = _fetch_any(release, work_dir, **fetch_options)
        record = {
            "format": 1,
            "name": release.name,
            "source": release.source.shown,
            "source_key": release.source.key,
        }
        record |= {
            "sha256": digest or files.sha256(archive),
            "size": archive.stat().st_size,
            "installed": now(),
        }
        checked = (
            "as announced" if release.sha256 else f"not checked: set `sha256:` in {RELEASE_FILE} to check it"
        )
        print(f"archive    {files.human_size(record['size'])}, sha256 {record['sha256']} ({checked})")
        _install_archive(archive, work_dir / "unpacked", model_dir, data_dir, record)
        shutil.rmtree(work_dir, ignore_errors=True)
    finally:
        if work_dir.is_dir() and not any(work_dir.iterdir()):  # a partial download stays for the next call
            work_dir.rmdir()
    return True


def _install_archive(
    archive: Path, unpacked_dir: Path, model_dir: Path, data_dir: Path, record: dict[str, Any]
) -> None:
    shutil.rmtree(unpacked_dir, ignore_errors=True)  # left by a call that was killed
    try:
        contents = sort_contents(
            archive, unpack_zip(archive, unpacked_dir, max_members=200_000), unpacked_dir
        )
        if contents.data_dir:
            _install_data(contents.data_dir, data_dir)
        _install_model(contents, model_dir, record)
    except UserError:
        if archive.parent == unpacked_dir.parent:
            archive.unlink()  # the next call fetches it again, perhaps repaired
        raise
    finally:
        shutil.rmtree(unpacked_dir, ignore_errors=True)
    if contents.left_out:
        more = f" and {len(contents.left_out) - 5} more" if len(contents.left_out) > 5 else ""
        print(
            f"left out   {', '.join(contents.left_out[:5])}{more}: not part of a model, its run files or "
            "data/"
        )


def _fetch_any(release: Release, work_dir: Path, **options: Any) -> Path:
    """Return the release's checked archive, from its source or the first mirror that has it."""
    ways_out = (
        "then install that file: `make weights WEIGHTS=/path/to/file.zip`",
        f"or add another source of the same archive to {RELEASE_FILE}: `mirrors: [https://...]`",
    )
    target_path = work_dir / f"{(release.sha256 or release.source.key)[:12]}.zip"
    failures = []
    for source in (release.source, *release.mirrors):
        print(f"source     {source.shown}")
        try:
            return fetch(
                source, target_path, sha256=release.sha256, size=release.size, otherwise=ways_out, **options
            )
        except UserError as error:
            failures.append(str(error))
    raise UserError("\n".join(failures))


def _install_model(contents: Contents, model_dir: Path, record: dict[str, Any]) -> None:
    """Move the earlier model away, then move the new one in.

    A marker file exists in between. If the process is killed then, nobody uses a model with missing parts,
    and the next call installs again.
    """
    of_former_release = [model_dir / name for name in (*_installed(model_dir).get("entries", ()), INSTALLED)]
    entries = [
        entry for entry in contents.entries if not _is_own_readme(model_dir / entry.name, of_former_release)
    ]
    former = dict.fromkeys(
        [*run_entries(model_dir), *of_former_release, *(model_dir / entry.name for entry in entries)]
    )
    former.pop(model_dir / INSTALLING, None)
    files.write_text(
        model_dir / INSTALLING, "make weights is running here, or was interrupted: run it again\n"
    )
    if earlier := files.set_aside(former, model_dir / "earlier"):
        print(
            f"kept       the earlier content in {earlier}: "
            f"{', '.join(sorted(path.name for path in earlier.iterdir()))}"
        )
    for entry in entries:
        entry.rename(model_dir / entry.name)
    names = [entry.name for entry in entries]
    files.write_json(model_dir / INSTALLED, record | {"entries": names, "weights": _weights(model_dir)})
    (model_dir / INSTALLING).unlink()
    print(f"installed  {', '.join(names)} in {model_dir}")


def _is_own_readme(path: Path, of_former_release: Sequence[Path] = ()) -> bool:
    """Return True for a README that no release installed: it is kept, and the release's README is dropped."""
    return path.name.startswith("README") and path.exists() and path not in of_former_release


def _install_data(source_dir: Path, data_dir: Path) -> None:
    """Move the release's competition into `data_dir`, unless that holds one already."""
    with_files = (
        path for path in source_dir.iterdir() if any(inner.is_file() for inner in [path, *path.rglob("*")])
    )
    entries = sorted(path for path in with_files if not _is_own_readme(data_dir / path.name))
    if in_the_way := competition_entries(data_dir, [entry.name for entry in entries]):
        print(
            f"data       not changed: {data_dir} holds {', '.join(in_the_way[:5])}; the release's own data/ "
            "was not installed"
        )
        return
    if not entries:
        return
    data_dir.mkdir(parents=True, exist_ok=True)
    # The folders may be on different disks: copy under a hidden name first, so that an interruption leaves no
    # partial competition.
    with tempfile.TemporaryDirectory(prefix=".incoming-", dir=data_dir) as incoming:
        for entry in entries:
            shutil.move(entry, incoming)
        for entry in entries:
            (Path(incoming) / entry.name).rename(data_dir / entry.name)
    print(f"data       {', '.join(entry.name for entry in entries)} in {data_dir}")


def competition_entries(data_dir: Path, wanted: list[str]) -> list[str]:
    """Return names in `data_dir` that belong to a competition or are in `wanted`; empty if a competition may
    be installed.

    Dot-files, READMEs, empty folders and sub-folders with their own competition (such as `digits/`) do not
    count.
    """
    entries = sorted(data_dir.iterdir()) if data_dir.is_dir() else []
    return [path.name for path in entries if path.name in wanted or not _is_harmless(path)]


def _is_harmless(path: Path) -> bool:
    if path.name.startswith((".", "README")):
        return True
    if not path.is_dir():
        return False
    inside = [inner for inner in path.iterdir() if not inner.name.startswith(".")]
    is_split = re.match(r"(train|test|val|images)", path.name, re.IGNORECASE) is not None
    own_competition = any(inner.name == "train" or inner.suffix in (".csv", ".json") for inner in inside)
    return not inside or (own_competition and not is_split)


def _installed(model_dir: Path) -> dict[str, Any]:
    """Return the record of the last `make weights`; empty if there is none, or if it cannot be read."""
    try:
        record = json.loads((model_dir / INSTALLED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if (
        isinstance(record, dict)
        and {"sha256", "source_key", "entries", "weights", "installed"} <= record.keys()
    ):
        return record
    return {}


def _weights(model_dir: Path) -> dict[str, str]:
    """Return the SHA-256 of every file that predictions depend on: all in `model_*/`, the head, run.json."""
    paths = [model_dir / RECORD, model_dir / HEAD_FILE]
    paths += [path for folder in model_dirs(model_dir) for path in folder.rglob("*")]
    return {
        path.relative_to(model_dir).as_posix(): files.sha256(path)
        for path in paths
        if path.is_file() and path.name[0] != "."
    }


def main(argv: list[str] | None = None) -> int:
    """Install a release. Returns 0, also if it was installed already."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.fetch.releases", description=__doc__, allow_abbrev=False
    )
    parser.add_argument(
        "--weights",
        metavar="SOURCE",
        help=f"zip, Google Drive id or link, or https address (default: {RELEASE_FILE})",
    )
    parser.add_argument("--sha256", metavar="HEX", help="expected digest of the archive of --weights")
    parser.add_argument(
        "--model",
        type=Path,
        default=MODEL_DIR,
        metavar="DIR",
        help="folder for the model (default: %(default)s)",
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("data"),
        metavar="DIR",
        help="folder for a data/ in the release (default: %(default)s)",
    )
    parser.add_argument(
        "--cookies",
        type=Path,
        metavar="FILE",
        help="cookies.txt (Netscape format) of a browser signed in to Google",
    )
    args = parser.parse_args(argv)
    release = choose_release(args.weights, args.sha256, args.model)
    install(release, args.model, args.data, cookies=args.cookies)
    model = [] if args.model == MODEL_DIR else ["--model", str(args.model)]
    data = [] if args.data == Path("data") else ["--data", str(args.data)]
    print(f"next       {shlex.join(['python', 'inference.py', *model, *data])}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
