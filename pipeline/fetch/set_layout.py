"""Download the archives of a public set, check their digests, and lay it out as a competition folder."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from tqdm import tqdm

from pipeline import files
from pipeline.competition.facts import SET_RECORD, SET_SPLITS
from pipeline.errors import UserError
from pipeline.fetch.archives import check_room, unpack_zip
from pipeline.fetch.download import fetch
from pipeline.fetch.public_sets import PublicSet, SetImage, find
from pipeline.tables import write_table
from pipeline.wording import natural_key

SOLUTION = "solution.csv"


def download(public_set: PublicSet, folder: Path) -> None:
    """Download the set's archives into `folder`.

    Existing files are checked and kept, partial ones are resumed.

    Raises:
        UserError: the disk is too small, a server does not give an archive, or an archive is not the
            published one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    total = sum(archive.size for archive in public_set.archives)
    there = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    check_room(folder, round(total * public_set.disk_factor) - there)
    for archive in public_set.archives:
        target = folder / archive.name
        otherwise = [f"put your own copy at {target}: it is checked and used"]
        fetch(archive.url, target, sha256=archive.sha256, size=archive.size, otherwise=otherwise)


def lay_out(name: str, archive_dir: Path, target: Path) -> None:
    """Make `target` a competition folder of the set, from its archives in `archive_dir`.

    The record is written last.

    It has `train/<class>/`, `test/` with ids that do not tell the class, `sample_submission.csv`,
    `solution.csv` with the true labels of the test images, and `splits.csv` with the original split and name
    of every id. The same archives give the same folder, byte for byte.

    Raises:
        UserError: there is no such set; an archive is damaged or unsafe, or has another layout than the set.
    """
    public_set = find(name)
    unpacked = archive_dir / "unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)
    for number, archive in enumerate(public_set.archives):
        unpack_zip(archive_dir / archive.name, unpacked / str(number))
    try:
        images = list(public_set.read(unpacked))
    except (FileNotFoundError, IndexError, KeyError, ValueError) as error:
        raise UserError(
            f"the archives in {archive_dir} do not have the layout of {name}: {type(error).__name__}: {error}"
        ) from None
    train = [image for image in images if image.split != public_set.test_split]
    # Official lists go class by class. Sorted by digest, the order does not tell the class and is the same
    # everywhere.
    test = sorted((image for image in images if image.split == public_set.test_split), key=_digest)
    train_ids, test_ids = _numbered("train", len(train)), _numbered("test", len(test))
    with tqdm(total=len(images), unit="image", desc="laying out", disable=None) as bar:
        for folder, ids, part in (("train", train_ids, train), ("test", test_ids, test)):
            for image_id, image in zip(ids, part, strict=True):
                parent = target / folder / image.label if folder == "train" else target / folder
                parent.mkdir(parents=True, exist_ok=True)
                image.save(parent / f"{image_id}{image.suffix}")
                bar.update()
    placeholder = min({image.label for image in train}, key=natural_key)
    write_table(
        target / "sample_submission.csv", ("id", "label"), [(image_id, placeholder) for image_id in test_ids]
    )
    write_table(
        target / SOLUTION,
        ("id", "label"),
        [(image_id, image.label) for image_id, image in zip(test_ids, test, strict=True)],
    )
    rows = zip([*train_ids, *test_ids], [*train, *test], strict=True)
    write_table(
        target / SET_SPLITS,
        ("id", "split", "original"),
        [(image_id, image.split, image.original) for image_id, image in rows],
    )
    shutil.rmtree(unpacked)
    sources = [
        {"url": archive.url, "size": archive.size, "sha256": archive.sha256}
        for archive in public_set.archives
    ]
    record = {"dataset": name, "about": public_set.about, "archives": sources}
    record["images"] = {"train": len(train), "test": len(test)}
    files.write_json(target / SET_RECORD, record)


def _digest(image: SetImage) -> str:
    return hashlib.sha256(image.original.encode()).hexdigest()


def _numbered(word: str, count: int) -> list[str]:
    return [f"{word}_{number:05d}" for number in range(1, count + 1)]
